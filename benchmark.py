"""How fast the house is, against the literal way and against the floor, as ratios measured side by side.

  quartic, neuron, pair, diagonal   the whole experiment at the paper's settings; literal: a Python step
            loop, one noise level or one run at a time, timed on a stretch and scaled to the whole job
  training  VGG-16, 128 images a step, narrow on a CPU, on generated images; literal: torchvision's transforms in
            a DataLoader, eager, one synchronisation per step; floor: the network's own step on a fixed batch
  metric    the independent-neuron count of all 15 layers of a VGG-16; literal: all pairs of neurons in
            Python, timed on a stretch of the pairs

  cgd       one exact CGD step of the MLP; literal: torch.func.hessian of all 5,350 parameters and its eigh,
            float64, a minute a step; floor: eigh of a 336 x 336 matrix

  sparse    teacher-student of Sparse Features, all runs and measurements; literal: one run at a time, autograd,
            its training steps alone; floor: the updates of the parameters

  python benchmark.py                  all, about seven minutes on one core
  python benchmark.py metric --quick   one round

Literal and ours alternate in one process on one thread, and time is processor time, so that a busy
machine spoils neither. `floor` is the time to draw our normals (for the metric: its matrix products).
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

import functools
import itertools
import math
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import core
import sparse_features
import teacher_student
import toy_models
from experiments import curvature as exact
from experiments.chaotic_training import Pruning, keep_mask
from lib.settings import Count, Seed, checked
from neurons import step_batches
from training import Images, Team, autocast, evaluate

# ======================================================================================
# The literal ways: each does `steps` of the reference's loop and says how many the whole job has
# ======================================================================================


def literal_quartic(steps):
    """NumPy, one noise level at a time: 1000 trajectories, every state kept as the reference does."""
    zeta, mu, dt = 1.5, 1.5, 0.0025
    theta = 2 * np.random.randn(1000)
    states = np.empty((steps + 1, 1000))
    for step in range(steps):
        states[step] = theta
        noise = np.random.randn(1000)
        theta = theta - (theta**3 - mu * theta) * dt + zeta * theta * math.sqrt(dt) * noise
    return 100 * 80_000


def literal_neuron(steps):
    """One noise level at a time: 1000 trajectories, 32 data points, 32 normals each, Euler-Maruyama."""
    m, dt, eta = 32, 0.01, 2.0
    x = torch.randn(m)
    y = x + 0.1 * torch.randn(m)
    w1, w2 = 1e-3 * torch.randn(2, 1000, 1)
    for _ in range(steps):
        t = torch.tanh(w1 * x)
        d = w2 * (1 - t * t) * x
        residual = w2 * t - y
        kick = math.sqrt(eta * dt / m) * torch.randn(1000, m)
        w1, w2 = (
            w1 - dt * (residual * d).mean(1, keepdim=True) + (d * kick).sum(1, keepdim=True),
            w2 - dt * (residual * t).mean(1, keepdim=True) + (t * kick).sum(1, keepdim=True),
        )
    return 50 * 100_000


def literal_pair(steps):
    """One run at a time: two linear layers, autograd, torch.optim.SGD, a fresh label noise per step."""
    x, y = torch.randn(8, 1), torch.randn(8, 1)
    first, second = torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        output = second(torch.nn.functional.gelu(first(x)))
        loss = 0.5 * (output - y - 0.1 * torch.randn(8, 1)).square().mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            (first.weight[0] - first.weight[1]).square() + (second.weight[0, 0] - second.weight[0, 1]).square()
    return (
        2 * 640 * 10_001
    )  # ours runs 10 conditions x 64 seeds, and as many merged networks (their tangent not counted)


def literal_diagonal(steps):
    """One seed and label noise at a time: u and v apart, losses by matrix products every 100 steps."""
    problem = teacher_student.Problem(*(tensor.float() for tensor in teacher_student.teacher()))
    start = time.process_time()
    u = torch.ones(64)
    v = torch.ones(64)
    for step in range(steps):
        residual = u * v - problem.values + 10 * torch.randn(64)
        u, v = u - 3 / 1024 * residual * v, v - 3 / 1024 * residual * u
        if step % 100 == 0:
            student = problem.left * (u * v) @ problem.right
            (problem.x @ student - problem.y).square().sum().item()
            (student - problem.w).square().mean().item()
    return 5 * 256 * 60_001, time.process_time() - start


RELU_JOB = (  # of `sparse_features.relu`: steps, schedules, parameters
    (14_126, 13 + 7, 60),  # two layers; one data set for all students
    (7063, 8 + 8, 60),  # the search for the largest stable step, twice
    (10_001, 7 + 4, 181),  # three layers; one data set for all students
)


def literal_sparse(steps):
    """One run at a time: the two-layer student, the smaller of both, one example a step, autograd, torch.optim.SGD."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 20, bias=False), torch.nn.ReLU(), torch.nn.Linear(20, 1, bias=False))
    x, y = torch.randn(15, 2), torch.randn(15, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        one = np.random.choice(15, 1, replace=False)
        loss = (model(x[one]) - y[one]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 64 * sum(schedules * whole_run for whole_run, schedules, _ in RELU_JOB)  # 64 seeds


def literal_metric(vectors, pairs):
    """All pairs of neurons in Python, on the first `pairs` pairs of every layer."""
    spent = 0.0
    for rows in vectors:
        n, done, taken, start = len(rows), 0, {}, time.process_time()
        for i, j in itertools.islice(itertools.combinations(range(n), 2), pairs):
            a, b = rows[i], rows[j]
            distance = 2 * (a - b).square().sum() / (a.square().sum() + b.square().sum() + 1e-8)
            if distance < 0.1 and j not in taken:
                taken[j] = i
            done += 1
        spent += (time.process_time() - start) * n * (n - 1) / 2 / done
    return spent


# ======================================================================================
# Side by side
# ======================================================================================


def compare(literal, ours, floor, rounds):
    """Medians over alternating rounds: processor seconds of the whole job, literal, ours and floor, and the ratios.

    A way is timed, unless it returns the seconds (a float) itself.
    """
    rows = []
    for _ in range(rounds):
        row = []
        for way in (literal, ours, floor):
            start = time.process_time()
            seconds = way()
            row.append(seconds if isinstance(seconds, float) else time.process_time() - start)
        rows.append([*row, row[0] / row[1], row[1] / row[2]])
    middle, ratios = np.median(rows, 0), [row[3] for row in rows]
    print(
        f"literal {middle[0]:.4g} s, ours {middle[1]:.4g} s: {middle[3]:.0f} times faster "
        f"({min(ratios):.0f} to {max(ratios):.0f}); {middle[4]:.1f} times the floor"
    )
    return {
        "literal_seconds": middle[0],
        "seconds": middle[1],
        "floor_seconds": middle[2],
        "speedup": middle[3],
        "speedup_range": [min(ratios), max(ratios)],
        "times_floor": middle[4],
    }


def stretch(literal, steps):
    """Processor seconds of the whole literal job, from `steps` of it."""

    def way():
        start = time.process_time()
        whole = literal(steps)
        whole, spent = whole if isinstance(whole, tuple) else (whole, time.process_time() - start)
        return spent * whole / steps

    return way


def normals(*draws):
    """Draw normals: (number of times, shape)."""

    def way():
        for times, shape in draws:
            buffer = torch.empty(shape)
            for _ in range(times):
                buffer.normal_()

    return way


def of_processor(experiment):
    """The experiment, refused on a GPU: it is timed by the processor's clock."""

    @functools.wraps(experiment)
    def measured(*, device="cpu", **settings):
        if torch.device(device).type != "cpu":
            raise ValueError("this benchmark measures processor time: give --device cpu")
        return experiment(device=device, **settings)

    return measured


def quartic(rounds: Count = 3, steps: Count = 3000, seed: Seed = 0, device="cpu") -> dict:
    floor = normals((10_000, (3, 4000)), (800, (100, 1000)))
    return compare(stretch(literal_quartic, steps), toy_models.quartic, floor, rounds)


def neuron(rounds: Count = 2, steps: Count = 500, seed: Seed = 0, device="cpu") -> dict:
    floor = normals((5000, (2, 50, 1000)), (3500, (2, 40, 500)))
    return compare(stretch(literal_neuron, steps), toy_models.neuron, floor, rounds)


def pair(rounds: Count = 3, steps: Count = 2000, seed: Seed = 0, device="cpu") -> dict:
    """The whole experiment, and as `published` the paper's 80 runs alone (ours: with their merged networks still)."""
    floor = normals((10_001, (64, 2, 8)))
    whole = compare(stretch(literal_pair, steps), toy_models.pair, floor, rounds)
    eighty = stretch(lambda n: literal_pair(n) / 16, steps)
    alone = functools.partial(toy_models.pair, extra_replicas=0)
    return whole | {"published": compare(eighty, alone, normals((10_001, (8, 2, 8))), rounds)}


def diagonal(rounds: Count = 3, steps: Count = 10_000, seed: Seed = 0, device="cpu") -> dict:
    floor = normals((60_001, (256, 64)))
    return compare(stretch(literal_diagonal, steps), teacher_student.diagonal, floor, rounds)


def sparse(rounds: Count = 2, steps: Count = 5000, seed: Seed = 0, device="cpu") -> dict:
    def floor():
        for times, runs, parameters in RELU_JOB:
            theta = torch.zeros(runs, 64, parameters, dtype=torch.float64)
            step, rate = torch.ones_like(theta), torch.ones_like(theta[..., :1])
            for _ in range(times):
                theta.addcmul_(step, rate, value=-1)

    literal_sparse(100)  # what only the first steps pay
    return compare(stretch(literal_sparse, steps), sparse_features.relu, floor, rounds)


def metric(rounds: Count = 5, pairs: Count = 2000, seed: Seed = 0, device="cpu") -> dict:
    torch.manual_seed(seed)
    groups = core.neuron_groups(core.vgg16(), torch.zeros(1, 3, 32, 32))
    vectors = [group.vectors() for group in groups]

    def ours():
        for layer in vectors:
            core.independent_neurons(layer)

    def floor():
        for layer in vectors:
            layer @ layer.T

    ours()
    return compare(lambda: literal_metric(vectors, pairs), ours, floor, rounds)


def training(
    rounds: Count = 3, steps: Count = 40, width: Count = 8, batch_size: Count = 128, seed: Seed = 0, device="cpu"
) -> dict:
    """`data_share`: part of a step spent on order, crops, flips and labels; `evaluation_steps`: cost of one evaluation
    with its collapse report, in steps; `images_per_second` in the time of `seconds`, which is for `steps` steps;
    `matrix_share`: multiplications and additions of a step per second, over those of a 2048 x 2048 matrix product.
    """
    from torchvision import transforms

    device = torch.device(device)
    dataset = core.load_dataset("synthetic")
    run = core.Run(dataset="synthetic", width=width, batch_size=batch_size, steps=10**6, seed=seed)
    data = Images(dataset, "synthetic", device)
    torch.manual_seed(seed)
    model = core.vgg16(10, width).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step(x, y):
        with autocast(device, "auto"):
            output = model(x)
        loss = torch.nn.functional.cross_entropy(output.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def clock():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if device.type == "cuda" else time.process_time()

    def per_job(way):
        def measured():
            start = clock()
            way()
            return clock() - start

        return measured

    def batches():
        return step_batches(data, run, 0, steps)

    pipeline = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )

    class Plain(torch.utils.data.Dataset):
        def __len__(self):
            return batch_size * steps

        def __getitem__(self, k):
            return pipeline(dataset.train_images[k % 4096]), int(dataset.train_labels[k % 4096])

    def literal():
        for x, y in torch.utils.data.DataLoader(Plain(), batch_size):
            step(x.to(device), y.to(device)).item()

    def ours():
        for x, y in batches():
            step(x, y)

    fixed = next(batches())

    def floor():
        for _ in range(steps):
            step(*fixed)

    floor()
    result = compare(per_job(literal), per_job(ours), per_job(floor), rounds)
    groups = core.neuron_groups(model, fixed[0][:1])
    evaluation = per_job(lambda: (evaluate(model, data, Team(), "auto"), core.collapse_report(groups)))
    share = np.median([per_job(lambda: [None for _ in batches()])() for _ in range(rounds)]) / result["seconds"]
    result |= {"data_share": share, "images_per_second": batch_size * steps / result["seconds"]}
    result |= {"evaluation_steps": evaluation() / result["seconds"] * steps}
    square = torch.randn(2048, 2048, device=device)

    def product():
        with autocast(device, "auto"):
            square @ square

    product()
    with FlopCounterMode(display=False) as counter:
        step(*fixed)
    rate = 2 * 2048**3 / np.median([per_job(product)() for _ in range(5)])
    result["matrix_share"] = counter.get_total_flops() * steps / result["seconds"] / rate
    print(
        f"{result['images_per_second']:.0f} images/s, {result['matrix_share']:.1%} of the matrix rate "
        f"({rate / 1e9:.0f} Gflop/s); data {share:.1%} of a step; an evaluation of {len(data.test)} images "
        f"with its report costs {result['evaluation_steps']:.0f} steps"
    )
    return result


def cgd(rounds: Count = 2, repeats: Count = 50, batch_size: Count = 8, seed: Seed = 0, device="cpu") -> dict:
    """Processor seconds of one step, as medians over alternating rounds, and their ratio.

    `agreement` is the largest difference of the two pruned gradients, relative to the largest component.
    Raises RuntimeError if it exceeds 1e-5: a speed-up of something else is none.
    """
    task = exact.Task("mlp", "sigmoid")
    rule = Pruning("chaotic")
    learning_rate = 1e-3
    draw = torch.Generator().manual_seed(seed)
    theta = 2 * exact.initial(seed, task)[None]
    x = exact.with_ones(torch.randn(1, batch_size, 256, generator=draw, dtype=torch.float64))
    y = torch.randint(10, (1, batch_size), generator=draw)

    def loss(one):
        value, _ = exact.losses(one[None], x, y, task)
        return value[0]

    gradient = torch.func.grad(loss)(theta[0])
    updates = {}

    def literal():
        eigenvalues, eigenvectors = torch.linalg.eigh(torch.func.hessian(loss)(theta[0]))
        # The 5,014 flat directions come out as rounding noise of either sign; the gradient has no part in them.
        keep = keep_mask(eigenvalues, learning_rate, rule)
        updates["literal"] = eigenvectors @ (keep * (eigenvectors.T @ gradient))

    def ours():
        hessian, basis = exact.curvature(theta, x, y, task)
        eigenvalues, eigenvectors = exact.eigh(hessian)
        keep = keep_mask(eigenvalues[0], learning_rate, rule)
        updates["ours"] = exact.project(gradient[None], keep[None], eigenvectors, basis)[0]

    matrix = torch.randn(336, 336, generator=draw, dtype=torch.float64)

    def floor():
        torch.linalg.eigh(matrix + matrix.T)

    def one_of_many(way):
        start = time.process_time()
        for _ in range(repeats):
            way()
        return (time.process_time() - start) / repeats

    result = compare(literal, lambda: one_of_many(ours), lambda: one_of_many(floor), rounds)
    difference = (updates["literal"] - updates["ours"]).abs().max()
    agreement = (difference / updates["ours"].abs().max()).item()
    if agreement > 1e-5:
        raise RuntimeError(f"the updates differ by {agreement:.1e}: this is no comparison")
    return result | {"agreement": agreement}


if __name__ == "__main__":
    experiments = {
        "quartic": quartic,
        "neuron": neuron,
        "pair": pair,
        "diagonal": diagonal,
        "training": training,
        "metric": metric,
        "cgd": cgd,
        "sparse": sparse,
    }
    experiments = {name: checked(e if e is training else of_processor(e)) for name, e in experiments.items()}
    core.run_script(__doc__, experiments, {name: {"rounds": 1} for name in experiments}, prefix="benchmark_")
