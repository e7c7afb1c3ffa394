"""A multilayer perceptron: a second kind of network, a hundred times cheaper to follow than VGG-16."""

from torch import nn

import core

LAYERS = 4  # hidden ones


def mlp(num_classes: int = 10, width: int = 8) -> nn.Sequential:
    """Four hidden layers of 8 x `width` neurons with GELU, for 3 x 32 x 32 images; Kaiming normal, biases 0, as VGG."""
    wide = 8 * width
    model = nn.Sequential(nn.Flatten())
    size = 3 * 32 * 32
    for _ in range(LAYERS):
        model.extend([nn.Linear(size, wide), nn.GELU()])
        size = wide
    model.append(nn.Linear(size, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


core.MODELS["mlp"] = mlp
core.IMAGE_SIZES["mlp"] = 32
