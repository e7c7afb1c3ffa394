"""The experiments behind subnetworks.py run as a whole, in small, and measure what they say."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import subnetworks
from collapse import collapse_exponent, nearest_pairs, neuron_groups
from core import Run, epoch_of, train
from experiments import causes as causes_module
from experiments import extraction as extraction_module
from experiments import trained
from experiments.causes import causes
from experiments.closed_forms import closed_forms
from experiments.extraction import accuracy_with_random_removed, plant_collapse
from experiments.forecasts import exponent, vanishing
from experiments.switches import OTHER_DRAWS, switch
from experiments.trained import sgd_of, step_batches, trained_network
from experiments.windows import windows
from lib.batches import Images
from lib.data import synthetic_dataset
from lib.errors import InputError
from lib.results import write_json
from lib.run_folder import load_state

TINY = {"dataset": "synthetic", "width": 4, "batch_size": 32, "steps": 8, "warmup_steps": 2, "eval_every": 8}


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def test_closed_forms():
    """Quartic well and single neuron: E log|1 + a dt + b dB| to 2 %; the pair on its own noise to 5 %."""
    rows = closed_forms(60, 80, 0)
    assert [row["case"] for row in rows] == 3 * ["quartic"] + 3 * ["neuron"] + 4 * ["pair"]
    for row in rows:
        expected = float(row["expected"])
        found = float(row["exponent"])
        if row["case"] == "pair":
            assert found == pytest.approx(expected, rel=0.05, abs=2e-6)
        else:
            assert found == pytest.approx(expected, rel=0.02, abs=0.05)


def train_small(run, folder, until=None):
    device = torch.device("cpu")
    train(run, trained.load_images(run, None, device), folder / run.name, device, title=None, until=until)


@pytest.fixture
def little_data(monkeypatch):
    dataset = synthetic_dataset(256, 64)
    monkeypatch.setattr(trained, "load_dataset", lambda *which: dataset)


def test_extraction_of_trained_networks_runs_and_is_written(little_data, tmp_path):
    found = subnetworks.extract(network=TINY, redundant=(0.5, 1.9), finetune=2, planted=("MLP",))
    write_json(tmp_path / "extract.json", found)
    assert found["planted"][0]["removed"] == found["planted"][0]["planted"] == 64
    assert found["planted"][0]["change"] < 1e-5 * found["planted"][0]["scale"]
    assert [row["redundant"] for row in found["networks"]] == [0.5, 1.9]
    small = found["networks"][1]
    assert small["after"]["parameters"] < small["before"]["parameters"] and small["after"]["change"] > 0
    assert small["after"]["flops"] < small["before"]["flops"] and 0 <= small["after"]["tuned"] <= 1
    assert sum(group["merged"] for group in small["after"]["groups"]) > 0
    assert "random" not in small  # only at the paper's threshold


def test_a_run_of_another_optimizer_is_extracted_and_not_tuned(little_data, tmp_path):
    for optimizer in ("sgd", "adamw"):
        train_small(Run(**TINY, optimizer=optimizer, learning_rate=0.001), tmp_path)
    rows = subnetworks.extract(runs=(str(tmp_path),), redundant=(0.5,), finetune=2, planted=())["networks"]
    assert ["optimizer=adamw" in row["name"] for row in rows] == [False, True]
    assert rows[0]["after"]["tuned"] is not None
    assert rows[1]["before"]["tuned"] is rows[1]["after"]["tuned"] is None and "accuracy" in rows[1]["after"]


def test_a_run_that_has_not_ended_is_taken_where_it_is(little_data, tmp_path):
    run = Run(**TINY, milestones=(4,))
    train_small(run, tmp_path, until=5)
    weights = {}
    for step in (None, 4):
        found, model = trained_network(tmp_path / run.name, step, "cpu")
        assert found == run
        weights[step] = model.state_dict()
    checkpoint = load_state(tmp_path / run.name / "checkpoint.pt", torch.device("cpu"))
    assert checkpoint["step"] == 5
    for name, weight in checkpoint["model"].items():
        assert torch.equal(weights[None][name], weight)
    assert not torch.equal(weights[None]["classifier.4.bias"], weights[4]["classifier.4.bias"])
    with pytest.raises(InputError, match="no run directory with weights of that step"):
        trained_network(tmp_path / run.name, 8, "cpu")


def test_as_many_random_neurons_are_removed_as_extraction_removes(monkeypatch):
    """Of each group: none, some, all; with all of a layer gone the network says the same of every image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.GELU(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 10))
    images = Images(synthetic_dataset(16, 40), "synthetic", torch.device("cpu"))
    seen = []

    def look(smaller, _):
        seen.append([int((smaller[k].weight == 0).all(1).sum()) for k in (1, 3)])
        return 0.5

    before = [parameter.clone() for parameter in model.parameters()]
    monkeypatch.setattr(extraction_module, "accuracy", look)
    extraction = [{"name": "1", "width": 8, "kept": 5}, {"name": "3", "width": 6, "kept": 6}]
    found = accuracy_with_random_removed(model, images, extraction, 0)
    assert seen == 5 * [[3, 0]] and found == {"accuracy": 0.5, "draws": 5 * [0.5]}
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    monkeypatch.undo()
    nothing = [{"name": "1", "width": 8, "kept": 0}, {"name": "3", "width": 6, "kept": 6}]
    assert accuracy_with_random_removed(model, images, nothing, 0)["accuracy"] == pytest.approx(0.1)


def test_exponents_of_pairs_run_and_are_written(little_data, tmp_path):
    settings = {"network": TINY | {"milestones": (4, 8)}, "early": 4, "window": 5, "pairs": 10, "layers": 2}
    settings |= {"seeds": 1, "steps": 10, "pair_steps": 10}
    found = exponent(**settings, folder=str(tmp_path / "runs"))
    write_json(tmp_path / "exponent.json", found)
    run = json.loads((tmp_path / "exponent.json").read_text())["runs"][0]
    assert run["steps"] == [4, 8] and len(run["distance"][0]) == len(run["predicted"]) == len(run["next"]) == 20
    assert all(math.isfinite(value) for value in run["same"])
    assert found["cost"]["pairs"] == 10


def test_forecasts_of_who_vanishes_measure_the_neurons_own_sizes(little_data, tmp_path):
    settings = {"network": TINY | {"milestones": (4, 8), "label_noise": 0.5}, "early": 4, "window": 5, "seeds": 1}
    found = vanishing(**settings, layers=2, folder=str(tmp_path / "runs"))["runs"][0]
    run = Run(**settings["network"], seed=0)
    for step, row in zip((4, 8), found["distance"], strict=True):
        model = trained_network(tmp_path / "runs" / run.name, step, "cpu")[1]
        groups = neuron_groups(model, torch.zeros(1, 3, 32, 32))[-2:]
        norms = [group.vectors().norm(dim=1) for group in groups]
        expected = torch.cat([norm.square() / norm.max() ** 2 for norm in norms])
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
    assert found["predicted"].shape == found["same"].shape == (64,)
    assert found["predicted"].isfinite().all()


MLP = TINY | {"model": "mlp", "width": 2, "precision": "float32", "label_noise": 0.5, "milestones": (4, 8)}


def test_a_short_window_is_the_start_of_a_long_one(little_data, tmp_path):
    """All windows from one pass, each what `vanishing` measures over a window of that length."""
    folder = str(tmp_path / "runs")
    rows = windows(MLP, early=4, lengths=(5, 10), seeds=1, folder=folder)["rows"]
    assert [row["window"] for row in rows] == [5, 10]
    for row in rows:
        (one,) = row["runs"]
        (whole,) = vanishing(MLP, early=4, window=row["window"], seeds=1, folder=folder)["runs"]
        assert one["groups"] == whole["groups"] and one["steps"] == whole["steps"] == [4, 8]
        for key in ("predicted", "same", "distance", "index"):
            torch.testing.assert_close(one[key], whole[key])


def test_a_switch_is_told_at_the_new_setting_and_then_made(little_data, tmp_path):
    """Exponents, and slopes of the log sizes of neurons, against both done by hand."""
    found = switch(MLP, {"batch_size": (8,)}, early=4, window=5, ahead=3, seeds=1, folder=str(tmp_path))
    (row,), (going_on,) = found["rows"], found["unchanged"]
    assert (row["changed"], row["value"], row["seed"]) == ("batch_size", 8, 0)
    assert torch.equal(row["before"], going_on["before"]) and not torch.equal(row["after"], going_on["after"])

    run = Run(**MLP, seed=0)
    model = trained_network(tmp_path / run.name, 4, "cpu")[1]
    images = Images(trained.load_dataset(), run.dataset, torch.device("cpu"))
    groups = neuron_groups(model, images.normalized(images.test[:2]))

    def steps_of_sgd(settings, first):
        """Log sizes before each of five steps, and after the last."""
        sgd = sgd_of(model, settings)
        sizes = []
        for x, labels in step_batches(images, settings, first, first + 5):
            sizes.append(torch.cat([group.vectors().norm(dim=1).log() for group in groups]))
            sgd.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            sgd.step()
        return [*sizes, torch.cat([group.vectors().norm(dim=1).log() for group in groups])]

    sizes = steps_of_sgd(run, 4)
    torch.testing.assert_close(row["before"], 1000 * (sizes[5] - sizes[1]) / 4, rtol=1e-4, atol=1e-3)
    switched = dataclasses.replace(run, batch_size=8)
    others = step_batches(images, dataclasses.replace(switched, seed=OTHER_DRAWS), 9, 12)
    sets = {group.name: torch.arange(group.size) for group in groups}
    told = collapse_exponent(model, sets, others, sgd_of(model, switched), frozen=True)["growth"].mean(0)
    torch.testing.assert_close(row["predicted"], 1000 * told, rtol=1e-4, atol=1e-3)
    sizes = steps_of_sgd(switched, 9)
    torch.testing.assert_close(row["after"], 1000 * (sizes[5] - sizes[1]) / 4, rtol=1e-4, atol=1e-3)


def test_settings_that_cannot_be_switched_are_refused_by_name():
    for changes, words in (({"seed": (1,)}, "'seed' can't be switched"), ({}, "nothing is switched")):
        with pytest.raises(InputError, match=words):
            switch(MLP, changes, early=4)
    with pytest.raises(InputError, match="milestones"):
        switch(MLP, early=5)


def test_without_noise_every_step_takes_the_whole_training_set(tmp_path, monkeypatch):
    """Rows of batch size x decay; the full batch against one repeated by hand; what is finished isn't run again."""
    dataset = synthetic_dataset(60, 10)
    monkeypatch.setattr(trained, "load_dataset", lambda *which: dataset)
    settings = {"network": TINY | {"milestones": (4, 8)}, "early": 4, "pairs": 5, "folder": str(tmp_path)}
    settings |= {"batch_sizes": (20, 50_000), "replicas": (2, 1), "steps": 6, "chunk": 25}
    rows = causes(**settings)["rows"]
    cases = [(row["batch_size"], row["weight_decay"], row["replicas"]) for row in rows]
    assert cases == [(20, 0.0, 2), (20, 5e-4, 2), (60, 0.0, 1), (60, 5e-4, 1)]
    assert rows[0]["exponent"][0] != rows[0]["exponent"][1]
    assert rows[0]["decay"] == [0, 0] and rows[1]["decay"][0] < 0

    run = Run(**settings["network"], seed=0)
    model = trained_network(tmp_path / run.name, 4, "cpu")[1]
    images = Images(dataset, run.dataset, torch.device("cpu"))
    whole = epoch_of(dataclasses.replace(run, batch_size=60), images, 0)
    batch = images.normalized(images.batch(whole.crops)), whole.labels
    assert sorted(whole.labels.tolist()) == sorted(dataset.train_labels.tolist())
    groups = neuron_groups(model, batch[0][:2])[-2:]
    sets = {group.name: nearest_pairs(group, 5) for group in groups}
    sgd = torch.optim.SGD(model.parameters(), run.learning_rate, run.momentum, weight_decay=5e-4)
    found = 1000 * collapse_exponent(model, sets, [batch] * 6, sgd)["exponent"]
    torch.testing.assert_close(torch.tensor(rows[3]["by_pair"]).double(), found, rtol=1e-3, atol=2e-3)
    assert rows[3]["exponent"][0] == pytest.approx(found.mean().item(), abs=2e-3)
    monkeypatch.setattr(causes_module, "collapse_exponent", None)
    assert causes(**settings)["rows"] == rows


def test_planting_in_groups_of_less_than_four_neurons_plants_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    assert plant_collapse(model, torch.zeros(1, 2)) == 0


def test_another_optimizer_than_sgd_is_refused_by_name():
    with pytest.raises(InputError, match="trained by adamw"):
        sgd_of(nn.Linear(2, 2), Run(optimizer="adamw"))
