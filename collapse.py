"""Collapse metrics: how many neurons of a network are still independent, and which parameters are a neuron.

    normalized_distances, independent_neurons, effective_rank    of any [neurons, features] matrix
    feature_sparsity                                             of any [examples, neurons] activations
    neuron_groups, collapse_report, distance_maps                of any torch.fx-traceable network

The file needs torch alone and stands alone: copy it into your own project. In this house it is one
of core's rooms; import it from there.
"""

import contextlib
import inspect
import io
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# ======================================================================================
# Numbers of a matrix
# ======================================================================================


class CollapseError(ValueError):
    """What was given can't be measured."""


def _rows(vectors: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """`vectors` checked, in a range where squares neither overflow nor vanish, and the rows' norms."""
    vectors = torch.as_tensor(vectors).detach()
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{name} must be [neurons, features], not empty; got shape {tuple(vectors.shape)}")
    vectors = vectors if vectors.dtype == torch.float32 else vectors.double()  # the squares of halves overflow
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


def near_pairs(vectors: Tensor, norms: Tensor, redundant: float) -> Tensor:
    """[n, n] of bool: pairs i < j of rows at a normalised distance below `redundant`."""
    distances = _distances(vectors, norms)
    near = (distances < redundant).triu_(1)
    # Rounding could flip a pair at the threshold: those few are measured again, directly, in float64.
    doubtful = ((distances - redundant).abs_() < 0.01).triu_(1).nonzero()
    for pairs in doubtful.split(1024):
        a, b = vectors[pairs.T].double()
        direct = 2 * (a - b).square().sum(1) / (a.square().sum(1) + b.square().sum(1))
        near[pairs[:, 0], pairs[:, 1]] = direct < redundant
    return near


def check_thresholds(vanishing: float, redundant: float) -> None:
    """Raises ValueError for thresholds that no norm or distance can be compared with."""
    if not (0 <= vanishing <= 1 and 0 <= redundant <= 4):  # normalised distances are at most 4
        raise ValueError(f"thresholds must be 0 to 1 (vanishing) and 0 to 4 (redundant), not {vanishing}, {redundant}")


def _count(vectors: Tensor, vanishing: float, redundant: float, norms: Tensor | None, name="vectors"):
    """(vanishing, independent) neurons; see `independent_neurons`."""
    check_thresholds(vanishing, redundant)
    vectors, own = _rows(vectors, name)
    norms = own if norms is None else torch.as_tensor(norms).detach()
    if norms.shape != own.shape or not torch.isfinite(norms).all():
        raise ValueError(f"norms must be {len(own)} finite numbers, one per neuron")
    kept = (norms >= vanishing * norms.max()) & (norms > 0)
    vanished = len(own) - int(kept.sum())
    if vanished == len(own):
        return vanished, 0
    vectors, own = (vectors[kept], own[kept]) if vanished else (vectors, own)
    near = near_pairs(vectors, own, redundant)
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
    first step: the published figures used the incoming weights alone.

    Raises ValueError for NaN, infinite or empty input; all-zero rows count as 0 neurons.
    """
    return _count(vectors, vanishing, redundant, norms)[1]


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix.

    Between 1 and the rank. The reference code computes the entropy itself.
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


def feature_sparsity(features: Tensor, correlation: float = 0.95) -> float:
    """Share of positive entries in `features` [examples, neurons], duplicates and dead neurons counted as zeros.

    0 (nothing is ever active) to 1 (every neuron for every example). A neuron is a duplicate if its |Pearson
    correlation| over the examples with a later neuron exceeds `correlation`, so the last of a cluster
    survives; constant neurons have no correlation and survive. Exactly the number that deleting one neuron
    after the other leaves (Andriushchenko et al., ICML 2023, reference code): whoever is deleted has a
    later neighbour that is still there. The paper's toy networks divide each row by its norm before.

    Raises ValueError for NaN, infinite or empty input.
    """
    features = _rows(features, "features")[0]
    active = (features > 0).sum(0)
    alive = active.nonzero()[:, 0]
    kept = features[:, alive].T.double()
    kept -= kept.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(kept, dim=1, keepdim=True)
    varies = features.amax(0) > features.amin(0)  # the mean of a constant is rounded, its correlations are noise
    kept = torch.where(varies[alive][:, None], kept / norms.clamp_min(torch.finfo(kept.dtype).tiny), 0.0)
    follows = (kept @ kept.T).abs_().gt(correlation).triu_(1).any(1)
    return active[alive][~follows].sum().item() / features.numel()


# ======================================================================================
# Neurons of a network
# ======================================================================================


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
# Modules, functions and methods that act on each channel alone, named as `node_kind` names them
_CHANNELWISE = set(
    "relu relu6 gelu tanh sigmoid silu mish elu celu selu leakyrelu hardtanh hardswish hardsigmoid softplus softsign "
    "logsigmoid tanhshrink softshrink hardshrink threshold identity dropout dropout1d dropout2d dropout3d alphadropout "
    "featurealphadropout stochasticdepth abs neg add iadd sub isub mul imul truediv div square sin cos exp clamp "
    "pow contiguous clone detach float double half to maxpool1d maxpool2d maxpool3d avgpool1d avgpool2d avgpool3d "
    "adaptiveavgpool1d adaptiveavgpool2d adaptiveavgpool3d adaptivemaxpool2d upsample interpolate".split()
)


def neuron_groups(model: nn.Module, example: Tensor, pairing: str = "graph") -> list[NeuronGroup]:
    """The groups of neurons of any torch.fx-traceable network, in the order they run.

    Follows convolutions, linear layers, batch, group and layer norms, elementwise functions,
    pooling, flatten and residual additions from one `example` batch; the channels of inputs, outputs
    and softmaxes are no neurons. `pairing="paper"` pairs each layer with the next one instead, without
    norms, skip connections and down-sampling, as the reference code does for its ResNet.

    Raises ValueError that names the layer it can't follow (concatenation, attention, ...).
    """
    if pairing not in ("graph", "paper"):
        raise ValueError(f"pairing must be 'graph' or 'paper', not {pairing!r}")
    model = unwrapped(model)
    graph, shapes = trace(model, example)
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
        place = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
        name = node.target if node.op == "call_module" else f"{node.name} in {place[-1]}" if place else node.name
        raise ValueError(
            f"neuron_groups can't follow {name} ({node_kind(node, modules)}): {why}; single layers can still be "
            "counted, independent_neurons(layer.weight.flatten(1))"
        )

    def hold(node, module, *roles):
        """Enter the slots of a module with parameters: roles are (role, space, block)."""
        for part in (module, *module.parameters(recurse=False)):
            name, earlier = calls.setdefault(id(part), (node.target, roles))
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
            kind, (space, block, last) = node_kind(node, modules), where[parents[0]]
            before, after = shapes[parents[0]], shapes[node]
            module = modules[node.target] if node.op == "call_module" else None
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and (
                len(module.normalized_shape) > 1 or (last is False and len(before) > 2)
            ):
                refuse(node, "it normalises over more than the channels")
            elif isinstance(module, _NORMS):
                if last and len(before) > 2 and not isinstance(module, nn.LayerNorm | nn.RMSNorm):
                    refuse(node, "it does not act on the channels of its input")
                if isinstance(module, nn.modules.batchnorm._BatchNorm) or (
                    getattr(module, "weight", None) is not None and module.weight.numel() > 1
                ):
                    hold(node, module, ("norm", space, block))
            elif len(parents) == 2 and kind in ("add", "iadd"):
                _, other_block, other_last = where[parents[1]]
                same = (block, last and len(before) > 2) == (other_block, other_last and len(before) > 2)
                if shapes[parents[1]] != before or (None not in (last, other_last) and not same):
                    refuse(node, "it adds tensors of different layouts")
                join(space, where[parents[1]][0])
            elif len(parents) > 1:
                refuse(node, "it combines tensors other than by addition")
            elif kind == "mean":
                dims = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else None))
                dims = range(len(before)) if dims is None else [dims] if isinstance(dims, int) else dims
                dims = {d % len(before) for d in dims}
                if dims & {0, len(before) - 1 if last else 1}:
                    refuse(node, "it averages over the batch or the channels")
            elif kind in ("flatten", "view", "reshape", "squeeze") and before != after and last is not None:
                if last or after != (before[0], math.prod(before[1:])):
                    refuse(node, "it mixes the channels with other dimensions")
                block *= math.prod(before[2:])
            elif "softmax" in kind:
                join(0, space)
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


def node_kind(node, modules) -> str:
    """What a node does, one name for module, function and method: MaxPool2d, max_pool2d -> maxpool2d."""
    target = type(modules[node.target]) if node.op == "call_module" else node.target
    return (target if isinstance(target, str) else target.__name__).lower().replace("_", "")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile and data parallelism."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model


@contextlib.contextmanager
def mode_of(model: nn.Module, training: bool):
    """The model in training or eval mode, and afterwards every module as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.train(training)
    finally:
        for module, was in modes.items():
            module.training = was


def symbolic(model: nn.Module) -> torch.fx.GraphModule:
    """torch.fx's view of a network, optional arguments of its forward at their defaults."""
    optional = list(inspect.signature(model.forward).parameters.values())[1:]
    return torch.fx.symbolic_trace(model, {one.name: one.default for one in optional if one.default is not one.empty})


def trace(model: nn.Module, example: Tensor):
    """The fx graph of `model` in eval mode and the shape of every tensor in it, leaving the model as it was.

    Raises ValueError for whatever the network's own code raises.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    if not isinstance(example, Tensor):
        raise ValueError("neuron_groups needs an example, a batch of the network's inputs, to follow it")
    trouble = f"{type(model).__name__} doesn't take the example of shape {list(example.shape)}"
    with mode_of(model, training=False), torch.no_grad():  # eval: the pass changes no running statistics
        try:
            model(example)
            trouble = f"torch.fx can't trace {type(model).__name__}"
            traced = symbolic(model)
            with contextlib.redirect_stderr(io.StringIO()):  # on trouble ShapeProp prints a traceback
                ShapeProp(traced).propagate(example)
        except Exception as error:
            why = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{trouble}: {why or type(error).__name__}") from None
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


def collapse_report(
    model: nn.Module | list[NeuronGroup],
    example: Tensor | None = None,
    vanishing: float = 0.1,
    redundant: float = 0.1,
    pairing: str = "graph",
    incoming_mask: bool = False,
) -> list[dict]:
    """How far each group of neurons has collapsed: a row (dict) per group of `neuron_groups`.

    `model` may also be the list of groups itself, so that a network that is measured often is
    traced once; they see the network's parameters as they are at the time of the call.

    `width` = `vanishing` + `redundant` + `independent` neurons; `fraction` = independent / width;
    `effective_rank` of all the group's vectors. `incoming_mask` takes the vanishing norm over the
    incoming weights alone, as the published figures did.
    """
    rows = []
    groups = model if isinstance(model, list) else neuron_groups(model, example, pairing)
    for group in groups:
        vectors = group.vectors()
        norms = torch.linalg.vector_norm(group.incoming(), dim=1, dtype=torch.float64) if incoming_mask else None
        vanished, independent = _count(vectors, vanishing, redundant, norms, f"{group.name}: vectors")
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


def cluster_order(distances: Tensor, clusters: int) -> Tensor:
    """[n, n] distances -> [n] order of the neurons in `clusters` average-linkage clusters, largest first.

    Clusters of one size lie as in the whole tree, so that similar ones are neighbours.
    """
    d = distances.double().clone().fill_diagonal_(math.inf)
    members = {k: [k] for k in range(len(d))}
    cut = list(members.values())
    while len(members) > 1:
        i, j = sorted(divmod(int(d.argmin()), len(d)))
        a, b = len(members[i]), len(members[j])
        d[i] = (a * d[i] + b * d[j]) / (a + b)  # the mean over all pairs of members
        d[:, i] = d[i]
        d[i, i] = d[j] = d[:, j] = math.inf
        members[i] = members[i] + members.pop(j)
        cut = list(members.values()) if len(members) >= clusters else cut
    tree = members[0]
    cut.sort(key=lambda cluster: (-len(cluster), tree.index(cluster[0])))
    return torch.tensor([neuron for cluster in cut for neuron in cluster])


def distance_maps(model: nn.Module, example: Tensor, names: tuple[str, ...], side: int = 64) -> list[dict]:
    """Normalised distances between the neurons of the named groups, as the heat maps of figure 3 show them.

    A dict per name: `width`, `clusters`, and `incoming` and `outgoing`, each [m, m] to two decimals, with
    m = min(width, side) by averaging. Neurons are ordered by `cluster_order` into as many clusters as
    are independent, vanished ones not set aside: they lie at distance 2 from all others.
    """
    groups = {group.name: group for group in neuron_groups(model, example)}
    maps = []
    for name in names:
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
