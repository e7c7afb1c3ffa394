"""Bad input of every kind is one line on stderr and exit code 2. What is tried: bad_inputs.py."""

import pytest

from tests import bad_inputs


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad inputs é")
    bad_inputs.prepare(folder)
    return folder


@pytest.mark.parametrize("given", bad_inputs.ALL, ids=lambda given: given.command)
def test_bad_input_is_one_line(given, here, run_here):
    code, _, line = run_here(*bad_inputs.words_of(given, here))
    assert code == 2 and line.count("\n") == 1 and bad_inputs.words_expected(given, here) in line, line


def test_the_list_is_long_and_repeats_nothing():
    commands = [given.command for given in bad_inputs.ALL]
    assert len(set(commands)) == len(commands) >= 80
