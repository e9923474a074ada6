"""Work on files that may crash a process, hang it or eat its memory: each costs itself, named, and the rest continues.

One pipe for each worker and no lock between them, so that a worker may die at any instant and nobody waits for what it
held (pools with one queue for all then wait for ever: pebble #163; `concurrent.futures` gives up altogether, and a
DataLoader waits for a hung worker for ever). Workers hold no state and are replaced at once.
"""

import faulthandler
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NoReturn, TypeVar

from ..core.errors import NlzooError, VideoError

DEADLINE = 120.0  # seconds for a task
MEMORY = 4 * 2**30  # bytes that a worker may take above what it starts with
FORKS = sys.platform.startswith("linux")  # elsewhere libraries do not survive a fork: workers start afresh
_context: Any = multiprocessing.get_context("fork" if FORKS else "spawn")  # its classes are made when it is
_ORPHAN = 2.0  # seconds after which a worker sees that its parent has gone


_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Failure:
    """What became of a task that gave no result."""

    reason: str  # said of the file: "is empty", "the decoder crashed (SIGSEGV)"


def run(
    work: Callable[[_Task], _Result],
    tasks: Iterable[_Task],
    workers: int,
    deadline: Callable[[_Task], float] = lambda task: DEADLINE,
    ahead: int = 2,
) -> Generator[tuple[_Task, _Result | Failure], None, None]:
    """What `Workers.run` gives, with workers of its own."""
    with closing(Workers(work, workers)) as own:
        yield from own.run(tasks, deadline, ahead)


class Workers(Generic[_Task, _Result]):
    """Processes that do `work`, and stay for the next tasks until `close`.

    Tasks must be small and picklable, and `work` too where processes are not forked. With a `count` of 0 all happens in
    this process, unprotected.
    """

    def __init__(self, work: Callable[[_Task], _Result], count: int):
        self.work, self.count = work, count
        self._workers: list[_Worker[_Task, _Result]] = []

    def run(
        self, tasks: Iterable[_Task], deadline: Callable[[_Task], float] = lambda task: DEADLINE, ahead: int = 2
    ) -> Generator[tuple[_Task, _Result | Failure], None, None]:
        """`(task, work(task))` or `(task, Failure)` in the order of `tasks`, at most `count * ahead` in advance.

        The first are begun at once, before anything is asked of the generator; one run at a time. A `VideoError` of
        `work` is a Failure with its reason; any other exception is raised here. A task that takes longer than
        `deadline(task)` seconds, kills its process or takes over `MEMORY` is a Failure.
        """
        if self.count < 1:
            return ((task, _attempt(self.work, task)) for task in tasks)
        coming = enumerate(tasks)
        order: deque[tuple[int, _Task]] = deque()
        self._feed(coming, order, ahead)
        return self._results(coming, order, deadline, ahead)

    def _feed(self, coming: Iterator[tuple[int, _Task]], order: deque[tuple[int, _Task]], ahead: int) -> None:
        for number, task in islice(coming, self.count * ahead - len(order)):
            order.append((number, task))
            self._free_worker().give(number, task)

    def _free_worker(self) -> "_Worker[_Task, _Result]":
        """The one with the least to do; a new one where all have something to do and there may be more of them."""
        if len(self._workers) < self.count and all(worker.queue for worker in self._workers):
            self._workers.append(_Worker(self.work))
        return min(self._workers, key=lambda worker: len(worker.queue))

    def _results(
        self,
        coming: Iterator[tuple[int, _Task]],
        order: deque[tuple[int, _Task]],
        deadline: Callable[[_Task], float],
        ahead: int,
    ) -> Generator[tuple[_Task, _Result | Failure], None, None]:
        done: dict[int, Any] = {}
        try:
            while order:
                number, task = order.popleft()
                while number not in done:
                    _listen(self._workers, done, deadline)
                result = done.pop(number)
                if isinstance(result, Exception):
                    raise result
                yield task, result
                self._feed(coming, order, ahead)
        finally:
            if any(worker.queue for worker in self._workers):  # left early: what they still do is for nobody
                self.close()

    def close(self) -> None:
        """Ends the processes; another run starts new ones."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.stop()


def _listen(
    processes: list["_Worker[_Task, _Result]"], done: dict[int, Any], deadline: Callable[[_Task], float]
) -> None:
    """Waits until something happens, and takes in what did: results, deaths, deadlines that have passed."""
    limits = [w.since + deadline(w.queue[0][1]) for w in processes if w.queue]
    events = [w.pipe for w in processes] + [w.process.sentinel for w in processes]
    wait(events, max(0.0, min(limits) - time.monotonic()))
    for worker in processes:
        dead = not worker.process.is_alive()  # asked first: what it sent before it died is still in the pipe
        done.update(worker.results())
        if dead:
            worker.replace(done, _death(worker.process.exitcode))
            continue
        limit = deadline(worker.queue[0][1]) if worker.queue else math.inf
        if time.monotonic() > worker.since + limit:
            worker.replace(done, f"took longer than {limit:.0f} s, and was stopped")


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the decoder crashed (exit code {code})"
    cause = "; out of memory, perhaps" if code == -signal.SIGKILL else ""
    return f"the decoder crashed ({signal.Signals(-code).name}{cause})"


class _Worker(Generic[_Task, _Result]):
    """A process, the pipe to it, and the tasks that it was given, oldest first."""

    def __init__(self, work: Callable[[_Task], _Result]):
        self.work = work
        self.queue: deque[tuple[int, _Task]] = deque()
        self.start()

    def start(self) -> None:
        self.pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(self.work, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends the pipe
        self.since = time.monotonic()  # when it began on the oldest, or later

    def give(self, number: int, task: _Task) -> None:
        if not self.queue:
            self.since = time.monotonic()
        self.queue.append((number, task))
        self.send(task)

    def send(self, task: _Task) -> None:
        with suppress(OSError):  # it has died: `_listen` sees that and gives the task to the next
            self.pipe.send(task)

    def results(self) -> Iterator[tuple[int, object]]:
        """`(number, result)` of all that has come in."""
        with suppress(EOFError, OSError):
            while self.queue and self.pipe.poll():
                result = self.pipe.recv()
                self.since = time.monotonic()
                yield self.queue.popleft()[0], result

    def replace(self, done: dict[int, Any], reason: str) -> None:
        """Another process in its place; the oldest task fails for `reason`, the others are given again."""
        self.stop()
        if self.queue:
            done[self.queue.popleft()[0]] = Failure(reason)
        self.start()
        for _, task in self.queue:
            self.send(task)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _serve(work: Callable[[_Task], object], pipe: Connection, parent: int) -> NoReturn:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.disable()  # a decoder's crash is told by name; a dump of this process helps nobody
    _limit_memory()
    if "torch" in sys.modules:  # after a fork the threads of its pool are gone, and it would wait for them
        sys.modules["torch"].set_num_threads(1)
    while True:
        while not pipe.poll(_ORPHAN):
            if os.getppid() != parent:
                os._exit(0)
        pipe.send(_attempt(work, pipe.recv(), raises=False))


def _attempt(work: Callable[[_Task], _Result], task: _Task, raises: bool = True) -> Any:
    """The task's result or Failure; a bug is raised or, for another process to raise it, returned."""
    try:
        return work(task)
    except VideoError as error:
        return Failure(error.reason)
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's way to say it
            return Failure(f"needs more than {MEMORY / 2**30:.0f} GiB of memory")
        if raises:
            raise
        if not isinstance(error, NlzooError):
            error.add_note(traceback.format_exc())
        return error


def _limit_memory() -> None:
    if not FORKS:  # no such limit elsewhere
        return
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[5]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + MEMORY
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """Those of this process, where the ranks of a machine share its cores."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def default_workers(device: str) -> int:
    """Decoding processes: on a GPU one per core up to 16; on a CPU, which trains on all cores, one for every two."""
    own = own_cores()
    if device == "cpu":
        return max(1, own // 2)
    return min(16, own)
