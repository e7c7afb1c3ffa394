"""Record one real run of a network: every operation it computes, with its tensors, in order.

What is recorded are PyTorch's own basic operations (ATen), below modules and functions: whatever a network is written
with, a subclass, a functional call, an einsum or attention by hand, comes down to a few dozen of them.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from collapse.errors import CollapseError, RunError


class Operation(NamedTuple):
    """One call of a basic operation."""

    name: str  # "convolution", "add_" (in place)
    function: object  # torch's operator
    args: tuple
    kwargs: dict
    output: object  # a tensor, several, or none
    layer: str  # path of the module whose forward was running

    def argument(self, name: str, default=None):
        """The argument of this name in the operator's signature, however it was passed."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, argument in enumerate(self.function._schema.arguments):
            if argument.name == name:
                if position < len(self.args):
                    return self.args[position]
                return argument.default_value if argument.has_default_value() else default
        return default


class Recording(NamedTuple):
    """One run of a network in eval mode."""

    operations: list[Operation]
    inputs: list[Tensor]
    outputs: list[Tensor]
    computed: dict[int, tuple[str, str]]  # id of a weight that a parametrization computed -> (layer, name)


PLAIN = (int, float, str, type(None))  # most arguments, in which there is nothing to look for


def tensors_in(value) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PLAIN):
        return []
    if isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return []
    return [tensor for part in parts for tensor in tensors_in(part)]


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, data parallelism and weight averaging, in whatever order they are put on."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


@contextlib.contextmanager
def mode_of(model: nn.Module, training: bool):
    """The model in training or eval mode, and afterwards every module as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.train(training)
    finally:
        for module, was in modes.items():
            module.training = was


@contextlib.contextmanager
def without_compilation(model: nn.Module):
    """Compiled parts of a network run as they were written."""
    wrapped, compiled = [], []
    for module in model.modules():
        for name, child in module._modules.items():
            if hasattr(child, "_orig_mod"):
                wrapped.append((module, name, child))
        if getattr(module, "_compiled_call_impl", None) is not None:
            compiled.append((module, module._compiled_call_impl))
    try:
        for module, name, child in wrapped:
            module._modules[name] = child._orig_mod
        for module, _ in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, name, child in wrapped:
            module._modules[name] = child
        for module, call in compiled:
            module._compiled_call_impl = call


@contextlib.contextmanager
def buffers_kept(model: nn.Module):
    """Whatever a run writes into the model's buffers is undone."""
    before = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, version, value in before:
            if buffer._version != version:
                buffer.detach().copy_(value)


@contextlib.contextmanager
def random_numbers_kept(tensors: list[Tensor]):
    """Whatever a run draws, the generators are afterwards as before."""
    devices = {tensor.device.index or 0 for tensor in tensors if tensor.is_cuda}
    with torch.random.fork_rng(sorted(devices)):
        yield


@contextlib.contextmanager
def plain_attention():
    """Transformer layers run as written, not as one fused operation."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


class _Recorder(TorchDispatchMode):
    """Writes down every basic operation that runs while it is on."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack = [""]  # names of the modules whose forward is running
        self.operations = []

    def enter_module(self, module, args):
        self.stack.append(self.names.get(id(module), self.stack[-1]))

    def leave_module(self, module, args, output):
        self.stack.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        self.operations.append(Operation(name, function, tuple(args), kwargs, output, self.stack[-1]))
        return output


def call(model: nn.Module, example):
    """The model on an example: a tensor, a tuple of positional or a dict of named inputs."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, list | tuple):
        return model(*example)
    return model(example)


def check_example(model: nn.Module, example) -> None:
    """Raises CollapseError unless the example holds tensors and the model real parameters with values."""
    if not tensors_in(example):
        raise CollapseError("an example is needed to follow the network: a batch of its inputs (tensor, tuple or dict)")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CollapseError(f"{name} is on the meta device and has no values: materialise the model first")
        if tensor.is_complex():
            raise CollapseError(f"{name} is complex: neurons of complex networks are not followed")
        if hasattr(tensor, "placements"):
            raise CollapseError(f"{name} is sharded (DTensor): gather the full network on one process first")


def check_finite(model: nn.Module) -> None:
    """Raises CollapseError that names the first parameter or buffer with NaN or infinite values.

    Buffers that aren't the statistics of a norm may be infinite, as masks of attention are. What is complex or has no
    values is refused by `record`.
    """
    for path, module in model.named_modules():
        statistics = "running_mean" in module._buffers
        for name, tensor in module._parameters.items():
            check_values(tensor, f"{path}.{name}".lstrip("."))
        for name, tensor in module._buffers.items():
            check_values(tensor, f"{path}.{name}".lstrip("."), may_be_infinite=not statistics)


def check_values(tensor: Tensor | None, name: str, may_be_infinite: bool = False) -> None:
    """Raises CollapseError for NaN among a tensor's values, and for infinite ones unless they are allowed."""
    if not has_values(tensor):
        return
    ends = torch.stack(tensor.detach().aminmax())  # NaN is both; no copy of the whole, as isfinite makes
    wrong = ends.isnan() if may_be_infinite else ~ends.isfinite()
    if bool(wrong.any()):
        raise CollapseError(f"{name} holds NaN or infinite values: the network has diverged")


def has_values(tensor: Tensor | None) -> bool:
    """Whether it is a plain tensor of real numbers that are there, at least one of them."""
    if tensor is None or is_lazy(tensor) or not tensor.is_floating_point():
        return False
    elsewhere = tensor.is_meta or hasattr(tensor, "placements") or tensor.layout != torch.strided
    return not elsewhere and tensor.itemsize > 1 and tensor.numel() > 0  # PyTorch can't compare numbers of 8 bits


def record(model: nn.Module, example) -> Recording:
    """One run of `model` on `example` in eval mode, operation by operation.

    Leaves parameters, buffers, modes, hooks and random generators as they were. Raises CollapseError for whatever the
    network's own code raises, and for parameters that are complex, sharded or without values.
    """
    check_example(model, example)
    recorder = _Recorder(model)
    computed = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode_of(model, training=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(buffers_kept(model))
        stack.enter_context(random_numbers_kept(tensors_in(example)))
        stack.enter_context(without_compilation(model))
        stack.enter_context(plain_attention())
        stack.enter_context(parametrize.cached())  # a computed weight is the same tensor whenever it is asked for
        for hook in (
            module_hooks.register_module_forward_pre_hook(recorder.enter_module),
            module_hooks.register_module_forward_hook(recorder.leave_module),
        ):
            stack.callback(hook.remove)
        try:
            with recorder:
                output = call(model, example)
        except CollapseError:
            raise
        except Exception as error:
            why = (str(error).splitlines() or [""])[0] or type(error).__name__
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors_in(example))
            layer = recorder.stack[-1]
            where = f" (in {layer})" if layer else ""
            words = f"{type(model).__name__} doesn't take the example of shape {shapes}{where}: {why}"
            raise RunError(words, layer, why) from None
        for name, module in model.named_modules():
            for attribute in computed_weights(module):
                computed[id(getattr(module, attribute))] = (name, attribute)
    return Recording(recorder.operations, tensors_in(example), tensors_in(output), computed)


def computed_weights(module: nn.Module) -> list[str]:
    """Names of a module's weights that it computes from other parameters (weight norm and the like)."""
    if parametrize.is_parametrized(module):
        return list(module.parametrizations)
    own = vars(module)
    names = (name for name in own if isinstance(own[name], Tensor))
    return [name for name in names if f"{name}_g" in module._parameters or f"{name}_orig" in module._parameters]
