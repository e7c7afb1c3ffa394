"""The command line that all scripts share: options, devices, errors in one line, results."""

import argparse
import ast
import contextlib
import inspect
import json
import os
import sys
import tempfile
import time
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from collapse import CollapseError
from lib import interrupts, teams
from lib.errors import InputError, memory_errors
from lib.precision import set_up_torch
from lib.printing import print_patiently
from lib.results import ROOT, figures_command, plain, read_old_result, save_result
from lib.settings import alternatives, check_settings, undone

BAD_INPUT = 2  # exit codes
NOT_FINISHED = 3


def folder(text: str) -> Path:
    """A folder given on the command line; ~ is the home folder, also in --out=~/x, which shells leave alone."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no folder; give . for this one")
    return Path(text).expanduser()


def pick_device(name: str) -> torch.device:
    """The device for --device: auto takes a CUDA GPU if there is one, else the CPU. InputError if it isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps":
        raise InputError("--device mps: metrics and theory need float64, which Apple GPUs lack; use cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA GPU here; use cpu")
    return teams.local_device(torch.device(name))


def check_writable(out: Path) -> None:
    """Find out before any work is done that results can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(f"can't write to --out {out}: {error.strerror or error}") from None


SECONDS_FOR_RANK_0 = 60  # to come to the same error on a busy machine, imports included


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line without the usage; under torchrun rank 0 prints it for all.

    The other ranks wait before they leave: torchrun ends all as soon as one has failed, and rank 0 would be
    ended before it has said why. If rank 0 is still there after that, the error is this rank's alone, which says so.
    """

    def error(self, message: str):
        if speaks_later():
            time.sleep(SECONDS_FOR_RANK_0)
        line = f"{self.prog}: error: {' '.join(message.splitlines())}"
        tell_torchrun(line)
        self.exit(BAD_INPUT, f"{line}\n")


def speaks_later() -> bool:
    """Whether another process should be the first to say what is wrong."""
    try:
        return teams.rank() != 0
    except InputError:  # the number itself is what is wrong
        return False


def tell_torchrun(reason: str) -> None:
    """Under torchrun, whose report of a failure is long, let that report end with the reason."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return
    message = {"message": reason, "extraInfo": {"timestamp": int(time.time())}}
    with contextlib.suppress(OSError):  # the report lacks it, then
        Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")


def open_arguments(document: str, names: list[str]) -> Parser:
    """A parser with what every script takes; `document` is the script's docstring."""
    summary, _, details = document.partition("\n")
    parser = Parser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where to compute")
    parser.add_argument(
        "--out",
        type=folder,
        default=ROOT / "results",
        help="folder for the results (default: results beside the script)",
    )
    parser.add_argument("--quick", action="store_true", help="a small version of everything, into <out>/quick/")
    parser.add_argument(
        "--status", action="store_true", help="only tell whether this command's work is finished (exit 0) or not (3)"
    )
    return parser


class Arguments(NamedTuple):
    """What `close_arguments` makes of a command line."""

    options: argparse.Namespace
    device: torch.device
    out: Path  # where results go: --out, or its quick/


def close_arguments(parser: Parser, argv: list[str] | None, names: list[str]) -> Arguments:
    """Parse and check what every script takes. Bad input ends in one line and exit code 2 before any work is done."""
    print_patiently()
    os.environ["MPLBACKEND"] = "Agg"  # for pictures: no window is needed, and a notebook's may be set that isn't there
    options = parser.parse_args(argv)
    unknown = [name for name in options.experiments if name not in names]
    if unknown:
        parser.error(f"unknown experiment {', '.join(unknown)}: choose from {', '.join(names)}")
    if options.seed < 0:
        parser.error(f"--seed {options.seed}: seeds are 0 or more")
    options.experiments = options.experiments or names
    out = options.out / "quick" if options.quick else options.out
    with errors_in_one_line(parser):
        teams.check_numbers()
        device = pick_device(options.device)
        if not options.status:
            check_writable(out)
    set_up_torch()
    return Arguments(options, device, out)


@contextlib.contextmanager
def errors_in_one_line(parser: Parser, what: str = ""):
    """Bad input (CollapseError, and InputError, which is one) ends in one line and exit code 2, Ctrl-C in 130.

    Any other exception is a fault of ours: it keeps its traceback.
    """
    start = f"{what}: " if what else ""
    try:
        with interrupts.keyboard_interrupts():
            yield
    except CollapseError as error:
        parser.error(f"{start}{error}")
    except KeyboardInterrupt:
        line = f"\n{parser.prog}: {start}interrupted: no result; what is in runs/ is used again\n"
        parser.exit(interrupts.CTRL_C, line if teams.rank() == 0 else None)


def fits_the_default(value, default) -> bool:
    """Whether a setting that declares no range is at least of its default's kind."""
    if default is None:
        return True
    if isinstance(default, tuple) and default:
        return isinstance(value, tuple | list) and all(fits_the_default(one, default[0]) for one in value)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def read_setting(defaults: dict, text: str) -> tuple[str, object]:
    """(name, value) of NAME=VALUE. `defaults`: settings and their defaults. InputError for an unknown one."""
    name, _, value = text.partition("=")
    if name not in defaults:
        raise InputError(f"--set {text}: no setting {name!r}; there are {', '.join(defaults)}")
    default = defaults[name]
    if not isinstance(default, str):
        value = literal_or_text(value)
    if isinstance(default, tuple) and not isinstance(value, tuple | list):
        value = (value,)
    if isinstance(default, tuple):
        value = tuple(value)
    if not fits_the_default(value, default):
        raise InputError(f"--set {text}: expected a value like {default!r}")
    return name, value


def literal_or_text(text: str):
    """The number, tuple, dict, ... that is written there as in Python; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever is no literal
        return text


def defaults_of(experiment: Callable) -> dict:
    """The settings of an experiment, which are its keywords, with their defaults; without device and seed."""
    parameters = inspect.signature(experiment).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("device", "seed")}


def may_be_none_of(experiment: Callable) -> set[str]:
    """The settings of an experiment that may be None, as their annotations say."""
    kinds = typing.get_type_hints(undone(experiment))
    return {name for name, kind in kinds.items() if types.NoneType in alternatives(kind)}


def option_name(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def given_settings(options: argparse.Namespace, names: dict, experiments: dict) -> dict:
    """The settings that the command line changes, by options of their own (`names`) and by --set.

    InputError for one that is given twice.
    """
    known = {}
    may_be_none = set()
    for name in options.experiments:
        known |= defaults_of(experiments[name])
        may_be_none |= may_be_none_of(experiments[name])
    given = {}
    for setting in names:
        value = getattr(options, setting)
        if value is None:
            continue
        if setting not in known:
            raise InputError(f"{option_name(setting)} is no setting of {', '.join(options.experiments)}")
        given[setting] = tuple(value) if isinstance(value, list) else value
    for text in options.set or ():
        setting, value = read_setting(known, text)
        if setting in given:
            raise InputError(f"--set {text}: {setting} is given twice")
        given[setting] = None if value == "None" and setting in may_be_none else value
    return given


def planned_settings(experiment: Callable, quick: dict, given: dict, replaced: tuple[str, ...]) -> dict:
    """The settings of an experiment: its defaults, what --quick changes of them (`quick`), and what is given.

    Of a dict single fields change, unless its name is among `replaced`.
    """
    settings = defaults_of(experiment) | quick
    for name, value in given.items():
        if name not in settings:  # of another experiment of this command
            continue
        changes_fields = isinstance(value, dict) and isinstance(settings[name], dict) and name not in replaced
        settings[name] = settings[name] | value if changes_fields else value
    return settings


def run_script(
    document: str,
    experiments: dict[str, Callable],
    quick: dict[str, dict],
    argv: list[str] | None = None,
    prefix: str = "",
    options: dict[str, dict] | None = None,
    undrawn: tuple[str, ...] = (),
    replaced: tuple[str, ...] = (),
    shared: tuple[str, ...] = (),
) -> None:
    """Run the experiments named on the command line and save `<out>/<prefix><experiment>.json` after each.

    `experiments`: name -> function with keyword settings, `seed` and `device` among them, whose
    defaults are the paper's; it returns the measured arrays. `quick`: name -> the settings that
    --quick replaces. `options`: setting -> arguments of `add_argument`, for settings that deserve one;
    --set changes all others. `undrawn`: experiments that no figure shows. `replaced`: settings, dicts, that --set
    replaces whole; of others it changes single fields. `shared`: experiments that torchrun's processes share. Bad input
    ends in one line on stderr and exit code 2.
    """
    parser = open_arguments(document, list(experiments))
    options = options or {}
    for setting, arguments in options.items():
        parser.add_argument(option_name(setting), **arguments)
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help="other settings: keywords of the experiment")
    chosen, device, out = close_arguments(parser, argv, list(experiments))
    with errors_in_one_line(parser):
        check_one_process([name for name in chosen.experiments if name not in shared])
        given = given_settings(chosen, options, experiments)
        plans = {}
        for name in chosen.experiments:
            quick_settings = quick[name] if chosen.quick else {}
            settings = planned_settings(experiments[name], quick_settings, given, replaced)
            settings["seed"] = chosen.seed
            check_settings(experiments[name], settings)
            plans[name] = settings
    if chosen.status:
        sys.exit(tell_status({out / f"{prefix}{name}.json": settings for name, settings in plans.items()}))
    can_be_drawn = False
    for name, settings in plans.items():
        began = time.perf_counter()
        with errors_in_one_line(parser, name), memory_errors("choose smaller settings"):
            measured = experiments[name](**settings, device=device)
            if measured is None:  # of a training that other ranks share, rank 0 has the results
                continue
            seconds = measured.pop("seconds_in_all", time.perf_counter() - began)
            path = out / f"{prefix}{name}.json"
            try:
                save_result(path, settings, measured, device, seconds, chosen.quick)
            except OSError as error:
                raise InputError(f"can't write {path}: {error.strerror or error}") from None
            can_be_drawn |= name not in undrawn
    if can_be_drawn:
        print(f"draw it: {figures_command(chosen.out, chosen.quick)}", flush=True)


def check_one_process(names: list[str]) -> None:
    """Raises InputError where torchrun has started several processes for experiments that they can't share."""
    torchrun_started_us = "RANK" in os.environ and teams.ranks() > 1  # some clusters set WORLD_SIZE for themselves
    if names and torchrun_started_us:
        raise InputError(f"{', '.join(names)}: runs in one process; start it with python, without torchrun")


def tell_status(results: dict[Path, dict]) -> int:
    """Print which result files are there with these settings; the exit code: 0 if all are, else 3."""
    missing = 0
    for path, settings in results.items():
        there = read_old_result(path).get("settings") == plain(settings)
        missing += not there
        print(f"{path.stem}: {'finished' if there else 'not finished'}")
    return NOT_FINISHED if missing else 0
