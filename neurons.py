"""What belongs to a neuron: its parameters, the one it merges into, what it adds to the loss; and trained networks.

The room behind subnetworks.py, extraction.py and exponents.py, on top of `core.neuron_groups`.
"""

import contextlib
import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

import core
from collapse import NeuronGroup, Slot, check_thresholds, mode_of, near_pairs, node_kind, symbolic, trace
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


def check_followed(slot: Slot, verb: str) -> None:
    """Raises ValueError, naming the layer, where neurons aren't single rows of parameters of the layer's own."""
    if isinstance(slot.module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        raise ValueError(f"can't {verb} {slot.name}: it normalises its neurons together")
    for name in ("weight", "bias"):
        if getattr(slot.module, name, None) is not None and name not in slot.module._parameters:
            raise ValueError(f"can't {verb} {slot.name}: its {name} is computed from other parameters")


def clusters(group: NeuronGroup, vanishing: float, redundant: float) -> tuple[Tensor, Tensor]:
    """(gone [n], home [n]): which neurons have vanished, and into which one each neuron merges (itself: it stays).

    As the paper counts (`core.independent_neurons`): a neuron follows the first earlier one within
    `redundant`, unless others follow it. A batch norm has two vanishing sets, gain, offset and outgoing
    weights zero, or incoming weights, offset and outgoing weights zero, and there a neuron must also be silent: what it
    still says is its offset, which must be below `vanishing` times the largest gain. One neuron always stays.
    Raises ValueError for NaN or infinite parameters and impossible thresholds.
    """
    check_thresholds(vanishing, redundant)
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
    vectors = group.vectors()[left]
    near = near_pairs(vectors, total[left].sqrt().to(vectors.dtype), redundant)
    follows, parent = near.any(0), near.int().argmax(0)  # argmax: the first
    follows[parent[follows]] = False
    home = torch.arange(group.size, device=gone.device)
    home[left[follows]] = left[parent[follows]]
    return gone, home


def on_invariant_sets(model: nn.Module, plans: list) -> nn.Module:
    """A copy with neurons put onto invariant sets: merged ones at their mean, vanished ones without outgoing weights.

    `plans`: (group, gone, home, ...) as `clusters` finds them. What comes in is averaged (rows, norms' parameters,
    running statistics). Raises ValueError for a network that can't be copied.
    """
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(f"can't copy {type(model).__name__}: {str(error).splitlines()[0]}") from None
    for group, gone, home, *_ in plans:
        for slot in (*group.producers, *group.norms):
            module = copied.get_submodule(slot.name)
            for old in (*module._parameters.values(), *module._buffers.values()):
                if old is not None and old.ndim:
                    rows = old.detach().reshape(group.size, -1)
                    sums = torch.zeros_like(rows).index_add_(0, home, rows)
                    mean = sums / torch.bincount(home, minlength=group.size).clamp_min(1)[:, None].to(sums.dtype)
                    old.detach().copy_(mean[home].reshape(old.shape))
        for slot in group.consumers:
            weight = copied.get_submodule(slot.name).weight.detach()
            columns = torch.where(gone[:, None], 0, weight.reshape(len(weight), group.size, -1))
            weight.copy_(columns.reshape(weight.shape))
    return copied


def check_same(whole: nn.Module, smaller: nn.Module, example: Tensor) -> None:
    """Raises ValueError unless two networks compute the same in eval mode, on inputs like the example.

    They don't where the network's code holds a size, or reads one off its tensors.
    """
    inputs = torch.randn_like(example) if example.is_floating_point() else example
    place = type(whole).__name__
    try:
        with mode_of(whole, training=False), mode_of(smaller, training=False), torch.no_grad():
            before = tree_leaves(whole(inputs))
            after = tree_leaves(torch.fx.Interpreter(symbolic(smaller)).run(inputs))
    except Exception as error:
        words, _, node = str(error).partition("While executing ")
        why = " fails: ".join([*node.splitlines()[:1], *(words.strip().splitlines()[:1] or [type(error).__name__])])
        raise ValueError(f"the smaller network doesn't run, a size is written into {place}'s code: {why}") from None
    for one, other in zip(before, after, strict=True):
        if isinstance(one, Tensor) and one.is_floating_point():
            near = torch.finfo(one.dtype).eps ** 0.5 * one.abs().max()
            if one.shape != other.shape or not (one - other).abs().max() <= near:
                raise ValueError(f"the smaller network is another function: {place}'s code uses the size of a layer")


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


def as_trained(model: nn.Module) -> contextlib.AbstractContextManager:
    """The model in the mode it is trained in: modules that were set to eval in a training model stay so."""
    return contextlib.nullcontext() if model.training else mode_of(model, training=True)


RESHAPES = ("flatten", "view", "reshape", "squeeze")


def channel_nodes(model: nn.Module, group: NeuronGroup, example: Tensor) -> list:
    """The fx nodes, in order, that the group's channels run through, from producers to consumers.

    Raises ValueError, naming the layer, where a neuron's channel is not its own.
    """
    modules = dict(model.named_modules())
    graph, shapes = trace(model, example)
    first, last = ({slot.name for slot in slots} for slots in (group.producers, group.consumers))

    def refuse(name, why):
        raise ValueError(f"collapse_exponent can't follow {name}: {why}")

    def path(graph, tensors):
        nodes = []
        for node in graph.nodes:
            called = node.op == "call_module"
            fed = any(p in nodes and not (p.op == "call_module" and p.target in last) for p in node.all_input_nodes)
            if (called and node.target in first) or (fed and node.op != "output" and node.name in tensors):
                nodes.append(node)
        return nodes

    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for slot in (*group.producers, *group.norms, *group.consumers):
        if calls.count(slot.name) > 1 or slot.name in first & last:
            refuse(slot.name, "a group of neurons runs through it twice")
        check_followed(slot, "predict through")
    nodes = path(graph, {node.name for node in shapes})
    for node in nodes:
        module = modules[node.target] if node.op == "call_module" else None
        kind = node_kind(node, modules)
        if ("dropout" in kind or "stochasticdepth" in kind) and getattr(module, "p", 1) > 0:
            refuse(node.target if module else node.name, "it drops each neuron by itself")
        own = kind in RESHAPES or (module and node.target in first)
        if not own and any(parent not in nodes for parent in node.all_input_nodes):
            refuse(node.target if module else node.name, "it takes a size or a tensor from outside the group")
    with as_trained(model):
        for slot in group.norms:
            if isinstance(slot.module, _BatchNorm) and not slot.module.training:
                refuse(slot.name, "its statistics are frozen (eval mode)")
        try:
            graph = symbolic(model).graph
        except Exception as error:
            raise ValueError(f"torch.fx can't trace {type(model).__name__} in training mode: {error}") from None
    if [str(n.format_node()) for n in path(graph, {n.name for n in shapes})] != [str(n.format_node()) for n in nodes]:
        refuse(group.name, "its neurons run otherwise in training mode (a functional dropout?)")
    return nodes


def behind_batch_norm(nodes: list, modules: dict, group: NeuronGroup) -> set[str]:
    """The group's producers whose channels reach the consumers through batch norms alone."""
    last, found = {slot.name for slot in group.consumers}, set()

    def reaches(node):
        called = node.op == "call_module"
        if called and node.target in last:
            return True
        return not isinstance(modules.get(node.target) if called else None, _BatchNorm) and any(
            map(reaches, (user for user in node.users if user in nodes))
        )

    for node in nodes:
        if node.op == "call_module" and node.target in {slot.name for slot in group.producers} and not reaches(node):
            found.add(node.target)
    return found


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
        name = node.target if node.op == "call_module" else None
        module, kind = modules.get(name), node_kind(node, modules)
        weight, bias = (parts.get((name, what)) for what in ("weight", "bias"))
        x = next((values[parent] for parent in node.all_input_nodes if parent in values), None)
        if (name, "columns") in parts:
            columns = parts[name, "columns"].transpose(0, 1).flatten(1, 2)
            total = total + (layer(module, x, columns) * gradients[name]).sum()
        elif isinstance(module, _BatchNorm):
            values[node] = F.batch_norm(x, None, None, flat(weight), flat(bias), True, 0.0, module.eps)
        elif isinstance(module, nn.PReLU):
            values[node] = F.prelu(x, module.weight if weight is None else flat(weight))
        elif weight is not None:
            values[node] = layer(module, inputs[name], weight, bias)
        elif kind in RESHAPES:  # its sizes are written for all neurons: neuron_groups has found it to be this
            values[node] = x.flatten(1) if len(node.meta["tensor_meta"].shape) < x.ndim else x
        else:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.get)
            act = getattr(type(x), node.target) if node.op == "call_method" else module or node.target
            values[node] = act(*args, **kwargs)
    return total


def tangent_step(delta: Tensor, speed: Tensor, before: Tensor, product: Tensor, rate, momentum, decay):
    """One step of small distances [sets, d] and their velocities, `product` the Hessian times delta.

    Returns the next (delta, speed, kick), scaled to |delta| = 1, and per set: growth of log|delta|, its parts by
    curvature, noise and decay, and the log length of the slow variable before the step. `before`: the last kick.
    """
    # The slow variable of SGD: where its velocity will have carried delta; it moves by -eta (H + decay) delta
    eta = rate / (1 - momentum)
    slow = delta - eta * momentum * speed
    ahead = slow.norm(dim=1)
    slow, kick = slow / ahead[:, None], eta * product / ahead[:, None]
    q, change = (slow * kick).sum(1), kick - before
    second = kick.square().sum(1) / 2 - q.square()
    noise = change.square().sum(1) / 4 - (q - (slow * before).sum(1)).square() / 2
    lost = -eta * decay * (slow * delta).sum(1) / ahead
    speed = momentum * speed + product + decay * delta
    delta = delta - rate * speed
    size = delta.norm(dim=1)
    state = delta / size[:, None], speed / size[:, None], kick
    return state, (size.log(), second - noise - q, noise, lost, ahead.log())


# ======================================================================================
# Trained networks
# ======================================================================================


def trained_network(folder: Path, step: int | None, device) -> tuple[Run, nn.Module]:
    """Settings and network of a run directory: its weights of that step, or those at its end (or where it is)."""
    try:
        settings = json.loads((folder / "settings.json").read_text())
        run = Run(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
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
