"""VGG-16 on CIFAR-10: more noise, fewer independent neurons (Stochastic Collapse, figures 3, 4 and 6).

  lr      learning rates 0.01 to 0.1, 100,000 steps, 4 seeds (figures 3 and 4)
  noise   label noise 0 to 0.8 at learning rate 0.01, 1,000,000 steps, 4 seeds (figure 4)
  batch   batch sizes 32 to 512 at learning rate 0.02, 100,000 steps, 4 seeds (supplement)
  drop    learning rate 0.1 dropped to 0.01 after 10,000, 20,000, 40,000 steps, 8 seeds (figure 6)

  torchrun --nproc_per_node=8 vgg_cifar10.py lr        eight GPUs; runs are shared among them
  python vgg_cifar10.py drop --seeds 1                 one process, one seed
  python vgg_cifar10.py lr --width 8 --batch-size 128 --steps 20000 --seeds 2     a laptop: hours
  python vgg_cifar10.py --quick                        all four paths on generated images, a minute

Interrupted or killed, the same command goes on where it was. Expect fewer independent neurons in
the deep layers with more learning rate, label noise, and time before the drop; the results go to
results/vgg_*.json, and `python figures.py` draws them.
"""

from core import PAPER_SWEEPS, Run, run_sweeps

PAPER = Run(model="vgg16", dataset="cifar10")

OWN = {
    "lr": {"maps": ("features.10", "features.24", "classifier.0")},  # conv5, conv11, fc14
    "noise": {"learning_rate": 0.01},
    "batch": {},
    "drop": {"branches": {"learning_rate": 0.01, "steps": 5000, "warmup_steps": 0, "eval_every": 200}},
}
EXPERIMENTS = {name: PAPER_SWEEPS[name] | own for name, own in OWN.items()}

QUICK = {"dataset": "synthetic", "width": 4, "steps": 80, "batch_size": 64, "warmup_steps": 10, "eval_every": 40}

if __name__ == "__main__":
    run_sweeps(__doc__, PAPER, EXPERIMENTS, QUICK)
