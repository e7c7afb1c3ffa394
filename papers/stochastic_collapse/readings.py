"""Results of *Stochastic Collapse* as named arrays: the only place that knows their keys.

A reading holds what figures and claims need; what older results lack is None there.
"""

import dataclasses
import re

import numpy as np

from papers.result import Result

# ======================================================================================
# Toy models
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Quartic:
    """Figure 1: T times, Z noises of trajectories, L noise levels, C checkpoints."""

    settings: dict
    mu: float
    replicas: int
    threshold: float  # |theta| below it has collapsed
    trajectory_noises: list  # [Z]
    times: np.ndarray  # [T] steps
    paths: np.ndarray  # [Z, trajectories, T]
    bin_edges: np.ndarray  # [bins + 1]
    histogram: np.ndarray  # [Z, bins], shares
    stationary: list  # [Z] of arrays [bins], or None where there is no stationary density
    noises: np.ndarray  # [L]
    checkpoints: list  # [C] steps
    collapse: np.ndarray  # [C, L] shares of replicas
    theory_chain: np.ndarray  # [C, L] reflected Brownian motion that grows as the Euler chain does
    theory_equation: np.ndarray | None  # [C, L] the same for the equation that the chain approximates

    @property
    def attracting(self) -> float:
        """The noise above which the origin attracts."""
        return float(np.sqrt(2 * self.mu))


def read_quartic(result: Result) -> Quartic:
    settings = result.record("settings")
    edges = result.array("bin_edges", "edges")
    rows = result.value("stationary", list)
    histogram = result.array("histogram", "trajectory noises", len(edges) - 1)
    if len(rows) != len(histogram):
        raise result.refuse(f"stationary has {len(rows)} rows, histogram {len(histogram)}")
    stationary = []
    for index, row in enumerate(rows):
        density = None
        if row is not None:
            density = Result({"row": row}, result.path, f"stationary[{index}].").array("row", len(edges) - 1)
        stationary.append(density)
    return Quartic(
        settings=settings.content,
        mu=settings.number("mu"),
        replicas=settings.number("replicas"),
        threshold=settings.number("threshold"),
        trajectory_noises=settings.numbers("trajectory_noises"),
        times=result.array("times", "times"),
        paths=result.array("paths", "trajectory noises", "trajectories", "times"),
        bin_edges=edges,
        histogram=histogram,
        stationary=stationary,
        noises=result.array("noises", "noises"),
        checkpoints=settings.numbers("checkpoints"),
        collapse=result.array("collapse", "checkpoints", "noises"),
        theory_chain=result.array("collapse_theory", "checkpoints", "noises"),
        theory_equation=result.optional_array("collapse_theory_sde", "checkpoints", "noises"),
    )


@dataclasses.dataclass(frozen=True)
class Neuron:
    """Figure 2: L noise levels, C checkpoints (the first is the start), R noise levels of rates."""

    settings: dict
    replicas: int
    radius: float  # |w| below it has collapsed
    steps: int
    x: np.ndarray  # [points]
    y: np.ndarray
    noises: np.ndarray  # [L] eta zeta^2 sigma'(0) / 2
    threshold: float  # the theorem's
    checkpoints: list  # [C]
    collapse: np.ndarray  # [C, L]
    ends: np.ndarray  # [L, trajectories, 2] weights w1, w2
    rate_noises: np.ndarray  # [R]
    rate: np.ndarray  # [R] growth of log|w| per unit time
    rate_error: np.ndarray
    rate_chain: np.ndarray  # [R] of the linearised Euler chain
    rate_equation: np.ndarray  # [R] of the linearised equation


def read_neuron(result: Result) -> Neuron:
    settings = result.record("settings")
    return Neuron(
        settings=settings.content,
        replicas=settings.number("replicas"),
        radius=settings.number("threshold"),
        steps=settings.number("steps"),
        x=result.array("x", "points"),
        y=result.array("y", "points"),
        noises=result.array("noises", "noises"),
        threshold=result.number("threshold"),
        checkpoints=result.numbers("checkpoint_steps", "checkpoints"),
        collapse=result.array("collapse", "checkpoints", "noises"),
        ends=result.array("ends", "noises", "trajectories", 2),
        rate_noises=result.array("rate_noises", "rates"),
        rate=result.array("rate", "rates"),
        rate_error=result.array("rate_error", "rates"),
        rate_chain=result.array("rate_theory_chain", "rates"),
        rate_equation=result.array("rate_theory", "rates"),
    )


@dataclasses.dataclass(frozen=True)
class Pair:
    """Figure 3: C conditions, first the sweep of learning rates, then that of label noises. Rates per step."""

    settings: dict
    times: np.ndarray  # [T] steps
    learning_rates: list  # [C]
    label_noises: list  # [C]
    sweep: int  # number of conditions in the first sweep
    distances: np.ndarray  # [C, replicas, T] squared
    rate: np.ndarray  # [C] growth of the log of the squared distance
    rate_error: np.ndarray
    predicted: np.ndarray  # [C] twice the top Lyapunov exponent
    predicted_error: np.ndarray

    @property
    def conditions(self) -> list:
        """[C] of (learning rate, label noise)."""
        return list(zip(self.learning_rates, self.label_noises, strict=True))

    @property
    def attracted(self) -> np.ndarray:
        """[C] where the theory predicts that the neurons merge; a condition of both sweeps counts once."""
        seen = set()
        first = []
        for condition in self.conditions:
            first.append(condition not in seen)
            seen.add(condition)
        return (self.predicted < 0) & np.array(first)

    def rate_ratio(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(measured rate / predicted rate, its relative standard error) of the chosen conditions."""
        rate, predicted = self.rate[chosen], self.predicted[chosen]
        relative = np.hypot(self.rate_error[chosen] / rate, self.predicted_error[chosen] / predicted)
        return rate / predicted, relative

    @property
    def seeds(self) -> int:
        return self.settings["replicas"] + self.settings["extra_replicas"]


def read_pair(result: Result) -> Pair:
    settings = result.record("settings")
    for key in ("replicas", "extra_replicas"):
        settings.number(key)
    return Pair(
        settings=settings.content,
        times=result.array("times", "times"),
        learning_rates=result.numbers("learning_rates", "conditions"),
        label_noises=result.numbers("label_noises", "conditions"),
        sweep=len(settings.numbers("learning_rates")),
        distances=result.array("distances", "conditions", "replicas", "times"),
        rate=result.array("rate", "conditions"),
        rate_error=result.array("rate_error", "conditions"),
        predicted=result.array("rate_theory", "conditions"),
        predicted_error=result.array("rate_theory_error", "conditions"),
    )


# ======================================================================================
# Linear teacher-student
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """Figure 5: N label noises, T recorded steps, S snapshots (the first at the drop), M modes."""

    settings: dict
    replicas: int
    drop_step: int
    label_noises: list  # [N]
    true: np.ndarray  # [M] singular values of X'y
    shrinkage: np.ndarray  # [N] eta sigma^2 / 2: modes below it collapse
    steps: np.ndarray  # [T]
    train: np.ndarray  # [N, T] mean over seeds
    train_std: np.ndarray
    test: np.ndarray
    test_std: np.ndarray
    paper_test_factor: float  # from our test loss to the paper's axis
    snapshots: list  # [S] steps
    learned: np.ndarray  # [N, S, M] mean over seeds
    learned_std: np.ndarray
    lower: np.ndarray  # [N, S, M] theory
    upper: np.ndarray

    @property
    def plateau(self) -> np.ndarray:
        """[T] whether a step belongs to the last tenth before the drop."""
        return (self.steps > 0.9 * self.drop_step) & (self.steps <= self.drop_step)


def read_diagonal(result: Result) -> Diagonal:
    settings = result.record("settings")
    noises = result.numbers("label_noises", "noises")
    bands = {"lower": [], "upper": []}
    theory = result.records("theory")
    if len(theory) != len(noises):
        raise result.refuse(f"theory has {len(theory)} label noises, expected {len(noises)}")
    for name, rows in bands.items():
        for one in theory:
            rows.append(one.array(name, "snapshots", "modes"))
    return Diagonal(
        settings=settings.content,
        replicas=settings.number("replicas"),
        drop_step=settings.number("drop_step"),
        label_noises=noises,
        true=result.array("true", "modes"),
        shrinkage=result.array("threshold", "noises"),
        steps=result.array("steps", "steps"),
        train=result.array("train", "noises", "steps"),
        train_std=result.array("train_std", "noises", "steps"),
        test=result.array("test", "noises", "steps"),
        test_std=result.array("test_std", "noises", "steps"),
        paper_test_factor=result.number("paper_test_factor"),
        snapshots=result.numbers("snapshot_steps", "snapshots"),
        learned=result.array("mean", "noises", "snapshots", "modes"),
        learned_std=result.array("std", "noises", "snapshots", "modes"),
        lower=np.array(bands["lower"]),
        upper=np.array(bands["upper"]),
    )


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """The supplement to figure 5: B batch sizes, T recorded steps, M modes."""

    settings: dict
    replicas: int
    batch_sizes: list  # [B]
    drop_steps: list
    steps: np.ndarray  # [T]
    train: np.ndarray  # [B, T] mean over seeds
    train_std: np.ndarray
    test: np.ndarray
    test_std: np.ndarray
    true: np.ndarray  # [M]
    spectra: np.ndarray  # [B, snapshots, M] singular values of the student


def read_minibatch(result: Result) -> Minibatch:
    settings = result.record("settings")
    return Minibatch(
        settings=settings.content,
        replicas=settings.number("replicas"),
        batch_sizes=result.numbers("batch_sizes", "batch sizes"),
        drop_steps=settings.numbers("drop_steps"),
        steps=result.array("steps", "steps"),
        train=result.array("train", "batch sizes", "steps"),
        train_std=result.array("train_std", "batch sizes", "steps"),
        test=result.array("test", "batch sizes", "steps"),
        test_std=result.array("test_std", "batch sizes", "steps"),
        true=result.array("true", "modes"),
        spectra=result.array("spectra", "batch sizes", "snapshots", "modes"),
    )


@dataclasses.dataclass(frozen=True)
class Invariance:
    """Exact invariance under SGD: a row per network, set, momentum and weight decay."""

    networks: list
    sets: list
    largest: np.ndarray  # largest distance to the set over the run
    moved: np.ndarray  # relative change of the weights
    control: np.ndarray  # the same distance, of a run that started a little off the set


def read_invariance(result: Result) -> Invariance:
    rows = result.records("rows", least=1)
    return Invariance(
        networks=[row.text("network") for row in rows],
        sets=[row.text("set") for row in rows],
        largest=np.array([row.number("largest") for row in rows], float),
        moved=np.array([row.number("moved") for row in rows], float),
        control=np.array([row.number("control") for row in rows], float),
    )


# ======================================================================================
# Deep networks
# ======================================================================================

SWEEPS = ("lr", "noise", "batch", "drop")
LABELS = {"learning_rate": "learning rate", "label_noise": "label noise", "batch_size": "batch size"}
CLASSES = {"cifar100": 100}  # 10 else
PAPER_DATASETS = {"vgg": "cifar10", "resnet": "cifar100"}
PAPER_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class SweepName:
    """What the name of a deep result says: <network>_<experiment>[_<data set>][_width<W>][_controls]."""

    network: str
    experiment: str
    dataset: str  # "" for the paper's
    width: int
    controls: bool


def parse_sweep(name: str) -> SweepName | None:
    """None where this is no result of a deep network: a network's name is letters and digits."""
    found = re.fullmatch(rf"([a-z][a-z0-9-]*)_({'|'.join(SWEEPS)})((?:_[a-z0-9_]+)?)", name)
    if not found:
        return None
    network, experiment, rest = found.groups()
    controls = "_controls" in rest
    rest = rest.replace("_controls", "")
    width = re.search(r"_width(\d+)", rest)
    dataset = re.sub(r"_width\d+", "", rest).strip("_")
    return SweepName(network, experiment, dataset, int(width[1]) if width else PAPER_WIDTH, controls)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Shares of a layer's width, [evaluations, layers]; rank is None where a result doesn't have it."""

    layers: list
    widths: np.ndarray  # [layers]
    independent: np.ndarray
    rank: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Training:
    """One run: E evaluations."""

    settings: dict
    value: float  # of the field that its sweep varies
    seed: int
    diverged: bool
    steps: np.ndarray  # [E]
    loss: np.ndarray
    accuracy: np.ndarray  # on the test set
    groups: Counts | None  # true groups of neurons; None if nothing was logged
    paired: Counts | None  # counted as the paper does; None where it is the same or wasn't logged
    drop_step: int | None = None  # of a branch: when the learning rate dropped

    @property
    def whole(self) -> bool:
        """It ran to its end and something was logged."""
        return not self.diverged and len(self.steps) > 0


@dataclasses.dataclass(frozen=True)
class DistanceMap:
    """Normalised distances of the neurons of one layer, ordered by cluster."""

    value: float
    layer: str
    width: int
    clusters: int
    incoming: np.ndarray  # [side, side], averaged to fewer than width where that is large
    outgoing: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A result of one deep network: its runs over one varied field."""

    name: str
    parts: SweepName
    settings: dict  # of the first run
    source: str  # where the images come from
    varied: str
    runs: list  # of Training
    branches: list  # of Training, after a drop
    maps: list  # of DistanceMap

    @property
    def chance(self) -> float:
        """Accuracy of a network that always says the same."""
        return 1 / CLASSES.get(self.settings["dataset"], 10)

    @property
    def about(self) -> str:
        """Network, data and width, as panels show them."""
        model, dataset = model_words(self.settings["model"]), dataset_words(self.settings["dataset"])
        return f"{model}, {dataset}, width {self.settings['width']}"


def model_words(name: str) -> str:
    words = {"vgg16": "VGG-16", "resnet18": "ResNet-18"}
    return words.get(name, name)


def dataset_words(name: str) -> str:
    words = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
    return words.get(name, name)


def layer_names(model: str, names: list[str]) -> list[str]:
    """The paper's names: VGG's layers are numbered, convolutions and linear ones together; others keep their own."""
    if not model.startswith("vgg"):
        return list(names)
    found = []
    for number, name in enumerate(names, 1):
        kind = "conv" if name.startswith("features") else "fc"
        found.append(f"{kind}{number}" if name.startswith(("features", "classifier")) else name)
    return found


def read_counts(lines: list[Result], key: str, model: str) -> Counts | None:
    if not lines or not lines[0].has(key):
        return None
    first = lines[0].record(key)
    widths = first.array("width", "layers")
    names = [str(number) for number in range(1, len(widths) + 1)]  # earlier versions stored no names
    if first.has("name"):
        names = first.value("name", list)
    with_rank = all(line.record(key).has("effective_rank") for line in lines)
    independent, rank = [], []
    for line in lines:
        columns = line.record(key)
        independent.append(columns.array("independent", len(widths)) / widths)
        if with_rank:
            rank.append(columns.array("effective_rank", len(widths)) / widths)
    return Counts(layer_names(model, names), widths, np.array(independent), np.array(rank) if with_rank else None)


def drop_step_of(record: Result, run: Result) -> int:
    """When a branch left its run: stored, or, by earlier versions, in the name of the weights it started from."""
    for place in (record, run):
        if place.has("drop_step"):
            return int(place.number("drop_step"))
    found = re.search(r"_(\d+)\.pt$", run.text("start"))
    if not found:
        raise run.refuse(f"{run.place('start')} names no step")
    return int(found[1])


def read_training(record: Result, varied: str, branch: bool = False) -> Training:
    run = record.record("run")
    model = run.text("model") if run.has("model") else ""
    lines = record.records("log")
    return Training(
        settings=run.content,
        value=np.nan if branch and not run.has(varied) else run.number(varied),
        seed=int(run.number("seed")),
        diverged=record.content.get("diverged_at") is not None,
        steps=np.array([line.number("step") for line in lines], float),
        loss=np.array([line.number("train_loss") for line in lines], float),
        accuracy=np.array([line.number("test_accuracy") for line in lines], float),
        groups=None if branch else read_counts(lines, "groups", model),
        paired=None if branch else read_counts(lines, "paper", model),
        drop_step=drop_step_of(record, run) if branch else None,
    )


def read_maps(result: Result, varied: str) -> list[DistanceMap]:
    if not result.has("maps"):
        return []
    found = []
    for entry in result.records("maps"):
        run = entry.record("run")
        groups = entry.records("groups")
        model = run.text("model")
        for group in groups:
            width = int(group.number("width"))
            found.append(
                DistanceMap(
                    value=run.number(varied),
                    layer=map_layer(model, group.text("name")),
                    width=width,
                    clusters=int(group.number("clusters")),
                    incoming=group.array("incoming", "side", "side"),
                    outgoing=group.array("outgoing", "side", "side"),
                )
            )
    return found


VGG_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their places in torchvision's `features`


def map_layer(model: str, name: str) -> str:
    """The paper's name of one layer of VGG-16, given by its place in the network."""
    part, _, place = name.partition(".")
    if model.startswith("vgg") and part == "features" and int(place) in VGG_CONVOLUTIONS:
        return f"conv{VGG_CONVOLUTIONS.index(int(place)) + 1}"
    if model.startswith("vgg") and part == "classifier":
        return f"fc{14 + int(place) // 2}"
    return name


def read_sweep(result: Result, name: str) -> Sweep:
    varied = result.text("varied")
    runs = [read_training(record, varied) for record in result.records("runs", least=1)]
    branches = []
    if result.has("branches"):
        branches = [read_training(record, varied, branch=True) for record in result.records("branches")]
    first = result.records("runs")[0].record("run")
    for key in ("model", "dataset"):
        first.text(key)
    for key in ("width", "steps"):
        first.number(key)
    return Sweep(
        name=name,
        parts=parse_sweep(name),
        settings=first.content,
        source=result.text("data_source") if result.has("data_source") else "",
        varied=varied,
        runs=runs,
        branches=branches,
        maps=read_maps(result, varied),
    )


READERS = {
    "quartic": read_quartic,
    "neuron": read_neuron,
    "pair": read_pair,
    "diagonal": read_diagonal,
    "minibatch": read_minibatch,
    "invariance": read_invariance,
}


def reader(name: str):
    """The function that reads a result of this name, or None if it is none of this paper's."""
    if name in READERS:
        return READERS[name]
    if parse_sweep(name):
        return lambda result: read_sweep(result, name)
    return None


# ======================================================================================
# What figures and claims both ask of a sweep
# ======================================================================================


def at_the_end(sweep: Sweep, counted: str = "groups", what: str = "independent") -> dict:
    """{value of the varied field: array [seeds, layers]} at the end of the runs that did not diverge.

    counted: "groups" or "paired". what: "independent" or "rank", as shares of the layer's width.
    """
    found = {}
    for run in sweep.runs:
        counts = getattr(run, counted)
        shares = None if counts is None else getattr(counts, what)
        if run.whole and shares is not None:
            found.setdefault(run.value, []).append(shares[-1])
    return {value: np.array(found[value]) for value in sorted(found)}


def layers_of(sweep: Sweep, counted: str = "groups") -> list[str]:
    for run in sweep.runs:
        counts = getattr(run, counted)
        if counts is not None:
            return counts.layers
    return []


def widths_of(sweep: Sweep, counted: str = "groups") -> np.ndarray:
    for run in sweep.runs:
        counts = getattr(run, counted)
        if counts is not None:
            return counts.widths
    return np.array([])


def at_step(sweep: Sweep, step: int, counted: str = "groups") -> dict:
    """{seed: [layers] fraction independent} of the runs that have an evaluation at this step."""
    found = {}
    for run in sweep.runs:
        places = np.flatnonzero(run.steps == step)
        counts = getattr(run, counted)
        if counts is not None and len(places):
            found[run.seed] = counts.independent[places[0]]
    return found


def drops(sweep: Sweep) -> dict:
    """{step of the drop: branches that didn't diverge}."""
    found = {}
    for branch in sweep.branches:
        if branch.whole:
            found.setdefault(branch.drop_step, []).append(branch)
    return dict(sorted(found.items()))


def as_published(sweep: Sweep, settings: dict) -> bool:
    """Whether a sweep has the settings of the published numbers: they stand beside no others."""
    return all(sweep.settings.get(name) == value for name, value in settings.items())
