"""Draw every figure from results/*.json and judge the papers' claims.

  python figures.py                    draw all there is; run missing theory experiments first
  python figures.py fig1_quartic       only this figure
  python figures.py --fresh            run the theory experiments again first (about 90 seconds on 2 cores)
  python figures.py --quick            everything small, into results/quick and figures/quick (half a minute)
  python figures.py --out mine         what there is in mine, into mine/figures

Needs numpy and matplotlib only, and reads nothing but the results. Writes figures/*.png (and
*.pdf), prints the claims table and writes it to figures/claims.md and figures/claims.json.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import claims
import figures_beyond
import figures_chaos
import figures_deep
import figures_sparse
import figures_theory

plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "figure.dpi": 110,
        "savefig.dpi": 150,
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
)
SCRIPTS = {  # what runs on a CPU in minutes: script -> its experiments
    "toy_models.py": ("quartic", "neuron", "pair"),
    "teacher_student.py": ("diagonal", "minibatch"),
}
FIGURES = {  # name -> (experiments, function)
    name: entry
    for room in (figures_theory, figures_deep, figures_chaos, figures_sparse, figures_beyond)
    for name, entry in room.FIGURES.items()
}

# ======================================================================================
# From results to figures
# ======================================================================================


def run_experiments(names, folder, args):
    """Run CPU experiments, the scripts side by side; their words go to the terminal."""
    jobs = {script: [name for name in names if name in known] for script, known in SCRIPTS.items()}
    options = ["--seed", str(args.seed), "--device", args.device, "--out", str(args.out)] + ["--quick"] * args.quick
    print(
        f"running {', '.join(names)} into {folder} ({'half a minute' if args.quick else 'up to two minutes'})",
        flush=True,
    )
    here = Path(__file__).resolve().parent
    running = [
        subprocess.Popen([sys.executable, str(here / script), *wanted, *options])
        for script, wanted in jobs.items()
        if wanted
    ]
    try:
        if max([job.wait() for job in running]):
            raise SystemExit(2)  # the script has said why
    finally:
        for job in running:
            job.terminate()


def command_of(name):
    """The command that makes a result."""
    for script, known in SCRIPTS.items():
        if name in known:
            return f"`python {script} {name}`"
    if name in ("pruning", "delay", "divergence", "subspace"):
        return f"`python chaotic_sgd.py {name}`"
    if name.startswith("sparse_"):
        return f"`python sparse_features.py {name.removeprefix('sparse_')}`"
    if name.startswith("beyond_"):
        return f"`python subnetworks.py {name.removeprefix('beyond_')}`"
    script = {"vgg": "vgg_cifar10.py", "resnet": "resnet_cifar100.py"}[name.split("_")[0]]
    return f"`torchrun --nproc_per_node=8 {script} {name.split('_')[1]}`"


def load_result(path, quick):
    """One result file, or one line that says what is wrong with it; None if there is none."""
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        if (
            not isinstance(result, dict)
            or not {"experiment", "settings", "environment"} <= result.keys()
            or result["experiment"] != path.stem
        ):
            raise ValueError("no result of that experiment")
        if result["quick"] is not quick:
            raise ValueError("a quick result among full ones" if result["quick"] else "a full result among quick ones")
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise SystemExit(f"figures.py: error: {path}: {error}; delete it and run its experiment again") from None
    return result


def main(argv=None):
    summary, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")  # one line, no usage
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"figures, of {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--format", nargs="+", choices=["png", "pdf"], default=["png"], help="file formats")
    parser.add_argument("--fresh", action="store_true", help="run the CPU experiments again first")
    parser.add_argument("--quick", action="store_true", help="small versions, in <out>/quick and <figures>/quick")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--figures", type=Path, help="folder for the figures (default: figures, or OUT/figures)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the experiments that are run")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="device of those experiments")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(f"unknown figure {', '.join(unknown)}: choose from {', '.join(FIGURES)}")
    own = args.out != Path("results")
    figures_folder = args.figures or (args.out / "figures" if own else Path("figures"))
    results_folder, figures_folder = (path / ("quick" * args.quick) for path in (args.out, figures_folder))
    if not (args.out.is_dir() or args.fresh or args.quick):
        parser.error(f"--out {args.out} is no folder of results; --fresh makes one")
    try:
        figures_folder.mkdir(parents=True, exist_ok=True)
        (figures_folder / ".writable").touch()
        (figures_folder / ".writable").unlink()
    except OSError as error:
        parser.error(f"can't write to {figures_folder}: {error.strerror or error}")
    start, there = time.perf_counter(), {path.stem for path in results_folder.glob("*.json")}
    whole = args.fresh or args.quick or not own  # else only what is there
    chosen = args.names or [name for name, (needs, _) in FIGURES.items() if whole or there & set(needs)]
    needed = dict.fromkeys(name for figure in chosen for name in FIGURES[figure][0])
    ours = [name for known in SCRIPTS.values() for name in known if name in needed]
    missing = [name for name in ours if args.fresh or (name not in there and (whole or args.names))]
    if missing:
        run_experiments(missing, results_folder, args)
    results = {name: load_result(results_folder / f"{name}.json", args.quick) for name in needed}
    failed = []
    for figure in chosen:
        needs, draw = FIGURES[figure]
        absent = [name for name in needs if results[name] is None]
        if absent:
            print(f"{figure}: no result yet of {', '.join(command_of(name) for name in absent)}")
        if len(absent) == len(needs) or (absent and figure not in figures_deep.FIGURES):
            continue
        try:
            drawn = draw(*(results[name] for name in needs))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            why = f"{figure}: can't be drawn from {', '.join(needs)} ({error!r}); run the experiment again"
            failed.append(f"{parser.prog}: error: {why}")
            plt.close("all")
            continue
        if drawn is None:
            print(f"{figure}: nothing to draw in its results")
            continue
        if args.quick:
            drawn.suptitle("QUICK: small settings, not a result", color="C3")
        for kind in args.format:
            drawn.savefig(figures_folder / f"{figure}.{kind}", metadata={"Software": None} if kind == "png" else None)
        plt.close(drawn)
        print(f"{figures_folder / figure}.{', '.join(args.format)}")
    table = claims.judge(results, chosen)
    text = f"{claims.markdown(table)}\n{claims.tally(table)}"
    print(f"\n{text}\n{time.perf_counter() - start:.1f} s")
    if not args.names:
        (figures_folder / "claims.md").write_text(text)
        (figures_folder / "claims.json").write_text(json.dumps(table, indent=1) + "\n")
    if failed:
        parser.exit(2, "\n".join(failed) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nfigures.py: interrupted; results that were finished are whole") from None
