"""The folder of one training: settings.json, log.jsonl, checkpoint.pt, milestone weights, and a lock.

Whatever happens to a process, the folder holds a state from which the run goes on. Files are replaced atomically and
hold tensors and plain types only; nothing in them is ever executed.
"""

import contextlib
import json
import os
import pickle
import socket
import zipfile
from pathlib import Path

import torch

from lib.errors import InputError, is_there
from lib.results import plain, write_atomically

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


@contextlib.contextmanager
def writing(path: Path):
    """What keeps a file from being written, a full disk or a folder without rights, is the user's to mend."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"can't write {path} ({reason}); the previous state is untouched") from None


def save_atomically(path: Path, state) -> None:
    """torch.save that leaves the old file or the new one, whatever happens. InputError if the disk is full."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            with open(part, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    except RuntimeError as error:  # so torch may report a full disk
        reason = str(error).splitlines()[0]
        raise InputError(f"can't write {path} ({reason}); the previous state is untouched") from None
    finally:
        part.unlink(missing_ok=True)


def has_wrong_checksum(path: Path) -> bool:
    """Whether bits of a file of `torch.save` have changed. torch.load doesn't look at the checksums that are in it."""
    if not zipfile.is_zipfile(path):  # torch's format of before 2020
        return False
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is not None


def load_state(path: Path, device: torch.device):
    """A file of tensors and plain types; nothing in it is executed. Raises InputError if it can't be read."""
    why = "it is damaged"
    try:
        if not has_wrong_checksum(path):
            return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is not there") from None
    except Exception as error:  # torch raises a dozen kinds of error on damaged files
        if isinstance(error, pickle.UnpicklingError):
            why = "it is damaged, or holds other things than tensors"
    raise InputError(f"{path} can't be read as a file of tensors: {why}") from None


# What a checkpoint holds, and of which kind
CHECKPOINT = {
    "step": int,
    "model": dict,
    "optimizer": dict,
    "log": list,
    "loss_sum": torch.Tensor,
    "bad_step": torch.Tensor,
    "diverged_at": int | None,
}


def is_checkpoint(state) -> bool:
    """Whether what was loaded has all that a checkpoint holds. "seconds" may be missing: older versions wrote none."""
    if not isinstance(state, dict):
        return False
    for key, kind in CHECKPOINT.items():
        if key not in state or not isinstance(state[key], kind):
            return False
    lines_are_whole = all(isinstance(line, dict) and "step" in line for line in state["log"])
    return lines_are_whole and isinstance(state.get("seconds", 0.0), int | float)


class RunFolder:
    """The files of one training at `path`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.settings_file = self.path / "settings.json"
        self.log_file = self.path / "log.jsonl"
        self.checkpoint_file = self.path / "checkpoint.pt"

    def weights_file(self, step: int) -> Path:
        return self.path / f"weights_{step}.pt"

    @contextlib.contextmanager
    def locked(self, is_first: bool):
        """Hold the folder: a second process that wants it is refused. Rank 0 of a team holds it for all.

        The lock goes with the process that holds it, however that ends.
        """
        if not is_first or fcntl is None:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / "lock", "a+", encoding="utf-8")  # noqa: SIM115  (held open on purpose)
        except OSError as error:
            raise InputError(f"can't write to {self.path}: {error.strerror or error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(f"{self.path} is in use by {holder}; wait for it, or stop it") from None
            except OSError:
                pass  # a file system without locks
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

    def read_settings(self) -> dict:
        """What settings.json holds; empty for a new folder. InputError if it is damaged."""
        if not is_there(self.settings_file):
            return {}
        try:
            settings = json.loads(self.settings_file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise InputError(f"{self.settings_file} is damaged ({error}); move {self.path} away") from None
        if not isinstance(settings, dict):
            raise InputError(f"{self.settings_file} is damaged (no settings); move {self.path} away")
        return settings

    def agree_on_settings(self, settings: dict, defaults: dict, decided_once: dict, is_first: bool) -> dict:
        """Write settings.json into a new folder; in an old one raise InputError naming the fields that differ.

        `defaults`: of all fields in `settings`; an older version, which had no such field, did as they say.
        `decided_once`: fields whose value here is only a proposal: what the folder already says is kept. Returns the
        settings that hold.
        """
        old = self.read_settings()
        agreed = plain(decided_once | settings, digits=None)
        if old:
            for field in decided_once:
                if field in old:
                    agreed[field] = old[field]
            complete = plain(defaults, digits=None) | old
            changed = sorted(field for field, value in complete.items() if agreed.get(field) != value)
            if changed:
                raise InputError(f"{self.path} was run with another {', '.join(changed)}; move it away or change back")
        if is_first and agreed != old:
            with writing(self.settings_file):
                self.path.mkdir(parents=True, exist_ok=True)
                write_atomically(self.settings_file, json.dumps(agreed, separators=(",", ":")) + "\n")
        return agreed

    def load_checkpoint(self, device: torch.device) -> dict | None:
        """The state that `save_checkpoint` was given; None if there is none. InputError for a foreign file."""
        if not is_there(self.checkpoint_file):
            return None
        advice = f"move {self.path} away to begin again"
        try:
            state = load_state(self.checkpoint_file, device)
        except InputError as error:
            raise InputError(f"{error}; {advice}") from None
        if not is_checkpoint(state):
            raise InputError(f"{self.checkpoint_file} is no checkpoint of this program; {advice}")
        return state

    def save_checkpoint(self, state: dict) -> None:
        save_atomically(self.checkpoint_file, state)

    def save_weights(self, step: int, weights: dict) -> None:
        save_atomically(self.weights_file(step), weights)

    def start_log(self, lines: list[dict]) -> None:
        """Make the log that of the checkpoint: lines written after it will be written again.

        Also remove what is left of checkpoints that were killed while they were written.
        """
        with writing(self.log_file):
            for torso in self.path.glob(".*.pt.*"):
                torso.unlink()
            write_atomically(self.log_file, "".join(json.dumps(line) + "\n" for line in lines))

    def append_to_log(self, line: dict) -> None:
        with writing(self.log_file), open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
