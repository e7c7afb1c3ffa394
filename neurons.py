"""What belongs to a neuron: its parameters, the one it merges into, what it adds to the loss; and trained networks.

The room behind subnetworks.py, extraction.py and exponents.py, on top of `core.neuron_groups`.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

import core
from collapse import NeuronGroup, near_pairs, neuron_groups
from training import Images, Run, load_state


def neuron_parts(group: NeuronGroup, pick=lambda parameter: parameter.detach()) -> dict[tuple[str, str], Tensor]:
    """{(layer, what): [neurons, ...]}: each neuron's part of what `pick` makes of every parameter of the group."""
    parts = {}
    for slot in (*group.producers, *group.norms):
        for name in ("weight", "bias"):
            if getattr(slot.module, name, None) is not None:
                value = pick(getattr(slot.module, name))
                parts[slot.name, name] = value if slot.block == 1 else value.reshape(group.size, slot.block)
    for slot in group.consumers:
        weight = pick(slot.module.weight)
        columns = weight.reshape(len(weight), group.size, slot.block, *weight.shape[2:])
        parts[slot.name, "columns"] = columns.transpose(0, 1)
    return parts


def clusters(group: NeuronGroup, vanishing: float, redundant: float) -> tuple[Tensor, Tensor]:
    """(gone [n], home [n]): which neurons have vanished, and into which one each neuron merges (itself: it stays).

    As the paper counts (`core.independent_neurons`): a neuron follows the first earlier one within
    `redundant`, unless others follow it. A batch norm has two vanishing sets, gain, offset and outgoing
    weights zero, or incoming weights, offset and outgoing weights zero, and there a neuron must also be silent: what it
    still says is its offset, which must be below `vanishing` times the largest gain. One neuron always stays.
    Raises ValueError for NaN or infinite parameters.
    """
    squares = {
        key: torch.linalg.vector_norm(part.reshape(group.size, -1), dim=1, dtype=torch.float64).square()
        for key, part in neuron_parts(group).items()
    }
    if not all(square.isfinite().all() for square in squares.values()):
        raise ValueError(f"the neurons of {group.name} hold NaN or infinite values: the network has diverged")
    norms = [slot for slot in group.norms if isinstance(slot.module, _BatchNorm) and slot.module.affine]
    gains = [key for key in squares if key[1] == "weight" and key[0] in {slot.name for slot in norms}]
    rows = [key for key in squares if key[1] != "columns" and key[0] in {slot.name for slot in group.producers}]
    total, gone = sum(squares.values()), False
    for rest in ([], gains, rows) if norms and len(norms) >= len(group.producers) else ([],):
        sizes = (total - sum(squares[key] for key in rest)).clamp_min(0).sqrt()
        gone |= (sizes < vanishing * sizes.max()) | (sizes == 0)
    for slot in norms:
        gone &= (
            slot.module.bias.detach().abs().reshape(group.size, -1).amax(1)
            <= vanishing * slot.module.weight.detach().abs().max()
        )
    gone[total.argmax()] = False
    left = (~gone).nonzero()[:, 0]
    near = near_pairs(group.vectors()[left], total[left].sqrt().to(group.vectors().dtype), redundant)
    follows, parent = near.any(0), near.int().argmax(0)  # argmax: the first
    follows[parent[follows]] = False
    home = torch.arange(group.size, device=gone.device)
    home[left[follows]] = left[parent[follows]]
    return gone, home


def plant_collapse(model: nn.Module, example: Tensor, seed: int = 0) -> int:
    """Put a network onto invariant sets: in each group a quarter of the neurons vanish, a quarter copy others.

    Changes `model` and returns how many neurons it has lost so. To try things on.
    """
    generator, lost = torch.Generator().manual_seed(seed), 0
    for group in neuron_groups(model, example):
        quarter = group.size // 4
        gone, copies, originals = torch.randperm(group.size, generator=generator)[: 3 * quarter].view(3, quarter)
        tensors = [
            tensor.detach().view(group.size, -1)
            for slot in (*group.producers, *group.norms)
            for tensor in (*slot.module._parameters.values(), *slot.module._buffers.values())
            if tensor is not None and tensor.ndim
        ]
        for slot in group.consumers:
            weight = slot.module.weight.detach()
            tensors.append(weight.view(len(weight), group.size, -1).transpose(0, 1))
        for tensor in tensors:
            tensor[copies], tensor[gone] = tensor[originals], 0.0
        lost += 2 * quarter
    return lost


# ======================================================================================
# The loss as a function of neurons near an invariant set
# ======================================================================================
#
# Let a neuron have parameters t (incoming, norms, outgoing), and let s(t) = <g, its part of the consumers' outputs>, g
# the loss gradient there. A neuron at distance d from the set t = 0 adds s(d) to the loss, a pair at t + d and
# t - d adds s(t + d) + s(t - d), up to terms of d^3: these changes are themselves of order d^2, so that all that
# follows enters by g alone. The Hessian of a batch normal to the set is that of s, and pairs have no cross terms
# (swapping the two of one pair changes the sign of its d and of no other). So all the sets of a group
# are channels of one small network, and a jvp of its gradient moves them all.


def channel_nodes(model: nn.Module, group: NeuronGroup) -> list:
    """The fx nodes, in order, that the group's channels run through, from producers to consumers.

    Raises ValueError, naming the layer, where a neuron's channel is not its own.
    """
    graph = torch.fx.symbolic_trace(model).graph
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    first, last = ({slot.name for slot in slots} for slots in (group.producers, group.consumers))
    for slot in (*group.producers, *group.norms, *group.consumers):
        if calls.count(slot.name) > 1 or slot.name in first & last:
            raise ValueError(f"collapse_exponent can't follow {slot.name}: a group of neurons runs through it twice")
        if isinstance(slot.module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            raise ValueError(f"collapse_exponent can't follow {slot.name}: it couples the neurons it normalises")
    nodes = []
    for node in graph.nodes:
        fed = any(parent in nodes and parent.target not in last for parent in node.all_input_nodes)
        if node.target in first or (fed and node.op != "output"):
            nodes.append(node)
            module = model.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise ValueError(f"collapse_exponent can't follow {node.target}: it drops each neuron by itself")
    return nodes


def contribution(vectors: Tensor, shapes: dict, nodes: list, modules: dict, inputs: dict, gradients: dict) -> Tensor:
    """Sum of s(t) over the sets, t the rows of `vectors` [sets, d] (of `shapes`, flattened), for a batch's x and g."""

    def layer(module, x, weight, bias=None):
        return F.linear(x, weight, bias) if isinstance(module, nn.Linear) else module._conv_forward(x, weight, bias)

    def flat(part):
        return None if part is None else part.flatten()

    parts = vectors.split([math.prod(shape) for shape in shapes.values()], 1)
    parts = {key: part.reshape(-1, *shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}
    values, total = {}, 0.0
    for node in nodes:
        module = modules[node.target] if node.op == "call_module" else None
        weight, bias = (parts.get((node.target, name)) for name in ("weight", "bias"))
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.get)
        if (node.target, "columns") in parts:
            columns = parts[node.target, "columns"].transpose(0, 1).flatten(1, 2)
            total = total + (layer(module, args[0], columns) * gradients[node.target]).sum()
        elif isinstance(module, _BatchNorm):
            values[node] = F.batch_norm(args[0], None, None, flat(weight), flat(bias), True, 0.0, module.eps)
        elif isinstance(module, nn.PReLU):
            values[node] = F.prelu(args[0], module.weight if weight is None else flat(weight))
        elif weight is not None:
            values[node] = layer(module, inputs[node.target], weight, bias)
        else:
            act = getattr(type(args[0]), node.target) if node.op == "call_method" else module or node.target
            values[node] = act(*args, **kwargs)
    return total


# ======================================================================================
# Trained networks, and what they cost
# ======================================================================================


def trained_network(folder: Path, step: int | None, device) -> tuple[Run, nn.Module]:
    """Settings and network of a run directory: its weights of that step, or those at its end (or where it is)."""
    try:
        run = Run(**json.loads((folder / "settings.json").read_text()))
        found = {int(path.stem.split("_")[1]): path for path in folder.glob("weights_*.pt")}
        path = found[run.steps if step is None else step] if found else folder / "checkpoint.pt"
        weights = load_state(path, device)
        weights = weights["model"] if path.name == "checkpoint.pt" else weights
        model = getattr(core, run.model)(next(reversed(weights.values())).shape[0], run.width).to(device)
        model.load_state_dict(weights)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder} is no run directory with weights of that step ({str(error)[:200]})") from None
    return run, model


def step_batches(images: Images, run: Run, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The very batches of these training steps: (images [B, 3, 32, 32], labels [B])."""
    epoch, size = -1, run.batch_size
    for step in range(first, last):
        if step // (len(images.train) // size) != epoch:
            epoch = step // (len(images.train) // size)
            crops, labels = images.epoch(run, epoch)
        start = step % (len(images.train) // size) * size
        yield images.normalized(images.batch(crops[start : start + size])), labels[start : start + size]


def sgd_of(model: nn.Module, run: Run) -> torch.optim.SGD:
    """The optimizer of a run, without the momentum it had."""
    return torch.optim.SGD(model.parameters(), run.learning_rate, run.momentum, weight_decay=run.weight_decay)


def cost(model: nn.Module, images: Tensor) -> dict:
    """Parameters, FLOPs (two per multiply-add) and milliseconds per image (least of five rounds), in eval mode."""
    times = []
    with torch.no_grad():
        model.eval()
        with FlopCounterMode(display=False) as counter:
            model(images[:1])
        for _ in range(5):
            start = time.perf_counter()
            model(images).sum().item()
            times.append(time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "flops": counter.get_total_flops(), "ms": 1000 * min(times) / len(images)}
