"""Sparse features: SGD with large steps, long enough, learns models that use few of their features.

Andriushchenko, Varre, Pillaud-Vivien & Flammarion, *SGD with Large Step Sizes Learns Sparse Features* (ICML 2023).
The loss stabilises at the noise of a large step; the longer that lasts, the lower the rank of the Jacobian and the
sparser the features. The published runs change height and divisor of the step with its duration; "clean" runs don't.

  diagonal     diagonal linear networks, 80 examples, 200 dimensions, 100,001 steps of 0.282 for 10, 30,
               50 % of the run: rank 109, 68, 58; SGD, GD and the effective SDE, steps as published
               and by a rule that transfers; the loss surface                                      3 minutes
  regression   1-D regression, two-layer ReLU network of width 100, peak step 0.02, 31,623 steps: rank 19
               instead of 85                                                                  half a minute
  relu         teacher-student, two layers (step 0.455, rank 16, 12, 7 instead of 26) and three
               layers (rank 150, 125, 102 instead of 150)                                         2 minutes
  deep         ResNet-18 or -34, DenseNet-100-12, VGG-16 on images, large step 0.75, 100 epochs: torchrun and GPUs;
               one CPU core, 40 minutes: --width 8 --batch-size 128 --steps 2400 --evaluations 10 --small 0.05

  python sparse_features.py diagonal regression relu
  torchrun --nproc_per_node=7 sparse_features.py deep --recipe full --seeds 3

Every seed is a run in one tensor. Expect many of the published large steps to diverge: counted, never dropped.
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch

import core
from core import Run, load_dataset
from experiments import block_features, diagonal_networks, plain_networks, relu_networks
from experiments.diagonal_networks import Group, Noise, draw_regression, stable_gamma
from experiments.relu_networks import Net, Problem, Schedule
from experiments.seed_records import landmarks, moments
from lib import teams
from lib.command import run_script
from lib.errors import InputError
from lib.precision import PRECISIONS
from lib.results import ROOT, default_folder
from lib.settings import Count, Positive, Range, Seed, checked

Steps = Annotated[int, Range(low=100)]
Points = Annotated[int, Range(low=8)]  # at which a run is looked at, about


def own_seeds(seed: int, count: int, first: int = 0) -> range:
    """`count` seeds of numpy's streams that no other --seed has; `first` is --seed 0's first.

    Raises InputError for seeds that numpy doesn't take.
    """
    streams = range(first + seed * count, first + (seed + 1) * count)
    if streams[-1] >= 2**32:
        raise InputError(f"--seed {seed} with {count} seeds: their product must be below {2**32:,}; lower one of them")
    return streams


# ======================================================================================
# Diagonal linear networks
# ======================================================================================

DURATIONS = (0.1, 0.3, 0.5)  # shares of the run
PUBLISHED_DROPS = ((0.1, 4.8), (0.3, 3.4), (0.5, 1.5))  # duration of the large step, and by what it is divided
CYCLE_LEVELS = (0.9, 0.95, 1.02, 1.05, 1.08, 1.1, 1.13, 1.16, 1.2, 1.23)  # eta y of the scalar model
RULE, SMALL_RULE = 1.65, 0.33  # c of `stable_gamma`: as large as survives on most data sets, and a fifth of it
TRANSFER_STREAMS = 8

SGD_GROUPS = [
    Group("small", 0.05),
    Group("published small", 0.25),
    *(Group("published", 0.282, decay, divisor) for decay, divisor in PUBLISHED_DROPS),
    *(Group("clean", 0.27, decay, 4.8) for decay in DURATIONS),
]
GD_GROUPS = [Group("small", 2.0), *(Group("published", 3.53, decay, divisor) for decay, divisor in PUBLISHED_DROPS)]
SDE_GROUPS = [
    Group("true", 0.05, delta="true"),
    Group("true", 0.25, delta="true"),
    Group("true", 0.282, 0.5, 4.8, delta="true"),
    *(Group("constant", 0.282, decay, 1.0, delta=0.04) for decay in DURATIONS),
    Group("constant", 0.282, 0.5, 1.0, delta=0.01),
]


@checked
def diagonal(
    seeds: Count = 32,
    steps: Steps = 100_001,
    data_seeds: Count = 8,
    points: Points = 40,
    surface_grid: Points = 121,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """SGD on data A (80 examples, 200 dimensions), SGD and GD on data B (40, 100), the effective SDE on A.

    Records of groups of runs (`seed_records.records`): "sgd"; "sgd_b" (four times the seeds), "gd_b"; "sde" (half the
    seeds); "transfer", 8 SGD seeds on each of several data sets like A, with the published step and with the rule
    c / mean |grad h|^2; "duration", the same by the rule for 10, 30 and 50 % of the run. "surface": the loss in a
    plane, on `surface_grid` points a side; "cycle": the scalar model of stabilisation.
    """
    data_streams = own_seeds(seed, data_seeds)
    a = draw_regression(80, 200, 20, data_streams[0], device)
    b = draw_regression(40, 100, 20, data_streams[0], device)
    several = [draw_regression(80, 200, 20, stream, device) for stream in data_streams]
    order_a = diagonal_networks.orders(80, steps, own_seeds(seed, seeds, first=1)).to(device)
    order_b = diagonal_networks.orders(40, steps, own_seeds(seed, 4 * seeds, first=1)).to(device)  # most diverge there
    order_transfer = order_a[:, :TRANSFER_STREAMS]
    run = partial(diagonal_networks.diagonal_runs, steps=steps, points=points)

    rule_b = stable_gamma(RULE, b)
    sgd_b_groups = [Group("small", 0.05), Group("published", 0.272, 0.5, 20.0), Group("rule", rule_b, 0.5, 20.0)]
    rule = torch.tensor([stable_gamma(RULE, problem) for problem in several])
    small_rule = torch.tensor([stable_gamma(SMALL_RULE, problem) for problem in several])
    transfer_groups = [
        Group("published", 0.282, 0.3, 4.8),
        Group("rule", rule, 0.3, 4.8),
        Group("small rule", small_rule),
    ]
    duration_groups = [Group("rule", rule, decay, 4.8) for decay in DURATIONS]
    noise = Noise(torch.Generator().manual_seed(seed), streams=max(seeds // 2, 1))
    return {
        "sgd": run([a], SGD_GROUPS, order=order_a, plateaus=True),
        "sgd_b": run([b], sgd_b_groups, order=order_b),
        "gd_b": run([b], GD_GROUPS),
        "sde": run([a], SDE_GROUPS, noise=noise),
        "transfer": run(several, transfer_groups, order=order_transfer, ranks=False),
        "duration": run(several, duration_groups, order=order_transfer),
        "times": moments(steps, points),
        "rank_times": landmarks(steps, points),
        "surface": diagonal_networks.surface(2 * seeds, points, seed, surface_grid),
        "cycle": {"a": CYCLE_LEVELS, "losses": diagonal_networks.cycles(CYCLE_LEVELS)},
    }


# ======================================================================================
# ReLU networks: 1-D regression
# ======================================================================================

STRIP = (99, 420, 1300, 6500, 15_000, 31_000)  # steps of 31,623 at which the published figure shows the function
FITTED = 0.05  # training loss below which a run passes through the points, nearly


@checked
def regression(
    seeds: Count = 32,
    steps: Steps = 31_623,
    points: Points = 16,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Twelve points on a line, two layers of width 100, large initialisation; feature sparsity at correlation 0.999.

    Published: the warm-up factor is f times the duration, so that the peak grows with its square. Clean: peak and
    duration apart. "functions" [6 times, groups, 121] on "grid", of the first seed that two schedules fit ("shown").
    """
    problem = draw_line(own_seeds(seed, seeds), steps, device)
    schedules = line_schedules()
    strip = [step * steps // 31_623 for step in STRIP]
    runs = relu_networks.train_and_look(problem, schedules, steps, points, correlation=0.999, keep_at=strip)

    published = runs.records[:2]
    both_fit = torch.stack([group["final"]["train"] < FITTED for group in published]).all(0)
    shown = int(both_fit.int().argmax())  # the first
    grid = torch.linspace(-1.5, 1.6, 121, dtype=problem.x.dtype, device=problem.x.device)
    functions = [relu_networks.forward(theta[:3, shown], grid[:, None], problem.net).output for theta in runs.kept]
    return {
        "times": moments(steps, points),
        "groups": runs.records,
        "grid": grid,
        "strip_times": strip,
        "functions": torch.stack(functions),
        "shown": shown,
        "x": problem.x[0, :, 0],
        "y": problem.y[0],
    }


def draw_line(seeds: range, steps: int, device: str | torch.device) -> Problem:
    """The twelve points, which are train and test data, and each seed's start, order and inputs of the rank."""
    x = (torch.arange(12, dtype=torch.float64, device=device)[:, None] - 5.5) / 4 + 0.07
    y = 0.345 + torch.tensor([-2, 1.5, 0, 0, 2, 1, 0, -1, 0, 1, 2, -1], dtype=x.dtype, device=device)
    width = 100
    starts, orders, rank_inputs = [], [], []
    for seed in seeds:
        draw = np.random.RandomState(seed)
        hidden_weights = draw.choice([-2.5, 2.5], width)
        hidden_biases = 2.5 * draw.randn(width)
        output_weights = 4 * draw.randn(width)
        starts.append(np.concatenate([hidden_weights, hidden_biases, output_weights]))
        orders.append(draw.randint(12, size=steps))
        rank_inputs.append(draw.uniform(-1.305, 1.445, (3 * width, 1)))
    x = x.expand(len(seeds), 12, 1)
    y = y.expand(len(seeds), 12)
    return Problem(
        net=Net((1, width, 1), (True, False)),
        start=torch.from_numpy(np.stack(starts)).to(x),
        x=x,
        y=y,
        x_test=x,
        y_test=y,
        rank_inputs=torch.from_numpy(np.stack(rank_inputs)).to(x),
        order=torch.from_numpy(np.stack(orders, 1)).to(device),
    )


def line_schedules() -> list[Schedule]:
    """Published: short, long, over-regularised; then duration apart, at the long one's peak and at the short one's."""
    gamma = 2e-4
    schedules = []
    for f, share, divisor in ((400, 0.02, 2.5), (400, 0.5, 3.0), (500, 0.5, 3.0)):
        peak = gamma * (1 + (f * share - 1) * share)
        schedules.append(Schedule(f"published {f}", gamma, share, divisor, peak))
    low, high = schedules[0].peak, schedules[1].peak
    for share in (0.02, *DURATIONS):
        schedules.append(Schedule("clean", gamma, share, 3.0, high))
    for share in (0.02, 0.5):
        schedules.append(Schedule("clean low", gamma, share, 3.0, low))
    return schedules


# ======================================================================================
# ReLU networks: teacher-student
# ======================================================================================

LADDER = np.array(
    [0.2, 0.25, 0.3, 0.35, 0.4, 0.455, 0.52, 0.6]
)  # steps of which each seed's largest stable one is sought
TWO_LAYER_DROPS = ((0.1, 2.0), (0.3, 4.0), (0.5, 5.0))  # published: duration, divisor
THREE_LAYER_DROPS = ((0.1, 3.5), (0.3, 2.5), (0.5, 5.0))
DATA_SEEDS = {"two": 1, "three": 6}  # of the reference's one teacher and data set


@checked
def relu(
    seeds: Count = 64,
    steps: Steps = 14_126,
    deep_steps: Steps = 10_001,
    points: Points = 16,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Teacher-student: 2-20-1 on the circle, 15 examples; 5-10-10-1 on the sphere, 50; teacher and data of each seed.

    Two layers, "edge": the largest of a grid of steps with which that seed survives half the run; the same divisor for
    all durations. Three layers, "clean": the same peak and divisor. "neurons" of the first seed: w |a|, signs of a.
    What was tried to find the published two-layer trend: "two_stable", the published divisors at each seed's largest
    stable step; "two_variants", the division before or after the step; "two_fixed" and "three_fixed", teacher and data
    drawn once, as published.
    """
    streams = own_seeds(seed, seeds)
    look = {"points": points, "correlation": 0.99}
    data_seeds = {"two": DATA_SEEDS["two"] + seed, "three": DATA_SEEDS["three"] + seed}
    three = three_layers(three_layer_schedules(), streams, deep_steps, None, look, device)
    without_clean = three_layer_schedules()[:4]
    three_fixed = three_layers(without_clean, streams, deep_steps, data_seeds["three"], look, device)
    return {
        **two_layers(streams, steps, look, device),
        "two_times": moments(steps, points),
        "two_fixed": two_layers_fixed(streams, steps, data_seeds["two"], look, device),
        "three": three,
        "three_times": moments(deep_steps, points),
        "three_fixed": three_fixed,
    }


SMALL = Schedule("small", 0.13)
PUBLISHED = [Schedule("published", 0.455, *drop) for drop in TWO_LAYER_DROPS]


def relative_to(edge: np.ndarray) -> list[Schedule]:
    """The published divisors at each seed's largest stable step [K]."""
    return [Schedule("relative", edge, *drop) for drop in TWO_LAYER_DROPS]


def two_layers(streams: range, steps: int, look: dict, device: str | torch.device) -> dict:
    """Teacher and data of each seed: "two", "ladder", "survived", "edge", "two_stable", "two_variants", "neurons"."""
    problem, teachers = relu_networks.teacher_student(relu_networks.TWO_LAYERS, steps, streams, device)
    survived, edge = largest_stable(problem, steps)
    at_edge = [Schedule("edge", edge, decay, 4.0) for decay in DURATIONS]
    step_first = [schedule._replace(name="step first", delay=1) for schedule in PUBLISHED]
    schedules = [SMALL, *PUBLISHED, *at_edge, *relative_to(edge), *step_first]
    runs = relu_networks.train_and_look(problem, schedules, steps, **look)

    decay_first_runs = [record | {"name": "decay first"} for record in named(runs.records, "published")]
    longest_edge = max(k for k, schedule in enumerate(schedules) if schedule.name == "edge")
    shown = {
        "teacher": teachers[0],
        "start": problem.start[0],
        "small": runs.theta[0, 0],
        "edge": runs.theta[longest_edge, 0],
    }
    return {
        "two": named(runs.records, "small", "published", "edge"),
        "ladder": LADDER,
        "survived": survived,
        "edge": edge,
        "two_stable": named(runs.records, "small", "relative"),
        "two_variants": [*decay_first_runs, *named(runs.records, "step first")],
        "neurons": {name: relu_networks.neurons(theta) for name, theta in shown.items()},
    }


def two_layers_fixed(streams: range, steps: int, data_seed: int, look: dict, device: str | torch.device) -> list[dict]:
    """Teacher and data drawn once: the published schedules, and those relative to the largest stable steps there."""
    problem, _ = relu_networks.teacher_student(relu_networks.TWO_LAYERS, steps, streams, device, data_seed)
    _, edge = largest_stable(problem, steps)
    schedules = [SMALL, *PUBLISHED, *relative_to(edge)]
    return relu_networks.train_and_look(problem, schedules, steps, **look).records


def three_layers(
    schedules: list[Schedule],
    streams: range,
    steps: int,
    data_seed: int | None,
    look: dict,
    device: str | torch.device,
) -> list[dict]:
    """Three layers; teacher and data of each seed, or with `data_seed` drawn once."""
    problem, _ = relu_networks.teacher_student(relu_networks.THREE_LAYERS, steps, streams, device, data_seed)
    return relu_networks.train_and_look(problem, schedules, steps, **look).records


def named(records: list[dict], *names: str) -> list[dict]:
    """The records of the schedules with one of these names."""
    return [record for record in records if record["name"] in names]


def largest_stable(problem: Problem, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """How many seeds survive half the run with each step of the ladder, and each seed's largest such step [K].

    The ladder's first for a seed that survives none.
    """
    seeds = len(problem.start)
    rates = np.repeat(LADDER[None, :, None], steps, 0) + np.zeros(seeds)
    ((_, theta),) = relu_networks.train(problem, rates, [steps // 2])
    survived = theta.isfinite().all(-1).cpu().numpy()  # [ladder, seeds]
    from_the_top = survived[::-1].argmax(0)
    largest = np.where(survived.any(0), LADDER[len(LADDER) - 1 - from_the_top], LADDER[0])
    return survived.sum(1), largest


def three_layer_schedules() -> list[Schedule]:
    """Small; published (the peak grows with the duration); clean (the same peak and divisor for all durations)."""
    gamma = 0.04
    schedules = [Schedule("small", 0.011)]
    for decay, divisor in THREE_LAYER_DROPS:
        peak = gamma * (1 + 5 * math.sqrt(decay))
        schedules.append(Schedule("published", gamma, decay, divisor, peak, power=0.5))
    peak = schedules[2].peak
    for decay in DURATIONS:
        schedules.append(Schedule("clean", gamma, decay, 3.5, peak, power=0.5))
    return schedules


# ======================================================================================
# Deep networks
# ======================================================================================


class Recipe(NamedTuple):
    """Of the reference code: what all runs have in common, the small step, the large one with its warm-up."""

    common: dict
    small: float
    large: dict


RECIPES = {
    "plain": Recipe(
        common={"momentum": 0.0, "weight_decay": 0.0, "augment": False},
        small=0.01,
        large={"learning_rate": 0.75, "growth": 1.05},
    ),
    "full": Recipe(
        common={"momentum": 0.9, "weight_decay": 5e-4, "augment": True},
        small=0.002,
        large={"learning_rate": 0.05, "growth": 1.0},
    ),
}


class Plan(NamedTuple):
    """Fields of `core.Run` for a schedule ("small", "published" or "clean") that decays at this share of the run."""

    schedule: str
    decay: float
    fields: dict


def plans(recipe: str, steps: int, small: float | None, decays: tuple[float, ...]) -> list[Plan]:
    """The runs of an experiment.

    "published": the large step (peak learning_rate x growth^(100 decay)) is divided by 10 at the decay and again at
    90 %; without warm-up the reference divides by 5 / decay first. "clean": the same peak and divisor, 10, for all, so
    that only the duration differs.
    """
    common, default_small, large = RECIPES[recipe]
    found = [Plan("small", 0.0, common | {"learning_rate": small or default_small})]
    for decay in decays:
        times = {"decay_steps": (int(decay * steps), int(0.9 * steps))}
        has_warmup = large["growth"] > 1
        first_factor = 0.1 if has_warmup else round(decay / 5, 6)
        published = {"decay_factors": (first_factor, 0.1)}
        clean = {"decay_factors": (0.1, 0.1), "growth": 1.0}
        found.append(Plan("published", decay, common | large | times | published))
        found.append(Plan("clean", decay, common | large | times | clean))
    return found


@checked
def deep(
    model: str = "resnet18",
    dataset: str = "cifar10",
    data: str | Path = "data",
    recipe: Literal["plain", "full"] = "plain",
    small: Positive | None = None,
    decays: tuple[Annotated[float, Range(0, 0.9, with_low=False, with_high=False)], ...] = DURATIONS,
    width: Count = 64,
    batch_size: Count = 256,
    steps: Count = 19_500,
    evaluations: Count = 50,
    seeds: Count = 1,
    precision: Literal[PRECISIONS] = "auto",
    images: Count = block_features.PAPER_IMAGES,
    runs: str | Path = "runs/sparse_features",
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict | None:
    """Train deep networks with small and large steps; feature sparsity of each block along the way.

    Returns a record per run: schedule, decay, seed, settings, and by columns what `core.train` and
    `block_features.measure` log. None on torchrun ranks other than 0.
    """
    network = f"plain-{model}"
    if network not in plain_networks.NETWORKS:
        names = [name.removeprefix("plain-") for name in plain_networks.NETWORKS]
        raise InputError(f"no network {model!r}: choose from {', '.join(names)}")
    if width % 2:
        raise InputError(f"width: expected an even number, not {width}")
    if steps < evaluations:
        raise InputError(f"evaluations: expected at most one a step, not {evaluations} in {steps} steps")
    common = Run(
        model=network,
        dataset=dataset,
        width=width,
        batch_size=batch_size,
        steps=steps,
        eval_every=steps // evaluations,
        precision=precision,
        warmup_steps=0,
        normalize=False,
    )
    planned = []  # (plan, run)
    for plan in plans(recipe, steps, small, tuple(decays)):
        for one_seed in range(seed, seed + seeds):
            planned.append((plan, replace(common, **plan.fields, seed=one_seed)))
    data_folder = default_folder(data, "data")
    loaded = teams.first_rank_first(lambda: load_dataset(dataset, data_folder), torch.device(device))
    distinct = list(dict.fromkeys(run for _, run in planned))  # the clean and the published run may be the same
    measure = partial(block_features.measure, images=images)
    runs_folder = default_folder(runs, "runs/sparse_features")
    trained = core.sweep(distinct, loaded, runs_folder, torch.device(device), measure=measure)
    if trained is None:
        return None
    found = []
    for plan, run in planned:
        record = trained.runs[distinct.index(run)]
        found.append(deep_record(plan, run, record))
    return {
        "source": loaded.source,
        "blocks": plain_networks.BLOCKS[network],
        "runs": found,
        "seconds_in_all": trained.seconds,
    }


def deep_record(plan: Plan, run: Run, trained: dict) -> dict:
    """What the result says of a run: its schedule, its highest learning rate, and its log by columns."""
    lines = trained["log"]
    names = lines[0] if lines else {}
    return {
        "schedule": plan.schedule,
        "decay": plan.decay,
        "seed": run.seed,
        "peak": max(core.learning_rate_at(run, step) for step in range(run.steps)),
        "seconds": trained["seconds"],
        **{name: [line[name] for line in lines] for name in names},
        "diverged_at": trained["diverged_at"],
    }


# ======================================================================================
# The command line
# ======================================================================================

DEEP_OPTIONS = {
    "model": {"help": "resnet18 (default), resnet34, densenet100, vgg16"},
    "recipe": {"choices": list(RECIPES), "help": "plain (default) or full: momentum, decay, augmentation"},
    "dataset": {"help": "cifar10 (default), cifar100, synthetic, or what is in --data: NAME.npz, NAME/train/<class>/"},
    "data": {"help": "folder of the data (default: data)"},
    "small": {"type": float, "help": "the small step (default: 0.01, full: 0.002)"},
    "decays": {"type": float, "nargs": "+", "help": "decay times as shares of the run (default: 0.1 0.3 0.5)"},
    "width": {"type": int, "help": "of the networks (default: 64)"},
    "batch_size": {"type": int, "help": "default: 256"},
    "evaluations": {"type": int, "help": "in each run (default: 50)"},
    "precision": {"choices": PRECISIONS, "help": "auto (default): bfloat16 where the device is fast at it"},
    "runs": {
        "help": "folder of checkpoints and logs (default: runs/sparse_features; --quick: runs/quick/sparse_features)"
    },
}
OPTIONS = {name: about | {"help": f"deep: {about['help']}"} for name, about in DEEP_OPTIONS.items()}
OPTIONS["steps"] = {"type": int, "help": "length of the runs (defaults: the paper's)"}
OPTIONS["seeds"] = {"type": int, "help": "number of seeds (defaults: 32, 32, 64, 1)"}
QUICK = {
    "diagonal": {"seeds": 4, "steps": 3001, "data_seeds": 2, "points": 16},
    "regression": {"seeds": 4, "steps": 1000, "points": 8},
    "relu": {"seeds": 4, "steps": 1000, "deep_steps": 1000, "points": 8},
    "deep": {
        "dataset": "synthetic",
        "width": 4,
        "batch_size": 64,
        "steps": 20,
        "evaluations": 2,
        "decays": (0.3,),
        "images": 256,
        "runs": str(ROOT / "runs" / "quick" / "sparse_features"),
    },
}


def main(argv: list[str] | None = None) -> None:
    experiments = {"diagonal": diagonal, "regression": regression, "relu": relu, "deep": deep}
    run_script(__doc__, experiments, QUICK, argv, prefix="sparse_", options=OPTIONS, shared=("deep",))


if __name__ == "__main__":
    main()
