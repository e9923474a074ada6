"""Peak memory of a script in a process of its own.

Not `ru_maxrss`: a process inherits that of the one that started it, here of the tests, and growth below it would not
show.
"""

import subprocess
import sys
import textwrap

_PEAK = """
def peak():
    '''The most resident memory that this process ever had, MiB.'''
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) / 1024
"""


def grown(before: str, script: str, *words: object) -> float:
    """MiB by which `script` raises the peak memory of a process that ran `before`; `words`: its `sys.argv[1:]`."""
    lines = [_PEAK, textwrap.dedent(before), "_start = peak()", textwrap.dedent(script), "print(peak() - _start)"]
    command = [sys.executable, "-c", "\n".join(lines), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])
