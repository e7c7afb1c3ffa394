"""Numbers of a matrix: distances between rows, how many are independent, how sparse features are."""

import math

import torch
from torch import Tensor

from collapse.errors import CollapseError


def _rows(vectors: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """`vectors` checked, in a range where squares neither overflow nor vanish, and the rows' norms."""
    vectors = torch.as_tensor(vectors).detach()
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise CollapseError(f"{name} must be [neurons, features], not empty; got shape {tuple(vectors.shape)}")
    vectors = vectors if vectors.dtype == torch.float32 else vectors.double()  # the squares of halves overflow
    norms = torch.linalg.vector_norm(vectors, dim=1)
    if not 1e-15 < norms.max() < 1e15:  # NaN, too
        largest = vectors.abs().max()
        if not torch.isfinite(largest):
            raise CollapseError(f"{name} holds NaN or infinite values: the network has diverged")
        vectors = vectors / largest.clamp_min(torch.finfo(vectors.dtype).tiny)
        norms = torch.linalg.vector_norm(vectors, dim=1)
    return vectors, norms


def _distances(vectors: Tensor, norms: Tensor) -> Tensor:
    squares = norms.square()
    scale = squares[:, None] + squares[None, :]
    distances = (vectors @ vectors.T).mul_(-2).add_(scale).mul_(2).div_(scale.clamp_min_(torch.finfo(scale.dtype).tiny))
    return distances.clamp_(0, 4).fill_diagonal_(0)


def normalized_distances(vectors: Tensor) -> Tensor:
    """[n, d] -> [n, n] of 2 |a - b|^2 / (|a|^2 + |b|^2): 0 equal, 2 orthogonal, 4 opposite.

    0 where both rows vanish. To the precision of `vectors`: give float64 where distances below
    1e-6 matter. The distance of the paper's figures 3 and 4. Raises CollapseError for NaN, infinite
    or empty input.
    """
    return _distances(*_rows(vectors, "vectors"))


def near_pairs(vectors: Tensor, norms: Tensor, redundant: float) -> Tensor:
    """[n, n] of bool: pairs i < j of rows at a normalised distance below `redundant`."""
    distances = _distances(vectors, norms)
    near = (distances < redundant).triu_(1)
    # Rounding could flip a pair at the threshold: those few are measured again, directly, in float64.
    doubtful = ((distances - redundant).abs_() < 0.01).triu_(1).nonzero()
    for pairs in doubtful.split(1024):
        a, b = vectors[pairs.T].double()
        direct = 2 * (a - b).square().sum(1) / (a.square().sum(1) + b.square().sum(1))
        near[pairs[:, 0], pairs[:, 1]] = direct < redundant
    return near


def check_thresholds(vanishing: float, redundant: float) -> None:
    """Raises CollapseError for thresholds that no norm or distance can be compared with."""
    if not (0 <= vanishing <= 1 and 0 <= redundant <= 4):  # normalised distances are at most 4
        got = f"{vanishing}, {redundant}"
        raise CollapseError(f"thresholds must be 0 to 1 (vanishing) and 0 to 4 (redundant), not {got}")


def count(
    vectors: Tensor,
    vanishing: float,
    redundant: float,
    norms: Tensor | None = None,
    part: Tensor | None = None,
    name: str = "vectors",
) -> tuple[int, int]:
    """(vanishing, independent) neurons; see `independent_neurons`.

    `part` [n]: neurons of different parts are never redundant.
    """
    check_thresholds(vanishing, redundant)
    vectors, own = _rows(vectors, name)
    norms = own if norms is None else torch.as_tensor(norms).detach().to(own.device)
    if norms.shape != own.shape or not torch.isfinite(norms).all():
        raise CollapseError(f"norms must be {len(own)} finite numbers, one per neuron")
    kept = (norms >= vanishing * norms.max()) & (norms > 0)
    vanished = len(own) - int(kept.sum())
    if vanished == len(own):
        return vanished, 0
    vectors, own = (vectors[kept], own[kept]) if vanished else (vectors, own)
    near = near_pairs(vectors, own, redundant)
    if part is not None:
        part = part.to(kept.device)[kept]
        near &= part[:, None] == part[None, :]
    follows = near.any(0)
    leads = torch.zeros_like(follows)
    leads[near[:, follows].int().argmax(0)] = True  # argmax: the first, so the smallest, neighbour
    return vanished, int((leads | ~follows).sum())


def independent_neurons(
    vectors: Tensor, vanishing: float = 0.1, redundant: float = 0.1, norms: Tensor | None = None
) -> int:
    """Number of independent neurons among the rows of `vectors` [n, d], exactly as the paper counts.

    Rows with a norm below `vanishing` times the largest (or zero) are dropped. A kept row follows
    the first earlier kept row at normalised distance < `redundant`, if there is one. Counted are
    rows that follow none and rows that some other row follows; so in a chain a - b - c with a and
    c far apart, b counts although it follows a, and the count depends on the order (the reference
    code's pair loop, notebooks FIG3_FIG4 and FIG6). `norms` [n] replaces the rows' norms in the
    first step: the published figures used the incoming weights alone.

    Raises CollapseError for NaN, infinite or empty input; all-zero rows count as 0 neurons.
    """
    return count(vectors, vanishing, redundant, norms)[1]


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix.

    Between 1 and the rank. The reference code computes the entropy itself.
    Raises CollapseError for NaN, infinite or empty input.
    """
    matrix = _rows(matrix, "matrix")[0].double()
    matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    squares = torch.linalg.eigvalsh(matrix @ matrix.T)  # ten times faster than the singular values themselves
    squares = squares[squares > len(squares) * torch.finfo(torch.float64).eps * squares[-1]]
    if len(squares) == 0:
        return 0.0
    p = squares.sqrt() / squares.sqrt().sum()
    return math.exp(-(p * p.log()).sum().item())


def feature_sparsity(features: Tensor, correlation: float = 0.95) -> float:
    """Share of positive entries in `features` [examples, neurons], duplicates and dead neurons counted as zeros.

    0 (nothing is ever active) to 1 (every neuron for every example). A neuron is a duplicate if its |Pearson
    correlation| over the examples with a later neuron exceeds `correlation`, so the last of a cluster
    survives; constant neurons have no correlation and survive. Exactly the number that deleting one neuron
    after the other leaves (Andriushchenko et al., ICML 2023, reference code): whoever is deleted has a
    later neighbour that is still there. The paper's toy networks divide each row by its norm before.

    Raises CollapseError for NaN, infinite or empty input.
    """
    features = _rows(features, "features")[0]
    active = (features > 0).sum(0)
    alive = active.nonzero()[:, 0]
    kept = features[:, alive].T.double()
    kept -= kept.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(kept, dim=1, keepdim=True)
    varies = features.amax(0) > features.amin(0)  # the mean of a constant is rounded, its correlations are noise
    kept = torch.where(varies[alive][:, None], kept / norms.clamp_min(torch.finfo(kept.dtype).tiny), 0.0)
    follows = (kept @ kept.T).abs_().gt(correlation).triu_(1).any(1)
    return active[alive][~follows].sum().item() / features.numel()
