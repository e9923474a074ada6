"""What `nlzoo prepare` makes of real small videos, and what a kill, a full disk and odd folders leave of it."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn import B, break_frame, calm, drawing, encode, rotate
from measured import grown

from nlzoo.apps.prepare import outputs, prepare
from nlzoo.core import lock
from nlzoo.core.errors import DiskError, UsageError, VideoError
from nlzoo.videos import video
from nlzoo.videos.encode import transcode, write_video
from nlzoo.videos.manifest import NAME as MANIFEST


def packets(path):
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["video"]
        return [(p.pts, p.is_keyframe) for p in container.demux(container.streams.video[0]) if p.size]


def difference(one, other):
    return np.abs(one.astype(int) - other).mean()


# One video


KINDS = {  # source, short side asked for -> size that comes out
    "no larger than asked for": (lambda d: encode(d / "a.mp4", calm(40, 96, 128), options=B, gop=600), 128, (96, 128)),
    "smaller": (lambda d: encode(d / "a.mp4", calm(40, 192, 256), gop=600), 64, (64, 84)),
    "upright": (lambda d: rotate(encode(d / "a.mp4", calm(40, 96, 128)), 90), 64, (84, 64)),
    "odd sides": (lambda d: encode(d / "a.mp4", calm(40, 95, 131), pix_fmt="yuv444p"), 256, (94, 130)),
    "10 bit": (lambda d: encode(d / "a.mp4", calm(40, 96, 128), pix_fmt="yuv420p10le"), 96, (96, 128)),
    "one frame": (lambda d: encode(d / "a.mp4", calm(1, 96, 128)), 96, (96, 128)),
    "one pixel": (lambda d: encode(d / "a.avi", calm(5, 1, 1), "ffv1", "yuv444p"), 96, (2, 2)),
    "avi": (lambda d: encode(d / "a.avi", calm(40, 96, 128), "mpeg4", bf=2), 96, (96, 128)),
    "transport stream": (lambda d: encode(d / "a.ts", calm(40, 96, 128), options=B), 96, (96, 128)),
    "webm": (
        lambda d: encode(d / "a.webm", calm(40, 96, 128), "libvpx-vp9", options={"deadline": "realtime"}),
        96,
        (96, 128),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_video_shows_the_same(kind, tmp_path):
    make, size, (height, width) = KINDS[kind]
    source, target = make(tmp_path), tmp_path / "out.mp4"
    before = source.read_bytes()
    info = video.probe(source)
    summary = transcode(source, target, size)
    found = video.probe(target)
    assert summary == {"frames": info.frames, "fps": pytest.approx(25), "width": width, "height": height}
    assert (found.container, found.codec, found.rotation) == ("mp4", "h264", 0)
    assert (found.frames, found.height, found.width) == (info.frames, height, width)
    assert found.duration == pytest.approx(info.duration, abs=0.01)
    wanted = np.stack([image for _, image in video.images(info, range(info.frames), (height, width))])
    assert difference(video.read_frames(target, range(info.frames)), wanted) < 4
    if info.frames > 1:
        assert difference(wanted[1:], wanted[:-1]) > 8 or kind == "one pixel"  # a frame too soon or late would show
    assert source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, "out.mp4"])


def test_gops_are_short_and_closed_and_the_rate_is_constant(tmp_path):
    transcode(encode(tmp_path / "a.mp4", drawing(100), options=B, gop=600), tmp_path / "b.mp4")
    found = packets(tmp_path / "b.mp4")
    times = sorted(t for t, _ in found)
    assert len(found) == 100 and len(set(np.diff(times))) == 1
    keys = [i for i, (_, key) in enumerate(found) if key]
    assert keys[0] == 0 and max(np.diff([*keys, 100])) <= 12
    for key in keys:
        assert all(t > found[key][0] for t, _ in found[key + 1 :])
    assert video.probe(tmp_path / "b.mp4").decord_doubt == "" or video.decord is None


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(12), Fraction(1, 2), Fraction(120)])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_constant_rates_stay_what_they_are(rate, container, tmp_path):
    with av.open(str(tmp_path / f"a.{container}"), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for image in calm(50, 96, 128):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    assert transcode(tmp_path / f"a.{container}", tmp_path / "b.mp4")["frames"] == 50
    with av.open(str(tmp_path / "b.mp4")) as given:
        assert given.streams.video[0].average_rate == rate
    wanted = video.read_frames(tmp_path / f"a.{container}", range(50))
    assert difference(video.read_frames(tmp_path / "b.mp4", range(50)), wanted) < 4  # none repeated, none left out


def test_seconds_stay_seconds_at_a_variable_rate(tmp_path, seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 60))
    bits = (
        np.arange(count)[:, None] >> np.arange(6) & 1
    )  # a frame is known by its number, written in black and white bars
    images = np.broadcast_to((bits * 255).astype(np.uint8).repeat(16, 1)[:, None, :, None], (count, 48, 96, 3))
    times = [0, *rng.integers(5, 250, count - 1).cumsum().tolist()]
    for name in ("a.mp4", "a.mkv"):
        source = encode(tmp_path / name, images, times=times, options=B | {"crf": "1"})
        summary = transcode(source, tmp_path / "b.mp4")
        step, end = 1 / summary["fps"], times[-1] / 1000
        shown = video.read_frames(tmp_path / "b.mp4", range(summary["frames"]))[:, 24, 8::16, 0]
        which = (shown > 127) @ (1 << np.arange(6))
        assert len(set(which)) < count  # some were left out, else this proves little
        for second in rng.uniform(0, end, 200):
            frame = which[int(second / step)]
            begin, until = times[frame] / 1000, times[frame + 1] / 1000 if frame + 1 < count else np.inf
            assert begin <= second + step / 2 + 1e-3 and until >= second - step / 2 - 1e-3
        assert summary["frames"] == round(video.probe(source).duration * summary["fps"])


def test_sound_and_metadata_are_left_out(tmp_path):
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as out:
        out.metadata["title"] = "a secret title"
        picture, sound = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=8000)
        picture.height, picture.width, picture.pix_fmt = 48, 64, "yuv420p"
        for i, image in enumerate(drawing(20)):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 8000, i * 1024
            out.mux(sound.encode(samples))
        out.mux(picture.encode())
        out.mux(sound.encode())
    transcode(source, tmp_path / "b.mp4")
    assert len(packets(tmp_path / "b.mp4")) == 20  # and one stream
    assert b"secret" in source.read_bytes() and b"secret" not in (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_all_frames_are_those_of_read_frames(name, tmp_path):
    path = encode(tmp_path / name, drawing(30), "mpeg4" if name.endswith("avi") else "libx264", options=None)
    info = video.probe(path)
    every = np.stack([image for _, image in video.images(info, range(30))])
    assert np.array_equal(every, video.read_frames(path, range(30)))
    small = np.stack([image for _, image in video.images(info, range(30), 24)])
    assert np.array_equal(small, video.read_frames(path, range(30), short_side=24))


def test_the_same_video_gives_the_same_bytes(tmp_path, seed):
    """libx264's mbtree reads memory that it never wrote: with it some of these come out different, in most runs."""
    rng = np.random.default_rng(seed)
    source = encode(tmp_path / "a.mp4", drawing(24, 64, 130))
    found = set()
    for _ in range(80):
        junk = [rng.integers(0, 256, size, np.uint8) for size in rng.integers(1000, 300_000, 20)]
        del junk  # and the next to ask for memory gets it
        transcode(source, tmp_path / "b.mp4")
        found.add((tmp_path / "b.mp4").read_bytes())
    assert len(found) == 1


def test_a_video_that_breaks_in_the_middle_leaves_nothing(tmp_path):
    path = break_frame(encode(tmp_path / "a.mp4", drawing(60), bf=0), 30)
    assert video.probe(path).frames == 60
    with pytest.raises(VideoError, match="frame 30 of 60 cannot be decoded"):
        transcode(path, tmp_path / "b.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


HEAD = "import sys; from pathlib import Path; from nlzoo.apps.prepare import prepare\n"


def run(script, *words):
    return subprocess.run(
        [sys.executable, "-c", HEAD + script, *map(str, words)], capture_output=True, text=True, timeout=120
    )


def test_memory_does_not_grow_with_the_length(tmp_path):
    peaks = []
    for frames in (60, 600):
        source = tmp_path / f"{frames}.mp4"
        write_video(source, np.broadcast_to(calm(1, 256, 320), (frames, 256, 320, 3)))
        before = "import sys; from nlzoo.videos.encode import transcode"
        peaks.append(grown(before, "transcode(sys.argv[1], sys.argv[2])", source, tmp_path / "out.mp4"))
    assert 5 < peaks[0] and peaks[1] - peaks[0] < 20  # MiB; the frames are 140


def test_a_disk_that_is_full_at_any_byte_is_told(tmp_path, seed):
    """A limit for each kind of write: in the middle of the frames, in the tail, in the index moved to the front."""
    source, target = encode(tmp_path / "a.mp4", drawing(40)), tmp_path / "b.mp4"
    transcode(source, target)
    whole, (soft, hard) = target.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    target.unlink()
    rng = random.Random(seed)
    for limit in [0, 40, len(whole) - 1, len(whole) - 900, *(rng.randrange(len(whole)) for _ in range(15))]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DiskError, match=r"b.mp4 could not be written \(File too large\)"):
                transcode(source, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    transcode(source, target)
    assert target.read_bytes() == whole


# A folder


@pytest.fixture
def tree(tmp_path):
    """Six videos in two classes, each with its own picture."""
    for i in range(6):
        path = tmp_path / "videos" / ("kick", "throw a ball")[i % 2] / f"{i}.{('mp4', 'avi', 'mkv')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, drawing(20, seed=i), "mpeg4" if path.suffix == ".avi" else "libx264")
    return tmp_path / "videos"


def listed(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != lock.LOCK)


def content(folder):
    return {p: (folder / p).read_bytes() for p in listed(folder) if p.endswith(".mp4")}


def manifest(out):
    return [json.loads(line) for line in (out / MANIFEST).read_text().splitlines() if line]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_is_prepared_and_then_reused(tree, tmp_path, workers):
    before, out, seen = {p: (tree / p).read_bytes() for p in listed(tree)}, tmp_path / "out", []
    made = prepare(listed(tree), tree, out, 32, workers, progress=lambda done, total: seen.append((done, total)))
    assert (made.done, made.reused, made.skipped) == (6, 0, ())
    assert seen == [(i, 6) for i in range(1, 7)]
    assert made.mapping == {p: str(Path(p).with_suffix(".mp4")) for p in before}
    assert listed(out) == sorted([*made.mapping.values(), MANIFEST])
    assert made.bytes_before == sum(map(len, before.values()))
    first = content(out)
    assert made.bytes_after == sum(map(len, first.values()))
    assert {line["source"]: line["output"] for line in manifest(out)} == made.mapping
    assert all(line["frames"] == 20 and line["short_side"] == 32 for line in manifest(out))
    stamps = {p: (out / p).stat().st_mtime_ns for p in first}
    again = prepare(listed(tree), tree, out, 32, workers)
    assert (again.done, again.reused, again.mapping, again.bytes_after) == (0, 6, made.mapping, made.bytes_after)
    assert stamps == {p: (out / p).stat().st_mtime_ns for p in first}
    assert before == {p: (tree / p).read_bytes() for p in listed(tree)}
    assert video.probe(out / min(first)).height == 32


def test_only_what_no_longer_fits_is_done_again(tree, tmp_path):
    out, names = tmp_path / "out", listed(tree)
    prepare(names, tree, out, 32, 0)
    whole = content(out)
    os.utime(tree / names[0])  # touched, the same bytes
    encode(tree / "kick/new.mp4", drawing(20, seed=9)).replace(tree / names[1])  # another video
    (out / outputs(names, tree)[names[2]]).unlink()
    damaged = out / outputs(names, tree)[names[3]]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    text = (out / MANIFEST).read_bytes()
    (out / MANIFEST).write_bytes(text[:-20])  # the last line is torn
    (out / "kick" / f".0.mp4.{'0' * 8}.part").write_bytes(b"half")
    again = prepare(names, tree, out, 32, 0)
    assert (again.done, again.reused) == (4, 2)
    changed = content(out)
    assert [p for p in whole if whole[p] != changed[p]] == [again.mapping[names[1]]]
    assert listed(out) == sorted([*again.mapping.values(), MANIFEST])
    assert prepare(names, tree, out, 32, 0).reused == 6


def test_another_size_is_refused_and_changes_nothing(tree, tmp_path):
    out, names = tmp_path / "out", listed(tree)
    prepare(names[:4], tree, out, 32, 0)
    before = content(out)
    with pytest.raises(UsageError, match="was prepared with --size 32, not 48") as error:
        prepare(names, tree, out, 48, 0)
    assert error.value.hint == "give --size 32 to continue it, or choose a new folder"
    assert content(out) == before
    assert prepare(names, tree, out, 32, 0).reused == 4
    for name in before:
        (out / name).unlink()
    assert prepare(names[:4], tree, out, 48, 0).done == 4  # none of the other size is left


KILLED = """if True:
    root, out = map(Path, sys.argv[1:])
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*"))
    prepare(names, root, out, 64, 2)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, seed):
    rng, root, out = random.Random(seed), tmp_path / "videos", tmp_path / "out"
    root.mkdir()
    for i in range(16):
        write_video(root / f"{i}.mp4", drawing(40, 240, 320, seed=i))
    before = content(root)
    names = sorted(before)
    prepare(names, root, tmp_path / "whole", 64, 2)
    whole, cut, reused = content(tmp_path / "whole"), 0, 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", HEAD + KILLED, root, out], start_new_session=True)
        while not (out / MANIFEST).exists() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        cut += child.poll() is None
        if rng.random() < 0.5:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()  # its workers outlive it for a moment
        child.wait()
        assert all(whole[p] == data for p, data in content(out).items())  # none is half
        reused = len({line["output"] for line in manifest(out)[:-1]})
        if reused > 12:
            break
    assert cut
    made = prepare(names, root, out, 64, 2)
    assert made.done + made.reused == 16 and made.reused >= reused
    assert content(out) == whole and content(root) == before
    assert listed(out) == sorted([*names, MANIFEST])


def test_a_broken_video_is_skipped_with_the_reason(tree, tmp_path):
    out = tmp_path / "out"
    break_frame(encode(tree / "kick" / "middle.mp4", drawing(60), bf=0), 30)
    (tree / "kick" / "text.mp4").write_bytes(b"not a video")
    os.mkfifo(tree / "kick" / "pipe.mp4")
    names = [p.relative_to(tree).as_posix() for p in tree.rglob("*.*")] + ["kick/missing.mp4"]
    made = prepare(names, tree, out, 32, 2)
    reasons = {s.path: s.reason for s in made.skipped}
    assert made.done == 6 and len(reasons) == 4
    for name, words in (
        ("middle", "frame 30 of 60"),
        ("text", "not a video"),
        ("pipe", "not a regular"),
        ("missing", "not exist"),
    ):
        assert words in reasons[f"kick/{name}.mp4"]
    assert len(content(out)) == 6 == len(made.mapping) == len(manifest(out))
    good = min(made.mapping)
    (tree / good).write_bytes(b"broken since")
    assert {s.path: s.reason for s in prepare(names, tree, out, 32, 0).skipped}[good]
    assert not (out / made.mapping[good]).exists()


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    root.mkdir()
    write_video(root / "a.mp4", drawing(2))
    write_video(root / "b.mp4", drawing(60, 240, 320))
    before = content(root)
    script = """if True:
        import resource
        from nlzoo.core.errors import DiskError
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        try:
            prepare(["a.mp4", "b.mp4"], Path(sys.argv[1]), Path(sys.argv[2]), 240, int(sys.argv[3]))
        except DiskError as error:
            print(error.message, error.hint)
    """
    for workers in (1, 0):
        refusal = f"{out / 'b.mp4'} could not be written (File too large)"
        hint = "free some room; the same command again continues from here"
        assert run(script, root, out, workers).stdout == f"{refusal} {hint}\n"
        assert listed(out) == ["a.mp4", MANIFEST]
    made = prepare(["a.mp4", "b.mp4"], root, out, 240, 0)
    assert (made.done, made.reused) == (1, 1) and content(root) == before


def test_an_out_that_would_touch_the_originals_is_refused(tree, tmp_path):
    names = listed(tree)
    (tmp_path / "link").symlink_to(tree)
    before = content(tree)
    for out in (tree, tree / "small", tree / ".." / "videos" / "kick", tmp_path / "link" / "small"):
        with pytest.raises(UsageError, match="lies in"):
            prepare(names, tree, out, 32, 0)
    with pytest.raises(UsageError, match="holds some of the videos"):
        prepare(names, tree, tmp_path, 32, 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.mp4").write_bytes(b"years of work")
    with pytest.raises(UsageError, match="not empty"):
        prepare(names, tree, tmp_path / "full", 32, 0)
    with pytest.raises(UsageError, match="is a file"):
        prepare(names, tree, tmp_path / "full" / "thesis.mp4", 32, 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).touch()
    (tmp_path / "out" / "kick").symlink_to(tree / "kick")
    with pytest.raises(UsageError, match="leads out of"):
        prepare(names, tree, tmp_path / "out", 32, 0)
    for size in (0, 33, 10_000):
        with pytest.raises(UsageError, match="--size"):
            prepare(names, tree, tmp_path / "new", size, 0)
    assert content(tree) == before and not (tmp_path / "new").exists()


def test_a_second_run_in_one_folder_is_refused_and_harms_nothing(tree, tmp_path):
    """It would remove what the first is writing."""
    out, names = tmp_path / "out", listed(tree)
    refused = []

    def second(done, total):
        script = """if True:
            from nlzoo.core.errors import UsageError
            try:
                prepare(sys.argv[3:], Path(sys.argv[1]), Path(sys.argv[2]), 32, 0)
            except UsageError as error:
                print(error.message)
        """
        if done == 1:
            refused.append(run(script, tree, out, *names).stdout)

    assert prepare(names, tree, out, 32, 1, progress=second).done == 6
    assert len(refused) == 1 and f"{out} is in use by process {os.getpid()} on " in refused[0]
    assert prepare(names, tree, out, 32, 0).reused == 6


def test_an_out_that_holds_nothing_but_a_lock_is_new(tree, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / lock.LOCK).touch()
    assert prepare(listed(tree), tree, tmp_path / "out", 32, 0).done == 6


def test_a_rate_that_no_encoder_takes_costs_its_video(tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    root.mkdir()
    encode(root / "gap.mkv", drawing(3), times=[0, 1, 10**9])  # a frame in six days
    encode(root / "good.mp4", drawing(5))
    made = prepare(["gap.mkv", "good.mp4"], root, out, 32, 1)
    reason = "cannot be encoded at 2e-06 frames a second: Invalid argument"
    assert made.done == 1 and [(s.path, s.reason) for s in made.skipped] == [("gap.mkv", reason)]
    assert listed(out) == ["good.mp4", MANIFEST]


def test_a_list_may_be_prepared_inside_its_own_folder(tree, tmp_path):
    names = [f"videos/{p}" for p in listed(tree)]
    made = prepare(names, tmp_path, tmp_path / "out", 32, 0, scanned=False)
    assert made.done == 6 and listed(tmp_path / "out" / "videos") == [
        str(Path(p).with_suffix(".mp4")) for p in listed(tree)
    ]


def test_no_two_sources_meet_in_one_output(tmp_path, seed):
    root = tmp_path / "r"
    got = outputs(["a.avi", "a.mp4", "b.webm", "b2", "c/a.mov", "C/A.mkv", "v.1", "v.2", "b.webm"], root)
    assert got == {
        "a.avi": "a.avi.mp4",
        "a.mp4": "a.mp4.mp4",
        "b.webm": "b.mp4",
        "b2": "b2.mp4",
        "c/a.mov": "c/a.mov.mp4",
        "C/A.mkv": "C/A.mkv.mp4",
        "v.1": "v.1.mp4",
        "v.2": "v.2.mp4",
    }
    got = outputs(["/x/a.avi", "../a.avi", "./b.avi", f"{root}/b.avi", "_outside/x/a.avi"], root)
    assert got["/x/a.avi"] == "_outside_/x/a.mp4" and got["_outside/x/a.avi"] == "_outside/x/a.mp4"
    assert got["./b.avi"] == got[f"{root}/b.avi"] == "b.mp4"
    assert got["../a.avi"] == f"_outside_{tmp_path}/a.mp4"
    rng = random.Random(seed)
    for _ in range(200):
        names = {"".join(rng.choice(["a", "A", ".mp4", ".avi"]) for _ in range(rng.randrange(1, 6))) for _ in range(12)}
        assert len(set(outputs(names, root).values())) == len(names)


def test_an_output_that_was_renamed_leaves_no_copy(tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    root.mkdir()
    encode(root / "a.avi", drawing(10), "mpeg4")
    prepare(["a.avi"], root, out, 32, 0)
    encode(root / "a.mp4", drawing(10, seed=1))
    prepare(["a.avi", "a.mp4"], root, out, 32, 0)
    assert listed(out) == ["a.avi.mp4", "a.mp4.mp4", MANIFEST]


def test_odd_names_are_prepared(tmp_path):
    root, good = tmp_path / "videos", encode(tmp_path / "a.mp4", drawing(5)).read_bytes()
    root.mkdir()
    names = [
        os.fsdecode(stem) + ".mp4"
        for stem in ("a b", "a\nb", "'\"%d", "\U0001f600", "http:x", "[red]x", b"\xff", "x" * 251)
    ]
    for name in names:
        (root / name).write_bytes(good)
    made = prepare(names, root, tmp_path / "out", 32, 1)
    assert (made.done, made.skipped) == (len(names), ())
    assert prepare(names, root, tmp_path / "out", 32, 1).reused == len(names)


def test_a_manifest_of_anybody_is_read_with_care(tree, tmp_path):
    """Lines that are not ours cost work at most: nothing outside the folder is removed, nothing wrong is reused."""
    out, names = tmp_path / "out", listed(tree)
    prepare(names, tree, out, 32, 0)
    lines = manifest(out)
    (tmp_path / "precious.mp4").write_bytes(b"x")
    changes = ({"more": 1}, {"size": "1"}, {"output": "../precious.mp4"})
    changed = [json.dumps(line | change).encode() for line, change in zip(lines, changes)]
    evil = [b"[]", b"{", b"\xff", b"[" * 100_000, *changed]
    (out / MANIFEST).write_bytes(b"\n".join(evil) + b"\n")
    assert prepare(names, tree, out, 32, 0).done == 6
    assert (tmp_path / "precious.mp4").exists()
