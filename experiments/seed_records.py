"""When to look at a run of *Sparse Features*, and what a result keeps of many seeds in one tensor."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from collapse import feature_sparsity

BANDS = ("train", "test", "rank", "sparsity_1")  # of these results keep quantiles along the run, not only the median
LANDMARKS = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1)  # shares of the run


def moments(steps: int, points: int) -> list[int]:
    """Steps at which to look: half of them by the logarithm; the last at 99.6 % of the run, as in the reference."""
    last = steps * 249 // 250 - 1
    logarithmic = np.geomspace(1, last, points // 2)
    linear = np.linspace(0, last, points // 2)
    return sorted({round(step) for step in (0, *logarithmic, *linear)})


def landmarks(steps: int, points: int) -> list[int]:
    """Those of the `moments` at which the rank is taken, too, which costs more: nearest to some shares of the run."""
    times = moments(steps, points)
    found = set()
    for share in LANDMARKS:
        found.add(min(times, key=lambda time: abs(time - share * steps)))
    return sorted(found)


def deviation(values: Tensor, dim: int) -> Tensor:
    """The standard deviation over seeds; NaN of a single one, which says nothing of the others."""
    if values.shape[dim] < 2:
        return torch.full_like(values.select(dim, 0), math.nan)
    return values.std(dim)


def brief(values: Tensor) -> Tensor:
    """Four significant digits: enough to draw and to judge, and results stay small."""
    magnitude = values.abs().clamp_min(1e-200).log10().floor()
    scale = 10 ** (3 - magnitude)
    return (values * scale).round() / scale


def records(groups: list[dict], times: list[int], looks: list[dict[str, Tensor]]) -> list[dict]:
    """A record per group of runs: its settings, and what was seen of them.

    `looks`: a dict per time, of numbers [groups, ..., seeds]; a name may be missing at some times, but not at the last.
    "curves" of each name: 10, 50 and 90 % quantiles over the finite seeds, or the median alone [times, 1 or 3];
    "final": all seeds' values at the end; "diverged": how many seeds at each time.
    """
    found = [dict(group) for group in groups]
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for name in looks[-1]:
        seen = [look[name].double().cpu() for look in looks if name in look]
        wanted = levels if name in BANDS else levels[1:2]
        for k, record in enumerate(found):
            rows = torch.stack([values[k].flatten() for values in seen])
            rows = torch.where(rows.isfinite(), rows, math.nan)
            record.setdefault("final", {})[name] = brief(rows[-1])
            record.setdefault("curves", {})[name] = brief(torch.nanquantile(rows, wanted, dim=1).T)
            if name == "train":
                record["diverged"] = rows.isnan().sum(1)
    return found


def without_broken(look: dict[str, Tensor]) -> dict[str, Tensor]:
    """NaN in all of a look's numbers for the seeds whose training loss isn't finite."""
    is_broken = ~look["train"].isfinite()
    return {name: torch.where(is_broken, math.nan, values) for name, values in look.items()}


def jacobian_ranks(matrices: Tensor, threshold: float, gram: bool = True) -> Tensor:
    """How many singular values exceed `threshold` times the largest one: [..., rows, columns] -> [...].

    `gram`: by eigenvalues of the Gram matrix, faster, for thresholds above 1e-7. NaN for matrices that aren't finite.
    """
    is_finite = matrices.isfinite().all(-1).all(-1)
    matrices = torch.where(is_finite[..., None, None], matrices, 1.0)
    largest_entry = matrices.abs().amax((-2, -1), keepdim=True)
    matrices = matrices / largest_entry.clamp_min(1e-300)  # squares of runs about to diverge would overflow
    if gram:
        values = torch.linalg.eigvalsh(matrices @ matrices.mT).flip(-1)
        threshold = threshold**2
    else:
        values = torch.linalg.svdvals(matrices)
    ratios = values / values[..., :1].clamp_min(1e-300)
    ranks = (ratios > threshold).sum(-1)
    return torch.where(is_finite, ranks, math.nan)


def sparsities(hidden: Tensor, correlation: float) -> Tensor:
    """`core.feature_sparsity` of activations [..., n, m], rows divided by their norms as in the paper's toys: [...]."""
    shape = hidden.shape[:-2]
    normalized = F.normalize(hidden, dim=-1).flatten(0, -3)
    found = []
    for features in normalized:
        is_finite = bool(features.isfinite().all())
        found.append(feature_sparsity(features, correlation) if is_finite else math.nan)
    return torch.tensor(found, dtype=torch.float64).view(shape)
