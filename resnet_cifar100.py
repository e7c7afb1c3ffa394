"""ResNet-18 on CIFAR-100: the same experiments in a network with batch norm and residual streams.

  lr      learning rates 0.01 to 0.1, 100,000 steps, 4 seeds (Stochastic Collapse, figures 3 and 4)
  noise   label noise 0 to 0.8 at learning rate 0.02, 1,000,000 steps, 4 seeds (figure 4)
  batch   batch sizes 32 to 512 at learning rate 0.02 (inferred), 1,000,000 steps, 4 seeds
  drop    learning rate 0.1 dropped to 0.01 after 10,000, 20,000, 40,000 steps, 8 seeds (figure 6)

The paper's settings: width 64 (11.2 million parameters), batch size 256, SGD with momentum 0.9 and weight decay 5e-4,
linear warm-up over 1,000 steps, random crops and flips. What a Run below doesn't name is core.Run's default.

  torchrun --nproc_per_node=8 resnet_cifar100.py lr    eight GPUs; runs are shared among them
  python resnet_cifar100.py lr --width 16 --batch-size 128 --steps 40000 --seeds 1
                                                       one CPU core: about two hours a learning rate
  python resnet_cifar100.py --quick                    all four paths on generated images, a minute

Independent neurons are counted both ways: in the true groups, residual streams and batch norm
included, and by the paper's pairing of each convolution with the next one. With several processes
per run each normalises its share of a batch by itself; the running statistics are the first one's. Interrupted, the
same command goes on; the results go to results/resnet_*.json, and `python figures.py` draws them.
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

from core import Run
from experiments.sweeps import Experiment, run_sweeps

LEARNING_RATE = Experiment(
    Run(
        model="resnet18",
        dataset="cifar100",
        width=64,
        batch_size=256,
        momentum=0.9,
        weight_decay=5e-4,
        steps=100_000,
        warmup_steps=1000,
        eval_every=5000,
    ),
    varied="learning_rate",
    values=(0.01, 0.02, 0.05, 0.1),
    seeds=4,
    maps=("layer2.0.conv2", "layer1.1.conv1", "layer4.1.conv1"),
)

LABEL_NOISE = Experiment(
    Run(
        model="resnet18",
        dataset="cifar100",
        width=64,
        batch_size=256,
        momentum=0.9,
        weight_decay=5e-4,
        learning_rate=0.02,
        steps=1_000_000,
        warmup_steps=1000,
        eval_every=50_000,
    ),
    varied="label_noise",
    values=(0.0, 0.2, 0.4, 0.6, 0.8),
    seeds=4,
)

BATCH_SIZE = Experiment(
    Run(
        model="resnet18",
        dataset="cifar100",
        width=64,
        momentum=0.9,
        weight_decay=5e-4,
        learning_rate=0.02,
        steps=1_000_000,
        warmup_steps=1000,
        eval_every=50_000,
    ),
    varied="batch_size",
    values=(32, 64, 128, 256, 512),
    seeds=4,
)

DROP = Experiment(
    Run(
        model="resnet18",
        dataset="cifar100",
        width=64,
        batch_size=256,
        momentum=0.9,
        weight_decay=5e-4,
        learning_rate=0.1,
        steps=40_000,
        warmup_steps=1000,
        eval_every=1000,
        milestones=(10_000, 20_000, 40_000),  # where the learning rate is dropped
    ),
    varied="learning_rate",
    values=(0.1,),
    seeds=8,
    # the paper's ResNet warms up again after the drop
    after_drop={"learning_rate": 0.01, "steps": 10_000, "warmup_steps": 1000, "eval_every": 200},
)

EXPERIMENTS = {"lr": LEARNING_RATE, "noise": LABEL_NOISE, "batch": BATCH_SIZE, "drop": DROP}

QUICK = {"dataset": "synthetic", "width": 4, "steps": 40, "batch_size": 32, "warmup_steps": 10, "eval_every": 20}

if __name__ == "__main__":
    run_sweeps(__doc__, "resnet", EXPERIMENTS, QUICK)
