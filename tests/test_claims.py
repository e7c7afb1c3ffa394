"""Claims: verdicts only on purpose, each of them can fail, figures/claims.json follows from the results."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import figures
from papers import claim, registry
from papers.beyond import readings as beyond
from papers.beyond.readings import Exponents, Extracted, Extraction, Forecast, Switch, Window
from papers.chaotic_dynamics.readings import Copies, SmallCopies, Subspace
from papers.claim import Claims, NotResolved, NotRun, Numbers, Outcome, numbers
from papers.result import Result, ResultError, load_result
from papers.sparse_features import published as sparse_published
from papers.sparse_features.readings import Deep, DeepRun, chosen
from papers.stochastic_collapse import published
from papers.stochastic_collapse.readings import Counts, Invariance, Sweep, Training, parse_sweep
from tests import mutations

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def readings():
    return figures.load(RESULTS, set(figures.known_results(RESULTS)), quick=False).readings


def raw(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def claim_of(name):
    return next(one for claims in registry.CLAIMS for one in claims if one.name == name)


def verdict(name, *needs):
    """The verdict of a claim on these readings."""
    one = claim_of(name)
    names = tuple(str(k) for k in range(len(needs)))
    return claim.verdict_of(one, names, dict(zip(names, needs, strict=True)), quick=False)["holds"]


# ======================================================================================
# Where verdicts come from
# ======================================================================================


def judged(function, kind="ours"):
    """The row of a claim with this function."""
    claims = Claims("a paper")
    claims(kind, "says", "criterion", figure="fig", needs="result")(function)
    return claim.judge([claims], {"result": object()})[0]


def test_a_typo_in_a_claim_or_a_reading_is_a_traceback_that_names_it(readings):
    def misspelt(result):
        return Outcome("", numbers(result.tset), "", True)

    with pytest.raises(claim.ClaimError, match="the claim misspelt") as stop:
        judged(misspelt)
    assert isinstance(stop.value.__cause__, AttributeError)
    content = raw("quartic")

    def read_misspelt(result):
        return result.content["tset"]

    with pytest.raises(KeyError, match="tset"):
        read_misspelt(Result(content))


@pytest.mark.parametrize("error", [ValueError("broadcast"), KeyError("x"), TypeError("x"), IndexError("x")])
def test_no_exception_of_the_code_becomes_a_verdict(error):
    def broken(result):
        raise error

    with pytest.raises(claim.ClaimError):
        judged(broken)


def test_verdicts_raised_on_purpose_carry_their_reason():
    def open_(result):
        raise NotResolved("1 seed", "falling", numbers([1.0, 2.0]))

    def waiting(result):
        raise NotRun("no durations yet", "python sparse_features.py diagonal")

    row = judged(open_)
    assert (row["holds"], row["reason"], row["measured"]) == ("not resolved", "1 seed", "1.000, 2.000")
    row = judged(waiting)
    assert (row["holds"], row["command"]) == ("not run", "python sparse_features.py diagonal")


@pytest.mark.parametrize("side", ["expected", "measured"])
@pytest.mark.parametrize("holds", [True, False])
def test_nan_on_either_side_is_not_resolved_whatever_its_text_says(side, holds):
    sides = {"expected": "rising", "measured": numbers(1.0)} | {side: Numbers(np.array([np.nan]), "1.000")}

    def unknown(result):
        return Outcome(sides["expected"], sides["measured"], "", holds)

    row = judged(unknown)
    assert row["holds"] == "not resolved" and side in row["reason"]

    def named_nan(result):
        return Outcome("", numbers(1.0, text="banana nan"), "", holds)

    assert judged(named_nan)["holds"] is holds


def test_all_seeds_diverged_is_not_resolved(readings):
    """`diagonal_sde_large` used to say "no" where its range was "nan to nan"."""
    content = raw("sparse_diagonal")
    for group in content["sgd"]:
        if group["name"] == "published small":
            group["final"]["test"] = [None] * len(group["final"]["test"])
    reading = registry.read("sparse_diagonal", Result(content))
    assert verdict("diagonal-sde-large", reading) == "not resolved"


def test_kinds_and_needs_are_checked_when_a_claim_is_written():
    with pytest.raises(ValueError, match="no kind"):
        judged(lambda result: None, kind="belief")
    with pytest.raises(ValueError, match="needs"):
        Claims("a paper")("ours", "", "", figure="fig", needs=("a", "b"))(lambda a: None)


def test_without_results_nothing_is_judged_and_quick_ones_decide_nothing(readings):
    table = claim.judge(registry.CLAIMS, {})
    assert {row["holds"] for row in table} == {"not run"} and all(row["command"] for row in table)
    assert not [row["command"] for row in table if "*" in row["command"]]
    some = {name: readings[name] for name in ("quartic", "neuron", "pair")}
    assert {row["holds"] for row in claim.judge(registry.CLAIMS, some, quick=True)} == {"quick", "not run"}


def rows_of_seeds(**verdicts):
    """A table of one seed: {id: verdict}; "other stream" where the published numbers belong to another one."""
    rows = []
    for name, verdict in verdicts.items():
        comparable = verdict != "other stream"
        holds = verdict if comparable else "not resolved"
        rows.append({"id": name, "holds": holds, "reason": "", "comparable": comparable})
    return rows


SEED_CASES = {  # with seed 0, seed1, seed1000 -> the verdict that is told, and why
    "fails elsewhere": (
        (True, False, False),
        ("not resolved", "holds with seed 0, fails with seed1 and seed1000"),
    ),
    "fails once": ((True, True, False), ("not resolved", "holds with seed 0, fails with seed1000")),
    "confirmed nowhere": (
        (True, "not resolved", "not resolved"),
        ("not resolved", "holds only with seed 0, not resolved with seed1 and seed1000"),
    ),
    "confirmed once": ((True, "not resolved", True), (True, "with seed1 not resolved")),
    "confirmed": ((True, True, True), (True, "")),
    "another stream": ((True, "other stream", "other stream"), (True, "")),
    "never run again": ((True, "not run", "not run"), (True, "")),
    "judged by one other": (
        (True, "not run", "not resolved"),
        ("not resolved", "holds only with seed 0, not resolved with seed1000"),
    ),
    "fails here only": ((False, True, True), (False, "fails with seed 0 only, holds with seed1 and seed1000")),
    "fails here and there": ((False, False, True), (False, "")),
    "fails, not resolved": ((False, "not resolved", True), (False, "")),
    "open here": (("not resolved", True, True), ("not resolved", "")),
}


@pytest.mark.parametrize("case", SEED_CASES)
def test_no_claim_holds_by_seed_0_alone(case):
    seeds, told = SEED_CASES[case]
    own, first, second = (rows_of_seeds(one=verdict) for verdict in seeds)
    weighed = claim.weigh_seeds(own, {"seed1": first, "seed1000": second})[0]
    assert (weighed["holds"], weighed["reason"]) == told
    assert claim.weigh_seeds(own, {}) == own


def test_published_numbers_of_another_random_stream_are_not_judged_with_it(readings):
    content = raw("pair")
    content["settings"]["seed"] = 1
    rows = claim.judge(registry.CLAIMS, {"pair": registry.read("pair", Result(content))})
    by_id = {row["id"]: row for row in rows}
    assert not claim.was_judged(by_id["pair-published"]) and claim.was_judged(by_id["pair-rate"])
    assert not claim.was_judged(by_id["quartic-published"])  # no result


def test_the_committed_table_follows_from_the_committed_results(readings):
    others = figures.judge_seeds(ROOT / "results", quick=False, chosen=list(registry.FIGURES))
    table = claim.weigh_seeds(claim.judge(registry.CLAIMS, readings), others)
    assert json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8")) == table
    assert {row["holds"] for row in table if row["kind"] == "check"} <= {True, "not run"}
    assert len({row["id"] for row in table}) == len(table)
    assert all(row["reason"] for row in table if row["holds"] in ("not resolved", "not run"))


def test_published_numbers_judge_no_other_settings():
    changes = {
        "quartic": ("quartic-published", {"mu": 2.0}),
        "pair": ("pair-published", {"momentum": 0.5}),
        "diagonal": ("student-published", {"learning_rate": 2.0}),
        "delay": ("delay-published-sgd", {"dataset": "fashion_mnist"}),
        "sparse_diagonal": ("diagonal-published-rank", {"steps": 3001}),
        "sparse_regression": ("regression-rank", {"steps": 3001}),
    }
    for name, (one, change) in changes.items():
        content = raw(name)
        assert verdict(one, registry.read(name, Result(content))) is True
        content["settings"] |= change
        assert verdict(one, registry.read(name, Result(content))) == "not resolved"


# ======================================================================================
# Every claim can fail
# ======================================================================================

LAYERS = [*(f"conv{k}" for k in range(1, 14)), "fc14", "fc15"]


def training(settings, value, seed, fractions, steps=(1000,), accuracy=0.9, drop_step=None):
    """A run; fractions [evaluations, layers]."""
    fractions = np.atleast_2d(fractions)
    counts = Counts(LAYERS[: fractions.shape[1]], np.full(fractions.shape[1], 64.0), fractions, fractions)
    steps = np.array(steps, float)
    accuracies = np.broadcast_to(np.asarray(accuracy, float), steps.shape)
    return Training(settings, value, seed, False, steps, 0 * steps, accuracies, counts, None, drop_step)


def sweep(name, varied, rows, seeds=3, settings=(), branches=(), steps=(1000,), noise=0.001):
    """A result of a deep network. rows: {value: fractions of the layers (one number, or a list)}."""
    base = {"model": "vgg16", "dataset": "cifar10", "width": 64, "batch_size": 256, "steps": steps[-1]}
    base |= {"weight_decay": 5e-4, "label_noise": 0.0, "learning_rate": 0.1} | dict(settings)
    runs = []
    for place, (value, fractions) in enumerate(rows.items()):
        for seed in range(seeds):
            shift = noise * (seed - 1) * (-1) ** place
            row = np.broadcast_to(np.asarray(fractions, float) + shift, (len(LAYERS),))
            runs.append(training(base | {varied: value}, value, seed, [row] * len(steps), steps))
    return Sweep(name, parse_sweep(name), base, "", varied, runs, list(branches), [])


def profile(fractions):
    """A published profile, with a value for conv13, which has none."""
    return [*fractions[:12], 0.5, *fractions[12:]]


def drop_result(fractions, before, after, seeds=4):
    """{step: ...} of a result of `drop`; each accuracy a number per step."""
    base = {"model": "vgg16", "dataset": "cifar10", "width": 64, "batch_size": 256, "steps": 40_000}
    base |= {"weight_decay": 5e-4, "label_noise": 0.0, "learning_rate": 0.1}
    steps, runs, branches = list(fractions), [], []
    for seed in range(seeds):
        rows = [np.broadcast_to(np.asarray(fractions[step], float) + 0.001 * seed, (len(LAYERS),)) for step in steps]
        accuracies = [before[step] + 0.0005 * seed * (-1) ** place for place, step in enumerate(steps)]
        runs.append(training(base, 0.1, seed, rows, steps, accuracies))
        for place, step in enumerate(steps):
            final = after[step] + 0.0005 * seed * (-1) ** place
            branches.append(training(base, 0.01, seed, rows[:1], (1000, 5000), final, drop_step=step))
    return Sweep("vgg_drop", parse_sweep("vgg_drop"), base, "", "learning_rate", runs, branches, [])


def full_drop(shift=0.0, accuracy=0.0):
    fractions = {step: np.clip(np.array(profile(row)) - shift, 0, 1) for step, row in published.VGG_DROP.items()}
    after = {step: value + accuracy for step, value in published.VGG_ACCURACY_AFTER.items()}
    return drop_result(fractions, published.VGG_ACCURACY_BEFORE, after)


def trend_of_drops(later):
    """Later drops: fewer independent neurons and more accuracy by `later` each time."""
    steps = (10_000, 20_000, 40_000)
    fractions = {step: 0.8 - 0.1 * later * place for place, step in enumerate(steps)}
    after = {step: 0.9 + 0.01 * later * place for place, step in enumerate(steps)}
    return drop_result(fractions, dict.fromkeys(steps, 0.8), after)


def full_rates(shift):
    rows = {rate: np.array(profile(row)) - shift for rate, row in published.VGG_RATE.items()}
    return sweep("vgg_lr", "learning_rate", rows, steps=(100_000,))


def full_noises(shift):
    rows = {}
    for noise, known in published.VGG_NOISE.items():
        row = np.ones(len(LAYERS))
        row[: len(known)] = known
        rows[noise] = np.clip(row - shift, 0, 1)
    return sweep("vgg_noise", "label_noise", rows, steps=(1_000_000,), settings={"learning_rate": 0.01})


def full_batches(shift):
    rows = {}
    for size in (32, 64, 128, 256, 512):
        rows[size] = np.ones(len(LAYERS))
        for layer, fractions in published.VGG_BATCH.items():
            rows[size][LAYERS.index(layer)] = fractions[size] - shift
    return sweep("vgg_batch", "batch_size", rows, steps=(100_000,), settings={"learning_rate": 0.02})


def as_resnet(result, name, layers):
    """The same runs as a ResNet's, whose layers the paper pairs."""
    settings = result.settings | {"model": "resnet18", "dataset": "cifar100"}
    runs = []
    for run in result.runs:
        counts = dataclasses.replace(run.groups, layers=layers)
        runs.append(dataclasses.replace(run, groups=None, paired=counts))
    return dataclasses.replace(result, name=name, parts=parse_sweep(name), settings=settings, runs=runs)


def resnet_rates(shift):
    layers = list(published.RESNET_RATE)
    rows = {}
    for rate in (0.01, 0.02, 0.05, 0.1):
        fractions = [published.RESNET_RATE[layer][rate] - shift for layer in layers]
        rows[rate] = fractions + [1.0] * (len(LAYERS) - len(layers))
    return as_resnet(sweep("vgg_lr", "learning_rate", rows, steps=(100_000,)), "resnet_lr", layers)


def resnet_drops(shift=0.0, accuracy=0.0):
    layers = list(published.RESNET_DROP)
    fractions, after = {}, {}
    for step, published_accuracy in published.RESNET_ACCURACY_AFTER.items():
        row = [published.RESNET_DROP[layer][step] - shift for layer in layers]
        fractions[step] = row + [1.0] * (len(LAYERS) - len(layers))
        after[step] = published_accuracy + accuracy
    result = as_resnet(drop_result(fractions, published.RESNET_ACCURACY_BEFORE, after), "resnet_drop", layers)
    branches = [dataclasses.replace(branch, steps=np.array([8000.0, 10_000.0])) for branch in result.branches]
    return dataclasses.replace(result, branches=branches)


def full_deep(error, sparsity):
    """Deep runs at the published size: the published ends and so much more."""
    runs = []
    ends = zip((0.0, 0.1, 0.3, 0.5), sparse_published.DEEP_ERROR, sparse_published.DEEP_SPARSITY, strict=True)
    for decay, its_error, blocks in ends:
        row = np.array([blocks]) + sparsity
        test = np.array([its_error + error])
        runs.append(DeepRun("published" if decay else "small", decay, 0, 0.1, test, test, test, row, row, False))
    return Deep(dict(sparse_published.DEEP_SETTINGS), [str(k) for k in range(5)], runs)


def with_l0_curve(readings, factor):
    reading = readings["sparse_diagonal"]
    curve = sparse_published.DIAGONAL_L0_CURVE
    middle = np.interp(reading.times, list(curve), list(curve.values())) * factor
    groups = [dataclasses.replace(group, curves=group.curves | {"l0": middle[:, None]}) for group in reading.sgd]
    return dataclasses.replace(reading, sgd=groups)


def with_data_b(readings, name, value):
    """SGD on data B, whose seeds end around this value."""
    reading = readings["sparse_diagonal"]
    ends = value * (1 + 0.01 * np.linspace(-1, 1, 128))
    groups = [dataclasses.replace(group, final=group.final | {name: ends}) for group in reading.sgd_b]
    return dataclasses.replace(reading, sgd_b=groups)


def with_controls(low, high, without=(0.9, 0.5)):
    """A sweep and its controls: fractions at the strongest pull, lowest and highest rate; and those without decay."""
    main = sweep("vgg_lr", "learning_rate", {0.01: 0.99, 0.1: high}, seeds=3)
    strong = sweep("vgg_lr_controls", "learning_rate", {0.01: low}, settings={"weight_decay": 5e-3})
    rows = dict(zip((0.01, 0.1), without, strict=True))
    none = sweep("vgg_lr_controls", "learning_rate", rows, settings={"weight_decay": 0.0})
    return main, dataclasses.replace(strong, runs=strong.runs + none.runs)


def three_data(*fractions):
    return [sweep("vgg_lr_width16", "learning_rate", {0.05: fraction}) for fraction in fractions]


def early_growth(power):
    """Copies with small perturbations that grow as an exponential (power None) or as 1 + t."""
    times = np.linspace(0, 3000, 61)
    grown = np.exp(4e-4 * times) if power is None else 1 + 4e-4 * times
    sizes = np.array([1e-4, 1e-3])
    return SmallCopies(sizes, times, np.array([[size * grown for size in sizes]] * 3))


def with_small(readings, power):
    return dataclasses.replace(readings["divergence"], small=early_growth(power))


def copies_with_accuracy(readings, shift):
    one = readings["divergence"].seeds[0]
    seeds = []
    for k in range(6):
        accuracy = one.accuracy.copy()
        accuracy[:, 1:] = accuracy[:, :1] + shift + 0.0005 * (-1) ** k
        seeds.append(dataclasses.replace(one, accuracy=accuracy))
    return dataclasses.replace(readings["divergence"], seeds=seeds)


def spaces(readings, sign):
    one = readings["subspace"].seeds[0]
    seeds = []
    for k in range(5):
        gaps = sign * (one.similarity - one.baseline) * (1 + 0.01 * k)
        seeds.append(dataclasses.replace(one, similarity=one.baseline + gaps))
    return Subspace(readings["subspace"].settings, seeds)


def deep(order, first=0.0, blocks=5):
    """Deep runs of three seeds; sparsity and error of the four durations in this order; block 1 moves by `first`."""
    runs = []
    for place, decay in enumerate((0.0, 0.1, 0.3, 0.5)):
        for schedule in ("small",) if not decay else ("published", "clean"):
            for seed in range(3):
                level = 0.8 - 0.1 * order * place + 0.001 * seed * place
                row = np.array([[0.7 - first * place, level, level, level, level]])
                runs.append(DeepRun(schedule, decay, seed, 0.1, np.array([1.0]), row[0], row[0, 1:2], row, row, False))
    return Deep({}, [str(k) for k in range(blocks)], runs)


def extraction(gain):
    rows = []
    for seed in range(4):
        before = {"parameters": 100.0, "flops": 100.0, "accuracy": 0.9, "tuned": 0.9}
        after = before | {"parameters": 60.0, "accuracy": 0.89}
        rows.append(Extracted(0.1, 0.0, seed, 10, 0.1, before, after, [0.89 - gain - 0.001 * seed]))
    return Extraction({}, [], rows)


def inside(*kept):
    """Networks at rising learning rates that keep so much of their parameters, four seeds each."""
    rows = []
    for place, share in enumerate(kept):
        for seed in range(4):
            before = {"parameters": 100.0, "flops": 100.0, "accuracy": 0.9, "tuned": 0.9}
            after = before | {"parameters": 100 * share + 0.1 * seed}
            rows.append(Extracted(0.01 * (place + 1), 0.0, seed, 10, 0.6, before, after, None))
    return Extraction({}, [], rows)


def forecasts(told, watched):
    """Of 100 neurons the first 20 vanish; exponents and measured slopes know it by so much."""
    draw = np.random.default_rng(0)
    runs = []
    for _ in range(2):
        gone = np.arange(100) < 20
        size = 0.3 + 0.4 * draw.random(100)
        predicted = 0.3 * draw.standard_normal(100) - told * gone
        slope = 0.3 * draw.standard_normal(100) - watched * gone
        end = np.where(gone, 1e-4, 0.5)
        index, steps = np.arange(100.0)[:, None], np.array([0.0, 1000.0])
        runs.append(Forecast(0.6, {"fc14": 100}, index, 0.01, steps, None, size, end, predicted, slope, None))
    return [Window(50, runs)]


def far_pairs(told, watched):
    """Of 300 neurons, equally many near, farther and far, some vanish in the middle third; far away none does."""
    one = forecasts(told, watched)[0].runs[0]
    draw = np.random.default_rng(3)
    place = np.arange(300)
    gone = (place >= 100) & (place < 130)
    size = 0.3 + place / 200
    predicted = 0.1 * draw.standard_normal(300) - told * gone
    slope = 0.1 * draw.standard_normal(300) - watched * gone
    index = np.arange(300.0)[:, None]
    changes = {"now": size, "end": np.where(gone, 1e-4, 0.5), "predicted": predicted, "same": slope, "index": index}
    run = dataclasses.replace(one, groups={"fc14": 300}, **changes)
    return Exponents({}, 0, 1000, [run], {}, [], None)


def switches(told, watched):
    draw = np.random.default_rng(1)
    after = draw.standard_normal(200)
    rows = []
    for seed in range(2):
        noise = draw.standard_normal((2, 200))
        predicted, before = told * after + noise[0], watched * after + noise[1]
        rows.append(Switch("label_noise", 0.6, seed, predicted, before, after))
    return rows


def switches_against_going_on(told):
    """Switches that move the neurons by 1 more or less than going on; exponents say so where `told` is positive."""
    rows = []
    for one in switches(1.0, 0.0):
        change = 1 + 0.5 * np.random.default_rng(2).standard_normal(200)
        going_on = dataclasses.replace(one, changed="nothing", after=one.after - change)
        rows.append(dataclasses.replace(one, predicted=going_on.predicted + told * change, going_on=going_on))
    return rows


def with_groups(reading, name, source, order):
    """A reading with groups of its own under `name`: those of `source`, ranks and tests in this order, all fitted."""
    groups = []
    for place, group in enumerate(source):
        count = group.seeds
        falls = 10.0 - 3.0 * order * place + 0.01 * np.arange(count) * (place + 1)
        final = group.final | {"rank": falls, "test": np.exp(falls), "train": np.zeros(count)}
        groups.append(dataclasses.replace(group, final=final))
    return dataclasses.replace(reading, **{name: groups})


def renamed(groups, name):
    return [dataclasses.replace(group, name=name) for group in groups]


def durations(readings, order):
    source = [group for group in readings["sparse_diagonal"].sgd if group.name == "published"]
    return with_groups(readings["sparse_diagonal"], "duration", source, order)


def plateaus(readings, order):
    reading = readings["sparse_diagonal"]
    early = 500.0 + np.arange(32)
    plateau = {"start": {"jacobian": early}, "end": {"jacobian": early * (1 - 0.1 * order)}}
    groups = [dataclasses.replace(group, plateau=plateau) for group in reading.sgd]
    return dataclasses.replace(reading, sgd=groups)


def plateau_levels(readings, factor):
    """Runs whose own window medians are the published ones times a factor, at looks that say something else."""
    reading = readings["sparse_diagonal"]
    levels = np.outer(sparse_published.DIAGONAL_PLATEAU, factor + 0.01 * np.linspace(-1, 1, 32))
    groups = [dataclasses.replace(group, levels=levels) for group in reading.sgd]
    return dataclasses.replace(reading, sgd=groups)


def fixed(readings, name, layers, order, label="published"):
    source = [group for group in getattr(readings["sparse_relu"], layers) if group.name == "published"]
    return with_groups(readings["sparse_relu"], name, renamed(source, label), order)


def three_fixed(readings, shift):
    relu = readings["sparse_relu"]
    source = [group for group in relu.three if group.name in ("small", "published")]
    groups = []
    for group, rank in zip(source, (150, 150, 125, 102), strict=True):
        ranks = rank + shift + np.linspace(-5, 5, group.seeds)
        groups.append(dataclasses.replace(group, final=group.final | {"rank": ranks, "train": np.zeros(group.seeds)}))
    return dataclasses.replace(relu, three_fixed=groups)


def stuck(readings, more):
    """1-D regression in which the over-regularised schedule leaves more, or fewer, seeds unfitted."""
    reading = readings["sparse_regression"]
    groups = list(reading.groups)
    for place, count in ((1, 16), (2, 16 + more)):
        train = np.where(np.arange(groups[place].seeds) < count, 1.0, 0.0)
        groups[place] = dataclasses.replace(groups[place], final=groups[place].final | {"train": train})
    return dataclasses.replace(reading, groups=groups)


def batches(fractions):
    return sweep("vgg_batch", "batch_size", dict(zip((32, 64, 128, 256), fractions, strict=True)), noise=1e-5)


def made_up(readings):
    """{claim: (readings with which it holds, readings with which it fails)}, where no committed result decides it."""
    unmoved = Invariance(["MLP"], ["sign"], np.array([0.0]), np.array([0.3]), np.array([1e-3]))
    left = dataclasses.replace(unmoved, largest=np.array([1e-4]))
    return {
        "invariance-exact": ([unmoved], [left]),
        "batch-independent": ([batches((0.9, 0.6, 0.5, 0.8))], [batches((0.9, 0.8, 0.7, 0.6))]),
        "controls-noise": (with_controls(0.9, 0.5), with_controls(0.5, 0.9)),
        "controls-without-decay": (with_controls(0.9, 0.5), with_controls(0.9, 0.5, without=(0.5, 0.9))),
        "easier-data": (three_data(0.99, 0.95, 0.9), three_data(0.9, 0.95, 0.99)),
        "rate-published": ([full_rates(0.0)], [full_rates(0.3)]),
        "profile-10000": ([full_drop()], [full_drop(shift=0.3)]),
        "profile-20000": ([full_drop(shift=0.1)], [full_drop(shift=0.2)]),
        "profile-40000": ([full_drop()], [full_drop(shift=0.3)]),
        "accuracy-after-drop": ([full_drop(accuracy=-0.005)], [full_drop(accuracy=-0.01)]),
        "noise-published": ([full_noises(0.0)], [full_noises(0.3)]),
        "batch-published": ([full_batches(0.1)], [full_batches(0.2)]),
        "resnet-rate-published": ([resnet_rates(0.1)], [resnet_rates(0.2)]),
        "resnet-drop-published": ([resnet_drops(shift=0.1)], [resnet_drops(shift=0.2)]),
        "resnet-accuracy-after-drop": ([resnet_drops(accuracy=-0.005)], [resnet_drops(accuracy=-0.01)]),
        "deep-published-error": ([full_deep(0.009, 0.0)], [full_deep(0.011, 0.0)]),
        "deep-published-sparsity": ([full_deep(0.0, 0.09)], [full_deep(0.0, 0.11)]),
        "diagonal-published-plateau-l0": ([with_l0_curve(readings, 1.2)], [with_l0_curve(readings, 1.3)]),
        "diagonal-b-published-test": (
            [with_data_b(readings, "test", sparse_published.SGD_B_TEST)],
            [with_data_b(readings, "test", 2 * sparse_published.SGD_B_TEST)],
        ),
        "diagonal-b-published-l0": (
            [with_data_b(readings, "l0", sparse_published.SGD_B_L0)],
            [with_data_b(readings, "l0", 2 * sparse_published.SGD_B_L0)],
        ),
        "later-drop": ([trend_of_drops(1)], [trend_of_drops(-1)]),
        "divergence-exponential": ([with_small(readings, None)], [with_small(readings, 1)]),
        "divergence-accuracy": ([copies_with_accuracy(readings, 0.0)], [copies_with_accuracy(readings, 0.01)]),
        "subspace-similar": ([spaces(readings, 1)], [spaces(readings, -1)]),
        "deep-sparsity": ([deep(1)], [deep(-1)]),
        "deep-clean": ([deep(1)], [deep(-1)]),
        "deep-error": ([deep(1)], [deep(-1)]),
        "deep-first-block": ([deep(1)], [deep(1, first=0.05)]),
        "densenet-sparsity": ([deep(1)], [deep(-1)]),
        "extraction-rate": ([inside(0.9, 0.5)], [inside(0.5, 0.9)]),
        "extraction-random": ([extraction(0.05)], [extraction(-0.05)]),
        "exponent-far": ([far_pairs(1.0, 0.0)], [far_pairs(0.0, 1.0)]),
        "windows-short": ([forecasts(1.0, 0.0)], [forecasts(0.0, 1.0)]),
        "switch-foretold": ([switches(2.0, 0.0)], [switches(0.0, 2.0)]),
        "switch-level": ([switches_against_going_on(1.0)], [switches_against_going_on(-1.0)]),
        "switch-difference": ([switches_against_going_on(1.0)], [switches_against_going_on(-1.0)]),
        "diagonal-data-sets-test": ([durations(readings, 1)], [durations(readings, -1)]),
        "diagonal-data-sets-rank": ([durations(readings, 1)], [durations(readings, -1)]),
        "diagonal-plateau-jacobian": ([plateaus(readings, 1)], [plateaus(readings, -1)]),
        "diagonal-plateau-loss": ([plateau_levels(readings, 1.9)], [plateau_levels(readings, 2.1)]),
        "two-fixed-trend": ([fixed(readings, "two_fixed", "two", 1)], [fixed(readings, "two_fixed", "two", 0)]),
        "two-stable-trend": (
            [fixed(readings, "two_stable", "two", 1, "relative")],
            [fixed(readings, "two_stable", "two", 0, "relative")],
        ),
        "two-order-trend": (
            [fixed(readings, "two_variants", "two", 1, "step first")],
            [fixed(readings, "two_variants", "two", 0, "step first")],
        ),
        "three-fixed-rank": ([three_fixed(readings, 0)], [three_fixed(readings, 30)]),
        "regression-overdone": ([stuck(readings, 14)], [stuck(readings, -14)]),
    }


def test_made_up_results_make_claims_hold_and_fail(readings):
    for name, (good, bad) in made_up(readings).items():
        assert (verdict(name, *good), verdict(name, *bad)) == (True, False), name


def test_pairs_of_each_third_are_judged_apart_and_where_none_merges_nothing_is():
    runs = far_pairs(1.0, 0.0).runs
    thirds = beyond.thirds_by_distance(runs)
    assert [beyond.areas(runs, samples=2, within=within).arrived for within in thirds] == [0, 30, 0]
    assert beyond.areas(runs, samples=2).arrived == 30
    stays = dataclasses.replace(runs[0], end=np.full(300, 0.5))
    assert verdict("exponent-far", dataclasses.replace(far_pairs(1.0, 0.0), runs=[stays])) == "not resolved"


def neuron_that_goes_back(readings, by):
    """Far above the threshold, where half have collapsed at first, a later checkpoint has `by` fewer than the last."""
    neuron = readings["neuron"]
    collapse = neuron.collapse.copy()
    level = int(np.argmin(np.abs(neuron.noises / neuron.threshold - 1.2)))
    collapse[1:, level] = np.linspace(0.5, 0.9, len(collapse) - 1)
    collapse[3, level] = collapse[2, level] - by
    return dataclasses.replace(neuron, collapse=collapse)


def test_every_checkpoint_counts_for_the_step_at_the_threshold(readings):
    assert verdict("neuron-sharpening", neuron_that_goes_back(readings, by=0.02)) is True
    assert verdict("neuron-sharpening", neuron_that_goes_back(readings, by=0.2)) is False


@pytest.mark.parametrize(("seconds", "holds"), [(1.9, True), (2.1, False)])
def test_extraction_must_take_less_than_two_seconds(readings, seconds, holds):
    extraction = readings["beyond_extract"]
    planted = [dataclasses.replace(one, seconds=seconds) for one in extraction.planted]
    assert verdict("extraction-fast", dataclasses.replace(extraction, planted=planted)) is holds


def with_area(area):
    """Exponents whose area is this, known to .01."""
    reading = Exponents({}, 0, 1000, forecasts(1.0, 0.0)[0].runs, {}, [], None)
    samples = area + 0.01 * np.linspace(-1, 1, 41)
    reading.__dict__["areas"] = beyond.Areas({"exponent": area}, {"exponent": samples}, 20)
    return reading


@pytest.mark.parametrize(("area", "holds"), [(0.65, True), (0.605, "not resolved"), (0.55, False), (0.2, False)])
def test_barely_better_than_chance_tells_nobody_who_arrives(area, holds):
    assert verdict("exponent-roc", with_area(area)) == verdict("vanishing-roc", with_area(area)) == holds


def test_what_was_not_run_says_how_it_would_be(readings):
    without = {name: one for name, one in readings["pruning"].variants.items() if name != "pos@0"}
    reading = dataclasses.replace(readings["pruning"], variants=without)
    one = claim.verdict_of(claim_of("positive-loss"), ("pruning_cnn",), {"pruning_cnn": reading}, quick=False)
    assert one["holds"] == "not run" and one["reason"] == "nothing was run as pos@0"
    assert one["command"].startswith("python chaotic_sgd.py pruning_cnn --variants sgd ")
    assert one["command"].endswith(" pos@0")


@pytest.mark.parametrize(("middle", "holds"), [(0.885, True), (0.7, False)])
def test_all_drops_count_and_not_only_the_ends(middle, holds):
    """The earliest and the latest drop are in order either way."""
    steps = (10_000, 20_000, 40_000)
    levels = dict(zip(steps, (0.88, middle, 0.89), strict=True))
    fractions = {step: 1.6 - levels[step] for step in steps}
    result = drop_result(fractions, levels, levels)
    assert verdict("accuracy-before-drop", result) is holds and verdict("later-drop", result) is holds


def test_the_other_order_of_step_and_decay_is_not_the_published_one(readings):
    """Until the first division both orders are the same run; what is judged must differ after it."""
    relu = readings["sparse_relu"]
    as_published, other = chosen(relu.two, "published"), chosen(relu.two_variants, "step first")
    for group, variant in zip(as_published, other, strict=True):
        assert not np.array_equal(group.final["test"], variant.final["test"], equal_nan=True), group.decay
    without = dataclasses.replace(relu, two_variants=chosen(relu.two_variants, "step first"))
    assert verdict("two-order-trend", without) == verdict("two-order-trend", relu)


def test_every_claim_can_fail(readings, monkeypatch):
    """For each claim but the checks there is a change of one measurement that turns it false, or it fails already."""
    whole = beyond.areas
    monkeypatch.setattr(
        beyond, "areas", lambda runs, **options: whole(runs, samples=30, **options)
    )  # the bootstrap only
    can_fail = set(made_up(readings))
    everything = [one for claims in registry.CLAIMS for one in claims if one.kind != "check"]
    for one in everything:
        cases = [one.needs] if one.each is None else one.each(sorted(readings))
        for needs in cases:
            if one.name in can_fail or any(name not in readings for name in needs):
                continue
            if claim.verdict_of(one, needs, readings, quick=False)["holds"] is False:
                can_fail.add(one.name)
                continue
            for _, mutant in mutations.mutants(readings[needs[0]]):
                with np.errstate(all="ignore"):
                    if claim.verdict_of(one, needs, readings | {needs[0]: mutant}, quick=False)["holds"] is False:
                        can_fail.add(one.name)
                        break
    assert {one.name for one in everything} == can_fail & {one.name for one in everything}


def test_two_standard_errors_are_students_limit():
    table = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 11: 2.228, 31: 2.042}  # seeds: two-sided 95 %
    for seeds, limit in table.items():
        assert claim.two_errors(seeds) == pytest.approx(limit, rel=0.01)
    assert claim.two_errors(1000) == 2.0


def test_few_seeds_neither_confirm_nor_refute_a_trend_that_turns_back():
    """Two seeds, three values: the last step rises by 6 s.e., which two seeds are known to as little as to 12.7."""
    rows = {0.01: 0.9, 0.05: 0.5, 0.1: 0.512}
    turning = sweep("vgg_lr", "learning_rate", rows, seeds=2, noise=0.002)
    assert verdict("rate-independent", turning) == "not resolved"
    assert verdict("rate-independent", sweep("vgg_lr", "learning_rate", rows, seeds=9, noise=0.0005)) is False


def test_one_seed_refutes_what_is_said_of_all_and_does_not_confirm_it(readings):
    whole = readings["divergence"]
    one = dataclasses.replace(whole, seeds=whole.seeds[:1])
    copies = one.seeds[0]
    closed = dataclasses.replace(copies, distance=np.ones_like(copies.distance))
    assert verdict("divergence-order", one) == "not resolved"
    assert verdict("divergence-order", dataclasses.replace(one, seeds=[copies, copies])) is True
    assert verdict("divergence-order", dataclasses.replace(one, seeds=[closed])) is False


def test_a_claim_does_not_hold_on_nothing(readings):
    """One value of what is varied, or one seed, decides no claim."""
    one_level = dataclasses.replace(readings["quartic"], collapse=readings["quartic"].collapse[:1])
    assert verdict("quartic-threshold", one_level) == "not resolved"
    minibatch = readings["minibatch"]
    one_size = dataclasses.replace(minibatch, test=minibatch.test[:1], test_std=minibatch.test_std[:1])
    assert verdict("minibatch-size", one_size) == "not resolved"
    nothing = np.full_like(readings["pair"].rate, np.nan)
    assert verdict("pair-rate", dataclasses.replace(readings["pair"], rate=nothing)) == "not resolved"
    assert verdict("pair-noise", dataclasses.replace(readings["pair"], rate=nothing)) == "not resolved"
    no_rates = dataclasses.replace(readings["neuron"], rate=np.full_like(readings["neuron"].rate, np.nan))
    assert verdict("neuron-rate", no_rates) == verdict("neuron-threshold", no_rates) == "not resolved"
    one_seed = sweep("vgg_lr", "learning_rate", {0.01: 0.9, 0.1: 0.2}, seeds=1)
    assert verdict("rate-independent", one_seed) == "not resolved"
    assert verdict("rate-independent", sweep("vgg_lr", "learning_rate", {0.1: 0.2})) == "not resolved"


@pytest.mark.parametrize(
    ("fractions", "holds"),
    [
        ((0.9, 0.5, 0.2), True),
        ((0.2, 0.5, 0.9), False),
        ((0.9, 0.2, 0.4), False),  # the ends fall, the middle doesn't
        ((0.5, 0.5001, 0.5), "not resolved"),
    ],
)
def test_all_values_count_and_not_only_the_ends(fractions, holds):
    rows = dict(zip((0.01, 0.05, 0.1), fractions, strict=True))
    assert verdict("rate-independent", sweep("vgg_lr", "learning_rate", rows, noise=0.01)) == holds


def test_a_run_that_diverged_counts_nowhere_and_one_that_did_not_learn_does():
    result = sweep("vgg_lr", "learning_rate", {0.01: 0.9, 0.1: 0.2})
    lost = dataclasses.replace(result.runs[0], diverged=True, seed=9)
    slow = dataclasses.replace(result.runs[0], accuracy=np.array([0.1]))
    assert verdict("rate-independent", dataclasses.replace(result, runs=[*result.runs, lost])) is True
    fractions = [run.value for run in dataclasses.replace(result, runs=[slow, *result.runs[1:]]).runs]
    assert fractions.count(0.01) == 3


# ======================================================================================
# Names of deep results
# ======================================================================================


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vgg_lr", ("vgg", "lr", "", 64, False)),
        ("vgg_lr_width8", ("vgg", "lr", "", 8, False)),
        ("resnet34_lr", ("resnet34", "lr", "", 64, False)),
        ("vgg_lr_fashion_mnist_width16", ("vgg", "lr", "fashion_mnist", 16, False)),
        ("vgg_lr_fashion_mnist_width16_controls", ("vgg", "lr", "fashion_mnist", 16, True)),
        ("resnet_noise_controls", ("resnet", "noise", "", 64, True)),
    ],
)
def test_names_of_deep_results(name, parts):
    assert dataclasses.astuple(parse_sweep(name)) == parts


@pytest.mark.parametrize("name", ["quartic", "sparse_deep", "beyond_exponent", "pruning", "vgg", "vgg_lrx"])
def test_other_names_are_no_deep_results(name):
    assert parse_sweep(name) is None


def test_a_new_network_is_judged_without_touching_the_claims():
    new = sweep("resnet34_lr", "learning_rate", {0.01: 0.9, 0.1: 0.2})
    rows = {row["id"]: row["holds"] for row in claim.judge(registry.CLAIMS, {"resnet34_lr": new})}
    assert rows["rate-independent:resnet34_lr"] is True
    assert rows["rate-independent:vgg_lr"] == rows["rate-independent:resnet_lr"] == "not run"


# ======================================================================================
# Damaged files
# ======================================================================================


def damaged(tmp_path, name, change):
    """The error that reading a copy of a result ends in, after `change` of its content."""
    content = raw(name)
    change(content)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ResultError) as stop:
        registry.read(name, load_result(path, quick=False))
    words = str(stop.value)
    assert "\n" not in words and str(path) in words and "run its experiment again" in words
    return words


EDITS = {
    "null": (lambda r: r.update(collapse=None), "collapse is null"),
    "missing": (lambda r: r.pop("noises"), "noises is missing"),
    "empty": (lambda r: r.update(collapse=[]), "collapse has the shape"),
    "words": (lambda r: r.update(collapse="many"), "no array of numbers"),
    "ragged": (lambda r: r["collapse"].__setitem__(0, [1.0]), "no array of numbers"),
    "shorter": (lambda r: r.update(collapse=r["collapse"][:2]), "checkpoints"),
    "no settings": (lambda r: r.update(settings=[]), "settings holds"),
    "a setting is a word": (lambda r: r["settings"].update(mu="1.5"), "settings.mu holds"),
    "another experiment": (lambda r: r.update(experiment="pair"), "no result of that experiment"),
    "quick": (lambda r: r.update(quick=True), "quick result among full"),
    "no flag": (lambda r: r.pop("quick"), "quick is missing"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_hand_edited_result_is_one_line_that_names_the_file(tmp_path, edit):
    change, words = EDITS[edit]
    assert words in damaged(tmp_path, "quartic", change)


def top_level(name):
    return [key for key in raw(name) if key not in ("experiment", "quick", "command", "environment", "settings")]


@pytest.mark.parametrize("name", figures.known_results(RESULTS))
def test_a_measurement_that_is_null_empty_or_a_word_is_refused_or_judged_without(name, tmp_path):
    whole = raw(name)
    for key in top_level(name):
        for put in (None, [], {}, "x"):
            content = copy.copy(whole)
            content[key] = put
            try:
                reading = registry.read(name, Result(content, tmp_path / "one.json"))
            except ResultError as error:
                assert "one.json" in str(error)
                continue
            if not name.startswith("beyond"):  # their bootstrap takes seconds
                claim.judge(registry.CLAIMS, {name: reading})


def test_old_results_without_a_new_metric_still_read_and_draw():
    content = raw("vgg_lr_width8")
    for record in content["runs"]:
        for line in record["log"]:
            line["groups"].pop("effective_rank")
            line.pop("paper")
    reading = registry.read("vgg_lr_width8", Result(content))
    assert registry.FIGURES["fig4_independent"].draw({"vgg_lr_width8": reading}, None) is not None
    assert verdict("rate-independent", reading) is True
    assert verdict("rate-effective-rank", reading) == "not resolved"


def test_copies_of_the_first_version_are_one_seed(readings):
    content = raw("divergence")
    del content["small"]
    (one,) = content.pop("runs")
    first_version = registry.read("divergence", Result(content | one))
    assert len(first_version.seeds) == 1 and isinstance(first_version.seeds[0], Copies)
    assert np.array_equal(first_version.seeds[0].distance, readings["divergence"].seeds[0].distance)
    several = registry.read("divergence", Result(content | {"runs": [one, one, one]}))
    assert len(several.seeds) == 3 and verdict("divergence-order", several) is True
