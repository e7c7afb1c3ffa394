"""Predict: the top Lyapunov exponent of SGD normal to an invariant set of a network, from its own batches.

Let a neuron have parameters t (incoming, norms, outgoing), and let s(t) = <g, its part of the consumers' outputs>, g
the loss gradient there. A neuron at distance d from the set t = 0 adds s(d) to the loss, a pair at t + d and
t - d adds s(t + d) + s(t - d), up to terms of d^3: these changes are themselves of order d^2, so that all that
follows enters by g alone. The Hessian of a batch normal to the set is that of s, and pairs have no cross terms
(swapping the two of one pair changes the sign of its d and of no other). So all the sets of a group
are channels of one small network, and one Hessian-vector product of its s moves them all.
"""

import contextlib
import inspect
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import grad, jvp
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from collapse.errors import CollapseError
from collapse.metrics import normalized_distances
from collapse.neurons import NeuronGroup, Slot, neuron_groups
from collapse.trace import check_finite, cloned, evaluating, undone, unwrapped

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
PLAIN = (bool, int, float, str)
RESHAPES = ("flatten", "unflatten", "view", "reshape", "squeeze")


def nearest_pairs(group: NeuronGroup, count: int) -> Tensor:
    """[count, 2]: the pairs of neurons that are nearest to each other, by normalised distance; only exchangeable ones.

    All of them where there are fewer. Raises CollapseError for NaN parameters and a `count` below 1.
    """
    if count < 1:
        raise CollapseError(f"nearest_pairs needs a count of at least 1, not {count}")
    distances = normalized_distances(group.vectors())
    part = group.part.to(distances.device)
    distances[part[:, None] != part] = math.inf
    distances[torch.ones_like(distances, dtype=torch.bool).tril()] = math.inf  # each pair once, none with itself
    nearest = distances.flatten().topk(min(count, distances.numel()), largest=False)
    places = nearest.indices[nearest.values.isfinite()]
    return torch.stack([places // group.size, places % group.size], 1)


def refuse(name: str, why: str):
    raise CollapseError(f"collapse_exponent can't follow {name}: {why}")


# ======================================================================================
# The optimizer
# ======================================================================================


class Settings(NamedTuple):
    """How SGD moves one parameter."""

    rate: float
    momentum: float
    decay: float
    nesterov: bool


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raises CollapseError for an optimizer whose steps aren't linear in a small distance to an invariant set."""
    name = type(optimizer).__name__
    if type(optimizer) is not torch.optim.SGD:
        raise CollapseError(
            f"collapse_exponent linearises steps of torch.optim.SGD, not {name}: an adaptive optimizer divides by past "
            "gradients, which shrink with the distance to an invariant set, so that its steps aren't linear in it"
        )
    for group in optimizer.param_groups:
        for option in ("dampening", "maximize"):
            if group.get(option):
                raise CollapseError(f"collapse_exponent can't take SGD with {option}={group[option]}")


def current_settings(optimizer: torch.optim.SGD) -> dict[int, Settings]:
    """{id of a parameter: its settings at this step}; raises CollapseError for values that SGD can't have."""
    found = {}
    for group in optimizer.param_groups:
        settings = Settings(
            float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]), bool(group["nesterov"])
        )
        if not (math.isfinite(settings.rate) and settings.rate >= 0):
            raise CollapseError(f"collapse_exponent needs a finite learning rate, not {settings.rate}")
        if not 0 <= settings.momentum < 1:
            raise CollapseError(f"collapse_exponent needs a momentum from 0 to below 1, not {settings.momentum}")
        if not math.isfinite(settings.decay):
            raise CollapseError(f"collapse_exponent needs a finite weight decay, not {settings.decay}")
        for parameter in group["params"]:
            found[id(parameter)] = settings
    return found


# ======================================================================================
# The channels of a group, followed by torch.fx
# ======================================================================================


@contextlib.contextmanager
def as_trained(model: nn.Module):
    """The model in the mode it is trained in, by its own `train`; a training model stays as it is, with all its parts.

    A network's own `train` may do more than set modes (split a weight that was merged), and its `eval` undoes it.
    """
    if model.training:
        yield
        return
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
    except TypeError as error:
        raise CollapseError(f"{type(model).__name__}.train() fails, put it in training mode first: {error}") from None
    try:
        yield
    finally:
        model.eval()
        for module, was in modes.items():
            module.training = was


class Part(NamedTuple):
    """A module that holds all layers of a group and runs once, and what it was called with."""

    name: str
    module: nn.Module
    arguments: dict[str, object]  # of its forward, by name


def common_start(paths: list[list[str]]) -> list[str]:
    """The folders that all paths begin with."""
    start = []
    for names in zip(*paths, strict=False):
        if len(set(names)) > 1:
            break
        start.append(names[0])
    return start


def smallest_part(model: nn.Module, group: NeuronGroup, example: Tensor) -> Part:
    """The smallest part of the network that a group runs in: what is around it may be written as it likes."""
    common = common_start([slot.name.split(".")[:-1] for slot in group.slots])
    names = [".".join(common[:length]) for length in range(len(common), -1, -1)]
    calls = {name: [] for name in names}

    def keeps(name: str):
        def hook(module, args, kwargs):
            calls[name].append((args, kwargs))

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(keeps(name), with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))  # the pass changes no running statistics
        stack.enter_context(torch.no_grad())
        model(cloned(example))
    name = next(name for name in names if len(calls[name]) == 1)  # "" is the network itself, which has run once
    module = model.get_submodule(name)
    args, kwargs = calls[name][0]
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return Part(name, module, dict(bound.arguments))


def symbolic(part: Part) -> fx.GraphModule:
    """torch.fx's view of a part in its present mode, for the values of the arguments that are no tensors.

    Nodes that call a module have its name in the network as "layer" in their meta.
    """
    plain = {name: value for name, value in part.arguments.items() if value is None or isinstance(value, PLAIN)}
    try:
        traced = fx.symbolic_trace(part.module, plain)
    except Exception as error:  # whatever the network's code raises
        mode = "training" if part.module.training else "eval"
        why = (str(error).splitlines() or [type(error).__name__])[0]
        place = type(part.module).__name__ + (f" ({part.name})" if part.name else "")
        raise CollapseError(f"torch.fx can't trace {place} in {mode} mode, as collapse_exponent must: {why}") from None
    for node in traced.graph.nodes:
        if node.op == "call_module":
            node.meta["layer"] = f"{part.name}.{node.target}".lstrip(".")
    return traced


def graph_of(model: nn.Module, part: Part) -> fx.Graph:
    """The graph of a part in eval mode; nodes that compute a tensor have its shape in their meta."""
    with evaluating(model), torch.no_grad():
        traced = symbolic(part)
        with contextlib.redirect_stderr(io.StringIO()):  # on trouble ShapeProp prints a traceback
            try:
                ShapeProp(traced).propagate(*part.arguments.values())
            except Exception as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                raise CollapseError(f"torch.fx can't run {type(part.module).__name__}: {why}") from None
    return traced.graph


def layer_of(node: fx.Node) -> str | None:
    """The name of the module that a node calls."""
    return node.meta.get("layer")


def node_kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """What a node does, one name for module, function and method: MaxPool2d, max_pool2d -> maxpool2d."""
    target = node.target
    if node.op == "call_module":
        target = type(modules[layer_of(node)])
    name = target if isinstance(target, str) else target.__name__
    return name.lower().replace("_", "")


def names_of(slots: Iterable[Slot]) -> set[str]:
    return {slot.name for slot in slots}


def check_slots(group: NeuronGroup, graph: fx.Graph) -> None:
    """Raises CollapseError, naming the layer, unless each neuron is single rows and columns of layers called once."""
    if group.coupled:
        raise CollapseError(f"collapse_exponent can't follow {group.coupled}")
    if group.kind != "neuron":
        refuse(group.name, f"{group.kind} neurons of an attention")
    calls = [layer_of(node) for node in graph.nodes if node.op == "call_module"]
    twice = names_of(group.producers) & names_of(group.consumers)
    for slot in (*group.producers, *group.norms, *group.consumers):
        module = slot.module
        if calls.count(slot.name) > 1 or slot.name in twice:
            refuse(slot.name, "a group of neurons runs through it twice")
        if slot.computed:
            refuse(slot.name, f"its {slot.parameter} is computed from other parameters")
        is_norm = slot.role == "through" and isinstance(module, _BatchNorm | nn.PReLU)
        is_layer = slot.role != "through" and isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1
        if slot.name not in calls or not (is_norm or is_layer):
            refuse(slot.name or slot.parameter, "no convolution without groups, linear layer, batch norm or PReLU")
        on_its_axis = torch.arange(group.size * slot.block, device="cpu").view(group.size, slot.block)
        if not torch.equal(slot.index.cpu(), on_its_axis):
            refuse(slot.name, "it holds other channels beside those of the group")


def nodes_of_group(graph: fx.Graph, group: NeuronGroup, tensors: set[str]) -> list[fx.Node]:
    """The nodes, in order, that the group's channels run through, from producers to consumers.

    `tensors`: names of the nodes that compute a tensor.
    """
    producers, consumers = names_of(group.producers), names_of(group.consumers)
    found = []
    for node in graph.nodes:
        parents = [parent for parent in node.all_input_nodes if parent in found and layer_of(parent) not in consumers]
        carries_on = bool(parents) and node.op != "output" and node.name in tensors
        if layer_of(node) in producers or carries_on:
            found.append(node)
    return found


def channel_nodes(model: nn.Module, group: NeuronGroup, example: Tensor) -> list[fx.Node]:
    """`nodes_of_group` of the network as it is trained.

    Raises CollapseError, naming the layer, where a neuron's channel is not its own.
    """
    modules = dict(model.named_modules())
    part = smallest_part(model, group, example)
    graph = graph_of(model, part)
    check_slots(group, graph)
    tensors = {node.name for node in graph.nodes if hasattr(node.meta.get("tensor_meta"), "shape")}
    nodes = nodes_of_group(graph, group, tensors)
    reached = {layer_of(node) for node in nodes}
    for slot in (*group.norms, *group.consumers):
        if slot.name not in reached:
            refuse(slot.name, "torch.fx sees no way to it from the layers that make its neurons")
    for node in nodes:
        name = layer_of(node) or node.name
        kind = node_kind(node, modules)
        module = modules.get(layer_of(node))
        if ("dropout" in kind or "stochasticdepth" in kind) and getattr(module, "p", 1) > 0:
            refuse(name, "it drops each neuron by itself")
        reads_outside = any(parent not in nodes for parent in node.all_input_nodes)
        may_read_outside = kind in RESHAPES or layer_of(node) in names_of(group.producers)
        if reads_outside and not may_read_outside:
            refuse(name, "it takes a size or a tensor from outside the group")
    follow_channels(nodes, modules, group)
    with as_trained(model):
        for slot in group.norms:
            if isinstance(slot.module, _BatchNorm) and not slot.module.training:
                refuse(slot.name, "its statistics are frozen (eval mode)")
        in_training = nodes_of_group(symbolic(part).graph, group, tensors)
    if [str(node.format_node()) for node in in_training] != [str(node.format_node()) for node in nodes]:
        refuse(group.name, "its neurons run otherwise in training mode (a functional dropout?)")
    return nodes


class Reshape(NamedTuple):
    """What a reshape does to channels, however many there are."""

    axis: int  # of its input on which the channels lie
    keeps_lead: bool  # the axes before the channels stay as they are; else they become one
    block: int  # places that one channel takes on its new axis
    behind: tuple[int, ...]  # sizes of the axes behind the channels


def reshape_of(before: torch.Size, after: torch.Size, axis: int, channels: int) -> Reshape | None:
    """How channels on an axis of `before` lie in `after`; None where they are not whole blocks of one axis there."""
    ahead = math.prod(before[:axis])
    for place, size in enumerate(after):
        lead = after[:place]
        if math.prod(lead) != ahead or size % channels != 0:
            continue
        keeps_lead = lead == before[:axis]
        if keeps_lead or place == 1:
            return Reshape(axis, keeps_lead, size // channels, tuple(after[place + 1 :]))
    return None


def reshaped(x: Tensor, reshape: Reshape) -> Tensor:
    """A reshape that was written for all channels, on as many as `x` holds."""
    lead = x.shape[: reshape.axis]
    if not reshape.keeps_lead:
        lead = (math.prod(lead),)
    places_behind = math.prod(reshape.behind)
    width = math.prod(x.shape[reshape.axis :]) // places_behind
    return x.reshape(*lead, width, *reshape.behind)


def axis_of_channels(wider: torch.Size, own: torch.Size, channels: int) -> int | None:
    """The axis on which the channels lie, in blocks of one size, where one channel more makes `own` `wider`."""
    if len(wider) != len(own):
        return None
    longer = [axis for axis, size in enumerate(own) if wider[axis] != size]
    if len(longer) != 1:
        return None
    (axis,) = longer
    in_blocks = own[axis] % channels == 0 and wider[axis] == own[axis] // channels * (channels + 1)
    return axis if in_blocks else None


def follow_channels(nodes: list[fx.Node], modules: dict[str, nn.Module], group: NeuronGroup) -> None:
    """Give each reshape a `Reshape` in its meta; where channels lie is seen by one channel more than the group has.

    Raises CollapseError, naming the node, where a node doesn't run on another number of channels, or doesn't keep them
    apart on one axis.
    """
    own = {node: node.meta["tensor_meta"].shape for node in nodes}
    ends = names_of(group.consumers)
    wider = {}  # values of the nodes, zeros for the most part
    for node in nodes:
        name = layer_of(node)
        if name in ends:
            continue
        slots = [slot for slot in group.slots if slot.name == name]
        parents = [parent for parent in node.all_input_nodes if parent in wider]
        if slots and slots[0].role == "incoming":
            wider[node] = output_with_one_more(slots[0], own[node])
        elif slots:
            wider[node] = wider[parents[0]]
        elif node_kind(node, modules) in RESHAPES:
            before = own[parents[0]]
            axis = axis_of_channels(wider[parents[0]].shape, before, group.size)
            node.meta["reshape"] = reshape_of(before, own[node], axis, group.size)
            if node.meta["reshape"] is None:
                refuse(name or node.name, "it divides channels, or changes the axes before them")
            wider[node] = reshaped(wider[parents[0]], node.meta["reshape"])
        else:
            wider[node] = run_on_one_more(node, modules.get(name), wider)
        if axis_of_channels(wider[node].shape, own[node], group.size) is None:
            refuse(name or node.name, "it doesn't keep channels apart on one axis")


def output_with_one_more(slot: Slot, own: torch.Size) -> Tensor:
    """Zeros in the shape that a layer's output would have with one channel more; `own`: its shape."""
    positions = len(getattr(slot.module, "kernel_size", ()))  # axes behind the channels
    axis = len(own) - 1 - positions
    shape = list(own)
    shape[axis] += slot.block
    return slot.tensor.new_zeros(shape)


def run_on_one_more(node: fx.Node, module: nn.Module | None, wider: dict[fx.Node, Tensor]) -> Tensor:
    """A node on one channel more; raises CollapseError where a size in the network's code forbids it."""
    try:
        with torch.no_grad():
            return run_elementwise(node, module, wider)
    except Exception as error:  # whatever PyTorch raises
        why = (str(error).splitlines() or [type(error).__name__])[0]
        refuse(layer_of(node) or node.name, f"it runs on all channels at once alone ({why})")


def behind_batch_norm(nodes: list[fx.Node], modules: dict[str, nn.Module], group: NeuronGroup) -> set[str]:
    """The group's producers whose channels reach the consumers through batch norms alone."""
    consumers = names_of(group.consumers)

    def reaches_a_consumer(node: fx.Node) -> bool:
        if layer_of(node) in consumers:
            return True
        if isinstance(modules.get(layer_of(node)), _BatchNorm):
            return False
        return any(reaches_a_consumer(user) for user in node.users if user in nodes)

    producers = [node for node in nodes if layer_of(node) in names_of(group.producers)]
    return {layer_of(node) for node in producers if not reaches_a_consumer(node)}


# ======================================================================================
# The sets of one group
# ======================================================================================


class Nearest(NamedTuple):
    """Of each set: its point nearest to the neurons, and how far they are from it, both [sets, d]."""

    point: Tensor
    distance: Tensor


@dataclass(frozen=True, eq=False)
class GroupSets:
    """Invariant sets of one group: pairs of neurons that are equal, or neurons that have vanished."""

    group: NeuronGroup
    index: Tensor  # [sets, 2] pairs, or [sets] neurons
    nodes: list[fx.Node]  # what the channels run through
    modules: dict[str, nn.Module]
    parameters: dict[tuple, nn.Parameter]  # by the key of a slot, in the order of a neuron's vector
    shapes: dict[tuple, torch.Size]  # of one neuron's part of each: [block, ...]
    free: Tensor  # [d]: whether an entry is zero on the set (of pairs: their difference always is)

    @property
    def are_pairs(self) -> bool:
        return self.index.ndim == 2

    @property
    def lengths(self) -> list[int]:
        """How many entries of a neuron's vector each parameter has."""
        return [math.prod(shape) for shape in self.shapes.values()]

    def vectors(self, pick: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
        """[sets, 2, d] or [sets, d] of what `pick` makes of the neurons' parameters."""
        rows = [part[self.index].reshape(*self.index.shape, -1) for part in self.group.parts(pick).values()]
        return torch.cat(rows, -1)

    def nearest(self, pick: Callable[[Tensor], Tensor] = Tensor.detach) -> Nearest:
        vectors = self.vectors(pick)
        if self.are_pairs:
            mean = vectors.mean(1)
            return Nearest(mean, vectors[:, 0] - mean)
        return Nearest(vectors * ~self.free, vectors * self.free)

    def split(self, vectors: Tensor) -> dict[tuple, Tensor]:
        """{key of a slot: [sets, block, ...]} of vectors [sets, d]."""
        pieces = vectors.split(self.lengths, 1)
        return {key: piece.reshape(-1, *shape) for (key, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


def check_index(index: Tensor, group: NeuronGroup) -> Tensor:
    """The sets as a tensor; raises CollapseError unless they are pairs of exchangeable neurons, or neurons."""
    try:
        index = index if isinstance(index, Tensor) else torch.tensor(index, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise CollapseError(f"the sets of {group.name} must be a tensor, not {type(index).__name__}") from None
    integers = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
    if not integers or tuple(index.shape[1:]) not in ((), (2,)) or index.ndim == 0:
        raise CollapseError(f"the sets of {group.name} must be integers, [S, 2] pairs or [S] neurons")
    if len(index) == 0:
        raise CollapseError(f"there are no sets of {group.name}: leave it out, or give at least one pair or neuron")
    exist = bool(((index >= 0) & (index < group.size)).all())
    are_pairs = index.ndim == 2
    if not exist or (are_pairs and bool((index[:, 0] == index[:, 1]).any())):
        raise CollapseError(f"the sets of {group.name} must be of different neurons from 0 to {group.size - 1}")
    if are_pairs:
        parts = group.part[index.cpu()]
        if (parts[:, 0] != parts[:, 1]).any():
            raise CollapseError(f"the sets of {group.name} must be of neurons that are exchangeable (of the same part)")
    return index.long()


def group_sets(
    model: nn.Module, group: NeuronGroup, index: Tensor, example: Tensor, settings: dict[int, Settings]
) -> GroupSets:
    """The sets of one group, after all that could be wrong with them is checked."""
    index = check_index(index, group)
    modules = dict(model.named_modules())
    with undone(model):
        nodes = channel_nodes(model, group, example)
    normed = behind_batch_norm(nodes, modules, group)
    parameters, shapes, free = {}, {}, []
    for slot in (*group.producers, *group.norms, *group.consumers):
        parameter = slot.tensor
        if not parameter.requires_grad or id(parameter) not in settings:
            refuse(slot.name, "the optimizer doesn't train all of it")
        parameters[slot.key] = parameter
        shapes[slot.key] = slot.read(parameter.detach()).shape[1:]
        # Behind a batch norm gain, offset and outgoing weights are zero on the set of a vanished neuron, its rows not.
        is_zero_there = index.ndim == 2 or slot.role != "incoming" or slot.name not in normed
        free += [is_zero_there] * math.prod(shapes[slot.key])
    device = next(iter(parameters.values())).device
    free = torch.tensor(free, device=device)
    return GroupSets(group, index.to(device), nodes, modules, parameters, shapes, free)


# ======================================================================================
# The Hessian normal to the sets
# ======================================================================================


class Taps:
    """What a batch leaves at the ends of a group: inputs of its producers, loss gradients of its consumers' outputs."""

    def __init__(self):
        self.inputs: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def attached(self, all_sets: Iterable[GroupSets]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for sets in all_sets:
                for slot in sets.group.producers:
                    hook = self.keeps_input(slot.name)
                    stack.callback(slot.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                for slot in sets.group.consumers:
                    hook = self.keeps_gradient(slot.name)
                    stack.callback(slot.module.register_forward_hook(hook).remove)
            yield

    def keeps_input(self, name: str):
        def hook(module, args, kwargs):
            given = (*args, *kwargs.values())
            self.inputs[name] = given[0].detach()

        return hook

    def keeps_gradient(self, name: str):
        def keep(gradient):
            self.gradients[name] = gradient

        def hook(module, args, output):
            output.register_hook(keep)

        return hook


def apply_layer(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer or convolution with other weights."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    return module._conv_forward(x, weight, bias)  # with its stride and padding


def contribution(vectors: Tensor, sets: GroupSets, taps: Taps) -> Tensor:
    """Sum of s(t) over the sets, t the rows of `vectors` [sets, d], for the batch that the taps hold.

    The nodes of the network run again, on one channel a set.
    """
    parts = sets.split(vectors)
    values: dict[fx.Node, Tensor] = {}
    total = 0.0
    for node in sets.nodes:
        name = layer_of(node)
        module = sets.modules.get(name)
        known = [values[parent] for parent in node.all_input_nodes if parent in values]
        if (name, "weight", "outgoing") in parts:
            columns = parts[name, "weight", "outgoing"]  # [sets, block, outputs, ...]
            weight = columns.flatten(0, 1).movedim(0, 1)
            output = apply_layer(module, known[0], weight)
            if output.shape != taps.gradients[name].shape:  # else they are broadcast, to nonsense
                refuse(name, "it reads the channels by themselves in another shape")
            total = total + (output * taps.gradients[name]).sum()
        elif (name, "weight", "incoming") in parts:
            rows = parts[name, "weight", "incoming"]  # [sets, 1, inputs, ...]
            bias = parts.get((name, "bias", "incoming"))
            values[node] = apply_layer(
                module, taps.inputs[name], rows.flatten(0, 1), None if bias is None else bias.flatten()
            )
        elif isinstance(module, _BatchNorm):
            gain, offset = parts.get((name, "weight", "through")), parts.get((name, "bias", "through"))
            gain = None if gain is None else gain.flatten()
            offset = None if offset is None else offset.flatten()
            values[node] = F.batch_norm(known[0], None, None, gain, offset, True, 0.0, module.eps)
        elif isinstance(module, nn.PReLU):
            slope = parts.get((name, "weight", "through"))
            values[node] = F.prelu(known[0], module.weight if slope is None else slope.flatten())
        elif "reshape" in node.meta:
            values[node] = reshaped(known[0], node.meta["reshape"])  # its own sizes are written for all neurons
        else:
            values[node] = run_elementwise(node, module, values)
    return total


def run_elementwise(node: fx.Node, module: nn.Module | None, values: dict[fx.Node, Tensor]) -> Tensor:
    """A node that acts on each channel alone, as the network calls it."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.get)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    function = module if module is not None else node.target
    return function(*args, **kwargs)


def hessian_product(sets: GroupSets, point: Tensor, delta: Tensor, taps: Taps, first: bool) -> Tensor:
    """[sets, d]: the Hessian of the tapped batch's loss at the sets' points, times delta. `first`: check the sets."""

    def slope(vectors):
        return grad(contribution)(vectors, sets, taps)

    if sets.are_pairs:
        return jvp(slope, (point,), (delta,))[1]
    if first and (slope(point) * sets.free).any():
        raise CollapseError(f"the neurons of {sets.group.name} can't vanish: their activation of 0 is not 0")
    # The slope at the set is 0, so that this is the same, and right where a ReLU or max-pool has a kink there.
    little = 1e-4
    return slope(point + little * delta) * sets.free / little


# ======================================================================================
# The tangent map of SGD
# ======================================================================================


class Tangent(NamedTuple):
    """Small distances to the sets, |delta| = 1, their velocities, and the last step of the slow variable: [sets, d]."""

    delta: Tensor
    velocity: Tensor
    kick: Tensor


class EntrySettings(NamedTuple):
    """How SGD moves each entry of a neuron's vector: [d] each."""

    rate: Tensor
    momentum: Tensor
    decay: Tensor
    nesterov: Tensor


class StepParts(NamedTuple):
    """What one step did to the distances: [sets] each."""

    growth: Tensor  # of log|delta|
    curvature: Tensor  # parts of it to second order in the step, of the slow variable
    noise: Tensor
    decay: Tensor
    log_ahead: Tensor  # log length of the slow variable before the step
    log_distance: Tensor  # of the neurons themselves to the set, before the step


def entry_settings(sets: GroupSets, settings: dict[int, Settings], like: Tensor) -> EntrySettings:
    """The settings of each entry, as tensors of the type of `like`."""
    own = [settings[id(parameter)] for parameter in sets.parameters.values()]
    lengths = torch.tensor(sets.lengths, device=like.device)
    columns = [torch.tensor(values, dtype=like.dtype, device=like.device) for values in zip(*own, strict=True)]
    rate, momentum, decay, nesterov = (column.repeat_interleave(lengths) for column in columns)
    return EntrySettings(rate, momentum, decay, nesterov.bool())


def start_tangent(sets: GroupSets, optimizer: torch.optim.SGD) -> Tangent:
    """Along the neurons' own distances and velocities, and at random where they lie on the set; scaled to length 1."""

    def momentum_buffer(parameter):
        buffer = optimizer.state[parameter].get("momentum_buffer")
        return torch.zeros_like(parameter) if buffer is None else buffer.detach()

    own = sets.nearest().distance
    is_away = own.norm(dim=1, keepdim=True) > 0
    delta = torch.where(is_away, own, torch.randn_like(own) * sets.free)
    velocity = torch.where(is_away, sets.nearest(momentum_buffer).distance, 0)
    size = delta.norm(dim=1, keepdim=True)
    return Tangent(delta / size, velocity / size, torch.zeros_like(delta))


def tangent_step(
    state: Tangent, product: Tensor, sgd: EntrySettings, log_distance: Tensor
) -> tuple[Tangent, StepParts]:
    """One step of SGD on small distances, `product` the Hessian times delta, and what it did."""
    # The slow variable of SGD: where its velocity will have carried delta. It moves by -eta (H + decay) delta.
    eta = sgd.rate / (1 - sgd.momentum)
    carried = eta * sgd.momentum * torch.where(sgd.nesterov, sgd.momentum, 1)
    slow = state.delta - carried * state.velocity
    ahead = slow.norm(dim=1, keepdim=True)
    slow = slow / ahead
    kick = eta * product / ahead

    # log|slow - kick| to second order in the kick. Half the squared change between two batches estimates the variance
    # of the kick over batches, without knowing its mean: the noise. The rest of the second order is the mean's.
    along = (slow * kick).sum(1)
    second_order = kick.square().sum(1) / 2 - along.square()
    change = kick - state.kick
    change_along = along - (slow * state.kick).sum(1)
    noise = change.square().sum(1) / 4 - change_along.square() / 2
    lost = -(slow * eta * sgd.decay * state.delta / ahead).sum(1)

    gradient = product + sgd.decay * state.delta
    velocity = sgd.momentum * state.velocity + gradient
    move = torch.where(sgd.nesterov, gradient + sgd.momentum * velocity, velocity)
    delta = state.delta - sgd.rate * move
    size = delta.norm(dim=1, keepdim=True)
    parts = StepParts(
        growth=size[:, 0].log(),
        curvature=second_order - noise - along,
        noise=noise,
        decay=lost,
        log_ahead=ahead[:, 0].log(),
        log_distance=log_distance,
    )
    return Tangent(delta / size, velocity / size, kick), parts


# ======================================================================================
# Batches
# ======================================================================================


def check_batch(batch, number: int) -> tuple[Tensor, Tensor]:
    """(inputs, labels) of a batch; raises CollapseError unless it is two finite tensors of as many examples."""
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise CollapseError(f"batch {number} is no pair of tensors (inputs, labels)")
    x, labels = batch
    if x.ndim == 0 or labels.ndim == 0 or len(x) != len(labels):
        raise CollapseError(f"batch {number} has inputs {list(x.shape)} but labels {list(labels.shape)}")
    if len(x) == 0:
        raise CollapseError(f"batch {number} holds no examples")
    for part, name in ((x, "inputs"), (labels, "labels")):
        if part.is_floating_point() and not part.isfinite().all():
            raise CollapseError(f"batch {number} holds NaN or infinite {name}")
    return x, labels


def check_classes(output, labels: Tensor, number: int) -> None:
    """Raises CollapseError for labels beyond the classes of a cross entropy (-100: to be ignored)."""
    if not isinstance(output, Tensor) or output.ndim < 2 or labels.is_floating_point():
        return
    classes = output.shape[1]
    used = labels[labels != -100]
    if len(used) == 0:
        return
    lowest, highest = int(used.min()), int(used.max())
    if lowest < 0 or highest >= classes:
        raise CollapseError(f"batch {number} has labels from {lowest} to {highest}, the network {classes} classes")


def check_loss(value, number: int) -> None:
    """Raises CollapseError unless a loss is a tensor of one number that can be differentiated."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"has shape {list(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
        raise CollapseError(f"the loss of batch {number} {what}: it must be a tensor of one number, a mean")
    if not value.requires_grad:
        raise CollapseError(f"the loss of batch {number} doesn't depend on the network's parameters")


def run_batch(model, sets, states, batch, taps, loss, chunk, number) -> list[Tensor]:
    """Accumulate the gradient of a batch in the parameters; the Hessian products of each group's sets, [sets, d]."""
    x, labels = batch
    points = [one.nearest().point for one in sets]
    products = [torch.zeros_like(state.delta) for state in states]
    size = chunk or len(x)
    for some, their_labels in zip(x.split(size), labels.split(size), strict=True):
        taps.gradients.clear()
        output = model(some)
        if loss is F.cross_entropy:
            check_classes(output, their_labels, number)
        value = loss(output, their_labels)
        check_loss(value, number)
        if not torch.isfinite(value):
            raise CollapseError(f"the loss of batch {number} is {value.item()}: the network has diverged")
        (value * (len(some) / len(x))).backward()
        for k, one in enumerate(sets):
            for name in sorted(names_of(one.group.consumers) - taps.gradients.keys()):
                refuse(name, "the loss doesn't depend on it")
            products[k] += hessian_product(one, points[k], states[k].delta, taps, first=number == 0)
    return products


# ======================================================================================
# The exponent
# ======================================================================================


def collapse_exponent(
    model: nn.Module,
    sets: dict[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.SGD,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    frozen: bool = False,
    blocks: int = 20,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Top Lyapunov exponents of SGD normal to invariant sets, along the steps it takes with these very batches.

    `sets`: name of a group of `neuron_groups` -> [S, 2] pairs (permutation sets; `nearest_pairs` finds them) or [S]
    neurons (sign sets; before a batch norm the set is gain, offset and outgoing weights zero). At each step the small
    distances to the sets move by v' = momentum v + (H + decay) delta, delta' = delta - lr v', H the batch's
    Hessian normal to the set, and the network by `optimizer` (unless `frozen`). Parameter groups may have rates,
    momenta and decays of their own, Nesterov's momentum among them; they are read before each step, so that a
    schedule may change them. The distances start along the neurons' own, and at random where these
    are zero; only their direction matters. Batches too large for memory are taken `chunk` examples at a time (`loss` a
    mean over examples; networks without batch norm).

    Returns, one number per set in the order of `sets`: `exponent` per step, over the last four fifths of the
    steps, its standard `error` (from means over `blocks`), and what it is made of to second order in eta =
    lr / (1 - momentum): `decay`, `curvature` -eta E[q] (and the second order of the mean H), and `noise`, eta^2 / 2
    (var Hu - 2 var q), q = u.Hu, u the direction. In one dimension var Hu = var q: noise attracts
    (stochastic attractivity in Stochastic Collapse); in many the part of Hu across u repels. And [steps, sets]:
    `growth` of log|delta|, and `log_distance` of the neurons themselves to the set, before each step.

    Cost: a Hessian product on one channel a set beside each gradient step, by the size of the group's maps
    (docs/speed.md has a table).

    The network's gradients are overwritten, but not if it is `frozen`; the global random generator moves.

    Raises CollapseError, naming the layer, for groups it can't follow or that the optimizer doesn't train whole, sets
    that aren't invariant, optimizers other than SGD, NaN or infinite values in the network, batches that can't be used,
    losses that aren't one number, chunks that a batch norm would see, networks trained by several processes (unless
    `frozen`), and where gradients are switched off.
    """
    check_options(blocks, chunk)
    check_sets(sets)
    check_optimizer(optimizer)
    check_surroundings(model, frozen)
    settings = current_settings(optimizer)
    model = unwrapped(model)
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise CollapseError("collapse_exponent needs at least one batch")
    example = check_batch(first, 0)[0][:2]
    check_chunks(model, chunk)
    check_finite(model)
    groups = named_groups(model, example, sets)
    with as_trained(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # torch's own jvp calls it
        all_sets = [group_sets(model, groups[name], index, example, settings) for name, index in sets.items()]
        batches = itertools.chain([first], batches)
        with gradients_kept(model, frozen):
            history = follow_batches(model, all_sets, batches, optimizer, loss, frozen, chunk)
    return averages(history, blocks)


def check_options(blocks: int, chunk: int | None) -> None:
    if blocks < 1:
        raise CollapseError(f"collapse_exponent needs at least 1 block, not blocks={blocks}")
    if chunk is not None and chunk < 1:
        raise CollapseError(f"collapse_exponent needs at least 1 example a chunk, not chunk={chunk}")


def check_sets(sets: dict[str, Tensor]) -> None:
    """Raises CollapseError unless the sets are a dict; what is in it is checked group by group."""
    if not isinstance(sets, dict):
        kind = type(sets).__name__
        raise CollapseError(f"sets must be a dict, name of a group -> its pairs or neurons, not a {kind}")


def check_surroundings(model: nn.Module, frozen: bool) -> None:
    """Raises CollapseError where gradients are off, or where other processes' gradients would be missed."""
    if not torch.is_grad_enabled():
        raise CollapseError("collapse_exponent needs gradients: call it outside torch.no_grad() and inference_mode()")
    shared = any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())
    if shared and not frozen and torch.distributed.get_world_size() > 1:
        raise CollapseError(
            "collapse_exponent takes steps with the batches of one process, the network is trained by "
            f"{torch.distributed.get_world_size()} (DistributedDataParallel): give frozen=True, or train in one process"
        )


@contextlib.contextmanager
def undone_by(put_back: Callable[[], None], always: bool):
    """Calls `put_back` after the block: `always`, or where it fails."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if always or failed:
            put_back()


@contextlib.contextmanager
def gradients_kept(model: nn.Module, always: bool):
    """Parameters have the gradients they had: `always`, or where it fails."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]

    def put_back() -> None:
        for parameter, gradient in before:
            parameter.grad = gradient

    for parameter, _ in before:
        parameter.grad = None  # else what isn't the optimizer's would be added up
    with undone_by(put_back, always):
        yield


def check_chunks(model: nn.Module, chunk: int | None) -> None:
    """Raises CollapseError where a batch norm would see a chunk instead of its batch."""
    coupled = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if chunk and coupled:
        raise CollapseError(f"collapse_exponent can't take batches in chunks: {coupled[0]} couples their examples")


def named_groups(model: nn.Module, example: Tensor, sets: dict[str, Tensor]) -> dict[str, NeuronGroup]:
    """The network's groups by name; raises CollapseError for sets of a group that there isn't, and for none at all."""
    groups = {group.name: group for group in neuron_groups(model, example)}
    unknown = sorted(sets.keys() - groups.keys())
    if unknown or not sets:
        raise CollapseError(f"no group of neurons {', '.join(unknown)}; there are {', '.join(groups)}")
    return groups


@contextlib.contextmanager
def statistics_kept(model: nn.Module, always: bool):
    """Running statistics, which a batch in training mode moves, are put back: `always`, or where it fails."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def put_back() -> None:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])

    with undone_by(put_back, always):
        yield


def follow_batches(
    model: nn.Module,
    all_sets: list[GroupSets],
    batches: Iterable,
    optimizer: torch.optim.SGD,
    loss: Callable,
    frozen: bool,
    chunk: int | None,
) -> StepParts:
    """What the step of each batch did to the distances to all sets: [steps, sets] each. Trains unless `frozen`."""
    taps = Taps()
    states = [start_tangent(one, optimizer) for one in all_sets]
    steps = []
    with taps.attached(all_sets):
        for number, batch in enumerate(batches):
            batch = check_batch(batch, number)
            settings = current_settings(optimizer)
            optimizer.zero_grad()
            with statistics_kept(model, always=frozen):
                products = run_batch(model, all_sets, states, batch, taps, loss, chunk, number)
            row = []
            for k, one in enumerate(all_sets):
                log_distance = one.nearest().distance.norm(dim=1).log()
                sgd = entry_settings(one, settings, states[k].delta)
                states[k], parts = tangent_step(states[k], products[k], sgd, log_distance)
                row.append(torch.stack(parts))
            steps.append(torch.cat(row, 1))
            if not frozen:
                optimizer.step()
    history = torch.stack(steps, 1).double()
    return StepParts(*history)


def averages(history: StepParts, blocks: int) -> dict[str, Tensor]:
    """What `collapse_exponent` returns, from the parts of each step, [steps, sets] each."""
    count = len(history.growth)
    # The slow variable's growth: delta's own, without the swing that momentum gives it. The last step has no next one.
    slow_growth = history.growth[:-1] + history.log_ahead.diff(dim=0)
    slow_growth = torch.cat([slow_growth, history.growth[-1:]])
    late = slice(count // 5, -1 if count > 1 else None)
    rates = slow_growth[late]
    means = torch.stack([block.mean(0) for block in rates.tensor_split(min(blocks, len(rates)))])
    error = (means.var(0, correction=0) / (len(means) - 1)).sqrt()  # of one mean: nan
    return {
        "exponent": rates.mean(0),
        "error": error,
        "curvature": history.curvature[late].mean(0),
        "noise": history.noise[late].mean(0),
        "decay": history.decay[late].mean(0),
        "growth": history.growth,
        "log_distance": history.log_distance,
    }
