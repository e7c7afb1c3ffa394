"""Neurons of any network: which parameters belong to which neuron, through norms and residual streams.

`neuron_groups` is part of core's collapse metrics (import it from there); it follows a torch.fx
trace of the network and needs nothing else of the house.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


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
    for (name, module), (next_name, following) in itertools.pairwise(layers):
        size = len(module.weight)
        block, rest = divmod(following.weight.shape[1], size)
        if rest:
            raise ValueError(f"the paper's pairing can't join {name} ({size} neurons) to {next_name}")
        groups.append(NeuronGroup(name, size, (Slot(name, module),), (), (Slot(next_name, following, block),)))
    return groups
