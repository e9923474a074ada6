"""Work on files that may crash a process, hang it or eat its memory: each costs itself, named, and the rest goes on.

One pipe for each worker and no lock between them, so that a worker may die at any instant and nobody waits for what it
held (pools with one queue for all wait for ever then: pebble #163; `concurrent.futures` gives up altogether, and a
DataLoader waits for a hung worker for ever). Workers hold no state and are replaced at once.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait

from ..core.errors import NlzooError, VideoError

DEADLINE = 120.0  # seconds for a task
MEMORY = 4 * 2**30  # bytes that a worker may take above what it starts with
FORKS = sys.platform.startswith("linux")  # elsewhere libraries do not survive a fork: workers start afresh
_context = multiprocessing.get_context("fork" if FORKS else "spawn")
_ORPHAN = 2.0  # seconds after which a worker sees that its parent has gone


@dataclass(frozen=True)
class Failure:
    """What became of a task that gave no result, in one sentence."""

    reason: str


def run(
    work: Callable,
    tasks: Iterable,
    workers: int,
    deadline: Callable[[object], float] = lambda task: DEADLINE,
    ahead: int = 2,
) -> Iterator[tuple[object, object]]:
    """`(task, work(task))` or `(task, Failure)` in the order of `tasks`, which are read no more than `workers * ahead` in advance.

    A `VideoError` of `work` is a Failure with its reason; any other exception is raised here. A task that
    takes longer than `deadline(task)` seconds, kills its process or takes over `MEMORY` is a Failure. Tasks must be small
    and picklable, and `work` too where processes are not forked. With 0 workers all happens in this process, unprotected.
    """
    if workers < 1:
        yield from ((task, _attempt(work, task)) for task in tasks)
        return
    stream, done, order, count = iter(tasks), {}, deque(), 0
    crew = [_Worker(work) for _ in range(workers)]
    try:
        while True:
            while len(order) < workers * ahead and (entry := next(stream, None)) is not None:
                order.append((count, entry))
                min(crew, key=lambda w: len(w.queue)).give(count, entry)
                count += 1
            if not order:
                return
            number, task = order[0]
            while number not in done:
                _listen(crew, done, deadline)
            order.popleft()
            result = done.pop(number)
            if isinstance(result, Exception):
                raise result
            yield task, result
    finally:
        for worker in crew:
            worker.stop()


def _listen(crew, done, deadline):
    """Waits until something happens, and takes in what did: results, deaths, deadlines that have passed."""
    limits = [w.since + deadline(w.queue[0][1]) for w in crew if w.queue]
    wait([x for w in crew for x in (w.pipe, w.process.sentinel)], max(0.0, min(limits) - time.monotonic()))
    for worker in crew:
        dead = not worker.process.is_alive()  # asked first: what it sent before it died is still in the pipe
        for number, result in worker.results():
            done[number] = result
        if dead:
            worker.replace(done, _death(worker.process.exitcode))
        elif worker.queue and time.monotonic() > worker.since + (limit := deadline(worker.queue[0][1])):
            worker.replace(done, f"took longer than {limit:.0f} s, and was stopped")


def _death(code):
    name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
    return f"the decoder crashed ({name}{'; out of memory, perhaps' if code == -signal.SIGKILL else ''})"


class _Worker:
    """A process, the pipe to it, and what it was given, oldest first."""

    def __init__(self, work):
        self.work, self.queue = work, deque()
        self.start()

    def start(self):
        self.pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(self.work, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends the pipe
        self.since = time.monotonic()  # when it began on the oldest, or later

    def give(self, number, task):
        if not self.queue:
            self.since = time.monotonic()
        self.queue.append((number, task))
        self.send(number, task)

    def send(self, number, task):
        try:
            self.pipe.send((number, task))
        except OSError:
            pass  # it has died: `_listen` sees that and gives the task to the next

    def results(self):
        """`(number, result)` of all that has come in."""
        while self.queue and _has_more(self.pipe):
            try:
                result = self.pipe.recv()
            except (EOFError, OSError):
                return
            self.since = time.monotonic()
            yield self.queue.popleft()[0], result

    def replace(self, done, reason):
        """Another process in its place; the oldest task fails for `reason`, the others are given again."""
        self.stop()
        if self.queue:
            done[self.queue.popleft()[0]] = Failure(reason)
        self.start()
        for number, task in self.queue:
            self.send(number, task)

    def stop(self):
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _has_more(pipe):
    try:
        return pipe.poll()
    except OSError:
        return False


def _serve(work, pipe, parent):
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.disable()  # a decoder's crash is told by name; a dump of this process helps nobody
    _limit_memory()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(
            1
        )  # after a fork the threads of its pool are gone, and it would wait for them
    while True:
        while not pipe.poll(_ORPHAN):
            if os.getppid() != parent:
                os._exit(0)
        number, task = pipe.recv()
        pipe.send(_attempt(work, task, summary=True))


def _attempt(work, task, summary=False):
    """The task's result or Failure; a bug is raised, or given back as the exception where it is `told` to another process."""
    try:
        return work(task)
    except VideoError as error:
        return Failure(error.reason)
    except NlzooError as error:  # a full disk is no fault of this file
        if not summary:
            raise
        return error
    except MemoryError:
        return Failure(f"needs more than {MEMORY / 2**30:.0f} GiB of memory")
    except Exception as error:
        if "can't allocate memory" in str(error):  # torch's way to say it
            return Failure(f"needs more than {MEMORY / 2**30:.0f} GiB of memory")
        if not summary:
            raise
        error.add_note(traceback.format_exc())
        return error


def _limit_memory():
    if not FORKS:  # no such limit elsewhere
        return
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[5]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + MEMORY
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """Decoding processes: on a GPU one per core up to 16; on a CPU, which trains on all cores, one for every two. Ranks share the cores."""
    own = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return max(1, min(16, own) if device != "cpu" else own // 2)
