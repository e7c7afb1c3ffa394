"""Feature sparsity of a deep network's blocks (*Sparse Features*), for `core.train` to log along a training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import core
from experiments.plain_networks import BLOCKS
from lib.batches import Images
from lib.precision import autocast

PAPER_IMAGES = 21 * 512


def choose_units(size: int, most: int, seed: int, device: torch.device) -> Tensor:
    """Up to `most` of `size` units, drawn from the seed, ascending."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(size, generator=draw)[:most]
    return chosen.sort().values.to(device)


def measure(
    run: core.Run, model: nn.Module, data: Images, images: int = PAPER_IMAGES, units: int = 1000, batch: int = 512
) -> Callable[[], dict[str, list[float]]]:
    """For `core.train`: a function that gives "sparsity" of each block (`core.feature_sparsity`, 0.95) and "active",
    the share of all its entries that are positive, on the first training images, without augmentation, in eval mode.

    A block with more than `units` units (channel, y, x) is seen through as many, drawn from the run's seed: always the
    same ones, where the reference draws anew for every evaluation. That takes its noise off the curves.
    """
    names = BLOCKS[run.model]
    images = min(images, len(data.train))
    chosen: dict[str, Tensor] = {}

    def columns() -> dict[str, list[float]]:
        features = {name: [] for name in names}
        active = dict.fromkeys(names, 0.0)

        def note(name: str, output: Tensor) -> None:
            flat = output.flatten(1)
            if name not in chosen:
                chosen[name] = choose_units(flat.shape[1], units, run.seed, flat.device)
            features[name].append(flat[:, chosen[name]].float())
            active[name] += (flat > 0).float().mean().item() * len(flat) / images

        hooks = []
        for name in names:
            block = model.get_submodule(name)
            hooks.append(block.register_forward_hook(lambda _, __, output, name=name: note(name, output)))
        model.eval()
        with torch.no_grad(), autocast(data.train.device, run.precision):
            for pixels in data.plain_train(images).split(batch):
                model(data.normalized(pixels))
        model.train()
        for hook in hooks:
            hook.remove()
        sparsity = [core.feature_sparsity(torch.cat(features[name])) for name in names]
        return {"sparsity": sparsity, "active": [active[name] for name in names]}

    return columns
