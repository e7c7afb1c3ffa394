"""Claims of *Sparse Features*, judged by claims.py: see there how a claim is written.

Differences are taken seed by seed (all schedules of a seed see the same examples), over the seeds that survived both.
"""

import numpy as np

from criteria import need, resolved
from figures_sparse import chosen, cycle_levels, final


def median(values):
    return np.nanmedian(values) if np.isfinite(values).any() else np.nan


def trend(rows):
    """Does a number fall along `rows` [several, seeds], by over 2 s.e. of the paired differences, at each step?

    True, False if it rises somewhere by as much, else "not resolved"; and the differences in s.e., as text.
    """
    rows = np.array(rows, dtype=float)
    rows = rows[:, np.isfinite(rows).all(0)]
    if len(rows) < 2 or rows.shape[1] < 3:
        return "not resolved", f"{rows.shape[1]} seeds"
    falls = -np.diff(rows, axis=0)
    error = falls.std(1, ddof=1) / np.sqrt(rows.shape[1])
    score = falls.mean(1) / np.maximum(error, 1e-300)
    holds = False if (score < -2).any() else True if (score > 2).all() else "not resolved"
    return holds, f"{', '.join(f'{one:.1f}' for one in np.clip(score, -99, 99))} s.e., {rows.shape[1]} seeds"


def medians(groups, name):
    return ", ".join(f"{median(final(group, name)):.3g}" for group in groups)


def falling(groups, name, log=False):
    """A claim's outcome: the final values of the groups fall, seed by seed."""
    rows = [np.log(final(group, name)) if log else final(group, name) for group in groups]
    holds, error = trend(rows)
    return "falling", medians(groups, name), error, holds


def within(groups, name, published):
    """A claim's outcome: each published number of one run lies within the range of the seeds that survived."""
    inside = [
        np.nanmin(v) <= one <= np.nanmax(v) for v, one in zip((final(g, name) for g in groups), published, strict=True)
    ]
    ranges = ", ".join(f"{np.nanmin(final(g, name)):.2g} to {np.nanmax(final(g, name)):.2g}" for g in groups)
    return ", ".join(f"{one:.3g}" for one in published), ranges, "range of seeds", all(inside)


# ======================================================================================
# Diagonal linear networks
# ======================================================================================

PUBLISHED = {"steps": 100_001, "seed": 0}  # the published runs' random numbers are our seed's


def diagonal_reference(sparse_diagonal):
    """Small step, 0.25: the published run, whose random numbers are our first seed's.

    Train loss, test loss, rank and l0 equal to the printed digits (1 in the last).
    """
    need(sparse_diagonal, **PUBLISHED)
    (group,) = chosen(sparse_diagonal["sgd"], "published small")
    ours = [final(group, name)[0] for name in ("train", "test", "rank", "l0")]
    published = [1.42e-6, 3.53e-3, 200, 200]
    gap = np.abs(np.divide(ours, published) - 1)
    return "1.42e-06, 0.00353, 200, 200", ", ".join(f"{one:.3g}" for one in ours), "", bool((gap < 0.005).all())


def diagonal_published_test(sparse_diagonal):
    """Published test losses, decay at 10, 30 and 50 % (one run each).

    Each within the range of our surviving seeds.
    """
    need(sparse_diagonal, **PUBLISHED)
    return within(chosen(sparse_diagonal["sgd"], "published"), "test", (6.59e-4, 2.85e-4, 1.54e-4))


def diagonal_published_rank(sparse_diagonal):
    """Published ranks of the Jacobian (threshold 1e-15), decay at 10, 30 and 50 % (one run each).

    Each within the range of our surviving seeds.
    """
    need(sparse_diagonal, **PUBLISHED)
    return within(chosen(sparse_diagonal["sgd"], "published"), "rank", (109, 68, 58))


def diagonal_large_helps(sparse_diagonal):
    """SGD with a large step ends at a lower test loss than with a small one.

    0.282 until 10 % below 0.25 below 0.05, by over 2 s.e. of the log.
    """
    sgd = sparse_diagonal["sgd"]
    groups = [*chosen(sgd, "small"), *chosen(sgd, "published small"), chosen(sgd, "published")[0]]
    return falling(groups, "test", log=True)


def diagonal_rank(sparse_diagonal):
    """The longer the large step lasts, the lower the rank of the Jacobian (as published: divisors differ).

    Falls from 10 to 30 to 50 %, by over 2 s.e. each.
    """
    return falling(chosen(sparse_diagonal["sgd"], "published"), "rank")


def diagonal_test(sparse_diagonal):
    """The longer the large step lasts, the lower the test loss (as published: divisors differ).

    Falls from 10 to 30 to 50 %, by over 2 s.e. of the log each.
    """
    return falling(chosen(sparse_diagonal["sgd"], "published"), "test", log=True)


def diagonal_clean_test(sparse_diagonal):
    """Duration alone (0.27, then always divided by 4.8): the longer, the lower the test loss.

    Falls from 10 to 30 to 50 %, by over 2 s.e. of the log each.
    """
    return falling(chosen(sparse_diagonal["sgd"], "clean"), "test", log=True)


def diagonal_clean_rank(sparse_diagonal):
    """Duration alone (0.27, then always divided by 4.8): the longer, the lower the rank of the Jacobian.

    Falls from 10 to 30 to 50 %, by over 2 s.e. each.
    """
    return falling(chosen(sparse_diagonal["sgd"], "clean"), "rank")


def diagonal_gd(sparse_diagonal):
    """Large steps of GD don't help: it is the noise. Data B.

    Test loss of all three large GD runs above small-step GD, 90 % of the seeds of large-step SGD (by the rule) below.
    """
    small, *large = [final(group, "test")[0] for group in sparse_diagonal["gd_b"]]
    sgd = final(chosen(sparse_diagonal["sgd_b"], "rule")[0], "test")
    text = f"{np.nanmedian(sgd):.3g} < {small:.3g} < {', '.join(f'{one:.3g}' for one in large)}"
    return (
        "SGD < GD < large GD",
        text,
        f"{np.nanmax(sgd):.3g} worst",
        bool(min(large) > small > np.nanquantile(sgd, 0.9)),
    )


def diagonal_gd_published(sparse_diagonal):
    """Large-step GD on data B: the published l0 of u v at 10, 30 and 50 %, and the test loss 0.168 of the small step.

    Equal; test loss within 1 %.
    """
    need(sparse_diagonal, **PUBLISHED)
    small, *large = sparse_diagonal["gd_b"]
    counts = [int(final(group, "l0")[0]) for group in large]
    test = final(small, "test")[0]
    holds = counts == [86, 80, 78] and abs(test / 0.1682 - 1) < 0.01
    return "86, 80, 78; 0.168", f"{', '.join(map(str, counts))}; {test:.3f}", "", bool(holds)


def diagonal_divergence(sparse_diagonal):
    """The published step is tuned to one data set and stream; c / mean |grad h|^2 with c = 1.65 transfers.

    Over data sets and SGD seeds, more than half of the runs diverge with 0.282 and less than a quarter by the rule.
    """
    lost = [
        np.isnan(final(chosen(sparse_diagonal["transfer"], name)[0], "train")).mean() for name in ("published", "rule")
    ]
    return "> 50 %, < 25 %", f"{lost[0]:.0%}, {lost[1]:.0%}", "", bool(lost[0] > 0.5 and lost[1] < 0.25)


def diagonal_norm(sparse_diagonal):
    """SGD shrinks the norm of the parameters to that of the balanced sparse solution, sqrt(2 |theta*|_1) = 2.5399.

    Medians of all published large-step runs within 0.5 % of it.
    """
    need(sparse_diagonal, **PUBLISHED)
    norms = [median(final(group, "norm")) for group in chosen(sparse_diagonal["sgd"], "published")]
    return (
        "2.540",
        ", ".join(f"{one:.3f}" for one in norms),
        "",
        bool((np.abs(np.array(norms) / 2.5399 - 1) < 0.005).all()),
    )


def diagonal_sde_small(sparse_diagonal):
    """The effective SDE with the true noise is SGD, at the small step 0.05.

    Median test losses within 3 %.
    """
    ours = [median(final(group, "test")) for group in (
        chosen(sparse_diagonal["sgd"], "small")[0], chosen(sparse_diagonal["sde"], "true", gamma=0.05)[0])]  # fmt: skip
    return f"{ours[0]:.4f}", f"{ours[1]:.4f}", "", abs(ours[1] / ours[0] - 1) < 0.03


def diagonal_sde_large(sparse_diagonal):
    """The effective SDE with the true noise is SGD, at the large step 0.25 (our test; the paper has no simulation).

    Its median test loss lies within the 10 to 90 % range of the SGD seeds.
    """
    sgd = final(chosen(sparse_diagonal["sgd"], "published small")[0], "test")
    sde = median(final(chosen(sparse_diagonal["sde"], "true", gamma=0.25)[0], "test"))
    low, high = np.nanquantile(sgd, [0.1, 0.9])
    return f"{low:.2g} to {high:.2g}", f"{sde:.2g}", "", bool(low < sde < high)


def diagonal_sde_constant(sparse_diagonal):
    """Noise of a constant intensity delta explains it: rank falls with its duration, and no run diverges.

    delta = 0.04 off at 10, 30, 50 %: rank falls by over 2 s.e. each; none diverged.
    """
    groups = chosen(sparse_diagonal["sde"], "constant", delta=0.04)
    lost = sum(group["diverged"][-1] for group in groups)
    expected, measured, error, holds = falling(groups, "rank")
    return f"{expected}, 0", f"{measured}; {lost} diverged", error, holds if lost == 0 else False


def surface_published(sparse_diagonal):
    """The small problem: published train and test losses of gradient flow and GD, and SGD's far lower test loss.

    Flow within 1 %, GD within 2 % (chaotic), SGD's test loss (our seed 2 is the published one) below 1e-6.
    """
    need(sparse_diagonal, **PUBLISHED)
    ends = {name: [float(v[s]) for v in sparse_diagonal["surface"]["final"][name]] for name, s in (
        ("flow", 0), ("gd", 0), ("sgd", sparse_diagonal["surface"]["shown"]))}  # fmt: skip
    gaps = [max(abs(a / b - 1) for a, b in zip(ends[name], paper, strict=True)) for name, paper in (
        ("flow", (4.90e-6, 0.0149)), ("gd", (1.64e-10, 0.1265)))]  # fmt: skip
    text = ", ".join(f"{ends[name][1]:.3g}" for name in ends)
    return (
        "0.0149, 0.1265, 4e-08",
        text,
        f"{max(gaps):.1%}",
        bool(gaps[0] < 0.01 and gaps[1] < 0.02 and ends["sgd"][1] < 1e-6),
    )


def surface_cycle(sparse_diagonal):
    """The loss stabilises: GD on (x^2 - y)^2 / 4 ends on the 2-cycle of the closed form for 1 < eta y < sqrt(5) - 1.

    Both levels within 1e-5; below 1 the loss vanishes.
    """
    a, losses = np.array(sparse_diagonal["cycle"]["a"]), np.array(sparse_diagonal["cycle"]["losses"], float)
    gap = np.abs(losses[a > 1] / cycle_levels(a[a > 1]).T - 1).max()
    return "0", f"{gap:.0e}", f"{(a > 1).sum()} levels", bool(gap < 1e-5 and losses[a < 1].max() < 1e-20)


# ======================================================================================
# 1-D regression
# ======================================================================================


def regression_rank(sparse_regression):
    """Published ranks of the Jacobian: short warm-up, long, and over-regularised (one run each).

    Each within the range of our seeds.
    """
    need(sparse_regression, steps=31_623)
    return within(sparse_regression["groups"][:3], "rank", (85, 19, 16))


def regression_sparsity(sparse_regression):
    """Published feature sparsity of the same three runs.

    Each within the range of our seeds.
    """
    need(sparse_regression, steps=31_623)
    return within(sparse_regression["groups"][:3], "sparsity_1", (0.22, 0.064, 0.028))


def regression_large(sparse_regression):
    """The long large step (peak 0.02 until 50 %) leads to simpler functions than the short small one.

    Lower rank in every seed.
    """
    short, long = (final(group, "rank") for group in sparse_regression["groups"][:2])
    return "every seed", f"{(long < short).sum()} of {len(short)}", "", bool((long < short).all())


def regression_overdone(sparse_regression):
    """More of it over-regularises: peak 0.025 leaves more runs with points unfitted than peak 0.02.

    Seeds with training loss over 0.05, more by 2 s.e. of the difference of two proportions.
    """
    stuck = [np.mean(~(final(group, "train") < 0.05)) for group in sparse_regression["groups"][1:3]]
    error = np.sqrt(sum(p * (1 - p) for p in stuck) / len(sparse_regression["groups"][1]["final"]["train"]))
    return "more", f"{stuck[0]:.0%}, {stuck[1]:.0%}", f"{error:.0%}", resolved(stuck[1] - stuck[0], error)


def regression_peak(sparse_regression):
    """At the same duration (50 %) and divisor the height of the step makes the difference.

    Rank at peak 0.02 below rank at 0.00023, by over 2 s.e.
    """
    groups = sparse_regression["groups"]
    return falling([*chosen(groups, "clean low", decay=0.5), *chosen(groups, "clean", decay=0.5)], "rank")


def regression_duration(sparse_regression):
    """Duration alone, at the large peak 0.02: the longer, the lower the rank.

    Falls from 10 to 30 to 50 %, by over 2 s.e. each.
    """
    return falling(chosen(sparse_regression["groups"], "clean")[1:], "rank")


def regression_duration_low(sparse_regression):
    """Duration alone, at the published short run's peak 0.00023: the longer, the lower the rank.

    Falls from 2 to 50 %, by over 2 s.e.
    """
    return falling(chosen(sparse_regression["groups"], "clean low"), "rank")


# ======================================================================================
# Teacher-student
# ======================================================================================


def two_layers_large(sparse_relu):
    """Two layers: large steps lead to a lower rank of the Jacobian.

    From the small step to each seed's own largest stable one (until 50 %), by over 2 s.e.
    """
    return falling([*chosen(sparse_relu["two"], "small"), *chosen(sparse_relu["two"], "edge", decay=0.5)], "rank")


def two_layers_sparse(sparse_relu):
    """Two layers: large steps lead to sparser features.

    Feature sparsity from the small step to each seed's own largest stable one (until 50 %), by over 2 s.e.
    """
    return falling([*chosen(sparse_relu["two"], "small"), *chosen(sparse_relu["two"], "edge", decay=0.5)], "sparsity_1")


def two_layers_duration(sparse_relu):
    """Two layers, duration alone (same step and divisor): the longer, the lower the rank.

    Falls from 10 to 30 to 50 %, by over 2 s.e. each.
    """
    return falling(chosen(sparse_relu["two"], "edge"), "rank")


def two_layers_test(sparse_relu):
    """Two layers: large steps lead to a lower test loss.

    From the small step to each seed's own largest stable one (until 50 %), by over 2 s.e. of the log.
    """
    return falling(
        [*chosen(sparse_relu["two"], "small"), *chosen(sparse_relu["two"], "edge", decay=0.5)], "test", log=True
    )


def three_layers_rank(sparse_relu):
    """Three layers, as published (the peak grows with the duration): rank falls from small to large, short to long.

    From the small step to 10, 30 and 50 %, by over 2 s.e. each.
    """
    return falling(chosen(sparse_relu["three"], "small", "published"), "rank")


def three_layers_clean(sparse_relu):
    """Three layers, duration alone (same peak and divisor): the longer, the lower the rank.

    Falls from 10 to 30 to 50 %, by over 2 s.e. each.
    """
    return falling(chosen(sparse_relu["three"], "clean"), "rank")


# ======================================================================================
# Deep networks
# ======================================================================================


def deep_trend(result, *schedules, key="sparsity"):
    """Mean over the deeper half of the blocks (or test error) at the end, in order of duration, seeds apart."""
    rows = {}
    for run in result["runs"]:
        if run["schedule"] in schedules and run.get("step") and run["diverged_at"] is None:
            value = run[key][-1] if key == "test_accuracy" else np.mean(run[key][-1][len(run[key][-1]) // 2 :])
            rows.setdefault(run["decay"], {})[run["seed"]] = 1 - value if key == "test_accuracy" else value
    if not rows:
        return "falling", "", "no run is left", "not resolved"
    seeds = set.intersection(*(set(row) for row in rows.values()))
    values = [[rows[decay][seed] for seed in sorted(seeds)] for decay in sorted(rows)]
    holds, error = trend(values)
    text = ", ".join(f"{np.mean(list(rows[decay].values())):.3f}" for decay in sorted(rows))
    return "falling", text, error if len(seeds) > 1 else "1 seed", holds


def deep_sparsity(sparse_deep):
    """Deep networks: the larger and longer the step, the sparser the features of the deeper blocks.

    Mean over the deeper half of the blocks falls from the small step to 10, 30, 50 %, by over 2 s.e. of the seeds each.
    """
    return deep_trend(sparse_deep, "small", "published")


def deep_clean(sparse_deep):
    """Deep networks, duration alone (same peak and divisor): the longer, the sparser the features of the deeper blocks.

    Mean over the deeper half of the blocks falls from 10 to 30 to 50 %, by over 2 s.e. of the seeds each.
    """
    return deep_trend(sparse_deep, "clean")


def deep_error(sparse_deep):
    """Deep networks: the larger and longer the step, the lower the test error.

    Falls from the small step to 10, 30, 50 %, by over 2 s.e. of the seeds each.
    """
    return deep_trend(sparse_deep, "small", "published", key="test_accuracy")


CLAIMS = {
    "sparse_diagonal": (
        diagonal_reference, diagonal_published_test, diagonal_published_rank, diagonal_large_helps, diagonal_rank,
        diagonal_test, diagonal_clean_test, diagonal_clean_rank, diagonal_gd, diagonal_gd_published,
        diagonal_divergence, diagonal_norm, diagonal_sde_small, diagonal_sde_large, diagonal_sde_constant,
    ),
    "sparse_surface": (surface_published, surface_cycle),
    "sparse_regression": (
        regression_rank, regression_sparsity, regression_large, regression_overdone, regression_peak,
        regression_duration, regression_duration_low,
    ),
    "sparse_relu": (
        two_layers_large, two_layers_sparse, two_layers_duration, two_layers_test, three_layers_rank,
        three_layers_clean,
    ),
    "sparse_deep": (deep_sparsity, deep_clean, deep_error),
}  # fmt: skip
