"""The experiments behind subnetworks.py run as a whole, in small, and measure what they say."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import subnetworks
from collapse import collapse_exponent, nearest_pairs, neuron_groups
from core import Run, epoch_of
from experiments import causes as causes_module
from experiments import trained
from experiments.causes import causes
from experiments.closed_forms import closed_forms
from experiments.extraction import plant_collapse
from experiments.forecasts import exponent, vanishing
from experiments.trained import sgd_of, trained_network
from lib.batches import Images
from lib.data import synthetic_dataset
from lib.errors import InputError
from lib.results import write_json

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
