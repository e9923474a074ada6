"""One process or many: the only module that imports accelerate, and the parent process of `--gpus N`.

A run of one process needs no accelerate. Of many, each has a part of every batch and of every validation, gradients are
averaged by torch's DistributedDataParallel, and rank 0 alone writes and prints. They are started by
`accelerate launch -m nlzoo …` or `torchrun -m nlzoo …`, on one machine or several, or by `launch` here.
"""

import atexit
import contextlib
import ctypes
import hashlib
import importlib.util
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from ..core.errors import DivergedError, NlzooError, Stopped, UsageError
from ..core.text import did_you_mean

HUNG = 600.0  # seconds that a rank waits for another before the run ends; NLZOO_HUNG_SECONDS says otherwise
GRACE = 8.0  # seconds that the other ranks have to end after the first has failed
TRACKERS = ("tensorboard", "wandb", "trackio")
_OTHERS_LATER, _LOST_LATER = 5.0, 3.0  # seconds; see `distributed_errors`
_POLL = 0.2  # seconds between two looks at whether the first rank is done
_turns = itertools.count()  # of `first_rank_first`, in which all ranks come in the same order
_LAUNCHED = "NLZOO_LAUNCHED"  # set for the ranks of `launch`
_OF_ALL = (Stopped, DivergedError)  # what every rank raises at the same step
_LOST = re.compile(r"gloo|nccl|closed by peer|reset by peer|broken pipe|timed out|recvValue|failed to recv", re.I)
_HUNG = re.compile(r"timed out|timeout", re.I)  # of these, where the other may still be there


class LostError(NlzooError):
    """Another process of the run has ended, or does not answer."""


@dataclass(frozen=True)
class Engine:
    """This process's place among those of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1
    accelerator: Any = None  # accelerate's, where there are several processes or a tracker
    tracker: str | None = None

    @property
    def wide(self) -> torch.dtype:
        """The widest dtype of the device: float64, but for Metal."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wrapped(self, net: nn.Module) -> nn.Module:
        """`net` as training calls it: gradients are averaged over the ranks."""
        if self.world == 1:
            return net
        self.accelerator.free_memory()  # it keeps what it wrapped before, whose hooks would average too
        # of kernels of one tap, where they mean the same
        warnings.filterwarnings("ignore", "Grad strides do not match")
        return self.accelerator.prepare_model(net)

    def sync_buffers(self, net: nn.Module) -> None:
        """Gives every rank the running statistics of rank 0, which saves for all."""
        if self.world > 1:
            for buffer in net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """Around a backward pass after which others of the same step follow: gradients are not exchanged yet."""
        return self.accelerator.no_sync(model) if self.world > 1 else contextlib.nullcontext()

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        return self.accelerator.reduce(torch.tensor(values, dtype=self.wide, device=self.device), "sum").tolist()

    def all_gather(self, rows: list) -> list:
        """The rows of all ranks."""
        if self.world == 1:
            return rows
        from accelerate.utils import gather_object

        return gather_object(rows)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank."""
        return self.all_gather([value])[0]

    def agree(self, what: str, value: object) -> None:
        """Raises `UsageError`, on every rank, where `value` differs between them: they would train different things."""
        digests = self.all_gather([hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()])
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise UsageError(
                f"{what} are not the same on rank {others[0]} as on rank 0",
                "give every machine the same command and the same files",
            )

    @contextlib.contextmanager
    def first_rank_first(self) -> Iterator[None]:
        """What is inside is done by the first rank of each machine, and only then, in its own process, by the others.

        For what the first leaves on disk for them. They wait without a limit of time, as `HUNG` is none for a scan of
        many videos; all ask the store that brought the ranks together, so a death of rank 0, who has it, is a
        RuntimeError of theirs (`distributed_errors`). Others' deaths are for the launcher to notice.
        """
        if self.world == 1:
            yield
            return
        store = torch.distributed.distributed_c10d._get_default_store()
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        done = f"nlzoo/first/{next(_turns)}/{self.rank - local}"
        while local and not store.check([done]):
            time.sleep(_POLL)
        try:
            yield
        finally:
            if not local:
                store.set(done, "")  # also where it failed: the others meet the same error, and rank 0 tells it

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()

    def track(self, run: Path, settings: dict, step: int) -> None:
        """Starts the tracker's record of the run in the folder `run`, or continues it after `step`."""
        if not self.tracker:
            return
        self.accelerator.project_configuration.logging_dir = str(run)
        if self.tracker == "tensorboard":  # into RUN/tensorboard; what an earlier try logged after `step` is void
            self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
            return
        plain = {k: v for k, v in settings.items() if isinstance(v, int | float | str)}
        extra = {"wandb": {"name": run.name, "dir": str(run)}, "trackio": {"name": run.name}}
        self.accelerator.init_trackers("nlzoo", plain, extra)

    def log(self, values: dict, step: int) -> None:
        """Numbers for the tracker."""
        if self.tracker:
            self.accelerator.log({k: v for k, v in values.items() if isinstance(v, int | float)}, step=step)

    def end(self) -> None:
        """Ends the tracker's record of a run. The ranks stay together: another run may follow."""
        if self.tracker:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []


def ranks() -> tuple[int, int]:
    """`(rank, world)` that the launcher gave this process; (0, 1) without one."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _hung() -> float:
    """Seconds that a rank waits for another."""
    text = os.environ.get("NLZOO_HUNG_SECONDS") or str(HUNG)
    try:
        return max(1.0, float(text))
    except ValueError:
        raise UsageError(f"NLZOO_HUNG_SECONDS is {text!r}", "a number of seconds") from None


def begin(device: torch.device, tracker: str | None = None) -> Engine:
    """This process's engine, once the other ranks are there.

    Raises `UsageError` where accelerate or the tracker is not installed.
    """
    if tracker and tracker not in TRACKERS:
        hint = did_you_mean(tracker, TRACKERS, f"choose one of {', '.join(TRACKERS)}")
        raise UsageError(f"there is no tracker {tracker!r}", hint)
    if ranks()[1] == 1 and not tracker:
        return Engine(device)
    needs = {"accelerate": "several processes, and trackers, need accelerate"}
    if tracker:
        needs[tracker] = f"--track {tracker} needs {tracker}"
    for package, need in needs.items():
        if not importlib.util.find_spec(package):
            raise UsageError(f"{need}, which is not installed", f"pip install {package}")
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        log_with=tracker,
        project_dir=".",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=_hung()))],
    )
    world = accelerator.num_processes
    own = accelerator.device if world > 1 and device.type != "cpu" else device
    return Engine(own, accelerator.process_index, world, accelerator, tracker)


@contextlib.contextmanager
def distributed_errors() -> Iterator[None]:
    """Around all that a rank does: the first error is printed once, and those that follow from it are not.

    Most errors meet all ranks at once: the others leave rank 0 a moment to print its own. One that has lost another
    leaves the launcher a moment, which ends it meanwhile; `launch` names a rank that was killed.
    """
    rank, world = ranks()
    try:
        yield
    except RuntimeError as error:
        if world == 1 or not _LOST.search(str(error)):
            raise
        time.sleep(_LOST_LATER)
        if os.environ.get(_LAUNCHED) and not _HUNG.search(str(error)):
            sys.exit(LostError.exit_code)
        raise LostError(
            f"rank {rank} has lost another of the {world} processes: it has ended, or did not answer for {_hung():g} s",
            "its own error may stand above; the same command resumes from the last checkpoint",
        ) from error
    except NlzooError as error:
        if rank:
            time.sleep(_OTHERS_LATER)
            if isinstance(error, _OF_ALL):  # rank 0 has printed it, but may take longer than that to end
                sys.exit(error.exit_code)
        raise
    else:  # at the end of the process, as another run may follow; after an error it might wait for ranks that are gone
        atexit.register(_leave)


def _leave() -> None:
    """Leaves the group of ranks, which NCCL warns of where it is not done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def set_current_gpu() -> None:
    """Makes this rank's GPU the current one, before anything touches the first, which is rank 0's."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


# --- the parent of `--gpus N`


def launch(
    words: Sequence[str],
    count: int,
    device: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
    again: str = "resumes from the last checkpoint",
) -> int:
    """Runs `python -m nlzoo WORDS` as `count` ranks on this machine; the exit code of the first that failed, else 0.

    When one has failed the others are told to end (SIGTERM), and killed after `GRACE` seconds. `warn` gets a sentence
    on one that a signal killed, and what the same command does `again`. SIGTERM and SIGHUP are passed on to all; Ctrl-C
    reaches them by itself. When this process is killed they end too (Linux). Not torch's elastic launcher: it exits
    with 1 whatever the code of the rank, kills ranks 30 s after a signal though they have not saved, and when it is
    killed leaves them running, with the run's lock.
    Raises `UsageError` where there are fewer GPUs, unless `device` is cpu.
    """
    have = torch.cuda.device_count()
    if device != "cpu" and have < count:
        here = "is 1 GPU" if have == 1 else f"are {have} GPUs"
        raise UsageError(
            f"--gpus {count}, but there {here} here",
            "ask for as many as there are; with --device cpu processes share the CPU",
        )
    processes: list[subprocess.Popen] = []
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.append(number)
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, lambda number, frame: passed.append(number))
    environment = _environment(count)
    try:
        for rank in range(count):
            processes.append(_start(words, {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        rank, failed = _first_failure(processes)
        if failed < 0 and -failed not in passed:
            killed = f"rank {rank} of {count} was killed ({signal.Signals(-failed).name})"
            warn(f"{killed}; the others are told to end. The same command {again}")
        return failed if failed >= 0 else 128 - failed
    finally:
        _stop(processes)


def _first_failure(processes: Sequence[subprocess.Popen]) -> tuple[int, int]:
    """Waits: the first rank that failed and its exit code, negative where a signal killed it; (0, 0): none did."""
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                return rank, code
        if None not in codes:
            return 0, 0
        time.sleep(0.1)


def _environment(count: int) -> dict[str, str]:
    """What all ranks have in common."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"OMP_NUM_THREADS": threads, **os.environ, **world, **address, _LAUNCHED: "1"}


def _start(words: Sequence[str], environment: dict[str, str]) -> subprocess.Popen:
    end_with_parent = _end_with_parent if sys.platform.startswith("linux") else None
    return subprocess.Popen([sys.executable, "-m", "nlzoo", *words], env=environment, preexec_fn=end_with_parent)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a rank left alone would hold the run's lock


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
