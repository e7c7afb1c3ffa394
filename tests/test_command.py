"""The command line: bad input is one line and exit code 2, results are whole or not there, nothing is lost."""

import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import torch

from lib import interrupts
from lib.command import run_script
from lib.errors import InputError
from lib.progress import TrainingProgress
from lib.results import write_json
from lib.settings import Count, Positive, Range, Share, check_settings
from tests.processes import ROOT, run_command

SCRIPTS = (
    "toy_models teacher_student vgg_cifar10 resnet_cifar100 sparse_features chaotic_sgd subnetworks benchmark figures"
).split()


@pytest.mark.parametrize("script", [f"{name}.py" for name in SCRIPTS])
def test_help_and_unknown_names(script, run_here):
    code, shown, _ = run_here(script, "--help")
    assert code == 0 and "--quick" in shown and re.search(f"(python|torchrun --nproc_per_node=8) {script}", shown)
    code, _, line = run_here(script, "nonsense")
    assert code == 2 and "unknown" in line and "nonsense" in line and line.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path, run_here):
    (tmp_path / "file").write_text("")
    for command in (["toy_models.py", "quartic", "--out"], ["figures.py", "--figures"]):
        code, _, line = run_here(*command, tmp_path / "file", "--quick")
        assert code == 2 and "can't write" in line and line.count("\n") == 1


def test_devices_that_are_not_there_or_lack_float64_are_one_line(run_here):
    code, _, line = run_here("toy_models.py", "quartic", "--device", "mps")
    assert code == 2 and "float64" in line and line.count("\n") == 1
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, _, line = run_here("toy_models.py", "quartic", "--device", "cuda")
    assert code == 2 and "no CUDA GPU" in line and line.count("\n") == 1


# ------------------------------------------------------------------------------ results


def exit_code(function, options, name="a"):
    with pytest.raises(SystemExit) as caught:
        run_script("doc", {name: function}, {}, options)
    return caught.value.code


def test_results_are_replaced_whole_or_not_at_all(tmp_path, capsys):
    def good(seed=0, device=None, n=3):
        return {"values": torch.arange(n) / 3, "nothing": math.nan}

    def interrupted(seed=0, device=None):
        raise KeyboardInterrupt

    def refused(seed=0, device=None):
        raise InputError("no such noise")

    def broken(seed=0, device=None):
        raise ValueError("operands could not be broadcast")

    options = ["--out", str(tmp_path), "--device", "cpu"]
    run_script("doc", {"a": good}, {}, [*options, "--seed", "7"])
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["settings"] == {"seed": 7, "n": 3} and saved["values"] == [0, 0.333333, 0.666667]
    assert saved["nothing"] is None and saved["quick"] is False
    assert {"torch", "numpy", "device", "date", "seconds"} <= saved["environment"].keys()
    before = (tmp_path / "a.json").read_bytes()
    assert exit_code(interrupted, options) == 130
    assert exit_code(refused, options) == 2
    assert "no such noise" in capsys.readouterr().err
    with pytest.raises(ValueError, match="broadcast"):  # a fault of ours keeps its traceback
        run_script("doc", {"a": broken}, {}, options)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert (tmp_path / "a.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_hinted_commands_can_be_pasted(tmp_path, capsys, monkeypatch):
    def a(seed=0, device=None):
        return {"values": [1.0]}

    out = tmp_path / "mes résultats"
    options = ["--out", str(out), "--device", "cpu"]
    monkeypatch.chdir(ROOT)
    run_script("doc", {"a": a}, {}, options)
    assert f"draw it: python figures.py --out '{out}'\n" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    run_script("doc", {"a": a}, {}, options)
    words = shlex.split(capsys.readouterr().out.partition("draw it: ")[2])
    assert Path(words[1]) == ROOT / "figures.py" and words[-1] == str(out)
    run_script("doc", {"a": a}, {}, options, undrawn=("a",))
    assert "draw it" not in capsys.readouterr().out


def test_the_same_numbers_are_not_written_again(tmp_path, capsys):
    """Whatever command made them: the repository stays clean."""

    def a(n=3, seed=0, device=None):
        return {"values": torch.arange(n) / 3}

    options = ["--out", str(tmp_path), "--device", "cpu"]
    run_script("doc", {"a": a}, {}, options)
    before = (tmp_path / "a.json").stat().st_mtime_ns
    run_script("doc", {"a": a}, {}, ["a", *options, "--set", "n=3"])
    assert (tmp_path / "a.json").stat().st_mtime_ns == before and not (tmp_path / "replaced").exists()
    assert "the same numbers" in capsys.readouterr().out
    run_script("doc", {"a": a}, {}, [*options, "--set", "n=4"])
    assert len(json.loads((tmp_path / "a.json").read_text())["values"]) == 4
    (kept,) = (tmp_path / "replaced").glob("a_*.json")
    assert len(json.loads(kept.read_text())["values"]) == 3


def test_status_tells_whether_a_result_is_there(tmp_path):
    def a(n=3, seed=0, device=None):
        return {"n": n}

    options = ["--out", str(tmp_path), "--device", "cpu"]
    assert exit_code(a, [*options, "--status"]) == 3
    run_script("doc", {"a": a}, {}, options)
    assert exit_code(a, [*options, "--status"]) == 0
    assert exit_code(a, [*options, "--status", "--set", "n=4"]) == 3


# ----------------------------------------------------------------------------- settings


def test_any_setting_can_be_changed_and_is_checked(tmp_path, capsys):
    seen = []
    narrow = {"width": 4}

    def a(mu: Positive = 1.5, sizes: tuple[Count, ...] = (1, 2), name: str = "x", steps: Count = 3, k=None, net=narrow,
          seed=0, device="cpu"):  # fmt: skip
        seen.append((mu, sizes, name, steps, k, net))
        return {"found": mu}

    def run(*words):
        run_script("doc", {"a": a, "b": lambda seed=0, device="cpu": {}}, {}, [*words, "--out", str(tmp_path)])

    run("a", "--set", "mu=2", "sizes=4", "name=2024", "k=0.5")
    run("a", "--set", "sizes=(4, 5)", "mu=2", "name=3d", "k=mean", "net={'seed': 2}")
    assert seen == [
        (2, (4,), "2024", 3, 0.5, {"width": 4}),
        (2, (4, 5), "3d", 3, "mean", {"width": 4, "seed": 2}),
    ]
    for words, why in {
        ("a", "--set", "nu=2"): "no setting 'nu'; there are mu, sizes, name, steps, k, net",
        ("a", "--set", "mu=much"): "mu",
        ("a", "--set", "mu=nan"): "mu",
        ("a", "--set", "mu=1e999"): "mu: expected a number, above 0",
        ("a", "--set", "mu=0"): "mu: expected a number, above 0",
        ("a", "--set", "steps=2.5"): "steps",
        ("a", "--set", "steps=0"): "steps: expected a whole number, at least 1, not 0",
        ("a", "--set", "sizes=many"): "sizes",
        ("a", "--set", "sizes=(1, 0.5)"): "sizes",
        ("a", "--set", "sizes=()"): "sizes",
        ("b", "--set", "mu=2"): "no setting 'mu'",
        ("a", "--seed", "-1"): "--seed -1: seeds are 0 or more",
    }.items():
        with pytest.raises(SystemExit) as stop:
            run(*words)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and why in said and said.count("\n") == 1, (words, said)


def test_fields_of_a_dict_change_what_quick_has_made_of_it(tmp_path):
    seen = []

    def a(net: dict = {"width": 64, "steps": 9}, tried: dict = {"x": (1,)}, seed=0, device="cpu"):  # noqa: B006
        seen.append((net, tried))
        return {}

    def b(net: dict | None = None, seed=0, device="cpu"):
        seen.append(net)
        return {}

    quick = {"a": {"net": {"width": 4, "steps": 2}}, "b": {"net": {"width": 4}}}
    options = ["--out", str(tmp_path), "--device", "cpu", "--set", "net={'steps': 3}"]
    for words in ([], ["--quick"]):
        both = ["tried={'y': (2,)}", *words]
        run_script("doc", {"a": a}, quick, [*options, *both], replaced=("tried",))
        run_script("doc", {"b": b}, quick, [*options, *words])
    assert seen == [
        ({"width": 64, "steps": 3}, {"y": (2,)}),
        {"steps": 3},
        ({"width": 4, "steps": 3}, {"y": (2,)}),
        {"width": 4, "steps": 3},
    ]


def test_none_is_none_where_the_setting_may_be(tmp_path):
    seen = []

    def a(folder: str | Path | None = "runs", name: str = "x", seed=0, device="cpu"):
        seen.append((folder, name))
        return {}

    run_script("doc", {"a": a}, {}, ["--out", str(tmp_path), "--set", "folder=None", "name=None"])
    assert seen == [(None, "None")]


def test_ranges_hold_for_calls_from_python_too():
    def experiment(share: Share = 0.5, odd: Annotated[int, Range(low=3, high=9)] = 3):
        pass

    check_settings(experiment, {"share": 1.0, "odd": 9})
    for settings in ({"share": 1.1}, {"share": math.nan}, {"odd": 2}, {"odd": 10}, {"odd": True}, {"odd": 3.0}):
        with pytest.raises(InputError, match=next(iter(settings))):
            check_settings(experiment, settings)


# ------------------------------------------------------------------------------ printing


TALK = """
import sys
from lib.printing import print_patiently

print_patiently()
for _ in range(3):
    print("words")
open(sys.argv[1], "w").close()
"""


def test_a_reader_who_leaves_and_a_full_disk_stop_no_work(tmp_path):
    talk = [sys.executable, "-c", TALK]
    with subprocess.Popen([*talk, tmp_path / "closed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait(60) == 0
    assert (tmp_path / "closed").exists()
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            run = subprocess.run([*talk, tmp_path / "full"], stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert run.returncode == 0 and run.stderr == b"" and (tmp_path / "full").exists()


def test_a_terminal_of_ascii_letters_stops_no_work(tmp_path):
    out = tmp_path / "mes résultats"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    few = ["--set", "trajectories=10", "noise_levels=5", "replicas=10"]
    said = run_command("toy_models.py", "quartic", "--quick", *few, "--out", out, **ascii_only)
    assert said.returncode == 0 and "python figures.py --quick --out" in said.stdout, said.stderr
    assert (out / "quick" / "quartic.json").exists()


@pytest.fixture
def as_in_a_script():
    """Ctrl-C as lib.interrupts sets it up where a script starts; processes started here don't ignore it."""
    before = signal.signal(signal.SIGINT, interrupts.leave_at_once)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs signals")
def test_ctrl_c_during_the_imports_leaves_no_traceback(tmp_path, as_in_a_script):
    for slow in ("torch", "argparse"):  # figures.py imports no torch
        (tmp_path / f"{slow}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    for script in SCRIPTS:
        stopped = run_command(f"{script}.py", PYTHONPATH=str(tmp_path))
        assert stopped.returncode == 130 and not stopped.stdout and not stopped.stderr


def test_ctrl_c_raises_only_where_it_is_caught(tmp_path, as_in_a_script):
    during = []

    def a(seed=0, device=None):
        during.append(signal.getsignal(signal.SIGINT))
        return {}

    run_script("doc", {"a": a}, {}, ["--out", str(tmp_path)])
    assert during == [signal.default_int_handler]
    assert signal.getsignal(signal.SIGINT) is interrupts.leave_at_once


# ----------------------------------------------------------------------------- torchrun


def test_other_ranks_let_rank_0_tell_what_is_wrong(monkeypatch, capsys, tmp_path):
    """torchrun ends all ranks when the first has failed: rank 0 must not be the second."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert exit_code(lambda seed=0, device=None: {}, ["--out", str(tmp_path), "two\nlines"]) == 2
        said = capsys.readouterr().err
        assert "unknown experiment two lines" in said and said.count("\n") == 1
        assert waited == [60] * rank
        report = json.loads((tmp_path / "error.json").read_text())  # as torchrun reads it
        assert report["message"]["message"] == said.strip()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc' in the environment, no number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "RANK is 'one' in the environment"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE 1"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1' in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "a: runs in one process; start it with python, without torchrun"),
    ],
)
def test_an_environment_that_torchrun_did_not_leave_is_one_line(variables, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert exit_code(lambda seed=0, device=None: {}, ["--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_torchrun_shares_is_not_refused_nor_what_a_cluster_says_of_itself(monkeypatch, tmp_path):
    ran = []

    def a(seed=0, device=None):
        ran.append(os.environ.get("RANK"))

    monkeypatch.setenv("WORLD_SIZE", "2")
    run_script("doc", {"a": a}, {}, ["--out", str(tmp_path)])
    monkeypatch.setenv("RANK", "0")
    run_script("doc", {"a": a}, {}, ["--out", str(tmp_path)], shared=("a",))
    assert ran == [None, "0"]


# ----------------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_shows_rate_and_time_left_in_80_columns(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with TrainingProgress("run 12 of 16", 1_000_000, 999_000, show=True) as progress:
        progress.bar.start_t -= 5  # seconds
        progress.step()
        progress.evaluated(2.305, 0.1)
        progress.bar.refresh()
    shown = sys.stderr.getvalue().split("\r")[-1].rstrip()
    assert len(shown) <= 80 and "run 12 of 16: 999001/1000000" in shown
    assert " left, " in shown and "s/step" in shown and "loss 2.305 acc 0.100" in shown


def test_without_a_terminal_a_line_is_printed_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with TrainingProgress("run 1 of 2", 1000, 0, show=True) as progress:
        for step in range(1, 401):
            now[0] += 1.0
            progress.step()
            if step % 10 == 0 and step <= 100:
                progress.evaluated(2.3, 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run 1 of 2: step 70 of 1,000, loss 2.300, accuracy 0.100, 1 steps/s, 16 min left"
    assert len(lines) == 2  # the second in a long gap between evaluations


# ------------------------------------------------------------------------------ folders


def test_commands_that_are_shown_can_be_pasted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/toy_models.py", "--out", "mes résultats", "--set", "net={'a': 2}"])
    run_script("doc", {"a": lambda seed=0, device=None: {}}, {}, ["--out", str(tmp_path / "mes résultats")])
    saved = json.loads((tmp_path / "mes résultats" / "a.json").read_text())
    assert saved["command"] == """python toy_models.py --out 'mes résultats' --set 'net={'"'"'a'"'"': 2}'"""
    assert f"python figures.py --out '{tmp_path}/mes résultats'" in capsys.readouterr().out


def test_home_is_found_also_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run_script("doc", {"a": lambda seed=0, device=None: {}}, {}, ["--out=~/x"])
    assert (tmp_path / "x" / "a.json").exists()
