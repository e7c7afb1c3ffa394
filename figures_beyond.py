"""Figures of subnetworks.py, drawn from results/beyond_{extract,exponent,causes}.json alone."""

import matplotlib.pyplot as plt
import numpy as np

from claims_beyond import areas, column, fit, later_merged
from criteria import standard_error
from figures_theory import MARKERS, shades

PREDICTORS = {  # of who merges: colour, line
    "forecast": ("k", "-"),
    "exponent": ("#c0392b", "--"),
    "distance now": ("#1b6ca8", "-."),
}


def beyond_extraction(beyond_extract):
    """Parameters, FLOPs and accuracy of extracted networks by learning rate and label noise, at several thresholds."""
    rows, settings = beyond_extract["networks"], beyond_extract["settings"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.5))
    kinds = {(row["label_noise"] > 0, row["learning_rate"], row["label_noise"]) for row in rows}  # noisy ones last
    kinds, limits = [kind[1:] for kind in sorted(kinds)], sorted({row["redundant"] for row in rows})
    place, names = np.arange(len(kinds)), [f"{rate:g}" + f"\n{noise:g}" * (noise > 0) for rate, noise in kinds]
    calm = sum(noise == 0 for _, noise in kinds)

    def at_kinds(chosen, values):
        found = [[(row["learning_rate"], row["label_noise"]) == kind for row in chosen] for kind in kinds]
        found = [values[np.array(here)] for here in found]
        return np.array([value.mean() for value in found]), np.array([(value.min(), value.max()) for value in found]).T

    for k, (color, limit) in enumerate(zip(shades(len(limits)), limits, strict=True)):
        chosen = [row for row in rows if row["redundant"] == limit]
        shift, style = 0.08 * (k - len(limits) / 2 + 0.5), {"color": color, "marker": MARKERS[k], "ms": 5, "lw": 1.2}
        panels = (("parameters", np.divide), ("flops", np.divide), ("accuracy", np.subtract), ("tuned", np.subtract))
        for panel, (key, compare) in zip(axes, panels, strict=True):
            mean, ends = at_kinds(chosen, compare(column(chosen, "after", key), column(chosen, "before", key)))
            for part in (slice(0, calm), slice(calm, None)):  # a line for learning rates, and one for label noises
                bars = abs(ends - mean)[:, part]
                label = f"{limit:g}" if part.start == 0 else None
                panel.errorbar(place[part] + shift, mean[part], bars, **style, capsize=2, label=label)
    texts = ["parameters kept", "FLOPs kept", "test accuracy, change by extraction"]
    texts.append(f"the same after {settings['finetune']} steps at {settings['learning_rate']:g}")
    for panel, text in zip(axes, texts, strict=True):
        panel.set(xticks=place, xticklabels=names, xlabel="learning rate, below it label noise", ylabel=text)
    for panel, key in zip(axes[2:], ("accuracy", "tuned"), strict=True):
        panel.axhline(0, color="k", lw=0.8)
        whole = at_kinds(chosen, column(chosen, "before", key))[0]
        panel.set_title("whole: " + " ".join(f"{value:.2f}".lstrip("0") for value in whole), loc="left")
        limit = max(0.01, *(1.1 * abs(np.array(panel.get_ylim()))))
        panel.set_ylim(-limit, limit)
    axes[0].legend(title="redundant below", loc="lower left")
    seeds, steps = len({row["seed"] for row in rows}), {row["steps"] for row in rows}
    about = (
        f"VGG-16, narrow, {' and '.join(f'{s:,}' for s in sorted(steps))} steps, up to {seeds} seed{'s' * (seeds > 1)}"
    )
    axes[0].set_title(about, loc="left")
    axes[1].set_title("marker: mean of seeds, bar: range", loc="left")
    return figure


def scatter(axes, result, which, words):
    """Predicted against measured slopes, per 1,000 steps, a marker per group of neurons."""
    runs = result["runs"]
    names = list(runs[0]["groups"])
    ends = np.cumsum(list(runs[0]["groups"].values()))
    for k, (color, name, end) in enumerate(zip(shades(len(names)), names, ends, strict=True)):
        part = slice(end - runs[0]["groups"][name], end)
        x = np.concatenate([np.array(run["predicted"][part], float) for run in runs])
        y = np.concatenate([np.array(run[which][part], float) for run in runs])
        label = f"{name}: r = {np.corrcoef(x, y)[0, 1]:.2f}"
        axes.plot(x, y, MARKERS[k], color=color, ms=2.5, alpha=0.6, label=label, mew=0)
    both = np.concatenate([np.array(run[key], float) for run in runs for key in ("predicted", which)])
    line = np.nanmin(both), np.nanmax(both)
    axes.plot(line, line, "k--", lw=0.8)
    lines = ["distance: r"]
    for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 1), (1, 1.2), (1.2, 4)):
        count, correlation, _ = fit(result, which, low, high)
        lines += [f"{low:g} to {high:g}: {correlation:.3f} ({count})"] if count > 9 else []
    axes.text(0.98, 0.02, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom", fontsize=7)
    count, correlation, slope = fit(result, which)
    axes.set_title(f"{words}: r = {correlation:.2f}, slope {slope:.2f}, {count:,} pairs", loc="left")
    axes.set(xlabel="exponent per 1,000 steps", ylabel="slope of log distance per 1,000 steps")
    axes.legend(fontsize=7, markerscale=2, loc="upper left")


def draw_closed(axes, result):
    """Exponents where they are known, relative to what is expected."""
    cases = {"quartic": "quartic well", "neuron": "single neuron", "pair": "two neurons (slope, x 1,000)"}
    for k, (color, (case, words)) in enumerate(zip(shades(3), cases.items(), strict=True)):
        rows = [row for row in result["closed"] if row["case"] == case]
        scale = 1000 if case == "pair" else 1
        expected, found = scale * column(rows, "expected"), scale * column(rows, "exponent").ravel()
        axes.plot(expected, found, MARKERS[k], color=color, ms=6, label=words)
    axes.axline((0, 0), slope=1, color="k", ls="--", lw=0.8)
    axes.set(xlabel="closed form, or measured slope", ylabel="collapse exponent")
    axes.set_title("where it is known", loc="left")
    axes.legend(loc="upper left", fontsize=7)


def draw_roc(axes, result, words="merged {}: {} of {} pairs"):
    """Who will have arrived: true against false positives of three predictors, over the sets of all runs."""
    parts = [later_merged(run) for run in result["runs"]]
    merged = np.concatenate([part[1] for part in parts])
    found = areas(result) if merged.any() else {}
    for name, (color, line) in PREDICTORS.items() if merged.any() else ():
        order = np.argsort(-np.concatenate([part[0][name] for part in parts]))
        hits, misses = (np.cumsum(side[order]) / max(side.sum(), 1) for side in (merged, ~merged))
        label = "{}: {:.3f} ({:.3f} to {:.3f})".format(
            name if "pairs" in words else name.replace("distance", "size"), *found[name]
        )
        axes.plot(np.r_[0, misses], np.r_[0, hits], color=color, ls=line, lw=1.4, label=label)
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=":")
    run = result["runs"][0]
    axes.set(xlabel="false positives", ylabel="true positives")
    when = f"at step {run['steps'][-1]:,}, told at {run['steps'][0]:,}"
    axes.set_title(words.format(when, merged.sum(), f"{len(merged):,}"), loc="left")
    if found:
        axes.legend(title="area (95 %, bootstrap over neurons)", fontsize=7, loc="lower right")


def draw_parts(axes, result, what="pairs"):
    """What the exponents are made of, along training: distribution over sets."""
    parts = {key: np.array(result["parts"][key], float) for key in ("curvature", "noise", "decay", "exponent")}
    parts["sum of three"] = parts["curvature"] + parts["noise"] + parts["decay"]
    names = ["curvature", "noise", "decay", "sum of three", "exponent"]
    boxes = axes.boxplot([parts[name] for name in names], whis=(5, 95), showfliers=False, patch_artist=True, widths=0.6)
    for box, shade in zip(boxes["boxes"], ("0.85", "0.85", "0.85", "0.65", "0.65"), strict=True):
        box.set_facecolor(shade)
    for line in boxes["medians"]:
        line.set_color("k")
    axes.axhline(0, color="k", lw=0.8)
    axes.set_xticks(range(1, 6), names, rotation=12)
    axes.set_ylabel("per 1,000 steps")
    axes.set_title(f"along training: what moves {what} (5 to 95 %)", loc="left")


def draw_merged(axes, result):
    """How many pairs (or neurons) of each group have arrived, along training; all of them count here."""
    names = list(result["runs"][0]["groups"])
    shown = [k for k in range(len(names)) if any(np.array(run["merged"])[:, k].any() for run in result["runs"])]
    shown = shown if len(names) > 4 else range(len(names))
    for color, k in zip(shades(len(shown)), shown, strict=True):
        name = names[k]
        for run in result["runs"]:
            label = name if run is result["runs"][0] else None
            axes.plot(
                run["steps"], np.array(run["merged"])[:, k], color=color, marker=MARKERS[k], ms=4, lw=1.2, label=label
            )
    axes.set(xlabel="step", ylabel="merged pairs (normalised distance < 0.1)", ylim=(0, None))
    axes.set_title("who merges when: every pair of a group, a line per seed", loc="left")
    axes.legend(fontsize=7)


def beyond_exponent(beyond_exponent):
    """Exponents against closed forms and measured slopes; who merges later; what the exponents are made of."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 8))
    window = beyond_exponent["settings"]["window"]
    draw_closed(axes[0, 0], beyond_exponent)
    scatter(axes[0, 1], beyond_exponent, "same", "same steps")
    scatter(axes[0, 2], beyond_exponent, "next", f"next {window:,} steps")
    draw_roc(axes[1, 0], beyond_exponent)
    draw_merged(axes[1, 1], beyond_exponent)
    draw_parts(axes[1, 2], beyond_exponent)
    return figure


def beyond_vanishing(beyond_vanishing):
    """Which neurons vanish, told by their exponents before the first has; what the exponents are made of."""
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2))
    draw_merged(axes[0], beyond_vanishing)
    run = beyond_vanishing["runs"][0]
    noise = f"label noise {run['settings']['label_noise']:g}"
    axes[0].set(ylabel="vanished neurons (norm < 0.1 of the largest)", xlim=(run["steps"][0], run["steps"][-1]))
    axes[0].set_title(f"{noise}: who vanishes when, a line per seed", loc="left")
    for late, look, words in (
        (False, {"color": "0.6", "mfc": "none"}, "stays"),
        (True, {"color": "#c0392b"}, "vanishes"),
    ):
        parts = [(*later_merged(run)[1:], run) for run in beyond_vanishing["runs"]]
        size = np.concatenate([np.sqrt(np.array(r["distance"][0])[free])[gone == late] for gone, free, r in parts])
        rate = np.concatenate([np.array(r["predicted"], float)[free][gone == late] for gone, free, r in parts])
        axes[1].plot(size, rate, "o", ms=3.5, label=f"{words} ({len(size)})", zorder=2 + late, **look)
    axes[1].axhline(0, color="k", lw=0.8)
    axes[1].set(xlabel=f"norm at step {run['steps'][0]:,} / largest of the layer", ylabel="exponent per 1,000 steps")
    axes[1].set_title("all neurons of all layers, all seeds", loc="left")
    axes[1].legend()
    draw_roc(axes[2], beyond_vanishing, "vanished {}: {} of {} neurons")
    draw_parts(axes[3], beyond_vanishing, "small neurons")
    return figure


def beyond_causes(beyond_causes):
    """Exponents of pairs with less noise, down to none, with and without weight decay; and what they are made of."""
    rows, settings = beyond_causes["rows"], beyond_causes["settings"]
    sizes, decays = (sorted({row[key] for row in rows}) for key in ("batch_size", "weight_decay"))
    figure, panels = plt.subplots(1, len(decays), figsize=(5.5 * len(decays), 4), sharey=True, squeeze=False)
    panels = panels[0]
    marks = {"curvature": (-0.3, "v"), "noise": (-0.22, "^"), "decay": (0.22, "s")}
    for row in rows:
        axes, k = panels[decays.index(row["weight_decay"])], sizes.index(row["batch_size"])
        low, high = np.percentile(row["by_pair"], [5, 95])
        axes.plot([k, k], [low, high], color="0.8", lw=16, solid_capstyle="butt", zorder=1)
        parts = {key: np.mean(row[key]) for key in marks}
        for key, (dx, marker) in marks.items():
            axes.plot(k + dx, parts[key], marker, color="#1b6ca8", ms=6, label=None if k else key)
        axes.plot(k + 0.3, sum(parts.values()), "x", color="#c0392b", ms=7, mew=2, label=None if k else "their sum")
        rates = row["exponent"]
        label = None if k else "exponent: mean, 2 s.e."
        axes.errorbar(k, np.mean(rates), 2 * standard_error(rates), fmt="ko", ms=6, capsize=4, label=label)
    names = [f"{size:,}" for size in sizes[:-1]] + [f"{sizes[-1]:,}\n(full batch: no noise)"]
    for axes, decay in zip(panels, decays, strict=True):
        axes.axhline(0, color="k", lw=0.8)
        axes.set(xticks=range(len(sizes)), xticklabels=names, xlabel="batch size")
        axes.set_title(f"weight decay {decay:g}", loc="left")
    panels[0].set_ylabel("per 1,000 steps")
    panels[0].plot([], [], color="0.8", lw=6, label="5 to 95 % of pairs")
    panels[0].legend(fontsize=8)
    about = f"{settings['steps']:,} steps from step {settings['early']:,}, {len(rows[0]['by_pair'])} pairs"
    panels[-1].set_title(about, loc="right")
    return figure


FIGURES = {
    "beyond_extraction": (("beyond_extract",), beyond_extraction),
    "beyond_exponent": (("beyond_exponent", "pair"), lambda exponent, pair: beyond_exponent(exponent)),
    "beyond_vanishing": (("beyond_vanishing",), beyond_vanishing),
    "beyond_causes": (("beyond_causes",), beyond_causes),
}
