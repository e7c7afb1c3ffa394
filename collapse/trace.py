"""Record one real run of a network: every operation it computes, with its tensors, in order.

What is recorded are PyTorch's own basic operations (ATen), below modules and functions: whatever a network is written
with, a subclass, a functional call, an einsum or attention by hand, comes down to a few dozen of them.
"""

import contextlib
import copy
import dataclasses
import random
import sys
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from collapse.errors import CollapseError, RunError


@contextlib.contextmanager
def on_the_cpu():
    """A block in which new tensors lie on the CPU: labels and counts do, whatever the default device is.

    Where that is the CPU already nothing is done: within `torch.device` every call of torch goes through Python.
    """
    if torch.empty(0).device.type == "cpu":
        yield
    else:
        with torch.device("cpu"):
            yield


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
    """All tensors in nested tuples, lists, dicts, dataclasses and other objects."""
    return tensors_among(value, set())


def tensors_among(value, seen: set[int]) -> list[Tensor]:
    """`tensors_in`, but not in the objects whose ids were `seen`: one may lead back to itself."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PLAIN):
        return []
    if isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif is_plain_object(value) and id(value) not in seen:
        seen.add(id(value))
        parts = list(vars(value).values())
    else:
        return []
    return [tensor for part in parts for tensor in tensors_among(part, seen)]


def is_plain_object(value) -> bool:
    """Whether tensors are looked for in an object's attributes: a namespace, a distribution, a batch of graphs.

    Not in modules, classes and functions, nor in the caches of transformers: keys and values that the network gives
    out for itself alone, to read when it is called again.
    """
    if isinstance(value, nn.Module | type) or callable(value):
        return False
    is_cache = any(kind.__name__ == "Cache" and "transformers" in kind.__module__ for kind in type(value).__mro__)
    return hasattr(value, "__dict__") and not is_cache


def cloned(example):
    """A copy of an example, so that a network may write into it; what is the same tensor twice stays so."""
    copies = {id(tensor): tensor.detach().clone() for tensor in tensors_in(example)}
    try:
        return copy.deepcopy(example, copies)
    except Exception:  # something beside the tensors can't be copied: the network gets the example itself
        return example


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
def evaluating(model: nn.Module):
    """The model in eval mode, and afterwards every module as it was.

    The modes alone are set: a network's own `train` may do more, as merge weights or run a training.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield model
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
def values_kept(model: nn.Module, recorder: "_Recorder"):
    """Whatever a run writes into the model's parameters and buffers, or puts in their place, is undone.

    Only those are copied that the run begins to write into: `recorder` sees to it.
    """
    entries = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    storages = [(tensor, tensor.data) for tensor in own_tensors(model)]
    try:
        yield
    finally:
        for module, parameters, buffers in entries:
            put_back(module._parameters, parameters)
            put_back(module._buffers, buffers)
        for tensor, data in storages:
            if storage_of(tensor) != storage_of(data):  # the network has set tensor.data
                tensor.data = data
        for tensor, value in recorder.overwritten:
            if not torch.equal(tensor, value):
                with torch.inference_mode(tensor.is_inference()):
                    tensor.detach().copy_(value)


def own_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def put_back(entries: dict, before: dict) -> None:
    """Give a module's dict of parameters or buffers the entries it had."""
    if list(entries) == list(before) and all(entries[name] is before[name] for name in before):
        return
    entries.clear()
    entries.update(before)


def storage_of(tensor: Tensor) -> int:
    """What is the same for all views of one tensor; 0 for layouts that have no storage."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0


@contextlib.contextmanager
def random_numbers_kept(tensors: list[Tensor]):
    """Whatever a run draws, the global generators of PyTorch, Python and NumPy are afterwards as before."""
    devices = {tensor.device.index or 0 for tensor in tensors if tensor.is_cuda}
    numpy = sys.modules.get("numpy")  # not needed here, but the network may use it
    of_python = random.getstate()
    of_numpy = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        random.setstate(of_python)
        if numpy:
            numpy.random.set_state(of_numpy)


@contextlib.contextmanager
def full_precision(tensors: list[Tensor]):
    """No autocast, which would give layers copies of their weights."""
    with contextlib.ExitStack() as stack:
        for device in {tensor.device.type for tensor in tensors if not tensor.is_meta}:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
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
        self.overwritten = []  # (parameter or buffer that the run may write into, its values before)
        self.untouched = {}  # {storage: parameters and buffers in it of which there is no copy}
        for tensor in own_tensors(model):
            self.untouched.setdefault(storage_of(tensor), []).append(tensor)

    def enter_module(self, module, args):
        self.stack.append(self.names.get(id(module), self.stack[-1]))

    def leave_module(self, module, args, output):
        self.stack.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if function._schema.is_mutable or "batch_norm" in name:  # whose schema doesn't tell of running statistics
            self.keep_values(tensors_in((args, kwargs)))
        output = function(*args, **kwargs)
        self.operations.append(Operation(name, function, tuple(args), kwargs, output, self.stack[-1]))
        return output

    def keep_values(self, tensors: list[Tensor]) -> None:
        """Copy the parameters and buffers among tensors that may be written into, or that these are views of."""
        for tensor in tensors:
            for own in self.untouched.pop(storage_of(tensor), []):
                self.overwritten.append((own, own.detach().clone()))


@contextlib.contextmanager
def undone(model: nn.Module):
    """Whatever runs in here changes neither the model's values nor the global random generators."""
    recorder = _Recorder(model)
    with values_kept(model, recorder), random_numbers_kept(own_tensors(model)), recorder:
        yield


def call(model: nn.Module, example):
    """The model on an example: a tensor, a tuple of positional or a dict of named inputs."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, list | tuple):
        return model(*example)
    return model(example)


def check_example(model: nn.Module, example) -> None:
    """Raises CollapseError unless the example holds tensors and the model real parameters with values."""
    tensors = tensors_in(example)
    if not tensors:
        raise CollapseError("an example is needed to follow the network: a batch of its inputs (tensor, tuple or dict)")
    if all(tensor.numel() == 0 for tensor in tensors):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise CollapseError(f"the example of shape {shapes} is empty: give at least one input to follow the network")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise CollapseError(f"{name} has no shape yet (a lazy layer): run the network on an input once first")
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
    names, marks = [], []
    for path, module in model.named_modules():
        statistics = "running_mean" in module._buffers
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if has_values(tensor):
                names.append(f"{path}.{name}".lstrip("."))
                marks.append(is_wrong(tensor, may_be_infinite=name in module._buffers and not statistics))
    if not marks:
        return
    device = marks[0].device
    wrong = torch.stack([mark.to(device) for mark in marks]).tolist()  # asked once: a GPU is waited for each time
    if any(wrong):
        refuse_values(names[wrong.index(True)])


def check_values(tensor: Tensor | None, name: str) -> None:
    """Raises CollapseError for NaN or infinite ones among a tensor's values."""
    if has_values(tensor) and bool(is_wrong(tensor)):
        refuse_values(name)


def refuse_values(name: str):
    raise CollapseError(f"{name} holds NaN or infinite values: the network has diverged")


def is_wrong(tensor: Tensor, may_be_infinite: bool = False) -> Tensor:
    """One bool, on the tensor's device: whether it holds NaN, or infinite values unless they are allowed."""
    ends = torch.stack(tensor.detach().aminmax())  # NaN is both; no copy of the whole, as isfinite makes
    wrong = ends.isnan() if may_be_infinite else ~ends.isfinite()
    return wrong.any()


def has_values(tensor: Tensor | None) -> bool:
    """Whether it is a plain tensor of real numbers that are there, at least one of them."""
    if tensor is None or is_lazy(tensor) or not tensor.is_floating_point():
        return False
    elsewhere = tensor.is_meta or hasattr(tensor, "placements") or tensor.layout != torch.strided
    return not elsewhere and tensor.itemsize > 1 and tensor.numel() > 0  # PyTorch can't compare numbers of 8 bits


def record(model: nn.Module, example) -> Recording:
    """One run of `model` on a copy of `example` in eval mode, operation by operation.

    It runs without autocast and outside `torch.inference_mode`. Leaves the example, parameters, buffers, modes, hooks
    and the global random generators (PyTorch's, Python's, NumPy's) as they were; other attributes that the network's
    code sets stay set. Raises CollapseError for whatever this code raises, for outputs without tensors, empty
    examples, and parameters that are complex, sharded, lazy or without values.
    """
    check_example(model, example)
    recorder = _Recorder(model)
    computed = {}
    tensors = [*tensors_in(example), *model.parameters()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # in it operations can't be recorded
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(values_kept(model, recorder))
        stack.enter_context(random_numbers_kept(tensors))
        stack.enter_context(full_precision(tensors))
        stack.enter_context(without_compilation(model))
        stack.enter_context(plain_attention())
        stack.enter_context(parametrize.cached())  # a computed weight is the same tensor whenever it is asked for
        for hook in (
            module_hooks.register_module_forward_pre_hook(recorder.enter_module),
            module_hooks.register_module_forward_hook(recorder.leave_module),
        ):
            stack.callback(hook.remove)
        inputs = cloned(example)
        output = run_recorded(model, inputs, recorder)
        for name, module in model.named_modules():
            for attribute in computed_weights(module):
                computed[id(getattr(module, attribute))] = (name, attribute)
    outputs = tensors_in(output)
    if not outputs:
        kind = type(output).__name__
        raise CollapseError(f"{type(model).__name__} gives out no tensor ({kind}): its outputs can't be told")
    return Recording(recorder.operations, tensors_in(inputs), outputs, computed)


def run_recorded(model: nn.Module, inputs, recorder: _Recorder):
    """What the model gives out; raises RunError, naming the layer, for whatever its code raises."""
    try:
        with recorder:
            return call(model, inputs)
    except CollapseError:
        raise
    except Exception as error:
        why = (str(error).splitlines() or [""])[0] or type(error).__name__
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors_in(inputs))
        layer = recorder.stack[-1]
        where = f" (in {layer})" if layer else ""
        words = f"{type(model).__name__} doesn't take the example of shape {shapes}{where}: {why}"
        raise RunError(words, layer, why) from None


def computed_weights(module: nn.Module) -> list[str]:
    """Names of a module's weights that it computes from other parameters (weight norm and the like)."""
    if parametrize.is_parametrized(module):
        return list(module.parametrizations)
    own = vars(module)
    names = (name for name in own if isinstance(own[name], Tensor))
    return [name for name in names if f"{name}_g" in module._parameters or f"{name}_orig" in module._parameters]
