"""Result files: small JSON with what was run, how, where, and what was measured. No torch is needed to read them."""

import datetime
import json
import math
import os
import platform
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = (
    Path(__file__).resolve().parent.parent
)  # where the scripts lie: results/, figures/, runs/ and data/ are beside them


def default_folder(given: str | Path, default: str) -> Path:
    """The folder that was given; a default one lies beside the scripts, wherever the command was started."""
    if str(given) == default:
        return ROOT / default
    return Path(given).expanduser()


def plain(value, digits: int | None = 6):
    """`value` as JSON has it: tensors and tuples are lists, NaN and infinities null, numbers of so many digits."""
    if hasattr(value, "tolist"):  # a tensor, a numpy array, a numpy number
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, digits) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        if digits is not None:
            value = float(f"{value:.{digits}g}")
        return value if math.isfinite(value) else None
    return value


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file so that whoever reads it sees the old one or the new one.

    Raises OSError, with the old file untouched, if it can't be written.
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_json(path: str | Path, content: dict, digits: int | None = 6) -> None:
    """Write `content` to `path` atomically.

    Tensors become lists; numbers keep `digits` significant digits (None: all); NaN and infinities become null.
    """
    write_atomically(path, json.dumps(plain(content, digits), allow_nan=False, separators=(",", ":")) + "\n")


def environment(device, seconds: float) -> dict:
    """What a result file says of where its numbers come from. `seconds`: of computing, all sittings together."""
    import torch

    device = torch.device(device)
    device_name = device.type
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    record = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device_name,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
    }
    if sys.platform == "linux":
        import resource

        record["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return record


def command_line() -> str:
    """The command that started this process, as it can be pasted into a shell.

    In UTF-8 also where Python took the terminal for one of ASCII letters, and its words for bytes.
    """
    words = [os.fsencode(word).decode("utf-8", errors="replace") for word in sys.argv[1:]]
    start = ["python"]
    if "WORLD_SIZE" in os.environ:
        start = ["torchrun", f"--nproc_per_node={os.environ['WORLD_SIZE']}"]
    return shlex.join([*start, Path(sys.argv[0]).name, *words])


def figures_command(out: Path, quick: bool) -> str:
    """The command that draws what is in the folder `out` (without its quick/)."""
    is_here = Path.cwd().resolve() == ROOT
    words = ["python", "figures.py" if is_here else str(ROOT / "figures.py")]
    if quick:
        words.append("--quick")
    if out != ROOT / "results":
        words += ["--out", str(out)]
    return shlex.join(words)


def read_old_result(path: Path) -> dict:
    """The result that is there already; empty if there is none that can be read."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return old if isinstance(old, dict) else {}


ABOUT_THE_MAKING = ("command", "environment")  # what may differ between two results that say the same


def without_making(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in ABOUT_THE_MAKING}


def keep_aside(path: Path) -> Path:
    """Copy a result that is about to be replaced into `replaced/` beside it; where to."""
    now = datetime.datetime.now()
    kept = path.parent / "replaced" / f"{path.stem}_{now:%Y-%m-%d_%H-%M-%S-%f}.json"
    kept.parent.mkdir(exist_ok=True)
    shutil.copy2(path, kept)
    return kept


def save_result(path: Path, settings: dict, measured: dict, device, seconds: float, quick: bool = False) -> None:
    """Write the result file `path`; its stem is the experiment's name.

    A result of the same settings whose numbers are the same to the digits stored is left as it is, whatever command
    made it. One with other settings is kept in `replaced/`.
    """
    result = {
        "experiment": path.stem,
        "quick": quick,
        "command": command_line(),
        "settings": settings,
        "environment": environment(device, seconds),
    } | measured
    new = plain(result)
    old = read_old_result(path)
    if without_making(old) == without_making(new):
        print(f"{path.stem}: {seconds:.1f} s; the same numbers as {path} holds already", flush=True)
        return
    if path.is_file() and not quick and old.get("settings") != new["settings"]:
        kept = keep_aside(path)
        print(f"{path} is of other settings: kept as {kept} (--out FOLDER keeps runs of your own apart)", flush=True)
    write_json(path, new, digits=None)
    print(f"{path.stem}: {seconds:.1f} s, {path}", flush=True)
