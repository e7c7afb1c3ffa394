"""Tests of lib/settings.py: the range of every setting, in one place."""

import dataclasses
import functools
import inspect
import math
from typing import Literal

import pytest

import chaotic_sgd
import sparse_features
import teacher_student
import toy_models
from lib.command import run_script
from lib.errors import InputError
from lib.settings import Count, CountOrZero, Momentum, NotNegative, Positive, Seed, check_settings, checked


@checked
def experiment(
    steps: Count = 10,
    extra: CountOrZero | None = None,
    rate: Positive = 0.1,
    noise: NotNegative | Literal["mean"] = 0.0,
    momentum: Momentum = 0.9,
    sizes: tuple[Count, ...] = (1, 2),
    rule: Literal["first", "last"] = "first",
    name: str = "x",
    free=None,
    seed: Seed = 0,
):
    """What it does."""
    return steps


@pytest.mark.parametrize(
    "settings",
    [{}, {"steps": 1, "extra": 0, "rate": 1}, {"noise": "mean"}, {"noise": 2}, {"sizes": [3]}, {"free": object()}],
)
def test_settings_within_their_ranges_are_taken(settings):
    assert experiment(**settings) == settings.get("steps", 10)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"steps": 0}, "steps: expected a whole number, at least 1, not 0"),
        ({"steps": 2.5}, "steps: expected a whole number"),
        ({"steps": True}, "steps"),
        ({"extra": -1}, "extra: expected a whole number, at least 0 or none, not -1"),
        ({"rate": 0}, "rate: expected a number, above 0, not 0"),
        ({"rate": math.nan}, "rate"),
        ({"rate": math.inf}, "rate"),
        ({"noise": -1}, "noise: expected a number, at least 0 or mean, not -1"),
        ({"noise": "loud"}, "noise"),
        ({"momentum": 1.0}, "momentum: expected a number, at least 0 and below 1, not 1.0"),
        ({"sizes": ()}, "sizes: expected one or more, each a whole number, at least 1"),
        ({"sizes": (1, 0)}, "sizes"),
        ({"sizes": 3}, "sizes"),
        ({"rule": "middle"}, "rule: expected first or last, not 'middle'"),
        ({"name": 3}, "name: expected str, not 3"),
        ({"seed": -1}, "seed: expected a whole number, at least 0 and at most 1,000,000, not -1"),
    ],
)
def test_settings_out_of_their_ranges_are_refused_by_name(settings, words):
    with pytest.raises(InputError) as refused:
        experiment(**settings)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError):
        check_settings(functools.partial(experiment, steps=3), settings)


def test_fields_of_a_dataclass_can_have_ranges_too():
    @dataclasses.dataclass
    class Run:
        steps: Count = 10
        rate: Positive = 0.1

    check_settings(Run, dataclasses.asdict(Run()))
    with pytest.raises(InputError, match="rate: expected a number, above 0, not nan"):
        check_settings(Run, dataclasses.asdict(Run(rate=math.nan)))


def test_a_mistake_in_the_code_is_no_bad_input():
    with pytest.raises(TypeError):
        experiment(stops=3)
    assert experiment.__doc__ == "What it does." and "rate" in inspect.signature(experiment).parameters


EXPERIMENTS = {
    "quartic": toy_models.quartic,
    "neuron": toy_models.neuron,
    "pair": toy_models.pair,
    "diagonal": teacher_student.diagonal,
    "minibatch": teacher_student.minibatch,
    "sparse_diagonal": sparse_features.diagonal,
    "regression": sparse_features.regression,
    "relu": sparse_features.relu,
    "deep": sparse_features.deep,
    **chaotic_sgd.EXPERIMENTS,
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_number_among_the_settings_has_a_range(name):
    """NaN, and for whole numbers -1, are refused wherever a default is a number or several: before any work."""
    function = EXPERIMENTS[name]
    for setting, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        numbers = default if isinstance(default, tuple) else (default,)
        if not all(isinstance(one, int | float) for one in numbers):
            continue
        bad_values = [(math.nan,), ()] if isinstance(default, tuple) else [math.nan, math.inf]
        if isinstance(default, int):
            bad_values.append(-1)
        for bad in bad_values:
            with pytest.raises(InputError, match=f"^{setting}: expected"):
                function(**{setting: bad})


@pytest.mark.parametrize(
    "name, setting",
    [
        ("quartic", "replicas=-1"),
        ("quartic", "replicas=0"),
        ("quartic", "checkpoints=0"),
        ("quartic", "coarse_steps=0"),
        ("quartic", "threshold=0"),
        ("quartic", "trajectory_noises=()"),
        ("quartic", "mu=1e999"),
        ("quartic", "euler_step=0"),
        ("neuron", "points=0"),
        ("pair", "steps=0"),
        ("pair", "momentum=1.0"),
        ("diagonal", "every=0"),
        ("minibatch", "batch_sizes=0"),
        ("deep", "small=-1.0"),
        ("pruning", "learning_rate=1e999"),
        ("pruning", "noise=-1"),
    ],
)
def test_settings_of_the_command_line_are_held_to_the_same_ranges(name, setting, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script("doc", {name: EXPERIMENTS[name]}, {}, [name, "--set", setting, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"{setting.partition('=')[0]}: expected" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
