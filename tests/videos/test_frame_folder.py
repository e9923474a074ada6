"""Folders of frames, as people have them: a video like a file, or one sentence."""

import os
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from nlzoo.apps import check, predict, prepare
from nlzoo.core.errors import VideoError
from nlzoo.core.view_spec import Augment, ClipSpec
from nlzoo.videos import frame_cache, frame_folder, list_writer, listing, loader, records, scanning, video

T, H, W = 6, 24, 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))


def drawing(seed=0, frames=T, height=H, width=W):
    """uint8 (T, H, W, 3) of smooth colours, another in each frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(3, 9) + y / rng.uniform(3, 9) + t) for t in range(frames) for _ in range(3)]
    return (np.stack(waves).reshape(frames, 3, height, width).transpose(0, 2, 3, 1) * 100 + 128).astype(np.uint8)


def write(folder, images, name="img_{:05d}.png", first=1, **options):
    """The images as numbered pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        Image.fromarray(image).save(folder / name.format(number), **options)
    return folder


def lossless(file, images, rate=25):
    """An mp4 that holds the very pixels."""
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264rgb", rate=Fraction(rate), options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "rgb24"
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return file


def dataset(root, classes="ab", clips=3, **options):
    """class/clip folders of frames."""
    for c, name in enumerate(classes):
        for k in range(clips):
            write(root / name / f"{name}{'xyzuvw'[k]}", drawing(9 * c + k), **options)
    return root


def items(found):
    return [f"{item.path}={';'.join(item.labels)}" for item in found.items]


# --- what is in a folder


@pytest.mark.parametrize(
    "name, first",
    [
        ("img_{:05d}.png", 1),
        ("{:d}.png", 0),  # 9 before 10
        ("frame_{:010d}.PNG", 1),
        ("a b{{}}%d é-{}.png", 7),
        ("{:04d}_rgb.bmp", 998),  # beyond its digits
        ("image_{:06d}.webp", 0),
    ],
)
def test_names_are_read_in_the_order_of_their_numbers(tmp_path, name, first):
    images = drawing(frames=12)
    folder = write(tmp_path / "clip", images, name, first, **({"lossless": True} if "webp" in name else {}))
    info = video.probe(folder)
    assert (info.container, info.frames, info.height, info.width, info.missing) == ("folder", 12, H, W, 0)
    assert (info.fps, info.duration) == pytest.approx((25, 12 / 25))
    assert np.array_equal(video.read_frames(folder, [11, 3, 3, 0]), images[[11, 3, 3, 0]])
    assert np.array_equal(np.stack([image for _, image in video.images(info, range(12))]), images)
    with pytest.raises(IndexError):
        video.read_frames(folder, [12])


def test_gaps_are_allowed_and_said(tmp_path):
    images = drawing(frames=10)
    folder = write(tmp_path / "clip", images)
    for number in (4, 5):
        (folder / f"img_{number:05d}.png").unlink()
    info = video.probe(folder)
    left = [0, 1, 2, 5, 6, 7, 8, 9]
    assert (info.frames, info.missing, info.pts.tolist()) == (8, 2, left)
    assert np.array_equal(video.read_frames(folder, range(8)), images[left])
    assert video.span(info, 5 / 25, 7 / 25) == (3, 2)  # time goes by the numbers

    even = write(tmp_path / "every fifth", images[:2], "f{:d}.png", 5)
    os.rename(even / "f6.png", even / "f10.png")
    assert (video.probe(even).missing, video.probe(even).duration) == (0, 2 / 25)
    times = write(tmp_path / "times", images[:3], "{:019d}.png", 1403636579763555584)
    os.rename(times / "1403636579763555585.png", times / "1403636579999999999.png")
    info = video.probe(times)
    assert (info.frames, info.missing) == (3, 0) and info.fps == pytest.approx(25)


def test_a_folder_that_changes_is_read_again(tmp_path):
    """Also where a picture is written over in place, by an older one of the same size."""
    images = drawing()
    folder = write(tmp_path / "clip", images, "{:03d}.bmp")
    before, digest = records.examine([folder], workers=0)[0], records.digests([folder])
    assert records.examine([folder], workers=0)[0] == before
    other = write(tmp_path / "other", images[::-1], "{:03d}.bmp")
    assert records.digests([folder, other]).keys() == {str(folder), str(other)}
    (folder / "001.bmp").write_bytes((other / "001.bmp").read_bytes())
    os.utime(folder / "001.bmp", (1e9, 1e9))
    after = records.examine([folder], workers=0)[0]
    assert after.size == before.size and after.mtime_ns != before.mtime_ns
    assert records.digests([folder]) != digest
    write(folder, images[:1], "{:03d}.bmp", 7)
    assert records.examine([folder], workers=0)[0].frames == records.probe(folder).frames == T + 1


def test_probes_and_records_are_remembered(tmp_path):
    folder = write(tmp_path / "clip", drawing())
    (record,) = records.examine([folder], records.ALL, workers=1)
    assert (record.container, record.codec, record.frames, record.repeated) == ("folder", "png", T, 0.0)
    video.PROBES.clear()
    (folder / "img_00002.png").chmod(0)  # not needed, for it is remembered
    info = records.probe(folder)
    fresh = video.probe_uncached(str(folder), 0, 0) if os.geteuid() == 0 else info
    assert info == fresh and info.series == fresh.series and np.array_equal(info.pts, fresh.pts)


def test_copies_under_other_names_have_the_same_digest(tmp_path):
    one = write(tmp_path / "one", drawing(), "img_{:05d}.png", 1)
    other = write(tmp_path / "other", drawing(), "f{}.png", 0)
    assert len(set(records.digests([one, other]).values())) == 1


# --- pictures as people have them


def png16(grey):
    """A PNG of 16-bit grey, by hand."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_pictures_of_every_mode_are_the_colours_that_they_show(tmp_path):
    image = drawing(frames=1)[0]
    folder = tmp_path / "clip"
    folder.mkdir()
    picture = Image.fromarray(image)
    modes = [
        picture,
        picture.convert("RGBA"),
        picture.convert("L"),
        picture.convert("1"),
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=64),
        picture.convert("LA"),
    ]
    for number, made in enumerate(modes):
        made.save(folder / f"{number}.png")
    grey = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 80
    (folder / f"{len(modes)}.png").write_bytes(png16(grey))
    got = video.read_frames(folder, range(len(modes) + 1))
    for frame, made in zip(got, modes):
        assert np.array_equal(frame, np.asarray(made.convert("RGB")))
    assert np.array_equal(got[-1], np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2))


def test_cmyk_and_grey_jpegs_are_near_what_they_show(tmp_path):
    image = drawing(frames=1)[0]
    folder = write(tmp_path / "clip", [image], "{}.jpg", quality=95)
    Image.fromarray(image).convert("CMYK").save(folder / "2.jpg", quality=95)
    Image.fromarray(image).convert("L").save(folder / "3.jpg", quality=95)
    rgb, cmyk, grey = video.read_frames(folder, range(3)).astype(int)
    assert np.abs(rgb - image).mean() < 5 and np.abs(cmyk - image).mean() < 12
    assert np.abs(grey - np.asarray(Image.fromarray(image).convert("L"))[..., None]).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_phones_pictures_are_turned_upright(tmp_path, orientation, ending):
    """As Pillow's own function turns them, and with the size that the probe says."""
    from PIL import ImageOps

    folder = tmp_path / "clip"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawing(frames=1)[0]).save(folder / f"1.{ending}", exif=exif)
    with Image.open(folder / f"1.{ending}") as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    info = video.probe(folder)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.array_equal(video.read_frames(folder, [0])[0], expected)


def bomb(folder):
    """A PNG of few bytes that says it has 20,000 x 20,000 pixels."""
    folder.mkdir()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    (folder / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def cut(folder):
    write(folder, drawing(height=200, width=200), "{}.jpg")
    content = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(content[: len(content) * 2 // 3])


REFUSED = {
    "several shapes": (
        lambda f: (write(f, drawing(frames=2)), write(f, drawing(frames=1, height=W, width=H), first=3)),
        "holds pictures of several shapes: img_00001.png has 32x24 pixels and img_00003.png 24x32",
    ),
    "two series": (
        lambda f: (write(f, drawing(), "a_{}.png"), write(f, drawing(), "b_{}.png")),
        "holds 2 series of pictures: 'a_*.png', 'b_*.png'",
    ),
    "two endings": (
        lambda f: (write(f, drawing(), "{}.png"), write(f, drawing(), "{}.jpg", 7)),
        "holds 2 series of pictures: '*.jpg', '*.png'",
    ),
    "a number twice": (
        lambda f: (write(f, drawing(), "{}.png"), write(f, drawing(), "{:02d}.png")),
        "has frame 1 twice: ",
    ),
    "numbers in several ways": (
        lambda f: (write(f, drawing(), "{}.png"), write(f, drawing(), "{:02d}.png", 7)),
        "numbers its pictures in several ways: '",
    ),
    "an empty picture": (
        lambda f: (write(f, drawing()) / "img_00002.png").write_bytes(b""),
        f"is damaged: frame 1 of {T} (img_00002.png) cannot be decoded: it is empty",
    ),
    "no picture": (
        lambda f: (write(f, drawing()) / "img_00002.png").write_bytes(b"<html>not found</html>"),
        "(img_00002.png) cannot be decoded: it is no picture of the kinds that are read here",
    ),
    "a link to nothing": (
        lambda f: (write(f, drawing()) / "img_00007.png").symlink_to(f / "gone.png"),
        "(img_00007.png) cannot be decoded: No such file or directory",
    ),
    "a bomb": (bomb, "(1.png) cannot be decoded: it is far too large"),
    "a picture over the limit": (
        lambda f: write(f, np.zeros((1, 1, 9000, 3), np.uint8)),
        "has frames of 9000x1 pixels; the limit is 8192 a side",
    ),
    "pictures without numbers": (lambda f: write(f, drawing(frames=1), "cover.png"), "is a folder without numbered"),
    "no pictures": (lambda f: f.mkdir(), "is a folder without numbered pictures, not a video"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    make, words = REFUSED[name]
    make(tmp_path / "clip")
    with pytest.raises(VideoError) as caught:
        video.probe(tmp_path / "clip")
    assert words in caught.value.message and caught.value.hint


@pytest.mark.filterwarnings("error")
def test_a_picture_that_is_cut_off_is_named_when_it_is_read(tmp_path):
    cut(tmp_path / "clip")
    assert video.probe(tmp_path / "clip").frames == T
    with pytest.raises(VideoError, match=rf"is damaged: frame 2 of {T} \(3.jpg\) cannot be decoded: .*truncated"):
        video.read_frames(tmp_path / "clip", [0, 2])
    assert len(video.read_frames(tmp_path / "clip", [0, 1, 3])) == 3
    (record,) = records.examine([tmp_path / "clip"], records.ALL, workers=1)
    assert "3.jpg" in record.problem


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    images = drawing()
    folder = write(tmp_path / "clip", images)
    write(folder, images[::-1], "flow_x_{:05d}.png")
    write(folder, images[::-1], "flow_y_{:05d}.png")
    for name in ("Thumbs.db", ".DS_Store", "._img_00001.png", "notes.txt", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    (folder / "img_00099.png").mkdir()  # a folder by the name of a picture
    assert np.array_equal(video.read_frames(folder, range(T)), images)


def test_pictures_of_one_shape_may_differ_in_size(tmp_path):
    images = drawing()
    folder = write(tmp_path / "clip", images)
    large = np.repeat(np.repeat(images[2], 2, 0), 2, 1)
    Image.fromarray(large).save(folder / "img_00003.png")
    frames = video.read_frames(folder, [0, 2])
    assert np.array_equal(frames[0], images[0]) and np.abs(frames[1].astype(int) - images[2]).mean() < 8


def test_one_picture_is_a_video_of_one_frame_and_check_says_that_it_is_still(tmp_path):
    folder = write(tmp_path / "clip", drawing(frames=1))
    assert (video.probe(folder).frames, video.probe(folder).duration) == (1, 1 / 25)
    assert records.examine([folder], records.THREE, workers=0)[0].still


# --- the same as a file


CLIPS = [
    ClipSpec(frames=4, size=56, stride=None),
    ClipSpec(frames=4, size=56, stride=2),
    ClipSpec(frames=4, size=56, stride=1, fps=25.0),
]


@pytest.mark.parametrize("height, width", [(64, 80), (100, 72)])  # as decoded, and scaled down
def test_frames_of_an_mp4_give_its_clips(tmp_path, height, width):
    """Bit for bit, where the mp4 holds what the pictures do: in training, in validation, and from the cache."""
    images = drawing(frames=20, height=height, width=width)
    file = lossless(tmp_path / "a.mp4", images)
    assert np.array_equal(video.read_frames(file, range(20)), images)
    write(tmp_path / "frames", video.read_frames(file, range(20)))
    pair = tuple(listing.Item(name, ("x",)) for name in ("a.mp4", "frames"))
    for clip in CLIPS:
        for epoch in (-1, 0, 3):
            # the same key for both, as another index draws other numbers
            mp4, frames = (loader.Clips(tmp_path, (item,), clip, Augment()).read(epoch, 0) for item in pair)
            assert mp4.shape == frames.shape and bool((mp4 == frames).all())
        cached = loader.Clips(tmp_path, pair[1:], clip, Augment(), cache=tmp_path / "kept")
        assert all(bool((cached.read(3, 0) == mp4).all()) for _ in range(2))


def test_a_column_says_the_rate_and_the_stride_goes_by_it(tmp_path):
    images = drawing(frames=20, height=64, width=80)
    lossless(tmp_path / "a.mp4", images, rate=50)
    write(tmp_path / "frames", images)
    clip = ClipSpec(frames=4, size=56, stride=2, fps=25.0)
    mp4 = loader.Clips(tmp_path, (listing.Item("a.mp4", ()),), clip).read(-1, 0)
    rated = loader.Clips(tmp_path, (listing.Item("frames", (), fps=50.0),), clip).read(-1, 0)
    unrated = loader.Clips(tmp_path, (listing.Item("frames", ()),), clip).read(-1, 0)
    assert bool((mp4 == rated).all()) and not bool((mp4 == unrated).all())
    info = video.at_rate(video.probe(tmp_path / "frames"), 50.0)
    assert (info.fps, info.duration) == pytest.approx((50, 0.4)) and video.span(info, 0.1, 0.2) == (5, 5)


def test_frames_are_cached(tmp_path):
    images = drawing()
    folder = write(tmp_path / "clip", images)
    kept = tmp_path / "kept"
    for _ in range(2):
        assert np.array_equal(frame_cache.read_frames(folder, [3, 1], None, kept), images[[3, 1]])
    assert len(list(kept.glob("*.npy"))) == 1


def animation(file, images, durations=40):
    """An animated WebP or GIF that holds the very pixels."""
    first, *others = map(Image.fromarray, images)
    first.save(file, save_all=True, append_images=others, duration=durations, lossless=True)
    return file


def test_animated_webp_is_a_video(tmp_path):
    images = drawing()
    for folder in ("a", "b"):
        (tmp_path / "v" / folder).mkdir(parents=True)
        animation(tmp_path / "v" / folder / "1.webp", images, [40, 40, 200, 40, 40, 40])
        animation(tmp_path / "v" / folder / "2.WEBP", images[::-1])
        Image.fromarray(images[0]).save(tmp_path / "v" / folder / "cover.webp")
    found = scanning.scan(tmp_path / "v", workers=0)
    assert items(found) == ["a/1.webp=a", "a/2.WEBP=a", "b/1.webp=b", "b/2.WEBP=b"] and found.ignored == 2
    info = video.probe(tmp_path / "v/a/1.webp")
    assert (info.container, info.frames, info.height, info.width, info.variable) == ("webp", T, H, W, True)
    assert (info.duration, info.pts.tolist()) == (0.4, [0, 40, 80, 280, 320, 360])
    assert np.array_equal(video.read_frames(info.path, [4, 0, 4]), images[[4, 0, 4]])
    with pytest.raises(VideoError, match="is a picture, not a video"):
        video.probe(tmp_path / "v/a/cover.webp")
    content = (tmp_path / "v/a/1.webp").read_bytes()
    (tmp_path / "cut.webp").write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match="is no animation that can be read"):
        video.probe(tmp_path / "cut.webp")


def test_a_gif_is_a_video(tmp_path):
    images = np.repeat(np.repeat(drawing(height=4, width=4), 8, 1), 8, 2)  # few colours, which a palette holds
    info = video.probe(animation(tmp_path / "a.gif", images))
    assert (info.container, info.frames, info.fps) == ("gif", T, 25)
    assert np.array_equal(video.read_frames(info.path, range(T)), images)


# --- in folders and lists


def test_folders_of_frames_beside_files_in_every_layout(tmp_path):
    root = dataset(tmp_path / "v", clips=2)
    lossless(root / "a" / "file.mp4", drawing())
    write(root / "b" / "monday" / "flow_x", drawing())
    write(root / "b" / "flower", drawing())
    found = listing.read(root)
    assert items(found) == ["a/ax=a", "a/ay=a", "a/file.mp4=a", "b/bx=b", "b/by=b", "b/flower=b"]
    assert found.ignored == T  # of the optical flow
    for split in ("train", "val"):
        dataset(tmp_path / "splits" / split, clips=1)
    assert [item.split for item in listing.read(tmp_path / "splits").items] == ["train", "train", "val", "val"]


def test_a_class_never_vanishes(tmp_path):
    """A class of frames beside one of files is trained on; one that is not laid out right is named."""
    root = dataset(tmp_path / "v", "ab")
    for number in range(3):
        (root / "c").mkdir(exist_ok=True)
        lossless(root / "c" / f"{number}.mp4", drawing(30 + number))
    assert scanning.scan(root, workers=0).classes == ("a", "b", "c")
    write(root / "d", drawing())
    with pytest.raises(VideoError, match="class 'd' of .* has no videos, but 6 pictures directly in it: each clip"):
        scanning.split(scanning.scan(root, workers=0), "0.25", 0)
    write(root / "e" / "clip", drawing(), "f{}_a.tif")
    found = {entry.path: entry.reason for entry in listing.read(root).lost}
    assert found["e"] == f"has no videos and no numbered frames, but {T} other pictures" and "d" in found
    write(root / "d" / "clip", drawing())  # then the others are skipped, and named
    assert [str(entry) for entry in listing.read(root).skipped] == [
        "d: has no videos, but 6 pictures directly in it: each clip needs a folder of its own"
    ]


def listed(root, name, text):
    (root / name).write_text(text)
    return listing.read(root / name)


def test_rawframe_lists_of_mmaction2(tmp_path):
    root = dataset(tmp_path, clips=1)
    found = listed(root, "l.txt", f"a/ax {T} 0\nb/bx {T} 1\n")
    assert items(found) == ["a/ax=0", "b/bx=1"]
    whole = scanning.scan(root / "l.txt", workers=0).items
    assert [(i.start, i.end, i.frames) for i in whole] == [(None, None, T)] * 2
    listed(root, "l.txt", "a/ax 1 3 0\na/ax 0 2 0\nb/bx 2 99 1\n")
    parts = scanning.scan(root / "l.txt", workers=0)
    assert [(i.path, i.labels, i.frames) for i in parts.items] == [
        ("a/ax", ("0",), 2),
        ("a/ax", ("0",), 3),
        ("b/bx", ("1",), T - 2),
    ]
    info = records.probe(root / "a/ax")
    assert video.span(info, parts.items[1].start, parts.items[1].end) == (1, 3)
    found = listed(root, "l.txt", f"a/ax {T} 0 2\nb/bx {T} 1\n")  # several labels
    assert items(found) == ["a/ax=0;2", "b/bx=1"] and found.multi_label
    assert items(listed(root, "l.txt", "a/ax 0\nb/bx 1\n")) == ["a/ax=0", "b/bx=1"]
    lossless(root / "c.mp4", drawing(7))
    assert items(listed(root, "l.txt", f"a/ax {T} 0\nc.mp4 1\n")) == ["a/ax=0", "c.mp4=1"]
    with pytest.raises(VideoError, match="line 1: a folder of 0 frames"):
        listed(root, "l.txt", "a/ax 0 0\n")


def test_lists_of_something_something_and_jester(tmp_path):
    for number in (34870, 56557, 7):
        write(tmp_path / "20bn-jester-v1" / str(number), drawing(number), "{:05d}.jpg")
    found = listed(tmp_path, "jester-v1-train.csv", "34870;Drumming Fingers\n56557;Sliding, with two\n7;No gesture\n")
    assert items(found) == [
        "20bn-jester-v1/34870=Drumming Fingers",
        "20bn-jester-v1/56557=Sliding, with two",
        "20bn-jester-v1/7=No gesture",
    ]


def test_a_list_with_a_rate_is_written_and_read_again(tmp_path):
    root = dataset(tmp_path, clips=1)
    lossless(root / "c.mp4", drawing(7), rate=10)
    (root / "l.csv").write_text("path,label,fps,start,end\na/ax,a,12.5,0.16,0.32\nb/bx,b,,,\nc.mp4,b,99,,\n")
    found = scanning.scan(root / "l.csv", workers=0)
    seconds = {item.path: (item.fps, item.frames, round(item.seconds, 3)) for item in found.items}
    assert seconds == {"a/ax": (12.5, 2, 0.16), "b/bx": (0, T, T / 25), "c.mp4": (0, T, T / 10)}
    list_writer.write(found, root / "again.csv")
    assert (root / "again.csv").read_text().splitlines()[0].endswith(",seconds,fps")
    assert listing.read(root / "again.csv").items == found.items
    with pytest.raises(VideoError, match="line 2: fps 'x' is not a number"):
        listed(root, "l.csv", "path,label,fps\na/ax,a,x\n")


# --- commands


def test_check_says_gaps_and_counts_folders(tmp_path):
    root = dataset(tmp_path / "v", clips=2)
    (root / "a" / "ax" / "img_00003.png").unlink()
    report = check.look(listing.read(root), records.ALL, workers=0)
    (gap,) = [finding for finding in report.warnings if finding.code == "gaps"]
    assert gap.message == "1 folder leaves out numbers of frames, for example a/ax 1 of them"
    assert report.could_train and report.used == 4 and "png in folder (4)" in check.in_words(report)


def test_prepare_makes_small_videos_of_them(tmp_path):
    root = dataset(tmp_path / "v", clips=1)
    (root / "l.csv").write_text("path,label,fps,start,end\na/ax,a,10,0.2,0.4\nb/bx,b,,,\n")
    prepared, target = prepare.prepare_source(root / "l.csv", tmp_path / "out", 16)
    assert prepared.done == 2 and not prepared.skipped
    made = {item.path: video.probe(tmp_path / "out" / item.path) for item in listing.read(target).items}
    assert {path: (info.frames, info.fps, info.height) for path, info in made.items()} == {
        "a/ax.mp4": (T, 10, 16),
        "b/bx.mp4": (T, 25, 16),
    }
    part = listing.read(target).items[0]
    assert video.span(made["a/ax.mp4"], part.start, part.end) == (2, 2)
    again, _ = prepare.prepare_source(root / "l.csv", tmp_path / "out", 16)
    assert (again.done, again.reused) == (0, 2)
    prepared, target = prepare.prepare_source(root / "a", tmp_path / "flat", 16)
    assert (target / "ax.mp4").is_file()


def test_predict_takes_a_folder_of_frames_as_one_video(tmp_path):
    root = dataset(tmp_path / "v", clips=2)
    clip = root / "a" / "ax"
    assert list(predict.find([clip])) == [clip]
    assert list(predict.find([root / "a"])) == [clip, root / "a" / "ay"]
    assert not frame_folder.is_frame_folder(root) and not frame_folder.is_frame_folder(root / "nothing")


@pytest.mark.filterwarnings("error")
def test_damaged_pictures_are_frames_or_a_sentence(tmp_path):
    """Whatever became of the bytes; a picture that is given has the size that the probe says."""
    rng, kinds = np.random.default_rng(0), {}
    picture = Image.fromarray(drawing(frames=1)[0])
    for name, mode, options in [
        ("1.jpg", "RGB", {}),
        ("1.jpeg", "CMYK", {}),
        ("1.png", "P", {}),
        ("1.webp", "RGB", {}),
        ("1.bmp", "L", {}),
        ("a.webp", "RGB", {"save_all": True, "append_images": [picture.rotate(90)]}),
    ]:
        picture.convert(mode).save(tmp_path / name, **options)
        kinds[name] = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        (tmp_path / name).unlink()
    read = 0
    for _ in range(300):
        name = list(kinds)[rng.integers(len(kinds))]
        data = kinds[name].copy()
        data[rng.integers(len(data), size=rng.integers(1, 6))] = rng.integers(256)
        data = data[: rng.integers(len(data))] if rng.random() < 0.2 else data
        (tmp_path / name).write_bytes(data.tobytes())
        target = tmp_path / name if name == "a.webp" else tmp_path
        try:
            info = video.probe_uncached(str(target), 0, 0)
            frames = video.read_frames(target, range(info.frames), info=info)
            assert frames.shape == (info.frames, info.height, info.width, 3)
            read += 1
        except VideoError as error:
            assert error.reason and error.hint
        (tmp_path / name).unlink()
    assert 50 < read < 250
