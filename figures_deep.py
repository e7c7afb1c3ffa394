"""Figures of the deep networks (Stochastic Collapse, figures 3, 4, 6), drawn from results/vgg_*.json, resnet_*.json."""

import matplotlib.pyplot as plt
import numpy as np

from figures_theory import MARKERS, shades

LABELS = {"learning_rate": "learning rate", "label_noise": "label noise", "batch_size": "batch size"}


def at_the_end(runs, varied, counted="groups", key="independent"):
    """{value of the varied field: [seeds, groups] of `key` / width} of the runs that did not diverge."""
    fractions = {}
    for record in runs:
        if record["log"] and record["diverged_at"] is None:
            columns = record["log"][-1][counted]
            fraction = np.divide(columns[key], columns["width"])
            fractions.setdefault(record["run"][varied], []).append(fraction)
    return {value: np.array(rows) for value, rows in sorted(fractions.items())}


def fig3_distances(*results):
    """Heat maps of distances between neurons, ordered by cluster: the least noise of a sweep above the most."""
    maps = [(result, entry) for result in results if result for entry in result.get("maps", ())]
    if not maps:  # the sweep's ends have diverged
        return None
    columns = 2 * len(maps[0][1]["groups"])
    figure, axes = plt.subplots(len(maps), columns, figsize=(2.1 * columns, 2.5 * len(maps)), squeeze=False)
    for row, (result, entry) in zip(axes, maps, strict=True):
        run, varied = entry["run"], result["varied"]
        row[0].set_ylabel(f"{run['model']}, {run['dataset']}, width {run['width']}\n{LABELS[varied]} {run[varied]:g}")
        parts = [(group, part) for group in entry["groups"] for part in ("incoming", "outgoing")]
        for panel, (group, part) in zip(row, parts, strict=True):
            width, clusters = group["width"], group["clusters"]
            image = panel.imshow(group[part], vmin=0, vmax=2.5, cmap="magma", extent=(0, width, width, 0))
            panel.set_title(f"{group['name']}, {part}\n{width} neurons, {clusters} clusters", size=8)
            panel.set(xticks=[0, group["width"]], yticks=[0, group["width"]])
            panel.grid(False)
    for panel in axes[-1]:
        panel.set_xlabel("neuron", labelpad=-8)
    figure.colorbar(image, ax=axes, label="normalised distance: 0 equal, 2 orthogonal", shrink=0.7, aspect=30)
    return figure


def draw_layers(axes, fractions, title, legend, values):
    """A line per value of the varied field, looking the same wherever the same `values` are given."""
    looks = dict(zip(values, zip(shades(len(values)), MARKERS, strict=False), strict=True))
    for value, rows in fractions.items():
        color, marker = looks[value]
        mean, spread = rows.mean(0), rows.std(0)
        layers = np.arange(1, len(mean) + 1)
        label = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        axes.plot(layers, mean, color=color, marker=marker, ms=4, label=label)
        axes.fill_between(layers, mean - spread, mean + spread, color=color, alpha=0.25, lw=0)
    seeds = min((len(rows) for rows in fractions.values()), default=0)
    lowest = min([1, *(rows.min() for rows in fractions.values())])
    axes.set(title=f"{title} ({seeds} seed{'s' * (seeds != 1)})", xlabel="layer", ylim=(min(0.78, lowest - 0.03), 1.02))
    if fractions:
        axes.legend(title=f"{legend}\n(band: s.d. of seeds)" if seeds > 1 else legend)


def fig4_independent(*results):
    """Independent neurons and effective rank per layer, for every sweep there is; the ResNet counted both ways."""
    panels = []
    for result in results:
        if result is not None:
            name = result["experiment"].split("_")[0]
            counts = (
                (("groups", "true groups"), ("paper", "paper's pairing")) if name == "resnet" else (("groups", ""),)
            )
            panels += [(result, counted, words) for counted, words in counts]
    panels.sort(key=lambda panel: panel[1])  # all panels of one way to count side by side
    columns = len(panels) if len(panels) < 5 else 3
    blocks = -(-len(panels) // columns)
    figure, axes = plt.subplots(2 * blocks, columns, figsize=(1 + 5 * columns, 6.4 * blocks), squeeze=False)
    values = {field: set() for field in LABELS}  # of all sweeps of a field
    for result, *_ in panels:
        values[result["varied"]] |= {record["run"][result["varied"]] for record in result["runs"]}
    for k, (result, counted, words) in enumerate(panels):
        above, below = axes[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]
        run, varied = result["runs"][0]["run"], result["varied"]
        title = f"{run['model']}, {run['dataset']}, width {run['width']}, {run['steps']:,} steps"
        title += f"\n{words}" if words else ""
        about = LABELS[varied], sorted(values[varied])
        draw_layers(above, at_the_end(result["runs"], varied, counted), title, *about)
        draw_layers(below, at_the_end(result["runs"], varied, counted, "effective_rank"), "", *about)
        below.set_title("")
    for k in range(len(panels), blocks * columns):
        for panel in axes[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]:
            panel.set_axis_off()
    for block in range(blocks):
        axes[2 * block][0].set_ylabel("fraction of independent neurons")
        axes[2 * block + 1][0].set_ylabel("effective rank / width")
    return figure


def curve(records, key):
    """Mean and standard deviation over seeds of a logged number, at the steps they share."""
    steps = [line["step"] for line in records[0]["log"]]
    rows = np.array([[line[key] for line in record["log"]][: len(steps)] for record in records], float)
    return steps, rows.mean(0), rows.std(0)


def fig6_drop(*results):
    """Loss and accuracy before and after dropping the learning rate at several times; collapse at each."""
    results = [r for r in results if r is not None and any(run["diverged_at"] is None for run in r["runs"])]
    if not results:
        return None
    figure, axes = plt.subplots(len(results), 3, figsize=(12, 3.5 * len(results)), squeeze=False)
    for row, result in zip(axes, results, strict=True):
        whole = [record for record in result["runs"] if record["diverged_at"] is None]
        drops = {}
        for branch in (branch for branch in result["branches"] if branch["diverged_at"] is None):
            step = int(branch["run"]["start"].split("_")[-1].removesuffix(".pt"))
            drops.setdefault(step, []).append(branch)
        for panel, key in zip(row, ("train_loss", "test_accuracy"), strict=False):
            steps, mean, spread = curve(whole, key)
            panel.plot(steps, mean, color="0.5", lw=1, label="no drop")
            panel.fill_between(steps, mean - spread, mean + spread, color="0.5", alpha=0.25, lw=0)
            for k, (color, step) in enumerate(zip(shades(len(drops)), sorted(drops), strict=True)):
                after, mean, spread = curve(drops[step], key)
                after = np.add(step, after)
                panel.plot(after, mean, color=color, marker=MARKERS[k], markevery=0.2, ms=4, label=f"{step:,}")
                panel.fill_between(after, mean - spread, mean + spread, color=color, alpha=0.25, lw=0)
            panel.set(xlabel="steps", ylabel=key.replace("_", " "))
        run = whole[0]["run"]
        row[0].set_title(
            f"{run['model']}, {run['dataset']}, width {run['width']} ({len(whole)} seed{'s' * (len(whole) != 1)})"
        )
        row[1].legend(title="drop at step")
        fractions = {}
        for record in whole:
            for line in record["log"]:
                if line["step"] in drops:
                    columns = line["groups"]
                    fractions.setdefault(line["step"], []).append(np.divide(columns["independent"], columns["width"]))
        fractions = {step: np.array(rows) for step, rows in sorted(fractions.items())}
        draw_layers(row[2], fractions, "before the drop", "drop at step", list(fractions))
        row[2].set_ylabel("fraction of independent neurons")
        row[1].set_title("band: s.d. of seeds" if len(whole) > 1 else "", loc="left")
    return figure


SWEEPS = tuple(f"{net}_{name}" for net in ("vgg", "resnet") for name in ("lr", "noise", "batch"))
FIGURES = {  # drawn from those of their results that are there
    "fig3_distances": (("vgg_lr", "resnet_lr"), fig3_distances),
    "fig4_independent": (SWEEPS, fig4_independent),
    "fig6_drop": (("vgg_drop", "resnet_drop"), fig6_drop),
}
