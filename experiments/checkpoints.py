"""Weights as other programs write them: wrapped, prefixed, averaged, as safetensors. Nothing in a file is executed."""

import json
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.errors import InputError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")  # of what training scripts save
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # DataParallel, compile, Lightning and others
COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel

SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A .safetensors file: the header's length (8 bytes), the header (JSON), the tensors' bytes."""
    content = bytearray(path.read_bytes())
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        tensors = {}
        for name, about in header.items():
            first, last = about["data_offsets"]
            dtype = SAFETENSORS_TYPES[about["dtype"]]
            start = 8 + length + first
            if first == last:
                tensors[name] = torch.empty(about["shape"], dtype=dtype)
                continue
            count = (last - first) // dtype.itemsize
            flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start)
            tensors[name] = flat.view(about["shape"]).clone()
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} can't be read as safetensors ({type(error).__name__}: {str(error)[:100]})") from None
    return tensors


def read_checkpoint(path: Path):
    """What a file of weights holds. Raises InputError that says how to export a state_dict where it holds more."""
    if not path.is_file():
        raise InputError(f"{path} is not there")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds a whole network or other Python objects, which would run code of the file's own; save its "
            "weights alone in the program that made it: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    except Exception as error:  # torch raises a dozen kinds of error on files of other kinds
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path} can't be read as a file that torch.save wrote ({why})") from None


def unwrapped_state(content, path: Path) -> dict[str, Tensor]:
    """The state_dict in what a training script has saved."""
    for _ in range(3):  # {"model": {"state_dict": ...}} happens
        if not isinstance(content, dict):
            break
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        inside = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        if tensors and not inside:
            return {name: value for name, value in tensors.items() if name not in COUNTERS}
        if not inside:
            break
        content = content[inside[0]]
    kind = type(content).__name__
    raise InputError(f"{path}, expected to be a state_dict (names and tensors), holds a {kind} without tensors")


def without_prefixes(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """The entries that belong to a network whose state_dict has the `expected` names, under these names.

    Wrappers put prefixes before all names, in any order; Lightning keeps other modules beside the network.
    """
    state = {name.replace("._orig_mod.", "."): value for name, value in state.items()}  # parts that are compiled
    candidates = [state]
    for candidate in candidates:  # grows: prefixes of prefixes
        if expected <= candidate.keys():
            return candidate
        for prefix in PREFIXES:
            inner = {name.removeprefix(prefix): value for name, value in candidate.items() if name.startswith(prefix)}
            if inner:
                candidates.append(inner)
    return max(candidates, key=lambda candidate: len(expected & candidate.keys()))


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Put the weights of a file into a network. Raises InputError that says what doesn't fit."""
    path = Path(path)
    expected = network.state_dict()
    state = without_prefixes(unwrapped_state(read_checkpoint(path), path), set(expected))
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    sizes = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    troubles = []
    if missing:
        troubles.append(f"{len(missing)} of {len(expected)} weights are missing ({first_few(missing)})")
    if unknown:
        troubles.append(f"{len(unknown)} are unknown to it ({first_few(unknown)})")
    for name in sizes[:1]:
        troubles.append(f"{name} is {list(state[name].shape)}, expected {list(expected[name].shape)}")
    if troubles:
        place = type(network).__name__
        raise InputError(f"{path}, expected to be a state_dict of {place}, doesn't fit: {'; '.join(troubles)}")
    network.load_state_dict(state)


def first_few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
