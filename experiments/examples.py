"""Three small networks, trained for seconds until some of their neurons collapse: the pictures of your_network.md.

  python subnetworks.py measure --model experiments.examples:cnn --input 3,16,16 --picture figures/example_cnn.png
  python subnetworks.py measure --model experiments.examples:transformer --input 1,7:int --picture P.png
  python subnetworks.py measure --model experiments.examples:tagger --input 1,7:int --picture P.png

Easy tasks and a strong weight decay: neurons that aren't needed vanish, and others come to say the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORDS = 100
CLASSES = 5
LENGTH = 7


class Tagger(nn.Module):
    """An LSTM, whose neurons aren't followed, and a hidden layer, whose are."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 32)
        self.lstm = nn.LSTM(32, 48, batch_first=True)
        self.hidden = nn.Linear(48, 64)
        self.out = nn.Linear(64, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(tokens))
        return self.out(torch.relu(self.hidden(states[:, -1])))


def sentences(count: int) -> tuple[Tensor, Tensor]:
    """(tokens [count, LENGTH], classes [count]): the last word tells the class."""
    tokens = torch.randint(WORDS, (count, LENGTH))
    return tokens, tokens[:, -1] % CLASSES


def striped_images(count: int) -> tuple[Tensor, Tensor]:
    """(images [count, 3, 16, 16], classes [count]): noise, and one of the upper rows is bright."""
    images = torch.randn(count, 3, 16, 16)
    rows = torch.randint(CLASSES, (count,))
    images[torch.arange(count), :, rows] += 2
    return images, rows


def trained(model: nn.Module, draw: Callable, learning_rate: float, steps: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        inputs, classes = draw(32)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), classes).backward()
        optimizer.step()
    return model


def cnn(steps: int = 1500) -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
    return trained(nn.Sequential(*layers), striped_images, 0.05, steps)


def transformer(steps: int = 1000) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(WORDS, 32), encoder, nn.Flatten(), nn.Linear(32 * LENGTH, CLASSES))
    return trained(model, sentences, 0.03, steps)


def tagger(steps: int = 500) -> nn.Module:
    return trained(Tagger(), sentences, 0.1, steps)
