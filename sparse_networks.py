"""The deep networks of *Sparse Features*, and the measure of their blocks; a room of sparse_features.py.

resnet18, resnet34       post-activation ("plain") CIFAR ResNets with ReLU, as in the reference code
vgg16, densenet100       ours: the reference code has neither
schedules                the published learning rates, and clean ones
"""

import torch
from torch import nn

import core
from training import Images, Run, autocast

BLOCKS = {  # the modules whose outputs are measured; the last one of each is pooled over the image
    "resnet18": ("layer1", "layer2", "layer3", "layer4", "avgpool"),
    "resnet34": ("layer1", "layer2", "layer3", "layer4", "avgpool"),
    "vgg16": ("stage1", "stage2", "stage3", "stage4", "stage5", "pool"),
    "densenet100": ("transition1.relu", "transition2.relu", "relu", "pool"),
}


RECIPES = {  # of the reference code: settings of all runs, the small step, the exponential warm-up of the large one
    "plain": ({"momentum": 0.0, "weight_decay": 0.0, "augment": False}, 0.01, {"learning_rate": 0.75, "growth": 1.05}),
    "full": ({"momentum": 0.9, "weight_decay": 5e-4, "augment": True}, 0.002, {"learning_rate": 0.05, "growth": 1.0}),
}


def resnet18(classes: int, width: int = 64, blocks: tuple = (2, 2, 2, 2)) -> nn.Module:
    """core's ResNet with ReLU; all convolutions He normal (fan-out), bias of the last layer 0."""
    model = core.resnet18(classes, width, blocks)
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = nn.ReLU()
    return initialized(model)


def resnet34(classes: int, width: int = 64) -> nn.Module:
    return resnet18(classes, width, (3, 4, 6, 3))


def vgg16(classes: int, width: int = 64) -> nn.Module:
    """VGG-16's 13 convolutions with batch norm and ReLU, average-pooled, one linear layer; ours."""
    from torchvision.models.vgg import make_layers

    model, channels = nn.Sequential(), 3
    for k, plan in enumerate(([width] * 2, [2 * width] * 2, [4 * width] * 3, [8 * width] * 3, [8 * width] * 3)):
        stage = make_layers(plan, batch_norm=True)
        stage[0] = nn.Conv2d(channels, plan[0], 3, padding=1)
        model.add_module(f"stage{k + 1}", stage)
        if k < 4:
            model.add_module(f"maxpool{k + 1}", nn.MaxPool2d(2))
        channels = plan[-1]
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(channels, classes))
    return initialized(model)


def densenet100(classes: int, width: int = 64) -> nn.Module:
    """DenseNet-BC-100-12 from torchvision's blocks: three of 16 bottleneck layers, growth 12 at width 64; our settings.

    The paper names DenseNet-100-12; neither its code nor its settings are published.
    """
    from torchvision.models import densenet

    growth, model = max(2, 12 * width // 64), nn.Sequential()
    channels = 2 * growth
    model.add_module("conv", nn.Conv2d(3, channels, 3, padding=1, bias=False))
    for k in range(3):
        model.add_module(f"dense{k + 1}", densenet._DenseBlock(16, channels, 4, growth, 0.0))
        channels += 16 * growth
        if k < 2:
            model.add_module(f"transition{k + 1}", densenet._Transition(channels, channels // 2))
            channels //= 2
    model.add_module("norm", nn.BatchNorm2d(channels))
    model.add_module("relu", nn.ReLU())
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(channels, classes))
    return initialized(model)


def initialized(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


NETWORKS = {"resnet18": resnet18, "resnet34": resnet34, "vgg16": vgg16, "densenet100": densenet100}


def build(run: Run, classes: int) -> nn.Module:
    """For `core.train`."""
    return NETWORKS[run.model.removeprefix("plain-")](classes, run.width)


def measure(run: Run, model: nn.Module, data: Images, images: int = 21 * 512, units: int = 1000, batch: int = 512):
    """For `core.train`: "sparsity" of each block (`core.feature_sparsity`, 0.95) and "active", the share of all
    its entries that are positive, on the first training images, without augmentation, in eval mode.

    A block with more than `units` units (channel, y, x) is seen through as many, drawn from the run's seed: always the
    same ones, where the reference draws anew for every evaluation. That takes its noise off the curves.
    """
    names, sample = BLOCKS[run.model.removeprefix("plain-")], {}
    images = min(images, len(data.train))

    def columns() -> dict:
        found = {name: [] for name in names}
        positive = dict.fromkeys(names, 0.0)

        def note(name):
            def hook(module, inputs, output):
                flat = output.flatten(1)
                if name not in sample:
                    draw = torch.Generator().manual_seed(run.seed)
                    sample[name] = torch.randperm(flat.shape[1], generator=draw)[:units].sort().values.to(flat.device)
                found[name].append(flat[:, sample[name]].float())
                positive[name] += (flat > 0).float().mean().item() * len(flat) / images

            return hook

        hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
        model.eval()
        with torch.no_grad(), autocast(data.train.device, run.precision):
            for pixels in data.plain_train(images).split(batch):
                model(data.normalized(pixels))
        model.train()
        for hook in hooks:
            hook.remove()
        return {
            "sparsity": [core.feature_sparsity(torch.cat(found[name])) for name in names],
            "active": [positive[name] for name in names],
        }

    return columns


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
