"""What collapse is good for: measure any network, extract the simpler one inside, predict what collapses next.

  measure    the collapse report of any network and a picture of it, with the parameters that the simpler
             one would need; of several checkpoints how collapse went on                                 seconds
  extract    the simpler network of each trained one: accuracy, parameters, FLOPs, time per image   about 10 min
             with --model: the simpler network of yours, saved                                           seconds
  exponent   predicted against measured merging: closed forms, then a narrow VGG-16 on CIFAR-10     about 10 min
  vanishing  which neurons vanish under label noise, told long before the first has gone            about 12 min
  windows    the same told from 50, 100, 300 and 1,000 steps: by exponents, and by watching            not timed
  switch     what another rate, batch size or label noise does to neurons, told before it is made     not timed
  causes     its exponents with less noise, none (the full batch), and without weight decay          about 2.5 h
  wild       trained networks that Python packages ship, measured and extracted; what to install     about 2 min
             it says itself, and leaves out what isn't there

  python subnetworks.py measure --model torchvision.models:resnet18 --input 3,224,224     as it is, untrained
  python subnetworks.py measure --model torchvision.models:resnet18 --weights FILE.pt --input 3,224,224
  python subnetworks.py measure --model yourfile:make --weights epoch1.pt epoch2.pt epoch3.pt --picture collapse.png
  python subnetworks.py measure --model yourfile:language_model --input 1,128:int
  python subnetworks.py measure --run runs/vgg_cifar10/NAME
  python subnetworks.py extract --model yourfile:make --weights FILE.pt --save small.pt
  python subnetworks.py extract --runs runs/vgg_cifar10 --finetune 200
  python subnetworks.py --quick

`vanishing`, `windows`, `switch` and `causes` have a form ending in _mlp, for a perceptron on Fashion-MNIST (causes: on
USPS): 1 to 4 minutes each, after 2 of training. At other steps: vanishing_later, windows_mlp_earlier,
windows_mlp_later. extract_noisy takes the networks that these have left in runs/subnetworks of this folder.

From Python: collapse_report, extract_subnetwork, collapse_exponent, CollapseLog of the package collapse.
Times are for one CPU core. `exponent` first trains its two networks: 18 minutes more, once (runs/subnetworks);
`causes` uses the first of them; `vanishing` trains two of its own, 30 minutes, which `windows` and `switch` share.
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

from functools import partial

import torch

from experiments.causes import causes
from experiments.extraction import extract_trained
from experiments.forecasts import NOISY, exponent, vanishing
from experiments.measure import extract_own, measure
from experiments.switches import CHANGES, switch
from experiments.trained import RUNS
from experiments.wild import wild
from experiments.windows import windows
from lib.command import run_script
from lib.results import ROOT
from lib.settings import Seed

THRESHOLDS = (0.1, 0.3, 0.6)  # the paper's, and two that merge more


def extract(
    runs: tuple = (),
    redundant: tuple = THRESHOLDS,
    vanishing: float = 0.1,
    finetune: int = 200,
    learning_rate: float = 0.01,
    network: dict | None = None,
    planted: tuple = ("MLP", "VGG-16", "vgg11_bn", "resnet18"),
    data: str | None = None,
    model: str | None = None,
    weights: tuple = (),
    input: tuple = ("3,224,224",),
    save: str = "small.pt",
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict | None:
    """What the extracted networks of finished `runs` keep of accuracy and cost, at several thresholds.

    Fine-tuning: `finetune` steps of the run's own SGD at `learning_rate`, of the whole network and of each
    extracted one. First, networks with `planted` collapse (full width, untrained), where the function must not
    change. `network`: settings of a Run to train and use in place of `runs`. With `model`, MODULE:FUNCTION, the
    network of one's own is extracted instead, at the first of `redundant`, and saved; no result is written.
    """
    device = torch.device(device)
    if model is not None:
        if redundant == THRESHOLDS:  # the default, of which a network of one's own takes the first
            redundant = redundant[:1]
        extract_own(model, weights, input, vanishing, redundant, save, seed, device)
        return None
    return extract_trained(runs, redundant, vanishing, finetune, learning_rate, network, planted, data, seed, device)


OPTIONS = {
    "model": {
        "help": "measure, extract: MODULE:FUNCTION that makes the network (measure: torchvision.models:resnet18)"
    },
    "weights": {
        "nargs": "+",
        "help": "measure, extract: files of weights for it, as torch.save or safetensors write them (nothing in "
        "them is executed); measure takes several and shows how collapse went on",
    },
    "input": {
        "nargs": "+",
        "help": "measure, extract: shape of one example (3,224,224), or of a batch of tokens (1,128:int)",
    },
    "run": {"help": "measure: a run directory of vgg_cifar10.py or resnet_cifar100.py, in place of --model"},
    "picture": {"help": "measure: the picture's file (default: figures/your_network.png)"},
    "save": {"help": "extract --model: file for the smaller network (default: small.pt)"},
    "runs": {"nargs": "+", "help": "extract: folders with run directories (default: runs/vgg_cifar10)"},
    "vanishing": {"type": float, "help": "norm, relative to the largest, below which a neuron has vanished (0.1)"},
    "redundant": {
        "type": float,
        "nargs": "+",
        "help": "normalised distances below which two neurons are one (0.1; extract: 0.1 0.3 0.6)",
    },
    "finetune": {"type": int, "help": "extract: steps of fine-tuning (default: 200)"},
    "pairs": {"type": int, "help": "exponent: nearest pairs per group (default: 250)"},
    "seeds": {"type": int, "help": "exponent, vanishing, windows, switch: networks (default: 2)"},
    "data": {"help": "folder of the data (default: data beside the script)"},
}

MLP = NOISY | {  # a network of another kind on other data; in seconds what takes VGG-16 minutes
    "model": "mlp",
    "dataset": "fashion_mnist",
    "batch_size": 32,
    "steps": 12_000,
    "milestones": tuple(range(2000, 12_001, 2000)),
    "precision": "float32",
}
OF_MLP = {"network": MLP, "early": 4000}
EXPERIMENTS = {
    "measure": measure,
    "extract": extract,
    "exponent": exponent,
    "vanishing": vanishing,
    "windows": windows,
    "switch": switch,
    "causes": causes,
    "wild": wild,
    "vanishing_later": partial(vanishing, early=12_000),
    "vanishing_mlp": partial(vanishing, **OF_MLP),
    "windows_mlp": partial(windows, **OF_MLP),
    "windows_mlp_earlier": partial(windows, **OF_MLP | {"early": 2000}, lengths=(50, 100, 300)),
    "windows_mlp_later": partial(windows, **OF_MLP | {"early": 6000}, lengths=(50, 100, 300)),
    "switch_mlp": partial(switch, **OF_MLP, changes=CHANGES | {"batch_size": (8, 128)}),
    "causes_mlp": partial(
        causes,  # on USPS, which is small: a full batch is cheap
        network=MLP | {"dataset": "usps", "steps": 4000, "milestones": (2000, 4000)},
        early=4000,
        steps=100,
        replicas=(8, 4, 1),
        chunk=1000,
    ),
    "extract_noisy": partial(extract, runs=("runs/subnetworks",), finetune=50, planted=("MLP",)),
}

TINY = {"dataset": "synthetic", "width": 4, "batch_size": 32, "steps": 40, "warmup_steps": 10, "eval_every": 40}
NOISY_TINY = TINY | {"milestones": (20, 40), "label_noise": 0.5}
QUICK_RUNS = str(RUNS / "quick" / "subnetworks")
EARLY = {"folder": QUICK_RUNS, "early": 20}
QUICK = {
    "measure": {"input": ("3,64,64",), "picture": str(ROOT / "figures" / "quick" / "your_network.png")},
    "extract": {"network": TINY, "redundant": (0.1,), "finetune": 5, "planted": ("MLP", "resnet18")},
    "exponent": EARLY
    | {
        "network": TINY | {"milestones": (20, 40)},
        "seeds": 1,
        "window": 10,
        "pairs": 20,
        "steps": 300,
        "pair_steps": 300,
    },
    "vanishing": EARLY | {"network": NOISY_TINY, "seeds": 1, "window": 10},
    "windows": EARLY | {"network": NOISY_TINY, "seeds": 1, "lengths": (5, 10)},
    "switch": EARLY | {"network": NOISY_TINY, "changes": {"label_noise": (0.0,)}, "seeds": 1, "window": 10, "ahead": 5},
    "causes": EARLY
    | {
        "network": TINY | {"milestones": (20, 40)},
        "pairs": 20,
        "batch_sizes": (32, 50_000),
        "steps": 4,
        "replicas": (2, 1),
    },
    "wild": {"inputs": 2},
}
for name in EXPERIMENTS.keys() - QUICK.keys():
    QUICK[name] = QUICK[name.partition("_")[0]]


def main(argv: list[str] | None = None) -> None:
    run_script(
        __doc__,
        EXPERIMENTS,
        QUICK,
        argv,
        prefix="beyond_",
        options=OPTIONS,
        undrawn=("measure", "wild"),
        replaced=("changes",),  # it lists what is tried
    )


if __name__ == "__main__":
    main()
