"""Processes that really crash, hang and eat memory: each costs its task, and every other is answered, in order."""

import contextlib
import ctypes
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from nlzoo.core.errors import DiskError, VideoError
from nlzoo.videos import pool


def act(task):
    """What the name says, at the time it says."""
    kind, value = task
    if kind == "crash":
        ctypes.string_at(0)
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exit":
        os._exit(3)
    elif kind == "hang":
        time.sleep(1000)
    elif kind == "spin":
        while True:
            pass
    elif kind == "memory":
        return len(bytearray(value))
    elif kind == "refuse":
        raise VideoError("not this one")
    elif kind == "bug":
        raise KeyError("a bug")
    elif kind == "big":
        return bytes(value)
    return value * value


WORDS = {
    "crash": "SIGSEGV",
    "kill": "SIGKILL",
    "exit": "exit code 3",
    "hang": "took longer",
    "spin": "took longer",
    "refuse": "not this one",
}


def summary(task, result):
    kind, value = task
    return (
        result == value * value if kind == "fine" else isinstance(result, pool.Failure) and WORDS[kind] in result.reason
    )


@pytest.mark.parametrize("kind, count, deadline", [("crash", 100, 60), ("hang", 100, 0.1)])
def test_a_hundred_bad_tasks_cost_themselves(kind, count, deadline, seed):
    in_a_small_process(f"cost_themselves{(kind, count, deadline, seed)}")


def in_a_small_process(call):
    """Each death costs a fork, and that of the tests' own process takes longer the more they have imported."""
    script = f"import sys; sys.path.append(sys.argv[1]); import test_pool; test_pool.{call}"
    subprocess.run([sys.executable, "-c", script, os.path.dirname(__file__)], check=True, timeout=300)


def cost_themselves(kind, count, deadline, seed):
    tasks = [(kind, i) for i in range(count)] + [("fine", i) for i in range(200)]
    random.Random(seed).shuffle(tasks)
    answers = list(pool.run(act, tasks, 4, lambda task: deadline if task[0] == "hang" else 60))
    assert [t for t, _ in answers] == tasks
    assert all(summary(*answer) for answer in answers)


def test_all_kinds_at_once(seed):
    in_a_small_process(f"all_kinds_cost_themselves({seed})")


def all_kinds_cost_themselves(seed):
    rng = random.Random(seed)
    tasks = [(rng.choice([*WORDS, "fine", "fine", "fine"]), i) for i in range(60)]
    answers = list(pool.run(act, tasks, 3, lambda task: 0.2 if task[0] in ("hang", "spin") else 60, ahead=5))
    assert [t for t, _ in answers] == tasks and all(summary(*answer) for answer in answers)


@pytest.mark.skipif(not pool.FORKS, reason="memory is limited on Linux only")
def test_memory_is_limited(monkeypatch):
    monkeypatch.setattr(pool, "MEMORY", 2**28)
    much = (
        2**33
    )  # half a GiB, which was asked for here, a worker may find in what it starts with: garbage of the tests before
    results = [r for _, r in pool.run(act, [("fine", 2), ("memory", much), ("memory", 2**20)], 1)]
    assert results[0] == 4 and "memory" in results[1].reason and results[2] == 2**20


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError, match="a bug") as caught:
        list(pool.run(act, [("fine", 1), ("bug", 0)], 2))
    assert "in act" in caught.value.__notes__[0]


def full(task):
    raise DiskError("no room", "free some")


def test_what_is_no_fault_of_a_file_ends_it_all():
    with pytest.raises(DiskError, match="no room") as caught:
        list(pool.run(full, [1, 2], 2))
    assert caught.value.hint == "free some" and caught.value.exit_code == 5


def test_tasks_are_read_lazily_and_large_results_pass():
    read = []

    def tasks():
        for i in range(50):
            read.append(i)
            yield "big", 3_000_000

    for n, (_, result) in enumerate(pool.run(act, tasks(), 2, ahead=3), 1):
        assert len(result) == 3_000_000 and len(read) <= n + 6


@pytest.mark.parametrize(("tasks", "count", "processes"), [(0, 3, 0), (1, 8, 1), (3, 8, 3), (9, 3, 3)])
def test_no_more_processes_than_there_are_tasks(tasks, count, processes):
    """Looking up one video on a machine of 64 cores began 64 of them."""
    others = len(multiprocessing.active_children())
    with contextlib.closing(pool.Workers(act, count)) as workers:
        done = workers.run((("square", n) for n in range(tasks)), ahead=1)
        assert len(multiprocessing.active_children()) == others + processes
        assert [result for _, result in done] == [n * n for n in range(tasks)]
        assert len(multiprocessing.active_children()) == others + processes


def test_without_workers_and_with_none_to_do():
    assert [r for _, r in pool.run(act, [("fine", 3), ("refuse", 0)], 0)] == [9, pool.Failure("not this one")]
    assert list(pool.run(act, [], 2)) == []


def test_no_worker_is_left_behind():
    """Not when the caller leaves in the middle, nor when it is killed."""
    script = (
        "import os, time\nfrom nlzoo.videos import pool\n"
        "def work(t):\n    if t == 1: time.sleep(1000)\n    return os.getpid()\n"
        "if __name__ == '__main__':\n    for t, r in pool.run(work, range(3), 2):\n        print(r, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlived its parent")
    stream = pool.run(_pid, range(10), 2)
    worker = next(stream)[1]
    stream.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def _pid(task):
    return os.getpid()
