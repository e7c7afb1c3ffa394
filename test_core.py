"""The tests: physics and contracts. `pytest` takes under three minutes on two cores, needs no network and no GPU."""

import copy
import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import collapse
import core
import teacher_student
import theory
import toy_models
from core import collapse_report, effective_rank, independent_neurons, neuron_groups, normalized_distances

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # small tensors
    torch.set_flush_denormal(True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ======================================================================================
# models
# ======================================================================================


def test_networks_are_the_papers():
    vgg, resnet = core.vgg16(), core.resnet18()
    assert sum(p.numel() for p in vgg.parameters()) == 15_245_130
    assert sum(p.numel() for p in resnet.parameters()) == 11_220_132
    for model, classes in ((vgg, 10), (resnet, 100)):
        kinds = {type(module) for module in model.modules()}
        assert nn.GELU in kinds and nn.ReLU not in kinds and nn.Dropout not in kinds
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, classes)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in vgg.modules())
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
            assert not module.bias.any()
    assert resnet.conv1.stride == (1, 1) and resnet.conv1.kernel_size == (3, 3)


def test_width_scales_every_layer():
    for make in (core.vgg16, core.resnet18):
        wide = {name: p.shape for name, p in make(10, 64).named_parameters()}
        narrow = {name: p.shape for name, p in make(10, 8).named_parameters()}
        assert wide.keys() == narrow.keys()
        for name, shape in narrow.items():
            for a, b in zip(shape, wide[name], strict=True):
                assert a == b or 8 * a == b


# ======================================================================================
# collapse metrics: numbers
# ======================================================================================


def literal_count(vectors, vanishing=0.1, redundant=0.1, norms=None):
    """The reference's way: pairs in lexicographic order, j joins i unless it is already taken."""
    rows = vectors.double().numpy()
    norms = np.linalg.norm(rows, axis=1) if norms is None else norms.numpy()
    rows = rows[(norms >= vanishing * norms.max()) & (norms > 0)]
    clusters, taken = {}, set()
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            a, b = rows[i], rows[j]
            if 2 * ((a - b) ** 2).sum() / ((a**2).sum() + (b**2).sum()) < redundant and j not in taken:
                clusters.setdefault(i, []).append(j)
                taken.add(j)
    return len(clusters) + sum(i not in taken and i not in clusters for i in range(len(rows)))


def planted(seed):
    """Random rows with vanishing ones, duplicates and chains in which neighbours only are close."""
    g = generator(seed)
    n, d = int(torch.randint(2, 24, (), generator=g)), int(torch.randint(2, 40, (), generator=g))
    rows = torch.randn(n, d, generator=g)
    for _ in range(n):
        i, j = torch.randint(n, (2,), generator=g).tolist()
        kind = torch.rand((), generator=g)
        if kind < 0.3:
            rows[i] = rows[j]
        elif kind < 0.7:
            rows[i] = rows[j] + 0.28 * torch.rand((), generator=g) * rows[j].norm() * F.normalize(
                torch.randn(d, generator=g), dim=0
            )
        elif kind < 0.85:
            rows[i] *= 0.15 * torch.rand((), generator=g)
        elif kind < 0.9:
            rows[i] = 0
    return rows


def test_the_count_equals_the_literal_one_on_planted_cases():
    chains = 0
    for seed in range(400):
        rows = planted(seed)
        count = independent_neurons(rows)
        assert count == literal_count(rows), seed
        incoming = rows[:, : 1 + seed % rows.shape[1]].norm(dim=1).double()
        assert independent_neurons(rows, norms=incoming) == literal_count(rows, norms=incoming), seed
        assert independent_neurons(rows, 0.3, 0.5) == literal_count(rows, 0.3, 0.5), seed
        chains += count != connected_components(rows)
    assert chains > 10  # the cases do tell the paper's rule from connected components


def connected_components(rows):
    kept = rows[rows.norm(dim=1) >= 0.1 * rows.norm(dim=1).max()]
    reach = (normalized_distances(kept) < 0.1).double()
    for _ in range(6):
        reach = (reach @ reach > 0).double()
    return len(torch.unique(reach, dim=0))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-6, 1e6, 1e18, 1e30])
def test_metrics_do_not_depend_on_the_scale(scale):
    for seed in range(20):
        rows = planted(seed)
        assert independent_neurons(rows * scale) == independent_neurons(rows)
        assert effective_rank(rows * scale) == pytest.approx(effective_rank(rows), rel=1e-5)
        assert torch.allclose(normalized_distances(rows * scale), normalized_distances(rows), atol=1e-4)


def test_a_pair_at_the_threshold_is_measured_exactly():
    """Distances within float32 rounding of 0.1, where a Gram matrix can't tell: strictly below counts."""
    base = torch.zeros(1000)
    base[0] = 1
    for angle in (math.acos(0.95) - 1e-7, math.acos(0.95) + 1e-7):  # 2 |a-b|^2 / 2 = 2 (1 - cos)
        other = torch.zeros(1000)
        other[0], other[1] = math.cos(angle), math.sin(angle)
        rows = torch.stack([base, other])
        assert independent_neurons(rows) == literal_count(rows)


def test_distances_of_known_pairs():
    a = torch.tensor([[3.0, 4.0], [3.0, 4.0], [4.0, -3.0], [-3.0, -4.0], [0.0, 0.0], [0.0, 0.0]])
    expected = torch.full((6, 6), 2.0)
    expected[0, 1] = expected[1, 0] = 0
    expected[0, 3] = expected[1, 3] = expected[3, 0] = expected[3, 1] = 4
    expected[4, 5] = expected[5, 4] = 0
    expected.fill_diagonal_(0)
    assert torch.equal(normalized_distances(a), expected)


def test_empty_zero_nan_and_single_rows():
    zeros, one = torch.zeros(3, 5), torch.ones(1, 5)
    assert independent_neurons(zeros) == 0 and effective_rank(zeros) == 0 and not normalized_distances(zeros).any()
    assert independent_neurons(one) == 1 and effective_rank(one) == pytest.approx(1)
    assert normalized_distances(one).tolist() == [[0]]
    assert independent_neurons(torch.eye(4, dtype=torch.int64)) == 4
    for function in (independent_neurons, effective_rank, normalized_distances):
        for bad in (torch.full((2, 2), math.nan), torch.tensor([[1.0, math.inf]])):
            with pytest.raises(ValueError, match="NaN or infinite"):
                function(bad)
        for bad in (torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(3)):
            with pytest.raises(ValueError, match="not empty"):
                function(bad)
    with pytest.raises(ValueError, match="one per neuron"):
        independent_neurons(one, norms=torch.ones(2))


def test_effective_rank_is_the_exponential_of_the_entropy():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.randn(9, 1, generator=generator()) @ torch.ones(1, 30)) == pytest.approx(1)
    for shape in ((20, 50), (50, 20)):
        matrix = torch.randn(*shape, generator=generator(1))
        s = torch.linalg.svdvals(matrix.double())
        p = s / s.sum()
        assert effective_rank(matrix) == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)


# ======================================================================================
# collapse metrics: groups of neurons in a network
# ======================================================================================


class Residual(nn.Module):
    """A little of everything: group norm, a called-twice layer, method and function forms, spatial mean."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(8, 8)  # a group per channel: permutable
        self.twice = nn.Conv2d(8, 8, 1)
        self.act, self.head = nn.PReLU(8), nn.Linear(8, 6)
        self.tail = nn.Sequential(nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = torch.add(x, self.act(self.twice(self.twice(x))))
        x = F.max_pool2d(x, 2) * 0.5 + 1
        return self.tail(self.head(x.mean((2, 3)).reshape(x.size(0), -1)))


def mlp(depth=2, width=12, activation=nn.GELU):
    layers = [nn.Linear(10, width), nn.LayerNorm(width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def batchnorm_mlp():
    return nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(), nn.Linear(12, 3))


def thin_head(make):
    """A torchvision VGG with the head's 4096 neurons cut to 40: the same structure, flatten of 7 x 7 included."""
    model = make(num_classes=7)
    model.classifier = nn.Sequential(
        nn.Linear(25088, 40),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(40, 40),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(40, 7),
    )
    return model


NETWORKS = {  # name: (network, example shape, groups, neurons)
    "vgg11": (lambda: thin_head(torchvision.models.vgg11), (2, 3, 32, 32), 10, 2752 + 80),
    "vgg16_bn": (lambda: thin_head(torchvision.models.vgg16_bn), (2, 3, 32, 32), 15, 4224 + 80),
    "resnet18": (torchvision.models.resnet18, (2, 3, 32, 32), 12, 2880),
    "resnet50": (torchvision.models.resnet50, (2, 3, 32, 32), 37, 64 + 3840 + 3776 * 2),
    "core.vgg16": (lambda: core.vgg16(10, 8), (2, 3, 32, 32), 15, 4224 // 8 + 128),
    "core.resnet18": (lambda: core.resnet18(10, 8), (2, 3, 32, 32), 12, 360),
    "mlp": (mlp, (2, 10), 2, 24),
    "batchnorm mlp": (batchnorm_mlp, (2, 10), 1, 12),
    "residual": (Residual, (2, 3, 8, 8), 2, 14),
}


def randomize(model, seed=0):
    """Every parameter and running statistic random, so that no symmetry is an accident."""
    g = generator(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=g, dtype=tensor.dtype)
            tensor.data = noise + 0.5 if "running_var" in name else tensor.data + 0.2 * (noise - 0.5)
    return model.eval()


def neuron_slices(group):
    """(tensor, dimension, block) of everything that belongs to the group, running statistics included."""
    for slot in group.producers:
        yield slot.module.weight, 0, 1
        if slot.module.bias is not None:
            yield slot.module.bias, 0, 1
    for slot in group.norms:
        for tensor in [*slot.module.parameters(), *slot.module.buffers()]:
            if tensor.ndim:
                yield tensor, 0, slot.block
    for slot in group.consumers:
        yield slot.module.weight, 1, slot.block


@torch.no_grad()
def permute(group, order):
    for tensor, dimension, block in neuron_slices(group):
        index = (order[:, None] * block + torch.arange(block)).flatten()
        tensor.copy_(tensor.index_select(dimension, index))


@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_the_neurons_of_every_group_changes_nothing(name):
    """The groups are complete: all of a network's permutation symmetry, through norms, flatten and residual streams."""
    make, shape, count, neurons = NETWORKS[name]
    torch.manual_seed(0)
    model = randomize(make().double())
    x = torch.randn(shape, generator=generator(), dtype=torch.float64)
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    groups = neuron_groups(model, x)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert len(groups) == count and sum(group.size for group in groups) == neurons
    before = model(x)
    for k, group in enumerate(groups):
        vectors, order = group.vectors(), torch.randperm(group.size, generator=generator(k))
        assert vectors.shape[0] == group.size
        permute(group, order)
        if {slot.name for slot in group.producers}.isdisjoint(slot.name for slot in group.consumers):
            assert torch.equal(group.vectors(), vectors[order])
    after = model(x)
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9 * before.abs().max().item())
    # ... and nothing less: permuting without the consumers does change the function
    permute(groups[0]._replace(consumers=()), torch.arange(groups[0].size).roll(1))
    assert not torch.allclose(model(x), after, rtol=1e-3)


@pytest.mark.parametrize("name", ["core.vgg16", "core.resnet18", "batchnorm mlp", "vgg11"])
def test_merging_a_planted_duplicate_keeps_the_function(name):
    make, shape, _, _ = NETWORKS[name]
    torch.manual_seed(1)
    model = randomize(make().double(), 1)
    x = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    for group in neuron_groups(model, x):
        p, q = 0, group.size - 1
        with torch.no_grad():
            for tensor, dimension, block in neuron_slices(group):
                if dimension == 0:
                    tensor[q * block : (q + 1) * block] = tensor[p * block : (p + 1) * block]
            before = model(x)
            for slot in group.consumers:
                w, b = slot.module.weight, slot.block
                w[:, p * b : (p + 1) * b] += w[:, q * b : (q + 1) * b]
                w[:, q * b : (q + 1) * b] = 0
            assert torch.allclose(model(x), before, rtol=1e-9, atol=1e-9)


def test_streams_of_a_resnet_have_all_their_producers_and_consumers():
    groups = {group.name: group for group in neuron_groups(core.resnet18(10, 8), torch.zeros(1, 3, 32, 32))}
    stem = groups["conv1"]
    assert [slot.name for slot in stem.producers] == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    assert [slot.name for slot in stem.norms] == ["bn1", "layer1.0.bn2", "layer1.1.bn2"]
    assert {slot.name for slot in stem.consumers} == {
        "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"
    }  # fmt: skip
    last = groups["layer4.0.conv2"]
    assert {slot.name for slot in last.producers} == {"layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv2"}
    assert [slot.name for slot in last.consumers] == ["layer4.1.conv1", "fc"]


def test_the_papers_pairing_of_a_resnet():
    model = core.resnet18(100, 8)
    groups = neuron_groups(model, torch.zeros(1, 3, 32, 32), pairing="paper")
    names = ["conv1"] + [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)]
    assert [group.name for group in groups] == names
    assert [group.consumers[0].name for group in groups] == [*names[1:], "fc"]
    assert groups[0].vectors().shape == (8, 27 + 72) and not any(group.norms for group in groups)
    vgg = core.vgg16(10, 8)
    example = torch.zeros(1, 3, 32, 32)
    for ours, paper in zip(neuron_groups(vgg, example), neuron_groups(vgg, example, "paper"), strict=True):
        assert torch.equal(ours.vectors(), paper.vectors())
    with pytest.raises(ValueError, match="pairing"):
        neuron_groups(vgg, example, "reference")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Gate(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x) * torch.sigmoid(self[0](x)))


class Embedded(nn.Linear):
    def forward(self, x):
        return super().forward(x) + self.bias


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        return self.attention(x, x, x)[0]


REFUSED = {
    "concatenation": (torchvision.models.densenet121, (2, 3, 32, 32), r"cat"),
    "attention": (Attention, (2, 4, 6), r"attention"),
    "grouped convolution": (torchvision.models.mobilenet_v2, (2, 3, 32, 32), r"features\.1\.conv\.0\.0 .*grouped"),
    "tied weights": (Tied, (2, 5), r"b .*shares a parameter with a"),
    "gates": (lambda: Gate(nn.Linear(5, 5), nn.Linear(5, 2)), (2, 5), r"mul.*other than by addition"),
    "raw parameters": (lambda: nn.Sequential(Embedded(5, 5), nn.Linear(5, 2)), (2, 5), r"outside a layer"),
    "control flow": (lambda: nn.Sequential(Branching(5, 5), nn.Linear(5, 2)), (2, 5), r"can't trace"),
    "channels pooled": (lambda: nn.Sequential(nn.Linear(5, 6), nn.MaxPool1d(2), nn.Linear(3, 2)), (2, 4, 5), r"pools"),
    "wrong example": (mlp, (2, 11), r"doesn't take the example of shape \[2, 11\]"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(why):
    make, shape, words = REFUSED[why]
    with pytest.raises(ValueError, match=words) as caught:
        neuron_groups(make(), torch.ones(shape))
    assert "\n" not in str(caught.value)


def test_the_report_counts_what_was_planted():
    torch.manual_seed(0)
    model = core.vgg16(10, 8)
    group = neuron_groups(model, torch.zeros(1, 3, 32, 32))[7]
    assert group.size == 64
    with torch.no_grad():
        for tensor, dimension, _ in neuron_slices(group):
            rows = tensor.transpose(0, dimension)
            rows[:5] = 0
            rows[10:14] = rows[30].clone()
    report = collapse_report(model, torch.zeros(1, 3, 32, 32))
    row = report[7]
    assert (row["name"], row["width"], row["vanishing"], row["redundant"], row["independent"]) == (
        group.name, 64, 5, 4, 55
    )  # fmt: skip
    assert row["fraction"] == 55 / 64 and row["effective_rank"] < 56
    for other in report[:6] + report[9:]:
        assert other["independent"] == other["width"] and other["effective_rank"] <= other["width"]
    # The incoming part alone: a neuron that is not heard any more still counts
    with torch.no_grad():
        model.features[0].weight[0] = 0
    assert collapse_report(model, torch.zeros(1, 3, 32, 32))[0]["vanishing"] == 0
    assert collapse_report(model, torch.zeros(1, 3, 32, 32), incoming_mask=True)[0]["vanishing"] == 1


def test_the_order_of_a_map_is_average_linkage_largest_cluster_first():
    """Against the plain definition: join the two clusters with the smallest mean distance over all pairs."""
    for seed in range(20):
        points = torch.randn(12, 3, generator=generator(seed), dtype=torch.float64)
        distances, wanted = normalized_distances(points), [[k] for k in range(12)]
        clusters = 1 + seed % 6
        while len(wanted) > clusters:
            means = {(a, b): distances[wanted[a]][:, wanted[b]].mean() for b in range(len(wanted)) for a in range(b)}
            a, b = min(means, key=means.get)
            wanted[a] += wanted.pop(b)
        order = collapse.cluster_order(distances, clusters).tolist()
        assert sorted(order) == list(range(12))
        sizes = sorted(map(len, wanted), reverse=True)
        pieces = [set(part.tolist()) for part in torch.tensor(order).split(sizes)]
        assert sorted(map(sorted, pieces)) == sorted(map(sorted, wanted))


def test_maps_show_planted_clusters():
    """Of 24 neurons, 10 are copies of one, 5 of another: two black squares in the corner, both parts; averaged, too."""
    model = nn.Sequential(nn.Linear(7, 24), nn.Tanh(), nn.Linear(24, 9), nn.Tanh(), nn.Linear(9, 2))
    shuffled = torch.randperm(24, generator=generator(1))
    with torch.no_grad():
        for leader, copies in ((0, shuffled[:10]), (1, shuffled[10:15])):
            first, second = model[0].weight[shuffled[leader * 10]].clone(), model[2].weight[:, copies[0]].clone()
            model[0].weight[copies], model[0].bias[copies] = first, 0.1
            model[2].weight[:, copies] = second[:, None]
    (entry,) = core.distance_maps(model, torch.zeros(1, 7), ("0",))
    assert entry["width"] == 24 and entry["clusters"] == 11
    for part in ("incoming", "outgoing"):
        seen = torch.tensor(entry[part])
        assert seen[:10, :10].max() < 0.01 and seen[10:15, 10:15].max() < 0.01 and (seen[:10, 10:] > 0.05).all()
    (small,) = core.distance_maps(model, torch.zeros(1, 7), ("0",), side=12)
    assert torch.tensor(small["incoming"]).shape == (12, 12) and torch.tensor(small["incoming"])[:5, :5].max() < 0.01


# ======================================================================================
# invariant sets: SGD with momentum and weight decay can't leave them, on any batch
# ======================================================================================

INVARIANT = {"vgg": lambda: core.vgg16(10, 4), "resnet": lambda: core.resnet18(10, 4), "mlp": lambda: mlp(2, 12)}


def train_some_steps(model, shape, steps=5):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-2)
    g = generator(3)
    model.train()
    for _ in range(steps):
        x = torch.randn(8, *shape, generator=g, dtype=torch.float64)
        y = torch.randint(3, (8,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@torch.no_grad()
def set_neuron(group, p, value):
    """Neuron p of every tensor of the group to `value` (a number, or another neuron)."""
    for tensor, dimension, block in neuron_slices(group):
        rows = tensor.transpose(0, dimension)
        rows[p * block : (p + 1) * block] = rows[value * block : (value + 1) * block] if value else 0


@pytest.mark.parametrize("name", INVARIANT)
def test_a_redundant_pair_stays_redundant(name):
    """Equal incoming weights, norms and outgoing weights get equal gradients on every batch."""
    torch.manual_seed(0)
    model = INVARIANT[name]().double()
    shape = (10,) if name == "mlp" else (3, 32, 32)
    groups = neuron_groups(model, torch.zeros(1, *shape, dtype=torch.float64))
    for group in groups:
        set_neuron(group, 0, 2)
    before = [group.vectors() for group in groups]
    train_some_steps(model, shape)
    for group, old in zip(groups, before, strict=True):
        rows = group.vectors()
        # to the bit in exact arithmetic; kernels may add up different neurons in different order
        assert (rows[0] - rows[2]).abs().max() <= 1e-13 * rows[2].abs().max()
        assert (rows[2] - old[2]).abs().max() > 1e-4 and normalized_distances(rows)[0, 1] > 0.01


@pytest.mark.parametrize("name", ["vgg", "mlp"])
def test_a_vanished_neuron_stays_vanished(name):
    """Incoming weights, bias and outgoing weights zero, to the bit (activations with sigma(0) = 0)."""
    torch.manual_seed(0)
    model = INVARIANT[name]().double()
    shape = (10,) if name == "mlp" else (3, 32, 32)
    groups = neuron_groups(model, torch.zeros(1, *shape, dtype=torch.float64))
    # Not below a layer norm: it moves a zero neuron off zero, so the first group of the mlp has no such set
    groups = [group for group in groups if not group.norms]
    for group in groups:
        set_neuron(group, 1, 0)
    before = [group.vectors() for group in groups]
    train_some_steps(model, shape)
    for group, old in zip(groups, before, strict=True):
        rows = group.vectors()
        assert not rows[1].any() and (rows[2] - old[2]).abs().max() > 1e-4


@pytest.mark.parametrize("silent", ["gain", "incoming"])
def test_a_vanished_channel_of_a_batchnorm_network_stays_vanished(silent):
    """With batch norm two sets are invariant: offset, outgoing weights and gain zero, whatever the incoming weights
    are; or offset, outgoing and incoming weights zero, whatever the gain is. In a residual stream the channel's
    parameters at all its producers, norms and consumers belong to the set.
    """
    torch.manual_seed(0)
    model = INVARIANT["resnet"]().double()
    groups = neuron_groups(model, torch.zeros(1, 3, 32, 32, dtype=torch.float64))

    def members(group):
        for slot in group.norms:
            yield slot.module.bias[1]
            if silent == "gain":
                yield slot.module.weight[1]
        for slot in group.producers if silent == "incoming" else ():
            yield slot.module.weight[1]
        for slot in group.consumers:
            yield slot.module.weight[:, 1]

    with torch.no_grad():
        for group in groups:
            for tensor in members(group):
                tensor.zero_()
    free = [slot.module.weight[1].clone() for group in groups for slot in group.producers]
    train_some_steps(model, (3, 32, 32))
    assert not any(tensor.any() for group in groups for tensor in members(group))
    moved = [
        (slot.module.weight[1] - old).abs().max()
        for old, slot in zip(free, (slot for group in groups for slot in group.producers), strict=True)
    ]
    assert (min(moved) > 0) == (silent == "gain")  # weight decay moves incoming weights that are free


# ======================================================================================
# quartic well
# ======================================================================================


def fokker_planck(growth, variance, times, threshold, cell=0.15):
    """P(|theta| < threshold) without random numbers: log|theta| on a grid, drift growth - exp(2x), by eigenvectors."""
    x = np.arange(-90, 3.0, cell)
    edges = (x[1:] + x[:-1]) / 2
    potential = (np.exp(2 * x) / 2 - growth * x) * 2 / variance  # of the stationary density exp(-potential)
    # Jump rates between neighbours that keep detailed balance, symmetrised by sqrt(density)
    rate = variance / 2 / cell**2
    up, down = rate * np.exp(-np.diff(potential) / 2), rate * np.exp(np.diff(potential) / 2)
    keep = edges < 2.5
    up, down = up[keep], down[keep]
    n = keep.sum() + 1
    x, potential = x[:n], potential[:n]
    symmetric = np.diag(-np.append(up, 0) - np.append(0, down)) + np.diag(np.full(n - 1, rate), 1)
    symmetric += np.diag(np.full(n - 1, rate), -1)
    values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(symmetric)))
    density = np.exp(-(np.exp(2 * x) / 8) + x)  # theta_0 = 2 N(0, 1), as a density of log|theta|
    start = density / density.sum() * np.exp((potential - potential[-20]) / 2)
    below = (x < math.log(threshold)) * np.exp(-(potential - potential[-20]) / 2)
    return [min(max(below @ vectors @ (np.exp(values * t) * (vectors.T @ start)), 0.0), 1.0) for t in times]


def test_log_growth_is_the_mean_log_of_the_euler_factor():
    mean, variance = theory.log_growth(1.5, np.array([0.5, 2.0, 3.0]), 0.01)
    xi = np.random.default_rng(0).normal(size=(3, 400_000))
    logs = np.log(np.abs(1 + 1.5 * 0.01 + np.array([[0.5], [2.0], [3.0]]) * 0.1 * xi)) / 0.01
    assert np.all(abs(mean - logs.mean(1)) < 4 * logs.std(1) / math.sqrt(400_000))
    assert np.allclose(variance, logs.var(1) * 0.01, rtol=0.02)
    mean, variance = theory.log_growth(1.5, np.array([2.0]), 1e-6)
    assert mean[0] == pytest.approx(1.5 - 2, abs=1e-4) and variance[0] == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("zeta", [1.8, 2.0, 2.4, 2.9])
def test_the_reflected_brownian_motion_solves_fokker_planck(zeta):
    growth, variance = 1.5 - zeta**2 / 2, zeta**2
    times = (25, 50, 100, 200)
    exact = fokker_planck(growth, variance, times, 1e-15)
    closed = [theory.reflected_collapse(np.array([growth]), np.array([variance]), t, 1e-15).item() for t in times]
    assert np.abs(np.subtract(exact, closed)).max() < 0.01


def test_quartic_collapse_equals_the_euler_chain_and_fokker_planck():
    """The coarse recursion against the paper's own small steps (at one time) and against a solver without noise."""
    r = toy_models.quartic(trajectory_steps=10, trajectories=10, noise_levels=11, replicas=4000)
    grid, steps = r["noises"], (10_000, 20_000, 40_000, 80_000)
    growth, variance = theory.log_growth(1.5, grid, 0.0025)
    for k in (6, 7, 8, 9):
        exact = fokker_planck(growth[k], variance[k], [t * 0.0025 for t in steps], 1e-15)
        error = 3 * np.sqrt(np.multiply(exact, np.subtract(1, exact)) / 4000)
        assert np.all(np.abs(r["collapse"][:, k].numpy() - exact) < 0.01 + error), grid[k]
    # Literal chain, float64, zeta = 2.1 and 2.4
    g = generator(5)
    zeta = torch.tensor([[grid[7]], [grid[8]]])
    theta = 2 * torch.randn(2, 3000, generator=g, dtype=torch.float64)
    for _ in range(10_000):
        xi = torch.randn(2, 3000, generator=g)
        theta = theta + -(theta**3 - 1.5 * theta) * 0.0025 + zeta * 0.05 * theta * xi
    chain = (theta.abs() < 1e-15).double().mean(1)
    ours = r["collapse"][0, [7, 8]]
    error = (chain * (1 - chain) / 3000 + ours * (1 - ours) / 4000).sqrt()
    assert ((chain - ours).abs() < 0.02 + 3 * error).all()


def test_stationary_density_integrates_to_one_and_ends_at_the_threshold():
    edges = np.linspace(-6, 6, 241)
    for zeta in (0.1, 1.0, 1.5, 1.7):
        masses = theory.stationary_masses(1.5, zeta, edges)
        assert masses.sum() == pytest.approx(1, abs=1e-6) and np.allclose(masses, masses[::-1], atol=1e-9)
    assert theory.stationary_masses(1.5, 1.7321, edges) is None
    # zeta = 1: density proportional to |theta| exp(-theta^2), whose integral is known
    masses = theory.stationary_masses(1.5, 1.0, edges)
    right = np.exp(-(edges[120:-1] ** 2)) - np.exp(-(edges[121:] ** 2))
    assert np.allclose(masses[120:], right / 2, atol=1e-5)


# ======================================================================================
# single neuron
# ======================================================================================


def neuron_data():
    g = generator()
    x = torch.randn(32, generator=g, dtype=torch.float64)
    return x, x + 0.1 * torch.randn(32, generator=g, dtype=torch.float64)


def test_neuron_drift_is_minus_the_gradient_and_two_normals_do_the_work_of_32():
    x, y = neuron_data()
    table = toy_models.neuron_table(x, y, size=2**16)
    w = 1.5 * torch.randn(2, 200, generator=generator(1), dtype=torch.float64)
    eta, step = torch.tensor(2.0, dtype=torch.float64), 0.01

    def moved(first, second):
        w1, w2 = w.clone()
        toy_models.neuron_euler(table, w1, w2, eta, step, torch.tensor([[first], [second]], dtype=torch.float64))
        return torch.stack([w1, w2]) - w

    weights = w.clone().requires_grad_()
    output = weights[1, :, None] * torch.tanh(weights[0, :, None] * x)
    loss = 0.5 * (output - y).square().mean(1).sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert torch.allclose(moved(0.0, 0.0), -step * gradient, rtol=2e-3, atol=1e-6)  # the table's own resolution
    # Covariance of sum_i sqrt(eta dt / m) grad f(x_i) xi_i with independent xi_i
    per_point = torch.func.vmap(torch.func.jacrev(lambda v: v[1] * torch.tanh(v[0] * x)))(w.T.contiguous())
    expected = eta * step / 32 * per_point.mT @ per_point
    kicks = torch.stack([moved(1.0, 0.0) - moved(0.0, 0.0), moved(0.0, 1.0) - moved(0.0, 0.0)])
    ours = torch.einsum("kin,kjn->nij", kicks, kicks)
    assert torch.allclose(ours, expected, rtol=2e-3, atol=1e-6)


def test_neuron_step_equals_the_euler_chain_on_the_same_noise():
    """20 Euler steps against one exponential step driven by their summed noise: collapse probabilities within 0.02.

    The same noise cancels the sampling error: the standard error of the difference is about 0.006.
    """
    x, y = neuron_data()
    a, power = float((x * y).mean()), float((x * x).mean())
    table = toy_models.neuron_table(x, y).float()
    eta = np.array([1.2, 1.6, 2.0, 2.4])
    matched = toy_models.neuron_matching(eta, a, power, 0.01, 0.2, "cpu")
    g, column = generator(2), torch.tensor(eta, dtype=torch.float32)[:, None]
    w1, w2 = 1e-3 * torch.randn(2, 4, 1500, generator=g)
    e1, e2 = w1.clone(), w2.clone()
    for step in range(1, 354):
        total = torch.zeros(2, 4, 1500)
        for _ in range(20):
            xi = torch.randn(2, 4, 1500, generator=g)
            toy_models.neuron_euler(table, e1, e2, column, 0.01, xi)
            total += xi
        w1, w2 = toy_models.neuron_step(table, w1, w2, *matched, 0.2, total / math.sqrt(20))
        if step in (152, 353):
            gap = (torch.hypot(w1, w2) < 0.01).float() - (torch.hypot(e1, e2) < 0.01).float()
            error = gap.std(1) / math.sqrt(1500)
            assert error.max() < 0.008 and (gap.mean(1).abs() < 0.02).all(), (step, gap.mean(1))


def test_the_origin_of_the_neuron_is_invariant():
    x, y = neuron_data()
    table = toy_models.neuron_table(x, y).float()
    matched = toy_models.neuron_matching(np.array([2.0]), 1.0, 1.0, 0.01, 0.1, "cpu")
    w1, w2 = toy_models.neuron_step(table, torch.zeros(1, 9), torch.zeros(1, 9), *matched, 0.1, torch.randn(2, 1, 9))
    assert not w1.any() and not w2.any()


def test_neuron_rates_match_the_linearised_exponent():
    r = toy_models.neuron(replicas=2, steps=20, checkpoints=(20,), rate_noises=12, rate_replicas=200)
    gap = (r["rate"] - torch.from_numpy(r["rate_theory_chain"])).abs()
    assert (gap < 4 * r["rate_error"] + 0.01).all()
    assert (r["rate_error"] < 0.02).all() and r["rate"][0] > 0.8 and r["rate"][-1] < -1.5


# ======================================================================================
# two neurons
# ======================================================================================


def test_pair_forces_are_derivatives_of_gelu():
    a, x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    g, g1, g2 = toy_models.pair_forces(a.detach()[..., None], x)
    value = F.gelu(a[..., None] * x)
    assert torch.allclose(g, value)
    for k in range(5):
        (first,) = torch.autograd.grad(value[..., k].sum(), a, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), a, retain_graph=True)
        assert torch.allclose(g1[..., k], first) and torch.allclose(g2[..., k], second)


def test_pair_repeats_a_plain_training_loop_on_the_same_noise():
    """Against nn.Linear, autograd and torch.optim.SGD, seed by seed as the reference draws its noise."""
    r = toy_models.pair(learning_rates=(0.1, 0.3), label_noises=(0.4,), replicas=2, extra_replicas=1, steps=301)
    torch.manual_seed(0)
    x, _, y, _ = (torch.randn(8, 1) for _ in range(4))
    for condition, (rate, sigma) in enumerate([(0.1, 0.1), (0.3, 0.1), (0.1, 0.4)]):
        for seed in range(2):
            torch.manual_seed(seed)
            first, second = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
            with torch.no_grad():
                first.weight.copy_(torch.tensor([[1.0], [0.6]]))
                second.weight.copy_(torch.tensor([[-0.6, -0.4]]))
            optimizer = torch.optim.SGD([first.weight, second.weight], lr=rate, momentum=0.9)
            for step in range(301):
                if step == 300:
                    d = (first.weight[0] - first.weight[1]).square() + (
                        second.weight[0, 0] - second.weight[0, 1]
                    ).square()
                    assert r["distances"][condition, seed, r["times"].tolist().index(300)] == pytest.approx(
                        d.item(), rel=1e-3
                    )
                loss = 0.5 * (second(F.gelu(first(x))) - y - sigma * torch.randn(8, 1)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def test_pair_rate_is_the_lyapunov_exponent():
    r = toy_models.pair(learning_rates=(0.2,), label_noises=(0.2,), replicas=1, extra_replicas=15, steps=4001)
    error = 3 * torch.hypot(r["rate_error"], r["rate_theory_error"])
    assert ((r["rate"] - r["rate_theory"]).abs() < error).all() and (error < 0.15 * r["rate"].abs()).all()


def test_equal_neurons_stay_equal_to_the_bit():
    r = toy_models.pair(
        learning_rates=(0.3,), label_noises=(0.8,), extra_replicas=0, steps=501, a=(0.7, 0.7), b=(-0.5, -0.5)
    )
    assert not r["distances"].any()


# ======================================================================================
# linear teacher-student
# ======================================================================================


def test_the_teacher_is_the_papers():
    problem = teacher_student.teacher()
    assert np.allclose(problem["values"][:6], [1.267, 1.230, 1.137, 1.033, 1.018, 0.971], atol=1e-3)
    assert problem["y"].var(correction=0).item() * problem["y"].numel() == pytest.approx(258.24, abs=0.01)
    assert torch.allclose(problem["x"].T @ problem["x"], torch.eye(64, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.svdvals(problem["w"])[:8], torch.linspace(1, 0.5, 8, dtype=torch.float64))


def test_losses_in_modes_equal_losses_of_matrices():
    problem = teacher_student.teacher()
    train, test, paper_factor = teacher_student.losses(problem)
    s = torch.rand(3, 64, generator=generator(), dtype=torch.float64)
    for modes, ours, error in zip(s, train(s), test(s), strict=True):
        student = problem["left"] * modes @ problem["right"]
        plain = (problem["x"] @ student - problem["y"]).square().mean() / 2 / problem["y"].var(correction=0)
        wrong = (student - problem["w"]).square()
        assert ours.item() == pytest.approx(plain.item())
        assert error.item() == pytest.approx(wrong.sum().item() / problem["w"].square().sum().item())
        scale = problem["y"].var(correction=0) * problem["y"].numel()
        assert error.item() * paper_factor == pytest.approx((wrong.mean() / scale).item())


def test_diagonal_equals_u_and_v_kept_apart():
    r = teacher_student.diagonal(label_noises=(0.0, 10.0), replicas=16, drop_step=300, steps=400)
    values = r["true"]
    g, sigma = generator(), torch.tensor([0.0, 10.0])[:, None, None]
    u, v = torch.ones(2, 2, 16, 64)
    for step in range(400):
        eta = 3 / 1024 * (0.1 if step >= 300 else 1)
        residual = u * v - values + sigma * torch.empty(16, 64).normal_(generator=g)
        u, v = u - eta * residual * v, v - eta * residual * u
    assert torch.allclose(r["mean"][:, -1], (u * v).mean(1), rtol=1e-3, atol=1e-5)


def test_modes_have_the_predicted_gamma_law():
    """Mean s* - eta sigma^2 / 2 and variance eta sigma^2 times the mean, for the 12 largest modes, within 4 s.e."""
    r = teacher_student.diagonal(label_noises=(15.0,), replicas=400, drop_step=6000, steps=6000)
    noise = r["eta"] * 225
    mean = r["true"][:12].double() - noise / 2
    spread = (noise * mean).sqrt()
    assert ((r["mean"][0, 0, :12] - mean).abs() < 4 * spread / 20).all()
    assert (r["std"][0, 0, :12] / spread - 1).abs().mean() < 0.1


def test_the_logistic_solves_its_equation():
    start, target = torch.rand(50, dtype=torch.float64), torch.linspace(-0.5, 1, 50, dtype=torch.float64)
    s = start.clone()
    for _ in range(20_000):
        s += 1e-4 * 2 * s * (target - s)
    assert torch.allclose(theory.logistic(start, target, 2.0), s, rtol=1e-3)
    zero = theory.logistic(start, torch.zeros(50, dtype=torch.float64), 2.0)
    assert torch.allclose(zero, start / (1 + 4 * start))


def test_the_full_batch_is_the_diagonal_model_without_noise():
    problem = teacher_student.teacher()
    r = teacher_student.minibatch(batch_sizes=(1024,), warmup_steps=1, drop_steps=(400, 500), steps=600)
    s = torch.ones(64, dtype=torch.float64)
    for step in range(600):
        eta = 3 / 1024 * 0.1 ** ((step >= 400) + (step >= 500))
        s = s * (1 - eta * (s - problem["values"])) ** 2
    assert torch.allclose(r["spectra"][0, -1].double(), s.sort(descending=True).values, rtol=2e-4)
    train, test, _ = teacher_student.losses(problem)
    assert r["train"][0, -1].item() == pytest.approx(train(s).item(), rel=1e-4)
    assert r["test"][0, -1].item() == pytest.approx(test(s).item(), rel=1e-3)


def test_a_minibatch_epoch_sees_every_example_once():
    """At a vanishing learning rate an epoch of any batch size moves as one full-batch step, to first order."""
    moved = []
    for size, steps in ((64, 16), (1024, 1)):
        r = teacher_student.minibatch(
            batch_sizes=(size,),
            replicas=1,
            learning_rate=size / 1024,
            warmup_steps=1,
            drop_steps=(99,),
            steps=steps,
        )
        moved.append(r["spectra"][0, -1] - 1)
    assert torch.allclose(moved[0], moved[1], atol=5e-3 * moved[1].abs().max().item())
    with pytest.raises(ValueError, match="must divide the 1024 examples"):
        teacher_student.minibatch(batch_sizes=(64, 48), steps=1)


# ======================================================================================
# scripts, figures, claims, README
# ======================================================================================


def run_command(*command, cwd=HERE, **options):
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, **options)


SCRIPTS = (
    "toy_models teacher_student vgg_cifar10 resnet_cifar100 sparse_features chaotic_sgd subnetworks benchmark figures"
)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a script in this process, where torch is loaded already: (exit code, stdout, stderr)."""

    def run(script, *options):
        monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(HERE / script), run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("script", [f"{name}.py" for name in SCRIPTS.split()])
def test_help_and_unknown_names(script, run_here):
    code, shown, _ = run_here(script, "--help")
    assert code == 0 and "--quick" in shown and re.search(f"(python|torchrun --nproc_per_node=8) {script}", shown)
    code, _, line = run_here(script, "nonsense")
    assert code == 2 and "unknown" in line and "nonsense" in line and line.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path, run_here):
    (tmp_path / "file").write_text("")
    for command in (["toy_models.py", "quartic", "--out"], ["figures.py", "--figures"]):
        code, _, line = run_here(*command, tmp_path / "file", "--quick")
        assert code == 2 and "can't write" in line and line.count("\n") == 1


def test_a_device_that_is_not_there_is_one_line(run_here):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, _, line = run_here("toy_models.py", "quartic", "--device", "cuda")
    assert code == 2 and "no CUDA GPU" in line and line.count("\n") == 1


def test_results_are_replaced_whole_or_not_at_all(tmp_path, capsys):
    def good(seed=0, device=None, n=3):
        return {"values": torch.arange(n) / 3, "nothing": math.nan}

    def interrupted(seed=0, device=None):
        raise KeyboardInterrupt

    def refused(seed=0, device=None):
        raise ValueError("no such noise")

    options = ["--out", str(tmp_path), "--device", "cpu"]
    core.run_script("doc", {"a": good}, {}, [*options, "--seed", "7"])
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["settings"] == {"seed": 7, "n": 3} and saved["values"] == [0, 0.333333, 0.666667]
    assert saved["nothing"] is None and saved["quick"] is False
    assert {"torch", "numpy", "device", "date", "seconds"} <= saved["environment"].keys()
    before = (tmp_path / "a.json").read_bytes()
    for function, code in ((interrupted, 130), (refused, 2)):
        with pytest.raises(SystemExit) as caught:
            core.run_script("doc", {"a": function}, {}, options)
        assert caught.value.code == code
    with pytest.raises(TypeError):
        core.write_json(tmp_path / "a.json", {"bad": object()})
    assert (tmp_path / "a.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert "no such noise" in capsys.readouterr().err


def test_times_that_never_come_are_refused():
    for experiment, settings, words in (
        (toy_models.quartic, {"checkpoints": (150,)}, "multiples of coarse_steps, 100"),
        (toy_models.neuron, {"checkpoints": (30,)}, "multiples of coarse_steps, 20"),
        (toy_models.neuron, {"checkpoints": (200,), "steps": 100}, "up to 100"),
        (teacher_student.diagonal, {"steps": 3000}, "drop_step must lie within"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment(**settings)


def test_any_setting_can_be_changed_and_a_replaced_result_is_kept(tmp_path, capsys):
    seen = []

    networks, narrow = [], {"width": 4}

    def a(mu: float = 1.5, sizes: tuple = (1, 2), name: str = "x", steps: int = 3, k=None, net=narrow, seed=0,
          device="cpu"):  # fmt: skip
        seen.append((mu, sizes, name, steps, k))
        networks.append(net)
        return {"found": mu}

    def run(*words):
        core.run_script("doc", {"a": a, "b": lambda seed=0, device="cpu": {}}, {}, [*words, "--out", str(tmp_path)])

    run("a")
    run("a", "--set", "mu=2", "sizes=4", "name=2024", "k=0.5")
    run("a", "--set", "sizes=(4, 5)", "mu=2", "name=3d", "k=mean", "net={'seed': 2}")
    assert networks[1:] == [{"width": 4}, {"width": 4, "seed": 2}]
    assert seen[1:] == [(2, (4,), "2024", 3, 0.5), (2, (4, 5), "3d", 3, "mean")]
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / "replaced").glob("a_*.json"))]
    assert [old["found"] for old in kept] == [1.5, 2] and "kept as" in capsys.readouterr().out
    before = sorted(tmp_path.rglob("*.json"))
    run("a", "--set", "sizes=(4, 5)", "mu=2", "name=3d", "k=mean", "net={'seed': 2}")  # the same again: nothing to keep
    assert sorted(tmp_path.rglob("*.json")) == before
    for words, why in {
        ("a", "--set", "nu=2"): "no setting nu; there are mu, sizes, name, steps, k, net",
        ("a", "--set", "net={'breadth': 2}"): "the fields are model, dataset, learning_rate",
        ("a", "--set", "mu=much"): "expected a value like 1.5",
        ("a", "--set", "steps=2.5"): "expected a value like 3",
        ("a", "--set", "sizes=many"): "expected a value like (1, 2)",
        ("a", "--set", "sizes=(1, 0.5)"): "expected a value like (1, 2)",
        ("b", "--set", "mu=2"): "no setting mu",
    }.items():
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2 and why in capsys.readouterr().err


def test_every_committed_result_says_where_it_comes_from():
    results = list((HERE / "results").glob("*.json"))
    assert results
    for path in results:
        saved = json.loads(path.read_text())
        assert saved["quick"] is False and path.stem.removeprefix("benchmark_").startswith(saved["experiment"])
        assert {"torch", "numpy", "device", "date", "seconds"} <= saved["environment"].keys() and saved["settings"]
        assert path.stat().st_size < 2**20


def readme_commands():
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (HERE / "README.md").read_text(), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    commands = [part.strip() for line in lines for part in line.split("&&")]
    return sorted({command for command in commands if command.startswith("python ")})


def test_the_readmes_commands_run_in_quick_form(tmp_path, run_here):
    """In order of cost: figures.py runs all CPU experiments; a script that has run there is not run again."""
    commands = readme_commands()
    assert "python figures.py" in commands and any(command.startswith("python toy_models.py") for command in commands)
    out = ["--out", tmp_path / "results"]
    folders = [*out, "--figures", tmp_path / "figures"]
    ran = run_command("figures.py", "--quick", *folders)
    assert ran.returncode == 0, ran.stderr
    drawn = {path.stem for path in (tmp_path / "figures" / "quick").glob("*.png")}
    assert drawn == {"fig1_quartic", "fig2_neuron", "fig3_pair", "fig5_teacher_student", "fig5_minibatch"}
    assert "torchrun --nproc_per_node=8 vgg_cifar10.py noise" in ran.stdout  # says what is missing
    assert "quick" in (tmp_path / "figures" / "quick" / "claims.md").read_text()
    assert not list((tmp_path / "results").glob("*.json")) and not list((tmp_path / "figures").glob("*.png"))
    jobs = {}  # command as it is run here -> one of the README's
    for command in commands:
        script, *rest = command.split()[1:]
        assert (HERE / script).exists()
        if script == "figures.py":
            rest = [word for word in rest if word not in ("--fresh", "--quick", "--out", "mine")]
            jobs[(script, *rest, "--quick", *folders)] = command
        elif script == "toy_models.py":
            jobs[(script, "quartic", "--quick", *out)] = command
        else:
            assert run_here(script, "--help")[0] == 0, command
    assert len(jobs) >= 3
    for job, command in jobs.items():
        ran = run_command(*job)
        assert ran.returncode == 0, (command, ran.stderr)


def test_readme_python_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.S)
    code = f"import torch; torch.set_num_threads(1)\nfor block in {blocks!r}:\n    exec(block, {{}})"  # each by itself
    ran = run_command("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(HERE)})
    assert ran.returncode == 0 and len(blocks) == 3, ran.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_experiments_run_on_a_gpu():
    r = toy_models.quartic(trajectory_steps=100, noise_levels=20, device="cuda")
    gap = r["collapse"].cpu().numpy() - np.array(r["collapse_theory"])
    assert np.abs(gap).max() < 0.08
    toy_models.neuron(replicas=50, steps=1000, checkpoints=(1000,), rate_replicas=10, device="cuda")
    toy_models.pair(steps=201, device="cuda")
    teacher_student.diagonal(replicas=8, drop_step=100, steps=200, device="cuda")
    teacher_student.minibatch(replicas=1, drop_steps=(100, 150), steps=200, device="cuda")
