"""Collapse followed in a training loop, and its pictures."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from matplotlib import image
from torch import nn
from torch.nn import functional as F

from collapse import CollapseError, CollapseLog, collapse_report, plot_report
from collapse.plots import plot_history


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def network():
    first = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*first, nn.Linear(12 * 36, 20), nn.ReLU(), nn.Linear(20, 4))


def train(model, steps, log=None):
    """A training like any other; every fifth step one neuron of the last layer vanishes by hand."""
    torch.manual_seed(1)
    sgd = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(steps):
        x, labels = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
        sgd.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        sgd.step()
        if step % 5 == 4:
            for tensor in (model[4].weight.data, model[4].bias.data, model[6].weight.data.T):
                tensor[step // 5] = 0
        if log is not None and step % 5 == 4:
            log.record(step)


def test_a_log_counts_what_the_report_counts_and_leaves_the_training_alone():
    model = network()
    other = copy.deepcopy(model)
    log = CollapseLog(model, torch.zeros(1, 3, 8, 8))
    log.record(-1)
    train(model, 15, log)
    train(other, 15)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert model.training
    last = [row["vanishing"] for row in log.rows if row["name"] == "4"]
    assert [row["step"] for row in log.rows if row["name"] == "4"] == [-1, 4, 9, 14]
    assert last == [0, 1, 2, 3]
    report = collapse_report(model, torch.zeros(1, 3, 8, 8), rank=False)
    assert log.rows[-2:] == [{"step": 14, **row} for row in report]


def test_the_network_is_followed_once(monkeypatch):
    model = network()
    log = CollapseLog(model, torch.zeros(1, 3, 8, 8))
    monkeypatch.setattr(nn.Sequential, "forward", None)
    log.record(0)
    log.record(1)
    log.record(1)  # replaces
    assert [row["step"] for row in log.rows] == [0, 0, 1, 1]


def test_steps_are_plain_finite_numbers(tmp_path):
    log = CollapseLog(network(), torch.zeros(1, 3, 8, 8))
    for step in (np.int64(3), torch.tensor(1), np.float32(0.5), 2):
        log.record(step)
    log.record(torch.tensor([3]))  # replaces
    assert [row["step"] for row in log.rows[::2]] == [1, 0.5, 2, 3]
    assert all(type(row["step"]) in (int, float) for row in log.rows)
    log.save(tmp_path / "log.json")
    for step in ("4", None, math.nan, torch.arange(2), np.arange(2), True):
        with pytest.raises(CollapseError, match="a step must be a finite number") as caught:
            log.record(step)
        assert "\n" not in str(caught.value)
    assert len(log.rows) == 8


def test_a_saved_log_is_json_and_replaced_whole(tmp_path):
    model = network()
    log = CollapseLog(model, torch.zeros(1, 3, 8, 8), redundant=0.3)
    for step in (0, 1):
        log.record(step)
        log.save(tmp_path / "log.json")
    content = json.loads((tmp_path / "log.json").read_text())
    assert content == {"vanishing": 0.1, "redundant": 0.3, "rows": log.rows}
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]
    with pytest.raises(CollapseError, match="can't write"):
        log.save(tmp_path / "absent" / "log.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(CollapseError, match="can't write"):
        log.save(tmp_path / "folder.json")
    assert {path.name for path in tmp_path.iterdir()} == {"log.json", "folder.json"}


def ink(path):
    """[height, width] of darkness, 0 white to 1 black."""
    pixels = image.imread(path)[..., :3]
    assert np.abs(pixels - pixels.mean(-1, keepdims=True)).max() < 0.02  # it is grey
    return 1 - pixels.mean(-1)


def test_pictures_show_the_fractions(tmp_path):
    """Rows of a history darken where neurons are lost; 830 pixels wide."""
    names = ["first", "second", "third"]
    fractions = [[1.0, 1.0, 1.0], [1.0, 0.5, 0.0]]
    plot_history(names, [0, 100], fractions, tmp_path / "history.png", "step")
    dark = ink(tmp_path / "history.png")
    assert dark.shape[1] == 830
    column = dark[:, 560]  # in the second moment, left of the colour bar
    half = np.flatnonzero(np.abs(column - 0.5) < 0.02)
    full = np.flatnonzero(column > 0.98)
    assert len(half) > 10 and len(full) > 10
    assert half.mean() + 10 < full.mean()  # the second layer above the third


def test_reports_and_logs_are_drawn(tmp_path):
    model = network()
    model[0].weight.data[3:] = model[0].weight.data[:1]
    log = CollapseLog(model, torch.zeros(1, 3, 8, 8))
    log.record(0)
    log.plot(tmp_path / "one.png")
    log.record(10)
    log.plot(tmp_path / "log.png")
    log.plot(tmp_path / "log.pdf")
    report = collapse_report(model, torch.zeros(1, 3, 8, 8))
    plot_report(report, tmp_path / "report.png")
    many = [{**report[0], "name": f"a.long.name.of.a.layer.number.{k}"} for k in range(300)]
    plot_report(many, tmp_path / "many.png")
    for name in ("one", "log", "report", "many"):
        dark = ink(tmp_path / f"{name}.png")
        assert dark.shape[1] == 830 and dark.shape[0] <= 1100
        assert 0.01 < dark.mean() < 0.9
    with pytest.raises(CollapseError, match="can't write the picture"):
        plot_report(report, tmp_path / "report.nonsense")
    with pytest.raises(CollapseError, match="no rows"):
        plot_report([], tmp_path / "report.png")
    with pytest.raises(CollapseError, match="no moment"):
        CollapseLog(model, torch.zeros(1, 3, 8, 8)).plot(tmp_path / "empty.png")


def test_a_diverged_network_is_said():
    model = network()
    log = CollapseLog(model, torch.zeros(1, 3, 8, 8))
    model[4].weight.data[0, 0] = torch.nan
    with pytest.raises(CollapseError, match=r"4.weight.*diverged"):
        log.record(1)
    assert log.rows == []
