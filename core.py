"""Core: the paper's networks, the training loop, the collapse metrics, which every experiment shares.

"Collapse" is the drift of SGD into an invariant set (Chen, Kunin, Yamamura, Ganguli, *Stochastic
Collapse*, NeurIPS 2023): parameters where a neuron has vanished, or where two neurons are equal.

    networks          vgg16, resnet18, and the table MODELS in which runs look theirs up
    settings          Run, learning_rate_at
    training          train (one network), sweep (many, shared among the processes that torchrun has started)
    collapse metrics  normalized_distances, independent_neurons, effective_rank, feature_sparsity, neuron_groups,
                      collapse_report, distance_maps: of the package collapse, which stands alone
    data              load_dataset

Everything random in a training is a pure function of (settings, seed, step): the learning rate, the order of the
examples, the augmentation, the label noise. So a run that is killed goes on where it was, on a CPU to the same bits
(a GPU's own sums come in any order), and how many processes share a run changes nothing but rounding (batch norm
apart: it takes the statistics of each process's share of a batch).
"""

import dataclasses
import math
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from collapse import (  # noqa: F401  (who reads core finds the metrics here)
    collapse_report,
    distance_maps,
    effective_rank,
    feature_sparsity,
    independent_neurons,
    neuron_groups,
    normalized_distances,
)
from lib import teams
from lib.batches import Epoch, Images
from lib.data import Dataset, load_dataset  # noqa: F401  (and the data)
from lib.errors import InputError, memory_errors
from lib.interrupts import StopSignals
from lib.precision import (
    PRECISIONS,
    autocast,
    fast_bfloat16,
    float32_products,
    for_the_loss,
    memory_format,
    resolve_precision,
)
from lib.progress import TrainingProgress, duration
from lib.run_folder import RunFolder, load_state
from lib.settings import Count, CountOrZero, Momentum, NotNegative, Positive, Range, Seed, Share, check_settings
from lib.teams import ALONE, Team

# ======================================================================================
# networks
# ======================================================================================


def vgg16(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-16 of the paper for 3 x 32 x 32 images: GELU, no batch norm, no dropout.

    13 convolutions 3x3 with bias (width, 2 width, 4 width, 8 width, 8 width) and three linear
    layers; 15.25 M parameters at the paper's width 64. Weights Kaiming normal (fan-in, gain
    sqrt 2), biases 0 (the reference code, `VGG16_NET_GELU`).
    """
    from torchvision.models import vgg

    plan = [size if size == "M" else size * width // 64 for size in vgg.cfgs["D"]]
    features = nn.Sequential()
    for module in vgg.make_layers(plan):
        features.append(nn.GELU() if isinstance(module, nn.ReLU) else module)
    wide = plan[-2]
    classifier = nn.Sequential(
        nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, num_classes)
    )
    model = nn.Sequential()
    model.add_module("features", features)
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", classifier)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def resnet18(num_classes: int = 100, width: int = 64, blocks: tuple = (2, 2, 2, 2)) -> nn.Module:
    """ResNet-18 of the paper for 3 x 32 x 32 images: GELU, stem 3x3 stride 1 without max-pool.

    torchvision's network otherwise (batch norm, its initialisation); the replaced stem keeps the
    default initialisation of a convolution, as in the reference code. 11.22 M parameters at
    width 64 and 100 classes. `blocks`: how many of them in each stage; (3, 4, 6, 3) is ResNet-34.
    """
    from torchvision.models import resnet

    class ScaledResNet(resnet.ResNet):
        def _make_layer(self, block, planes, *args, **options):
            if planes == 64:  # the first of the four stages
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, *args, **options)

    model = ScaledResNet(resnet.BasicBlock, list(blocks))
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    model.fc = nn.Linear(8 * width, num_classes)
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = nn.GELU()
    return model


# `Run.model` -> a function of (classes, width). Experiments add their own networks here.
MODELS: dict[str, Callable[[int, int], nn.Module]] = {"vgg16": vgg16, "resnet18": resnet18}

# Networks that take images of one size only
IMAGE_SIZES = {"vgg16": 32}


def build_model(model: str, classes: int, width: int, image_size: int = 32) -> nn.Module:
    """The network that `model` names in MODELS. Raises InputError for an unknown one, or images it can't take."""
    if model not in MODELS:
        raise InputError(f"no network {model!r}; there are {', '.join(MODELS)}")
    needed = IMAGE_SIZES.get(model, image_size)
    if image_size != needed:
        raise InputError(f"{model} takes images of at most {needed} x {needed} pixels, not {image_size} x {image_size}")
    return MODELS[model](classes, width)


# ======================================================================================
# settings of a training
# ======================================================================================

Width = Annotated[int, Range(low=2, high=4096)]  # even
Steps = Annotated[int, Range(low=1, high=10**12)]

# Name -> the optimizer of (run, parameters). What assumes SGD says so: see experiments/trained.py.
OPTIMIZERS = {
    "sgd": lambda run, parameters, fused: torch.optim.SGD(
        parameters, lr=run.learning_rate, momentum=run.momentum, weight_decay=run.weight_decay, fused=fused
    ),
    "adamw": lambda run, parameters, fused: torch.optim.AdamW(
        parameters, lr=run.learning_rate, weight_decay=run.weight_decay, fused=fused
    ),
}

WITHOUT_MOMENTUM = ("adamw",)  # its averages have rates of their own


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of one training; the defaults are those of the paper's networks.

    Mean cross-entropy; SGD with momentum and coupled weight decay on all parameters; the learning
    rate rises linearly over `warmup_steps`, then stays, or follows `growth` and the decays (see
    `learning_rate_at`). `label_noise` is the probability that an example's label is replaced, anew
    each epoch, by a uniformly drawn other class. `batch_size` is global. `augment`: crops and flips
    (without `flip`, crops only). `normalize`: images have mean 0 and deviation 1 per channel, else they are in [0, 1].
    `precision`: auto (bfloat16 where the device is fast at it), bfloat16, float32 or float64. `start` names weights to
    begin from, relative to the runs' folder. `compile`: torch.compile the network.

    Raises InputError for a setting that is out of its range.
    """

    model: str = "vgg16"
    dataset: str = "cifar10"
    learning_rate: Positive = 0.1
    label_noise: Share = 0.0
    batch_size: Count = 256
    steps: Steps = 100_000
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_steps: CountOrZero = 1000
    width: Width = 64
    augment: bool = True
    precision: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    seed: Seed = 0
    start: str = ""
    eval_every: Count = 5000
    milestones: tuple[Count, ...] | tuple[()] = ()
    growth: Positive = 1.0
    decay_steps: tuple[CountOrZero, ...] | tuple[()] = ()
    decay_factors: tuple[Positive, ...] | tuple[()] = ()
    normalize: bool = True
    flip: bool = True
    optimizer: Literal[tuple(OPTIMIZERS)] = "sgd"
    compile: bool = False

    def __post_init__(self):
        check_settings(Run, dataclasses.asdict(self))
        if self.width % 2:
            raise InputError(f"width: expected an even number, not {self.width}")
        if len(self.decay_steps) != len(self.decay_factors):
            raise InputError("decay_steps and decay_factors must be equally many")

    @property
    def name(self) -> str:
        """Spelled from what differs from the defaults; learning rate and seed always. It names folders."""
        short = {"learning_rate": "lr", "label_noise": "noise", "batch_size": "batch", "weight_decay": "wd"}
        always = ("learning_rate", "seed")
        parts = [self.model, self.dataset]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value == field.default and field.name not in always:
                continue
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if field.name == "start":  # settings.json has it in full
                parent, _, weights = text.rpartition("/")
                text = f"{zlib.crc32(parent.encode()):08x}-{weights.removesuffix('.pt')}"
            parts.append(f"{short.get(field.name, field.name.removesuffix('_steps'))}={text}")
        return "_".join(parts)


def learning_rate_at(run: Run, step: int) -> float:
    """The learning rate of step `step`, counted from 0.

    After the linear warm-up it is multiplied by growth^(100 step / steps) until the first decay, where
    this factor stays, and by each of `decay_factors` from that one of `decay_steps` on.
    """
    rate = run.learning_rate * min(1.0, (step + 1) / max(1, run.warmup_steps))
    end_of_growth = min(step, *run.decay_steps, run.steps)
    rate *= run.growth ** (100 * end_of_growth / run.steps)
    passed = [factor for at, factor in zip(run.decay_steps, run.decay_factors, strict=True) if step >= at]
    return rate * math.prod(passed)


def epoch_of(run: Run, data: Images, epoch: int) -> Epoch:
    """The examples of an epoch of `run`, in order, with their crops and labels."""
    return data.epoch(run.seed, epoch, run.batch_size, run.augment, run.flip, run.label_noise)


# ======================================================================================
# what is logged
# ======================================================================================


def collapse_columns(report: list[dict]) -> dict[str, list]:
    """A collapse report by columns, as logs keep it. A new column here is in every log from now on."""
    keys = ("name", "width", "vanishing", "independent", "effective_rank")
    return {key: [row[key] for row in report] for key in keys}


def collapse_measure(run: Run, model: nn.Module, data: Images) -> Callable[[], dict]:
    """The function that says of `model`, each time it is called, how far it has collapsed; for logs.

    "groups": of all true groups of neurons; "paper": of the paper's pairs of layers.
    """
    example = data.normalized(data.test[:1])
    groups = neuron_groups(model, example)
    paper_groups = neuron_groups(model, example, pairing="paper")

    def columns() -> dict:
        return {
            "groups": collapse_columns(collapse_report(groups)),
            "paper": collapse_columns(collapse_report(paper_groups, incoming_mask=True)),
        }

    return columns


def evaluate(model: nn.Module, data: Images, team: Team, precision: str, batch: int = 1000) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on the test images, shared among the team."""
    model.eval()
    loss_and_right = torch.zeros(2, dtype=torch.float64, device=data.test.device)
    device = data.test.device
    with torch.no_grad(), float32_products(device, precision), autocast(device, precision):
        for start in range(team.rank * batch, len(data.test), team.size * batch):
            output = for_the_loss(model(data.normalized(data.test[start : start + batch])))
            labels = data.test_labels[start : start + batch]
            loss_and_right[0] += F.cross_entropy(output, labels, reduction="sum")
            loss_and_right[1] += (output.argmax(1) == labels).sum()
    team.sum(loss_and_right)
    model.train()
    loss, accuracy = (loss_and_right / len(data.test)).tolist()
    return loss, accuracy


# ======================================================================================
# one training
# ======================================================================================


STEPS_BETWEEN_QUESTIONS = 20  # whether a signal has come to any process of a team


class Training:
    """A network in training: all that a checkpoint holds, and what a step does to it.

    model       the network itself; `stepping` is what steps call: compiled, or wrapped for a team
    step        steps done
    loss_sum    of the training losses since the last evaluation, on the device
    bad_step    the first step with a loss that is not finite, on the device; `run.steps` if none was
    log         a line per evaluation
    diverged_at the step at which it ended as diverged, or None
    seconds     spent, all sittings together
    """

    def __init__(self, run: Run, data: Images, folder: RunFolder, device: torch.device, team: Team, precision: str):
        self.run, self.folder, self.device, self.team, self.precision = run, folder, device, team, precision
        dtype = torch.float64 if precision == "float64" else torch.float32
        self.data = data.prepared(run.normalize, dtype)
        torch.manual_seed(run.seed)  # of the initial weights
        model = build_model(run.model, data.classes, run.width, data.size).to(dtype)
        self.model = model.to(device, memory_format=memory_format(model, device, data.size))
        fused = device.type == "cuda" or None
        self.optimizer = OPTIMIZERS[run.optimizer](run, self.model.parameters(), fused)
        self.step = 0
        self.loss_sum = torch.zeros((), device=device, dtype=dtype)
        self.bad_step = torch.tensor(run.steps, device=device)
        self.log: list[dict] = []
        self.diverged_at: int | None = None
        self.seconds = 0.0
        self.began = time.perf_counter()
        self.epoch_number = -1
        self.epoch: Epoch | None = None
        self.steps_per_epoch = len(data.train) // run.batch_size

    # -------------------------------------------------------------------- checkpoints

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one; else begin, maybe from other weights."""
        state = self.folder.load_checkpoint(self.device)
        if state is not None:
            self.load(state)
        elif self.run.start:
            self.load_weights(self.folder.path.parent / self.run.start)
        self.began = time.perf_counter() - self.seconds

    def load(self, state: dict) -> None:
        advice = f"move {self.folder.path} away to begin again"
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{self.folder.checkpoint_file} doesn't fit this run's network; {advice}") from None
        if not 0 <= state["step"] <= self.run.steps:
            raise InputError(f"{self.folder.checkpoint_file} is of step {state['step']} of {self.run.steps}; {advice}")
        self.step, self.log, self.diverged_at = state["step"], state["log"], state["diverged_at"]
        self.bad_step, self.seconds = state["bad_step"], state.get("seconds", 0.0)
        sums = state["loss_sum"].flatten()  # a number per rank
        if len(sums) == self.team.size:
            self.loss_sum = sums[self.team.rank]
        else:  # of a team of another size the first rank takes all
            self.loss_sum = sums.sum() if self.team.leads else torch.zeros_like(self.loss_sum)

    def load_weights(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"{path}, from which {self.run.name} starts, is gone; move {path.parent} away to train it")
        try:
            self.model.load_state_dict(load_state(path, self.device))
        except (RuntimeError, AttributeError, TypeError):
            raise InputError(f"{path} doesn't hold the weights of {self.run.model}, width {self.run.width}") from None

    def save(self) -> None:
        self.seconds = time.perf_counter() - self.began
        sums = torch.zeros(self.team.size, device=self.device, dtype=self.loss_sum.dtype)
        sums[self.team.rank] = self.loss_sum
        self.team.sum(sums)
        self.team.minimum(self.bad_step)
        if not self.team.leads:
            return
        self.folder.save_checkpoint(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "log": self.log,
                "loss_sum": sums,
                "bad_step": self.bad_step,
                "diverged_at": self.diverged_at,
                "seconds": self.seconds,
            }
        )

    # -------------------------------------------------------------------------- steps

    def start_stepping(self) -> None:
        """Make what steps call. It shares its parameters with `model`, whose names checkpoints keep."""
        self.stepping = self.model
        if self.run.compile:
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"  # CUDA graphs: fewer launches
            self.stepping = torch.compile(self.stepping, mode=mode)
        if self.team.size > 1:
            self.stepping = DistributedDataParallel(self.stepping, process_group=self.team.group)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """This process's slice of the global batch: images [B, 3, size, size] and labels [B]."""
        if self.step // self.steps_per_epoch != self.epoch_number:
            self.epoch_number = self.step // self.steps_per_epoch
            self.epoch = epoch_of(self.run, self.data, self.epoch_number)
        share = self.run.batch_size // self.team.size
        first = self.step % self.steps_per_epoch * self.run.batch_size + self.team.rank * share
        images = self.data.normalized(self.data.batch(self.epoch.crops[first : first + share]))
        return images, self.epoch.labels[first : first + share]

    def take_step(self) -> None:
        """One step of SGD. Nothing here asks the device for a number: that would wait for it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.run, self.step)
        images, labels = self.next_batch()
        with float32_products(self.device, self.precision):
            with autocast(self.device, self.precision):
                output = self.stepping(images)
            loss = F.cross_entropy(for_the_loss(output), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()

        loss = loss.detach()
        self.loss_sum += loss
        first_bad = self.bad_step.clamp_max(self.step)
        self.bad_step = torch.where(loss.isfinite(), self.bad_step, first_bad)
        self.step += 1

    # --------------------------------------------------------------- between the steps

    def is_over(self, until: int) -> bool:
        """Whether there is nothing to do up to step `until`."""
        return self.step >= until or self.diverged_at is not None

    def keeps_weights(self) -> bool:
        """Whether the weights of this step are kept: of the milestones, and of the end."""
        return self.step == self.run.steps or self.step in self.run.milestones

    def is_evaluation_due(self) -> bool:
        return self.step % self.run.eval_every == 0 or self.keeps_weights()

    def evaluate(self, measure: Callable[[], dict]) -> dict | None:
        """A line for the log; None, with `diverged_at` set and no line written, if a loss was not finite."""
        self.team.sum(self.loss_sum)
        self.team.minimum(self.bad_step)
        for buffer in self.model.buffers():  # batch norms have statistics of their own in each process
            self.team.take_the_leaders(buffer)
        test_loss, accuracy = evaluate(self.model, self.data, self.team, self.precision)
        if self.bad_step < self.run.steps or not math.isfinite(test_loss):
            self.diverged_at = min(int(self.bad_step), self.step)
            return None
        last_evaluation = self.log[-1]["step"] if self.log else 0
        train_loss = self.loss_sum.item() / self.team.size / (self.step - last_evaluation)
        self.loss_sum = torch.zeros_like(self.loss_sum)
        line = {"step": self.step, "train_loss": train_loss, "test_loss": test_loss, "test_accuracy": accuracy}
        if self.team.leads:
            line |= measure()
            self.folder.append_to_log(line)
        self.log.append(line)
        return line

    def save_milestone(self) -> None:
        """The weights, where they are kept; a diverged run has none."""
        if self.team.leads and self.keeps_weights() and self.diverged_at is None:
            self.folder.save_weights(self.step, self.model.state_dict())

    def told_to_stop(self, signals: StopSignals, until: int) -> int | None:
        """The number of the signal that has come; a team asks now and then whether one has come to any of its ranks."""
        if self.team.size == 1:
            return signals.received
        if self.step % STEPS_BETWEEN_QUESTIONS and not self.is_over(until):
            return None
        received = torch.tensor(signals.received or 0, device=self.device)
        self.team.maximum(received)
        return int(received) or None

    def leave_if_told(self, signals: StopSignals, until: int) -> None:
        """After a signal save, say how to go on, and exit: 143 after SIGTERM, 130 after Ctrl-C."""
        signal = self.told_to_stop(signals, until)
        if signal is None:
            return
        self.save()
        if self.team.leads:
            reached = f"step {self.step} of {self.run.steps}"
            line = f"{self.run.name} stopped at {reached} and saved; the same command goes on from there"
            print(f"\n{line}", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal)

    def outcome(self) -> dict:
        return {"log": self.log, "diverged_at": self.diverged_at, "seconds": round(self.seconds, 1)}


def the_leaders_precision(resolved: str, device: torch.device, team: Team) -> str:
    """The precision of a whole team: processors of different kinds may each have resolved "auto" in their own way."""
    number = torch.tensor(PRECISIONS.index(resolved), device=device)
    team.take_the_leaders(number)
    return PRECISIONS[int(number)]


def check_batch_size(run: Run, images: int) -> None:
    """Raises InputError for a batch of more than all training images."""
    if run.batch_size > images:
        raise InputError(f"batch size {run.batch_size} is larger than the {images} training images")


def settings_of(run: Run, folder: RunFolder, data: Images, device: torch.device, is_first: bool) -> dict:
    """What the folder's settings.json says, after the check that it is this run, with these data.

    The precision is resolved when a run begins, and kept wherever it goes on.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Run)}
    decided_once = {"resolved_precision": resolve_precision(run.precision, device)}
    settings = dataclasses.asdict(run) | {"data_hash": data.content_hash}
    possible = ("bfloat16", "float32") if run.precision == "auto" else (run.precision,)
    agreed = folder.agree_on_settings(settings, defaults | {"data_hash": data.content_hash}, decided_once, is_first)
    precision = agreed["resolved_precision"]
    if precision not in possible:
        raise InputError(f"{folder.settings_file}: resolved_precision is {precision!r}, not {' or '.join(possible)}")
    if is_first and precision == "bfloat16" and not fast_bfloat16(device):
        print(f"{run.name} began in bfloat16 and goes on in it; this machine is slow at it", flush=True)
    return agreed


def train(
    run: Run,
    data: Images,
    folder: str | Path,
    device: torch.device,
    team: Team = ALONE,
    title: str | None = "training",
    measure: Callable[[Run, nn.Module, Images], Callable[[], dict]] = collapse_measure,
    until: int | None = None,
) -> dict:
    """Train one network, or go on with it, in `folder`; returns its log, "diverged_at" (step or None) and "seconds".

    Writes settings.json, log.jsonl (a line per evaluation: step, losses, accuracy, collapse of every
    group), checkpoint.pt, and weights_<step>.pt at each milestone and at the end. A finished run is
    read, not run. Loss NaN or infinite ends the run as diverged at that step. SIGTERM and Ctrl-C
    save and exit (143, 130). `until`: go no further than this step.
    `title` is shown with the progress; None: nothing is shown.
    `measure(run, model, data)` is called once and returns a function that is called at each
    evaluation for more columns of the log; it must leave the model and global random numbers alone.

    Raises InputError for settings that differ or impossible ones, or if it can't write.
    """
    until = run.steps if until is None else min(until, run.steps)
    check_batch_size(run, len(data.train))
    advice = f"{run.name} needs a lower --batch-size or --width, or more GPUs"
    run_folder = RunFolder(folder)
    with run_folder.locked(team.leads), StopSignals() as signals, memory_errors(advice):
        settings = settings_of(run, run_folder, data, device, team.leads)
        precision = the_leaders_precision(settings["resolved_precision"], device, team)
        training = Training(run, data, run_folder, device, team, precision)
        training.resume()
        if team.leads:
            run_folder.start_log(training.log)
        if training.is_over(until):
            return training.outcome()

        training.start_stepping()
        resolved = dataclasses.replace(run, precision=precision)
        columns = measure(resolved, training.model, training.data)
        with TrainingProgress(title, run.steps, training.step, show=title is not None) as progress:
            while not training.is_over(until):
                training.take_step()
                progress.step()
                if training.is_evaluation_due():
                    line = training.evaluate(columns)
                    training.save_milestone()
                    training.save()
                    if line is not None:
                        progress.evaluated(line["train_loss"], line["test_accuracy"])
                elif training.step == until:  # stopped between two evaluations
                    training.save()
                training.leave_if_told(signals, until)
    return training.outcome()


# ======================================================================================
# many trainings
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Branch:
    """A training that goes on from the weights that another has at `milestone`, at other settings."""

    milestone: int
    run: Run


@dataclasses.dataclass
class Sweep:
    """What `sweep` returns: a record {"run": settings, "name", "log", "diverged_at", "seconds"} a training."""

    runs: list[dict]
    branches: list[dict]

    @property
    def seconds(self) -> float:
        """Of all trainings and all their sittings together."""
        return sum(record["seconds"] for record in self.runs + self.branches)


def train_with_branches(run: Run, branches: list[Branch], stop_at: int | None, train_one) -> tuple[dict, list[dict]]:
    """Train `run`, and each branch as soon as the weights that it starts from are there.

    The order: the run to its first milestone, the first branch, the run to its second milestone, ..., the run to its
    end. A run that is there already isn't trained again: it comes back as it is, at a later step than was asked for.
    `train_one(run, until)` trains; `stop_at`: no further than that step, and no branches from later ones.
    """
    branch_records = []
    for branch in branches:
        if stop_at is not None and branch.milestone > stop_at:
            continue
        parent = train_one(run, branch.milestone)
        if has_passed(parent["log"], branch.milestone):
            branch_record = train_one(branch.run, None)
            branch_records.append({"drop_step": branch.milestone} | branch_record)
    return train_one(run, stop_at), branch_records


def has_passed(log: list[dict], milestone: int) -> bool:
    """Whether a run came to its milestone, whose weights it has kept then; it may have diverged before, or after."""
    return any(line["step"] == milestone for line in log)


def sweep(
    runs: list[Run],
    dataset: Dataset,
    folder: str | Path,
    device: torch.device,
    branches: dict[Run, list[Branch]] | None = None,
    stop_at: int | None = None,
    measure=collapse_measure,
) -> Sweep | None:
    """Train all runs, shared among the torchrun ranks; safe to run again. `dataset`: of `load_dataset`.

    `branches`: of a run, trained by the same team as soon as their milestone is reached. `stop_at`: train no run
    further than this step. `measure`: see `train`. On rank 0 it returns all records and prints a table, on the other
    ranks None. Batches that a team can't divide are refused (InputError) before anything starts.
    """
    teams.check_teams({run.batch_size for run in runs}, len(runs))
    for run in runs:
        check_batch_size(run, len(dataset.train_images))
    team = teams.form_team(len(runs), device)
    data = Images(dataset, runs[0].dataset, device)
    shows = team.index == 0 and team.leads
    records = {}
    for k in range(team.index, len(runs), team.teams):
        title = f"run {k + 1} of {len(runs)}" if shows else None

        def train_one(run, until, title=title):
            record = train(run, data, Path(folder) / run.name, device, team, title, measure, until)
            return {"run": dataclasses.asdict(run), "name": run.name, **record}

        run_branches = (branches or {}).get(runs[k], [])
        record = train_with_branches(runs[k], run_branches, stop_at, train_one)
        if team.leads:
            records[k] = record
    records = teams.gather(records)
    if records is None:
        return None
    in_order = [records[k] for k in range(len(runs))]
    result = Sweep([record for record, _ in in_order], [one for _, some in in_order for one in some])
    print_table(result)
    return result


def print_table(result: Sweep) -> None:
    """How each training ended: a line of at most 100 columns each."""
    first = result.runs[0]["run"]
    print(f"\n{first['model']} on {first['dataset']}, width {first['width']}")
    print(f"{'run':<46} {'step':>9} {'loss':>8} {'accuracy':>9} {'independent':>12} {'time':>10}")
    for record in result.runs + result.branches:
        run = record["run"]
        about = f"rate {run['learning_rate']:g}, noise {run['label_noise']:g}, batch {run['batch_size']}"
        if run["weight_decay"] != first["weight_decay"]:
            about += f", decay {run['weight_decay']:g}"
        if "drop_step" in record:
            about = f"  from step {record['drop_step']} at rate {run['learning_rate']:g}"
        about += f", seed {run['seed']}"
        time_spent = duration(record["seconds"])
        if record["diverged_at"] is not None:
            print(f"{about:<46} {record['diverged_at']:>9,} diverged {time_spent:>33}")
            continue
        if not record["log"]:
            continue
        last = record["log"][-1]
        line = f"{about:<46} {last['step']:>9,} {last['train_loss']:>8.3f} {last['test_accuracy']:>9.3f}"
        groups = last.get("groups")
        if groups:
            line += f" {sum(groups['independent']) / sum(groups['width']):>12.3f}"
        print(f"{line} {time_spent:>10}")
    print(flush=True)
