"""Extract: the smaller network that a collapsed one is."""

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from collapse.errors import CollapseError, RunError
from collapse.metrics import check_thresholds, leaders
from collapse.neurons import ROLES, NeuronGroup, Slot, neuron_groups
from collapse.report import check_slots, constant_neurons, input_of, square_sizes
from collapse.trace import Operation, Recording, check_finite, on_the_cpu, record, tensors_in, unwrapped

# ======================================================================================
# Which neurons go, and where to
# ======================================================================================


class Plan(NamedTuple):
    """What becomes of the neurons of a group."""

    group: NeuronGroup
    gone: Tensor  # [n] bool: vanished
    constant: Tensor  # [n] bool: what they say goes into their consumers' biases
    home: Tensor  # [n]: the neuron each merges into; itself where it stays

    @property
    def kept(self) -> Tensor:
        """Indices of the neurons that stay."""
        own = self.home == torch.arange(len(self.home))
        return (own & ~self.gone & ~self.constant).nonzero()[:, 0]

    @property
    def goes(self) -> Tensor:
        """[n] bool: the others."""
        goes = torch.ones(len(self.home), dtype=torch.bool)
        goes[self.kept] = False
        return goes

    @property
    def merged(self) -> int:
        return len(self.home) - len(self.kept) - int(self.gone.sum()) - int(self.constant.sum())


def vanished_neurons(group: NeuronGroup, vanishing: float) -> Tensor:
    """[n] of bool: which have vanished; one neuron always stays.

    A batch norm has two vanishing sets, gain, offset and outgoing weights zero, or incoming weights, offset and
    outgoing weights zero, and there a neuron must also be silent: what it still says is its offset, which must be below
    `vanishing` times the largest gain.
    """
    total = square_sizes(group, ROLES).cpu()
    norms = [slot for slot in group.norms if is_batch_norm(slot.module)]
    gains = [slot for slot in norms if slot.parameter == "weight"]
    offsets = [slot for slot in norms if slot.parameter == "bias"]
    left_out = [torch.zeros_like(total)]
    if gains and group.normed:
        left_out.append(sum(squares_of(slot, group.size) for slot in gains))
        left_out.append(square_sizes(group, ("incoming",)).cpu())
    gone = torch.zeros(group.size, dtype=torch.bool)
    for rest in left_out:
        sizes = (total - rest).clamp_min(0).sqrt()
        gone |= (sizes < vanishing * sizes.max()) | (sizes == 0)
    for slot in offsets:
        says = slot.read(slot.tensor.detach()).abs().amax(1).cpu()
        loudest = next(gain for gain in gains if gain.module is slot.module).tensor.detach().abs().max().cpu()
        gone &= says <= vanishing * loudest
    gone[total.argmax()] = False
    return gone


def is_batch_norm(module: nn.Module) -> bool:
    return "running_mean" in module._buffers


def squares_of(slot: Slot, size: int) -> Tensor:
    rows = slot.read(slot.tensor.detach()).reshape(size, -1)
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square().cpu()


def merge_near(group: NeuronGroup, among: Tensor, redundant: float, home: Tensor) -> None:
    """Enter into `home` which of the neurons `among` [n] follow which other ones.

    As the paper counts (`independent_neurons`): a neuron follows the first earlier one within `redundant`, unless
    others follow it.
    """
    left = among.nonzero()[:, 0]
    if len(left) == 0:
        return
    vectors = group.vectors()
    places = left.to(vectors.device)
    home[left] = left[leaders(vectors[places], redundant, group.part[left].to(vectors.device)).cpu()]


def plan_of(group: NeuronGroup, vanishing: float, redundant: float) -> Plan:
    """What extraction would do to a group by itself (`with_even_parts`: beside the others)."""
    gone = vanished_neurons(group, vanishing)
    constant = constant_neurons(group, vanishing).cpu() & ~gone
    if bool((gone | constant).all()):
        constant[:] = False
    return with_merged(group, gone, constant, redundant)


def with_merged(group: NeuronGroup, gone: Tensor, constant: Tensor, redundant: float) -> Plan:
    """The plan in which, of the neurons that stay, those that are near each other merge, unless a weight is tied."""
    home = torch.arange(group.size)
    if not tied_slots(group):
        merge_near(group, ~gone & ~constant, redundant, home)
    return Plan(group, gone, constant, home)


def tied_slots(group: NeuronGroup) -> list[Slot]:
    """Weights that make the neurons and read them: merging would have to average their rows and to add them up."""
    return [slot for slot in group.slots if slot.tied]


def why_not_merged(plan: Plan, redundant: float) -> str | None:
    """Why neurons that are near each other stay apart; None where there are none, or they don't."""
    tied = tied_slots(plan.group)
    if not tied:
        return None
    would_merge = torch.arange(plan.group.size)
    merge_near(plan.group, ~plan.gone & ~plan.constant, redundant, would_merge)
    if torch.equal(would_merge, plan.home):
        return None
    name = f"{tied[0].name}.{tied[0].parameter}".lstrip(".")
    return f"{name} both makes and reads them (a tied weight): equal neurons can't be merged"


def why_left_whole(group: NeuronGroup) -> str | None:
    """Why a group can be measured but not made smaller; None where it can."""
    if group.coupled:
        return group.coupled
    for slot in group.slots:
        if slot.computed:
            return f"{slot.name}: its {slot.parameter} is computed from other parameters"
        if slot.dim is None:
            return f"{slot.name}.{slot.parameter} holds its neurons in an order of its own"
    return None


# ======================================================================================
# Parts: heads, and the groups of a convolution
# ======================================================================================

UNEVEN = "each part (a head, a group of a convolution) must keep as many neurons"


def with_even_parts(plans: list[Plan]) -> list[Plan]:
    """The plans, with neurons taken back so that all parts of a group keep as many, or go whole."""
    return [evened(plan, goes) for plan, goes in zip(plans, parts_that_go(plans), strict=True)]


def evened(plan: Plan, goes_whole: Tensor) -> Plan:
    """The plan in which each part keeps as many neurons, but for parts that go whole (`goes_whole`: [n] of bool)."""
    group = plan.group
    stays = ~plan.goes
    parts = group.part[~goes_whole].unique().tolist()
    most = max(int(stays[group.part == part].sum()) for part in parts)
    gone, constant, home = plan.gone.clone(), plan.constant.clone(), plan.home.clone()
    for part in parts:
        inside = group.part == part
        lacking = most - int(stays[inside].sum())
        back = (inside & ~stays).nonzero()[:lacking, 0]
        gone[back] = False
        constant[back] = False
        home[back] = back
    return Plan(group, gone, constant, home)


class Side(NamedTuple):
    """The neurons of a plan as channels of a convolution in groups: those it reads, or those it makes."""

    plan: int  # its number
    weight: tuple[str, str]  # layer, parameter
    reads: bool
    groups: int
    each: int  # channels in each of them
    group_of: Tensor  # [n, block]: which of them each channel is in


def sides_of(plans: list[Plan]) -> list[Side]:
    """All convolutions in groups that read neurons of the plans, from both sides."""
    groups_of = {}
    for plan in plans:
        for slot in plan.group.slots:
            if slot.groups > 1:
                groups_of[slot.name, slot.parameter] = slot.groups
    sides = []
    for number, plan in enumerate(plans):
        for slot in plan.group.slots:
            weight = slot.name, slot.parameter
            if weight not in groups_of:
                continue
            groups = groups_of[weight]
            reads = slot.groups > 1
            each = slot.tensor.shape[1] if reads else len(slot.tensor) // groups
            sides.append(Side(number, weight, reads, groups, each, slot.index // each))
    return sides


def parts_that_go(plans: list[Plan]) -> list[Tensor]:
    """For each plan [n] of bool: the neurons whose part goes whole.

    A group of a convolution can go if everything does that it reads and makes; what goes in front of the convolution
    may be what another one makes, so that one that stays can keep others.
    """
    sides = sides_of(plans)
    touched = {side.plan for side in sides}
    going = []
    for number, plan in enumerate(plans):
        goes = plan.goes if number in touched else torch.zeros_like(plan.gone)
        going.append(whole_parts(plan.group.part, goes))
    while True:
        before = sum(int(goes.sum()) for goes in going)
        gone = groups_that_go(sides, going)
        for side in sides:
            with_group = gone[side.weight][side.group_of].all(1)
            part = plans[side.plan].group.part
            going[side.plan] = whole_parts(part, going[side.plan] & with_group)
        if sum(int(goes.sum()) for goes in going) == before:
            return going


def whole_parts(part: Tensor, marked: Tensor) -> Tensor:
    """[n] of bool: the neurons in whose part all are marked."""
    return ~torch.isin(part, part[~marked])


def groups_that_go(sides: list[Side], going: list[Tensor]) -> dict[tuple[str, str], Tensor]:
    """{weight: [groups] of bool}: the groups of each convolution that lose all channels that they read and make."""
    staying = {}  # (weight, whether it reads them) -> [groups]: how many channels
    for side in sides:
        before = staying.get((side.weight, side.reads), side.each)
        lost = torch.bincount(side.group_of[going[side.plan]].flatten(), minlength=side.groups)
        staying[side.weight, side.reads] = before - lost
    gone = {}
    for side in sides:
        all_stay = torch.full((side.groups,), side.each)
        read = staying.get((side.weight, True), all_stay)
        made = staying.get((side.weight, False), all_stay)
        gone[side.weight] = (read == 0) & (made == 0)
    return gone


def bundles_of(plans: list[Plan]) -> list[list[Plan]]:
    """The plans, those together that only work together: on both sides of a convolution that loses whole groups."""
    going = parts_that_go(plans)
    bundle = list(range(len(plans)))
    first = {}  # weight -> the first plan on a side of it
    for side in sides_of(plans):
        if bool(going[side.plan].any()):
            other = first.setdefault(side.weight, side.plan)
            old, new = bundle[side.plan], bundle[other]
            bundle = [new if number == old else number for number in bundle]
    bundles = {}
    for plan, number in zip(plans, bundle, strict=True):
        bundles.setdefault(number, []).append(plan)
    return list(bundles.values())


# ======================================================================================
# The smaller network
# ======================================================================================


@torch.inference_mode(False)  # the smaller network can be trained, wherever it was extracted
@on_the_cpu()
def extract_subnetwork(model: nn.Module, example, vanishing: float = 0.1, redundant: float = 0.1) -> nn.Module:
    """A smaller network of the same layers: vanished neurons removed, redundant ones merged.

    Merging averages what comes in (rows, norms' parameters, running statistics) and sums what goes out (columns). What
    constant neurons say is added to their consumers' biases, where that is exact. In eval mode the function is the
    same where neurons have vanished or are equal exactly, and nearly so where nearly. `model` isn't changed. The
    attribute `extraction` of the new network counts what was done, {"name", "width", "vanished", "constant",
    "merged", "kept", "left"} by group; "left" says why a group that could lose (more) neurons was left whole (in part):
    norms that couple neurons, weights computed from other parameters, tied weights, whose equal neurons can't merge,
    code that uses the sizes of layers, heads and groups of a convolution that would keep different numbers of neurons.
    A group of a convolution goes whole where all that it reads and makes goes. With nothing to extract the network
    comes back as it was, with a warning that says so.

    Raises CollapseError for what `neuron_groups` refuses, NaN or infinite values anywhere in the network, and where
    something could be extracted and nothing can, naming the layer.
    """
    model = unwrapped(model)
    check_thresholds(vanishing, redundant)
    check_finite(model)
    groups = neuron_groups(model, example)
    check_slots(groups, computed_alone=True)
    plans, left = [], {}
    for group in groups:
        plan = plan_of(group, vanishing, redundant)
        not_merged = why_not_merged(plan, redundant)
        if not_merged:
            left[group.name] = not_merged
        if len(plan.kept) == group.size:
            continue
        reason = why_left_whole(group)
        if reason:
            left[group.name] = reason
        else:
            plans.append(plan)
    plans = with_foldable_constants(model, example, plans, redundant)
    even_plans = with_even_parts(plans)
    for plan, even in zip(plans, even_plans, strict=True):
        if len(even.kept) > len(plan.kept):
            left[plan.group.name] = UNEVEN
    plans = [plan for plan in even_plans if bool(plan.goes.any())]
    smaller, done, refused = largest_that_works(model, example, plans)
    left.update(refused)
    if left and not done:
        name, reason = next(iter(left.items()))
        raise CollapseError(f"can't extract from {name}: {reason}")
    if not done:
        warnings.warn(f"nothing to extract at vanishing={vanishing}, redundant={redundant}: unchanged", stacklevel=4)
    done = {plan.group.name: plan for plan in done}
    smaller.extraction = [counts(done.get(group.name), group, left) for group in groups]
    return smaller


def counts(plan: Plan | None, group: NeuronGroup, left: dict[str, str]) -> dict:
    """A row of what was done to a group; `plan` None: nothing."""
    vanished, constant, merged = 0, 0, 0
    if plan is not None:
        vanished, constant, merged = int(plan.gone.sum()), int(plan.constant.sum()), plan.merged
    return {
        "name": group.name,
        "width": group.size,
        "vanished": vanished,
        "constant": constant,
        "merged": merged,
        "kept": group.size - vanished - constant - merged,
        "left": left.get(group.name),
    }


def largest_that_works(model: nn.Module, example, plans: list[Plan]) -> tuple[nn.Module, list[Plan], dict[str, str]]:
    """(smaller network, plans carried out, {group left whole: why}): all plans, or all but those that can't be.

    Whether a network's code holds the size of a layer can only be told by trying.
    """
    refused = {}
    hopeful = []
    for kind in ("neuron", "query-key", "value"):
        of_kind = [plan for plan in plans if plan.group.kind == kind]
        if kind != "neuron" and of_kind:  # heads are mostly cut by sizes in the code: try one, for all
            reason = try_out(model, example, of_kind[:1])[1]
            if reason:
                refused.update((plan.group.name, reason) for plan in of_kind)
                continue
        hopeful += of_kind
    smaller, reason = try_out(model, example, hopeful)
    if reason is None:
        return smaller, hopeful, refused
    working, more_refused = sift(model, example, bundles_of(hopeful), reason)
    refused.update(more_refused)
    smaller, reason = try_out(model, example, working)
    if reason is not None:
        raise CollapseError(reason)
    return smaller, working, refused


def sift(model: nn.Module, example, bundles: list[list[Plan]], reason: str) -> tuple[list[Plan], dict[str, str]]:
    """(plans that work, {group: why not}), by halves, of bundles of plans that together don't, for a reason."""
    if len(bundles) == 1:
        return [], {plan.group.name: reason for plan in bundles[0]}
    working, refused = [], {}
    middle = len(bundles) // 2
    for half in (bundles[:middle], bundles[middle:]):
        plans = [plan for bundle in half for plan in bundle]
        reason = try_out(model, example, plans)[1]
        if reason is None:
            working += plans
            continue
        some, others = sift(model, example, half, reason)
        working += some
        refused.update(others)
    return working, refused


def try_out(model: nn.Module, example, plans: list[Plan]) -> tuple[nn.Module, str | None]:
    """(smaller network, None), or (the network as it was, why the smaller one isn't the same function)."""
    whole = on_invariant_sets(model, plans)
    if not plans:
        return whole, None
    try:
        precise, inputs = in_float64(whole, example)
        check_same(precise, made_smaller(precise, inputs, model, plans), inputs)
        return made_smaller(whole, example, model, plans), None
    except CollapseError as error:
        return whole, str(error)


def made_smaller(whole: nn.Module, example, model: nn.Module, plans: list[Plan]) -> nn.Module:
    """The network on its invariant sets without what it doesn't need."""
    smaller = copied(whole)
    fold_constants(smaller, whole, example, plans)
    remove(smaller, model, plans)
    fit_bare_norms(smaller, example)
    return smaller


def in_float64(whole: nn.Module, example) -> tuple[nn.Module, object]:
    """A copy of the network, and its inputs, in float64; as they are where its code doesn't run so.

    In float32 the rounding of a deep network would hide small mistakes.
    """
    precise = copied(whole).double()
    inputs = doubled(example)
    try:
        record(precise, inputs)
    except CollapseError:
        return whole, example
    return precise, inputs


def doubled(example):
    """An example with its floating-point tensors in float64."""
    return mapped(example, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def mapped(example, change):
    """An example with every tensor changed, in the order of `tensors_in`."""
    if isinstance(example, Tensor):
        return change(example)
    if isinstance(example, Mapping):
        return {name: mapped(value, change) for name, value in example.items()}
    if isinstance(example, list | tuple):
        parts = [mapped(value, change) for value in example]
        is_named = hasattr(example, "_fields")  # a namedtuple takes its parts one by one
        return type(example)(*parts) if is_named else type(example)(parts)
    if dataclasses.is_dataclass(example) and not isinstance(example, type):
        names = [field.name for field in dataclasses.fields(example)]
        parts = {name: mapped(getattr(example, name), change) for name in names}
        return dataclasses.replace(example, **parts)
    return example


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network; raises CollapseError where Python can't copy it."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        why = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise CollapseError(f"can't copy {type(model).__name__}: {why}") from None


def tensor_in(model: nn.Module, slot: Slot) -> Tensor:
    """The slot's parameter in a copy of the network."""
    return getattr(model.get_submodule(slot.name), slot.parameter).detach()


def on_invariant_sets(model: nn.Module, plans: list[Plan]) -> nn.Module:
    """A copy with neurons put onto invariant sets: merged ones at their mean, vanished ones without outgoing weights.

    What comes in is averaged (rows, norms' parameters, running statistics); constant neurons lose their rows.
    Raises CollapseError for a network that can't be copied.
    """
    whole = copied(model)
    for plan in plans:
        for slot in plan.group.slots:
            tensor = tensor_in(whole, slot)
            rows = slot.read(tensor)
            if slot.role == "outgoing" or slot.tied:
                rows = rows.clone()
                rows[plan.gone.to(rows.device)] = 0
            else:
                rows = cluster_means(rows, plan.home.to(rows.device))
                if slot.role == "incoming" and tensor.ndim > 1:
                    rows[plan.constant.to(rows.device)] = 0
            slot.write(tensor, rows)
    return whole


def cluster_means(rows: Tensor, home: Tensor) -> Tensor:
    """[n, ...]: each row replaced by the mean of those that merge with it, computed in float32 at least."""
    precise = rows.double() if rows.dtype == torch.float64 else rows.float()
    sums = torch.zeros_like(precise).index_add_(0, home, precise)
    sizes = torch.bincount(home, minlength=len(home)).clamp_min(1).to(precise)
    means = sums / sizes.view(-1, *[1] * (rows.ndim - 1))
    return means[home].to(rows.dtype)


def remove(smaller: nn.Module, model: nn.Module, plans: list[Plan]) -> None:
    """Sum the columns of merged neurons, then cut out of every parameter what belongs to neurons that go."""
    cuts = {}  # (layer, parameter) -> {(axis, groups): places that go}
    for plan in plans:
        goes = plan.goes
        for slot in plan.group.slots:
            if slot.role == "outgoing":
                add_up_columns(tensor_in(smaller, slot), slot, plan)
            going = slot.index[goes].flatten()
            axes = cuts.setdefault((slot.name, slot.parameter), {})
            axes.setdefault((slot.dim, slot.groups), []).append(going)
            if slot.role == "incoming" and has_new_bias(smaller, model, slot):
                cuts.setdefault((slot.name, "bias"), {}).setdefault((0, 1), []).append(going)
    names = names_of_parameters(model)
    changed = {}
    groups_left = {}  # (layer, parameter) -> how many groups of a grouped convolution keep channels
    for (layer, parameter), axes in cuts.items():
        old = getattr(smaller.get_submodule(layer), parameter)
        new = old.detach()
        # of a grouped convolution rows are cut last: until then all groups have as many
        for axis, groups in sorted(axes, key=lambda cut: cut[1], reverse=True):
            places = torch.cat(axes[axis, groups])
            new = without(new, axis, groups, places)
            if groups > 1:
                groups_left[layer, parameter] = int(channels_that_stay(old, groups, places).any(1).sum())
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new.contiguous(), old.requires_grad)
        original = getattr(model.get_submodule(layer), parameter)
        for other_layer, other_name in names.get(id(original), [(layer, parameter)]):
            module = smaller.get_submodule(other_layer)
            before = changed.setdefault(other_layer, sizes_of(module))
            if (layer, parameter) in groups_left:
                before["groups"] = groups_left[layer, parameter]
            put(module, other_name, new)
    for layer, before in changed.items():
        fit_attributes(smaller.get_submodule(layer), before)


def has_new_bias(smaller: nn.Module, model: nn.Module, slot: Slot) -> bool:
    """Whether the layer was given a bias, to hold what constant neurons say, that it didn't have."""
    before = model.get_submodule(slot.name)._parameters.get("bias")
    now = smaller.get_submodule(slot.name)._parameters.get("bias")
    return slot.parameter == "weight" and before is None and now is not None


def names_of_parameters(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """{id: [(layer, name), ...]} of parameters and buffers, all the places where each is used."""
    names = {}
    for layer, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                names.setdefault(id(tensor), []).append((layer, name))
    return names


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """A parameter or buffer of another size in the place of the old one."""
    where = module._parameters if name in module._parameters else module._buffers
    where[name] = tensor


def add_up_columns(tensor: Tensor, slot: Slot, plan: Plan) -> None:
    """Columns of merged neurons are added to those of the neuron they merge into."""
    columns = slot.read(tensor)
    home = plan.home.to(columns.device)
    slot.write(tensor, torch.zeros_like(columns).index_add_(0, home, columns))


def without(tensor: Tensor, axis: int, groups: int, places: Tensor) -> Tensor:
    """The tensor without these places on an axis (of a grouped convolution: among all its input channels)."""
    if groups > 1:
        return without_channels(tensor, channels_that_stay(tensor, groups, places))
    stay = torch.ones(tensor.shape[axis], dtype=torch.bool)
    stay[places] = False
    return tensor.index_select(axis, stay.nonzero()[:, 0].to(tensor.device))


def channels_that_stay(weight: Tensor, groups: int, places: Tensor) -> Tensor:
    """[groups, input channels of each] of bool, for the weight of a grouped convolution that loses these inputs."""
    stay = torch.ones(groups * weight.shape[1], dtype=torch.bool)
    stay[places] = False
    return stay.view(groups, weight.shape[1])


def without_channels(weight: Tensor, stay: Tensor) -> Tensor:
    """The weight of a grouped convolution without input channels, as many in each group that keeps any.

    The rows of a group that keeps none are cut afterwards; until then anything may stand there.
    """
    left = stay.sum(1)
    kept = int(left.max())
    if bool(((left != kept) & (left != 0)).any()):
        raise CollapseError("the groups of a convolution would keep different numbers of channels")
    stay = stay.clone()
    stay[left == 0, :kept] = True
    groups, inputs = stay.shape
    outputs = len(weight) // groups
    by_channel = weight.view(groups, outputs, inputs, *weight.shape[2:]).transpose(1, 2)
    by_channel = by_channel[stay.to(weight.device)].view(groups, kept, outputs, *weight.shape[2:])
    return by_channel.transpose(1, 2).flatten(0, 1)


# ======================================================================================
# Sizes that modules hold
# ======================================================================================

SIZES = (
    "in_channels out_channels groups in_features out_features num_features num_parameters num_channels num_groups "
    "embedding_dim nf nx"
).split()


def sizes_of(module: nn.Module) -> dict[str, int]:
    """The attributes of a module that hold sizes of its parameters, as numbers."""
    sizes = {name: vars(module)[name] for name in SIZES if isinstance(vars(module).get(name), int)}
    if isinstance(module, _ConvNd):
        sizes["outputs"] = module.weight.shape[1 if module.transposed else 0] * (
            module.groups if module.transposed else 1
        )
    return sizes


def fit_attributes(module: nn.Module, before: dict[str, int]) -> None:
    """Bring the sizes that a module holds in line with its parameters."""
    sizes = {}
    places = (module._parameters.get("weight"), module._buffers.get("weight"), module._buffers.get("running_mean"))
    weight = next((tensor for tensor in places if tensor is not None), None)
    if weight is None:
        return
    if isinstance(module, _ConvNd):
        sizes = sizes_of_convolution(module, before)
    elif weight.ndim == 2:
        outputs, inputs = weight.shape
        sizes = {"in_features": inputs, "out_features": outputs, "embedding_dim": inputs, "nf": inputs, "nx": outputs}
    elif weight.ndim == 1:
        sizes = dict.fromkeys(("num_features", "num_parameters", "num_channels"), len(weight))
        if before.get("num_groups") == before.get("num_channels"):
            sizes["num_groups"] = len(weight)
    for name, value in sizes.items():
        if name in before:
            setattr(module, name, value)


UNBATCHED = {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}  # axes of an input without a batch


def fit_bare_norms(smaller: nn.Module, example) -> None:
    """Norms that hold nothing but a number of channels get the one that they find: PyTorch warns where it differs."""
    with contextlib.ExitStack() as hooks:
        bare = [module for module in smaller.modules() if type(module) in UNBATCHED and not module.state_dict()]
        for module in bare:
            hooks.callback(module.register_forward_pre_hook(take_channels).remove)
        if not bare:
            return
        with contextlib.suppress(RunError):  # `check_same` says why
            record(smaller, example)


def take_channels(module: nn.Module, inputs: tuple) -> None:
    x = inputs[0]
    module.num_features = x.shape[0 if x.ndim == UNBATCHED[type(module)] else 1]


def sizes_of_convolution(module: _ConvNd, before: dict[str, int]) -> dict[str, int]:
    groups = before["groups"]
    first, second = module.weight.shape[:2]
    if 1 < groups == before["in_channels"]:  # depthwise: a group for each channel
        each = before["out_channels"] // groups
        groups = first if isinstance(module, _ConvTransposeNd) else first // each
    if isinstance(module, _ConvTransposeNd):
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


# ======================================================================================
# Constant neurons
# ======================================================================================


def with_foldable_constants(model: nn.Module, example, plans: list[Plan], redundant: float) -> list[Plan]:
    """The plans, in which constant neurons stay (or merge) where what they say can't go into biases exactly."""
    if not any(bool(plan.constant.any()) for plan in plans):
        return plans
    whole = on_invariant_sets(model, plans)
    operations = record(whole, example).operations
    possible = []
    for plan in plans:
        try:
            if bool(plan.constant.any()):
                for slot in plan.group.consumers:
                    constant_values(plan, slot, operations)
        except CollapseError:
            plan = with_merged(plan.group, plan.gone, torch.zeros_like(plan.constant), redundant)
        if len(plan.kept) < plan.group.size:
            possible.append(plan)
    return possible


def fold_constants(smaller: nn.Module, whole: nn.Module, example, plans: list[Plan]) -> None:
    """Add what constant neurons say, as it is read in a run of the whole network, to their consumers' biases."""
    folded = [plan for plan in plans if bool(plan.constant.any())]
    if not folded:
        return
    operations = record(whole, example).operations
    for plan in folded:
        for slot in plan.group.consumers:
            values = constant_values(plan, slot, operations)
            columns = slot.read(tensor_in(smaller, slot))[plan.constant.to(slot.tensor.device)]
            says = columns * values.to(columns).view(*values.shape, *[1] * (columns.ndim - 2))
            says = says.flatten(0, 1).sum(0)  # over neurons and their places
            says = says.reshape(len(says), -1).sum(1)  # over the kernel
            add_to_bias(smaller.get_submodule(slot.name), slot, says)


def constant_values(plan: Plan, slot: Slot, operations: list) -> Tensor:
    """[constant neurons, block]: what a consumer reads of them; raises CollapseError where it isn't one number."""
    place = f"{slot.name}: what it reads of constant neurons"
    if slot.parameter != "weight" or slot.groups != 1 or len(slot.uses) != 1:
        raise CollapseError(f"{place} can't go into a bias")
    (use,) = slot.uses
    if use.places is not None:
        raise CollapseError(f"{place} is read by a part of its weight: that can't go into a bias")
    operation = operations[use.operation]
    x = input_of(operations, use, slot).movedim(use.axis, 0)
    index = slot.index[plan.constant].to(x.device)
    values = x.reshape(len(x), -1)
    spread = (values.amax(1) - values.amin(1))[index]
    mean = values.double().mean(1)[index]
    if bool((spread > 1e-5 * values.abs().max()).any()):
        raise CollapseError(f"{place} differs from place to place")
    padded = operation.name == "convolution" and (
        any(operation.argument("padding")) or operation.argument("transposed")
    )
    if padded and bool((mean != 0).any()):
        raise CollapseError(f"{place} ends at the border, which zeros surround")
    return mean


def add_to_bias(module: nn.Module, slot: Slot, says: Tensor) -> None:
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and bias.shape == says.shape:
        bias.detach().add_(says)
    elif bias is None and "bias" in module._parameters:
        module.bias = nn.Parameter(says.clone(), module.weight.requires_grad)
    else:
        raise CollapseError(f"{slot.name} has no bias to hold what constant neurons say")


# ======================================================================================
# The check
# ======================================================================================


LARGEST_TOLERANCE = 1e-3  # half the digits of bfloat16 would be 9 %, less than which a wrong function may differ


def check_same(whole: nn.Module, smaller: nn.Module, example) -> None:
    """Raises CollapseError unless two networks compute the same in eval mode, on the example and on inputs like it.

    They don't where the network's code holds a size, or reads one off its tensors. Outputs without a finite number (a
    detector that finds nothing, the logarithm of zeros) prove nothing: an error too. Inputs like the example that the
    whole network itself doesn't take are passed over.
    """
    on_example = record(whole, example)
    compared = compare_outputs(whole, smaller, example, on_example.outputs)
    other = like(example, on_example)
    try:
        before = record(whole, other).outputs
    except RunError:
        before = None
    if before is not None:
        compared += compare_outputs(whole, smaller, other, before)
    if not compared:
        place = type(whole).__name__
        raise CollapseError(f"{place} gives out no numbers on the example: what is extracted can't be checked")


def compare_outputs(whole: nn.Module, smaller: nn.Module, inputs, before: list[Tensor]) -> int:
    """How many finite numbers the whole network gives out on these inputs, `before`, all of which the smaller one does.

    Raises CollapseError where the smaller network doesn't run, or gives out others.
    """
    place = type(whole).__name__
    try:
        after = record(smaller, inputs).outputs
    except RunError as error:
        where = f" (in {error.layer})" if error.layer else ""
        raise CollapseError(
            f"a size is written into {place}'s code{where}: the smaller network doesn't run, {error.why}"
        ) from None
    another = f"the smaller network is another function: {place}'s code uses the size of a layer, or treats its neurons"
    if len(before) != len(after):
        raise CollapseError(f"{another} differently")
    compared = 0
    for one, other in zip(before, after, strict=True):
        if not one.is_floating_point():
            continue
        if not nearly_equal(one, other):
            rough = f", or {one.dtype} rounds too much to tell" if one.dtype.itemsize < 4 else ""
            raise CollapseError(f"{another} differently{rough}")
        compared += int(one.isfinite().sum())
    return compared


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Equal to half the digits of their precision (a thousandth at most), and infinite or NaN at the same places."""
    if one.shape != other.shape:
        return False
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    if not torch.equal(one.isnan(), other.isnan()):
        return False
    if not bool(finite.any()):
        return True
    tolerance = min(torch.finfo(one.dtype).eps ** 0.5, LARGEST_TOLERANCE)
    numbers = one[finite].double()
    differences = (numbers - other[finite].double()).abs()
    return bool(differences.max() <= tolerance * numbers.abs().max())


# ======================================================================================
# Inputs like the example
# ======================================================================================


def like(example, recording: Recording):
    """Inputs of the same shapes with other values; `recording`: of a run on the example.

    Floating-point ones are drawn from a normal distribution, integers that pick rows of a table from its rows. Other
    integers (lengths, kinds) stay, for what else they may be isn't known.
    """
    others = []
    for tensor, limits in zip(tensors_in(example), limits_of(recording), strict=True):
        others.append(other_values(tensor, limits))
    left = iter(others)
    return mapped(example, lambda tensor: next(left))


def other_values(tensor: Tensor, limits: Tensor) -> Tensor:
    """Random values for an input; `limits`, of its shape: of how many rows an integer may pick one, 0 for no table."""
    generator = torch.Generator().manual_seed(1)
    if tensor.layout != torch.strided:  # a sparse graph stays as it is
        return tensor
    if tensor.is_floating_point():
        values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return values.to(tensor.device)
    if not bool(limits.any()):
        return tensor
    share = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    rows = (share * limits).long()
    drawn = torch.where(limits > 0, rows.to(tensor.dtype), tensor.cpu())
    return drawn.to(tensor.device)


NO_TABLE = 2**31  # more rows than any has
COPIES = ("_to_copy", "clone", "detach", "lift_fresh")  # the same integers, elsewhere or of another type


def is_integer(tensor: Tensor) -> bool:
    """Whether it holds integers, entry by entry; truth values are none."""
    other = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
    return not other and tensor.layout == torch.strided


def limits_of(recording: Recording) -> list[Tensor]:
    """For each input, in its shape: the rows of the smallest table in which each of its integers picks one, 0 for none.

    Integers are followed from the inputs to the tables through views and copies.
    """
    limits = []
    places = {}  # id of a tensor -> (number of the input, place in it of each entry)
    for number, tensor in enumerate(recording.inputs):
        limits.append(torch.full((tensor.numel(),), NO_TABLE))
        if is_integer(tensor):
            places[id(tensor)] = number, torch.arange(tensor.numel()).view(tensor.shape)
    for operation in recording.operations:
        for index, rows in tables_read(operation):
            if id(index) not in places:
                continue
            number, where = places[id(index)]
            where = where.flatten()
            limits[number][where] = limits[number][where].clamp_max(rows)
        follow_places(operation, places)
    found = []
    for tensor, flat in zip(recording.inputs, limits, strict=True):
        found.append(torch.where(flat < NO_TABLE, flat, 0).view(tensor.shape))
    return found


def follow_places(operation: Operation, places: dict) -> None:
    """Enter into `places` what an operation makes of the integers of an input, where it only moves them about."""
    source = operation.args[0] if operation.args else None
    if id(source) not in places:
        return
    number, where = places[id(source)]
    if operation.function.is_view:
        moved = operation.function(where, *operation.args[1:], **operation.kwargs)
    elif operation.name in COPIES:
        moved = where
    else:
        return
    for output, its_places in zip(tensors_in(operation.output), tensors_in(moved), strict=True):
        places[id(output)] = number, its_places


def tables_read(operation: Operation) -> list[tuple[Tensor, int]]:
    """(integers, how many rows they pick from) of an operation that looks rows up in a table or writes one-hot rows."""
    if operation.name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only"):
        table, index = operation.args[:2]
        return [(index, len(table))]
    if operation.name in ("index_select", "scatter", "scatter_"):
        table, axis, index = operation.args[:3]
        return [(index, table.shape[axis])]
    if operation.name == "index":
        table, indices = operation.args[:2]
        return [(index, rows) for index, rows in zip(indices, table.shape, strict=False) if index is not None]
    return []


# ======================================================================================
# Files
# ======================================================================================


def save_network(smaller: nn.Module, path: str | Path) -> None:
    """Write an extracted network to a file of tensors and plain types: its weights, and the sizes its modules hold.

    `load_network(path, model)` makes it again from the original architecture.
    """
    modules = {}
    for name, module in smaller.named_modules():
        sizes = {key: value for key, value in sizes_of(module).items() if key in SIZES}
        if sizes:
            modules[name] = sizes
    content = {
        "format": "stochastic-collapse network 1",
        "state": smaller.state_dict(),
        "sizes": modules,
        "extraction": getattr(smaller, "extraction", []),
    }
    torch.save(content, path)


def load_network(path: str | Path, model: nn.Module) -> nn.Module:
    """The network that `save_network` wrote, in eval mode; `model`: the original architecture, which isn't changed.

    Its numbers are of the types that the architecture has, whatever those in the file are.

    Raises CollapseError for a file that isn't one, and for another architecture, naming what doesn't fit.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CollapseError(f"{path} can't be read: {error.strerror or error}") from None
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        raise CollapseError(f"{path} is no network that save_network wrote: {why}") from None
    if not isinstance(content, dict) or content.get("format") != "stochastic-collapse network 1":
        raise CollapseError(f"{path} is no network that save_network wrote")
    loaded = copied(unwrapped(model))
    modules = dict(loaded.named_modules())
    for name, sizes in content["sizes"].items():
        if name not in modules:
            raise CollapseError(f"{path} is of another architecture: {type(loaded).__name__} has no {name}")
        vars(modules[name]).update(sizes)
    fit_shapes(loaded, content["state"])
    try:
        loaded.load_state_dict(content["state"])
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise CollapseError(f"{path} is of another architecture: {why}") from None
    loaded.extraction = content["extraction"]
    return loaded.eval()


def fit_shapes(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give parameters and buffers the shapes that a state_dict has for them."""
    renewed = {}
    for layer, module in model.named_modules():
        for where in (module._parameters, module._buffers):
            for name, old in where.items():
                value = state.get(f"{layer}.{name}".lstrip("."))
                if value is None or (old is not None and old.shape == value.shape):
                    continue
                if id(old) not in renewed or old is None:
                    kind = old if old is not None else like_others(module, value)
                    new = torch.empty(value.shape, dtype=kind.dtype, device=kind.device)
                    trained = old is None or old.requires_grad
                    renewed[id(old)] = nn.Parameter(new, trained) if where is module._parameters else new
                where[name] = renewed[id(old)]


def like_others(module: nn.Module, value: Tensor) -> Tensor:
    """A parameter of the module, for the type and device of one that it gets; the value itself where it has none."""
    return next(module.parameters(recurse=False), value)
