"""Datasets of a small Hub on loopback: what is fetched, what is said before, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

from nlzoo.core.errors import UsageError
from nlzoo.networks import hub_dataset

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "0.mp4": b"zero",
    "train.txt": b"0.mp4 0\n",
    "notes.txt": b"not fetched",
    "README.md": b"---\nlicense: mit\n---\n",
    "metadata.csv": b"file_name,label\ntrain/1.mp4,wave\ntrain/2.MP4,hug\n",
    "train/1.mp4": b"one",
    "train/2.MP4": b"two!",
    "frames/a [b]/img_1.jpg": b"x" * 1000,
    "load.py": b"raise SystemExit('code')",
    "weights.pkl": b"pickle",
    ".hidden/3.mp4": b"three",
}
# fetches each address of its arguments, and prints what became of it
SCRIPT = """
import json, sys
from nlzoo.core.errors import NlzooError
from nlzoo.networks import hub_dataset
for address in sys.argv[1:]:
    said = []
    try:
        place = hub_dataset.fetch(address, said.append)
        there = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
        done = {"place": str(place), "there": there, "said": said, "name": hub_dataset.base_name(place)}
    except NlzooError as error:
        done = {"error": type(error).__name__, "words": f"{error.message} | {error.hint}"}
    print(json.dumps(done), flush=True)
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def fetch(hub, home, *addresses, **env):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *addresses],
        env=hub.env(home, **env) | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_videos_pictures_and_lists_are_fetched_and_their_size_is_said_before(hub, tmp_path):
    name = "datasets/alice/gestures"
    hub.create(name, private=True)
    hub.repos[name].add(FILES, "all")
    hub.create("datasets/alice/packed", private=False).add({"v.zip": b"PK", "w.zip": b"PK", "a.csv": b"x"}, "all")
    hub.create("datasets/alice/evil", private=False).add({"../../1.mp4": b"out"}, "all")
    address = "hf://datasets/alice/gestures"
    calls = len(hub.calls)
    first, again, folder, listed, packed, named, evil, nothing, missing = fetch(
        hub,
        tmp_path,
        address,
        address,
        f"{address}/frames",
        f"{address}/metadata.csv",
        "hf://datasets/alice/packed",
        "hf://datasets/alice/packed/v.zip",
        "hf://datasets/alice/evil",
        f"{address}/nowhere",
        "hf://datasets/alice/gone",
    )
    wanted = ["0.mp4", "frames/a [b]/img_1.jpg", "metadata.csv", "train.txt", "train/1.mp4", "train/2.MP4"]
    assert first["there"] == wanted and first["name"] == "gestures"
    assert first["said"] == ["fetching 6 files, 0.0 MB, of the dataset alice/gestures"]
    assert not any("load.py" in call or ".pkl" in call for call in hub.calls[calls:])
    assert again == first | {"said": []}
    assert folder["there"] == ["a [b]/img_1.jpg"] and folder["name"] == "frames"
    assert listed["name"] == "metadata" and Path(listed["place"]).name == "metadata.csv"
    assert packed["error"] == "HubError" and "has no files of videos or frames (2 .zip" in packed["words"]
    assert "unpack the archives" in packed["words"]
    place = Path(named["place"])
    assert named["said"] == ["fetching 1 file, 0.0 MB, of the dataset alice/packed"] and named["name"] == "v"
    assert place.name == "v.zip" and place.read_bytes() == b"PK" and not place.with_name("w.zip").exists()
    assert "file with an impossible name: ../../1.mp4" in evil["words"] and not (tmp_path.parent / "1.mp4").exists()
    assert "there is no nowhere of the dataset alice/gestures on the Hub" in nothing["words"]
    assert "the dataset alice/gone is not on the Hub" in missing["words"]


def test_strangers_and_full_disks_are_told(hub, tmp_path):
    name = "datasets/alice/large"
    hub.create(name, private=True).add({"1.mp4": b"one"}, "all")
    (stranger,) = fetch(hub, tmp_path, f"hf://{name}", token=None)
    assert stranger["error"] == "HubError" and "is not on the Hub, or it is private" in stranger["words"]
    hub.fail("GET", "/api/datasets/alice/large", body=large(hub.repos[name]))
    (full,) = fetch(hub, tmp_path, f"hf://{name}")
    assert full["error"] == "DiskError" and "takes 1000000000.0 GB, and " in full["words"]


def large(repo):
    """What the Hub says of a dataset with a file of an exabyte."""
    sibling = {"rfilename": "1.mp4", "size": 10**18, "blobId": "0" * 40}
    oid = repo.commits[-1].oid
    return json.dumps({"id": "alice/large", "sha": oid, "private": True, "siblings": [sibling], "tags": []}).encode()


@pytest.mark.parametrize(
    "address, parts",
    [
        ("hf://datasets/user/name", ("user/name", None, "")),
        (Path("hf://datasets/user/name"), ("user/name", None, "")),  # has one slash less
        ("hf://datasets/user/name@v1.0/train/a b/", ("user/name", "v1.0", "train/a b")),
    ],
)
def test_addresses(address, parts):
    assert hub_dataset.is_address(address) and hub_dataset.parse(address) == parts


@pytest.mark.parametrize(
    "address", ["hf://user/name", "hf://datasets/name", "hf://datasets/user/name/../x", "hf://datasets/user/name@../x"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(UsageError) as caught:
        hub_dataset.parse(address)
    assert caught.value.hint


def test_names_of_folders_and_lists(tmp_path):
    (tmp_path / "videos.csv").write_text("")
    assert hub_dataset.base_name(tmp_path / "videos.csv") == "videos"
    assert hub_dataset.base_name(tmp_path) == tmp_path.name
