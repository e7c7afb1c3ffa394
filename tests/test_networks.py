"""Networks of other packages are followed and extracted exactly: tested where they are installed, skipped elsewhere."""

import pytest
import torch

from collapse import neuron_groups
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
