"""The processes that share the tests report what one would: failures, skips and deaths, by name."""

import os
import re

import pytest

from tests import sharing
from tests.processes import finish, start

ONE_FILE = """
import os
import warnings
import pytest

@pytest.mark.parametrize("number", range(30))
def test_passes(number):
    pass
"""

WARNS_AND_SKIPS = """
def test_warns():
    warnings.warn("look at this", UserWarning)

def test_skips():
    pytest.skip("for a reason")
"""

FAILS = """
def test_fails():
    assert 1 + 1 == 3
"""

DIES = """
def test_dies():
    os._exit(0)

def test_comes_too_late():
    pass
"""


def run_pytest(folder, *options):
    os.chdir(folder)
    with open("printed", "w") as file:
        os.dup2(file.fileno(), 1)
        code = pytest.main(["-q", "-p", "no:cacheprovider", *options], plugins=[sharing])
        file.flush()
    os._exit(code)


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        ("", 0, "61 passed, 1 skipped, 1 warning"),
        (FAILS, 1, "1 failed, 61 passed, 1 skipped, 1 warning"),
        (DIES, 1, r"2 tests did not end, the first test_b.py::test_dies"),
    ],
    ids=["all pass", "one fails", "one dies"],
)
def test_what_two_processes_say(tmp_path, last, code, said):
    (tmp_path / "test_a.py").write_text(ONE_FILE, encoding="utf-8")
    (tmp_path / "test_b.py").write_text(ONE_FILE + WARNS_AND_SKIPS + last, encoding="utf-8")
    codes = finish(start(run_pytest, tmp_path))
    printed = (tmp_path / "printed").read_text(encoding="utf-8")
    assert codes == [code], printed
    assert re.search(said, printed), printed
    if last == FAILS:
        assert "assert (1 + 1) == 3" in printed
