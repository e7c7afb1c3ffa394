"""Core of the house: models, collapse metrics and how scripts run, which every experiment shares.

"Collapse" is the drift of SGD into an invariant set (Chen, Kunin, Yamamura, Ganguli, *Stochastic
Collapse*, NeurIPS 2023): parameters where a neuron has vanished, or where two neurons are equal.

    data               load_dataset, synthetic_dataset: in images.py
    models             vgg16, resnet18
    collapse metrics   normalized_distances, independent_neurons, effective_rank, feature_sparsity, neuron_groups,
                       collapse_report, distance_maps: in collapse/, which stands alone; import them from here
    training           Run, train, sweep: in training.py
    scripts            run_script, run_sweeps: arguments, results, environment
"""

import argparse
import ast
import contextlib
import dataclasses
import datetime
import inspect
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from collapse import (  # noqa: F401  (the room of the collapse metrics)
    collapse_report,
    distance_maps,
    effective_rank,
    feature_sparsity,
    independent_neurons,
    neuron_groups,
    normalized_distances,
)
from images import Dataset, load_dataset, synthetic_dataset  # noqa: F401  (the room of the data)
from training import (  # noqa: F401  (the training room)
    Run,
    check_teams,
    first_rank_first,
    learning_rate_at,
    load_state,
    sweep,
    train,
)

# ======================================================================================
# models
# ======================================================================================


def vgg16(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-16 of the paper for 3 x 32 x 32 images: GELU, no batch norm, no dropout.

    13 convolutions 3x3 with bias (width, 2 width, 4 width, 8 width, 8 width) and three linear
    layers; 15.25 M parameters at the paper's width 64. Weights Kaiming normal (fan-in, gain
    sqrt 2), biases 0 (the reference code, `VGG16_NET_GELU`).
    """
    from torchvision.models import vgg

    plan = [size if size == "M" else size * width // 64 for size in vgg.cfgs["D"]]
    features = nn.Sequential(*(nn.GELU() if isinstance(m, nn.ReLU) else m for m in vgg.make_layers(plan)))
    wide = plan[-2]
    classifier = nn.Sequential(
        nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, num_classes)
    )
    model = nn.Sequential()
    model.add_module("features", features)
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", classifier)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def resnet18(num_classes: int = 100, width: int = 64, blocks: tuple = (2, 2, 2, 2)) -> nn.Module:
    """ResNet-18 of the paper for 3 x 32 x 32 images: GELU, stem 3x3 stride 1 without max-pool.

    torchvision's network otherwise (batch norm, its initialisation); the replaced stem keeps the
    default initialisation of a convolution, as in the reference code. 11.22 M parameters at
    width 64 and 100 classes. `blocks`: how many of them in each stage; (3, 4, 6, 3) is ResNet-34.
    """
    from torchvision.models import resnet

    class ScaledResNet(resnet.ResNet):
        def _make_layer(self, block, planes, *args, **options):
            if planes == 64:  # the first of the four stages
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, *args, **options)

    model = ScaledResNet(resnet.BasicBlock, list(blocks))
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    model.fc = nn.Linear(8 * width, num_classes)
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = nn.GELU()
    return model


# ======================================================================================
# scripts: the porch through which every experiment is started and its results leave
# ======================================================================================

progress = {"disable": None, "leave": False, "mininterval": 0.5}  # for tqdm: a bar on terminals only


def plain(value, digits: int | None = 6):
    """`value` as JSON has it: tensors and tuples are lists, NaN and infinities null, numbers of so many digits."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, digits) for entry in value]
    if isinstance(value, float):
        value = value if digits is None else float(f"{value:.{digits}g}")
        return value if math.isfinite(value) else None
    return value


def write_json(path: str | Path, content: dict, digits: int | None = 6) -> None:
    """Write `content` to `path` atomically: whoever reads the file sees the old one or the new one.

    Tensors become lists; numbers keep `digits` significant digits (None: all); NaN and infinities become null.
    """
    path = Path(path)
    text = json.dumps(plain(content, digits), allow_nan=False, separators=(",", ":"))
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def environment(device: torch.device | str, seconds: float) -> dict:
    """What a result file says of where its numbers come from."""
    device = torch.device(device)
    record = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
    }
    if sys.platform == "linux":
        import resource

        record["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return record


def pick_device(name: str) -> torch.device:
    """The device for --device: auto takes a CUDA GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps":
        raise ValueError("--device mps: metrics and theory need float64, which Apple GPUs lack; use cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA GPU here; use cpu")
    if name == "cuda":  # ranks may share a GPU
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device(name)


def open_arguments(document: str, names: list[str]) -> argparse.ArgumentParser:
    """A parser with what every script takes; `document` is the script's docstring."""
    summary, _, details = document.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")  # one line, no usage
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where to compute")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the results (default: results)")
    parser.add_argument("--quick", action="store_true", help="a small version of everything, into <out>/quick/")
    return parser


def close_arguments(parser: argparse.ArgumentParser, argv: list[str] | None, names: list[str]):
    """(arguments, device, folder for the results), or one line and exit code 2 before any work is done."""
    args = parser.parse_args(argv)
    unknown = [name for name in args.experiments if name not in names]
    if unknown:
        parser.error(f"unknown experiment {', '.join(unknown)}: choose from {', '.join(names)}")
    args.experiments = args.experiments or names
    out = args.out / "quick" if args.quick else args.out
    try:
        device = pick_device(args.device)
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        parser.error(f"can't write to --out {out}: {error.strerror or error}")
    except ValueError as error:
        parser.error(str(error))
    return args, device, out


def save_result(path: Path, name: str, args, settings: dict, device, seconds: float, measured: dict) -> None:
    """Write a result file: what was run, how, where, and what was measured. One with other settings is kept aside."""
    ranks = os.environ.get("WORLD_SIZE")
    start = f"torchrun --nproc_per_node={ranks}" if ranks else "python"
    result = {
        "experiment": name,
        "quick": args.quick,
        "command": " ".join([start, Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": settings,
        "environment": environment(device, seconds),
    }
    try:
        old = json.loads(path.read_text())
        same = [old[key] for key in ("command", "settings")] == plain([result[key] for key in ("command", "settings")])
    except (OSError, ValueError, KeyError, TypeError):
        same = True  # nothing there to lose
    if not same and not args.quick:
        kept = path.parent / "replaced" / f"{path.stem}_{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}.json"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy2(path, kept)
        print(f"{path} was made otherwise: kept as {kept} (--out FOLDER keeps runs of your own apart)", flush=True)
    write_json(path, result | measured)
    way = "--quick " * args.quick + f"--out {args.out} " * (args.out != Path("results"))
    hint = (
        "" if path.stem.startswith(("benchmark_", "beyond_measure")) else f"; draw it: python figures.py {way}".rstrip()
    )
    print(f"{name}: {seconds:.1f} s, {path}{hint}", flush=True)


def read_setting(known: dict, text: str) -> tuple[str, object]:
    """(name, value) of NAME=VALUE; `known`: settings and their defaults, whose kind the value must have."""
    name, _, value = text.partition("=")
    if name not in known:
        raise ValueError(f"--set {text}: no setting {name}; there are {', '.join(known)}")
    default = known[name]

    def fits(value, like):
        if isinstance(like, tuple) and like:
            return isinstance(value, tuple | list) and all(fits(entry, like[0]) for entry in value)
        return like is None or isinstance(value, int | float if isinstance(like, float) else type(like))

    if not isinstance(default, str):
        with contextlib.suppress(ValueError, SyntaxError):  # else it is a text
            value = ast.literal_eval(value)
    if isinstance(default, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not fits(value, default):
        raise ValueError(f"--set {text}: expected a value like {default!r}")
    if isinstance(value, dict):  # fields of a Run, of which some change
        if value.keys() - Run.__dataclass_fields__.keys():
            raise ValueError(f"--set {text}: the fields are {', '.join(Run.__dataclass_fields__)}")
        value = (default or {}) | value
    return name, value


def run_script(
    document: str,
    experiments: dict,
    quick: dict,
    argv: list[str] | None = None,
    prefix: str = "",
    options: dict | None = None,
) -> None:
    """Run the experiments named on the command line and save `<out>/<prefix><experiment>.json` after each.

    `experiments`: name -> function with keyword settings, `seed` and `device` among them, whose
    defaults are the paper's; it returns the measured arrays. `quick`: name -> the settings that
    --quick replaces. `options`: setting -> arguments of `add_argument`, for settings that deserve one;
    --set changes all others. Bad input ends in one line on stderr and exit code 2.
    """
    parser = open_arguments(document, list(experiments))
    for option, arguments in (options or {}).items():
        parser.add_argument(f"--{option.replace('_', '-')}", **arguments)
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help="other settings: keywords of the experiment")
    args, device, out = close_arguments(parser, argv, list(experiments))
    given = {option: getattr(args, option) for option in options or {} if getattr(args, option) is not None}
    known = {
        key: p.default
        for name in args.experiments
        for key, p in inspect.signature(experiments[name]).parameters.items()
        if key not in ("seed", "device")
    }
    try:
        given |= dict(map(partial(read_setting, known), args.set or ()))
    except ValueError as error:
        parser.error(str(error))
    for option in given.keys() - known.keys():
        parser.error(f"--{option.replace('_', '-')} is no setting of {', '.join(args.experiments)}")
    torch.set_num_threads(1)  # loops of small tensors: a second thread costs far more than it brings
    torch.set_flush_denormal(True)
    for name in args.experiments:
        function = experiments[name]
        settings = {key: p.default for key, p in inspect.signature(function).parameters.items() if key != "device"}
        settings |= (quick[name] if args.quick else {}) | {"seed": args.seed}
        settings |= {key: value for key, value in given.items() if key in settings}
        start = time.perf_counter()
        try:
            measured = function(**settings, device=device)
            path = out / f"{prefix}{name}.json"
            if measured is not None:  # of a training that other ranks share, rank 0 has the results
                name = path.stem.removeprefix("benchmark_")
                save_result(path, name, args, settings, device, time.perf_counter() - start, measured)
        except (ValueError, OSError) as error:
            parser.error(f"{name}: {error}")
        except KeyboardInterrupt:
            parser.exit(130, f"\n{parser.prog}: {name} interrupted: no result; what is in runs/ is used again\n")


PAPER_SWEEPS = {  # what the paper's two networks have in common, as plans of `plan_runs`
    "lr": {"varied": "learning_rate", "values": (0.01, 0.02, 0.05, 0.1), "replicas": 4},
    "noise": {
        "varied": "label_noise",
        "values": (0.0, 0.2, 0.4, 0.6, 0.8),
        "replicas": 4,
        "steps": 1_000_000,
        "eval_every": 50_000,
    },
    "batch": {"varied": "batch_size", "values": (32, 64, 128, 256, 512), "replicas": 4, "learning_rate": 0.02},
    "drop": {
        "varied": "learning_rate",
        "values": (0.1,),
        "replicas": 8,
        "steps": 40_000,
        "eval_every": 1000,
        "milestones": (10_000, 20_000, 40_000),
    },
}
SHORT = {"learning_rate": float, "label_noise": float, "batch_size": int}  # options that take several values
OTHER = {"weight_decay": float, "momentum": float, "steps": int, "warmup_steps": int, "width": int, "eval_every": int}


def plan_runs(paper: Run, plan: dict, given: dict, seeds: int | None, first_seed: int) -> list[Run]:
    """The runs of an experiment: each value of the varied field times each seed; `given` fields win.

    `plan`: {"varied": field of Run, "values": its values, "replicas": seeds, ... fields that differ
    from `paper`}. Milestones scale with the number of steps. Raises ValueError for several values of a
    field that is not varied, and for values no training can have.
    """
    fixed = {key: value for key, value in plan.items() if key in Run.__dataclass_fields__}
    values, steps = plan["values"], fixed.get("steps", paper.steps)
    for field, value in given.items():
        if field == plan["varied"]:
            values = value
        elif isinstance(value, list) and len(value) > 1:
            raise ValueError(f"--{field.replace('_', '-')} takes one value where {plan['varied']} is varied")
        else:
            fixed[field] = value[0] if isinstance(value, list) else value
    milestones = tuple(m * fixed.get("steps", steps) // steps for m in fixed.get("milestones", ()))
    base = dataclasses.replace(paper, **fixed | {"milestones": milestones})
    replicas = range(first_seed, first_seed + (plan["replicas"] if seeds is None else seeds))
    values = dict.fromkeys(values)  # each once
    runs = [dataclasses.replace(base, **{plan["varied"]: value, "seed": seed}) for value in values for seed in replicas]
    if not runs:
        raise ValueError(f"no run to do: --seeds {seeds}")
    for run in runs:
        positive = min(run.learning_rate, run.batch_size, run.steps, run.width, run.eval_every)
        pulls = min(run.weight_decay, run.momentum)
        if not (positive > 0 <= pulls and run.width % 2 == 0 and 0 <= run.label_noise <= 1):
            raise ValueError(
                f"impossible settings: {run.name}; learning rate, batch size, steps, width (even), eval_every must be "
                "positive, label noise 0 to 1, weight decay and momentum not negative"
            )
    return runs


def with_controls(runs: list[Run]) -> list[Run]:
    """What tells noise from weight decay: all runs without it, and the lowest learning rate with the highest's pull.

    That is learning rate x weight decay.
    """
    rates = [run.learning_rate for run in runs]
    strong = runs[0].weight_decay * max(rates) / min(rates)
    controls = [dataclasses.replace(run, weight_decay=0.0) for run in runs]
    controls += [dataclasses.replace(run, weight_decay=strong) for run in runs if run.learning_rate == min(rates)]
    return [run for run in dict.fromkeys(controls) if run not in runs]


def maps_of(runs: Iterable[Run], folder: Path, classes: int, names: tuple[str, ...]) -> list[dict]:
    """`distance_maps` of the runs in `folder`, without those that have diverged."""
    maps = []
    for run in runs:
        weights = folder / run.name / f"weights_{run.steps}.pt"
        if weights.exists():  # a diverged run has none
            model = globals()[run.model](classes, run.width)
            model.load_state_dict(load_state(weights, torch.device("cpu")))
            groups = distance_maps(model, torch.zeros(1, 3, 32, 32), names)
            maps.append({"run": dataclasses.asdict(run), "groups": groups})
    return maps


def run_sweeps(document: str, paper: Run, experiments: dict, quick: dict, argv: list[str] | None = None) -> None:
    """Train the networks of a deep experiment, over all torchrun ranks; save `<out>/<script>_<name>.json`.

    `experiments`: name -> plan of `plan_runs`; with "branches" (fields), each run is also continued
    from its weights at each milestone. `quick`: the fields that --quick replaces.
    """
    parser = open_arguments(document, list(experiments))
    for field, kind in (SHORT | OTHER).items():
        words = "one value, or several where it is varied" if field in SHORT else "in place of the paper's"
        parser.add_argument(
            f"--{field.replace('_', '-')}", type=kind, help=words, **({"nargs": "+"} if field in SHORT else {})
        )
    parser.add_argument("--precision", choices=["auto", "float32"], help="auto: bfloat16 where the device has it")
    parser.add_argument("--seeds", type=int, help="number of replicates; --seed is the first")
    parser.add_argument("--dataset", help=f"a data set of core.load_dataset (the paper: {paper.dataset})")
    parser.add_argument("--data", default="data", help="folder of the data (default: data)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of checkpoints and logs (default: runs)"
    )
    parser.add_argument("--controls", action="store_true", help="lr: also no weight decay; and decay without the noise")
    args, device, out = close_arguments(parser, argv, list(experiments))
    script, is_first = Path(sys.argv[0]).stem, int(os.environ.get("RANK", 0)) == 0
    folder = (args.runs / "quick" if args.quick else args.runs) / script
    torch.set_float32_matmul_precision("high")  # TF32 where there is no bfloat16
    torch.set_num_threads(1)  # a process per core (torchrun) beats threads, which spin while they wait
    torch.set_flush_denormal(True)  # what weight decay leaves of collapsed weights is slow to multiply
    given = {f: getattr(args, f) for f in (*SHORT, *OTHER, "dataset", "precision") if getattr(args, f) is not None}
    try:
        plans = {}
        for name in args.experiments:
            plan = experiments[name] | (quick | {"replicas": 1} if args.quick else {})
            if args.quick and "milestones" in plan:
                plan["milestones"] = tuple(m * plan["steps"] // experiments[name]["steps"] for m in plan["milestones"])
            runs = plan_runs(paper, plan, given, args.seeds, args.seed)
            controls = with_controls(runs) if args.controls and name == "lr" else []
            sizes = {run.batch_size for run in runs}
            check_teams(sizes, len(runs + controls))
            if "branches" in plan:
                check_teams(sizes, sum(len(run.milestones) for run in runs))
            plans[name] = plan, runs, controls
        dataset = next(iter(plans.values()))[1][0].dataset
        data = first_rank_first(lambda: load_dataset(dataset, args.data), device)
        for name, (plan, runs, controls) in plans.items():
            start = time.perf_counter()
            records = sweep(runs + controls, data, folder, device)
            branches = []
            if "branches" in plan:
                fields = plan["branches"] | ({"steps": plan["steps"] // 2, "eval_every": 20} if args.quick else {})
                starts = [(run, f"{run.name}/weights_{m}.pt") for run in runs for m in run.milestones]
                branch_runs = [
                    dataclasses.replace(run, **fields, start=start, milestones=())
                    for run, start in starts
                    if (folder / start).exists()
                ]
                branches = sweep(branch_runs, data, folder, device)
            if is_first:
                ends = dict.fromkeys((runs[0], dataclasses.replace(runs[-1], seed=args.seed)))
                measured = {
                    "varied": plan["varied"],
                    "data_source": data.source,
                    "runs": records[: len(runs)],
                    "controls": records[len(runs) :],
                    "branches": branches,
                    "maps": maps_of(ends, folder, data.num_classes, plan["maps"]) if "maps" in plan else [],
                }
                for record in records + branches:
                    if record["diverged_at"] is not None:
                        print(f"{record['name']} diverged at step {record['diverged_at']}", flush=True)
                settings = dataclasses.asdict(runs[0])
                result = f"{script.split('_')[0]}_{name}"
                save_result(
                    out / f"{result}.json", result, args, settings, device, time.perf_counter() - start, measured
                )
    except (ValueError, OSError) as error:
        parser.error(str(error))
