"""The papers' claims, each made testable and judged from results/*.json alone.

A claim is a function: its arguments are the experiments it needs, its docstring what the paper
says and by which criterion we judge, and it returns (expected, measured, error, holds), with holds
True, False or "not resolved". Nothing in the table is written by hand.
"""

import inspect
import re

import numpy as np

import claims_beyond
import claims_chaos
import claims_deep
import claims_sparse
from criteria import need, numbers

# ======================================================================================
# Stochastic Collapse
# ======================================================================================


def quartic_density(quartic):
    """Below the threshold the well has the stationary density |theta|^(2 mu/zeta^2 - 2) exp(-theta^2/zeta^2).

    Total variation distance of each histogram to it.
    """
    pairs = zip(quartic["histogram"], quartic["stationary"], strict=True)
    distance = max(0.5 * np.abs(np.subtract(h, theory)).sum() for h, theory in pairs if theory)
    return "< 0.05", f"{distance:.4f}", "", distance < 0.05


def quartic_collapse(quartic):
    """The probability of collapse follows the theory at every noise level and time.

    Root mean square distance to the reflected Brownian motion; at most 1 % of the points off by 3 s.e. + 0.01.
    """
    theory = np.array(quartic["collapse_theory"])
    gap = np.array(quartic["collapse"]) - theory
    error = np.sqrt(theory * (1 - theory) / quartic["settings"]["replicas"])
    outside = np.mean(abs(gap) > 3 * error + 0.01)
    rms = np.sqrt(np.mean(gap[:, (theory > 0.01).any(0)] ** 2))
    return "< 0.02", f"{rms:.4f}", f"{outside:.1%} outside", rms < 0.02 and outside <= 0.01


def half_levels(quartic):
    """Noise of half collapse at each checkpoint, and its standard error."""
    z, levels, errors = quartic["noises"], [], []
    for row in np.array(quartic["collapse"]):
        level = np.interp(0.5, np.maximum.accumulate(row), z)
        slope = (np.interp(level + 0.1, z, row) - np.interp(level - 0.1, z, row)) / 0.2
        levels.append(level)
        errors.append(0.5 / np.sqrt(quartic["settings"]["replicas"]) / max(slope, 1e-9))
    return np.array(levels), max(errors)


def quartic_threshold(quartic):
    """The origin attracts above zeta = sqrt(2 mu).

    The noise of half collapse falls with the number of steps and stays above sqrt(2 mu).
    """
    levels, error = half_levels(quartic)
    limit = np.sqrt(2 * quartic["settings"]["mu"])
    holds = np.diff(levels).max() < 0 and (levels > limit).all()  # max: refuses a single level
    return f"falling to {limit:.3f}", numbers(levels, 3), f"{error:.3f}", holds


def quartic_published(quartic):
    """The published curves cross one half at these noise levels.

    Ours differ by less than 0.03.
    """
    need(quartic, mu=1.5, euler_step=0.0025, checkpoints=[10_000, 20_000, 40_000, 80_000], threshold=1e-15)
    paper = [2.353, 2.056, 1.889, 1.803]
    levels, error = half_levels(quartic)
    return numbers(paper, 3), numbers(levels, 3), f"{error:.3f}", abs(levels - paper).max() < 0.03


def neuron_threshold(neuron):
    """A single neuron's origin attracts above noise eta zeta^2 sigma'(0)/2 = sum xy / sum x^2.

    The measured growth of log|w| changes sign within 3 % of it (Euler steps of 0.01 alone shift it by 1.6 %).
    """
    z, rate, error = (np.array(neuron[key], float) for key in ("rate_noises", "rate", "rate_error"))
    limit = neuron["threshold"]
    near = (abs(z - limit) < 0.2) & np.isfinite(rate)
    if near.sum() < 3:
        return f"{limit:.4f}", "", f"{near.sum()} rates", "not resolved"
    slope, offset = np.polyfit(z[near], rate[near], 1)
    zero = -offset / slope
    return f"{limit:.4f}", f"{zero:.4f}", f"{error[near].max() / abs(slope):.4f}", abs(zero / limit - 1) < 0.03


def neuron_sharpening(neuron):
    """The probability of collapse sharpens to a step at the threshold as training goes on.

    From first to last checkpoint it rises above and falls below it, by over 2 s.e., at every undecided level.
    """
    p, z = np.array(neuron["collapse"])[1:], np.array(neuron["noises"]) / neuron["threshold"]
    error = np.sqrt((p[0] * (1 - p[0]) + p[-1] * (1 - p[-1])) / neuron["settings"]["replicas"])
    undecided = (np.minimum(p[0], 1 - p[0]) > 0.02) & (abs(z - 1) > 0.1)
    right = ((p[-1] - p[0]) * np.sign(z - 1) > 2 * error)[undecided]
    return f"all {right.size} levels", f"{right.sum()}", "2 s.e.", right.size > 0 and right.all()


def neuron_rate(neuron):
    """Near the origin log|w| falls at the exponent of the linearised random map, E log|1 + a dt + b dB|.

    Within 5 % at 20 or more noise levels above the threshold.
    """
    above = np.array(neuron["rate_noises"]) > neuron["threshold"]
    ratio = (np.array(neuron["rate"], float) / np.array(neuron["rate_theory_chain"]))[above]
    if np.isfinite(ratio).sum() < 20:
        return ">= 20 levels", "", f"{np.isfinite(ratio).sum()} rates", "not resolved"
    close = abs(ratio - 1) < 0.05
    return ">= 20 levels", f"{close.sum()} of {close.size}", f"worst {np.nanmax(abs(ratio - 1)):.1%}", close.sum() >= 20


def resolved_pairs(pair):
    """Conditions of `pair` whose measured rate is known to 2.5 %."""
    rate, error = np.array(pair["rate"], float), np.array(pair["rate_error"], float)
    return np.isfinite(rate) & (error < 0.025 * abs(rate))


def pair_rate(pair):
    """Two neurons approach at the top Lyapunov exponent of the linearised random map, momentum included.

    Ratio of measured to predicted rate within 5 %, in all (at least 5) conditions measured to 2.5 %.
    """
    keep = resolved_pairs(pair)
    rate, error, theory = (np.array(pair[key], float)[keep] for key in ("rate", "rate_error", "rate_theory"))
    with np.errstate(divide="ignore"):
        ratio = rate / theory
    text = f"{ratio.min(initial=9):.3f} to {ratio.max(initial=0):.3f} in {keep.sum()}"
    return "1", text, f"{abs(error / rate).max(initial=0):.1%}", keep.sum() >= 5 and (abs(ratio - 1) < 0.05).all()


def pair_noise(pair):
    """More learning rate and more label noise: two neurons merge faster (where they merge at all).

    Decay rates, in decades of squared distance per 1000 steps, rise along both sweeps.
    """
    n = len(pair["settings"]["learning_rates"])
    rate = np.where(resolved_pairs(pair), -np.array(pair["rate"], float), np.nan) * 1000 / np.log(10)
    sweeps = [sweep[np.isfinite(sweep)] for sweep in (rate[:n], rate[n:])]
    holds = all((np.diff(sweep) > 0).all() for sweep in sweeps)
    holds = holds if min(map(len, sweeps)) > 2 else "not resolved"
    return "rising; rising", "; ".join(numbers(sweep, 2) for sweep in sweeps), "< 2.5 %", holds


def pair_published(pair):
    """Published median log10 squared distance at step 5000: learning rates 0.1, 0.2 and label noise 0.2.

    Ours, on the same random numbers, differ by less than 0.1.
    """
    need(pair, learning_rates=[0.1, 0.2, 0.3, 0.4, 0.5], label_noises=[0, 0.1, 0.2, 0.4, 0.8], momentum=0.9)
    need(pair, replicas=8, points=8, a=[1.0, 0.6], b=[-0.6, -0.4], seed=0)
    paper = [-4.14, -6.86, -7.63]
    rows = np.array(pair["distances"], float)[[0, 1, 7], :, pair["times"].index(5000)]
    ours = np.log10(np.median(rows, 1))
    return numbers(paper, 2), numbers(ours, 2), "", abs(ours - paper).max() < 0.1


def student_shift(diagonal):
    """Label noise lowers every large singular value by eta sigma^2 / 2.

    Mean shift of the 14 largest modes before the drop, within 5 %.
    """
    shift = (np.array(diagonal["true"]) - np.array(diagonal["mean"])[:, 0])[:, :14].mean(1)
    expected = np.array(diagonal["threshold"])
    error = np.array(diagonal["std"])[:, 0, :14].mean(1).max() / np.sqrt(diagonal["settings"]["replicas"] * 14)
    holds = (abs(shift - expected) <= 0.05 * expected + 1e-4).all()
    return numbers(expected, 3), numbers(shift, 3), f"{error:.3f}", holds


def student_threshold(diagonal):
    """Modes with s* < eta sigma^2 / 2 collapse to zero, the others do not.

    95 % of the modes over 15 % off the threshold are on the right side of 0.02.
    """
    true, right = np.array(diagonal["true"]), []
    for limit, mean in zip(diagonal["threshold"], np.array(diagonal["mean"])[:, 0], strict=True):
        right += [*(mean[true > 1.15 * limit + 0.02] > 0.02), *(mean[true < 0.85 * limit] < 0.02)]
    return ">= 95 %", f"{np.mean(right):.1%} of {len(right)}", "", np.mean(right) >= 0.95


def student_band(diagonal):
    """Learned singular values lie between the theory's curves, before and after the drop.

    95 % of (noise, step, mode) within the band widened by 2 s.e. + 0.01.
    """
    mean, std = np.array(diagonal["mean"]), np.array(diagonal["std"])
    slack = 2 * std / np.sqrt(diagonal["settings"]["replicas"]) + 0.01
    lower, upper = (np.array([theory[name] for theory in diagonal["theory"]]) for name in ("lower", "upper"))
    inside = (mean > lower - slack) & (mean < upper + slack)
    return ">= 95 %", f"{inside.mean():.1%} of {inside.size}", "2 s.e.", inside.mean() >= 0.95


def student_test(diagonal):
    """Dropping the learning rate lowers the test loss, and the noisier the phase before, the lower it gets.

    Smallest test loss after the drop falls with noise, by over 2 s.e. each, and below the plateau before it.
    """
    steps, drop = np.array(diagonal["steps"]), diagonal["settings"]["drop_step"]
    test, std = np.array(diagonal["test"]), np.array(diagonal["test_std"])
    before = test[:, (steps > 0.9 * drop) & (steps <= drop)].mean(1)
    best = np.where(steps > drop, test, np.inf).argmin(1)
    rows = np.arange(len(test))
    after, error = test[rows, best], std[rows, best] / np.sqrt(diagonal["settings"]["replicas"])
    holds = (-np.diff(after) - 2 * np.hypot(error[1:], error[:-1])).min() > 0 and (after[1:] < before[1:]).all()
    return "falling", f"{numbers(before, 2)} -> {numbers(after, 2)}", f"{error.max():.2f}", holds


def student_published(diagonal):
    """Published train loss on the plateau before the drop, at the five label noises.

    Ours differ by less than 0.0005.
    """
    need(diagonal, label_noises=[0, 5, 10, 15, 20], learning_rate=3, drop_step=50_000)
    paper = [0.46014, 0.46426, 0.47480, 0.48698, 0.49573]
    steps, drop = np.array(diagonal["steps"]), diagonal["settings"]["drop_step"]
    train = np.array(diagonal["train"])[:, (steps > 0.9 * drop) & (steps <= drop)].mean(1)
    return numbers(paper, 4), numbers(train, 4), "", abs(train - paper).max() < 0.0005


def minibatch_size(minibatch):
    """Smaller batches, more noise, lower test loss.

    Test loss at the end rises with the batch size, by over 2 std of the seeds each.
    """
    last, std = np.array(minibatch["test"])[:, -1], np.array(minibatch["test_std"])[:, -1]
    holds = (np.diff(last) - 2 * np.hypot(std[1:], std[:-1])).min() > 0
    return "rising", numbers(last, 2), f"std {std.max():.2f}", holds


PAPERS = {
    "fig": "Stochastic Collapse",
    "chaos": "Chaotic Dynamics",
    "sparse": "Sparse Features",
    "beyond": "ours (no paper)",
}  # by the first letters of the figure's name
CLAIMS = (
    {
        "fig1_quartic": (quartic_density, quartic_collapse, quartic_threshold, quartic_published),
        "fig2_neuron": (neuron_threshold, neuron_sharpening, neuron_rate),
        "fig3_pair": (pair_rate, pair_noise, pair_published),
        "fig5_teacher_student": (student_shift, student_threshold, student_band, student_test, student_published),
        "fig5_minibatch": (minibatch_size,),
    }
    | claims_deep.CLAIMS
    | claims_chaos.CLAIMS
    | claims_sparse.CLAIMS
    | claims_beyond.CLAIMS
)

# ======================================================================================
# The table
# ======================================================================================


def judge(results, figures):
    """The claims table: a dict per claim of these figures. `results`: experiment -> result or None."""
    table = []
    for figure in figures:
        for claim in CLAIMS.get(figure, ()):
            says, _, criterion = (part.strip() for part in inspect.getdoc(claim).partition("\n\n"))
            row = {
                "id": claim.__name__.replace("_", "-"),
                "paper": next(paper for start, paper in PAPERS.items() if figure.startswith(start)),
                "figure": figure,
                "says": " ".join(says.split()),
                "criterion": " ".join(criterion.split()),
            }
            needs = [results.get(name) for name in inspect.signature(claim).parameters]
            outcome = "", "", "", "not run"
            if all(needs):
                try:
                    outcome = claim(*needs)
                except (ValueError, LookupError, TypeError):  # settings that the claim doesn't speak of
                    outcome = "", "", "", "not resolved"
                if re.search(r"\bnan\b", outcome[1]):  # a measurement that isn't there decides nothing
                    outcome = *outcome[:3], "not resolved"
                if any(result["quick"] for result in needs):
                    outcome = *outcome[:3], "quick"
            expected, measured, error, holds = outcome
            holds = holds if isinstance(holds, str) else bool(holds)
            table.append(row | {"expected": expected, "measured": measured, "error": error, "holds": holds})
    return table


KINDS = {True: "hold", False: "fail", "not resolved": "not resolved", "not run": "not run", "quick": "quick"}


def tally(table):
    """How many claims of each paper hold, fail, ..., as Markdown."""
    kinds = [kind for kind in KINDS if kind != "quick" or any(row["holds"] == kind for row in table)]
    lines = [f"| claims of | {' | '.join(KINDS[kind] for kind in kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for paper in dict.fromkeys(row["paper"] for row in table):
        verdicts = [row["holds"] for row in table if row["paper"] == paper]
        lines.append(f"| {paper} | {' | '.join(str(verdicts.count(kind)) for kind in kinds)} |")
    return "\n".join(lines) + "\n"


def markdown(table):
    """The table as Markdown."""
    lines = [
        "| figure | claim; *our criterion* | expected | measured | error | holds |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        holds = {True: "yes", False: "**no**"}.get(row["holds"], row["holds"])
        says = f"{row['says']} *{row['criterion']}*".replace("|", "\\|")
        lines.append(f"| {row['figure']} | {says} | {row['expected']} | {row['measured']} | {row['error']} | {holds} |")
    return "\n".join(lines) + "\n"
