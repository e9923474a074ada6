"""Videos in archives: the very clips, records and reasons of the folder that they would unpack to."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from drawn import drawing, encode
from PIL import Image

from nlzoo.apps import predict, prepare
from nlzoo.core.errors import UsageError, VideoError
from nlzoo.core.view_spec import Augment, ClipSpec
from nlzoo.training import provenance
from nlzoo.videos import list_writer, listing, loader, records, scanning, video

KINDS = ("stored.zip", "deflated.zip", "plain.tar")
CLIP = ClipSpec(frames=4, stride=2, size=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes of mp4, AVI, frames and what cannot be read, as a folder and packed in every way."""
    here = tmp_path_factory.mktemp("data")
    root = here / "videos"
    for c, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for k, (ending, codec) in enumerate((("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"))):
            encode(root / name / f"{k}.{ending}", drawing(24, seed=9 * c + k), codec)
        write_frames(root / name / "frames", drawing(9, seed=9 * c + 5))
    whole = (root / "a/0.mp4").read_bytes()
    (root / "a/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "b/empty.mp4").write_bytes(b"")
    (root / "b/damaged.avi").write_bytes(flipped((root / "b/2.avi").read_bytes()))
    (root / "b/Übung 🕺.mp4").write_bytes(whole)
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(here / f"{name}.zip", "w", method) as out:
            for file in sorted(root.rglob("*")):
                out.write(file, file.relative_to(here))
    shutil.make_archive(str(here / "plain"), "tar", here, "videos")
    return here


def write_frames(folder, images):
    folder.mkdir()
    for number, image in enumerate(images, 1):
        Image.fromarray(image).save(folder / f"img_{number:05d}.jpg")


def flipped(content):
    content = bytearray(content)
    for at in range(len(content) // 3, len(content) // 2, 40):
        content[at] ^= 255
    return bytes(content)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))


def scanned(source):
    listed = listing.read(source)
    paths = [item.path for item in listed.items]
    known = dict(zip(paths, records.examine([listed.root / path for path in paths], level=records.ALL, workers=0)))
    plain = {path: replace(record, path="", mtime_ns=0) for path, record in known.items()}
    return scanning.collect(listed, known, lambda paths: {}), plain


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_used_and_why_others_are_not(data, kind):
    (expected, known), (found, packed) = scanned(data / "videos"), scanned(data / kind)
    assert found.root == data / kind / "videos"
    assert packed == known
    assert (found.items, found.skipped, found.classes) == (expected.items, expected.skipped, ("a", "b"))
    assert {entry.path for entry in found.skipped} >= {"a/cut.mp4", "b/empty.mp4"}


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_the_same_bits(data, tmp_path, kind):
    """To train on and to validate on, as they are read and from the cache of frames."""
    items = scanned(data / "videos")[0].items
    assert {Path(item.path).suffix for item in items} == {".mp4", ".mkv", ".avi", ""}
    one, other = (loader.Clips(root, items, CLIP, Augment()) for root in (data / "videos", data / kind / "videos"))
    kept = replace(other, cache=tmp_path / "kept")
    for index, item in enumerate(items):
        for epoch in (-1, 0):
            expected = one.read(epoch, index)
            assert expected.equal(other.read(epoch, index)) and expected.equal(kept.read(epoch, index))
        assert video.sha256(one.root / item.path) == video.sha256(other.root / item.path)
    assert len(list((tmp_path / "kept").iterdir())) == len(items)


def test_workers_read_them_as_well(data):
    inside = [data / kind / "videos/a/0.mp4" for kind in KINDS]
    assert [record.frames for record in records.examine(inside, workers=1)] == [24, 24, 24]


def test_lists_name_what_is_in_archives(data, tmp_path):
    """Beside the archive, in it, and those that a run keeps."""
    rows = [(f"{kind}/videos/{c}/frames", c) for kind, c in zip(KINDS, "aba")] + [("plain.tar/videos/b/0.mp4", "b")]
    (data / "list.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    found = listing.read(data / "list.csv")
    assert [(item.path, item.labels[0]) for item in found.items] == sorted(rows) and not found.skipped
    list_writer.write(found, tmp_path / "videos.csv")
    again = listing.read(tmp_path / "videos.csv")
    assert [(again.root / item.path, item.labels) for item in again.items] == [
        (data / item.path, item.labels) for item in found.items
    ]
    (data / "list.csv").unlink()
    for ending, content in (
        (".csv", "file_name,label\n1.mp4,x\n2.mp4,y\n"),
        (".jsonl", '{"path":"1.mp4","label":"x"}\n'),
    ):
        with zipfile.ZipFile(tmp_path / f"m{ending}.zip", "w") as out:
            for name in (f"v/metadata{ending}", "v/1.mp4", "v/2.mp4"):
                out.writestr(name, content)
        for source in ("", f"v/metadata{ending}"):
            inside = listing.read(tmp_path / f"m{ending}.zip" / source)
            assert [item.path for item in inside.items] == ["1.mp4", "2.mp4"][: 2 if ending == ".csv" else 1]
    with pytest.raises(VideoError, match="does not exist"):
        listing.read(tmp_path / "m.csv.zip/v/nothing.csv")


def test_parquet_in_an_archive(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"file_name": ["1.mp4"], "label": ["x"]}), tmp_path / "metadata.parquet")
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.write(tmp_path / "metadata.parquet", "metadata.parquet")
        out.writestr("1.mp4", b"x")
    assert [item.path for item in listing.read(tmp_path / "m.zip").items] == ["1.mp4"]


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_videos_are_those_of_the_folder(data, tmp_path, kind):
    for source, out in ((data / "videos/b", "one"), (data / kind / "videos/b", "other")):
        prepared, _ = prepare.prepare_source(source, tmp_path / out, 32)
        assert prepared.done == 6 and [entry.path for entry in prepared.skipped] == ["empty.mp4"]
    made = [sorted(p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*.mp4")) for out in ("one", "other")]
    assert made[0] == made[1] and len(made[0]) == 6
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in made[0])


def test_names_for_predict(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    found = list(predict.find([Path("plain.tar"), Path("plain.tar/videos/a/0.mp4"), Path("plain.tar/videos/a/frames")]))
    assert found[:2] == [Path("plain.tar/videos/a/0.mp4"), Path("plain.tar/videos/a/1.mkv")] and len(found) == 14
    (tmp_path / "x.zip").write_bytes(b"PK no zip")
    with pytest.raises(VideoError, match="x.zip cannot be read in place: it is cut off, or is no zip") as caught:
        list(predict.find([tmp_path / "x.zip"]))
    assert caught.value.hint.startswith("fetch or pack it again; or unpack it, and give the folder: unzip -q ")
    with pytest.raises(VideoError, match="cannot be read: it is cut off, or is no zip"):
        video.probe(tmp_path / "x.zip/a/1.mp4")
    assert records.examine([tmp_path / "x.zip/a/1.mp4"], workers=0)[0].problem.startswith("cannot be read: it is cut")


def test_decord_is_refused(data):
    with pytest.raises((VideoError, UsageError), match="decord"):
        video.read_frames(data / "stored.zip/videos/a/0.mp4", [0], decoder="decord")


def test_training_clips_are_known_whether_packed_or_not(data):
    packed, folder = listing.read(data / "stored.zip"), listing.read(data / "videos")
    trained = replace(packed, items=tuple(replace(item, split=listing.TRAIN) for item in packed.items[:3]))
    assert provenance.trained_on([trained], folder.root, folder.items)[:4] == [True, True, True, False]


def test_a_class_of_links_is_lost_by_name(data, tmp_path):
    """As archivers keep them: the folder would be read where it is, and in the archive it is not."""
    (tmp_path / "v").mkdir()
    for name in ("a", "b"):
        shutil.copytree(data / "videos/a", tmp_path / "v" / name)
    (tmp_path / "v/c").symlink_to(data / "videos/b")
    packed = shutil.make_archive(str(tmp_path / "v"), "tar", tmp_path, "v")
    lost = listing.read(Path(packed)).lost
    assert [(entry.path, entry.reason) for entry in lost] == [("c", "is a link in an archive, which is not followed")]
