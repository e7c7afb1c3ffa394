"""What is written about the claims: the pages in docs/, and the last lines on the terminal."""

import json
import os
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from papers.claim import KINDS, VERDICTS, was_judged
from papers.plots import Figure
from papers.result import Result

LINES = 40  # of the ending on the terminal
COLUMNS = 100
NOT_COMPARED = "not compared"
KIND_WORDS = {
    "published": "held against a number that the paper shows, or that its code gives with the same seed",
    "paper": "a statement of the paper",
    "ours": "a statement that no paper makes",
    "check": "an identity or a cost: that the code is right, no finding",
}


class Origin(NamedTuple):
    """Where a result comes from: its own command, and the seconds it took."""

    command: str
    seconds: float | None


def origin_of(result: Result) -> Origin:
    """What a result says of itself; it may say nothing."""
    command = result.text("command") if result.has("command") else ""
    if not result.has("environment") or not result.record("environment").has("seconds"):
        return Origin(command, None)
    last_sitting = result.record("environment").number("seconds")
    return Origin(command, max(last_sitting, seconds_of_runs(result)))


def seconds_of_runs(result: Result) -> float:
    """Of all sittings of a result's runs together; 0 where they don't keep their seconds."""
    runs = []
    for key in ("runs", "branches"):
        content = result.content.get(key, [])
        runs += content.values() if isinstance(content, dict) else content
    spent = [run.get("seconds", 0) for run in runs if isinstance(run, dict)]
    return sum(seconds for seconds in spent if isinstance(seconds, int | float))


def write_whole(path: Path, text: str) -> None:
    """Whoever reads the file sees the old one or the new one; processes that write it at once don't meet.

    Of its own: figures are drawn and judged without what trains, lib and torch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# ======================================================================================
# Counting
# ======================================================================================


def count(table: list[dict], kind: str, verdict) -> int:
    """True and 1 are the same key in Python, and so are False and 0: verdicts are compared as they are in JSON."""
    wanted = json.dumps(verdict)
    return sum(1 for row in table if row["kind"] == kind and json.dumps(row["holds"]) == wanted)


def shown_verdicts(table: list[dict]) -> list:
    quick = any(row["holds"] == "quick" for row in table)
    return [verdict for verdict in VERDICTS if verdict != "quick" or quick]


def tally(table: list[dict]) -> str:
    """How many claims of each kind hold, fail, ..., as Markdown."""
    shown = shown_verdicts(table)
    lines = [f"| kind | {' | '.join(VERDICTS[verdict] for verdict in shown)} |", "|---" * (1 + len(shown)) + "|"]
    for kind in KINDS:
        counts = [str(count(table, kind, verdict)) for verdict in shown]
        lines.append(f"| {kind}: {KIND_WORDS[kind]} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def put_tally(text: str, table: list[dict]) -> str:
    """A page with the tally between its two marks; the page itself where it has none."""
    start, end = "<!-- tally -->\n", "<!-- /tally -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        return text
    return before + start + tally(table) + end + after


# ======================================================================================
# Pages
# ======================================================================================


def claims_page(table: list[dict], seeds: dict) -> str:
    """docs/claims.md. seeds: {"seed 0", or the name of a folder of other seeds: its own table}."""
    failing = sum(count(table, kind, False) for kind in KINDS)
    distinct = {row["id"].partition(":")[0] for row in table}
    parts = [
        "# Claims\n",
        "Written by `python figures.py` from results/*.json; not edited by hand. A claim is one line of a paper made",
        "testable; its criterion stands in italics. Verdicts: yes, **no**, not resolved (with the reason), not run",
        f"(with the command that would). {failing} fail: they are listed first. A claim that several results can",
        f"decide has a row for each: {len(table)} rows, {len(distinct)} claims.\n",
        "*2 s.e.* is what a mean over seeds is known to with 95 %: Student's t, which is 2.0 standard errors with 60",
        "seeds, 2.8 with five, 4.3 with three and 12.7 with two. (It was 2 whatever the number of seeds; changed for",
        "all claims at once, after results were seen.) A trend with a step the wrong way by more than two of its",
        "standard errors, but less than this limit, is not resolved. One seed can refute what is said of all; it can't",
        "confirm it.\n",
        tally(table),
    ]
    failed = [row for row in table if row["holds"] is False]
    if failed:
        parts += ["## What fails\n", *table_lines(failed)]
    for paper in dict.fromkeys(row["paper"] for row in table):
        parts += [f"## {paper}\n", *table_lines([row for row in table if row["paper"] == paper])]
    parts += seeds_section(seeds)
    return "\n".join(parts).rstrip() + "\n"


def table_lines(rows: list[dict]) -> list[str]:
    titles = ["name", "figure", "kind", "claim; *our criterion*", "expected", "measured", "error", "holds"]
    lines = [as_cells(titles), "|---" * len(titles) + "|"]
    return [*lines, *(table_row(row) for row in rows), ""]


def table_row(row: dict) -> str:
    says = f"{row['says']} *{row['criterion']}*"
    if row["changed"]:
        says += f" **Criterion changed after a result was seen:** {row['changed']}"
    holds = {True: "yes", False: "**no**"}.get(row["holds"], row["holds"])
    if row["reason"]:
        holds += f": {row['reason']}"
    if row["command"]:
        holds += f" (`{row['command']}`)"
    name, _, _ = row["id"].partition(":")  # the result stands in what it says
    numbers = [row["expected"], row["measured"], row["error"]]
    return as_cells([f"`{name}`", row["figure"], row["kind"], says, *numbers, holds])


def as_cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def seeds_section(seeds: dict) -> list[str]:
    """Which verdicts differ between seeds, of the claims that were judged with several."""
    if len(seeds) < 2:
        return []
    verdicts = {}
    for name, rows in seeds.items():
        verdicts[name] = {row["id"]: row["holds"] for row in rows if was_judged(row)}
    first, *others = verdicts.values()
    judged = [name for name in first if any(name in rows for rows in others)]
    differing = []
    for name in judged:
        row = [rows.get(name, NOT_COMPARED) for rows in verdicts.values()]
        if len({json.dumps(verdict) for verdict in row if verdict != NOT_COMPARED}) > 1:
            differing.append(as_cells([name, *(verdict_word(verdict) for verdict in row)]))
    with_others = ", ".join(list(verdicts)[1:])
    lines = [
        "## With other seeds\n",
        f"{len(judged)} claims were judged with {with_others} as well; {len(differing)} verdicts differ.",
        "One that holds with seed 0 and fails with another, or holds with no other, is *not resolved* above; one that",
        "fails with seed 0 stays failed. Published numbers of one random stream are compared with that stream only.\n",
        as_cells(["claim", *verdicts]),
        "|---" * (1 + len(verdicts)) + "|",
    ]
    return [*lines, *differing, ""]


def verdict_word(verdict) -> str:
    return {True: "yes", False: "**no**"}.get(verdict, verdict)


def published_page(table: list[dict], origins: dict) -> str:
    """docs/published.md: what users ask for first: each published number, ours, the command, its seconds."""
    parts = [
        "# Published numbers and ours\n",
        "Written by `python figures.py`; not edited by hand. Spread and number of seeds stand beside our numbers. The",
        "seconds are those of all runs together, in all sittings, on the machine that the result names; where its runs",
        "keep none, those of the last command.\n",
    ]
    rows = [row for row in table if row["kind"] == "published"]
    for paper in dict.fromkeys(row["paper"] for row in rows):
        parts += [
            f"## {paper}\n",
            "| what | published | ours | spread, n | holds | command | seconds |",
            "|---" * 7 + "|",
        ]
        for row in rows:
            if row["paper"] == paper:
                parts.append(published_row(row, origins))
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def published_row(row: dict, origins: dict) -> str:
    known = [origins[name] for name in row["needs"] if name in origins]
    commands = ", ".join(f"`{origin.command}`" for origin in known) or f"`{row['command']}`"
    seconds = ", ".join(f"{origin.seconds:,.0f}" for origin in known if origin.seconds is not None)
    holds = verdict_word(row["holds"])
    if row["reason"]:
        holds += f": {row['reason']}"
    published = row["published"] or row["expected"]
    ours = row["ours"] or row["measured"]
    return as_cells([row["says"], published, ours, row["error"], holds, commands, seconds])


def figures_page(figures: dict[str, Figure], origins: dict, folder: str = "../figures") -> str:
    """docs/figures.md: every figure that was drawn, its caption, and the commands behind it."""
    parts = [
        "# Figures\n",
        "Written by `python figures.py`; not edited by hand. Each is drawn from results/*.json alone.\n",
    ]
    for name, figure in figures.items():
        caption = " ".join((figure.draw.__doc__ or "").split())
        results = [*figure.needs]
        if figure.matching is not None:
            results += [result for result in origins if figure.matching(result)]
        commands = [f"`{origins[result].command}`" for result in results if result in origins]
        chosen = "From" if figure.matching is None else "From what is widest and most complete of"
        parts += [f"## {name}\n", f"![{name}]({folder}/{name}.png)\n", f"{caption}\n"]
        parts.append(f"{chosen} {', '.join(commands)}.\n")
    return "\n".join(parts).rstrip() + "\n"


# ======================================================================================
# The terminal
# ======================================================================================


def cut(line: str, columns: int = COLUMNS) -> str:
    return line if len(line) <= columns else f"{line[: columns - 3]}..."


def wrapped(words: str, most: int) -> list[str]:
    """Lines of a list of words, at most so many; the last one says that it was cut."""
    lines = textwrap.wrap(words, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    if len(lines) <= most:
        return lines
    kept = lines[:most]
    kept[-1] = cut(kept[-1], COLUMNS - 4) + " ..."
    return kept


def ending(table: list[dict], drawn: list[str], folder: Path, missing: dict, page: Path, seconds: float) -> list[str]:
    """The last lines: what was drawn, what is missing, the tally, what fails or waits, and where the whole table is.

    missing: {command: the figures that lack its results}. At most `LINES` lines of `COLUMNS` columns.
    """
    lines = wrapped(f"{len(drawn)} figures in {folder}: {', '.join(drawn)}", 4)
    for command, figures in list(missing.items())[:6]:
        lines.append(cut(f"missing: {command}"))
        lines += wrapped(f"  for {', '.join(figures)}", 1)
    lines += terminal_tally(table)
    closing = [cut(f"the whole table: {page} ({seconds:.0f} s)")]
    room = LINES - len(lines) - len(closing)
    return lines + failing_and_waiting(table, room) + closing


def terminal_tally(table: list[dict]) -> list[str]:
    shown = shown_verdicts(table)
    lines = ["claims".ljust(12) + "".join(VERDICTS[verdict].rjust(14) for verdict in shown)]
    for kind in KINDS:
        counts = [str(count(table, kind, verdict)).rjust(14) for verdict in shown]
        lines.append(f"  {kind}".ljust(12) + "".join(counts))
    return lines


def failing_and_waiting(table: list[dict], room: int) -> list[str]:
    """All claims that fail or wait by name, in so many lines; with what was measured, and why, where that fits."""
    failing = [row for row in table if row["holds"] is False]
    explained = [cut(f"fails: {row['id']}: {row['measured']}, expected {row['expected']}") for row in failing]
    lists = [f"fails: {names_of(failing)}"] if failing else []
    for verdict in ("not resolved", "not run"):
        rows = [row for row in table if row["holds"] == verdict]
        explained += [cut(f"{verdict}: {row['id']}: {row['reason']}") for row in rows]
        if rows:
            lists.append(f"{verdict}: {names_of(rows)}")
    if len(explained) <= room:
        return explained

    lines = []
    for place, words in enumerate(lists):
        to_come = len(lists) - place - 1
        lines += wrapped(words, room - len(lines) - to_come)
    return lines


def names_of(rows: list[dict]) -> str:
    """The claims, each once, and of how many results where there are several."""
    results = {}
    for row in rows:
        name = row["id"].partition(":")[0]
        results[name] = results.get(name, 0) + 1
    words = []
    for name, count in results.items():
        words.append(name if count == 1 else f"{name} ({count})")
    return ", ".join(words)
