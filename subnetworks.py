"""What collapse is good for: measure any network, extract the simpler one inside, predict what collapses next.

  measure    the collapse report of any network, with the parameters that the simpler one would need     seconds
  extract    the simpler network of each trained one: accuracy, parameters, FLOPs, time per image   about 10 min
  exponent   predicted against measured merging: closed forms, then a narrow VGG-16 on CIFAR-10     about 10 min
  vanishing  which neurons vanish under label noise, told long before the first has gone           about 12 min
  causes     its exponents with less noise, none (the full batch), and without weight decay        about 2.5 h

  python subnetworks.py measure --model torchvision.models:resnet18 --weights FILE.pt --input 3,224,224
  python subnetworks.py measure --run runs/vgg_cifar10/NAME
  python subnetworks.py extract --runs runs/vgg_cifar10 --finetune 200
  python subnetworks.py --quick

From Python: extract_subnetwork(model, example) and collapse_exponent(model, sets, batches, optimizer).
Times are for one CPU core. `exponent` first trains its two networks: 18 minutes more, once (runs/subnetworks);
`causes` uses the first of them; `vanishing` trains two of its own, 30 minutes.
"""

import contextlib
import copy
import importlib
import math
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import grad, jvp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from collapse import unwrapped
from core import collapse_report, neuron_groups, run_script
from neurons import (
    as_trained,
    behind_batch_norm,
    channel_nodes,
    check_followed,
    check_same,
    clusters,
    contribution,
    neuron_parts,
    on_invariant_sets,
    tangent_step,
    trained_network,
)
from training import load_state

# ======================================================================================
# Extract: the smaller network that a collapsed one is
# ======================================================================================


def extract_subnetwork(model: nn.Module, example: Tensor, vanishing: float = 0.1, redundant: float = 0.1) -> nn.Module:
    """A smaller network of the same layers: vanished neurons removed, redundant ones merged (see `clusters`).

    Merging averages what comes in (rows, norms' parameters, running statistics) and sums what goes out
    (columns). In eval mode the function is the same where neurons have vanished or are equal exactly, and nearly
    so where nearly. `model` isn't changed. The attribute `extraction` of the new network counts what was
    done, {"name", "width", "vanished", "merged", "kept"} by group; with nothing to extract the network comes back as
    it was, with a warning that says so.

    Raises ValueError, naming the layer, for what can't be followed (`core.neuron_groups`), norms that
    couple neurons and weights computed from other parameters, and for networks whose code uses the sizes of layers.
    """
    model, counts, plans = unwrapped(model), [], []
    for group in neuron_groups(model, example):
        for slot in (*group.producers, *group.norms, *group.consumers):
            check_followed(slot, "extract through")
        gone, home = clusters(group, vanishing, redundant)
        kept = (~gone & (home == torch.arange(group.size, device=home.device))).nonzero()[:, 0]
        merged = group.size - len(kept) - int(gone.sum())
        counts.append({"name": group.name, "width": group.size, "vanished": int(gone.sum()), "merged": merged})
        counts[-1]["kept"] = len(kept)
        if len(kept) < group.size:
            plans.append((group, gone, home, kept))
    whole = on_invariant_sets(model, plans)
    smaller = copy.deepcopy(whole)
    smaller.extraction = counts
    if not plans:
        warnings.warn(f"nothing to extract at vanishing={vanishing}, redundant={redundant}: unchanged", stacklevel=2)
        return smaller

    def replace(module, name, new):
        old = getattr(module, name)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)

    for group, gone, home, kept in plans:
        for slot in (*group.producers, *group.norms):
            module = smaller.get_submodule(slot.name)
            for name, old in [*module._parameters.items(), *module._buffers.items()]:
                if old is not None and old.ndim:
                    rows = old.detach().reshape(group.size, slot.block, *old.shape[1:])
                    replace(module, name, rows[kept].flatten(0, 1))
            for name in {"out_channels", "out_features", "num_features", "num_parameters"} & vars(module).keys():
                setattr(module, name, len(kept) * slot.block)
        for slot in group.consumers:
            module = smaller.get_submodule(slot.name)
            old = module.weight.detach()
            columns = old.reshape(len(old), group.size, slot.block, *old.shape[2:])[:, ~gone]
            new = columns.new_zeros(len(old), len(kept), *columns.shape[2:])
            new = new.index_add_(1, torch.searchsorted(kept, home[~gone]), columns).flatten(1, 2)
            replace(module, "weight", new)
            setattr(module, "in_features" if new.ndim == 2 else "in_channels", new.shape[1])
    check_same(whole, smaller, example)
    return smaller


# ======================================================================================
# Predict: the top Lyapunov exponent of SGD normal to an invariant set
# ======================================================================================


def collapse_exponent(
    model: nn.Module,
    sets: dict[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.SGD,
    loss=F.cross_entropy,
    frozen: bool = False,
    blocks: int = 20,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Top Lyapunov exponents of SGD normal to invariant sets, along the steps it takes with these very batches.

    `sets`: name of a group of `core.neuron_groups` -> [S, 2] pairs (permutation sets) or [S] neurons
    (sign sets; before a batch norm the set is gain, offset and outgoing weights zero). At each step the small
    distances to the sets move by v' = momentum v + (H + decay) delta, delta' = delta - lr v', H the batch's
    Hessian normal to the set, and the network by `optimizer` (unless `frozen`). They start along the neurons' own
    distances, and at random where these are zero; only their direction matters. Batches too large for memory
    are taken `chunk` examples at a time (`loss` a mean over examples; networks without batch norm).

    Returns, one number per set in the order of `sets`: `exponent` per step, over the last four fifths of the
    steps, its standard `error` (from means over `blocks`), and what it is made of to second order in eta =
    lr / (1 - momentum): `decay`, `curvature` -eta E[q] (and the second order of the mean H), and `noise`, eta^2 / 2
    (var Hu - 2 var q), q = u.Hu, u the direction. In one dimension var Hu = var q: noise attracts
    (stochastic attractivity in Stochastic Collapse); in many the part of Hu across u repels. And [steps, sets]:
    `growth` of log|delta|, and `log_distance` of the neurons themselves to the set, before each step.

    Raises ValueError, naming the layer, for groups it can't follow or that the optimizer doesn't train whole, sets
    that aren't invariant and chunks that a batch norm would see.
    """
    keys, others = ("lr", "momentum", "weight_decay"), ("nesterov", "dampening", "maximize")
    settings = {tuple(map(group.get, keys)) for group in optimizer.param_groups}
    other = [group.get(key) for group in optimizer.param_groups for key in others]
    if type(optimizer) is not torch.optim.SGD or len(settings) != 1 or any(other):
        raise ValueError(
            "collapse_exponent linearises torch.optim.SGD with one setting for all parameters, "
            "no Nesterov, no dampening, no maximize"
        )
    if not 0 <= settings.copy().pop()[1] < 1:
        raise ValueError("collapse_exponent needs a momentum from 0 to below 1")
    model = unwrapped(model)
    modules, batches = dict(model.named_modules()), iter(batches)
    batch, buffers = next(batches, None), {name: buffer.clone() for name, buffer in model.named_buffers()}
    if batch is None:
        raise ValueError("collapse_exponent needs at least one batch")
    coupled = [name for name, module in modules.items() if chunk and isinstance(module, _BatchNorm)]
    if coupled:
        raise ValueError(f"collapse_exponent can't take batches in chunks: {coupled[0]} couples their examples")
    groups = {group.name: group for group in neuron_groups(model, batch[0][:2])}
    if not sets or sets.keys() - groups.keys():
        raise ValueError(f"no group of neurons {', '.join(sets.keys() - groups.keys())}; there are {', '.join(groups)}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    inputs, gradients, jobs, states, steps = {}, {}, {}, {}, []

    def watch(slot, is_producer):
        def keep_input(module, args, kwargs):
            inputs[slot.name] = (*args, *kwargs.values())[0].detach()

        def keep_gradient(module, args, output):
            output.register_hook(lambda gradient: gradients.update({slot.name: gradient}))

        if is_producer:
            return slot.module.register_forward_pre_hook(keep_input, with_kwargs=True)
        return slot.module.register_forward_hook(keep_gradient)

    def split(group, index, free, pick=lambda parameter: parameter.detach()):
        """The points of the sets nearest to the neurons, and the neurons' distances to them."""
        vectors = torch.cat([part.reshape(group.size, -1) for part in neuron_parts(group, pick).values()], 1)[index]
        pairs = index.ndim == 2
        return (vectors.mean(1), vectors[:, 0] - vectors.mean(1)) if pairs else (vectors * ~free, vectors * free)

    def velocity(parameter):
        buffer = optimizer.state[parameter].get("momentum_buffer")
        return torch.zeros_like(parameter) if buffer is None else buffer.detach()

    def restore():
        for name, buffer in model.named_buffers() if frozen or not steps else ():
            buffer.copy_(buffers[name])

    with contextlib.ExitStack() as stack:
        stack.enter_context(as_trained(model))
        stack.callback(restore)
        for name, index in sets.items():
            group, nodes, index = groups[name], channel_nodes(model, groups[name], batch[0][:2]), torch.as_tensor(index)
            if index.is_floating_point() or index.dtype == torch.bool or tuple(index.shape[1:]) not in ((), (2,)):
                raise ValueError(f"the sets of {name} must be integers, [S, 2] pairs or [S] neurons")
            pairs = index.ndim == 2
            if not ((index >= 0) & (index < group.size)).all() or (pairs and (index[:, 0] == index[:, 1]).any()):
                raise ValueError(f"the sets of {name} must be of different neurons from 0 to {group.size - 1}")
            shapes, normed = {}, behind_batch_norm(nodes, modules, group)
            for (layer, what), part in neuron_parts(group).items():
                parameter = getattr(modules[layer], what.replace("columns", "weight"))
                if not parameter.requires_grad or id(parameter) not in held:
                    raise ValueError(f"collapse_exponent can't follow {layer}: the optimizer doesn't train all of it")
                shapes[layer, what] = part.shape[1:]
            normal = [pairs or key[1] == "columns" or key[0] not in normed for key in shapes]
            sizes = torch.tensor([math.prod(shape) for shape in shapes.values()])
            free = torch.tensor(normal).repeat_interleave(sizes).to(batch[0].device)
            jobs[name] = group, index, nodes, shapes, free
        for group, *_ in jobs.values():
            for slot in (*group.producers, *group.consumers):
                stack.callback(watch(slot, slot in group.producers).remove)
        while batch is not None:
            rate, momentum, decay = (optimizer.param_groups[0][key] for key in keys)
            row, nearest, products = [], {}, {}
            for name, (group, index, *_, free) in jobs.items():
                nearest[name] = _, own = split(group, index, free)
                if name not in states:
                    there = own.norm(dim=1, keepdim=True) > 0
                    delta = torch.where(there, own, torch.randn_like(own) * free)
                    speed = torch.where(there, split(group, index, free, velocity)[1], 0)
                    size = delta.norm(dim=1, keepdim=True)
                    states[name] = delta / size, speed / size, torch.zeros_like(delta)
            optimizer.zero_grad()
            for x, labels in zip(*(part.split(chunk or len(part)) for part in batch), strict=True):
                gradients.clear()
                (loss(model(x), labels) * (len(x) / len(batch[0]))).backward()
                for name, (group, index, nodes, shapes, free) in jobs.items():
                    unseen = [slot.name for slot in group.consumers if slot.name not in gradients]
                    if unseen:
                        raise ValueError(f"collapse_exponent can't follow {unseen[0]}: the loss doesn't depend on it")

                    def slope(vectors, nodes=nodes, shapes=shapes):
                        return grad(contribution)(vectors, shapes, nodes, modules, inputs, gradients)

                    mean, delta = nearest[name][0], states[name][0]
                    if index.ndim == 2:
                        product = jvp(slope, (mean,), (delta,))[1]
                    else:  # the slope at the set is 0: this is the same, and right where a ReLU or max-pool has a kink
                        if not steps and (slope(mean) * free).any():
                            raise ValueError(f"the neurons of {name} can't vanish: their activation of 0 is not 0")
                        product = slope(mean + 1e-4 * delta) * free / 1e-4
                    products[name] = products.get(name, 0) + product
            for name in jobs:
                states[name], parts = tangent_step(*states[name], products[name], rate, momentum, decay)
                row.append(torch.stack([*parts, nearest[name][1].norm(dim=1).log()]))
            steps.append(torch.cat(row, 1))
            if not frozen:
                optimizer.step()
            batch = next(batches, None)
    growth, curvature, noise, decay, ahead, distance = torch.stack(steps, 1).double()
    late = slice(len(growth) // 5, -1 if len(growth) > 1 else None)
    slow = torch.cat([growth[:-1] + ahead.diff(dim=0), growth[-1:]])[late]  # of the slow one: without momentum's swing
    means = torch.stack([part.mean(0) for part in slow.tensor_split(min(blocks, len(slow)))])
    error = (means.var(0, correction=0) / (len(means) - 1)).sqrt()  # of one mean: nan
    found = {"exponent": slow.mean(0), "error": error}
    found |= {"curvature": curvature[late].mean(0), "noise": noise[late].mean(0), "decay": decay[late].mean(0)}
    return found | {"growth": growth, "log_distance": distance}


def measure(
    model: str = "torchvision.models:resnet18",
    weights: str | None = None,
    input: str = "3,224,224",
    run: str | None = None,
    vanishing: float = 0.1,
    redundant: tuple = (0.1,),
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """The collapse report of MODULE:FUNCTION (called without arguments), or of a run directory; see `--help`."""
    if run:
        network, shape = trained_network(Path(run), None, device)[1], (3, 32, 32)
    else:
        shape = [int(size) if size.isdecimal() else 0 for size in input.split(",")]
        if not 0 < min(shape) <= math.prod(shape) < 2**31:
            raise ValueError(f"--input {input}: expected positive numbers with commas, as 3,224,224")
        sys.path.insert(0, os.getcwd())  # for networks of one's own
        try:
            module, _, function = model.partition(":")
            torch.manual_seed(seed)
            network = getattr(importlib.import_module(module), function)()
        except Exception as error:  # whatever that code raises
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"can't make --model {model}: {why}") from None
        if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
            raise ValueError(
                f"can't make --model {model}: it returns {type(network).__name__}, no nn.Module with parameters"
            )
        network.to(device)
        if weights:
            state = load_state(Path(weights), device)
            try:
                state = state.get("state_dict", state.get("model", state))
                state = {name.removeprefix("module.").removeprefix("_orig_mod."): state[name] for name in state}
                network.load_state_dict(state)
            except (RuntimeError, TypeError, AttributeError, LookupError) as error:
                why = " ".join(str(error).split())[:200]
                raise ValueError(f"{weights}, expected to be a state_dict of {model}, doesn't fit: {why}") from None
    if len(redundant) != 1:
        raise ValueError(f"measure takes one --redundant, not {len(redundant)}")
    example = torch.zeros(2, *shape, device=device)
    report, share, slots = collapse_report(network, example, vanishing, redundant[0]), {}, []
    for group, row in zip(neuron_groups(network, example), report, strict=True):
        gone, home = clusters(group, vanishing, redundant[0])
        row["kept"] = int((~gone & (home == torch.arange(group.size, device=device))).sum())
        slots += [*group.producers, *group.norms, *group.consumers]
        held = [p for slot in (*group.producers, *group.norms) for p in slot.module.parameters(recurse=False)]
        for parameter in (*held, *(slot.module.weight for slot in group.consumers)):
            share[parameter] = share.get(parameter, 1) * row["kept"] / group.size
        print("{name:24} width {width:5} vanishing {vanishing:4} redundant {redundant:4} independent {independent:5}"
              " effective rank {effective_rank:7.1f} kept {kept:5}".format(**row))  # fmt: skip
    total = sum(parameter.numel() for parameter in network.parameters())
    needed = round(sum(parameter.numel() * share.get(parameter, 1) for parameter in network.parameters()))
    try:
        for slot in slots:
            check_followed(slot, "extract through")
        print(f"{total:,} parameters, of which the simpler network needs {needed:,} ({needed / total:.1%})")
    except ValueError as error:
        needed = None
        print(f"{total:,} parameters; no simpler network: {error}")
    return {"report": report, "parameters": total, "needed": needed}


OPTIONS = {
    "model": {"help": "measure: MODULE:FUNCTION that makes the network (default: torchvision.models:resnet18)"},
    "weights": {"help": "measure: a state_dict for it (a file of tensors; nothing in it is executed)"},
    "input": {"help": "measure: shape of one example (default: 3,224,224)"},
    "run": {"help": "measure: a run directory of vgg_cifar10.py or resnet_cifar100.py, in place of --model"},
    "runs": {"nargs": "+", "help": "extract: folders with run directories (default: runs/vgg_cifar10)"},
    "vanishing": {"type": float, "help": "norm, relative to the largest, below which a neuron has vanished (0.1)"},
    "redundant": {
        "type": float,
        "nargs": "+",
        "help": "normalised distances below which two neurons are one (0.1 0.3 0.6)",
    },
    "finetune": {"type": int, "help": "extract: steps of fine-tuning (default: 200)"},
    "pairs": {"type": int, "help": "exponent: nearest pairs per group (default: 250)"},
    "seeds": {"type": int, "help": "exponent, vanishing: networks (default: 2)"},
    "data": {"help": "folder of the data (default: data)"},
}


def main(argv: list[str] | None = None) -> None:
    from exponents import causes, exponent, vanishing  # built on the functions above
    from extraction import extract

    tiny = {"dataset": "synthetic", "width": 4, "batch_size": 32, "steps": 40, "warmup_steps": 10, "eval_every": 40}
    quick = {
        "measure": {"input": "3,64,64"},
        "extract": {"network": tiny, "redundant": (0.1,), "finetune": 5, "planted": ("MLP", "resnet18")},
        "exponent": {
            "network": tiny | {"milestones": (20, 40)}, "folder": "runs/quick/subnetworks", "seeds": 1, "early": 20,
            "window": 10, "pairs": 20, "steps": 300, "pair_steps": 300,
        },
        "vanishing": {
            "network": tiny | {"milestones": (20, 40), "label_noise": 0.5}, "folder": "runs/quick/subnetworks",
            "seeds": 1, "early": 20, "window": 10,
        },
        "causes": {
            "network": tiny | {"milestones": (20, 40)}, "folder": "runs/quick/subnetworks", "early": 20, "pairs": 20,
            "batch_sizes": (32, 50_000), "steps": 4, "replicas": (2, 1),
        },
    }  # fmt: skip
    run_script(
        __doc__,
        {"measure": measure, "extract": extract, "exponent": exponent, "vanishing": vanishing, "causes": causes},
        quick,
        argv,
        "beyond_",
        OPTIONS,
    )


if __name__ == "__main__":
    main()
