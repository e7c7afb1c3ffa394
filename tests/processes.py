"""Processes for the tests to start, share work with, and kill.

Each is a process of its own, forked from a server that has only imported core: a child that is killed can't leave a
lock behind that the tests or its siblings wait for.
"""

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

import core
from lib.batches import Images

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
PATIENCE = 120  # seconds; every wait has an end

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["core"])


def run_command(*arguments, cwd=ROOT, timeout=PATIENCE, **environment):
    """A script as a user starts it: `run_command("toy_models.py", "--quick")`."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_here(script, *options):
    """A script in this process, where torch is loaded already: exit code, and what it wrote to stdout and stderr.

    An exception that a user would see as a traceback comes out of it.
    """
    printed, complaints = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", [script, *map(str, options)]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(complaints),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    return code, printed.getvalue(), complaints.getvalue()


def _child(function, arguments, environment):
    import threading

    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # not one that processes share
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    function(*arguments)


def start(function, *arguments, **environment):
    """A process that calls `function`, which must be a function of a module, with `arguments`."""
    child = _context.Process(target=_child, args=(function, arguments, environment))
    child.start()
    return child


def finish(*children) -> list[int]:
    """Wait for children, and kill what doesn't end; their exit codes."""
    for child in children:
        child.join(PATIENCE)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode for child in children]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start_ranks(ranks, function, *arguments):
    """Processes that meet as those of torchrun do."""
    address = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [start(function, *arguments, **address, RANK=str(rank)) for rank in range(ranks)]


def few_test_images(count=200):
    """The generated data set with a short test set: evaluations are quick."""
    data = core.load_dataset("synthetic")
    return data._replace(test_images=data.test_images[:count], test_labels=data.test_labels[:count])


def synthetic_images():
    return Images(few_test_images(), "synthetic", CPU)


def train_here(run, folder, images=None, **options):
    images = synthetic_images() if images is None else images
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


def sweep_rank(runs, folder, sigterm_at=None):
    """One rank of a sweep; the last rank may send itself SIGTERM at a step. Rank 0 writes records.json."""
    from lib.results import write_json

    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if sigterm_at is not None and rank == ranks - 1:
        signal_at_step(sigterm_at)
    result = core.sweep(runs, few_test_images(), folder, CPU)
    if result is not None:
        write_json(Path(folder) / "records.json", {"records": result.runs}, digits=None)
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
