"""Core alone: the paper's networks, the settings of a training, what core re-exports."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import collapse
import core
from lib.errors import InputError
from tests.conftest import limit_of_time, one_thread, same_random_numbers  # noqa: F401  (fixtures of all tests)


def test_networks_are_the_papers():
    vgg, resnet = core.vgg16(), core.resnet18()
    assert sum(p.numel() for p in vgg.parameters()) == 15_245_130
    assert sum(p.numel() for p in resnet.parameters()) == 11_220_132
    for model, classes in ((vgg, 10), (resnet, 100)):
        kinds = {type(module) for module in model.modules()}
        assert nn.GELU in kinds and nn.ReLU not in kinds and nn.Dropout not in kinds
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, classes)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in vgg.modules())
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
            assert not module.bias.any()
    assert resnet.conv1.stride == (1, 1) and resnet.conv1.kernel_size == (3, 3)


def test_width_scales_every_layer():
    for make in (core.vgg16, core.resnet18):
        wide = {name: p.shape for name, p in make(10, 64).named_parameters()}
        narrow = {name: p.shape for name, p in make(10, 8).named_parameters()}
        assert wide.keys() == narrow.keys()
        for name, shape in narrow.items():
            for a, b in zip(shape, wide[name], strict=True):
                assert a == b or 8 * a == b


def test_networks_are_looked_up_in_one_table():
    import experiments.plain_networks  # noqa: F401  (adds its own)

    for name in core.MODELS:
        width = 16 if "densenet" in name else 4
        assert core.build_model(name, 10, width)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert "plain-resnet18" in core.MODELS
    with pytest.raises(InputError, match="no network 'lenet'"):
        core.build_model("lenet", 10, 4)


def test_the_default_settings_are_the_papers():
    run = core.Run()
    assert (run.learning_rate, run.batch_size, run.momentum, run.weight_decay) == (0.1, 256, 0.9, 5e-4)
    assert (run.warmup_steps, run.width, run.optimizer, run.label_noise) == (1000, 64, "sgd", 0.0)


def test_the_learning_rate_warms_up_grows_and_decays():
    run = core.Run(learning_rate=0.2, warmup_steps=10, steps=1000)
    assert core.learning_rate_at(run, 0) == pytest.approx(0.02)
    assert core.learning_rate_at(run, 9) == core.learning_rate_at(run, 999) == 0.2
    run = dataclasses.replace(run, warmup_steps=0, growth=1.05, decay_steps=(300, 900), decay_factors=(0.1, 0.5))
    assert core.learning_rate_at(run, 200) == pytest.approx(0.2 * 1.05**20)
    assert core.learning_rate_at(run, 299) == pytest.approx(0.2 * 1.05**29.9)
    assert core.learning_rate_at(run, 300) == core.learning_rate_at(run, 899) == pytest.approx(0.02 * 1.05**30)
    assert core.learning_rate_at(run, 900) == pytest.approx(0.01 * 1.05**30)


@pytest.mark.parametrize("name", "collapse_report distance_maps effective_rank feature_sparsity independent_neurons "
                                 "neuron_groups normalized_distances".split())  # fmt: skip
def test_core_shows_the_collapse_metrics(name):
    assert getattr(core, name) is getattr(collapse, name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_training_runs_on_a_gpu(tmp_path):
    from lib.batches import Images

    device = torch.device("cuda")
    data = Images(core.load_dataset("synthetic"), "synthetic", device)
    run = core.Run(dataset="synthetic", width=8, batch_size=64, steps=20, eval_every=10, warmup_steps=0)
    record = core.train(run, data, tmp_path, device, title=None)
    assert len(record["log"]) == 2 and record["diverged_at"] is None
