"""Sparse features"""

import torch

import core
import sparse_networks
from core import Run, load_dataset, run_script

RECIPES = {  # of the reference code: settings of all runs, the small step, the exponential warm-up of the large one
    "plain": ({"momentum": 0.0, "weight_decay": 0.0, "augment": False}, 0.01, {"learning_rate": 0.75, "growth": 1.05}),
    "full": ({"momentum": 0.9, "weight_decay": 5e-4, "augment": True}, 0.002, {"learning_rate": 0.05, "growth": 1.0}),
}


def schedules(recipe: str, steps: int, small: float | None, decays: tuple) -> dict[tuple[str, float], dict]:
    """Fields of `core.Run` by (schedule, decay time as a share of the run).

    "published": the large step (peak learning_rate x growth^(100 decay)) is divided by 10 at the decay and again at
    90 %; without warm-up the reference divides by 5 / decay first. "clean": the same peak and divisor, 10, for all, so
    that only the duration differs.
    """
    common, default, large = RECIPES[recipe]
    runs = {("small", 0.0): {"learning_rate": small or default}}
    for decay in decays:
        times = {"decay_steps": (int(decay * steps), int(0.9 * steps))}
        first = 0.1 if large["growth"] > 1 else round(decay / 5, 6)
        runs["published", decay] = large | times | {"decay_factors": (first, 0.1)}
        runs["clean", decay] = large | times | {"decay_factors": (0.1, 0.1), "growth": 1.0}
    return {key: common | fields for key, fields in runs.items()}


def deep(
    model="resnet18", dataset="cifar10", data="data", recipe="plain", small=None, decays=(0.1, 0.3, 0.5),
    width=64, batch_size=256, steps=19_500, evaluations=50, seeds=1, precision="auto", runs="runs/sparse_features",
    seed=0, device="cpu",
) -> dict | None:  # fmt: skip
    """Train deep networks with small and large steps; feature sparsity of each block along the way.

    Returns a record per run: schedule, decay, seed, settings, and by columns what `core.train` and
    `sparse_networks.measure` log. None on torchrun ranks other than 0.
    """
    if model not in sparse_networks.NETWORKS or recipe not in RECIPES:
        raise ValueError(f"models: {', '.join(sparse_networks.NETWORKS)}; recipes: {', '.join(RECIPES)}")
    if min(width, batch_size, steps, evaluations, seeds) < 1 or width % 2 or steps < evaluations:
        raise ValueError("width (even), batch size, steps, evaluations and seeds must be positive")
    torch.set_float32_matmul_precision("high")  # TF32 where there is no bfloat16
    base = {"model": f"plain-{model}", "dataset": dataset, "width": width, "batch_size": batch_size, "steps": steps}
    base |= {"eval_every": steps // evaluations, "precision": precision, "warmup_steps": 0, "normalize": False}
    planned = {
        (*key, one): Run(**base, **fields, seed=one)
        for key, fields in schedules(recipe, steps, small, tuple(decays)).items()
        for one in range(seed, seed + seeds)
    }
    images = core.first_rank_first(lambda: load_dataset(dataset, data), torch.device(device))
    distinct = list(dict.fromkeys(planned.values()))  # the clean and the published run may be the same
    options = {"build": sparse_networks.build, "measure": sparse_networks.measure}
    records = core.sweep(distinct, images, runs, torch.device(device), **options)
    if records is None:
        return None
    found = []
    for (schedule, decay, one), run in planned.items():
        record = records[distinct.index(run)]
        columns = {key: [line[key] for line in record["log"]] for key in (record["log"] or [{}])[0]}
        about = {"schedule": schedule, "decay": decay, "seed": one, "peak": max_rate(run)}
        found.append(about | columns | {"diverged_at": record["diverged_at"], "seconds": record["seconds"]})
    return {"source": images.source, "blocks": sparse_networks.BLOCKS[model], "runs": found}


def max_rate(run: Run) -> float:
    return max(core.learning_rate_at(run, step) for step in range(run.steps))


def main(argv: list[str] | None = None) -> None:
    small = {"dataset": "synthetic", "width": 4, "batch_size": 64, "steps": 20, "evaluations": 2, "decays": (0.3,)}
    quick = {"deep": small | {"runs": "runs/quick/sparse_features"}}
    options = {
        "model": {"help": "of deep: resnet18, resnet34, densenet100, vgg16"},
        "recipe": {"choices": list(RECIPES), "help": "of deep: plain"},
        "small": {"type": float}, "width": {"type": int}, "batch_size": {"type": int}, "steps": {"type": int},
        "evaluations": {"type": int}, "seeds": {"type": int}, "dataset": {}, "data": {}, "runs": {},
        "decays": {"type": float, "nargs": "+"},
    }
    run_script(__doc__, {"deep": deep}, quick, argv, prefix="sparse_", options=options)


if __name__ == "__main__":
    main()
