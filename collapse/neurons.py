"""Which parameters are a neuron: the groups of neurons of any network, from one run of it.

A neuron is a channel: a row of the layer that makes it, its entries in norms, and the columns of the layers that read
it. `labels.py` finds out which entry of which parameter is which neuron's; here neurons that are alike make a group.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from collapse.errors import CollapseError
from collapse.labels import FIRST, OUTPUT, SOFTMAX, Follower, Holder
from collapse.trace import Recording, on_the_cpu, record, unwrapped

ROLES = ("incoming", "through", "outgoing")
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)

# ======================================================================================
# Groups and slots
# ======================================================================================


@dataclass(frozen=True, eq=False)
class Slot:
    """One parameter that holds something of each neuron of a group."""

    name: str  # path of the module that owns it
    module: nn.Module
    parameter: str  # its name there: "weight"
    role: str  # "incoming", "through", "outgoing" or "statistic"
    dim: int | None  # axis of the parameter that neurons lie on; None: its flattened entries
    index: Tensor  # [n, block]: the places of each neuron on that axis
    groups: int = 1  # of a grouped convolution: the axis is then all of its input channels
    computed: bool = False  # from other parameters (weight norm): can be read, not written
    is_norm: bool = False  # the gain or the offset of a norm
    tied: bool = False  # it makes the neurons and reads them: both in one, with the role "incoming"
    uses: tuple = field(default=(), repr=False)  # where the recorded run reads it (labels.Use)

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.parameter)

    @property
    def block(self) -> int:
        return self.index.shape[1]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.parameter, self.role

    def axis_first(self, tensor: Tensor) -> Tensor:
        """A view with the axis that neurons lie on first; of a grouped convolution [groups, its channels, ...].

        Of flat entries the whole tensor as it is: in memory they may lie in any order.
        """
        if self.dim is None:
            return tensor
        if self.groups == 1:
            return tensor.movedim(self.dim, 0)
        outputs = len(tensor) // self.groups
        return tensor.view(self.groups, outputs, *tensor.shape[1:]).transpose(1, 2)

    def places(self, view: Tensor) -> tuple[Tensor, ...]:
        """The index into `axis_first`."""
        index = self.index.to(view.device)
        if self.dim is None:
            return torch.unravel_index(index, view.shape)
        if self.groups == 1:
            return (index,)
        return index // view.size(1), index % view.size(1)

    def read(self, tensor: Tensor) -> Tensor:
        """[n, block, *other axes] of a tensor that has the parameter's shape."""
        view = self.axis_first(tensor)
        whole_axis = self.dim is not None and self.groups == 1 and self.index.numel() == len(view)
        if whole_axis and self.in_order:
            return view.reshape(*self.index.shape, *view.shape[1:])
        return view[self.places(view)]

    def write(self, tensor: Tensor, rows: Tensor) -> None:
        """Put [n, block, *other axes] where `read` takes them from."""
        view = self.axis_first(tensor)
        view[self.places(view)] = rows.to(tensor.dtype)

    @property
    def in_order(self) -> bool:
        places = self.index.flatten()
        return bool((places.diff() == 1).all())


@dataclass(frozen=True, eq=False)
class NeuronGroup:
    """Neurons (channels) that live and die together, and every parameter that holds something of them.

    A residual stream is one group with several producers and consumers. Neurons are exchangeable within the same
    `part`: those of one attention head, of one group of a grouped convolution.
    """

    name: str  # of the first layer that makes them
    size: int
    slots: tuple[Slot, ...]
    part: Tensor  # [n]
    coupled: str | None = None  # what normalises the neurons together
    normed: bool = False  # whatever reads them reads the output of a norm
    kind: str = "neuron"  # or "query-key", "value"

    def with_role(self, *roles: str) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.role in roles)

    @property
    def producers(self) -> tuple[Slot, ...]:
        return self.with_role("incoming")

    @property
    def norms(self) -> tuple[Slot, ...]:
        return self.with_role("through")

    @property
    def consumers(self) -> tuple[Slot, ...]:
        return self.with_role("outgoing")

    def parts(
        self, pick: Callable[[Tensor], Tensor] = Tensor.detach, roles: tuple[str, ...] = ROLES
    ) -> dict[tuple[str, str, str], Tensor]:
        """{(layer, parameter, role): [n, block, ...]}: each neuron's part of what `pick` makes of every parameter."""
        return {slot.key: slot.read(pick(slot.tensor)) for slot in self.with_role(*roles)}

    def matrix(self, roles: tuple[str, ...]) -> Tensor:
        """[n, d] of everything with these roles."""
        parts = [part.reshape(self.size, -1) for part in self.parts(roles=roles).values()]
        if not parts:
            return torch.zeros(self.size, 0)
        return torch.cat(parts, 1)

    def incoming(self) -> Tensor:
        """[n, d] of producers' rows with biases, then norms' gains and offsets."""
        return self.matrix(("incoming", "through"))

    def outgoing(self) -> Tensor:
        """[n, d] of consumers' columns."""
        return self.matrix(("outgoing",))

    def vectors(self) -> Tensor:
        """[n, d] of all parameters of each neuron: incoming, norms, outgoing."""
        return self.matrix(ROLES)

    def importance(self) -> Tensor | None:
        """[n] norms that tell whether a neuron has vanished, where they aren't those of `vectors`.

        Neurons that a norm couples vanish when gain, offset and outgoing weights are zero, whatever their rows are.
        Where something reads them past the norm they can't vanish at all.
        """
        if self.coupled is None:
            return None
        if not self.normed:
            return torch.ones(self.size)
        parts = [slot.read(slot.tensor.detach()) for slot in self.vanishing_set()]
        squares = [part.reshape(self.size, -1).double().square().sum(1) for part in parts]
        return torch.stack(squares).sum(0).sqrt()

    def vanishing_set(self) -> tuple[Slot, ...]:
        """The slots that are zero where a neuron has vanished; where norms couple neurons, not those before them."""
        if self.coupled is None:
            return self.with_role(*ROLES)
        return tuple(slot for slot in self.slots if slot.is_norm or slot.role == "outgoing")


class Skipped(NamedTuple):
    """A layer whose neurons aren't measured, and why."""

    name: str
    reason: str


class NeuronGroups(list):
    """The groups of a network, in the order they run, and what was not measured."""

    def __init__(self, groups: list[NeuronGroup], skipped: list[Skipped], covered: float, model: nn.Module):
        super().__init__(groups)
        self.model = model  # whose groups they are, without wrappers
        self.skipped = skipped
        self.covered = covered  # share of the parameters that belong to a measured neuron

    @property
    def whole(self) -> bool:
        """Whether all but inputs, outputs and softmaxes was measured."""
        return all(entry.reason in (OUTPUT, SOFTMAX) for entry in self.skipped)


# ======================================================================================
# From labels to groups
# ======================================================================================


def neuron_groups(model: nn.Module, example, pairing: str = "graph") -> NeuronGroups:
    """The groups of neurons of any network, in the order they run.

    `example`: a batch of the network's inputs, a tensor, a tuple (positional) or a dict (by name). The network runs on
    it once, in eval mode, and is left as it was. What can't be followed ties its channels to those that can't
    change, as inputs, outputs and softmaxes do; `.skipped` of the returned list says which layers and why.
    `pairing="paper"` pairs each layer with the next one instead, without norms, skip connections and down-sampling,
    as the reference code of Stochastic Collapse does for its ResNet.

    Raises CollapseError (a ValueError) for an example the network doesn't take, parameters that are complex or without
    values, and where no group of neurons is found at all, saying why.
    """
    if pairing not in ("graph", "paper"):
        raise CollapseError(f"pairing must be 'graph' or 'paper', not {pairing!r}")
    model = unwrapped(model)
    recording = record(model, example)
    if pairing == "paper":
        return layer_pairs(model, recording)
    with on_the_cpu():
        groups = groups_of(model, Follower(model, recording))
    if not groups:
        reasons = [f"{entry.name}: {entry.reason}" for entry in groups.skipped[:3]]
        why = "; ".join(reasons) or "no layer reads what another layer makes"
        raise CollapseError(
            f"nothing to measure in {type(model).__name__}, no group of neurons can be followed ({why}); "
            "single layers can still be counted: independent_neurons(layer.weight.flatten(1))"
        )
    return groups


class Owner(NamedTuple):
    """Where a parameter lives."""

    name: str
    module: nn.Module
    parameter: str
    computed: bool


def owners_of(model: nn.Module, computed: dict) -> dict[int, Owner]:
    """{id of a tensor: its first owner} of all parameters, buffers and computed weights."""
    owners = {}
    for name, module in model.named_modules():
        for parameter, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                owners.setdefault(id(tensor), Owner(name, module, parameter, False))
    for key, (name, parameter) in computed.items():
        owners[key] = Owner(name, model.get_submodule(name), parameter, True)
    return owners


def mixed_bits(numbers: Tensor) -> Tensor:
    """Integers scrambled (the finaliser of splitmix64), so that sums of different sets differ."""
    numbers = numbers * -7046029254386353131
    numbers = (numbers ^ (numbers >> 30)) * -4658895280553007687
    numbers = (numbers ^ (numbers >> 27)) * -7723592293110705685
    return numbers ^ (numbers >> 31)


class Classes:
    """What is known of each neuron (a label that stands for all those joined with it), as arrays over labels."""

    def __init__(self, follower: Follower, holders: list[Holder]):
        self.find = follower.names.find
        count = len(follower.names.parent)
        self.signature = torch.zeros(count, dtype=torch.long)  # which holders, how many places in each
        self.colour = torch.zeros(count, dtype=torch.long)  # what it met that others may not have met
        self.made = self.none(count)
        self.read = self.none(count)
        self.of_holder = []
        for number, holder in enumerate(holders):
            roots = self.find(holder.labels)
            self.of_holder.append(roots)
            own, counts = roots[roots >= FIRST].unique(return_counts=True)
            self.signature[own] += mixed_bits(number * 1_000_003 + counts)
            if "incoming" in holder.roles:
                self.made[own] = True
            if "outgoing" in holder.roles:
                self.read[own] = True
        for number, distinction in enumerate(follower.distinct):
            self.distinguish(number, distinction)
        self.place = torch.zeros(count, dtype=torch.long)  # what a label met before it was joined with others
        marks = mixed_bits(-1 - torch.arange(len(follower.met)))
        for meeting, mark in zip(follower.met, marks, strict=True):
            self.meet(meeting, mark)
        self.contracted = self.marked(follower.contracted, count)
        self.mixed = self.marked(follower.mixed, count)
        self.frozen = self.first_note(follower.frozen, count)
        self.coupled = self.first_note(follower.coupled, count)
        self.read |= self.contracted

    def none(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.bool)

    def roots(self, labels: Tensor) -> Tensor:
        roots = self.find(labels)
        return roots[roots >= FIRST].unique()

    def distinguish(self, number: int, distinction) -> None:
        roots = self.find(distinction.labels)
        pairs = torch.stack([roots, distinction.context], 1)[roots >= FIRST].unique(dim=0)
        self.colour.index_add_(0, pairs[:, 0], mixed_bits(number * 1_000_003 + pairs[:, 1]))

    def meet(self, meeting, mark: Tensor) -> None:
        """Colour the neurons that an operation acted on, and the places that were still a neuron each, once."""
        roots = self.find(meeting.labels)
        self.colour[roots[roots >= FIRST]] += mark  # `+=` at indices: once, even where one is there twice
        self.place[meeting.labels[meeting.alone]] += mark

    def marked(self, notes: list, count: int) -> Tensor:
        marks = self.none(count)
        for note in notes:
            marks[self.roots(note.labels)] = True
        return marks

    def first_note(self, notes: list, count: int) -> Tensor:
        """[labels]: number of the first note about each, -1 for none."""
        first = torch.full((count,), -1)
        for number in reversed(range(len(notes))):
            first[self.roots(notes[number].labels)] = number
        return first


def groups_of(model: nn.Module, follower: Follower) -> NeuronGroups:
    """Neurons with the same slots make a group; those that met the same things, a part of it."""
    holders = list(follower.holders.values())
    owners = owners_of(model, follower.computed)
    classes = Classes(follower, holders)
    wanted = classes.made & classes.read & (classes.frozen < 0)
    roots = wanted.nonzero()[:, 0]
    signatures, number_of = classes.signature[roots].unique(return_inverse=True)
    group_of = torch.full_like(classes.signature, -1)
    group_of[roots] = number_of
    found = [[] for _ in signatures]  # of each group: (holder, its roots)
    for holder, its_roots in zip(holders, classes.of_holder, strict=True):
        for number in group_of[its_roots].unique().tolist():
            if number >= 0:
                found[number].append((holder, its_roots))
    skipped = skipped_layers(follower, classes, holders, owners)
    groups = []
    for number, members in enumerate(found):
        group = make_group(members, group_of, number, classes, follower, owners)
        alone = group.size > 1 and len(group.part.unique()) == group.size
        if alone:  # nobody is like another
            skipped.append(Skipped(group.name, reason_of_distinction(follower, classes, members)))
        else:
            order = min(holder.order for holder, _ in members if "incoming" in holder.roles)
            groups.append((order, int(group.producers[0].index[0, 0]), group))
    groups.sort(key=lambda entry: entry[:2])
    groups = with_unique_names([group for *_, group in groups])
    return NeuronGroups(groups, list(dict.fromkeys(skipped)), covered_share(model, groups), model)


def make_group(
    members: list, group_of: Tensor, number: int, classes: Classes, follower: Follower, owners: dict
) -> NeuronGroup:
    """The group with this number: its neurons in the order of the first layer's rows."""
    members = sorted(members, key=lambda member: "incoming" not in member[0].roles)
    _, first_roots = members[0]
    rows = first_roots[group_of[first_roots] == number]
    neurons = in_order_of_appearance(rows)
    rank = torch.zeros_like(group_of)
    rank[neurons] = torch.arange(len(neurons))
    slots = []
    for holder, roots in members:
        places = (group_of[roots] == number).nonzero()[:, 0]
        order = rank[roots[places]].argsort(stable=True)
        if len(places) > len(neurons):
            # What a neuron's places do, as value and gate, may come in another order in each: the same one for all
            does = in_order_of_appearance(classes.place[holder.labels[places]], numbers=True)
            order = (rank[roots[places]] * len(places) + does).argsort(stable=True)
        index = places[order].view(len(neurons), -1)
        slots.append(make_slot(holder, index, owners[id(holder.tensor)]))
    slots.sort(key=order_of_slots)
    colours = classes.colour[neurons]
    part = in_order_of_appearance(colours, numbers=True)
    coupled = int(classes.coupled[neurons].max())
    reason = None
    if coupled >= 0:
        note = follower.coupled[coupled]
        reason = f"{note.layer}: {note.reason}" if note.layer else note.reason
    consumers = [holder for holder, _ in members if "outgoing" in holder.roles]
    kind = "neuron"
    if classes.contracted[neurons].any():
        kind = "query-key"
    elif classes.mixed[neurons].any():
        kind = "value"
    return NeuronGroup(
        name=slots[0].name or slots[0].parameter,
        size=len(neurons),
        slots=tuple(slots),
        part=part,
        coupled=reason,
        normed=bool(consumers) and all(holder.normed and "incoming" not in holder.roles for holder in consumers),
        kind=kind,
    )


def order_of_slots(slot: Slot) -> tuple[int, bool]:
    """By role, and of one role weights before biases."""
    return (*ROLES, "statistic").index(slot.role), slot.tensor.ndim == 1


def in_order_of_appearance(values: Tensor, numbers: bool = False) -> Tensor:
    """The different values, ordered by where each is first; or the number of each value in that order."""
    different, inverse = values.unique(return_inverse=True)
    first = torch.full_like(different, len(values)).scatter_reduce_(0, inverse, torch.arange(len(values)), "amin")
    order = first.argsort()
    if not numbers:
        return different[order]
    return order.argsort()[inverse]


def make_slot(holder: Holder, index: Tensor, owner: Owner) -> Slot:
    """A holder's places as a slot; flat entries become places on one axis where they lie on one."""
    dim = holder.axis
    shape = holder.tensor.shape
    if dim is None and len(shape) > 1:
        for axis in range(len(shape)):
            unit = shape[axis + 1 :].numel()
            places = index // unit % shape[axis]
            whole = index.shape[1] * shape[axis] == holder.tensor.numel() * len(places[0].unique())
            if whole and bool((places.amin(1) == places.amax(1)).all()):
                dim, index = axis, places[:, :1]
                break
    elif dim is None:
        dim = 0
    role = "incoming" if "incoming" in holder.roles else holder.role
    return Slot(
        owner.name,
        owner.module,
        owner.parameter,
        role,
        dim,
        index,
        holder.groups,
        owner.computed,
        holder.is_norm,
        {"incoming", "outgoing"} <= holder.roles,
        tuple(holder.uses),
    )


def with_unique_names(groups: list[NeuronGroup]) -> list[NeuronGroup]:
    """Where one layer makes several groups, their kind or their rows are added to its name."""

    def renamed(groups, addition):
        names = [group.name for group in groups]
        return [
            replace(group, name=group.name + addition(group)) if names.count(group.name) > 1 else group
            for group in groups
        ]

    def rows(group):
        index = group.producers[0].index
        return f":{int(index.min())}-{int(index.max())}"

    groups = renamed(groups, lambda group: f":{group.kind}" if group.kind != "neuron" else "")
    return renamed(groups, rows)


def skipped_layers(follower: Follower, classes: Classes, holders: list[Holder], owners) -> list[Skipped]:
    """Layers that make neurons that can't change, with the first reason, and those that weren't followed at all.

    Neurons that nothing reads by itself, only together with others (a maximum or a sum over them), are listed, too.
    """
    skipped = [Skipped(note.layer, note.reason) for note in follower.unfollowed]
    for holder, roots in zip(holders, classes.of_holder, strict=True):
        if "incoming" not in holder.roles or holder.tensor.ndim == 1:
            continue
        roots = roots[roots >= FIRST].unique()
        name = owners[id(holder.tensor)].name
        lost = roots[(classes.coupled[roots] >= 0) & ~classes.read[roots] & (classes.frozen[roots] < 0)]
        for number in classes.coupled[lost].unique().tolist():  # all that is read of them is one number of several
            skipped.append(Skipped(name, placed(follower.coupled[number])))
        for number in classes.frozen[roots].unique().tolist():
            whose = roots[classes.frozen[roots] == number]
            # that the last layer makes outputs goes without saying; that its neurons are also read doesn't
            silent = number >= 0 and follower.frozen[number].reason == OUTPUT and not bool(classes.read[whose].any())
            if number >= 0 and not silent:
                skipped.append(Skipped(name, frozen_reason(follower.frozen[number])))
    return skipped


def frozen_reason(note) -> str:
    return note.reason if note.reason in (OUTPUT, SOFTMAX) else placed(note)


def placed(note) -> str:
    """The reason of a note, with the layer it comes from."""
    return f"{note.reason} (in {note.layer})" if note.layer else note.reason


def reason_of_distinction(follower: Follower, classes: Classes, members: list) -> str:
    """Why no two neurons of a group are alike: the first operation in which each met something else."""
    for _, roots in members:
        own = roots[roots >= FIRST].unique()
        for distinction in follower.distinct:
            met = classes.find(distinction.labels)
            inside = torch.isin(met, own)
            if inside.any() and len(distinction.context[inside].unique()) > 1:
                return placed(distinction)
        for meeting in follower.met:
            is_met = torch.isin(own, classes.find(meeting.labels))
            if is_met.any() and not is_met.all():
                return placed(meeting)
    return "no two of its channels are alike"


def covered_share(model: nn.Module, groups: list[NeuronGroup]) -> float:
    """Share of the model's parameters that are part of a measured neuron, as a row, a column or both."""
    free = {}  # (id of a parameter, axis) -> share of the axis outside all groups
    tensors = {}
    for group in groups:
        for slot in group.slots:
            tensor = slot.tensor
            tensors[slot.name, slot.parameter] = tensor
            length = tensor.numel() if slot.dim is None else tensor.shape[slot.dim] * slot.groups
            key = (slot.name, slot.parameter, slot.dim)
            free[key] = free.get(key, 1.0) - slot.index.numel() / length
    uncovered = {}
    for (name, parameter, _), share in free.items():
        uncovered[name, parameter] = uncovered.get((name, parameter), 1.0) * max(share, 0.0)
    trained = {id(parameter) for parameter in model.parameters()}
    covered = 0.0
    for (name, parameter), share in uncovered.items():
        if id(tensors[name, parameter]) in trained:
            count = tensors[name, parameter].numel()
        else:
            count = sum(behind.numel() for behind in parameters_behind(model.get_submodule(name), parameter))
        covered += count * (1 - share)
    total = sum(parameter.numel() for parameter in model.parameters())
    return covered / max(total, 1)


def parameters_behind(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters that a module computes a weight from; none for one that it doesn't compute (a buffer)."""
    if parametrize.is_parametrized(module, name):
        return list(module.parametrizations[name].parameters())
    ends = ("_g", "_v", "_orig")  # of weight norm and spectral norm as they were written before parametrizations
    own = [module._parameters.get(name + end) for end in ends]
    return [parameter for parameter in own if parameter is not None]


# ======================================================================================
# The paper's pairing
# ======================================================================================


def layer_pairs(model: nn.Module, recording: Recording) -> NeuronGroups:
    """Each convolution or linear layer with the next one that runs; down-sampling of skip connections left out.

    Raises CollapseError for fewer than two layers, for layers whose sizes don't fit, and for transposed convolutions.
    """
    products = ("convolution", "mm", "addmm")
    calls = [operation.layer for operation in recording.operations if operation.name in products]
    layers = [(name, model.get_submodule(name)) for name in calls if "downsample" not in name]
    layers = [(name, module) for name, module in layers if isinstance(module, LAYERS)]
    if len(layers) < 2:
        raise CollapseError(f"the paper's pairing needs two layers in a row; {type(model).__name__} runs {len(layers)}")
    for name, module in layers:
        if isinstance(module, _ConvTransposeNd):
            raise CollapseError(f"the paper's pairing doesn't know transposed convolutions ({name}): use 'graph'")
    groups = []
    for (name, module), (next_name, following) in itertools.pairwise(layers):
        size = len(module.weight)
        block, rest = divmod(following.weight.shape[1], size)
        if rest:
            raise CollapseError(f"the paper's pairing can't join {name} ({size} neurons) to {next_name}")
        rows = torch.arange(size).view(size, 1)
        slots = [Slot(name, module, "weight", "incoming", 0, rows)]
        if module.bias is not None:
            slots.append(Slot(name, module, "bias", "incoming", 0, rows))
        columns = torch.arange(size * block).view(size, block)
        slots.append(Slot(next_name, following, "weight", "outgoing", 1, columns))
        groups.append(NeuronGroup(name, size, tuple(slots), torch.zeros(size, dtype=torch.long)))
    return NeuronGroups(groups, [], covered_share(model, groups), model)
