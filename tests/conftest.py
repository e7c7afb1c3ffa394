"""What all tests share: the repository on the path, one thread, the same random numbers."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings
    torch.manual_seed(0)
