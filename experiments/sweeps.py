"""Sweeps of trainings from the command line: one setting varied, everything else the paper's or an option's."""

import dataclasses
from pathlib import Path

import torch

from core import (
    WITHOUT_MOMENTUM,
    Branch,
    Run,
    Sweep,
    build_model,
    check_batch_size,
    distance_maps,
    has_passed,
    sweep,
)
from lib import teams
from lib.command import NOT_FINISHED, Arguments, Parser, close_arguments, errors_in_one_line, folder, open_arguments
from lib.data import Dataset, dataset_name_and_root, load_dataset
from lib.errors import InputError
from lib.precision import PRECISIONS
from lib.results import ROOT, figures_command, save_result
from lib.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A sweep of the paper.

    run         the settings that all its trainings share
    varied      the field of Run that differs, and its `values`; each is trained with `seeds` seeds
    maps        layers whose heat maps of distances are kept, of the first and last value
    after_drop  of the drop experiment: the fields that change for the branches that start at each of run.milestones
    """

    run: Run
    varied: str
    values: tuple
    seeds: int
    maps: tuple[str, ...] = ()
    after_drop: dict | None = None

    @property
    def has_controls(self) -> bool:
        """Whether `controls_of` its runs say anything."""
        return self.varied == "learning_rate" and self.after_drop is None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The trainings of an experiment, as the command line asks for them."""

    experiment: Experiment
    runs: list[Run]
    controls: list[Run]
    branches: dict[Run, list[Branch]]

    @property
    def trainings(self) -> list[Run]:
        """All of them, branches included."""
        branch_runs = [branch.run for branches in self.branches.values() for branch in branches]
        return self.runs + self.controls + branch_runs


# Options that change a field of Run. Of the first three, several values may be given where they are varied
SEVERAL = {"learning_rate": float, "label_noise": float, "batch_size": int}
MOST_SEEDS = 1000
SINGLE = {"weight_decay": float, "momentum": float, "steps": int, "warmup_steps": int, "width": int, "eval_every": int}

OF_THE_RUN_ALONE = ("warmup_steps", "eval_every")  # `Experiment.after_drop` has others for the branches


def as_option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def scaled(steps: int, new: int, old: int) -> int:
    """A number of steps, in a training of `new` steps instead of `old`; 1 at least."""
    return max(1, steps * new // old)


def shortened(experiment: Experiment, steps: int) -> Experiment:
    """The experiment with another number of steps: milestones and branches scale along."""
    old = experiment.run.steps
    milestones = tuple(dict.fromkeys(scaled(at, steps, old) for at in experiment.run.milestones))  # each once
    run = dataclasses.replace(experiment.run, steps=steps, milestones=milestones)
    after_drop = experiment.after_drop
    if after_drop is not None and steps != old:
        after_drop = after_drop | {"steps": scaled(after_drop["steps"], steps, old)}
    return dataclasses.replace(experiment, run=run, after_drop=after_drop)


def quick_version(experiment: Experiment, fields: dict) -> Experiment:
    """The whole path in seconds: `fields` of Run replaced, one seed."""
    experiment = shortened(experiment, fields["steps"])
    run = dataclasses.replace(experiment.run, **fields)
    after_drop = experiment.after_drop
    if after_drop is not None:
        after_drop = after_drop | {"steps": fields["steps"] // 2, "eval_every": 20}
    return dataclasses.replace(experiment, run=run, seeds=1, after_drop=after_drop)


def plan_runs(experiment: Experiment, given: dict, seeds: int | None, first_seed: int) -> list[Run]:
    """Each value of the varied field times each seed; the fields in `given` win, lists for those of SEVERAL.

    Raises InputError for several values of a field that is not varied, and for values no training can have.
    """
    values = given.get(experiment.varied, experiment.values)
    fixed = {}
    for field, value in given.items():
        if field == experiment.varied:
            continue
        if isinstance(value, list) and len(value) > 1:
            raise InputError(f"{as_option(field)} takes one value where {experiment.varied} is varied")
        fixed[field] = value[0] if isinstance(value, list) else value
    number = experiment.seeds if seeds is None else seeds
    if not 1 <= number <= MOST_SEEDS:
        raise InputError(f"--seeds {number}: expected a number from 1 to {MOST_SEEDS:,}")
    base = dataclasses.replace(experiment.run, **fixed)
    runs = []
    for value in dict.fromkeys(values):  # each once
        for seed in range(first_seed, first_seed + number):
            runs.append(dataclasses.replace(base, **{experiment.varied: value, "seed": seed}))
    return runs


def controls_of(runs: list[Run]) -> list[Run]:
    """What tells noise from weight decay: all runs without it, and the lowest learning rate with the highest's pull.

    The pull is learning rate x weight decay.
    """
    rates = [run.learning_rate for run in runs]
    strong_decay = runs[0].weight_decay * max(rates) / min(rates)
    controls = [dataclasses.replace(run, weight_decay=0.0) for run in runs]
    for run in runs:
        if run.learning_rate == min(rates):
            controls.append(dataclasses.replace(run, weight_decay=strong_decay))
    return [run for run in dict.fromkeys(controls) if run not in runs]


def branches_of(runs: list[Run], after_drop: dict) -> dict[Run, list[Branch]]:
    """For each run, the trainings that go on from its weights at each of its milestones."""
    branches = {}
    for run in runs:
        branches[run] = []
        for milestone in run.milestones:
            start = f"{run.name}/weights_{milestone}.pt"
            branch_run = dataclasses.replace(run, **after_drop, start=start, milestones=())
            branches[run].append(Branch(milestone, branch_run))
    return branches


def make_plan(experiment: Experiment, given: dict, options) -> Plan:
    """What the command line asks of an experiment. InputError for what can't be trained or shared."""
    if options.stop_at is not None and options.stop_at < 1:
        raise InputError(f"--stop-at {options.stop_at}: expected a step, 1 or more")
    if given.get("optimizer") in WITHOUT_MOMENTUM and "momentum" in given:
        raise InputError(f"--momentum: {given['optimizer']} has none; leave it out, or use --optimizer sgd")
    if "steps" in given:
        check = dataclasses.replace(experiment.run, steps=given["steps"])  # refuses impossible numbers
        experiment = shortened(experiment, check.steps)
        given = given | {"milestones": experiment.run.milestones}
    runs = plan_runs(experiment, given, options.seeds, options.seed)
    controls = controls_of(runs) if options.controls and experiment.has_controls else []
    branches = branches_of(runs, experiment.after_drop) if experiment.after_drop else {}
    teams.check_teams({run.batch_size for run in runs}, len(runs + controls))
    return Plan(experiment, runs, controls, branches)


def tell_long_warmups(plan: Plan, quick: bool) -> None:
    """A line where a shortened training spends on its warm-up, which isn't shortened, what the experiment is about."""
    all_branches = [branch for branches in plan.branches.values() for branch in branches]
    if not all_branches or quick or teams.rank() != 0:
        return
    first_drop = all_branches[0].milestone  # the same for all seeds
    if plan.runs[0].warmup_steps >= first_drop:
        print(f"note: the first drop, at step {first_drop}, comes before the warm-up has ended", end="; ")
        print("--steps shortens no warm-up, --warmup-steps does", flush=True)
    after_drop = all_branches[0].run
    if after_drop.warmup_steps >= after_drop.steps:
        print(f"note: all {after_drop.steps} steps after a drop are warm-up, which --steps doesn't shorten", flush=True)


def result_name(network: str, experiment: str, run: Run, paper: Run, quick: bool) -> str:
    """`vgg_lr`; what isn't the paper's stands in the name: `vgg_lr_fashion_mnist_width16`."""
    name = f"{network}_{experiment}"
    if quick:
        return name
    if run.dataset != paper.dataset:
        name += f"_{run.dataset}"
    if run.width != paper.width:
        name += f"_width{run.width}"
    return name


def state_of(run: Run, runs_folder: Path) -> dict | None:
    """The checkpoint of a training; None if it hasn't begun."""
    return RunFolder(runs_folder / run.name).load_checkpoint(torch.device("cpu"))


def is_finished(state: dict | None, end: int) -> bool:
    """Whether a training has come to step `end`, or diverged."""
    if state is None:
        return False
    return state["step"] >= end or state["diverged_at"] is not None


def are_finished(plan: Plan, runs_folder: Path, stop_at: int | None) -> list[bool]:
    """Of each training that the plan's command would do: whether it is finished.

    It does no branches from beyond `stop_at`, and none from where their run never came because it diverged before.
    """
    finished = []
    for run in plan.runs + plan.controls:
        state = state_of(run, runs_folder)
        end = run.steps if stop_at is None else min(run.steps, stop_at)
        finished.append(is_finished(state, end))
        has_diverged = state is not None and state["diverged_at"] is not None
        for branch in plan.branches.get(run, []):
            if stop_at is not None and branch.milestone > stop_at:
                continue
            if has_diverged and not has_passed(state["log"], branch.milestone):
                continue
            finished.append(is_finished(state_of(branch.run, runs_folder), branch.run.steps))
    return finished


def tell_status(plans: dict[str, Plan], runs_folder: Path, stop_at: int | None) -> int:
    """Print how many trainings of each experiment are finished; the exit code: 0 if all are, else 3."""
    all_finished = True
    for name, plan in plans.items():
        finished = are_finished(plan, runs_folder, stop_at)
        all_finished &= all(finished)
        print(f"{name}: {sum(finished)} of {len(finished)} runs finished")
    return 0 if all_finished else NOT_FINISHED


def maps_of(runs: list[Run], runs_folder: Path, data: Dataset, layers: tuple[str, ...]) -> list[dict]:
    """`distance_maps` of the runs, without those that have diverged or have not come to their end."""
    maps = []
    for run in runs:
        state = state_of(run, runs_folder)
        if state is None or state["step"] < run.steps or state["diverged_at"] is not None:
            continue
        size = max(32, *data.train_images.shape[2:])
        model = build_model(run.model, data.num_classes, run.width, size)
        model.load_state_dict(state["model"])
        groups = distance_maps(model.float(), torch.zeros(1, 3, size, size), layers)
        maps.append({"run": dataclasses.asdict(run), "groups": groups})
    return maps


def sweep_parser(document: str, experiments: dict[str, Experiment]) -> Parser:
    paper = next(iter(experiments.values())).run
    parser = open_arguments(document, list(experiments))
    for field, kind in SEVERAL.items():
        parser.add_argument(as_option(field), type=kind, nargs="+", help="one value, or several where it is varied")
    for field, kind in SINGLE.items():
        value = getattr(paper, field)
        words = f"{value:,}" if kind is int else f"{value:g}"
        about = f"in place of the paper's {words}"
        if field in OF_THE_RUN_ALONE:
            about += "; drop: until the drop, after it as in the paper"
        parser.add_argument(as_option(field), type=kind, help=about)
    parser.add_argument("--precision", choices=PRECISIONS, help="auto (default): bfloat16 where it is fast")
    parser.add_argument("--optimizer", help="sgd (default) or adamw")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network: pays on long GPU runs")
    parser.add_argument("--no-augment", action="store_true", help="no crops and flips of the training images")
    parser.add_argument("--no-flip", action="store_true", help="no flips: digits have a left and a right")
    parser.add_argument("--seeds", type=int, help="number of replicates; --seed is the first")
    parser.add_argument("--dataset", help=f"a data set, an npz or a folder of images (the paper: {paper.dataset})")
    parser.add_argument("--data", type=folder, default=ROOT / "data", help="folder of the data (default: data)")
    parser.add_argument("--runs", type=folder, default=ROOT / "runs", help="folder of checkpoints and logs")
    parser.add_argument("--stop-at", type=int, help="train no run further than this step for now")
    parser.add_argument("--controls", action="store_true", help="lr: also no weight decay; and decay without the noise")
    return parser


def given_fields(options) -> dict:
    """The fields of Run that the command line changes."""
    given = {}
    for field in (*SEVERAL, *SINGLE, "precision", "optimizer", "dataset"):
        value = getattr(options, field)
        if value is not None:
            given[field] = value
    if options.compile:
        given["compile"] = True
    if options.no_augment:
        given["augment"] = False
    if options.no_flip:
        given["flip"] = False
    return given


def run_sweeps(
    document: str, network: str, experiments: dict[str, Experiment], quick: dict, argv: list[str] | None = None
) -> None:
    """Train the networks of a deep experiment, over all torchrun ranks; save `<out>/<network>_<experiment>.json`.

    `document`: the script's docstring. `quick`: the fields of Run that --quick replaces.
    """
    parser = sweep_parser(document, experiments)
    arguments = close_arguments(parser, argv, list(experiments))
    options = arguments.options
    with errors_in_one_line(parser):
        if options.dataset is not None:
            options.dataset, options.data = dataset_name_and_root(options.dataset, options.data)
        if options.controls and not any(experiments[name].has_controls for name in options.experiments):
            raise InputError(f"--controls: {', '.join(options.experiments)} has none; only lr has")
        plans = {}
        for name in options.experiments:
            experiment = quick_version(experiments[name], quick) if options.quick else experiments[name]
            plans[name] = make_plan(experiment, given_fields(options), options)
        runs_folder = options.runs / "quick" if options.quick else options.runs
        runs_folder = runs_folder / Path(parser.prog).stem
        if options.status:
            parser.exit(tell_status(plans, runs_folder, options.stop_at))
        for plan in plans.values():
            tell_long_warmups(plan, options.quick)
        first = next(iter(plans.values())).runs[0]
        data = teams.first_rank_first(lambda: load_dataset(first.dataset, options.data), arguments.device)
        for plan in plans.values():  # before the first of them begins
            for run in plan.trainings:
                check_batch_size(run, len(data.train_images))
        for name, plan in plans.items():
            paper = experiments[name].run
            file_name = result_name(network, name, plan.runs[0], paper, options.quick)
            train_and_save(plan, data, runs_folder, arguments, file_name)
    if teams.rank() == 0:
        print(f"draw it: {figures_command(options.out, options.quick)}", flush=True)


def train_and_save(plan: Plan, data: Dataset, runs_folder: Path, arguments: Arguments, file_name: str) -> None:
    """Train all of a plan and write its result, and that of its controls beside it."""
    options, device = arguments.options, arguments.device
    result = sweep(plan.runs + plan.controls, data, runs_folder, device, plan.branches, options.stop_at)
    if result is None:  # rank 0 has it
        return
    number = len(plan.runs)
    measured = Sweep(result.runs[:number], result.branches)
    save_sweep(measured, plan, data, runs_folder, arguments, file_name)
    if plan.controls:
        controls = Sweep(result.runs[number:], [])
        save_sweep(controls, plan, data, runs_folder, arguments, f"{file_name}_controls")


def save_sweep(
    result: Sweep, plan: Plan, data: Dataset, runs_folder: Path, arguments: Arguments, file_name: str
) -> None:
    first = plan.runs[0]
    settings = dataclasses.asdict(first) | {
        "varied": plan.experiment.varied,
        "values": list(dict.fromkeys(getattr(run, plan.experiment.varied) for run in plan.runs)),
        "seeds": len({run.seed for run in plan.runs}),
    }
    if plan.experiment.after_drop:
        settings["after_drop"] = plan.experiment.after_drop
    if arguments.options.stop_at is not None:  # so that a part doesn't take the place of the whole unseen
        settings["stop_at"] = arguments.options.stop_at
    measured = {
        "varied": plan.experiment.varied,
        "stopped_at": arguments.options.stop_at,
        "data_source": data.source,
        "precision": resolved_precisions(result, runs_folder),
        "runs": result.runs,
        "branches": result.branches,
        "maps": [],
    }
    if plan.experiment.maps and not file_name.endswith("_controls"):
        last = dataclasses.replace(plan.runs[-1], seed=first.seed)
        measured["maps"] = maps_of(list(dict.fromkeys([first, last])), runs_folder, data, plan.experiment.maps)
    path = arguments.out / f"{file_name}.json"
    try:
        save_result(path, settings, measured, arguments.device, result.seconds, arguments.options.quick)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from None


def resolved_precisions(result: Sweep, runs_folder: Path) -> list[str]:
    """In which precisions the trainings were computed: one, unless they were begun on different machines."""
    found = set()
    for record in result.runs + result.branches:
        settings = RunFolder(runs_folder / record["name"]).read_settings()
        found.add(settings.get("resolved_precision", "unknown"))
    return sorted(found)
