"""The extracted network computes the same, and what can't be extracted is left whole by name."""

import copy
import math
import time
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import vgg

import core
from collapse import (
    CollapseError,
    collapse_report,
    distance_maps,
    extract_subnetwork,
    load_network,
    neuron_groups,
    save_network,
)
from collapse.extract import like, plan_of, why_left_whole
from collapse.trace import call, record, tensors_in
from tests.processes import run_script
from tests.small_networks import KINDS, Attention, network, plant, put_neuron


def outputs(model, example):
    with torch.no_grad():
        return tensors_in(call(model.eval(), example))


def assert_same_function(model, smaller, example, tolerance=1e-5):
    for one, other in zip(outputs(model, example), outputs(smaller, example), strict=True):
        assert one.std() > 1e-3 and one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * one.abs().max()


def random_like(example):
    if isinstance(example, tuple):
        return tuple(random_like(part) for part in example)
    return torch.randn_like(example) if example.is_floating_point() else torch.randint(11, example.shape)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# ======================================================================================
# Exact where collapse is exact
# ======================================================================================

# Heads are cut by sizes that the code of these networks holds
LEFT = {"vision transformer", "post-norm transformer", "language model", "rotary", "windows"}


@pytest.mark.parametrize("name", KINDS)
def test_planted_collapse_of_every_kind_is_extracted_exactly(name):
    model, example = network(name)
    groups = neuron_groups(model, example)
    planted = plant(groups)
    state = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smaller = extract_subnetwork(model, example, 1e-9, 1e-9)
    lost = sum(row["vanished"] + row["merged"] for row in smaller.extraction)
    left = [row for row in smaller.extraction if row["left"]]
    assert 0 < lost <= planted and (lost == planted or left)
    assert not left or (name in LEFT and all(":" in row["name"] or "q" in row["left"] or row["left"] for row in left))
    assert parameters(smaller) < parameters(model)
    for inputs in (example, random_like(example)):
        assert_same_function(model, smaller, inputs, 1e-9)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [type(module) for module in smaller.modules()] == [type(module) for module in model.modules()]
    sum(output.sum() for output in tensors_in(call(smaller.train(), example))).backward()  # it can be trained
    for group in neuron_groups(smaller, example):  # nothing is left to extract
        if why_left_whole(group) is None and not any(row["name"] == group.name for row in left):
            assert len(plan_of(group, 1e-9, 1e-9).kept) == group.size


def narrow_vgg_bn():
    """torchvision's VGG-11 with batch norm and its own forward, narrower."""
    plan = [8, "M", 16, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    model = vgg.VGG(vgg.make_layers(plan, batch_norm=True), num_classes=10, init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(32 * 49, 48), nn.Linear(48, 48)
    model.classifier[6] = nn.Linear(48, 10)
    return model


WHOLE = {
    "vgg16": lambda: core.vgg16(10, 8),
    "vgg11_bn": narrow_vgg_bn,
    "resnet18 narrow": lambda: core.resnet18(10, 8),
}


def whole_network(name):
    """A network in eval mode with norms and running statistics as after training, and a batch."""
    torch.manual_seed(0)
    model = WHOLE[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(0.5, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("thresholds", [(1e-6, 1e-6), (0.1, 0.1)])
def test_a_quarter_gone_and_a_quarter_copied_leaves_half(name, thresholds):
    model, x = whole_network(name)
    generator = torch.Generator().manual_seed(0)
    for group in neuron_groups(model, x):
        quarter = group.size // 4
        gone, copies, originals = torch.randperm(group.size, generator=generator)[: 3 * quarter].view(3, quarter)
        put_neuron(group.slots, copies, originals)
        put_neuron(group.slots, gone, None)
    smaller = extract_subnetwork(model, x, *thresholds)
    for row in smaller.extraction:
        assert row["vanished"] == row["merged"] == row["width"] // 4 and row["kept"] == row["width"] - 2 * row["merged"]
    assert_same_function(model, smaller, x)
    assert_same_function(model, smaller, torch.randn_like(x))
    report = collapse_report(smaller, x, *thresholds)
    assert all(row["width"] == row["independent"] for row in report)


def mlp(activation=nn.GELU, width=24):
    layers = [nn.Linear(10, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 5)]
    return nn.Sequential(*layers)


def test_extraction_keeps_what_the_paper_counts():
    for seed in range(5):
        model, x = mlp(width=40), torch.randn(2, 10)
        draw = torch.Generator().manual_seed(seed)
        for layer in (model[0].weight.data, model[2].weight.data, model[2].weight.data.T, model[4].weight.data.T):
            for i in range(1, 30):  # chains a - b - c with a and c apart, and faint neurons
                step = F.normalize(torch.randn(layer[i].shape, generator=draw), dim=0)
                layer[i] = layer[i - 1] + 0.25 * layer[i].norm() * step
            layer[30:35] *= 0.03
        found = extract_subnetwork(model, x).extraction
        report = collapse_report(model, x)
        assert [row["kept"] for row in found] == [row["independent"] for row in report]
        assert sum(row["redundant"] for row in report) > 10 and sum(row["vanishing"] for row in report) > 0


def test_a_layer_called_twice_and_a_shared_parameter_are_followed():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.again, self.leave = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)
            self.tied = nn.Linear(12, 12)
            self.tied.weight = self.again.weight

        def forward(self, x):
            x = torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.enter(x))))))
            return self.leave(torch.tanh(self.tied(x)))

    model, x = Twice(), torch.randn(3, 6)
    (group,) = neuron_groups(model, x)
    put_neuron(group.slots, 5, 2)
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    assert smaller.again.weight.shape == (11, 11) and smaller.extraction[0]["merged"] == 1
    assert smaller.tied.weight is smaller.again.weight
    assert_same_function(model, smaller, x)


def test_a_shared_parameter_that_also_reads_the_input_is_left():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    with pytest.raises(CollapseError, match="0: its columns also read the network's input"):
        extract_subnetwork(model, torch.randn(2, 8))


def test_several_outputs_a_softmax_and_frozen_layers_are_kept():
    class Heads(nn.Sequential):
        def forward(self, x, scale=None, twice=False):
            h = torch.mean(self[1](self[0](x)) ** 2, axis=(2, 3))
            h = h if scale is None else h * scale
            h = 2 * h if twice else h
            return {"classes": F.log_softmax(self[2](h), dim=1), "values": [self[3](h), None]}

    model, x = Heads(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 3), nn.Linear(8, 2)), torch.randn(4, 3, 5, 5)
    groups = neuron_groups(model, x)
    assert [group.name for group in groups] == ["0"] and groups.whole
    model[0].requires_grad_(False)
    plant(groups)
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    assert_same_function(model, smaller, x)
    assert smaller[0].out_channels == 6 and not smaller[0].weight.requires_grad and smaller[2].weight.requires_grad


def test_half_precision_counts_and_extracts_the_same_neurons():
    for dtype in (torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        model, x = mlp(width=40), torch.randn(4, 10)
        for layer in (model[0], model[2], model[4]):
            layer.weight.data *= 50
        plant(neuron_groups(model, x))
        expected = [(row["vanished"], row["merged"]) for row in extract_subnetwork(model, x, 1e-3, 1e-3).extraction]
        model, x = model.to(dtype), x.to(dtype)
        report = collapse_report(model, x, 1e-3, 1e-3)
        found = extract_subnetwork(model, x, 1e-3, 1e-3)
        assert [(row["vanishing"], row["redundant"]) for row in report] == expected == [(1, 1), (1, 1)]
        assert [(row["vanished"], row["merged"]) for row in found.extraction] == expected
        assert found[0].weight.dtype == dtype


# ======================================================================================
# Batch norm, and neurons that say a constant
# ======================================================================================


def test_both_vanishing_sets_of_batch_norm_are_found():
    model, x = whole_network("vgg11_bn")
    conv, norm, following = model.features[4], model.features[5], model.features[8]
    for index, parts in ((0, (norm.weight, norm.bias)), (1, (conv.weight, conv.bias, norm.bias))):
        for part in parts:
            part.data[index] = 0
        following.weight.data[:, index] = 0
    smaller = extract_subnetwork(model, x, 1e-6, 0.0)
    assert sum(row["vanished"] for row in smaller.extraction) == 2
    assert_same_function(model, smaller, x)


def test_a_dead_channel_that_still_speaks_is_kept_where_zeros_surround_it():
    model, x = whole_network("resnet18 narrow")
    block = model.layer1[0]
    for weight in (block.conv1.weight[:2], block.conv2.weight[:, :2], block.bn1.weight[:2], block.bn1.bias[:1]):
        weight.data.mul_(0)
    block.bn1.bias.data[1] = 0.5  # silent the one, not the other
    block.conv2.weight.data[:, 1] = 0.02
    smaller = extract_subnetwork(model, x, redundant=0.0)
    row = next(row for row in smaller.extraction if row["name"] == "layer1.0.conv1")
    assert row["vanished"] == 1 and row["constant"] == 0
    assert_same_function(model, smaller, x)
    report = next(row for row in collapse_report(model, x) if row["name"] == "layer1.0.conv1")
    assert report["constant"] == 1


@pytest.mark.parametrize("bias", [True, False])
def test_what_constant_neurons_say_goes_into_biases(bias):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3, bias=bias), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[1].bias.data.normal_()
    model[1].running_mean.normal_()
    x = torch.randn(4, 3, 6, 6)
    model[0].weight.data[2:4] = 0
    model[3].weight.data[5] = 0
    model[6].weight.data[1] = 0
    report = collapse_report(model, x)
    # without a bias of its own a neuron that hears nothing says nothing, but isn't without outgoing weights
    assert [row["constant"] for row in report] == [2, 1, 1]
    smaller = extract_subnetwork(model, x, 1e-6, 0.0)
    assert [row["constant"] for row in smaller.extraction] == [2, 1, 1]
    assert_same_function(model, smaller, x, 1e-6)
    assert_same_function(model, smaller, torch.randn_like(x), 1e-6)
    assert parameters(smaller) < parameters(model)


# ======================================================================================
# What is left whole, and what is refused
# ======================================================================================


class Scaled(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        h = self[1](self[0](x))
        return self[2](h / h.shape[1] ** 0.5)


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 4)

    def forward(self, x):
        return self.out(F.relu(self.conv(x)).view(x.shape[0], 128))


@pytest.mark.parametrize(
    "model, shape, words",
    [
        (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), (6,), "0: 1: it normalises its neurons"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3)), (3, 8, 8), "1: it normalises"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3)),
            (6,),
            "0: its weight is computed",
        ),
        (Viewed(), (3, 4, 4), "a size is written into Viewed's code: .*128"),
        (Scaled(), (6,), "Scaled's code uses the size of a layer"),
    ],
)
def test_what_cannot_be_extracted_is_refused_by_name(model, shape, words):
    x = torch.randn(2, *shape)
    for group in neuron_groups(model, x):
        for slot in group.slots:
            if not slot.computed:
                rows = slot.read(slot.tensor.detach()).clone()
                rows[1], rows[2] = rows[0], rows[3]
                slot.write(slot.tensor.detach(), rows)
            else:
                model[0].weight = slot.tensor.detach()[[0, 0, 3, 3, 4, 5, 6, 7]]
    with pytest.raises(CollapseError, match=words):
        extract_subnetwork(model, x, 1e-6, 1e-6)


def test_outputs_without_numbers_prove_nothing():
    class Chosen(nn.Module):
        """A detector that finds nothing."""

        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def forward(self, x):
            scores = self.layers(x)
            return scores[scores.sum(1) > 1e6]

    model = Chosen()
    example = torch.randn(3, 10)
    plant(neuron_groups(model, example))
    with pytest.raises(CollapseError, match="gives out no numbers on the example"):
        extract_subnetwork(model, example, 1e-6, 1e-6)


# ======================================================================================
# The check, on examples that say little
# ======================================================================================


class Tabular(nn.Module):
    """A table for each column of the input, of different sizes; `scaled`: by a width read off the tensor."""

    def __init__(self, rows=(50, 7, 3), scaled=False, padding=None):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n, 4, padding_idx=padding) for n in rows])
        self.hidden, self.out = nn.Linear(4 * len(rows), 16, bias=False), nn.Linear(16, 2)
        self.scaled = scaled

    def forward(self, columns):
        columns = columns.long()
        found = [table(columns[:, k]) for k, table in enumerate(self.tables)]
        h = torch.relu(self.hidden(torch.cat(found, 1)))
        return self.out(h / h.shape[1] ** 0.5 if self.scaled else h)


class Logarithms(nn.Module):
    """Of an input that must be positive; each number by itself, or all together."""

    def __init__(self, each, scaled=False):
        super().__init__()
        self.each, self.scaled = each, scaled
        self.hidden, self.out = nn.Linear(1 if each else 6, 16), nn.Linear(16, 2)

    def forward(self, x):
        h = torch.relu(self.hidden(x.log()[..., None] if self.each else x.log()))
        return self.out(h / h.shape[-1] ** 0.5 if self.scaled else h)


class Rounded(nn.Module):
    """Casts its input to bfloat16, so that it doesn't run in float64."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(8, 64), nn.Linear(64, 5)
        self.bfloat16()

    def forward(self, x):
        h = torch.relu(self.hidden(x.bfloat16()))
        return self.out(h / h.shape[-1] ** 0.5)


def with_equal_neurons(model, count=3):
    """The first neurons of the layer `hidden` become equal."""
    with torch.no_grad():
        for parameter in model.hidden.parameters():
            parameter[1 : 1 + count] = parameter[0]
        model.out.weight[:, 1 : 1 + count] = model.out.weight[:, :1]
    return model


@pytest.mark.parametrize(
    "model, example, words",
    [
        (
            Tabular((9,), scaled=True, padding=0),
            torch.zeros(2, 1, dtype=torch.int32),
            "or treats its neurons different",
        ),
        (Logarithms(each=False, scaled=True), torch.zeros(2, 6), "gives out no numbers on the example"),
        (Logarithms(each=False, scaled=True), torch.rand(2, 6) + 0.1, "or treats its neurons differently"),
        (Rounded(), torch.randn(4, 8), "torch.bfloat16 rounds too much to tell"),
    ],
    ids=["zeros alone", "nothing but NaN", "a good example", "low precision"],
)
def test_another_function_is_refused_on_whatever_example(model, example, words):
    with pytest.raises(CollapseError, match=words):
        extract_subnetwork(with_equal_neurons(model), example, 1e-6, 1e-6)


class Lengths(nn.Module):
    """A second input, of which no other values would do."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 16), nn.Linear(16, 2)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.out(torch.relu(self.hidden(x))), lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]


@pytest.mark.parametrize(
    "model, example",
    [
        (Tabular(), torch.tensor([[49, 6, 2], [10, 1, 0]])),
        (Logarithms(each=True), torch.rand(2, 6) + 0.1),
        (Lengths(), (torch.randn(3, 6, 5), torch.tensor([6, 4, 2]))),
    ],
    ids=["a table for each column", "some NaN", "lengths"],
)
def test_inputs_like_the_example_are_ones_that_the_network_takes(model, example):
    smaller = extract_subnetwork(with_equal_neurons(model), example, 1e-6, 1e-6)
    assert smaller.extraction[-1]["merged"] == 3
    assert_same_function(model, smaller, example)


def test_integers_that_pick_rows_of_a_table_are_drawn_from_its_rows():
    model, example = Tabular((50, 7, 3)), torch.zeros(40, 3, dtype=torch.int32)
    drawn = like(example, record(model, example))
    assert drawn.dtype == torch.int32
    assert [len(column.unique()) > rows / 3 for column, rows in zip(drawn.T, (50, 7, 3), strict=True)] == [True] * 3
    model(drawn)  # none is beyond its table
    pair = example, torch.arange(4)
    kept = like(pair, record(Beside(model), pair))[1]
    assert torch.equal(kept, pair[1])


class Beside(nn.Module):
    """A network, and an input that it doesn't use."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, unused):
        return self.model(x)


class Pair(NamedTuple):
    x: torch.Tensor
    unused: torch.Tensor


def test_named_tuples_are_examples():
    model = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 2))
    put_neuron(neuron_groups(model, torch.randn(2, 10))[0].slots, 1, 0)
    smaller = extract_subnetwork(Beside(model), Pair(torch.randn(2, 10), torch.zeros(1)), 1e-6, 1e-6)
    assert smaller.model[0].out_features == 5


def test_groups_that_a_norm_couples_are_left_whole_and_the_others_extracted():
    model, x = network("layer norm mlp")
    groups = neuron_groups(model, x)
    for group in groups:
        put_neuron(group.slots, 2, 3)
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    assert [row["merged"] for row in smaller.extraction] == [0, 1]
    assert "1: it normalises its neurons together" in smaller.extraction[0]["left"]
    assert_same_function(model, smaller, x)


def test_heads_lose_the_same_number_of_neurons():
    model, x = nn.Sequential(nn.Linear(5, 8), Attention(fused=False), nn.Linear(8, 3)), torch.randn(3, 4, 5)
    groups = {group.name: group for group in neuron_groups(model, x)}
    value = groups["1.value"]
    for neuron, origin in ((1, 0), (2, 0), (5, 4)):
        put_neuron(value.slots, neuron, origin)
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    row = next(row for row in smaller.extraction if row["name"] == "1.value")
    assert row["merged"] == 2 and row["kept"] == 6  # two in the first head, of which one stays: one in each
    assert "each part (a head, a group of a convolution) must keep as many" in row["left"]
    assert_same_function(model, smaller, x)


class Branches(nn.Module):
    """ResNeXt's block: 1 x 1, in four groups (twice with `depth` 2), 1 x 1."""

    def __init__(self, depth=1):
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        layers = [nn.Conv2d(16, 16, 3, padding=1, groups=4) for _ in range(depth)]
        self.grouped = nn.ModuleList(layers)
        self.leave = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.enter(x)))
        for layer in self.grouped:
            x = F.relu(layer(x))
        return self.leave(x)


def branches(depth, lost=(), seed=0):
    """(network, example, its groups of neurons), of which groups lose the branches `lost` = [(group, branch), ...]."""
    torch.manual_seed(seed)
    model, x = Branches(depth).double().eval(), torch.randn(2, 3, 5, 5).double()
    model.norm.running_mean.normal_()
    groups = neuron_groups(model, x)
    for group, branch in lost:
        put_neuron(groups[group].slots, slice(4 * branch, 4 * branch + 4), None)
    return model, x, groups


@pytest.mark.parametrize("depth", [1, 2])
def test_a_group_of_a_convolution_goes_whole(depth, tmp_path):
    every = range(depth + 1)
    model, x, groups = branches(depth, [(group, branch) for group in every for branch in (1, 3)])
    for group in groups:
        for first in (0, 8):  # of those that stay, one goes: in one it has vanished, in the other it is like another
            put_neuron(group.slots, first, None if first else 1)
    smaller = extract_subnetwork(model, x, 1e-9, 1e-9)
    for layer in smaller.grouped:
        assert layer.groups == 2 and layer.in_channels == layer.out_channels == 6 and layer.weight.shape[:2] == (6, 3)
    counts = {(row["vanished"], row["merged"], row["kept"], row["left"]) for row in smaller.extraction}
    assert counts == {(9, 1, 6, None)}
    assert parameters(smaller) < parameters(model) / 2
    assert_same_function(model, smaller, x, 1e-12)
    assert_same_function(model, smaller, torch.randn_like(x), 1e-12)
    save_network(smaller, tmp_path / "small.pt")
    assert torch.equal(load_network(tmp_path / "small.pt", Branches(depth).double())(x), smaller(x))
    # one branch alone is an ordinary convolution
    model, x, _ = branches(depth, [(group, branch) for group in every for branch in (0, 1, 3)])
    smaller = extract_subnetwork(model, x, 1e-9, 1e-9)
    assert [layer.groups for layer in smaller.grouped] == [1] * depth
    assert_same_function(model, smaller, x, 1e-12)


def test_a_branch_that_says_a_constant_goes_whole():
    model, x, _ = branches(1, [(0, 2)])
    with torch.no_grad():
        model.grouped[0].weight[8:12] = 0  # its biases are left
    smaller = extract_subnetwork(model, x, 1e-9, 0.0)
    assert [(row["vanished"], row["constant"]) for row in smaller.extraction] == [(4, 0), (0, 4)]
    assert smaller.grouped[0].groups == 3
    assert_same_function(model, smaller, x, 1e-12)


def test_a_branch_that_is_gone_on_one_side_alone_is_left_by_name():
    model, x, _ = branches(1, [(1, 1)])  # the layer before still makes what nobody hears
    with pytest.raises(
        CollapseError, match=r"grouped.0: each part \(a head, a group of a convolution\) must keep as many"
    ):
        extract_subnetwork(model, x, 1e-9, 0.0)
    # two convolutions in a row: the first keeps its branch, so the second must
    model, x, groups = branches(2, [(1, 1), (2, 1)])
    assert [row["vanishing"] for row in collapse_report(model, x)] == [0, 4, 4]
    for group in groups:
        for branch in range(4):
            put_neuron(group.slots, 4 * branch, None)
    smaller = extract_subnetwork(model, x, 1e-9, 0.0)
    assert [(row["vanished"], row["kept"]) for row in smaller.extraction] == [(4, 12)] * 3
    assert ["must keep as many" in (row["left"] or "") for row in smaller.extraction] == [False, True, True]
    assert_same_function(model, smaller, x, 1e-12)


def test_both_sides_of_a_branch_go_together_where_another_layer_refuses():
    class Beside(nn.Module):
        """The branches, and layers whose size is written into the code."""

        def __init__(self):
            super().__init__()
            self.branches, self.viewed = Branches(), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

        def forward(self, x, y):
            y = self.viewed[1](self.viewed[0](y)).view(-1, 8)
            return self.branches(x), self.viewed[2](y)

    torch.manual_seed(0)
    model = Beside().double().eval()
    example = torch.randn(2, 3, 5, 5).double(), torch.randn(2, 6).double()
    for group in neuron_groups(model, example):
        put_neuron(group.slots, slice(4), None)
    smaller = extract_subnetwork(model, example, 1e-9, 1e-9)
    left = {row["name"]: row["left"] for row in smaller.extraction}
    assert smaller.branches.grouped[0].groups == 3 and "a size is written" in left.pop("viewed.0")
    assert set(left.values()) == {None}


class Autoencoder(nn.Module):
    """Its decoder is the transpose of its encoder."""

    def __init__(self):
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return F.linear(torch.relu(F.linear(x, self.weight, self.offset)), self.weight.T)


def test_neurons_of_a_tied_weight_vanish_but_do_not_merge():
    model, x = Autoencoder().double(), torch.randn(4, 5, dtype=torch.float64)
    model.weight.data[1] = model.weight.data[0]
    words = r"weight: weight both makes and reads them \(a tied weight\): equal neurons can't be merged"
    with pytest.raises(CollapseError, match=words):
        extract_subnetwork(model, x, 1e-6, 1e-6)
    model.weight.data[2:4] = 1e-9 * torch.randn(2, 5)
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    (row,) = smaller.extraction
    assert (row["vanished"], row["merged"], row["kept"]) == (2, 0, 6) and "tied" in row["left"]
    assert_same_function(model, smaller, x, 1e-8)
    with pytest.raises(CollapseError, match=r"^weight: no layer but a tied weight reads its neurons"):
        distance_maps(model, x, ("weight",))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8, affine=False), nn.InstanceNorm2d(8)], ids=["statistics alone", "nothing of its own"]
)
def test_a_norm_without_parameters_knows_its_new_width(norm):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 2, 3)).eval(), torch.randn(2, 3, 8, 8)
    put_neuron(neuron_groups(model, x)[0].slots, 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
        assert_same_function(model, smaller, x)
    assert smaller[1].num_features == 7 and norm.num_features == 8


def test_nothing_to_extract_is_said():
    model, x = whole_network("vgg16")
    with pytest.warns(UserWarning, match="nothing to extract"):
        same = extract_subnetwork(model, x)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    assert all(row["kept"] == row["width"] and not row["vanished"] + row["merged"] for row in same.extraction)


def test_a_diverged_network_is_not_extracted():
    model = mlp()
    for path in ("2.weight", "4.bias"):  # the last is no neuron's
        diverged = copy.deepcopy(model)
        diverged.get_parameter(path).data.view(-1)[0] = math.nan
        with pytest.raises(CollapseError, match=f"^{path} holds NaN or infinite values"):
            extract_subnetwork(diverged, torch.randn(2, 10))
    model, x = network("batch norm mlp")
    model[1].running_var[3] = math.inf
    with pytest.raises(CollapseError, match=r"^1.running_var holds NaN"):
        extract_subnetwork(model, x)
    for thresholds in ((2.0, 0.1), (0.1, 9.0), (-1.0, 0.1), (0.1, math.nan)):
        with pytest.raises(CollapseError, match="thresholds must be"):
            extract_subnetwork(mlp(), torch.randn(2, 10), *thresholds)


def test_wrapped_networks_are_extracted():
    model, x = whole_network("resnet18 narrow")
    plant(neuron_groups(model, x))
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert_same_function(model, extract_subnetwork(wrapped, x, 1e-6, 1e-6), x)


def test_extraction_of_the_full_vgg16_takes_under_five_seconds():
    model, x = core.vgg16(), torch.randn(1, 3, 32, 32)
    planted, start = plant(neuron_groups(model, x)), time.process_time()
    smaller = extract_subnetwork(model, x)
    assert time.process_time() - start < 5
    assert sum(row["width"] - row["kept"] for row in smaller.extraction) == planted == 30


# ======================================================================================
# Files
# ======================================================================================

LOADER = """
import torch
from tests.small_networks import network
from collapse import load_network
model = network("mobile", seed=5)[0]
smaller = load_network("small.pt", model)
x = torch.load("x.pt", weights_only=True)
torch.save(smaller(x["x"]).detach(), "y.pt")
"""


def test_a_saved_network_is_loaded_in_a_fresh_process(tmp_path):
    model, x = network("mobile")
    plant(neuron_groups(model, x))
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    save_network(smaller, tmp_path / "small.pt")
    content = torch.load(tmp_path / "small.pt", weights_only=True)
    assert content["extraction"] == smaller.extraction
    torch.save({"x": x}, tmp_path / "x.pt")
    (tmp_path / "load.py").write_text(LOADER)
    ran = run_script("load.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), smaller(x).detach())


@pytest.mark.parametrize("name", ["dense", "grouped", "shuffled", "language model", "written", "residual"])
def test_saved_networks_come_back_as_they_were(name, tmp_path):
    model, example = network(name)
    plant(neuron_groups(model, example))
    smaller = extract_subnetwork(model, example, 1e-9, 1e-9)
    save_network(smaller, tmp_path / "small.pt")
    loaded = load_network(tmp_path / "small.pt", network(name, seed=7)[0])
    for one, other in zip(outputs(smaller, example), outputs(loaded, example), strict=True):
        assert torch.equal(one, other)
    assert str(loaded) == str(smaller) and loaded.extraction == smaller.extraction


@pytest.mark.parametrize("saved, loaded", [(torch.float64, torch.float32), (torch.bfloat16, torch.float32)])
def test_a_loaded_network_has_the_types_of_its_architecture(saved, loaded, tmp_path):
    layers = [nn.Linear(10, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2, bias=False)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(4, 10)
    model[1].bias.data.normal_()
    group = neuron_groups(model, x)[0]
    put_neuron(group.slots, 1, 0)
    model[0].weight.data[3] = 0  # what it says makes a bias
    smaller = extract_subnetwork(model.to(saved), x.to(saved), 1e-6, 1e-6)
    assert smaller[3].bias is not None
    save_network(smaller, tmp_path / "small.pt")
    again = load_network(tmp_path / "small.pt", copy.deepcopy(model).to(loaded))
    assert {tensor.dtype for tensor in again.state_dict().values()} == {loaded, torch.int64}
    assert torch.allclose(again(x), smaller(x.to(saved)).to(loaded), atol=0.05 if saved == torch.bfloat16 else 1e-6)


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    model, x = network("mobile")
    plant(neuron_groups(model, x))
    save_network(extract_subnetwork(model, x, 1e-6, 1e-6), tmp_path / "small.pt")
    with pytest.raises(CollapseError, match="is of another architecture: Dense has no"):
        load_network(tmp_path / "small.pt", network("dense")[0])
    torch.save({"weights": 3}, tmp_path / "other.pt")
    with pytest.raises(CollapseError, match=r"other\.pt is no network that save_network wrote"):
        load_network(tmp_path / "other.pt", model)
    torch.save(model, tmp_path / "pickle.pt")
    with pytest.raises(CollapseError, match=r"pickle\.pt is no network that save_network wrote"):
        load_network(tmp_path / "pickle.pt", model)
    with pytest.raises(CollapseError, match=r"absent\.pt can't be read"):
        load_network(tmp_path / "absent.pt", model)


def test_extraction_works_on_any_default_device_and_in_inference_mode():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2], model[2].weight[:, 2] = 0, 0, 0
    example = torch.randn(5, 4, dtype=torch.float64)
    expected = model(example)
    torch.set_default_device("meta")
    try:
        elsewhere = extract_subnetwork(model, example)
        maps = distance_maps(model, example, ("0",))
    finally:
        torch.set_default_device(None)
    with torch.inference_mode():
        inferring = extract_subnetwork(model, example)
    assert maps[0]["width"] == 6
    for smaller in (elsewhere, inferring):
        assert smaller[0].out_features == 5
        assert torch.allclose(smaller(example), expected, rtol=1e-12)
        smaller(example).sum().backward()  # it can be trained
        assert smaller[0].weight.grad is not None


def test_the_warning_that_there_is_nothing_to_extract_points_to_the_caller():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.warns(UserWarning, match="nothing to extract") as caught:
        extract_subnetwork(model, torch.randn(5, 4), vanishing=1e-9, redundant=1e-9)
    assert caught[0].filename == __file__
