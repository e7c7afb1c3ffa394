"""A small network of each kind that people train, for the tests of groups, reports and extraction."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from collapse.extract import why_left_whole


def mlp(activation=nn.GELU, width=12):
    layers = [nn.Linear(10, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 5)]
    return nn.Sequential(*layers)


def batch_norm_mlp():
    return nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Linear(12, 3))


def layer_norm_mlp():
    return nn.Sequential(nn.Linear(10, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))


class PlainConv(nn.Module):
    """Convolutions, pooling, a flatten of 2 x 2 places, sizes read off the tensors."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, bias=False)
        self.norm, self.act = nn.BatchNorm2d(8), nn.PReLU(8)
        self.head, self.last = nn.Linear(32, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.avg_pool2d(self.act(self.norm(self.two(x))), 1)
        return self.last(torch.tanh(self.head(x.view(x.size(0), -1))))


class Residual(nn.Module):
    """A stream with batch norms, a layer that is called twice, a spatial mean."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.twice, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.two(F.gelu(self.one(x)))
        x = torch.add(x, torch.tanh(self.twice(torch.tanh(self.twice(x)))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenation, as in DenseNet and Inception."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(14, 6, 1)])
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(torch.cat(features, 1).amax((2, 3)))


class Mobile(nn.Module):
    """Depthwise convolution, squeeze and excitation, hard activations, a linear bottleneck."""

    def __init__(self):
        super().__init__()
        self.widen, self.norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depth, self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.narrow, self.third = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.hardswish(self.norm(self.widen(x)))
        x = F.relu6(self.second(self.depth(x)))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.third(self.narrow(x * gate))
        return self.head(x.mean([2, 3]))


class Grouped(nn.Module):
    """A grouped convolution, and a depthwise one that makes two channels of each."""

    def __init__(self):
        super().__init__()
        self.one, self.groups = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 3, groups=2)
        self.norm, self.twofold = nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3, groups=16)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.groups(torch.tanh(self.one(x)))))
        return self.head(F.gelu(self.twofold(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """Channels split into halves, one of which goes round a layer, and shuffled."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.after, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        left, right = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat((left, F.relu(self.norm(self.branch(right)))), 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(self.after(x)).mean((2, 3)))


class NextBlock(nn.Module):
    """ConvNeXt: depthwise convolution, permute, layer norm, a scale of each channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + self.scale * self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head(self.last(x.mean([-2, -1])))


class UNet(nn.Module):
    """Transposed convolution, a skip connection by concatenation, group norm with a group per channel."""

    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(8, 8)
        self.deep, self.up = nn.Conv2d(8, 6, 3, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.down(x)))
        y = F.relu(self.up(F.relu(self.deep(F.max_pool2d(x, 2)))))
        return self.out(torch.cat([F.interpolate(y, size=x.shape[2:]), x], 1))


class VisionTransformer(nn.Module):
    """Patches, a class token, position embeddings, PyTorch's own encoder layers."""

    def __init__(self, norm_first=True):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.encoder(x))[:, 0])


class Attention(nn.Module):
    """Attention by hand, queries, keys and values from one layer or from three."""

    def __init__(self, width=8, heads=2, fused=True, by_hand=True):
        super().__init__()
        self.heads, self.fused, self.by_hand = heads, fused, by_hand
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            layers = (self.query, self.key, self.value)
            q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in layers)
        if self.by_hand:
            scores = q @ k.transpose(-2, -1) / math.sqrt(4)
            v = scores.softmax(-1) @ v
        else:
            v = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(v.transpose(1, 2).flatten(2))


class LanguageModel(nn.Module):
    """Token and position embeddings, two blocks, a gated feed-forward layer, the head tied to the embedding."""

    def __init__(self, width=8):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, width), nn.Embedding(6, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attention = nn.ModuleList([Attention(fused=True, by_hand=False), Attention(fused=False)])
        self.gated, self.down = nn.Linear(width, 24), nn.Linear(12, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for norm, attention in zip(self.norms[:2], self.attention, strict=True):
            x = x + attention(norm(x))
            gate, value = self.gated(norm(x)).chunk(2, dim=-1)
            x = x + self.down(F.silu(gate) * value)
        return self.head(self.norms[2](x))


class RMSNorm(nn.Module):
    """By hand, as language models write it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Rotary(nn.Module):
    """Grouped-query attention with rotary position embeddings, and a gated feed-forward layer."""

    def __init__(self, width=8):
        super().__init__()
        self.tokens, self.first, self.second = nn.Embedding(11, width), RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v = nn.Linear(width, 16), nn.Linear(width, 8), nn.Linear(width, 8)
        self.o, self.last, self.head = nn.Linear(16, width), RMSNorm(width), nn.Linear(width, 5)
        self.gate, self.up, self.down = nn.Linear(width, 12), nn.Linear(width, 12), nn.Linear(12, width)
        self.register_buffer("frequencies", 10.0 ** -torch.arange(0, 1, 0.5), persistent=False)

    def rotated(self, x):
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.frequencies.to(x.dtype)
        angles = torch.cat([angles, angles], -1)
        half = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * angles.cos() + half * angles.sin()

    def forward(self, tokens):
        x = self.tokens(tokens)
        b, n, _ = x.shape
        y = self.first(x)
        q = self.rotated(self.q(y).view(b, n, 4, 4).transpose(1, 2))
        k, v = (layer(y).view(b, n, 2, 4).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (part[:, :, None].expand(b, 2, 2, n, 4).reshape(b, 4, n, 4) for part in (self.rotated(k), v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, -1))
        y = self.second(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.last(x))


class Windows(nn.Module):
    """Windows that are shifted (roll) and merged (strided slices, concatenation), as in Swin."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.attention = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), Attention()
        self.merge, self.head = nn.Linear(32, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-2, -2), (1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        y = self.attention(y).view(b, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(b, h, w, c)
        x = x + torch.roll(y, (2, 2), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(torch.tanh(self.merge(x)).mean((1, 2)))


class Regions(nn.Module):
    """A detector's way: regions of two sizes of maps, resized, put at their places among all regions."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(32, 6), nn.Linear(6, 3)

    def forward(self, x):
        fine = F.gelu(self.fine(x))
        coarse = F.gelu(self.coarse(F.max_pool2d(fine, 2)))
        boxes = torch.tensor([[0.0, 1, 1, 5, 5], [1, 0, 2, 7, 7], [2, 3, 3, 6, 6], [0, 0, 0, 8, 8]]).to(x)
        is_small = torch.tensor([True, False, True, False])
        found = torch.zeros((4, fine.shape[1], 2, 2), dtype=x.dtype)
        found[is_small.nonzero()[:, 0]] = roi_align(fine, boxes[is_small], 2)
        found[(~is_small).nonzero()[:, 0]] = roi_align(coarse, boxes[~is_small], 2, 0.5)
        return self.head(torch.tanh(self.hidden(found.flatten(1))))


class OwnLinear(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return F.linear(x, self.weight) * 2.0 + self.bias


class Written(nn.Module):
    """As people write networks: two inputs, a dict of outputs, control flow, raw parameters, an einsum."""

    def __init__(self):
        super().__init__()
        self.one, self.other = OwnLinear(10, 8), nn.Linear(4, 8)
        self.matrix = nn.Parameter(torch.randn(8, 6) / 3)
        self.offset = nn.Parameter(torch.randn(6))
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x, context=None):
        h = self.one(x)
        if context is not None and context.shape[-1] == 4:
            h = h + self.other(context)
        h = torch.einsum("bi,ij->bj", torch.tanh(h), self.matrix) + self.offset
        h = F.gelu(h)
        return {"left": self.left(h), "rest": [self.right(h), None]}


def tokens():
    return torch.randint(11, (3, 6))


def images():
    return torch.randn(3, 3, 8, 8)


# name: (network, example, groups it has: (kind, width) of each)
KINDS = {
    "mlp": (mlp, lambda: torch.randn(3, 10), [("neuron", 12)] * 2),
    "batch norm mlp": (batch_norm_mlp, lambda: torch.randn(6, 10), [("neuron", 12)]),
    "layer norm mlp": (layer_norm_mlp, lambda: torch.randn(3, 10), [("neuron", 12)] * 2),
    "plain conv": (PlainConv, lambda: torch.randn(3, 3, 8, 8), [("neuron", 8)] * 3),
    "residual": (Residual, images, [("neuron", 8), ("neuron", 6)]),
    "dense": (Dense, images, [("neuron", 8), ("neuron", 6), ("neuron", 6)]),
    "mobile": (Mobile, images, [("neuron", 8), ("neuron", 4), ("neuron", 6)]),
    "grouped": (Grouped, images, [("neuron", 12), ("neuron", 16)]),
    "shuffled": (Shuffled, images, [("neuron", 4), ("neuron", 4), ("neuron", 4), ("neuron", 6)]),
    "next block": (NextBlock, images, [("neuron", 8), ("neuron", 12)]),
    "unet": (UNet, images, [("neuron", 8), ("neuron", 6), ("neuron", 4)]),
    "vision transformer": (
        VisionTransformer,
        images,
        [("neuron", 8)] + [("query-key", 8), ("value", 8), ("neuron", 12)] * 2,
    ),
    "post-norm transformer": (
        lambda: VisionTransformer(norm_first=False),
        images,
        [("neuron", 8)] + [("query-key", 8), ("value", 8), ("neuron", 12)] * 2,
    ),
    "language model": (
        LanguageModel,
        tokens,
        [("neuron", 8), ("query-key", 8), ("value", 8), ("neuron", 12), ("query-key", 8), ("value", 8)],
    ),
    "rotary": (Rotary, tokens, [("neuron", 8), ("value", 8), ("neuron", 12)]),
    "windows": (Windows, images, [("neuron", 8), ("query-key", 8), ("value", 8), ("neuron", 6)]),
    "regions": (Regions, images, [("neuron", 8), ("neuron", 6)]),
    "written": (Written, lambda: (torch.randn(3, 10), torch.randn(3, 4)), [("neuron", 8), ("neuron", 6)]),
}


def network(name, seed=0):
    """(network in float64 with norms and running statistics as after training, example)."""
    torch.manual_seed(seed)
    make, example, _ = KINDS[name]
    model = make().double().eval()
    for module in model.modules():
        affine = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm | RMSNorm)
        for parameter in module.parameters(recurse=False) if affine else ():
            parameter.data.normal_(0.7, 0.3)
        if isinstance(module, nn.MultiheadAttention):  # its biases start at zero
            module.in_proj_bias.data.normal_(0, 0.3)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0.5, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model, in_double(example())


def in_double(example):
    if isinstance(example, tuple):
        return tuple(in_double(part) for part in example)
    return example.double() if example.is_floating_point() else example


@torch.no_grad()
def put_neuron(slots, neuron, value):
    """One neuron becomes like another one (an int), or zero (None), in these slots."""
    for slot in slots:
        rows = slot.read(slot.tensor).clone()
        rows[neuron] = 0 if value is None else rows[value]
        slot.write(slot.tensor, rows)


def neurons_of_one_part(group):
    """Indices of the neurons that are exchangeable with the first."""
    return (group.part == group.part[0]).nonzero()[:, 0].tolist()


def plant(groups):
    """In each part of each group that can be extracted one neuron vanishes and one becomes like another: how many."""
    planted = 0
    for group in groups:
        if why_left_whole(group):
            continue
        for number in group.part.unique():
            own = (group.part == number).nonzero()[:, 0].tolist()
            if len(own) > 3:
                put_neuron(group.slots, own[1], None)
                put_neuron(group.slots, own[2], own[0])
                planted += 2
    return planted
