"""Which parameters are a neuron: the groups have all of a network's symmetry, and nothing that isn't one."""

import copy
import random
import time
import types

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import core
from collapse import CollapseError, CollapseLog, collapse_report, neuron_groups
from collapse.trace import call, tensors_in
from tests.small_networks import KINDS, network, neurons_of_one_part, put_neuron


def outputs(model, example):
    return tensors_in(call(model, example))


def largest_difference(ones, others):
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(ones, others, strict=True))


# ======================================================================================
# The groups
# ======================================================================================


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_has_its_groups(name):
    model, example = network(name)
    groups = neuron_groups(model, example)
    assert sorted((group.kind, group.size) for group in groups) == sorted(KINDS[name][2])
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        for slot in group.slots:
            assert slot.index.shape == (group.size, slot.block) and len(slot.index.unique()) == slot.index.numel()
    assert 0 < groups.covered <= 1


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_permuting_neurons_within_their_parts_changes_nothing(name):
    """The groups are complete: through norms, flatten, streams, heads, gates, concatenation."""
    model, example = network(name)
    before = outputs(model, example)
    for number, group in enumerate(neuron_groups(model, example)):
        order = torch.arange(group.size)
        for part in group.part.unique():
            inside = (group.part == part).nonzero()[:, 0]
            assert len(inside) > 1
            order[inside] = inside.roll(1 + number)
        for slot in group.slots:
            slot.write(slot.tensor, slot.read(slot.tensor)[order].clone())
        assert largest_difference(before, outputs(model, example)) < 1e-9, group.name
        # ... and nothing less: where one slot is left out it isn't the same function
        first = group.producers[0]
        whole = first.tensor.clone()
        first.write(first.tensor, first.read(first.tensor)[order].clone())
        assert largest_difference(before, outputs(model, example)) > 1e-6, group.name
        first.tensor.copy_(whole)


def training_steps(model, example, steps=20):
    """SGD with momentum and decay, on random batches and targets."""
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, weight_decay=0.02)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((output - torch.randn_like(output)).square().mean() for output in outputs(model, other(example)))
        loss.backward()
        optimizer.step()


def other(example):
    if isinstance(example, tuple):
        return tuple(other(part) for part in example)
    return torch.randn_like(example) if example.is_floating_point() else torch.randint(11, example.shape)


@pytest.mark.parametrize("name", KINDS)
def test_equal_neurons_stay_equal(name):
    model, example = network(name)
    groups = neuron_groups(model, example)
    pairs = [neurons_of_one_part(group)[:2] for group in groups]
    for group, (one, two) in zip(groups, pairs, strict=True):
        put_neuron(group.slots, two, one)
    before = [group.vectors().clone() for group in groups]
    training_steps(model, example)
    for group, (one, two), old in zip(groups, pairs, before, strict=True):
        vectors = group.vectors()
        assert (vectors[one] - old[one]).abs().max() > 1e-4, group.name
        assert (vectors[one] - vectors[two]).abs().max() < 1e-10 * vectors.abs().max(), group.name


@pytest.mark.parametrize("name", KINDS)
def test_vanished_neurons_stay_vanished(name):
    """All of a neuron zero; below a norm that couples it with others: gain, offset and outgoing weights."""
    model, example = network(name)
    groups = [group for group in neuron_groups(model, example) if not (group.coupled and not group.normed)]
    for group in groups:
        put_neuron(group.vanishing_set(), 1, None)
    before = [group.vectors().clone() for group in groups]
    training_steps(model, example)
    for group, old in zip(groups, before, strict=True):
        for slot in group.vanishing_set():
            assert not slot.read(slot.tensor)[1].any(), (group.name, slot.name)
        assert (group.vectors()[2] - old[2]).abs().max() > 1e-4, group.name


@pytest.mark.parametrize("silent", ["gain", "incoming"])
def test_a_channel_before_batch_norm_has_two_vanishing_sets(silent):
    """Offset, outgoing weights and gain zero, whatever the incoming weights are; or offset, outgoing and incoming
    weights zero, whatever the gain is. In a residual stream at all its producers, norms and consumers.
    """
    torch.manual_seed(0)
    model, x = core.resnet18(10, 4).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    groups = neuron_groups(model, x)

    def members(group):
        for slot in group.with_role("incoming", "through", "outgoing"):
            gain = slot.is_norm and slot.parameter == "weight"
            if not (slot.role == "incoming" if silent == "gain" else gain):
                yield slot

    for group in groups:
        assert group.normed and group.coupled is None
        put_neuron(members(group), 1, None)
    before = [group.vectors().clone() for group in groups]
    training_steps(model, x, steps=5)
    for group, old in zip(groups, before, strict=True):
        assert not any(bool(slot.read(slot.tensor)[1].any()) for slot in members(group))
        moved = group.matrix(("incoming",)) if silent == "gain" else group.vectors()
        assert moved[1].any() == (silent == "gain") or group.matrix(("through",))[1].any()
        assert (group.vectors()[2] - old[2]).abs().max() > 1e-4


def test_neurons_of_different_heads_and_groups_are_not_exchangeable():
    groups = {group.name: group for group in neuron_groups(*network("vision transformer"))}
    for kind in ("query-key", "value"):
        assert groups[f"encoder.layers.0.self_attn:{kind}"].part.tolist() == [0] * 4 + [1] * 4
    query_key = groups["encoder.layers.0.self_attn:query-key"]
    assert query_key.slots[0].index.tolist() == [[k, k + 8] for k in range(8)]  # a row of queries, one of keys
    one, two = neuron_groups(*network("grouped"))
    assert one.part.tolist() == [0] * 6 + [1] * 6 and two.part.tolist() == [0] * 8 + [1] * 8


def test_rotary_pairs_are_no_neurons_and_grouped_values_have_a_part_for_each_head():
    groups = neuron_groups(*network("rotary"))
    assert not any("query" in group.kind for group in groups)
    assert {entry.name for entry in groups.skipped} >= {"q"}
    value = next(group for group in groups if group.kind == "value")
    assert value.part.tolist() == [0] * 4 + [1] * 4 and value.consumers[0].block == 2  # each head is read twice


class Partly(nn.Module):
    """Two layers, and between them something that acts on some of the channels."""

    def __init__(self, between, read=8, made=8):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, made), nn.Linear(read, 3), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def two_activations(h):
    one, other = h.chunk(2, 1)
    return torch.cat([torch.relu(one), torch.tanh(other)], 1)


def gated(h):
    return h[:, [0, 3]] * torch.sigmoid(h[:, [1, 2]])


def gated_behind_a_norm(h):
    return gated(F.batch_norm(h, None, None, training=True))


def head_by_head(h):
    """[batch, 8] as a batch of one sequence: two heads of attention, one after the other."""
    heads = [(part @ part.T).softmax(-1) @ part for part in h.split(4, 1)]
    return torch.cat(heads, 1)


def shifted_and_set(h):
    h = h.clone()
    h[:, 0] += 1.0
    h[:, 1] = 5.0
    h[:, :, None].mul_(2.0)
    return torch.relu(h)


@pytest.mark.parametrize("between", [two_activations, head_by_head])
def test_neurons_that_meet_different_operations_are_not_exchangeable(between):
    model, x = Partly(between).double(), torch.randn(5, 6, dtype=torch.float64)
    (group,) = neuron_groups(model, x)
    assert group.part.tolist() == [0] * 4 + [1] * 4
    put_neuron(group.slots, 5, 0)
    assert collapse_report([group])[0]["redundant"] == 0
    put_neuron(group.slots, 1, 0)
    assert collapse_report([group])[0]["redundant"] == 1


def test_channels_that_are_written_into_by_themselves_are_left_out_by_name():
    groups = neuron_groups(Partly(shifted_and_set), torch.randn(5, 6))
    assert groups[0].slots[0].index.flatten().tolist() == [2, 3, 4, 5, 6, 7]
    assert groups.skipped == [
        ("a", "add_ changes some of its channels alone"),
        ("a", "fill_ changes some of its channels alone"),
    ]


@pytest.mark.parametrize("between", [gated, gated_behind_a_norm])
def test_values_and_gates_lie_in_the_same_order_in_every_neuron(between):
    (group,) = neuron_groups(Partly(between, 2, 4), torch.randn(5, 6))
    assert group.producers[0].index.tolist() == [[0, 1], [3, 2]]
    put_neuron(group.slots, 1, 0)
    assert collapse_report([group])[0]["redundant"] == 1


class Recurrent(nn.Module):
    """A cell that starts with a state of zeros, whose shape it takes from its input."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.out = cell(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        state = x.new_zeros(len(x), 8)
        if isinstance(self.cell, nn.LSTMCell):
            state = state, torch.zeros_like(state)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(self.cell, nn.LSTMCell) else state)


class Scores(nn.Module):
    """A layer, and a vector that reads it."""

    def __init__(self):
        super().__init__()
        self.a, self.vector = nn.Linear(6, 8), nn.Parameter(torch.randn(8))

    def forward(self, x):
        return torch.tanh(self.a(x)) @ self.vector


def added_to_zeros(h):
    total = torch.zeros_like(h)
    total += h
    total += torch.tanh(h)
    return total


def copied_into_a_new_tensor(h):
    return torch.empty_like(h).copy_(h)


def convolutions(between, made):
    """Two convolutions and something between that has 12 channels of them."""
    return nn.Sequential(nn.Conv2d(3, made, 3, padding=1), between, nn.GELU(), nn.Conv2d(12, 3, 1))


def vectors():
    return torch.randn(5, 6)


def sequences():
    return torch.randn(5, 4, 5)


def pixels():
    return torch.randn(2, 3, 6, 6)


FOLLOWED = {  # network, example, size of its only group, rows of the first layer of each of its neurons
    "an LSTM cell": (lambda: Recurrent(nn.LSTMCell), sequences, 8, 4),
    "a GRU cell": (lambda: Recurrent(nn.GRUCell), sequences, 8, 3),
    "an RNN cell": (lambda: Recurrent(nn.RNNCell), sequences, 8, 1),
    "added to zeros": (lambda: Partly(added_to_zeros), vectors, 8, 1),
    "copied": (lambda: Partly(copied_into_a_new_tensor), vectors, 8, 1),
    "gated linear unit": (lambda: Partly(F.glu, read=4), vectors, 4, 2),
    "a vector": (Scores, vectors, 8, 1),
    "pixel shuffle": (lambda: convolutions(nn.PixelShuffle(2), 48), pixels, 12, 4),
    "pixel unshuffle": (lambda: convolutions(nn.PixelUnshuffle(2), 3), pixels, 3, 1),
}


@torch.no_grad()
def change_when_permuted(model, group, x):
    """How much a network's outputs change, relatively, when each neuron takes the next one's place."""
    before = outputs(model, x)
    for slot in group.slots:
        slot.write(slot.tensor, slot.read(slot.tensor).roll(1, 0).clone())
    return largest_difference(before, outputs(model, x))


@pytest.mark.parametrize("name", FOLLOWED)
def test_common_operations_are_followed(name):
    """Permuting the neurons changes nothing, and two equal ones stay equal under SGD."""
    make, example, size, rows = FOLLOWED[name]
    model, x = make().double(), example().double()
    groups = neuron_groups(model, x)
    (group,) = groups
    assert groups.whole and group.size == size and group.producers[0].block == rows
    assert len(group.part.unique()) == 1
    assert change_when_permuted(model, group, x) < 1e-12
    put_neuron(group.slots, 1, 0)
    training_steps(model, x, steps=3)
    rows = group.vectors()
    assert (rows[0] - rows[1]).abs().max() < 1e-12 and (rows[0] - rows[2]).abs().max() > 1e-3


def test_shuffled_channels_are_followed():
    """By themselves: PyTorch 2.4 can't train through a channel shuffle."""
    model, x = convolutions(nn.ChannelShuffle(3), 12).double(), pixels().double()
    (group,) = neuron_groups(model, x)
    assert group.size == 12 and group.consumers[0].index.flatten().tolist() != list(range(12))
    assert change_when_permuted(model, group, x) < 1e-12


def test_a_graph_is_no_attention():
    graph = torch.rand(5, 5)
    (group,) = neuron_groups(Partly(lambda h: graph @ torch.relu(h)), torch.randn(5, 6))
    assert group.kind == "neuron" and group.name == "a"
    (group,) = neuron_groups(Partly(lambda h: graph.softmax(1) @ torch.relu(h)), torch.randn(5, 6))
    assert group.kind == "value"


def test_streams_of_a_resnet_have_all_their_producers_and_consumers():
    groups = {group.name: group for group in neuron_groups(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32))}
    assert len(groups) == 12 and sum(group.size for group in groups.values()) == 2880
    stem = groups["conv1"]
    assert [slot.name for slot in stem.producers] == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    assert {slot.name for slot in stem.norms} == {"bn1", "layer1.0.bn2", "layer1.1.bn2"}
    assert {slot.name for slot in stem.consumers} == {
        "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"
    }  # fmt: skip
    last = groups["layer4.0.conv2"]
    assert {slot.name for slot in last.producers} == {"layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv2"}
    assert [slot.name for slot in last.consumers] == ["layer4.1.conv1", "fc"]


def test_a_layer_of_one_neuron_is_a_group():
    narrow = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Tanh(), nn.Linear(1, 1))
    (group,) = neuron_groups(narrow, torch.randn(4, 1))
    assert group.size == 1 and group.vectors().shape == (1, 5)
    flat = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    (group,) = neuron_groups(flat, torch.randn(2, 3, 6, 6))
    assert group.consumers[0].index.tolist() == [list(range(16))]


# ======================================================================================
# What can't be followed
# ======================================================================================


class Between(nn.Module):
    """Two layers with something between."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.c, self.between = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), between

    def forward(self, x):
        return self.c(torch.tanh(self.b(self.between(torch.tanh(self.a(x))))))


FROZEN = {
    "a product with data": (lambda h: h * torch.arange(8.0), "differs from channel to channel"),
    "a sort": (lambda h: h.sort(-1)[0], "sort"),
    "a matrix of its own": (lambda h: (h.T @ h) @ h.T, "product"),
    "a Fourier transform": (lambda h: torch.fft.fft(h).real, "can't be followed"),
    "a softmax": (lambda h: h.softmax(-1), "softmax"),
}


@pytest.mark.parametrize("what", ["a product with data", "a sort", "a Fourier transform", "a softmax"])
def test_what_cannot_be_followed_freezes_its_channels_and_is_listed(what):
    between, words = FROZEN[what]
    groups = neuron_groups(Between(between), torch.randn(5, 6))
    assert [group.name for group in groups] == ["b"]
    assert any(words in entry.reason for entry in groups.skipped if entry.name in ("a", "")), groups.skipped
    assert groups.whole == (what == "a softmax") and groups.covered < 1


class Maxima(nn.Module):
    """The largest of two channels each, and in the end the sum of all."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        largest = self.a(x).view(-1, 8, 2).amax(-1)
        return torch.relu(self.c(torch.relu(self.b(largest)))).sum(-1)


def test_neurons_that_are_only_read_together_are_listed():
    groups = neuron_groups(Maxima(), torch.randn(5, 6))
    assert [group.name for group in groups] == ["b"] and not groups.whole
    assert dict(groups.skipped) == {"a": "amax over its neurons", "c": "sum over its neurons"}


class Einsum(nn.Module):
    """A weight of three axes."""

    def __init__(self):
        super().__init__()
        self.a, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 2, 3))

    def forward(self, x):
        return torch.einsum("bn,nij->bij", torch.relu(self.a(x)), self.weight)


class FromInput(nn.Linear):
    def forward(self, x):
        return x + torch.relu(super().forward(x))


class Features(nn.Sequential):
    def forward(self, x):
        features = self[0](x)
        return {"features": features, "classes": self[1](features)}


@pytest.mark.parametrize(
    "model, words",
    [
        (nn.Sequential(FromInput(6, 6), nn.Linear(6, 3)), "0: add with something that differs"),
        (Features(nn.Linear(6, 4), nn.Linear(4, 2)), "0: it is an output"),
        (nn.Linear(6, 2), "no layer reads what another layer makes"),
        (Einsum(), "its weight has more than two axes"),
    ],
)
def test_where_nothing_can_be_measured_it_says_why(model, words):
    with pytest.raises(CollapseError, match=words) as caught:
        neuron_groups(model, torch.randn(5, 6))
    assert "\n" not in str(caught.value)


class Packed(nn.Module):
    """Gives out its hidden layer and its last one, in whatever `pack` makes of the two."""

    def __init__(self, pack):
        super().__init__()
        self.first, self.hidden, self.last, self.pack = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), pack

    def forward(self, x):
        hidden = self.hidden(torch.tanh(self.first(x)))
        return self.pack(hidden, self.last(hidden))


class Linked:
    """An object that leads back to itself, and in it another."""

    def __init__(self, *tensors):
        self.inner = types.SimpleNamespace(tensors=tensors, outer=self)


PACKS = {
    "a tuple": lambda hidden, out: (hidden, out),
    "a namespace": lambda hidden, out: types.SimpleNamespace(features=hidden, logits=out),
    "objects in a circle": Linked,
    "a distribution": lambda hidden, out: (torch.distributions.Normal(hidden, 1.0, validate_args=False), out),
    "a set": lambda hidden, out: {hidden, out},
}


@pytest.mark.parametrize("what", PACKS)
def test_outputs_are_found_in_whatever_holds_them(what):
    groups = neuron_groups(Packed(PACKS[what]), torch.randn(2, 6))
    assert [group.name for group in groups] == ["first"]
    assert any(entry.name == "hidden" and "output" in entry.reason for entry in groups.skipped)


def test_a_cache_of_transformers_is_no_output():
    """Keys and values that a network gives out for its own next call may become fewer."""
    cache = type("DynamicCache", (type("Cache", (), {"__module__": "transformers.cache_utils"}),), {})

    def pack(hidden, out):
        kept = cache()
        kept.values = hidden
        return {"logits": out, "cache": kept}

    assert [group.name for group in neuron_groups(Packed(pack), torch.randn(2, 6))] == ["first", "hidden"]


def with_parameter(value):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    model[0].weight = nn.Parameter(value)
    return model


@pytest.mark.parametrize(
    "model, example, words",
    [
        (with_parameter(torch.zeros(8, 6, dtype=torch.complex64)), torch.zeros(2, 6), r"0\.weight is complex"),
        (with_parameter(torch.zeros(8, 6, device="meta")), torch.zeros(2, 6), r"0\.weight is on the meta device"),
        (nn.Sequential(nn.Linear(6, 8)), torch.zeros(2, 7), r"doesn't take the example of shape \[2, 7\] \(in 0\)"),
        (nn.Sequential(nn.Linear(6, 8)), None, "an example is needed"),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), torch.zeros(0, 6), r"the example of shape \[0, 6\] is empty"),
        (nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)), torch.zeros(2, 6), r"0\.weight has no shape yet"),
        (Packed(lambda h, out: None), torch.zeros(2, 6), r"Packed gives out no tensor \(NoneType\)"),
    ],
)
def test_bad_input_is_one_line(model, example, words):
    with pytest.raises(CollapseError, match=words) as caught:
        neuron_groups(model, example)
    assert "\n" not in str(caught.value)
    with pytest.raises(CollapseError, match="pairing"):
        neuron_groups(model, example, pairing="reference")


# ======================================================================================
# The network is left as it was
# ======================================================================================


class Untidy(nn.Module):
    """Changes in each run all that a network can change: its weights, its buffers, its input."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(5, 6, max_norm=0.5), nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("given", torch.ones(1))
        self.bias = nn.Parameter(torch.ones(6))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, tokens, x):
        F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        x.sub_(0.5).div_(random.random() + np.random.rand())
        self.mean = 0.9 * self.mean + x.mean(0)
        self.given.data = self.given + 1
        self.first.weight.data = self.first.weight / self.first.weight.norm()
        self.last.weight[0].mul_(2)
        self.bias = nn.Parameter(self.bias + 1)
        return self.last(torch.tanh(self.first(self.embed(tokens) + x + self.bias)))


def test_a_network_that_changes_itself_and_its_input_is_put_back():
    model = Untidy()
    example = {"tokens": torch.arange(5), "x": torch.ones(5, 6)}
    state = copy.deepcopy(model.state_dict())
    objects = [*model.parameters(), *model.buffers()]
    generators = random.getstate(), np.random.get_state()[1].copy()
    assert [group.name for group in neuron_groups(model, example)]
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert all(one is other for one, other in zip(objects, [*model.parameters(), *model.buffers()], strict=True))
    assert torch.equal(example["x"], torch.ones(5, 6)) and torch.equal(example["tokens"], torch.arange(5))
    assert random.getstate() == generators[0] and (np.random.get_state()[1] == generators[1]).all()


class Merging(nn.Linear):
    """An adapter that is merged into the weight whenever the network is set to eval mode, as loralib's."""

    def __init__(self):
        super().__init__(6, 8)
        self.adapter, self.merged = nn.Parameter(torch.ones(8, 6)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.adapter if mode else self.adapter
            self.merged = not mode

    def forward(self, x):
        return super().forward(x) if self.merged else super().forward(x) + F.linear(x, self.adapter)


class Own(nn.Sequential):
    def train(self, loader):
        raise AssertionError("a training was run")


def test_a_networks_own_train_is_not_called():
    model = nn.Sequential(Merging(), nn.Tanh(), nn.Linear(8, 3))
    before = model[0].weight.detach().clone()
    collapse_report(model, torch.ones(2, 6))
    assert torch.equal(model[0].weight, before) and not model[0].merged and model[0].training
    collapse_report(Own(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.ones(2, 6))


class HalfPrecision(nn.Sequential):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


def layers():
    return nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)


def test_it_does_not_matter_what_is_switched_on_around():
    """inference_mode around the call, around the making of the network, autocast around the call and in the network."""
    x = torch.ones(2, 6)
    model = nn.Sequential(*layers())
    with torch.inference_mode():
        inside = nn.Sequential(*layers(), nn.BatchNorm1d(3))
        assert len(neuron_groups(model, torch.ones(2, 6))) == 1
    assert len(neuron_groups(inside, x)) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [slot.key for slot in neuron_groups(model, x)[0].slots] == [
            ("0", "weight", "incoming"), ("0", "bias", "incoming"), ("2", "weight", "outgoing"),
        ]  # fmt: skip
        assert torch.is_autocast_enabled("cpu")
    found = neuron_groups(HalfPrecision(*layers()), x)
    assert found.covered == neuron_groups(model, x).covered


def test_the_default_device_does_not_matter():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.set_default_device("meta")
    try:
        log = CollapseLog(model, torch.ones(2, 6, device="cpu"))
        log.record(0)
        collapse_report(model, torch.ones(2, 6, device="cpu"))
    finally:
        torch.set_default_device(None)
    assert log.rows[0]["independent"] > 0


class Counting(nn.Module):
    """Writes into a buffer and draws random numbers whenever it runs."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(0.5)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        return self.last(self.drop(self.first(x)) + 0 * torch.rand(()))


def test_following_leaves_no_trace():
    model = nn.Sequential(Counting(), nn.BatchNorm1d(3)).train()
    model[0].drop.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    neuron_groups(model, torch.ones(4, 6))
    assert torch.equal(torch.rand(2), expected)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_wrappers_are_taken_off():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.compile(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8)), backend="eager")
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(torch.relu(self.body(x)))

    model, x = Inside(), torch.randn(2, 6)
    expected = [(group.name, group.size) for group in neuron_groups(model, x)]
    assert [size for _, size in expected] == [8, 8]
    body = model.body
    wrapped = [
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        torch.optim.swa_utils.AveragedModel(model),
        torch.compile(nn.DataParallel(model), backend="eager"),
    ]
    for wrapper in wrapped:
        assert [(group.name, group.size) for group in neuron_groups(wrapper, x)] == expected
    assert model.body is body


def test_a_weight_that_is_computed_is_read_as_it_is():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))
    (group,) = neuron_groups(model, torch.randn(2, 6))
    assert group.slots[0].computed and torch.equal(group.incoming()[:, :6], model[0].weight.detach())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm, nn.utils.spectral_norm])
def test_parameters_behind_computed_weights_are_covered(norm):
    model = nn.Sequential(norm(nn.Linear(6, 8)), nn.Tanh(), norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3))
    outside = model[4].bias.numel()  # the outputs' alone
    total = sum(parameter.numel() for parameter in model.parameters())
    assert neuron_groups(model, torch.randn(2, 6)).covered == pytest.approx(1 - outside / total)


class Reversed(nn.Module):
    """A gain of each neuron whose entries lie in memory in another order than its axes."""

    def __init__(self):
        super().__init__()
        self.a, self.gain, self.b = nn.Linear(5, 24), nn.Parameter(torch.randn(6, 4).T), nn.Linear(24, 2)

    def forward(self, x):
        return self.b((torch.relu(self.a(x)).view(-1, 4, 6) * self.gain).flatten(1))


def test_entries_of_a_parameter_are_found_however_it_lies_in_memory():
    model, x = Reversed().double(), torch.randn(3, 5, dtype=torch.float64)
    (group,) = neuron_groups(model, x)
    gain = next(slot for slot in group.slots if slot.parameter == "gain")
    assert gain.dim is None and torch.equal(gain.read(model.gain.detach())[:, 0], model.gain.detach().flatten())
    assert change_when_permuted(model, group, x) < 1e-12


def test_inputs_are_tensors_tuples_and_dicts():
    model, example = network("written")
    both = neuron_groups(model, example)
    by_name = neuron_groups(model, {"x": example[0], "context": example[1]})
    alone = neuron_groups(model, example[0])  # the other branch of its control flow
    assert [len(group.producers) for group in both] == [len(group.producers) for group in by_name] == [3, 1]
    assert [len(group.producers) for group in alone] == [1, 1]


# ======================================================================================
# The paper's pairing; cost
# ======================================================================================


def test_the_papers_pairing():
    model = torchvision.models.resnet18(num_classes=10)
    groups = neuron_groups(model, torch.zeros(1, 3, 32, 32), pairing="paper")
    names = ["conv1"] + [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)]
    assert [group.name for group in groups] == names
    assert [group.consumers[0].name for group in groups] == [*names[1:], "fc"]
    assert groups[0].vectors().shape == (64, 147 + 576) and not any(group.norms for group in groups)
    plain, example = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), torch.zeros(1, 3, 4, 4)
    for ours, paper in zip(neuron_groups(plain, example), neuron_groups(plain, example, "paper"), strict=True):
        assert torch.equal(ours.vectors(), paper.vectors())


def test_the_papers_pairing_refuses_what_it_cannot_pair():
    upwards = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    with pytest.raises(CollapseError, match=r"doesn't know transposed convolutions \(1\)"):
        neuron_groups(upwards, torch.zeros(1, 3, 6, 6), pairing="paper")
    with pytest.raises(CollapseError, match="needs two layers in a row; Linear runs 1"):
        neuron_groups(nn.Linear(4, 3), torch.zeros(1, 4), pairing="paper")


def test_groups_of_a_resnet50_cost_less_than_six_forward_passes():
    """Of 224 x 224 images, in the processor's time: nothing is computed entry by entry."""
    model, x = torchvision.models.resnet50().eval(), torch.zeros(1, 3, 224, 224)

    def least(function):
        times = []
        for _ in range(2):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
        return min(times)

    with torch.no_grad():
        forward = least(lambda: model(x))
    assert least(lambda: neuron_groups(model, x)) < 6 * forward


@pytest.mark.parametrize("name", ["batch norm mlp", "plain conv", "residual", "dense", "mobile", "next block"])
def test_groups_are_those_of_torch_pruning(name):
    """The layers that make the neurons of each group (a development tool: skipped where it isn't installed)."""
    pruning = pytest.importorskip("torch_pruning")
    model, example = network(name)
    names = {module: path for path, module in model.named_modules()}
    graph = pruning.DependencyGraph().build_dependency(model, example)
    theirs = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        makers = [d.target.module for d, _ in group if "out_channels" in d.handler.__name__]
        layers = [names[module] for module in makers if isinstance(module, nn.Linear | nn.Conv2d)]
        theirs.add(frozenset(path for path in layers if getattr(model.get_submodule(path), "groups", 1) == 1))
    for group in neuron_groups(model, example):
        assert frozenset(slot.name for slot in group.producers) in theirs, (name, group.name, theirs)
