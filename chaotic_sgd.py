"""Chaotic dynamics of SGD: prune the locally chaotic directions from every step; perturb, and watch copies part.

Herrmann, Granz & Landgraf, *Chaotic Dynamics are Intrinsic to Neural Network Training with SGD* (NeurIPS 2022).
A direction with Hessian eigenvalue w of the step's mini-batch is locally chaotic if |1 - lr w| > 1: w < 0 or > 2 / lr.
CGD leaves these out of the step. Spectra are exact. The paper's settings: MLP 256-20-10 with sigmoid on USPS, batch
size 8, learning rate 0.001, no momentum, 18,240 steps (20 epochs). Cost on one core, and training accuracy to expect:

  pruning      Figures 1, 2: SGD .85, CGD chaotic or neg .25, pos .81              32 minutes, 16 shared with delay
  delay        Figure 2: CGD from step 10,000 .76, 5,000 .49, 2,000 .38, 0 .25       50 minutes
  divergence   Figure 3: copies 0.1 apart end 0.005 (most convergent) to 1.0 apart   14 minutes, 13 shared with subspace
  subspace     global Lyapunov exponents, up to 1.6e-4 a step; chaotic subspace      13 minutes

Results depend on learning rate x steps alone, nearly. The cheap forms do a tenth of the work, at rate 0.01 for 1,824
steps: pruning_cheap and delay_cheap (16 seeds, 8 and 21 minutes), divergence_cheap and subspace_cheap (5 seeds, 13
minutes shared), pruning_fashion_mnist, delay_fashion_mnist, pruning_k100 (at most 100 directions) and
pruning_momentum (0.9; rate 0.001) with 3 seeds each, pruning_cnn (ReLU; rate 0.1, 600 steps: sigmoid's stays at the
largest class) with one.

  python chaotic_sgd.py delay --seeds 1     one seed of figure 2, ten minutes
  python chaotic_sgd.py delay_cheap --seeds 1     a tenth of it

USPS is downloaded, or read from data/usps.npz (--quick: generated images). Finished pieces stay in runs/chaotic_sgd
and aren't computed again.
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from experiments import lyapunov as lyapunov_matrix
from experiments.chaotic_training import BIN, RUNS, Problem, Pruning, Sgd, State, setup, stored, train
from experiments.curvature import Task
from lib.command import run_script
from lib.errors import InputError
from lib.settings import Count, CountOrZero, Momentum, NotNegative, Positive, Seed, checked

PRUNED_SETS = ("chaotic", "neg", "pos")

# ======================================================================================
# Figures 1 and 2: pruning
# ======================================================================================


class Variant(NamedTuple):
    """SGD up to step `start`, then CGD pruning the set `prune`; None: SGD throughout."""

    prune: str | None
    start: int


def parse_variant(name: str, steps: int) -> Variant:
    """Of "sgd" or "chaotic@5000": a set and the first step that is pruned; InputError for anything else."""
    prune, _, start = name.partition("@")
    if name == "sgd":
        return Variant(None, 0)
    is_step = start.isdecimal() or start == ""
    first_step = int(start or 0) if is_step else steps
    if prune not in PRUNED_SETS or first_step >= steps:
        raise InputError(f"no variant {name} in {steps} steps: use sgd, chaotic@0, neg@0, pos@0 or a later start")
    return Variant(prune, first_step)


def train_piece(problem: Problem, state: State, sgd: Sgd, first_step: int, **settings) -> dict:
    """`chaotic_training.train` in a form that can be stored: {"states": {step: (theta, velocity)}, "curves"}."""
    states, curves = train(problem, state, sgd, first_step, **settings)
    return {"states": {step: tuple(one) for step, one in states.items()}, "curves": curves}


def never_too_sharp(curves: dict, learning_rate: float) -> bool:
    """Were negative directions the only chaotic ones at every step?"""
    return bool(curves["largest_eigenvalue"].max() < 2 / learning_rate)


@checked
def pruning(
    variants: tuple[str, ...] = ("sgd", "chaotic@0", "pos@0", "neg@0"),
    k: CountOrZero | None = None,
    rule: Literal["top_abs", "rand"] = "top_abs",
    noise: NotNegative | Literal["mean"] | None = None,
    dataset: str = "usps",
    data: str | Path = "data",
    architecture: Literal["mlp", "cnn"] = "mlp",
    activation: Literal["sigmoid", "relu"] = "sigmoid",
    learning_rate: Positive = 1e-3,
    momentum: Momentum = 0.0,
    batch_size: Count = 8,
    steps: Count = 18240,
    seeds: Count = 5,
    runs: str | Path | None = RUNS,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Figures 1 and 2: SGD beside CGD. A variant set@start is SGD up to step `start`, then CGD pruning that set.

    All variants of a seed share initial parameters and batches. Returns per variant the means over bins of 100 steps
    [bins, seeds] of batch loss, batch accuracy, kept share of |g|^2, extreme Hessian eigenvalues and number of
    negative ones, and the accuracy on all images after each epoch [epochs, seeds].
    """
    planned = {name: parse_variant(name, steps) for name in variants}
    sgd = Sgd(Task(architecture, activation), batch_size, learning_rate, momentum)
    all_seeds = list(range(seed, seed + seeds))
    problem, state = setup(dataset, data, sgd, steps, all_seeds, device)
    common = {"steps": steps, "seeds": all_seeds}
    identity = common | sgd._asdict() | {"content": problem.content}

    starts = sorted({variant.start for variant in planned.values()})
    plain = partial(train_piece, problem, state, sgd, 0, keep_states_at=tuple(starts), **common)
    sgd_piece = stored(runs, identity | {"starts": starts}, plain, device)
    found = {"sgd": sgd_piece["curves"]}
    for name, (pruned_set, start) in planned.items():
        if pruned_set is None:
            continue
        twin = found.get(f"chaotic@{start}")
        everything = k is None and noise is None
        if pruned_set == "neg" and everything and twin is not None and never_too_sharp(twin, learning_rate):
            found[name] = twin | {"same_as": f"chaotic@{start}"}
            continue
        cgd = Pruning(pruned_set, k, rule, noise)
        branch = State(*sgd_piece["states"][start])
        compute = partial(train_piece, problem, branch, sgd, start, pruning=cgd, **common)
        piece = stored(runs, identity | cgd._asdict() | {"start": start}, compute, device)
        found[name] = piece["curves"]
    shares = problem.train_y.bincount() / len(problem.train_y)
    return {"bin": BIN, "epoch": problem.steps_per_epoch(batch_size), "largest_class": shares.max(), "runs": found}


DELAYED = ("sgd", "chaotic@10000", "chaotic@5000", "chaotic@2000", "chaotic@0")
DELAYED_CHEAP = ("sgd", "chaotic@1000", "chaotic@500", "chaotic@200", "chaotic@0")
CHEAP = {"learning_rate": 1e-2, "steps": 1824}  # learning rate x steps as in the paper, a tenth of the work
PRUNING = {  # `pruning`, and the same under other settings
    "pruning": pruning,
    "delay": partial(pruning, variants=DELAYED),
    "pruning_cheap": partial(pruning, seeds=16, **CHEAP),
    "delay_cheap": partial(pruning, variants=DELAYED_CHEAP, seeds=16, **CHEAP),
    "pruning_fashion_mnist": partial(pruning, dataset="fashion_mnist", seeds=3, **CHEAP),
    "delay_fashion_mnist": partial(pruning, variants=DELAYED_CHEAP, dataset="fashion_mnist", seeds=3, **CHEAP),
    "pruning_k100": partial(pruning, variants=("sgd", "chaotic@0"), k=100, seeds=3, **CHEAP),
    "pruning_cnn": partial(
        pruning,
        variants=("sgd", "chaotic@0", "chaotic@300"),
        architecture="cnn",
        activation="relu",
        seeds=1,
        learning_rate=0.1,
        steps=600,
    ),
    "pruning_momentum": partial(pruning, momentum=0.9, seeds=3, learning_rate=1e-3, steps=1824),
}

# ======================================================================================
# Figure 3: perturbed copies, and the global Lyapunov matrix
# ======================================================================================


class Training(NamedTuple):
    """One network to be trained, and what its global Lyapunov matrix tells (`lyapunov.lyapunov`)."""

    problem: Problem
    state: State
    sgd: Sgd
    checkpoints: list[int]
    found: dict


def times_of(checkpoints: tuple[int, ...], steps: int) -> list[int]:
    """The checkpoints within a run of so many steps, in order; its end is always one."""
    within = {step for step in checkpoints if step < steps}
    return sorted(within | {steps})


def tell_late_checkpoints(checkpoints: tuple[int, ...], steps: int) -> None:
    """One line where a shorter run has fewer checkpoints than were asked for."""
    late = [str(step) for step in checkpoints if step > steps]
    if late:
        print(f"note: checkpoints {', '.join(late)} are left out: the run ends at step {steps}", flush=True)


def lyapunov_of(
    dataset: str,
    data: str | Path,
    sgd: Sgd,
    steps: int,
    checkpoints: tuple[int, ...],
    draws: int,
    runs: str | Path | None,
    seed: int,
    device: str | torch.device,
) -> Training:
    """Of the training from `seed`."""
    problem, state = setup(dataset, data, sgd, steps, [seed], device)
    times = times_of(checkpoints, steps)
    identity = sgd._asdict() | {"checkpoints": times, "draws": draws, "seed": seed, "content": problem.content}
    compute = partial(lyapunov_matrix.lyapunov, problem, state, sgd, times, draws, seed)
    return Training(problem, state, sgd, times, stored(runs, identity, compute, device))


@checked
def subspace(
    checkpoints: tuple[Count, ...] = (10, 1000, 5000, 10000),
    draws: Count = 5,
    dataset: str = "usps",
    data: str | Path = "data",
    architecture: Literal["mlp", "cnn"] = "mlp",
    activation: Literal["sigmoid", "relu"] = "sigmoid",
    learning_rate: Positive = 1e-3,
    momentum: Momentum = 0.0,
    batch_size: Count = 8,
    steps: Count = 18240,
    seeds: Count = 1,
    runs: str | Path | None = RUNS,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Global Lyapunov exponents along an SGD run, and how its chaotic and its other subspace turn: a record per seed.

    `exponents` [times, ranks] at some of the ranks, `dimensions` [times, 2], `similarity` [3, times, times, 2, 2]: see
    `lyapunov.lyapunov`.
    """
    sgd = Sgd(Task(architecture, activation), batch_size, learning_rate, momentum)
    tell_late_checkpoints(checkpoints, steps)
    records = []
    for one in range(seed, seed + seeds):
        training = lyapunov_of(dataset, data, sgd, steps, checkpoints, draws, runs, one, device)
        exponents = training.found["exponents"]
        ranks = torch.linspace(0, exponents.shape[1] - 1, 200).long()
        records.append(
            {
                "seed": one,
                "times": training.checkpoints,
                "ranks": ranks,
                "exponents": exponents[:, ranks],
                "dimensions": training.found["dimensions"],
                "similarity": training.found["similarity"],
            }
        )
    return {"runs": records}


@checked
def divergence(
    perturbation: Positive = 0.1,
    small: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2, 1e-1),
    checkpoints: tuple[Count, ...] = (10, 1000, 5000, 10000),
    draws: Count = 5,
    dataset: str = "usps",
    data: str | Path = "data",
    architecture: Literal["mlp", "cnn"] = "mlp",
    activation: Literal["sigmoid", "relu"] = "sigmoid",
    learning_rate: Positive = 1e-3,
    momentum: Momentum = 0.0,
    batch_size: Count = 8,
    steps: Count = 18240,
    seeds: Count = 1,
    runs: str | Path | None = RUNS,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Figure 3: how far copies get that start displaced and see the same batches; a record per seed.

    They start at the distance `perturbation` in each of the directions of `lyapunov.perturbations`. Records: `kinds`
    of the copies; `times`; `distance`, and `tangent` in the linearised dynamics, [times, copies]; the smallest and the
    largest of the `exponents`; `accuracy` [train or test, run and copies]. `small`: copies displaced by other amounts
    in the most chaotic direction, for the first sixth of the run: `distance` [seeds, amounts, times].
    """
    sgd = Sgd(Task(architecture, activation), batch_size, learning_rate, momentum)
    tell_late_checkpoints(checkpoints, steps)
    records, small_distances = [], []
    for one in range(seed, seed + seeds):
        training = lyapunov_of(dataset, data, sgd, steps, checkpoints, draws, runs, one, device)
        problem, state = training.problem, training.state
        directions = training.found["directions"].to(device)
        parting = lyapunov_matrix.follow_copies(
            problem, state, sgd, perturbation * directions, steps, every=max(steps // 365, 1)
        )
        early = max(steps // 6, 1)
        amounts = torch.tensor(small, device=device)[:, None]
        beginning = lyapunov_matrix.follow_copies(
            problem, state, sgd, amounts * directions[:1], early, every=max(early // 60, 1)
        )
        small_distances.append(beginning.distance.T)
        records.append(
            {
                "seed": one,
                "kinds": lyapunov_matrix.kinds_of_copies(draws),
                "exponents": training.found["exponents"][-1, [0, -1]],
                "times": parting.times,
                "distance": parting.distance,
                "tangent": parting.tangent,
                "accuracy": problem.accuracies(parting.theta, sgd.task),
            }
        )
    return {
        "runs": records,
        "small": {"perturbations": small, "times": beginning.times, "distance": torch.stack(small_distances)},
    }


# ======================================================================================
# The command line
# ======================================================================================


def number_or_mean(text: str) -> float | str:
    """What --noise takes."""
    return text if text == "mean" else float(text)


OPTIONS = {
    "variants": {"nargs": "+", "help": "in pruning and delay: sgd and any of chaotic, neg, pos @ first step pruned"},
    "k": {"type": int, "help": "prune at most k directions per step (default: all of the set)"},
    "rule": {"choices": ["top_abs", "rand"], "help": "which k: the extreme ones, or random ones (default: top_abs)"},
    "noise": {
        "type": number_or_mean,
        "help": "put normal noise of this size, or of the gradient's mean |g_i| with `mean`, into each pruned "
        "direction (default: none)",
    },
    "seeds": {"type": int, "help": "how many networks, from --seed on (default: 5; divergence and subspace: 1)"},
    "dataset": {"help": "usps, fashion_mnist, mnist, synthetic, or the stem of an npz file in --data (default: usps)"},
    "data": {"help": "folder of the images (default: data)"},
    "architecture": {"choices": ["mlp", "cnn"], "help": "the paper's MLP 256-20-10 or CNN (default: mlp)"},
    "activation": {"choices": ["sigmoid", "relu"], "help": "default: sigmoid, with which Figure 2 looks as published"},
    "learning_rate": {"type": float, "help": "default: 0.001; results depend on learning rate x steps alone, nearly"},
    "momentum": {"type": float, "help": "default: 0"},
    "batch_size": {"type": int, "help": "default: 8; the MLP's Hessian is 336 x 336 then, 20 b + 189 from b = 9 on"},
    "steps": {"type": int, "help": "default: 18,240, 20 epochs of USPS at batch size 8"},
}
EXPERIMENTS = PRUNING | {
    "divergence": divergence,
    "subspace": subspace,
    "divergence_cheap": partial(divergence, seeds=5, checkpoints=(1, 1000), **CHEAP),
    "subspace_cheap": partial(subspace, seeds=5, checkpoints=(1, 1000), **CHEAP),
}
SMALL = {"dataset": "synthetic", "steps": 120, "seeds": 2, "runs": None}
TINY = {"dataset": "synthetic", "steps": 10, "seeds": 1, "runs": None}
CNN = TINY | {"architecture": "cnn", "steps": 3, "draws": 2, "checkpoints": (1,)}  # the MLP's matrix takes a minute
QUICK = {
    "pruning": SMALL,
    "delay": SMALL | {"variants": ("sgd", "chaotic@100", "chaotic@0")},
    "pruning_cnn": TINY | {"steps": 2, "variants": ("sgd", "chaotic@1")},
    "divergence": CNN,
    "subspace": CNN,
    "divergence_cheap": CNN | {"steps": 2},
    "subspace_cheap": CNN | {"steps": 2},
}
for name in EXPERIMENTS.keys() - QUICK.keys():
    variants = {"variants": ("sgd", "chaotic@5")} if name.startswith("delay") else {}
    QUICK[name] = TINY | variants


def main(argv: list[str] | None = None) -> None:
    run_script(__doc__, EXPERIMENTS, QUICK, argv, options=OPTIONS)


if __name__ == "__main__":
    main()
