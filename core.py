"""Core of the house: data, models and collapse metrics that every experiment shares.

"Collapse" is the drift of SGD into an invariant set (Chen, Kunin, Yamamura, Ganguli, *Stochastic
Collapse*, NeurIPS 2023): parameters where a neuron has vanished, or where two neurons are equal.

Four rooms, and a porch for the scripts:

    data               load_dataset
    models             vgg16, resnet18
    training           (the deep experiments' room)
    collapse metrics   normalized_distances, independent_neurons, effective_rank,
                       neuron_groups, collapse_report
    scripts            run_script: arguments, results, environment

Measure collapse in any network in three lines:

    from core import collapse_report
    for row in collapse_report(model, example):
        print(row)
"""

import argparse
import datetime
import inspect
import json
import math
import os
import platform
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# ======================================================================================
# data
# ======================================================================================


class Dataset(NamedTuple):
    """Images uint8 [N, C, H, W] in 0..255, labels int64 [N] in 0..num_classes - 1."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        return int(self.train_labels.max()) + 1


# name: (class in torchvision.datasets, the files it downloads, the folder below root they go to)
_IDX = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz"
_DOWNLOADS = {
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz", ""),
    "cifar100": ("CIFAR100", "cifar-100-python.tar.gz", ""),
    "mnist": ("MNIST", _IDX, "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", _IDX, "FashionMNIST/raw"),
    "usps": ("USPS", "usps.bz2, usps.t.bz2", ""),
}


def load_dataset(name: str, root: str | Path = "data") -> Dataset:
    """Load a data set by name: from `<root>/<name>.npz` if it is there, else by download.

    `name`: cifar10, cifar100, usps, mnist, fashion_mnist (torchvision downloads these into `root`
    and verifies their checksums), synthetic (generated, see `synthetic_dataset`), or the stem of
    any npz file in `root` with `train_images` and `test_images` (uint8, N x H x W or N x H x W x C)
    and `train_labels` and `test_labels` (integers from 0).

    Raises ValueError for an unknown name or a bad file, OSError if the download fails.
    """
    path = Path(root) / f"{name}.npz"
    if name == "synthetic":
        return synthetic_dataset()
    if path.exists():
        arrays = _read_npz(path)
    elif name in _DOWNLOADS:
        arrays = _download(name, Path(root))
    else:
        known = ", ".join([*_DOWNLOADS, "synthetic"])
        raise ValueError(f"no data set {name!r}: use one of {known}, or put your own images into {path}")
    images = {}
    for split in ("train", "test"):
        pixels = torch.from_numpy(np.ascontiguousarray(arrays[f"{split}_images"]))
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        images[split] = pixels, torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64))
    return Dataset(*images["train"], *images["test"])


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    keys = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            arrays = {key: file[key] for key in keys if key not in missing}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable npz of plain arrays ({error}); write it with numpy.savez") from None
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(keys)}")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
            raise ValueError(
                f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 N x H x W or N x H x W x C"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise ValueError(
                f"{path}: {split}_labels is {labels.dtype} {labels.shape}; expected {len(images)} integers"
            )
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise ValueError(f"{path}: train and test images differ in shape; give both the same H x W x C")
    seen = np.unique(arrays["train_labels"])
    if seen[0] != 0 or seen[-1] != len(seen) - 1 or not np.isin(arrays["test_labels"], seen).all():
        raise ValueError(f"{path}: labels must be 0..classes-1, every class in train; train has {seen[:12].tolist()}")
    return arrays


def _download(name: str, root: Path) -> dict[str, np.ndarray]:
    import torchvision.datasets

    kind, files, folder = _DOWNLOADS[name]
    arrays = {}
    try:
        for split in ("train", "test"):
            part = getattr(torchvision.datasets, kind)(root, train=split == "train", download=True)
            arrays[f"{split}_images"] = np.asarray(part.data)
            arrays[f"{split}_labels"] = np.asarray(part.targets)
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"cannot download {name} ({reason}); fetch {files} on another machine "
            f"and put it into {root / folder}, or write {root / name}.npz"
        ) from None
    return arrays


def synthetic_dataset(train: int = 4096, test: int = 1024, classes: int = 10, seed: int = 0) -> Dataset:
    """Generated 3 x 32 x 32 images to try things on: a smooth pattern per class, shifted and noisy.

    Learnable but not trivially: each image is its class's pattern, cyclically shifted by up to 8
    pixels, under pixel noise of twice its size; a linear classifier gets 88 % right.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(classes, 3, 6, 6, generator=generator)
    patterns = nn.functional.interpolate(coarse, size=32, mode="bicubic", align_corners=False)
    labels = torch.arange(train + test) % classes
    shifts = torch.randint(-8, 9, (train + test, 2), generator=generator)
    grid = torch.arange(32)
    rows = (grid - shifts[:, :1]) % 32
    columns = (grid - shifts[:, 1:]) % 32
    images = patterns[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    images = 128 + 25 * images + 50 * torch.randn(images.shape, generator=generator)
    images = images.round().clamp(0, 255).to(torch.uint8).contiguous()
    return Dataset(images[:train], labels[:train], images[train:], labels[train:])


# ======================================================================================
# models
# ======================================================================================


def vgg16(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-16 of the paper for 3 x 32 x 32 images: GELU, no batch norm, no dropout.

    13 convolutions 3x3 with bias (width, 2 width, 4 width, 8 width, 8 width) and three linear
    layers; 15.25 M parameters at the paper's width 64. Weights Kaiming normal (fan-in, gain
    sqrt 2), biases 0 (the reference code, `VGG16_NET_GELU`).
    """
    from torchvision.models import vgg

    plan = [size if size == "M" else size * width // 64 for size in vgg.cfgs["D"]]
    features = nn.Sequential(*(nn.GELU() if isinstance(m, nn.ReLU) else m for m in vgg.make_layers(plan)))
    wide = plan[-2]
    classifier = nn.Sequential(
        nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, num_classes)
    )
    model = nn.Sequential()
    model.add_module("features", features)
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", classifier)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def resnet18(num_classes: int = 100, width: int = 64) -> nn.Module:
    """ResNet-18 of the paper for 3 x 32 x 32 images: GELU, stem 3x3 stride 1 without max-pool.

    torchvision's network otherwise (batch norm, its initialisation); the replaced stem keeps the
    default initialisation of a convolution, as in the reference code. 11.22 M parameters at
    width 64 and 100 classes.
    """
    from torchvision.models import resnet

    class ScaledResNet(resnet.ResNet):
        def _make_layer(self, block, planes, *args, **options):
            if planes == 64:  # the first of the four stages
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, *args, **options)

    model = ScaledResNet(resnet.BasicBlock, [2, 2, 2, 2])
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    model.fc = nn.Linear(8 * width, num_classes)
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = nn.GELU()
    return model


# ======================================================================================
# collapse metrics
# ======================================================================================


def _rows(vectors: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """`vectors` checked, in a range where squares neither overflow nor vanish, and the rows' norms."""
    vectors = torch.as_tensor(vectors).detach()
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{name} must be [neurons, features], not empty; got shape {tuple(vectors.shape)}")
    vectors = vectors if vectors.is_floating_point() else vectors.double()
    norms = torch.linalg.vector_norm(vectors, dim=1)
    if not 1e-15 < norms.max() < 1e15:  # NaN, too
        largest = vectors.abs().max()
        if not torch.isfinite(largest):
            raise ValueError(f"{name} holds NaN or infinite values: the network has diverged")
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
    1e-6 matter. The distance of the paper's figures 3 and 4. Raises ValueError for NaN, infinite
    or empty input.
    """
    return _distances(*_rows(vectors, "vectors"))


def _count(vectors: Tensor, vanishing: float, redundant: float, norms: Tensor | None) -> tuple[int, int]:
    """Vanishing and independent neurons; see `independent_neurons`."""
    vectors, own = _rows(vectors, "vectors")
    norms = own if norms is None else torch.as_tensor(norms).detach()
    if norms.shape != own.shape or not torch.isfinite(norms).all():
        raise ValueError(f"norms must be {len(own)} finite numbers, one per neuron")
    kept = (norms >= vanishing * norms.max()) & (norms > 0)
    vanished = len(own) - int(kept.sum())
    if vanished == len(own):
        return vanished, 0
    vectors, own = (vectors[kept], own[kept]) if vanished else (vectors, own)
    distances = _distances(vectors, own)
    near = (distances < redundant).triu_(1)
    # Rounding could flip a pair at the threshold: those few are measured again, directly, in float64.
    doubtful = ((distances - redundant).abs_() < 0.01).triu_(1).nonzero()
    for pairs in doubtful.split(1024):
        a, b = vectors[pairs.T].double()
        direct = 2 * (a - b).square().sum(1) / (a.square().sum(1) + b.square().sum(1))
        near[pairs[:, 0], pairs[:, 1]] = direct < redundant
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
    first step: the published figures used the incoming weights alone (erratum E1).

    Raises ValueError for NaN, infinite or empty input; all-zero rows count as 0 neurons.
    """
    return _count(vectors, vanishing, redundant, norms)[1]


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix.

    Between 1 and the rank. The reference code computes the entropy itself (erratum E13).
    Raises ValueError for NaN, infinite or empty input.
    """
    matrix = _rows(matrix, "matrix")[0].double()
    matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    squares = torch.linalg.eigvalsh(matrix @ matrix.T)  # ten times faster than the singular values themselves
    squares = squares[squares > len(squares) * torch.finfo(torch.float64).eps * squares[-1]]
    if len(squares) == 0:
        return 0.0
    p = squares.sqrt() / squares.sqrt().sum()
    return math.exp(-(p * p.log()).sum().item())


class Slot(NamedTuple):
    """A module that a group of neurons runs through; each neuron owns `block` consecutive features."""

    name: str
    module: nn.Module
    block: int = 1


class NeuronGroup(NamedTuple):
    """Neurons (channels) that live and die together, and every place that holds their parameters.

    Row i of each producer's weight and bias, entry i of each norm's gain and offset, and column i
    of each consumer's weight belong to neuron i. A residual stream is one group with several
    producers and consumers.
    """

    name: str
    size: int
    producers: tuple[Slot, ...]
    norms: tuple[Slot, ...]
    consumers: tuple[Slot, ...]

    def incoming(self) -> Tensor:
        """[n, d] of producers' rows with biases, then norms' gains and offsets."""
        parts = [slot.module.weight for slot in self.producers]
        parts += [slot.module.bias for slot in self.producers]
        parts += [getattr(slot.module, name, None) for slot in self.norms for name in ("weight", "bias")]
        return torch.cat([part.detach().reshape(self.size, -1) for part in parts if part is not None], 1)

    def outgoing(self) -> Tensor:
        """[n, d] of consumers' columns."""
        weights = [slot.module.weight.detach() for slot in self.consumers]
        return torch.cat([w.reshape(len(w), self.size, -1).transpose(0, 1).flatten(1) for w in weights], 1)

    def vectors(self) -> Tensor:
        """[n, d] of all parameters of each neuron: incoming, norms, outgoing."""
        return torch.cat([self.incoming(), self.outgoing()], 1)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
# Modules, functions and methods that act on each channel alone, named as `_kind` names them
_CHANNELWISE = set(
    "relu relu6 gelu tanh sigmoid silu mish elu celu selu leakyrelu hardtanh hardswish hardsigmoid softplus softsign "
    "logsigmoid tanhshrink softshrink hardshrink threshold identity dropout dropout1d dropout2d dropout3d alphadropout "
    "featurealphadropout stochasticdepth abs neg add iadd sub isub mul imul truediv div square sin cos exp clamp "
    "contiguous clone detach float double half to maxpool1d maxpool2d maxpool3d avgpool1d avgpool2d avgpool3d "
    "adaptiveavgpool1d adaptiveavgpool2d adaptiveavgpool3d adaptivemaxpool2d upsample interpolate".split()
)


def neuron_groups(model: nn.Module, example: Tensor, pairing: str = "graph") -> list[NeuronGroup]:
    """The groups of neurons of any torch.fx-traceable network, in the order they run.

    Follows convolutions, linear layers, batch, group and layer norms, elementwise functions,
    pooling, flatten and residual additions from one `example` batch; the inputs' and the outputs'
    channels are no neurons. `pairing="paper"` pairs each layer with the next one instead, without
    norms, skip connections and down-sampling, as the reference code does for its ResNet (E4).

    Raises ValueError that names the layer it can't follow (concatenation, attention, ...).
    """
    if pairing not in ("graph", "paper"):
        raise ValueError(f"pairing must be 'graph' or 'paper', not {pairing!r}")
    graph, shapes = _trace(model, example)
    modules = dict(model.named_modules())
    if pairing == "paper":
        return _pair_layers([(n.target, modules[n.target]) for n in graph.nodes if n.op == "call_module"])

    spaces = [0]  # union-find over channel spaces; 0 holds those that can't change: inputs and outputs
    slots = []  # (role, space, Slot)
    calls = {}  # parameter -> (module's name, spaces of its slots): a module called twice joins them
    where = {}  # node -> (space, block, channels last?)

    def find(space):
        while spaces[space] != space:
            space = spaces[space]
        return space

    def join(a, b):
        a, b = sorted((find(a), find(b)))
        spaces[b] = a

    def refuse(node, why):
        raise ValueError(f"neuron_groups can't follow {node.name} ({_kind(node, modules)}): {why}")

    def hold(node, module, *roles):
        """Enter the slots of a module with parameters: roles are (role, space, block)."""
        for parameter in module.parameters(recurse=False):
            name, earlier = calls.setdefault(id(parameter), (node.target, roles))
            if name != node.target and modules[name] is not module:
                refuse(node, f"it shares a parameter with {name}")
            for (_, a, block), (_, b, before) in zip(roles, earlier, strict=True):
                if block != before:
                    refuse(node, "it is called twice with inputs laid out differently")
                join(a, b)
        slots.extend((role, space, Slot(node.target, module, block)) for role, space, block in roles)

    for node in graph.nodes:
        parents = [parent for parent in node.all_input_nodes if parent in where]
        if node.op == "placeholder":
            where[node] = 0, 1, None
        elif node.op == "get_attr":
            refuse(node, "a parameter or constant used outside a layer")
        elif node.op == "output":
            for parent in parents:
                join(0, where[parent][0])
        elif node not in shapes:
            if "tensor_meta" in node.meta:
                refuse(node, "it returns several tensors")  # what returns none, a size say, is passed over
        elif not parents:
            refuse(node, "it makes a tensor of its own")
        elif node.op == "call_module" and isinstance(modules[node.target], (*_CONVOLUTIONS, nn.Linear)):
            module, (space, block, last) = modules[node.target], where[parents[0]]
            is_linear = isinstance(module, nn.Linear)
            if getattr(module, "groups", 1) != 1:
                refuse(node, "a grouped convolution")
            if last is not None and last != is_linear and len(shapes[parents[0]]) > 2:
                refuse(node, "it does not act on the channels of its input")
            spaces.append(len(spaces))
            hold(node, module, ("consumer", space, block), ("producer", spaces[-1], 1))
            where[node] = spaces[-1], 1, is_linear
        else:
            kind, (space, block, last) = _kind(node, modules), where[parents[0]]
            before, after = shapes[parents[0]], shapes[node]
            module = modules[node.target] if node.op == "call_module" else None
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and (
                len(module.normalized_shape) > 1 or (last is False and len(before) > 2)
            ):
                refuse(node, "it normalises over more than the channels")
            elif isinstance(module, _NORMS):
                if last and len(before) > 2 and not isinstance(module, nn.LayerNorm | nn.RMSNorm):
                    refuse(node, "it does not act on the channels of its input")
                if getattr(module, "weight", None) is not None and module.weight.numel() > 1:
                    hold(node, module, ("norm", space, block))
            elif len(parents) == 2 and kind in ("add", "iadd"):
                _, other_block, other_last = where[parents[1]]
                if shapes[parents[1]] != before or (None not in (last, other_last) and other_block != block):
                    refuse(node, "it adds tensors of different layouts")
                join(space, where[parents[1]][0])
            elif len(parents) > 1:
                refuse(node, "it combines tensors other than by addition")
            elif kind == "mean":
                dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else range(len(before)))
                dims = {d % len(before) for d in ([dims] if isinstance(dims, int) else dims)}
                if dims & {0, len(before) - 1 if last else 1}:
                    refuse(node, "it averages over the batch or the channels")
            elif kind in ("flatten", "view", "reshape", "squeeze") and before != after and last is not None:
                if last or after != (before[0], math.prod(before[1:])):
                    refuse(node, "it mixes the channels with other dimensions")
                block *= math.prod(before[2:])
            elif kind not in _CHANNELWISE and kind not in ("flatten", "view", "reshape", "squeeze"):
                refuse(node, "no convolution, linear layer, norm, elementwise function, pooling, flatten or addition")
            elif last and "pool" in kind and len(before) > 2:
                refuse(node, "it pools over the channels")
            where[node] = space, block, last

    found = {}
    for role, space, slot in slots:
        entry = found.setdefault(find(space), {"producer": {}, "norm": {}, "consumer": {}})
        entry[role].setdefault(slot.module, slot)
    groups = []
    for space, entry in found.items():
        producers, norms, consumers = (tuple(entry[role].values()) for role in ("producer", "norm", "consumer"))
        if space != 0 and producers and consumers:
            groups.append(NeuronGroup(producers[0].name, len(producers[0].module.weight), producers, norms, consumers))
    order = {node.target: k for k, node in reversed(list(enumerate(graph.nodes)))}
    return sorted(groups, key=lambda group: order[group.name])


def _kind(node, modules) -> str:
    """What a node does, one name for module, function and method: MaxPool2d, max_pool2d -> maxpool2d."""
    target = type(modules[node.target]) if node.op == "call_module" else node.target
    return (target if isinstance(target, str) else target.__name__).lower().replace("_", "")


def _trace(model: nn.Module, example: Tensor):
    """The fx graph of `model` and the shape of every tensor in it, leaving the model as it was."""
    from torch.fx.passes.shape_prop import ShapeProp

    modes = {module: module.training for module in model.modules()}
    model.eval()  # so that the pass changes no running statistics
    try:
        traced = torch.fx.symbolic_trace(model)
        with torch.no_grad():
            ShapeProp(traced).propagate(example)
    except (RuntimeError, ValueError, TypeError, torch.fx.proxy.TraceError) as error:
        raise ValueError(f"torch.fx can't trace {type(model).__name__}: {str(error).splitlines()[0]}") from None
    finally:
        for module, training in modes.items():
            module.training = training
    shapes = {}
    for node in traced.graph.nodes:
        meta = node.meta.get("tensor_meta")
        if hasattr(meta, "shape"):
            shapes[node] = tuple(meta.shape)
    return traced.graph, shapes


def _pair_layers(calls) -> list[NeuronGroup]:
    layers = [
        (name, module)
        for name, module in calls
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and "downsample" not in name
    ]
    groups = []
    for (name, module), (next_name, following) in zip(layers, layers[1:], strict=False):
        size = len(module.weight)
        block, rest = divmod(following.weight.shape[1], size)
        if rest:
            raise ValueError(f"the paper's pairing can't join {name} ({size} neurons) to {next_name}")
        groups.append(NeuronGroup(name, size, (Slot(name, module),), (), (Slot(next_name, following, block),)))
    return groups


def collapse_report(
    model: nn.Module,
    example: Tensor,
    vanishing: float = 0.1,
    redundant: float = 0.1,
    pairing: str = "graph",
    incoming_mask: bool = False,
) -> list[dict]:
    """How far each group of neurons has collapsed: a row (dict) per group of `neuron_groups`.

    `width` = `vanishing` + `redundant` + `independent` neurons; `fraction` = independent / width;
    `effective_rank` of all the group's vectors. `incoming_mask` takes the vanishing norm over the
    incoming weights alone, as the published figures did (E1).
    """
    rows = []
    for group in neuron_groups(model, example, pairing):
        vectors = group.vectors()
        norms = torch.linalg.vector_norm(group.incoming(), dim=1, dtype=torch.float64) if incoming_mask else None
        vanished, independent = _count(vectors, vanishing, redundant, norms)
        rows.append(
            {
                "name": group.name,
                "width": group.size,
                "vanishing": vanished,
                "redundant": group.size - vanished - independent,
                "independent": independent,
                "fraction": independent / group.size,
                "effective_rank": effective_rank(vectors),
            }
        )
    return rows


# ======================================================================================
# scripts: the porch through which every experiment is started and its results leave
# ======================================================================================


def write_json(path: str | Path, content: dict) -> None:
    """Write `content` to `path` atomically: whoever reads the file sees the old one or the new one.

    Tensors become lists; numbers keep 6 significant digits; NaN and infinities become null.
    """

    def plain(value):
        if isinstance(value, Tensor | np.ndarray | np.generic):
            value = value.tolist()
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        return value

    path = Path(path)
    text = json.dumps(plain(content), allow_nan=False)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def environment(device: torch.device | str, seconds: float) -> dict:
    """What a result file says of where its numbers come from."""
    device = torch.device(device)
    is_cuda = device.type == "cuda"
    peak = 0.0
    if sys.platform != "win32":
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "peak_memory_mib": round(peak),
    }


def pick_device(name: str) -> torch.device:
    """The device for --device: auto takes a CUDA GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA GPU here; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: torch sees no Apple GPU here; use --device cpu")
    return torch.device(name)


def run_script(document: str, experiments: dict, quick: dict, argv: list[str] | None = None, prefix: str = "") -> None:
    """Run the experiments named on the command line and save `<out>/<prefix><experiment>.json` after each.

    `document` is the script's docstring, for --help. `experiments`: name -> function with keyword
    settings, `seed` and `device` among them, whose defaults are the paper's; it returns the
    measured arrays. `quick`: name -> the settings that --quick replaces. Bad input ends in one
    line on stderr and exit code 2.
    """
    summary, _, details = document.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(experiments)
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"which: {', '.join(names)} (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where to compute")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the results (default: results)")
    parser.add_argument("--quick", action="store_true", help="a small version of everything, into <out>/quick/")
    args = parser.parse_args(argv)
    unknown = [name for name in args.experiments if name not in experiments]
    if unknown:
        parser.error(f"unknown experiment {', '.join(unknown)}: choose from {', '.join(names)}")
    out = args.out / "quick" if args.quick else args.out
    try:
        device = pick_device(args.device)
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # find out now, not after the work
    except OSError as error:
        parser.error(f"can't write to --out {out}: {error.strerror or error}")
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # loops of small tensors: a second thread costs far more than it brings
    torch.set_flush_denormal(True)
    for name in args.experiments or names:
        function = experiments[name]
        settings = {key: p.default for key, p in inspect.signature(function).parameters.items()}
        settings |= (quick[name] if args.quick else {}) | {"seed": args.seed}
        start = time.perf_counter()
        try:
            measured = function(**settings | {"device": device})
            seconds = time.perf_counter() - start
            del settings["device"]
            result = {
                "experiment": name,
                "quick": args.quick,
                "command": f"python {Path(sys.argv[0]).name} {name} --seed {args.seed}" + " --quick" * args.quick,
                "settings": settings,
                "environment": environment(device, seconds),
            }
            write_json(out / f"{prefix}{name}.json", result | measured)
        except (ValueError, OSError) as error:
            parser.error(f"{name}: {error}")
        except KeyboardInterrupt:
            parser.exit(130, f"\n{parser.prog}: {name} interrupted, nothing of it saved; earlier results are whole\n")
        print(f"{name}: {seconds:.1f} s, {out / (prefix + name)}.json", flush=True)
