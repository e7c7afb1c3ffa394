"""What the claims files share: how a measured number becomes a verdict."""

import numpy as np


def numbers(values, digits):
    return ", ".join(f"{value:.{digits}f}" for value in values)


def need(result, **settings):
    """Raises ValueError if a result has other settings than the published numbers that it would be held against."""
    if any(result["settings"][name] != value for name, value in settings.items()):
        raise ValueError(f"no published numbers but for {settings}")


def standard_error(values):
    """Of the mean over seeds; NaN of one."""
    return np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan


def resolved(gain, error):
    """Whether a gain is positive, if it is known to 2 s.e.; else "not resolved"."""
    return bool(gain > 0) if abs(gain) > 2 * error else "not resolved"


def falls(rows):
    """A claim's outcome: the mean over seeds falls from the first row [seeds] to the last, by over 2 s.e."""
    text, seeds = numbers([np.mean(row) for row in rows], 3), min(map(len, rows), default=0)
    if seeds < 2 or len(rows) < 2:
        return "falling", text, f"{seeds} seed" if seeds < 2 else "one value", "not resolved"
    error = np.hypot(standard_error(rows[0]), standard_error(rows[-1]))
    return "falling", text, f"{error:.3f}, {seeds} seeds", resolved(np.mean(rows[0]) - np.mean(rows[-1]), error)
