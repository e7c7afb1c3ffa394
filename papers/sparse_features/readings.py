"""Results of *Sparse Features* as named arrays: the only place that knows their keys."""

import dataclasses
import re

import numpy as np

from papers.result import Result

# ======================================================================================
# Groups of runs: one schedule, many seeds
# ======================================================================================

WINDOW_ENDS = (0.1, 0.3, 0.5)  # of the windows in which the plateau's level is known, as shares of the run
PLACES = ("train", "jacobian", "rank", "l0")  # what is kept of the start and of the end of a plateau


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs with one schedule of the step size, S seeds, T recorded times."""

    name: str
    gamma: float | None  # the step; None where each seed has its own
    peak: float | None  # the largest step of a warm-up
    decay: float  # share of the run before the step is divided; 0: never
    divisor: float
    delta: float | str  # intensity of the noise of an SDE, "true" for SGD's own
    final: dict  # name -> [S]; NaN where the run diverged
    curves: dict  # name -> [T, 3] of 10, 50, 90 % over the seeds that live, or [T, 1] of the median
    diverged: int  # seeds, by the end
    plateau: dict | None  # "start" and "end" -> name -> [S]
    levels: np.ndarray | None = None  # [windows of the plateau, S] median training loss over the steps of each

    @property
    def step(self) -> float | None:
        return self.gamma if self.peak is None else self.peak

    @property
    def seeds(self) -> int:
        return len(next(iter(self.final.values())))

    def quantiles(self, name: str) -> np.ndarray:
        """10, 50, 90 % over the seeds that did not diverge; NaN if all did."""
        values = self.final[name]
        values = values[np.isfinite(values)]
        return np.quantile(values, [0.1, 0.5, 0.9]) if len(values) else np.full(3, np.nan)

    def median(self, name: str) -> float:
        return float(self.quantiles(name)[1])


def read_table(record: Result, *shape) -> dict:
    """{name: array} of every value of a record; all have the same shape, but for what `rank` records less often."""
    found = {}
    for name in record.content:
        axes = [f"{axis} of ranks" if "rank" in name and axis == "times" else axis for axis in shape]
        found[name] = record.array(name, *axes)
    return found


def read_curves(record: Result) -> dict:
    found = {}
    for name, rows in record.content.items():
        bands = len(rows[0]) if isinstance(rows, list) and rows and isinstance(rows[0], list) else 1
        times = "rank times" if "rank" in name else "times"
        found[name] = record.array(name, times, bands)
    return found


def read_step(record: Result, key: str) -> float | None:
    """A step size; None where each seed has its own, or the group has none."""
    value = record.content.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def read_group(record: Result) -> Group:
    final = record.record("final")
    if not final.content:
        raise record.refuse(f"{record.place('final')} is empty")
    diverged = record.array("diverged", "times") if record.has("diverged") else np.zeros(1)
    plateau, levels = None, None
    if record.has("plateau"):
        part = record.record("plateau")
        windows = sum(end <= record.number("decay") for end in WINDOW_ENDS)
        if part.has("levels") and windows:
            levels = part.array("levels", windows, "seeds")
        plateau = {place: read_table(part.record(place), "seeds") for place in ("start", "end")}
    return Group(
        name=record.text("name"),
        gamma=read_step(record, "gamma"),
        peak=read_step(record, "peak"),
        decay=record.number("decay"),
        divisor=record.number("divisor"),
        delta=record.value("delta", (int, float, str)) if record.has("delta") else 0.0,
        final=read_table(final, "seeds"),
        curves=read_curves(record.record("curves")) if record.has("curves") else {},
        diverged=int(diverged[-1]),
        plateau=plateau,
        levels=levels,
    )


def read_groups(result: Result, key: str) -> list[Group]:
    return [read_group(record) for record in result.records(key, least=1)]


def need_groups(result: Result, key: str, groups: list[Group], **counts: int) -> None:
    """Refuses a result whose groups of a name are fewer than figures and claims compare; names with _ for spaces."""
    for name, least in counts.items():
        found = len(chosen(groups, name.replace("_", " ")))
        if found < least:
            raise result.refuse(f"{key} has {found} groups {name.replace('_', ' ')!r}, expected {least}")


def optional_groups(result: Result, key: str) -> list[Group] | None:
    return read_groups(result, key) if result.has(key) else None


def chosen(groups: list[Group], *names: str, **fields) -> list[Group]:
    """Groups of these names, in their order in the file, whose fields have these values."""
    found = []
    for group in groups:
        if group.name in names and all(getattr(group, field) == value for field, value in fields.items()):
            found.append(group)
    return found


def single(groups: list[Group], name: str, **fields) -> Group:
    """The one group of that name and these fields; LookupError names what is missing."""
    found = chosen(groups, name, **fields)
    if not found:
        raise LookupError(f"no group {name} with {fields}")
    return found[0]


# ======================================================================================
# Diagonal linear networks and the loss surface
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Surface:
    """The small problem: losses in a plane, trajectories in it, and their ends."""

    grid: np.ndarray  # [G], of both axes
    train: np.ndarray  # [G, G]
    test: np.ndarray
    star: np.ndarray  # [2] the sparse solution
    tracks: dict  # "flow", "gd", "sgd" -> [times, 2]
    ends: dict  # the same names -> [train or test, seeds]
    shown: int  # seed of SGD that is drawn


@dataclasses.dataclass(frozen=True)
class Diagonal:
    settings: dict
    seeds: int
    steps: int
    times: np.ndarray
    rank_times: np.ndarray
    sgd: list  # of Group, data A
    sgd_b: list  # data B
    gd_b: list
    sde: list  # data A
    transfer: list  # over several data sets; runs data set by data set
    data_sets: int
    duration: list | None  # over several data sets, by the rule
    surface: Surface
    cycle_a: np.ndarray  # eta y
    cycle_losses: np.ndarray  # [levels of a, lower or upper]


def read_diagonal(result: Result) -> Diagonal:
    settings = result.record("settings")
    surface = result.record("surface")
    tracks = surface.record("tracks")
    ends = surface.record("final")
    cycle = result.record("cycle")
    names = ("flow", "gd", "sgd")
    sgd, sgd_b, gd_b = (read_groups(result, key) for key in ("sgd", "sgd_b", "gd_b"))
    sde, transfer = (read_groups(result, key) for key in ("sde", "transfer"))
    need_groups(result, "sgd", sgd, small=1, published_small=1, published=3, clean=3)
    need_groups(result, "sgd_b", sgd_b, rule=1)
    need_groups(result, "gd_b", gd_b, small=1, published=3)
    need_groups(result, "sde", sde, true=2, constant=3)
    need_groups(result, "transfer", transfer, published=1, rule=1)
    return Diagonal(
        settings=settings.content,
        seeds=int(settings.number("seeds")),
        steps=int(settings.number("steps")),
        times=result.array("times", "times"),
        rank_times=result.array("rank_times", "rank times"),
        sgd=sgd,
        sgd_b=sgd_b,
        gd_b=gd_b,
        sde=sde,
        transfer=transfer,
        data_sets=int(settings.number("data_seeds")),
        duration=optional_groups(result, "duration"),
        surface=Surface(
            grid=surface.array("grid", "grid"),
            train=surface.array("train", "grid", "grid"),
            test=surface.array("test", "grid", "grid"),
            star=surface.array("star", 2),
            tracks={name: tracks.array(name, "times", 2) for name in names},
            ends={name: ends.array(name, 2, f"{name} seeds") for name in names},
            shown=int(surface.number("shown")),
        ),
        cycle_a=cycle.array("a", "levels"),
        cycle_losses=cycle.array("losses", "levels", 2),
    )


def cycle_levels(a) -> np.ndarray:
    """Losses / y^2 of the 2-cycle of gradient descent on (x^2 - y)^2 / 4, 1 < a = eta y < sqrt(5) - 1: [lower,
    upper]."""
    a = np.asarray(a, dtype=float)
    root = np.sqrt(np.maximum((a - 1) * (a + 3), 0))
    squares = [(a + 1 + sign * root) / (2 * a) for sign in (-1, 1)]
    levels = np.array([(square - 1) ** 2 / 4 for square in squares])
    return np.sort(levels, axis=0)


# ======================================================================================
# ReLU networks
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Regression:
    """Twelve points on a line."""

    settings: dict
    seeds: int
    times: np.ndarray
    groups: list
    grid: np.ndarray  # [G]
    strip_times: list  # steps at which functions are shown
    functions: np.ndarray  # [strip times, groups shown, G] of one seed
    shown: int  # that seed
    x: np.ndarray
    y: np.ndarray


def read_regression(result: Result) -> Regression:
    settings = result.record("settings")
    settings.number("steps")
    groups = read_groups(result, "groups")
    need_groups(result, "groups", groups, clean=4, clean_low=2)
    if len(groups) < 9 or any(group.peak is None for group in groups[:3]):
        raise result.refuse("groups doesn't begin with the three published schedules")
    return Regression(
        settings=settings.content,
        seeds=int(settings.number("seeds")),
        times=result.array("times", "times"),
        groups=groups,
        grid=result.array("grid", "grid"),
        strip_times=result.numbers("strip_times", "strip times"),
        functions=result.array("functions", "strip times", "groups shown", "grid"),
        shown=int(result.number("shown")),
        x=result.array("x", "points"),
        y=result.array("y", "points"),
    )


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Where hidden neurons point: rows [neurons, 2], and the signs of their outputs."""

    rows: np.ndarray
    signs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Relu:
    """Teacher and student of two and of three layers."""

    settings: dict
    seeds: int
    two: list
    two_times: np.ndarray
    three: list
    three_times: np.ndarray
    edge: np.ndarray  # [seeds] largest stable step of each seed
    neurons: dict  # "teacher", "start", "small", "edge" -> Neurons
    two_fixed: list | None  # teacher and data drawn once, as the reference does
    three_fixed: list | None
    two_stable: list | None  # the step at the published share of each seed's own limit
    two_variants: list | None  # "decay first", the published order, and "step first"


def read_relu(result: Result) -> Relu:
    settings = result.record("settings")
    pictures = result.record("neurons")
    neurons = {}
    for name in ("teacher", "start", "small", "edge"):
        one = pictures.record(name)
        neurons[name] = Neurons(one.array("rows", "neurons", 2), one.array("signs", "neurons"))
    for key in ("steps", "deep_steps"):
        settings.number(key)
    two, three = read_groups(result, "two"), read_groups(result, "three")
    need_groups(result, "two", two, small=1, published=3, edge=3)
    need_groups(result, "three", three, small=1, published=3, clean=3)
    return Relu(
        settings=settings.content,
        seeds=int(settings.number("seeds")),
        two=two,
        two_times=result.array("two_times", "two times"),
        three=three,
        three_times=result.array("three_times", "three times"),
        edge=result.array("edge", "seeds"),
        neurons=neurons,
        two_fixed=optional_groups(result, "two_fixed"),
        three_fixed=optional_groups(result, "three_fixed"),
        two_stable=optional_groups(result, "two_stable"),
        two_variants=optional_groups(result, "two_variants"),
    )


# ======================================================================================
# Deep networks
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class DeepRun:
    """E evaluations, B blocks."""

    schedule: str  # "small", "published", "clean"
    decay: float
    seed: int
    peak: float
    steps: np.ndarray  # [E]
    loss: np.ndarray
    test_error: np.ndarray
    sparsity: np.ndarray  # [E, B] share of active units, duplicates removed
    active: np.ndarray  # [E, B] the same with duplicates
    diverged: bool


@dataclasses.dataclass(frozen=True)
class Deep:
    settings: dict
    blocks: list
    runs: list

    @property
    def about(self) -> str:
        models = {"resnet18": "ResNet-18", "resnet34": "ResNet-34", "densenet100": "DenseNet-100", "vgg16": "VGG-16"}
        datasets = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "synthetic": "generated images"}
        run = self.settings
        model = models.get(run["model"], run["model"])
        dataset = datasets.get(run["dataset"], run["dataset"])
        return f"{model}, {dataset}, width {run['width']}, batch {run['batch_size']}, {run['steps']:,} steps"


def read_deep_run(record: Result, blocks: int) -> DeepRun | None:
    """None where nothing was logged."""
    if not record.has("step") or not record.value("step", list):
        return None
    return DeepRun(
        schedule=record.text("schedule"),
        decay=record.number("decay"),
        seed=int(record.number("seed")),
        peak=record.number("peak"),
        steps=record.array("step", "evaluations"),
        loss=record.array("train_loss", "evaluations"),
        test_error=1 - record.array("test_accuracy", "evaluations"),
        sparsity=record.array("sparsity", "evaluations", blocks),
        active=record.array("active", "evaluations", blocks),
        diverged=record.content.get("diverged_at") is not None,
    )


def read_deep(result: Result) -> Deep:
    settings = result.record("settings")
    for key in ("model", "dataset", "recipe"):
        settings.text(key)
    for key in ("width", "batch_size", "steps", "seeds"):
        settings.number(key)
    blocks = result.value("blocks", list)
    runs = [read_deep_run(record, len(blocks)) for record in result.records("runs", least=1)]
    return Deep(settings.content, blocks, [run for run in runs if run is not None])


READERS = {
    "sparse_diagonal": read_diagonal,
    "sparse_regression": read_regression,
    "sparse_relu": read_relu,
}


def reader(name: str):
    """The function that reads a result of this name, or None if it is none of this paper's."""
    if re.fullmatch(r"sparse_deep(_\w+)?", name):
        return read_deep
    return READERS.get(name)
