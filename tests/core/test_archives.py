"""Archives from anybody: the folder that they would unpack to, or one sentence; no file outside, and no bomb."""

import io
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from nlzoo.core import archives
from nlzoo.core.text import printable

FILES = {"a/1.mp4": b"one" * 500, "a/b/Übung 🕺.mp4": b"two", "list.csv": b"path,label\n", "a/zero.mp4": b""}


def zipped(file, members, method=zipfile.ZIP_STORED):
    """Members as (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(file, "w", method) as out:
        for name, content in members.items() if isinstance(members, dict) else members:
            out.writestr(name, content)
    return file


def tarred(file, members, form=tarfile.PAX_FORMAT):
    """Members as (name or TarInfo, bytes)."""
    with tarfile.open(file, "w", format=form) as out:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return file


def of_kind(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def linked_in_zip(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def below(folder):
    """path → bytes, or why it cannot be read, of all files below."""
    found = {}
    with archives.scandir(folder) as entries:
        for entry in entries:
            assert entry.path == os.path.join(folder, entry.name)
            if entry.is_dir():
                found |= {f"{entry.name}/{inner}": content for inner, content in below(entry.path).items()}
            else:
                try:
                    with archives.open_file(entry.path) as opened:
                        content = opened.read()
                    assert entry.is_symlink() is False and archives.stat(entry.path).st_size == len(content)
                except archives.BadArchive as error:
                    content = error.strerror
                found[entry.name] = content
    return found


def refusal(file):
    with pytest.raises(archives.BadArchive) as caught, archives.scandir(file):
        pass
    assert not archives.is_folder(file) and archives.exists(file)
    return caught.value.strerror


@pytest.mark.parametrize(
    "make",
    [
        lambda file: zipped(file / "x.ZIP", FILES),
        lambda file: zipped(file / "x.zip", FILES, zipfile.ZIP_DEFLATED),
        lambda file: tarred(file / "x.tar", FILES),
        lambda file: tarred(file / "x.tar", {f"./{name}": content for name, content in FILES.items()}),
        lambda file: tarred(file / "x.Tar", FILES, tarfile.GNU_FORMAT),
        lambda file: tarred(file / "x.tar", FILES, tarfile.USTAR_FORMAT),
    ],
)
def test_members_are_files(tmp_path, make):
    file = make(tmp_path)
    assert below(str(file)) == FILES
    for name, content in FILES.items():
        with archives.open_file(file / name) as opened:
            assert (opened.seek(2), opened.read(3), opened.tell()) == (2, content[2:5], len(content[:5]) or 2)
            assert opened.seek(-1, 2) == len(content) - 1 if content else True
            assert opened.read() == content[-1:]
        assert archives.is_file(file / name) and archives.is_member(file / name) and not archives.is_folder(file / name)
        assert archives.stat(file / name).st_mtime_ns == file.stat().st_mtime_ns
    assert archives.is_archive(file) and archives.is_folder(file / "a/b") and archives.is_folder(f"{file}/a/")
    for missing in ("a/2.mp4", "b", "list.csv/x", "a/..", ".."):
        assert not archives.exists(file / missing) or missing == "a/.."
        if missing != "a/..":
            with pytest.raises(FileNotFoundError):
                archives.stat(file / missing)
    with pytest.raises(IsADirectoryError):
        archives.open_file(file / "a")
    with pytest.raises(NotADirectoryError), archives.scandir(file / "list.csv"):
        pass


def test_files_and_folders_are_what_the_system_says(tmp_path):
    (tmp_path / "a.zip").mkdir()  # a folder, whatever its name
    (tmp_path / "a.zip/1.mp4").write_bytes(b"one")
    assert not archives.is_archive(tmp_path / "a.zip") and not archives.is_member(tmp_path / "a.zip/1.mp4")
    assert archives.stat(tmp_path / "a.zip/1.mp4") == os.stat(tmp_path / "a.zip/1.mp4")
    with archives.open_file(tmp_path / "a.zip/1.mp4") as opened, archives.scandir(tmp_path / "a.zip") as entries:
        assert opened.read() == b"one" and [entry.name for entry in entries] == ["1.mp4"]
    zipped(tmp_path / "in.zip", {"inner.zip": zipped(tmp_path / "inner.zip", FILES).read_bytes()})
    assert archives.is_file(tmp_path / "in.zip/inner.zip") and not archives.is_folder(tmp_path / "in.zip/inner.zip/a")
    (tmp_path / "link.zip").symlink_to(tmp_path / "blob")
    shutil.copy(tmp_path / "inner.zip", tmp_path / "blob")  # as in the Hub's cache
    assert below(str(tmp_path / "link.zip")) == FILES
    assert archives.realpath(tmp_path / "link.zip/a") == str(tmp_path / "link.zip/a")
    assert not archives.exists(tmp_path / "a\0.zip/x")


def test_an_archive_that_changes_is_read_again(tmp_path):
    file = zipped(tmp_path / "x.zip", FILES)
    assert below(str(file)) == FILES
    before = file.stat().st_mtime_ns
    zipped(file, {"a.mp4": b"new"})
    os.utime(file, ns=(before + 10**9, before + 10**9))
    assert below(str(file)) == {"a.mp4": b"new"}


def test_what_is_known_of_archives_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    files = [zipped(tmp_path / f"{number}.zip", {f"{k}.mp4": b"x" for k in range(number + 1)}) for number in range(5)]
    for file in files * 2:
        assert len(below(str(file))) == int(file.stem) + 1
        assert len(archives._known) <= 4


def test_the_common_folder(tmp_path):
    def top(*names):
        return archives.top(zipped(tmp_path / "x.zip", dict.fromkeys(names, b""))).removeprefix(f"{tmp_path}/x.zip")

    assert top("v/a/1.mp4", "v/b/1.mp4", "__MACOSX/v/._x", ".DS_Store") == "/v"
    assert top("v/train.csv", "v/1.mp4") == "/v"
    assert top("v/v/a/1.mp4") == "/v"  # once, as a user would open it
    assert top("a/1.mp4") == "" == top("a/1.mp4", "b/1.mp4") == top("v/a/1.mp4", "x.csv") == top()


BAD = {
    "../1.mp4": "leads out of it",
    "a/../../1.mp4": "leads out of it",
    "a/..": "leads out of it",
    "/etc/1.mp4": "leads out of it",
    "C:/1.mp4": "leads out of it",
    "c:\\1.mp4": "leads out of it",
    ".": "without a name",
}


@pytest.mark.parametrize("name", BAD)
def test_names_that_lead_out_are_refused(tmp_path, name):
    assert BAD[name] in refusal(zipped(tmp_path / "x.zip", {"a.mp4": b"x", name: b"x"}))
    assert BAD[name] in refusal(tarred(tmp_path / "x.tar", {"a.mp4": b"x", name: b"x"}))


def test_names_of_windows(tmp_path):
    info = zipfile.ZipInfo("x")
    info.filename, info.create_system = "a\\b\\1.mp4", 0
    assert below(str(zipped(tmp_path / "x.zip", [(info, b"x")]))) == {"a/b/1.mp4": b"x"}
    info.filename = "a\\..\\..\\1.mp4"
    assert "leads out" in refusal(zipped(tmp_path / "y.zip", [(info, b"x")]))
    assert below(str(tarred(tmp_path / "x.tar", {"a\\..\\1.mp4": b"x"}))) == {"a\\..\\1.mp4": b"x"}


def test_names_that_say_no_encoding(tmp_path):
    """UTF-8 as old archivers write it, and the DOS code page."""
    for name, written in (("Übung.mp4", "Übung.mp4".encode()), ("Ü.mp4", "Ü.mp4".encode("cp437"))):
        data = zipped(tmp_path / "x.zip", {"x" * len(written): b"x"}).read_bytes().replace(b"x" * len(written), written)
        file = tmp_path / f"{len(written)}.zip"
        file.write_bytes(data)
        assert below(str(file)) == {name: b"x"}


@pytest.mark.parametrize(
    "names, words",
    [
        (["a.mp4", "a.mp4"], "'a.mp4' twice"),
        (["a.mp4", "./a.mp4"], "'./a.mp4' twice"),
        (["a/1.mp4", "a"], "'a' twice"),
        (["a", "a/1.mp4"], "'a/1.mp4' in a file"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_meet(tmp_path, names, words):
    for file in (
        zipped(tmp_path / "x.zip", [(name, b"x") for name in names]),
        tarred(tmp_path / "x.tar", [(name, b"x") for name in names]),
    ):
        assert words in refusal(file)


def test_members_that_cannot_be_read_are_there_and_say_why(tmp_path):
    made = [(of_kind("l.mp4", tarfile.SYMTYPE, "/etc/passwd"), b""), (of_kind("h.mp4", tarfile.LNKTYPE, "a.mp4"), b"")]
    made += [(of_kind("d.mp4", tarfile.CHRTYPE), b""), (of_kind("p.mp4", tarfile.FIFOTYPE), b""), ("a.mp4", b"x")]
    file = tarred(tmp_path / "x.tar", made)
    link = "it is a link, and links in archives are not followed"
    with archives.scandir(file) as entries:
        assert {entry.name: entry.is_symlink() for entry in entries} == {
            "l.mp4": True, "h.mp4": True, "d.mp4": False, "p.mp4": False, "a.mp4": False
        }  # fmt: skip
    for name, words in (("l", link), ("h", link), ("d", "no regular file"), ("p", "no regular file")):
        for ask in (archives.stat, archives.open_file):
            with pytest.raises(archives.BadArchive, match=words):
                ask(file / f"{name}.mp4")
    file = zipped(tmp_path / "x.zip", [(linked_in_zip("l.mp4"), b"/etc/passwd"), ("a.mp4", b"x")])
    with pytest.raises(archives.BadArchive, match=link):
        archives.open_file(file / "l.mp4")
    assert below(str(zipped(tmp_path / "y.zip", {"a.mp4": b"x" * 99}, zipfile.ZIP_LZMA))) == {
        "a.mp4": "it is compressed in a way that is not read in place (method 14)"
    }


def test_encrypted(tmp_path):
    data = bytearray(zipped(tmp_path / "x.zip", {"a.mp4": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert below(str(tmp_path / "x.zip")) == {"a.mp4": "it is encrypted in its archive"}


def test_holes(tmp_path):
    """GNU's sparse files, whose bytes do not lie behind one another."""
    with open(tmp_path / "a.mp4", "wb") as opened:
        opened.truncate(2**20)
        opened.seek(0, 2)
        opened.write(b"end")
    subprocess.run(["tar", "-S", "-cf", "x.tar", "a.mp4"], cwd=tmp_path, check=True)
    assert below(str(tmp_path / "x.tar")) == {"a.mp4": "it is stored with holes, which are not read in place"}


def test_bombs_take_neither_memory_nor_time(tmp_path, monkeypatch):
    """64 MiB of zeros in 64 KiB, and sizes and counts that are claimed and not there."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed, crc = packer.compress(bytes(2**26)) + packer.flush(), zlib.crc32(bytes(2**26))
    for claimed in (2**30, 2**20):
        (tmp_path / "x.zip").write_bytes(crafted(b"a.mp4", packed, claimed, crc))
        tracemalloc.start()
        problem = below(str(tmp_path / "x.zip"))["a.mp4"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 2**20
        words = "has 1,074 MB: more than 512 MiB" if claimed == 2**30 else "it is damaged in its archive"
        assert words in problem
        (tmp_path / "x.zip").unlink()
    (tmp_path / "x.zip").write_bytes(crafted(b"a.mp4", b"x" * 9000, 10, 0))
    assert "takes more bytes compressed" in below(str(tmp_path / "x.zip"))["a.mp4"]
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    many = {f"{i}.mp4": b"" for i in range(11)}
    for file in (zipped(tmp_path / "m.zip", many), tarred(tmp_path / "m.tar", many)):
        assert refusal(file) == "it has more than 10 members"
    assert refusal(tarred(tmp_path / "deep.tar", {"a/" * 11 + "1.mp4": b""})) == "it has more than 10 members"
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 1000)
    assert "its list of members has" in refusal(zipped(tmp_path / "l.zip", {"n" * 3000: b""}))
    assert "its list of members has" in refusal(tarred(tmp_path / "l.tar", {"n" * 3000: b""}))


def crafted(name, packed, claimed, crc):
    """A zip with one deflated member that claims a size."""
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, crc, len(packed), claimed, len(name), 0)
    local = b"PK\x03\x04" + head + name + packed
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    return local + entry + end


def test_headers_without_end(tmp_path):
    info = tarfile.TarInfo("long")
    info.type = tarfile.GNUTYPE_LONGNAME
    assert "without end" in refusal(tarred(tmp_path / "x.tar", [(info, b"a")] * (2 * sys.getrecursionlimit())))


def test_what_is_cut_off_is_told(tmp_path):
    """At every length: a zip has its list at its end, a tar two empty blocks."""
    for file, step in ((zipped(tmp_path / "x.zip", FILES), 97), (tarred(tmp_path / "x.tar", FILES), 256)):
        data = file.read_bytes()
        end = len(data) if file.suffix == ".zip" else len(data.rstrip(b"\0")) // 512 * 512 + 512
        for number, length in enumerate(range(0, end, step)):
            part = tmp_path / f"{number}{file.suffix}"
            part.write_bytes(data[:length])
            assert "cut off" in refusal(part), length
            part.unlink()


def test_any_damage_is_a_sentence_or_a_folder(tmp_path, seed):
    """Whatever bytes change, what is read is bytes of the archive, and what goes wrong is an `OSError`."""
    rng = random.Random(seed)
    sources = [zipped(tmp_path / "s.zip", FILES), zipped(tmp_path / "d.zip", FILES, zipfile.ZIP_DEFLATED)]
    for source in [*sources, tarred(tmp_path / "x.tar", FILES)]:
        data = source.read_bytes()
        for number in range(150):
            changed = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.choice([0, 255, 0x30, 0x37, rng.randrange(256)])
            file = tmp_path / f"{number}{source.suffix}"
            file.write_bytes(changed)
            try:
                for name, content in below(str(file)).items():
                    assert ".." not in Path(name).parts and len(content) < 9999
            except archives.BadArchive as error:
                assert error.strerror and printable(error.strerror) == error.strerror
            file.unlink()
