"""Tests of experiments/invariance.py: what it calls exact is, and what isn't an invariant set is found out."""

import pytest
import torch
from torch import nn

from experiments import invariance

TRAINING = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "steps": 5, "batch_size": 16}


@pytest.mark.parametrize("which", invariance.SETS)
@pytest.mark.parametrize("case", invariance.CASES, ids=lambda case: case.name)
def test_sgd_stays_on_an_invariant_set_and_off_it(case, which):
    row = invariance.try_set(case, which, 1e-6, 0, **TRAINING)
    assert row["largest"] <= 1e-12 and row["moved"] > 1e-3
    assert 1e-7 < row["control"] < 1e-4


def test_a_set_that_is_not_invariant_is_found_out():
    """A sigmoid's silent neuron gives on 1/2: its outgoing weights don't stay 0."""

    def make():
        return nn.Sequential(nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 5))

    case = invariance.Case("sigmoid", make, invariance.mlp_layer, (12,))
    assert invariance.try_set(case, "sign", 1e-6, 0, **TRAINING)["largest"] > 1e-3


def test_distances_of_known_networks():
    model = invariance.mlp().double()
    neurons = invariance.mlp_layer(model)
    invariance.put_on_set(neurons, "permutation")
    assert invariance.distance_to_set(neurons, "permutation") == 0
    with torch.no_grad():
        for part in neurons.parts:
            part.of(0).copy_(-part.of(1))
    assert invariance.distance_to_set(neurons, "permutation") == pytest.approx(2**0.5)  # opposite
    assert invariance.distance_to_set(neurons, "sign") == pytest.approx(1)
