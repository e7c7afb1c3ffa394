"""Which numbers a training computes with, and torch's global settings, which are set here and nowhere else."""

import contextlib
import warnings

import torch
from torch import nn

from lib.small_maps import SmallMaps

PRECISIONS = ("auto", "bfloat16", "float32", "float64")


def set_up_torch() -> None:
    """The global settings of every script.

    One thread: most loops here are of small tensors, and two threads in one process were up to twenty times slower
    than one, since they spin while they wait; torchrun brings a process per core instead. Denormals are flushed:
    what weight decay leaves of collapsed weights is otherwise a hundred times slower to multiply. float32 is float32:
    no TF32. One warning of torch's about itself is left out: its forward derivatives use torch.jit.script.
    """
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    allow_tf32(False)


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may round the factors of float32 products to TF32, which has three digits."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed  # convolutions; torch's own default is True


@contextlib.contextmanager
def float32_products(device: torch.device, precision: str):
    """On a GPU, products of float32 within the block are float32; TF32 where the rest is bfloat16, which is rougher.

    What held before holds again afterwards.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    before_in_convolutions = torch.backends.cudnn.allow_tf32
    allow_tf32(resolve_precision(precision, device) == "bfloat16")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = before_in_convolutions


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 fast: A100 and later, CPUs with AMX or AVX512_BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older torch can't tell
        return False
    able = torch.cpu.get_capabilities()
    return able.get("amx_bf16", False) or able.get("avx512_bf16", False)


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that "auto" means on this device; any other is itself."""
    if precision != "auto":
        return precision
    return "bfloat16" if fast_bfloat16(device) else "float32"


@contextlib.contextmanager
def autocast(device: torch.device, precision: str):
    """Products in bfloat16, with float32 weights, where `precision` is (or "auto" resolves to) bfloat16."""
    if resolve_precision(precision, device) != "bfloat16":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16), SmallMaps():
        yield


def for_the_loss(output: torch.Tensor) -> torch.Tensor:
    """A network's output in a precision fit for cross-entropy: float32 at least."""
    return output if output.dtype == torch.float64 else output.float()


def memory_format(model: nn.Module, device: torch.device, image_size: int) -> torch.memory_format:
    """channels_last, except where torch crashes in it: narrow strided 1x1 convolutions of larger images on CPUs.

    There the backward pass writes outside its memory (seen with 2 to 8 channels at 56 to 64 pixels, torch 2.14;
    pytorch issue 136348 is alike; not with 16 channels, nor with 52 pixels).
    """
    if device.type != "cpu" or image_size <= 48:
        return torch.channels_last
    for module in model.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        strided = max(module.stride) > 1 and max(module.kernel_size) == 1
        narrow = min(module.in_channels, module.out_channels) < 16
        if strided and narrow:
            return torch.contiguous_format
    return torch.channels_last
