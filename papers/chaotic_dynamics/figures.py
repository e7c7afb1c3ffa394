"""Figures of *Chaotic Dynamics*. Each draw function's docstring is the figure's caption."""

import re
from typing import NamedTuple

import numpy as np

from papers.chaotic_dynamics import published
from papers.chaotic_dynamics.readings import (
    Divergence,
    Pruning,
    Subspace,
    curve,
    describe,
    growth,
    last_epoch,
    walk_and_drift,
)
from papers.plots import (
    BLUE,
    LINES,
    RED,
    WIDTH,
    Figure,
    band,
    canvas,
    legend_below,
    mark_published,
    note,
    plt,
    shades,
    thousands,
)
from papers.result import counted


class Look(NamedTuple):
    """How a variant or a kind of copy looks, told apart in grey too."""

    color: str
    line: str | tuple
    marker: str
    label: str


DASH_DOTS = (0, (5, 1, 1, 1, 1, 1))
VARIANTS = {
    "sgd": Look("k", "-", "o", "SGD"),
    "chaotic@10000": Look(BLUE, "--", "s", "pruned from 10,000"),
    "chaotic@5000": Look("#2a9d8f", "-.", "D", "pruned from 5,000"),
    "chaotic@2000": Look("#e9a03b", DASH_DOTS, "^", "pruned from 2,000"),
    "chaotic@0": Look(RED, ":", "v", "chaotic pruned from 0"),
    "pos@0": Look("#8e9aaf", "--", "P", "positive pruned from 0"),
    "neg@0": Look("#6d597a", "-.", "X", "negative pruned from 0"),
}
KINDS = {
    "max_chaos": Look(RED, "-", "o", "most chaotic"),
    "randn_chaos": Look("#e9a03b", "--", "s", "random chaotic"),
    "randn": Look("k", "-.", "D", "random"),
    "randn_convergence": Look("#2a9d8f", DASH_DOTS, "^", "random convergent"),
    "max_convergence": Look(BLUE, ":", "v", "most convergent"),
}


def look_of(name: str) -> Look:
    """The look of a variant, also of one that isn't the paper's."""
    return VARIANTS.get(name, Look("0.4", "-.", "*", name.replace("@", " pruned from ")))


def draw_band(axes, pruning: Pruning, name: str, key: str, smooth: int, label: str | None = None) -> None:
    """Mean over seeds as a line, plus and minus one standard deviation as a band."""
    look = look_of(name)
    steps, values = curve(pruning, name, key, smooth)
    mean = values.mean(1)
    spread = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))
    axes.plot(steps, mean, color=look.color, ls=look.line, label=label or look.label)
    band(axes, steps, mean, spread, look.color)


def draw_chance(axes, pruning: Pruning) -> None:
    axes.axhline(pruning.largest_class, color="0.5", lw=0.8, ls=(0, (1, 3)))
    place = (1, pruning.largest_class)
    words = "largest class"
    axes.annotate(words, place, xycoords=("axes fraction", "data"), ha="right", va="top", color="0.35")


# ======================================================================================
# Pruning
# ======================================================================================


def draw_pruning(readings: dict, width: int | None = None):
    """Without the chaotic directions (negative curvature) the network hardly learns; without the positive ones the
    accuracy survives, though not the loss. Mean over seeds, band: standard deviation. Kept: share of the squared
    gradient that pruning leaves (SGD: would leave); dotted: what it would leave of a gradient of random direction.
    Curvature: largest eigenvalue of the mini-batch Hessian, thin: the most negative one, sign changed; 2 / learning
    rate, above which positive curvature would be chaotic too, lies far above the axis. Other data sets, networks
    and settings are drawn below, accuracy only."""
    main = readings.get("pruning")
    if main is None:
        return None
    others = [readings[name] for name in sorted(readings) if name != "pruning"]
    rows = 2 + -(-len(others) // 2)
    figure, axes = canvas(2, rows=rows, height=2.6)
    draw_main_pruning(axes, main)
    panels = axes[2:].ravel()
    for panel, other in zip(panels, others, strict=False):
        draw_accuracies(panel, other)
        panel.set_title(other.about)
    for panel in panels[len(others) :]:
        panel.set_axis_off()
    legend_below(figure, axes, 4)
    return figure


def own_variants(pruning: Pruning) -> list[str]:
    """Variants with numbers of their own: a copy would lie on its original."""
    return [name for name, variant in pruning.variants.items() if not variant.same_as]


def draw_accuracies(axes, pruning: Pruning) -> None:
    smooth = 5 if pruning.steps >= 5000 else 1
    for name in own_variants(pruning):
        draw_band(axes, pruning, name, "accuracy", smooth)
    draw_chance(axes, pruning)
    thousands(axes.xaxis)
    axes.set(ylim=(0, 1), xlabel="step", ylabel="training batch accuracy")


def draw_main_pruning(axes, pruning: Pruning) -> None:
    smooth = 5 if pruning.steps >= 5000 else 1
    draw_accuracies(axes[0, 0], pruning)
    axes[0, 0].set_title(f"Without the chaotic directions it hardly learns\n({pruning.about}; next three, too)")
    for panel, key in ((axes[0, 1], "loss"), (axes[1, 0], "kept")):
        for name in own_variants(pruning):
            draw_band(panel, pruning, name, key, smooth, label="_")
    axes[0, 1].set(ylabel="training batch loss", title="The positive ones carry the loss")
    axes[1, 0].set(ylabel=r"kept share of $|g|^2$", ylim=(0, 1), title="Pruning positive ones keeps little")
    if pruning.settings["architecture"] == "mlp" and pruning.settings["batch_size"] == 8:
        directions = 370 - 34  # of 370 coordinates in which a batch of 8 has curvature, those that aren't flat
        negative = np.nanmean(pruning.variants["sgd"].negative)
        axes[1, 0].axhline(1 - negative / directions, color="0.5", lw=0.8, ls=(0, (1, 3)))
    for name in own_variants(pruning):
        look = look_of(name)
        steps, high = curve(pruning, name, "eigenvalue_max", smooth)
        _, low = curve(pruning, name, "eigenvalue_min", smooth)
        axes[1, 1].plot(steps, high.mean(1), color=look.color, ls=look.line)
        axes[1, 1].plot(steps, -low.mean(1), color=look.color, ls=look.line, lw=0.7)
    limit = 2 / pruning.settings["learning_rate"]
    axes[1, 1].set(
        ylabel=r"$\lambda_{max}$, thin: $-\lambda_{min}$", title=f"Curvature stays far below 2/lr = {limit:,.0f}"
    )
    for panel in (axes[0, 1], axes[1, 0], axes[1, 1]):
        panel.set_xlabel("step")
        thousands(panel.xaxis)


def draw_delay(readings: dict, width: int | None = None):
    """The paper's figure 2a with seeds. Left: accuracy when pruning starts at the dotted lines (200-step means;
    mean over seeds, band: standard deviation); stars: published, one run each. Right: accuracy in the last epoch
    against the first pruned step (never: SGD), circles: seeds, bars: standard deviation; below: what pruning keeps
    of the gradient."""
    delay = readings.get("delay")
    if delay is None:
        return None
    figure = plt.figure(figsize=(WIDTH, 4.6))
    grid = figure.add_gridspec(2, 2, width_ratios=[1.6, 1])
    left, above, below = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    as_published = all(delay.settings.get(name) == value for name, value in published.SETTINGS.items())
    smooth = 2 if delay.steps >= 5000 else 1
    for name in delay.variants:
        draw_band(left, delay, name, "accuracy", smooth)
        draw_band(below, delay, name, "kept", 5 * smooth if smooth > 1 else 1)
        start = delay.variants[name].first_step
        if start:
            left.axvline(start, color=look_of(name).color, lw=0.8, ls=":")
        if as_published and name in published.ACCURACY:
            after = np.array(published.STEPS) > start
            steps, values = np.array(published.STEPS)[after], np.array(published.ACCURACY[name])[after]
            left.plot(steps, values, color=look_of(name).color, ls=look_of(name).line, lw=0.6)
            mark_published(left, steps, values, "published" if name == "sgd" else None, look_of(name).color)
    draw_chance(left, delay)
    left.set(xlabel="step", ylabel="training batch accuracy", ylim=(0, 1))
    left.set_title(f"The earlier pruning starts, the more it hurts\n({delay.about})")
    below.set(xlabel="step", ylabel=r"kept share of $|g|^2$", ylim=(0, 1))
    below.set_title("What pruning leaves of the gradient")
    draw_ends(above, delay, as_published)
    for panel in (left, above, below):
        thousands(panel.xaxis)
    legend_below(figure, [left], 3)
    return figure


def draw_ends(axes, delay: Pruning, as_published: bool) -> None:
    names = [*delay.delayed(), "sgd"]
    starts = [delay.variants[name].first_step for name in names[:-1]] + [delay.steps]
    ends = np.array([last_epoch(delay, name) for name in names])
    spread = ends.std(1, ddof=1) if ends.shape[1] > 1 else None
    axes.plot(starts, ends, "o", color="0.55", ms=3.5, mfc="none")
    axes.errorbar(starts, ends.mean(1), spread, color="k", marker="o", ms=5, lw=1.2, capsize=3)
    if as_published:
        paper = [published.LAST_EPOCH.get(name, np.nan) for name in names]
        mark_published(axes, starts, paper)
    axes.set(xlabel="first pruned step (last: SGD)", ylabel="accuracy, last epoch", ylim=(0, 1))
    axes.set_title("The later, the better it ends")


# ======================================================================================
# Perturbed copies
# ======================================================================================


def draw_divergence(readings: dict, width: int | None = None):
    """Perturbed copies of a run on the same batches. Above left: distance along directions of the global Lyapunov
    matrix (band: all draws of the first seed), thin: linearised dynamics; grey dashes: growth at the largest Lyapunov
    exponent. Above right: local power d log d / d log t: flat for a power law (0.5: random walk), rising with t for an
    exponential (dotted). Below left: the paper's fit d^2 = d0^2 + a t + b t^2 (dotted). Below right: early growth of
    copies with smaller perturbations, relative to their start (of the shorter runs with five seeds, where the full run
    has none), or, where they were not run, of the most chaotic copy."""
    divergence = main_result(readings, "divergence")
    figure, axes = canvas(2, rows=2, height=2.8)
    copies = divergence.seeds[0]
    draw_distances(axes[0, 0], divergence, copies)
    draw_powers(axes[0, 1], copies)
    draw_fits(axes[1, 0], divergence, copies)
    with_small = [one for one in (divergence, *readings.values()) if one.small is not None]
    draw_early(axes[1, 1], with_small[0] if with_small else divergence, copies)
    seeds = counted(len(divergence.seeds), "seed")
    title = f"{describe(divergence.settings)}, {seeds}, perturbation {divergence.perturbation:g}"
    legend_below(figure, [axes[0, 0]], 5, title)
    return figure


def draw_distances(axes, divergence: Divergence, copies) -> None:
    for kind, look in KINDS.items():
        distance = copies.of_kind(kind)
        if not distance.shape[1]:
            continue
        axes.plot(copies.times, distance.mean(1), color=look.color, ls=look.line, label=look.label)
        axes.fill_between(copies.times, distance.min(1), distance.max(1), color=look.color, alpha=0.2, lw=0)
        axes.plot(copies.times, copies.of_kind(kind, "tangent").mean(1), color=look.color, lw=0.6)
    bound = divergence.perturbation * np.exp(copies.exponents[1] * copies.times)
    axes.plot(copies.times, bound, color="0.5", lw=0.9, ls=(0, (6, 2)))
    axes.set(xlabel="step t", ylabel="distance d to the unperturbed run", yscale="log")
    axes.set_ylim(copies.distance.min() / 2, 3 * copies.tangent.max())
    axes.set_title("How far copies part, by direction")
    thousands(axes.xaxis)


def draw_powers(axes, copies) -> None:
    end = copies.times[-1]
    edges = np.geomspace(max(end / 180, 1), end, 13)
    middles = np.sqrt(edges[1:] * edges[:-1])
    for kind, look in KINDS.items():
        distance = copies.of_kind(kind)
        if kind == "max_convergence" or not distance.shape[1]:  # it closes in on zero: no power
            continue
        logs = np.log([np.interp(edges, copies.times, one) for one in distance.T])
        powers = np.diff(logs) / np.diff(np.log(edges))
        axes.plot(middles, powers.mean(0), color=look.color, ls=look.line, marker=look.marker, ms=3.5)
    early = growth(copies.times, copies.of_kind("max_chaos"), 0, 1 / 36)[0][0]
    if np.isfinite(early):
        window = (copies.times > 0) & (copies.times < end / 9)
        axes.plot(copies.times[window], early * copies.times[window], "k:", lw=1.2)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.axhline(0.5, color="0.5", lw=0.8, ls=(0, (1, 3)))
    note(axes, "random walk 0.5", (0.02, 0.5), va="bottom", transform=axes.get_yaxis_transform())
    axes.set(
        xlabel="step t", ylabel="d log d / d log t", xscale="log", title="Flat is a power law; dotted: exponential"
    )


def draw_fits(axes, divergence: Divergence, copies) -> None:
    for kind in ("max_chaos", "randn_chaos", "randn"):
        distance = copies.of_kind(kind)
        if not distance.shape[1]:
            continue
        squared = (distance**2).mean(1)
        fit = walk_and_drift(copies.times, np.sqrt(squared), divergence.perturbation)
        look = KINDS[kind]
        axes.plot(copies.times, squared, color=look.color, ls=look.line, label=f"R² {fit.quality:.3f}")
        axes.plot(copies.times, fit.model**2, "k:", lw=1.2)
    axes.set(xlabel="step t", ylabel="squared distance d²", yscale="log")
    axes.set_title("Fits of a random walk and a drift (dotted)")
    thousands(axes.xaxis)
    axes.legend(loc="upper left", bbox_to_anchor=(0.45, 0.75), ncols=1)


def draw_early(axes, divergence: Divergence, copies) -> None:
    if divergence.small is not None:
        small = divergence.small
        for k, color in enumerate(shades(len(small.perturbations))):
            relative = small.distance[:, k] / small.perturbations[k]
            style = {"color": color, "ls": LINES[k % len(LINES)]}
            axes.semilogy(small.times, relative.mean(0), **style, label=f"{small.perturbations[k]:g}")
        axes.legend(title="perturbation", loc="upper left")
    else:
        early = copies.times <= copies.times[-1] / 6
        relative = copies.of_kind("max_chaos")[early] / divergence.perturbation
        axes.semilogy(copies.times[early], relative, color=RED)
    axes.set(xlabel="step t", ylabel="d / perturbation", title="Straight would be exponential")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    thousands(axes.xaxis)


# ======================================================================================
# Subspaces
# ======================================================================================


class Match(NamedTuple):
    """Which subspace of the first checkpoint with which of the second."""

    first: int
    second: int
    label: str
    color: str
    marker: str


MATCHES = (
    Match(0, 0, "chaotic with chaotic", RED, "o"),
    Match(1, 1, "convergent with convergent", BLUE, "s"),
    Match(0, 1, "chaotic with convergent", "#e9a03b", "^"),
)


def draw_subspace(readings: dict, width: int | None = None):
    """Chaotic directions stay chaotic more often than by chance. Above left: global Lyapunov exponents after so
    many steps. Else: similarity |V'W|^2 / smaller dimension of the subspaces at one step (dotted line) with those
    at the others, less that of random subspaces of the same dimensions; open: the same of randomly chosen
    eigenvectors. Lines: mean over seeds."""
    subspace = main_result(readings, "subspace")
    figure, axes = canvas(2, rows=2, height=2.7)
    first = subspace.seeds[0]
    draw_spectra(axes[0, 0], first)
    times = list(first.times)
    middle = min(range(len(times)), key=lambda place: abs(times[place] - 10_000))
    anchors = list(dict.fromkeys([0, middle, len(times) - 1]))
    panels = (axes[0, 1], axes[1, 0], axes[1, 1])
    for panel, anchor in zip(panels, anchors, strict=False):
        draw_similarity(panel, subspace, anchor)
    for panel in panels[len(anchors) :]:
        panel.set_axis_off()
    about = f"{describe(subspace.settings)}, {counted(len(subspace.seeds), 'seed')}"
    legend_below(figure, [axes[0, 1]], 3, about)
    return figure


def draw_spectra(axes, spaces) -> None:
    share = spaces.ranks / max(spaces.ranks.max(), 1)
    for k, color in enumerate(shades(len(spaces.times))):
        style = {"color": color, "ls": LINES[k % len(LINES)], "lw": 1.2}
        axes.plot(share, spaces.exponents[k], **style, label=f"{spaces.times[k]:,.0f} steps")
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.set(xlabel="rank / number of parameters", ylabel="exponent per step", title=title_of_spectra(spaces))
    axes.legend(loc="lower right")


def title_of_spectra(spaces) -> str:
    """The share of the directions that are called chaotic: at the first and last checkpoint, and at most."""
    shares = spaces.dimensions[:, 0] / max(spaces.ranks.max(), 1)
    most = f"up to {shares.max():.0%}, " if shares.max() > max(shares[0], shares[-1]) else ""
    return f"Chaotic directions: {shares[0]:.0%} at first, {most}{shares[-1]:.0%} at the end"


def draw_similarity(axes, subspace: Subspace, anchor: int) -> None:
    times = subspace.seeds[0].times
    places = range(len(times))
    for match in MATCHES:
        above, control = [], []
        for spaces in subspace.seeds:
            index = (anchor, slice(None), match.first, match.second)
            above.append(spaces.similarity[index] - spaces.baseline[index])
            control.append(spaces.control[index] - spaces.baseline[index])
        axes.plot(places, np.mean(above, axis=0), color=match.color, marker=match.marker, ms=4.5, label=match.label)
        axes.plot(places, np.mean(control, axis=0), match.marker, color=match.color, mfc="w", ms=3.5)
    axes.axhline(0, color="k", lw=0.8)
    axes.axvline(anchor, color="0.5", lw=0.8, ls=":")
    axes.set_xticks(places, [f"{time:,.0f}" for time in times])
    axes.set(xlabel="step", ylabel="similarity above chance")
    axes.set_title(f"Similarity to the subspaces of step {times[anchor]:,.0f}")


def main_result(readings: dict, name: str):
    """The paper's own result, or the first of the others."""
    return readings[name] if name in readings else readings[sorted(readings)[0]]


def is_result_of(experiment: str):
    def matching(name: str) -> bool:
        return re.fullmatch(rf"{experiment}(_\w+)?", name) is not None

    return matching


FIGURES = {
    "chaos_pruning": Figure(draw_pruning, matching=is_result_of("pruning"), wants=("pruning",)),
    "chaos_delay": Figure(draw_delay, matching=is_result_of("delay"), wants=("delay",)),
    "chaos_divergence": Figure(draw_divergence, matching=is_result_of("divergence"), wants=("divergence",)),
    "chaos_subspace": Figure(draw_subspace, matching=is_result_of("subspace"), wants=("subspace",)),
}
