"""Tests of subnetworks.py and its rooms: physics and contracts."""

import copy
import dataclasses
import json
import math
import time
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg

import core
import exponents
import extraction
import subnetworks
from extraction import plant_collapse
from neurons import trained_network
from subnetworks import collapse_exponent, extract_subnetwork
from training import Images


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def mlp(activation=nn.GELU, width=24):
    layers = [nn.Linear(10, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 5)]
    return nn.Sequential(*layers)


def narrow_vgg_bn():
    """torchvision's VGG-11 with batch norm and its own forward, narrower."""
    plan = [8, "M", 16, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    model = vgg.VGG(vgg.make_layers(plan, batch_norm=True), num_classes=10, init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(32 * 49, 48), nn.Linear(48, 48)
    model.classifier[6] = nn.Linear(48, 10)
    return model


NETWORKS = {
    "mlp": (mlp, (10,)),
    "sigmoid": (lambda: mlp(nn.Sigmoid), (10,)),
    "vgg16": (lambda: core.vgg16(10, 8), (3, 32, 32)),
    "vgg11_bn": (narrow_vgg_bn, (3, 32, 32)),
    "resnet18": (torchvision.models.resnet18, (3, 32, 32)),
    "resnet18 narrow": (lambda: core.resnet18(10, 8), (3, 32, 32)),
}


def network(name, seed=0):
    """A network in eval mode with norms and running statistics as after training, and a batch."""
    torch.manual_seed(seed)
    model, shape = NETWORKS[name][0]().eval(), NETWORKS[name][1]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(0.5, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(3, *shape)


# ======================================================================================
# Extract
# ======================================================================================


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("thresholds", [(1e-6, 1e-6), (0.1, 0.1)])
def test_planted_collapse_is_extracted_exactly(name, thresholds):
    model, x = network(name)
    lost = plant_collapse(model, x)
    before, state = model(x), copy.deepcopy(model.state_dict())
    smaller = extract_subnetwork(model, x, *thresholds)
    assert sum(row["vanished"] + row["merged"] for row in smaller.extraction) == lost > 0
    assert all(row["kept"] == row["width"] - 2 * (row["width"] // 4) for row in smaller.extraction)
    torch.testing.assert_close(smaller(x), before, rtol=1e-5, atol=1e-5)
    other = torch.randn_like(x)
    torch.testing.assert_close(smaller(other), model(other), rtol=1e-5, atol=1e-5)
    assert before.std() > 1e-3 and type(smaller) is type(model)
    assert [type(m) for m in smaller.modules()] == [type(m) for m in model.modules()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())  # the argument is as it was
    report = core.collapse_report(smaller, x, *thresholds)
    assert all(row["width"] == row["independent"] for row in report)  # nothing is left to extract
    smaller.train()(x).sum().backward()  # and it can be trained


def test_extraction_keeps_what_the_paper_counts():
    for seed in range(5):
        model, x = mlp(width=40), torch.randn(2, 10)
        draw = torch.Generator().manual_seed(seed)
        for group in core.neuron_groups(model, x):  # chains a - b - c with a and c apart, and faint neurons
            for slot in (*group.producers, *group.consumers):
                weight = slot.module.weight.data if slot in group.producers else slot.module.weight.data.T
                for i in range(1, 30):
                    weight[i] = weight[i - 1] + 0.25 * weight[i].norm() * F.normalize(
                        torch.randn(weight[i].shape, generator=draw), dim=0
                    )
                weight[30:35] *= 0.03
        found = extract_subnetwork(model, x).extraction
        report = core.collapse_report(model, x)
        assert [row["kept"] for row in found] == [row["independent"] for row in report]
        assert sum(row["redundant"] for row in report) > 10 and sum(row["vanishing"] for row in report) > 0


def test_a_dead_channel_that_still_speaks_is_kept():
    model, x = network("resnet18 narrow")
    block = model.layer1[0]
    for weight in (block.conv1.weight[:2], block.conv2.weight[:, :2], block.bn1.weight[:2], block.bn1.bias[:1]):
        weight.data.mul_(0)
    block.bn1.bias.data[1] = 0.5  # silent the one, not the other
    block.conv2.weight.data[:, 1] = 0.02
    smaller = extract_subnetwork(model, x, redundant=0.0)
    row = next(row for row in smaller.extraction if row["name"] == "layer1.0.conv1")
    assert row["vanished"] == 1
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-5, atol=1e-5)


def test_both_vanishing_sets_of_batch_norm_are_found():
    model, x = network("vgg11_bn")
    conv, norm, following = model.features[4], model.features[5], model.features[8]
    for index, parts in ((0, (norm.weight, norm.bias)), (1, (conv.weight, conv.bias, norm.bias))):
        for part in parts:
            part.data[index] = 0
        following.weight.data[:, index] = 0
    smaller = extract_subnetwork(model, x, 1e-6, 0.0)
    assert sum(row["vanished"] for row in smaller.extraction) == 2
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_layer_called_twice_is_followed_and_a_shared_parameter_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.again, self.leave = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

        def forward(self, x):
            return self.leave(torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.enter(x)))))))

    model, x = Twice(), torch.randn(3, 6)
    again = model.again.weight.data
    model.enter.weight.data[5], model.enter.bias.data[5] = model.enter.weight[2].detach(), model.enter.bias[2].detach()
    again[5], model.again.bias.data[5] = again[2], model.again.bias[2].detach()
    again[:, 5], model.leave.weight.data[:, 5] = again[:, 2], model.leave.weight[:, 2].detach()
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    assert smaller.again.weight.shape == (11, 11) and smaller.extraction[0]["merged"] == 1
    torch.testing.assert_close(smaller(x), model(x))
    model = mlp()
    model[0] = nn.Linear(24, 24)
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"2.*shares a parameter with 0"):
        extract_subnetwork(model, torch.randn(2, 24))


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
        (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), (6,), "1: it normalises its neurons"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3)), (3, 8, 8), "1: it normalises"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3)),
            (6,),
            "0: its weight is",
        ),
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 3, 3)), (4, 8, 8), "follow 0 .*grouped"),
        (Viewed(), (3, 4, 4), "written into Viewed's code.*view"),
        (Scaled(), (6,), "Scaled's code uses the size of a layer"),
    ],
)
def test_what_cannot_be_extracted_is_refused_by_name(model, shape, words):
    x = torch.randn(2, *shape)
    if isinstance(model, Viewed | Scaled):
        plant_collapse(model, x)
    with pytest.raises(ValueError, match=words):
        extract_subnetwork(model, x)
    for thresholds in ((2.0, 0.1), (0.1, 9.0), (-1.0, 0.1), (0.1, math.nan)):
        with pytest.raises(ValueError, match="thresholds must be"):
            extract_subnetwork(mlp(), torch.randn(2, 10), *thresholds)


def test_several_outputs_a_softmax_and_frozen_layers_are_kept():
    class Heads(nn.Sequential):
        def forward(self, x, scale=None, twice=False):
            h = torch.mean(self[1](self[0](x)) ** 2, axis=(2, 3))
            h = h if scale is None else h * scale
            h = 2 * h if twice else h
            return {"classes": F.log_softmax(self[2](h), dim=1), "values": [self[3](h), None]}

    model, x = Heads(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 3), nn.Linear(8, 2)), torch.randn(4, 3, 5, 5)
    assert [group.name for group in core.neuron_groups(model, x)] == ["0"]
    model[0].requires_grad_(False)
    plant_collapse(model, x)
    smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
    torch.testing.assert_close(smaller(x)["classes"], model(x)["classes"])
    torch.testing.assert_close(smaller(x)["values"][0], model(x)["values"][0])
    assert smaller[0].out_channels == 4 and not smaller[0].weight.requires_grad and smaller[2].weight.requires_grad


def test_nothing_to_extract_is_said():
    model, x = network("vgg16")
    with pytest.warns(UserWarning, match="nothing to extract"):
        same = extract_subnetwork(model, x)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    assert all(row["kept"] == row["width"] and not row["vanished"] + row["merged"] for row in same.extraction)


def test_extraction_of_the_full_vgg16_takes_under_five_seconds():
    model, x = core.vgg16(), torch.randn(1, 3, 32, 32)
    lost, start = plant_collapse(model, x), time.process_time()
    smaller = extract_subnetwork(model, x)
    assert time.process_time() - start < 5
    assert sum(row["width"] - row["kept"] for row in smaller.extraction) == lost == 2624


def test_measure_counts_the_parameters_of_the_extracted_network(tmp_path, capsys):
    model = torchvision.models.resnet18()
    plant_collapse(model, torch.zeros(1, 3, 64, 64))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    found = subnetworks.measure(weights=str(tmp_path / "weights.pt"), input="3,64,64")
    smaller = extract_subnetwork(model, torch.zeros(1, 3, 64, 64))
    assert found["needed"] == sum(p.numel() for p in smaller.parameters()) < found["parameters"]
    assert [row["kept"] for row in found["report"]] == [row["kept"] for row in smaller.extraction]
    assert f"{found['needed']:,}" in capsys.readouterr().out


# ======================================================================================
# Predict
# ======================================================================================


def close_neurons(model, x, kind, distance=1e-7):
    """Put the first three neurons of every group next to each other, or to their vanishing set; {group: sets}."""
    sets = {}
    for group in core.neuron_groups(model, x):
        views = []
        for slot in (*group.producers, *group.norms):
            norm = slot in group.norms
            before_norm = kind == "neuron" and not norm and group.norms
            views += [p.data.view(group.size, -1) for p in slot.module.parameters(recurse=False) if not before_norm]
        for slot in group.consumers:
            weight = slot.module.weight.data
            views.append(weight.view(len(weight), group.size, -1).transpose(0, 1))
        for view in views:
            if kind == "pair":
                view[:3] = view[:1] + distance * torch.randn_like(view[:3])
            else:
                view[:3] = distance * torch.randn_like(view[:3])
        sets[group.name] = torch.tensor([[0, 1], [0, 2], [1, 2]] if kind == "pair" else [0, 1, 2])
    return sets


class Residual(nn.Module):
    """A convolutional stream of 6 channels with a block, pooling, and a flatten before the last layer."""

    def __init__(self, norm, activation):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) if norm else nn.Identity() for n in (6, 5, 6)])
        self.act, self.pool, self.out = activation(), nn.MaxPool2d(2), nn.Linear(6 * 9, 3)

    def forward(self, x):
        x = self.act(self.norms[0](self.stem(x)))
        x = self.act(x + self.norms[2](self.two(self.act(self.norms[1](self.one(x))))))
        return self.out(torch.flatten(self.pool(x), 1))


@pytest.mark.parametrize("kind", ["pair", "neuron"])
@pytest.mark.parametrize("norm, activation", [(False, nn.GELU), (False, nn.ReLU), (True, nn.GELU), (False, nn.Tanh)])
def test_linearised_steps_are_those_of_sgd_itself(kind, norm, activation):
    """Neurons 1e-7 from their set move as predicted, in every group at once, momentum and decay included."""
    model = Residual(norm, activation).double()
    x, y = torch.randn(12, 8, 2, 8, 8, dtype=torch.float64), torch.randint(3, (12, 8))
    sets = close_neurons(model, x[0], kind)
    sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.05)
    found = collapse_exponent(model, sets, zip(x, y, strict=True), sgd)
    moved = found["log_distance"].diff(dim=0)
    assert moved.shape == (11, 3 * len(sets)) and moved.abs().max() > 0.01
    torch.testing.assert_close(found["growth"][:-1], moved, rtol=0, atol=2e-4)


class Named(nn.Module):
    """Layers named as fx names other nodes and called by keyword; sizes written into views and read off; two heads."""

    def __init__(self):
        super().__init__()
        self.output, self.mean, self.tanh = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3, padding=1), nn.Linear(216, 7)
        self.last, self.size = nn.Linear(7, 3), nn.Linear(5, 2)

    def forward(self, x):
        x = self.output(input=x).tanh()
        pooled = self.mean(x).tanh().mean((2, 3))
        x = self.tanh(input=x.view(-1, 216)).tanh()
        return {"classes": self.last(x.view(x.size(0), -1)), "rest": self.size(pooled)}


class LateNorms(nn.Sequential):
    """Batch norms that don't follow their layers directly."""

    def __init__(self):
        first = nn.Conv2d(2, 6, 3), nn.Identity(), nn.BatchNorm2d(6), nn.GELU()
        second = nn.Conv2d(6, 5, 3), nn.GELU(), nn.Dropout(0.0), nn.BatchNorm2d(5), nn.Flatten()
        super().__init__(*first, *second, nn.Linear(80, 3))


def both_heads(output, labels):
    return F.cross_entropy(output["classes"], labels) + output["rest"].square().mean()


@pytest.mark.parametrize("kind", ["pair", "neuron"])
@pytest.mark.parametrize("make, loss", [(Named, both_heads), (LateNorms, F.cross_entropy)])
def test_networks_as_people_write_them_are_followed(kind, make, loss):
    model, x, y = make().double(), torch.randn(12, 8, 2, 8, 8, dtype=torch.float64), torch.randint(3, (12, 8))
    sets = close_neurons(model, x[0], kind)
    sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.05)
    found = collapse_exponent(nn.DataParallel(model), sets, zip(x, y, strict=True), sgd, loss)
    moved = found["log_distance"].diff(dim=0)
    torch.testing.assert_close(found["growth"][:-1], moved, rtol=0, atol=2e-4)
    assert moved.abs().max() > 0.01

    plant_collapse(model, x[0])
    before = model.eval()(x[0])
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        if make is Named:
            with pytest.raises(ValueError, match="a size is written into Named's code"):
                extract_subnetwork(wrapped, x[0], 1e-6, 1e-6)
            continue
        after = extract_subnetwork(wrapped, x[0], 1e-6, 1e-6)(x[0])
        torch.testing.assert_close(after, before)


class Odd(nn.Module):
    """A small network with something `between` its two layers."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(10, 8), nn.Linear(8, 5), between

    def forward(self, x):
        return self.b(self.between(self, torch.relu(self.a(x))))


class Same(nn.Module):
    def forward(self, net, h):
        return h


class ByWidth(nn.Module):
    def forward(self, net, h):
        return h / h.shape[1] ** 0.5


class InTraining(nn.Module):
    def forward(self, net, h):
        return h / h.norm(dim=1, keepdim=True) if net.training else h


class Dropped(nn.Module):
    def __init__(self, always):
        super().__init__()
        self.always = always

    def forward(self, net, h):
        return F.dropout(h, 0.5, True if self.always else self.training)


def frozen(model, name):
    model.get_parameter(name).requires_grad_(False)
    return model


def partly_in_eval_mode():
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    model[1].eval()
    return model


UNPREDICTABLE = {
    "it takes a size": lambda: Odd(ByWidth()),
    "run otherwise in training mode": lambda: Odd(InTraining()),
    "dropout: it drops each neuron by itself": lambda: Odd(Dropped(always=False)),
    "dropout: it drops each neuron": lambda: Odd(Dropped(always=True)),
    "b: the optimizer doesn't train": lambda: frozen(Odd(Same()), "b.weight"),
    "a: the optimizer doesn't train": lambda: frozen(Odd(Same()), "a.bias"),
    "1: its statistics are frozen": partly_in_eval_mode,
    "through 0: its weight is computed": lambda: nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(10, 8)), nn.Tanh(), nn.Linear(8, 5)
    ),
}


@pytest.mark.parametrize("words", UNPREDICTABLE)
def test_what_cannot_be_predicted_is_refused_and_leaves_no_trace(words):
    model = UNPREDICTABLE[words]()
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    batches, name = (
        [(torch.randn(4, 10), torch.randint(5, (4,)))] * 2,
        core.neuron_groups(model, torch.zeros(2, 10))[0].name,
    )
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=words):
        collapse_exponent(model, {name: torch.tensor([[0, 1]])}, batches, sgd)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert modes == [module.training for module in model.modules()] and sgd.state_dict()["state"] == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hessian_across_the_sets_against_the_dense_one():
    """At merged pairs: each block as autograd has it, no cross terms between pairs, and the map's spectral radius."""
    model = mlp(nn.GELU, 6).double()
    x, y = torch.randn(16, 10, dtype=torch.float64), torch.randint(5, (16,))
    for layer in (model[0], model[2]):
        for tensor in (layer.weight.data, layer.bias.data):
            tensor[[1, 3]] = tensor[[0, 2]] + 1e-9 * torch.randn_like(tensor[[0, 2]])
    for layer in (model[2], model[4]):
        layer.weight.data[:, [1, 3]] = layer.weight.data[:, [0, 2]]
    names, values = zip(*model.named_parameters(), strict=True)
    sizes, shapes = [v.numel() for v in values], [v.shape for v in values]

    def loss(flat):
        parts = [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        return F.cross_entropy(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), x), y)

    flat = torch.cat([v.detach().flatten() for v in values])
    dense = torch.func.hessian(loss)(flat)
    axes = {}  # orthonormal antisymmetric directions of each pair
    for which, layer in enumerate((0, 2)):
        for pair in ((0, 1), (2, 3)):
            columns = []
            for p, neuron in enumerate(pair):
                position = {
                    n: torch.arange(sum(sizes[:k]), sum(sizes[: k + 1])).view(shapes[k]) for k, n in enumerate(names)
                }
                row = torch.cat([position[f"{layer}.weight"][neuron], position[f"{layer}.bias"][neuron, None]])
                entries = torch.cat([row, position[f"{layer + 2}.weight"][:, neuron]])
                columns.append(torch.eye(len(flat), dtype=torch.float64)[:, entries] * (1 - 2 * p) / 2**0.5)
            axes[which, pair] = sum(columns)
    keys = list(axes)
    for a in keys:
        for b in keys:
            block = axes[a].T @ dense @ axes[b]
            if a != b and a[0] == b[0]:
                assert block.abs().max() < 1e-8
    rate, momentum, decay = 0.2, 0.8, 0.01
    sgd = torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay)
    sets = {"0": torch.tensor([[0, 1], [2, 3]]), "2": torch.tensor([[0, 1], [2, 3]])}
    found = collapse_exponent(model, sets, [(x, y)] * 30, sgd, frozen=True)
    for k, key in enumerate(keys):
        h = axes[key].T @ dense @ axes[key] + decay * torch.eye(axes[key].shape[1], dtype=torch.float64)
        delta = axes[key].T @ flat
        speed, logs = torch.zeros_like(delta), [delta.norm().log()]
        for _ in range(30):
            speed = momentum * speed + h @ delta
            delta = delta - rate * speed
            logs.append(delta.norm().log())
        torch.testing.assert_close(found["growth"][:, k], torch.stack(logs).diff(), rtol=0, atol=1e-6)
        assert found["growth"][:, k].abs().max() > 1e-3
    assert (found["noise"].abs() < 1e-3).all()  # one batch: no noise


def test_closed_forms():
    """Quartic well and single neuron: E log|1 + a dt + b dB| to 2 %; the pair on its own noise to 5 %."""
    rows = exponents.closed_forms(100, 120, 0)
    assert [row["case"] for row in rows] == 3 * ["quartic"] + 3 * ["neuron"] + 4 * ["pair"]
    for row in rows:
        expected, exponent = float(row["expected"]), float(row["exponent"])
        if row["case"] == "pair":
            assert exponent == pytest.approx(expected, rel=0.05, abs=2e-6)
        else:
            assert exponent == pytest.approx(expected, rel=0.02, abs=0.05)


def test_parts_add_up_to_the_exponent():
    model = mlp(nn.GELU, 12).double()
    sgd = torch.optim.SGD(model.parameters(), 0.02, 0.5, weight_decay=0.01)
    batches = [(torch.randn(4, 10, dtype=torch.float64), torch.randint(5, (4,))) for _ in range(300)]
    found = collapse_exponent(model, {"2": torch.combinations(torch.arange(12))}, batches, sgd)
    total = found["curvature"] + found["noise"] + found["decay"]
    torch.testing.assert_close(total, found["exponent"], rtol=0, atol=3e-5)
    assert found["exponent"].abs().max() > 5e-4
    torch.testing.assert_close(found["decay"], torch.full_like(total, -0.04 * 0.01), rtol=0.02, atol=0)


def test_a_batch_in_chunks_is_the_same_batch():
    """Gradient accumulated over uneven chunks: the same steps, exponents and parts; a batch norm is refused."""
    batches = [(torch.randn(16, 10, dtype=torch.float64), torch.randint(5, (16,))) for _ in range(12)]
    found = []
    for chunk in (None, 16, 5):
        torch.manual_seed(1)
        model = mlp(nn.GELU, 6).double()
        sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.01)
        sets = {"0": torch.tensor([[0, 1], [2, 4]]), "2": torch.tensor([1, 5])}
        found.append(collapse_exponent(model, sets, batches, sgd, chunk=chunk))
        found[-1]["weight"] = model[0].weight.detach().clone()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=0)
        torch.testing.assert_close(found[2][key], value, rtol=1e-9, atol=1e-12)
    model = narrow_vgg_bn()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"in chunks: features\.1 couples"):
        collapse_exponent(model, {}, [(torch.randn(4, 3, 32, 32), torch.arange(4))], sgd, chunk=2)


def test_an_exponent_step_of_a_hundred_pairs_costs_less_than_thirty_gradient_steps():
    model = core.vgg16(10, 8)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    pairs = torch.combinations(torch.arange(64))[:100]
    with FlopCounterMode(display=False) as plain:
        F.cross_entropy(model(x), y).backward()
    for name in ("features.19", "features.28", "classifier.2"):
        with FlopCounterMode(display=False) as whole:
            collapse_exponent(model, {name: pairs}, [(x, y)] * 3, sgd)
        assert plain.get_total_flops() < whole.get_total_flops() / 3 < 30 * plain.get_total_flops()


@pytest.mark.parametrize(
    "model, sets, words",
    [
        (mlp(nn.Sigmoid), {"0": [0]}, "0 can't vanish: their activation of 0 is not 0"),
        (mlp(), {"1": [0]}, "no group of neurons 1; there are 0, 2"),
        (
            nn.Sequential(nn.Linear(10, 8), nn.LayerNorm(8), nn.Linear(8, 5)),
            {"0": [[0, 1]]},
            "through 1: it normalises its neurons together",
        ),
        (nn.Sequential(nn.Linear(10, 8), nn.Dropout(), nn.Linear(8, 5)), {"0": [[0, 1]]}, "1: it drops each neuron"),
    ],
)
def test_sets_that_are_not_invariant_are_refused(model, sets, words):
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    batches = [(torch.randn(4, 10), torch.randint(5, (4,)))] * 2
    with pytest.raises(ValueError, match=words):
        collapse_exponent(model, {key: torch.tensor(index) for key, index in sets.items()}, batches, sgd)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for other in ({"nesterov": True}, {"dampening": 0.5}, {"maximize": True}):
        with pytest.raises(ValueError, match="no Nesterov"):
            collapse_exponent(model, {}, batches, torch.optim.SGD(model.parameters(), 0.1, 0.9, **other))
    with pytest.raises(ValueError, match="no Nesterov"):
        collapse_exponent(model, {}, batches, torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="at least one batch"):
        collapse_exponent(model, {}, [], sgd)


@pytest.mark.parametrize("index", [[[0, 24]], [[-1, 3]], [[3, 3]], [24]])
def test_sets_of_neurons_that_are_not_there_are_refused(index):
    model, batches = mlp(), [(torch.randn(4, 10), torch.randint(5, (4,)))]
    with pytest.raises(ValueError, match="sets of 0 must be of different neurons from 0 to 23"):
        collapse_exponent(model, {"0": torch.tensor(index)}, batches, torch.optim.SGD(model.parameters(), 0.1))


def test_measure_reads_checkpoints_of_other_programs(tmp_path, monkeypatch):
    """{'state_dict': ...} of a network in DataParallel, and a network from a file in the folder where one is."""
    monkeypatch.chdir(tmp_path)
    text = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))\n"
    (tmp_path / "own_network.py").write_text(text)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    net[0].weight.data[1:], net[0].bias.data[1:], net[2].weight.data[:, 1:] = 0.0, 0.0, 0.0
    torch.save({"state_dict": nn.DataParallel(net).state_dict(), "epoch": 3}, "mine.pt")
    found = subnetworks.measure("own_network:net", "mine.pt", "4")
    assert found["report"][0]["vanishing"] == 5
    torch.save(net, "whole.pt")
    with pytest.raises(ValueError, match=r"whole\.pt can't be read .*it holds other things"):
        subnetworks.measure("own_network:net", "whole.pt", "4")


def test_a_frozen_network_stays_as_it_is():
    model = narrow_vgg_bn()
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))] * 2
    sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    collapse_exponent(model, {"features.0": torch.tensor([[0, 1]])}, batches, sgd, frozen=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_diverged_network_is_not_extracted():
    model = mlp()
    model[2].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="the neurons of 0 hold NaN or infinite values"):
        extract_subnetwork(model, torch.randn(2, 10))


# ======================================================================================
# Commands
# ======================================================================================

TINY = {"dataset": "synthetic", "width": 4, "batch_size": 32, "steps": 8, "warmup_steps": 2, "eval_every": 8}


def test_experiments_run_and_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(core, "load_dataset", lambda *which: core.synthetic_dataset(256, 64))
    found = extraction.extract(network=TINY, redundant=(0.5, 1.9), finetune=2, planted=("MLP",))
    core.write_json(tmp_path / "extract.json", found)
    assert [row["redundant"] for row in found["networks"]] == [0.5, 1.9]
    small = found["networks"][1]
    assert small["after"]["parameters"] < small["before"]["parameters"] and small["after"]["change"] > 0
    assert small["after"]["flops"] < small["before"]["flops"] and 0 <= small["after"]["tuned"] <= 1
    assert sum(group["merged"] for group in small["after"]["groups"]) > 0
    settings = {"network": TINY | {"milestones": (4, 8)}, "early": 4, "window": 5, "pairs": 10, "layers": 2}
    settings |= {"seeds": 1, "steps": 10, "pair_steps": 10}
    found = exponents.exponent(**settings, folder=str(tmp_path / "runs"))
    core.write_json(tmp_path / "exponent.json", found)
    run = json.loads((tmp_path / "exponent.json").read_text())["runs"][0]
    assert run["steps"] == [4, 8] and len(run["distance"][0]) == len(run["predicted"]) == len(run["next"]) == 20
    assert all(math.isfinite(value) for value in run["same"])
    assert found["cost"]["pairs"] == 10

    settings = {"network": TINY | {"milestones": (4, 8), "label_noise": 0.5}, "early": 4, "window": 5, "seeds": 1}
    found = exponents.vanishing(**settings, layers=2, folder=str(tmp_path / "runs"))["runs"][0]
    run = core.Run(**settings["network"], seed=0)
    for step, row in zip((4, 8), found["distance"], strict=True):
        model = trained_network(tmp_path / "runs" / run.name, step, "cpu")[1]
        norms = [group.vectors().norm(dim=1) for group in core.neuron_groups(model, torch.zeros(1, 3, 32, 32))[-2:]]
        expected = torch.cat([norm.square() / norm.max() ** 2 for norm in norms])
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
    assert found["predicted"].shape == found["same"].shape == (64,) and found["predicted"].isfinite().all()


def test_without_noise_every_step_takes_the_whole_training_set(tmp_path, monkeypatch):
    """Rows of batch size x decay; the full batch against one repeated by hand; what is finished isn't run again."""
    dataset = core.synthetic_dataset(60, 10)
    monkeypatch.setattr(core, "load_dataset", lambda *which: dataset)
    settings = {"network": TINY | {"milestones": (4, 8)}, "early": 4, "pairs": 5, "folder": str(tmp_path)}
    settings |= {"batch_sizes": (20, 50_000), "replicas": (2, 1), "steps": 6, "chunk": 25}
    rows = exponents.causes(**settings)["rows"]
    cases = [(row["batch_size"], row["weight_decay"], row["replicas"]) for row in rows]
    assert cases == [(20, 0.0, 2), (20, 5e-4, 2), (60, 0.0, 1), (60, 5e-4, 1)]
    assert rows[0]["exponent"][0] != rows[0]["exponent"][1] and rows[0]["decay"] == [0, 0] and rows[1]["decay"][0] < 0
    run = core.Run(**settings["network"], seed=0)
    model = trained_network(tmp_path / run.name, 4, "cpu")[1]
    images = Images(dataset, run.dataset, torch.device("cpu"))
    crops, labels = images.epoch(dataclasses.replace(run, batch_size=60), 0)
    batch = images.normalized(images.batch(crops)), labels
    assert sorted(labels.tolist()) == sorted(dataset.train_labels.tolist())
    groups = core.neuron_groups(model, batch[0][:2])[-2:]
    sets = {group.name: exponents.nearest_pairs(group, 5) for group in groups}
    sgd = torch.optim.SGD(model.parameters(), run.learning_rate, run.momentum, weight_decay=5e-4)
    found = 1000 * collapse_exponent(model, sets, [batch] * 6, sgd)["exponent"]
    torch.testing.assert_close(torch.tensor(rows[3]["by_pair"]).double(), found, rtol=1e-3, atol=2e-3)
    assert rows[3]["exponent"][0] == pytest.approx(found.mean().item(), abs=2e-3)
    monkeypatch.setattr(exponents, "collapse_exponent", None)
    assert exponents.causes(**settings)["rows"] == rows


def test_planting_in_groups_of_less_than_four_neurons_plants_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    assert plant_collapse(model, torch.zeros(1, 2)) == 0


def test_nearest_pairs_against_a_search():
    group = core.neuron_groups(mlp(width=7), torch.randn(2, 10))[0]
    distance = core.normalized_distances(group.vectors())
    every = sorted(((distance[i, j].item(), i, j) for i in range(7) for j in range(i)), key=lambda row: row[0])
    assert exponents.nearest_pairs(group, 4).tolist() == [[j, i] for _, i, j in every[:4]]


BROKEN = """
import torch

class Blind(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        return {}["nothing"]

def net():
    raise AssertionError("out of luck")
"""


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("measure", "--model", "torchvision.models:resnet19"), "can't make --model torchvision.models:resnet19"),
        (("measure", "--model", "nowhere:net"), "can't make --model nowhere:net"),
        (("measure", "--input", "3,x"), "--input 3,x: expected positive numbers"),
        (("measure", "--input", "3,-4,64"), "--input 3,-4,64: expected positive numbers"),
        (("measure", "--model", "torch:arange"), "can't make --model torch:arange"),
        (("measure", "--model", "math:gcd"), "can't make --model math:gcd: it returns int, no nn.Module"),
        (("measure", "--set", "vanishing=2.0", "--input", "3,32,32"), "thresholds must be 0 to 1"),
        (("measure", "--weights", "absent.pt"), "absent.pt is not there"),
        (("measure", "--weights", "list.pt", "--input", "3,32,32"), "list.pt, expected to be a state_dict"),
        (("measure", "--weights", "keys.pt", "--input", "3,32,32"), "keys.pt, expected to be a state_dict"),
        (("measure", "--model", "torch.nn:Flatten"), "it returns Flatten, no nn.Module with parameters"),
        (("measure", "--model", "broken:net"), "can't make --model broken:net: out of luck"),
        (("measure", "--model", "broken:Blind", "--input", "4"), "doesn't take the example of shape [2, 4]: 'nothing'"),
        (("measure", "--input", "3,99999999,99999999"), "expected positive numbers"),
        (("measure", "--redundant", "0.1", "0.3"), "measure takes one --redundant, not 2"),
        (("exponent", "--pairs", "0"), "must be at least 1"),
        (("extract", "--finetune", "-1"), "must not be negative"),
        (("measure", "--run", "absent"), "absent is no run directory"),
        (("measure", "--input", "3,8"), "doesn't take the example of shape [2, 3, 8]"),
        (("extract", "--runs", "absent"), "no finished run below absent"),
        (("predict",), "unknown experiment predict"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state_dict": None}, tmp_path / "keys.pt")
    (tmp_path / "broken.py").write_text(BROKEN)
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        warnings.simplefilter("error")
        subnetworks.main([*arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json"))
