"""A run killed at any instant, on a full disk or a failing one, has its last checkpoint; one process works on it."""

import errno
import fcntl
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import Forked
from safetensors.torch import load_file
from torch import nn

import nlzoo
from nlzoo.core import files as core_files, model_spec, view_spec
from nlzoo.core.errors import DiskError, NlzooError, UsageError, WeightsError
from nlzoo.core.lock import LOCK
from nlzoo.networks import checkpoint, model
from nlzoo.training import state

KILLED = 77
FILES = ["manifest.json", "state.json", "state.safetensors"]
CHANGES = (
    "openat,?creat,write,pwrite64,writev,ftruncate,?fallocate,?rename,renameat,renameat2,?mkdir,mkdirat,?unlink,unlinkat,?rmdir,fsync,"
    "fdatasync,?link,linkat,?symlink,symlinkat,flock,fchmod,?chmod,fchmodat"
)  # system calls that open or change a file


def content(rng, size=2000):
    """Tensors and meta of a checkpoint."""
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    tensors = {
        "net.weight": torch.randn(size, generator=draw),
        "net.half": torch.randn(3, 5, generator=draw).bfloat16(),
        "step": torch.tensor(float(rng.randrange(1000))),
        "rng": torch.randint(0, 256, (100,), generator=draw, dtype=torch.uint8),
        "none": torch.zeros(0, 3),
        "on": torch.tensor([True, False]),
        "complex": torch.randn(4, generator=draw, dtype=torch.complex64),
    }
    return tensors, {
        "epoch": rng.randrange(100),
        "loss": rng.random(),
        "best": -0.0,
        "file": "\udcff ü",
        "order": [rng.getrandbits(64) for _ in range(5)],
    }


def equal(a, b):
    """The same nesting, types and bits."""
    if isinstance(a, torch.Tensor):
        bits = [t.contiguous().flatten().view(torch.uint8) if t.numel() else t for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return (
            isinstance(b, dict)
            and list(a) == list(b)
            and [type(k) for k in a] == [type(k) for k in b]
            and all(equal(a[k], b[k]) for k in a)
        )
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a.hex() == b.hex() if isinstance(a, float) else a == b)


def holds(loaded, step, kept):
    return (
        loaded.step == step
        and loaded.tensors.keys() == kept[0].keys()
        and all(equal(loaded.tensors[k], kept[0][k]) for k in kept[0])
        and equal(loaded.meta, kept[1])
    )


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def forked(work) -> int:
    """Runs `work` in a forked process; its exit code, negative for a signal."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            signal.alarm(100)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- saving and loading


def test_what_is_saved_is_loaded_bit_for_bit_and_older_ones_go(tmp_path, seed):
    rng = random.Random(seed)
    assert state.load(tmp_path) is None
    kept = {step: content(rng) for step in (0, 7, 100, 123456789)}
    for step, (tensors, meta) in kept.items():
        assert state.save(tmp_path, step, tensors, meta, keep=3).name == f"step-{step:08d}"
        found = state.load(tmp_path)
        assert holds(found, step, kept[step]) and found.passed_over == ()
    assert names(tmp_path / "checkpoints") == ["step-00000007", "step-00000100", "step-123456789"]
    assert names(tmp_path / "checkpoints" / "step-00000007") == FILES
    assert len({p.stat().st_mode for p in (tmp_path / "checkpoints" / "step-00000007").iterdir()}) == 1
    assert found.writer == {
        "nlzoo": nlzoo.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
    }
    again = content(rng)
    state.save(tmp_path, 7, *again)  # the course after it was given up
    assert holds(state.load(tmp_path), 7, again) and names(tmp_path / "checkpoints") == ["step-00000007"]


def test_tensors_that_share_memory_or_lie_apart_are_kept(tmp_path, seed):
    base = torch.randn(6, 4)
    tensors = {"a": base, "b": base, "part": base[2:], "turned": base.t(), "p": nn.Parameter(base)}
    state.save(tmp_path, 1, tensors, {})
    assert all(torch.equal(state.load(tmp_path).tensors[k], v) for k, v in tensors.items())


@pytest.mark.parametrize(
    "tensors, meta",
    [
        ({"../x": torch.zeros(1)}, {}),
        ({"a/b": torch.zeros(1)}, {}),
        ({f"t{i}": torch.zeros(0) for i in range(10_001)}, {}),
        ({}, {"a": (1, 2)}),
        ({}, {1: 2}),
        ({}, {"a": math.nan}),
        ({}, []),
    ],
)
def test_what_could_not_be_read_again_is_a_bug(tmp_path, tensors, meta):
    with pytest.raises(ValueError):
        state.save(tmp_path, 1, tensors, meta)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file.* could not be written \(Not a directory\)"):
        state.save(tmp_path / "file", 1, {}, {})
    with pytest.raises(DiskError, match="file could not be locked"), state.lock(tmp_path / "file"):
        pass


# --- F3: damage


def damaged(rng, original):
    if rng.random() < 0.5:
        return original[: rng.randrange(len(original))]
    at = rng.randrange(len(original))
    return original[:at] + bytes([original[at] ^ 1 << rng.randrange(8)]) + original[at + 1 :]


def test_200_damages_are_found_and_the_one_before_is_loaded(tmp_path, seed):
    rng = random.Random(seed)
    before, newest = content(rng), content(rng)
    state.save(tmp_path, 10, *before)
    folder = state.save(tmp_path, 20, *newest)
    unseen = 0  # by the format's own reader, which has no digest
    for n in range(200):
        file = folder / (state.TENSORS, state.REST, state.MANIFEST)[n % 3]
        original = file.read_bytes()
        file.write_bytes(damaged(rng, original))
        found = state.load(tmp_path)
        assert holds(found, 10, before), file
        assert [name for name, _ in found.passed_over] == ["step-00000020"] and file.name in found.passed_over[0][1]
        unseen += n % 3 == 0 and readable(file)
        file.write_bytes(original)
        assert n % 20 or holds(state.load(tmp_path), 20, newest)
    assert unseen > 10  # negative control: half of the 67 are flips, nearly all of them in the numbers
    print(f"F3: 200 damages found; {unseen} of the 67 of {state.TENSORS} would have been loaded without the digest")


def readable(file):
    try:
        return bool(load_file(file))
    except Exception:  # a damaged file makes the reader raise anything
        return False


def test_every_bit_of_a_manifest_counts(tmp_path, seed):
    folder = state.save(tmp_path, 3, {}, {})
    original = (folder / state.MANIFEST).read_bytes()
    for at in range(len(original) * 8):
        if at % 7 == seed % 7:
            flipped = bytearray(original)
            flipped[at // 8] ^= 1 << at % 8
            (folder / state.MANIFEST).write_bytes(flipped)
            with pytest.raises(WeightsError, match=r"none of the 1 checkpoints .*\n  step-00000003: .*manifest.json"):
                state.load(tmp_path)


def rewritten(folder, **changes):
    """A manifest that is sealed again."""
    manifest = json.loads((folder / state.MANIFEST).read_text()) | changes
    manifest.pop("sha256")
    (folder / state.MANIFEST).write_text(state._sealed(manifest))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: (f / state.REST).unlink(), "state.json is missing"),
        (lambda f: shutil.rmtree(f) or f.mkdir(), "state.safetensors is missing"),
        (lambda f: (f / state.TENSORS).unlink() or os.mkfifo(f / state.TENSORS), "state.safetensors is missing"),
        (lambda f: rewritten(f, step=21), "manifest.json is of step 21, format 1, and not of step 20"),
        (lambda f: rewritten(f, format=2), "is of step 20, format 2"),
        (lambda f: rewritten(f, files={}), "manifest.json is not one of ours"),
        (lambda f: rewritten(f, files=[1]), "manifest.json is not one of ours"),
        (
            lambda f: rewritten(f, files={n: {"bytes": "7", "sha256": 7} for n in (state.TENSORS, state.REST)}),
            "not one of ours",
        ),
        (lambda f: rewritten(f, writer=None), "manifest.json is not one of ours"),
        (lambda f: (f / state.MANIFEST).write_text("[" * 100_000), "manifest.json could not be read"),
        (lambda f: (f / state.MANIFEST).write_text('{"a": NaN}'), "manifest.json is damaged"),
        (lambda f: (f / state.MANIFEST).write_text("[]"), "manifest.json is not a JSON object"),
        (lambda f: (f / state.TENSORS).open("ab").write(b"0"), r"state.safetensors has [\d,]+ bytes instead of [\d,]+"),
    ],
)
def test_the_reason_says_what_is_wrong(tmp_path, seed, change, words):
    before = content(random.Random(seed))
    state.save(tmp_path, 10, *before)
    change(state.save(tmp_path, 20, *before))
    found = state.load(tmp_path)
    assert holds(found, 10, before) and re.search(words, found.passed_over[0][1])


def test_a_damaged_one_is_never_kept_in_place_of_a_whole_one(tmp_path, seed):
    rng = random.Random(seed)
    state.save(tmp_path, 10, *content(rng))
    (state.save(tmp_path, 20, *content(rng)) / state.REST).write_text("")
    assert state.load(tmp_path).step == 10
    after = content(rng)
    state.save(tmp_path, 15, *after, keep=1)
    assert holds(state.load(tmp_path), 15, after) and names(tmp_path / "checkpoints") == ["step-00000015"]


# --- F2: kills


@pytest.fixture
def memory(tmp_path):
    """A folder in memory where there is one: a kill leaves the same there as on a disk, and flushing is free."""
    if not os.access("/dev/shm", os.W_OK):
        return (yield tmp_path)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def job(memory, seed):
    """`(begin, act, check)`: a run with two checkpoints and `best`; the next save, prune and `best`; what must hold.

    With `saved` the next save and prune have been, and `act` is about `best` alone.
    """
    rng, run = random.Random(seed), memory / "run"
    net = model.build(
        model_spec.ModelSpec("tiny", classes=("a", "b"), num_outputs=2, clip=view_spec.ClipSpec(4, None, 32))
    )
    old, new = content(rng), content(rng)
    best = {}
    state.save(run, 10, *content(rng))
    state.save(run, 20, *old)
    for name in ("new", "old"):
        nn.init.normal_(net.fc.weight)
        checkpoint.save_model(run / "best", net, {"top1": rng.random()})
        assert torch.equal(checkpoint.load_model(run / "best").fc.weight, net.fc.weight)
        best[name] = files(run / "best")
        if name == "new":
            after, metrics = (
                {k: v.clone() for k, v in net.state_dict().items()},
                json.loads(best["new"]["metrics.json"]),
            )
    net.load_state_dict(after)
    template = run.rename(memory / "template")

    def begin(saved=False):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(template, run)
        if saved:
            state.save(run, 30, *new, keep=2)

    def act(saved=False):
        with state.lock(run):
            if not saved:
                state.save(run, 30, *new, keep=2)
            checkpoint.save_model(run / "best", net, metrics)

    def check(done):
        """Old or new, whole; all new when `done`, and nothing left over. Which: (checkpoint is new, best is new)."""
        found, standing = state.load(run), files(core_files.current(run / "best"))
        assert not found.passed_over and (holds(found, 30, new) or not done and holds(found, 20, old))
        assert standing == best["new"] or not done and standing == best["old"]
        assert all(names(folder) == FILES for folder in (run / "checkpoints").glob("step-*")), (
            "what has its name is whole"
        )
        if done:
            assert names(run) == [".lock", "best", "checkpoints"] and names(run / "checkpoints") == [
                "step-00000020",
                "step-00000030",
            ]
        return found.step == 30, standing == best["new"], (run / "best").exists()

    begin()
    act()  # so that all is imported before anybody counts
    check(True)
    return begin, act, check


def counted(work, n):
    """Leaves at the n-th filesystem call of python or its libraries; gives all in order where there are fewer."""
    seen = []

    def call(name, *args):
        seen.append([name, *map(path_of, args)])
        if len(seen) == n:
            os._exit(KILLED)

    def hook(event, args):
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.")):
            call(event, *args)

    def wrapped(module, name):
        real = getattr(module, name)

        def watched(*args, **kwargs):
            call(name, *args)
            return real(*args, **kwargs)

        setattr(module, name, watched)

    def writing(module):
        """What safetensors does unseen by python (by strace): a hidden file, its full length, the numbers, a rename."""
        real = module.save_file

        def watched(tensors, file, **kwargs):
            call("save_file", file)
            hidden = file.with_name(".tmpAbCdEf")
            for part in (0, 0.5, 1):
                if len(seen) + 1 == n:
                    real(tensors, hidden, **kwargs)
                    os.truncate(hidden, int(part * hidden.stat().st_size))
                call("in save_file", file)
            real(tensors, file, **kwargs)

        module.save_file = watched

    for module, name in ((os, "fsync"), (os, "pwrite"), (core_files, "_exchange")):  # without an audit event
        wrapped(module, name)
    writing(state)
    writing(checkpoint)
    sys.addaudithook(hook)
    work()
    return seen


def test_a_kill_at_any_filesystem_call_loses_nothing(job):
    kills, homeless = killed_everywhere(*job)
    assert kills > 60 and not homeless
    print(f"F2: {kills} kills at filesystem calls")


def test_nor_where_two_names_cannot_be_exchanged(job, monkeypatch):
    """There `best` is without its name for a moment (negative control), and is found nevertheless."""
    monkeypatch.setattr(core_files, "_exchange", lambda *_: False)
    begin, act, check = job
    kills, homeless = killed_everywhere(partial(begin, saved=True), partial(act, saved=True), check)
    assert kills > 30 and homeless > 0
    print(f"F2: {kills} kills where names cannot be exchanged, {homeless} of them while best had stepped aside")


def killed_everywhere(begin, act, check):
    """A kill at each filesystem call, every eighth tried again: how many, and how often `best` lacked its name."""
    before, n, homeless = [False, False], 0, 0
    while True:
        n += 1
        begin()
        code = forked(partial(counted, act, n))
        assert code in (0, KILLED)
        *which, there = check(code == 0)
        assert all(now >= then for now, then in zip(which, before)), "what had become new is old again"
        before, homeless = which, homeless + (not there)
        if code == 0:
            return n - 1, homeless
        if n % 8 == 0:  # whatever is left over, the next one gets through
            assert forked(act) == 0
            check(True)


def path_of(arg):
    """An argument of a call, a descriptor as the path that it is open on."""
    if isinstance(arg, int):
        return os.readlink(f"/proc/self/fd/{arg}") if os.path.lexists(f"/proc/self/fd/{arg}") else ""
    return os.fspath(arg) if isinstance(arg, str | os.PathLike) else ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_nothing_goes_before_what_replaces_it_is_on_the_disk(job, memory, exchange, monkeypatch):
    """The order of calls, which is what a power cut needs beyond what a kill does; no test here can cut the power."""
    begin, act, _ = job
    if not exchange:
        monkeypatch.setattr(core_files, "_exchange", lambda *_: False)
    begin()
    assert forked(lambda: (memory / "calls").write_text(json.dumps(counted(act, -1)))) == 0
    calls = json.loads((memory / "calls").read_text())
    for place, name in ((memory / "run" / "checkpoints", "step-00000030"), (memory / "run", "best")):
        put = next(
            i
            for i, c in reversed([*enumerate(calls)])
            if c[0] in ("os.rename", "_exchange") and c[2] == str(place / name)
        )
        part = calls[put][1]
        flushed = {c[1] for c in calls[:put] if c[0] == "fsync"}
        assert {part, *(f"{part}/{file}" for file in names(place / name))} <= flushed
        durable = calls.index(["fsync", str(place)], put)
        assert "shutil.rmtree" not in [c[0] for c in calls[put:durable]] and "shutil.rmtree" in [
            c[0] for c in calls[durable:]
        ]


def traced(work, *options) -> int:
    """As `forked`, seen by strace."""
    wait, go = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(go)
        os.read(wait, 1)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(wait)
    with subprocess.Popen(
        ["strace", "-p", str(pid), "-e", f"trace={CHANGES}", *options], stderr=subprocess.PIPE, text=True
    ) as tracer:
        summary = tracer.stderr.readline()
        os.close(go)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if "attached" not in summary:
        pytest.skip(f"strace cannot trace here: {summary.strip()}")
    return code


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not here")
def test_a_kill_at_any_system_call_loses_nothing(job, memory):
    """As the kernel sees it: the writes of safetensors too, of which python knows nothing."""
    begin, act, check = job
    begin()
    assert traced(act, "-o", memory / "calls") == 0
    check(True)
    calls = re.findall(r"^(\w+)\(", (memory / "calls").read_text(), re.MULTILINE)
    assert {"renameat2", "ftruncate", "fsync", "write", "openat"} <= set(calls)
    for at, name in enumerate(calls):
        begin()
        nth = calls[: at + 1].count(name)  # strace counts each by its name
        assert traced(act, "-o", "/dev/null", "-e", f"inject={name}:signal=KILL:when={nth}") == -signal.SIGKILL
        check(False)
    print(f"F2: {len(calls)} kills at system calls")


# --- F2: a full disk


def limited(work, size, deadly):
    """As `forked`, with files of at most `size` bytes: a write past it fails or, where `deadly`, ends the process."""

    def run():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            work()
        except DiskError as error:
            assert "could not be written" in error.message and "File too large" in error.message, error.message
            os._exit(error.exit_code)

    return forked(run)


@pytest.mark.parametrize("deadly", [False, True], ids=["fails", "kills"])
def test_writes_that_end_at_any_byte_lose_nothing(memory, seed, deadly):
    rng = random.Random(seed)
    old, new = content(rng), content(rng)
    state.save(memory, 20, *old)
    largest = max(p.stat().st_size for p in (memory / "checkpoints" / "step-00000020").iterdir())
    ended = 0
    for size in sorted(
        {0, 1, largest - 1, *(rng.randrange(1200) for _ in range(15)), *(rng.randrange(largest) for _ in range(10))}
    ):
        code = limited(lambda: state.save(memory, 30, *new), size, deadly)
        assert code == (-signal.SIGXFSZ if deadly else DiskError.exit_code)
        ended += 1
        assert holds(state.load(memory), 20, old)
        assert deadly or names(memory / "checkpoints") == ["step-00000020"]
    assert limited(lambda: state.save(memory, 30, *new), largest, deadly) == 0 and holds(state.load(memory), 30, new)
    print(f"F2: {ended} writes cut off")


def test_saving_in_place_is_what_loses_it(memory, seed):
    """Negative control: torch.save over the last state, killed and limited in the same way."""
    rng = random.Random(seed)
    file, lost, tries = memory / "state.pt", 0, 0
    old, new = content(rng), content(rng)
    torch.save(old, memory / "old.pt")
    largest = (memory / "old.pt").stat().st_size
    for size in sorted(rng.randrange(largest) for _ in range(20)):
        shutil.copy(memory / "old.pt", file)
        assert limited(lambda: torch.save(new, file), size, True) == -signal.SIGXFSZ
        try:
            torch.load(file, weights_only=True)
        except Exception:  # anything is raised
            lost += 1
        tries += 1
    assert lost > 0.9 * tries
    print(f"F2, negative control: {lost} of {tries} lost")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "nlzoo-test", disk], capture_output=True, text=True)
        if os.getuid() == 0
        else None
    )
    if not done or done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip() if done else 'not root'}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_keeps_the_last_one_and_says_what_is_missing(small_disk, seed):
    rng, failures = random.Random(seed), 0
    old, new = content(rng, 50_000), content(rng, 50_000)
    for room in range(0, 260_000, 8192):
        shutil.rmtree(small_disk / "run", ignore_errors=True)
        (small_disk / "other").unlink(missing_ok=True)
        state.save(small_disk / "run", 20, *old)
        (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        try:
            state.save(small_disk / "run", 30, *new)
        except DiskError as error:
            failures += 1
            assert holds(state.load(small_disk / "run"), 20, old) and names(small_disk / "run" / "checkpoints") == [
                "step-00000020"
            ]
            free, missing = (
                int(re.search(p, error.message)[1].replace(",", ""))
                for p in (r"([\d,]+) are free in", r" ([\d,]+) bytes are missing")
            )
            assert (
                "No space left" in error.message
                and free == shutil.disk_usage(small_disk).free
                and str(small_disk / "run") in error.message
            )
            with open(small_disk / "other", "rb+") as other:  # so much makes it fit
                other.truncate(other.seek(0, 2) - missing - 4096)
            state.save(small_disk / "run", 30, *new)
        assert holds(state.load(small_disk / "run"), 30, new)
    assert failures > 20
    print(f"F2: {failures} full disks")


# --- packing


def moments(seed, make, steps=3):
    """A network after real steps, its optimizer, and a function that takes another step."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = make(net)

    def step(n):
        generator = torch.Generator().manual_seed(n)
        optimizer.zero_grad()
        net(torch.randn(8, 6, generator=generator)).square().sum().backward()
        optimizer.step()

    for n in range(steps):
        step(n)
    return net, optimizer, step


def groups(net):
    return [
        {"params": net[0].parameters(), "lr": 1e-2, "name": "stem"},
        {"params": net[2].parameters(), "lr": 3e-3, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda net: torch.optim.AdamW(groups(net)),
        lambda net: torch.optim.AdamW(net.parameters(), amsgrad=True),
        lambda net: torch.optim.SGD(groups(net), lr=0.1, momentum=0.9, nesterov=True),
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    ],
)
def test_an_optimizer_goes_on_bit_for_bit(tmp_path, seed, make):
    net, optimizer, step = moments(seed, make)
    tensors, plan = state.pack("optimizer", optimizer.state_dict())
    state.save(tmp_path, 3, tensors | {f"net.{k}": v for k, v in net.state_dict().items()}, {"optimizer": plan})
    found = state.load(tmp_path)
    other, again, other_step = moments(seed + 1, make, steps=1)
    other.load_state_dict({k.removeprefix("net."): v for k, v in found.tensors.items() if k.startswith("net.")})
    packed = state.unpack(found.tensors, found.meta["optimizer"])
    assert equal(packed, optimizer.state_dict())
    again.load_state_dict(packed)
    for n in range(3, 10):
        step(n)
        other_step(n)
    assert equal(dict(net.state_dict()), dict(other.state_dict())) and equal(again.state_dict(), optimizer.state_dict())


def test_a_grad_scaler_is_kept():
    net, optimizer, _ = moments(0, lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    for n in range(5):
        optimizer.zero_grad()
        scaler.scale(net(torch.full((1, 6), math.inf if n == 1 else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    tensors, plan = state.pack("scaler", scaler.state_dict())
    again = torch.amp.GradScaler("cpu")
    again.load_state_dict(state.unpack(tensors, json.loads(json.dumps(plan))))
    assert equal(again.state_dict(), scaler.state_dict()) and scaler.state_dict()["scale"] == 2.0**16


def nested(rng, depth=0):
    kinds = ["none", "bool", "int", "float", "text", "tensor"] + ["dict", "list", "tuple"] * 2 * (depth < 5)
    kind = rng.choice(kinds)
    if kind == "dict":
        keys = [
            rng.choice([rng.randrange(-9, 9), f"k{rng.random()}", "tensor", "dict", "", "ü\n/", True, None])
            for _ in range(rng.randrange(5))
        ]
        return {k: nested(rng, depth + 1) for k in keys}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](nested(rng, depth + 1) for _ in range(rng.randrange(4)))
    if kind == "tensor":
        shape, kind = (
            [rng.randrange(3) for _ in range(rng.randrange(4))],
            rng.choice([torch.float64, torch.bfloat16, torch.bool, torch.int8]),
        )
        return torch.randint(-99, 99, shape).to(kind)
    return {
        "none": None,
        "bool": rng.random() < 0.5,
        "int": rng.getrandbits(80) - 2**79,
        "text": rng.choice(["", "tensor", "x\0\ud800", "nan"]),
        "float": rng.choice(
            [rng.uniform(-1, 1) * 10 ** rng.randrange(-300, 300), -0.0, math.inf, -math.inf, math.nan, 5e-324, 0.1]
        ),
    }[kind]


def test_any_nesting_is_kept_bit_for_bit(tmp_path, seed):
    rng = random.Random(seed)
    values = {f"p{n}": {"of": nested(rng), "and": nested(rng)} for n in range(300)}
    tensors, plans = {}, {}
    for name, value in values.items():
        packed, plans[name] = state.pack(name, value)
        tensors |= packed
    state.save(tmp_path, 1, tensors, plans)
    found = state.load(tmp_path)
    assert len(tensors) > 100 and all(
        equal(state.unpack(found.tensors, found.meta[name]), value) for name, value in values.items()
    )


@pytest.mark.parametrize("value", [{(1, 2): 3}, {1.5: 2}, {"a": 1j}, [object()], {"f": len}])
def test_what_cannot_be_packed_is_a_bug(value):
    with pytest.raises(TypeError, match="cannot be kept"):
        state.pack("x", value)


@pytest.mark.parametrize(
    "plan",
    [
        {"tensor": "other"},
        {"tensor": 1, "x": 2},
        {},
        {"dict": 5},
        {"dict": [[[], 1]]},
        {"dict": [[1]]},
        {"float": "1"},
        {"tuple": 1},
        {"__class__": 1},
        {"tensor": []},
    ],
)
def test_a_foreign_plan_is_refused(plan):
    with pytest.raises(WeightsError, match="not one of ours"):
        state.unpack({"x.0": torch.zeros(1)}, [plan])


# --- F10: the lock


def crowd(run, count=20):
    """What becomes of `count` processes that ask for the lock at once: the winners' pids, the others' messages."""
    start, go = os.pipe()
    summary, tell = os.pipe()
    end, finish = os.pipe()
    pids = []
    for _ in range(count):
        if (pid := os.fork()) == 0:
            os.close(go)
            os.close(finish)
            os.read(start, 1)
            try:
                with state.lock(run):
                    os.write(tell, f"won {os.getpid()}\n".encode())
                    os.read(end, 1)
            except NlzooError as error:
                os.write(tell, f"{type(error).__name__} {error.message}\n".encode())
            finally:
                os._exit(0)
        pids.append(pid)
    os.close(go)
    with open(summary) as answers:
        lines = [next(answers).rstrip() for _ in range(count)]
    os.close(finish)
    for handle in (start, tell, end):
        os.close(handle)
    for pid in pids:
        os.waitpid(pid, 0)
    return [int(line.split()[1]) for line in lines if line.startswith("won ")], [
        line for line in lines if not line.startswith("won ")
    ]


@pytest.fixture(params=["flock", "no flock"])
def locks(request, monkeypatch, tmp_path):
    """With locks in the run's file system, and where it says that it has none."""
    if request.param == "no flock":
        real = fcntl.flock

        def refuse(handle, how):
            if os.path.basename(os.readlink(f"/proc/self/fd/{handle}")) == LOCK:
                raise OSError(errno.ENOSYS, "Function not implemented")
            real(handle, how)

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return request.param


@pytest.mark.parametrize(
    "left",
    ["", '{"pid": 99999999, "host": "HERE", "since": "before"}', '{"pid"'],
    ids=["new", "of a dead one", "half written"],
)
def test_of_twenty_at_once_one_wins(tmp_path, locks, left):
    run = tmp_path / "run"
    run.mkdir()
    if left:
        (run / LOCK).write_text(left.replace("HERE", socket.gethostname()))
    winners, refusals = crowd(run)
    assert len(winners) == 1 and len(refusals) == 19
    owner = rf"process {winners[0]} on {re.escape(socket.gethostname())} since [\d :-]{{19}}"
    assert all(re.fullmatch(rf"UsageError .*run is in use by {owner}", r) for r in refusals), refusals
    with state.lock(run):
        assert json.loads((run / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"), state.lock(run):
            pass
    assert (run / LOCK).read_text() == ""


def test_the_refusal_waits_for_the_winner_to_write_its_name(tmp_path):
    (tmp_path / LOCK).write_text(
        '{"pid": 99999999, "host": "HERE", "since": "before"}'.replace("HERE", socket.gethostname())
    )
    with open(tmp_path / LOCK, "r+") as winner:
        fcntl.flock(winner, fcntl.LOCK_EX)
        summary = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": "now"})
        writing = threading.Timer(0.2, lambda: (winner.truncate(), winner.write(summary), winner.flush()))
        writing.start()
        with pytest.raises(UsageError, match=f"process {os.getpid()} on .* since now"), state.lock(tmp_path):
            pass
        writing.join()


def own(run, how):
    """Takes the lock, forks a child that forks another, and waits."""
    if how == "protected":
        with_lock = state.lock(run)
        with_lock.__enter__()
    else:
        handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
    if os.fork() == 0 and os.fork() == 0:
        print("both have begun, and let go of what they do not hold", flush=True)
    time.sleep(60)
    os._exit(0)


def killed_owner(run, how):
    """A process takes the lock, forks a child that forks another, and is killed; the group of the two that live on."""
    said = run / "said"
    owner, until = Forked(lambda: own(run, how), out=said), time.monotonic() + 100
    while not (said.exists() and said.read_text()):
        assert owner.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(UsageError), state.lock(run):
        pass
    owner.kill()
    owner.wait()
    return owner.pid


def test_a_killed_owners_lock_is_free_though_its_children_live_on(tmp_path):
    group = killed_owner(tmp_path, "protected")
    try:
        with state.lock(tmp_path):
            os.killpg(group, 0)  # they do
    finally:
        os.killpg(group, signal.SIGKILL)


def test_without_protection_its_children_would_keep_it(tmp_path, monkeypatch):
    """Negative control."""
    group = killed_owner(tmp_path, "unprotected")
    monkeypatch.setattr("nlzoo.core.lock.time.sleep", lambda seconds: None)  # who holds it does not come to say so
    try:
        with pytest.raises(UsageError, match="in use by another process"), state.lock(tmp_path):
            pass
    finally:
        os.killpg(group, signal.SIGKILL)


def test_a_forked_child_cannot_give_the_lock_back(tmp_path):
    with state.lock(tmp_path):

        def leave():
            with state.lock(tmp_path / "other"):
                pass
            with pytest.raises(UsageError), state.lock(tmp_path):
                pass

        assert forked(leave) == 0
        assert crowd(tmp_path, 3)[0] == []
    with state.lock(tmp_path):
        pass


@pytest.mark.parametrize("locks", ["no flock"], indirect=True)
def test_where_locks_reach_no_other_host_its_word_is_taken(tmp_path, locks):
    (tmp_path / LOCK).write_text('{"pid": 1, "host": "else\\u001b[31mwhere", "since": "x"}')
    with pytest.raises(UsageError, match=r"process 1 on else\\x1b\[31mwhere since x") as caught, state.lock(tmp_path):
        pass
    assert "remove" in caught.value.hint
    (tmp_path / LOCK).unlink()
    with state.lock(tmp_path):
        pass


def test_the_lock_tidies_up_after_a_killed_run_and_nothing_else(tmp_path, seed):
    kept = content(random.Random(seed))
    state.save(tmp_path, 10, *kept).rename(tmp_path / "checkpoints" / ".step-00000010.00000000.old")
    assert holds(state.load(tmp_path), 10, kept)
    for name in (
        ".best.0123abcd.part",
        "checkpoints/.step-00000020.0123abcd.part",
        ".last.0123abcd.old",
        "last",
        ".mine",
        ".best.0123abcd.part.d",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / ".result.json.0123abcd.part").write_text("half")
    with pytest.raises(UsageError), state.lock(tmp_path), state.lock(tmp_path):
        pass
    assert names(tmp_path) == [".best.0123abcd.part.d", ".lock", ".mine", "checkpoints", "last"]
    assert names(tmp_path / "checkpoints") == ["step-00000010"] and holds(state.load(tmp_path), 10, kept)
