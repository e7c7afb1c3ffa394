"""Numbers of a matrix: how many of its rows are independent neurons, and its effective rank.

Nothing here knows networks; `collapse.report` applies it to every layer of one.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from collapse.errors import CollapseError

# ======================================================================================
# Input
# ======================================================================================


def check_thresholds(vanishing: float, redundant: float) -> None:
    """Raises CollapseError for thresholds that no norm or distance can be compared with (NaN is one)."""
    if not 0 <= vanishing <= 1:
        raise CollapseError(f"thresholds must be 0 to 1 (vanishing) and 0 to 4 (redundant), not vanishing={vanishing}")
    if not 0 <= redundant <= 4:  # normalised distances are at most 4
        raise CollapseError(f"thresholds must be 0 to 1 (vanishing) and 0 to 4 (redundant), not redundant={redundant}")


def _as_matrix(values: Tensor, name: str) -> Tensor:
    """`values` as a float32 or float64 matrix: halves are widened, which is exact; so are integers below 2^53."""
    values = torch.as_tensor(values).detach()
    if values.ndim != 2 or values.numel() == 0:
        raise CollapseError(f"{name} must be [neurons, features], not empty; got shape {tuple(values.shape)}")
    if values.is_complex():
        raise CollapseError(f"{name} holds complex numbers; collapse is defined for real ones")
    if values.dtype in (torch.float16, torch.bfloat16):
        return values.float()
    if values.dtype != torch.float32:
        return values.double()
    return values


def _scaled(matrix: Tensor, name: str) -> Tensor:
    """`matrix` times a power of two, which is exact, such that its largest entry is below 1 and not below 1/2.

    Every number of this file is a ratio, so that scale doesn't matter; squares of very large or small entries do.
    """
    largest = matrix.abs().max()
    if not torch.isfinite(largest):
        raise CollapseError(f"{name} holds NaN or infinite values: the network has diverged")
    if largest == 0:
        return matrix
    exponent = math.frexp(largest.item())[1]
    half = exponent // 2  # in two steps: 2^-exponent itself may be out of range
    return matrix * 2.0**-half * 2.0 ** (half - exponent)


def _is_ordinary(norms: Tensor, dtype: torch.dtype) -> bool:
    """Whether the largest norm is one whose square neither overflows nor vanishes in `dtype` (NaN: no)."""
    limit = 1e15 if dtype == torch.float32 else 1e140
    return bool(1 / limit < norms.max() < limit)


# ======================================================================================
# Precision
# ======================================================================================


def _float32_precision() -> str | None:
    """What float32 matrix products are computed in ("highest": float32), None where torch can't tell."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set with switches for single backends (torch 2.9), which can't be asked all at once
        return None


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Inside, float32 matrix products have float32's precision, if torch can tell: no TF32, no bfloat16, no autocast.

    Also a decorator. Training often has one of them switched on, and counts would be of other neurons.
    """
    before = _float32_precision()
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if before not in ("highest", None):
            stack.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision("highest")
        yield


# ======================================================================================
# Distances
# ======================================================================================


@_full_float32()
def normalized_distances(vectors: Tensor) -> Tensor:
    """[n, d] -> [n, n] of 2 |a - b|^2 / (|a|^2 + |b|^2): 0 equal, 2 orthogonal, 4 opposite.

    0 where both rows vanish. To the precision of `vectors` (float32 for halves): give float64 where distances below
    1e-6 matter. The distance of figures 3 and 4 of Stochastic Collapse. Raises CollapseError for NaN, infinite,
    complex or empty input.
    """
    vectors = _as_matrix(vectors, "vectors")
    norms = torch.linalg.vector_norm(vectors, dim=1)
    if not _is_ordinary(norms, vectors.dtype):
        vectors = _scaled(vectors, "vectors")
        norms = torch.linalg.vector_norm(vectors, dim=1)
    squares = norms.square()
    if _vanish(squares, vectors):
        return _distances_of_directions(vectors)
    scale = squares[:, None] + squares[None, :]
    products = vectors @ vectors.T
    smallest = torch.finfo(vectors.dtype).tiny  # two zero rows: 0 / tiny = 0
    distances = 2 * (scale - 2 * products) / scale.clamp_min(smallest)
    return distances.clamp_(0, 4).fill_diagonal_(0)


def _vanish(squares: Tensor, vectors: Tensor) -> bool:
    """Whether some rows that aren't zero are so small that their squared norms (or parts of them) are lost."""
    smallest = torch.finfo(vectors.dtype)
    tiny = squares < smallest.tiny / smallest.eps
    return bool(tiny.any()) and bool(vectors[tiny].any())


def _distances_of_directions(vectors: Tensor) -> Tensor:
    """`normalized_distances` where rows differ so much in size that squares of the small ones vanish.

    With c the cosine between two rows and r <= 1 the ratio of their norms, 2 |a - b|^2 / (|a|^2 + |b|^2) is
    2 - 4 c r / (1 + r^2): nothing is squared but numbers of about 1.
    """
    largest = vectors.abs().amax(1, keepdim=True)
    is_zero = largest[:, 0] == 0
    largest = largest.masked_fill(is_zero[:, None], 1)
    rows = vectors / largest
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    directions = rows / lengths.masked_fill(is_zero[:, None], 1)
    norms = (largest * lengths)[:, 0]
    greater = torch.maximum(norms[:, None], norms[None, :])
    ratios = torch.minimum(norms[:, None], norms[None, :]) / greater.masked_fill(greater == 0, 1)
    distances = 2 - 4 * (directions @ directions.T) * ratios / (1 + ratios.square())
    distances[is_zero[:, None] & is_zero[None, :]] = 0
    return distances.clamp_(0, 4).fill_diagonal_(0)


# ======================================================================================
# Independent neurons
# ======================================================================================
#
# The count needs, of each row, the first earlier row at a distance below the threshold. With c = (2 - threshold) / 4,
#
#     distance(a, b) < threshold   is   a.b > c (|a|^2 + |b|^2)
#
# and almost no pair needs all of a.b. The columns are taken in chunks. What is still to come of a.b after some of
# them lies within +-|a'| |b'|, a' and b' the rest of the rows (Cauchy and Schwarz); that and a bound on the rounding
# of what is summed so far leaves most pairs surely near or surely apart. In a network that hasn't
# collapsed, whose rows are about orthogonal, a tenth of the columns decides. Pairs that stay in doubt are
# measured directly in float64, as the literal loop over pairs would.

ROWS = 256  # of a block of pairs: its matrices stay in the cache
COLUMNS = 512  # of a chunk; also bounds the rounding, which grows with it
SQUARE_ROWS = 128  # of a copy in float64: larger ones leave the cache, and cost more than the sums
FEW = 128  # pairs in doubt of a block that are cheaper to measure directly than to go on with all


class NeuronCount(NamedTuple):
    """Of the rows: how many have vanished, and how many are independent. The rest are redundant."""

    vanishing: int
    independent: int


def _chunk_squares(vectors: Tensor) -> Tensor:
    """[n, d] -> [n, chunks] of float64: the squared norm of each row in each chunk of `COLUMNS` columns."""
    chunks = []
    for columns in vectors.split(COLUMNS, 1):
        blocks = []
        for block in columns.split(SQUARE_ROWS):
            precise = block.to(torch.float64, copy=True)
            blocks.append(precise.mul_(precise).sum(1))
        chunks.append(torch.cat(blocks))
    return torch.stack(chunks, 1)


def row_squares(vectors: Tensor) -> Tensor:
    """[n, d] -> [n] of float64: the squared norm of each row, as exact as float64 and several times faster than
    `vector_norm(dtype=float64)`.
    """
    return _chunk_squares(vectors).sum(1)


def _screening_dtype(totals: Tensor) -> torch.dtype:
    """The precision in which products of rows with squared norms `totals` [n] are screened."""
    fits = totals.max() < 1e30 and totals.min() > 1e-24  # what underflows is then within the bound on rounding
    if fits and _float32_precision() == "highest":
        return torch.float32
    return torch.float64


def _direct_distances(vectors: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """[p] normalised distances between the rows `one` [p] and `other` [p], in float64 as the literal loop has them."""
    found = []
    for ones, others in zip(one.split(FEW), other.split(FEW), strict=True):
        a = vectors[ones].double()
        b = vectors[others].double()
        found.append(2 * (a - b).square().sum(1) / (a.square().sum(1) + b.square().sum(1)))
    return torch.cat(found)


def _first_true(mask: Tensor, otherwise: Tensor) -> Tensor:
    """[rows, m] of bool -> [rows]: the place of each row's first True, or `otherwise` [rows]."""
    return torch.where(mask.any(1), mask.int().argmax(1), otherwise)  # argmax: the first of equal ones


def _first_neighbors(vectors: Tensor, squares: Tensor, redundant: float, part: Tensor | None) -> Tensor:
    """[n]: the first earlier row of the same `part` at a distance below `redundant`, or the row itself if none is.

    `squares`: `_chunk_squares` of the vectors.
    """
    own = torch.arange(len(vectors), device=vectors.device)
    if redundant == 0:  # no distance is below: equal rows would stay in doubt to the end
        return own
    totals = squares.sum(1)
    dtype = _screening_dtype(totals)
    # [n, chunks + 1]: what is left of each row's norm before the first chunk, the second, ... and at the end, exactly 0
    rests = squares.flip(1).cumsum(1).flip(1).sqrt()
    rests = torch.cat([rests, torch.zeros_like(rests[:, :1])], 1).to(dtype)
    found = []
    for start in range(0, len(vectors), ROWS):
        stop = min(start + ROWS, len(vectors))
        block = slice(start, stop)
        before = slice(0, stop)  # earlier rows: those of earlier blocks and of this one
        may_follow = own[block, None] > own[None, before]
        if part is not None:
            may_follow &= part[block, None] == part[None, before]
        sums = (totals[block, None] + totals[None, before]).to(dtype)
        needed = (2 - redundant) / 4 * sums  # of a product, to be near
        products = torch.zeros_like(sums).masked_fill_(~may_follow, -math.inf)
        for k, columns in enumerate(vectors.split(COLUMNS, 1)):
            products.addmm_(columns[block].to(dtype), columns[before].to(dtype).T)
            # Each entry of a chunk's product is off by at most COLUMNS roundings, each sum of chunks by one more, the
            # comparison by a few: all relative to |a| |b|, which is at most half of `sums`.
            rounding = (COLUMNS + k + 16) * torch.finfo(dtype).eps
            doubt = torch.addr(sums, rests[block, k + 1], rests[before, k + 1], beta=rounding)  # with what is to come
            excess = products - needed
            first = _first_true(excess > doubt, own[block])
            doubtful = (excess > -doubt) & (own[None, before] < first[:, None])
            if doubtful.sum() <= FEW:
                break
        # Each row's first doubtful neighbour is measured; where it isn't near, the next one.
        while doubtful.any():
            rows = doubtful.any(1).nonzero()[:, 0]
            candidates = doubtful[rows].int().argmax(1)
            near = _direct_distances(vectors, own[block][rows], candidates) < redundant
            first[rows[near]] = candidates[near]
            doubtful[rows, candidates] = False
            doubtful[rows[near]] = False
        found.append(first)
    return torch.cat(found)


@_full_float32()
def leaders(vectors: Tensor, redundant: float, part: Tensor | None = None, squares: Tensor | None = None) -> Tensor:
    """[n, d] -> [n]: the row that each row is counted with: itself where it is independent, else its first neighbour.

    A row that others follow is independent even if it follows one itself (`independent_neurons`). Rows are
    near only within one `part` [n]. Exact: equal to measuring every pair in float64.
    `squares`: `_chunk_squares(vectors)`, where they are known.
    """
    if squares is None:
        vectors, squares = _prepared(vectors, "vectors")
    neighbors = _first_neighbors(vectors, squares, redundant, part)
    own = torch.arange(len(vectors), device=vectors.device)
    follows = neighbors != own
    independent = ~follows
    independent[neighbors[follows]] = True
    return torch.where(independent, own, neighbors)


def _prepared(vectors: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """`vectors` checked, in a range where float64 squares neither overflow nor vanish, and their `_chunk_squares`."""
    vectors = _as_matrix(vectors, name)
    squares = _chunk_squares(vectors)
    if not _is_ordinary(squares.sum(1).sqrt(), torch.float64):
        vectors = _scaled(vectors, name)
        squares = _chunk_squares(vectors)
    return vectors, squares


@_full_float32()
def count(
    vectors: Tensor,
    vanishing: float,
    redundant: float,
    norms: Tensor | None = None,
    part: Tensor | None = None,
    name: str = "vectors",
) -> NeuronCount:
    """What `independent_neurons` counts, and the vanished. `name` is what errors call the vectors.

    `part` [n]: only rows of the same part can be redundant (heads of an attention, groups of a convolution).
    """
    check_thresholds(vanishing, redundant)
    vectors, squares = _prepared(vectors, name)
    size = len(vectors)
    if norms is None:
        norms = squares.sum(1).sqrt()
    else:
        norms = torch.as_tensor(norms).detach().to(vectors.device)
        if norms.shape != (size,) or not torch.isfinite(norms).all():
            raise CollapseError(f"norms must be {size} finite numbers, one per neuron")
    kept = (norms >= vanishing * norms.max()) & (norms > 0)
    vanished = size - int(kept.sum())
    if vanished == size:
        return NeuronCount(vanished, 0)
    if vanished:
        vectors = vectors[kept]
        squares = squares[kept]
        if part is not None:
            part = part[kept]
    home = leaders(vectors, redundant, part, squares)
    is_own = home == torch.arange(len(home), device=home.device)
    return NeuronCount(vanished, int(is_own.sum()))


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

    Raises CollapseError for NaN, infinite, complex or empty input; all-zero rows count as 0 neurons.
    """
    return count(vectors, vanishing, redundant, norms).independent


# ======================================================================================
# Effective rank
# ======================================================================================


RANK_ROWS = 128  # of a strip: fewer waste less above the diagonal, more multiply faster
MANY_ROWS = 512  # from here on float32, which is twice as fast, is worth its check
PROBES = 8
ENTROPY_TOLERANCE = 1e-4  # the rank is then right to the same share of itself, and mostly far closer


@_full_float32()
def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix.

    Between 1 and the rank, right to about 1e-4 of itself or better. The reference code computes the entropy itself.
    Raises CollapseError for NaN, infinite, complex or empty input.
    """
    matrix = _as_matrix(matrix, "matrix")
    norms = torch.linalg.vector_norm(matrix, dim=1)
    if not _is_ordinary(norms, matrix.dtype):
        matrix = _scaled(matrix, "matrix")
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    # Singular values are roots of the eigenvalues of the smaller Gram matrix: ten times faster than an SVD. In float64,
    # for the roots of rounding errors would count as singular values: 1e-8 of the largest here, 1e-3 in float32.
    entropy = None
    may_be_float32 = matrix.dtype == torch.float32 and _float32_precision() == "highest"
    if may_be_float32 and len(matrix) >= MANY_ROWS:
        entropy = _entropy_in_float32(matrix)
    if entropy is None:
        squares = torch.linalg.eigvalsh(_gram_triangle(matrix, torch.float64))
        rounding = len(squares) * torch.finfo(torch.float64).eps * squares[-1]
        squares = squares[squares > rounding]
        if len(squares) == 0:
            return 0.0
        entropy = _entropy(squares.sqrt())
    return math.exp(entropy.item())


def _entropy(singular: Tensor) -> Tensor:
    """Of positive singular values, normalised to a sum of 1."""
    share = singular / singular.sum()
    return -(share * share.log()).sum()


def _gram_triangle(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, d] -> [n, n]: the products of the rows, in the lower triangle; what is above isn't complete."""
    size = len(matrix)
    gram = torch.zeros(size, size, dtype=dtype, device=matrix.device)
    together = COLUMNS if matrix.dtype != dtype else 4 * COLUMNS  # what is converted should stay in the cache
    for columns in matrix.split(together, 1):
        columns = columns.to(dtype)  # never all of a large matrix at once
        for start in range(0, size, RANK_ROWS):
            stop = min(start + RANK_ROWS, size)
            gram[start:stop, :stop].addmm_(columns[start:stop], columns[:stop].T)
    return gram


def _entropy_in_float32(matrix: Tensor) -> Tensor | None:
    """The entropy of the singular values by eigenvalues in float32, or None where that may be too far off.

    The eigenvalues of two symmetric matrices are no farther apart, in the root of their squares' sum, than the matrices
    (Hoffman and Wielandt). So the norm of the rounding errors, times that of the entropy's gradient by the eigenvalues,
    is what the entropy is off by, as long as the smallest eigenvalue is well above these errors: no collapsed neurons.
    """
    gram = _gram_triangle(matrix, torch.float32)
    of_products = 2 * _error_of_gram(gram, matrix)  # an estimate, good to a quarter
    error = of_products + _error_of_eigenvalues(gram)
    if _bound_on_smallest(gram) < 4 * error:  # much faster than the eigenvalues
        return None
    squares = torch.linalg.eigvalsh(gram).double()
    if squares[0] < 4 * error:
        return None
    singular = squares.sqrt()
    share = singular / singular.sum()
    entropy = _entropy(singular)
    gradient = (share.log() + entropy) / (2 * singular * singular.sum())
    off = error * torch.linalg.vector_norm(gradient)
    return entropy if off < ENTROPY_TOLERANCE else None


def _bound_on_smallest(gram: Tensor) -> Tensor:
    """A number that the smallest eigenvalue doesn't exceed, near zero where a row has vanished or two are equal.

    It is the least of x^T gram x for the unit vectors e_i and (e_i +- e_j) / sqrt(2). Only the lower triangle is read.
    """
    own = gram.diagonal()
    least = own.min()
    for start in range(0, len(gram), RANK_ROWS):
        stop = min(start + RANK_ROWS, len(gram))
        means = (own[start:stop, None] + own[:stop]) / 2
        products = gram[start:stop, :stop].tril(start - 1)  # zero elsewhere, where the means are no less than `least`
        least = torch.minimum(least, (means - products.abs()).min())
    return least


def _error_of_eigenvalues(gram: Tensor) -> Tensor:
    """How far off the eigenvalues are together (the root of their squares' sum) when found in the precision of `gram`.

    They come from a chain of n reflections, whose roundings add up as a random walk: to 0.4 sqrt(n) of the matrix's
    norm at most, measured for 256 to 2,048 rows and flat and steep spectra. Only the lower triangle is read.
    """
    below = torch.linalg.vector_norm(gram.tril(-1))
    diagonal = torch.linalg.vector_norm(gram.diagonal())
    norm = torch.linalg.vector_norm(torch.stack([below, below, diagonal]))  # once more for what is above
    return 0.5 * math.sqrt(len(gram)) * torch.finfo(gram.dtype).eps * norm


def _error_of_gram(gram: Tensor, matrix: Tensor) -> Tensor:
    """An estimate of the Frobenius norm of `gram` - `matrix` `matrix`^T, from their products with random vectors.

    Of `gram` [n, n] only the lower triangle is read.
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(len(matrix), PROBES, generator=generator, dtype=torch.float64).to(matrix.device)
    difference = torch.zeros_like(probes)
    for columns in matrix.split(COLUMNS, 1):
        columns = columns.double()
        difference.addmm_(columns, columns.T @ probes, alpha=-1)
    for start in range(0, len(gram), RANK_ROWS):
        stop = min(start + RANK_ROWS, len(gram))
        strip = gram[start:stop, :stop].double()
        strip[:, start:].tril_()
        difference[start:stop].addmm_(strip, probes[:stop])
        strip[:, start:].tril_(-1)
        difference[:stop].addmm_(strip.T, probes[start:stop])  # the triangle above is its mirror image
    return torch.linalg.matrix_norm(difference) / math.sqrt(PROBES)


# ======================================================================================
# Activations
# ======================================================================================


def feature_sparsity(features: Tensor, correlation: float = 0.95) -> float:
    """Share of positive entries in `features` [examples, neurons], duplicates and dead neurons counted as zeros.

    0 (nothing is ever active) to 1 (every neuron for every example). A neuron is a duplicate if its |Pearson
    correlation| over the examples with a later neuron exceeds `correlation`, so the last of a cluster
    survives; constant neurons have no correlation and survive. Exactly the number that deleting one neuron
    after the other leaves (Andriushchenko et al., ICML 2023, reference code): whoever is deleted has a
    later neighbour that is still there. The paper's toy networks divide each row by its norm before.

    Raises CollapseError for NaN, infinite, complex or empty input.
    """
    features = _as_matrix(features, "features")
    if not _is_ordinary(torch.linalg.vector_norm(features, dim=1), features.dtype):
        features = _scaled(features, "features")
    active_examples = (features > 0).sum(0)
    varies = features.amax(0) > features.amin(0)
    alive = active_examples > 0
    columns = features[:, alive].T.double()
    columns = columns - columns.mean(1, keepdim=True)
    lengths = torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    directions = columns / lengths.clamp_min(torch.finfo(torch.float64).tiny)
    # The mean of a constant is rounded, so that its correlations would be noise.
    directions[~varies[alive]] = 0.0
    correlations = (directions @ directions.T).abs_()
    has_later_copy = (correlations > correlation).triu_(1).any(1)
    return active_examples[alive][~has_later_copy].sum().item() / features.numel()
