"""VGG-16 on CIFAR-10: more noise, fewer independent neurons (Stochastic Collapse, figures 3, 4 and 6).

  lr      learning rates 0.01 to 0.1, 100,000 steps, 4 seeds (figures 3 and 4)
  noise   label noise 0 to 0.8 at learning rate 0.01, 1,000,000 steps, 4 seeds (figure 4)
  batch   batch sizes 32 to 512 at learning rate 0.02, 100,000 steps, 4 seeds (supplement)
  drop    learning rate 0.1 dropped to 0.01 after 10,000, 20,000, 40,000 steps, 8 seeds (figure 6)

The paper's settings: width 64 (15.2 million parameters), batch size 256, SGD with momentum 0.9 and weight decay 5e-4,
linear warm-up over 1,000 steps, random crops and flips. What a Run below doesn't name is core.Run's default. A step at
this size takes about 1.5 seconds on one CPU core with bfloat16 units; a GPU is 50 times faster or more.

  torchrun --nproc_per_node=8 vgg_cifar10.py lr        eight GPUs; runs are shared among them
  python vgg_cifar10.py drop --seeds 1                 one process, one seed
  python vgg_cifar10.py lr --dataset fashion_mnist --width 16 --batch-size 128 --steps 40000 --seeds 1 \\
      --learning-rate 0.05                             a laptop, 45 minutes: collapse in the deep layers
  python vgg_cifar10.py --quick                        all four paths on generated images, a minute

Interrupted or killed, the same command goes on where it was. Expect fewer independent neurons in
the deep layers with more learning rate, label noise, and time before the drop; the results go to
results/vgg_*.json, and `python figures.py` draws them.
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

from core import Run
from experiments.sweeps import Experiment, run_sweeps

LEARNING_RATE = Experiment(
    Run(
        model="vgg16",
        dataset="cifar10",
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
    maps=("features.10", "features.24", "classifier.0"),  # conv5, conv11, fc14
)

LABEL_NOISE = Experiment(
    Run(
        model="vgg16",
        dataset="cifar10",
        width=64,
        batch_size=256,
        momentum=0.9,
        weight_decay=5e-4,
        learning_rate=0.01,
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
        model="vgg16",
        dataset="cifar10",
        width=64,
        momentum=0.9,
        weight_decay=5e-4,
        learning_rate=0.02,
        steps=100_000,
        warmup_steps=1000,
        eval_every=5000,
    ),
    varied="batch_size",
    values=(32, 64, 128, 256, 512),
    seeds=4,
)

DROP = Experiment(
    Run(
        model="vgg16",
        dataset="cifar10",
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
    after_drop={"learning_rate": 0.01, "steps": 5000, "warmup_steps": 0, "eval_every": 200},
)

EXPERIMENTS = {"lr": LEARNING_RATE, "noise": LABEL_NOISE, "batch": BATCH_SIZE, "drop": DROP}

QUICK = {"dataset": "synthetic", "width": 4, "steps": 80, "batch_size": 64, "warmup_steps": 10, "eval_every": 40}

if __name__ == "__main__":
    run_sweeps(__doc__, "vgg", EXPERIMENTS, QUICK)
