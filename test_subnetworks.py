"""Tests of the claims about extraction and prediction: they can fail."""

import json
from pathlib import Path

import torch

import claims


def test_claims_about_the_causes_can_fail():
    def judged(noisy, calm, kept=-0.25, spread=0.01, noise=0.0):
        rows = []
        for decay in (0.0, 5e-4):
            for size, mean, count in ((32, noisy, 4), (50_000, calm, 1)):
                pull = kept if decay else 0.0
                row = {"batch_size": size, "weight_decay": decay, "decay": [-0.25 if decay else 0.0] * count}
                row["exponent"] = [mean + pull + spread * (k % 2 - 0.5) * (1 if decay else 2) for k in range(count)]
                row["noise"] = [0.2 if size == 32 else noise] * count
                row["curvature"] = [
                    e - n - d for e, n, d in zip(row["exponent"], row["noise"], row["decay"], strict=True)
                ]
                rows.append(row)
        result = {"rows": rows, "run": {"learning_rate": 0.05, "momentum": 0.9}, "quick": False}
        return [row["holds"] for row in claims.judge({"beyond_causes": result}, ["beyond_causes"])]

    assert judged(-0.1, 0.2) == [True, True, True]
    assert judged(0.2, -0.1) == [False, True, True]
    assert judged(-0.1, 0.2, kept=0.1) == [True, False, True]
    assert judged(-0.1, 0.2, spread=1.0)[:2] == ["not resolved", "not resolved"]
    assert judged(-0.1, 0.2, noise=0.1)[2] is False


def test_the_claim_about_near_pairs_can_fail():
    result = json.loads((Path(__file__).parent / "results" / "beyond_exponent.json").read_text())
    pair = json.loads((Path(__file__).parent / "results" / "pair.json").read_text())

    def judged():
        table = claims.judge({"beyond_exponent": result, "pair": pair}, ["beyond_exponent"])
        return next(row["holds"] for row in table if row["id"] == "exponent-near")

    assert judged() is True
    for run in result["runs"]:
        run["distance"][0] = [2 - distance for distance in run["distance"][0]]  # far is near
    assert judged() is False
    for run in result["runs"]:
        run["distance"][0] = [1.0 + distance for distance in run["distance"][0]]
    assert judged() == "not resolved"


def test_claims_about_who_vanishes_can_fail():
    draw = torch.Generator().manual_seed(0)

    def judged(pull, now=0.5, gone=20):
        """Of 100 neurons the first `gone` vanish; their exponents are lower by `pull`, their sizes `now`."""
        first = torch.arange(100) < gone
        run = {"groups": {"a": 60, "b": 40}, "index": [*range(60), *range(40)], "threshold": 0.01, "steps": [0, 1000]}
        run["predicted"] = (0.1 * torch.randn(100, generator=draw) + 0.3 - pull * first).tolist()
        run["distance"] = [(torch.where(first, now, 0.5) + 0.1 * torch.rand(100, generator=draw)).tolist()]
        run["distance"] += [torch.where(first, 1e-4, 0.5).tolist()]
        table = claims.judge({"beyond_vanishing": {"runs": [run, run], "quick": False}}, ["beyond_vanishing"])
        return [row["holds"] for row in table]

    assert judged(pull=0.8) == [True, True, True]
    assert judged(pull=-0.2, now=0.2)[::2] == [False, False]
    assert judged(pull=0.0, gone=0) == ["not resolved"] * 3
