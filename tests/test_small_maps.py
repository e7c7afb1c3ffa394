"""Convolutions as products of matrices are convolutions."""

import pytest
import torch
from torch.nn import functional as F

from lib import small_maps
from lib.precision import autocast
from lib.small_maps import SmallMaps

CPU = torch.device("cpu")


@pytest.fixture
def taken(monkeypatch):
    """Grows by one with each convolution that is computed as a product of matrices."""
    calls = []
    apply = small_maps.SmallMapConvolution.apply
    monkeypatch.setattr(small_maps.SmallMapConvolution, "apply", lambda *given: calls.append(1) or apply(*given))
    return calls


def results(images, weight, bias, **settings):
    """A convolution's output, and the gradients of a function of it."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (images, weight, bias) if tensor is not None]
    output = F.conv2d(*leaves, **settings)
    return output, *torch.autograd.grad(output.tanh().sum(), leaves)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (3, 2)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_they_equal_torchs_own(taken, size, layout, has_bias):
    images = torch.randn(5, 3, *size, dtype=torch.float64).to(memory_format=layout)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64).to(memory_format=layout)
    bias = torch.randn(4, dtype=torch.float64) if has_bias else None
    expected = results(images, weight, bias, padding=1)
    with SmallMaps():
        found = results(images, weight, bias, padding=1)
    assert len(taken) == 1
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("expected", "size", "kernel", "settings"),
    [
        (True, 4, 3, {"padding": 1}),
        (True, 4, 3, {"padding": (1, 1), "stride": (1, 1)}),
        (False, 5, 3, {"padding": 1}),
        (False, 4, 1, {}),
        (False, 4, 3, {}),
        (False, 4, 3, {"padding": "same"}),
        (False, 4, 3, {"padding": 1, "stride": 2}),
        (False, 4, 3, {"padding": 1, "dilation": 2}),
        (False, 4, 3, {"padding": 1, "groups": 3}),
    ],
    ids=str,
)
def test_only_small_plain_ones_are_taken(taken, expected, size, kernel, settings):
    weight = torch.randn(6, 3 // settings.get("groups", 1), kernel, kernel)
    with SmallMaps():
        F.conv2d(torch.randn(2, 3, size, size), weight, **settings)
    assert bool(taken) == expected


def test_in_bfloat16_they_are_as_near_to_the_truth_as_torchs_own(taken):
    """Both round to 8 bits; the products of matrices no worse."""
    images, weight, bias = torch.randn(32, 16, 2, 2), torch.randn(24, 16, 3, 3), torch.randn(24)
    truth = results(images.double(), weight.double(), bias.double(), padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        by_torch = results(images, weight, bias, padding=1)
    with autocast(CPU, "bfloat16"):
        found = results(images, weight, bias, padding=1)
    assert len(taken) == 1
    for one, other, exact in zip(found, by_torch, truth, strict=True):
        assert one.dtype == other.dtype
        assert (one.double() - exact).norm() < 1.2 * (other.double() - exact).norm() + 1e-3 * exact.norm()
