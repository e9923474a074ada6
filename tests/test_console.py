"""The one printer: JSON for names of any bytes, on any stdout."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_json_gives_names_of_any_bytes_back(encoding):
    code = ("import os, sys; from nlzoo import console; console.use_json(True)\n"
            "console.data({'path': os.fsdecode(bytes.fromhex(sys.argv[1])), 'emoji': '🕺'})")
    name = b"caf\xe9 \xff\n<b>.mp4"
    done = subprocess.run([sys.executable, "-c", code, name.hex()], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True)
    assert json.loads(done.stdout.decode("utf-8")) == {"path": os.fsdecode(name), "emoji": "🕺"}
