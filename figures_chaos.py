"""Figures of *Chaotic Dynamics*, drawn from results/{pruning,delay,divergence,subspace}.json alone."""

import matplotlib.pyplot as plt
import numpy as np

# The published Figure 2a, digitised to +-0.01: batch accuracy, centred mean of 100 steps, one run each, unseeded.
PAPER_STEPS = np.array([1000, 2000, 3000, 5000, 7000, 10000, 12000, 15000, 18000])
PAPER = {
    "sgd": [0.303, 0.312, 0.355, 0.505, 0.605, 0.722, 0.763, 0.818, 0.855],
    "chaotic@10000": [0.348, 0.350, 0.398, 0.471, 0.579, 0.717, 0.741, 0.755, 0.780],
    "chaotic@5000": [0.336, 0.439, 0.450, 0.532, 0.539, 0.555, 0.574, 0.607, 0.630],
    "chaotic@2000": [0.363, 0.352, 0.349, 0.363, 0.396, 0.413, 0.427, 0.433, 0.449],
}
PAPER_SETTINGS = {"dataset": "usps", "architecture": "mlp", "activation": "sigmoid", "steps": 18240, "k": None}
PAPER_SETTINGS |= {"learning_rate": 1e-3, "batch_size": 8, "momentum": 0.0, "noise": None}
STYLES = {  # colour, line, marker: told apart in greyscale too
    "sgd": ("k", "-", "o", "SGD"),
    "chaotic@10000": ("#1b6ca8", "--", "s", "CGD from 10,000"),
    "chaotic@5000": ("#2a9d8f", "-.", "D", "CGD from 5,000"),
    "chaotic@2000": ("#e9a03b", (0, (5, 1, 1, 1, 1, 1)), "^", "CGD from 2,000"),
    "chaotic@0": ("#c0392b", ":", "v", "CGD from 0"),
    "pos@0": ("#8e9aaf", "--", "P", "positive pruned"),
    "neg@0": ("#6d597a", "-.", "X", "negative pruned"),
}
KINDS = {
    "max_chaos": ("#c0392b", "-", "o", "most chaotic"),
    "randn_chaos": ("#e9a03b", "--", "s", "random chaotic"),
    "randn": ("k", "-.", "D", "random"),
    "randn_convergence": ("#2a9d8f", (0, (5, 1, 1, 1, 1, 1)), "^", "random convergent"),
    "max_convergence": ("#1b6ca8", ":", "v", "most convergent"),
}


def style(name):
    """Colour, line, marker and label of a variant, also of one that isn't the paper's."""
    return STYLES.get(name, ("0.4", "--", "*", "CGD " + name.replace("@", " from ")))


def first_step(name):
    return int(name.partition("@")[2] or 0)


def curve(result, name, key, smooth=1):
    """Steps (centres of bins) and values [bins, seeds] of a curve, averaged over `smooth` bins."""
    values = np.array(result["runs"][name][key], dtype=float)
    usable = max(len(values) // smooth, 1) * smooth
    values = values[:usable].reshape(-1, min(smooth, usable), values.shape[1]).mean(1)
    return first_step(name) + result["bin"] * smooth * (np.arange(len(values)) + 0.5), values


def at(result, name, steps):
    """Accuracies [steps, seeds] around the steps: mean of the bin that ends there and the one that starts there.

    Before its first pruned step a run is the SGD run.
    """
    values, start = np.array(result["runs"]["sgd"]["accuracy"], dtype=float), first_step(name) // result["bin"]
    if name != "sgd":
        values = np.concatenate([values[:start], np.array(result["runs"][name]["accuracy"], dtype=float)])
    left = np.clip(np.asarray(steps) // result["bin"] - 1, 0, len(values) - 2)
    return (values[left] + values[left + 1]) / 2


def final(result, name, key="accuracy"):
    """Mean over the last epoch, per seed; the last bin may be short and is left out if it is."""
    count = max(round(result["epoch"] / result["bin"]), 1)
    values = np.array(result["runs"][name][key], dtype=float)
    values = values[:-1] if result["settings"]["steps"] % result["bin"] and len(values) > count else values
    return values[-count:].mean(0)


def band(axes, steps, values, name, label=None):
    """Mean over seeds as a line, plus and minus one standard deviation as a band."""
    color, line, _, text = style(name)
    mean, spread = values.mean(1), values.std(1, ddof=1) if values.shape[1] > 1 else 0 * values[:, 0]
    axes.plot(steps, mean, color=color, ls=line, lw=1.4, label=label or text)
    axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.18, lw=0)


def chance(axes, result):
    axes.axhline(result["largest_class"], color="0.5", lw=0.8, ls=(0, (1, 3)))
    axes.annotate("largest class", (1, result["largest_class"]), xycoords=("axes fraction", "data"), ha="right",
                  va="bottom", size=7, color="0.35")  # fmt: skip


def title(result):
    s = result["settings"]
    net = {"mlp": "MLP 256-20-10", "cnn": "CNN"}[s["architecture"]]
    seeds = f", {s['seeds']} seeds" if "seeds" in s else f", seed {s['seed']}"
    return f"{net}, {s['activation']}, {s['dataset']}{seeds}"


def draw_pruning(pruning):
    """Accuracy, loss, kept share of the gradient and extreme curvature of SGD and CGD pruned from step 0."""
    r = pruning
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.5))
    smooth = 5 if r["settings"]["steps"] >= 5000 else 1
    same = {name: run["same_as"] for name, run in r["runs"].items() if "same_as" in run}
    for name in r["runs"]:
        if name in same:
            continue
        twin = " = negative" if name in same.values() else ""
        label = {"chaotic@0": f"chaotic{twin} pruned"}.get(name, style(name)[3])
        for panel, key in zip(axes, ("accuracy", "loss", "kept"), strict=False):
            band(panel, *curve(r, name, key, smooth), name, label=label)
        steps, high = curve(r, name, "eigenvalue_max", smooth)
        _, low = curve(r, name, "eigenvalue_min", smooth)
        color, line = style(name)[:2]
        axes[3].plot(steps, high.mean(1), color=color, ls=line, lw=1.4)
        axes[3].plot(steps, -low.mean(1), color=color, ls=line, lw=0.8)
    chance(axes[0], r)
    negative = np.nanmean(np.array(r["runs"]["sgd"]["negative"], dtype=float))
    if r["settings"]["architecture"] == "mlp" and r["settings"]["batch_size"] == 8:
        random = 1 - negative / 336
        axes[2].axhline(random, color="0.5", lw=0.8, ls=(0, (1, 3)))
        axes[2].annotate("a gradient of random direction", (0.02, random - 0.01), xycoords=("axes fraction", "data"),
                         va="top", size=7, color="0.35")  # fmt: skip
    limit = 2 / r["settings"]["learning_rate"]
    axes[3].axhline(limit, color="k", lw=0.8, ls="--")
    text = f"2 / learning rate = {limit:,.0f}"
    axes[3].annotate(text, (0.03, 0.85 * limit), xycoords=("axes fraction", "data"), va="top", size=7)
    axes[3].set(
        yscale="log", ylim=(None, 2 * limit), ylabel=r"mini-batch Hessian: $\lambda_{max}$, thin $-\lambda_{min}$"
    )
    axes[0].set(ylabel="training batch accuracy", ylim=(0, 1))
    axes[1].set(ylabel="training batch loss")
    axes[2].set(ylabel=r"kept share of $|g|^2$", ylim=(0, 1))
    for panel in axes:
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(plt.MaxNLocator(4))
    axes[0].legend(loc="upper left", fontsize=7)
    axes[0].set_title(title(r), loc="left")
    axes[1].set_title("line: mean, band: s.d. over seeds", loc="left")
    axes[2].set_title("what pruning keeps (SGD: would keep)", loc="left")
    return figure


def as_published(result):
    """Whether a result has the settings of the published curves."""
    return all(result["settings"][key] == value for key, value in PAPER_SETTINGS.items())


def draw_delay(delay):
    """The paper's Figure 2a with seeds: accuracy when pruning starts later and later, beside the published curves."""
    r = delay
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4), width_ratios=[2, 1, 1])
    smooth = 2 if r["settings"]["steps"] >= 5000 else 1
    published = as_published(r)
    for name in r["runs"]:
        color, _, marker, _ = style(name)
        band(left, *curve(r, name, "accuracy", smooth), name)
        if published and name in PAPER:
            left.plot(PAPER_STEPS, PAPER[name], marker, color=color, mfc="w", ms=5, zorder=3)
        if first_step(name):
            left.axvline(first_step(name), color=color, lw=0.8, ls=":")
        band(right, *curve(r, name, "kept", 5 if smooth > 1 else 1), name)
    chance(left, r)
    left.set(xlabel="step", ylabel="training batch accuracy (200-step means)", ylim=(0, 1))
    left.legend(
        loc="upper left",
        fontsize=7.5,
        title="open markers: published, one run" if published else None,
        title_fontsize=7.5,
    )
    left.set_title(title(r) + "; band: s.d.", loc="left")
    names = sorted((name for name in r["runs"] if name != "sgd"), key=first_step)
    starts = [first_step(name) for name in names] + [r["settings"]["steps"]]
    ends = np.array([final(r, name) for name in [*names, "sgd"]])
    middle.plot(starts, ends, "o", color="0.55", ms=3.5, mfc="none")
    middle.errorbar(starts, ends.mean(1), ends.std(1, ddof=1) if ends.shape[1] > 1 else None, color="k", marker="o",
                    ms=5, lw=1.2, capsize=3, label="ours: mean, s.d., seeds")  # fmt: skip
    if published:
        middle.plot([2000, 5000, 10000, 18240], [0.451, 0.632, 0.782, 0.857], "D--", color="#c0392b", mfc="w", ms=5,
                    lw=0.9, label="published, one run each")  # fmt: skip
    middle.set(
        xlabel="pruning starts at step (last: never, SGD)", ylabel="accuracy, mean of the last epoch", ylim=(0, 1)
    )
    middle.legend(loc="lower right", fontsize=7.5)
    middle.xaxis.set_major_locator(plt.MaxNLocator(4))
    right.set(xlabel="step", ylabel=r"kept share of $|g|^2$", ylim=(0, 1))
    right.set_title("what pruning keeps (SGD: would keep)", loc="left")
    right.xaxis.set_major_locator(plt.MaxNLocator(4))
    return figure


def copies(result, kind, key="distance"):
    """Times and distances [times, draws] of the copies of one kind."""
    chosen = [i for i, one in enumerate(result["kinds"]) if one == kind]
    return np.array(result["times"], dtype=float), np.array(result[key], dtype=float)[:, chosen]


def fit(times, distance, start):
    """Least squares of d^2 = start^2 + a t + b t^2 over the whole curve: a, b, and R^2 of d."""
    design = np.stack([times, times**2], 1)
    (a, b), *_ = np.linalg.lstsq(design, distance**2 - start**2, rcond=None)
    model = np.sqrt(np.maximum(start**2 + design @ [a, b], 0))
    return a, b, 1 - ((distance - model) ** 2).sum() / ((distance - distance.mean()) ** 2).sum()


def rate(times, distance, low, high, power=False):
    """Slope of log d against t (or log t) between two fractions of the run, and R^2: per column of distance."""
    window = (times >= low * times[-1]) & (times <= high * times[-1]) & (times > 0 if power else times >= 0)
    x, y = np.log(times[window]) if power else times[window], np.log(distance[window])
    if len(x) < 3:
        return np.full(distance.shape[1], np.nan), np.full(distance.shape[1], np.nan)
    slope, offset = np.polyfit(x, y, 1)
    residual = y - (np.outer(x, slope) + offset)
    return slope, 1 - residual.var(0) / y.var(0)


def draw_divergence(divergence):
    """How far perturbed copies get on the same batches: early exponential, late polynomial; the fit of d^2."""
    r, start = divergence, divergence["settings"]["perturbation"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.3))
    edges = np.geomspace(max(r["times"][-1] / 180, 1), r["times"][-1], 13)
    for kind, (color, line, marker, label) in KINDS.items():
        times, distance = copies(r, kind)
        _, tangent = copies(r, kind, "tangent")
        draws = f", {distance.shape[1]} draws" if distance.shape[1] > 1 else ""
        left.plot(times, distance.mean(1), color=color, ls=line, lw=1.6, label=label + draws)
        left.fill_between(times, distance.min(1), distance.max(1), color=color, alpha=0.2, lw=0)
        left.plot(times, tangent.mean(1), color=color, ls="-", lw=0.6)
        if kind != "max_convergence":
            powers = np.diff(np.log([np.interp(edges, times, one) for one in distance.T])) / np.diff(np.log(edges))
            middle.plot(
                np.sqrt(edges[1:] * edges[:-1]), powers.mean(0), color=color, ls=line, marker=marker, ms=3.5, lw=1.3
            )
    times, distance = copies(r, "max_chaos")
    early = rate(times, distance, 0, 1 / 36)[0][0]
    if np.isfinite(early):
        window = times < times[-1] / 6
        left.plot(times[window], start * np.exp(early * times[window]), "k:", lw=1, label=f"exp(t {early:.1e})")
        window = times < times[-1] / 9
        middle.plot(times[window][1:], early * times[window][1:], "k:", lw=1, label=f"exponential, t {early:.1e}")
    growth = start * np.exp(r["exponents"][1] * times)  # the smallest is rounding
    left.plot(times, growth, color="0.5", lw=0.9, ls=(0, (6, 2)), label="largest Lyapunov exponent")
    left.set(xlabel="step t", ylabel="distance d to the unperturbed run", yscale="log")
    left.set_ylim(np.min(r["distance"]) / 2, 3 * np.max(r["tangent"]))
    left.set_title("thin: linearised dynamics", loc="left")
    figure.suptitle(f"{title(r)}, perturbation {start:g}", x=0.01, ha="left", size=9.5)
    middle.axhline(0, color="0.5", lw=0.8)
    middle.axhline(0.5, color="0.5", lw=0.8, ls=(0, (1, 3)))
    middle.annotate("random walk", (edges[0], 0.5), size=7, color="0.35", va="bottom")
    middle.set(xlabel="step t", ylabel="local power  d log d / d log t", xscale="log")
    if middle.get_legend_handles_labels()[0]:
        middle.legend(loc="upper left", fontsize=7.5)
    middle.set_title("a power law is flat, an exponential rises with t", loc="left")
    for kind in ("max_chaos", "randn_chaos", "randn"):
        color, line, _, label = KINDS[kind]
        times, distance = copies(r, kind)
        squared = (distance**2).mean(1)
        a, b, quality = fit(times, np.sqrt(squared), start)
        text = f"{label}: a = {a:.1e}, b = {b:.1e}, R² = {quality:.3f}"
        right.plot(times, squared, color=color, ls=line, lw=1.6, label=text)
        right.plot(times, start**2 + a * times + b * times**2, "k:", lw=1)
    right.set(xlabel="step t", ylabel="squared distance d²", yscale="log")
    right.set_ylim(None, right.get_ylim()[1] ** 1.5 / right.get_ylim()[0] ** 0.5)
    right.legend(loc="upper left", fontsize=7.5, title=f"dotted: d² = {start:g}² + a t + b t²", title_fontsize=7.5)
    right.set_title("fit over the whole run, of those that part", loc="left")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=7, fontsize=7.5)
    return figure


def draw_subspace(subspace):
    """Global Lyapunov exponents at the checkpoints; similarity of the chaotic and the convergent subspaces."""
    r, times = subspace, subspace["times"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), width_ratios=[1.25, 1, 1, 1])
    exponents = np.array(r["exponents"], dtype=float)
    share = np.array(r["ranks"]) / max(r["ranks"])
    for i, (t, shade) in enumerate(zip(times, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(times))), strict=True)):
        up, down = r["dimensions"][i]
        axes[0].plot(share, exponents[i], color=shade, lw=1.3, marker="osD^vP"[i % 6], markevery=0.12, ms=3.5,
                     label=f"{t:,}: {up:,.0f} > 0 > {down:,.0f}")  # fmt: skip
    axes[0].axhline(0, color="0.5", lw=0.8)
    axes[0].set(xlabel="rank / number of parameters", ylabel="exponent per step")
    axes[0].set_yscale("symlog", linthresh=1e-6)
    axes[0].legend(loc="upper left", fontsize=7, title="steps: dimensions", title_fontsize=7)
    axes[0].set_title("global Lyapunov exponents", loc="left")
    similarity, baseline, control = (np.array(one, dtype=float) for one in r["similarity"])
    pairs = ((0, 0, "chaotic with chaotic", "#c0392b", "o"), (1, 1, "convergent with convergent", "#1b6ca8", "s"),
             (0, 1, "chaotic with convergent", "#e9a03b", "^"))  # fmt: skip
    places, anchors = (
        range(len(times)),
        [0, min(range(len(times)), key=lambda i: abs(times[i] - 10000)), len(times) - 1],
    )
    for panel, i in zip(axes[1:], anchors, strict=True):
        for a, b, label, color, marker in pairs:
            panel.plot(places, similarity[i, :, a, b], color=color, marker=marker, ms=4.5, lw=1.3, label=label)
            panel.plot(places, baseline[i, :, a, b], color=color, ls="--", lw=0.9)
            panel.plot(places, control[i, :, a, b], marker, color=color, mfc="w", ms=3.5, lw=0)
        panel.axvline(i, color="0.5", lw=0.8, ls=":")
        panel.set_xticks(places, [f"{t:,}" for t in times])
        panel.set(ylim=(0, 1.03), xlabel="step", title=f"subspaces of step {times[i]:,} and those of")
    axes[1].set_ylabel("similarity  |VᵀW|² / smaller dimension")
    label = "dashed: random subspaces of the same dimensions; open markers: random eigenvectors"
    handles = axes[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower right", ncols=3, fontsize=7.5, title=label, title_fontsize=7.5)
    figure.suptitle(title(r), x=0.01, ha="left", size=9.5)
    return figure


FIGURES = {
    "chaos_pruning": (("pruning",), draw_pruning),
    "chaos_delay": (("delay",), draw_delay),
    "chaos_divergence": (("divergence",), draw_divergence),
    "chaos_subspace": (("subspace",), draw_subspace),
}
