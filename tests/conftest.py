"""Fixtures that several test files share. Real data lies beside the checkout, in ../shared, and never in it."""

import contextlib
import ctypes
import gc
import os
import random
import re
import shutil
import sys
from pathlib import Path

for library in (
    "OMP",
    "OPENBLAS",
):  # before they start; small networks gain nothing from more threads, and on a busy machine they wait for one another
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from nlzoo.apps import draw
from nlzoo.cli import app as cli, console
from nlzoo.training import devices
from nlzoo.videos import encode

REPO = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


MEMORY, ROOM = Path("/dev/shm"), 12 * 2**30  # bytes that are free; the suite needs a quarter of them


def pytest_configure():
    """Temporary folders lie in memory where there is room: a tenth of the suite's time was waiting for a disk."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM:
        return
    available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    if available and int(available[1]) * 1024 > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


LONGEST = ("test_demo", "test_real", "test_docs")  # single tests that no other worker can share


def pytest_collection_modifyitems(items):
    """What takes longest begins first, so that the workers end together."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and clips. Missing on CI it is a failure; in a user's clone the test is skipped."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing, and CI must run the real-data tests")
        pytest.skip(f"real data is not here ({folder})")
    return folder


@pytest.fixture(scope="session", autouse=True)
def memory_of_videos(tmp_path_factory):
    """What nlzoo remembers of videos, of these tests alone; subprocesses share it."""
    os.environ["NLZOO_CACHE"] = str(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_processor():
    """Figures are compared in digits, on whichever processor tests run; those of bf16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cpu_has_bf16", lambda: False)
        yield


@pytest.fixture
def seed() -> int:
    """Fresh every time, shown when a test fails; NLZOO_SEED repeats one."""
    value = int(os.environ.get("NLZOO_SEED") or random.SystemRandom().randrange(2**31))
    print(f"NLZOO_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture
def nlzoo(tmp_path, monkeypatch, capfd):
    """Runs one command in this process, in an empty folder: `(exit code, stdout, stderr)`."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = command(*words)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def command(*words) -> int:
    """Runs one command in this process, in the working folder; its exit code."""
    before, sys.argv = sys.argv, ["nlzoo", *map(str, words)]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = before
        console.state.json = False
    return 0


@pytest.fixture(scope="session")
def warm(tmp_path_factory, memory_of_videos):
    """Has imported what a run imports on its way, so that forks of this process need not; a folder with that run."""
    folder = tmp_path_factory.mktemp("warm")
    draw.write_videos(folder / "videos", draw.CLASSES[:2], 3, seed=1, frames=4, size=(32, 48))
    words = "finetune videos --from weights/start --epochs 1 --frames 4 --size 32 --batch 2 --device cpu"
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)  # what was begun here could not be used in a fork
        assert command("inflate", "tiny", "--name", "start") == command(*words.split()) == 0
    gc.collect()
    gc.freeze()  # a fork does not copy what it only looks through
    return folder


@pytest.fixture(scope="module", autouse=True)
def freed_memory_goes_back():
    """A fork copies the tables of all pages: 0.1 s for a GiB, which glibc keeps of one large network that is gone."""
    yield
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """One real mp4 of 12 frames, 32 x 48."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encode.write_video(file, np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), np.uint8))
    return file


@pytest.fixture
def tree(tmp_path, clip_file):
    """Writes the named videos; each with its own bytes unless told, as copies would be joined into one group."""

    def write(*names, same=False):
        for n, name in enumerate(names):
            place = tmp_path / "videos" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            tail = b"" if same else b"\0\0\0\x0cfree" + n.to_bytes(4, "big")  # an empty box at the end of an mp4
            place.write_bytes(clip_file.read_bytes() + tail)
        return tmp_path / "videos"

    return write
