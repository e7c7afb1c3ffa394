"""A claim is one line of a paper made testable: a function that is told results and answers what was measured.

    @claim("published", needs="quartic", what="The published curves cross one half at these noise levels.",
           criterion="Ours differ by less than 3 s.e. each.")
    def quartic_published(quartic):
        ...
        return Outcome(expected, measured, error, holds)

`needs` names results; the function gets their readings (papers/<paper>/readings.py), never the files. Kinds:

    published   held against a number that the paper shows
    paper       a statement of the paper
    ours        a statement that no paper makes
    check       an identity of the mathematics, or a cost: it tells that the code is right, and is no finding

Verdicts: True, False; "not resolved", raised on purpose as NotResolved(reason), or because an expected or a measured
number is NaN, or because what holds with seed 0 fails with another, or holds with no other; "not run", where results
or parts of them aren't there yet; "quick", from small settings. An exception of the code is never a verdict: it is
raised again, naming the claim.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from papers.result import ResultError, command_of

KINDS = ("published", "paper", "ours", "check")
VERDICTS = {  # as in claims.json -> in tallies
    True: "hold",
    False: "fail",
    "not resolved": "not resolved",
    "not run": "not run",
    "quick": "quick",
}


class Numbers(NamedTuple):
    """Numbers, and how a table shows them. Verdicts look at the numbers, never at the text."""

    values: np.ndarray
    text: str

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.values).all())


class Outcome(NamedTuple):
    """What a claim's function returns. A plain text as `expected` is an order or a bound ("falling", "< 0.05")."""

    expected: Numbers | str
    measured: Numbers
    error: str
    holds: bool
    ours: str = ""  # our numbers beside the published ones, where `measured` is how far apart they are


class NotResolved(Exception):
    """These results don't decide the claim, and why; what was measured may be shown all the same."""

    def __init__(self, reason: str, expected: Numbers | str = "", measured: Numbers | None = None, error: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.expected = expected
        self.measured = measured
        self.error = error


class OtherSettings(NotResolved):
    """The published numbers belong to other settings, or to another random stream: there is nothing to compare."""


class NotRun(Exception):
    """The results lack a measurement that this claim needs; `command` makes it.

    Without `command` it is the command of the result itself, with these `options`.
    """

    def __init__(self, missing: str, command: str = "", options: str = ""):
        super().__init__(missing)
        self.reason = missing
        self.command = command
        self.options = options


class ClaimError(RuntimeError):
    """A claim's own code failed; the cause is the exception it raised."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim as the table knows it; `function` takes the readings of `needs`, in this order.

    `each` makes a claim about many results of one form: it takes the names of all results there are and returns a
    list of tuples of names, each judged by itself. With it `needs` is empty.
    """

    name: str
    kind: str
    figure: str
    needs: tuple[str, ...]
    what: str
    criterion: str
    changed: str
    function: Callable
    shows: str = ""  # the published numbers, where `expected` is how near ours must be
    each: Callable[[list[str]], list[tuple[str, ...]]] | None = None


class Claims(list):
    """The claims of one paper, in the order of their definition; calling it gives the decorator."""

    def __init__(self, paper: str):
        super().__init__()
        self.paper = paper

    def __call__(self, kind, what, criterion, *, figure, needs=(), each=None, changed="", shows=""):
        """The decorator. `changed` says that, and why, a criterion was changed after a result had been seen; `shows`
        are the published numbers, where the criterion isn't that ours are the same."""
        if kind not in KINDS:
            raise ValueError(f"no kind of claim {kind!r}: choose from {', '.join(KINDS)}")
        names = (needs,) if isinstance(needs, str) else tuple(needs)

        def register(function: Callable) -> Callable:
            takes = list(inspect.signature(function).parameters)
            if each is None and len(takes) != len(names):
                raise ValueError(f"{function.__name__} takes {takes}, but needs {names}")
            name = function.__name__.replace("_", "-")
            words = (" ".join(text.split()) for text in (what, criterion, changed))
            self.append(Claim(name, kind, figure, names, *words, function, shows, each))
            return function

        return register


# ======================================================================================
# From results to verdicts
# ======================================================================================


def judge(papers: Sequence[Claims], readings: dict, quick: bool = False, figures: Sequence[str] | None = None) -> list:
    """The table: a dictionary per claim. `readings`: name of a result -> what was read from it.

    figures: only the claims that belong to these figures. quick: the results are small versions, which decide
    nothing.
    """
    table = []
    for claims in papers:
        for one in claims:
            if figures is not None and one.figure not in figures:
                continue
            cases = [one.needs] if one.each is None else one.each(sorted(readings))
            for needs in cases:
                row = describe(one, claims.paper, needs)
                table.append(row | verdict_of(one, needs, readings, quick))
    return table


def describe(one: Claim, paper: str, needs: tuple[str, ...]) -> dict:
    """The part of a row that doesn't depend on results."""
    about = f" {needs[0]}" if one.each else ""
    return {
        "id": f"{one.name}{about.replace(' ', ':')}",
        "kind": one.kind,
        "paper": paper,
        "figure": one.figure,
        "needs": list(needs),
        "says": one.what + (f" [{about.strip()}]" if about else ""),
        "criterion": one.criterion,
        "changed": one.changed,
        "published": one.shows,
    }


def verdict_of(one: Claim, needs: tuple[str, ...], readings: dict, quick: bool) -> dict:
    """The part of a row that does: expected, measured, error, holds, reason, command."""
    missing = [name for name in needs if name not in readings]
    if missing:
        commands = ", ".join(command_of(name) for name in missing)
        return as_row("", None, "", "not run", f"no result {', '.join(missing)}", commands)
    try:
        outcome = one.function(*(readings[name] for name in needs))
    except NotResolved as open_:
        verdict = as_row(open_.expected, open_.measured, open_.error, "not resolved", open_.reason)
        verdict["comparable"] = not isinstance(open_, OtherSettings)
    except NotRun as waiting:
        command = waiting.command or command_of(needs[0])
        if waiting.options:
            command += f" {waiting.options}"
        verdict = as_row("", None, "", "not run", waiting.reason, command)
    except ResultError:
        raise
    except Exception as error:
        raise ClaimError(f"the claim {one.name} ({one.function.__module__}) failed in its own code") from error
    else:
        verdict = weigh(outcome)
    if quick and verdict["holds"] != "not run":
        verdict["holds"] = "quick"
    return verdict


def weigh_seeds(table: list[dict], others: dict) -> list[dict]:
    """The table, where no claim holds that fails with other seeds, or that no other seed confirms.

    others: {name of the other seeds: the same claims judged with them}. A claim that fails here stays failed, and says
    so if it holds with all others.
    """
    elsewhere: dict[str, dict] = {}
    for name, rows in others.items():
        for row in rows:
            if was_judged(row):
                elsewhere.setdefault(row["id"], {})[name] = row["holds"]
    return [weigh_seeds_of(row, elsewhere.get(row["id"], {})) for row in table]


def was_judged(row: dict) -> bool:
    """With these seeds; not where there are no results, or published numbers belong to another random stream."""
    return row["holds"] not in ("not run", "quick") and row["comparable"]


def weigh_seeds_of(row: dict, verdicts: dict) -> dict:
    """One row; verdicts: {name of the other seeds: what it is with them}, of those it was judged with."""
    if not verdicts or not isinstance(row["holds"], bool):
        return row
    holding = [name for name, verdict in verdicts.items() if verdict is True]
    failing = [name for name, verdict in verdicts.items() if verdict is False]
    undecided = [name for name, verdict in verdicts.items() if verdict == "not resolved"]
    if row["holds"] is False:
        if len(holding) < len(verdicts):
            return row
        return row | {"reason": f"fails with seed 0 only, holds with {' and '.join(holding)}"}
    if failing:
        reason = f"holds with seed 0, fails with {' and '.join(failing)}"
        return row | {"holds": "not resolved", "reason": reason}
    if not holding:
        reason = f"holds only with seed 0, not resolved with {' and '.join(undecided)}"
        return row | {"holds": "not resolved", "reason": reason}
    if undecided:
        return row | {"reason": f"with {' and '.join(undecided)} not resolved"}
    return row


def weigh(outcome: Outcome) -> dict:
    """A verdict from what a claim returned; NaN on either side decides nothing."""
    expected, measured, error, holds, ours = outcome
    sides = {"expected": expected, "measured": measured}
    for side, numbers in sides.items():
        if isinstance(numbers, Numbers) and not numbers.known:
            why = f"{side}: a number is NaN (diverged, or never there)"
            return as_row(expected, measured, error, "not resolved", why)
    return as_row(expected, measured, error, bool(holds), ours=ours)


def as_row(expected, measured, error, holds, reason="", command="", ours="") -> dict:
    return {
        "expected": expected.text if isinstance(expected, Numbers) else expected,
        "measured": "" if measured is None else measured.text,
        "ours": ours,
        "error": error,
        "holds": holds,
        "reason": reason,
        "command": command,
        "comparable": True,
    }


# ======================================================================================
# What claims share
# ======================================================================================


def numbers(values, form: str = ".3f", text: str | None = None) -> Numbers:
    """Numbers, each shown by the same format; or shown as `text`."""
    values = np.atleast_1d(np.asarray(values, dtype=float))
    shown = ", ".join(format(value, form) for value in values)
    return Numbers(values, shown if text is None else text)


def labelled(rows: dict, form: str = ".3f") -> str:
    """{label: numbers} as a table shows them in one cell."""
    return "; ".join(f"{label}: {numbers(list(values), form).text}" for label, values in rows.items())


def need_settings(settings: dict, **published) -> None:
    """Raises OtherSettings unless a result has the settings of the published numbers that it is held against."""
    for name, value in published.items():
        if settings.get(name) != value:
            raise OtherSettings(f"published with {name} = {value}, not {settings.get(name)}")


def standard_error(values, axis: int = -1):
    """Of the mean over seeds, which lie along `axis`; NaN of a single one."""
    values = np.asarray(values, dtype=float)
    count = values.shape[axis]
    if count < 2:
        return np.full(np.delete(values.shape, axis), np.nan)[()]
    return np.std(values, axis=axis, ddof=1) / np.sqrt(count)


STUDENT_OF_FEW = {1: 12.71, 2: 4.30, 3: 3.18}


def student_limit(degrees: int) -> float:
    """Two-sided 95 % of Student's t with these degrees of freedom.

    From 4 on by Cornish and Fisher's expansion, within 1 %.
    """
    if degrees in STUDENT_OF_FEW:
        return STUDENT_OF_FEW[degrees]
    z = 1.96
    first = (z**3 + z) / (4 * degrees)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return z + first + second + third


def two_errors(seeds: int) -> float:
    """What criteria call 2 s.e.: how many standard errors the mean of so many seeds is known to, with 95 %.

    Two with 60 seeds; more with few, whose standard error is itself not known well (Student 1908).
    """
    return max(2.0, student_limit(seeds - 1))


def decide(gain: float, error: float, expected, measured: Numbers, note: str, seeds: int | None = None) -> Outcome:
    """True or False by the sign of a gain that is known to 2 s.e. (`two_errors`); else raises NotResolved.

    seeds: how many `error` was estimated from; None where it is known otherwise, as that of a share of many.
    """
    limit = 2.0 if seeds is None else two_errors(seeds)
    known = np.isfinite(gain) and np.isfinite(error) and abs(gain) > limit * error
    if not known:
        raise NotResolved(f"the difference is within {limit:.3g} s.e.", expected, measured, note)
    return Outcome(expected, measured, note, bool(gain > 0))


def falling(rows: Sequence[np.ndarray], measured: Numbers, seeds_word: str = "seeds") -> Outcome:
    """Does a number fall along `rows` [several][seeds], over all of them?

    Seed by seed the slope of a straight line through the rows (their order is the axis) is negative, and no row
    lies above the one before it, each by over 2 s.e. (`two_errors`) of the differences between rows, seed by seed.
    Raises NotResolved with a single row or fewer than two seeds.
    """
    return monotone(rows, -1, "falling", measured, seeds_word)


def rising(rows: Sequence[np.ndarray], measured: Numbers, seeds_word: str = "seeds") -> Outcome:
    """Does it rise? As `falling`, the other way round."""
    return monotone(rows, 1, "rising", measured, seeds_word)


def monotone(rows: Sequence[np.ndarray], sign: int, expected: str, measured: Numbers, seeds_word: str) -> Outcome:
    """sign: 1 if the rows should rise, -1 if they should fall."""
    shared = min((len(row) for row in rows), default=0)
    if len(rows) < 2 or shared < 2:
        few = f"{shared} {'seed' if shared == 1 else seeds_word}"
        if len(rows) < 2:
            few = "one value"
        raise NotResolved(few, expected, measured, few)
    table = np.array([np.asarray(row, dtype=float)[:shared] for row in rows])
    place = np.arange(len(table)) - (len(table) - 1) / 2
    slopes = place @ table / (place @ place)  # a straight line for each seed
    steps = np.diff(table, axis=0)
    step_errors = standard_error(steps)
    slope_error = float(standard_error(slopes))
    note = f"slope {slopes.mean():.3g}, s.e. {slope_error:.1g}, {shared} {seeds_word}"
    against = -sign * steps.mean(1) / np.maximum(step_errors, 1e-12)
    if (against > two_errors(shared)).any():
        return Outcome(expected, measured, note, False)
    outcome = decide(sign * slopes.mean(), slope_error, expected, measured, note, seeds=shared)
    if outcome.holds and (against > 2).any():  # with few seeds not enough to refute, too much to confirm
        raise NotResolved("a step goes the other way", expected, measured, note)
    return outcome


def chi_square_limit(count: int, deviations: float = 2.33) -> float:
    """What a sum of `count` squared standard normals exceeds with 1 % (2.33 s.d.): Wilson and Hilferty 1931."""
    share = 2 / (9 * count)
    return count * (1 - share + deviations * np.sqrt(share)) ** 3


def inner_range(values, low: float = 0.05, high: float = 0.95) -> tuple[float, float]:
    """Where the middle nine tenths of the seeds lie: unlike least and largest, it doesn't grow with their number."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    lower, upper = np.quantile(values, [low, high])
    return float(lower), float(upper)
