"""Training: the result does not depend on how it was computed, by whom, or how often it was interrupted."""

import copy
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import core
import resnet_cifar100
import vgg_cifar10
from core import Branch, Run
from experiments import sweeps
from lib.batches import Images
from lib.data import Dataset, synthetic_dataset
from lib.errors import InputError
from lib.precision import allow_tf32, float32_products, memory_format
from lib.run_folder import RunFolder, load_state, save_atomically
from tests import damage, workers
from tests.processes import PATIENCE, ROOT, finish, start, start_ranks
from tests.workers import CPU, few_images, on_device, train_here

TINY = Run(model="small", dataset="synthetic", width=4, batch_size=32, steps=50, warmup_steps=10, eval_every=20,
           precision="float32")  # fmt: skip
VGG = dataclasses.replace(TINY, model="vgg16")
EXACT = dataclasses.replace(VGG, precision="float64")  # what is computed in two ways is compared in float64


@pytest.fixture(scope="module")
def images():
    return on_device(few_images())


@pytest.fixture(scope="module")
def all_images():
    return on_device(core.load_dataset("synthetic"))


def outcome(run, folder):
    """All that a run leaves: its final weights and its log."""
    weights = torch.load(Path(folder) / run.name / f"weights_{run.steps}.pt", weights_only=True)
    return weights, (Path(folder) / run.name / "log.jsonl").read_text()


def same_bits(a, b):
    return a[1] == b[1] and all(torch.equal(x, y) for x, y in zip(a[0].values(), b[0].values(), strict=True))


# ------------------------------------------------------------------------------ batches


def test_an_epoch_shows_every_example_once_cropped_and_flipped(all_images):
    crops, labels = core.epoch_of(TINY, all_images, 3)
    batch = all_images.batch(crops[:64])
    first, direction = crops.T
    flipped = direction < 0
    corner = first - 31 * flipped
    example, row, column = corner // 1600, corner % 1600 // 40, corner % 40
    assert torch.equal(example.sort().values, torch.arange(4096)) and torch.equal(
        labels, all_images.train_labels[example]
    )
    assert 0.45 < flipped.float().mean() < 0.55 and set(row.tolist()) == set(column.tolist()) == set(range(9))
    for k in range(64):
        image = all_images.train[example[k], row[k] : row[k] + 32, column[k] : column[k] + 32]
        assert torch.equal(batch[k], image.flip(1) if flipped[k] else image)
    again, later = core.epoch_of(TINY, all_images, 3), core.epoch_of(TINY, all_images, 4)
    assert torch.equal(crops, again.crops) and not torch.equal(crops, later.crops)
    plain = core.epoch_of(dataclasses.replace(TINY, augment=False), all_images, 0).crops
    data = core.load_dataset("synthetic").train_images[plain[:8, 0] // 1600]
    assert torch.equal(all_images.batch(plain[:8]).permute(0, 3, 1, 2), data)
    unflipped = core.epoch_of(dataclasses.replace(TINY, flip=False), all_images, 3).crops
    assert (unflipped[:, 1] == 1).all() and torch.equal(unflipped[:, 0], corner)


def test_label_noise_draws_another_class_uniformly_and_anew(all_images):
    run = dataclasses.replace(TINY, label_noise=0.4)
    clean = core.epoch_of(TINY, all_images, 0).labels
    noisy, later = core.epoch_of(run, all_images, 0).labels, core.epoch_of(run, all_images, 1).labels
    wrong = noisy != clean
    assert abs(wrong.float().mean() - 0.4) < 4 * math.sqrt(0.24 / 4096)
    counts = torch.bincount((noisy - clean)[wrong] % 10, minlength=10)
    assert counts[0] == 0 and ((counts[1:] - wrong.sum() / 9).square() / (wrong.sum() / 9)).sum() < 27  # chi2, 8 d.o.f.
    assert not torch.equal(noisy, later)


# ------------------------------------------------------------------------- the loop itself


def test_training_equals_a_plain_loop(images, tmp_path):
    """torch.optim.SGD with the paper's settings, image by image from the same crops and labels."""
    run = dataclasses.replace(EXACT, label_noise=0.2, steps=12, eval_every=6)
    record = train_here(run, tmp_path, images)
    torch.manual_seed(run.seed)
    model = core.vgg16(10, 4).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    crops, labels = core.epoch_of(run, images, 0)
    total = []
    for step in range(12):
        rows = range(32 * step, 32 * step + 32)
        x = torch.stack([images.batch(crops[k : k + 1])[0] for k in rows]).double()
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
        assert torch.allclose(weights[name], parameter, rtol=1e-9, atol=1e-11), name
    means = [np.mean(total[:6]), np.mean(total[6:])]
    assert [line["train_loss"] for line in record["log"]] == pytest.approx(means, 1e-9)
    assert core.learning_rate_at(run, 0) == pytest.approx(0.01) and core.learning_rate_at(run, 99) == 0.1


def test_adamw_trains_as_torchs_own(images, tmp_path):
    run = dataclasses.replace(EXACT, optimizer="adamw", learning_rate=0.001, warmup_steps=0, steps=3, eval_every=3)
    train_here(run, tmp_path, images)
    torch.manual_seed(run.seed)
    model = core.vgg16(10, 4).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=5e-4)
    crops, labels = core.epoch_of(run, images, 0)
    exact = images.prepared(dtype=torch.float64)
    for step in range(3):
        rows = slice(32 * step, 32 * step + 32)
        optimizer.zero_grad()
        F.cross_entropy(model(exact.normalized(exact.batch(crops[rows]))), labels[rows]).backward()
        optimizer.step()
    weights, _ = outcome(run, tmp_path)
    for name, parameter in model.state_dict().items():
        assert torch.allclose(weights[name], parameter, rtol=1e-7, atol=1e-9), name


def test_between_evaluations_the_loop_asks_the_device_for_no_number(images, tmp_path):
    """On a GPU each number asked for would wait for all that is queued."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Questions(TorchDispatchMode):
        asked = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.name()
            depends_on_data = "nonzero" in name or "masked_select" in name or "unique" in name
            if "_local_scalar_dense" in name or depends_on_data:
                self.asked += (name,)
            return function(*args, **(kwargs or {}))

    training = core.Training(VGG, images, RunFolder(tmp_path), CPU, core.ALONE, "float32")
    training.start_stepping()
    training.take_step()  # the first of an epoch prepares it
    with Questions() as questions:
        for _ in range(3):
            training.take_step()
    assert questions.asked == ()
    with Questions() as questions:
        training.evaluate(dict)
    assert questions.asked  # the counter counts


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_eager_result_and_its_checkpoint_loads_without(images, tmp_path, monkeypatch):
    def two_layers(classes, width):
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.Tanh(), nn.Linear(width, classes))

    monkeypatch.setitem(core.MODELS, "two_layers", two_layers)
    eager = dataclasses.replace(EXACT, model="two_layers", steps=4, eval_every=4, learning_rate=0.01)
    compiled = dataclasses.replace(eager, compile=True)
    train_here(eager, tmp_path, images)
    train_here(compiled, tmp_path, images)
    weights, compiled_weights = (load_state(tmp_path / run.name / "weights_4.pt", CPU) for run in (eager, compiled))
    assert weights.keys() == compiled_weights.keys()
    model = two_layers(10, 4).double()
    model.load_state_dict(compiled_weights)
    for name, weight in weights.items():
        assert torch.allclose(weight, compiled_weights[name], rtol=1e-9, atol=1e-11), name


# ------------------------------------------------------------------ interruptions, processes


def test_killed_at_random_and_while_it_saves_a_run_ends_with_the_same_bits(images, tmp_path):
    run = dataclasses.replace(VGG, steps=72, eval_every=6, milestones=(30,))
    began = time.perf_counter()
    train_here(run, tmp_path / "whole", images)
    duration = time.perf_counter() - began

    folder, random = tmp_path / "killed" / run.name, np.random.default_rng(0)
    assert finish(start(workers.die_while_saving, run, tmp_path / "killed")) == [-signal.SIGKILL]
    assert list(folder.glob(".*.pt.*"))  # the torso is there
    deadline = time.monotonic() + PATIENCE
    for kill in range(4):
        child = start(train_here, run, tmp_path / "killed")
        while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        child.join(duration * random.uniform(0.05, 0.15))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, f"kill {kill} came too late"
    assert 0 < load_state(folder / "checkpoint.pt", CPU)["step"] < run.steps
    assert finish(start(train_here, run, tmp_path / "killed")) == [0]
    assert same_bits(outcome(run, tmp_path / "whole"), outcome(run, tmp_path / "killed"))
    assert (folder / "weights_30.pt").exists() and not list(folder.glob(".*.pt.*"))
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    record = train_here(run, tmp_path / "killed", images)  # finished: read, not run
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before and len(record["log"]) == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_in_mid_interval_and_says_how_to_go_on(images, tmp_path, number):
    run = dataclasses.replace(TINY, steps=40, eval_every=40, learning_rate=1 / 30)  # a rate with endless digits
    train_here(run, tmp_path / "whole", images)
    child = start(workers.train_until_signal, run, tmp_path / "stopped", 7, number, tmp_path / "said")
    assert finish(child) == [128 + number]
    said = (tmp_path / "said").read_text()
    assert "stopped at step 7 of 40" in said and "goes on" in said and "Traceback" not in said
    train_here(run, tmp_path / "stopped", images)
    assert same_bits(outcome(run, tmp_path / "whole"), outcome(run, tmp_path / "stopped"))


def sweep_on(ranks, runs, folder, dataset=None, sigterm_at=None):
    """core.sweep in processes as torchrun would start them; the last one may get SIGTERM at a step."""
    folder.mkdir(exist_ok=True)
    codes = finish(*start_ranks(ranks, workers.sweep_rank, runs, folder, dataset, sigterm_at))
    assert codes == [0 if sigterm_at is None else 143] * ranks
    return None if sigterm_at else json.loads((folder / "records.json").read_text())["records"]


def test_two_processes_on_a_run_equal_one(images, tmp_path):
    """After 30 steps, in float64: in float32 max-pools meet near-ties, which rounding decides."""
    run = dataclasses.replace(EXACT, learning_rate=0.01, steps=30)
    (two,) = sweep_on(2, [run], tmp_path / "two")
    train_here(run, tmp_path / "one", images)
    one_weights, one_log = outcome(run, tmp_path / "one")
    two_weights, _ = outcome(run, tmp_path / "two")
    assert one_weights.keys() == two_weights.keys()  # the unwrapped names
    for name, weight in one_weights.items():
        assert torch.allclose(weight, two_weights[name], rtol=1e-9, atol=1e-11), name
    last = json.loads(one_log.splitlines()[-1])
    assert two["log"][-1]["train_loss"] == pytest.approx(last["train_loss"], rel=1e-9)
    assert two["log"][-1]["groups"]["independent"] == last["groups"]["independent"]
    state = load_state(tmp_path / "two" / run.name / "checkpoint.pt", CPU)
    assert state["step"] == 30 and set(state["model"]) == set(one_weights)


def test_a_signal_to_one_process_of_a_team_stops_and_saves_all(tmp_path):
    """They stop together; what each has summed of the loss since the last evaluation comes back to the bit."""
    run = dataclasses.replace(TINY, steps=30, eval_every=30, learning_rate=0.01)
    (whole,) = sweep_on(2, [run], tmp_path / "whole")
    sweep_on(2, [run], tmp_path / "stopped", sigterm_at=7)
    assert load_state(tmp_path / "stopped" / run.name / "checkpoint.pt", CPU)["step"] == 20
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


def test_branches_start_at_their_milestone_and_the_run_may_stop_there(tmp_path):
    """The branch is there though its parent has not ended; the parent goes on later, to the bits of one sitting."""
    data = few_images()
    run = dataclasses.replace(TINY, steps=12, eval_every=4, milestones=(4, 8), batch_size=16)
    branches = sweeps.branches_of([run], {"steps": 4})
    stopped = core.sweep([run], data, tmp_path, CPU, branches, stop_at=4)
    assert [line["step"] for line in stopped.runs[0]["log"]] == [4] and len(stopped.branches) == 1
    whole = core.sweep([run], data, tmp_path, CPU, branches)
    assert [line["step"] for line in whole.runs[0]["log"]] == [4, 8, 12]
    assert whole.branches[0] == stopped.branches[0] and len(whole.branches) == 2
    assert whole.branches[1]["run"]["start"].endswith("weights_8.pt")
    assert whole.seconds == sum(record["seconds"] for record in whole.runs + whole.branches) > 0
    core.sweep([run], data, tmp_path / "whole", CPU)
    assert same_bits(outcome(run, tmp_path), outcome(run, tmp_path / "whole"))


def test_needed_weights_that_are_gone_are_no_outcome(tmp_path):
    run = dataclasses.replace(TINY, steps=8, eval_every=4, milestones=(4,), batch_size=16)
    branches = {run: [Branch(4, dataclasses.replace(run, steps=4, start=f"{run.name}/weights_4.pt", milestones=()))]}
    core.sweep([run], few_images(), tmp_path, CPU, branches)
    shutil.rmtree(tmp_path / branches[run][0].run.name)
    (tmp_path / run.name / "weights_4.pt").unlink()
    with pytest.raises(InputError, match=r"weights_4\.pt, from which .* starts, is gone"):
        core.sweep([run], few_images(), tmp_path, CPU, branches)


def test_a_run_may_stop_between_two_evaluations(images, tmp_path):
    run = dataclasses.replace(TINY, steps=8, eval_every=4)
    train_here(run, tmp_path / "parts", images, until=3)
    assert load_state(tmp_path / "parts" / run.name / "checkpoint.pt", CPU)["step"] == 3
    train_here(run, tmp_path / "parts", images)
    train_here(run, tmp_path / "whole", images)
    assert same_bits(outcome(run, tmp_path / "parts"), outcome(run, tmp_path / "whole"))


def test_a_run_ends_at_its_end_whatever_step_is_asked_for(images, tmp_path):
    run = dataclasses.replace(TINY, steps=8, eval_every=4)
    record = train_here(run, tmp_path, images, until=13)
    assert [line["step"] for line in record["log"]] == [4, 8]
    assert load_state(tmp_path / run.name / "checkpoint.pt", CPU)["step"] == 8
    assert train_here(run, tmp_path, images) == record


# From step 4 on the rate is so high that the loss is not finite; branches begin at steps 4 and 8
DIVERGES = dataclasses.replace(TINY, steps=12, eval_every=4, milestones=(4, 8), batch_size=16, warmup_steps=0,
                               decay_steps=(4,), decay_factors=(1e20,))  # fmt: skip
AFTER_DROP = {"steps": 4, "decay_steps": (), "decay_factors": ()}


def plan_of(run):
    experiment = sweeps.Experiment(run, "learning_rate", (run.learning_rate,), 1, after_drop=AFTER_DROP)
    return sweeps.Plan(experiment, [run], [], sweeps.branches_of([run], AFTER_DROP))


def test_branches_from_before_a_divergence_stay_and_later_ones_are_not_missed(tmp_path):
    plan = plan_of(DIVERGES)
    first = core.sweep(plan.runs, few_images(), tmp_path, CPU, plan.branches)
    assert first.runs[0]["diverged_at"] > 4
    assert [branch["drop_step"] for branch in first.branches] == [4]
    again = core.sweep(plan.runs, few_images(), tmp_path, CPU, plan.branches)
    assert again == first
    assert sweeps.are_finished(plan, tmp_path, None) == [True, True]


def test_a_divergence_at_the_milestone_leaves_no_weights_to_branch_from(tmp_path):
    run = dataclasses.replace(DIVERGES, decay_steps=(3,))
    plan = plan_of(run)
    assert core.sweep(plan.runs, few_images(), tmp_path, CPU, plan.branches).branches == []
    assert not (tmp_path / run.name / "weights_4.pt").exists()
    assert sweeps.are_finished(plan, tmp_path, None) == [True]


def test_the_status_of_a_part_is_that_of_the_part(tmp_path):
    plan = plan_of(dataclasses.replace(DIVERGES, decay_steps=(), decay_factors=()))
    assert sweeps.are_finished(plan, tmp_path, 4) == [False, False]
    core.sweep(plan.runs, few_images(), tmp_path, CPU, plan.branches, stop_at=4)
    assert sweeps.are_finished(plan, tmp_path, 4) == [True, True]
    assert sweeps.are_finished(plan, tmp_path, None) == [False, True, False]


def test_a_batch_norm_is_judged_with_the_statistics_that_are_saved(tmp_path):
    """Two processes each see half a batch; the network in the checkpoint is the first one's."""
    run = dataclasses.replace(TINY, model="small_norm", learning_rate=0.01, steps=6, eval_every=6, precision="float64")
    dataset = synthetic_dataset(512, 1200)  # each process judges some of the test images
    (record,) = sweep_on(2, [run], tmp_path, dataset)
    model = workers.with_batch_norm(10, run.width).double()
    model.load_state_dict(load_state(tmp_path / run.name / "weights_6.pt", CPU))
    data = on_device(dataset).prepared(dtype=torch.float64)
    test_loss, accuracy = core.evaluate(model, data, core.ALONE, "float64", batch=100)
    assert record["log"][-1]["test_loss"] == pytest.approx(test_loss, rel=1e-9)
    assert record["log"][-1]["test_accuracy"] == accuracy


def test_a_team_computes_in_one_precision(tmp_path):
    assert finish(*start_ranks(2, workers.agree_on_a_precision, tmp_path)) == [0, 0]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["bfloat16", "bfloat16"]


def test_float32_is_float32_on_a_gpu_and_tf32_only_beside_bfloat16():
    def held():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = held()
    gpu = torch.device("cuda")  # nothing is computed there
    for outer in (True, False):
        allow_tf32(outer)
        with float32_products(gpu, "float32"):
            assert held() == ("highest", False)
        with float32_products(gpu, "bfloat16"):
            assert held() == ("high", True)
        assert held() == ("high" if outer else "highest", outer)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_rank_0_downloads_alone_before_the_others_read(tmp_path):
    children = start_ranks(3, workers.first_rank_writes_first, tmp_path / "order")
    assert finish(*children) == [0, 0, 0]
    assert (tmp_path / "order").read_text() in ("012", "021")


# ------------------------------------------------------------------------- run folders


def test_what_stops_a_run_is_one_line_and_keeps_the_state(images, tmp_path, monkeypatch):
    run = dataclasses.replace(TINY, steps=8, eval_every=4)
    train_here(run, tmp_path, images)
    checkpoint = tmp_path / run.name / "checkpoint.pt"
    good = checkpoint.read_bytes()
    longer = dataclasses.replace(run, steps=12)
    os.rename(tmp_path / run.name, tmp_path / longer.name)
    with pytest.raises(InputError, match="another steps;"):
        train_here(longer, tmp_path, images)
    os.rename(tmp_path / longer.name, tmp_path / run.name)

    def full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"No space left.*previous state is untouched"):
        save_atomically(checkpoint, {})
    assert checkpoint.read_bytes() == good and not list((tmp_path / run.name).glob(".*.pt.*"))
    for damaged in ('{"model": "vgg', "[]", "3"):
        (tmp_path / run.name / "settings.json").write_text(damaged)
        with pytest.raises(InputError, match=r"settings\.json is damaged .*move .* away"):
            train_here(run, tmp_path, images)
    with pytest.raises(InputError, match="larger than"):
        train_here(dataclasses.replace(TINY, batch_size=8192), tmp_path, images)
    for shape in ((3, 72, 72), (4, 32, 32)):
        with pytest.raises(InputError, match="grey or RGB and at most 64 x 64"):
            big = torch.zeros(2, *shape, dtype=torch.uint8)
            Images(Dataset(big, torch.arange(2), big, torch.arange(2)), "mine", CPU)


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """The folder of a run of two steps."""
    run = dataclasses.replace(TINY, steps=2, eval_every=2)
    runs = tmp_path_factory.mktemp("finished")
    train_here(run, runs, images)
    return runs / run.name


@pytest.mark.parametrize("kind", damage.CHECKPOINTS)
def test_a_foreign_or_damaged_checkpoint_is_one_line_that_names_it(images, finished, tmp_path, kind):
    run = dataclasses.replace(TINY, steps=2, eval_every=2)
    shutil.copytree(finished, tmp_path / run.name)
    checkpoint = tmp_path / run.name / "checkpoint.pt"
    damage.CHECKPOINTS[kind](checkpoint, random.Random(0))
    damaged = checkpoint.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt .*move .* away") as caught:
        train_here(run, tmp_path, images)
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)
    assert checkpoint.read_bytes() == damaged


def test_any_edit_of_a_runs_text_files_is_refused_by_name_or_harmless(images, finished, tmp_path):
    run = dataclasses.replace(TINY, steps=2, eval_every=2)
    record = train_here(run, finished.parent, images)
    refused = 0
    for number in range(60):
        chance = random.Random(number)
        shutil.rmtree(tmp_path / run.name, ignore_errors=True)
        shutil.copytree(finished, tmp_path / run.name)
        file = chance.choice(["settings.json", "settings.json", "log.jsonl"])
        edit = damage.edit_text(tmp_path / run.name / file, chance)
        try:
            assert train_here(run, tmp_path, images)["log"] == record["log"], (file, edit)
        except InputError as error:
            refused += 1
            assert run.name in str(error) and "\n" not in str(error), (file, edit)
    assert 10 < refused < 60


def test_what_keeps_a_file_from_being_written_is_one_line(images, tmp_path):
    run = dataclasses.replace(TINY, steps=2, eval_every=2)
    for name in ("settings.json", "log.jsonl", "checkpoint.pt"):
        folder = tmp_path / name
        (folder / run.name / name).mkdir(parents=True)  # a folder in its place
        with pytest.raises(InputError, match=rf"{name[:-2]}.*(can't|damaged)|can't write .*{name}"):
            train_here(run, folder, images)
    with pytest.raises(InputError, match=r"can't write .*log\.jsonl"):
        RunFolder(tmp_path / "nowhere").append_to_log({})


def test_memory_that_is_missing_is_one_line(images, tmp_path, monkeypatch):
    def too_large(classes, width):
        return nn.Linear(2**25, 2**25)  # 4 million gigabytes

    monkeypatch.setitem(core.MODELS, "too_large", too_large)
    with pytest.raises(InputError, match=r"out of memory; too_large_.* needs a lower --batch-size or --width"):
        train_here(dataclasses.replace(TINY, model="too_large"), tmp_path, images)


def test_all_batch_sizes_of_a_sweep_are_checked_before_the_first_run(tmp_path):
    runs = [TINY, dataclasses.replace(TINY, batch_size=5000)]
    with pytest.raises(InputError, match="batch size 5000 is larger than the 512 training images"):
        core.sweep(runs, few_images(), tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_executes_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"model": Payload()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="can't be read"):
        load_state(tmp_path / "checkpoint.pt", CPU)
    assert not (tmp_path / "executed").exists()


def test_settings_keep_the_precision_and_the_data(images, tmp_path, monkeypatch, capsys):
    run = dataclasses.replace(TINY, steps=2, eval_every=2, precision="auto")
    monkeypatch.setattr("lib.precision.fast_bfloat16", lambda device: True)
    train_here(run, tmp_path, images)
    folder = RunFolder(tmp_path / run.name)
    assert folder.read_settings()["resolved_precision"] == "bfloat16"
    monkeypatch.setattr("lib.precision.fast_bfloat16", lambda device: False)
    monkeypatch.setattr("core.fast_bfloat16", lambda device: False)
    assert core.settings_of(run, folder, images, CPU, True)["resolved_precision"] == "bfloat16"
    assert "this machine is slow at it" in capsys.readouterr().out
    other = copy.copy(images)
    other.content_hash = "other"
    with pytest.raises(InputError, match="another data_hash"):
        train_here(run, tmp_path, other)


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    """Made by the code of November 2026 and stopped at step 6 of 8; its settings lack what came later."""
    (old,) = (ROOT / "tests" / "old_run").iterdir()
    folder = tmp_path / old.name
    shutil.copytree(old, folder)
    run = Run(dataset="synthetic", width=2, batch_size=16, steps=8, warmup_steps=2, eval_every=4, milestones=(4,),
              precision="float32")  # fmt: skip
    assert run.name == old.name
    before = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    data = Images(core.load_dataset("synthetic"), "synthetic", CPU)
    record = train_here(run, tmp_path, data)
    assert [line["step"] for line in record["log"]] == [4, 8] and record["log"][0] == before
    assert RunFolder(folder).read_settings()["data_hash"] == data.content_hash


def test_a_folder_in_use_is_refused(images, tmp_path):
    run = dataclasses.replace(TINY, steps=2, eval_every=2)
    with (
        RunFolder(tmp_path / run.name).locked(True),
        pytest.raises(InputError, match=rf"is in use by process {os.getpid()}"),
    ):
        train_here(run, tmp_path, images)
    train_here(run, tmp_path, images)  # the lock went with its holder


def test_names_of_runs_are_pinned():
    """They name folders: who trained with an earlier version must find the runs again."""
    pinned = (ROOT / "tests" / "run_names.txt").read_text().split()
    names = []
    for script in (vgg_cifar10, resnet_cifar100):
        for experiment in script.EXPERIMENTS.values():
            runs = sweeps.plan_runs(experiment, {}, None, 0)
            names += [runs[0].name, runs[-1].name]
            if experiment.after_drop:
                for branches in sweeps.branches_of(runs[:1], experiment.after_drop).values():
                    names += [branch.run.name for branch in branches]
        rates = script.EXPERIMENTS["lr"]
        narrow = sweeps.plan_runs(rates, {"width": 8, "steps": 20_000, "batch_size": [128]}, 2, 0)
        names += [run.name for run in sweeps.controls_of(narrow)[-2:]]
    small = Run(model="plain-resnet18", learning_rate=0.002, steps=19_500, warmup_steps=0, eval_every=390,
                normalize=False)  # fmt: skip
    names.append(small.name)
    names.append(
        dataclasses.replace(small, learning_rate=0.05, decay_steps=(1950, 17550), decay_factors=(0.02, 0.1)).name
    )
    names.append(Run(learning_rate=1 / 30, label_noise=0.25, precision="float32", growth=1.05, decay_steps=(4, 6),
                     decay_factors=(0.1, 0.1)).name)  # fmt: skip
    assert names == pinned


def test_narrow_strided_convolutions_of_large_images_are_not_channels_last():
    narrow, wide = core.resnet18(10, 8), core.resnet18(10, 16)
    assert memory_format(narrow, CPU, 32) == memory_format(wide, CPU, 64) == torch.channels_last
    assert memory_format(narrow, CPU, 64) == torch.contiguous_format


def test_a_network_says_which_images_it_takes(tmp_path):
    run = dataclasses.replace(VGG, steps=2)
    large = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    labels = torch.arange(64) % 2
    data = Images(Dataset(large, labels, large, labels), "mine", CPU)
    with pytest.raises(InputError, match="vgg16 takes images of at most 32 x 32 pixels, not 64 x 64"):
        train_here(run, tmp_path, data)
    with pytest.raises(InputError, match="no network 'lenet'; there are vgg16"):
        train_here(dataclasses.replace(run, model="lenet"), tmp_path, data)


# ------------------------------------------------------------------------------- sweeps


def plan(script, name, given=None, seeds=None, first_seed=0):
    experiment = script.EXPERIMENTS[name]
    given = given or {}
    if "steps" in given:
        experiment = sweeps.shortened(experiment, given["steps"])
    return sweeps.plan_runs(experiment, given, seeds, first_seed)


def test_plans_are_the_papers_and_options_win():
    rates = plan(vgg_cifar10, "lr")
    assert sorted({run.learning_rate for run in rates}) == [0.01, 0.02, 0.05, 0.1] and len(rates) == 16
    assert {(run.width, run.batch_size, run.steps, run.momentum, run.weight_decay) for run in rates} == {
        (64, 256, 100_000, 0.9, 5e-4)
    }
    assert {run.steps for run in plan(vgg_cifar10, "noise")} == {1_000_000}
    everything = [
        run for script in (vgg_cifar10, resnet_cifar100) for name in script.EXPERIMENTS for run in plan(script, name)
    ]
    assert len({run.name for run in everything}) == len(set(everything)) >= 120  # a folder for each
    assert max(len(run.name) for run in everything) < 160
    mine = plan(vgg_cifar10, "drop", {"steps": 4000, "width": 8, "learning_rate": [0.2]}, 1)
    assert [run.milestones for run in mine] == [(1000, 2000, 4000)] and mine[0].learning_rate == 0.2
    assert sweeps.shortened(vgg_cifar10.DROP, 4000).after_drop["steps"] == 500
    assert sweeps.shortened(vgg_cifar10.DROP, 3).run.milestones == (1, 3)  # each once
    assert [run.batch_size for run in plan(vgg_cifar10, "batch", {"batch_size": [7]}, 2)] == [7, 7]
    with pytest.raises(InputError, match="--label-noise takes one value where learning_rate is varied"):
        plan(vgg_cifar10, "lr", {"label_noise": [0.1, 0.2]})
    with pytest.raises(InputError, match="--seeds 0"):
        plan(vgg_cifar10, "lr", {}, 0)
    with pytest.raises(TypeError, match="label_nois"):
        dataclasses.replace(vgg_cifar10.LEARNING_RATE.run, label_nois=0.6)


IMPOSSIBLE = [
    ("label_noise", 1.5), ("label_noise", math.nan), ("width", 3), ("width", 0), ("steps", 0), ("learning_rate", -0.1),
    ("learning_rate", math.inf), ("momentum", -1.0), ("momentum", math.nan), ("momentum", 1.0), ("weight_decay", -1e-4),
    ("batch_size", 0), ("batch_size", 2.5), ("eval_every", 0), ("seed", -1), ("precision", "float16"),
    ("optimizer", "lion"), ("milestones", (0,)), ("decay_factors", (0.1,)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        Run(**{field: value})


def test_controls_have_the_decay_that_was_given_and_repeat_no_run():
    runs = [dataclasses.replace(TINY, learning_rate=rate, weight_decay=1e-3) for rate in (0.02, 0.1)]
    controls = sweeps.controls_of(runs)
    assert [(run.learning_rate, run.weight_decay) for run in controls] == [(0.02, 0.0), (0.1, 0.0), (0.02, 0.005)]
    assert sweeps.controls_of(runs[:1]) == controls[:1]  # one rate has no stronger pull
    assert sweeps.controls_of([dataclasses.replace(TINY, weight_decay=0.0)]) == []


def test_results_are_named_by_what_is_not_the_papers():
    paper = vgg_cifar10.LEARNING_RATE.run
    narrow = dataclasses.replace(paper, width=16, dataset="fashion_mnist")
    assert sweeps.result_name("vgg", "lr", paper, paper, False) == "vgg_lr"
    assert sweeps.result_name("vgg", "lr", narrow, paper, False) == "vgg_lr_fashion_mnist_width16"
    assert sweeps.result_name("vgg", "lr", narrow, paper, True) == "vgg_lr"


def test_teams_that_cannot_share_a_batch_are_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    """24 ranks: 16 runs make teams of 1 and 2, but the 8 runs of `drop`, teams of 3."""
    monkeypatch.setenv("WORLD_SIZE", "24")
    options = ["--dataset", "synthetic", "--device", "cpu", "--out", str(tmp_path), "--runs", str(tmp_path)]
    monkeypatch.setattr(sweeps, "sweep", None)
    with pytest.raises(SystemExit) as caught:
        sweeps.run_sweeps("doc", "vgg", vgg_cifar10.EXPERIMENTS, {}, ["lr", "drop", *options])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "not divisible by a team of 3" in said and "--nproc_per_node=16" in said


def test_the_quick_sweep_its_controls_and_its_branches(tmp_path, monkeypatch, run_here):
    """The deep scripts as a user starts them, with fewer images."""
    monkeypatch.setattr(sweeps, "load_dataset", lambda *which: few_images())
    options = ["--quick", "--out", tmp_path / "results", "--runs", tmp_path / "runs"]
    few = ["resnet_cifar100.py", "lr", *options, "--controls", "--learning-rate", "0.02", "0.1", "--steps", "4"]
    code, shown, said = run_here(*few)
    assert code == 0, said
    saved = json.loads((tmp_path / "results" / "quick" / "resnet_lr.json").read_text())
    controls = json.loads((tmp_path / "results" / "quick" / "resnet_lr_controls.json").read_text())
    assert [entry["run"]["learning_rate"] for entry in saved["maps"]] == [0.02, 0.1]
    assert len(saved["runs"]) == 2 and len(controls["runs"]) == 3 and saved["data_source"] == "generated"
    assert {run["run"]["weight_decay"] for run in controls["runs"]} == {0.0, 5e-4 * 0.1 / 0.02}
    assert "independent" in shown and max(map(len, shown.splitlines())) <= 160
    code, _, said = run_here("vgg_cifar10.py", "drop", *options, "--steps", "8")
    assert code == 0, said
    saved = json.loads((tmp_path / "results" / "quick" / "vgg_drop.json").read_text())
    assert [branch["run"]["start"].split("_")[-1] for branch in saved["branches"]] == ["2.pt", "4.pt", "8.pt"]
    assert all(branch["log"] for branch in saved["branches"])


def test_a_sweep_in_which_all_diverge_is_finished(tmp_path, monkeypatch, run_here):
    """A job that asks --status whether to go back into the queue comes to an end."""
    monkeypatch.setattr(sweeps, "load_dataset", lambda *which: few_images())
    options = ["--quick", "--out", tmp_path / "results", "--runs", tmp_path / "runs"]
    drop = ["vgg_cifar10.py", "drop", *options, "--learning-rate", "1e4", "--steps", "8"]
    assert run_here(*drop, "--status")[:2] == (3, "drop: 0 of 4 runs finished\n")
    assert run_here(*drop)[0] == 0
    assert run_here(*drop, "--status")[:2] == (0, "drop: 1 of 1 runs finished\n")


def test_a_part_of_a_sweep_does_not_replace_the_whole_unseen(tmp_path, monkeypatch, run_here):
    monkeypatch.setattr(sweeps, "load_dataset", lambda *which: few_images())
    few = ["--dataset", "synthetic", "--width", "2", "--batch-size", "16", "--steps", "2", "--seeds", "1"]
    few += ["--learning-rate", "0.02", "--out", tmp_path / "results"]
    assert run_here("vgg_cifar10.py", "lr", *few, "--runs", tmp_path / "runs")[0] == 0
    saved = tmp_path / "results" / "vgg_lr_synthetic_width2.json"
    whole = saved.read_text()
    code, shown, _ = run_here("vgg_cifar10.py", "lr", *few, "--runs", tmp_path / "others", "--stop-at", "1")
    assert code == 0 and "is of other settings: kept as" in shown
    assert [kept.read_text() for kept in (tmp_path / "results" / "replaced").iterdir()] == [whole]
    assert json.loads(saved.read_text())["stopped_at"] == 1


def test_a_warm_up_that_outlasts_a_shortened_run_is_said(capsys):
    options = SimpleNamespace(stop_at=None, controls=False, seeds=1, seed=0)
    for steps, notes in ((40_000, 0), (4000, 2)):
        sweeps.tell_long_warmups(sweeps.make_plan(resnet_cifar100.DROP, {"steps": steps}, options), quick=False)
        assert capsys.readouterr().out.count("note: ") == notes


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in Linux's /proc")
def test_torchrun_runs_a_sweep_and_survives_the_death_of_a_rank(tmp_path, run_here):
    """SIGKILL one of two processes that share a run: torchrun starts both again, and the end is the same to the bit."""
    quick = sweeps.quick_version(vgg_cifar10.LEARNING_RATE, vgg_cifar10.QUICK)
    run = dataclasses.replace(quick.run, steps=16, eval_every=2, learning_rate=0.02)
    options = ["--quick", "--seeds", "1", "--learning-rate", "0.02", "--steps", "16", "--eval-every", "2"]
    options += ["--out", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    assert run_here("vgg_cifar10.py", "lr", *options, "--status")[0] == 3
    printed = tmp_path / "printed"
    words = ["--nproc_per_node=2", "--max-restarts=3", str(ROOT / "vgg_cifar10.py"), "lr", *options]
    running = start(workers.torchrun, words, printed)
    log = tmp_path / "runs" / "quick" / "vgg_cifar10" / run.name / "log.jsonl"
    try:
        deadline = time.monotonic() + PATIENCE
        while not (log.exists() and len(log.read_text().splitlines()) >= 2):
            assert running.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        ranks = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        assert finish(running) == [0]
    finally:
        running.terminate()
    assert run_here("vgg_cifar10.py", "lr", *options, "--status")[0] == 0
    shown = printed.read_text()
    assert "independent" in shown and shown.count("draw it: ") == 1  # rank 0 speaks for all
    saved = json.loads((tmp_path / "results" / "quick" / "vgg_lr.json").read_text())
    assert [line["step"] for line in saved["runs"][0]["log"]] == list(range(2, 17, 2))
    sweep_on(2, [run], tmp_path / "whole", core.load_dataset("synthetic"))
    whole, restarted = (
        load_state(p / run.name / "weights_16.pt", CPU) for p in (tmp_path / "whole", log.parent.parent)
    )
    assert all(torch.equal(whole[name], restarted[name]) for name in whole)
