"""The numbers of a matrix against the literal loops of the reference code."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from collapse import (
    CollapseError,
    effective_rank,
    feature_sparsity,
    independent_neurons,
    metrics,
    normalized_distances,
)

METRICS = [independent_neurons, effective_rank, normalized_distances, feature_sparsity]

# ======================================================================================
# The count
# ======================================================================================


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def literal_count(vectors, vanishing=0.1, redundant=0.1, norms=None, part=None):
    """The reference's way: pairs in lexicographic order, j joins i unless it is already taken."""
    rows = vectors.double().numpy()
    norms = np.linalg.norm(rows, axis=1) if norms is None else norms.numpy()
    kept = (norms >= vanishing * norms.max()) & (norms > 0)
    rows = rows[kept]
    part = np.zeros(len(rows)) if part is None else part.numpy()[kept]
    clusters, taken = {}, set()
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            a, b = rows[i], rows[j]
            distance = 2 * ((a - b) ** 2).sum() / ((a**2).sum() + (b**2).sum())
            if distance < redundant and part[i] == part[j] and j not in taken:
                clusters.setdefault(i, []).append(j)
                taken.add(j)
    return len(clusters) + sum(i not in taken and i not in clusters for i in range(len(rows)))


def planted(seed):
    """Random rows with vanishing ones, duplicates and chains in which neighbours only are close."""
    g = generator(seed)
    n = int(torch.randint(2, 24, (), generator=g))
    d = int(torch.randint(2, 40, (), generator=g))
    rows = torch.randn(n, d, generator=g)
    for _ in range(n):
        i, j = torch.randint(n, (2,), generator=g).tolist()
        kind = torch.rand((), generator=g)
        if kind < 0.3:
            rows[i] = rows[j]
        elif kind < 0.7:
            away = F.normalize(torch.randn(d, generator=g), dim=0)
            rows[i] = rows[j] + 0.28 * torch.rand((), generator=g) * rows[j].norm() * away
        elif kind < 0.85:
            rows[i] *= 0.15 * torch.rand((), generator=g)
        elif kind < 0.9:
            rows[i] = 0
    return rows


def connected_components(rows):
    kept = rows[rows.norm(dim=1) >= 0.1 * rows.norm(dim=1).max()]
    reach = (normalized_distances(kept) < 0.1).double()
    for _ in range(6):
        reach = (reach @ reach > 0).double()
    return len(torch.unique(reach, dim=0))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that every case runs through many of them."""
    monkeypatch.setattr(metrics, "ROWS", 5)
    monkeypatch.setattr(metrics, "COLUMNS", 7)
    monkeypatch.setattr(metrics, "FEW", 2)


def check_planted(seeds):
    chains = 0
    for seed in range(seeds):
        rows = planted(seed)
        found = independent_neurons(rows)
        assert found == literal_count(rows), seed
        incoming = rows[:, : 1 + seed % rows.shape[1]].norm(dim=1).double()
        assert independent_neurons(rows, norms=incoming) == literal_count(rows, norms=incoming), seed
        assert independent_neurons(rows, 0.3, 0.5) == literal_count(rows, 0.3, 0.5), seed
        part = torch.arange(len(rows)) % 3
        assert metrics.count(rows, 0.1, 0.5, part=part).independent == literal_count(rows, 0.1, 0.5, part=part), seed
        chains += found != connected_components(rows)
    return chains


def test_the_count_equals_the_literal_one_on_planted_cases():
    assert check_planted(150) > 4  # the cases do tell the paper's rule from connected components


def test_the_count_equals_the_literal_one_in_small_blocks(small_blocks):
    check_planted(150)


@pytest.mark.parametrize("spread", [1e-7, 1e-5, 1e-3])
def test_distances_on_both_sides_of_the_threshold_are_told_apart(small_blocks, spread):
    """A hundred rows whose distances lie within rounding of 0.1 and beyond: strictly below counts."""
    for seed in range(5):
        g = generator(seed)
        angles = math.acos(0.95) * (1 + spread * torch.randn(60, generator=g))
        rows = torch.zeros(61, 80)
        rows[0, 0] = 1
        rows[1:, 0] = angles.cos()
        rows[torch.arange(1, 61), torch.arange(1, 61)] = angles.sin()
        mixed = torch.linalg.qr(torch.randn(80, 80, generator=g))[0]  # spread over all columns
        for case in (rows, rows @ mixed):
            counts = independent_neurons(case), literal_count(case)
            assert counts[0] == counts[1], seed
        assert 1 < counts[0] < 61


def test_a_large_collapsed_layer_is_counted_as_a_direct_search_counts():
    """Clusters around the threshold among 1,500 rows: too many for the literal loop, so all pairs in float64."""
    g = generator()
    centers = torch.randn(30, 900, generator=g)
    noise = torch.randn(1500, 900, generator=g)
    noise *= 0.35 * torch.rand(1500, 1, generator=g)
    rows = centers[torch.randint(30, (1500,), generator=g)] + noise
    rows[torch.randint(1500, (100,), generator=g)] *= 0.05
    wide = rows.double()
    norms = wide.norm(dim=1)
    kept = wide[norms >= 0.1 * norms.max()]
    distances = 2 * torch.cdist(kept, kept, compute_mode="donot_use_mm_for_euclid_dist").square()
    squares = kept.square().sum(1)
    distances /= squares[:, None] + squares[None, :]
    near = (distances < 0.1).triu(1)
    follows = near.any(0)
    leads = torch.zeros_like(follows)
    leads[near[:, follows].int().argmax(0)] = True
    expected = int((leads | ~follows).sum())
    assert 30 < expected < 1400
    assert metrics.count(rows, 0.1, 0.1) == (1500 - len(kept), expected)


def test_most_pairs_are_decided_by_a_part_of_the_columns(monkeypatch):
    """Independent rows: most columns are never multiplied, and no pair is measured directly."""
    rows = torch.randn(600, 20 * metrics.COLUMNS, generator=generator())
    multiplied = []
    product = torch.Tensor.__matmul__

    def counted(a, b):
        multiplied.append(a.shape[1])
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
    monkeypatch.setattr(metrics, "_direct_distances", None)
    assert independent_neurons(rows) == 600
    assert sum(multiplied) <= 2 * 5 * metrics.COLUMNS  # two blocks of rows


def test_equal_neurons_are_told_without_measuring_every_pair(monkeypatch):
    """A cluster of 500 equal rows at a threshold far below rounding: one direct measurement a row."""
    rows = torch.randn(1, 700, generator=generator()).repeat(500, 1)
    rows[250:] += torch.randn(250, 700, generator=generator(1))
    measured = []
    direct = metrics._direct_distances

    def counted(vectors, one, other):
        measured.append(len(one))
        return direct(vectors, one, other)

    monkeypatch.setattr(metrics, "_direct_distances", counted)
    assert independent_neurons(rows, redundant=1e-9) == 251
    assert sum(measured) <= 500
    assert independent_neurons(rows, redundant=0.0) == 500


@pytest.mark.parametrize("setting", ["medium", "autocast"])
def test_reduced_matrix_products_change_no_count(setting):
    """Rows near the threshold where bfloat16 products would be off by far more than float32's rounding."""
    g = generator()
    rows = torch.randn(1, 600, generator=g) + 0.2236 * torch.randn(80, 600, generator=g)
    expected = literal_count(rows)
    assert 1 < expected < 80
    distances, rank = normalized_distances(rows), effective_rank(rows)
    before = torch.get_float32_matmul_precision()
    during = "medium" if setting == "medium" else before
    try:
        torch.set_float32_matmul_precision(during)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            assert independent_neurons(rows) == expected
            assert torch.equal(normalized_distances(rows), distances) and effective_rank(rows) == rank
            with pytest.raises(CollapseError):
                independent_neurons(rows / 0)
            assert torch.is_autocast_enabled("cpu") == (setting == "autocast")  # all is as it was, errors or not
        assert torch.get_float32_matmul_precision() == during
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_precision_that_torch_cannot_tell_is_not_trusted(monkeypatch):
    """Switches for single backends: products of rows are then screened in float64."""

    def refuse():
        raise RuntimeError("mixed use of the old and the new way to set the precision")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert metrics._screening_dtype(torch.ones(3)) == torch.float64
    assert effective_rank(torch.eye(600)) == pytest.approx(600)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_count_as_their_exact_values_do(dtype):
    for seed in range(60):
        rows = planted(seed).to(dtype)
        if dtype == torch.float16:
            rows = rows * 500  # squares beyond the range of halves
        assert independent_neurons(rows) == literal_count(rows), seed
        assert independent_neurons(rows) == independent_neurons(rows.float())
        assert effective_rank(rows) == effective_rank(rows.float())


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-6, 1e6, 1e18, 1e30])
def test_metrics_do_not_depend_on_the_scale(scale):
    for seed in range(20):
        rows = planted(seed)
        assert independent_neurons(rows * scale) == independent_neurons(rows)
        assert effective_rank(rows * scale) == pytest.approx(effective_rank(rows), rel=1e-5)
        assert torch.allclose(normalized_distances(rows * scale), normalized_distances(rows), atol=1e-4)


def test_neither_do_float64_metrics_at_the_ends_of_its_range():
    for scale in (2.0**-1000, 2.0**-600, 2.0**600, 2.0**1000):
        rows = planted(3).double()
        assert independent_neurons(rows * scale) == independent_neurons(rows)
        assert effective_rank(rows * scale) == pytest.approx(effective_rank(rows))
        assert torch.equal(normalized_distances(rows * scale), normalized_distances(rows))


def test_the_argument_stays_as_it_is():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        rows = planted(5).to(dtype)
        before = rows.clone()
        for function in METRICS:
            function(rows)
        assert torch.equal(rows, before)


def test_faint_rows_are_compared_among_themselves():
    """At vanishing=0 rows 1e-20 of the largest count; products of such float32 rows underflow."""
    rows = torch.randn(6, 9, generator=generator())
    rows[3:] = rows[:3] * 1e-25
    rows[4] = rows[3]
    assert independent_neurons(rows, vanishing=0) == literal_count(rows, vanishing=0) == 5
    assert independent_neurons(rows) == 3


# ======================================================================================
# Known cases and bad input
# ======================================================================================


@pytest.mark.parametrize("dtype, small", [(torch.float32, 1e-20), (torch.float32, 1e-30), (torch.float64, 1e-200)])
def test_distances_of_rows_that_are_tiny_beside_others(dtype, small):
    """Their squares vanish in this precision; so do sums of them."""
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 2, 0], [0, -1, 0], [0, 0, 0]], dtype=dtype)
    expected = normalized_distances(rows)
    rows[1:5] *= small
    found = normalized_distances(rows)
    assert (found[1:, 1:] - expected[1:, 1:]).abs().max() < 1e-6
    assert torch.allclose(found[0, 1:], torch.full((5,), 2.0, dtype=dtype)) and torch.equal(found, found.T)


def test_distances_of_known_pairs():
    a = torch.tensor([[3.0, 4.0], [3.0, 4.0], [4.0, -3.0], [-3.0, -4.0], [0.0, 0.0], [0.0, 0.0]])
    expected = torch.full((6, 6), 2.0)
    expected[0, 1] = expected[1, 0] = 0
    expected[0, 3] = expected[1, 3] = expected[3, 0] = expected[3, 1] = 4
    expected[4, 5] = expected[5, 4] = 0
    expected.fill_diagonal_(0)
    assert torch.equal(normalized_distances(a), expected)


def test_zero_and_single_rows():
    zeros = torch.zeros(3, 5)
    one = torch.ones(1, 5)
    assert independent_neurons(zeros) == 0
    assert effective_rank(zeros) == 0
    assert not normalized_distances(zeros).any()
    assert independent_neurons(one) == 1
    assert effective_rank(one) == pytest.approx(1)
    assert normalized_distances(one).tolist() == [[0]]
    assert independent_neurons(torch.eye(4, dtype=torch.int64)) == 4


@pytest.mark.parametrize("function", METRICS)
def test_input_that_is_no_matrix_of_numbers_is_refused_by_name(function):
    large = torch.randn(3, 2 * metrics.COLUMNS)
    large[2, -1] = math.nan
    for bad in (torch.full((2, 2), math.nan), torch.tensor([[1.0, math.inf]]), large, large.half()):
        with pytest.raises(CollapseError, match="NaN or infinite"):
            function(bad)
    for bad in (torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(3)):
        with pytest.raises(CollapseError, match="not empty"):
            function(bad)
    with pytest.raises(CollapseError, match="complex numbers"):
        function(torch.ones(2, 2, dtype=torch.complex64))


def test_norms_and_thresholds_that_cannot_be_are_refused():
    rows = torch.ones(2, 5)
    for norms in (torch.ones(3), torch.tensor([1.0, math.nan])):
        with pytest.raises(CollapseError, match="one per neuron"):
            independent_neurons(rows, norms=norms)
    for thresholds in ((2.0, 0.1), (0.1, 9.0), (-1.0, 0.1), (0.1, math.nan), (math.nan, 0.1)):
        with pytest.raises(CollapseError, match="thresholds must be"):
            independent_neurons(rows, *thresholds)


# ======================================================================================
# Effective rank and sparsity
# ======================================================================================


def test_effective_rank_is_the_exponential_of_the_entropy():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.randn(9, 1, generator=generator()) @ torch.ones(1, 30)) == pytest.approx(1)
    for shape in ((20, 50), (50, 20), (300, 700), (700, 300)):
        matrix = torch.randn(*shape, generator=generator(1))
        matrix[: shape[0] // 2] = matrix[-1]  # half of it has collapsed
        values = torch.linalg.svdvals(matrix.double())
        share = values / values.sum()
        share = share[share > 1e-12]
        assert effective_rank(matrix) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-6)


@pytest.mark.parametrize("least", [1, 3e-2, 1e-4, 1e-6, 0], ids=lambda least: f"least {least}")
def test_a_large_matrix_has_its_rank_in_float32_only_where_that_is_exact(least):
    """Singular values from 1 to `least`: near zero float32 would add rounding errors to the sum, and is refused."""
    size = 600
    left, _ = torch.linalg.qr(torch.randn(size, size, generator=generator(1), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(2 * size, size, generator=generator(2), dtype=torch.float64))
    singular = torch.logspace(0, math.log10(least or 1), size, dtype=torch.float64)
    if least == 0:
        singular[size // 2 :] = 0
    matrix = (left * singular @ right.T).float()
    share = torch.linalg.svdvals(matrix.double())
    share = share[share > 1e-7 * share[0]]
    share = share / share.sum()
    entropy = -(share * share.log()).sum()
    assert effective_rank(matrix) == pytest.approx(math.exp(entropy), rel=1e-5)
    in_float32 = metrics._entropy_in_float32(matrix)
    assert (in_float32 is not None) == (least >= 3e-2)
    if in_float32 is not None:
        assert in_float32.item() == pytest.approx(entropy.item(), abs=1e-5)


@pytest.mark.parametrize("decay", [0, 0.5, 1], ids=lambda decay: f"decay {decay}")
def test_the_allowance_for_eigenvalues_in_float32_is_kept(decay):
    """Spectra from flat, where every eigenvalue is off as much as the largest, to steep."""
    for size in (256, 1024):
        matrix = torch.randn(size, size + 40, generator=generator(3))
        if decay:
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            matrix = left * torch.arange(1.0, size + 1).pow(-decay) @ right
        gram = matrix @ matrix.T
        exact = torch.linalg.eigvalsh(gram.double())
        off = torch.linalg.vector_norm(torch.linalg.eigvalsh(gram) - exact)
        allowed = metrics._error_of_eigenvalues(gram)
        assert 0 < off < allowed < 50 * off


@pytest.mark.parametrize("planted", ["nothing", "vanished", "equal", "opposite"])
def test_collapsed_rows_show_in_a_bound_on_the_smallest_eigenvalue(planted):
    """So that eigenvalues in float32, which would be refused, aren't computed for them."""
    matrix = torch.randn(300, 900, generator=generator(4))
    if planted == "vanished":
        matrix[200] = 0
    if planted in ("equal", "opposite"):
        matrix[299] = matrix[17] if planted == "equal" else -matrix[17]
    gram = matrix @ matrix.T
    bound = metrics._bound_on_smallest(gram)
    assert bound >= torch.linalg.eigvalsh(gram.double())[0] - 1e-3
    assert (bound < 0.01) == (planted != "nothing")
    half = gram.tril() + torch.full_like(gram, math.nan).triu(1)
    assert metrics._bound_on_smallest(half) == bound  # of the lower triangle alone
