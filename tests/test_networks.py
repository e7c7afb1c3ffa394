"""Networks of other packages are followed and extracted exactly: tested where they are installed, skipped elsewhere."""

import sys
import types

import pytest
import torch

from collapse import extract_subnetwork, neuron_groups
from experiments import networks

KINDS = {  # of groups beside "neuron"; Llama's rotary queries and keys are no neurons
    "GPT2LMHeadModel": {"query-key", "value"},
    "BertForSequenceClassification": {"query-key", "value"},
    "LlamaForCausalLM": {"value"},
    "ViTForImageClassification": {"query-key", "value"},
    "ResNetForImageClassification": set(),
}


def check_extraction(model, example):
    networks.as_after_training(model.eval())
    row = networks.ours(model, example)
    assert row["change"] < 1e-5
    assert row["parameters"][1] < row["parameters"][0]
    return row


@pytest.mark.parametrize("name", networks.TRANSFORMERS)
def test_networks_of_transformers_are_extracted_exactly(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, example = networks.transformers_network(name)
    kinds = {group.kind for group in neuron_groups(model.eval(), example)}
    assert kinds == KINDS[name] | {"neuron"}
    row = check_extraction(model, example)
    assert row["whole"] == (name != "LlamaForCausalLM")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "regnety_002"])
def test_networks_of_timm_are_extracted_exactly(name):
    """Three small ones; `benchmark.py networks` tries all 18."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model, example = networks.timm_network(name)
    row = check_extraction(model, example)
    assert row["whole"] and row["removed"] == row["planted"]


def test_torch_simplify_stands_beside_ours_where_it_is_installed(monkeypatch):
    """A stand-in that takes a neuron out as it should, one that breaks what it gets, and none."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    example = torch.randn(2, 4)
    networks.plant(neuron_groups(model, example))
    package = types.ModuleType("simplify")
    monkeypatch.setitem(sys.modules, "simplify", package)

    package.simplify = lambda given, x, fuse_bn: extract_subnetwork(given, x, 1e-6, 1e-6)
    row = networks.torch_simplifys(model, example, 60)
    assert row["removed"] and row["change"] < 1e-5 and row["failure"] is None

    package.simplify = lambda given, x, fuse_bn: given[0].weight.data.zero_() and None
    row = networks.torch_simplifys(model, example, 60)
    assert row["change"] is None and row["failure"] and model[0].weight.any()

    monkeypatch.setitem(sys.modules, "simplify", None)
    assert networks.torch_simplifys(model, example, 60) is None


def test_the_line_of_a_network_has_a_column_for_each_package_that_is_there():
    found = {"groups": 3, "covered": 1.0, "whole": True, "change": 1e-7, "seconds": 0.1, "parameters": [9, 8]}
    pruning = {"groups": 4, "change": 1e-7, "seconds": 0.2}
    simplified = {"change": 2e-7, "removed": True, "failure": None, "seconds": 0.3}
    row = {"name": "net", "ours": found, "torch_pruning": None, "torch_simplify": None}
    assert "simplify" not in networks.line_of(row) and networks.line_of(row).endswith("0.10")
    assert networks.line_of(row | {"torch_simplify": simplified}).endswith("torch-simplify:    2e-07    0.30")
    both = row | {"torch_pruning": pruning, "torch_simplify": simplified}
    assert "0.20 torch-simplify" in networks.line_of(both)
    words = networks.summary_of("timm", [both, both | {"torch_simplify": simplified | {"removed": False}}])
    assert words.endswith("torch-simplify: 2 run, 1 made smaller exactly")
