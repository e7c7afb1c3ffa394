"""Tests of training.py and the deep scripts: the result is independent of how it was computed."""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import core
import resnet_cifar100
import training
import vgg_cifar10
from core import Run
from test_core import HERE, run_command


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


TINY = Run(dataset="synthetic", width=4, batch_size=32, steps=50, warmup_steps=10, eval_every=20, precision="float32")


@pytest.fixture(scope="module")
def images():
    data = core.load_dataset("synthetic")
    small = data._replace(test_images=data.test_images[:200], test_labels=data.test_labels[:200])
    return training.Images(small, "synthetic", torch.device("cpu"))


def train_here(run, images, folder, **options):
    return training.train(run, images, Path(folder) / run.name, torch.device("cpu"), show=False, **options)


def outcome(run, folder):
    """All that a run leaves: its final weights and its log."""
    weights = torch.load(Path(folder) / run.name / f"weights_{run.steps}.pt", weights_only=True)
    return weights, (Path(folder) / run.name / "log.jsonl").read_text()


def same_bits(a, b):
    return a[1] == b[1] and all(torch.equal(x, y) for x, y in zip(a[0].values(), b[0].values(), strict=True))


def test_an_epoch_shows_every_example_once_cropped_and_flipped(images):
    run = TINY
    crops, labels = images.epoch(run, 3)
    batch = images.batch(crops[:64])
    first, direction = crops.T
    flipped = direction < 0
    corner = first - 31 * flipped
    example, row, column = corner // 1600, corner % 1600 // 40, corner % 40
    assert torch.equal(example.sort().values, torch.arange(4096)) and torch.equal(labels, images.train_labels[example])
    assert 0.45 < flipped.float().mean() < 0.55 and set(row.tolist()) == set(column.tolist()) == set(range(9))
    for k in range(64):
        image = images.train[example[k], row[k] : row[k] + 32, column[k] : column[k] + 32]
        assert torch.equal(batch[k], image.flip(1) if flipped[k] else image)
    assert torch.equal(crops, images.epoch(run, 3)[0]) and not torch.equal(crops, images.epoch(run, 4)[0])
    plain = images.epoch(dataclasses.replace(run, augment=False), 0)[0]
    data = core.load_dataset("synthetic").train_images[plain[:8, 0] // 1600]
    assert torch.equal(images.batch(plain[:8]).permute(0, 3, 1, 2), data)


def test_label_noise_draws_another_class_uniformly_and_anew(images):
    run = dataclasses.replace(TINY, label_noise=0.4)
    clean = images.epoch(dataclasses.replace(run, label_noise=0.0), 0)[1]
    (_, noisy), (_, later) = images.epoch(run, 0), images.epoch(run, 1)
    wrong = noisy != clean
    assert abs(wrong.float().mean() - 0.4) < 4 * math.sqrt(0.24 / 4096)
    counts = torch.bincount((noisy - clean)[wrong] % 10, minlength=10)
    assert counts[0] == 0 and ((counts[1:] - wrong.sum() / 9).square() / (wrong.sum() / 9)).sum() < 27  # chi2, 8 d.o.f.
    assert not torch.equal(noisy, later)


def test_training_equals_a_plain_loop(images, tmp_path):
    """torch.optim.SGD with the paper's settings, image by image from the same crops and labels."""
    run = dataclasses.replace(TINY, label_noise=0.2, steps=12, eval_every=6)
    record = train_here(run, images, tmp_path)
    torch.manual_seed(run.seed)
    model = core.vgg16(10, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    crops, labels = images.epoch(run, 0)
    total = []
    for step in range(12):
        rows = range(32 * step, 32 * step + 32)
        x = torch.stack([images.batch(crops[k : k + 1])[0] for k in rows]).float()
        x = ((x - images.mean) / images.std).permute(0, 3, 1, 2).contiguous()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1, (step + 1) / 10)
        loss = F.cross_entropy(model(x), labels[32 * step : 32 * step + 32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total.append(loss.item())
    weights, _ = outcome(run, tmp_path)
    for name, parameter in model.state_dict().items():
        assert torch.allclose(weights[name], parameter, rtol=1e-4, atol=1e-5), name
    assert [line["train_loss"] for line in record["log"]] == pytest.approx(
        [np.mean(total[:6]), np.mean(total[6:])], 1e-4
    )
    assert core.learning_rate_at(run, 0) == pytest.approx(0.01) and core.learning_rate_at(run, 99) == 0.1


def in_child(function, environment=()):
    """A forked child that runs `function`; it has torch loaded already."""

    def body():
        os.environ.update(environment)
        torch.set_num_threads(1)
        function()

    child = multiprocessing.get_context("fork").Process(target=body)
    child.start()
    return child


def test_killed_at_random_and_while_it_saves_a_run_ends_with_the_same_bits(images, tmp_path):
    run = dataclasses.replace(TINY, steps=120, eval_every=4, milestones=(30,))
    train_here(dataclasses.replace(TINY, steps=4, eval_every=4), images, tmp_path)  # what only the first run pays
    start = time.perf_counter()
    train_here(run, images, tmp_path / "whole")
    duration = time.perf_counter() - start

    def go_on():
        train_here(run, images, tmp_path / "killed")

    def die_while_saving():
        def half_written(state, file):
            file.write(b"half a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half_written
        go_on()

    folder, random = tmp_path / "killed" / run.name, np.random.default_rng(0)
    for kill in range(7):
        child = in_child(die_while_saving if kill == 2 else go_on)
        child.join(None if kill == 2 else duration * random.uniform(0.03, 0.1))  # these can't finish it
        while kill == 6 and not (folder / "checkpoint.pt").exists():
            time.sleep(0.01)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        if kill == 2:
            assert list(folder.glob(".*.pt.*"))  # the torso is there, and the last state beside it
    assert 0 < training.load_state(folder / "checkpoint.pt", torch.device("cpu"))["step"] < run.steps
    child = in_child(go_on)
    child.join()
    assert child.exitcode == 0
    assert same_bits(outcome(run, tmp_path / "whole"), outcome(run, tmp_path / "killed"))
    assert (folder / "weights_30.pt").exists() and not list(folder.glob(".*.pt.*"))
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    record = train_here(run, images, tmp_path / "killed")  # finished: read, not run
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before and len(record["log"]) == 31


def sigterm_at_step(step):
    """From now on this process sends itself SIGTERM at its `step`-th backward pass."""
    backward, calls = torch.Tensor.backward, []

    def counted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, *args, **kwargs)

    torch.Tensor.backward = counted


def test_sigterm_saves_in_mid_interval_and_says_how_to_go_on(images, tmp_path, capfd):
    run = dataclasses.replace(TINY, steps=40, eval_every=40, learning_rate=1 / 30)  # a rate with endless digits
    train_here(run, images, tmp_path / "whole")

    def stop_after_seven_steps():
        sigterm_at_step(7)
        train_here(run, images, tmp_path / "stopped")

    child = in_child(stop_after_seven_steps)
    child.join()
    said = capfd.readouterr().err
    assert child.exitcode == 1 and "stopped at step 7 of 40" in said and "goes on" in said and "Traceback" not in said
    train_here(run, images, tmp_path / "stopped")
    assert same_bits(outcome(run, tmp_path / "whole"), outcome(run, tmp_path / "stopped"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def sweep_on(ranks, runs, folder, sigterm=None):
    """core.sweep in forked gloo processes, as torchrun would start them; the last one gets SIGTERM at that step."""
    port, data = free_port(), core.load_dataset("synthetic")
    data = data._replace(test_images=data.test_images[:200], test_labels=data.test_labels[:200])

    def body():
        if sigterm and os.environ["RANK"] == str(ranks - 1):
            sigterm_at_step(sigterm)
        records = core.sweep(runs, data, folder, torch.device("cpu"))
        if records is not None:
            core.write_json(folder / "records.json", {"records": records})
        torch.distributed.destroy_process_group()

    children = [
        in_child(body, {"RANK": str(r), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        for r in range(ranks)
    ]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [int(sigterm is not None)] * ranks
    return None if sigterm else json.loads((folder / "records.json").read_text())["records"]


def test_two_processes_on_a_run_equal_one(images, tmp_path):
    """After 50 steps, at a rate that does not blow rounding up; one goes on with what two have begun."""
    run = dataclasses.replace(TINY, learning_rate=0.01)
    (tmp_path / "two").mkdir()
    (two,) = sweep_on(2, [run], tmp_path / "two")
    train_here(run, images, tmp_path / "one")
    one_weights, one_log = outcome(run, tmp_path / "one")
    two_weights, _ = outcome(run, tmp_path / "two")
    assert one_weights.keys() == two_weights.keys()  # the unwrapped names
    for name, weight in one_weights.items():
        assert torch.allclose(weight, two_weights[name], rtol=1e-3, atol=1e-5), name
    last = json.loads(one_log.splitlines()[-1])
    assert two["log"][-1]["train_loss"] == pytest.approx(last["train_loss"], rel=1e-4)
    assert two["log"][-1]["groups"]["independent"] == last["groups"]["independent"]
    state = training.load_state(tmp_path / "two" / run.name / "checkpoint.pt", torch.device("cpu"))
    assert state["step"] == 50 and set(state["model"]) == set(one_weights)


def test_a_signal_to_one_process_of_a_team_stops_and_saves_all(tmp_path):
    """They stop together; what each has summed of the loss since the last evaluation comes back to the bit."""
    run = dataclasses.replace(TINY, eval_every=50, learning_rate=0.01)
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    (whole,) = sweep_on(2, [run], tmp_path / "whole")
    sweep_on(2, [run], tmp_path / "stopped", sigterm=7)
    assert training.load_state(tmp_path / "stopped" / run.name / "checkpoint.pt", torch.device("cpu"))["step"] == 20
    (stopped,) = sweep_on(2, [run], tmp_path / "stopped")
    assert stopped["log"] == whole["log"]
    assert same_bits(outcome(run, tmp_path / "whole"), outcome(run, tmp_path / "stopped"))


def test_processes_share_runs_and_a_diverged_one_does_not_stop_the_sweep(tmp_path):
    runs = [dataclasses.replace(TINY, steps=8, eval_every=4, learning_rate=rate) for rate in (0.05, 1e12, 0.02)]
    runs = [dataclasses.replace(run, warmup_steps=0) for run in runs]
    records = sweep_on(2, runs, tmp_path)
    assert [record["name"] for record in records] == [run.name for run in runs]
    assert [record["diverged_at"] is None for record in records] == [True, False, True]
    assert 0 < records[1]["diverged_at"] < 4 and len(records[1]["log"]) == 0 and len(records[0]["log"]) == 2
    again = sweep_on(2, runs, tmp_path)
    assert again == records
    assert core.sweep([], None, tmp_path, torch.device("cpu")) == []  # no branches, when all parents have diverged


def test_rank_0_downloads_alone_before_the_others_read(tmp_path):
    port = free_port()

    def body():
        def action():
            with open(tmp_path / "order", "a") as file:
                file.write(os.environ["RANK"])
            time.sleep(0.3)
            return os.environ["RANK"]

        assert training.first_rank_first(action, torch.device("cpu")) == os.environ["RANK"]
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    address = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [in_child(body, address | {"RANK": str(rank)}) for rank in range(3)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (tmp_path / "order").read_text() in ("012", "021")


def test_what_stops_a_run_is_one_line_and_keeps_the_state(images, tmp_path, monkeypatch):
    run = dataclasses.replace(TINY, steps=8, eval_every=4)
    train_here(run, images, tmp_path)
    checkpoint = tmp_path / run.name / "checkpoint.pt"
    good = checkpoint.read_bytes()
    longer = dataclasses.replace(run, steps=12)
    os.rename(tmp_path / run.name, tmp_path / longer.name)
    with pytest.raises(ValueError, match="another steps;"):
        train_here(longer, images, tmp_path)
    os.rename(tmp_path / longer.name, tmp_path / run.name)
    for bad in (b"", b"nonsense", good[: len(good) // 2]):
        checkpoint.write_bytes(bad)
        with pytest.raises(ValueError, match=r"checkpoint\.pt can't be read .*delete it") as caught:
            train_here(run, images, tmp_path)
        assert "\n" not in str(caught.value)

    def full(state, file):
        raise OSError(28, "No space left on device")

    checkpoint.write_bytes(good)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left.*previous state is untouched"):
        training.save_atomically(checkpoint, {})
    assert checkpoint.read_bytes() == good and not list((tmp_path / run.name).glob(".*.pt.*"))
    (tmp_path / run.name / "settings.json").write_text('{"model": "vgg')
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*move .* away"):
        train_here(run, images, tmp_path)
    with pytest.raises(ValueError, match="larger than"):
        train_here(dataclasses.replace(TINY, batch_size=8192), images, tmp_path)
    for shape in ((3, 72, 72), (4, 32, 32)):
        with pytest.raises(ValueError, match="grey or RGB and at most 64 x 64"):
            big = torch.zeros(2, *shape, dtype=torch.uint8)
            training.Images(core.Dataset(big, torch.arange(2), big, torch.arange(2)), "mine", torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(training, "form_team", lambda runs, device: training.Team(size=3))
    with pytest.raises(ValueError, match="batch size 32 is not divisible by a team of 3"):
        core.sweep([run], core.load_dataset("synthetic"), tmp_path, torch.device("cpu"))


def test_a_checkpoint_executes_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"model": Payload()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="can't be read"):
        training.load_state(tmp_path / "checkpoint.pt", torch.device("cpu"))
    assert not (tmp_path / "executed").exists()


def test_plans_are_the_papers_and_options_win():
    def plan(script, name, given=None, seeds=None):
        return core.plan_runs(script.PAPER, script.EXPERIMENTS[name], given or {}, seeds, 0)

    vgg = plan(vgg_cifar10, "lr")
    assert len(vgg) == 16 and {run.learning_rate for run in vgg} == {0.01, 0.02, 0.05, 0.1}
    assert {(run.batch_size, run.steps, run.weight_decay, run.momentum, run.width) for run in vgg} == {
        (256, 100_000, 5e-4, 0.9, 64)
    }
    noise = plan(resnet_cifar100, "noise")
    assert {run.label_noise for run in noise} == {0, 0.2, 0.4, 0.6, 0.8} and noise[0].learning_rate == 0.02
    everything = [
        run for script in (vgg_cifar10, resnet_cifar100) for name in script.EXPERIMENTS for run in plan(script, name)
    ]
    assert len({run.name for run in everything}) == len(set(everything)) >= 120  # a folder for each
    assert max(len(run.name) for run in everything) < 160
    mine = plan(vgg_cifar10, "drop", {"steps": 4000, "width": 8, "learning_rate": [0.2]}, 1)
    assert [run.milestones for run in mine] == [(1000, 2000, 4000)] and mine[0].learning_rate == 0.2
    assert [run.batch_size for run in plan(vgg_cifar10, "batch", {"batch_size": [7]}, 2)] == [7, 7]
    with pytest.raises(ValueError, match="--label-noise takes one value where learning_rate is varied"):
        plan(vgg_cifar10, "lr", {"label_noise": [0.1, 0.2]})
    for field, value in {
        "label_noise": [1.5],
        "width": 3,
        "steps": 0,
        "learning_rate": [-0.1],
        "momentum": -1.0,
    }.items():
        with pytest.raises(ValueError, match="impossible"):
            plan(vgg_cifar10, "lr", {field: value})
    with pytest.raises(ValueError, match="--seeds 0"):
        plan(vgg_cifar10, "lr", {}, 0)


def test_controls_have_the_decay_that_was_given_and_repeat_no_run():
    runs = [dataclasses.replace(TINY, learning_rate=rate, weight_decay=1e-3) for rate in (0.02, 0.1)]
    controls = core.with_controls(runs)
    assert [(run.learning_rate, run.weight_decay) for run in controls] == [(0.02, 0.0), (0.1, 0.0), (0.02, 0.005)]
    assert core.with_controls(runs[:1]) == controls[:1]  # one rate has no stronger pull
    assert core.with_controls([dataclasses.replace(TINY, weight_decay=0.0)]) == []


def test_teams_that_cannot_share_a_batch_are_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    """24 ranks: 16 runs make teams of 1 and 2, but the 8 runs of `drop`, teams of 3."""
    monkeypatch.setenv("WORLD_SIZE", "24")
    options = ["--dataset", "synthetic", "--device", "cpu", "--out", str(tmp_path), "--runs", str(tmp_path)]
    monkeypatch.setattr(core, "sweep", None)
    with pytest.raises(SystemExit):
        core.run_sweeps("doc", vgg_cifar10.PAPER, vgg_cifar10.EXPERIMENTS, {}, ["lr", "drop", *options])
    assert "not divisible by a team of 3" in capsys.readouterr().err


def test_torchrun_runs_the_quick_sweep_and_branches(tmp_path):
    """The deep scripts as a user starts them, two processes; then the drop experiment in one."""
    options = ["--quick", "--out", tmp_path / "results", "--runs", tmp_path / "runs"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ran = run_command(
        *launch, "resnet_cifar100.py", "lr", *options, "--controls", "--learning-rate", "0.02", "0.1", "--steps", "6"
    )
    assert ran.returncode == 0, ran.stderr
    saved = json.loads((tmp_path / "results" / "quick" / "resnet_lr.json").read_text())
    assert [entry["run"]["learning_rate"] for entry in saved["maps"]] == [0.02, 0.1]
    assert len(saved["runs"]) == 2 and len(saved["controls"]) == 3 and saved["data_source"] == "generated"
    assert {run["run"]["weight_decay"] for run in saved["controls"]} == {0.0, 5e-4 * 0.1 / 0.02}
    ran = run_command("vgg_cifar10.py", "drop", *options, "--steps", "16")
    assert ran.returncode == 0, ran.stderr
    saved = json.loads((tmp_path / "results" / "quick" / "vgg_drop.json").read_text())
    assert [branch["run"]["start"].split("_")[-1] for branch in saved["branches"]] == ["4.pt", "8.pt", "16.pt"]
    assert all(branch["log"] for branch in saved["branches"])
    wrong = run_command("vgg_cifar10.py", "lr", "--label-noise", "0.1", "0.2", *options)
    assert wrong.returncode == 2 and "takes one value" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in Linux's /proc")
def test_torchrun_survives_the_death_of_a_rank(tmp_path):
    """SIGKILL one of two processes that share a run: torchrun starts both again, and the end is the same to the bit."""
    run = dataclasses.replace(
        vgg_cifar10.PAPER, **vgg_cifar10.QUICK | {"steps": 60, "eval_every": 4}, learning_rate=0.02
    )
    options = ["--quick", "--seeds", "1", "--learning-rate", "0.02", "--steps", "60", "--eval-every", "4"]
    options += ["--out", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    running = subprocess.Popen([sys.executable, *launch, "vgg_cifar10.py", "lr", *options], cwd=HERE)
    log = tmp_path / "runs" / "quick" / "vgg_cifar10" / run.name / "log.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and len(log.read_text().splitlines()) >= 2):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        ranks = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        assert running.wait(100) == 0
    finally:
        running.terminate()
    saved = json.loads((tmp_path / "results" / "quick" / "vgg_lr.json").read_text())
    assert [line["step"] for line in saved["runs"][0]["log"]] == list(range(4, 61, 4))
    (tmp_path / "whole").mkdir()
    sweep_on(2, [run], tmp_path / "whole")
    whole, restarted = (torch.load(p / run.name / "weights_60.pt") for p in (tmp_path / "whole", log.parent.parent))
    assert all(torch.equal(whole[name], restarted[name]) for name in whole)
