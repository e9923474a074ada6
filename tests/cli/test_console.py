"""The one printer: JSON for names of any bytes, on any stdout."""

import contextlib
import json
import os
import pty
import subprocess
import sys

import pytest


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_json_gives_names_of_any_bytes_back(encoding):
    code = (
        "import os, sys; from nlzoo.cli import console; console.use_json(True)\n"
        "console.result({'path': os.fsdecode(bytes.fromhex(sys.argv[1])), 'emoji': '🕺'})"
    )
    name = b"caf\xe9 \xff\n<b>.mp4"
    done = subprocess.run(
        [sys.executable, "-c", code, name.hex()],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
    )
    assert json.loads(done.stdout.decode("utf-8")) == {"path": os.fsdecode(name), "emoji": "🕺"}


@pytest.mark.parametrize("both", [False, True])
def test_answers_and_a_bar_keep_apart(tmp_path, both):
    """On a terminal an answer clears the bar's line before it is written; in a file there is nothing but answers."""
    code = (
        "from nlzoo.cli import console\nwith console.progress('looking') as bar:\n    for n in range(3):\n        bar(n, 3)\n"
        "        console.result(None, f'answer {n}')\n"
    )
    ours, theirs = pty.openpty()
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=theirs if both else out,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
        )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # its end
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    assert done.returncode == 0 and b"looking" in seen
    if both:
        assert all(b"\x1b[2Kanswer %d\r\n" % n in seen for n in range(3))
    else:
        assert (tmp_path / "out").read_text() == "answer 0\nanswer 1\nanswer 2\n" and b"answer" not in seen
