"""Figures of *Stochastic Collapse*. Each draw function's docstring is the figure's caption."""

import numpy as np

from papers.plots import (
    PUBLISHED,
    RED,
    WIDTH,
    Figure,
    band,
    canvas,
    legend_below,
    legend_beside,
    legend_under,
    mark_published,
    marker,
    note,
    plain_ticks,
    plt,
    shades,
    thousands,
)
from papers.result import counted
from papers.stochastic_collapse import published
from papers.stochastic_collapse.readings import (
    LABELS,
    PAPER_DATASETS,
    Diagonal,
    Minibatch,
    Neuron,
    Pair,
    Quartic,
    Sweep,
    as_published,
    at_step,
    at_the_end,
    dataset_words,
    drops,
    layers_of,
    model_words,
    parse_sweep,
)

# ======================================================================================
# Figure 1: quartic well
# ======================================================================================


def draw_quartic(quartic: Quartic):
    """Noise makes the top of a hill attract. Above: 50 trajectories in the double well theta^4/4 - mu theta^2/2
    with noise zeta theta dB, and beside them the histogram of the second half of the run with the stationary
    density (red), where there is one: above sqrt(2 mu) all mass goes to the origin. Below: probability of |theta| <
    1e-15 after so many steps (markers) with the theory of the Euler chain (lines), and the noise at which half have
    collapsed. Stars: as published."""
    figure = plt.figure(figsize=(WIDTH, 5.2))
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    draw_trajectories(upper, quartic)
    left, right = lower.subplots(1, 2, width_ratios=[1.7, 1])
    draw_collapse(left, quartic)
    draw_half_levels(right, quartic)
    return figure


def draw_trajectories(figure, quartic: Quartic):
    count = len(quartic.trajectory_noises)
    ratios = []
    for density in quartic.stationary:
        ratios += [1.0, 0.4 if density is not None else 0.02]
    panels = figure.subplots(1, 2 * count, width_ratios=ratios)
    for k, zeta in enumerate(quartic.trajectory_noises):
        walk, side = panels[2 * k], panels[2 * k + 1]
        walk.plot(quartic.times, quartic.paths[k].T, color="0.25", lw=0.5, alpha=0.35)
        walk.set(ylim=(-3, 3), xlabel="steps", title=rf"noise $\zeta$ = {zeta:g}")
        walk.set_xticks([0, quartic.times[-1]], ["0", f"{quartic.times[-1]:,.0f}"])
        if k == 0:
            walk.set_ylabel(r"$\theta$")
        else:
            walk.tick_params(labelleft=False)
        if quartic.stationary[k] is None:
            side.set_axis_off()
            note(walk, "all end at the origin", (0.95, 0.93), ha="right", va="top")
            continue
        side.stairs(quartic.histogram[k], quartic.bin_edges, orientation="horizontal", fill=True, color="0.75")
        side.stairs(quartic.stationary[k], quartic.bin_edges, orientation="horizontal", color=RED, lw=1.3)
        side.set(ylim=(-3, 3), xlim=(0, 1.15 * quartic.stationary[k].max()), xticks=[], xlabel="density")
        side.tick_params(labelleft=False)


def draw_collapse(axes, quartic: Quartic):
    for k, color in enumerate(shades(len(quartic.checkpoints))):
        label = f"{quartic.checkpoints[k]:,} steps"
        axes.plot(quartic.noises, quartic.collapse[k], marker(k), color=color, ms=3, label=label)
        axes.plot(quartic.noises, quartic.theory_chain[k], color=color, lw=1.2)
    axes.axvline(quartic.attracting, color="k", ls="--", lw=1)
    words = rf"$\sqrt{{2\mu}}$ = {quartic.attracting:.3f}"
    axes.text(quartic.attracting - 0.03, 0.6, words, rotation=90, ha="right", va="center")
    if quartic.mu == 1.5:
        levels = list(published.QUARTIC_HALF.values())
        mark_published(axes, levels, [0.5] * len(levels), "published, P = 1/2")
    exponent = np.log10(quartic.threshold)
    axes.set(xlabel=r"noise $\zeta$", ylabel=rf"P($|\theta| < 10^{{{exponent:.3g}}}$)", xlim=(0, 3))
    axes.set_title("Above the threshold the origin attracts, the sooner the noisier")
    axes.legend(loc="upper left")


def draw_half_levels(axes, quartic: Quartic):
    levels = []
    for row in quartic.collapse:
        levels.append(np.interp(0.5, np.maximum.accumulate(row), quartic.noises))
    axes.semilogx(quartic.checkpoints, levels, "o-", color="k", mfc="none", ms=5, label="ours")
    if quartic.mu == 1.5:
        mark_published(axes, list(published.QUARTIC_HALF), list(published.QUARTIC_HALF.values()))
    axes.axhline(quartic.attracting, color="k", ls="--", lw=1)
    axes.set_xticks(quartic.checkpoints, [f"{step:,}" for step in quartic.checkpoints], rotation=20)
    axes.minorticks_off()
    axes.set(
        xlabel="steps", ylabel=r"$\zeta$ where half have collapsed", title=r"This noise falls towards $\sqrt{2\mu}$"
    )
    axes.legend(loc="upper right")


# ======================================================================================
# Figure 2: single neuron
# ======================================================================================

SHOWN_NOISES = (0.125, 0.785, 1.157)  # as in the paper's left panel


def draw_neuron(neuron: Neuron):
    """One neuron w2 tanh(w1 x) vanishes above the theorem's noise. Left: where 25 trajectories end, on the loss of
    the data (grey). Middle: probability that |w| < 0.01 after so many steps; stars: published, at the same distance
    to the threshold (dashed). Right: growth of log|w| near the origin (2 s.e.), which is what the linearised map
    predicts."""
    figure, axes = canvas(3, height=3.4)
    left, middle, right = axes[0]
    draw_ends(figure, left, neuron)
    draw_neuron_collapse(middle, neuron)
    draw_rates(right, neuron)
    return figure


def draw_ends(figure, axes, neuron: Neuron):
    reach = 2.6
    w = np.linspace(-reach, reach, 121)
    outputs = w[:, None, None] * np.tanh(w[None, :, None] * neuron.x)  # [w2, w1, points]
    loss = np.mean((outputs - neuron.y) ** 2, axis=-1) / 2
    axes.contourf(w, w, np.minimum(loss, 2), 12, cmap="Greys", alpha=0.6)
    colors = ("#2166ac", "#f4a582", "#b2182b")
    for shape, color, noise in zip("o^*", colors, SHOWN_NOISES, strict=True):
        level = int(np.argmin(np.abs(neuron.noises - noise)))
        w1, w2 = neuron.ends[level, :25].T
        size = 11 if shape == "*" else 5
        label = f"{neuron.noises[level]:.2f}"
        if np.hypot(w1, w2).max() < 0.1:
            label += " (all at 0)"
        axes.plot(w1, w2, shape, color=color, ms=size, mec="k", mew=0.5, label=label)
    axes.set(xlabel="$w_1$", ylabel="$w_2$", xlim=(-reach, reach), ylim=(-reach, reach))
    axes.set_title("Noise moves the end\nto the origin")
    axes.grid(False)
    legend_under(axes, "noise", columns=2)


def draw_neuron_collapse(axes, neuron: Neuron):
    steps = neuron.checkpoints[1:]
    for k, color in enumerate(shades(len(steps))):
        label = f"{steps[k]:,}"
        style = {"color": color, "marker": marker(k), "ms": 3, "lw": 1}
        axes.plot(neuron.noises, neuron.collapse[k + 1], **style, label=label)
    noises = np.array(published.NEURON_NOISES) / published.NEURON_THRESHOLD * neuron.threshold
    shown = list(published.NEURON_COLLAPSE.values())
    for row in (shown[0], shown[-1]):
        mark_published(axes, noises, row, "published, first and last" if row is shown[0] else None)
    axes.axvline(neuron.threshold, color="k", ls="--", lw=1)
    axes.set(xlabel=r"noise $\eta\zeta^2\sigma'(0)/2$", ylabel=f"P(|w| < {neuron.radius:g})", xlim=(0, 2.6))
    axes.set_title("The longer, the sharper\nthe step at the threshold")
    legend_under(axes, "steps", columns=2)


def draw_rates(axes, neuron: Neuron):
    noises = neuron.rate_noises
    axes.axhline(0, color="0.5", lw=0.8)
    axes.errorbar(
        noises, neuron.rate, 2 * neuron.rate_error, fmt="o", ms=3.5, mfc="none", color="0.35", label="measured"
    )
    axes.plot(noises, neuron.rate_chain, "k-", lw=1.2, label="linearised chain")
    axes.plot(noises, neuron.rate_equation, color=RED, ls="--", lw=1.2, label="linearised equation")
    axes.axvline(neuron.threshold, color="k", ls="--", lw=1)
    axes.set(xlabel=r"noise $\eta\zeta^2\sigma'(0)/2$", ylabel="growth of log|w| per unit time")
    axes.set_title("Growth turns to decay\nat the threshold")
    legend_under(axes)


# ======================================================================================
# Figure 3: two neurons
# ======================================================================================

FLOOR = 1e-31  # squared differences of doubles of size one: rounding


def draw_pair(pair: Pair):
    """Two neurons merge under SGD with momentum and label noise. Left and middle: squared distance of 8 replicas
    (thin) and their median (thick); stars: published medians. At the bottom edge the neurons are equal to the last
    bit of a double. Right: decay rate of the squared distance against twice the Lyapunov exponent of the linearised
    random map (2 s.e., 64 replicas); at the largest rates the neurons leave each other again, and the measured rate
    is slower."""
    figure, axes = canvas(3, height=3.3)
    left, middle, right = axes[0]
    first = range(pair.sweep)
    second = range(pair.sweep, len(pair.conditions))
    draw_distances(left, pair, first, pair.learning_rates, "learning rate")
    draw_distances(middle, pair, second, pair.label_noises, "label noise")
    left.set_ylabel(r"$(a_1 - a_2)^2 + (b_1 - b_2)^2$")
    left.set_title("Distances by\nlearning rate")
    middle.set_title("Distances by\nlabel noise")
    draw_decay(right, pair)
    return figure


def draw_distances(axes, pair: Pair, conditions, values, name: str):
    for k, color in zip(conditions, shades(len(conditions)), strict=True):
        place = k - conditions[0]
        rows = np.maximum(pair.distances[k], FLOOR)
        axes.semilogy(pair.times, rows.T, color=color, lw=0.4, alpha=0.5)
        style = {"color": color, "lw": 1.8, "marker": marker(place), "markevery": (8 * place + 8, 48)}
        axes.semilogy(
            pair.times, np.maximum(np.median(pair.distances[k], axis=0), FLOOR), **style, label=f"{values[k]:g}"
        )
        paper = published.PAIR_MEDIANS.get(pair.conditions[k], ())
        for step, value in zip(published.PAIR_STEPS, paper, strict=False):
            if value is not None and step <= pair.times[-1]:
                axes.semilogy(step, 10.0**value, **PUBLISHED)
    axes.set(xlabel="steps", ylim=(FLOOR, 1e2))
    thousands(axes.xaxis)
    legend_under(axes, name, columns=3)


def draw_decay(axes, pair: Pair):
    decades = -1000 / np.log(10)
    moving = np.isfinite(pair.rate) & (pair.predicted < 0)
    sweeps = ((range(pair.sweep), "o", "learning rates", "#1b6ca8"),)
    sweeps += ((range(pair.sweep, len(pair.rate)), "s", "label noises", RED),)
    for conditions, shape, label, color in sweeps:
        shown = [k for k in conditions if moving[k]]
        rate, error = decades * pair.rate[shown], 2 * np.abs(decades) * pair.rate_error[shown]
        predicted = decades * pair.predicted[shown]
        axes.errorbar(predicted, rate, error, fmt=shape, ms=5, mfc="none", color=color, label=label)
    line = np.array([0.15, 15])
    axes.loglog(line, line, "k-", lw=1, label="equal")
    axes.set(xlabel="predicted, decades per 1,000 steps", ylabel="measured")
    axes.set_title(title_of_decay(pair))
    legend_under(axes, columns=2)


def title_of_decay(pair: Pair) -> str:
    """How many conditions decay at the predicted rate: as in the claim, within 5 % or 2 s.e."""
    ratio, relative_error = pair.rate_ratio(pair.attracted & np.isfinite(pair.rate))
    close = np.abs(ratio - 1) < np.maximum(0.05, 2 * relative_error)
    return f"{close.sum()} of {close.size} decay at the\nLyapunov exponent"


# ======================================================================================
# Figure 5: linear teacher-student
# ======================================================================================


def draw_student(diagonal: Diagonal):
    """Label noise collapses small modes of a linear network and shrinks the others, which come back when the rate
    drops. Above: losses (mean of 256 seeds, band 2 s.e.); stars: published levels before the drop (dashed), at the
    lowest and at the end. Below left: learned against true singular values at the drop; lines: s* - eta sigma^2 /
    2. Below right: after the drop at the largest noise, theory as bands; stars: published, the largest mode."""
    figure, axes = canvas(2, rows=2, height=2.9)
    colors = shades(len(diagonal.label_noises))
    draw_student_loss(axes[0, 0], diagonal, "train", colors)
    draw_student_loss(axes[0, 1], diagonal, "test", colors)
    draw_modes(axes[1, 0], diagonal, colors)
    draw_recovery(axes[1, 1], diagonal)
    return figure


def draw_student_loss(axes, diagonal: Diagonal, name: str, colors):
    means, deviations = getattr(diagonal, name), getattr(diagonal, f"{name}_std")
    every = len(diagonal.steps) // 6 + 1
    for k, noise in enumerate(diagonal.label_noises):
        style = {"color": colors[k], "marker": marker(k), "markevery": every, "ms": 4, "mfc": "w", "lw": 1.2}
        axes.plot(diagonal.steps, means[k], **style, label=rf"$\sigma$ = {noise:g}")
        band(axes, diagonal.steps, means[k], 2 * deviations[k] / np.sqrt(diagonal.replicas), colors[k])
    axes.axvline(diagonal.drop_step, color="k", ls="--", lw=0.8)
    thousands(axes.xaxis)
    axes.set(xlabel="steps")
    if name == "train":
        if diagonal.drop_step == 50_000:
            mark_published(axes, [48_000] * 5, published.STUDENT_TRAIN)
        axes.set(ylim=(0.458, 0.512), ylabel=r"train loss $|XW' - y|^2$ / 2nm var(y)")
        axes.set_title("Noise keeps the train loss up until the rate drops")
        axes.legend(loc="upper left", bbox_to_anchor=(0.2, 1), ncols=2)
        return
    if diagonal.drop_step == 50_000:
        unit = published.STUDENT_TEST_UNIT / diagonal.paper_test_factor
        levels = (published.STUDENT_TEST_BEFORE, published.STUDENT_TEST_LOWEST, published.STUDENT_TEST_END)
        for step, values in zip((48_000, 52_000, 60_000), levels, strict=True):
            mark_published(axes, [step] * 5, unit * np.array(values), None)
    axes.set(ylim=(0, 4.5), ylabel=r"test loss $|W' - W|^2 / |W|^2$")
    axes.set_title("The noisier before, the lower the test loss after it")


def draw_modes(axes, diagonal: Diagonal, colors):
    for k, noise in enumerate(diagonal.label_noises):
        label = rf"$\sigma$ = {noise:g}"
        axes.plot(diagonal.true, diagonal.learned[k, 0], marker(k), color=colors[k], ms=3.5, mfc="none", label=label)
        axes.plot(diagonal.true, diagonal.lower[k, 0], color=colors[k], lw=1)
    axes.plot(diagonal.true, diagonal.true, "k:", lw=1)
    axes.set(xlabel="true singular value $s^*$", ylabel="learned, mean over seeds")
    axes.set_title(r"Modes below $\eta\sigma^2/2$ are gone")
    axes.legend(loc="upper left")


def draw_recovery(axes, diagonal: Diagonal):
    learned, lower, upper = diagonal.learned[-1], diagonal.lower[-1], diagonal.upper[-1]
    for k, color in enumerate(shades(len(diagonal.snapshots))):
        if k:
            axes.fill_between(diagonal.true, lower[k], upper[k], color=color, alpha=0.25, lw=0)
        axes.plot(diagonal.true, lower[k], color=color, lw=0.8)
        label = f"{diagonal.snapshots[k]:,}"
        axes.plot(diagonal.true, learned[k], marker(k), color=color, ms=3.5, mfc="none", label=label)
    if diagonal.snapshots == list(published.STUDENT_LAST_STEPS):
        mark_published(axes, [diagonal.true[0]] * 6, published.STUDENT_LAST_MODE, None)
    axes.plot(diagonal.true, diagonal.true, "k:", lw=1)
    axes.set(xlabel="true singular value $s^*$", ylabel="learned, mean over seeds")
    axes.set_title(rf"After the drop the survivors recover ($\sigma$ = {diagonal.label_noises[-1]:g})")
    axes.legend(title="step", loc="upper left")


def draw_minibatch(minibatch: Minibatch):
    """The same drop with the noise of mini-batches in full matrices: the smaller the batch, the lower the test
    loss. Band: standard deviation over 4 seeds; dashed: drops of the rate."""
    figure, axes = canvas(3, height=3.0)
    colors = shades(len(minibatch.batch_sizes))[::-1]
    every = len(minibatch.steps) // 6 + 1
    for name, panel in (("train", axes[0, 0]), ("test", axes[0, 1])):
        means, deviations = getattr(minibatch, name), getattr(minibatch, f"{name}_std")
        for k, size in enumerate(minibatch.batch_sizes):
            style = {"color": colors[k], "marker": marker(k), "markevery": every, "ms": 4, "mfc": "w", "lw": 1.2}
            panel.plot(minibatch.steps, means[k], **style, label=f"batch {size:,}")
            band(panel, minibatch.steps, means[k], deviations[k], colors[k])
        for step in minibatch.drop_steps:
            panel.axvline(step, color="k", ls="--", lw=0.8)
        thousands(panel.xaxis)
        panel.set(xlabel="steps")
    axes[0, 0].set(ylim=(0.458, 0.495), ylabel=r"train loss $|XW' - y|^2$ / 2nm var(y)")
    axes[0, 1].set(ylim=(1, 6), ylabel=r"test loss $|W' - W|^2 / |W|^2$")
    for k in range(len(minibatch.batch_sizes)):
        axes[0, 2].plot(minibatch.true, minibatch.spectra[k, -1], marker(k), color=colors[k], ms=3.5, mfc="none")
    axes[0, 2].plot(minibatch.true, minibatch.true, "k:", lw=1)
    axes[0, 2].set(xlabel="singular value of $X^T y$", ylabel="of the student, at the end")
    titles = ("Small batches keep\nthe train loss up", "They end at a lower\ntest loss", "They lose their\nsmall modes")
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    legend_below(figure, axes, 6)
    return figure


# ======================================================================================
# Deep networks: which results a figure takes
# ======================================================================================


def is_sweep(*experiments: str):
    """Whether the name of a result is that of one of these experiments of a deep network (or of its controls)."""

    def matching(name: str) -> bool:
        parts = parse_sweep(name)
        return parts is not None and parts.experiment in experiments

    return matching


def chosen_sweeps(readings: dict, width: int | None) -> list[Sweep]:
    """Of each network, experiment and data set the widest there is (or that of `width`), controls apart.

    A wider one with a single value is no sweep yet: it doesn't take the place of a narrower one with several.
    VGG first, then ResNet, then others; within them the paper's data first.
    """
    chosen = {}
    for sweep in readings.values():
        parts = sweep.parts
        if parts.controls or (width is not None and parts.width != width):
            continue
        key = (parts.network, parts.experiment, parts.dataset)
        if key not in chosen or preference(sweep) > preference(chosen[key]):
            chosen[key] = sweep

    def order(sweep: Sweep):
        networks = ["vgg", "resnet"]
        network = sweep.parts.network
        place = networks.index(network) if network in networks else len(networks)
        experiments = ["lr", "noise", "batch", "drop"]
        return place, network, experiments.index(sweep.parts.experiment), sweep.parts.dataset

    return sorted(chosen.values(), key=order)


def preference(sweep: Sweep) -> tuple[bool, int]:
    """Of two results of one experiment the one with the larger preference is shown."""
    values = {run.value for run in sweep.runs}
    compares = len(values) > 1 or sweep.parts.experiment == "drop"  # a drop compares times, not values
    return compares, sweep.parts.width


def tick_layers(axes, layers: list[str]) -> None:
    axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)


def value_words(value: float | str) -> str:
    """A rate, a noise, a batch size, a step; a name as it is."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def draw_layers(axes, fractions: dict, looks: dict) -> None:
    """A line per value through the means of the seeds, and from the least to the largest seed a bar.

    fractions: {value: [seeds, layers]}. looks: {value: (colour, marker)}, the same in all panels.
    """
    for place, (value, rows) in enumerate(fractions.items()):
        color, shape = looks[value]
        layers = np.arange(rows.shape[1]) + 0.08 * (place - (len(fractions) - 1) / 2)
        mean = rows.mean(0)
        axes.plot(layers, mean, color=color, marker=shape, ms=4, lw=1.2, label=value_words(value))
        axes.vlines(layers, rows.min(0), rows.max(0), color=color, lw=1.2, alpha=0.6)


def looks_of(values) -> dict:
    """{value: (colour, marker)}, more noise lighter."""
    ordered = sorted(values)
    colors = shades(len(ordered))
    return {value: (colors[k], marker(k)) for k, value in enumerate(ordered)}


def shows_nothing(fractions: dict) -> bool:
    return all((rows > 0.99).all() for rows in fractions.values())


# ======================================================================================
# Figure 4: independent neurons by layer
# ======================================================================================


def draw_independent(readings: dict, width: int | None = None):
    """Fraction of independent neurons (left) and effective rank / width (middle) of each layer, at the end of
    training, over learning rate, label noise and batch size. Lines: mean over seeds; bars: from the least to the
    largest seed. Stars: published means, where width, data, batch size and steps agree with the paper's. Right,
    where they were run, the controls: without weight decay, and the lowest rate with the pull of the highest.
    Sweeps in which every neuron of every layer is independent are drawn only where no other has collapsed."""
    finished = [sweep for sweep in chosen_sweeps(readings, width) if at_the_end(sweep)]
    collapsed = [sweep for sweep in finished if not shows_nothing(at_the_end(sweep))]
    sweeps = collapsed or finished
    if not sweeps:
        return None
    controls = {sweep.name: readings.get(f"{sweep.name}_controls") for sweep in sweeps}
    columns = 3 if any(controls.values()) else 2
    figure, axes = canvas(columns, rows=len(sweeps), height=2.9)
    lowest = min(rows.min() for sweep in sweeps for rows in at_the_end(sweep).values())
    limits = (min(0.9, lowest) - 0.03, 1.03)
    for row, sweep in zip(axes, sweeps, strict=True):
        fractions = at_the_end(sweep)
        looks = looks_of(fractions)
        title = f"{sweep.about}\n{sweep.settings['steps']:,} steps, {count_seeds(fractions)}"
        draw_fraction(row[0], sweep, fractions, looks, limits, title)
        draw_rank(row[1], sweep, looks)
        if columns == 3:
            draw_controls(row[2], sweep, controls[sweep.name], limits)
    return figure


def count_seeds(fractions: dict) -> str:
    counts = [len(rows) for rows in fractions.values()]
    fewest, most = min(counts), max(counts)
    if fewest == most:
        return counted(most, "seed")
    return f"{fewest} to {most} seeds"


def draw_fraction(axes, sweep: Sweep, fractions: dict, looks: dict, limits, title: str) -> None:
    axes.set_title(title)
    draw_layers(axes, fractions, looks)
    mark_published_layers(axes, sweep)
    tick_layers(axes, layers_of(sweep))
    axes.set(ylim=limits, ylabel="fraction independent")
    legend_beside(axes, LABELS[sweep.varied])


def mark_published_layers(axes, sweep: Sweep) -> None:
    """The paper's profile over layers, where it has these settings."""
    settings = dict(published.VGG_SETTINGS)
    if sweep.varied != "learning_rate" or sweep.settings["steps"] != published.VGG_RATE_STEPS:
        return
    if not as_published(sweep, settings):
        return
    layers = layers_of(sweep)
    for k, fractions in enumerate(published.VGG_RATE.values()):
        places = [layers.index(layer) for layer in published.VGG_LAYERS]
        mark_published(axes, places, fractions, None if k else "published")


def draw_rank(axes, sweep: Sweep, looks: dict) -> None:
    ranks = at_the_end(sweep, what="rank")
    if not ranks:
        axes.set_axis_off()
        note(axes, "no effective rank in this result", (0.5, 0.5), ha="center", va="center")
        return
    draw_layers(axes, ranks, looks)
    tick_layers(axes, layers_of(sweep))
    axes.set(ylim=(0, 1.03), ylabel="effective rank / width", title=f"\n{title_of_rank(ranks)}")


def title_of_rank(ranks: dict) -> str:
    """Says that the rank falls with depth, if at every value the deeper half of the layers has less of it."""
    for rows in ranks.values():
        middle = rows.shape[1] // 2
        if rows[:, middle:].mean() >= rows[:, :middle].mean():
            return "Effective rank"
    return "The deeper half has the lower rank"


def draw_controls(axes, sweep: Sweep, controls: Sweep | None, limits) -> None:
    if controls is None:
        axes.set_axis_off()
        return
    kinds = {}
    for run in controls.runs:
        if run.whole and run.groups is not None:
            key = (run.settings["weight_decay"], run.settings["learning_rate"])
            kinds.setdefault(key, []).append(run.groups.independent[-1])
    colors = shades(len(kinds))
    for k, (decay, rate) in enumerate(sorted(kinds)):
        rows = np.array(kinds[decay, rate])
        words = f"no decay, {rate:g}" if decay == 0 else f"decay {decay:g}, {rate:g}"
        line = "--" if decay == 0 else "-"
        axes.plot(rows.mean(0), color=colors[k], marker=marker(k), ls=line, ms=4, lw=1.2, label=words)
    tick_layers(axes, layers_of(sweep))
    axes.set(ylim=limits, title="Controls: decay and\nlearning rate apart")
    legend_beside(axes, "decay, rate")


# ======================================================================================
# Figure 4 by data set: what a network has to spare
# ======================================================================================

HARDEST_FIRST = ("cifar100", "cifar10", "fashion_mnist", "mnist")


def draw_data_sets(readings: dict, width: int | None = None):
    """One network, one learning rate, other images. Left: fraction of independent neurons of each layer at the end of
    training. Middle: of the whole network, along training. Right: training loss. Lines: mean over seeds; bars, left:
    from the least to the largest seed."""
    groups = same_but_for_data(readings, width)
    if not groups:
        return None
    figure, axes = canvas(3, rows=len(groups), height=3.4, width_ratios=[1.5, 1, 1])
    for row, sweeps in zip(axes, groups, strict=True):
        rate = rate_in_common(sweeps)
        settings = sweeps[0].settings
        looks = {}
        for sweep, color in zip(sweeps, shades(len(sweeps)), strict=True):
            looks[dataset_words(sweep.settings["dataset"])] = (color, marker(len(looks)))
        draw_data_profiles(row[0], sweeps, rate, looks)
        draw_data_courses(row[1:], sweeps, rate, looks)
        words = f"{model_words(settings['model'])}, width {settings['width']}, rate {rate:g}"
        row[0].set_title(f"{words},\n{settings['steps']:,} steps, {seeds_at(sweeps, rate)}")
        row[1].set_title("The whole network")
        row[2].set_title("What is left to learn")
    return figure


def same_but_for_data(readings: dict, width: int | None) -> list[list[Sweep]]:
    """Sweeps over the learning rate that differ in their images alone, two or more with a rate in common.

    Of each network the widest (or that of `width`), the hardest images first.
    """
    alike = {}
    for sweep in readings.values():
        parts = sweep.parts
        if parts.controls or not at_the_end(sweep) or (width is not None and parts.width != width):
            continue
        batch_size = sweep.settings.get("batch_size", 0)
        alike.setdefault((parts.network, parts.width, sweep.settings["steps"], batch_size), []).append(sweep)

    def difficulty(sweep: Sweep) -> int:
        name = sweep.settings["dataset"]
        return HARDEST_FIRST.index(name) if name in HARDEST_FIRST else len(HARDEST_FIRST)

    widest = {}
    for (network, *_), sweeps in sorted(alike.items()):
        rate = rate_in_common(sweeps)
        compared = [sweep for sweep in sweeps if rate in at_the_end(sweep)]
        if len(compared) > 1:
            widest[network] = sorted(compared, key=difficulty)
    return list(widest.values())


def rate_in_common(sweeps: list[Sweep]) -> float:
    """The rate that most of these sweeps have; of several the highest."""
    counts = {}
    for sweep in sweeps:
        for rate in at_the_end(sweep):
            counts[rate] = counts.get(rate, 0) + 1
    return max(counts, key=lambda rate: (counts[rate], rate))


def seeds_at(sweeps: list[Sweep], rate: float) -> str:
    return count_seeds({sweep.name: at_the_end(sweep)[rate] for sweep in sweeps})


def draw_data_profiles(axes, sweeps: list[Sweep], rate: float, looks: dict) -> None:
    fractions = {}
    for sweep in sweeps:
        fractions[dataset_words(sweep.settings["dataset"])] = at_the_end(sweep)[rate]
    draw_layers(axes, fractions, looks)
    tick_layers(axes, layers_of(sweeps[0]))
    lowest = min(rows.min() for rows in fractions.values())
    axes.set(ylim=(min(0.9, lowest) - 0.03, 1.03), ylabel="fraction independent")
    axes.legend(loc="lower left")


def draw_data_courses(panels, sweeps: list[Sweep], rate: float, looks: dict) -> None:
    """Along training: the fraction of the whole network's neurons that is independent, and the training loss."""
    for sweep in sweeps:
        color, shape = looks[dataset_words(sweep.settings["dataset"])]
        runs = [run for run in sweep.runs if run.whole and run.value == rate]
        steps, loss, _ = mean_curve(runs, "loss")
        shares = []
        for run in runs:
            of_network = run.groups.independent @ run.groups.widths / run.groups.widths.sum()
            shares.append(of_network[np.isin(run.steps, steps)])
        style = {"color": color, "marker": shape, "markevery": 0.2, "ms": 4, "lw": 1.2}
        panels[0].plot(steps, np.mean(shares, axis=0), **style)
        panels[1].semilogy(steps, loss, **style)
    for panel in panels:
        panel.set(xlabel="steps")
        thousands(panel.xaxis)
    panels[0].set(ylabel="fraction independent")
    panels[1].set(ylabel="training loss")
    plain_ticks(panels[1].yaxis)


# ======================================================================================
# Figure 3: heat maps of distances
# ======================================================================================

MAP_LAYERS = 2  # shown of each network: those with most clusters


def draw_distance_maps(readings: dict, width: int | None = None):
    """Normalised distances between the neurons of a layer (0 equal, 2 orthogonal), ordered by cluster: incoming and
    outgoing weights, at the lowest learning rate above and at the highest below. Redundant neurons are dark blocks
    on the diagonal. Only layers in which the highest rate has made clusters are shown; each with its number of
    clusters and of neurons. In a wide layer each point is a mean over several neurons, so that the diagonal isn't 0."""
    rows = []
    for sweep in chosen_sweeps(readings, width):
        layers = clustered_layers(sweep)
        if not layers:
            continue
        values = sorted({one.value for one in sweep.maps})
        rows.append((sweep, values[0], layers))
        if len(values) > 1:
            rows.append((sweep, values[-1], layers))
    if not rows:
        return None
    figure, axes = canvas(2 * MAP_LAYERS, rows=len(rows), height=2.4)
    for panels, (sweep, value, layers) in zip(axes, rows, strict=True):
        for panel in panels:
            panel.set_axis_off()
        for k, layer in enumerate(layers):
            image = draw_one_layer(panels[2 * k : 2 * k + 2], sweep, value, layer)
        panels[0].set_ylabel(f"{sweep.about}\n{LABELS[sweep.varied]} {value_words(value)}")
    figure.colorbar(image, ax=axes, label="normalised distance", shrink=0.6, aspect=30)
    return figure


def clustered_layers(sweep: Sweep) -> list[str]:
    """Layers in which the run of most noise has fewer clusters than neurons: the most clustered, in their order."""
    if not sweep.maps:
        return []
    most = max(one.value for one in sweep.maps)
    shares = {one.layer: one.clusters / one.width for one in sweep.maps if one.value == most}
    clustered = sorted((layer for layer in shares if shares[layer] < 0.99), key=shares.get)[:MAP_LAYERS]
    return [layer for layer in shares if layer in clustered]


def draw_one_layer(panels, sweep: Sweep, value: float, layer: str):
    one = next(one for one in sweep.maps if one.layer == layer and one.value == value)
    for panel, part in zip(panels, ("incoming", "outgoing"), strict=True):
        panel.set_axis_on()
        extent = (0, one.width, one.width, 0)
        words = f"{layer}, {part}"
        if part == "incoming":
            words += f"\n{one.clusters} clusters of {one.width}"
        image = panel.imshow(getattr(one, part), vmin=0, vmax=2.5, cmap="magma", extent=extent)
        panel.set_title(words)
        panel.set(xticks=[0, one.width], yticks=[0, one.width])
        panel.grid(False)
    return image


# ======================================================================================
# Figure 6: dropping the learning rate
# ======================================================================================


def draw_drops(readings: dict, width: int | None = None):
    """Dropping the learning rate after so many steps. Left: test accuracy at the constant rate, and where the drops
    are. Middle: test accuracy with the curves aligned at the drop. Right: fraction of independent neurons of each
    layer at the drop. Lines: mean over seeds; band and bars: standard deviation and range of seeds. Stars:
    published, where width, data, batch size and rate agree with the paper's."""
    sweeps = []
    for sweep in chosen_sweeps(readings, width):
        if any(run.whole for run in sweep.runs):
            sweeps.append(sweep)
    if not sweeps:
        return None
    figure, axes = canvas(3, rows=len(sweeps), height=3.1)
    for row, sweep in zip(axes, sweeps, strict=True):
        looks = looks_of(drops(sweep))
        draw_before(row[0], sweep, looks)
        draw_after(row[1], sweep, looks)
        draw_at_drop(row[2], sweep, looks)
    return figure


def mean_curve(runs: list, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all runs have in common, mean and standard deviation over them."""
    shared = runs[0].steps
    for run in runs[1:]:
        shared = np.intersect1d(shared, run.steps)
    rows = np.array([getattr(run, key)[np.isin(run.steps, shared)] for run in runs])
    return shared, rows.mean(0), rows.std(0)


def draw_before(axes, sweep: Sweep, looks: dict) -> None:
    whole = [run for run in sweep.runs if run.whole]
    steps, mean, spread = mean_curve(whole, "accuracy")
    axes.plot(steps, mean, color="0.35", lw=1.2)
    band(axes, steps, mean, spread, "0.35")
    for step, (color, _) in looks.items():
        axes.axvline(step, color=color, ls="--", lw=1.2)
    thousands(axes.xaxis)
    axes.set(
        xlabel="steps", ylabel="test accuracy", title=f"{sweep.about}\n{counted(len(whole), 'seed')}, drops dashed"
    )


def draw_after(axes, sweep: Sweep, looks: dict) -> None:
    full_size = as_published(sweep, {**published.VGG_SETTINGS, "learning_rate": published.VGG_DROP_RATE})
    for step, branches in drops(sweep).items():
        color, shape = looks[step]
        steps, mean, spread = mean_curve(branches, "accuracy")
        before = [run.accuracy[run.steps == step][0] for run in sweep.runs if run.whole and (run.steps == step).any()]
        if before:  # joined to the run that the branch left
            steps = np.concatenate([[0], steps])
            mean = np.concatenate([[np.mean(before)], mean])
            spread = np.concatenate([[np.std(before)], spread])
        axes.plot(steps, mean, color=color, marker=shape, markevery=0.2, lw=1.2, label=f"{step:,}")
        band(axes, steps, mean, spread, color)
        if full_size and step in published.VGG_ACCURACY_AFTER:
            mark_published(
                axes, [0, 3000], [published.VGG_ACCURACY_BEFORE[step], published.VGG_ACCURACY_AFTER[step]], None
            )
    thousands(axes.xaxis)
    axes.set(xlabel="steps after the drop", ylabel="test accuracy", title="Aligned at the drop:\nthe accuracy jumps")
    if looks:
        axes.legend(title="drop at step", loc="lower right")


def draw_at_drop(axes, sweep: Sweep, looks: dict) -> None:
    fractions = {}
    for step in looks:
        rows = list(at_step(sweep, step).values())
        if rows:
            fractions[step] = np.array(rows)
    draw_layers(axes, fractions, looks)
    full_size = as_published(sweep, {**published.VGG_SETTINGS, "learning_rate": published.VGG_DROP_RATE})
    if full_size:
        layers = layers_of(sweep)
        places = [layers.index(layer) for layer in published.VGG_LAYERS]
        for step in fractions:
            if step in published.VGG_DROP:
                mark_published(axes, places, published.VGG_DROP[step], None)
    tick_layers(axes, layers_of(sweep))
    lowest = min([0.9, *(rows.min() for rows in fractions.values())])
    means = [rows.mean() for _, rows in sorted(fractions.items())]
    falling = len(means) > 1 and (np.diff(means) < 0).all()
    title = "The later the drop,\nthe fewer are independent" if falling else "Independent neurons\nat the drop"
    axes.set(ylim=(lowest - 0.03, 1.03), ylabel="fraction independent", title=title)


def paper_results(experiment: str) -> tuple[str, ...]:
    """Names of the paper's own results of an experiment."""
    return tuple(f"{network}_{experiment}" for network in PAPER_DATASETS)


SWEEP_RESULTS = (*paper_results("lr"), *paper_results("noise"), *paper_results("batch"))
FIGURES = {
    "fig1_quartic": Figure(draw_quartic, needs=("quartic",)),
    "fig2_neuron": Figure(draw_neuron, needs=("neuron",)),
    "fig3_pair": Figure(draw_pair, needs=("pair",)),
    "fig3_distances": Figure(draw_distance_maps, matching=is_sweep("lr"), wants=paper_results("lr")),
    "fig4_independent": Figure(draw_independent, matching=is_sweep("lr", "noise", "batch"), wants=SWEEP_RESULTS),
    "fig4_data": Figure(draw_data_sets, matching=is_sweep("lr")),
    "fig5_teacher_student": Figure(draw_student, needs=("diagonal",)),
    "fig5_minibatch": Figure(draw_minibatch, needs=("minibatch",)),
    "fig6_drop": Figure(draw_drops, matching=is_sweep("drop"), wants=paper_results("drop")),
}
