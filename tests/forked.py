"""Commands in forks of the test's process, which has imported everything: python's own start takes 5 s of CPU time."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

from accelerate.state import AcceleratorState

HANDLERS = {  # of a process that has just begun
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class Forked:
    """`work()` in a fork of this process, in `folder`, with what is needed of `Popen`.

    What it says is appended to the files `out` and `err`. `group`: the leader of a group of its own. `name` is what
    /proc calls it.
    """

    def __init__(self, work, folder=".", out=None, err=None, group=True, name="nlzoo", **environment):
        self.returncode, self.pid = None, os.fork()
        if self.pid:
            return
        code = 1
        try:
            if group:
                os.setsid()
            ctypes.CDLL(None).prctl(15, name.encode())  # PR_SET_NAME
            os.environ.update({k: str(v) for k, v in environment.items()})
            os.chdir(folder)
            for number, file in enumerate((out, err), 1):
                if file:
                    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            for number, handler in HANDLERS.items():
                signal.signal(number, handler)
            work()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=None):
        until = time.monotonic() + (timeout or 600)
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def of_group(leader):
    """`{process id: (its name, its parent's id)}` of the group's processes that still run."""
    alive = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                head, _, rest = stat.read().rpartition(") ")
        except OSError:
            continue
        status, parent, group = rest.split()[:3]
        if int(group) == leader and status not in "ZX":
            alive[int(pid)] = head.partition("(")[2], int(parent)
    return alive


def ranks(command, world, folder, err, **environment):
    """What runs `command(*words)` by so many real gloo processes, forks of this one, and gives their exit codes.

    Rank n says what it says in the file `err.n`, and in `err`, which all share.
    """

    def run(*words):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

        def rank():
            AcceleratorState._reset_state(reset_partial_state=True)  # it has one state a process
            sys.exit(command(*words))

        begun = [
            Forked(rank, folder, err.with_suffix(f".{n}"), err, group=False, RANK=n, LOCAL_RANK=n, **common)
            for n in range(world)
        ]
        return [each.wait(200) for each in begun]

    return run
