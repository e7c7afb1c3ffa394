"""What the world does to a training, done to a real one and counted: kills, full disks, damaged files, bad input.

    python -m tests.endurance                    everything: some hours
    python -m tests.endurance kill_two bad_input these parts
    python -m tests.endurance --report           only count what was tried so far

Each trial starts a script, disturbs it, starts the same command again, and compares what it leaves with an undisturbed
training, to the bit. One process is forked from a server that has imported torch, which saves most of its time;
torchrun and shells start commands as a user does. What was tried is kept in runs/endurance; the same command goes on
where it was.
The counts go to results/endurance.json and docs/endurance.md. This is no part of the test suite: it takes long, and
what it finds depends on chance. Linux only: it finds the ranks of torchrun in /proc.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib.results import environment, write_atomically, write_json
from lib.run_folder import load_state
from papers import registry
from tests import bad_inputs, damage
from tests.processes import ROOT, run_here

KEPT = ROOT / "runs" / "endurance"
RESULT = ROOT / "results" / "endurance.json"
PAGE = ROOT / "docs" / "endurance.md"

STEPS = 40
EVALUATIONS = 10
TRAINING = ["vgg_cifar10.py", "lr", "--quick", "--dataset", "tiny", "--learning-rate", "0.02", "--batch-size", "8",
            "--steps", str(STEPS), "--eval-every", str(STEPS // EVALUATIONS), "--precision", "float32",
            "--device", "cpu"]  # fmt: skip
PATIENCE = 900  # seconds until a command counts as hanging
HITS_PER_RUN = 5  # signals that one training gets


class Outcome(NamedTuple):
    """How a trial ended. `hits`: how often the training was disturbed; `lost`: what went wrong, if anything did."""

    hits: int
    lost: str = ""


class Lost(Exception):
    """Something that a user would have lost, or not understood."""


# ------------------------------------------------------------------------------ commands


def launcher(ranks: int, *options: str) -> list[str]:
    """The beginning of a command: python, or torchrun."""
    if ranks == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *options]


def places(folder: Path) -> list[str]:
    """The options that name where the data are, and keep what a script writes in `folder`."""
    return ["--data", str(KEPT), "--out", str(folder / "results"), "--runs", str(folder / "runs")]


def write_data() -> None:
    """The data set `tiny`: 64 random images to train on and 16 to test."""
    chance = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 64), ("test", 16)):
        arrays[f"{split}_images"] = chance.integers(256, size=(number, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number) % 4
    np.savez(KEPT / "tiny.npz", **arrays)


def training(folder: Path, ranks: int = 1) -> list[str]:
    return [*launcher(ranks), *TRAINING, *places(folder)]


SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["core", "torchvision", "torch._dynamo", "papers.registry", "tests.processes", "tests.bad_inputs"]
SERVER.set_forkserver_preload(PRELOADED)


def start_server() -> None:
    """Wait until the server is there, so that the first training to be timed doesn't."""
    process = SERVER.Process(target=int)
    process.start()
    process.join()


def run_script(words: list[str], printed: Path, said: Path) -> None:
    """In a process of its own: run a script with its options; its stdout and stderr go into these files."""
    for stream, file in ((1, printed), (2, said)):
        os.dup2(os.open(file, os.O_WRONLY), stream)
    sys.argv = words
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")


class Forked:
    """A script in a process forked from the server: what subprocess.Popen offers, as far as it is used here."""

    def __init__(self, words: list[str], printed: Path, said: Path):
        self.process = SERVER.Process(target=run_script, args=(words, printed, said))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a script", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


Started = subprocess.Popen | Forked


def start(command: list[str], folder: Path) -> Started:
    """Start a command; its stdout goes into printed.txt of `folder`, its stderr into said.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    printed, said = folder / "printed.txt", folder / "said.txt"
    is_script = command[0] == sys.executable and command[1].endswith(".py")
    with open(printed, "w", encoding="utf-8") as stdout, open(said, "w", encoding="utf-8") as stderr:
        if is_script:
            return Forked(command[1:], printed, said)
        return subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=stderr)


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text(encoding="utf-8", errors="replace")


def end_of(process: Started) -> int:
    """Wait for a process; its exit code. One that hangs is killed, and lost."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise Lost(f"no end after {PATIENCE} s") from None


def run(command: list[str], folder: Path) -> int:
    return end_of(start(command, folder))


def must_end_well(command: list[str], folder: Path) -> None:
    code = run(command, folder)
    if code != 0:
        raise Lost(f"exit code {code}: {last_line(folder)}")


def must_refuse(command: list[str], folder: Path, *words: str) -> None:
    """The command must end with exit code 2 and one line on stderr that has these words."""
    code = run(command, folder)
    lines = said(folder).strip().splitlines()
    if code != 2 or len(lines) != 1:
        raise Lost(f"exit code {code}, {len(lines)} lines: {last_line(folder)}")
    for word in words:
        if word not in lines[0]:
            raise Lost(f"{word!r} is missing in: {lines[0]}")


def last_line(folder: Path) -> str:
    lines = said(folder).strip().splitlines()
    return lines[-1] if lines else "(it said nothing)"


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def kill_all(process: Started) -> None:
    """A process and the ranks it has started, as when the machine loses its power."""
    for pid in [process.pid, *children(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def terminate(process: Started) -> None:
    process.terminate()
    end_of(process)


# --------------------------------------------------------------- what an undisturbed training leaves


class Left(NamedTuple):
    """What a training leaves: weights, log, and what its result file says, without times and commands."""

    weights: dict
    log: str
    measured: list


def what_is_left(folder: Path, learning_rate: str = "0.02") -> Left:
    (run_folder,) = (folder / "runs" / "quick" / "vgg_cifar10").glob(f"*_lr={learning_rate}_*")
    weights = load_state(run_folder / f"weights_{STEPS}.pt", torch.device("cpu"))
    log = (run_folder / "log.jsonl").read_text(encoding="utf-8")
    result = json.loads((folder / "results" / "quick" / "vgg_lr.json").read_text(encoding="utf-8"))
    measured = [record["log"] for record in result["runs"] if str(record["run"]["learning_rate"]) == learning_rate]
    return Left(weights, log, [*measured, result["maps"][:1]])


def must_be_equal(folder: Path, ranks: int) -> None:
    """Raises Lost unless the training in `folder` left what an undisturbed one leaves, to the bit."""
    left, expected = what_is_left(folder), what_is_left(undisturbed(ranks))
    if left.log != expected.log or left.measured != expected.measured:
        raise Lost("another log or result than undisturbed")
    for name, weight in expected.weights.items():
        if not torch.equal(weight, left.weights[name]):
            raise Lost(f"other weights than undisturbed: {name}")


def undisturbed(ranks: int) -> Path:
    """The folder of an undisturbed training, which is run once; seconds.txt in it says how long it took."""
    folder = KEPT / f"undisturbed_{ranks}"
    if not (folder / "seconds.txt").exists():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        must_end_well(training(folder, ranks), folder)
        (folder / "seconds.txt").write_text(str(time.monotonic() - began))
    return folder


def undisturbed_seconds(ranks: int) -> float:
    return float((undisturbed(ranks) / "seconds.txt").read_text())


def copy_of_undisturbed(folder: Path) -> Path:
    """Copy what an undisturbed training left to `folder`; the run's folder in it."""
    shutil.copytree(undisturbed(1), folder)
    (run_folder,) = (folder / "runs" / "quick" / "vgg_cifar10").iterdir()
    return run_folder


def wait_for_log(folder: Path, process: Started, lines: int) -> None:
    """Wait until a training has logged so many evaluations."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for log in folder.glob("runs/quick/vgg_cifar10/*/log.jsonl"):
            if log.read_text(encoding="utf-8").count("\n") >= lines:
                return
        if process.poll() is not None:
            raise Lost(f"ended too early, exit code {process.returncode}: {last_line(folder)}")
        time.sleep(0.05)
    kill_all(process)
    raise Lost(f"no {lines} evaluations after {PATIENCE} s")


# -------------------------------------------------------------------------------- signals


def hit_at_random(ranks: int, hit: Callable, allowed_codes: tuple) -> Callable:
    """Trials in which one training is hit `HITS_PER_RUN` times, then left to end.

    The moments are uniform between 0 and the seconds of an undisturbed training, so some come during the imports.
    `allowed_codes`: how a process that was hit may end; none given: in any way but well.
    """

    def trial(number: int, folder: Path) -> Outcome:
        chance = random.Random(f"{hit.__name__} {ranks} {number}")
        hits = 0
        while hits < HITS_PER_RUN:
            process = start(training(folder, ranks), folder)
            try:
                code = process.wait(chance.uniform(0, undisturbed_seconds(ranks)))
            except subprocess.TimeoutExpired:
                hit(process)
                hits += 1
                check_end(process.returncode, allowed_codes, folder)
                continue
            if code != 0:
                raise Lost(f"exit code {code} without a hit: {last_line(folder)}") from None
            must_be_equal(folder, ranks)  # it had ended before it was hit: begin another
            shutil.rmtree(folder)
        must_end_well(training(folder, ranks), folder)
        must_be_equal(folder, ranks)
        return Outcome(hits)

    return trial


def check_end(code: int, allowed_codes: tuple, folder: Path) -> None:
    """How a process that was hit has ended. It may have ended well just before."""
    if allowed_codes and code not in (0, *allowed_codes):
        raise Lost(f"exit code {code} after a signal: {last_line(folder)}")
    if allowed_codes and "Traceback" in said(folder):
        raise Lost("a traceback after a signal")


def lost_rank(number: int, folder: Path) -> Outcome:
    """SIGKILL one of two ranks at a random moment of a training that torchrun may restart."""
    chance = random.Random(f"lost rank {number}")
    command = [*launcher(2, "--max-restarts=3"), *TRAINING, *places(folder)]
    process = start(command, folder)
    wait_for_log(folder, process, chance.randint(1, EVALUATIONS - 4))
    os.kill(chance.choice(children(process.pid)), signal.SIGKILL)
    code = end_of(process)
    if code != 0:
        raise Lost(f"exit code {code}: {last_line(folder)}")
    must_be_equal(folder, 2)
    return Outcome(1)


# ---------------------------------------------------------------------------------- starts


@contextlib.contextmanager
def busy_machine():
    """As many processes that only burn time as there are cores, unless the machine is busy enough without."""
    cores = os.cpu_count() or 1
    is_busy = os.getloadavg()[0] > 2 * cores
    burners = [] if is_busy else [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def torchrun_start(number: int, folder: Path) -> Outcome:
    """Two ranks meet, find their training finished, and write its result, on a busy machine."""
    shutil.copytree(undisturbed(2), folder)
    with busy_machine():
        code = run(training(folder, ranks=2), folder)
    if code != 0:
        shutil.copy(folder / "said.txt", KEPT / f"failed_start_{number}.txt")
        raise Lost(f"exit code {code}; what it said is kept in failed_start_{number}.txt")
    return Outcome(1)


# ------------------------------------------------------------------------------------ disks


FULL_DISK = """
set -e
mount -t tmpfs -o size={kilobytes}k tmpfs {disk}
set +e
{command}
code=$?
set -e
mount -o remount,size=100m {disk}
echo ---- the disk has room again >&2
{command}
cp -r {disk}/runs {disk}/results {kept}
exit $code
"""


def can_mount() -> bool:
    """Whether this user may mount a small disk, in a namespace of its own."""
    if not shutil.which("unshare"):
        return False
    with tempfile.TemporaryDirectory() as disk:
        probe = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", disk]
        return subprocess.run(probe, capture_output=True).returncode == 0


def full_disk(number: int, folder: Path) -> Outcome:
    """A disk that is full after 0.1 to 1.5 MB: the third checkpoint of 0.5 MB, at the latest, doesn't fit."""
    if not can_mount():
        return Outcome(0)
    chance = random.Random(f"full disk {number}")
    kept, disk = folder / "kept", folder / "disk"
    kept.mkdir(parents=True)
    disk.mkdir()
    kilobytes = chance.randint(100, 1100)
    script = FULL_DISK.format(kilobytes=kilobytes, disk=disk, kept=kept, command=shlex.join(training(disk)))
    code = run(["unshare", "-Urm", "sh", "-c", script], folder)
    before, _, _ = said(folder).partition("----")
    check_disk_error(code, before)
    must_be_equal(kept, 1)
    return Outcome(1)


def file_limit(number: int, folder: Path) -> Outcome:
    """A limit on the size of files that the second sitting's checkpoint exceeds."""
    chance = random.Random(f"file limit {number}")
    process = start([*training(folder), "--stop-at", str(STEPS // 2)], folder)
    if end_of(process) != 0:
        raise Lost(last_line(folder))
    blocks = chance.randint(1, 480)  # of 1024 bytes
    limited = f"ulimit -f {blocks}; exec {shlex.join(training(folder))}"
    code = run(["bash", "-c", limited], folder)
    check_disk_error(code, said(folder))
    must_end_well(training(folder), folder)
    must_be_equal(folder, 1)
    return Outcome(1)


def check_disk_error(code: int, said: str) -> None:
    lines = said.strip().splitlines()
    if code != 2 or len(lines) != 1 or "can't write" not in lines[0]:
        raise Lost(f"exit code {code}, {len(lines)} lines: {lines[-1:]}")


# ------------------------------------------------------------------------------ run folders


def damaged_checkpoint(number: int, folder: Path) -> Outcome:
    """A checkpoint that is cut, changed, foreign: refused by name, and left as it is."""
    run_folder = copy_of_undisturbed(folder)
    checkpoint = run_folder / "checkpoint.pt"
    kind = list(damage.CHECKPOINTS)[number]
    damage.CHECKPOINTS[kind](checkpoint, random.Random(f"checkpoint {number}"))
    before = checkpoint.read_bytes()
    try:
        must_refuse(training(folder), folder, "checkpoint.pt", "move")
    except Lost as problem:
        raise Lost(f"{kind}: {problem}") from None
    if checkpoint.read_bytes() != before:
        raise Lost(f"{kind}: refused, but changed")
    return Outcome(1)


def lock_of_the_dead(number: int, folder: Path) -> Outcome:
    """A lock file whose process is gone, or is another one now, stops nobody."""
    run_folder = copy_of_undisturbed(folder)
    (run_folder / "checkpoint.pt").unlink()
    dead = subprocess.Popen(["true"])
    dead.wait()
    pid = os.getpid() if number % 2 else dead.pid
    (run_folder / "lock").write_text(f"process {pid} on {os.uname().nodename}\n")
    must_end_well(training(folder), folder)
    must_be_equal(folder, 1)
    return Outcome(1)


def lock_of_the_living(number: int, folder: Path) -> Outcome:
    """The same command twice at once: the second says so in one line, the first isn't disturbed.

    The first stands still meanwhile, so that it hasn't ended before the second has begun.
    """
    first = start(training(folder), folder)
    try:
        wait_for_log(folder, first, 1 + number)
        first.send_signal(signal.SIGSTOP)
        must_refuse(training(folder), folder / "second", "in use by process", str(first.pid))
        first.send_signal(signal.SIGCONT)
        if end_of(first) != 0:
            raise Lost(f"the first ended with {first.returncode}: {last_line(folder)}")
    finally:
        kill_all(first)
    must_be_equal(folder, 1)
    return Outcome(1)


def diverged_in_the_middle(number: int, folder: Path) -> Outcome:
    """A sweep of three rates, the second hopeless: the first is as if alone, the third is trained."""
    ranks = 1 + number
    command = training(folder, ranks)
    at = command.index("0.02")
    command[at : at + 1] = ["0.02", "1e12", "0.05"]
    must_end_well(command, folder)
    result = json.loads((folder / "results" / "quick" / "vgg_lr.json").read_text(encoding="utf-8"))
    diverged = [record["diverged_at"] is not None for record in result["runs"]]
    if diverged != [False, True, False]:
        raise Lost(f"diverged: {diverged}")
    if result["runs"][2]["log"][-1]["step"] != STEPS:
        raise Lost("the third run didn't come to its end")
    must_be_equal(folder, 1)  # each of two ranks has runs of its own
    return Outcome(1)


EDITED = ("settings.json", "log.jsonl", "vgg_lr.json")


def edited_file(number: int, folder: Path) -> Outcome:
    """A random edit of one of the files of a finished training: refused by name, or harmless.

    In this process, which has imported all that is slow.
    """
    chance = random.Random(f"edit {number}")
    run_folder = copy_of_undisturbed(folder)
    name = EDITED[number % len(EDITED)]
    file = folder / "results" / "quick" / name if name == "vgg_lr.json" else run_folder / name
    edit = damage.edit_text(file, chance)
    try:
        code, _, complaint = run_here(*TRAINING, *places(folder))
    except Exception as error:
        raise Lost(f"{name}, {edit}: {type(error).__name__}: {error}") from error
    if code == 0:
        must_be_equal(folder, 1)
    elif code != 2 or complaint.count("\n") != 1 or str(run_folder) not in complaint:
        raise Lost(f"{name}, {edit}: exit code {code}: {complaint}")
    return Outcome(1)


def edited_result(number: int, folder: Path) -> Outcome:
    """A random edit of a committed result that figures.py reads: it names the file, or draws what it says."""
    chance = random.Random(f"edited result {number}")
    committed = sorted(path for path in (ROOT / "results").glob("*.json") if registry.reader(path.stem) is not None)
    file = folder / chance.choice(committed).name
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "results" / file.name, file)
    edit = damage.edit_text(file, chance)
    try:
        code, _, complaint = run_here("figures.py", "--out", folder)
    except Exception as error:
        raise Lost(f"{file.name}, {edit}: {type(error).__name__}: {error}") from error
    refused_by_name = code == 2 and complaint.count("\n") == 1 and file.name in complaint
    if code != 0 and not refused_by_name:
        raise Lost(f"{file.name}, {edit}: exit code {code}: {complaint}")
    return Outcome(1)


def bad_input(number: int, folder: Path) -> Outcome:
    """Each bad input that tests/bad_inputs.py lists: one line with the words expected, exit code 2."""
    given = bad_inputs.ALL[number]
    folder.mkdir(parents=True)
    bad_inputs.prepare(folder)
    must_refuse([sys.executable, *bad_inputs.words_of(given, folder)], folder, bad_inputs.words_expected(given, folder))
    return Outcome(1)


# -------------------------------------------------------------------------------- all of it


class Part(NamedTuple):
    """`trials` of `trial(number, folder)`; `what` and `survival` say in words what is done and what must be true."""

    what: str
    survival: str
    trials: int
    trial: Callable[[int, Path], Outcome]


EQUAL = "weights, log and result equal to an undisturbed training, to the bit"
BITS = f"started again: {EQUAL}"
ONE_LINE = "one line that names the file, exit code 2"

PARTS = {
    "kill_one": Part("SIGKILL at a random moment, one process", BITS, 5, hit_at_random(1, kill_all, ())),
    "kill_two": Part(
        "SIGKILL at a random moment, torchrun and two ranks at once", BITS, 5, hit_at_random(2, kill_all, ())
    ),
    "term_one": Part(
        "SIGTERM at a random moment, one process",
        f"exit code 143, no traceback; {BITS}",
        2,
        hit_at_random(1, terminate, (143, -signal.SIGTERM)),
    ),
    "term_two": Part("SIGTERM to torchrun with two ranks", BITS, 2, hit_at_random(2, terminate, ())),
    "lost_rank": Part(
        "SIGKILL of one of two ranks under --max-restarts", f"it goes on by itself; {EQUAL}", 10, lost_rank
    ),
    "starts": Part("start of two ranks by torchrun on a busy machine", "exit code 0", 100, torchrun_start),
    "full_disk": Part("a disk that fills up", f"one line, exit code 2; {BITS}", 10, full_disk),
    "file_limit": Part("a limit on the size of files", f"one line, exit code 2; {BITS}", 5, file_limit),
    "checkpoint": Part(
        "a damaged or foreign checkpoint",
        f"{ONE_LINE}, nothing changed",
        len(damage.CHECKPOINTS),
        damaged_checkpoint,
    ),
    "dead_lock": Part("the lock of a dead process", BITS, 4, lock_of_the_dead),
    "living_lock": Part(
        "two processes on one folder",
        "the second: one line that names the first; the first: undisturbed",
        4,
        lock_of_the_living,
    ),
    "diverged": Part("a sweep whose second run diverges", "the others are as without it", 2, diverged_in_the_middle),
    "edits": Part(
        "a random edit of a run's settings.json or log.jsonl, or of its result",
        f"{ONE_LINE}, or equal to an undisturbed training",
        100,
        edited_file,
    ),
    "edited_results": Part(
        "a random edit of a committed result, then figures.py", f"{ONE_LINE}, or it is drawn", 100, edited_result
    ),
    "bad_input": Part("bad input", "one line with what is wrong, exit code 2", len(bad_inputs.ALL), bad_input),
}


# What differs in trials of an earlier form of this script
EARLIER = [
    "Those on de569ce, 67332c9 and 009daf3 trained on 4,096 generated images for 80 steps (in the starts: 2), and",
    "started every process as a command. How a training computes, saves and reads hasn't changed since.",
]

# Faults that earlier trials met; none of them is in the counts above
FOUND = [
    "A checkpoint with one wrong bit was loaded and went on to another result: torch.load ignores checksums.",
    "A number of 1e300 in a result ended figures.py in a traceback of matplotlib.",
    "A disk that was full when a line was added to the log ended in a traceback.",
    "A batch size larger than the data was found when the runs before it had been trained.",
    "Under torchrun a rank that met bad input first could end rank 0 before it had said why.",
]


def trials_so_far(name: str) -> list[dict]:
    file = KEPT / f"{name}.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def try_part(name: str) -> None:
    """Do the trials of a part that are not done yet."""
    part = PARTS[name]
    for number in range(len(trials_so_far(name)), part.trials):
        folder = KEPT / f"{name}_{number}"
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        try:
            outcome = part.trial(number, folder)
        except Lost as problem:
            outcome = Outcome(1, str(problem).replace(str(ROOT), "."))
        seconds = round(time.monotonic() - began, 1)
        record = outcome._asdict() | {"trial": number, "seconds": seconds, "commit": commit()}
        with open(KEPT / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if outcome.lost:
            print(f"{name} {number}: LOST: {outcome.lost} (kept: {folder})", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        report()


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def report() -> None:
    """Write the counts so far."""
    rows = []
    for name, part in PARTS.items():
        done = trials_so_far(name)
        lost = [f"trial {record['trial']}: {record['lost']}" for record in done if record["lost"]]
        tried = sum(record["hits"] for record in done)
        rows.append({"part": name, "what": part.what, "survival": part.survival, "tried": tried,
                     "survived": tried - len(lost), "lost": lost})  # fmt: skip
    seconds = sum(record["seconds"] for name in PARTS for record in trials_so_far(name))
    commits = collections.Counter(record["commit"] for name in PARTS for record in trials_so_far(name))
    settings = {"training": shlex.join(["python", *TRAINING]), "hits_per_run": HITS_PER_RUN}
    result = {
        "experiment": "endurance",
        "quick": False,
        "command": "python -m tests.endurance",
        "settings": settings,
        "environment": environment("cpu", seconds),
        "commits": commits,
        "parts": rows,
    }
    PAGE.parent.mkdir(exist_ok=True)
    write_json(RESULT, result)
    write_atomically(PAGE, page(result))


def page(result: dict) -> str:
    """docs/endurance.md."""
    lines = [
        "# Tried, survived, lost",
        "",
        "What the world does to a training, done to a real one by `python -m tests.endurance` and counted",
        "(this page and results/endurance.json are written by it). The training, on a few random images:",
        "",
        f"    {result['settings']['training']}",
        "",
        "A process by itself is forked from one that has imported torch, which saves most of its time, so that no",
        "signal meets its imports; torchrun, its ranks, and what a full disk meets are started as a user starts them.",
        "",
        "| what | must be true | tried | survived | lost |",
        "|---|---|---:|---:|---:|",
    ]
    for row in result["parts"]:
        numbers = f"{row['tried']} | {row['survived']} | {len(row['lost'])}"
        lines.append(f"| {row['what']} | {row['survival']} | {numbers} |")
    about = result["environment"]
    lines += ["", f"torch {about['torch']}, {about['machine']}, {about['seconds'] / 3600:.1f} hours in all."]
    commits = [f"{name} ({trials} trials)" for name, trials in result["commits"].items()]
    tried = sum(row["tried"] for row in result["parts"])
    unknown = tried - sum(result["commits"].values())
    lines += ["", f"On these commits: {', '.join(commits)}.", *EARLIER]
    if unknown:
        lines += [f"For the other {unknown} trials the commit wasn't kept."]
    lines += ["", "Found by it, and mended since:", "", *(f"- {fault}" for fault in FOUND)]
    losses = [f"- {row['what']}, {loss}" for row in result["parts"] for loss in row["lost"]]
    if losses:
        lines += ["", "Lost:", "", *losses]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--report", action="store_true", help="only write the counts so far")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    KEPT.mkdir(parents=True, exist_ok=True)
    if not options.report:
        write_data()
        start_server()
        for name in options.parts or PARTS:
            try_part(name)
    report()
    print(f"{PAGE}, {RESULT}")


if __name__ == "__main__":
    main()
