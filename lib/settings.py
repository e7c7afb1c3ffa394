"""The range of a setting, written as its type beside its default; one rule for options, --set and calls from Python.

    @checked
    def experiment(steps: Count = 10_000, noise: NotNegative = 0.1, sizes: tuple[Count, ...] = (1, 2)):

`experiment(steps=0)` raises InputError: steps: expected a whole number, at least 1, not 0. NaN and infinity are in no
range.
"""

import functools
import inspect
import math
import numbers
import types
import typing
from typing import Annotated, Literal, NamedTuple

from lib.errors import InputError

LARGEST = 1e30  # well inside of float32
LARGEST_WHOLE = 10**15  # products of a few of them are still sizes that torch understands, and calls too large


class Range(NamedTuple):
    """The numbers from `low` to `high`; the ends themselves only if `with_low`, `with_high`.

    None is above 1e30, and no whole number above 1e15.
    """

    low: float = -math.inf
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True

    def contains(self, number: float) -> bool:
        if not abs(number) <= LARGEST:  # NaN and infinity neither
            return False
        above = number >= self.low if self.with_low else number > self.low
        below = number <= self.high if self.with_high else number < self.high
        return above and below

    def words(self) -> str:
        limits = []
        if self.low > -math.inf:
            limits.append(f"at least {self.low:,}" if self.with_low else f"above {self.low:,}")
        if self.high < math.inf:
            limits.append(f"at most {self.high:,}" if self.with_high else f"below {self.high:,}")
        return " and ".join(limits)


Number = Annotated[float, Range()]
Positive = Annotated[float, Range(low=0, with_low=False)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
Momentum = Annotated[float, Range(low=0, high=1, with_high=False)]  # at 1 a velocity never dies out
Count = Annotated[int, Range(low=1)]
CountOrZero = Annotated[int, Range(low=0)]
Seed = Annotated[int, Range(low=0, high=1_000_000)]  # seeds derived from it stay below numpy's limit of 2^32


def alternatives(kind) -> tuple:
    """The kinds of a union, `int | None`; any other kind alone."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def is_number(value, kind: type) -> bool:
    """Is it an int, or for a float any real number? A bool is neither."""
    allowed = numbers.Integral if kind is int else numbers.Real
    return isinstance(value, allowed) and not isinstance(value, bool)


def fits(value, kind) -> bool:
    """Is `value` of this kind: a type, a number with a Range, tuple[kind, ...], Literal or a union of them?"""
    origin = typing.get_origin(kind)
    if len(alternatives(kind)) > 1:
        return any(fits(value, one) for one in alternatives(kind))
    if origin is Annotated:
        number_type, allowed = typing.get_args(kind)
        if not is_number(value, number_type):
            return False
        countable = number_type is not int or abs(value) <= LARGEST_WHOLE
        return countable and allowed.contains(value)
    if kind == tuple[()]:
        return isinstance(value, tuple | list) and len(value) == 0
    if origin is tuple:
        (each, _) = typing.get_args(kind)
        return isinstance(value, tuple | list) and len(value) > 0 and all(fits(one, each) for one in value)
    if origin is Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return is_number(value, float)
    return isinstance(value, kind)


def words(kind) -> str:
    """What `fits` expects, for people."""
    origin = typing.get_origin(kind)
    if len(alternatives(kind)) > 1:
        return " or ".join(words(one) for one in alternatives(kind))
    if origin is Annotated:
        number_type, allowed = typing.get_args(kind)
        name = "a whole number" if number_type is int else "a number"
        return ", ".join(filter(None, [name, allowed.words()]))
    if kind == tuple[()]:
        return "none"
    if origin is tuple:
        (each, _) = typing.get_args(kind)
        return f"one or more, each {words(each)}"
    if origin is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return "none" if kind is type(None) else kind.__name__


def check_settings(experiment, settings: dict) -> None:
    """Raise InputError, naming it, for the first setting that is out of its range.

    `experiment`: a function whose parameters are annotated with their ranges, a functools.partial of one, or a
    dataclass with such fields; what has no annotation is free.
    """
    kinds = typing.get_type_hints(undone(experiment), include_extras=True)
    for name, value in settings.items():
        if name in kinds and not fits(value, kinds[name]):
            too_large = ", which is too large" if is_number(value, int) and value > LARGEST_WHOLE else ""
            raise InputError(f"{name}: expected {words(kinds[name])}, not {value!r}{too_large}")


def undone(experiment):
    """The function itself, of which it may be a functools.partial."""
    while isinstance(experiment, functools.partial):
        experiment = experiment.func
    return experiment


def checked(experiment):
    """Decorator: checks the settings of an experiment before it starts."""
    signature = inspect.signature(experiment)

    @functools.wraps(experiment)
    def started(*arguments, **settings):
        bound = signature.bind(*arguments, **settings)
        bound.apply_defaults()
        check_settings(experiment, bound.arguments)
        return experiment(*arguments, **settings)

    return started
