"""What the processes of the tests do: train, alone or as ranks, and be stopped in the midst of it."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import core
from lib.batches import Images
from lib.data import synthetic_dataset

CPU = torch.device("cpu")


def small_network(classes, width):
    """It trains in no time: for tests that any network can pass."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=4, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64 * width, width),
        nn.GELU(),
        nn.Linear(width, classes),
    )


def with_batch_norm(classes, width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=4, padding=1),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64 * width, classes),
    )


core.MODELS["small"] = small_network
core.MODELS["small_norm"] = with_batch_norm


def few_images():
    """Generated images, few of them: they are there at once, and an epoch has few steps."""
    return synthetic_dataset(512, 200)


def on_device(dataset):
    return Images(dataset, "synthetic", CPU)


def train_here(run, folder, images=None, **options):
    images = on_device(few_images()) if images is None else images
    return core.train(run, images, Path(folder) / run.name, CPU, title=None, **options)


def signal_at_step(step, number=signal.SIGTERM):
    """From now on this process sends itself a signal at its `step`-th backward pass."""
    backward, calls = torch.Tensor.backward, []

    def counted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return backward(self, *args, **kwargs)

    torch.Tensor.backward = counted


def train_until_signal(run, folder, step, number, said):
    """What it says on stderr goes into the file `said`."""
    signal_at_step(step, number)
    with open(said, "w", encoding="utf-8") as sys.stderr:
        train_here(run, folder)


def die_while_saving(run, folder):
    """Killed in the middle of writing a checkpoint."""

    def half_written(state, file):
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half_written
    train_here(run, folder)


def sweep_rank(runs, folder, dataset=None, sigterm_at=None):
    """One rank of a sweep; the last rank may send itself SIGTERM at a step. Rank 0 writes records.json."""
    from lib.results import write_json

    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if sigterm_at is not None and rank == ranks - 1:
        signal_at_step(sigterm_at)
    result = core.sweep(runs, dataset or few_images(), folder, CPU)
    if result is not None:
        write_json(Path(folder) / "records.json", {"records": result.runs}, digits=None)
    torch.distributed.destroy_process_group()


def agree_on_a_precision(folder):
    """Two ranks that would each take another one; each writes the one they agree on."""
    from lib import teams

    rank = os.environ["RANK"]
    team = teams.form_team(1, CPU)
    own = "bfloat16" if rank == "0" else "float32"
    Path(folder, rank).write_text(core.the_leaders_precision(own, CPU, team))
    torch.distributed.destroy_process_group()


def first_rank_writes_first(path):
    """For the test of `first_rank_first`: each rank adds its number to a file."""
    import time

    from lib import teams

    def action():
        with open(path, "a", encoding="utf-8") as file:
            file.write(os.environ["RANK"])
        time.sleep(0.3)
        return os.environ["RANK"]

    assert teams.first_rank_first(action, CPU) == os.environ["RANK"]
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def torchrun(words, printed):
    """torchrun, whose ranks are forked and needn't import torch again. What they print goes into the file `printed`."""
    from torch.distributed import run

    with open(printed, "w") as file:
        os.dup2(file.fileno(), 1)
    run.main(["--standalone", "--run-path", "--start-method=fork", *words])
