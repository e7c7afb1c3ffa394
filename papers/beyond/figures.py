"""Figures of subnetworks.py. Each draw function's docstring is the figure's caption."""

import math

import numpy as np
from matplotlib.ticker import MaxNLocator

from papers.beyond.readings import Causes, Exponents, Extraction, Shipped, Switch, Window, fit_slopes
from papers.claim import standard_error
from papers.plots import (
    BLUE,
    RED,
    Figure,
    canvas,
    legend_below,
    legend_under,
    marker,
    shades,
    thousands,
)

# ======================================================================================
# Extracted networks
# ======================================================================================


def draw_extraction(extraction: Extraction):
    """Networks extracted from trained ones (narrow VGG-16), by learning rate and below it label noise, at several
    redundancies: below it two neurons count as one. Share of parameters and of FLOPs kept; change of the test
    accuracy by extraction, and after some steps of fine-tuning of both networks. Marker: mean over seeds, bar:
    range."""
    figure, axes = canvas(2, rows=2, height=2.7)
    rows = extraction.networks
    kinds = sorted({(one.label_noise > 0, one.learning_rate, one.label_noise) for one in rows})  # noisy ones last
    limits = sorted({one.redundant for one in rows})
    panels = {
        "parameters": (axes[0, 0], "parameters kept"),
        "flops": (axes[0, 1], "FLOPs kept"),
        "accuracy": (axes[1, 0], "change of test accuracy"),
        "tuned": (axes[1, 1], f"change, {extraction.settings['finetune']} steps later"),
    }
    for key, (panel, words) in panels.items():
        for k, color in enumerate(shades(len(limits))):
            chosen = [one for one in rows if one.redundant == limits[k]]
            shift = 0.12 * (k - (len(limits) - 1) / 2)
            draw_at_kinds(panel, chosen, kinds, key, shift, color, marker(k), f"{limits[k]:g}")
        names = [f"{rate:g}" + f"\n{noise:g}" * (noise > 0) for _, rate, noise in kinds]
        panel.set_xticks(range(len(kinds)), names)
        panel.set_ylabel(words)
        if key in ("accuracy", "tuned"):
            panel.axhline(0, color="k", lw=0.8)
            panel.set_xlabel("learning rate, below it label noise")
    axes[0, 0].set_title("Parameters of the network inside")
    axes[0, 1].set_title("Multiplications of the network inside")
    changes = [abs(one.after["accuracy"] - one.before["accuracy"]) for one in rows if one.redundant == limits[0]]
    axes[1, 0].set_title(f"Redundant below {limits[0]:g}: accuracy moves by {max(changes):.3f} or less")
    axes[1, 1].set_title("The same after some fine-tuning of both")
    legend_below(figure, [axes[0, 0]], 3, "redundant below")
    return figure


def draw_random(extraction: Extraction):
    """Perceptrons trained with label noise (one per panel), extracted at three redundancies, against what remains when
    as many neurons of each layer as at the paper's threshold are removed at random. Dotted: the whole network's test
    accuracy. The paper's threshold is the leftmost."""
    seeds = sorted({one.seed for one in extraction.networks})
    figure, axes = canvas(len(seeds), height=2.8, sharey=True)
    for panel, seed in zip(axes[0], seeds, strict=True):
        rows = [one for one in extraction.networks if one.seed == seed]
        rows.sort(key=lambda one: one.redundant)
        places = range(len(rows))
        panel.axhline(rows[0].before["accuracy"], color="k", ls=":", lw=1, label="the whole network")
        panel.plot(places, [one.after["accuracy"] for one in rows], "o", color="k", ms=6, label="extracted")
        for place, one in zip(places, rows, strict=True):
            if one.random_accuracies is not None:
                around = np.linspace(-0.2, 0.2, len(one.random_accuracies))
                panel.plot(place + around, one.random_accuracies, "x", color=RED, ms=5, label="random neurons removed")
        ticks = [f"{one.redundant:g}\n{one.kept:.0%}" for one in rows]
        panel.set_xticks(places, ticks)
        panel.set_xlim(-0.5, len(rows) - 0.5)
        panel.set_ylim(bottom=0)
        panel.set_title(f"seed {seed}")
        panel.set_xlabel("redundant below,\nparameters kept")
    axes[0, 0].set_title(f"It matters which go\nseed {seeds[0]}")
    axes[0, 0].set_ylabel("test accuracy")
    legend_below(figure, [axes[0, 0]], 3)
    return figure


def draw_at_kinds(axes, rows, kinds, key, shift, color, shape, label) -> None:
    places, means, below, above = [], [], [], []
    for place, (_, rate, noise) in enumerate(kinds):
        values = []
        for one in rows:
            if one.learning_rate == rate and one.label_noise == noise:
                relative = key in ("parameters", "flops")
                change = one.after[key] / one.before[key] if relative else one.after[key] - one.before[key]
                values.append(change)
        if values:
            mean = np.mean(values)
            places.append(place + shift)
            means.append(mean)
            below.append(mean - min(values))
            above.append(max(values) - mean)
    axes.errorbar(places, means, [below, above], color=color, marker=shape, ms=5, ls="none", capsize=2, label=label)


# ======================================================================================
# Exponents
# ======================================================================================


def draw_exponent(exponents: Exponents):
    """Collapse exponents of pairs of neurons, measured early in training, against closed forms (known), the slopes
    of log distances over the same steps and over the next (grey: number of pairs, darker is more), and against what
    happens by the end of the run: who merges (areas under the curve with 95 % intervals), when, and what the
    exponents are made of (boxes: quartiles, whiskers 5 to 95 % of pairs). `watching` carries the distance on at its
    own measured slope. `merged pairs` counts all pairs of a group, the areas those followed from the start; a pair that
    has merged may part again."""
    figure, axes = canvas(3, rows=2, height=2.9)
    draw_known(axes[0, 0], exponents)
    draw_slopes(axes[0, 1], exponents, "same", "Over the same steps:\nnear the set it is the slope")
    draw_slopes(axes[0, 2], exponents, "next", "Over the next 1,000 steps:\nweakly")
    draw_roc(axes[1, 0], exponents, "pairs")
    draw_arrivals(axes[1, 1], exponents, "merged pairs")
    draw_parts(axes[1, 2], exponents)
    return figure


def draw_known(axes, exponents: Exponents) -> None:
    cases = {"quartic": "quartic well", "neuron": "single neuron", "pair": "two neurons, x 1,000"}
    for k, (case, words) in enumerate(cases.items()):
        rows = [one for one in exponents.known if one.case == case]
        scale = 1000 if case == "pair" else 1
        expected = [scale * one.expected for one in rows]
        found = [scale * one.exponent for one in rows]
        axes.plot(expected, found, marker(k), color=shades(3)[k], ms=6, label=words)
    axes.axline((0, 0), slope=1, color="k", ls="--", lw=0.8)
    axes.set(
        xlabel="closed form, or measured slope", ylabel="collapse exponent", title="Where it is known,\nit is exact"
    )
    legend_under(axes)


def draw_slopes(axes, exponents: Exponents, measured: str, title: str) -> None:
    x = np.concatenate([run.predicted for run in exponents.runs])
    y = np.concatenate([getattr(run, measured) for run in exponents.runs])
    ends = np.quantile(np.concatenate([x, y]), [0.002, 0.998])
    axes.hexbin(x, y, gridsize=36, cmap="Greys", mincnt=1, bins="log", extent=(*ends, *ends))
    near = np.concatenate([run.now < 0.5 for run in exponents.runs])
    axes.plot(x[near], y[near], "o", color=RED, ms=4, mec="w", mew=0.5, label="distance < 0.5")
    axes.plot(ends, ends, "k--", lw=0.8)
    lines = []
    for low, high in ((0, 0.5), (0.5, 1), (1, 4)):
        fit = fit_slopes(exponents.runs, measured, low, high)
        if fit.count > 9:
            lines.append(f"{low:g} to {high:g}: r = {fit.correlation:.2f}")
    axes.set(xlim=ends, ylim=ends, xlabel="exponent per 1,000 steps", ylabel="slope of log distance", title=title)
    legend_under(axes, "\n".join(lines))


LINES = {  # of predictors: colour, line
    "forecast": ("k", "-"),
    "watching": (RED, "--"),
    "exponent": ("#e9a03b", ":"),
    "distance now": (BLUE, "-."),
}


def draw_roc(axes, exponents: Exponents, what: str) -> None:
    """Who will have arrived: true against false positives, over the sets of all runs."""
    arrived = np.concatenate([run.arrived for run in exponents.runs])
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=":")
    axes.set(
        xlabel="false positives",
        ylabel="true positives",
        title=f"Who arrives:\n{arrived.sum()} of {len(arrived):,} {what}",
    )
    if not arrived.any() or arrived.all():
        return
    found = exponents.areas
    for name, (color, line) in LINES.items():
        score = np.concatenate([run.scores()[name] for run in exponents.runs])
        order = np.argsort(-score, kind="stable")
        hits = np.cumsum(arrived[order]) / arrived.sum()
        misses = np.cumsum(~arrived[order]) / (~arrived).sum()
        low, high = found.interval(name)
        words = name if what == "pairs" else name.replace("distance", "size")
        label = f"{words} {found.found[name]:.2f} ({low:.2f}, {high:.2f})"
        axes.plot(np.r_[0, misses], np.r_[0, hits], color=color, ls=line, label=label)
    legend_under(axes)


def paper_layer(name: str) -> str:
    """VGG-16's layers by the paper's names; others keep their own."""
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    part, _, place = name.partition(".")
    if part == "features" and place.isdigit() and int(place) in places:
        return f"conv{places.index(int(place)) + 1}"
    if part == "classifier" and place.isdigit():
        return f"fc{14 + int(place) // 2}"
    return name


def draw_arrivals(axes, exponents: Exponents, words: str) -> None:
    """How many have arrived in each group, along training: a line per seed."""
    names = list(exponents.runs[0].groups)
    if any(run.merged is None for run in exponents.runs):
        axes.set_axis_off()
        return
    moving = [k for k in range(len(names)) if any(run.merged[:, k].any() for run in exponents.runs)]
    for color, k in zip(shades(len(moving)), moving, strict=True):
        for seed, run in enumerate(exponents.runs):
            label = paper_layer(names[k]) if seed == 0 else None
            axes.plot(
                run.steps, run.merged[:, k], color=color, marker=marker(moving.index(k)), ms=3.5, lw=1, label=label
            )
    thousands(axes.xaxis)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="step", ylabel=words, ylim=(0, None), title="When they arrive\n(a line per seed)")
    if moving:
        legend_under(axes, columns=3)


def draw_parts(axes, exponents: Exponents) -> None:
    """What the exponents are made of: distribution over sets."""
    parts = dict(exponents.parts)
    parts["sum"] = parts["curvature"] + parts["noise"] + parts["decay"]
    names = ["curvature", "noise", "decay", "sum", "exponent"]
    rows = [parts[name] for name in names]
    boxes = axes.boxplot(rows, whis=(5, 95), showfliers=False, patch_artist=True, widths=0.6)
    for box, shade in zip(boxes["boxes"], ("0.85", "0.85", "0.85", "0.6", "0.6"), strict=True):
        box.set_facecolor(shade)
    for line in boxes["medians"]:
        line.set_color("k")
    axes.axhline(0, color="k", lw=0.8)
    axes.set_xticks(range(1, 6), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set(ylabel="per 1,000 steps", title="What moves them:\ndecay against noise")


def draw_vanishing(exponents: Exponents):
    """Which neurons vanish, told before the first has. Above left: vanished neurons of each layer, a line per seed.
    Above right: exponent against size of every neuron early in training. Below left: who vanishes; `watching`
    carries the size on at its own slope, measured over the same steps: it tells as much as the exponent. Below
    right: what exponents are made of."""
    figure, axes = canvas(2, rows=2, height=3.0)
    first = exponents.runs[0]
    draw_arrivals(axes[0, 0], exponents, "vanished neurons")
    axes[0, 0].set_title(f"Label noise {first.label_noise:g}: who vanishes when")
    if axes[0, 0].get_legend():
        legend_under(axes[0, 0], columns=4)
    for gone, color, fill, words in ((False, "0.6", "none", "stays"), (True, RED, RED, "vanishes")):
        sizes = np.concatenate([np.sqrt(run.now[run.free])[run.arrived == gone] for run in exponents.runs])
        rates = np.concatenate([run.predicted[run.free][run.arrived == gone] for run in exponents.runs])
        axes[0, 1].plot(
            sizes, rates, "o", ms=3, color=color, mfc=fill, label=f"{words} ({len(sizes):,})", zorder=2 + gone
        )
    axes[0, 1].axhline(0, color="k", lw=0.8)
    axes[0, 1].set(xlabel=f"norm at step {exponents.early:,} / largest of the layer", ylabel="exponent per 1,000 steps")
    axes[0, 1].set_title("Those with the lowest exponents do")
    legend_under(axes[0, 1], columns=2)
    draw_roc(axes[1, 0], exponents, "neurons")
    draw_parts(axes[1, 1], exponents)
    return figure


def draw_edge(windows: list[Window], switches: list[Switch]):
    """Does the exponent tell more than watching? Left: who vanishes, from shorter and shorter windows (area under the
    ROC curve, 95 % intervals). Middle: correlation over neurons of the slope after a change of settings with the
    exponents at the new setting, taken before the change, and with the slopes before it; a marker per seed. Right: what
    the change does on average, slope of the switched run less that of the one that goes on, against what the
    exponents say."""
    figure, axes = canvas(3, height=3.3)
    draw_windows(axes[0, 0], windows)
    seeds = sorted({one.seed for one in switches})
    unchanged = {one.seed: one.going_on for one in switches if one.going_on is not None}
    draw_correlations(axes[0, 1], [*unchanged.values(), *switches], seeds)
    draw_changes(axes[0, 2], [one for one in switches if one.going_on is not None])
    return figure


def draw_windows(axes, windows: list[Window]) -> None:
    lengths = [window.steps for window in windows]
    for k, (name, (color, line)) in enumerate(LINES.items()):
        found = [window.areas for window in windows]
        middle = np.array([one.found[name] for one in found])
        ends = np.array([one.interval(name) for one in found]).T
        places = np.array(lengths) * 1.05 ** (k - 1.5)  # beside each other
        errors = [middle - ends[0], ends[1] - middle]
        words = name.replace("distance", "size")
        axes.errorbar(places, middle, errors, color=color, ls=line, marker=marker(k), ms=5, capsize=3, label=words)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set(xlabel="steps watched", ylabel="area under the ROC curve", title="Who vanishes,\ntold from few steps")
    legend_under(axes, columns=2)


NAMES = {"learning_rate": "rate", "batch_size": "batch", "label_noise": "noise"}


def name_of(one: Switch) -> str:
    """`rate 0.1`"""
    if one.changed == "nothing":
        return "nothing"
    return f"{NAMES.get(one.changed, one.changed)} {one.value:g}"


def draw_correlations(axes, switches: list[Switch], seeds: list[int]) -> None:
    names = list(dict.fromkeys(name_of(one) for one in switches))
    ways = {"exponents at the new setting": ("told", "o", BLUE, 0.12), "slopes before": ("watched", "s", RED, -0.12)}
    for words, (field, shape, color, shift) in ways.items():
        for seed in seeds:
            rows = [one for one in switches if one.seed == seed]
            places = [names.index(name_of(one)) + shift for one in rows]
            values = [getattr(one, field) for one in rows]
            fill = color if field == "told" else "none"
            label = words if seed == seeds[0] else None
            axes.plot(places, values, shape, color=color, mfc=fill, ms=6, label=label)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set(ylim=(-0.5, 1.1), ylabel="correlation", title="Slopes after a switch,\nneuron by neuron")
    axes.axhline(0, color="k", lw=0.5)
    axes.legend(loc="upper left")


def draw_changes(axes, switches: list[Switch]) -> None:
    names = list(dict.fromkeys(name_of(one) for one in switches))
    for k, name in enumerate(names):
        rows = [one for one in switches if name_of(one) == name]
        told = [one.change_told.mean() for one in rows]
        found = [one.change.mean() for one in rows]
        axes.plot(told, found, marker(k), color=shades(len(names))[k], ms=7, label=name)
    axes.axline((0, 0), slope=1, color="k", ls="--", lw=0.8)
    axes.axhline(0, color="k", lw=0.5)
    axes.axvline(0, color="k", lw=0.5)
    axes.set(
        xlabel="change of exponents", ylabel="change of slopes", title="What it does on average\n(per 1,000 steps)"
    )
    legend_under(axes, columns=2)


def draw_causes(causes: Causes):
    """Exponents of pairs with less and less noise, down to the full batch, without weight decay (left) and with it
    (right); and what they are made of. Grey: 5 to 95 % of pairs; dots: mean over pairs, 2 standard errors of the
    replicas of noise."""
    figure, axes = canvas(len(causes.weight_decays), height=3.2, sharey=True)
    marks = {"curvature": (-0.26, "v"), "noise": (-0.13, "^"), "decay": (0.13, "s")}
    for panel, decay in zip(axes[0], causes.weight_decays, strict=True):
        for place, size in enumerate(causes.batch_sizes):
            row = causes.at(size, decay)
            label = place == 0
            low, high = np.percentile(row.by_pair, [5, 95])
            panel.plot([place, place], [low, high], color="0.8", lw=7, solid_capstyle="butt", zorder=1)
            parts = {name: getattr(row, name).mean() for name in marks}
            for name, (shift, shape) in marks.items():
                panel.plot(place + shift, parts[name], shape, color=BLUE, ms=6, label=name if label else None)
            total = sum(parts.values())
            panel.plot(place + 0.26, total, "x", color=RED, ms=7, mew=2, label="their sum" if label else None)
            error = 2 * standard_error(row.exponent) if len(row.exponent) > 1 else 0
            words = "exponent" if label else None
            panel.errorbar(place, row.exponent.mean(), error, fmt="ko", ms=5, capsize=4, label=words, zorder=4)
        names = [f"{size:,}" for size in causes.batch_sizes[:-1]] + [f"{causes.batch_sizes[-1]:,}\n(full: no noise)"]
        panel.set_xticks(range(len(names)), names)
        panel.axhline(0, color="k", lw=0.8)
        panel.set_xlabel("batch size")
        words = "The less noise, the higher the exponent" if decay == 0 else "Exponents are lower with decay"
        panel.set_title(f"{words}\n(weight decay {decay:g})")
        panel.set_xlim(-0.5, len(names) - 0.5)
    axes[0, 0].set_ylabel("per 1,000 steps")
    legend_below(figure, [axes[0, 0]], 5)
    return figure


# ======================================================================================
# Networks that packages ship
# ======================================================================================

COLLAPSED = {"vanishing": ("vanished", "1.0", "...."), "redundant": ("redundant", "0.7", "////")}
CONSTANT = ("constant", "0.35", None)


def draw_wild(networks: list[Shipped]):
    """Trained networks that packages ship. Left: the share of their neurons that has collapsed at the paper's
    thresholds; a constant neuron says its offset alone, and may be redundant too, so it has a bar of its own. Right:
    parameters that extraction takes out, at the paper's thresholds and only where a neuron lies on its set to a
    thousandth; beside each bar by how much the outputs change, in standard deviations."""
    figure, (axes,) = canvas(2, height=0.6 + 0.36 * len(networks), sharey=True)
    places = np.arange(len(networks))
    starts = np.zeros(len(networks))
    for key, (label, color, hatch) in COLLAPSED.items():
        shares = np.array([100 * getattr(one, key) / one.width for one in networks])
        axes[0].barh(places - 0.18, shares, 0.34, starts, color=color, hatch=hatch, edgecolor="0.2", label=label)
        starts = starts + shares
    label, color, hatch = CONSTANT
    constant = [100 * one.constant / one.width for one in networks]
    axes[0].barh(places + 0.18, constant, 0.34, color=color, hatch=hatch, edgecolor="0.2", label=label)
    axes[0].set_yticks(places, [f"{one.name}\n{one.width:,} neurons" for one in networks])
    axes[0].invert_yaxis()
    axes[0].set(xlabel="share of the neurons, %", title="Little has collapsed")
    axes[0].legend(loc="lower right")
    for shift, key, color, label in ((-0.18, "paper", "0.7", "paper's thresholds"), (0.18, "exact", "0.35", "exact")):
        cuts = [getattr(one, key) for one in networks]
        removed = [100 * one.removed(cut) for one, cut in zip(networks, cuts, strict=True)]
        axes[1].barh(places + shift, removed, 0.34, color=color, edgecolor="0.2", label=label)
        for place, share, cut in zip(places, removed, cuts, strict=True):
            if share > 0:
                axes[1].annotate(
                    f"{cut.change:.1g}",
                    (share, place + shift),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                )
    axes[1].margins(x=0.15)
    axes[1].set(
        xlabel="parameters taken out, % (beside: change of the outputs)", title="Taking it out isn't always free"
    )
    axes[1].legend(loc="lower right")
    return figure


BY_LAYER = ("MTCNN O-Net", "EfficientNet-Lite1")  # a small one, a large one
MOST_NAMES = 12  # of layers that fit beside a panel


def draw_wild_layers(networks: list[Shipped]):
    """Where trained networks that packages ship have collapsed: layer by layer, first above, the share of vanished
    and redundant neurons at the paper's thresholds, and below it that of constant ones, which may be redundant too.
    Drawn are a small and a large network in which something has; docs/your_network.md has the numbers of all."""
    chosen = [one for one in networks if one.name in BY_LAYER and one.vanishing + one.redundant + one.constant > 0]
    if not chosen:
        return None
    figure, (axes,) = canvas(len(chosen), height=4.2)
    for panel, network in zip(axes, chosen, strict=True):
        places = np.arange(len(network.layers))
        starts = np.zeros(len(places))
        for key, (label, color, hatch) in COLLAPSED.items():
            shares = np.array([100 * getattr(layer, key) / layer.width for layer in network.layers])
            panel.barh(places - 0.2, shares, 0.4, starts, color=color, hatch=hatch, edgecolor="0.2", label=label)
            starts = starts + shares
        label, color, hatch = CONSTANT
        constant = [100 * layer.constant / layer.width for layer in network.layers]
        panel.barh(places + 0.2, constant, 0.4, color=color, hatch=hatch, edgecolor="0.2", label=label)
        every = math.ceil(len(places) / MOST_NAMES)
        panel.set_yticks(places[::every], [short_layer(layer.name) for layer in network.layers[::every]])
        panel.invert_yaxis()
        panel.set_xlim(0, max(1.0, 1.1 * panel.dataLim.x1))
        panel.set(xlabel="share of the neurons, %", title=network.name)
    legend_below(figure, [axes[0]], 3)
    return figure


def short_layer(name: str) -> str:
    """Of a long path its end, which tells the layer's kind, and the block's number."""
    short = name.replace("encoder.layers.", "").replace("_blocks.", "").replace("self_attn", "attention")
    return short.lstrip("_")


FIGURES = {
    "beyond_extraction": Figure(draw_extraction, needs=("beyond_extract",)),
    "beyond_random": Figure(draw_random, needs=("beyond_extract_noisy",)),
    "beyond_exponent": Figure(draw_exponent, needs=("beyond_exponent",)),
    "beyond_vanishing": Figure(draw_vanishing, needs=("beyond_vanishing",)),
    "beyond_edge": Figure(draw_edge, needs=("beyond_windows_mlp", "beyond_switch_mlp")),
    "beyond_causes": Figure(draw_causes, needs=("beyond_causes",)),
    "beyond_wild": Figure(draw_wild, needs=("beyond_wild",)),
    "beyond_wild_layers": Figure(draw_wild_layers, needs=("beyond_wild",)),
}
