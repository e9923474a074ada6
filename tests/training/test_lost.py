"""Training cannot be lost: killed, signalled, out of room or memory, damaged, started twice, it ends with equal bits.

All through the command line, in processes of their own, to whose bits those of `python -m nlzoo` are compared. To save
the seconds that python takes to start they are forked from this process, except for the figures of F1, F8 and F10
(`-m torture`). Scripts named `before` run there first, where a moment has to be met that no clock meets.
"""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forked import Forked, of_group
from safetensors.torch import load_file, save_file

from nlzoo.apps import draw
from nlzoo.cli import app as cli, training as command_line
from nlzoo.core import model_spec, recipe_spec, view_spec
from nlzoo.core.errors import OutOfMemory
from nlzoo.networks import checkpoint, model
from nlzoo.training import plan, state, step, train
from nlzoo.training.callbacks import Callbacks
from nlzoo.training.engine import Engine
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import scanning

REPO = Path(__file__).resolve().parents[2]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
CPU = Engine(torch.device("cpu"))
STEPS = 3  # an epoch, of eight clips
RULES = ("--frames", "4", "--size", "32", "--epochs", "3", "--batch", "3", "--recipe", "probe=none,precision=fp32")
RATE_DIFFERS = f"train.recipe.lr: {5e-4 * 0.75**0.5} then, 0.001 now"  # that of four clips a step, for three
# with the probe, as a run is by default, where the moments before training matter too
PROBED = ("--recipe", "probe=baseline,precision=fp32")
OFTEN = "from nlzoo.training import train; train.SAVE_SHARE = 1e9\n"  # a checkpoint after every step
AT_FILE = """
import os, signal, sys
def at_file(event, args):
    if event == "os.rename" and str(args[1]).endswith({name!r}):
        os.kill(os.getpid(), signal.{number})
sys.addaudithook(at_file)
"""


# --- the command, in a process of its own


@dataclass(frozen=True)
class Place:
    """Videos and a model to start from."""

    videos: Path
    start: Path
    known: dict  # the outcomes of runs that nothing interrupted


@pytest.fixture(scope="module")
def place(tmp_path_factory, warm):
    folder = tmp_path_factory.mktemp("lost")
    draw.write_videos(folder / "videos", draw.CLASSES[:2], 5, seed=1, frames=12, size=(40, 56))
    assert finished(launched(folder, "inflate", "tiny", "--nl", "res4:1", "--name", "start"))[0] == 0
    return Place(folder / "videos", folder / "weights" / "start", {})


def launched(folder, *words, before="", real=False):
    """`(process, file of what it says)`: `nlzoo WORDS` in `folder`, the leader of a group of its own."""
    folder.mkdir(exist_ok=True)
    words, said = [str(w) for w in words], folder / f"said-{len(list(folder.glob('said-*')))}"
    said.touch()
    if not real:
        return Forked(lambda: called(words, before), folder, said, said), said
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    with open(said, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "nlzoo", *words],
            cwd=folder,
            env=env,
            stdout=file,
            stderr=file,
            start_new_session=True,
        ), said


def called(words, before):
    """The command, in a fork."""
    sys.argv = ["nlzoo", *words]
    # half of the time of so short a run, and nothing that a run depends on; a real one writes and estimates them
    command_line._report = lambda run, device: None
    plan.memory = lambda net, config, device: recipe_spec.Decision("memory", "unknown", "not estimated")
    exec(before, {})
    cli.main()


def finished(started, timeout=300):
    """`(exit code, what it said)`."""
    process, said = started
    return process.wait(timeout), said.read_text()


def tune(place, folder, *words, before="", name="r", real=False):
    """`nlzoo finetune`, begun."""
    return launched(
        folder,
        "finetune",
        place.videos,
        "--from",
        place.start,
        *RULES,
        *(("--name", name) if name else ()),
        *words,
        before=before,
        real=real,
    )


def outcome(run):
    """All that must not depend on what happened meanwhile: losses as bits, and digests of the weights."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = [(n["epoch"], n["train_loss"].hex(), n["loss"].hex(), n["top1"], n["clips"], n["failed"]) for n in lines]
    return summary, *(
        hashlib.sha256((run / kind / "model.safetensors").read_bytes()).hexdigest() for kind in ("last", "best")
    )


def killed_at(name, number="SIGKILL"):
    """What makes a start end itself by a signal when a file or folder gets that name, for `before`."""
    return AT_FILE.format(name=name, number=number)


def whole(place, folder, *words):
    """The outcome of the same command when nothing interrupts it."""
    if words not in place.known:
        code, said = finished(tune(place, folder / "whole", *words, real=words == PROBED))
        assert code == 0, said
        place.known[words] = outcome(folder / "whole" / "runs" / "r")
    return place.known[words]


def newest(run):
    """The step of the newest checkpoint that has its name; None without one."""
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=None)


def said_step(said):
    """The step that a start says it goes on from; None where it began anew or did not come so far."""
    found = re.search(r"resumed from step (\d+)", said)
    return int(found[1]) if found else None


def underway(started, run, rng, longest):
    """Waits until the process has the run in its hands, and then a random while; False when it has ended by itself."""
    process, said = started
    log = run / "log.txt"
    before, until = log.stat().st_size if log.exists() else 0, time.monotonic() + 200
    while not (log.exists() and log.stat().st_size > before):
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, said.read_text()
        time.sleep(0.01)
    time.sleep(rng.uniform(0, longest))
    return process.poll() is None


def left_behind(run):
    """What only an unfinished write has."""
    return [p.name for p in run.rglob(".*") if p.name != ".lock"]


def none_left(leader, seconds=60.0):
    until = time.monotonic() + seconds
    while of_group(leader):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


# --- F1 and F8: ended at random times


def interrupted(place, folder, rng, count, wanted, how, *words, before="", real=False, longest=1.0):
    """Interrupts runs of one command `count` times and lets each finish in the end; a list of what was seen.

    `how(process)` ends it and says which exit codes may follow. Every start goes on from the newest checkpoint there
    is.
    """
    seen, runs = [], 0
    while len(seen) < count:
        runs += 1
        here, before_it = folder / str(runs), None
        run = here / "runs" / "r"
        while True:
            started = tune(place, here, *words, before=before, real=real)
            process, log = started
            if len(seen) < count and underway(started, run, rng, longest):
                codes = how(process)
                code, said = finished(started)
                assert none_left(process.pid), f"orphans of {said}"
                if not (run / "result.json").exists():  # otherwise it came after the end, and does not count
                    assert code in codes, (codes, code, said)
                    seen.append(code)
                    summary = r"error: stopped by SIG\w+ after step \d+ of \d+; all is saved in runs/r"
                    assert code < 0 or re.search(summary, said), said
            else:
                code, said = finished(started)
                assert code == 0, said
            if said_step(said) is not None or before_it is not None and re.search(r"^epoch \d+:", said, re.MULTILINE):
                assert said_step(said) == before_it, said
            if (run / "result.json").exists():
                break
            before_it = newest(run)
            text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
            lines = text.count("\n") - text.count('"epoch": 0,')  # 0 is the probe's
            assert lines <= 1 or before_it >= (lines - 1) * STEPS, "more than one interval was lost"
        assert outcome(run) == wanted, said
        assert not left_behind(run)
    return seen


def kill(process):
    process.kill()
    return (-signal.SIGKILL,)


@pytest.mark.parametrize("count, real", [(10, False), pytest.param(100, True, marks=pytest.mark.torture)])
def test_f1_kills_at_random_times_change_no_bit(place, tmp_path, seed, count, real):
    rng, longest = random.Random(seed), 3.0 if real else 1.0
    seen = interrupted(
        place, tmp_path, rng, count, whole(place, tmp_path, *PROBED), kill, *PROBED, real=real, longest=longest
    )
    assert seen == [-signal.SIGKILL] * count


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("--augment", "strong"), marks=pytest.mark.torture),
        ("--recipe", "small,ema=0.99,accumulate=2,precision=fp32"),
        ("--recipe", "small,balance=sampler,precise_bn=3,early_stop=1,precision=fp32"),
    ],
    ids=["strong", "ema", "sampler"],
)
def test_kills_in_the_middle_of_epochs_change_no_bit_whatever_the_recipe(place, tmp_path, seed, words):
    interrupted(place, tmp_path, random.Random(seed), 2, whole(place, tmp_path, *words), kill, *words, before=OFTEN)


@pytest.mark.parametrize("count, real", [(10, False), pytest.param(50, True, marks=pytest.mark.torture)])
def test_f8_signals_at_random_times_save_and_change_no_bit(place, tmp_path, seed, count, real):
    """To the process as kill does, or to its whole group as Ctrl-C, systemd and batch systems do."""
    rng, kinds = random.Random(seed), itertools.cycle(itertools.product(CODES, (os.kill, os.killpg)))

    def how(process):
        number, send = next(kinds)
        send(process.pid, number)
        return (CODES[number],)

    seen = interrupted(place, tmp_path, rng, count, whole(place, tmp_path, *PROBED), how, *PROBED, real=real)
    assert set(seen) == set(CODES.values())


def test_a_killed_run_that_forgets_its_optimizer_ends_with_other_bits(place, tmp_path, seed):
    """The negative control: with the weights alone a run goes on, and differs."""
    forget = "import torch; torch.optim.AdamW.load_state_dict = lambda self, state: None"
    wanted = whole(place, tmp_path)
    assert finished(tune(place, tmp_path / "a", before=OFTEN + killed_at("step-00000004")))[0] == -signal.SIGKILL
    run = tmp_path / "a" / "runs" / "r"
    code, said = finished(tune(place, tmp_path / "a", before=forget))
    assert code == 0 and said_step(said) == 3 and outcome(run) != wanted


@pytest.mark.parametrize("name", [pytest.param("test_vit", marks=pytest.mark.torture), "test_efficientnet"])
def test_a_2d_network_on_single_frames_ends_with_equal_bits_too(place, tmp_path, name):
    spec = model_spec.ModelSpec(name, model_spec.Inflation("frames"))
    words = "--from", checkpoint.save_model(place.start.parent / name, model.build(spec))
    code, said = finished(tune(place, tmp_path / "a", *words, before=OFTEN + killed_at("step-00000004")))
    assert code == -signal.SIGKILL, said
    code, said = finished(tune(place, tmp_path / "a", *words))
    assert (
        code == 0 and said_step(said) == 3 and outcome(tmp_path / "a" / "runs" / "r") == whole(place, tmp_path, *words)
    ), said


@pytest.mark.parametrize(
    "name, named", [("r/videos.csv", False), ("r/config.json", True), ("step-00000000", True), ("r/result.json", False)]
)
def test_a_kill_before_the_first_checkpoint_or_after_the_last_is_gone_on_from(place, tmp_path, name, named):
    asked = "r" if named else None
    name = name if named else name.replace("r/", "videos-1/")
    code, _ = finished(tune(place, tmp_path / "a", *PROBED, before=killed_at(name), name=asked))
    assert code == -signal.SIGKILL
    code, said = finished(tune(place, tmp_path / "a", *PROBED, name=asked))
    assert code == 0, said
    (run,) = (p for p in (tmp_path / "a" / "runs").iterdir() if (p / "result.json").exists())
    assert outcome(run) == whole(place, tmp_path, *PROBED) and not left_behind(run)
    assert list((tmp_path / "a" / "runs").iterdir()) == [run]


SLOW_STEP = """
import time
from nlzoo.training import train
train.train_step = lambda *a: (print('in a step', flush=True), time.sleep(300))
"""
SLOW_LOOK = """
import time
from pathlib import Path
from nlzoo.training import evaluate
original, calls = evaluate.probabilities, [0]
def slowly(*a, **k):
    calls[0] += 1
    for row in original(*a, **k):
        if calls[0] == {call}:
            print("in validation", flush=True)
            while not Path("go").exists():
                time.sleep(0.02)
        yield row
evaluate.probabilities = slowly
"""


def until_said(started, words, seconds=200):
    process, said = started
    until = time.monotonic() + seconds
    while words not in said.read_text():
        assert process.poll() is None and time.monotonic() < until, said.read_text()
        time.sleep(0.02)


def test_a_second_ctrl_c_ends_at_once(place, tmp_path):
    started = tune(place, tmp_path / "a", before=SLOW_STEP)
    until_said(started, "in a step")
    os.kill(started[0].pid, signal.SIGINT)
    time.sleep(1)
    assert started[0].poll() is None  # the step is not over
    os.killpg(started[0].pid, signal.SIGINT)
    assert finished(started, 100)[0] == 130 and none_left(started[0].pid)
    code, said = finished(tune(place, tmp_path / "a"))
    assert code == 0 and outcome(tmp_path / "a" / "runs" / "r") == whole(place, tmp_path), said


@pytest.mark.parametrize("call", [1, 2, 4], ids=["before", "first", "last"])
def test_a_signal_during_validation(place, tmp_path, call):
    """The one before the first epoch, the first, and the last, after which there are no more steps."""
    started = tune(place, tmp_path / "a", before=SLOW_LOOK.format(call=call))
    until_said(started, "in validation")
    os.killpg(started[0].pid, signal.SIGTERM)
    (tmp_path / "a" / "go").write_text("")
    code, said = finished(started)
    words = f"after step {max(0, call - 1) * STEPS} of {3 * STEPS}"
    assert code == 143 and words in said and none_left(started[0].pid), said
    code, said = finished(tune(place, tmp_path / "a"))
    assert code == 0 and outcome(tmp_path / "a" / "runs" / "r") == whole(place, tmp_path), said


# --- F10: many at once


@pytest.mark.parametrize("count, real", [(6, False), pytest.param(20, True, marks=pytest.mark.torture)])
def test_f10_of_many_starts_at_once_one_trains(place, tmp_path, count, real):
    processes = []
    for n in range(count):  # each says what it says elsewhere
        folder = tmp_path / f"{n}"
        folder.mkdir()
        (folder / "runs").symlink_to(tmp_path / "runs")
        (tmp_path / "runs").mkdir(exist_ok=True)
        processes.append(tune(place, folder, real=real))
    ended = [finished(one, 600) for one in processes]
    assert sorted(code for code, _ in ended) == [0] + [2] * (count - 1), ended
    for code, said in ended:
        refusal = r"error: .*runs/r (is in use by process \d+|already exists|has finished)"
        assert code == 0 or len(re.findall("^error: ", said, re.MULTILINE)) == 1 and re.search(refusal, said), said
    assert outcome(tmp_path / "runs" / "r") == whole(place, tmp_path) and not left_behind(tmp_path / "runs")


LATE = """
import time
from pathlib import Path
from nlzoo.training import train
begin = train.train
def late(*a, **k):
    print("waiting", flush=True)
    while not Path("{file}").exists():
        time.sleep(0.05)
    return begin(*a, **k)
train.train = late
"""


@pytest.mark.parametrize(
    "file, refusal",
    [("runs/r/result.json", "runs/r has finished meanwhile"), ("go", RATE_DIFFERS)],
)
def test_a_start_that_comes_to_the_folder_late_does_not_take_up_another_run(place, tmp_path, file, refusal):
    """It looked when there was none; then another began there and finished or stopped before this one had the lock."""
    started = tune(place, tmp_path / "a", "--lr", "1e-3", before=LATE.format(file=file))
    until_said(started, "waiting")
    other = tune(place, tmp_path / "a", before=OFTEN + killed_at("step-00000003") if file == "go" else "")
    run = tmp_path / "a" / "runs" / "r"
    if file == "go":
        assert finished(other)[0] == -signal.SIGKILL
        (tmp_path / "a" / "go").write_text("")
    else:
        assert finished(other)[0] == 0
    said = (refusal, "runs/r is in use by process")[
        : 1 + (file != "go")
    ]  # the result is there a moment before the lock is given back
    assert started[0].wait(100) == 2 and any(words in started[1].read_text() for words in said)
    if file == "go":
        assert finished(tune(place, tmp_path / "a"))[0] == 0
    assert outcome(run) == whole(place, tmp_path)


# --- the same command again, or another


@pytest.fixture(scope="module")
def stopped(place, tmp_path_factory):
    """A folder with a run `videos-1` that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    code, said = finished(tune(place, folder, name=None, before=OFTEN + killed_at("step-00000005", "SIGTERM")))
    assert code == 143, said
    return folder


@pytest.fixture
def begun(stopped, tmp_path):
    """A copy of that run, in tmp_path/a/runs."""
    return shutil.copytree(stopped, tmp_path / "a", copy_function=shutil.copy2) / "runs" / "videos-1"


def test_the_same_command_goes_on_and_another_is_refused_with_what_differs(place, tmp_path, begun):
    folder = begun.parent.parent
    kept = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    code, said = finished(tune(place, folder, "--lr", "1e-3", name=None))
    words = f"is unfinished, and was started with different settings:\n  {RATE_DIFFERS}\nhint: "
    assert code == 2 and f"runs/videos-1 {words}--resume" in said, said
    assert kept == {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    code, said = finished(tune(place, folder, "--lr", "1e-3", "--resume", name=None))
    assert code == 0 and said_step(said) >= 2 and outcome(begun) == whole(place, tmp_path), said
    code, said = finished(tune(place, folder, "--resume", name=None))
    assert code == 2 and "there is no unfinished run" in said
    code, said = finished(tune(place, folder, name=None))  # that one has finished
    assert code == 0 and said_step(said) is None and outcome(begun.parent / "videos-2") == outcome(begun), said


@pytest.mark.parametrize(
    "change, words",
    [
        ("moved", r"videos: 1 of 10 are gone or have another label or side, 1 are new"),
        ("renamed", r"model.classes: .* then, .* now"),
        ("gone", r"videos: 1 of 10 are gone or have another label or side, 0 are new"),
        ("size", r"model.clip.size: 32 then, 48 now"),
    ],
)
def test_videos_that_changed_are_told(place, tmp_path, begun, change, words):
    shutil.copytree(place.videos, tmp_path / "kept")
    one = sorted((place.videos / draw.CLASSES[0]).iterdir())[0]
    try:
        if change == "moved":
            one.rename(place.videos / draw.CLASSES[1] / f"x{one.name}")
        elif change == "renamed":
            (place.videos / draw.CLASSES[0]).rename(place.videos / "other")
        elif change == "gone":
            one.unlink()
        code, said = finished(
            tune(place, begun.parent.parent, *(["--size", "48"] if change == "size" else []), name=None)
        )
    finally:
        shutil.rmtree(place.videos)
        shutil.copytree(tmp_path / "kept", place.videos)
    assert (
        code == 2
        and len(re.findall("^error: ", said, re.MULTILINE)) == 1
        and re.search(words, said)
        and "Traceback" not in said
    ), said


# --- damage


def test_a_damaged_checkpoint_is_passed_over_and_said(place, tmp_path, begun, seed):
    rng = random.Random(seed)
    step = newest(begun)
    file = begun / "checkpoints" / f"step-{step:08d}" / rng.choice([state.TENSORS, state.REST, state.MANIFEST])
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    code, said = finished(tune(place, begun.parent.parent, name=None))
    assert code == 0 and f"passed over step-{step:08d}: " in said and said_step(said) < step, said
    assert outcome(begun) == whole(place, tmp_path)


def test_with_all_checkpoints_damaged_nothing_is_begun(place, begun):
    for file in begun.glob(f"checkpoints/*/{state.TENSORS}"):
        file.write_bytes(file.read_bytes()[:-1])
    kept = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file() and p.name != "log.txt"}
    code, said = finished(tune(place, begun.parent.parent, name=None))
    assert (
        code == 4
        and re.search(r"error: none of the \d checkpoints in .*videos-1/checkpoints can be read:\n  step-", said)
        and "hint: " in said
    ), said
    assert kept == {p: p.read_bytes() for p in begun.rglob("*") if p.is_file() and p.name != "log.txt"}


# --- no room, no rights


@pytest.fixture
def disk(tmp_path):
    """`mounted(options)`: a file system of its own at the folder that it gives; again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    on = []

    def mounted(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ("remount," if on else "") + options, "nlzoo-test", folder],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        on.append(options)
        return folder

    yield mounted
    if on:
        subprocess.run(["umount", "-l", folder], check=True)


def refused(code, said, *words):
    """Exit 5 and one sentence."""
    assert (
        code == 5
        and len(re.findall("^error: ", said, re.MULTILINE)) == 1
        and "hint: " in said
        and "Traceback" not in said
    ), said
    assert all(w in said for w in words), said


@pytest.mark.parametrize(
    "megabytes", [30, 50, pytest.param(1, marks=pytest.mark.torture), pytest.param(60, marks=pytest.mark.torture)]
)
def test_a_full_disk_costs_no_more_than_the_last_step(place, tmp_path, disk, megabytes):
    """Full at the first checkpoint, at model folders, at later checkpoints (each of 23 MB, model folders 8 MB)."""
    folder = disk(f"size={megabytes}m")
    run = folder / "runs" / "r"
    code, said = finished(tune_at(place, tmp_path, folder, *PROBED, before=OFTEN))
    refused(code, said, "No space left")
    loaded = state.load(run)
    assert (
        megabytes < 30
        or loaded
        and not loaded.passed_over
        and all(bool(t.isfinite().all()) for t in loaded.tensors.values())
    )
    disk("size=200m")
    code, said = finished(tune_at(place, tmp_path, folder, *PROBED))
    assert code == 0 and said_step(said) == (loaded.step if loaded else None), said
    assert outcome(run) == whole(place, tmp_path, *PROBED) and not left_behind(run)


def tune_at(place, tmp_path, folder, *words, before=""):
    """The command in tmp_path, with its runs in `folder`."""
    (folder / "runs").mkdir(exist_ok=True)
    (tmp_path / "a").mkdir(exist_ok=True)
    if not (tmp_path / "a" / "runs").is_symlink():
        (tmp_path / "a" / "runs").symlink_to(folder / "runs")
    return tune(place, tmp_path / "a", *words, before=before)


def test_a_run_folder_that_has_become_read_only(place, tmp_path, disk):
    folder = disk("size=200m")
    run = folder / "runs" / "r"
    code, said = finished(tune_at(place, tmp_path, folder, before=OFTEN + killed_at("step-00000005", "SIGTERM")))
    assert code == 143, said
    step = newest(run)
    disk("size=200m,ro")
    code, said = finished(tune_at(place, tmp_path, folder))
    refused(code, said, "runs/r", "Read-only file system")
    assert state.load(run).step == step
    disk("size=200m,rw")
    code, said = finished(tune_at(place, tmp_path, folder))
    assert code == 0 and said_step(said) == step and outcome(run) == whole(place, tmp_path), said


def test_runs_that_is_a_file_and_a_log_that_is_a_folder(place, tmp_path, begun):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "runs").write_text("")
    refused(*finished(tune(place, tmp_path / "b")), "runs/r", "Not a directory")
    (begun / "log.txt").unlink()
    (begun / "log.txt").mkdir()
    refused(*finished(tune(place, begun.parent.parent, name=None)), "log.txt", "Is a directory")
    (begun / "log.txt").rmdir()
    code, said = finished(tune(place, begun.parent.parent, name=None))
    assert code == 0 and outcome(begun) == whole(place, tmp_path), said


LIMITED = """
import resource
from nlzoo.training import train
save, saves = train.state.save, [0]
def limited(*a, **k):
    saves[0] += 1
    if saves[0] == {save}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
    return save(*a, **k)
train.state.save = limited
train.SAVE_SHARE = 1e9
"""


def test_a_file_that_may_not_grow(place, tmp_path, seed):
    rng = random.Random(seed)
    count = rng.randrange(1, 8)
    size = rng.randrange(2**14, 2**22)  # less than the network alone, so that this very checkpoint does not fit
    code, said = finished(tune(place, tmp_path / "a", before=LIMITED.format(save=count, size=size)))
    run = tmp_path / "a" / "runs" / "r"
    refused(code, said)
    loaded = state.load(run)
    assert (loaded is None) == (count == 1)
    code, said = finished(tune(place, tmp_path / "a"))
    assert (
        code == 0 and said_step(said) == (loaded.step if loaded else None) and outcome(run) == whole(place, tmp_path)
    ), said


# --- NaN


def scaled(folder, to, factor, names):
    """A model folder whose weights of these names are larger."""
    shutil.copytree(folder, to)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: v * factor if re.search(names, k) else v for k, v in tensors.items()},
        to / "model.safetensors",
        {"format": "pt"},
    )
    return to


def test_weights_that_overflow_stop_before_the_step(place, tmp_path):
    start = scaled(place.start, tmp_path / "huge", 1e20, r"\.conv\d\.weight")
    code, said = finished(tune(Place(place.videos, start, {}), tmp_path / "a", *PROBED))
    assert code == 7 and re.search(r"error: .*at step \d, on \S+\.mp4", said) and "Traceback" not in said, said
    run = tmp_path / "a" / "runs" / "r"
    loaded = state.load(run)
    weights = {
        k: v for k, v in state.unpack(loaded.tensors, loaded.meta["plans"]["net"]).items() if "running" not in k
    }  # BN's variance has overflowed
    assert not (run / "best").exists() and all(bool(v.isfinite().all()) for v in weights.values())


def test_nan_in_the_middle_of_a_run_leaves_best_and_the_steps_before(place, tmp_path, begun):
    """The weights of a checkpoint overflow; then they are put right again."""
    loaded = state.load(begun)
    good = {k: v.clone() for k, v in loaded.tensors.items()}
    state.save(
        begun,
        loaded.step,
        {k: v * 1e30 if k.startswith("net.") and v.ndim == 5 else v for k, v in good.items()},
        loaded.meta,
    )
    best = {p.name: p.read_bytes() for p in (begun / "best").iterdir()}
    for _ in range(2):  # again it is the same
        code, said = finished(tune(place, begun.parent.parent, name=None))
        assert code == 7 and re.search(rf"error: .*at step {loaded.step + 1}, on \S+\.mp4", said), said
        assert (
            best == {p.name: p.read_bytes() for p in (begun / "best").iterdir()}
            and state.load(begun).step == loaded.step
        )
    state.save(begun, loaded.step, good, loaded.meta)
    code, said = finished(tune(place, begun.parent.parent, name=None))
    assert code == 0 and outcome(begun) == whole(place, tmp_path), said


DIVERGES = """
import torch
from nlzoo.training import step, train
inner, calls = step._inputs, [0]
def inputs(*a):
    calls[0] += 1
    pixels, target = inner(*a)
    return (pixels * float("nan") if calls[0] == {step} else pixels), target
step._inputs = inputs
"""


def test_nan_from_a_clip_loses_nothing_of_the_steps_before(place, tmp_path, seed):
    step = random.Random(seed).randrange(2, 3 * STEPS + 1)
    code, said = finished(tune(place, tmp_path / "a", before=DIVERGES.format(step=step) + OFTEN))
    run = tmp_path / "a" / "runs" / "r"
    assert code == 7 and f"at step {step}, on " in said, said
    assert state.load(run).step == step - 1 and all(bool(t.isfinite().all()) for t in state.load(run).tensors.values())
    code, said = finished(tune(place, tmp_path / "a"))
    assert code == 0 and said_step(said) == step - 1 and outcome(run) == whole(place, tmp_path), said


def test_nan_in_validation_never_becomes_best(place, tmp_path):
    nan = (
        "from nlzoo.training import evaluate; own = evaluate.validate\n"
        "def validate(*a, **k):\n"
        "    figures, bad = own(*a, **k)\n"
        "    return figures | {'top1': 1.0, 'loss': float('nan')}, bad\n"
        "evaluate.validate = validate"
    )
    code, said = finished(tune(place, tmp_path / "a", *PROBED, before=nan))
    assert code == 7 and f"error: the loss of validation is nan after epoch 1, step {STEPS}" in said, said
    run = tmp_path / "a" / "runs" / "r"
    kept = json.loads((run / "best" / "metrics.json").read_text())
    assert kept["epochs"] == 0 and len((run / "metrics.jsonl").read_text().splitlines()) == 1  # the probe's alone
    code, said = finished(tune(place, tmp_path / "a", *PROBED))
    assert code == 0 and outcome(tmp_path / "a" / "runs" / "r") == whole(place, tmp_path, *PROBED), said


# --- in this process: memory, and what the command cannot meet by chance


class Narrow(torch.nn.Module):
    """Runs out of memory with more than `most` clips, after all of its work."""

    def __init__(self, net, most):
        super().__init__()
        self.net, self.most = net, most

    def forward(self, clips):
        out = self.net(clips)
        if len(clips) > self.most and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out


def small(place, folder, monkeypatch, most=100, frames=4, **recipe):
    """A run of two epochs in this process; its outcome and what it said."""
    wrap = step.Learner.wrap

    def narrow(learner):
        wrap(learner)
        learner.model = Narrow(learner.model, most)

    monkeypatch.setattr(step.Learner, "wrap", narrow)
    found = scanning.split(scanning.scan(place.videos), "0.25", 0)
    net = checkpoint.load_model(place.start)
    net.spec = model_spec.dataclasses.replace(net.spec, clip=view_spec.ClipSpec(frames, None, 32))
    model.set_head(net, found.classes)
    words = "small,epochs=2,batch=4," + ",".join(f"{k}={v}" for k, v in recipe.items())
    config, _ = plan.plan(found, "videos", "x", FinetuneOptions(recipe=words.strip(",")), CPU)
    said = []
    train.train(net, found, config, folder, Callbacks(log=said.append))
    monkeypatch.setattr(step.Learner, "wrap", wrap)
    return outcome(folder), said


@pytest.mark.parametrize("most, parts", [pytest.param(2, 2, marks=pytest.mark.torture), (1, 4)])
def test_out_of_memory_halves_the_batch_until_it_fits_and_changes_nothing_else(
    place, tmp_path, monkeypatch, most, parts
):
    got, said = small(place, tmp_path / "a", monkeypatch, most, bn="frozen")
    assert [event.values["parts"] for event in said if event.code == "out_of_memory"] == [2, 4][: parts // 2]
    asked, _ = small(place, tmp_path / "b", monkeypatch, bn="frozen", accumulate=parts)
    plain, _ = small(place, tmp_path / "c", monkeypatch, bn="frozen")
    assert got == asked and state.load(tmp_path / "a").meta["at"]["accumulate"] == parts
    assert all(
        float.fromhex(a[1]) == pytest.approx(float.fromhex(b[1]), abs=0.2) for a, b in zip(got[0], plain[0])
    )  # dropout is drawn in parts


def test_out_of_memory_with_one_clip_is_said(place, tmp_path, monkeypatch):
    with pytest.raises(OutOfMemory, match="with 1 clips at a time") as caught:
        small(place, tmp_path / "a", monkeypatch, most=0)
    assert caught.value.exit_code == 8 and "--frames" in caught.value.hint
    assert state.load(tmp_path / "a").step == 0


def test_out_of_memory_does_not_leave_batch_norm_one_value(place, tmp_path, monkeypatch):
    """Of one frame, 32x32, the last stage leaves one position, so that two clips are the least."""
    with pytest.raises(OutOfMemory, match="with 2 clips at a time") as caught:
        small(place, tmp_path / "a", monkeypatch, most=1, frames=1)
    assert caught.value.hint.endswith("or bn=frozen: BatchNorm needs two of these clips")


def test_a_kill_after_the_epoch_that_stopped_early_trains_no_further(place, tmp_path, monkeypatch):
    words = {"early_stop": 1, "epochs": 6, "lr": 1e-8}  # nothing is learnt: the first epoch stays the best
    found = scanning.split(scanning.scan(place.videos), "0.25", 0)
    done, before = [], None
    for _ in range(2):
        net = checkpoint.load_model(place.start)
        net.spec = model_spec.dataclasses.replace(net.spec, clip=view_spec.ClipSpec(4, None, 32))
        model.set_head(net, found.classes)
        recipe = "small," + ",".join(f"{k}={v}" for k, v in words.items())
        config, _ = plan.plan(found, "videos", "x", FinetuneOptions(recipe=recipe), CPU)
        done.append(train.train(net, found, config, tmp_path / "a"))
        lines = outcome(tmp_path / "a")
        assert len(lines[0]) == done[0].epochs < 6 and before in (None, lines)
        before = lines
        (tmp_path / "a" / "result.json").unlink()  # as killed just before it was written
