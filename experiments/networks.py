"""How far the library reaches: networks that people use, followed and extracted; beside it what others do.

timm, transformers, torch-pruning and torch-simplify are used where they are installed; none of them is needed.
"""

import contextlib
import copy
import importlib
import signal
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from collapse import CollapseError, NeuronGroup, extract_subnetwork, neuron_groups
from collapse.extract import in_float64, why_left_whole
from collapse.trace import call, tensors_in

WIDE_IMAGES = ("vit", "maxvit", "deit", "swin", "mixer", "resmlp")  # take 224 x 224 images alone

TIMM = (
    "resnet50 convnext_tiny vit_tiny_patch16_224 mobilenetv3_small_100 efficientnet_b0 densenet121 regnety_002 "
    "swin_tiny_patch4_window7_224 mixer_s16_224 resnext50_32x4d seresnet50 deit_tiny_patch16_224 vgg16_bn resnetv2_50 "
    "convmixer_768_32 resnet18 resmlp_12_224 wide_resnet50_2"
).split()

SMALL_LANGUAGE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TRANSFORMERS = {
    "GPT2LMHeadModel": {"vocab_size": 90, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "BertForSequenceClassification": SMALL_LANGUAGE | {"intermediate_size": 64},
    "LlamaForCausalLM": SMALL_LANGUAGE | {"num_key_value_heads": 2, "intermediate_size": 64},
    "ViTForImageClassification": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    },
    "ResNetForImageClassification": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]},
}


# ======================================================================================
# The networks
# ======================================================================================


def images_for(name: str) -> Tensor:
    """A batch of one image of a size that the network takes."""
    side = 224 if name.startswith(WIDE_IMAGES) else 64
    side = 75 if name.startswith("inception") else side
    return torch.randn(1, 3, side, side)


def torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def narrow_vit(layers: int, patch_size: int) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(224, patch_size, num_layers=layers, num_heads=16, hidden_dim=128, mlp_dim=512)


def narrow_convnext_large() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    stages = [
        CNBlockConfig(24, 48, 3),
        CNBlockConfig(48, 96, 3),
        CNBlockConfig(96, 192, 27),
        CNBlockConfig(192, None, 3),
    ]
    return ConvNeXt(stages)


def narrow_regnet_y_128gf() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams.from_init_params(depth=27, w_0=56, w_a=20.1, w_m=2.52, group_width=24, se_ratio=0.25))


# Of more than 150 million parameters: the same layers, narrower
NARROWER = {
    "vit_l_16": lambda: narrow_vit(24, 16),
    "vit_l_32": lambda: narrow_vit(24, 32),
    "vit_h_14": lambda: narrow_vit(32, 14),
    "convnext_large": narrow_convnext_large,
    "regnet_y_128gf": narrow_regnet_y_128gf,
}


def torchvision_network(name: str) -> tuple[nn.Module, object]:
    """A classifier of torchvision with random weights, and an example."""
    if name in NARROWER:
        return NARROWER[name](), images_for(name)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return getattr(torchvision.models, name)(weights=None, **options), images_for(name)


# Of torchvision, beside classifiers: segmentation, videos, detection (which gives out all it finds, however unsure)
TASKS = {
    "fcn_resnet50": {"weights_backbone": None},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
    "r3d_18": {},
    "s3d": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"weights_backbone": None, "box_score_thresh": 0.0},
}


DETECTORS = ("fasterrcnn",)  # compared in float64: of boxes that score alike they pick others with another rounding


def task_network(name: str) -> tuple[nn.Module, object]:
    """A network of torchvision that is no classifier of images, with random weights, and an example."""
    model = torchvision.models.get_model(name, weights=None, **TASKS[name])
    if name == "r3d_18":
        return model, torch.randn(1, 3, 4, 32, 32)
    if name == "s3d":  # smaller videos have nothing left for its last pooling
        return model, torch.randn(1, 3, 16, 224, 224)
    if name.startswith("fasterrcnn"):
        return model, ([torch.rand(3, 64, 64)],)
    return model, torch.randn(1, 3, 64, 64)


def timm_network(name: str) -> tuple[nn.Module, object]:
    timm = importlib.import_module("timm")
    return timm.create_model(name, pretrained=False), images_for(name)


def transformers_network(name: str) -> tuple[nn.Module, object]:
    """A tiny network of transformers."""
    transformers = importlib.import_module("transformers")
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**TRANSFORMERS[name]))
    if "ImageClassification" in name:
        return model, torch.randn(2, 3, 32, 32)
    return model, torch.randint(90, (2, 12))


class Source(NamedTuple):
    """Networks of one kind."""

    package: str
    names: Callable[[], list[str]]
    make: Callable[[str], tuple[nn.Module, object]]  # (network, example)


SOURCES = {
    "torchvision": Source("torchvision", torchvision_names, torchvision_network),
    "tasks": Source("torchvision", lambda: list(TASKS), task_network),
    "timm": Source("timm", lambda: TIMM, timm_network),
    "transformers": Source("transformers", lambda: list(TRANSFORMERS), transformers_network),
}


def as_after_training(model: nn.Module) -> None:
    """Random norms and running statistics, and no weights that start at zero: no symmetry is an accident."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_(1, 0.2)
            module.bias.data.normal_(0, 0.3)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.data.normal_(0, 0.02)


@torch.no_grad()
def plant(groups: list[NeuronGroup]) -> int:
    """In each part of each group that can be extracted one neuron vanishes, one is doubled; returns how many."""
    planted = 0
    for group in groups:
        if why_left_whole(group):
            continue
        for number in group.part.unique():
            own = (group.part == number).nonzero()[:, 0]
            if len(own) < 4:
                continue
            for slot in group.slots:
                rows = slot.read(slot.tensor).clone()
                rows[own[0]] = 0
                rows[own[2]] = rows[own[1]]
                slot.write(slot.tensor, rows)
            planted += 2
    return planted


# ======================================================================================
# Ours and theirs
# ======================================================================================


def outputs(model: nn.Module, example) -> list[Tensor]:
    with torch.no_grad():
        return [tensor for tensor in tensors_in(call(model.eval(), example)) if tensor.is_floating_point()]


def relative_change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest change of an output, relative to the largest output."""
    changes = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True)]
    return max(changes)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def ours(model: nn.Module, example, precise: bool = False) -> dict:
    """Follow the network, plant collapse in it (it is changed), extract it, compare; `precise`: in float64."""
    start = time.process_time()
    groups = neuron_groups(model, example)
    row = {"seconds": time.process_time() - start, "groups": len(groups), "covered": groups.covered}
    row |= {"whole": groups.whole, "skipped": [list(entry) for entry in groups.skipped[:5]]}
    row["planted"] = plant(groups)
    before = outputs(*in_float64(model, example)) if precise else outputs(model, example)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = extract_subnetwork(model, example, 1e-6, 1e-6)
    row["extract_seconds"] = time.process_time() - start
    row["removed"] = sum(entry["width"] - entry["kept"] for entry in smaller.extraction)
    row["left"] = [[entry["name"], entry["left"]] for entry in smaller.extraction if entry["left"]][:5]
    after = outputs(*in_float64(smaller, example)) if precise else outputs(smaller, example)
    row["change"] = relative_change(before, after)
    row["parameters"] = [count_parameters(model), count_parameters(smaller)]
    return row


@contextlib.contextmanager
def at_most(seconds: float):
    """Raises TimeoutError in what takes longer."""

    def stop(*_):
        raise TimeoutError(f"over {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def torch_prunings(model: nn.Module, example, limit: float) -> dict | None:
    """What torch-pruning makes of the same network with the same planted collapse: its graph, and, with the vanished
    neurons of our groups taken out by it, the change of the outputs. None where it isn't installed.
    """
    try:
        pruning = importlib.import_module("torch_pruning")
    except ImportError:
        return None
    groups = neuron_groups(model, example)
    before = outputs(model, example)
    start = time.process_time()
    row = {"groups": None, "change": None, "failure": None}
    try:
        with at_most(limit):
            graph = pruning.DependencyGraph().build_dependency(model, example)
            row["groups"] = sum(1 for _ in graph.get_all_groups())
            row["seconds"] = time.process_time() - start
            for group in groups:
                slot = group.producers[0]
                prune = {
                    nn.Linear: pruning.prune_linear_out_channels,
                    nn.Conv2d: pruning.prune_conv_out_channels,
                }.get(type(slot.module))
                if prune and group.kind == "neuron" and why_left_whole(group) is None and group.size >= 4:
                    graph.get_pruning_group(slot.module, prune, idxs=[int(slot.index[0, 0])]).prune()
            row["change"] = relative_change(before, outputs(model, example))
    except Exception as error:  # whatever it raises
        row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
    row.setdefault("seconds", time.process_time() - start)
    return row


def torch_simplifys(model: nn.Module, example, limit: float) -> dict | None:
    """What torch-simplify makes of the same network with the same planted collapse: it takes out vanished neurons.

    `removed`: whether any parameters went. None where it isn't installed.
    """
    try:
        simplify = importlib.import_module("simplify").simplify
    except ImportError:
        return None
    row = {"change": None, "removed": None, "failure": None}
    before, parameters = outputs(model, example), count_parameters(model)
    start = time.process_time()
    try:
        with at_most(limit):
            smaller = simplify(copy.deepcopy(model), example, fuse_bn=False)
        row["seconds"] = time.process_time() - start
        row["removed"] = count_parameters(smaller) < parameters
        row["change"] = relative_change(before, outputs(smaller, example))
    except Exception as error:  # whatever it raises
        row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
    row.setdefault("seconds", time.process_time() - start)
    return row


def networks(
    sources: tuple = ("torchvision", "timm", "transformers"),
    names: tuple = (),
    limit: float = 60.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Each network followed and extracted with planted collapse; torch-pruning on the same where it is installed.

    `sources`: of torchvision classifiers of images, and networks for other tasks; timm; transformers.
    `names`: these alone. Times are of the processor. `limit`: seconds for torch-pruning, per network.
    """
    rows = []
    print(HEADER)
    for source in sources:
        package, list_names, make = SOURCES[source]
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
            chosen = [name for name in list_names() if not names or name in names]
            for name in chosen:
                rows.append(one_network(source, name, make, limit, seed))
                print(line_of(rows[-1]), flush=True)
    for source in sources:
        print(summary_of(source, [row for row in rows if row["source"] == source]))
    return {"networks": rows}


def tasks(names: tuple = (), limit: float = 60.0, seed: int = 0, device: str | torch.device = "cpu") -> dict:
    """`networks` on torchvision's networks for segmentation, videos and detection."""
    return networks(("tasks",), names, limit, seed, device)


def one_network(source: str, name: str, make, limit: float, seed: int) -> dict:
    torch.manual_seed(seed)
    model, example = make(name)
    as_after_training(model.eval())
    row = {"source": source, "name": name, "ours": None, "failure": None}
    try:
        row["ours"] = ours(model, example, precise=name.startswith(DETECTORS))
    except CollapseError as error:
        row["failure"] = str(error)
    row["torch_simplify"] = torch_simplifys(model, example, limit)
    row["torch_pruning"] = torch_prunings(model, example, limit)  # which changes the model
    return row


# ======================================================================================
# The table
# ======================================================================================

HEADER = (
    f"{'network':30} {'groups':>6} {'covered':>7} {'whole':>5} {'change':>8} {'seconds':>7}"
    f" {'their groups':>13} {'change':>8} {'seconds':>7}"
)


def line_of(row: dict) -> str:
    found = row["ours"]
    words = f"{row['name'][:30]:30} "
    if found is None:
        words += f"refused: {row['failure'][:30]:30} "
    else:
        whole = "yes" if found["whole"] else "no"
        words += f"{found['groups']:6} {found['covered']:7.0%} {whole:>5} {found['change']:8.0e} "
        words += f"{found['seconds']:7.2f} "
    theirs = row["torch_pruning"]
    if theirs is not None:
        groups = "-" if theirs["groups"] is None else str(theirs["groups"])
        words += f"{groups:>13} {as_change(theirs)} {theirs['seconds']:7.2f} "
    simplified = row["torch_simplify"]
    if simplified is not None:
        words += f"torch-simplify: {as_change(simplified)} {simplified['seconds']:7.2f}"
    return words.rstrip()


def as_change(theirs: dict) -> str:
    change = "-" if theirs["change"] is None else f"{theirs['change']:.0e}"
    return f"{change:>8}"


def summary_of(source: str, rows: list[dict]) -> str:
    """Of a source's networks: how many are followed, whole, and exact (1e-5 of the largest output)."""
    if not rows:
        return f"{source}: not installed"
    found = [row["ours"] for row in rows if row["ours"]]
    whole = sum(one["whole"] for one in found)
    exact = sum(one["change"] < 1e-5 and one["parameters"][1] < one["parameters"][0] for one in found)
    words = f"{source}: of {len(rows)} networks {len(found)} followed, {whole} whole, {exact} extracted exactly"
    theirs = [row["torch_pruning"] for row in rows if row["torch_pruning"]]
    if theirs:
        built = sum(one["groups"] is not None for one in theirs)
        same = sum(one["change"] is not None and one["change"] < 1e-5 for one in theirs)
        words += f"; torch-pruning: {built} followed, {same} exactly"
    simplified = [row["torch_simplify"] for row in rows if row["torch_simplify"]]
    if simplified:
        ran = sum(one["change"] is not None for one in simplified)
        same = sum(one["change"] is not None and one["change"] < 1e-5 and one["removed"] for one in simplified)
        words += f"; torch-simplify: {ran} run, {same} made smaller exactly"
    return words
