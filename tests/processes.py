"""Processes for the tests to start, share work with, and kill.

Importing torch takes seconds, so most of them are forked from a server that has imported it, and nothing of ours: they
import the code as it lies there. A child that is killed can't leave a lock behind that the tests or its siblings
wait for.
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
import tempfile
import threading
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120  # seconds; every wait has an end

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch._dynamo", "torchvision", "matplotlib.pyplot", "pytest"])

# ------------------------------------------------------------------------------- scripts


def run_command(*arguments, cwd=ROOT, timeout=PATIENCE, **environment):
    """A script in a Python of its own, as a user starts it: `run_command("toy_models.py", "--quick")`.

    For what happens before torch is imported, or as Python ends; elsewhere `run_script` does the same in less time.
    """
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_script(script, *options, cwd=ROOT):
    """A script in a process where torch is there already; returns what `run_command` does."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder, "stdout")
        complaints = Path(folder, "stderr")
        words = [str(script), *map(str, options)]
        (code,) = finish(start(_script, words, cwd, printed, complaints))
        return subprocess.CompletedProcess(words, code, printed.read_text("utf-8"), complaints.read_text("utf-8"))


def _script(words, cwd, printed, complaints):
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    sys.argv = words
    sys.stdout = open(printed, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    sys.stderr = open(complaints, "w", encoding="utf-8")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_path(words[0], run_name="__main__")


def run_here(script, *options):
    """A script in this process: exit code, and what it wrote to stdout and stderr.

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


# ----------------------------------------------------------------------------- functions


def start(function, *arguments, **environment):
    """A process that calls `function`, which must be a function of a module, with `arguments`."""
    child = _context.Process(target=_child, args=(function, arguments, environment))
    child.start()
    return child


def _child(function, arguments, environment):
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # not one that processes share
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    function(*arguments)


def finish(*children) -> list[int]:
    """Wait for children, and kill what doesn't end; their exit codes."""
    for child in children:
        child.join(PATIENCE)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode for child in children]


def start_ranks(ranks, function, *arguments):
    """Processes that meet as those of torchrun do."""
    address = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [start(function, *arguments, **address, RANK=str(rank)) for rank in range(ranks)]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])
