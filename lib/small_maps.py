"""Convolutions of small maps on a CPU, as one product of two matrices.

The last layers of a network see maps of 4 x 4 and 2 x 2 pixels with many channels. For these torch's own bfloat16
convolutions can be several times slower than the same multiplications in one matrix product: on a CPU with AMX most
of a full-size training step went there. `benchmark.py training` measures what this saves.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LARGEST = 4  # pixels a side; larger maps are faster by torch's own convolution


class SmallMaps(TorchFunctionMode):
    """Within its block, 3 x 3 convolutions of small maps on a CPU are products of matrices, in bfloat16."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function is torch.conv2d:
            return convolution(*arguments, **keywords)
        return function(*arguments, **keywords)


def convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """torch.conv2d, with the names of its arguments, by whichever way is faster."""
    if is_small(input, weight, stride, padding, dilation, groups):
        return SmallMapConvolution.apply(input, weight, bias)
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def is_small(images: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> bool:
    """Whether this convolution is one that `SmallMapConvolution` computes, faster than torch's."""
    if images.ndim != 4 or images.device.type != "cpu" or max(images.shape[2:]) > LARGEST:
        return False
    is_plain = tuple(weight.shape[2:]) == (3, 3) and groups == 1
    return is_plain and all(same(setting, 1) for setting in (stride, padding, dilation))


def same(setting, number: int) -> bool:
    """Whether a setting of a convolution, given for both axes or each, is `number` for both."""
    return setting in (number, (number, number), [number, number])


class SmallMapConvolution(torch.autograd.Function):
    """[images, channels, height, width] * [outputs, channels, 3, 3] + [outputs], with a border of zeros, as conv2d."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(context, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen = neighborhoods(images)
        context.save_for_backward(seen, weight)
        context.shape = images.shape
        context.has_bias = bias is not None
        return as_images(F.linear(seen, as_matrix(weight), bias), images.shape)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(context, gradient: Tensor):
        seen, weight = context.saved_tensors
        outputs, channels = weight.shape[:2]
        flat = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
        of_images = None
        if context.needs_input_grad[0]:
            # A pixel was seen from all around it, from each side by the weight of the opposite one.
            mirrored = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, channels)
            of_images = as_images(neighborhoods(gradient) @ mirrored, context.shape)
        of_weight = (flat.T @ seen).view(outputs, 3, 3, channels).permute(0, 3, 1, 2)
        of_bias = flat.sum(0) if context.has_bias else None
        return of_images, of_weight, of_bias


def neighborhoods(images: Tensor) -> Tensor:
    """[n, c, h, w] -> [n h w, 9 c]: what a 3 x 3 kernel sees at each pixel, zeros beyond the border."""
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # [n, h, w, c, 3, 3], not yet copied
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * images.shape[1])


def as_matrix(weight: Tensor) -> Tensor:
    """[o, c, 3, 3] -> [o, 9 c], in the order of `neighborhoods`; of a weight with channels last no copy."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def as_images(flat: Tensor, shape: torch.Size) -> Tensor:
    """[n h w, o] -> [n, o, h, w], channels last in memory."""
    count, _, height, width = shape
    return flat.view(count, height, width, -1).permute(0, 3, 1, 2)
