"""The deep networks of *Sparse Features*, with ReLU ("plain"), and the blocks whose outputs are measured.

resnet18, resnet34       post-activation CIFAR ResNets, as in the reference code
vgg16, densenet100       ours: the reference code has neither
"""

from torch import nn

import core


def initialized(model: nn.Module) -> nn.Module:
    """All convolutions He normal (fan-out), all biases 0; returns the model."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def resnet(classes: int, width: int, blocks: tuple[int, ...]) -> nn.Module:
    """core's ResNet with ReLU in place of GELU; `blocks`: how many in each stage."""
    model = core.resnet18(classes, width, blocks)
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = nn.ReLU()
    return initialized(model)


def resnet18(classes: int, width: int = 64) -> nn.Module:
    return resnet(classes, width, (2, 2, 2, 2))


def resnet34(classes: int, width: int = 64) -> nn.Module:
    return resnet(classes, width, (3, 4, 6, 3))


def add_head(model: nn.Sequential, channels: int, classes: int) -> nn.Module:
    """Average pooling and one linear layer; returns the model, initialised."""
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(channels, classes))
    return initialized(model)


def vgg16(classes: int, width: int = 64) -> nn.Module:
    """VGG-16's 13 convolutions with batch norm and ReLU, average-pooled, one linear layer; ours."""
    from torchvision.models.vgg import make_layers  # here, because it takes seconds to import

    stages = ([width] * 2, [2 * width] * 2, [4 * width] * 3, [8 * width] * 3, [8 * width] * 3)
    model = nn.Sequential()
    channels = 3
    for k, plan in enumerate(stages):
        stage = make_layers(plan, batch_norm=True)
        stage[0] = nn.Conv2d(channels, plan[0], 3, padding=1)  # torchvision's takes 3 channels
        model.add_module(f"stage{k + 1}", stage)
        if k < len(stages) - 1:
            model.add_module(f"maxpool{k + 1}", nn.MaxPool2d(2))
        channels = plan[-1]
    return add_head(model, channels, classes)


def densenet100(classes: int, width: int = 64) -> nn.Module:
    """DenseNet-BC-100-12 from torchvision's blocks: three of 16 bottleneck layers, growth 12 at width 64; our settings.

    The paper names DenseNet-100-12; neither its code nor its settings are published.
    """
    from torchvision.models import densenet

    growth = max(2, 12 * width // 64)
    layers = 16
    channels = 2 * growth
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, channels, 3, padding=1, bias=False))
    for k in range(3):
        block = densenet._DenseBlock(layers, channels, bn_size=4, growth_rate=growth, drop_rate=0.0)
        model.add_module(f"dense{k + 1}", block)
        channels += layers * growth
        if k < 2:
            model.add_module(f"transition{k + 1}", densenet._Transition(channels, channels // 2))
            channels //= 2
    model.add_module("norm", nn.BatchNorm2d(channels))
    model.add_module("relu", nn.ReLU())
    return add_head(model, channels, classes)


NETWORKS = {  # name of `core.Run.model`: (number of classes, width) -> network
    "plain-resnet18": resnet18,
    "plain-resnet34": resnet34,
    "plain-vgg16": vgg16,
    "plain-densenet100": densenet100,
}
BLOCKS = {  # the modules whose outputs are measured; the last one of each is pooled over the image
    "plain-resnet18": ("layer1", "layer2", "layer3", "layer4", "avgpool"),
    "plain-resnet34": ("layer1", "layer2", "layer3", "layer4", "avgpool"),
    "plain-vgg16": ("stage1", "stage2", "stage3", "stage4", "stage5", "pool"),
    "plain-densenet100": ("transition1.relu", "transition2.relu", "relu", "pool"),
}

core.MODELS.update(NETWORKS)
