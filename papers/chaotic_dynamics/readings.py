"""Results of *Chaotic Dynamics* as named arrays: the only place that knows their keys."""

import dataclasses
import re
from typing import NamedTuple

import numpy as np

from papers.result import Result, counted

# ======================================================================================
# Training with parts of the gradient pruned
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Variant:
    """SGD, or CGD from its first pruned step on; B bins of steps, S seeds, E epochs."""

    name: str  # "sgd", or "<what is pruned>@<first pruned step>"
    loss: np.ndarray  # [B, S] means over the bin's steps
    accuracy: np.ndarray
    kept: np.ndarray  # share of the squared gradient that pruning keeps
    eigenvalue_min: np.ndarray
    eigenvalue_max: np.ndarray
    negative: np.ndarray  # number of negative eigenvalues
    largest_eigenvalue: np.ndarray  # [S] at any step
    test_accuracy: np.ndarray | None  # [E, S]
    same_as: str  # the variant whose numbers these are, "" if its own

    @property
    def first_step(self) -> int:
        return int(self.name.partition("@")[2] or 0)


@dataclasses.dataclass(frozen=True)
class Pruning:
    """A result of `pruning` or `delay`."""

    settings: dict
    seeds: int
    steps: int
    bin: int  # steps that are averaged
    epoch: int  # steps
    largest_class: float  # its share: the accuracy of a network that always says the same
    variants: dict  # name -> Variant

    def delayed(self) -> list[str]:
        """Names of what is pruned, in order of the first pruned step."""
        pruned = [name for name in self.variants if name != "sgd"]
        return sorted(pruned, key=lambda name: self.variants[name].first_step)

    @property
    def about(self) -> str:
        return f"{describe(self.settings)}, {counted(self.seeds, 'seed')}"


PAPER_RATE = 0.001


def describe(settings: dict) -> str:
    networks = {"mlp": "MLP 256-20-10", "cnn": "CNN"}
    datasets = {"usps": "USPS", "fashion_mnist": "Fashion-MNIST"}
    activations = {"relu": "ReLU"}
    network, dataset, activation = settings["architecture"], settings["dataset"], settings["activation"]
    words = ", ".join(
        [
            networks.get(network, network),
            activations.get(activation, activation),
            datasets.get(dataset, dataset),
        ]
    )
    if settings.get("k") is not None:
        words += f",\nat most {settings['k']} directions pruned"
    if settings.get("momentum"):
        words += f", momentum {settings['momentum']:g}"
    if settings["learning_rate"] != PAPER_RATE:
        words += f", rate {settings['learning_rate']:g}"
    return words


def read_pruning(result: Result) -> Pruning:
    settings = result.record("settings")
    for key in ("architecture", "activation", "dataset"):
        settings.text(key)
    variants = {}
    runs = result.record("runs")
    for name in runs.content:
        variants[name] = read_variant(runs.record(name), name)
    if "sgd" not in variants:
        raise result.refuse("runs has no sgd")
    for key in ("learning_rate", "batch_size"):
        settings.number(key)
    return Pruning(
        settings=settings.content,
        seeds=int(settings.number("seeds")),
        steps=int(settings.number("steps")),
        bin=int(result.number("bin")),
        epoch=int(result.number("epoch")),
        largest_class=result.number("largest_class"),
        variants=variants,
    )


def read_variant(run: Result, name: str) -> Variant:
    if not re.fullmatch(r"\w+(@\d+)?", name):
        raise run.refuse(f"runs: no variant {name!r}")
    return Variant(
        name=name,
        loss=run.array("loss", "bins", "seeds"),
        accuracy=run.array("accuracy", "bins", "seeds"),
        kept=run.array("kept", "bins", "seeds"),
        eigenvalue_min=run.array("eigenvalue_min", "bins", "seeds"),
        eigenvalue_max=run.array("eigenvalue_max", "bins", "seeds"),
        negative=run.array("negative", "bins", "seeds"),
        largest_eigenvalue=run.array("largest_eigenvalue", "seeds"),
        test_accuracy=run.optional_array("test_accuracy", "epochs", "seeds"),
        same_as=run.text("same_as") if run.has("same_as") else "",
    )


def curve(pruning: Pruning, name: str, key: str, smooth: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Steps (centres) and values [bins, seeds] of a curve, averaged over `smooth` bins."""
    variant = pruning.variants[name]
    values = getattr(variant, key)
    smooth = min(smooth, len(values))
    usable = len(values) // smooth * smooth
    means = values[:usable].reshape(-1, smooth, values.shape[1]).mean(1)
    centres = (np.arange(len(means)) + 0.5) * pruning.bin * smooth
    return variant.first_step + centres, means


def whole_curve(pruning: Pruning, name: str) -> np.ndarray:
    """[bins, seeds] accuracy from step 0 on: before its first pruned step a run is the SGD run."""
    variant = pruning.variants[name]
    before = pruning.variants["sgd"].accuracy[: variant.first_step // pruning.bin]
    return np.concatenate([before, variant.accuracy]) if name != "sgd" else variant.accuracy


def around(pruning: Pruning, name: str, steps) -> np.ndarray:
    """Accuracies [steps, seeds]: mean of the bin that ends at a step and the one that starts there."""
    values = whole_curve(pruning, name)
    left = np.clip(np.asarray(steps) // pruning.bin - 1, 0, len(values) - 2)
    return (values[left] + values[left + 1]) / 2


def last_epoch(pruning: Pruning, name: str, key: str = "accuracy") -> np.ndarray:
    """[seeds] mean over the last epoch; the last bin is left out if it is short.

    The paper's runs have 20 epochs. Of a shorter run it is the last twentieth, so that all variants are averaged over
    the same steps, long after pruning began.
    """
    window = min(pruning.epoch, pruning.steps / 20)
    count = max(round(window / pruning.bin), 1)
    values = getattr(pruning.variants[name], key)
    last_is_short = pruning.steps % pruning.bin != 0
    if last_is_short and len(values) > count:
        values = values[:-1]
    return values[-count:].mean(0)


# ======================================================================================
# Perturbed copies, and the global Lyapunov matrix
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Copies:
    """Perturbed copies of one run (one seed) on the same batches: T times, K copies."""

    kinds: list  # [K] the direction of each
    exponents: np.ndarray  # [2] smallest and largest of the global Lyapunov matrix, per step
    times: np.ndarray  # [T] steps
    distance: np.ndarray  # [T, K] to the unperturbed run
    tangent: np.ndarray  # [T, K] the same in the linearised dynamics
    accuracy: np.ndarray  # [train, test; the unperturbed run first, then the copies]

    def of_kind(self, kind: str, what: str = "distance") -> np.ndarray:
        """[T, draws] of the copies of one kind."""
        chosen = [index for index, one in enumerate(self.kinds) if one == kind]
        return getattr(self, what)[:, chosen]


@dataclasses.dataclass(frozen=True)
class SmallCopies:
    """Copies along the most chaotic direction with smaller perturbations, early in training; S seeds, P sizes, T
    times."""

    perturbations: np.ndarray  # [P]
    times: np.ndarray  # [T]
    distance: np.ndarray  # [S, P, T]


@dataclasses.dataclass(frozen=True)
class Divergence:
    settings: dict
    perturbation: float
    seeds: list  # of Copies
    small: SmallCopies | None


def read_copies(record: Result) -> Copies:
    kinds = record.value("kinds", list)
    return Copies(
        kinds=kinds,
        exponents=record.array("exponents", 2),
        times=record.array("times", "times"),
        distance=record.array("distance", "times", len(kinds)),
        tangent=record.array("tangent", "times", len(kinds)),
        accuracy=record.array("accuracy", 2, len(kinds) + 1),
    )


def read_divergence(result: Result) -> Divergence:
    settings = result.record("settings")
    records = result.records("runs", least=1) if result.has("runs") else [result]  # earlier versions: one seed
    small = None
    if result.has("small"):
        part = result.record("small")
        small = SmallCopies(
            perturbations=part.array("perturbations", "sizes"),
            times=part.array("times", "times"),
            distance=part.array("distance", "seeds", "sizes", "times"),
        )
    for key in ("architecture", "activation", "dataset"):
        settings.text(key)
    return Divergence(
        settings=settings.content,
        perturbation=settings.number("perturbation"),
        seeds=[read_copies(record) for record in records],
        small=small,
    )


@dataclasses.dataclass(frozen=True)
class Spaces:
    """Of one seed: C checkpoints; subspaces 0 are the chaotic, 1 the convergent directions."""

    times: np.ndarray  # [C] steps
    exponents: np.ndarray  # [C, ranks]
    ranks: np.ndarray  # [ranks] places in the whole spectrum
    dimensions: np.ndarray  # [C, 2]
    similarity: np.ndarray  # [C, C, 2, 2]: subspace of the first checkpoint and place with that of the second
    baseline: np.ndarray  # the same of random subspaces of these dimensions
    control: np.ndarray  # the same of randomly chosen eigenvectors


@dataclasses.dataclass(frozen=True)
class Subspace:
    settings: dict
    seeds: list  # of Spaces


def read_spaces(record: Result) -> Spaces:
    times = record.array("times", "checkpoints")
    count = len(times)
    both = record.array("similarity", 3, count, count, 2, 2)
    return Spaces(
        times=times,
        exponents=record.array("exponents", "checkpoints", "ranks"),
        ranks=record.array("ranks", "ranks"),
        dimensions=record.array("dimensions", "checkpoints", 2),
        similarity=both[0],
        baseline=both[1],
        control=both[2],
    )


def read_subspace(result: Result) -> Subspace:
    settings = result.record("settings")
    for key in ("architecture", "activation", "dataset"):
        settings.text(key)
    records = result.records("runs", least=1) if result.has("runs") else [result]
    return Subspace(settings.content, [read_spaces(record) for record in records])


# ======================================================================================
# What figures and claims both ask of distances
# ======================================================================================


def growth(times: np.ndarray, distance: np.ndarray, low: float, high: float, power: bool = False) -> tuple:
    """(slope, R^2) [columns] of log distance against time (`power`: log time), between two fractions of the run."""
    window = (times >= low * times[-1]) & (times <= high * times[-1])
    if power:
        window &= times > 0
    if window.sum() < 3:
        unknown = np.full(distance.shape[1], np.nan)
        return unknown, unknown
    x = np.log(times[window]) if power else times[window]
    y = np.log(distance[window])
    slope, offset = np.polyfit(x, y, 1)
    residual = y - (np.outer(x, slope) + offset)
    return slope, 1 - residual.var(0) / y.var(0)


class WalkAndDrift(NamedTuple):
    """A fit of d^2 = start^2 + walk t + drift t^2, its curve d(t), and the R^2 of d."""

    walk: float
    drift: float
    model: np.ndarray
    quality: float


def walk_and_drift(times: np.ndarray, distance: np.ndarray, start: float) -> WalkAndDrift:
    """A random walk and a drift, by least squares of d^2 over the whole curve, as the paper."""
    design = np.stack([times, times**2], 1)
    coefficients, *_ = np.linalg.lstsq(design, distance**2 - start**2, rcond=None)
    squares = start**2 + design @ coefficients
    model = np.sqrt(np.maximum(squares, 0))
    unexplained = ((distance - model) ** 2).sum()
    total = ((distance - distance.mean()) ** 2).sum()
    return WalkAndDrift(*coefficients, model, 1 - unexplained / total)


READERS = {
    r"(pruning|delay)(_\w+)?": read_pruning,
    r"divergence(_\w+)?": read_divergence,
    r"subspace(_\w+)?": read_subspace,
}


def reader(name: str):
    """The function that reads a result of this name, or None if it is none of this paper's."""
    for pattern, function in READERS.items():
        if re.fullmatch(pattern, name):
            return function
    return None
