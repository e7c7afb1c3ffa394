"""ResNet-18 on CIFAR-100: the same experiments in a network with batch norm and residual streams.

  lr      learning rates 0.01 to 0.1, 100,000 steps, 4 seeds (Stochastic Collapse, figures 3 and 4)
  noise   label noise 0 to 0.8 at learning rate 0.02, 1,000,000 steps, 4 seeds (figure 4)
  batch   batch sizes 32 to 512 at learning rate 0.02 (inferred), 1,000,000 steps, 4 seeds
  drop    learning rate 0.1 dropped to 0.01 after 10,000, 20,000, 40,000 steps, 8 seeds (figure 6)

  torchrun --nproc_per_node=8 resnet_cifar100.py lr
  python resnet_cifar100.py lr --dataset cifar10 --width 8 --batch-size 128 --steps 10000 --seeds 1
  python resnet_cifar100.py --quick                    all four paths on generated images, a minute

Independent neurons are counted both ways: in the true groups, residual streams and batch norm
included, and by the paper's pairing of each convolution with the next one. With several processes
per run, batch-norm statistics are each process's own. Interrupted, the same command goes on.
"""

from core import PAPER_SWEEPS, Run, run_sweeps

PAPER = Run(model="resnet18", dataset="cifar100")

OWN = {
    "lr": {"maps": ("layer2.0.conv2", "layer1.1.conv1", "layer4.1.conv1")},
    "noise": {"learning_rate": 0.02},
    "batch": {"steps": 1_000_000, "eval_every": 50_000},
    # the paper's ResNet warms up again after the drop
    "drop": {"branches": {"learning_rate": 0.01, "steps": 10_000, "warmup_steps": 1000, "eval_every": 200}},
}
EXPERIMENTS = {name: PAPER_SWEEPS[name] | own for name, own in OWN.items()}

QUICK = {"dataset": "synthetic", "width": 4, "steps": 40, "batch_size": 32, "warmup_steps": 10, "eval_every": 20}

if __name__ == "__main__":
    run_sweeps(__doc__, PAPER, EXPERIMENTS, QUICK)
