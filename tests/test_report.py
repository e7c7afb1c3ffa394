"""The report counts what is there, exactly as the paper's own loop over pairs; the maps show it."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import core
from collapse import (
    CollapseError,
    CollapseLog,
    collapse_exponent,
    collapse_report,
    distance_maps,
    effective_rank,
    extract_subnetwork,
    neuron_groups,
    normalized_distances,
)
from collapse.report import cluster_order
from collapse.trace import check_finite
from tests.small_networks import network, put_neuron


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ======================================================================================
# Counts
# ======================================================================================


def rows_of(layer, dim):
    """[n, d] of a layer's rows with its bias, or of its columns, read off by hand."""
    weight = layer.weight.detach()
    if dim == 1:
        return weight.transpose(0, 1).flatten(1)
    parts = [weight.flatten(1)] if layer.bias is None else [weight.flatten(1), layer.bias.detach()[:, None]]
    return torch.cat(parts, 1)


def literal_count(vectors, norms, vanishing=0.1, redundant=0.1):
    """(vanished, independent): the paper's loop over pairs (notebooks FIG3_FIG4 and FIG6 of its code)."""
    kept = [k for k in range(len(vectors)) if norms[k] >= vanishing * norms.max() and norms[k] > 0]
    independent = set(kept)
    followed = set()
    for place, j in enumerate(kept):
        for i in kept[:place]:
            a, b = vectors[i].double(), vectors[j].double()
            if 2 * (a - b).square().sum() / (a.square().sum() + b.square().sum()) < redundant:
                independent.discard(j)
                followed.add(i)
                break
    return len(vectors) - len(kept), len(independent | followed)


def collapsed(model, seed=0):
    """Some neurons of each layer near others, some faint."""
    g = generator(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for weight in (layer.weight.data, layer.weight.data.transpose(0, 1)):
                few = len(weight) // 4
                noise = torch.randn(weight[:few].shape, generator=g) * weight.std() * 0.2
                weight[few : 2 * few] = weight[:few] + noise
                weight[2 * few : 2 * few + few // 2] *= 0.05
    return model.eval()


def test_the_counts_of_vgg16_are_those_of_the_literal_loop():
    model, example = collapsed(core.vgg16(10, 4)), torch.zeros(1, 3, 32, 32)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for mask in (False, True):
        report = collapse_report(model, example, incoming_mask=mask)
        paper = collapse_report(model, example, pairing="paper", incoming_mask=mask)
        assert [row["vanishing"] for row in report] == [row["vanishing"] for row in paper]
        for row, one, two in zip(report, layers, layers[1:], strict=False):
            incoming = rows_of(one, 0)
            vectors = torch.cat([incoming, rows_of(two, 1)], 1)
            norms = (incoming if mask else vectors).double().norm(dim=1)
            assert (row["vanishing"], row["independent"]) == literal_count(vectors, norms), row["name"]
        assert sum(row["redundant"] for row in report) > 30 and sum(row["vanishing"] for row in report) > 10


def test_the_counts_of_resnet18_are_those_of_the_literal_loop():
    model, example = collapsed(core.resnet18(10, 8)), torch.zeros(1, 3, 32, 32)
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    convolutions = [model.conv1] + [conv for block in blocks for conv in (block.conv1, block.conv2)]
    paper = collapse_report(model, example, pairing="paper", incoming_mask=True)
    assert len(paper) == len(convolutions) == 17
    for row, one, two in zip(paper, convolutions, [*convolutions[1:], model.fc], strict=True):
        incoming = rows_of(one, 0)
        vectors = torch.cat([incoming, rows_of(two, 1)], 1)
        assert (row["vanishing"], row["independent"]) == literal_count(vectors, incoming.double().norm(dim=1))
    rows = {row["name"]: row for row in collapse_report(model, example)}
    assert len(rows) == 12
    for name, block in ((f"layer{k // 2 + 1}.{k % 2}.conv1", block) for k, block in enumerate(blocks)):
        norm = torch.stack([block.bn1.weight.detach(), block.bn1.bias.detach()], 1)
        vectors = torch.cat([rows_of(block.conv1, 0), norm, rows_of(block.conv2, 1)], 1)
        found = rows[name]["vanishing"], rows[name]["independent"]
        assert found == literal_count(vectors, vectors.double().norm(dim=1)), name
        assert rows[name]["effective_rank"] == pytest.approx(effective_rank(vectors), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1.0, 1e16], ids=lambda scale: f"scale {scale}")
def test_constant_neurons_are_told_at_any_scale(scale):
    """The quick look in float32, where squares vanish below 1e-22 and overflow above 1e19, never takes one away."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
        model[0].weight[2] = 0  # only its bias is left
        model[0].weight[5] *= 1e-3
    row = collapse_report(model, torch.zeros(1, 6))[0]
    assert (row["constant"], row["vanishing"]) == (2, 0)


def test_the_report_counts_what_was_planted():
    torch.manual_seed(0)
    model, example = core.vgg16(10, 8), torch.zeros(1, 3, 32, 32)
    group = neuron_groups(model, example)[7]
    assert group.size == 64
    put_neuron(group.slots, slice(0, 5), None)
    put_neuron(group.slots, slice(10, 14), 30)
    report = collapse_report(model, example)
    row = report[7]
    counts = row["name"], row["width"], row["vanishing"], row["redundant"], row["independent"], row["constant"]
    assert counts == (group.name, 64, 5, 4, 55, 0)
    assert row["fraction"] == 55 / 64 and row["effective_rank"] < 56
    for other in report[:6] + report[9:]:
        assert other["independent"] == other["width"] and other["effective_rank"] <= other["width"]
    assert "effective_rank" not in collapse_report(model, example, rank=False)[0]
    # The incoming part alone: a neuron that is not heard any more still counts
    with torch.no_grad():
        model.features[0].weight[0] = 0
    assert collapse_report(model, example)[0]["vanishing"] == 0
    assert collapse_report(model, example, incoming_mask=True)[0]["vanishing"] == 1


def test_neurons_of_different_heads_are_never_redundant():
    model, example = network("vision transformer")
    group = next(group for group in neuron_groups(model, example) if group.kind == "value")
    put_neuron(group.slots, 5, 1)  # of another head
    row = next(row for row in collapse_report(model, example) if row["name"] == group.name)
    assert row["redundant"] == 0
    put_neuron(group.slots, 2, 1)
    row = next(row for row in collapse_report(model, example) if row["name"] == group.name)
    assert row["redundant"] == 1


def test_neurons_below_a_layer_norm_vanish_by_gain_offset_and_outgoing_weights():
    model, example = network("layer norm mlp")
    group = neuron_groups(model, example)[0]
    put_neuron(group.vanishing_set(), 3, None)
    assert group.incoming()[3].any()
    assert collapse_report(model, example)[0]["vanishing"] == 1


# ======================================================================================
# What data say
# ======================================================================================


def test_silent_neurons_never_move_on_the_data():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].bias[:2] = -100.0  # dead
        model[3].bias[1] = 0.0
        model[3].weight[1] = 0.0  # says zero
        model[3].weight[2] = 0.05
        model[3].bias[2] = -8.0  # wakes up for large inputs alone
    small = [torch.randn(4, 3, 6, 6, generator=generator(k)) for k in range(3)]
    found = collapse_report(model, small[0], data=small)
    assert [row["silent"] for row in found] == [2, 2]
    found = collapse_report(
        model, small[0], data=[(x, torch.zeros(4, dtype=torch.long)) for x in [*small, 50 * small[0]]]
    )
    assert [row["silent"] for row in found] == [2, 1]
    assert "silent" not in collapse_report(model, small[0])[0]
    with pytest.raises(CollapseError, match="data holds no batch"):
        collapse_report(model, small[0], data=[])
    with pytest.raises(CollapseError, match="give the model, not its groups"):
        collapse_report(neuron_groups(model, small[0]), data=small)


def test_silence_is_one_number_for_all_batches():
    model = nn.Sequential(nn.Linear(1, 2), nn.Hardtanh(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight[:, 0] = torch.tensor([100.0, 1.0])
        model[0].bias.zero_()
    batches = [torch.rand(5, 1) + 1, -torch.rand(5, 1) - 1]
    assert collapse_report(model, batches[0], data=batches[:1])[0]["silent"] == 2
    assert collapse_report(model, batches[0], data=batches)[0]["silent"] == 0


class ReadInPart(nn.Module):
    """A weight whose columns read the input and the neurons; `beside`: another layer reads them, too."""

    def __init__(self, beside):
        super().__init__()
        self.a, self.b, self.weight = nn.Linear(5, 6), nn.Linear(6, 2), nn.Parameter(torch.randn(2, 11))
        self.beside = beside

    def forward(self, x):
        h = self.a(x)
        read = F.linear(x, self.weight[:, :5]) + F.linear(torch.tanh(h), self.weight[:, 5:])
        return read + self.b(torch.relu(h)) if self.beside else read


@pytest.mark.parametrize("beside", [True, False])
def test_a_neuron_that_a_part_of_a_weight_hears_move_is_not_silent(beside):
    model, x = ReadInPart(beside).double(), torch.randn(8, 5, dtype=torch.float64)
    with torch.no_grad():
        model.a.bias[:2] = -9.0  # its ReLU is dead, its tanh moves a little
        model.a.weight[:2] *= 0.1
        model.a.weight[1] = 0  # this one never moves
    assert collapse_report(model, x, data=[x])[0]["silent"] == 1


class Autoencoder(nn.Module):
    """Its decoder is the transpose of its encoder."""

    def __init__(self):
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return F.linear(torch.relu(F.linear(x, self.weight, self.offset)), self.weight.T)


def test_neurons_of_a_tied_weight_can_be_silent():
    model, x = Autoencoder(), torch.randn(9, 5)
    with torch.no_grad():
        model.offset[:2] = -100.0
        model.offset[2:] = 100.0
    assert collapse_report(model, x, data=[x])[0]["silent"] == 2


class Masked(nn.Module):
    """A mask of attention, a layer of which no neuron is measured, one that isn't used, and an MLP."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("steps", torch.zeros(3, dtype=torch.long))
        self.register_buffer("nothing", torch.empty(0))
        self.fourier, self.unused = nn.Linear(4, 4), nn.Linear(2, 2)
        self.one, self.norm, self.other = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.fft.fft(self.fourier(x + self.mask.softmax(1))).real
        return self.other(self.norm(self.one(x)))


def fill(model, path, value):
    """The first entry of a parameter or buffer becomes this."""
    layer, _, name = path.rpartition(".")
    getattr(model.get_submodule(layer), name).detach().view(-1)[0] = value


DIVERGED = "unused.weight fourier.bias one.weight norm.running_mean norm.weight other.bias mask".split()


@pytest.mark.parametrize("path", DIVERGED)
def test_not_a_number_is_refused_by_name_wherever_it_is(path):
    model, x = Masked(), torch.randn(4, 4)
    fill(model, path, math.nan)
    words = f"^{path} holds NaN or infinite values: the network has diverged"
    groups = neuron_groups(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(x, torch.zeros(4, dtype=torch.long))]
    for refused in (
        lambda: collapse_report(model, x),
        lambda: collapse_report(nn.DataParallel(model), x),
        lambda: collapse_report(groups),
        lambda: CollapseLog(model, x).record(0),
        lambda: distance_maps(model, x, ("one",)),
        lambda: extract_subnetwork(model, x),
        lambda: collapse_exponent(model, {"one": [[0, 1]]}, batches, optimizer),
    ):
        with pytest.raises(CollapseError, match=words):
            refused()


class Questions(TorchDispatchMode):
    """Counts how often a number is asked for, which waits for a GPU to finish."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_all_values_are_checked_by_at_most_one_question():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)])
    with Questions() as questions:
        check_finite(model)
    assert questions.count <= 1


def test_infinite_values_are_refused_but_in_masks():
    model, x = Masked(), torch.randn(4, 4)
    assert len(collapse_report(model, x)) == 1
    for path in DIVERGED[:-1]:
        diverged = copy.deepcopy(model)
        fill(diverged, path, math.inf)
        with pytest.raises(CollapseError, match=f"^{path} holds NaN or infinite values"):
            collapse_report(diverged, x)
    # some groups alone know of their own parameters alone
    fill(model, "unused.weight", math.nan)
    some = list(neuron_groups(model, x))
    assert len(collapse_report(some)) == 1
    fill(model, "other.weight", math.nan)
    with pytest.raises(CollapseError, match=r"^other.weight holds NaN"):
        collapse_report(some)


def test_a_computed_weight_that_is_not_a_number_is_refused():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
    layer.parametrizations.weight.original1.data[2] = 0  # the direction of one row, divided by its norm
    model, x = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 5)
    for look in (collapse_report, extract_subnetwork):
        with pytest.raises(CollapseError, match=r"^0.weight holds NaN"):
            look(model, x)


# ======================================================================================
# For a person
# ======================================================================================


class Long(nn.Module):
    def __init__(self):
        super().__init__()
        self.the_first_of_all_the_layers_that_this_network_has_in_its_backbone = nn.Linear(6, 2000)
        self.norm, self.last, self.head = nn.LayerNorm(2000), nn.Linear(2000, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.last(torch.relu(self.norm(self.the_first_of_all_the_layers_that_this_network_has_in_its_backbone(x))))
        return self.head(torch.fft.fft(x).real)


def test_the_table_is_at_most_100_columns_wide_and_says_what_is_missing():
    x = torch.randn(3, 6)
    report = collapse_report(Long(), x, data=[x])
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) == 4
    assert lines[0].split() == (
        "neurons of width vanished redundant constant independent fraction eff. rank silent".split()
    )
    assert "2,000" in lines[1] and ".." in lines[1]
    assert "of 2,000 neurons are independent; they hold" in lines[2]
    assert lines[3].startswith("not measured: last: ") and "can't be followed" in lines[3]
    assert report.skipped and 0.5 < report.covered < 1
    assert copy.copy(report[0])["width"] == 2000 and len(report) == 1


# ======================================================================================
# Maps
# ======================================================================================


def test_the_order_of_a_map_is_average_linkage_largest_cluster_first():
    """Against the plain definition: join the two clusters with the smallest mean distance over all pairs."""
    for seed in range(20):
        points = torch.randn(12, 3, generator=generator(seed), dtype=torch.float64)
        distances = normalized_distances(points)
        wanted = [[k] for k in range(12)]
        clusters = 1 + seed % 6
        while len(wanted) > clusters:
            means = {(a, b): distances[wanted[a]][:, wanted[b]].mean() for b in range(len(wanted)) for a in range(b)}
            a, b = min(means, key=means.get)
            wanted[a] += wanted.pop(b)
        order = cluster_order(distances, clusters).tolist()
        assert sorted(order) == list(range(12))
        sizes = sorted(map(len, wanted), reverse=True)
        pieces = [set(part.tolist()) for part in torch.tensor(order).split(sizes)]
        assert sorted(map(sorted, pieces)) == sorted(map(sorted, wanted))


def test_maps_show_planted_clusters():
    """Of 24 neurons, 10 are copies of one, 5 of another: two black squares in the corner, both parts; averaged, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 24), nn.Tanh(), nn.Linear(24, 9), nn.Tanh(), nn.Linear(9, 2))
    shuffled = torch.randperm(24, generator=generator(1))
    with torch.no_grad():
        for leader, copies in ((0, shuffled[:10]), (1, shuffled[10:15])):
            first, second = model[0].weight[shuffled[leader * 10]].clone(), model[2].weight[:, copies[0]].clone()
            model[0].weight[copies], model[0].bias[copies] = first, 0.1
            model[2].weight[:, copies] = second[:, None]
    (entry,) = distance_maps(model, torch.zeros(1, 7), ("0",))
    assert entry["width"] == 24 and entry["clusters"] == 11
    for part in ("incoming", "outgoing"):
        seen = torch.tensor(entry[part])
        assert seen[:10, :10].max() < 0.01 and seen[10:15, 10:15].max() < 0.01 and (seen[:10, 10:] > 0.05).all()
    (small,) = distance_maps(model, torch.zeros(1, 7), ("0",), side=12)
    assert torch.tensor(small["incoming"]).shape == (12, 12) and torch.tensor(small["incoming"])[:5, :5].max() < 0.01
    with pytest.raises(CollapseError, match="no group of neurons 7; there are 0, 2"):
        distance_maps(model, torch.zeros(1, 7), ("7",))
