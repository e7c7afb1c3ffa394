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

import importlib
import math
import os
import sys
from pathlib import Path

import torch
from torch import nn

from collapse import collapse_exponent, extract_subnetwork  # noqa: F401
from collapse.extract import plan_of, why_left_whole
from core import collapse_report, neuron_groups, run_script
from neurons import trained_network
from training import load_state


def covers(slot, parameter: torch.Tensor) -> float:
    """The share of a parameter's axis that a slot's neurons hold."""
    length = parameter.numel() if slot.dim is None else parameter.shape[slot.dim] * slot.groups
    return slot.index.numel() / length


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
    groups = neuron_groups(network, example)
    report = collapse_report(groups, vanishing=vanishing, redundant=redundant[0])
    share = {}
    for group, row in zip(groups, report, strict=True):
        row["kept"] = group.size
        if why_left_whole(group) is None:
            row["kept"] = len(plan_of(group, vanishing, redundant[0]).kept)
        for slot in group.slots:
            parameter = slot.tensor
            share[parameter] = share.get(parameter, 1) * (1 - (1 - row["kept"] / group.size) * covers(slot, parameter))
    print(report)
    total = sum(parameter.numel() for parameter in network.parameters())
    needed = round(sum(parameter.numel() * share.get(parameter, 1) for parameter in network.parameters()))
    print(f"{total:,} parameters, of which the simpler network needs {needed:,} ({needed / total:.1%})")
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
