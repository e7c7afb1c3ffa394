"""Pictures of collapse: by layer, and by layer over training. Matplotlib is imported when they are drawn.

Made to be read at 830 pixels, with text of 8 points there, and in grey.
"""

import itertools
from pathlib import Path

from collapse.errors import CollapseError

WIDTH = 8.3  # inches at 100 dots each
FONT = 8
MOST_NAMES = 60  # of layers beside a picture; more would overlap
STYLES = {  # of a bar's parts: (key of a row, colour, hatch)
    "independent": ("0.35", None),
    "redundant": ("0.7", "////"),
    "vanishing": ("1.0", "...."),
}
TITLES = {"independent": "independent", "redundant": "redundant", "vanishing": "vanished"}


def new_figure(height: float):
    """A matplotlib figure of its own, apart from pyplot: no window opens and no backend is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")


def height_for(layers: int) -> float:
    """Inches for so many layers beside each other's names, from a strip to a page."""
    return min(1.0 + 0.16 * layers, 10.0)


def label_layers(axes, names: list[str], offset: float = 0.0) -> None:
    """Names at the left, the first layer on top; of many layers every second, third, ..."""
    every = -(-len(names) // MOST_NAMES)
    places = range(0, len(names), every)
    axes.set_yticks([place + offset for place in places])
    axes.set_yticklabels([shortened(names[place]) for place in places], fontsize=FONT)
    axes.tick_params(axis="both", labelsize=FONT, length=2)
    axes.set_ylim(len(names) - 0.5 + offset, -0.5 + offset)


def shortened(name: str, room: int = 34) -> str:
    """Long names keep their end, which tells layers apart."""
    return name if len(name) <= room else ".." + name[-(room - 2) :]


def save(figure, path) -> None:
    path = Path(path)
    try:
        figure.savefig(path, dpi=figure.dpi, facecolor="white")  # not what a style sheet says
    except (OSError, ValueError) as error:  # ValueError: a format that matplotlib doesn't know
        raise CollapseError(f"can't write the picture {path}: {error}") from None


def plot_report(report: list[dict], path: str | Path) -> None:
    """Draw `collapse_report`: of each layer the shares of independent, redundant and vanished neurons.

    `path`: a file name with the ending of its format (.png, .pdf, .svg). Raises CollapseError for an empty report
    and a file that can't be written.
    """
    if not report:
        raise CollapseError("nothing to draw: the report has no rows")
    names = [row["name"] for row in report]
    places = range(len(report))
    figure = new_figure(height_for(len(report)))
    axes = figure.subplots()
    left = [0.0] * len(report)
    for key, (color, hatch) in STYLES.items():
        shares = [row[key] / row["width"] for row in report]
        axes.barh(places, shares, left=left, height=0.8, color=color, hatch=hatch, edgecolor="0.2", linewidth=0.4)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    label_layers(axes, names)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the neurons", fontsize=FONT)
    for place, row in enumerate(report):
        if len(report) <= MOST_NAMES:
            axes.text(1.01, place, f"{row['width']:,}", fontsize=FONT, va="center")
    draw_legend(figure)
    save(figure, path)


def draw_legend(figure) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=color, hatch=hatch, edgecolor="0.2", linewidth=0.4, label=TITLES[key])
        for key, (color, hatch) in STYLES.items()
    ]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), fontsize=FONT, frameon=False)


def plot_history(names: list[str], moments: list, fractions: list[list[float]], path: str | Path, label: str) -> None:
    """Draw the fraction of independent neurons by layer (down) and moment (across): white all, black none.

    `names`: of the layers; `moments`: numbers (training steps, to scale) or texts (checkpoints);
    `fractions`: [moments][layers]; `label` of the axis of moments.
    """
    if not moments:
        raise CollapseError("nothing to draw: no moment of training is recorded")
    are_numbers = all(isinstance(moment, int | float) for moment in moments)
    places = list(moments) if are_numbers else list(range(len(moments)))
    figure = new_figure(height_for(len(names)) + 0.3)
    axes = figure.subplots()
    by_layer = [list(column) for column in zip(*fractions, strict=True)]
    edges = edges_between(places)
    mesh = axes.pcolormesh(edges, range(len(names) + 1), by_layer, cmap="gray", vmin=0, vmax=1)
    label_layers(axes, names, offset=0.5)
    if not are_numbers or len(places) <= 8:
        axes.set_xticks(places)
        axes.set_xticklabels([str(moment) for moment in moments], fontsize=FONT)
    axes.set_xlabel(label, fontsize=FONT)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label("independent neurons, fraction", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    save(figure, path)


def edges_between(places: list[float]) -> list[float]:
    """The borders of columns around these places: half-way between neighbours, and as far beyond the ends."""
    if len(places) == 1:
        return [places[0] - 0.5, places[0] + 0.5]
    middles = [(one + other) / 2 for one, other in itertools.pairwise(places)]
    first = places[0] - (middles[0] - places[0])
    last = places[-1] + (places[-1] - middles[-1])
    return [first, *middles, last]
