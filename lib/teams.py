"""Teams of processes: R ranks that torchrun has started share M trainings."""

import dataclasses
import datetime
import os

import torch
import torch.distributed as dist

from lib.errors import InputError

PATIENCE = datetime.timedelta(days=7)  # teams that are done wait for the slowest


def number_of(variable: str, default: int) -> int:
    """A number that torchrun has put into the environment. InputError where something else stands there."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < default:
        raise InputError(f"{variable} is {text!r} in the environment, no number: start with torchrun, or unset it")
    return int(text)


def rank() -> int:
    """The number of this process among those that torchrun has started; 0 without torchrun."""
    return number_of("RANK", 0)


def ranks() -> int:
    """How many processes torchrun has started; 1 without torchrun."""
    return number_of("WORLD_SIZE", 1)


def ranks_here() -> int:
    """How many of them are on this machine; 1 if nothing says so."""
    return number_of("LOCAL_WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those on this machine."""
    return number_of("LOCAL_RANK", 0)


def check_numbers() -> None:
    """Raises InputError if the environment is not as torchrun leaves it, before anything depends on it."""
    if rank() >= ranks():
        raise InputError(f"RANK is {rank()}, but WORLD_SIZE {ranks()}: start with torchrun, or unset both")
    local_rank()
    ranks_here()


def local_device(device: torch.device) -> torch.device:
    """This process's GPU, for "cuda"; ranks may share one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that share a run: this one is number `rank` of `size`, team number `index` of `teams`."""

    index: int = 0
    teams: int = 1
    rank: int = 0
    size: int = 1
    group: object = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one of its team that writes files."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> None:
        """Add up `tensor` over the team, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)

    def minimum(self, tensor: torch.Tensor) -> None:
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MIN, group=self.group)

    def maximum(self, tensor: torch.Tensor) -> None:
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)

    def take_the_leaders(self, tensor: torch.Tensor) -> None:
        """Make `tensor` that of the process that leads the team, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=dist.get_global_rank(self.group, 0), group=self.group)


ALONE = Team()


def restart_safe_store():
    """A meeting point that the dead processes of an earlier start have not used, or None for torch's own.

    After a restart torchrun's store still holds the addresses of the dead (pytorch issue 135712), and restarts
    failed by chance. On one node we meet under a prefix with the restart count.
    """
    all_on_this_node = ranks_here() == ranks()
    if not all_on_this_node or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=PATIENCE)
    return dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def join_processes(device: torch.device) -> None:
    """Meet the other processes that torchrun has started, if any."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL gathers objects and waits at barriers on the current device
    if ranks() == 1 or dist.is_initialized():
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:  # some clusters set WORLD_SIZE for themselves
        raise InputError(
            f"WORLD_SIZE is {ranks()}, but {' and '.join(missing)} not set: start with torchrun, or unset WORLD_SIZE"
        )
    own_gpu_each = device.type == "cuda" and ranks_here() <= torch.cuda.device_count()
    backend = "nccl" if own_gpu_each and dist.is_nccl_available() else "gloo"
    store = restart_safe_store()
    if store is None:
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank(), world_size=ranks())


def first_rank_first(action, device: torch.device):
    """What `action` returns; rank 0 runs it alone before the others do, so that a download happens once."""
    join_processes(device)
    if ranks() == 1:
        return action()
    if rank() == 0:
        result = action()
        dist.barrier()
        return result
    dist.barrier()
    return action()


def form_team(runs: int, device: torch.device) -> Team:
    """R ranks and M runs make min(R, M) teams of neighbouring ranks; one process is a team of its own."""
    join_processes(device)
    if ranks() == 1:
        return Team()
    teams = max(1, min(ranks(), runs))
    members = [[] for _ in range(teams)]
    for one in range(ranks()):
        members[one * teams // ranks()].append(one)
    groups = [dist.new_group(team_ranks) for team_ranks in members]  # every process must make every group
    index = rank() * teams // ranks()
    return Team(index, teams, members[index].index(rank()), len(members[index]), groups[index])


def check_teams(batch_sizes: set[int], runs: int) -> None:
    """Raises InputError where the ranks that torchrun has started make teams that can't share such a batch."""
    teams = max(1, min(ranks(), runs))
    smallest, largest = ranks() // teams, -(-ranks() // teams)
    for batch_size in sorted(batch_sizes):
        for size in (smallest, largest):
            if batch_size % size == 0:
                continue
            fitting = max(n for n in range(1, size + 1) if batch_size % n == 0)
            raise InputError(
                f"batch size {batch_size} is not divisible by a team of {size} processes ({ranks()} processes share "
                f"{runs} run{'s' if runs > 1 else ''}); use --nproc_per_node={fitting * teams} or another --batch-size"
            )


def gather(records: dict) -> dict | None:
    """The records of all ranks together, on rank 0; None on the others."""
    if ranks() == 1:
        return records
    parts = [None] * ranks()
    dist.all_gather_object(parts, records)
    if rank() != 0:
        return None
    together = {}
    for part in parts:
        together |= part
    return together
