"""The training room: SGD on images as in Stochastic Collapse, by one process or many, interrupted or not.

Everything is a pure function of (settings, seed, step): the learning rate, the order of the
examples, the augmentation, the label noise. So a run that is killed goes on to the same bits, and
its result does not depend on how many processes shared it. Import it from core.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import pickle
import signal
import threading
import time
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from images import Images


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of one training; the defaults are those of the paper's networks.

    Mean cross-entropy; SGD with momentum and coupled weight decay on all parameters; the learning
    rate rises linearly over `warmup_steps`, then stays, or follows `growth` and the decays (see
    `learning_rate_at`). `label_noise` is the probability that an example's label is replaced, anew
    each epoch, by a uniformly drawn other class. `batch_size` is global. `normalize`: images have mean
    0 and deviation 1 per channel, else they are in [0, 1]. `precision`: auto (bfloat16 where the
    device has it) or float32. `start` names weights to begin from, relative to the runs' folder.
    """

    model: str = "vgg16"
    dataset: str = "cifar10"
    learning_rate: float = 0.1
    label_noise: float = 0.0
    batch_size: int = 256
    steps: int = 100_000
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_steps: int = 1000
    width: int = 64
    augment: bool = True
    precision: str = "auto"
    seed: int = 0
    start: str = ""
    eval_every: int = 5000
    milestones: tuple[int, ...] = ()
    growth: float = 1.0
    decay_steps: tuple[int, ...] = ()
    decay_factors: tuple[float, ...] = ()
    normalize: bool = True

    @property
    def name(self) -> str:
        """Spelled from what differs from the defaults; learning rate and seed always."""
        short = {"learning_rate": "lr", "label_noise": "noise", "batch_size": "batch", "weight_decay": "wd"}
        parts = [self.model, self.dataset]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default or field.name in ("learning_rate", "seed"):
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
    rate *= run.growth ** (100 * min(step, *run.decay_steps, run.steps) / run.steps)
    passed = [factor for at, factor in zip(run.decay_steps, run.decay_factors, strict=True) if step >= at]
    return rate * math.prod(passed)


# ======================================================================================
# teams of processes
# ======================================================================================


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that share a run: this one is number `rank` of `size`, team number `index` of `teams`."""

    index: int = 0
    teams: int = 1
    rank: int = 0
    size: int = 1
    group: object = None


def join_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of ranks) of this process, after meeting the others that torchrun has started, if any."""
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL gathers objects and waits at barriers on the current device
    if ranks > 1 and not dist.is_initialized():
        local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        backend = "nccl" if device.type == "cuda" and local <= gpus and dist.is_nccl_available() else "gloo"
        patience, meeting = datetime.timedelta(days=7), {}  # teams wait for the slowest
        if local == ranks and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # After a restart torchrun's store still holds the addresses of the dead (pytorch issue 135712)
            store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=patience)
            store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            meeting = {"store": store, "rank": rank, "world_size": ranks}
        dist.init_process_group(backend, timeout=patience, **meeting)
    return rank, ranks


def first_rank_first(action, device: torch.device):
    """What `action` returns; rank 0 runs it alone before the others do, so that a download happens once."""
    rank, ranks = join_processes(device)
    result = action() if rank == 0 else None
    if ranks > 1:
        dist.barrier()
    return result if rank == 0 else action()


def form_team(runs: int, device: torch.device) -> Team:
    """R ranks and M runs make min(R, M) teams of neighbouring ranks; one process is a team of its own."""
    rank, ranks = join_processes(device)
    if ranks == 1:
        return Team()
    teams = max(1, min(ranks, runs))
    members = [[r for r in range(ranks) if r * teams // ranks == team] for team in range(teams)]
    groups = [dist.new_group(ranks_of_team) for ranks_of_team in members]  # everyone must make every group
    index = rank * teams // ranks
    return Team(index, teams, members[index].index(rank), len(members[index]), groups[index])


# ======================================================================================
# one run
# ======================================================================================


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 fast: A100 and later, CPUs with AMX or AVX512_BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older torch can't tell
        return False
    able = torch.cpu.get_capabilities()
    return able.get("amx_bf16", False) or able.get("avx512_bf16", False)


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that "auto" means on this device; any other is itself."""
    if precision != "auto":
        return precision
    return "bfloat16" if fast_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Products in bfloat16, with float32 weights, where `precision` is (or "auto" resolves to) bfloat16."""
    if resolve_precision(precision, device) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def memory_format(model: nn.Module, data: Images) -> torch.memory_format:
    """channels_last, except where torch crashes in it: narrow strided 1x1 convolutions of larger images on CPUs.

    There the backward pass of oneDNN writes outside its memory (seen with 2 to 8 channels at 56 to 64 pixels;
    pytorch issue 136348 is alike; not with 16 channels, nor with 52 pixels).
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    strided = [m for m in convolutions if max(m.stride) > 1 and max(m.kernel_size) == 1]
    narrow = any(min(m.in_channels, m.out_channels) < 16 for m in strided)
    if data.train.device.type == "cpu" and narrow and data.size > 48:
        return torch.contiguous_format
    return torch.channels_last


def save_atomically(path: Path, state: dict) -> None:
    """torch.save that leaves the old file or the new one, whatever happens."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        raise OSError(f"can't write {path} ({str(error).splitlines()[0]}); the previous state is untouched") from None


def load_state(path: Path, device: torch.device) -> dict:
    """A file of tensors and plain types; nothing in it is executed. Raises ValueError if it can't be read."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except Exception as error:
        why = "it holds other things" if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise ValueError(f"{path} can't be read as a file of tensors ({why}); if it is damaged, delete it") from None


def evaluate(model: nn.Module, data: Images, team: Team, precision: str, batch: int = 1000) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on the test images, shared among the team."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=data.test.device)
    with torch.no_grad(), autocast(data.test.device, precision):
        for start in range(team.rank * batch, len(data.test), team.size * batch):
            output = model(data.normalized(data.test[start : start + batch]))
            output = output if output.dtype == torch.float64 else output.float()
            labels = data.test_labels[start : start + batch]
            sums[0] += F.cross_entropy(output, labels, reduction="sum")
            sums[1] += (output.argmax(1) == labels).sum()
    if team.size > 1:
        dist.all_reduce(sums, group=team.group)
    model.train()
    loss, accuracy = (sums / len(data.test)).tolist()
    return loss, accuracy


def collapse_measure(run: Run, model: nn.Module, data: Images):
    """The function that says of `model`, each time it is called, how far it has collapsed; for logs.

    "groups": of all true groups of neurons; "paper": of the paper's pairs of layers.
    """
    import core

    groups = core.neuron_groups(model, data.normalized(data.test[:1]))
    paper_groups = core.neuron_groups(model, data.normalized(data.test[:1]), pairing="paper")
    return lambda: {
        "groups": collapse_columns(core.collapse_report(groups)),
        "paper": collapse_columns(core.collapse_report(paper_groups, incoming_mask=True)),
    }


def check_settings(run: Run, folder: Path, is_first: bool, data_hash: str, device: torch.device) -> str:
    """Write settings.json into a new folder; raise ValueError naming the fields in which an old one differs.

    Beside the run's fields it holds a hash of the data's content and the precision that was resolved when the
    run began, which is returned and stays, wherever the run goes on. A folder from before these is completed.
    """
    import core

    path, settings = folder / "settings.json", json.loads(json.dumps(dataclasses.asdict(run)))
    here = {"data_hash": data_hash, "resolved_precision": resolve_precision(run.precision, device)}
    old = {}
    if path.exists():
        defaults = {field.name: field.default for field in dataclasses.fields(Run)}
        try:
            old = json.loads(path.read_text())
            known = json.loads(json.dumps(defaults)) | here | old
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); move {folder} away") from None
        settings |= {"data_hash": data_hash, "resolved_precision": known["resolved_precision"]}
        changed = [key for key in settings.keys() | known.keys() if settings.get(key) != known.get(key)]
        if changed:
            raise ValueError(f"{folder} was run with another {', '.join(sorted(changed))}; move it away or change back")
    settings = here | settings
    if is_first and old != settings:
        core.write_json(path, settings, digits=None)  # compared exactly, by the same command
    precision = settings["resolved_precision"]
    if is_first and precision == "bfloat16" and not fast_bfloat16(device):
        print(f"{run.name} began in bfloat16 and goes on in it; this machine is slow at it", flush=True)
    return precision


def train(
    run: Run,
    data: Images,
    folder: Path,
    device: torch.device,
    team: Team = Team(),
    show: bool = True,
    build=None,
    measure=collapse_measure,
    until: int | None = None,
) -> dict:
    """Train one network, or go on with it, in `folder`; returns its log, "diverged_at" (step or None) and "seconds".

    Writes settings.json, log.jsonl (a line per evaluation: step, losses, accuracy, collapse of every
    group), checkpoint.pt, and weights_<step>.pt at each milestone and at the end. A finished run is
    read, not run. Loss NaN or infinite ends the run as diverged at that step. SIGTERM and Ctrl-C
    save and exit. `until`: go no further than this step, one of the run's milestones or evaluations.
    Raises ValueError for settings that differ or impossible ones, OSError if it can't write.

    Other networks: `build(run, classes)` makes them; else `run.model` is a function of core. Other
    measurements: `measure(run, model, data)` is called once and returns a function that is called at each
    evaluation for more columns of the log; it must leave the model and global random numbers alone.
    """
    import core  # core opens this room: it is there by now

    if until is None:
        until = run.steps
    data = data.prepared(run.normalize)
    if run.batch_size > len(data.train):
        raise ValueError(f"batch size {run.batch_size} is larger than the {len(data.train)} training images")
    folder.mkdir(parents=True, exist_ok=True)
    precision = check_settings(run, folder, team.rank == 0, data.content_hash, device)
    if precision == "float64":
        data = data.in_float64()
    log_file, checkpoint_file = folder / "log.jsonl", folder / "checkpoint.pt"
    torch.manual_seed(run.seed)
    plain = build(run, data.classes) if build else getattr(core, run.model)(data.classes, run.width)
    if precision == "float64":
        plain = plain.double()
    plain = plain.to(device, memory_format=memory_format(plain, data))
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=run.learning_rate, momentum=run.momentum, weight_decay=run.weight_decay
    )
    # Carried along: sum of losses since the last evaluation, and the first step with a bad loss
    step, loss_sum, bad_step = (
        0,
        torch.zeros((), device=device, dtype=data.mean.dtype),
        torch.tensor(run.steps, device=device),
    )
    log, diverged_at, seconds = [], None, 0.0
    if checkpoint_file.exists():
        state = load_state(checkpoint_file, device)
        plain.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, log, diverged_at = state["step"], state["log"], state["diverged_at"]
        bad_step, seconds = state["bad_step"], state.get("seconds", 0.0)
        sums = state["loss_sum"].flatten()  # a number per rank; of another team the first rank takes all
        loss_sum = sums[team.rank] if len(sums) == team.size else sums.sum() * (team.rank == 0)
    elif run.start:
        plain.load_state_dict(load_state(folder.parent / run.start, device))
    if team.rank == 0:
        for part in folder.glob(".*.pt.*"):
            part.unlink()  # of a checkpoint that was killed while it was written
        # The log is the checkpoint's: lines written after it will be written again
        log_file.write_text("".join(json.dumps(line) + "\n" for line in log))
    if step >= until or diverged_at is not None:
        return {"log": log, "diverged_at": diverged_at, "seconds": round(seconds, 1)}

    began = time.perf_counter() - seconds  # seconds: of all sittings together
    model = DistributedDataParallel(plain, process_group=team.group) if team.size > 1 else plain
    columns = measure(run, plain, data)
    per_epoch, share = len(data.train) // run.batch_size, run.batch_size // team.size

    def checkpoint():
        nonlocal seconds
        seconds, sums = time.perf_counter() - began, torch.zeros(team.size, device=device, dtype=loss_sum.dtype)
        sums[team.rank] = loss_sum
        if team.size > 1:
            dist.all_reduce(sums, group=team.group)
            dist.all_reduce(bad_step, dist.ReduceOp.MIN, group=team.group)
        if team.rank == 0:
            state = {"step": step, "model": plain.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
            state |= {"loss_sum": sums, "bad_step": bad_step, "diverged_at": diverged_at}
            save_atomically(checkpoint_file, state | {"seconds": seconds})

    def told_to_stop():
        """Whether a signal has come; a team asks, now and then, whether one has come to any of its ranks."""
        if team.size == 1:
            return bool(stop)
        if step % 20 and step < until:
            return False
        told = torch.tensor(len(stop), device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=team.group)
        return bool(told)

    stop = []
    main_thread = threading.current_thread() is threading.main_thread()
    handlers = {
        s: signal.signal(s, lambda number, frame: stop.append(number))
        for s in ((signal.SIGTERM, signal.SIGINT) if main_thread else ())
    }
    bar = tqdm(total=run.steps, initial=step, desc=run.name, unit="step", disable=None if show else True, mininterval=1)
    epoch, since, stops = -1, log[-1]["step"] if log else 0, {*run.milestones, run.steps}
    try:
        while step < until:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                crops, labels = data.epoch(run, epoch)
            start = step % per_epoch * run.batch_size + team.rank * share
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(run, step)
            with autocast(device, precision):
                output = model(data.normalized(data.batch(crops[start : start + share])))
            if precision == "bfloat16":
                output = output.float()
            loss = F.cross_entropy(output, labels[start : start + share])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach()
            bad_step = torch.where(loss.detach().isfinite(), bad_step, bad_step.clamp_max(step))
            step += 1
            bar.update()
            if step % run.eval_every == 0 or step in stops:
                if team.size > 1:
                    dist.all_reduce(loss_sum, group=team.group)
                    dist.all_reduce(bad_step, dist.ReduceOp.MIN, group=team.group)
                test_loss, accuracy = evaluate(plain, data, team, precision)
                if bad_step < run.steps or not math.isfinite(test_loss):
                    diverged_at = min(int(bad_step), step)
                    checkpoint()
                    break
                mean_loss = loss_sum.item() / team.size / (step - since)
                line = {"step": step, "train_loss": mean_loss, "test_loss": test_loss, "test_accuracy": accuracy}
                if team.rank == 0:
                    line |= columns()
                    log.append(line)
                    with open(log_file, "a") as file:
                        file.write(json.dumps(line) + "\n")
                loss_sum, since = torch.zeros_like(loss_sum), step
                if team.rank == 0 and step in stops:
                    save_atomically(folder / f"weights_{step}.pt", plain.state_dict())
                checkpoint()
                bar.set_postfix(loss=f"{mean_loss:.3f}", accuracy=f"{accuracy:.3f}")
            if told_to_stop():
                checkpoint()
                where = (
                    f"{run.name} stopped at step {step} of {run.steps} and saved; the same command goes on from there"
                )
                raise SystemExit(f"\n{where}" if team.rank == 0 else 1)
    except torch.cuda.OutOfMemoryError:
        raise ValueError(f"{run.name}: out of GPU memory; lower --batch-size or --width, or use more GPUs") from None
    finally:
        bar.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return {"log": log, "diverged_at": diverged_at, "seconds": round(seconds, 1)}


def collapse_columns(report: list[dict]) -> dict[str, list]:
    """The report by columns, as logs keep it."""
    keys = ("name", "width", "vanishing", "independent", "effective_rank")
    return {key: [row[key] for row in report] for key in keys}


def check_teams(batch_sizes: set[int], runs: int) -> None:
    """Raises ValueError where the ranks that torchrun has started make teams that can't share such a batch."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    teams = max(1, min(ranks, runs))
    for batch_size in batch_sizes:
        for size in {ranks // teams, -(-ranks // teams)}:
            if batch_size % size:
                raise ValueError(f"batch size {batch_size} is not divisible by a team of {size} processes")


def sweep(
    runs: list[Run],
    dataset,
    folder: str | Path,
    device: torch.device,
    branches: dict | None = None,
    stop_at: int | None = None,
    **options,
) -> tuple[list[dict], list[dict]] | None:
    """Train all runs, shared among the torchrun ranks; safe to run again. `dataset`: of `core.load_dataset`.

    `branches`: run -> milestone -> the Run that goes on from its weights there, by the same team as soon as they are
    there. `stop_at`: train no run further than this step, nor branches from later ones. `options`: `build` and
    `measure` of `train`.

    Returns a dict per run, {"run": settings, "log": [...], "diverged_at": ...}, and one per branch, on rank 0; None
    on the other ranks. Batches that a team can't divide are refused before anything starts.
    """
    check_teams({run.batch_size for run in runs}, len(runs))
    team, ranks = form_team(len(runs), device), int(os.environ.get("WORLD_SIZE", 1))
    data = Images(dataset, runs[0].dataset, device)
    records, show = {}, team.index == team.rank == 0

    def trained(run, until=None):
        record = train(run, data, Path(folder) / run.name, device, team, show, until=until, **options)
        return {"run": dataclasses.asdict(run), "name": run.name, **record}

    for k in range(team.index, len(runs), team.teams):
        run, branch_records = runs[k], []
        for milestone, branch in sorted((branches or {}).get(run, {}).items()):
            if stop_at is None or milestone <= stop_at:
                record = trained(run, milestone)
                if record["diverged_at"] is None:
                    branch_records.append(trained(branch))
        record = trained(run, stop_at)
        if team.rank == 0:
            records[k] = record, branch_records
    if ranks > 1:
        gathered = [None] * ranks
        dist.all_gather_object(gathered, records)
        records = {k: record for part in gathered for k, record in part.items()}
        if dist.get_rank() != 0:
            return None
    return [records[k][0] for k in range(len(runs))], [branch for k in range(len(runs)) for branch in records[k][1]]
