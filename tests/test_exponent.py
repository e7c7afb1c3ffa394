"""The exponents against SGD itself, dense Hessians and closed forms; what can't be predicted is refused by name."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg

from collapse import CollapseError, collapse_exponent, nearest_pairs, neuron_groups, normalized_distances


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def mlp(activation=nn.GELU, width=24):
    layers = [nn.Linear(10, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 5)]
    return nn.Sequential(*layers)


def sgd_of(model, rate=0.1, momentum=0.9, decay=0.0, **options):
    return torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay, **options)


# ======================================================================================
# Against SGD itself
# ======================================================================================


def close_neurons(model, x, kind, distance=1e-7):
    """Put the first three neurons of every group next to each other, or to their vanishing set; {group: sets}."""
    sets = {}
    for group in neuron_groups(model, x):
        for slot in group.slots:
            rows_before_norm = kind == "neuron" and slot.role == "incoming" and group.norms
            if slot.role == "statistic" or rows_before_norm:
                continue
            parameter = slot.tensor.data
            values = slot.read(parameter).clone()
            start = values[:1] if kind == "pair" else 0
            values[:3] = start + distance * torch.randn_like(values[:3])
            slot.write(parameter, values)
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


def check_against_sgd(model, sets, sgd, batches, loss=F.cross_entropy, wrapped=None):
    """Neurons 1e-7 from their set move as predicted, in every group at once."""
    found = collapse_exponent(wrapped or model, sets, batches, sgd, loss)
    moved = found["log_distance"].diff(dim=0)
    assert moved.shape == (len(batches) - 1, 3 * len(sets))
    assert moved.abs().max() > 0.01
    assert found["log_distance"][0].max() < -10  # else they are predicted to stay far from another set
    torch.testing.assert_close(found["growth"][:-1], moved, rtol=0, atol=2e-4)
    return found


def image_batches(count=12):
    x = torch.randn(count, 8, 2, 8, 8, dtype=torch.float64)
    labels = torch.randint(3, (count, 8))
    return list(zip(x, labels, strict=True))


@pytest.mark.parametrize("kind", ["pair", "neuron"])
@pytest.mark.parametrize("norm, activation", [(False, nn.GELU), (False, nn.ReLU), (True, nn.GELU), (False, nn.Tanh)])
def test_linearised_steps_are_those_of_sgd_itself(kind, norm, activation):
    """Momentum and decay included."""
    model = Residual(norm, activation).double()
    batches = image_batches()
    sets = close_neurons(model, batches[0][0], kind)
    check_against_sgd(model, sets, sgd_of(model, decay=0.05), batches)


def groups_of_parameters(model):
    """As people write it: no decay on biases and norms; and here other rates and momenta, too."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0, "lr": 0.03, "momentum": 0.5},
    ]


@pytest.mark.parametrize("kind", ["pair", "neuron"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_parameter_groups_and_nesterov_are_linearised_too(kind, nesterov, norm):
    model = Residual(norm, nn.GELU).double()
    batches = image_batches()
    sets = close_neurons(model, batches[0][0], kind)
    sgd = torch.optim.SGD(groups_of_parameters(model), 0.1, 0.9, nesterov=nesterov)
    check_against_sgd(model, sets, sgd, batches)


def test_a_schedule_is_read_before_each_step():
    model = Residual(False, nn.GELU).double()
    batches = image_batches()
    sets = close_neurons(model, batches[0][0], "pair")
    sgd = sgd_of(model)

    class Scheduled(list):
        def __iter__(self):
            for step, batch in enumerate(super().__iter__()):
                sgd.param_groups[0]["lr"] = 0.5 / (1 + step)
                yield batch

    check_against_sgd(model, sets, sgd, Scheduled(batches))


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


def nested():
    """A network whose layers lie in a module of their own: a batch norm's group in "body", a group across the two."""
    body = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6))
    head = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(96, 3))
    return nn.Sequential(OrderedDict(body=body, head=head))


def both_heads(output, labels):
    return F.cross_entropy(output["classes"], labels) + output["rest"].square().mean()


@pytest.mark.parametrize("kind", ["pair", "neuron"])
@pytest.mark.parametrize("make, loss", [(Named, both_heads), (LateNorms, F.cross_entropy), (nested, F.cross_entropy)])
def test_networks_as_people_write_them_are_followed(kind, make, loss):
    model = make().double()
    batches = image_batches()
    sets = close_neurons(model, batches[0][0], kind)
    check_against_sgd(model, sets, sgd_of(model, decay=0.05), batches, loss, wrapped=nn.DataParallel(model))


class Between(nn.Module):
    """A convolution and a linear layer, with something `between` them."""

    def __init__(self, between, positions=1):
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(2, 6, 3), nn.Linear(6 * positions, 3), between

    def forward(self, x):
        return self.b(self.between(self.a(x).tanh()))


RESHAPED = {  # h: [images, 6 channels, 6, 6]
    "flatten(2).mean": (lambda h: h.flatten(2).mean(-1), 1),
    "tokens": (lambda h: h.flatten(2).transpose(1, 2), 1),
    "view": (lambda h: h.view(h.size(0), 6, -1).mean(-1), 1),
    "view of half": (lambda h: h.reshape(h.size(0), 6, 2, 18).sum(-1).flatten(1), 2),
    "unflatten": (lambda h: h.flatten(2).unflatten(2, (4, 9)).mean((2, 3)), 1),
    "squeezes": (lambda h: h.mean(3, keepdim=True).squeeze(-1).amax(-1, keepdim=True).squeeze(), 1),
    "last": (lambda h: h.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(1).squeeze(1).view(-1, 6), 1),
}


@pytest.mark.parametrize("kind", ["pair", "neuron"])
@pytest.mark.parametrize("what", RESHAPED)
def test_reshapes_are_followed_for_as_many_sets_as_examples(kind, what):
    """More examples than in the first two, and as many pairs as examples: a wrong shape would be broadcast."""
    model = Between(*RESHAPED[what]).double()
    x = torch.randn(4, 3, 2, 8, 8, dtype=torch.float64)
    batches = [(images, images) for images in x]
    sets = close_neurons(model, x[0], kind)
    check_against_sgd(model, sets, sgd_of(model), batches, lambda output, _: 5 * output.exp().mean())


DIVIDED = {
    "reshape: it divides channels": lambda h: h.reshape(h.size(0), 3, 2, -1).mean(-1).flatten(1),
    "expand: it runs on all channels at once alone": lambda h: h.mean((2, 3)).expand(-1, 6),
    "view: it .* changes the axes before them": lambda h: h.mean(2).transpose(1, 2).reshape(-1, 6).view(-1, 6, 6),
}


@pytest.mark.parametrize("words", DIVIDED)
def test_reshapes_that_single_channels_cannot_take_are_refused(words):
    model = Between(DIVIDED[words])
    batches = [(torch.randn(3, 2, 8, 8), torch.randn(3, 3))]
    with pytest.raises(CollapseError, match=f"collapse_exponent can't follow {words}"):
        collapse_exponent(model, {"a": torch.tensor([[0, 1]])}, batches, sgd_of(model))


# ======================================================================================
# Against dense Hessians
# ======================================================================================


class Gate(nn.Module):
    """The feed-forward layer of Llama: a product of two layers' neurons."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x, scale=None):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Unrolled(nn.Module):
    """A loop over a length that is read off the input, which torch.fx can't trace, around a block that it can."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 6), Gate(), nn.Linear(6, 3)

    def forward(self, x):
        states = self.first(x)
        total = 0
        for position in range(x.shape[1]):
            total = total + states[:, position].square()
        return self.last(self.block(states).mean(1) + total)


@pytest.mark.parametrize("kind", ["pair", "neuron"])
def test_a_block_is_followed_whatever_the_network_around_it_does(kind):
    model = Unrolled().double()
    batches = [(torch.randn(8, 3, 4, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(12)]
    sets = close_neurons(model, batches[0][0], kind)
    only = {"block.gate": sets["block.gate"]}
    check_against_sgd(model, only, sgd_of(model, decay=0.05), batches)
    with pytest.raises(CollapseError, match=r"torch.fx can't trace Unrolled in eval mode, as .* must: "):
        collapse_exponent(model, {"first": torch.tensor([[0, 1]])}, batches, sgd_of(model))


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


def test_parts_add_up_to_the_exponent():
    model = mlp(nn.GELU, 12).double()
    sgd = sgd_of(model, 0.02, 0.5, 0.01)
    batches = [(torch.randn(4, 10, dtype=torch.float64), torch.randint(5, (4,))) for _ in range(200)]
    found = collapse_exponent(model, {"2": torch.combinations(torch.arange(12))[:20]}, batches, sgd)
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
    model = Residual(True, nn.GELU)
    with pytest.raises(CollapseError, match=r"in chunks: norms\.0 couples"):
        collapse_exponent(model, {}, [(torch.randn(3, 2, 8, 8), torch.arange(3))], sgd_of(model), chunk=2)


# ======================================================================================
# Cost
# ======================================================================================


def narrow_vgg():
    plan = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
    layers = [*vgg.make_layers(plan), nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def test_an_exponent_step_costs_as_much_as_its_maps_are_large():
    """Multiplications of a step with 100 pairs, in gradients of the network: docs/speed.md has the times."""
    model = narrow_vgg()
    batch = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    pairs = torch.combinations(torch.arange(64))[:100]
    with FlopCounterMode(display=False) as plain:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    ratios = []
    for name in ("32", "28", "17"):  # maps of 1, 2 x 2 and 4 x 4; following the network costs 0.2
        with FlopCounterMode(display=False) as whole:
            collapse_exponent(model, {name: pairs}, [batch], sgd_of(model))
        ratios.append(whole.get_total_flops() / plain.get_total_flops())
    assert 1 < ratios[0] < ratios[1] < ratios[2]
    assert ratios[0] < 1.6


# ======================================================================================
# What can't be predicted
# ======================================================================================


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
    def forward(self, net, h):
        return F.dropout(h, 0.5, self.training)


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
    "dropout: it drops each neuron by itself": lambda: Odd(Dropped()),
    "b: the optimizer doesn't train": lambda: frozen(Odd(Same()), "b.weight"),
    "a: the optimizer doesn't train": lambda: frozen(Odd(Same()), "a.bias"),
    "1: its statistics are frozen": partly_in_eval_mode,
    "follow 0: its weight is computed": lambda: nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(10, 8)), nn.Tanh(), nn.Linear(8, 5)
    ),
}


@pytest.mark.parametrize("words", UNPREDICTABLE)
def test_what_cannot_be_predicted_is_refused_and_leaves_no_trace(words):
    model = UNPREDICTABLE[words]()
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    batches, name = (
        [(torch.randn(4, 10), torch.randint(5, (4,)))] * 2,
        neuron_groups(model, torch.zeros(2, 10))[0].name,
    )
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with pytest.raises(CollapseError, match=words):
        collapse_exponent(model, {name: torch.tensor([[0, 1]])}, batches, sgd)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert modes == [module.training for module in model.modules()] and sgd.state_dict()["state"] == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "model, sets, words",
    [
        (mlp(nn.Sigmoid), {"0": [0]}, "0 can't vanish: their activation of 0 is not 0"),
        (mlp(), {"1": [0]}, "no group of neurons 1; there are 0, 2"),
        (
            nn.Sequential(nn.Linear(10, 8), nn.LayerNorm(8), nn.Linear(8, 5)),
            {"0": [[0, 1]]},
            "follow 1: it normalises its neurons together",
        ),
        (nn.Sequential(nn.Linear(10, 8), nn.Dropout(), nn.Linear(8, 5)), {"0": [[0, 1]]}, "1: it drops each neuron"),
    ],
)
def test_sets_that_are_not_invariant_are_refused(model, sets, words):
    batches = [(torch.randn(4, 10), torch.randint(5, (4,)))] * 2
    with pytest.raises(CollapseError, match=words):
        sets = {key: torch.tensor(index) for key, index in sets.items()}
        collapse_exponent(model, sets, batches, sgd_of(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: torch.optim.AdamW(p), "torch.optim.SGD, not AdamW: an adaptive optimizer divides"),
        (lambda p: torch.optim.Adam(p), "torch.optim.SGD, not Adam"),
        (lambda p: torch.optim.SGD(p, 0.1, 0.9, dampening=0.5), "with dampening=0.5"),
        (lambda p: torch.optim.SGD(p, 0.1, 0.9, maximize=True), "with maximize=True"),
        (lambda p: torch.optim.SGD(p, 0.1, 1.5), "momentum from 0 to below 1, not 1.5"),
        (lambda p: torch.optim.SGD(p, math.nan), "finite learning rate, not nan"),
        (lambda p: torch.optim.SGD(p, 0.1, weight_decay=math.inf), "finite weight decay, not inf"),
    ],
)
def test_optimizers_that_are_not_linear_are_refused_in_one_line(make, words):
    model = mlp()
    batches = [(torch.randn(4, 10), torch.randint(5, (4,)))]
    with pytest.raises(CollapseError, match=words) as caught:
        collapse_exponent(model, {"0": torch.tensor([[0, 1]])}, batches, make(model.parameters()))
    assert "\n" not in str(caught.value)


def bad_batches():
    x = torch.randn(4, 10)
    labels = torch.tensor([0, 1, 2, 3])
    lost = x.clone()
    lost[1, 2] = math.nan
    return {
        "at least one batch": [],
        "batch 0 holds no examples": [(x[:0], labels[:0])],
        "batch 1 holds no examples": [(x, labels), (x[:0], labels[:0])],
        "batch 1 holds NaN or infinite inputs": [(x, labels), (lost, labels)],
        "batch 0 has labels from 0 to 7, the network 5 classes": [(x, torch.tensor([0, 1, 2, 7]))],
        "batch 0 has labels from -3 to 2": [(x, torch.tensor([0, 1, 2, -3]))],
        "batch 0 is no pair of tensors": [x],
        r"inputs \[4, 10\] but labels \[3\]": [(x, labels[:3])],
    }


@pytest.mark.parametrize("words", bad_batches())
def test_bad_batches_are_named_and_leave_no_hooks(words):
    model = mlp()
    with pytest.raises(CollapseError, match=words):
        collapse_exponent(model, {"0": torch.tensor([[0, 1]])}, bad_batches()[words], sgd_of(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("option, words", [({"blocks": 0}, "blocks=0"), ({"chunk": -1}, "chunk=-1")])
def test_bad_options_are_named(option, words):
    model = mlp()
    batches = [(torch.randn(4, 10), torch.randint(5, (4,)))]
    with pytest.raises(CollapseError, match=words):
        collapse_exponent(model, {"0": torch.tensor([[0, 1]])}, batches, sgd_of(model), **option)


def test_a_network_that_diverges_is_found_at_its_step():
    model = mlp()
    batches = [(torch.randn(4, 10), torch.randint(5, (4,)))] * 3
    with pytest.raises(CollapseError, match="the loss of batch 1 is nan: the network has diverged"):
        collapse_exponent(model, {"0": torch.tensor([[0, 1]])}, batches, sgd_of(model, rate=1e20))


def test_a_rate_that_a_schedule_spoils_is_found_at_its_step():
    model = mlp()
    sgd = sgd_of(model)

    def batches():
        yield torch.randn(4, 10), torch.randint(5, (4,))
        sgd.param_groups[0]["lr"] = math.nan
        yield torch.randn(4, 10), torch.randint(5, (4,))

    with pytest.raises(CollapseError, match="finite learning rate, not nan"):
        collapse_exponent(model, {"0": torch.tensor([[0, 1]])}, batches(), sgd)


@pytest.mark.parametrize("index", [[[0, 24]], [[-1, 3]], [[3, 3]], [24]])
def test_sets_of_neurons_that_are_not_there_are_refused(index):
    model, batches = mlp(), [(torch.randn(4, 10), torch.randint(5, (4,)))]
    with pytest.raises(CollapseError, match="sets of 0 must be of different neurons from 0 to 23"):
        collapse_exponent(model, {"0": torch.tensor(index)}, batches, torch.optim.SGD(model.parameters(), 0.1))


PAIR = torch.tensor([[0, 1]])


@pytest.mark.parametrize(
    "sets, loss, words",
    [
        ([PAIR], F.cross_entropy, "sets must be a dict, name of a group .* not a list"),
        ({"0": PAIR[:0]}, F.cross_entropy, "no sets of 0: leave it out"),
        ({"0": PAIR[:0, 0]}, F.cross_entropy, "no sets of 0: leave it out"),
        ({"0": ["first"]}, F.cross_entropy, "sets of 0 must be a tensor, not list"),
        ({"0": PAIR}, lambda out, y: F.cross_entropy(out, y, reduction="none"), r"loss of batch 0 has shape \[4\]"),
        ({"0": PAIR}, lambda out, y: 0.5, "loss of batch 0 is a float"),
        ({"0": PAIR}, lambda out, y: torch.ones(()), "loss of batch 0 doesn't depend on the network"),
    ],
)
def test_bad_sets_and_losses_are_one_line(sets, loss, words):
    model, batches = mlp(), [(torch.randn(4, 10), torch.randint(5, (4,)))]
    with pytest.raises(CollapseError, match=words) as caught:
        collapse_exponent(model, sets, batches, sgd_of(model), loss)
    assert "\n" not in str(caught.value)


def test_gradients_that_are_switched_off_are_said():
    model, batches = mlp(), [(torch.randn(4, 10), torch.randint(5, (4,)))]
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.raises(CollapseError, match="needs gradients: call it outside"):
            collapse_exponent(model, {"0": PAIR}, batches, sgd_of(model))


def test_one_of_several_processes_does_not_train_alone(monkeypatch):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(mlp())
        batches = [(torch.randn(4, 10), torch.randint(5, (4,)))] * 2
        collapse_exponent(model, {"0": PAIR}, batches, sgd_of(model))
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
        with pytest.raises(CollapseError, match=r"trained by 4 .* frozen=True"):
            collapse_exponent(model, {"0": PAIR}, batches, sgd_of(model))
        collapse_exponent(model, {"0": PAIR}, batches, sgd_of(model), frozen=True)
    finally:
        torch.distributed.destroy_process_group()


class Counting(nn.Sequential):
    """Centres its input in place and counts its runs, in a part that torch.fx traces."""

    def __init__(self):
        super().__init__(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 5))
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        x.sub_(0.5)
        return super().forward(x)


def test_following_a_network_changes_neither_its_buffers_nor_the_batch():
    x, y = torch.randn(3, 4, 10), torch.randint(5, (3, 4))
    model, before = Counting(), x.clone()
    collapse_exponent(model, {"0": PAIR}, list(zip(x, y, strict=True)), sgd_of(model))
    assert model.runs == 3
    torch.testing.assert_close(x, before - 0.5, rtol=0, atol=0)  # as three steps of training do


class Owned(nn.Sequential):
    """A network whose `train` is its training."""

    def train(self, loader):
        raise AssertionError("a training was run")


def test_a_network_in_eval_mode_is_trained_and_put_back():
    model = LateNorms().eval()
    batches = [(torch.randn(4, 2, 8, 8), torch.randint(3, (4,)))] * 2
    collapse_exponent(model, {"0": PAIR}, batches, sgd_of(model))
    assert not any(module.training for module in model.modules())
    assert model[2].num_batches_tracked == 2
    own = Owned(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 5))
    batches = [(torch.randn(4, 10), torch.randint(5, (4,)))]
    collapse_exponent(own, {"0": PAIR}, batches, sgd_of(own))
    own.training = False
    with pytest.raises(CollapseError, match=r"Owned.train\(\) fails, put it in training mode first: .*'loader'"):
        collapse_exponent(own, {"0": PAIR}, batches, sgd_of(own))


def test_the_default_device_does_not_matter():
    model, batches = mlp(), [(torch.randn(4, 10), torch.randint(5, (4,)))]
    torch.set_default_device("meta")
    try:
        found = collapse_exponent(model, {"0": PAIR.tolist()}, batches, sgd_of(model))
    finally:
        torch.set_default_device(None)
    assert found["exponent"].isfinite().all()


def test_a_frozen_network_stays_as_it_is():
    model = Residual(True, nn.GELU)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(4, 2, 8, 8), torch.randint(3, (4,)))] * 2
    collapse_exponent(model, {"stem": torch.tensor([[0, 1]])}, batches, sgd_of(model), frozen=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all((parameter.grad == 1).all() for parameter in model.parameters())


def test_nearest_pairs_against_a_search():
    group = neuron_groups(mlp(width=7), torch.randn(2, 10))[0]
    distance = normalized_distances(group.vectors())
    every = sorted(((distance[i, j].item(), i, j) for i in range(7) for j in range(i)), key=lambda row: row[0])
    assert nearest_pairs(group, 4).tolist() == [[j, i] for _, i, j in every[:4]]
    assert len(nearest_pairs(group, 1000)) == 21
    with pytest.raises(CollapseError, match="at least 1, not 0"):
        nearest_pairs(group, 0)
