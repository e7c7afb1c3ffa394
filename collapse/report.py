"""How far each group of neurons of a network has collapsed: a table, and maps of distances."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from collapse.errors import CollapseError
from collapse.labels import Use
from collapse.metrics import count, effective_rank, independent_neurons, normalized_distances, row_squares
from collapse.neurons import NeuronGroup, NeuronGroups, Skipped, neuron_groups
from collapse.trace import check_finite, check_values, on_the_cpu, record, unwrapped

# ======================================================================================
# The report
# ======================================================================================


class CollapseReport(list):
    """A row (dict) per group of neurons; `str()` of it is a table.

    `covered`: share of the network's parameters that belong to a measured neuron (None where only groups were given).
    `skipped`: layers whose neurons aren't measured, and why.
    """

    def __init__(self, rows: list[dict], covered: float | None, skipped: list[Skipped]):
        super().__init__(rows)
        self.covered = covered
        self.skipped = skipped

    def __str__(self) -> str:
        return "\n".join([*table_lines(self), *summary_lines(self)])


@on_the_cpu()
def collapse_report(
    model: nn.Module | list[NeuronGroup],
    example=None,
    vanishing: float = 0.1,
    redundant: float = 0.1,
    rank: bool = True,
    data: Iterable | None = None,
    pairing: str = "graph",
    incoming_mask: bool = False,
) -> CollapseReport:
    """How far each group of neurons has collapsed: a row (dict) per group of `neuron_groups`.

    `model` may also be the list of groups itself, so that a network that is measured often is run once; they see the
    network's parameters as they are at the time of the call.

    `width` = `vanishing` + `redundant` + `independent` neurons; `fraction` = independent / width;
    `effective_rank` of all the group's vectors (with `rank`). `constant`: how many of the neurons that haven't vanished
    have no incoming weights, so that what they say is their offset. `silent` (with `data`, an iterable of inputs like
    the example): how many never move on these batches. `incoming_mask` takes the vanishing norm over the
    incoming weights alone, as the published figures did.

    Raises CollapseError for what `neuron_groups` refuses, NaN or infinite values anywhere in the network, and
    impossible thresholds.
    """
    network = model.model if isinstance(model, NeuronGroups) else model
    if isinstance(network, nn.Module):
        check_finite(unwrapped(network))
    groups = model if isinstance(model, list) else neuron_groups(model, example, pairing)
    check_slots(groups, computed_alone=isinstance(network, nn.Module))
    still = None
    if data is not None:
        if isinstance(model, list):
            raise CollapseError("silent neurons are found by running the network: give the model, not its groups")
        still = silent_neurons(unwrapped(model), groups, data)
    rows = []
    for number, group in enumerate(groups):
        vectors = group.vectors()
        row = measure(group, vectors, vanishing, redundant, incoming_mask)
        if rank:
            row["effective_rank"] = effective_rank(vectors)
        if still is not None:
            row["silent"] = int(still[number].sum())
        rows.append(row)
    return CollapseReport(rows, getattr(groups, "covered", None), getattr(groups, "skipped", []))


def measure(group: NeuronGroup, vectors: Tensor, vanishing: float, redundant: float, incoming_mask: bool) -> dict:
    """The counts of one group; `vectors`: its own, which are large."""
    norms = group.importance()
    if incoming_mask:
        norms = torch.linalg.vector_norm(group.incoming(), dim=1, dtype=torch.float64)
    part = group.part.to(vectors.device) if bool(group.part.any()) else None
    vanished, independent = count(vectors, vanishing, redundant, norms, part, f"{group.name}: vectors")
    return {
        "name": group.name,
        "width": group.size,
        "vanishing": vanished,
        "redundant": group.size - vanished - independent,
        "constant": int(constant_neurons(group, vanishing).sum()),
        "independent": independent,
        "fraction": independent / group.size,
    }


def check_slots(groups: list[NeuronGroup], computed_alone: bool) -> None:
    """Raises CollapseError that names the parameter, of those of neurons, that holds NaN or infinite values.

    `computed_alone`: only weights that are computed from parameters; those of the network itself have been checked.
    """
    tensors = {}
    for group in groups:
        for slot in group.slots:
            if slot.computed or not computed_alone:
                tensors[f"{slot.name}.{slot.parameter}".lstrip(".")] = slot.tensor
    for name, tensor in tensors.items():
        check_values(tensor, name)


def square_sizes(group: NeuronGroup, roles: tuple[str, ...], weights_only: bool = False, rough: bool = False) -> Tensor:
    """[n] squared norms of each neuron's parameters with these roles, in float64; `rough`: from norms in float32."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for slot in group.with_role(*roles):
        if weights_only and slot.tensor.ndim == 1:
            continue
        rows = slot.read(slot.tensor.detach()).reshape(group.size, -1)
        squares = rough_squares(rows) if rough else row_squares(rows)
        total = total.to(rows.device) + squares
    return total


def rough_squares(rows: Tensor) -> Tensor:
    """[n, d] -> [n] of float64: squared norms as exact as float32, several times faster than `row_squares`."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
    return norms.double().square()


def constant_neurons(group: NeuronGroup, vanishing: float) -> Tensor:
    """[n] of bool: no incoming weights (relative to the largest), but not vanished: their offset is what they say.

    A vanished neuron, whose incoming and outgoing weights are both below `vanishing`, adds at most `vanishing`^2 of
    what the largest adds; so that a constant one varies no more, its incoming weights must be below that.
    Neurons that a norm couples, and those that read each other (queries and keys), are never constant.
    """
    none = torch.zeros(group.size, dtype=torch.bool)
    if group.coupled or group.kind == "query-key" or clearly_heard(group, vanishing):
        return none
    weights = square_sizes(group, ("incoming",), weights_only=True).sqrt()
    unheard = (weights < vanishing**2 * weights.max()) | (weights == 0)
    if not bool(unheard.any()):
        return none
    sizes = square_sizes(group, ("incoming", "through", "outgoing")).sqrt()
    vanished = (sizes < vanishing * sizes.max()) | (sizes == 0)
    return unheard & ~vanished


def clearly_heard(group: NeuronGroup, vanishing: float) -> bool:
    """Whether all neurons' incoming weights are so large that float32, several times faster, is enough to tell."""
    sizes = square_sizes(group, ("incoming",), weights_only=True, rough=True).sqrt()
    in_range = sizes.max() > 1e-15  # where squares don't vanish in float32; infinite ones compare as False
    return bool(in_range & (sizes.min() > 2 * vanishing**2 * sizes.max()))


def silent_neurons(model: nn.Module, groups: NeuronGroups, data: Iterable) -> list[Tensor]:
    """For each group [n] of bool: what a neuron says to its consumers is one number, at all places of all batches.

    A batch is a network's input, or (inputs, labels) as data loaders give them.
    """
    ranges = None
    for batch in data:
        operations = record(model, batch[0] if is_labelled(batch) else batch).operations
        now = [range_of_neurons(group, operations) for group in groups]
        ranges = now if ranges is None else [joined(one, other) for one, other in zip(ranges, now, strict=True)]
    if ranges is None:
        raise CollapseError("data holds no batch: silent neurons can't be told")
    return [(low == high).all(1) for low, high in ranges]


def joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The range that covers two ranges."""
    return torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])


def is_labelled(batch) -> bool:
    """Whether a batch is a pair of inputs and integer labels, one per example."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        return False
    inputs, labels = batch
    both = isinstance(inputs, Tensor) and isinstance(labels, Tensor)
    return both and not labels.is_floating_point() and labels.ndim == 1 and len(inputs) == len(labels)


def range_of_neurons(group: NeuronGroup, operations: list) -> tuple[Tensor, Tensor]:
    """([n, places] least, largest) values of each neuron at each place where a layer reads it.

    A neuron behind a flatten has several places, and may say something else at each. A layer that reads some neurons
    alone has zero for the others. Neurons that nothing reads by itself (queries and keys) have no places: infinite
    ranges, never silent.
    """
    low, high = [], []
    for slot in group.slots:  # a weight that makes and reads neurons (tied) is one, too
        for use in slot.uses:
            x = input_of(operations, use, slot).movedim(use.axis, 0)
            values = x.reshape(len(x), -1)
            low.append(at_places(values.amin(1), use)[slot.index])
            high.append(at_places(values.amax(1), use)[slot.index])
    if not low:
        return torch.full((group.size, 1), -math.inf), torch.full((group.size, 1), math.inf)
    return torch.cat(low, 1), torch.cat(high, 1)


def at_places(values: Tensor, use: Use) -> Tensor:
    """Numbers of what is read, at their places on the axis of the whole weight; zero where a part of it isn't used."""
    values = values.cpu().double()
    if use.places is None:
        return values
    whole = torch.zeros(use.size, dtype=torch.float64)
    whole[use.places] = values
    return whole


def input_of(operations: list, use, slot) -> Tensor:
    """What a consumer reads in a recorded run of the same network."""
    same = use.operation < len(operations) and use.argument < len(operations[use.operation].args)
    value = operations[use.operation].args[use.argument] if same else None
    if not isinstance(value, Tensor):
        raise CollapseError(f"the network runs other operations on this batch than on the example ({slot.name})")
    return value


# ======================================================================================
# As a table
# ======================================================================================

COLUMNS = ("width", "vanishing", "redundant", "constant", "independent", "fraction", "effective_rank", "silent")
TITLES = {"effective_rank": "eff. rank", "vanishing": "vanished"}


def table_lines(report: CollapseReport) -> list[str]:
    """The rows as a table of at most 100 columns; long names are cut in their middle."""
    columns = [column for column in COLUMNS if report and column in report[0]]
    titles = [TITLES.get(column, column) for column in columns]
    widths = [max(len(title), 5) for title in titles]
    room = 100 - sum(widths) - 2 * len(widths)
    longest = max([len(row["name"]) for row in report], default=0)
    room = min(room, max(longest, len("neurons of")))
    lines = ["neurons of".ljust(room) + "".join(f"  {title:>{w}}" for title, w in zip(titles, widths, strict=True))]
    for row in report:
        cells = [f"  {as_text(row[column]):>{w}}" for column, w in zip(columns, widths, strict=True)]
        lines.append(shortened(row["name"], room).ljust(room) + "".join(cells))
    return lines


def as_text(value) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def shortened(name: str, room: int) -> str:
    if len(name) <= room:
        return name
    head = (room - 2) // 3
    return f"{name[:head]}..{name[len(name) - (room - 2 - head) :]}"


def cut(line: str) -> str:
    """At most 100 columns of it."""
    return line if len(line) <= 100 else f"{line[:97]}..."


def summary_lines(report: CollapseReport) -> list[str]:
    """Totals, what share of the network they are of, and what was left out."""
    width = sum(row["width"] for row in report)
    independent = sum(row["independent"] for row in report)
    lines = [f"{independent:,} of {width:,} neurons are independent"]
    if report.covered is not None:
        lines[0] += f"; they hold {report.covered:.0%} of the parameters"
    for entry in report.skipped[:10]:
        words = f"not measured: {entry.name or 'the network'}: {entry.reason}"
        lines.append(cut(words))
    if len(report.skipped) > 10:
        lines.append(f"and {len(report.skipped) - 10} more (.skipped)")
    return lines


# ======================================================================================
# Maps of distances
# ======================================================================================


def cluster_order(distances: Tensor, clusters: int) -> Tensor:
    """[n, n] distances -> [n] order of the neurons in `clusters` average-linkage clusters, largest first.

    Clusters of one size lie as in the whole tree, so that similar ones are neighbours.
    """
    d = distances.double().clone().fill_diagonal_(math.inf)
    members = {k: [k] for k in range(len(d))}
    cut = list(members.values())
    least, nearest = d.min(1)  # of each cluster: how far its nearest one is, and which
    while len(members) > 1:
        one = int(least.argmin())
        i, j = sorted((one, int(nearest[one])))
        a, b = len(members[i]), len(members[j])
        d[i] = (a * d[i] + b * d[j]) / (a + b)  # the mean over all pairs of members
        d[:, i] = d[i]
        d[i, i] = d[j] = d[:, j] = math.inf
        # A mean is no nearer than what it is of: only those change whose nearest was one of the two
        changed = (nearest == i) | (nearest == j)
        changed[[i, j]] = True
        least[changed], nearest[changed] = d[changed].min(1)
        members[i] = members[i] + members.pop(j)
        cut = list(members.values()) if len(members) >= clusters else cut
    tree = members[0]
    cut.sort(key=lambda cluster: (-len(cluster), tree.index(cluster[0])))
    return torch.tensor([neuron for cluster in cut for neuron in cluster])


@on_the_cpu()
def distance_maps(model: nn.Module, example, names: tuple[str, ...], side: int = 64) -> list[dict]:
    """Normalised distances between the neurons of the named groups, as the heat maps of figure 3 show them.

    A dict per name: `width`, `clusters`, and `incoming` and `outgoing`, each [m, m] to two decimals, with
    m = min(width, side) by averaging. Neurons are ordered by `cluster_order` into as many clusters as
    are independent, vanished ones not set aside: they lie at distance 2 from all others.
    Raises CollapseError for a name that no group has, for neurons without outgoing weights of their own (queries and
    keys, those of a tied weight), and NaN or infinite values in the network.
    """
    check_finite(unwrapped(model))
    groups = {group.name: group for group in neuron_groups(model, example)}
    maps = []
    for name in names:
        if name not in groups:
            raise CollapseError(f"no group of neurons {name}; there are {', '.join(groups)}")
        if not groups[name].consumers:
            reader = "no layer" if groups[name].kind == "query-key" else "no layer but a tied weight"
            raise CollapseError(f"{name}: {reader} reads its neurons, so that there is no map of outgoing weights")
        vectors = groups[name].vectors()
        clusters = max(1, independent_neurons(vectors, vanishing=0))
        order = cluster_order(normalized_distances(vectors), clusters)
        entry = {"name": name, "width": groups[name].size, "clusters": clusters}
        for part in ("incoming", "outgoing"):
            distances = normalized_distances(getattr(groups[name], part)())[order][:, order]
            small = nn.functional.adaptive_avg_pool2d(distances[None].double(), min(len(order), side))[0]
            entry[part] = [[round(value, 2) for value in row] for row in small.tolist()]
        maps.append(entry)
    return maps
