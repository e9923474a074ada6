"""What is remembered of videos: as looking again, only while a file is the same, and never in the way of the work."""

import dataclasses
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from decoded import REFUSED
from drawn import MADE, drawing, encode, two_sizes, vfr_times

from nlzoo.core.errors import VideoError
from nlzoo.videos import pool, records, video


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The file that remembers, one for each test."""
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "videos-1.sqlite"
    forget()


def forget():
    """As a new process would begin."""
    records._kept.clear()
    records._logged.clear()
    records._connections.clear()
    video.PROBES.clear()


@pytest.fixture
def videos(tmp_path, seed) -> list[Path]:
    """Five small videos of different lengths."""
    (tmp_path / "videos").mkdir()
    return [encode(tmp_path / "videos" / f"{n}.mp4", drawing(6 + n, seed=seed + n)) for n in range(5)]


def swap(path, content):
    """Other bytes in a file whose size and time of change stay."""
    before = path.stat()
    path.write_bytes(content[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def same(a: video.Probe, b: video.Probe) -> bool:
    return all(
        type(x) is type(y) and np.array_equal(x, y) and getattr(x, "dtype", 0) == getattr(y, "dtype", 0)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(video.Probe))
    )


@pytest.mark.parametrize("level", [records.HEADER, records.THREE, records.ALL])
def test_a_record_says_what_the_probe_says_in_the_order_asked_for(level, videos, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    os.mkfifo(tmp_path / "pipe.mp4")
    paths = [
        videos[3],
        tmp_path / "text.mp4",
        videos[0],
        tmp_path / "pipe.mp4",
        videos[3],
        tmp_path / "gone.mp4",
        "nul\0.mp4",
    ]
    seen = []
    found = records.examine(paths, level, 2, lambda done, total: seen.append((done, total)))
    assert [r.path for r in found] == [os.path.abspath(p) for p in paths]
    assert seen == [(n, 6) for n in range(7)]
    for at in (0, 2, 4):
        info, r = video.probe(paths[at]), found[at]
        assert (r.container, r.codec, r.width, r.height, r.frames) == (
            "mp4",
            "h264",
            64,
            48,
            info.frames,
        ) and not r.problem
        assert (r.fps, r.seconds, r.rotation, r.variable, r.level) == (info.fps, info.duration, 0, False, level)
        assert not r.still and r.repeated == (0.0 if level == records.ALL else None)
        assert (r.size, r.mtime_ns) == (paths[at].stat().st_size, paths[at].stat().st_mtime_ns)
    assert [found[at].problem[:14] for at in (1, 3, 5)] == ["is not a video", "is not a regul", "does not exist"]
    assert "cannot be read" in found[6].problem
    assert records.examine(paths, level, 2) == found == records.examine(paths, level, 0)


def test_files_are_remembered_by_size_and_time_of_change(videos):
    before = records.examine(videos, 0, 1)
    content = videos[0].read_bytes()
    swap(videos[0], b"no video")
    forget()
    assert records.examine(videos, 0, 1) == before  # nobody opened it
    assert records.probe(videos[0]).frames == 6
    os.utime(videos[0])
    forget()
    assert records.examine(videos, 0, 1)[0].problem == "is not a video, or is cut off"
    with pytest.raises(VideoError, match="is not a video"):
        records.probe(videos[0])
    swap(videos[0], content)
    os.utime(videos[0], ns=(1, 10**18))
    assert records.examine(videos, 0, 1)[0].frames == 6
    with open(videos[0], "ab") as file:
        file.write(b"\0\0\0\x08free")
    os.utime(videos[0], ns=(1, 10**18))  # another size alone
    assert records.examine(videos, 0, 1)[0].size == len(content) + 8


def test_a_closer_look_answers_for_a_less_close_one_and_not_the_other_way(videos, monkeypatch):
    asked = []
    run = pool.run
    monkeypatch.setattr(pool, "run", lambda work, tasks, *rest: run(work, asked.append(len(tasks)) or tasks, *rest))
    for level, fresh in ((0, 5), (0, 0), (2, 5), (1, 0), (0, 0), (2, 0)):
        found = records.examine(videos, level, 0)
        assert asked.pop() == fresh and all(r.level >= level for r in found)
    monkeypatch.setattr(records, "__version__", "999")  # read by something else
    records.examine(videos, 0, 0)
    assert asked.pop() == 5


def test_stills_repeats_and_variable_rates_show(tmp_path):
    moving = drawing(20)
    made = {
        "moving": (moving, None),
        "still": (moving[:1].repeat(20, 0), None),
        "slow": (moving[:10].repeat(2, 0), None),
        "one": (moving[:1], None),
        "vfr": (moving, vfr_times(20)),
    }
    # lossless, so that equal pictures stay equal
    paths = [
        encode(tmp_path / f"{name}.mp4", images, "libx264rgb", "rgb24", {"crf": "0"}, times=times)
        for name, (images, times) in made.items()
    ]
    for level in (1, 2):
        found = dict(zip(made, records.examine(paths, level, 2)))
        assert [name for name, r in found.items() if r.still] == ["still", "one"]
        assert [name for name, r in found.items() if r.variable] == ["vfr"]
    assert [round(r.repeated * 19) for r in found.values()] == [0, 19, 10, 0, 0]


def test_damage_inside_shows_where_frames_are_decoded(tmp_path):
    path = encode(tmp_path / "a.avi", drawing(40), "mpeg4", bf=0)
    whole = path.read_bytes()
    info = video.probe(path)
    assert records.examine([path], 2, 1)[0].problem == ""
    rng = random.Random(1)
    verdicts = set()
    for _ in range(12):  # whatever is refused at a level is refused by read_frames too
        at = rng.randrange(len(whole) // 3, len(whole) - 400)
        path.write_bytes(whole[:at] + rng.randbytes(300) + whole[at + 300 :])
        got = records.examine([path], 2, 1)[0]
        try:
            damaged = video.probe(path)
            count = sum(1 for _ in video.images(damaged, range(damaged.frames)))
            verdicts.add(got.problem == "" and count == got.frames <= info.frames)
        except VideoError as error:
            verdicts.add(got.problem and got.problem == error.reason)
    assert verdicts <= {True, ""} and True in verdicts


@pytest.mark.parametrize("kind", MADE)
def test_probes_come_back_field_by_field(kind, tmp_path):
    path = MADE[kind](tmp_path)
    records.examine([path], 0, 0)
    want = video.probe_uncached(str(path), path.stat().st_size, path.stat().st_mtime_ns)
    content = path.read_bytes()
    swap(path, b"")  # so that it cannot be read
    forget()
    assert same(records.probe(path), want)
    swap(path, content)
    forget()
    assert same(records.probe(path), video.probe(path))


def test_probes_of_odd_files_come_back(shared):
    files = sorted((shared / "odd").iterdir())
    records.examine(files, 0, 1)
    good = 0
    for path in files:
        if path.name in REFUSED:
            with pytest.raises(VideoError):
                records.probe(path)
            continue
        assert same(records.probe(path), video.probe(path)), path.name
        good += records._query("SELECT probe FROM videos WHERE path = ?", [str(path)], print)[str(path)][0] != b""
    assert good == len(files) - len(REFUSED) > 50


def test_a_remembered_probe_opens_no_video(videos, monkeypatch):
    records.examine(videos, 0, 0)
    forget()
    monkeypatch.setattr(video, "_walk", lambda path: pytest.fail(f"{path} was walked through"))
    assert [records.probe(path).frames for path in videos] == [6, 7, 8, 9, 10]


def test_forked_workers_read_with_connections_of_their_own(videos):
    records.examine(videos, 0, 1)
    records.probe(videos[0])  # the parent's is open
    for path in videos:
        swap(path, b"")
    video.PROBES.clear()
    assert [result for _, result in pool.run(frames_of, videos * 3, 2)] == [6, 7, 8, 9, 10] * 3


def frames_of(path):
    return records.probe(path).frames


@pytest.mark.parametrize("how", ["text", "zeroed", "cut", "noise"])
def test_a_damaged_memory_is_made_anew(how, videos, cache, seed):
    before, said = records.examine(videos, 1, 0), []
    rng, data = random.Random(seed), bytearray(cache.read_bytes())
    match how:
        case "text":
            data = b"this is no database" * 100
        case "zeroed":
            data[:200] = bytes(200)
        case "cut":
            del data[len(data) // 2 :]
        case "noise":
            data[100:] = rng.randbytes(len(data) - 100)
    cache.write_bytes(data)
    forget()
    assert records.examine(videos, 1, 0, log=said.append) == before
    assert len(said) == 1 and "made anew" in said[0]
    forget()
    assert records.examine(videos, 1, 0, log=lambda text: pytest.fail(text)) == before


def test_flipped_bits_are_never_believed(videos, cache, seed):
    before, rng = (records.examine(videos, 1, 0), records.digests(videos)), random.Random(seed)
    probes = [video.probe(path) for path in videos]
    whole = cache.read_bytes()
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 30)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        cache.write_bytes(data)
        forget()
        assert all(same(records.probe(path), want) for path, want in zip(videos, probes))
        assert (records.examine(videos, 1, 0), records.digests(videos)) == before


@pytest.mark.parametrize("how", ["a file for a folder", "locked", "a folder for the file"])
def test_without_a_memory_on_disk_the_work_goes_on(how, videos, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_WAIT", 0.01)
    monkeypatch.setattr(records, "_STORE_AFTER", 0.0)  # many writes, still one sentence
    if how == "a file for a folder":
        (tmp_path / "cache").write_text("")
    elif how == "a folder for the file":
        cache.mkdir(parents=True)
    else:
        records.examine([], 0, 0)
        cache.parent.mkdir()
        other = sqlite3.connect(cache, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
    said, counted = [], []
    found, sums = records.examine(videos, 0, 1, log=said.append), records.digests(videos, log=said.append)
    assert [r.frames for r in found] == [6, 7, 8, 9, 10] and len(said) == 1 and "cannot be kept" in said[0]
    assert sums == {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in videos}
    run = pool.run
    monkeypatch.setattr(pool, "run", lambda work, tasks, *rest: run(work, counted.append(len(tasks)) or tasks, *rest))
    assert [r.frames for r in records.examine(videos, 0, 1, log=said.append)] == [6, 7, 8, 9, 10]
    assert counted == [0] and len(said) == 1  # this process still knows
    assert records.probe(videos[1]).frames == 7


def test_processes_at_once_lose_nothing(tmp_path, seed, cache):
    small = encode(tmp_path / "a.mp4", drawing(3)).read_bytes()
    (tmp_path / "videos").mkdir()
    for n in range(60):
        (tmp_path / "videos" / f"{n}.mp4").write_bytes(small + b"\0\0\0\x0cfree" + n.to_bytes(4, "big"))
    script = """if True:
        import random, sys
        from pathlib import Path
        from nlzoo.videos import records
        records._STORE_AFTER = 0.0
        paths = sorted(Path(sys.argv[1]).iterdir())
        random.Random(sys.argv[2]).shuffle(paths)
        assert all(r.frames == 3 for r in records.examine(paths, 0, 1, log=lambda text: sys.exit(text)))
        assert len(records.digests(paths, log=lambda text: sys.exit(text))) == 60
    """
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "videos"), str(seed + n)], stderr=subprocess.PIPE, text=True
        )
        for n in range(3)
    ]
    assert [run.communicate()[1] for run in runs] == ["", "", ""]
    with sqlite3.connect(cache) as connection:
        assert connection.execute("SELECT count(*) FROM videos").fetchone() == (60,)
        assert connection.execute("SELECT count(*) FROM digests").fetchone() == (60,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def look_badly(task):
    """A decoder that one file crashes, another hangs and a third makes eat memory."""
    name = Path(task[0]).name
    if name == "1.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "2.mp4":
        time.sleep(600)
    if name == "3.mp4":
        bytearray(1 << 40)
    return _look(task)


_look = records._look


def test_a_file_that_breaks_its_worker_costs_itself_and_is_asked_again_by_the_next_process(videos, monkeypatch):
    monkeypatch.setattr(records, "_look", look_badly)
    monkeypatch.setattr(records, "_deadline", lambda task: 4.0)
    found = records.examine(videos, 0, 2)
    assert [r.frames for r in found] == [6, 0, 0, 0, 10]
    assert [word in r.problem for word, r in zip(("", "SIGSEGV", "longer than 4 s", "memory", ""), found)] == [True] * 5
    assert records.examine(videos, 2, 2)[1:4] == found[1:4]  # not tried a second time
    monkeypatch.setattr(records, "_look", _look)
    forget()
    assert [r.frames for r in records.examine(videos, 0, 2)] == [6, 7, 8, 9, 10]


def test_large_files_have_more_time():
    assert records._deadline(("a", (0, 0), 0)) == 60 and records._deadline(("a", None, 0)) == 60
    assert records._deadline(("a", (200 << 20, 0), 2)) == 160


def test_what_was_found_before_an_interruption_is_kept(videos):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.examine(videos, 0, 1, stop)
    forget()
    seen = []
    records.examine(videos, 0, 1, lambda done, total: seen.append(done))
    assert seen[0] == 3


def test_digests_are_those_of_the_files_and_remembered(videos, tmp_path):
    want = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in videos}
    assert records.digests([*videos, tmp_path / "gone.mp4", tmp_path], 2) == want
    swap(videos[0], b"other")
    assert records.digests(videos, 2) == want
    os.utime(videos[0])
    assert (
        records.digests(videos, 2)[str(videos[0])]
        == hashlib.sha256(videos[0].read_bytes()).hexdigest()
        != want[str(videos[0])]
    )


def test_names_of_any_bytes_are_remembered(tmp_path):
    good = encode(tmp_path / "a.mp4", drawing(3)).read_bytes()
    paths = [
        tmp_path / f"{os.fsdecode(stem)}.mp4"
        for stem in ("a b", "a\nb", "'\"%d?#", "\U0001f600", "[red]x", "\x1b[31m", b"\xff")
    ]
    for path in paths:
        path.write_bytes(good)
    found, sums = records.examine(paths, 0, 1), records.digests(paths)
    assert all(r.frames == 3 and sums[r.path] for r in found)
    for path in paths:
        swap(path, b"")
    forget()
    assert records.examine(paths, 0, 1) == found and records.digests(paths) == sums
    assert [records.probe(path).path for path in paths] == [str(path) for path in paths]


def test_the_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "x%20?#y"))
    assert records.cache_file() == tmp_path / "x%20?#y" / "videos-1.sqlite"
    path = encode(tmp_path / "a.mp4", drawing(3))
    records.examine([path], 0, 0)
    swap(path, b"")
    forget()
    assert records.probe(path).frames == 3  # found there
    monkeypatch.delenv("NLZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert records.cache_file() == tmp_path / "xdg" / "nlzoo" / "videos-1.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.cache_file() == tmp_path / ".cache" / "nlzoo" / "videos-1.sqlite"


@pytest.mark.parametrize(
    "kind", ["h264 mp4 B-frames", "h264 mkv VFR", "h264 mp4 cut", "mpeg4 avi", "h264 one frame", "two sizes"]
)
def test_a_span_has_the_frames_that_are_shown_in_it(kind, tmp_path, seed):
    path = two_sizes(tmp_path) if kind == "two sizes" else MADE[kind](tmp_path)
    info, rng = video.probe(path), random.Random(seed)
    times = (
        [(int(t) - int(info.pts[0])) * info.base for t in info.pts]
        if info.pts is not None
        else [i / info.fps for i in range(info.frames)]
    )
    assert video.span(info) == (0, info.frames) == video.span(info, 0, info.duration + 9)
    for _ in range(50):
        start, end = sorted(rng.uniform(0, info.duration) for _ in range(2))
        if min(abs(t - s) for t in times for s in (start, end)) * info.frames < info.duration / 500:
            continue  # nearer to a frame's time than rounding is allowed to be
        first, count = video.span(info, start, end)
        inside = [i for i, t in enumerate(times) if start <= t < end]
        assert list(range(first, first + count)) == inside or (not inside and count == 1 and first < info.frames)
    cut = info.frames // 2
    assert video.span(info, round(times[cut], 6)) == (cut, info.frames - cut)  # times in lists are rounded
    with pytest.raises(VideoError, match=f"s long, and the part begins at {info.duration:.3f} s"):
        video.span(info, info.duration)
