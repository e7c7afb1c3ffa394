"""Test of the claims of *Chaotic Dynamics*; all others are in tests/test_chaos.py."""

import json
from pathlib import Path

import claims

ROOT = Path(__file__).parent


def test_quick_and_other_settings_are_judged_without_the_published_curves(tmp_path):
    saved = json.loads((ROOT / "results" / "delay.json").read_text())
    rows = {row["id"]: row["holds"] for row in claims.judge({"delay": saved}, ["chaos_delay"])}
    assert {row for row in rows if "published" in row} and True in rows.values()
    for change in ({"dataset": "fashion_mnist"}, {"learning_rate": 0.01}, {"steps": 9120}):
        other = saved | {"settings": saved["settings"] | change}
        judged = {row["id"]: row["holds"] for row in claims.judge({"delay": other}, ["chaos_delay"])}
        assert all(holds == "not resolved" for row, holds in judged.items() if "published" in row)
    few = saved | {"runs": {name: run for name, run in saved["runs"].items() if name in ("sgd", "chaotic@0")}}
    assert len(claims.judge({"delay": few}, ["chaos_delay"])) == len(rows)
