"""Files that are there whole or not at all, what is said where they cannot be, and what is removed after a kill."""

import errno
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from nlzoo.core import files
from nlzoo.core.errors import DiskError, WeightsError


@pytest.mark.parametrize(
    "number, hint",
    [
        (errno.ENOENT, "make its folder first, or choose another one"),
        (errno.EACCES, "check the folder's permissions, or choose another one"),
        (errno.EROFS, "check the folder's permissions, or choose another one"),
        (errno.ENOSPC, "free some room, or choose another folder"),
        (errno.EDQUOT, "free some room, or choose another folder"),
    ],
)
def test_what_could_not_be_written_and_what_to_do(number, hint):
    error = files.not_written("a\x1b/b.txt", OSError(number, os.strerror(number)))
    assert isinstance(error, DiskError) and error.exit_code == 5
    assert (error.message, error.hint) == (f"a\\x1b/b.txt could not be written ({os.strerror(number)})", hint)
    assert files.not_written("x", OSError(number, "no"), "leave it").hint == "leave it"


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
    files.check_writable(tmp_path / "new.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DiskError, match=r"nowhere/new.csv could not be written \(No such file or directory\)"):
        files.check_writable(tmp_path / "nowhere" / "new.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file/new.csv could not be written \(Not a directory\)"):
        files.check_writable(tmp_path / "file" / "new.csv")
    with pytest.raises(DiskError, match=r"could not be written \(Is a directory\)"):
        files.check_writable(tmp_path)
    files.check_folder(tmp_path / "new" / "deep")
    for folder in ("file", "file/new/deep"):
        with pytest.raises(DiskError, match=rf"{tmp_path}/{folder} could not be written \(Not a directory\)"):
            files.check_folder(tmp_path / folder)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["a.bin", "ü" * 127, os.fsdecode(b"\xff" * 255)])
def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"old")
    with pytest.raises(KeyError), files.replacing(file) as part:
        part.write_bytes(b"half")
        assert file.read_bytes() == b"old" and part.parent == tmp_path and part.name.startswith(".")
        raise KeyError
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(DiskError, match="could not be written"), files.replacing(file) as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    with files.replacing(file) as part:
        part.write_bytes(b"new")
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


def test_lines_are_appended_and_a_folder_in_the_way_is_said(tmp_path):
    files.append_text(tmp_path / "log", "ü\n")
    files.append_text(tmp_path / "log", "b\n")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "ü\nb\n"
    with pytest.raises(DiskError, match="could not be written"):
        files.append_text(tmp_path, "c")


def test_leftovers_go_and_everything_else_stays(tmp_path):
    kept = ["a.part", ".a.part", ".a.0123abcd.tmp", ".a.0123ABCD.part", "0123abcd.part"]
    for name in [*kept, ".a.0123abcd.part", ".b\n.0123abcd.part", ".c.0123abcd.old", "c"]:
        (tmp_path / name).mkdir()
    (tmp_path / ".young.0123abcd.part").write_text("half")
    old = time.time() - 100
    for folder in tmp_path.glob("*.part"):
        if not folder.name.startswith(".young"):
            os.utime(folder, (old, old))
    os.utime(tmp_path / ".c.0123abcd.old", (old, old))
    files.remove_leftovers(tmp_path, older_than=50)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "c", ".young.0123abcd.part"])
    files.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "c"])
    (tmp_path / "c").rename(tmp_path / ".c.0123abcd.old")  # killed between its two renames
    files.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "c"])


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(content := os.urandom(3 * 2**20 + 1))
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_one_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "mine"))
    assert files.cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("NLZOO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "nlzoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_folder() == tmp_path / "home" / ".cache" / "nlzoo"
    monkeypatch.setenv("NLZOO_CACHE", "relative")
    assert files.cache_folder() == Path.cwd() / "relative"


NO_OBJECTS = (b"null", b"[]", b"7", b'"text"', b"true")  # JSON, and what other programs leave


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": "' + b"x" * files.MAX_CONFIG + b'"}', *NO_OBJECTS],
    ids=lambda content: repr(content[:12]),
)
def test_json_of_anybody_is_bounded(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match="config.json"):
        files.read_json(tmp_path / "config.json")


def test_json_comes_back_and_nan_is_refused(tmp_path):
    value = {"name": os.fsdecode(b"caf\xe9\x1b"), "n": [1, None, 0.5]}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value == json.loads((tmp_path / "a.json").read_text())
    with pytest.raises(ValueError, match="NaN|nan|Out of range"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert files.read_json(tmp_path / "a.json") == value


class Watched(type(Path())):
    """A path at which something happens just after it was looked at."""

    meanwhile = None

    def exists(self):
        answer = super().exists()
        if self.meanwhile:
            self.meanwhile()
        return answer

    def glob(self, pattern):
        found = list(super().glob(pattern))
        for path in found:
            os.rename(path, path.with_name("gone"))
        return found


def test_of_two_that_write_a_folder_at_once_the_later_replaces_the_other(tmp_path):
    """The folder was not there when the later one looked."""
    folder = Watched(tmp_path / "folder")

    def other():
        folder.meanwhile = None
        files.write_folder(tmp_path / "folder", lambda part: (part / "a").write_text("of the other"))

    folder.meanwhile = other
    files.write_folder(folder, lambda part: (part / "a").write_text("mine"))
    assert (folder / "a").read_text() == "mine" and os.listdir(tmp_path) == ["folder"]


def test_an_old_folder_that_goes_while_it_is_looked_for_is_no_error(tmp_path):
    (tmp_path / ".folder.00000000.old").mkdir()
    folder = Watched(tmp_path / "folder")
    assert files.current(folder) == folder and os.listdir(tmp_path) == ["gone"]
