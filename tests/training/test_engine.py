"""Many processes train as one does; one that ends, hangs or is stopped takes the others with it, losing nothing."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate.state import AcceleratorState
from forked import Forked, of_group
from safetensors.torch import load_file, save_file

from nlzoo.apps import draw
from nlzoo.cli import app as cli, training as command_line
from nlzoo.core import model_spec, recipe_spec, view_spec
from nlzoo.core.errors import DiskError, DivergedError, Stopped, UsageError
from nlzoo.networks import checkpoint, frames, model
from nlzoo.training import engine, evaluate, plan, state, train
from nlzoo.training.engine import Engine
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import listing, loader, records, scanning

RANKS = 2
UNREADABLE = 1  # of the training videos, in the run of that name
ROW = (
    "epoch",
    "train_loss",
    "top1",
    "top5",
    "mean_class",
    "map",
    "loss",
    "clips",
    "failed",
)  # of metrics.jsonl, what is not time


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "videos"
    draw.write_videos(folder, draw.CLASSES[:3], 4, seed=1, frames=8, size=(32, 48))
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def processes(work, folder):
    """Exit codes of `work(folder, engine)` by real gloo processes: forks of this one, which has all imported."""
    common = {"WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [
        Forked(lambda: in_rank(lambda here: work(folder, here)), group=False, RANK=n, LOCAL_RANK=n, **common)
        for n in range(RANKS)
    ]
    return [rank.wait(200) for rank in ranks]


def in_rank(work):
    forget_other_runs()
    with engine.distributed_errors():
        work(engine.begin(torch.device("cpu")))


def forget_other_runs():
    """In a fork: accelerate has one state a process, which a run of one process may have made."""
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(run, found, recipe, here=None, nl="none", arch="i3d"):
    """A run of a small network, by all ranks of `here`."""
    torch.manual_seed(0)
    net = model.build(
        model_spec.ModelSpec(
            "tiny",
            model_spec.Inflation(arch),
            model_spec.parse_nl(nl, {f"res{n}": 2 for n in (2, 3, 4, 5)}),
            view_spec.ClipSpec(4, None, 32),
        )
    )
    model.set_head(net, found.classes)
    torch.nn.init.normal_(net.fc.weight, std=0.1)
    engine = here or Engine(torch.device("cpu"))
    options = FinetuneOptions(recipe=recipe, seed=3, augment="light,mixup=0")
    config, _ = plan.plan(found, "videos", "tiny", options, engine)
    return train.train(net, found, dataclasses.replace(config, workers=0), run, engine=here)


def rows(run):
    return [{k: row[k] for k in ROW} for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


def weights(run, kind="last"):
    return load_file(run / kind / "model.safetensors")


def apart(a, b):
    """The greatest relative difference of a tensor: of the norms of the difference and of the tensor."""
    assert a.keys() == b.keys()
    return max(((a[k].double() - b[k].double()).norm() / b[k].double().norm().clamp_min(1e-12)).item() for k in a)


@pytest.mark.parametrize(
    "world, text, clips",
    [
        (8, "batch=16", 2),
        (8, "batch=16,bn=frozen", 0),
        (8, "batch=16,bn=sync", 0),
        (4, "batch=16", 0),
        (4, "batch=16,accumulate=2", 2),
    ],
)
def test_few_clips_for_batch_norm_are_told(world, text, clips):
    net = model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(4, None, 32)))
    recipe = recipe_spec.parse_recipe(f"small,{text}")
    config = recipe_spec.TrainConfig("v", "m", val="0.2", seed=0, device="cpu", workers=0, recipe=recipe, world=world)
    few = plan.clips_of_batch_norm(net, config)
    assert (few.value if few else 0) == clips
    assert not few or f"--batch {4 * world} or more" in str(few) and str(few).startswith("clips of BatchNorm: 2 (")


# --- the first rank first


def comes_first(folder, here):
    """Rank 0 is not done before rank 1 is about to wait, and rank 1 finds all that it did."""
    records.cache_file().unlink(missing_ok=True) if here.main else (folder / "waits").touch()
    looked_at = []
    with here.first_rank_first():
        if here.main:
            until_it_exists(folder / "waits")
        found = scanning.scan(folder / "videos", progress=lambda done, total: looked_at.append((done, total)))
    assert looked_at[0] == ((0, 12) if here.main else (12, 12)) and len(found.items) == 12
    with contextlib.suppress(KeyError), here.first_rank_first():  # an error in it leaves nobody waiting
        raise KeyError
    here.wait()


def dies_first(folder, here):
    if not here.main:
        (folder / "waits").touch()
    try:
        with here.first_rank_first():
            until_it_exists(folder / "waits")
            os.kill(os.getpid(), signal.SIGKILL)
    except RuntimeError as error:
        assert not here.main and engine._LOST.search(str(error)), error
        (folder / "noticed").touch()


def until_it_exists(file):
    while not file.exists():
        time.sleep(0.02)


def test_the_others_read_what_rank_0_has_found_in_the_videos(videos, tmp_path, monkeypatch, warm):
    shutil.copytree(videos, tmp_path / "videos")
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    assert processes(comes_first, tmp_path) == [0, 0]


def test_the_death_of_rank_0_is_noticed_by_those_who_wait_for_it(tmp_path, warm):
    assert processes(dies_first, tmp_path) == [-signal.SIGKILL, 0]
    assert (tmp_path / "noticed").exists()


# --- the same numbers

FROZEN = "small,epochs=2,dropout=0,bn=frozen,label_smoothing=0.1"
ONCE = "small,epochs=1,dropout=0,label_smoothing=0.1,optimizer=sgd,lr=0.001"
SAME = {  # of nine clips
    "odd and even": f"{FROZEN},batch=5,optimizer=sgd,lr=0.01",
    "none left for the second": f"{FROZEN},batch=2",
    "in parts and staged": f"{FROZEN},batch=5,accumulate=2,balance=loss,unfreeze=0.5,ema=0.9,checkpointing=yes",
}
BY_ALL = {
    "by all": f"{ONCE},batch=5,bn=sync,checkpointing=yes",
    "each by its own": f"{ONCE},batch=5,bn=train,checkpointing=yes",
}


def all_of_them(folder, here=None):
    """All the runs that are compared, in FOLDER/one or FOLDER/two."""
    found = scanning.split(scanning.scan(folder / "videos"), "0.25", 0)
    place = folder / ("two" if here else "one")
    for name, recipe in {**SAME, **BY_ALL}.items():
        trained(place / name, found, recipe, here)
    trained(place / "single frames", found, SAME["odd and even"], here, arch="frames")
    if here:
        here.wait()
    if not here or here.main:
        for item in scanning.items_in(found, listing.TRAIN)[:UNREADABLE]:
            (found.root / item.path).rename(f"{found.root / item.path}.away")
    if here:
        here.wait()
    trained(place / "unreadable", found, f"{FROZEN},batch=2", here)
    if here:
        trained(folder / "levelled", found, "small,epochs=2,batch=4,ema=0.5,precise_bn=0", here, nl="res4:1")
        trained(folder / "meeting in parts, and without a clip", found, f"{ONCE},bn=sync,batch=2,accumulate=2", here)
        trained(folder / "unlevelled", found, "small,epochs=1,batch=4", here, nl="res4:1")
        try:
            here.agree("the videos", here.rank)
            raise AssertionError("what differs went unnoticed")
        except UsageError as error:
            assert "rank 1" in error.message, error
        assert here.broadcast(here.rank) == 0 and here.all_reduce_sum([here.rank, 1]) == [1, 2]
        here.wait()


@pytest.fixture(scope="module")
def compared(tmp_path_factory, warm):
    """The folder of all runs, by one process and by two."""
    folder = tmp_path_factory.mktemp("compared")
    draw.write_videos(folder / "videos", draw.CLASSES[:3], 4, seed=1, frames=8, size=(32, 48))
    assert processes(all_of_them, folder) == [0] * RANKS
    for file in folder.glob("videos/*/*.away"):
        file.rename(file.with_suffix(""))
    all_of_them(folder)
    return folder


def test_two_ranks_with_half_the_batch_each_train_as_one(compared):
    found = {}
    for name in (*SAME, "single frames", "unreadable"):
        one, two = compared / "one" / name, compared / "two" / name
        found[name] = apart(weights(two), weights(one))
        for a, b in zip(rows(two), rows(one), strict=True):
            assert {k: a[k] for k in ROW if b[k] is not None} == pytest.approx(
                {k: v for k, v in b.items() if v is not None}, rel=1e-6
            ), name
    print({k: f"{v:.1e}" for k, v in found.items()})
    assert max(found.values()) < 1e-6, found
    assert {row["failed"] for row in rows(compared / "two" / "unreadable")} == {UNREADABLE}
    assert (
        apart(weights(compared / "one" / "none left for the second"), weights(compared / "one" / "odd and even")) > 1e-3
    )  # the negative control


def test_two_ranks_that_normalise_by_all_clips_train_as_one(compared):
    """In float32, whose rounding BN over five clips makes a hundred times as large in one epoch."""
    one, two = compared / "one" / "by all", compared / "two" / "by all"
    assert [rows(two)[0][k] for k in ("train_loss", "loss")] == pytest.approx(
        [rows(one)[0][k] for k in ("train_loss", "loss")], rel=1e-4
    )
    assert apart(weights(two), weights(one)) < 1e-3
    assert apart(weights(compared / "two" / "each by its own"), weights(one)) > 1e-1  # the negative control
    assert apart(weights(compared / "one" / "each by its own"), weights(one)) == 0.0  # of one process it is the same
    (row,) = rows(compared / "meeting in parts, and without a clip")
    assert row["failed"] == UNREADABLE and row["clips"] == 9


def normalised(folder, here):
    """What one layer gives for this rank's clips of those in the file `clips`, with its gradients and statistics."""
    given = load_file(folder / "clips")
    layer = frames.BatchNorm(given["x"].shape[1], momentum=0.3).double()
    layer.load_state_dict({k.removeprefix("bn."): v for k, v in given.items() if k.startswith("bn.")})
    own = slice(0, FIRST) if here.main else slice(FIRST, None)
    x = given["x"][own].clone().requires_grad_()
    with frames.shared_statistics():
        y = layer(x)
    y.backward(given["dy"][own])
    gradients = {"dx": x.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad}
    save_file({"y": y.detach(), **gradients, **layer.state_dict()}, folder / f"of-{here.rank}")


FIRST = 3  # clips of rank 0, of five


def test_batch_norm_by_all_clips_is_torchs_of_all_clips(tmp_path, seed, warm):
    layer = torch.nn.BatchNorm3d(6, momentum=0.3).double()
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        torch.nn.init.normal_(tensor)
    x, dy = torch.randn(2, 5, 6, 2, 3, 4, dtype=torch.float64) + 100 * torch.randn(6, 1, 1, 1, dtype=torch.float64)
    before = {f"bn.{k}": v.clone() for k, v in layer.state_dict().items()}
    save_file({"x": x, "dy": dy, **before}, tmp_path / "clips")
    assert processes(normalised, tmp_path) == [0, 0]
    x.requires_grad_()
    y = layer(x)
    y.backward(dy)
    of = [load_file(tmp_path / f"of-{rank}") for rank in range(RANKS)]
    for name, whole in {"y": y.detach(), "dx": x.grad}.items():
        torch.testing.assert_close(torch.cat([each[name] for each in of]), whole, rtol=1e-9, atol=1e-9)
    for name, whole in {"dweight": layer.weight.grad, "dbias": layer.bias.grad}.items():
        torch.testing.assert_close(of[0][name] + of[1][name], whole, rtol=1e-9, atol=1e-9)
    for name, whole in layer.state_dict().items():
        for each in of:
            torch.testing.assert_close(each[name], whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("run", ["levelled", "unlevelled"])
def test_every_clip_of_validation_is_counted_once_by_the_network_that_is_kept(compared, run):
    run = compared / run
    found = scanning.split(scanning.scan(run / "videos.csv"), "0.25", 0)
    net = checkpoint.load_model(run / "last")
    scores, _ = evaluate.validate(
        net, loader.Clips(found.root, tuple(scanning.items_in(found, listing.VAL)), net.spec.clip), torch.device("cpu")
    )
    last = rows(run)[-1]
    assert scores["videos"] % 2 and [scores[k] for k in ("top1", "loss")] == pytest.approx(
        [last[k] for k in ("top1", "loss")], rel=1e-6
    )


# --- through the command line

EPOCHS, STEPS = 6, 3  # of the runs below; steps an epoch
BROKEN = "broken.mp4"


@pytest.fixture(scope="module")
def here(tmp_path_factory, videos, warm):
    """A working folder with a small network and videos, one of them no video."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(videos, folder / "videos")
    (folder / "videos" / draw.CLASSES[0] / BROKEN).write_bytes(b"no video")
    torch.manual_seed(0)
    net = model.build(
        model_spec.ModelSpec(
            "tiny",
            non_local=model_spec.parse_nl("res4:1", {f"res{n}": 2 for n in (2, 3, 4, 5)}),
            clip=view_spec.ClipSpec(4, None, 32),
        )
    )
    checkpoint.save_model(folder / "weights" / "small", net)
    return folder


def words(name, *more, gpus=RANKS, epochs=EPOCHS):
    options = [
        "--from",
        "small",
        "--device",
        "cpu",
        "--size",
        32,
        "--epochs",
        epochs,
        "--recipe",
        "small,ema=0.9,lr=0.0005,precision=fp32",
        "--batch",
        3,
    ]
    return [
        str(w) for w in ("finetune", "videos", "--name", name, *options, *(["--gpus", gpus] if gpus else []), *more)
    ]


class Started:
    """`python -m COMMAND` in a group of its own, and all that it started."""

    def __init__(self, folder, command, **environment):
        self.mark = f"NLZOO_TEST_MARK={os.getpid()}-{time.monotonic_ns()}"
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.getcwd(),
            **dict([self.mark.split("=")]),
            **environment,
        }
        self.err = open(folder / f"{self.mark}.err", "w+")  # a pipe would fill
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=self.err,
            text=True,
            start_new_session=True,
        )

    def pids(self, rank=None):
        """Of all that runs; of the one that is rank `rank`."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/stat") as stat:
                    variables, parent, state_ = (
                        environ.read().split(b"\0"),
                        *stat.read().rpartition(")")[2].split()[1::-1],
                    )
            except OSError:
                continue
            mine = self.mark.encode() in variables and state_ != "Z"
            if mine and (rank is None or f"RANK={rank}".encode() in variables and int(parent) == self.process.pid):
                found.append(int(pid))
        return found

    def begun(self, run, rng):
        """Waits until an epoch has passed, and a moment more."""
        lines = len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0
        until = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) == lines:
            assert self.process.poll() is None and time.monotonic() < until, self.said()
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)

    def said(self):
        self.err.flush()
        return open(self.err.name).read()

    def end(self):
        """`(exit code, stdout, stderr)`; no process of it is left soon after."""
        began = time.monotonic()
        code, out = self._outcome()
        self.seconds = time.monotonic() - began
        until = time.monotonic() + 15
        while (left := self.pids()) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left
        return code, out, self.said()

    def _outcome(self):
        out, _ = self.process.communicate(timeout=200)
        return self.process.returncode, out


class ForkedRanks(Started):
    """`nlzoo WORDS` of several ranks, parent and ranks forks of this process; `first` is called in each rank."""

    def __init__(self, folder, words, first=lambda: None):
        self.out, self.err = (folder / f"{time.monotonic_ns()}.{kind}" for kind in ("out", "err"))
        self.process = Forked(lambda: self._parent(words, first), folder, self.out, self.err)

    @staticmethod
    def _parent(words, first):
        def start(words, environment):
            def rank():
                engine._end_with_parent()
                forget_other_runs()
                # the test that compares files has a report, and real ranks estimate their memory
                command_line._report = lambda run, device: None
                plan.memory = lambda net, config, device: recipe_spec.Decision("memory", "unknown", "not estimated")
                first()
                sys.argv = ["nlzoo", *words]
                cli.main()

            return Forked(rank, group=False, name=f"rank {environment['RANK']}", **environment)

        engine._start = start
        sys.argv = ["nlzoo", *words]
        cli.main()

    def pids(self, rank=None):
        alive = of_group(self.process.pid)
        return [pid for pid, who in alive.items() if rank is None or who == (f"rank {rank}", self.process.pid)]

    def said(self):
        return self.err.read_text()

    def _outcome(self):
        return self.process.wait(200), self.out.read_text()


def files(run):
    """Names in a run, without times and steps."""
    return {
        re.sub(r"step-\d+", "step", re.sub(r"events.*", "events", p.relative_to(run).as_posix()))
        for p in run.rglob("*")
        if p.is_file()
    }


def bits(run):
    return [(run / kind / "model.safetensors").read_bytes() for kind in ("last", "best")], [
        {k: repr(v) for k, v in row.items()} for row in rows(run)
    ]


@pytest.fixture(scope="module")
def finished(here):
    """`(run folder, stdout, stderr)` of two ranks that nothing disturbed."""
    code, out, err = Started(here, ["nlzoo", *words("finished", "--json", "--track", "tensorboard")]).end()
    assert code == 0, err
    return here / "runs" / "finished", out, err


def scalars(folder):
    """What tensorboard reads: `{tag: [(step, value)]}`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def as_tracked(run, steps):
    """What tensorboard should read, from metrics.jsonl."""
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    return {
        k: [(steps * line["epoch"], torch.tensor(float(line[k])).item()) for line in lines]
        for k in lines[0]
        if lines[0][k] is not None
    }


def test_rank_0_alone_writes_and_talks(finished, here, nlzoo, tmp_path):
    run, out, err = finished
    (line,) = out.splitlines()
    assert json.loads(line) == json.loads((run / "result.json").read_text())
    log = (run / "log.txt").read_text()
    for text in (err, log):
        assert [text.count(f"epoch {n}: train loss") for n in range(1, EPOCHS + 1)] == [1] * EPOCHS
        assert text.count(BROKEN) == 1
    assert "Warning" not in err and err.count("2 processes") == 1
    for name in ("videos", "weights"):
        (tmp_path / name).symlink_to(here / name)
    code, _, err = nlzoo(*words("alone", "--track", "tensorboard", gpus=None))
    assert code == 0, err
    alone = tmp_path / "runs" / "alone"
    assert files(run) == files(alone) and "tensorboard/events" in files(alone)
    for each in (run, alone):
        assert scalars(each / "tensorboard") == as_tracked(each, STEPS)


# what a process says after all else that it does at its end
LAST_OF_ALL = """
import atexit, os, pathlib, sys
def tell():
    torch = sys.modules.get("torch")
    if "nlzoo" in sys.modules and "RANK" in os.environ:
        here = torch.distributed.is_initialized()
        (pathlib.Path(__file__).parent / f"rank-{os.environ['RANK']}").write_text("here" if here else "left")
atexit.register(tell)
"""


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["torch.distributed.run", "--nproc_per_node", "2"], marks=pytest.mark.torture),  # accelerate's too
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_other_launchers_give_the_same_bits_and_their_ranks_leave_the_group(launcher, finished, here, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LAST_OF_ALL)
    port = (
        ["--master_port", str(free_port())]
        if launcher[0].startswith("torch")
        else ["--main_process_port", str(free_port())]
    )
    name = launcher[0].split(".")[0]
    code, out, err = Started(
        here,
        [*launcher, *port, "-m", "nlzoo", *words(name, "--json", gpus=None)],
        PYTHONPATH=f"{tmp_path}:{os.getcwd()}",
    ).end()
    assert code == 0, err
    assert sorted(file.read_text() for file in tmp_path.glob("rank-*")) == ["left"] * RANKS
    (line,) = out.splitlines()
    assert json.loads(line)["run"] == f"runs/{name}" and err.count("epoch 1: train loss") == 1
    assert bits(here / "runs" / name) == bits(finished[0])


def pausing():
    """In a rank: time after each epoch, so that a run of six is disturbed before its end on a busy machine too."""
    end = train._end_epoch

    def end_epoch(*a):
        end(*a)
        time.sleep(0.5)

    train._end_epoch = end_epoch


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.torture)])  # minutes
def test_what_is_killed_hangs_or_is_stopped_ends_whole_and_goes_on_to_the_same_bits(finished, here, seed, few):
    """A few in forks; all in real processes, in a longer run, so that there is an epoch for each."""
    name = f"disturbed-{few}"
    rng, run, took = random.Random(seed), here / "runs" / name, {}

    def start(name=name, slowly=lambda: None, **environment):
        if few:
            return ForkedRanks(here, words(name), slowly)
        return Started(here, ["nlzoo", *words(name, epochs=20)], **environment)

    def disturbed(how, disturb, **environment):
        started = start(slowly=pausing, **environment)
        started.begun(run, rng)
        disturb(started)
        code, _, err = started.end()
        took[how] = round(started.seconds, 1)
        assert "Traceback" not in err and err.count("error:") <= 1 + (how == "parent killed"), (
            err
        )  # then nobody ends the second
        return code, err

    def lose(rank):
        return lambda started: os.kill(started.pids(rank)[0], signal.SIGKILL)

    code, err = disturbed("killed", lose(1))
    assert code == 137 and err.count("rank 1 of 2 was killed (SIGKILL)") == 1
    assert "error:" not in err and "has lost" not in err  # one message, and that the right one
    code, err = disturbed("SIGTERM", lambda started: started.process.terminate())
    assert code == 143 and err.count("stopped by SIGTERM") == 1
    step = int(re.search(r"after step (\d+)", err)[1])
    assert state.load(run).step == step
    if few:
        code, _, err = start().end()
        assert code == 0 and err.count("resumed from step") == 1 and bits(run) == bits(finished[0])
        return
    code, err = disturbed("hung", lambda started: os.kill(started.pids(1)[0], signal.SIGSTOP), NLZOO_HUNG_SECONDS="20")
    assert f"resumed from step {step} of" in err
    assert code == 1 and "rank 0 has lost another of the 2 processes" in err and "20 s" in err
    code, err = disturbed("Ctrl-C", lambda started: os.killpg(started.process.pid, signal.SIGINT))
    assert code == 130 and err.count("stopped by SIGINT") == 1
    disturbed("parent killed", lambda started: started.process.kill())
    code, _, err = start().end()
    assert code == 0 and err.count("resumed from step") == 1, err
    print(took)
    assert start("undisturbed").end()[0] == 0 and bits(run) == bits(here / "runs" / "undisturbed")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.torture), 1])
def test_a_bug_in_one_rank_is_shown_and_ends_all(rank, here):
    def bug(*_):
        raise KeyError("a bug")

    def first():
        if os.environ["RANK"] == str(rank):
            train._end_epoch = bug

    code, out, err = ForkedRanks(here, words(f"bug{rank}"), first).end()
    assert code == 1 and err.count("Traceback") == 1 and "KeyError: 'a bug'" in err and out == ""


def test_an_error_of_rank_0_or_of_all_is_told_once(here):
    with state.lock(here / "runs" / "taken"):
        code, _, err = ForkedRanks(here, words("taken")).end()
    assert code == 2 and err.count("error:") == 1 and str(os.getpid()) in err and "Traceback" not in err
    net = checkpoint.load_model(here / "weights" / "small")
    with torch.no_grad():
        next(net.parameters()).fill_(3e38)
    checkpoint.save_model(here / "weights" / "huge", net)
    code, out, err = ForkedRanks(here, words("diverged", "--json", "--from", "huge")).end()
    (line,) = out.splitlines()
    assert code == json.loads(line)["exit_code"] == 7 and "error:" not in err and "Traceback" not in err, err
    assert json.loads(line)["error"].count(".mp4") == 3  # of both ranks


@pytest.mark.parametrize("error", [Stopped("stopped", "", 143), DivergedError("NaN"), DiskError("full")])
@pytest.mark.parametrize("rank", [0, 1])
def test_of_what_all_ranks_raise_rank_0_alone_tells(rank, error, monkeypatch):
    for name, value in (("RANK", rank), ("WORLD_SIZE", RANKS)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(engine, "_OTHERS_LATER", 0.0)
    silent = rank and not isinstance(error, DiskError)  # that of one rank's own folder nobody else would tell
    with pytest.raises(SystemExit if silent else type(error)) as raised, engine.distributed_errors():
        raise error
    assert (raised.value.code if silent else raised.value.exit_code) == error.exit_code


# --- trackers, and what is refused


def test_ranks_that_see_other_checkpoints_do_not_begin(tmp_path, monkeypatch):
    """Two machines with one network disk, of which one sees the checkpoint, or the run, later."""
    seen, both = {}, threading.Barrier(2)

    class Rank(Engine):
        """Two ranks in threads, which gather through memory."""

        def all_gather(self, rows):
            both.wait(60)
            seen[self.rank] = rows
            both.wait(60)
            return seen[0] + seen[1]

    def resumed(rank):
        job = types.SimpleNamespace(run=tmp_path / str(rank), engine=Rank(torch.device("cpu"), rank, 2))
        try:
            return train._resumed(job, job.run)
        except UsageError as error:
            return error.message

    def of_both():
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(resumed, range(2)))

    monkeypatch.setattr(train, "_resume", lambda job: loaded.step if (loaded := state.load(job.run)) else None)
    assert of_both() == [None, None]
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "config.json").touch()
    state.save(tmp_path / "0", 7, {"a": torch.zeros(1)}, {})
    words = "the checkpoints of the run are not the same on rank 1 as on rank 0"
    assert of_both() == [words, words]
    state.save(tmp_path / "1", 7, {"a": torch.zeros(1)}, {})
    assert of_both() == [7, 7]


def test_what_is_logged_again_after_a_resume_is_there_once(tmp_path):
    here = engine.begin(torch.device("cpu"), "tensorboard")
    for begin, logged in ((0, {3: 0.5, 6: 0.25}), (3, {6: 0.125})):
        here.track(tmp_path, {}, begin)
        for step, value in logged.items():
            here.log({"loss": value, "nothing": None}, step)
        here.end()
        time.sleep(1.1)  # event files are ordered by the second
    assert scalars(tmp_path / "tensorboard") == {"loss": [(3, 0.5), (6, 0.125)]}


def test_what_cannot_be_is_refused_with_a_hint(nlzoo, here, monkeypatch):
    code, _, err = nlzoo("finetune", here / "videos", "--track", "mlflow")
    assert code == 2 and "tensorboard, wandb, trackio" in err
    for missing in [name for name in engine.TRACKERS if not importlib.util.find_spec(name)]:
        code, _, err = nlzoo("finetune", here / "videos", "--track", missing)
        assert (
            code == 2
            and f"--track {missing} needs {missing}, which is not installed" in err
            and f"pip install {missing}" in err
        )
    code, _, err = nlzoo("finetune", here / "videos", "--gpus", torch.cuda.device_count() + 2)
    assert code == 2 and f"--gpus {torch.cuda.device_count() + 2}" in err and "--device cpu" in err
    monkeypatch.setenv("NLZOO_HUNG_SECONDS", "soon")
    code, _, err = nlzoo("finetune", here / "videos", "--track", "tensorboard")
    assert code == 2 and "NLZOO_HUNG_SECONDS" in err
