"""Draw every figure from results/*.json and judge the papers' claims.

  python figures.py                    draw all there is; run missing theory experiments first
  python figures.py fig1_quartic       only this figure
  python figures.py --fresh            run the theory experiments again first (about 90 seconds on 2 cores)
  python figures.py --quick            everything small, into results/quick and figures/quick (half a minute)
  python figures.py --out mine         what there is in mine, into mine/figures
  python figures.py --width 8          of the deep networks those of this width, instead of the widest there is

Needs numpy and matplotlib only, and reads nothing but the results. Writes figures/*.png (and *.pdf),
figures/claims.json, docs/claims.md, docs/published.md, docs/figures.md, and the tally in README.md. results/ and
figures/ are those beside this file, wherever it is started. Exit code 2 where an input is bad, 130 after Ctrl-C.
"""

import lib.interrupts  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CPU_SCRIPTS = {  # what runs on a CPU in minutes: script -> its experiments
    "toy_models.py": ("quartic", "neuron", "pair"),
    "teacher_student.py": ("diagonal", "minibatch"),
}
CPU_EXPERIMENTS = [name for experiments in CPU_SCRIPTS.values() for name in experiments]


class Places(NamedTuple):
    """Where things are read and written."""

    results: Path
    figures: Path
    docs: Path  # for the pages
    own: bool  # a folder of one's own: only what is there is drawn


class Loaded(NamedTuple):
    """Results of a folder."""

    readings: dict  # name -> what was read
    origins: dict  # name -> pages.Origin
    damaged: dict  # name -> what is wrong with the file


# ======================================================================================
# Words for the terminal
# ======================================================================================


def say(*words: str) -> None:
    """Print lines; a reader who has left (| head -1) or a full disk doesn't stop the drawing."""
    try:
        for line in words:
            print(line, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the program ends


def refuse(message: str):
    """End in one line on stderr and exit code 2."""
    print(f"figures.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def folder(text: str) -> Path:
    """A folder given on the command line; ~ is the home folder, also in --out=~/x, which shells leave alone."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no folder; give . for this one")
    return Path(text).expanduser()


def parse_arguments(argv: list[str] | None, figures: list[str]) -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="figures.py", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"figures, of {', '.join(figures)} (default: all)")
    parser.add_argument("--format", nargs="+", choices=["png", "pdf"], default=["png"], help="file formats")
    parser.add_argument("--fresh", action="store_true", help="run the CPU experiments again first")
    parser.add_argument("--quick", action="store_true", help="small versions, in <out>/quick and <figures>/quick")
    parser.add_argument("--out", type=folder, help="folder of the results (default: results beside this script)")
    parser.add_argument("--figures", type=folder, help="folder for the figures (default: figures, or OUT/figures)")
    parser.add_argument("--width", type=int, help="width of the deep networks (default: the widest there is)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the experiments that are run (default: 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="device of those experiments")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in figures]
    if unknown:
        refuse(f"unknown figure {', '.join(unknown)}: choose from {', '.join(figures)}")
    if args.width is not None and args.width < 1:
        refuse(f"--width {args.width}: expected a positive number")
    return args


def find_places(args: argparse.Namespace) -> Places:
    """Folders of this call; ends where they can't be used, before any work is done."""
    own = args.out is not None and args.out.resolve() != HERE / "results"
    out = args.out if own else HERE / "results"
    if not (out.is_dir() or args.fresh or args.quick):
        refuse(f"--out {out} is no folder of results; --fresh makes one")
    figures = args.figures or (out / "figures" if own else HERE / "figures")
    results = out / "quick" if args.quick else out
    figures = figures / "quick" if args.quick else figures
    try:
        figures.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=figures).close()
    except OSError as error:
        refuse(f"can't write to {figures}: {error.strerror or error}")
    elsewhere = own or args.quick or args.figures is not None
    return Places(results, figures, figures if elsewhere else HERE / "docs", own)


# ======================================================================================
# Experiments and results
# ======================================================================================


def run_experiments(names: list[str], args: argparse.Namespace, results: Path) -> None:
    """Run CPU experiments, the scripts side by side; the first one's bar is shown, two would overlap."""
    duration = "half a minute" if args.quick else "up to two minutes"
    say(f"running {', '.join(names)} into {results} ({duration})")
    out = results.parent if args.quick else results
    options = ["--seed", str(args.seed), "--device", args.device, "--out", str(out.resolve())]
    if args.quick:
        options.append("--quick")
    running = []
    try:
        for script, known in CPU_SCRIPTS.items():
            wanted = [name for name in names if name in known]
            if wanted:
                words = tempfile.TemporaryFile("w+", encoding="utf-8") if running else None  # noqa: SIM115
                command = [sys.executable, str(HERE / script), *wanted, *options]
                running.append((subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words), words))
        for job, words in running:
            if job.wait():
                if words is not None:
                    words.seek(0)
                    sys.stderr.write(words.read())
                raise SystemExit(2)  # the script has said why
    finally:
        for job, _ in running:
            job.terminate()


def load(folder: Path, names: set[str], quick: bool) -> Loaded:
    """Read results; a damaged file doesn't keep the others from being read."""
    from papers import pages, registry
    from papers.result import ResultError, load_result

    readings, origins, damaged = {}, {}, {}
    for name in sorted(names):
        try:
            result = load_result(folder / f"{name}.json", quick)
            readings[name] = registry.read(name, result)
            origins[name] = pages.origin_of(result)
        except ResultError as error:
            damaged[name] = str(error)
    return Loaded(readings, origins, damaged)


def known_results(folder: Path) -> list[str]:
    from papers import registry

    return sorted(path.stem for path in folder.glob("*.json") if registry.reader(path.stem) is not None)


# ======================================================================================
# Drawing and judging
# ======================================================================================


def results_of(name: str, loaded: Loaded) -> list[str]:
    """The results that a figure shows; none where it can't be drawn."""
    from papers import registry

    figure = registry.FIGURES[name]
    if any(result not in loaded.readings for result in figure.needs):
        return []
    if figure.matching is None:
        return list(figure.needs)
    return [result for result in loaded.readings if figure.matching(result)]


def mark_of(name: str, shown: list[str], results: Path, args: argparse.Namespace) -> str:
    """What a picture is made of, as a word of 64 letters: its results, the code that draws them, and the options.

    Another version of Matplotlib draws other bytes of the same picture; by its mark it is left as it is.
    """
    from papers import claim, plots, registry, result

    package = Path(sys.modules[registry.FIGURES[name].draw.__module__].__file__).parent
    code = [path for path in sorted(package.glob("*.py")) if path.name != "claims.py"]
    code += [Path(shared.__file__) for shared in (claim, plots, result)]
    digest = hashlib.sha256(f"{name} {args.width} {args.quick}".encode())
    for path in [*code, *(results / f"{one}.json" for one in shown)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def has_mark(path: Path, mark: str) -> bool:
    """Whether a file is a whole PNG picture with this mark."""
    if path.suffix != ".png" or not path.is_file():
        return False
    content = path.read_bytes()
    return mark.encode() in content and content.endswith(b"IEND\xaeB`\x82")


def draw(name: str, loaded: Loaded, width: int | None):
    """The matplotlib figure, or None where there is nothing to draw. A bug in it is raised naming the figure."""
    from papers import registry

    figure = registry.FIGURES[name]
    shown = results_of(name, loaded)
    if not shown:
        return None
    try:
        if figure.matching is None:
            return figure.draw(*(loaded.readings[result] for result in shown))
        return figure.draw({result: loaded.readings[result] for result in shown}, width)
    except Exception as error:
        raise RuntimeError(f"the figure {name} failed in its own code") from error


def save(drawn, folder: Path, name: str, formats: list[str], mark: str) -> None:
    """Save whole, under a name of one's own first: processes that draw the same figure at once don't meet."""
    for kind in formats:
        metadata = {"Software": None, "Source": mark} if kind == "png" else {"CreationDate": None}
        temporary = folder / f".{name}.{os.getpid()}.{kind}"
        try:
            drawn.savefig(temporary, metadata=metadata)
            os.replace(temporary, folder / f"{name}.{kind}")
        finally:
            temporary.unlink(missing_ok=True)


def missing_commands(names: list[str], there: list[str]) -> dict:
    """{a command that makes all results of one script that are missing: the figures that lack them}."""
    from papers import registry
    from papers.result import start_of_command

    experiments, figures = {}, {}
    for name in names:
        figure = registry.FIGURES[name]
        for result in (*figure.needs, *figure.wants):
            if result not in there:
                start, experiment = start_of_command(result)
                experiments.setdefault(start, []).append(experiment)
                figures.setdefault(start, []).append(name)
    commands = {}
    for start, wanted in experiments.items():
        commands[" ".join([start, *dict.fromkeys(wanted)])] = list(dict.fromkeys(figures[start]))
    return commands


def judge_seeds(folder: Path, quick: bool, chosen: list[str]) -> dict:
    """{name of a folder of other seeds beside the results: its table}, of the claims that belong to these figures."""
    from papers import claim, registry

    tables = {}
    for one in sorted(folder.glob("seed*")):
        if one.is_dir():
            loaded = load(one, set(known_results(one)), quick)
            tables[one.name] = claim.judge(registry.CLAIMS, loaded.readings, quick, chosen)
    return tables


def write_pages(table: list[dict], seeds: dict, drawn: list[str], loaded: Loaded, places: Places) -> None:
    from papers import pages, registry

    figures = {name: registry.FIGURES[name] for name in drawn}
    beside = "." if places.docs == places.figures else "../figures"
    pages.write_whole(places.figures / "claims.json", json.dumps(table, indent=1) + "\n")
    pages.write_whole(places.docs / "claims.md", pages.claims_page(table, seeds))
    pages.write_whole(places.docs / "published.md", pages.published_page(table, loaded.origins))
    pages.write_whole(places.docs / "figures.md", pages.figures_page(figures, loaded.origins, beside))
    readme = HERE / "README.md"
    if places.docs == HERE / "docs" and readme.exists():
        text = readme.read_text(encoding="utf-8")
        with_tally = pages.put_tally(text, table)
        if with_tally != text:
            pages.write_whole(readme, with_tally)


def main(argv: list[str] | None = None) -> None:
    start = time.perf_counter()
    os.environ["MPLBACKEND"] = "Agg"  # no window is needed; a notebook's backend may be set that isn't there
    import matplotlib

    matplotlib.use("Agg")  # where it was imported before

    from papers import claim, pages, plots, registry

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 still gets its lines
    args = parse_arguments(argv, list(registry.FIGURES))
    places = find_places(args)
    plots.use_style()

    there = known_results(places.results)
    chosen = args.names or list(registry.FIGURES)
    run_all = not places.own or args.fresh or args.quick or args.names  # else only what is there is drawn
    needed = [name for figure in chosen for name in registry.FIGURES[figure].needs if name in CPU_EXPERIMENTS]
    lacking = [name for name in dict.fromkeys(needed) if args.fresh or name not in there]
    if lacking and run_all:
        run_experiments(lacking, args, places.results)
        there = known_results(places.results)
    loaded = load(places.results, registry.belongs_to(chosen, there), args.quick)

    drawn = []
    for name in chosen:
        shown = results_of(name, loaded)
        if not shown:
            continue
        mark = mark_of(name, shown, places.results, args)
        formats = [kind for kind in args.format if not has_mark(places.figures / f"{name}.{kind}", mark)]
        if not formats:
            drawn.append(name)
            continue
        figure = draw(name, loaded, args.width)
        if figure is None:
            continue
        if args.quick:
            figure.suptitle("QUICK: small settings, not a result", color=plots.RED)
        save(figure, places.figures, name, formats, mark)
        plots.plt.close(figure)
        drawn.append(name)

    own = claim.judge(registry.CLAIMS, loaded.readings, args.quick, chosen)
    other_seeds = judge_seeds(places.results, args.quick, chosen)
    table = claim.weigh_seeds(own, other_seeds)
    if not args.names and not loaded.damaged:
        write_pages(table, {"seed 0": own, **other_seeds}, drawn, loaded, places)
    missing = missing_commands(chosen, there) if run_all else {}
    seconds = time.perf_counter() - start
    say(*pages.ending(table, drawn, places.figures, missing, places.docs / "claims.md", seconds))
    if loaded.damaged:
        for error in loaded.damaged.values():
            print(f"figures.py: error: {error}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    try:
        with lib.interrupts.keyboard_interrupts():
            main()
    except KeyboardInterrupt:
        print("\nfigures.py: interrupted; figures and results that were finished are whole", file=sys.stderr)
        sys.exit(lib.interrupts.CTRL_C)
