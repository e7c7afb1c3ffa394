"""Do exponents tell earlier than watching who vanishes? `subnetworks.py windows`."""

from pathlib import Path

import torch

from experiments.forecasts import NOISY, follow_exponents, future_of, predicted_and_watched, start_of_run
from experiments.trained import RUNS, check_early, load_images, runs_of
from lib.settings import Count, Seed


def windows(
    network: dict = NOISY,
    early: Count = 6000,
    lengths: tuple[Count, ...] = (50, 100, 300, 1000),
    layers: Count = 15,
    seeds: Count = 2,
    data: str | None = None,
    folder: str | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Who vanishes, told from shorter and shorter windows: by exponents, and by the slopes of log sizes.

    As `vanishing`, whose networks these are: from the weights at step `early` SGD goes on with the run's batches. All
    windows begin there, so that one pass over the longest gives them all. A row per window, in it a record per
    network: the mean exponent of each neuron (`predicted`) and the slope of its log size (`same`) over the window, per
    1,000 steps, and its size at step `early` and at the end of the run (`distance`).
    """
    device = torch.device(device)
    trainings = runs_of(network, seed, seeds)
    check_early(trainings[0], early)
    images = load_images(trainings[0], data, device)
    rows = [{"window": window, "runs": []} for window in lengths]
    for k, run in enumerate(trainings):
        path = Path(folder or RUNS / "subnetworks") / run.name
        start = start_of_run("neurons", run, early, 1, layers, images, path)
        longest = max(lengths) + 1  # a slope needs the size after the last step, too
        found = follow_exponents(start, longest, f"exponents, {k + 1} of {seeds}")
        for row in rows:
            told = predicted_and_watched(found, row["window"])
            row["runs"].append({"seed": run.seed, **future_of(start, "neurons"), **told})
    return {"data_hash": images.content_hash, "rows": rows}
