"""Figures of *Sparse Features*. Each draw function's docstring is the figure's caption."""

import re
from typing import NamedTuple

import numpy as np

from papers.plots import (
    BLUE,
    PUBLISHED,
    RED,
    WIDTH,
    Figure,
    canvas,
    legend_below,
    legend_under,
    mark_published,
    note,
    plain_ticks,
    plt,
    thousands,
)
from papers.sparse_features import published
from papers.sparse_features.readings import (
    Deep,
    Diagonal,
    Group,
    Regression,
    Relu,
    chosen,
    cycle_levels,
    single,
)


class Look(NamedTuple):
    color: str
    line: str
    marker: str


DURATIONS = {
    0.1: Look("#e9a03b", "-", "^"),
    0.3: Look("#2a9d8f", "-", "s"),
    0.5: Look("#1b4965", "-", "o"),
}  # light: short
THROUGHOUT = {"small": Look("k", ":", "D"), "published small": Look("0.45", "--", "v")}
KINDS = {  # against the duration
    "published": Look("k", "-", "o"),
    "clean": Look(RED, "--", "s"),
    "constant": Look(BLUE, ":", "^"),
    "clean low": Look("#8e9aaf", "-.", "v"),
    "rule": Look("#2a9d8f", "-.", "D"),
}


def look_of(group: Group) -> Look:
    if group.name in THROUGHOUT:
        return THROUGHOUT[group.name]
    return DURATIONS.get(group.decay, Look("0.3", "-", "X"))


def words_of(group: Group) -> str:
    """Step and duration, and how many seeds have diverged."""
    step = "own step" if group.step is None else f"{group.step:.3g}"
    words = f"{step} until {group.decay:.0%}" if group.decay else f"{step} throughout"
    if group.diverged:
        words += f" ({group.diverged} of {group.seeds} diverged)"
    return words


def draw_curve(axes, times, group: Group, name: str, label: str | None = None, look: Look | None = None) -> None:
    """Median over seeds; 10 and 90 % as a band where the result keeps them."""
    look = look or look_of(group)
    rows = group.curves[name]
    middle = rows[:, rows.shape[1] // 2]
    style = {"color": look.color, "ls": look.line, "marker": look.marker, "ms": 3.5, "markevery": 0.15, "lw": 1.2}
    axes.plot(times, middle, **style, label=label or words_of(group))
    if rows.shape[1] == 3:
        axes.fill_between(times, rows[:, 0], rows[:, 2], color=look.color, alpha=0.15, lw=0)


def draw_durations(axes, groups: list[Group], name: str, kind: str, label: str) -> None:
    """Final value against the share of the run before the decay: medians, bars from 10 to 90 % of the seeds."""
    look = KINDS[kind]
    rows = np.array([group.quantiles(name) for group in groups]).T
    shares = np.array([group.decay for group in groups]) + 0.006 * (list(KINDS).index(kind) - 2)
    bars = np.abs(rows[[0, 2]] - rows[1])
    lost = sum(group.diverged for group in groups)
    if lost:
        label += f" ({lost} of {sum(group.seeds for group in groups)} lost)"
    style = {"color": look.color, "ls": look.line, "marker": look.marker, "ms": 5, "lw": 1.2, "capsize": 3}
    axes.errorbar(shares, rows[1], bars, **style, label=label)
    axes.set_xlabel("large step until (share of the run)")


# ======================================================================================
# Diagonal linear networks
# ======================================================================================


def draw_diagonal(diagonal: Diagonal):
    """Diagonal linear networks: large steps of SGD with one example a step find sparse solutions. First row: SGD on
    data A, median over seeds and 10 to 90 %. Second row: at the end, against the duration of the large step, as
    published (divisors differ), with one divisor, and of an SDE with noise of constant intensity ("lost": runs that
    diverged). Third row: gradient descent and SGD on data B, where full-batch large steps don't help; the effective
    SDE beside SGD; shares of runs that diverge with the published step on other data sets, and by the rule c =
    1.65. Stars: published, one run each."""
    figure, axes = canvas(3, rows=3, height=3.0)
    draw_sgd_curves(axes[0], diagonal)
    draw_sgd_durations(axes[1], diagonal)
    draw_gradient_descent(axes[2, 0], diagonal)
    draw_sde(axes[2, 1], diagonal)
    draw_transfer(axes[2, 2], diagonal)
    return figure


def is_published(diagonal: Diagonal) -> bool:
    return diagonal.steps == published.DIAGONAL_STEPS


def draw_sgd_curves(panels, diagonal: Diagonal) -> None:
    for group in chosen(diagonal.sgd, "small", "published small", "published"):
        for panel, name in zip(panels, ("train", "test", "rank"), strict=True):
            times = diagonal.rank_times if name == "rank" else diagonal.times
            draw_curve(panel, times / 1000, group, name, words_of(group).split(" (")[0])
    panels[0].set(
        ylabel="training loss", yscale="log", ylim=(1e-8, 1), title="The loss stays up\nuntil the step is cut"
    )
    panels[1].set(ylabel="test loss", yscale="log", title="Then the test loss is\nfar lower")
    panels[2].set(ylabel="rank of the Jacobian", ylim=(0, 210), title="The rank along\ntraining")
    if is_published(diagonal):
        steps = np.array(list(published.DIAGONAL_RANK_CURVE)) / 1000
        mark_published(panels[2], steps, list(published.DIAGONAL_RANK_CURVE.values()))
        ends = [published.DIAGONAL_SMALL["test"], *published.DIAGONAL_TEST]
        looks = [THROUGHOUT["published small"], *DURATIONS.values()]
        for k, (value, look) in enumerate(zip(ends, looks, strict=True)):
            mark_published(panels[1], [99], [value], None if k else "published", look.color)
    for panel in panels:
        panel.set_xlabel("step / 1,000")
    legend_under(panels[1], "step", columns=2)


def draw_sgd_durations(panels, diagonal: Diagonal) -> None:
    names = ("test", "rank", "l0")
    for panel, name in zip(panels, names, strict=True):
        draw_durations(panel, chosen(diagonal.sgd, "published"), name, "published", "SGD 0.282, as published")
        draw_durations(panel, chosen(diagonal.sgd, "clean"), name, "clean", "SGD 0.27, one divisor")
        draw_durations(panel, chosen(diagonal.sde, "constant", delta=0.04), name, "constant", "SDE, constant noise")
    panels[0].set(ylabel="test loss at the end", yscale="log", title="Test loss: no order\nas published")
    panels[1].set(ylabel="rank of the Jacobian", ylim=(0, 210), title="Rank by the duration\nof the large step")
    panels[2].set(ylabel="|u v| above 1e-50", ylim=(0, 210), title="Entries that are\nalive at the end")
    if is_published(diagonal):
        papers = (published.DIAGONAL_TEST, published.DIAGONAL_RANK, published.DIAGONAL_L0)
        for panel, values in zip(panels, papers, strict=True):
            mark_published(panel, published.DURATIONS, values, None)
    legend_under(panels[1])


def draw_gradient_descent(axes, diagonal: Diagonal) -> None:
    for group in diagonal.gd_b:
        look = DURATIONS[group.decay]._replace(line="--") if group.decay in DURATIONS else Look("k", ":", "D")
        middle = group.curves["test"][:, group.curves["test"].shape[1] // 2]
        style = {"color": look.color, "ls": look.line, "marker": look.marker, "ms": 3.5, "markevery": 0.2, "lw": 1.2}
        axes.plot(diagonal.times / 1000, middle, **style, label=f"GD, {words_of(group)}")
    rule = single(diagonal.sgd_b, "rule")
    draw_curve(axes, diagonal.times / 1000, rule, "test", "SGD, by the rule", Look(RED, "-", "o"))
    if is_published(diagonal):
        mark_published(axes, [99] * 4, [published.GD_SMALL_TEST, *published.GD_LARGE_TEST], None)
    axes.set(ylabel="test loss, data B", yscale="log", xlabel="step / 1,000")
    axes.set_title("Without noise large\nsteps don't help")
    plain_ticks(axes.yaxis)
    legend_under(axes)


def draw_sde(axes, diagonal: Diagonal) -> None:
    rows = (
        (single(diagonal.sgd, "published small"), "SGD 0.25", Look("0.45", "--", "v")),
        (single(diagonal.sde, "true", gamma=0.25), "SDE 0.25, SGD's noise", Look("k", "-", "D")),
        (single(diagonal.sgd, "published", decay=0.5), "SGD 0.282 until 50%", Look("#1b4965", "--", "o")),
        (chosen(diagonal.sde, "constant", delta=0.04)[-1], "SDE 0.282, constant", Look(BLUE, "-", "^")),
    )
    for group, words, look in rows:
        draw_curve(axes, diagonal.times / 1000, group, "test", words, look)
    axes.set(
        ylabel="test loss",
        yscale="log",
        xlabel="step / 1,000",
        title="At large steps the SDE with\nSGD's noise isn't SGD",
    )
    legend_under(axes)


def draw_transfer(axes, diagonal: Diagonal) -> None:
    count = diagonal.data_sets
    bars = (("published", "0.35", "", "0.282 (published)"), ("rule", "#e9a03b", "//", "by the rule"))
    for k, (name, color, hatch, words) in enumerate(bars):
        gone = np.isnan(single(diagonal.transfer, name).final["train"]).reshape(count, -1)
        places = np.arange(count) + 0.4 * k - 0.2
        label = f"{words}: {gone.mean():.0%}"
        axes.bar(places, gone.mean(1), 0.4, color=color, hatch=hatch, label=label, ec="w")
    axes.set(xlabel="data set", ylabel="share of seeds that diverge", ylim=(0, 1.02), xticks=range(count))
    axes.set_title("The published step is\ntuned to data set 0")
    legend_under(axes)


def draw_surface(diagonal: Diagonal):
    """SGD ends at the sparse solution, gradient descent doesn't: a smaller problem in the plane through the start,
    the sparse solution (star) and the end of the gradient flow (grey: log10 of the loss; crosses: ends). Right:
    gradient descent on (x^2 - y)^2 / 4 stabilises at a loss that the 2-cycle's closed form gives (red)."""
    figure, axes = canvas(3, height=3.5)
    left, middle, right = axes[0]
    draw_plane(left, diagonal, "train")
    draw_plane(middle, diagonal, "test")
    gone = np.isnan(diagonal.surface.ends["sgd"][0]).mean()
    left.set_title("SGD ends at the sparse solution\n(grey: training loss)")
    middle.set_title(f"GD doesn't (grey: test loss)\n{gone:.0%} of SGD's seeds diverge")
    draw_cycle(right, diagonal)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def draw_plane(axes, diagonal: Diagonal, name: str) -> None:
    surface = diagonal.surface
    loss = np.log10(np.maximum(getattr(surface, name), 1e-6))
    levels = np.arange(-4, 1.6, 0.5)
    axes.contourf(surface.grid, surface.grid, loss, levels=levels, cmap="Greys_r", alpha=0.75, extend="both")
    axes.plot(0, 0, "wo", mec="k", ms=6, zorder=5, label="start")
    axes.plot(*surface.star, "w*", mec="k", ms=13, zorder=4, label="sparse solution")
    looks = {
        "flow": (Look("k", "-", ""), "gradient flow"),
        "gd": (Look("#a85500", "--", "^"), "GD, step 3"),
        "sgd": (Look(RED, "-", "o"), "SGD, step 0.6"),
    }
    for kind, (look, words) in looks.items():
        track = surface.tracks[kind]
        thin = 0.5 if look.marker else 1.6
        axes.plot(*track.T, color=look.color, ls=look.line, lw=thin, marker=look.marker, ms=2, zorder=3)
        seed = surface.shown if kind == "sgd" else 0
        end = surface.ends[kind][1, seed]
        axes.plot(*track[-1], "X", color=look.color, ms=8, mec="w", zorder=5, label=f"{words}: test {end:.1e}")
    ends = surface.grid[[0, -1]]
    axes.set(xlim=ends, ylim=ends, xlabel="towards the sparse solution")
    if name == "train":
        axes.set_ylabel("towards the end of the flow")
    axes.grid(False)


def draw_cycle(axes, diagonal: Diagonal) -> None:
    fine = np.linspace(1, np.sqrt(5) - 1, 200)
    for k, (words, shape) in enumerate((("lower level", "v"), ("upper level", "^"))):
        axes.plot(diagonal.cycle_a, diagonal.cycle_losses[:, k], shape, color="k", ms=5, label=words)
        axes.plot(fine, cycle_levels(fine)[k], color=RED, lw=1.2, label="closed form" if k else None)
    axes.plot(fine, (fine - 1) / 4, color="0.4", ls=":", label="(a - 1) / 4")
    axes.set(xlabel=r"$a = \eta y$", ylabel=r"loss / $y^2$", title="The loss stabilises\non a 2-cycle")
    axes.legend(loc="upper left")


# ======================================================================================
# 1-D regression
# ======================================================================================

THREE = (Look("0.5", ":", "D"), Look("#1b4965", "-", "o"), Look(RED, "--", "X"))  # short, long, over-regularised


def draw_regression(regression: Regression):
    """Twelve points on a line, a ReLU network of two layers. First row: fitted functions of one seed, which all
    three schedules can fit, early, on the plateau and at the end. Second row: medians over seeds and 10 to 90 %
    with the published schedules; stars: published, one run each. Third row: peak and duration apart, and the share
    of seeds that leave points unfitted."""
    figure, axes = canvas(3, rows=3, height=2.5)
    words = []
    for group in regression.groups[:3]:
        words.append(f"peak {group.peak:.2g} until {group.decay:.0%}")
    draw_functions(axes[0], regression, words)
    draw_regression_curves(axes[1], regression, words)
    draw_regression_ends(axes[2], regression)
    legend_below(figure, axes[1], 4)
    return figure


def draw_functions(panels, regression: Regression, words: list[str]) -> None:
    count = len(regression.strip_times)
    places = sorted({min(2, count - 1), count - 2 if count > 2 else 0, count - 1})
    for panel, place in zip(panels, places, strict=False):
        for k, look in enumerate(THREE):
            values = regression.functions[place, k]
            panel.plot(regression.grid, values, color=look.color, ls=look.line, lw=1.4)
        panel.plot(regression.x, regression.y, "o", color="k", ms=3.5, mfc="w", zorder=4)
        panel.set(ylim=(-4.5, 5), xlabel="x", title=f"Step {regression.strip_times[place]:,}")
    panels[0].set_ylabel("f(x)")
    last = panels[len(places) - 1]
    last.set_title(f"Step {regression.strip_times[-1]:,}: simpler functions")


def draw_regression_curves(panels, regression: Regression, words: list[str]) -> None:
    names = ("train", "rank", "sparsity_1")
    titles = ("The loss stays up while\nthe step is large", "and the rank falls", "and features get sparse")
    papers = (published.REGRESSION_TRAIN, published.REGRESSION_RANK, published.REGRESSION_SPARSITY)
    as_published = regression.settings["steps"] == published.REGRESSION_STEPS
    for panel, name, title, values in zip(panels, names, titles, papers, strict=True):
        for group, look, label in zip(regression.groups[:3], THREE, words, strict=True):
            draw_curve(panel, regression.times, group, name, label, look)
        if as_published:
            for k, value in enumerate(values):
                label = "published" if k == 0 and panel is panels[0] else None
                mark_published(panel, [regression.times[-1]], [value], label, THREE[k].color)
        panel.set(xlabel="step", title=title)
        thousands(panel.xaxis)
    panels[0].set(yscale="log", ylabel="training loss", ylim=(1e-6, 1e2))
    panels[1].set(ylabel="rank of the Jacobian", ylim=(0, None))
    panels[2].set(ylabel="share of active features", ylim=(0, None))


def draw_regression_ends(panels, regression: Regression) -> None:
    for panel, name in zip(panels, ("rank", "train"), strict=False):
        draw_durations(panel, chosen(regression.groups, "clean"), name, "clean", "peak 0.02")
        draw_durations(panel, chosen(regression.groups, "clean low"), name, "clean low", "peak 0.00023")
    panels[0].set(
        ylabel="rank at the end", ylim=(0, None), title="The height of the step matters,\nduration isn't resolved"
    )
    panels[0].legend(loc="lower left", bbox_to_anchor=(0.05, 0.35))
    panels[1].set(ylabel="training loss at the end", yscale="log", title="How well these fit\nthe points")
    stuck = [np.mean(~(group.final["train"] < 0.05)) for group in regression.groups[:3]]
    names = [f"{group.peak:.2g}\nuntil {group.decay:.0%}" for group in regression.groups[:3]]
    colors = [look.color for look in THREE]
    panels[2].bar(range(3), stuck, 0.5, color=colors)
    panels[2].set_xticks(range(3), names)
    panels[2].set(
        ylabel="share with loss over 0.05",
        ylim=(0, 1),
        title="Seeds with points unfitted\n(0.02 or 0.025: not resolved)",
    )


# ======================================================================================
# ReLU teacher-student
# ======================================================================================

FITTED = {"two": 1e-3, "three": 1e-2}  # training loss of a run that has fitted its examples


def draw_relu(relu: Relu):
    """ReLU students of ReLU teachers. First row: where the 20 hidden neurons of one two-layer student point (full:
    positive output; grey rays: the teacher's, dashed where its output is negative), after training times |a|, the
    size of the output weight; each panel has a scale of its own. Second row, two layers: ranks, sparsities (low: few
    features are active) and test losses at the end of every seed that lived and fitted (dots), with the small step,
    at the published large step until 10, 30, 50 %, and at each seed's own largest stable step; bars: medians. Third
    row: three layers, as published and with one peak and divisor. Under each: how many of the seeds are shown.
    Stars: published, one run each."""
    figure = plt.figure(figsize=(WIDTH, 8.6))
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 2])
    draw_pointing(upper.subplots(1, 3), relu)
    axes = lower.subplots(2, 3)
    draw_two_layers(axes[0], relu)
    draw_three_layers(axes[1], relu)
    return figure


def draw_pointing(panels, relu: Relu) -> None:
    titles = {
        "start": "Neurons of a student at the start",
        "small": "The same after the small\nstep, 0.13",
        "edge": f"The same after its largest\nstable step, {relu.edge[0]:.2g}, until 50%",
    }
    teacher = relu.neurons["teacher"]
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        student = relu.neurons[name]
        reach = 1.15 * np.linalg.norm(student.rows, axis=1).max()
        for w, sign in zip(teacher.rows, teacher.signs, strict=True):
            ray = np.outer([0, reach / np.linalg.norm(w)], w)
            panel.plot(*ray.T, color="0.75", lw=5, ls="-" if sign > 0 else (0, (1, 1)))
        for w, sign in zip(student.rows, student.signs, strict=True):
            panel.plot([0, w[0]], [0, w[1]], color="k", lw=0.7)
            panel.plot(*w, "o", color="k", mfc="k" if sign > 0 else "w", ms=4.5)
        scale = "" if name == "start" else "|a|"
        panel.axis("equal")
        panel.set(xlabel=f"$w_1 {scale}$", title=title)
    panels[0].set_ylabel("$w_2$")


def draw_seeds(axes, groups: list[Group], name: str, fitted: float, paper, first: int, color: str) -> list[str]:
    """Dots for the seeds of each group, side by side from place `first` on; returns the labels of the places."""
    labels = []
    for place, group in enumerate(groups, first):
        keep = np.isfinite(group.final[name]) & (group.final["train"] < fitted)
        values = group.final[name][keep]
        shifts = 0.25 * np.sin(7.0 * np.arange(len(values)))
        axes.plot(place + shifts, values, ".", color=color, ms=3, alpha=0.6)
        if len(values):
            axes.plot([place - 0.35, place + 0.35], [np.median(values)] * 2, color="k", lw=2)
        duration = f"{group.decay:.0%}" if group.decay else "small"
        labels.append(f"{duration}\n{len(values)}")
    if paper is not None:
        axes.plot(range(first, first + len(paper)), paper, **PUBLISHED, label="published")
    return labels


def draw_two_layers(panels, relu: Relu) -> None:
    as_published = relu.settings["steps"] == published.TWO_STEPS
    papers = (published.TWO_RANK, published.TWO_SPARSITY, published.TWO_TEST)
    titles = (
        "Two layers: large steps lower\nthe rank, duration hardly",
        "\nThey make features sparse",
        "A lower test loss\nisn't resolved",
    )
    for panel, name, paper, title in zip(panels, ("rank", "sparsity_1", "test"), papers, titles, strict=True):
        groups = chosen(relu.two, "small", "published")
        labels = draw_seeds(panel, groups, name, FITTED["two"], paper if as_published else None, 0, "0.4")
        edge = chosen(relu.two, "edge")
        labels += draw_seeds(panel, edge, name, FITTED["two"], None, len(groups) + 0, BLUE)
        panel.set_xticks(range(len(labels)), labels)
        panel.axvline(len(groups) - 0.5, color="0.6", lw=0.8)
        panel.set_title(title)
        note(panel, "0.455", (0.32, 0.95), va="top", ha="center")
        note(panel, "own largest", (0.78, 0.95), va="top", ha="center", color=BLUE)
    panels[0].set(ylabel="rank of the Jacobian", ylim=(0, 48))
    panels[1].set(ylabel="share of active features", ylim=(0, 0.75))
    panels[2].set(ylabel="test loss (cut at 1e-8)", yscale="log", ylim=(1e-8, 10))


def draw_three_layers(panels, relu: Relu) -> None:
    as_published = relu.settings["deep_steps"] == published.THREE_STEPS
    papers = (published.THREE_RANK, published.THREE_SPARSITY_2, published.THREE_TEST)
    titles = (
        "Three layers: rank by\nthe step's duration",
        "Sparsity of the\nsecond layer",
        "Large steps test better,\nas published",
    )
    for panel, name, paper, title in zip(panels, ("rank", "sparsity_2", "test"), papers, titles, strict=True):
        groups = chosen(relu.three, "small", "published")
        labels = draw_seeds(panel, groups, name, FITTED["three"], paper if as_published else None, 0, "0.4")
        labels += draw_seeds(panel, chosen(relu.three, "clean"), name, FITTED["three"], None, len(groups), BLUE)
        panel.set_xticks(range(len(labels)), labels)
        panel.axvline(len(groups) - 0.5, color="0.6", lw=0.8)
        panel.set(title=title, xlabel="large step until; seeds shown")
        note(panel, "as published", (0.3, 0.95), va="top", ha="center")
        note(panel, "one peak", (0.78, 0.95), va="top", ha="center", color=BLUE)
    panels[0].set(ylabel="rank of the Jacobian", ylim=(0, 215))
    panels[1].set(ylabel="share of active features", ylim=(0, 1))
    panels[2].set(ylabel="test loss", yscale="log", ylim=(1e-4, 10))


# ======================================================================================
# Deep networks
# ======================================================================================


def draw_deep(readings: dict, width: int | None = None):
    """Deep networks trained with small and large steps: in this seed the longer the large step, the sparser the deep
    features.
    Feature sparsity is the share of (image, unit) pairs at which a unit is active, duplicated units removed: low
    means sparse. Losses and errors along training; sparsity of each block at the end, and of the last two blocks
    along training; the first seed. Solid: as published (the peak grows with the duration), dashed: same peak and
    divisor."""
    if not readings:
        return None
    name = "sparse_deep" if "sparse_deep" in readings else sorted(readings)[0]
    deep: Deep = readings[name]
    figure, axes = canvas(3, rows=2, height=2.8)
    blocks = len(deep.blocks)
    panels = {"loss": axes[0, 0], "error": axes[0, 1]}
    for run in first_seeds(deep):
        style = deep_style(run)
        panels["loss"].plot(run.steps, run.loss, **style)
        panels["error"].plot(run.steps, run.test_error, **style)
        axes[0, 2].plot(range(blocks), run.sparsity[-1], **style)
        axes[1, 1].plot(run.steps, run.sparsity[:, blocks - 2], **style)
        axes[1, 2].plot(run.steps, run.sparsity[:, blocks - 1], **style)
    titles = titles_of_deep(first_seeds(deep))
    panels["loss"].set(ylabel="training loss", yscale="log", title=titles.loss)
    panels["error"].set(ylabel="test error", ylim=(0, 1), title=titles.error)
    axes[0, 2].set(ylabel="active share at the end", ylim=(0, 1.02), title=titles.end)
    axes[1, 0].set_axis_off()
    about = deep.about.replace(", batch", ",\nbatch") + "\nlargest step"
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 0].legend(handles, labels, loc="center left", title=about)
    axes[1, 1].set(ylabel=f"active share of {deep.blocks[-2]}", ylim=(0, 1.02), title=titles.before)
    axes[1, 2].set(ylabel=f"active share of {deep.blocks[-1]}", ylim=(0, 1.02), title=titles.last)
    names = [block.replace("transition", "tr.") for block in deep.blocks]
    axes[0, 2].set_xticks(range(blocks), names, rotation=40, ha="right", rotation_mode="anchor")
    plain_ticks(axes[0, 0].yaxis)
    for panel in (*panels.values(), axes[1, 1], axes[1, 2]):
        panel.set_xlabel("step")
        thousands(panel.xaxis)
    return figure


class DeepTitles(NamedTuple):
    """Of the five panels."""

    loss: str = "Training loss"
    error: str = "Test error"
    end: str = "Features at the end"
    before: str = "Features along\ntraining: last stage"
    last: str = "Features along\ntraining: after pooling"


def titles_of_deep(runs: list) -> DeepTitles:
    """What can be seen in the drawn seed, if it can be: from the small step to the longest large one (as published)
    error and share of active features fall."""
    published_runs = [run for run in runs if run.schedule in ("small", "published")]
    published_runs.sort(key=lambda run: run.decay)
    if len(published_runs) < 2:
        return DeepTitles()
    errors = [run.test_error[-1] for run in published_runs]
    shares = [run.sparsity[-1, -2] for run in published_runs]
    titles = DeepTitles()
    if (np.diff(errors) < 0).all():
        titles = titles._replace(error="In this seed larger, longer\nsteps end at a lower error")
    if (np.diff(shares) < 0).all():
        titles = titles._replace(end="In this seed they leave\ndeep blocks sparser")
    return titles


def first_seeds(deep: Deep) -> list:
    first = min(run.seed for run in deep.runs) if deep.runs else 0
    return [run for run in deep.runs if run.seed == first]


def deep_style(run) -> dict:
    look = DURATIONS.get(run.decay, Look("k", ":", "D"))
    lines = {"small": ":", "published": "-", "clean": "--"}
    words = f"{run.peak:.3g} until {run.decay:.0%}" if run.decay else f"{run.peak:.3g} throughout"
    return {
        "color": look.color,
        "ls": lines.get(run.schedule, "-"),
        "marker": look.marker,
        "mfc": "w" if run.schedule == "clean" else look.color,
        "ms": 4,
        "lw": 1.2,
        "label": words,
    }


def is_deep(name: str) -> bool:
    return re.fullmatch(r"sparse_deep(_\w+)?", name) is not None


FIGURES = {
    "sparse_diagonal": Figure(draw_diagonal, needs=("sparse_diagonal",)),
    "sparse_surface": Figure(draw_surface, needs=("sparse_diagonal",)),
    "sparse_regression": Figure(draw_regression, needs=("sparse_regression",)),
    "sparse_relu": Figure(draw_relu, needs=("sparse_relu",)),
    "sparse_deep": Figure(draw_deep, matching=is_deep, wants=("sparse_deep",)),
}
