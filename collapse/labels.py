"""Which entry of which tensor belongs to which neuron: labels, and what each basic operation does to them.

Every tensor of a recorded run gets a tensor of integers of its own shape: the label of the neuron that each entry
belongs to. Moving entries about (cat, split, permute, reshape, indexing) moves their labels, by the same operation.
Elementwise operations join the labels that meet in an entry. Layers end labels on one side of their weight and make
new ones on the other. What mixes labels so that they can't be told apart freezes them.

Along axes where labels are constant (batch, positions) label tensors are expanded (stride 0), so they stay small.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from collapse.trace import Operation, Recording, tensors_in

DATA = 0  # label of entries that belong to no neuron
ZERO = 1  # label of entries that are a constant zero: padding, harmless wherever it meets a neuron
FIRST = 2  # the first neuron

OUTPUT = "it is an output of the network"
SOFTMAX = "a softmax couples it with others"
TOGETHER = "it normalises its neurons together"

# ======================================================================================
# Tensors of labels
# ======================================================================================


def axes_that_vary(tensor: Tensor) -> set[int]:
    """Axes along which an expanded tensor isn't constant by construction."""
    return {axis for axis in range(tensor.ndim) if tensor.size(axis) > 1 and tensor.stride(axis) != 0}


def kernel(labels: Tensor) -> Tensor:
    """The labels without their repetition: size 1 along expanded axes."""
    for axis in range(labels.ndim):
        if labels.size(axis) > 1 and labels.stride(axis) == 0:
            labels = labels.narrow(axis, 0, 1)
    return labels


def compact(labels: Tensor) -> Tensor:
    """The same labels, expanded along every axis on which they are constant."""
    small = kernel(labels)
    for axis in axes_that_vary(small):
        first = small.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(small), small):
            small = first
    return small.expand(labels.shape)


def reshaped(labels: Tensor, shape) -> Tensor:
    """`labels.reshape(shape)`, staying expanded where that is possible."""
    try:
        return labels.view(shape)
    except RuntimeError:
        pass
    # Leading axes that stay as they are need no copy
    head = 0
    while (
        head < min(labels.ndim, len(shape)) and labels.size(head) == shape[head] and head not in axes_that_vary(labels)
    ):
        labels = labels.narrow(head, 0, 1)
        head += 1
    rest = list(shape[head:])
    small = labels.reshape([1] * head + rest)
    return compact(small).expand(shape)


class Labels:
    """Union-find over integer labels."""

    def __init__(self):
        self.parent = torch.arange(FIRST)
        self.alone = torch.zeros(FIRST, dtype=torch.bool)  # those that were never joined with others

    def new(self, count: int) -> Tensor:
        """So many labels that nobody has."""
        start = len(self.parent)
        labels = torch.arange(start, start + count)
        self.parent = torch.cat([self.parent, labels])
        self.alone = torch.cat([self.alone, torch.ones(count, dtype=torch.bool)])
        return labels

    def find(self, labels: Tensor) -> Tensor:
        """The one label that stands for all that were joined with each of these; expanded as they are."""
        small = kernel(labels)
        roots = self.parent[small]
        while True:
            above = self.parent[roots]
            if torch.equal(above, roots):
                return roots.expand(labels.shape)
            roots = above

    def join(self, one: Tensor, other: Tensor) -> None:
        """From now on labels at the same place are the same neuron; `DATA` and `ZERO` join nothing."""
        if one is other:
            return
        one, other = torch.broadcast_tensors(kernel(one), kernel(other))
        one, other = one.flatten(), other.flatten()
        both = (one >= FIRST) & (other >= FIRST)
        one, other = one[both], other[both]
        while True:
            one, other = self.find(one), self.find(other)
            apart = one != other
            if not apart.any():
                return
            one, other = one[apart], other[apart]
            self.alone[one] = False
            self.alone[other] = False
            low, high = torch.minimum(one, other), torch.maximum(one, other)
            self.parent.scatter_reduce_(0, high, low, "amin")

    def along(self, labels: Tensor, axis: int) -> Tensor:
        """[size of the axis]: all labels at the same index joined."""
        small = kernel(labels).movedim(axis, 0)
        small = small.reshape(len(small), -1)
        named = torch.where(small >= FIRST, small, 0).amax(1)
        self.join(small, named[:, None])
        named = torch.where(named >= FIRST, named, small[:, 0])
        return self.find(named.expand(labels.size(axis)) if len(named) == 1 else named)


# ======================================================================================
# What is noted on the way
# ======================================================================================


class Note(NamedTuple):
    """Something that happened to labels, in which layer, and what it means for them."""

    labels: Tensor
    layer: str
    reason: str


class Distinction(NamedTuple):
    """Labels that met something of their own: neurons are exchangeable only where `context` is the same."""

    labels: Tensor
    context: Tensor
    layer: str
    reason: str


class Meeting(NamedTuple):
    """Labels that an operation acted on, as one of its arguments: others may not have met it."""

    labels: Tensor
    alone: Tensor  # of bool: which of them were still those of a single place
    layer: str
    reason: str


class Use(NamedTuple):
    """Where an operation reads the neurons of a consumer."""

    operation: int  # its number in the recording
    argument: int  # which of its arguments is the input
    axis: int  # of that input on which the neurons lie
    places: Tensor | None = None  # on the weight's axis, of what is read: a part of the weight; None: the whole
    size: int = 0  # of that axis


class Holder:
    """A parameter along one axis: the label of each index, and how it is used."""

    def __init__(self, tensor: Tensor, axis: int | None, groups: int, role: str, labels: Tensor, order: int):
        self.tensor = tensor
        self.axis = axis  # None: all entries, flat
        self.groups = groups
        self.role = role
        self.labels = labels
        self.order = order  # of the operation that used it first
        self.roles = {role}
        self.normed = True  # all that a consumer reads comes out of a norm
        self.is_norm = False  # the gain or offset of a norm
        self.uses = []


class State(NamedTuple):
    """What is known of a tensor whose entries belong to neurons."""

    labels: Tensor
    normed: bool = False


class Unknown(Exception):
    """An operation that can't be followed; the message says why."""


# ======================================================================================
# Following a recorded run
# ======================================================================================


class Follower:
    """Labels of all tensors of a recording, the parameters that hold them, and what was noted about them."""

    def __init__(self, model: nn.Module, recording: Recording):
        self.names = Labels()
        self.states = {}  # id of a tensor -> State
        self.dependent = {id(tensor) for tensor in recording.inputs}  # values that change with the input
        self.derived = {}  # id of a tensor made of parameters alone -> the Operation that made it
        self.copies = {}  # id of a parameter's copy in another precision (autocast) -> the parameter
        self.parameters = {id(parameter): parameter for parameter in model.parameters()}
        self.statistics = set()  # ids of running statistics
        self.zeros = set()  # ids of tensors that hold zeros
        for module in model.modules():
            if "running_mean" in module._buffers:
                vectors = {id(b): b for b in module._buffers.values() if b is not None and b.ndim}
                self.parameters.update(vectors)
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # in a frozen one they are parameters
                    self.statistics.update(vectors)
        self.computed = dict(recording.computed)
        self.holders = {}  # (id of a parameter, axis, groups) -> Holder
        self.uses_of = {}  # id of a parameter -> its Holders
        self.frozen = []  # Notes: labels that can't change
        self.coupled = []  # Notes: labels that an operation treats alike, but together
        self.distinct = []  # Distinctions
        self.met = []  # Meetings
        self.unfollowed = []  # Notes without labels: layers whose neurons were not found at all
        self.contracted = []  # Notes: labels summed over in a product of two activations
        self.mixed = []  # Notes: labels passed on by attention
        self.from_softmax = set()  # ids of tensors that come, by whatever way, out of a softmax
        self.keep = []  # tensors whose ids are in use
        self.now = None
        self.order = 0
        for self.order, operation in enumerate(recording.operations):
            self.follow(operation)
        for tensor in recording.outputs:
            if id(tensor) in self.states:
                self.frozen.append(Note(self.states[id(tensor)].labels, "", OUTPUT))

    # ------------------------------------------------------------------ what is known of a tensor

    def is_parameter(self, tensor) -> bool:
        """Whether a tensor is a parameter or made of parameters alone."""
        return id(tensor) in self.parameters or id(tensor) in self.derived or id(tensor) in self.computed

    def is_followed(self, tensor) -> bool:
        return id(tensor) in self.states or self.is_parameter(tensor)

    def state(self, tensor: Tensor) -> State | None:
        """State of a tensor, None for data. Entries of parameters used outside layers are given labels of their own."""
        if id(tensor) in self.states:
            state = self.states[id(tensor)]
            return State(self.names.find(state.labels), state.normed)
        if id(tensor) in self.derived:
            now = self.now
            self.apply(self.derived.pop(id(tensor)))
            self.now = now
            return self.state(tensor)
        if id(tensor) in self.parameters:
            return State(self.labels_of_parameter(tensor), normed=True)
        return None

    def labels_of_parameter(self, parameter: Tensor) -> Tensor:
        for holder in self.uses_of.get(id(parameter), []):
            if holder.groups == 1 and holder.axis is not None:
                shape = [1] * parameter.ndim
                shape[holder.axis] = parameter.size(holder.axis)
                return self.names.find(holder.labels).view(shape).expand(parameter.shape)
        key = (id(parameter), None, 1)
        if key not in self.holders:
            labels = self.names.new(parameter.numel())
            self.attach(parameter, None, labels, "through")
        return self.names.find(self.holders[key].labels).view(parameter.shape)

    def role_of(self, parameter: Tensor, role: str) -> str:
        return "statistic" if id(parameter) in self.statistics else role

    def put(self, tensor: Tensor, labels: Tensor, normed: bool = False) -> None:
        self.states[id(tensor)] = State(labels.expand(tensor.shape), normed)

    # ------------------------------------------------------------------ what may happen to labels

    def freeze(self, labels: Tensor, reason: str) -> None:
        self.frozen.append(Note(kernel(labels).flatten(), self.now.layer, reason))

    def couple(self, labels: Tensor, reason: str) -> None:
        self.coupled.append(Note(kernel(labels).flatten(), self.now.layer, reason))

    def distinguish(self, labels: Tensor, axes: set[int], reason: str, values: Tensor | None = None) -> None:
        """Neurons that meet something else along `axes` aren't exchangeable; `values` says what they meet there."""
        axes = sorted(axes & axes_that_vary(labels))
        if not axes:
            return
        small = kernel(labels).movedim(axes, list(range(len(axes))))
        places = math.prod(small.shape[: len(axes)])
        small = small.reshape(places, -1)
        context = torch.arange(places) if values is None else values
        self.distinct.append(
            Distinction(small.flatten(), context[:, None].expand_as(small).flatten(), self.now.layer, reason)
        )

    def attach(self, parameter: Tensor, axis: int | None, labels: Tensor, role: str, groups: int = 1, normed=True):
        """Index i of a parameter's axis belongs to the neuron labels[i]; returns labels joined with earlier ones."""
        key = (id(parameter), axis, groups)
        role = self.role_of(parameter, role)
        if key not in self.holders:
            self.check_other_uses(parameter, axis, groups, labels)
            holder = self.holders[key] = Holder(parameter, axis, groups, role, labels, self.order)
            holder.normed = role != "outgoing" or normed
            self.uses_of.setdefault(id(parameter), []).append(holder)
            return labels
        holder = self.holders[key]
        self.names.join(holder.labels, labels)
        holder.labels = torch.where(holder.labels >= FIRST, holder.labels, labels)
        holder.roles.add(role)
        if role == "outgoing":
            holder.normed &= normed
        return self.names.find(holder.labels)

    def check_other_uses(self, parameter: Tensor, axis: int | None, groups: int, labels: Tensor) -> None:
        """A parameter that is read in two ways that don't go together can't change."""
        for holder in self.uses_of.get(id(parameter), []):
            flat = (holder.axis is None) != (axis is None)
            if flat or (holder.axis == axis and holder.groups != groups):
                self.freeze(holder.labels, "one of its parameters is used in two ways")
                self.freeze(labels, "one of its parameters is used in two ways")

    def attach_shaped(self, parameter: Tensor, labels: Tensor, role: str) -> None:
        """As `attach`, for labels of the parameter's own shape."""
        axes = axes_that_vary(labels)
        if len(axes) == 1:
            (axis,) = axes
            self.attach(parameter, axis, self.names.along(labels, axis), role)
        elif parameter.ndim == 1:
            self.attach(parameter, 0, labels, role)
        else:
            self.attach(parameter, None, labels.flatten(), role)

    def read(
        self, parameter: Tensor, axis: int, x: Tensor, x_axis: int, labels: Tensor | None, normed: bool, groups: int = 1
    ) -> None:
        """A layer's weight reads what lies on axis `x_axis` of its input: these neurons, or (None) data."""
        count = x.size(x_axis)
        if labels is None:  # the first state of a recurrent layer is mostly zero: it says nothing to any weight
            constant = id(x) not in self.dependent
            labels = torch.full((count,), ZERO if constant and not bool(x.any()) else DATA)
        data = labels == DATA
        if bool(data.any()):  # a weight that reads data can't be permuted, whatever else it reads
            own = self.names.new(count)
            self.freeze(own[data], "its columns also read the network's input")
            labels = torch.where(data, own, labels)
        self.attach(parameter, axis, labels, "outgoing", groups, normed)
        self.note_use(self.holders[id(parameter), axis, groups], x, x_axis)

    def note_use(self, holder: Holder, x: Tensor, axis: int, places: Tensor | None = None) -> None:
        argument = next(place for place, value in enumerate(self.now.args) if value is x)
        holder.uses.append(Use(self.order, argument, axis, places, holder.tensor.size(holder.axis)))

    def make(self, parameter: Tensor, axis: int) -> Tensor:
        """Labels of the neurons that a layer's weight makes along an axis."""
        if (id(parameter), axis, 1) in self.holders:
            return self.attach(parameter, axis, torch.full((parameter.size(axis),), DATA), "incoming")
        return self.attach(parameter, axis, self.names.new(parameter.size(axis)), "incoming")

    # ------------------------------------------------------------------ one operation

    def follow(self, operation: Operation) -> None:
        """Labels of what an operation returns, and what else is known of it."""
        if self.copies:
            operation = operation._replace(args=self.originals(operation.args))
        if self.copies_a_parameter(operation):
            self.copies[id(operation.output)] = operation.args[0]
            return
        inputs = tensors_in((operation.args, operation.kwargs))
        outputs = tensors_in(operation.output)
        self.note_dependent(operation, inputs, outputs)
        self.follow_labels(operation, inputs, outputs)
        self.note_zeros(operation, inputs, outputs)
        self.note_softmax(operation, inputs, outputs)

    def note_dependent(self, operation: Operation, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Values that change with the input: all that comes from one, but for constants in its shape."""
        if operation.name in CONSTANTS or not any(id(tensor) in self.dependent for tensor in inputs):
            return
        self.dependent.update(id(tensor) for tensor in outputs)
        if in_place(operation) and outputs and outputs[0]._is_view():
            self.dependent.add(id(outputs[0]._base))

    def follow_labels(self, operation: Operation, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if operation.name in CREATORS:
            return
        followed = [tensor for tensor in inputs if self.is_followed(tensor)]
        if not followed or not outputs:
            return
        if self.makes_a_parameter(operation, inputs, followed):
            self.derived.update((id(tensor), operation) for tensor in outputs if id(tensor) not in self.computed)
        else:
            self.apply(operation)

    def originals(self, value):
        """Arguments of an operation, with parameters in place of their copies."""
        if isinstance(value, Tensor):
            return self.copies.get(id(value), value)
        if isinstance(value, list | tuple):
            return type(value)([self.originals(part) for part in value])
        return value

    def copies_a_parameter(self, operation: Operation) -> bool:
        """Whether an operation gives a whole parameter in another precision, laid out in the same way."""
        if operation.name != "_to_copy" or not known_weight(self, operation.args[0]):
            return False
        parameter, copy = operation.args[0], operation.output
        return parameter.storage_offset() == 0 and parameter.stride() == copy.stride()

    def note_zeros(self, operation: Operation, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Tensors that hold zeros, until something else than `index_put` uses them, which might write into them."""
        made = operation.name in ("zeros", "zeros_like", "new_zeros", "zero_")
        passed_on = operation.name == "detach" and id(inputs[0]) in self.zeros
        if operation.name != "index_put_":
            self.zeros.difference_update(id(tensor) for tensor in inputs)
        if made or passed_on:
            self.zeros.update(id(tensor) for tensor in outputs)

    def note_softmax(self, operation: Operation, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Weights of attention: what comes out of a softmax, until it is multiplied with values."""
        is_product = rule_of(operation) in (matrix_product, convolution)
        passed_on = not is_product and any(id(tensor) in self.from_softmax for tensor in inputs)
        if passed_on or "softmax" in operation.name:
            self.from_softmax.update(id(tensor) for tensor in outputs)

    def makes_a_parameter(self, operation: Operation, inputs: list[Tensor], followed: list[Tensor]) -> bool:
        """Whether what comes out is made of parameters (and constants), and no layer is applied to a constant."""
        if in_place(operation) or any(id(tensor) in self.dependent for tensor in inputs):
            return False
        layer = operation.name in ("mm", "addmm", "convolution") and len(followed) < len(inputs)
        return not layer and all(self.is_parameter(tensor) for tensor in followed)

    def apply(self, operation: Operation) -> None:
        """Apply the rule of an operation; where there is none, what goes in can't change."""
        self.now = operation
        if not only_moves(operation):
            self.meet(operation)
        for tensor in tensors_in(operation.output):
            self.dependent.add(id(tensor))
            if not in_place(operation):
                self.derived.pop(id(tensor), None)
        try:
            if writes_into_data(self, operation):
                raise Unknown("it is written into a part of another tensor")
            if overwrites_some(self, operation):
                raise Unknown(f"{operation.name} changes some of its channels alone")
            rule_of(operation)(self, operation)
        except Unknown as unknown:
            self.give_up(operation, str(unknown))

    def meet(self, operation: Operation) -> None:
        """Note which labels an operation acts on: neurons that meet different operations aren't exchangeable."""
        reason = f"{operation.name} acts on some of its channels alone"
        for tensor in tensors_in((operation.args, operation.kwargs)):
            if id(tensor) in self.states:
                labels = kernel(self.states[id(tensor)].labels).flatten()
                self.met.append(Meeting(labels, self.names.alone[labels], operation.layer, reason))

    def give_up(self, operation: Operation, reason: str) -> None:
        nobody = True
        for tensor in tensors_in((operation.args, operation.kwargs)):
            if id(tensor) in self.states:
                nobody = False
                self.freeze(self.states[id(tensor)].labels, reason)
            elif id(tensor) in self.parameters:
                for holder in self.uses_of.get(id(tensor), []):
                    self.freeze(holder.labels, reason)
        if nobody:  # else the layers whose neurons it freezes are listed
            self.unfollowed.append(Note(torch.empty(0), operation.layer, reason))


def in_place(operation: Operation) -> bool:
    return operation.name.endswith("_")


def writes_into_data(follower: Follower, operation: Operation) -> bool:
    """Whether an operation in place brings neurons into a view of a tensor that had none."""
    if not in_place(operation) or operation.name in ("zero_", "fill_"):
        return False
    target = operation.args[0]
    return isinstance(target, Tensor) and id(target) not in follower.states and target._is_view()


def overwrites_some(follower: Follower, operation: Operation) -> bool:
    """Whether an operation in place puts something that is no neuron into some channels of a tensor, not into all."""
    if not in_place(operation):
        return False
    target, *others = tensors_in((operation.args, operation.kwargs))
    brings = len(operation.args) > 1 or operation.name == "zero_"
    if not brings or any(follower.is_followed(tensor) for tensor in others):
        return False
    whole = target._base if target._is_view() else None
    if id(target) not in follower.states or id(whole) not in follower.states:
        return False
    part = kernel(follower.state(target).labels).unique()
    return len(part) < len(kernel(follower.state(whole).labels).unique())


def only_moves(operation: Operation) -> bool:
    """Whether an operation leaves all values as they are, at other places."""
    if operation.name in ("fill_", "zero_"):
        return False
    rule = rule_of(operation)
    return rule in (reshape, moved, same, concatenate, padded, put_at_places)


def rule_of(operation: Operation):
    """The function that follows an operation, in place or not."""
    for part, rule in RULES_BY_PART.items():
        if part in operation.name:
            return rule
    for name in (operation.name, operation.name.removesuffix("_")):
        if name in RULES:
            return RULES[name]
    if torch.Tag.pointwise in operation.function.tags:
        return elementwise
    return unknown


def unknown(follower: Follower, operation: Operation) -> None:
    raise Unknown(f"{operation.name} can't be followed")


# ======================================================================================
# Elementwise operations: labels that meet are joined
# ======================================================================================


def constant_axes(tensor: Tensor) -> set[int]:
    """Axes along which a constant tensor differs, by its values."""
    axes = set()
    for axis in axes_that_vary(tensor):
        first = tensor.narrow(axis, 0, 1)
        if not bool((tensor == first).all()):
            axes.add(axis)
    return axes


class Operand(NamedTuple):
    """One factor or summand of an elementwise operation, broadcast to the output's shape."""

    state: State
    axes: set[int]  # along which its labels vary
    broadcast: set[int]  # along which it is one number for all


def values_read(follower: Follower, operation: Operation) -> list[Tensor]:
    """The tensors whose values go into an elementwise operation: not a target that is written over, or held zeros."""
    tensors = tensors_in((operation.args, operation.kwargs))
    if not in_place(operation) or id(tensors[0]) in follower.states:
        return tensors
    written_over = operation.name == "copy_"
    adds_to_zeros = operation.name == "add_" and id(tensors[0]) in follower.zeros
    return tensors[1:] if written_over or adds_to_zeros else tensors


def operands_of(follower: Follower, operation: Operation, output: Tensor) -> tuple[list[Operand], list[set[int]]]:
    """(operands with neurons, for each operand without: the axes along which it differs)."""
    operands, data = [], []
    for tensor in values_read(follower, operation):
        offset = output.ndim - tensor.ndim
        if offset < 0 or any(size not in (1, output.size(offset + k)) for k, size in enumerate(tensor.shape)):
            raise Unknown(f"{operation.name} on tensors of different layouts")
        state = follower.state(tensor)
        if state is None:
            axes = axes_that_vary(tensor) if id(tensor) in follower.dependent else constant_axes(tensor)
            data.append({axis + offset for axis in axes})
            continue
        labels = state.labels.expand(output.shape)
        broadcast = {axis for axis in range(output.ndim) if axis < offset or tensor.size(axis - offset) == 1}
        operands.append(Operand(State(labels, state.normed), axes_that_vary(labels), broadcast))
    return operands, data


def parameters_meet_data(follower: Follower, operation: Operation) -> bool:
    """Whether no operand carries neurons: parameters used outside layers, and data."""
    tensors = tensors_in((operation.args, operation.kwargs))
    has_data = any(id(tensor) in follower.dependent and id(tensor) not in follower.states for tensor in tensors)
    return has_data and not any(id(tensor) in follower.states for tensor in tensors)


def elementwise(follower: Follower, operation: Operation) -> None:
    """Each entry of the output comes from the entries at its own place: their neurons are one."""
    if parameters_meet_data(follower, operation):
        return
    output = tensors_in(operation.output)[0]
    operands, data = operands_of(follower, operation, output)
    if not operands:
        return
    all_axes = set().union(*(operand.axes for operand in operands))
    kept = []
    for operand in operands:
        # One number for several neurons: to them it is data, and its own neurons can't change
        if (all_axes - operand.axes) & operand.broadcast:
            follower.freeze(operand.state.labels, "it acts on several other neurons alike")
            data.append(operand.axes)
        else:
            kept.append(operand.state)
    if not kept:
        raise Unknown(f"{operation.name} of neurons on different axes")
    result = min((state.labels for state in kept), key=lambda labels: kernel(labels).numel())
    for state in kept:
        follower.names.join(result, state.labels)
        result = filled(result, state.labels)
    for axes in data:
        follower.distinguish(result, axes, f"{operation.name} with something that differs from channel to channel")
    if any(bool((kernel(state.labels) == DATA).any()) for state in kept):
        follower.distinguish(result, axes_that_vary(result), f"{operation.name} with data at some of its channels")
    normed = all(state.normed for state in kept)
    result = follower.names.find(result)
    if operation.name in ("mul", "mul_") and is_gain(follower, operation, result):
        normed = True
    follower.put(output, result, normed)
    if in_place(operation):
        follower.put(operation.args[0], result, normed)


def is_gain(follower: Follower, operation: Operation, labels: Tensor) -> bool:
    """Whether a product is the gain of a norm that is written by hand; notes the parameter as one."""
    gains = [value for value in operation.args if id(value) in follower.parameters and value.ndim == 1]
    if len(gains) != 1 or not is_coupled(follower, labels):
        return False
    for holder in follower.uses_of[id(gains[0])]:
        holder.is_norm = True
    return True


def is_coupled(follower: Follower, labels: Tensor) -> bool:
    """Whether a norm has coupled any of these labels; the latest ones are the likeliest."""
    own = follower.names.find(kernel(labels)).unique()
    latest_first = reversed(follower.coupled)
    return any(bool(torch.isin(follower.names.find(note.labels), own).any()) for note in latest_first)


def gated_halves(follower: Follower, operation: Operation) -> None:
    """The first half of an axis, times the sigmoid of the other half: entry by entry they are one neuron."""
    state = follower.state(operation.args[0])
    if state is None:
        raise Unknown("glu by something that is computed")
    values, gates = state.labels.chunk(2, operation.argument("dim", -1))
    values, gates = compact(values), compact(gates)
    follower.names.join(values, gates)
    follower.put(operation.output, follower.names.find(filled(values, gates)))


def filled(labels: Tensor, others: Tensor) -> Tensor:
    """`labels`, and where they belong to no neuron those of `others`."""
    small = kernel(labels)
    if bool((small >= FIRST).all()):
        return labels
    small, others = torch.broadcast_tensors(small, kernel(others))
    return torch.where(small >= FIRST, small, others).expand(labels.shape)


def same(follower: Follower, operation: Operation) -> None:
    """The output has the labels of the first input."""
    state = follower.state(operation.args[0])
    if state is None:
        raise Unknown(f"{operation.name} of data and neurons")
    output = tensors_in(operation.output)[0]
    if output.shape != operation.args[0].shape:
        raise Unknown(f"{operation.name} into another shape")
    follower.put(output, state.labels, state.normed)


def along_positions(follower: Follower, operation: Operation) -> None:
    """Acts along one axis, on each neuron alone where that is not theirs."""
    state = follower.state(operation.args[0])
    if state is None or operation.argument("dim", -1) % operation.args[0].ndim in axes_that_vary(state.labels):
        raise Unknown(f"{operation.name} over its neurons")
    same(follower, operation)


def softmax(follower: Follower, operation: Operation) -> None:
    """A softmax over neurons couples them: they can't change. Over positions it is elementwise to them."""
    state = follower.state(operation.args[0])
    if state is None:
        return
    if operation.argument("dim") % operation.output.ndim in axes_that_vary(state.labels):
        follower.freeze(state.labels, SOFTMAX)
        return  # what comes out are weights, not neurons
    follower.put(operation.output, state.labels, state.normed)


# ======================================================================================
# Moving entries about: labels move by the same operation
# ======================================================================================


def moved(follower: Follower, operation: Operation) -> None:
    """Run the operation itself on the labels."""
    source = operation.args[0]
    tensors = tensors_in(source)
    states = [follower.state(tensor) for tensor in tensors]
    if not any(states):
        raise Unknown(f"{operation.name} by something that is computed")
    check_computed_places(follower, operation, states[0])
    labels = [no_neurons(t) if state is None else state.labels for t, state in zip(tensors, states, strict=True)]
    rest = [on_cpu(value) for value in operation.args[1:]]
    result = operation.function(labels[0] if isinstance(source, Tensor) else labels, *rest, **operation.kwargs)
    normed = all(state.normed for state in states if state is not None)
    for output, its_labels in zip(tensors_in(operation.output), tensors_in(result), strict=True):
        follower.put(output, compact(its_labels), normed)


def no_neurons(tensor: Tensor) -> Tensor:
    return torch.full((1,) * tensor.ndim, DATA).expand(tensor.shape)


def on_cpu(value):
    """An argument with its tensors where labels are: on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, list):
        return [on_cpu(part) for part in value]
    return value


def check_computed_places(follower: Follower, operation: Operation, state: State | None) -> None:
    """Neurons that are picked by the input itself can't be followed; positions that are picked so can."""
    if not any(id(tensor) in follower.dependent for tensor in tensors_in((operation.args[1:], operation.kwargs))):
        return
    if operation.name == "index":
        axes = {axis for axis, index in enumerate(operation.args[1]) if index is not None}
    else:
        axes = {operation.argument("dim", 0) % operation.args[0].ndim}
    if state is None or axes & axes_that_vary(state.labels):
        raise Unknown(f"{operation.name} picks neurons by the input")


def reshape(follower: Follower, operation: Operation) -> None:
    state = follower.state(operation.args[0])
    follower.put(operation.output, reshaped(state.labels, operation.output.shape), state.normed)


def concatenate(follower: Follower, operation: Operation) -> None:
    """Labels side by side; what is data beside them stays data."""
    states = [follower.state(tensor) for tensor in operation.args[0]]
    axis = operation.argument("dim") % operation.output.ndim
    parts = []
    for tensor, state in zip(operation.args[0], states, strict=True):
        if tensor.ndim != operation.output.ndim:
            continue  # torch.cat passes over empty vectors
        parts.append(no_neurons(tensor) if state is None else state.labels)
    wide = set().union(*(axes_that_vary(part) for part in parts)) | {axis}
    for other in range(operation.output.ndim):
        if other not in wide:
            parts = [part.narrow(other, 0, 1) for part in parts]
    joined = compact(torch.cat(parts, axis))
    follower.put(operation.output, joined, all(state.normed for state in states if state is not None))


def padded(follower: Follower, operation: Operation) -> None:
    """Zeros (or another constant) around: along an axis where labels are constant they stay so."""
    x = operation.args[0]
    state = follower.state(x)
    pads = operation.argument("pad")
    labels = state.labels
    for number in range(len(pads) // 2):
        axis = x.ndim - 1 - number
        before, after = pads[2 * number : 2 * number + 2]
        if before == after == 0:
            continue
        if axis not in axes_that_vary(labels):
            shape = list(labels.shape)
            shape[axis] += before + after
            labels = labels.narrow(axis, 0, 1).expand(shape)
            continue
        if operation.argument("value", 0) not in (0, None):
            raise Unknown("it is padded by channels that are not zero")
        small = kernel(labels)
        widths = [0, 0] * number + [before, after]
        shape = list(labels.shape)
        shape[axis] += before + after
        labels = torch.nn.functional.pad(small, widths, value=ZERO).expand(shape)
    follower.put(operation.output, labels, state.normed)


def channels_into_pixels(follower: Follower, operation: Operation) -> tuple[Tensor, int]:
    """(labels along the channels of x [..., channels, height, width], how many pixels one becomes, or becomes one)."""
    x = operation.args[0]
    state = follower.state(x)
    channel = x.ndim - 3
    if state is None or axes_that_vary(state.labels) - {channel}:
        raise Unknown(f"{operation.name} over its neurons")
    return follower.names.along(state.labels, channel), operation.args[1] ** 2


def pixel_shuffle(follower: Follower, operation: Operation) -> None:
    """Several channels become the pixels of one: they are one neuron, for whatever reads it reads them all."""
    labels, several = channels_into_pixels(follower, operation)
    labels = labels.view(-1, several)
    follower.names.join(labels, labels[:, :1])
    labels = follower.names.find(labels)[:, 0]
    follower.put(operation.output, labels.view(-1, 1, 1), follower.state(operation.args[0]).normed)


def pixel_unshuffle(follower: Follower, operation: Operation) -> None:
    """The pixels of a channel become several channels, of the same neuron."""
    labels, several = channels_into_pixels(follower, operation)
    labels = labels.repeat_interleave(several)
    follower.put(operation.output, labels.view(-1, 1, 1), follower.state(operation.args[0]).normed)


def spatial(follower: Follower, operation: Operation) -> None:
    """Pooling, resizing, padding by reflection: acts on positions, for each neuron alone."""
    x = operation.args[0]
    state = follower.state(x)
    if state is None:
        raise Unknown(f"{operation.name} by something that is computed")
    digits = [int(letter) for letter, after in zip(operation.name, operation.name[1:], strict=False) if after == "d"
              and letter.isdigit()]  # fmt: skip
    dimensions = digits[0] if digits else x.ndim - 2
    first = x.ndim - dimensions
    if any(axis >= first for axis in axes_that_vary(state.labels)):
        raise Unknown(f"{operation.name} over its neurons")
    small = kernel(state.labels)
    for output in tensors_in(operation.output)[:1]:
        follower.put(output, small.expand(output.shape), state.normed)


def regions(follower: Follower, operation: Operation) -> None:
    """Regions of an image, resized: x [images, neurons, height, width] -> [regions, neurons, ...]."""
    state = follower.state(operation.args[0])
    if state is None or axes_that_vary(state.labels) - {1}:
        raise Unknown(f"{operation.name} over its neurons")
    follower.put(operation.output, kernel(state.labels).expand(operation.output.shape), state.normed)


def put_at_places(follower: Follower, operation: Operation) -> None:
    """x[places] = values, the places on axes that no neurons lie on: x has the neurons of both."""
    target, indices, values = operation.args[:3]
    if values.numel() == 0:
        return
    state = follower.state(values)
    if state is None or values.ndim != target.ndim:
        raise Unknown(f"{operation.name} of neurons and data")
    indexed = {axis for axis, index in enumerate(indices) if index is not None}
    lists = all(index is None or index.ndim == 1 for index in indices)
    if indexed & axes_that_vary(state.labels) or not lists:
        raise Unknown(f"{operation.name} picks neurons")
    labels = kernel(state.labels).expand(target.shape)
    normed = state.normed
    before = follower.state(target)
    if before is None and id(target) not in follower.zeros:
        raise Unknown("it is written into a part of another tensor")
    if before is not None:
        follower.names.join(labels, before.labels)
        labels = follower.names.find(labels)
        normed = normed and before.normed
    follower.put(operation.output, labels, normed)
    if in_place(operation):
        follower.put(target, labels, normed)


# ======================================================================================
# Reductions
# ======================================================================================


def reduced(follower: Follower, operation: Operation) -> None:
    """Over positions: the neuron stays. Over neurons: they are treated together, and what comes out is data."""
    x = operation.args[0]
    state = follower.state(x)
    dims = operation.argument("dim")
    dims = range(x.ndim) if dims is None or dims == [] else dims
    if isinstance(dims, int):
        dims = [dims]
    dims = {dim % x.ndim for dim in dims}
    varying = axes_that_vary(state.labels)
    outputs = tensors_in(operation.output)
    if varying & dims and not (varying - dims and operation.name in ("sum", "mean")):
        follower.couple(state.labels, f"{operation.name} over its neurons")
        follower.distinguish(state.labels, varying - dims, f"{operation.name} over some of its neurons")
        return
    labels = state.labels
    for dim in sorted(dims, reverse=True):
        if dim in varying:  # a sum of several neurons' entries joins them, place by place
            follower.names.join(labels, labels.narrow(dim, 0, 1))
        labels = labels.narrow(dim, 0, 1)
    labels = follower.names.find(labels)
    for output in outputs:
        shape = labels.shape if output.ndim == x.ndim else [n for k, n in enumerate(labels.shape) if k not in dims]
        if output.numel() == labels.numel():
            follower.put(output, reshaped(labels, shape), state.normed)


# ======================================================================================
# Norms: a gain and an offset for each neuron
# ======================================================================================


def batch_norm(follower: Follower, operation: Operation) -> None:
    x = operation.args[0]
    state = follower.state(x)
    if state is None:  # a norm of the input itself: it has no neurons
        return
    output = tensors_in(operation.output)[0]
    varying = axes_that_vary(state.labels)
    gain = operation.argument("weight")
    if 1 in varying or not varying:
        labels = follower.names.along(state.labels, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            attach_vector(follower, operation.argument(name), labels, "through", is_norm=True)
        follower.put(output, state.labels, normed=isinstance(gain, Tensor))
        return
    follower.couple(state.labels, TOGETHER)
    follower.put(output, state.labels, state.normed)


def attach_vector(follower: Follower, vector, labels: Tensor, role: str, is_norm: bool = False) -> None:
    """Entry i of a bias, a gain or an offset belongs to the neuron labels[i]."""
    if not isinstance(vector, Tensor):
        return
    found = vector_behind(follower, vector)
    if found is not None:
        parameter, places = found
        follower.attach(parameter, 0, on_places(labels, places, len(parameter)), role)
        follower.holders[id(parameter), 0, 1].is_norm = is_norm
    elif follower.is_followed(vector):  # made of parameters: a repeated gain, say
        state = follower.state(vector)
        if state is not None and state.labels.shape == labels.shape:
            follower.names.join(state.labels, labels)
    else:
        axes = axes_that_vary(vector) if id(vector) in follower.dependent else constant_axes(vector)
        follower.distinguish(labels, axes, "it adds something that differs from channel to channel")


def vector_behind(follower: Follower, vector: Tensor) -> tuple[Tensor, Tensor] | None:
    """(parameter [n], places on it) that a vector is, or is a slice of."""
    source = source_of(follower, vector)
    if not known_weight(follower, source) or source.ndim != 1 or vector.ndim != 1:
        return None
    places = places_on_parameter(source, vector, 0)
    return None if places is None else (source, places[1])


def layer_norm(follower: Follower, operation: Operation) -> None:
    """LayerNorm and RMSNorm: couple the neurons that they normalise over."""
    x = operation.args[0]
    state = follower.state(x)
    if state is None:
        return
    output = tensors_in(operation.output)[0]
    first = x.ndim - len(operation.argument("normalized_shape"))
    if not any(axis >= first for axis in axes_that_vary(state.labels)):  # over positions, each neuron alone
        follower.put(output, state.labels, state.normed)
        return
    follower.couple(state.labels, TOGETHER)
    labels = state.labels
    for _ in range(first):
        follower.names.join(labels[:1], labels)
        labels = labels[0]
    labels = follower.names.find(labels)
    affine = [operation.argument(name) for name in ("weight", "bias")]
    affine = [tensor for tensor in affine if isinstance(tensor, Tensor)]
    for tensor in affine:
        if tensor.ndim > 1 and id(tensor) in follower.parameters:
            follower.attach_shaped(tensor, labels, "through")
        else:
            attach_vector(follower, tensor, labels, "through", is_norm=True)
    follower.put(output, state.labels, normed=bool(affine))


def group_norm(follower: Follower, operation: Operation) -> None:
    x = operation.args[0]
    state = follower.state(x)
    output = tensors_in(operation.output)[0]
    if state is None:
        return
    channels, groups = operation.argument("C"), operation.argument("group")
    if axes_that_vary(state.labels) - {1}:
        raise Unknown("it normalises over more than its neurons")
    labels = follower.names.along(state.labels, 1)
    if 1 in axes_that_vary(state.labels) and groups < channels:
        follower.couple(labels, TOGETHER)
        places = torch.arange(channels) // (channels // groups)
        follower.distinguish(labels, {0}, "it normalises groups of its neurons", places)
    for name in ("weight", "bias"):
        attach_vector(follower, operation.argument(name), labels, "through", is_norm=True)
    follower.put(output, state.labels, normed=isinstance(operation.argument("weight"), Tensor))


# ======================================================================================
# Layers: products with weights
# ======================================================================================


def convolution(follower: Follower, operation: Operation) -> None:
    """Ends the neurons of its input at one axis of its weight, and makes new ones at the other."""
    x, weight, bias = operation.args[:3]
    transposed, groups = operation.argument("transposed"), operation.argument("groups")
    state = follower.state(x)
    if not known_weight(follower, weight):
        if follower.is_parameter(weight):
            raise Unknown("its weight is computed from other parameters")
        raise Unknown("its weight is computed from activations")
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    dimensions = weight.ndim - 2
    channel = x.ndim - dimensions - 1
    labels, normed = None, True
    if state is not None:
        normed = state.normed
        varying = axes_that_vary(state.labels)
        if any(axis > channel for axis in varying):
            raise Unknown("it mixes its neurons as if they were positions")
        labels = follower.names.along(state.labels, channel)
    output = operation.output
    channels = x.size(channel)
    if groups > 1 and groups == channels:
        made = depthwise(follower, operation, labels)
    elif groups > 1:
        made = grouped(follower, operation, labels, normed)
    else:
        follower.read(weight, in_axis, x, channel, labels, normed)
        made = follower.make(weight, out_axis)
    attach_vector(follower, bias, made, "through" if groups == channels > 1 else "incoming")
    shape = [1] * output.ndim
    shape[channel] = output.size(channel)
    follower.put(output, made.view(shape), normed and groups == channels > 1)


def known_weight(follower: Follower, weight) -> bool:
    return id(weight) in follower.parameters or id(weight) in follower.computed


def depthwise(follower: Follower, operation: Operation, labels: Tensor | None) -> Tensor:
    """A kernel of its own for each neuron: like the gain of a norm."""
    weight, groups = operation.args[1], operation.argument("groups")
    if labels is None:  # of the network's input: each channel is its own
        labels = follower.names.new(groups)
        follower.distinguish(labels, {0}, "it acts on each channel of the network's input by itself")
    if operation.argument("transposed"):
        if weight.size(1) != 1:
            raise Unknown("a transposed convolution in groups")
        return follower.attach(weight, 0, labels, "through")
    multiplier = len(weight) // groups
    return follower.attach(weight, 0, labels.repeat_interleave(multiplier), "through")


def grouped(follower: Follower, operation: Operation, labels: Tensor | None, normed: bool) -> Tensor:
    """Neurons are exchangeable only within a group of the convolution, before it and behind it."""
    x, weight = operation.args[:2]
    groups = operation.argument("groups")
    if operation.argument("transposed"):
        raise Unknown("a transposed convolution in groups")
    reason = "a grouped convolution"
    if labels is not None:
        channel = x.ndim - weight.ndim + 1
        follower.read(weight, 1, x, channel, labels, normed, groups)
        follower.distinguish(labels, {0}, reason, torch.arange(len(labels)) // (len(labels) // groups))
    made = follower.make(weight, 0)
    follower.distinguish(made, {0}, reason, torch.arange(len(made)) // (len(made) // groups))
    return made


def embedding(follower: Follower, operation: Operation) -> None:
    """A table: its columns are neurons."""
    weight = operation.args[0]
    if not known_weight(follower, weight):
        raise Unknown("a table that is computed")
    labels = follower.make(weight, 1)
    follower.put(operation.output, labels)


class Weight(NamedTuple):
    """A matrix that is a view of a parameter: which axes of the parameter its two axes are."""

    parameter: Tensor
    axes: tuple[int, int]
    places: tuple[Tensor, Tensor]  # index on that axis of the parameter, for each index of the matrix


def source_of(follower: Follower, tensor: Tensor) -> Tensor:
    """What a tensor that is made of parameters is a view of; the tensor itself where it is no view."""
    while id(tensor) in follower.derived and follower.derived[id(tensor)].function.is_view:
        tensor = follower.derived[id(tensor)].args[0]
    return tensor


def weight_behind(follower: Follower, matrix: Tensor) -> Weight | None:
    """The parameter that a [k, n] matrix is a view of."""
    source = source_of(follower, matrix)
    if not known_weight(follower, source):
        return None
    one, other = (places_on_parameter(source, matrix, axis) for axis in (matrix.ndim - 2, matrix.ndim - 1))
    first = torch.zeros(1, dtype=torch.long)
    if source.ndim == 2:  # an axis of size 1 may lie on any axis: it is the one that the other isn't
        if one is None and other is None and source.numel() == 1:
            other = (1 if matrix is source else 0), first
        if one is None and other is not None:
            one = 1 - other[0], first
        if other is None and one is not None:
            other = 1 - one[0], first
    if one is None or other is None or one[0] == other[0]:
        return None
    return Weight(source, (one[0], other[0]), (one[1], other[1]))


def places_on_parameter(parameter: Tensor, view: Tensor, axis: int) -> tuple[int, Tensor] | None:
    """(axis of the parameter, index there) for each index along an axis of a view; None where that isn't one axis."""
    if parameter.ndim == 1:
        first = view.storage_offset() - parameter.storage_offset()
        return 0, first + torch.arange(view.size(axis)) * view.stride(axis)
    if view.size(axis) == 1:
        return None
    start, step = view.storage_offset() - parameter.storage_offset(), view.stride(axis)
    for k in range(parameter.ndim):
        unit = parameter.stride(k)
        reaches = unit <= step < unit * parameter.size(k) and step % unit == 0
        if parameter.size(k) > 1 and reaches:
            places = start // unit % parameter.size(k) + torch.arange(view.size(axis)) * (step // unit)
            return (k, places) if int(places[-1]) < parameter.size(k) else None
    return None


def on_places(labels: Tensor, places: Tensor, size: int) -> Tensor:
    """Labels put at their places on an axis of that size, data elsewhere."""
    full = torch.full((size,), DATA)
    full[places] = labels
    return full


def matrix_product(follower: Follower, operation: Operation) -> None:
    """mm, bmm, addmm, baddbmm: a layer where one factor is a weight, else a product of activations."""
    factors = [value for value in operation.args if isinstance(value, Tensor)]
    bias = factors[0] if len(factors) == 3 else None
    left, right = factors[-2:]
    output = operation.output
    if follower.is_parameter(left) and follower.is_parameter(right):
        raise Unknown("a product of two parameters")
    if follower.is_parameter(right):
        weight = find_weight(follower, right)
        follower.put(output, linear(follower, left, left.ndim - 1, weight))
    elif follower.is_parameter(left):
        weight = find_weight(follower, left)
        weight = Weight(weight.parameter, weight.axes[::-1], weight.places[::-1])
        follower.put(output, linear(follower, right, right.ndim - 2, weight).mT)
    else:
        product_of_activations(follower, left, right, output)
    state = follower.states.get(id(output))
    if bias is None or state is None:
        return
    varying = axes_that_vary(state.labels)
    if output.ndim - 1 in varying or not varying:
        attach_vector(follower, bias, follower.names.along(state.labels, output.ndim - 1), "incoming")


def matrix_times_vector(follower: Follower, operation: Operation) -> None:
    """A layer of one neuron, which reads the columns of a matrix; or a weight, applied to a single input."""
    matrix, vector = operation.args
    if follower.is_parameter(matrix) and not follower.is_parameter(vector):
        weight = find_weight(follower, matrix)
        weight = Weight(weight.parameter, weight.axes[::-1], weight.places[::-1])
        follower.put(operation.output, linear(follower, vector, 0, weight))
        return
    found = vector_behind(follower, vector)
    state = follower.state(matrix)
    if found is None or follower.is_parameter(matrix):
        raise Unknown("mv with a vector that is computed")
    parameter, places = found
    labels, normed = None, True
    if state is not None:
        if axes_that_vary(state.labels) == {0}:
            raise Unknown("mv mixes its positions")
        labels = on_places(follower.names.along(state.labels, 1), places, len(parameter))
        normed = state.normed
    if len(places) != len(parameter):
        raise Unknown("mv with a part of a vector")
    follower.read(parameter, 0, matrix, 1, labels, normed)


def find_weight(follower: Follower, matrix: Tensor) -> Weight:
    """The parameter behind a matrix: the axis that is read, the axis that is made."""
    weight = weight_behind(follower, matrix)
    batched = matrix.ndim == 3 and matrix.size(0) > 1 and matrix.stride(0) != 0
    if weight is not None and not batched:
        return weight
    source = source_of(follower, matrix)
    if known_weight(follower, source):
        raise Unknown("its weight has more than two axes" if source.ndim > 2 else "its weight is reshaped")
    raise Unknown("its weight is computed from other parameters")


def linear(follower: Follower, x: Tensor, axis: int, weight: Weight) -> Tensor:
    """Labels [..., 1, n] of a linear layer's output, or [..., m, 1] where the neurons of x run through it."""
    state = follower.state(x)
    parameter = weight.parameter
    read, made = weight.axes
    labels, normed = None, True
    if state is not None:
        varying = axes_that_vary(state.labels)  # none: there is one neuron alone, and this reads it
        if varying and axis not in varying:  # it mixes positions, each neuron alone
            reason = "it mixes positions: its own neurons aren't measured"
            follower.unfollowed.append(Note(torch.empty(0), follower.now.layer, reason))
            labels = state.labels.narrow(axis, 0, 1)
            return labels if axis == x.ndim - 1 else labels.mT
        labels, normed = follower.names.along(state.labels, axis), state.normed
    if len(weight.places[0]) == parameter.size(read):
        if labels is not None:
            labels = on_places(labels, weight.places[0], parameter.size(read))
        follower.read(parameter, read, x, axis, labels, normed)
    elif labels is not None:  # a part of the weight
        labels = on_places(labels, weight.places[0], parameter.size(read))
        follower.attach(parameter, read, labels, "outgoing", 1, normed)
        follower.note_use(follower.holders[id(parameter), read, 1], x, axis, weight.places[0])
    labels = follower.make(parameter, made)[weight.places[1]]
    return labels.view([1] * (x.ndim - 1) + [len(labels)])


def product_of_activations(follower: Follower, left: Tensor, right: Tensor, output: Tensor) -> None:
    """Attention and the like: [b, m, k] times [b, k, n]."""
    one, other = follower.state(left), follower.state(right)
    k = left.ndim - 1
    reads_left = one is not None and k in axes_that_vary(one.labels)
    reads_right = other is not None and right.ndim - 2 in axes_that_vary(other.labels)
    batch = set(range(left.ndim - 2))
    if reads_left and reads_right:  # queries and keys: the same neuron in both
        contract(follower, one.labels, k, other.labels, right.ndim - 2, batch)
        return
    if reads_left or reads_right:
        state = one if reads_left else other
        reason = "a product with something that differs from channel to channel"
        follower.distinguish(state.labels, axes_that_vary(state.labels), reason)
        follower.freeze(state.labels, reason)
        return
    both = one is not None and other is not None
    if both and axes_that_vary(one.labels) - batch and axes_that_vary(other.labels) - batch:
        raise Unknown("a product of two activations that both carry neurons")
    if other is not None and axes_that_vary(other.labels):  # positions are mixed, each neuron alone
        pass_on(follower, other, left, right.ndim - 2, output)
    elif one is not None and axes_that_vary(one.labels):
        pass_on(follower, one, right, k, output)


def contract(follower: Follower, one: Tensor, one_axis: int, other: Tensor, other_axis: int, batch: set[int]) -> None:
    """A scalar product of two activations' neurons: neuron i of both is one, and nobody reads it but the other."""
    one = over_rows(follower, one, one_axis)
    other = over_rows(follower, other, other_axis)
    follower.names.join(one, other)
    labels = follower.names.find(one)
    follower.contracted.append(Note(kernel(labels).flatten(), follower.now.layer, "query-key"))
    follower.distinguish(labels, batch, "each head has neurons of its own")


def over_rows(follower: Follower, labels: Tensor, axis: int) -> Tensor:
    """[batch..., size of the axis]: labels joined over the other one of the last two axes."""
    other = 2 * labels.ndim - 3 - axis
    if other in axes_that_vary(labels):
        follower.names.join(labels, labels.narrow(other, 0, 1))
    return labels.select(other, 0)


def pass_on(follower: Follower, state: State, weights: Tensor, axis: int, output: Tensor) -> None:
    """Positions are mixed with weights that are data (attention, a graph): a value goes on, within its head."""
    labels = state.labels.narrow(axis, 0, 1)
    batch = {a for a in range(labels.ndim - 2) if weights.size(a) > 1 and weights.stride(a) != 0}
    follower.distinguish(labels, batch, "each head has neurons of its own")
    if id(weights) in follower.from_softmax:
        follower.mixed.append(Note(kernel(labels).flatten(), follower.now.layer, "value"))
    follower.put(output, labels.expand(output.shape), state.normed)


def attention(follower: Follower, operation: Operation) -> None:
    """Fused scaled dot product attention of q, k, v [..., heads, positions, dimensions]."""
    q, k, v = operation.args[:3]
    states = [follower.state(tensor) for tensor in (q, k, v)]
    output = tensors_in(operation.output)[0]
    last = q.ndim - 1
    q_labels, k_labels = (state.labels if state is not None else None for state in states[:2])
    if q_labels is not None and k_labels is not None:
        repeat = q.size(-3) // k.size(-3) if q.ndim > 3 else 1
        if repeat > 1:
            k_labels = compact(k_labels.repeat_interleave(repeat, -3))
        contract(follower, q_labels, last, k_labels, last, set(range(q.ndim - 2)))
    else:
        for labels in (q_labels, k_labels):
            if labels is not None:
                follower.freeze(labels, "attention with something that differs from channel to channel")
    if states[2] is not None:
        labels = states[2].labels
        if v.ndim > 3 and q.size(-3) != v.size(-3):
            labels = compact(labels.repeat_interleave(q.size(-3) // v.size(-3), -3))
        if v.ndim - 2 in axes_that_vary(labels):
            raise Unknown("attention over its neurons")
        follower.distinguish(labels, set(range(v.ndim - 2)), "each head has neurons of its own")
        follower.mixed.append(Note(kernel(labels).flatten(), operation.layer, "value"))
        follower.put(output, labels.narrow(v.ndim - 2, 0, 1).expand(output.shape), states[2].normed)


CONSTANTS = set("new_zeros new_ones new_full zeros_like ones_like full_like".split())
CREATORS = CONSTANTS | set(
    "new_empty empty_like rand_like randn_like randint_like new_empty_strided".split(),
)

RULES = {
    **dict.fromkeys("view _unsafe_view reshape _reshape_alias flatten unflatten".split(), reshape),
    **dict.fromkeys(
        "permute transpose t unsqueeze squeeze select slice expand split split_with_sizes chunk unbind narrow unfold "
        "channel_shuffle native_channel_shuffle diagonal flip roll index index_select gather stack repeat tile "
        "repeat_interleave movedim unsafe_split".split(),
        moved,
    ),
    **dict.fromkeys(
        "clone _to_copy detach alias contiguous lift_fresh lift to as_strided fill zero native_dropout dropout".split(),
        same,
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin logcumsumexp sort".split(), along_positions),
    **dict.fromkeys(
        "sum mean amax amin max min var std linalg_vector_norm norm logsumexp prod argmax argmin all any".split(),
        reduced,
    ),
    **dict.fromkeys("_softmax _log_softmax softmax log_softmax".split(), softmax),
    **dict.fromkeys(  # not all of them are marked as such by PyTorch
        "copy prelu _prelu_kernel rrelu lerp where masked_fill addcmul addcdiv hardswish hardsigmoid hardtanh silu "
        "mish gelu elu celu selu leaky_relu relu relu6 softplus softshrink hardshrink log_sigmoid_forward threshold "
        "sigmoid tanh abs add sub mul div neg exp log sqrt rsqrt pow square clamp clamp_min clamp_max sin cos".split(),
        elementwise,
    ),
    **dict.fromkeys("mm bmm addmm baddbmm".split(), matrix_product),
    **dict.fromkeys("native_layer_norm _fused_rms_norm rms_norm".split(), layer_norm),
    "native_group_norm": group_norm,
    "cat": concatenate,
    "glu": gated_halves,
    "mv": matrix_times_vector,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "constant_pad_nd": padded,
    "convolution": convolution,
    "embedding": embedding,
    "index_put": put_at_places,
    "roi_align": regions,
    "roi_pool": regions,
}

RULES_BY_PART = {
    "batch_norm": batch_norm,
    "scaled_dot_product": attention,
    **dict.fromkeys("pool1d pool2d pool3d upsample reflection_pad replication_pad grid_sampler".split(), spatial),
}
