"""What all figures look like: made for a page 830 pixels wide, and for a grey printer.

A figure is drawn 8.3 inches wide and saved at 150 dots an inch, twice as fine as it is shown: text of 8 points is
then 9 pixels high on the page. Colours get lighter with more noise, markers and line styles tell them apart without
colour.
"""

from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH = 8.3  # inches
STYLE = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.borderpad": 0.2,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}
MARKERS = "osD^vPX"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
RED = "#c0392b"
BLUE = "#1b6ca8"
PUBLISHED = {"marker": "*", "ms": 8, "mfc": "w", "mec": "k", "mew": 0.9, "ls": "none", "zorder": 6}  # on every figure


class Figure(NamedTuple):
    """How a figure is made.

    draw: function of the readings named in `needs`; returns a matplotlib figure, or None where there is nothing to
        show. Where `matching` is given, it takes one dictionary of readings instead: of all results whose names
        match, of the width that was asked for.
    needs: results without which it can't be drawn.
    matching: tells whether a result of this name belongs to it.
    wants: what the figure lacks if it isn't there, for the list of commands.
    """

    draw: Callable
    needs: tuple[str, ...] = ()
    matching: Callable[[str], bool] | None = None
    wants: tuple[str, ...] = ()


def use_style() -> None:
    plt.rcParams.update(STYLE)


def canvas(columns: int, rows: int = 1, height: float = 2.6, **options):
    """(figure, axes [rows, columns]) of the page's width; `height` of one row in inches."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, **options)


def shades(count: int) -> np.ndarray:
    """Colours from dark to light, in grey as well: more noise is lighter."""
    return plt.get_cmap("viridis")(np.linspace(0.0, 0.85, count))


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def thousands(axis) -> None:
    """Writes the ticks of an axis as 20,000, not too many of them."""
    axis.set_major_locator(MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def band(axes, steps, mean, spread, color) -> None:
    """A band of mean +- spread, as faint as it can be and still be seen on paper."""
    axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.22, lw=0)


def note(axes, words: str, place: tuple[float, float], **options) -> None:
    """Words in a panel; `place` in shares of its width and height."""
    style = {"transform": axes.transAxes, "fontsize": 8, "color": "0.25"}
    axes.text(*place, words, **style | options)


def legend_below(figure, axes, columns: int, title: str | None = None) -> None:
    """One legend for several panels, under them, where it can lie on no data."""
    labelled = {}
    for panel in np.ravel(axes):
        handles, words = panel.get_legend_handles_labels()
        for handle, word in zip(handles, words, strict=True):
            labelled.setdefault(word, handle)
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=columns, title=title)


def legend_beside(axes, title: str | None = None) -> None:
    """A legend to the right of a panel."""
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.2)


def legend_under(axes, title: str | None = None, columns: int = 1) -> None:
    """A legend under a panel, below the label of its axis: the distance is in lines of text, whatever the panel's
    size."""
    axes.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.2, ncols=columns)


def plain_ticks(axis) -> None:
    """Writes the ticks of a short logarithmic axis as numbers instead of powers, and only those that don't crowd."""

    def words(value: float, _place: int) -> str:
        first_digit = f"{value:e}"[0]
        return f"{value:g}" if first_digit in "1235" else ""

    axis.set_major_formatter(FuncFormatter(words))
    axis.set_minor_formatter(FuncFormatter(words))


def mark_published(axes, x, y, label: str | None = "published", color: str = "w") -> None:
    """Published values: stars, everywhere alike, filled with the colour of what they belong to where that isn't
    plain."""
    axes.plot(x, y, **PUBLISHED | {"mfc": color}, label=label)
