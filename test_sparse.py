"""Tests of the figures and claims of *Sparse Features*; all others are in tests/test_sparse.py."""

import copy
import json
from pathlib import Path

import matplotlib.pyplot as plt

import claims
import figures_sparse
import sparse_features

ROOT = Path(__file__).parent


def test_quick_results_are_drawn_and_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--quick", "--out", str(tmp_path), "--device", "cpu", "--seeds", "2", "--steps", "300"]
    sparse_features.main(["diagonal", "regression", "relu", *settings])
    sparse_features.main(
        ["deep", "--quick", "--out", str(tmp_path), "--width", "2", "--steps", "4", "--batch-size", "16"]
    )
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "quick").glob("*.json")}
    assert all(result["quick"] and result["experiment"] == name for name, result in results.items())
    for name, (needs, draw) in figures_sparse.FIGURES.items():
        assert len(draw(*(results[need] for need in needs)).axes) >= 4, name
    plt.close("all")
    table = claims.judge(results, list(figures_sparse.FIGURES))
    assert (
        len(table) >= 30
        and {row["holds"] for row in table} == {"quick"}
        and {row["paper"] for row in table} == {"Sparse Features"}
    )
    (small, published, clean) = results["sparse_deep"]["runs"]
    assert (small["schedule"], published["schedule"], clean["decay"]) == ("small", "published", 0.3)
    assert published["step"] == [2, 4] and len(published["sparsity"][0]) == 5
    assert results["sparse_relu"]["settings"]["steps"] == 300


def test_claims_turn_false_when_their_measurements_are_spoilt():
    names = ("diagonal", "regression", "relu")
    good = {f"sparse_{name}": json.loads((ROOT / "results" / f"sparse_{name}.json").read_text()) for name in names}
    bad = copy.deepcopy(good)  # every number becomes its reciprocal: all orders turn round
    for result in bad.values():
        for name, groups in result.items():
            for group in groups if isinstance(groups, list) and isinstance(groups[0], dict) else ():
                factor = 1.1 if name == "sde" else 1.0
                group["final"] = {key: [v and factor / v for v in values] for key, values in group["final"].items()}
                group["diverged"] = [count + 1 for count in group["diverged"]]
    diagonal = bad["sparse_diagonal"]
    for group in diagonal["transfer"]:
        group["name"] = {"published": "rule", "rule": "published"}.get(group["name"], "")
    diagonal["cycle"]["losses"] = [[1.01 * v for v in row] for row in diagonal["cycle"]["losses"]]
    for rows in diagonal["surface"]["final"].values():
        rows[:] = [[1.1 * (v or 1) for v in row] for row in rows]
    shown = [name for name in figures_sparse.FIGURES if name != "sparse_deep"]
    before = {row["id"]: row["holds"] for row in claims.judge(good, shown)}
    after = {row["id"]: row["holds"] for row in claims.judge(bad, shown)}
    assert sum(value is True for value in before.values()) > 15
    assert not [name for name in before if before[name] is True and after[name] is True]
