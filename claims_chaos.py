"""Claims of *Chaotic Dynamics*, judged by claims.py: see there how a claim is written."""

import numpy as np

from figures_chaos import KINDS, PAPER, PAPER_STEPS, as_published, at, copies, curve, final, first_step, fit, rate


def spread(values):
    """Mean and standard deviation over seeds, as text."""
    return f"{np.mean(values):.3f}", f"s.d. {np.std(values, ddof=1):.3f}" if len(values) > 1 else "1 seed"


def decided(differences, margin=0.0):
    """True or False if every seed is on the same side of the margin, else "not resolved"."""
    above = np.asarray(differences) > margin
    return bool(above.all()) if len(above) > 1 and above.all() == above.any() else "not resolved"


def chaotic_hurts(pruning):
    """Local chaos (negative curvature) can't be taken out of the update without hurting training.

    SGD's accuracy in the last epoch is over 0.1 higher in every seed.
    """
    gap = final(pruning, "sgd") - final(pruning, "chaotic@0")
    return "> 0.1", *spread(gap), decided(gap, 0.1)


def positive_survivable(pruning):
    """It's the chaotic directions that are needed: pruning the positive ones instead is survivable.

    CGD pos beats CGD chaotic by over 0.1 accuracy in every seed.
    """
    gap = final(pruning, "pos@0") - final(pruning, "chaotic@0")
    return "> 0.1", *spread(gap), decided(gap, 0.1)


def positive_loss(pruning):
    """Pruning the positive directions hurts as well: they carry the descent of the loss (ours, not the paper).

    CGD pos ends at a higher loss than SGD in every seed.
    """
    gap = final(pruning, "pos@0", "loss") - final(pruning, "sgd", "loss")
    return "> 0", *spread(gap), decided(gap)


def negative_is_chaotic(pruning):
    """At this learning rate locally chaotic means negative curvature.

    No eigenvalue reaches 2 / lr at any step, so the windowed accuracies of chaotic and neg agree to 4 digits.
    """
    largest = max(max(run["largest_eigenvalue"]) for name, run in pruning["runs"].items() if name != "sgd")
    limit = 2 / pruning["settings"]["learning_rate"]
    steps = [t for t in (1000, 2000, 3000) if t < pruning["settings"]["steps"]] or [pruning["bin"]]
    gap = abs(at(pruning, "neg@0", steps) - at(pruning, "chaotic@0", steps)).max()
    return f"< {limit:,.0f}, 0", f"{largest:.1f}, {gap:.4f}", "", bool(largest < limit and gap < 5e-5)


def delay_ordering(delay):
    """The earlier pruning starts, the more it hurts.

    Accuracy in the last epoch rises with the first pruned step up to SGD, in every seed.
    """
    names = sorted((name for name in delay["runs"] if name != "sgd"), key=first_step)
    ends = np.array([final(delay, name) for name in [*names, "sgd"]])
    return (
        "ascending",
        " ".join(f"{value:.3f}" for value in ends.mean(1)),
        f"least gap {np.diff(ends, axis=0).min():.3f}",
        decided(np.diff(ends, axis=0).min(0)),
    )


def delay_kink(delay):
    """Training doesn't collapse where pruning starts: just a kink.

    Mean accuracy 500 steps after the start is less than 0.05 below that before.
    """
    worst = {}
    for name in delay["runs"]:
        start = first_step(name)
        if start:
            change = at(delay, name, [start + 500]) - at(delay, name, [start - 100])
            worst[name] = change.mean()
    least = min(worst.values())
    return "> -0.05", f"{least:.3f}", "", bool(least > -0.05)


def published(delay, *names):
    """Largest deviation of each run from the published curve after its start, in s.d. of one new seed."""
    if not as_published(delay) or delay["settings"]["seeds"] < 2:
        return "< 2.8 s.d.", "", "other settings, or one seed", "not resolved"
    worst = []
    for name in names:
        steps = PAPER_STEPS[first_step(name) < PAPER_STEPS]
        published = np.array(PAPER[name])[first_step(name) < PAPER_STEPS]
        ours = at(delay, name, steps)
        deviation = np.hypot(ours.std(1, ddof=1) * np.sqrt(1 + 1 / ours.shape[1]), 0.01)  # one run against n, digitised
        worst.append((abs(ours.mean(1) - published) / deviation).max())
    return "< 2.8 s.d.", " ".join(f"{value:.1f}" for value in worst), "s.d.", bool(max(worst) < 2.8)


def delay_slow(delay):
    """Pruned training keeps improving, but slowly (accuracy per 1,000 steps).

    Each delayed run's slope is positive by two standard errors and below half of SGD's.
    """
    rates = []
    if not as_published(delay) or delay["settings"]["seeds"] < 2:
        return "0.006 to 0.008", "", "other settings, or one seed", "not resolved"
    for name in delay["runs"]:
        if first_step(name):
            steps, values = curve(delay, name, "accuracy")
            rates.append(1000 * np.polyfit(steps, values, 1)[0])
    rates = np.array(rates)
    error = rates.std(1, ddof=1).max() / np.sqrt(rates.shape[1])
    slow = rates.mean(1).max() < 0.0255  # half of the published rate of SGD, .051 per 1000 steps from 2k to 10k
    return (
        "0.006 to 0.008",
        " ".join(f"{one:.4f}" for one in rates.mean(1)),
        f"s.e. {error:.4f}",
        bool(slow and (rates.mean(1) > 2 * rates.std(1, ddof=1) / np.sqrt(rates.shape[1])).all()),
    )


def divergence_exponential(divergence):
    """Copies perturbed along the most chaotic direction part exponentially early in training.

    Slope of log d: first 1/36 of the run and up to 1/12 differ by < 25 %, R² > 0.98; in the last 2/9 below 1/4.
    """
    times, distance = copies(divergence, "max_chaos")
    first, second = (rate(times, distance, *window)[0][0] for window in ((0, 1 / 36), (1 / 36, 1 / 12)))
    late = rate(times, distance, 7 / 9, 1)[0][0]
    _, quality = rate(times, distance, 0, 1 / 12)
    holds = abs(second / first - 1) < 0.25 and late < first / 4 and quality[0] > 0.98
    return "constant, then < 1/4", f"{first:.2e} {second:.2e} {late:.2e}", f"R² {quality[0]:.3f}", bool(holds)


def divergence_polynomial(divergence):
    """Later the growth is polynomial.

    d log d / d log t changes by < 0.15 between the second quarter and the second half; fits better than exp.
    """
    times, distance = copies(divergence, "max_chaos")
    middle, late = (rate(times, distance, *window, power=True) for window in ((1 / 4, 1 / 2), (1 / 2, 1)))
    _, exponential = rate(times, distance, 1 / 4, 1)
    _, power = rate(times, distance, 1 / 4, 1, power=True)
    holds = abs(late[0][0] - middle[0][0]) < 0.15 and power[0] > exponential[0]
    return (
        "equal, below 1",
        f"{middle[0][0]:.2f} {late[0][0]:.2f}",
        f"R² {power[0]:.4f}, exp. {exponential[0]:.4f}",
        bool(holds),
    )


def divergence_fit(divergence):
    """Distances follow d^2 = d0^2 + a t + b t^2, a random walk and a linear drift.

    R² of d over 0.99 for the most chaotic direction, a and b positive.
    """
    times, distance = copies(divergence, "max_chaos")
    a, b, quality = fit(times, distance[:, 0], divergence["settings"]["perturbation"])
    return "R² > 0.99, a, b > 0", f"a {a:.2e}, b {b:.2e}", f"R² {quality:.4f}", bool(quality > 0.99 and min(a, b) > 0)


def divergence_drift(divergence):
    """The distance keeps growing, slowly, when accuracy has converged.

    Slope of log d over the last 2/9 is positive for all chaotic, random chaotic and random copies.
    """
    rates = {kind: rate(*copies(divergence, kind), 7 / 9, 1)[0] for kind in ("max_chaos", "randn_chaos", "randn")}
    text = " ".join(f"{one.mean():.1e}" for one in rates.values())
    return (
        "> 0",
        text,
        f"least {min(one.min() for one in rates.values()):.1e}",
        bool(all((one > 0).all() for one in rates.values())),
    )


def divergence_order(divergence):
    """Directions of the global Lyapunov matrix order the growth: most chaotic > random > most convergent.

    Final distances, all draws.
    """
    ends = {kind: copies(divergence, kind)[1][-1] for kind in KINDS}
    low = [ends[kind].min() for kind in ("max_chaos", "randn")]
    high = [ends[kind].max() for kind in ("randn", "max_convergence")]
    holds = low[0] > high[0] and low[1] > high[1]
    return (
        "descending",
        " ".join(f"{ends[k].mean():.4f}" for k in ("max_chaos", "randn", "max_convergence")),
        "",
        bool(holds),
    )


def divergence_accuracy(divergence):
    """Copies far apart are equally good.

    Final train and test accuracies differ from the unperturbed run's by less than 0.005.
    """
    gap = np.array(divergence["accuracy"])
    gap = abs(gap[:, 1:] - gap[:, :1]).max()
    return "< 0.005", f"{gap:.4f}", "", bool(gap < 0.005)


def divergence_bounds(divergence):
    """The largest global Lyapunov exponent bounds the growth (of the linearised dynamics).

    No tangent vector, propagated in float64, grows by more; the most chaotic one by as much, to 0.1 %.
    """
    high = np.exp(divergence["exponents"][1] * divergence["times"][-1])
    growth = np.array(divergence["tangent"])[-1] / divergence["settings"]["perturbation"]
    error = abs(growth[divergence["kinds"].index("max_chaos")] / high - 1)
    return f"{high:.3f}", f"{growth.max():.3f}", f"{error:.1e}", bool(growth.max() < high * 1.001 and error < 0.001)


def subspace_similar(subspace):
    """Chaotic and non-chaotic directions of the start stay so more often than by chance.

    First to last checkpoint: like with like over 0.02 above the random baseline, crossed over 0.02 below.
    """
    similarity, baseline, _ = (np.array(one, dtype=float) for one in subspace["similarity"])
    same = [similarity[0, -1, k, k] - baseline[0, -1, k, k] for k in (0, 1)]
    crossed = [similarity[0, -1, k, 1 - k] - baseline[0, -1, k, 1 - k] for k in (0, 1)]
    measured = " ".join(f"{value:+.3f}" for value in (*same, *crossed))
    return "> 0 > 0 < 0 < 0", measured, "1 seed", bool(min(same) > 0.02 and max(crossed) < -0.02)


def delay_published_sgd(delay):
    """Figure 2a, SGD: the published accuracies at nine steps.

    All within 2.8 standard deviations of one new seed (t, n = 5, 95 %) with 0.01 for digitising.
    """
    return published(delay, "sgd")


def delay_published_pruned(delay):
    """Figure 2a, pruning from 10,000, 5,000, 2,000: the published accuracies after the start.

    The same criterion; measured: the largest deviation of each run.
    """
    return published(delay, "chaotic@10000", "chaotic@5000", "chaotic@2000")


CLAIMS = {
    "chaos_pruning": (
        chaotic_hurts,
        positive_survivable,
        positive_loss,
        negative_is_chaotic,
    ),
    "chaos_delay": (
        delay_ordering,
        delay_kink,
        delay_published_sgd,
        delay_published_pruned,
        delay_slow,
    ),
    "chaos_divergence": (
        divergence_exponential,
        divergence_polynomial,
        divergence_fit,
        divergence_drift,
        divergence_order,
        divergence_accuracy,
        divergence_bounds,
    ),
    "chaos_subspace": (subspace_similar,),
}
