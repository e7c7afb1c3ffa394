"""What all tests share: one thread, and a limit of time for each, which names the one that hangs."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from tests.sharing import pytest_runtestloop  # noqa: F401  (pytest calls it by its name)

ROOT = Path(__file__).resolve().parent.parent
SECONDS_PER_TEST = 300  # ten times what the longest takes on an idle machine
ON_CTRL_C = signal.getsignal(signal.SIGINT)

# For the processes that tests start
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish():
    """The scripts that the tests have imported leave at once on Ctrl-C; pytest says first what it has found."""
    signal.signal(signal.SIGINT, ON_CTRL_C)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # small tensors
    torch.set_flush_denormal(True)


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def limit_of_time(request):
    """Nothing waits for ever: a test that takes too long fails by name."""
    can_alarm = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if not can_alarm:
        yield
        return

    def too_long(number, frame):
        pytest.fail(f"{request.node.nodeid} took more than {SECONDS_PER_TEST} s", pytrace=True)

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS_PER_TEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def run_here():
    """Runs a script in this process, where torch is loaded already: (exit code, stdout, stderr)."""
    from tests.processes import run_here

    return run_here
