"""Results of subnetworks.py as named arrays: the only place that knows their keys."""

import dataclasses
import functools
import re

import numpy as np

from papers.result import Result

# ======================================================================================
# Extracted networks
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Planted:
    """A network with planted collapse, and what extraction made of it."""

    name: str
    planted: int  # neurons that collapse by construction
    removed: int
    change: float  # largest change of an output, relative to the largest output
    seconds: float


@dataclasses.dataclass(frozen=True)
class Extracted:
    """A trained network before and after extraction at one redundancy."""

    learning_rate: float
    label_noise: float
    seed: int
    steps: int
    redundant: float
    before: dict  # "parameters", "flops", "accuracy", "tuned" (accuracy after some more steps)
    after: dict
    random_accuracies: list[float] | None  # with as many random neurons removed, for each draw of them

    @property
    def random_accuracy(self) -> float | None:
        return None if self.random_accuracies is None else sum(self.random_accuracies) / len(self.random_accuracies)

    @property
    def kept(self) -> float:
        return self.after["parameters"] / self.before["parameters"]


@dataclasses.dataclass(frozen=True)
class Extraction:
    settings: dict
    planted: list  # of Planted
    networks: list  # of Extracted


MEASURES = ("parameters", "flops", "accuracy", "tuned")


def read_planted(record: Result) -> Planted:
    return Planted(
        name=record.text("name"),
        planted=int(record.number("planted")),
        removed=int(record.number("removed")),
        change=record.number("change") / record.number("scale"),
        seconds=record.number("seconds"),
    )


def read_extracted(record: Result) -> Extracted:
    before, after = record.record("before"), record.record("after")
    random_accuracies = None
    if record.has("random"):
        random_accuracies = record.record("random").array("draws", "draws").tolist()
    return Extracted(
        learning_rate=record.number("learning_rate"),
        label_noise=record.number("label_noise"),
        seed=int(record.number("seed")),
        steps=int(record.number("steps")),
        redundant=record.number("redundant"),
        before=read_measures(before),
        after=read_measures(after),
        random_accuracies=random_accuracies,
    )


def read_measures(record: Result) -> dict:
    """{measure: number}; `tuned` is NaN for runs of another optimizer than SGD, which aren't tuned."""
    found = {}
    for name in MEASURES:
        not_tuned = name == "tuned" and record.content.get(name) is None
        found[name] = np.nan if not_tuned else float(record.number(name))
    return found


def read_extraction(result: Result) -> Extraction:
    settings = result.record("settings")
    for key in ("finetune", "learning_rate"):
        settings.number(key)
    return Extraction(
        settings=settings.content,
        planted=[read_planted(record) for record in result.records("planted")],
        networks=[read_extracted(record) for record in result.records("networks", least=1)],
    )


# ======================================================================================
# Exponents and forecasts
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Sets of neurons (pairs, or single ones) of one run: N of them, in G groups; C checkpoints.

    Slopes and exponents are of the log of the distance (or size), per 1,000 steps.
    """

    label_noise: float
    groups: dict  # name -> number of its sets
    index: np.ndarray  # [N, 1 or 2] neurons of each set
    threshold: float  # of a squared normalised distance: below it a set has arrived
    steps: np.ndarray  # [C]
    merged: np.ndarray | None  # [C, G] how many have arrived, of all sets of a group
    now: np.ndarray  # [N] distance at the first checkpoint
    end: np.ndarray  # [N] at the last
    predicted: np.ndarray  # [N] exponents over the window that starts there
    same: np.ndarray  # [N] measured slopes over that window
    next: np.ndarray | None  # [N] measured slopes over the window after it

    @property
    def free(self) -> np.ndarray:
        """[N] not there yet at the first checkpoint."""
        return self.now >= self.threshold

    @property
    def arrived(self) -> np.ndarray:
        """[free sets] there at the last."""
        return self.end[self.free] < self.threshold

    def scores(self) -> dict:
        """{predictor: [free sets]}: the higher, the sooner a set should arrive.

        `watching` is what needs no exponent: the log distance, carried on at its own slope over the same window.
        """
        left = (self.steps[-1] - self.steps[0]) / 1000
        size = np.log(self.now[self.free]) / 2
        predicted, slope = self.predicted[self.free], self.same[self.free]
        return {
            "distance now": -size,
            "exponent": -predicted,
            "measured slope": -slope,
            "forecast": -size - predicted * left,
            "watching": -size - slope * left,
        }


@dataclasses.dataclass(frozen=True)
class Known:
    """Exponents where a closed form, or a slope on the same noise, is known."""

    case: str  # "quartic", "neuron", "pair"
    level: float
    exponent: float
    expected: float
    learning_rate: float | None  # of a pair
    rate: float | None  # of a pair: mean over seeds of the slopes


@dataclasses.dataclass(frozen=True)
class Cost:
    """Processor seconds of a step."""

    gradient: float
    exponent: float
    pairs: int


@dataclasses.dataclass(frozen=True)
class Exponents:
    """A result of `exponent` or `vanishing`."""

    settings: dict
    early: int  # step at which it was measured
    window: int
    runs: list  # of Forecast
    parts: dict  # "exponent", "curvature", "noise", "decay" -> [N] of the first run
    known: list  # of Known
    cost: Cost | None

    @functools.cached_property
    def areas(self) -> "Areas":
        """Of all predictors over all runs; the bootstrap takes seconds, and several claims and a figure ask for it."""
        return areas(self.runs)


def read_forecast(record: Result) -> Forecast:
    groups = record.record("groups")
    counts = {name: int(groups.number(name)) for name in groups.content}
    distances = record.array("distance", 2, "sets")
    index = np.array(record.value("index", list), dtype=float).reshape(len(distances[0]), -1)
    settings = record.record("settings") if record.has("settings") else None
    if sum(counts.values()) != distances.shape[1]:
        raise record.refuse(f"{record.place('groups')} count {sum(counts.values())} sets, not {distances.shape[1]}")
    noise = settings.number("label_noise") if settings and settings.has("label_noise") else 0.0
    return Forecast(
        label_noise=noise,
        groups=counts,
        index=index,
        threshold=record.number("threshold") if record.has("threshold") else 0.1,
        steps=record.array("steps", "checkpoints"),
        merged=record.optional_array("merged", "checkpoints", len(counts)),
        now=distances[0],
        end=distances[1],
        predicted=record.array("predicted", "sets"),
        same=record.array("same", "sets"),
        next=record.optional_array("next", "sets"),
    )


def read_known(record: Result) -> Known:
    return Known(
        case=record.text("case"),
        level=record.number("level"),
        exponent=float(np.ravel(record.value("exponent", (list, int, float)))[0]),
        expected=float(np.ravel(record.value("expected", (list, int, float)))[0]),
        learning_rate=record.number("learning_rate") if record.has("learning_rate") else None,
        rate=float(np.ravel(record.value("rate", (list, int, float)))[0]) if record.has("rate") else None,
    )


def read_exponents(result: Result) -> Exponents:
    settings = result.record("settings")
    parts = result.record("parts")
    cost = None
    if result.has("cost"):
        record = result.record("cost")
        cost = Cost(record.number("gradient"), record.number("exponent"), int(record.number("pairs")))
    return Exponents(
        settings=settings.content,
        early=int(settings.number("early")),
        window=int(settings.number("window")),
        runs=[read_forecast(record) for record in result.records("runs", least=1)],
        parts={name: parts.array(name, "sets") for name in ("exponent", "curvature", "noise", "decay")},
        known=[read_known(record) for record in result.records("closed")] if result.has("closed") else [],
        cost=cost,
    )


# ======================================================================================
# Causes
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Cause:
    """Exponents at one batch size and weight decay: R replicas of noise, N pairs; per 1,000 steps."""

    batch_size: int
    weight_decay: float
    exponent: np.ndarray  # [R] mean over pairs
    curvature: np.ndarray
    noise: np.ndarray
    decay: np.ndarray
    by_pair: np.ndarray  # [N] mean over replicas


@dataclasses.dataclass(frozen=True)
class Causes:
    settings: dict
    steps: int
    early: int
    learning_rate: float
    momentum: float
    rows: list  # of Cause

    @property
    def batch_sizes(self) -> list[int]:
        """In rising order; the last is the whole training set, which has no noise."""
        return sorted({row.batch_size for row in self.rows})

    @property
    def weight_decays(self) -> list[float]:
        return sorted({row.weight_decay for row in self.rows})

    def at(self, batch_size: int, weight_decay: float) -> Cause:
        for row in self.rows:
            if row.batch_size == batch_size and row.weight_decay == weight_decay:
                return row
        raise LookupError(f"no row of batch size {batch_size} and weight decay {weight_decay}")


def read_causes(result: Result) -> Causes:
    settings = result.record("settings")
    run = result.record("run")
    rows = []
    for record in result.records("rows", least=2):
        rows.append(
            Cause(
                batch_size=int(record.number("batch_size")),
                weight_decay=record.number("weight_decay"),
                exponent=record.array("exponent", "replicas"),
                curvature=record.array("curvature", "replicas"),
                noise=record.array("noise", "replicas"),
                decay=record.array("decay", "replicas"),
                by_pair=record.array("by_pair", "pairs"),
            )
        )
    causes = Causes(
        settings=settings.content,
        steps=int(settings.number("steps")),
        early=int(settings.number("early")),
        learning_rate=run.number("learning_rate"),
        momentum=run.number("momentum"),
        rows=rows,
    )
    if len(rows) != len(causes.batch_sizes) * len(causes.weight_decays):
        raise result.refuse("rows lack a batch size with one of the weight decays")
    return causes


# ======================================================================================
# Where prediction might have an edge: short windows, and changes that haven't happened yet
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Window:
    """Forecasts from a window of so many steps."""

    steps: int
    runs: list  # of Forecast

    @functools.cached_property
    def areas(self) -> "Areas":
        """Of all predictors; the bootstrap takes a while, and a claim and a figure ask for it."""
        return areas(self.runs)


def read_windows(result: Result) -> list[Window]:
    """The shortest first."""
    found = []
    for row in result.records("rows", least=1):
        runs = [read_forecast(record) for record in row.records("runs", least=1)]
        found.append(Window(int(row.number("window")), runs))
    return sorted(found, key=lambda window: window.steps)


@dataclasses.dataclass(frozen=True)
class Switch:
    """A setting is changed: exponents at the new one, before it happens, against what then happens; N neurons.

    Per 1,000 steps. `going_on` is the same network where nothing is changed; of it `value` is NaN.
    """

    changed: str  # "nothing" where nothing is
    value: float
    seed: int
    predicted: np.ndarray  # [N]
    before: np.ndarray  # [N] measured slopes before the switch
    after: np.ndarray  # [N] of the run that is switched
    going_on: "Switch | None" = None

    @property
    def told(self) -> float:
        """Correlation of the exponents with what happens after."""
        return float(np.corrcoef(self.predicted, self.after)[0, 1])

    @property
    def watched(self) -> float:
        """Correlation of the slopes before with those after."""
        return float(np.corrcoef(self.before, self.after)[0, 1])

    @property
    def change_told(self) -> np.ndarray:
        """[N] exponents at the new setting less those at the old one."""
        return self.predicted - self.going_on.predicted

    @property
    def change(self) -> np.ndarray:
        """[N] slopes of the run that is switched less those of the one that goes on."""
        return self.after - self.going_on.after


def read_switch(record: Result, going_on: dict) -> Switch:
    """`going_on`: seed -> its network where nothing is changed."""
    seed = int(record.number("seed"))
    return Switch(
        changed=record.text("changed") if record.has("changed") else "nothing",
        value=record.number("value") if record.has("value") else np.nan,
        seed=seed,
        predicted=record.array("predicted", "neurons"),
        before=record.array("before", "neurons"),
        after=record.array("after", "neurons"),
        going_on=going_on.get(seed),
    )


def read_switches(result: Result) -> list[Switch]:
    going_on = {}
    if result.has("unchanged"):
        for record in result.records("unchanged"):
            one = read_switch(record, {})
            going_on[one.seed] = one
    return [read_switch(record, going_on) for record in result.records("rows", least=1)]


# ======================================================================================
# Networks that packages ship
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Cut:
    """What extraction at one pair of thresholds made of a network."""

    parameters: int  # that are left
    change: float  # largest change of an output, in standard deviations of the outputs
    same_answer: float | None  # share of the inputs with the same largest output; None: no classifier


@dataclasses.dataclass(frozen=True)
class Layer:
    """A group of neurons: how many there are, and how many have collapsed at the paper's thresholds."""

    name: str
    width: int
    vanishing: int
    redundant: int
    constant: int  # they may be redundant too


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A trained network that a package ships. Vanished, redundant and independent neurons add up to `width`."""

    name: str
    width: int
    vanishing: int
    redundant: int
    constant: int
    parameters: int
    paper: Cut
    exact: Cut
    layers: list  # of Layer, in the order they run
    collapsed: float  # share of the neurons that have vanished or are redundant

    def removed(self, cut: Cut) -> float:
        """Share of the parameters."""
        return 1 - cut.parameters / self.parameters


def read_cut(record: Result) -> Cut:
    same = record.number("same_answer") if record.has("same_answer") else None
    return Cut(int(record.number("parameters")), record.number("change"), same)


def read_layer(record: Result) -> Layer:
    counts = {key: int(record.number(key)) for key in ("width", "vanishing", "redundant", "constant")}
    if counts["width"] < 1:
        raise record.refuse(f"{record.place('width')}: a layer without neurons")
    return Layer(record.text("name"), **counts)


def read_wild(result: Result) -> list[Shipped]:
    found = []
    for row in result.records("networks", least=1):
        counts = {key: int(row.number(key)) for key in ("width", "vanishing", "redundant", "constant", "parameters")}
        if counts["width"] < 1 or counts["parameters"] < 1:
            raise row.refuse(f"{row.place('width')}: a network without neurons")
        paper = read_cut(row.record("paper"))
        exact = read_cut(row.record("exact"))
        layers = [read_layer(group) for group in row.records("groups", least=1)]
        collapsed = (counts["vanishing"] + counts["redundant"]) / counts["width"]
        found.append(Shipped(row.text("name"), **counts, paper=paper, exact=exact, layers=layers, collapsed=collapsed))
    return found


BY_PATTERN = {
    r"beyond_extract(_\w+)?": read_extraction,
    r"beyond_windows(_\w+)?": read_windows,
    r"beyond_switch(_\w+)?": read_switches,
    r"beyond_exponent(_\w+)?": read_exponents,
    r"beyond_vanishing(_\w+)?": read_exponents,
    r"beyond_causes(_\w+)?": read_causes,
    r"beyond_wild": read_wild,
}


def reader(name: str):
    """The function that reads a result of this name, or None if it is none of these."""
    for pattern, function in BY_PATTERN.items():
        if re.fullmatch(pattern, name):
            return function
    return None


# ======================================================================================
# What figures and claims both ask of forecasts
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Fit:
    """Exponents against measured slopes of the sets of all runs within some distances."""

    count: int
    correlation: float
    slope: float  # of measured on predicted, through the origin


def fit_slopes(runs: list[Forecast], measured: str, low: float = 0.0, high: float = np.inf) -> Fit:
    """`measured`: "same" or "next". Distances from `low` to below `high`."""
    predicted, slopes = [], []
    for run in runs:
        inside = (run.now >= low) & (run.now < high)
        predicted.append(run.predicted[inside])
        slopes.append(getattr(run, measured)[inside])
    x, y = np.concatenate(predicted), np.concatenate(slopes)
    if len(x) < 2:
        return Fit(len(x), np.nan, np.nan)
    return Fit(len(x), float(np.corrcoef(x, y)[0, 1]), float((x @ y) / (x @ x)))


def ranks_of(score: np.ndarray) -> np.ndarray:
    """Places of scores in ascending order, from 0; equal scores share one."""
    _, ranks = np.unique(score, return_inverse=True)
    return ranks


def area(ranks: np.ndarray, arrived: np.ndarray, weights: np.ndarray) -> float:
    """Area under the ROC curve of weighted examples; ties count half."""
    good = np.bincount(ranks, weights * arrived)
    bad = np.bincount(ranks, weights * ~arrived)
    below = np.cumsum(bad) - bad / 2
    total = good.sum() * bad.sum()
    return (good @ below) / total if total else np.nan


def interval_of(samples: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 % of bootstrap samples; NaN where none has an area, because all sets arrived or none did."""
    if np.isnan(samples).all():
        return np.nan, np.nan
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Areas:
    """Areas under ROC curves, pooled over runs: of the data, and of each bootstrap sample."""

    found: dict  # predictor -> area
    samples: dict  # predictor -> [samples]
    arrived: int  # sets that have

    def interval(self, predictor: str) -> tuple[float, float]:
        """2.5 and 97.5 %."""
        return interval_of(self.samples[predictor])

    def difference(self, first: str, second: str) -> tuple[float, float, float]:
        """First less second, and its 2.5 and 97.5 %: both areas come from the same bootstrap samples."""
        low, high = interval_of(self.samples[first] - self.samples[second])
        return self.found[first] - self.found[second], low, high


def neurons_of(run: Forecast) -> tuple[np.ndarray, int]:
    """Each free set's neurons as places [free sets, 1 or 2] in a list of all neurons, and the length of that list."""
    group = np.repeat(np.arange(len(run.groups)), list(run.groups.values()))
    unique_index = run.index + 100_000 * group[:, None]
    names, places = np.unique(unique_index[run.free], return_inverse=True)
    return places.reshape(-1, run.index.shape[1]), len(names)


def thirds_by_distance(runs: list[Forecast]) -> list[tuple[float, float]]:
    """Distances now from, and to below, of the nearest third of all free sets, the middle one and the farthest."""
    distances = np.concatenate([run.now[run.free] for run in runs])
    first, second = np.quantile(distances, [1 / 3, 2 / 3])
    return [(0.0, first), (first, second), (second, np.inf)]


def areas(runs: list[Forecast], samples: int = 1000, within: tuple[float, float] = (0.0, np.inf)) -> Areas:
    """The bootstrap draws neurons with replacement; a pair weighs the product of how often its neurons were drawn.

    within: only sets at these distances now, from the first to below the second.
    """
    draw = np.random.default_rng(0)
    distances = np.concatenate([run.now[run.free] for run in runs])
    chosen = (distances >= within[0]) & (distances < within[1])
    arrived = np.concatenate([run.arrived for run in runs])[chosen]
    parts = [neurons_of(run) for run in runs]
    names = list(runs[0].scores())
    ranks = {name: ranks_of(np.concatenate([run.scores()[name] for run in runs])[chosen]) for name in names}
    found = {name: area(ranks[name], arrived, np.ones(len(arrived))) for name in names}
    rows = {name: [] for name in names}
    for _ in range(samples):
        weights = []
        for places, count in parts:
            times = np.bincount(draw.integers(count, size=count), minlength=count)
            weights.append(times[places].prod(axis=1))
        for name in names:
            rows[name].append(area(ranks[name], arrived, np.concatenate(weights)[chosen]))
    return Areas(found, {name: np.array(row) for name, row in rows.items()}, int(arrived.sum()))
