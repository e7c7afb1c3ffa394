"""Tests of sparse_features.py and its pieces, against literal loops, and of what training does for it."""

import copy
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import core
import sparse_features
from core import Run
from experiments import block_features, diagonal_networks, plain_networks, relu_networks, seed_records
from experiments.diagonal_networks import Group, Noise, diagonal_walk, draw_regression, orders
from experiments.relu_networks import Net, Problem, Schedule
from lib.batches import Images
from lib.data import synthetic_dataset
from lib.errors import InputError


@pytest.fixture(autouse=True)
def no_denormals():
    torch.set_flush_denormal(True)


# ======================================================================================
# feature sparsity
# ======================================================================================


def literal_sparsity(features, correlation):
    """The reference's way: drop dead units, then delete units one after the other while a correlated one is left."""
    features = np.array(features, dtype=float)
    total = features.size
    features = features[:, (features > 0).any(0)]
    index = 0
    while index < features.shape[1]:
        column, doomed = features[:, index], False
        for other in range(features.shape[1]):
            if other != index and column.std() > 1e-12 and features[:, other].std() > 1e-12:
                doomed |= abs(np.corrcoef(column, features[:, other])[0, 1]) > correlation
        if doomed:
            features = np.delete(features, index, 1)
        else:
            index += 1
    return (features > 0).sum() / total


@pytest.mark.parametrize("seed", range(12))
def test_feature_sparsity_equals_the_deletion_loop(seed):
    """With planted copies, scaled, shifted and negated ones, chains of near copies, constant and dead units."""
    draw = np.random.RandomState(seed)
    n, m = draw.randint(4, 30), draw.randint(2, 14)
    base = np.maximum(draw.randn(n, m), 0)
    parts = [base, 3 * base[:, : m // 2], base[:, :2] + 0.7, np.maximum(2 - base[:, :2], 0), np.zeros((n, 2))]
    parts += [np.full((n, 2), 0.1), base[:, :3] + 0.1 * draw.randn(n, min(m, 3))]
    features = np.concatenate(parts, 1)
    features = features[:, draw.permutation(features.shape[1])]
    for correlation in (0.95, 0.999, 0.5):
        expected = literal_sparsity(features, correlation)
        for kind in (torch.float64, torch.float32):
            found = core.feature_sparsity(torch.from_numpy(features).to(kind), correlation)
            assert found == pytest.approx(expected, abs=1e-12), (seed, correlation)
    assert seed_records.sparsities(torch.from_numpy(features)[None], 0.95).item() == pytest.approx(
        literal_sparsity(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), 0.95)
    )


def test_feature_sparsity_of_known_cases():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 0.0]])
    assert core.feature_sparsity(x) == 0.5 and core.feature_sparsity(torch.zeros(5, 3)) == 0.0
    assert core.feature_sparsity(torch.cat([x, x, x], 1)) == pytest.approx(0.5 / 3)  # copies count as zeros
    assert core.feature_sparsity(torch.full((1000, 3), 0.1)) == 1.0  # constant units have no correlation
    assert core.feature_sparsity(torch.ones(1, 4)) == 1.0 and core.feature_sparsity(-torch.ones(4, 4)) == 0.0
    for bad in (torch.tensor([[math.nan, 1.0]]), torch.tensor([[math.inf, 1.0]]), torch.ones(0, 3), torch.ones(3)):
        with pytest.raises(ValueError, match="features"):
            core.feature_sparsity(bad)


# ======================================================================================
# diagonal linear networks
# ======================================================================================


def small_problem(n=6, d=9):
    return draw_regression(n, d, 3, 1)


def walk_states(problem, groups, steps, times, **settings):
    """(u, v) of a walk at each of the times."""
    walk = diagonal_walk(problem.x[None], problem.labels()[None], groups, steps, times, **settings)
    return {one.time: ((one.p + one.q) / 2, (one.p - one.q) / 2) for one in walk}


def test_the_data_are_the_references():
    for (n, d), norm, loss in (((80, 200), 3.2256, 0.50190), ((40, 100), 3.7013, 0.64901)):
        x, x_test, target = problem = draw_regression(n, d, 20, 0)
        assert target.sum().item() == pytest.approx(norm, abs=5e-5) and target.norm().item() == pytest.approx(1)
        assert (problem.labels().square().mean() / 2).item() == pytest.approx(loss, abs=5e-6)
        assert x.shape == (n, d) and x_test.shape == (1000, d) and (target > 0).sum() == 20
    x, _, target = problem = small_problem()
    gradient = torch.cat([x * target.sqrt(), x * target.sqrt()], 1)  # of h by (u, v)
    expected = 1.65 / gradient.square().sum(1).mean().item()
    assert diagonal_networks.stable_gamma(1.65, problem) == pytest.approx(expected)


def test_sgd_equals_a_plain_loop_seed_by_seed_and_divides_after_the_step():
    problem = small_problem()
    x, y = problem.x, problem.labels()
    groups = [Group("a", 0.1), Group("b", 0.2, decay=0.25, divisor=4.8)]
    found = walk_states(problem, groups, 200, [0, 1, 199], order=orders(6, 200, (3, 4, 5)))
    for k, seed in enumerate((3, 4, 5)):
        np.random.seed(seed)
        stream = [np.random.randint(6) for _ in range(200)]  # one call a step, as the reference
        for g, (gamma, drop, divisor) in enumerate(((0.1, None, 1.0), (0.2, 50, 4.8))):
            u, v = torch.full((9,), 0.1, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
            for t in range(199):
                residual = (u * v) @ x[stream[t]] - y[stream[t]]
                step = gamma * residual * x[stream[t]]
                u, v = u - step * v, v - step * u
                gamma = gamma / divisor if t == drop else gamma
            torch.testing.assert_close(found[199][0][g, 0, k], u, rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(found[199][1][g, 0, k], v, rtol=1e-10, atol=1e-14)
    assert (found[0][0] == 0.1).all() and (found[0][1] == 0).all()


def test_gd_and_the_sde_equal_plain_loops():
    problem = small_problem()
    x, y = problem.x, problem.labels()
    groups = [Group("gd", 0.3), Group("true", 0.2, 0.3, 2.0, "true"), Group("constant", 0.2, 0.3, 1.0, 0.02)]
    noise = Noise(torch.Generator().manual_seed(0), streams=2)
    u_found, v_found = walk_states(problem, groups, 100, [80], noise=noise)[80]
    for g, group in enumerate(groups):
        draw, gamma = torch.Generator().manual_seed(0), group.gamma
        u, v = torch.full((2, 9), 0.1, dtype=torch.float64), torch.zeros(2, 9, dtype=torch.float64)
        for t in range(80):
            z = torch.randn(1, 2, 6, generator=draw, dtype=torch.float64)[0]
            residual = (u * v) @ x.T - y
            loss = residual.square().mean(1, keepdim=True) / 2
            after = group.decay and t > 30
            level = loss if group.delta == "true" else 0.0 if after else group.delta
            phi = torch.cat([x[None] * v[:, None], x[None] * u[:, None]], -1)  # [2, n, 2 d]: gradients by u and v
            push = residual / 6 - torch.as_tensor(2 * level / 6).sqrt() * z
            change = gamma * (push[:, None] @ phi)[:, 0]
            u, v = u - change[:, :9], v - change[:, 9:]
            gamma = gamma / group.divisor if group.decay and t == 30 else gamma
        torch.testing.assert_close(u_found[g, 0], u, rtol=1e-6, atol=1e-9)  # large steps blow rounding up
        torch.testing.assert_close(v_found[g, 0], v, rtol=1e-6, atol=1e-9)
    (u, v) = walk_states(problem, groups[:1], 100, [80])[80]  # GD without drawing any noise
    torch.testing.assert_close(u[0, 0, 0], u_found[0, 0, 0], rtol=1e-12, atol=0)


def test_balancedness_shrinks_by_the_exact_factor():
    """u^2 - v^2 is multiplied by 1 - gamma^2 r^2 x^2 at each SGD step, by 1 - gamma^2 g^2 at each GD step."""
    problem = small_problem()
    x, y = problem.x, problem.labels()
    order, gamma = orders(6, 400, (0,)), 0.25
    sgd = walk_states(problem, [Group("sgd", gamma)], 400, range(400), order=order)
    gd = walk_states(problem, [Group("gd", gamma)], 400, range(400))
    for seen, batch in ((sgd, lambda t: order[t]), (gd, lambda t: slice(None))):
        for t in range(399):
            (u, v), (u1, v1) = seen[t], seen[t + 1]
            rows, labels = x[batch(t)], y[batch(t)]
            step = gamma * ((u * v)[0, 0, 0] @ rows.T - labels) @ rows / len(rows)
            expected = (u * u - v * v)[0, 0, 0] * (1 - step * step)
            torch.testing.assert_close((u1 * u1 - v1 * v1)[0, 0, 0], expected, rtol=5e-11, atol=1e-16)


def test_what_is_measured_along_the_diagonal_runs():
    """Noise by enumeration of the examples; rank from the square factor as from the whole Jacobian; losses."""
    problem = small_problem()
    group, order = Group("one", 0.25), orders(6, 400, (1,))
    (record,) = diagonal_networks.diagonal_runs([problem], [group], 400, 8, order)
    last = seed_records.moments(400, 8)[-1]
    assert last == 397
    u, v = (one[0, 0, 0] for one in walk_states(problem, [group], 400, [last], order=order)[last])
    x, x_test, target = problem
    residual = x @ (u * v - target)
    phi = torch.cat([x * v, x * u], 1)
    steps = residual[:, None] * phi
    final = {name: values[0].item() for name, values in record["final"].items()}
    assert final["noise"] == pytest.approx((steps - steps.mean(0)).square().sum(1).mean().item(), rel=1e-3)
    assert final["jacobian"] == pytest.approx(phi.square().sum().item(), rel=1e-3)
    assert final["train"] == pytest.approx(residual.square().mean().item() / 2, rel=1e-3)
    assert final["test"] == pytest.approx((x_test @ (u * v - target)).square().mean().item() / 2, rel=1e-3)
    singular = torch.linalg.svdvals(torch.cat([x_test[:18] * u, x_test[:18] * v], 1))
    assert final["rank"] == (singular[:9] / singular[0] > 1e-15).sum()


def test_a_plateau_is_measured_before_the_decay():
    """Medians of the training loss over the right steps, and the rest at the right ones."""
    problem = small_problem()
    group, order = Group("large", 0.3, decay=0.3, divisor=4.0), orders(6, 1000, (1, 2))
    (record,) = diagonal_networks.diagonal_runs([problem], [group], 1000, 8, order, plateaus=True)
    states = walk_states(problem, [group], 1000, range(1000), order=order)
    losses = []
    for u, v in states.values():
        residual = (u * v)[0, 0] @ problem.x.T - problem.labels()
        losses.append(residual.square().mean(-1) / 2)
    losses = torch.stack(losses)
    plateau = record["plateau"]
    for found, first, last in (
        (plateau["start"]["train"], 40, 50),
        (plateau["end"]["train"], 250, 300),
        (plateau["levels"][0], 10, 100),
        (plateau["levels"][1], 100, 300),
    ):
        torch.testing.assert_close(found, losses[first : last + 1].median(0).values, rtol=1e-3, atol=0)
    assert len(plateau["levels"]) == 2
    u, v = states[300]  # just before the division
    jacobian = ((u * u + v * v)[0, 0] @ problem.x.square().T).sum(-1)
    torch.testing.assert_close(plateau["end"]["jacobian"], jacobian, rtol=1e-3, atol=0)


def test_label_noise_of_one_example_has_mean_zero_and_variance_two_losses():
    """xi_i = r_i (1/n - 1{i = i_t}): E xi = 0, E |xi|^2 = 2 (1 - 1/n) L, over all n choices of i_t."""
    r = torch.randn(7, dtype=torch.float64)
    xi = r * (1 / 7 - torch.eye(7, dtype=torch.float64))
    assert xi.mean(0).abs().max() < 1e-15
    assert xi.square().sum(1).mean().item() == pytest.approx(2 * (1 - 1 / 7) * r.square().mean().item() / 2)


def two_cycle(a):
    """Loss levels, in units of y^2, of the 2-cycle of GD on (x^2 - y)^2 / 4, a = eta y; 1 < a < sqrt(5) - 1."""
    root = math.sqrt((a - 1) * (a + 3))
    squares = np.array([a + 1 + root, a + 1 - root]) / (2 * a)  # x^2 / y
    return np.sort((squares - 1) ** 2 / 4)


def test_the_scalar_model_ends_on_its_two_cycle():
    a = (0.5, 1.05, 1.1, 1.23)
    losses = diagonal_networks.cycles(a).numpy()
    assert losses[0].max() < 1e-25 and losses[2] == pytest.approx([0.01508, 0.02831], abs=5e-6)
    for level, found in zip(a[1:], losses[1:], strict=True):
        assert found == pytest.approx(two_cycle(level), rel=1e-6)
    assert diagonal_networks.cycles((1.26,)).numpy()[0] != pytest.approx(two_cycle(1.26), rel=1e-2)  # 4 steps there


# ======================================================================================
# ReLU networks
# ======================================================================================

NETS = {
    "line": Net((1, 7, 1), (True, False)),
    "circle": Net((2, 5, 1), (False, False)),
    "sphere": Net((5, 4, 3, 1), (True, True, True)),
}


def plain(theta, x, net):
    at = 0
    for k, (below, above) in enumerate(itertools.pairwise(net.sizes)):
        x = x @ theta[at : at + below * above].view(above, below).T
        at += below * above
        if net.biases[k]:
            x = x + theta[at : at + above]
            at += above
        x = x.relu() if k + 2 < len(net.sizes) else x
    return x[..., 0]


def parameters(net):
    layers = zip(net.sizes[:-1], net.sizes[1:], net.biases, strict=True)
    return sum(below * above + above * biased for below, above, biased in layers)


@pytest.mark.parametrize("name", NETS)
def test_outputs_and_jacobians_equal_autograd(name):
    net = NETS[name]
    draw = torch.Generator().manual_seed(0)
    theta = torch.randn(2, 3, parameters(net), generator=draw, dtype=torch.float64)
    x = torch.randn(3, 6, net.sizes[0], generator=draw, dtype=torch.float64)
    output, hidden = relu_networks.forward(theta, x, net)
    jacobian = relu_networks.jacobian(theta, x, net, hidden)
    assert [one.shape[-1] for one in hidden] == list(net.sizes[1:-1])
    for g in range(2):
        for k in range(3):
            torch.testing.assert_close(output[g, k], plain(theta[g, k], x[k], net))
            expected = torch.func.jacrev(lambda one, k=k: plain(one, x[k], net))(theta[g, k])
            torch.testing.assert_close(jacobian[g, k], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_many_networks_train_as_one_alone_with_autograd(name):
    net = NETS[name]
    draw = torch.Generator().manual_seed(1)
    theta = torch.randn(3, parameters(net), generator=draw, dtype=torch.float64)
    x = torch.randn(3, 5, net.sizes[0], generator=draw, dtype=torch.float64)
    y = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    order = torch.randint(5, (60, 3), generator=draw)
    schedules = [Schedule("ramp", 0.01, 0.5, 3.0, np.array([0.02, 0.03, 0.01]), 0.5), Schedule("constant", 0.005)]
    rate = relu_networks.all_rates(schedules, 60, 3)
    problem = Problem(net, theta, x, y, x, y, x, order)
    ((_, found),) = relu_networks.train(problem, rate, [59])
    for g in range(2):
        for k in range(3):
            one = theta[k].clone().requires_grad_()
            for t in range(59):
                loss = (plain(one, x[k, order[t, k]], net) - y[k, order[t, k]]).square()
                (gradient,) = torch.autograd.grad(loss, one)
                one = (one - rate[t, g, k] * gradient).detach().requires_grad_()
            torch.testing.assert_close(found[g, k], one.detach(), rtol=1e-9, atol=1e-12)


def test_learning_rates_have_the_published_peaks_and_change_before_the_step():
    gamma, steps = 2e-4, 31_623
    for share, f, divisor, peak in ((0.02, 400, 2.5, 2.28e-4), (0.5, 400, 3, 0.0201), (0.5, 500, 3, 0.0251)):
        at, top = int(share * steps), gamma * (1 + (f * share - 1) * share)
        found = Schedule("ramp", gamma, share, divisor, top).rates(steps)[:, 0]
        assert top == pytest.approx(peak, rel=3e-3) and found[at] == found[-1] == pytest.approx(top / divisor)
        i = np.arange(at)
        assert found[:at] == pytest.approx(gamma * (1 + (f * share - 1) * i / steps), rel=1e-4)
    root = Schedule("root", 0.04, 0.3, 2.5, 0.04 * (1 + 5 * math.sqrt(0.3)), 0.5)
    assert root.rates(10_001)[1500, 0] == pytest.approx(0.04 * (1 + 5 * math.sqrt(0.15)), rel=1e-3)
    assert set(Schedule("constant", 0.13).rates(50)[:, 0]) == {0.13}
    later = Schedule("step first", 0.4, 0.5, 4.0, delay=1).rates(10)[:, 0]
    assert later.tolist() == [0.4] * 6 + [0.1] * 4


def test_jacobian_ranks_of_known_matrices():
    draw = torch.Generator().manual_seed(0)
    factors = [torch.linalg.qr(torch.randn(12, 12, generator=draw, dtype=torch.float64))[0] for _ in range(2)]
    values = torch.tensor([1.0, 0.5, 2e-4, 5e-5, 1e-6, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    matrix = torch.stack([factors[0] * values @ factors[1], 1e150 * factors[0] * values @ factors[1]])
    for gram in (True, False):
        for threshold, rank in ((1e-4, 3), (1e-5, 4)):
            assert seed_records.jacobian_ranks(matrix, threshold, gram).tolist() == [rank, rank]
    broken = matrix.clone()
    broken[0, 3, 3] = math.nan
    assert seed_records.jacobian_ranks(broken, 1e-4).isnan().tolist() == [True, False]


def test_teacher_and_data_drawn_once_are_the_same_for_all_students():
    for pair in (relu_networks.TWO_LAYERS, relu_networks.THREE_LAYERS):
        once, teachers = relu_networks.teacher_student(pair, 30, (3, 4), "cpu", data_seed=1)
        assert torch.equal(*teachers) and torch.equal(*once.x) and torch.equal(*once.y)
        assert not torch.equal(*once.start) and not torch.equal(*once.order.T)
        own, teachers = relu_networks.teacher_student(pair, 30, (3, 4), "cpu")
        assert not torch.equal(*teachers) and not torch.equal(*own.x)


def test_records_count_the_diverged_and_leave_them_out():
    values = torch.tensor([[1.0, 2.0, 3.0, math.inf], [0.123456, 5.0, 5.0, 5.0]])
    looks = [{"train": values, "norm": values}, {"train": 2 * values, "norm": values, "rank": values}]
    one, two = seed_records.records([{"name": "a"}, {"name": "b"}], [0, 5], looks)
    assert one["diverged"].tolist() == [1, 1] and two["diverged"].tolist() == [0, 0]
    assert one["curves"]["train"][0].tolist() == pytest.approx([1.2, 2.0, 2.8]) and one["curves"]["rank"].shape == (
        1,
        3,
    )
    assert one["curves"]["norm"].tolist() == [[2.0], [2.0]] and two["final"]["norm"][0].item() == 0.1235
    assert math.isnan(one["final"]["train"][3])


TINY_RELU = {"steps": 100, "deep_steps": 100, "points": 8}


def test_seeds_do_not_depend_on_how_many_there_are():
    few = sparse_features.relu(seeds=2, **TINY_RELU)
    many = sparse_features.relu(seeds=4, **TINY_RELU)
    for key in ("two", "three", "two_fixed", "three_fixed", "two_stable", "two_variants"):
        for a, b in zip(few[key], many[key], strict=True):
            torch.testing.assert_close(a["final"]["test"], b["final"]["test"][:2], rtol=1e-3, atol=0, equal_nan=True)
    assert len(few["neurons"]["edge"]["rows"]) == 20 and few["ladder"][-1] == 0.6


def test_another_seed_is_a_new_sample():
    """No seed of --seed 0 is one of --seed 1, in any experiment; --seed 0 has the reference's."""
    assert list(sparse_features.own_seeds(0, 4, first=1)) == [1, 2, 3, 4]
    assert not set(sparse_features.own_seeds(0, 32)) & set(sparse_features.own_seeds(1, 32))
    runs = [sparse_features.regression(seeds=3, steps=100, points=8, seed=seed) for seed in (0, 1)]
    first, second = (set(run["groups"][0]["final"]["test"].tolist()) for run in runs)
    assert len(first) == 3 and not first & second
    order = [diagonal_networks.orders(80, 50, sparse_features.own_seeds(seed, 4, first=1)) for seed in (0, 1)]
    assert not {tuple(row) for row in order[0].T.tolist()} & {tuple(row) for row in order[1].T.tolist()}


# ======================================================================================
# deep networks
# ======================================================================================

TINY = Run(model="plain-resnet18", dataset="synthetic", width=2, batch_size=16, steps=8, warmup_steps=0, eval_every=4,
           growth=1.05, decay_steps=(4, 6), decay_factors=(0.1, 0.1), normalize=False, precision="float32")  # fmt: skip


def planned_fields(recipe, steps):
    """Fields of the runs by schedule and decay."""
    plans = sparse_features.plans(recipe, steps, None, (0.1, 0.3, 0.5))
    return {(plan.schedule, plan.decay): plan.fields for plan in plans}


def test_learning_rate_grows_until_the_first_decay_and_is_as_before_by_default():
    fields = planned_fields("plain", 19_500)
    for share, peak in ((0.1, 1.22), (0.3, 3.24), (0.5, 8.60)):
        run = Run(**fields["published", share], steps=19_500, warmup_steps=0)
        at = int(share * 19_500)
        before = core.learning_rate_at(run, at - 1)
        assert before == pytest.approx(0.75 * 1.05 ** (100 * (at - 1) / 19_500)) == pytest.approx(peak, rel=5e-3)
        assert core.learning_rate_at(run, at) == pytest.approx(peak / 10, rel=5e-3)
        assert core.learning_rate_at(run, 17_550) == pytest.approx(peak / 100, rel=5e-3)
        clean = Run(**fields["clean", share], steps=19_500, warmup_steps=0)
        rates = [core.learning_rate_at(clean, t) for t in (0, at - 1, at, 17_549, 17_550)]
        assert rates == pytest.approx([0.75, 0.75, 0.075, 0.075, 0.0075])
    full = planned_fields("full", 1000)
    after = [
        core.learning_rate_at(Run(**full["published", s], warmup_steps=0, steps=1000), 600) for s in (0.1, 0.3, 0.5)
    ]
    assert after == pytest.approx([0.05 / 50, 0.05 / (5 / 0.3), 0.05 / 10], rel=1e-5)  # the reference's oddity
    assert Run(**full["published", 0.5]) == Run(**full["clean", 0.5])
    old = Run()
    assert [core.learning_rate_at(old, t) for t in (0, 499, 5000, 99_999)] == [0.1 * 0.001, 0.1 * 0.5, 0.1, 0.1]
    assert old.name == "vgg16_cifar10_lr=0.1_seed=0"
    with pytest.raises(ValueError, match="equally many"):
        core.learning_rate_at(dataclasses.replace(old, decay_steps=(5,)), 7)


def test_networks_have_the_published_sizes_and_blocks():
    count = {name: sum(p.numel() for p in make(10).parameters()) for name, make in plain_networks.NETWORKS.items()}
    assert count["plain-resnet18"] == 11_173_962 and count["plain-resnet34"] == 21_282_122
    assert sum(p.numel() for p in plain_networks.resnet18(100).parameters()) == 11_220_132
    assert count["plain-densenet100"] == 769_162  # DenseNet-BC-100-12
    for name, make in plain_networks.NETWORKS.items():
        model, shapes = make(10, 4), []
        for block in plain_networks.BLOCKS[name]:
            model.get_submodule(block).register_forward_hook(lambda m, i, o, to=shapes: to.append(o))
        model(torch.rand(2, 3, 32, 32))
        assert (
            shapes[-1].shape[2:] == (1, 1) and shapes[0].shape[2:] == (32, 32) and all((o >= 0).all() for o in shapes)
        )
        if name == "plain-resnet18":
            assert [tuple(o.shape[1:]) for o in shapes] == [
                (4, 32, 32),
                (8, 16, 16),
                (16, 8, 8),
                (32, 4, 4),
                (32, 1, 1),
            ]
    model = plain_networks.resnet18(10)
    for weight in (model.conv1.weight, model.layer3[0].conv1.weight):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * weight.shape[0])), rel=0.05)
    assert not model.fc.bias.any()


@pytest.fixture(scope="module")
def images():
    return Images(synthetic_dataset(64, 20), "synthetic", torch.device("cpu"))


def test_block_measure_equals_a_plain_computation_and_leaves_no_trace(images):
    data = images.prepared(False)
    torch.manual_seed(0)
    model = core.build_model(TINY.model, 10, TINY.width)
    columns = block_features.measure(TINY, model, data, images=50, units=10**6, batch=16)
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    found = columns()
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    model.eval()
    x = synthetic_dataset(64, 20).train_images[:50].float() / 255
    with torch.no_grad():
        x = model.relu(model.bn1(model.conv1(x)))
        for k in range(4):
            x = getattr(model, f"layer{k + 1}")(x)
            assert found["active"][k] == pytest.approx((x > 0).float().mean().item(), abs=1e-6)
            assert found["sparsity"][k] == pytest.approx(core.feature_sparsity(x.flatten(1)), abs=0.003)
    model.train()
    few = block_features.measure(TINY, model, data, images=50, units=20)
    first, again = few(), few()
    assert first == again and 0 < first["sparsity"][0] <= 1 and len(first["sparsity"]) == 5


def test_training_measures_blocks_and_goes_on_with_old_settings_to_the_same_bits(images, tmp_path):
    def go(folder, measure):
        return core.train(TINY, images, folder, torch.device("cpu"), title=None, measure=measure)

    whole = go(tmp_path / "whole", block_features.measure)
    assert [line["step"] for line in whole["log"]] == [4, 8] and len(whole["log"][0]["sparsity"]) == 5

    def interrupted(run, model, data):
        columns, calls = block_features.measure(run, model, data), []

        def stop():
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return columns()

        return stop

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "half", interrupted)
    assert json.loads((tmp_path / "half" / "log.jsonl").read_text())["step"] == 4
    assert go(tmp_path / "half", block_features.measure)["log"] == whole["log"]
    settings = json.loads((tmp_path / "half" / "settings.json").read_text())
    assert settings.pop("growth") == 1.05
    (tmp_path / "half" / "settings.json").write_text(json.dumps(settings))  # as if of a version without that field
    with pytest.raises(ValueError, match="another growth;"):
        go(tmp_path / "half", block_features.measure)
    assert not images.prepared().mean.eq(0).all() and images.prepared(False).mean.eq(0).all()
    pixels = images.test[:3]
    torch.testing.assert_close(images.prepared(False).normalized(pixels).permute(0, 2, 3, 1), pixels / 255)


def write_folder(root, tiny):
    """Three classes of 64 x 64 images, as ImageFolder or as Tiny ImageNet unpacks; returns the train images."""
    from torchvision.utils import save_image

    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8)
    for k in range(9):
        split = "train" if k < 6 else "val"
        inner = f"n{k % 3}/images" if split == "train" else "images" if tiny else f"n{k % 3}"
        folder = root / split / inner
        folder.mkdir(parents=True, exist_ok=True)
        save_image(pixels[k] / 255, folder / f"{k}.png")
    if tiny:
        lines = [f"{k}.png\tn{k % 3}\t0\t0\t62\t62\n" for k in (6, 7, 8)]
        (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return pixels[[0, 3, 1, 4, 2, 5]]  # by class


@pytest.mark.parametrize("tiny", [False, True])
def test_a_folder_of_images_is_a_data_set_and_64_pixels_train(tmp_path, tiny):
    pixels = write_folder(tmp_path / "mine", tiny)
    data = core.load_dataset("mine", tmp_path)
    assert torch.equal(data.train_images, pixels) and data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (
        data.test_labels.tolist() == [0, 1, 2] and data.test_images.shape == (3, 3, 64, 64) and data.source == "mine/"
    )
    images = Images(data, "mine", torch.device("cpu"))
    run = dataclasses.replace(TINY, batch_size=6, augment=True)
    crops, labels = core.epoch_of(run, images, 0)
    batch = images.batch(crops)
    padded = F.pad(data.train_images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    for k in range(6):
        corner = crops[k, 0] - 63 * (crops[k, 1] < 0)
        example, row, column = corner // 72**2, corner % 72**2 // 72, corner % 72
        image = padded[example, row : row + 64, column : column + 64]
        assert torch.equal(batch[k], image.flip(1) if crops[k, 1] < 0 else image)
        assert labels[k] == data.train_labels[example]
    assert torch.equal(images.plain_train(6).permute(0, 3, 1, 2), data.train_images)
    if tiny:
        with pytest.raises(InputError, match="at most 32 x 32"):  # VGG-16 of core
            core.train(
                Run(dataset="mine", width=2, batch_size=6, steps=2), images, tmp_path / "run", images.train.device
            )
        (tmp_path / "mine" / "val" / "val_annotations.txt").write_text("6.png n7 0 0 1 1\n")
    else:
        from torchvision.utils import save_image

        for k in (6, 7, 8):  # test images of another size
            save_image(torch.rand(3, 8, 8), tmp_path / "mine" / "val" / f"n{k % 3}" / f"{k}.png")
        with pytest.raises(ValueError, match=r"mine: train images are \(64, 64, 3\), test images \(8, 8, 3\)"):
            core.load_dataset("mine", tmp_path)
        save_image(torch.rand(3, 8, 8), tmp_path / "mine" / "train" / "n0" / "odd.png")
    with pytest.raises(ValueError, match="is not among" if tiny else "one size"):
        core.load_dataset("mine", tmp_path)


# ======================================================================================
# the script, its figures and claims
# ======================================================================================


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("deep", "--model", "transformer"), "no network 'transformer'"),
        (("deep", "--decays", "0.95"), "decays: expected one or more, each a number, above 0 and below 0.9"),
        (("deep", "--small", "-1"), "small: expected a number, above 0"),
        (("deep", "--width", "3"), "width"),
        (("deep", "--dataset", "nothing"), "no data set 'nothing'"),
        (("deep", "--recipe", "strong"), "invalid choice"),
        (("diagonal", "--seeds", "0"), "seeds: expected a whole number, at least 1"),
        (("relu", "--steps", "5"), "steps: expected a whole number, at least 100"),
        (("regression", "--seeds", "-1"), "at least 1"),
        (("sde",), "unknown experiment sde"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sparse_features.main([*arguments, "--out", str(tmp_path), "--quick"])
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json"))
