"""Timing two ways of doing the same job side by side, so that a busy machine spoils neither."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Seconds(NamedTuple):
    """What each way took in one round."""

    literal: float
    ours: float
    floor: float


def processor_seconds(way: Callable) -> float:
    """What a way takes; it may return the seconds (a float) itself."""
    start = time.process_time()
    told = way()
    if isinstance(told, float):
        return told
    return time.process_time() - start


def compare(literal: Callable, ours: Callable, floor: Callable, rounds: int) -> dict:
    """Medians over alternating rounds: processor seconds of the whole job, literal, ours and floor, and the ratios.

    `floor`: what any way has to do. A way is timed, unless it returns the seconds (a float) itself.
    """
    measured = []
    for _ in range(rounds):
        measured.append(Seconds(processor_seconds(literal), processor_seconds(ours), processor_seconds(floor)))
    speedups = [one.literal / one.ours for one in measured]
    result = {
        "literal_seconds": np.median([one.literal for one in measured]),
        "seconds": np.median([one.ours for one in measured]),
        "floor_seconds": np.median([one.floor for one in measured]),
        "speedup": np.median(speedups),
        "speedup_range": [min(speedups), max(speedups)],
        "times_floor": np.median([one.ours / one.floor for one in measured]),
    }
    print(
        f"literal {result['literal_seconds']:.4g} s, ours {result['seconds']:.4g} s: "
        f"{result['speedup']:.3g} times faster ({min(speedups):.3g} to {max(speedups):.3g}); "
        f"{result['times_floor']:.1f} times the floor"
    )
    return result
