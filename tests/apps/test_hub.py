"""Push and pull with the real client against tests/hub_server.py.

The client reads its settings when it is imported, so every "machine" is a process of its own.
"""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import HubServer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from safetensors.torch import save_file

import nlzoo
from nlzoo.apps.hub_card import TRANSFORMERS_FILES
from nlzoo.core.files import VIDEO_EXTENSIONS
from nlzoo.core.model_spec import ModelSpec, NonLocal, to_json
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"top1": 0.9, "top5": 1.0, "majority": 0.2, "train": 30, "val": 10, "epochs": 5}
FILES = {"model.safetensors", "config.json", "README.md", "metrics.json"}

# Answers one JSON line per line of Python; anything else on its stdout would break the protocol, and the test with it.
WORKER = """
import dataclasses, json, sys
from pathlib import Path
from nlzoo.apps import hub
from nlzoo.core.errors import NlzooError
from nlzoo.networks import download, hub_client
hub_client.WAITS = (0.01, 0.02, 0.03)
for line in sys.stdin:
    try:
        value = eval(line)
        reply = {"value": dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value}
    except NlzooError as error:
        reply = {"kind": type(error).__name__, **vars(error), "exit_code": error.exit_code}
    print(json.dumps(reply, default=str), flush=True)
"""


class Machine:
    """A process with its own cache and login."""

    def __init__(self, env, log):
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=env | {"PYTHONPATH": str(ROOT)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),
        )

    def ask(self, expression):
        print(expression, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, f"the process ended:\n{self.log.read_text()[-3000:]}"
        return json.loads(line)

    def do(self, expression):
        """The value; the call must succeed."""
        reply = self.ask(expression)
        assert "value" in reply, reply
        return reply["value"]

    def refused(self, expression, kind="HubError"):
        """`message | hint`; the call must fail with our own error."""
        reply = self.ask(expression)
        assert reply.get("kind") == kind, reply
        assert (
            reply["exit_code"]
            == {"HubError": 6, "Unreachable": 6, "WeightsError": 4, "DiskError": 5, "UsageError": 2}[kind]
        )
        return f"{reply['message']} | {reply['hint']}"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def machine(hub, tmp_path):
    """`machine(token=…)` starts one more; all end with the test."""
    started = []

    def start(token="token-of-alice", home=None, **env):
        home = tmp_path / (home or f"home{len(started)}")
        started.append(Machine(hub.env(home, token, **env), tmp_path / f"log{len(started)}"))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "best")


def write_model(folder, source="timm/resnet18.a1_in1k", metadata=None, licence="apache-2.0"):
    folder.mkdir()
    spec = ModelSpec(
        "resnet18.a1_in1k",
        non_local=(NonLocal("res4", (0,)),),
        clip=ClipSpec(size=64),
        classes=("one hand", "b|c", "d", "e", "f", "<i>g"),
        num_outputs=6,
        source=source,
        licence=licence,
    )
    save_file({"fc.weight": torch.arange(600.0).view(6, 100)}, folder / "model.safetensors", metadata)
    (folder / "config.json").write_text(json.dumps(to_json(spec), indent=1))
    (folder / "metrics.json").write_text(json.dumps(FIGURES))
    return folder


def push(folder, repo="alice/waving", **more):
    return f"hub.push(Path({str(folder)!r}), {repo!r}, **{more!r})"


def push_space(folder, repo="alice/waving", **more):
    return f"hub.push_space(Path({str(folder)!r}), {repo!r}, **{more!r})"


def commits(hub, repo="alice/waving"):
    """Those after the one that every new repository has."""
    return hub.repos[repo].commits[1:]


def tree(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_push_makes_one_commit_of_exactly_four_files(hub, machine, model):
    (model / "notes.txt").write_text("stays here")
    done = machine().do(push(model))
    assert hub.repos["alice/waving"].private
    (commit,) = commits(hub)
    assert set(commit.files) == FILES | {".gitattributes"}
    for name in ("model.safetensors", "config.json", "metrics.json"):
        assert commit.files[name] == (model / name).read_bytes()
    sizes = {n: len(commit.files[n]) for n in FILES}
    assert done == {
        "repo": "alice/waving",
        "url": f"{hub.url}/alice/waving",
        "commit": commit.oid,
        "files": [{"path": f["path"], "bytes": sizes[f["path"]]} for f in done["files"]],
        "uploaded_bytes": sum(sizes.values()),
    }
    assert {f["path"] for f in done["files"]} == FILES


def test_readme_has_front_matter_and_names_the_repository(hub, machine, model):
    machine().do(push(model))
    text = hub.files("alice/waving")["README.md"].decode()
    _, block, body = text.split("---\n", 2)
    data = yaml.safe_load(block)
    assert data["library_name"] == "nlzoo" and data["pipeline_tag"] == "video-classification"
    assert data["base_model"] == "timm/resnet18.a1_in1k" and data["license"] == "apache-2.0"
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert [(m["type"], m["value"]) for m in metrics] == [("accuracy", 0.9), ("accuracy", 1.0)]
    assert 'nlzoo.load("alice/waving")' in body and "PATH" not in body
    assert "&lt;i&gt;g" in body


def test_a_second_push_sends_nothing(hub, machine, model):
    one = machine()
    first = one.do(push(model, "waving"))  # a bare name becomes the user's
    assert first["repo"] == "alice/waving" and first["uploaded_bytes"] > 0
    hub.calls.clear()
    second = one.do(push(model, "waving"))
    assert second == {**first, "uploaded_bytes": 0}
    assert hub.calls and not [c for c in hub.calls if not c.startswith("GET")]
    assert len(commits(hub)) == 1


def test_only_what_changed_is_sent_and_only_our_files_go(hub, machine, model):
    one = machine()
    one.do(push(model))
    repo = hub.repos["alice/waving"]
    repo.add({**repo.commits[-1].files, "LICENSE": b"theirs"}, "by hand")
    (model / "metrics.json").unlink()  # of the model before; it must not stand beside another one
    save_file({"fc.weight": torch.zeros(6, 100)}, model / "model.safetensors")
    done = one.do(push(model))
    assert set(hub.files("alice/waving")) == FILES - {"metrics.json"} | {".gitattributes", "LICENSE"}
    assert hub.files("alice/waving")["model.safetensors"] == (model / "model.safetensors").read_bytes()
    changed = ("model.safetensors", "README.md")  # the card had figures
    assert done["uploaded_bytes"] == sum(len(hub.files("alice/waving")[n]) for n in changed)
    assert len(commits(hub)) == 3


def test_pull_brings_the_same_bytes_to_another_machine(hub, machine, model, tmp_path):
    machine().do(push(model))
    other = machine()
    there = Path(other.do("download.pull('alice/waving')"))
    for name in ("model.safetensors", "config.json", "metrics.json"):
        assert (there / name).read_bytes() == (model / name).read_bytes()
    target = tmp_path / "weights" / "waving"
    pull_to = f"download.pull_to('alice/waving', Path({str(target)!r}))"
    other.do(pull_to)
    assert tree(target) == {n: hub.files("alice/waving")[n] for n in FILES}
    assert [p.name for p in target.parent.iterdir()] == ["waving"]  # nothing half-made beside it
    assert not any(p.is_symlink() for p in target.iterdir())
    other.do(pull_to)  # the same again is no conflict
    # what was pulled is what was pushed, so pushing it back is no news
    assert other.do(push(target))["uploaded_bytes"] == 0 and len(commits(hub)) == 1
    other.do(push(target, "alice/copy"))
    copy = hub.files("alice/copy")["README.md"].decode()
    assert 'nlzoo.load("alice/copy")' in copy and "alice/waving" not in copy and copy.count("library_name") == 1


def test_pull_to_never_overwrites_another_folder(hub, machine, model, tmp_path):
    one = machine()
    one.do(push(model))
    mine = write_model(tmp_path / "mine", source="another")
    before = tree(mine)
    words = one.refused(f"download.pull_to('alice/waving', Path({str(mine)!r}))", "DiskError")
    assert "exists and is not alice/waving" in words and "--name" in words
    assert tree(mine) == before


def test_pull_of_a_revision(hub, machine, model):
    one = machine()
    old = one.do(push(model))["commit"]
    save_file({"fc.weight": torch.ones(6, 100)}, model / "model.safetensors")
    new = one.do(push(model))["commit"]
    read = "(download.pull('alice/waving', {!r}) / 'model.safetensors').read_bytes().hex()"
    assert one.do(read.format(old)) == commits(hub)[0].files["model.safetensors"].hex()
    assert one.do(read.format(new)) == one.do(read.format(None)) == (model / "model.safetensors").read_bytes().hex()
    assert "there is no such revision: alice/waving@v9" in one.refused("download.pull('alice/waving', 'v9')")


@pytest.mark.parametrize("there, asked", [(False, True), (True, False)])
def test_visibility_is_never_changed_by_a_push(hub, machine, model, there, asked):
    hub.create("alice/waving", private=there)
    words = machine().refused(push(model, private=asked))
    assert ("is private" if there else "is public") in words and "nothing was committed" in words
    assert hub.repos["alice/waving"].private is there and commits(hub) == [] and hub.objects == {}


def test_a_public_push_is_public(hub, machine, model):
    machine().do(push(model, private=False))
    assert not hub.repos["alice/waving"].private
    assert Path(machine(token=None).do("download.pull('alice/waving')")).is_dir()


def test_dry_run_lists_what_a_push_sends_and_asks_nothing(hub, machine, model):
    one = machine()
    plan = one.do(push(model, dry_run=True))
    assert hub.calls == [] and hub.repos == {}
    assert plan["commit"] == "" and plan["uploaded_bytes"] == 0
    done = one.do(push(model))
    assert plan["files"] == done["files"] and plan["url"] == done["url"]
    assert machine(token=None).do(push(model, "waving", dry_run=True))["repo"] == "waving"


# --- Spaces


def test_a_space_is_one_commit_of_three_files_beside_the_model_of_its_name(hub, machine, model):
    one = machine()
    plan = one.do(push_space(model, dry_run=True))
    assert hub.calls == [] and plan["commit"] == ""
    one.do(push(model))
    done = one.do(push_space(model, "waving"))  # a bare name becomes the user's
    (commit,) = commits(hub, "spaces/alice/waving")
    assert set(commit.files) == {"app.py", "requirements.txt", "README.md", ".gitattributes"}
    assert hub.repos["spaces/alice/waving"].private and done["url"] == plan["url"] == f"{hub.url}/spaces/alice/waving"
    assert done["repo"] == "alice/waving" and done["commit"] == commit.oid and done["files"] == plan["files"]
    assert (
        done["uploaded_bytes"]
        == sum(f["bytes"] for f in done["files"])
        == sum(len(commit.files[f["path"]]) for f in done["files"])
    )
    assert set(hub.files("alice/waving")) == FILES | {".gitattributes"} and len(commits(hub)) == 1
    assert one.do(push_space(model))["uploaded_bytes"] == 0 and len(commits(hub, "spaces/alice/waving")) == 1


def test_what_is_in_a_space(hub, machine, model):
    machine().do(push_space(model))
    files = {name: text.decode() for name, text in hub.files("spaces/alice/waving").items()}
    data = yaml.safe_load(files["README.md"].split("---\n")[1])
    assert (
        data["sdk"] == "gradio"
        and data["app_file"] == "app.py"
        and data["models"] == ["alice/waving"]
        and data["license"] == "apache-2.0"
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert Version(data["python_version"]) in SpecifierSet(project["requires-python"])
    (needs,) = project["optional-dependencies"]["serve"]
    assert Version(data["sdk_version"]) in Requirement(needs).specifier
    assert Requirement(files["requirements.txt"].splitlines()[0]).name == "nlzoo"
    assert "commercial" not in files["README.md"]
    for name in {str(Path.home()), str(model), socket.gethostname(), "token-of-alice"}:
        assert not any(name in text for text in files.values()), name


def test_a_licence_against_commercial_use_is_said_in_the_space(hub, machine, tmp_path):
    machine().do(push_space(write_model(tmp_path / "m", licence="CC-BY-NC-4.0")))
    text = hub.files("spaces/alice/waving")["README.md"].decode()
    assert (
        "CC-BY-NC-4.0: no commercial use" in text
        and yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-nc-4.0"
    )


@pytest.mark.parametrize(
    "url, named",
    [
        ("https://example.org/me/nlzoo.git", True),
        ("https://me:secret@example.org/nlzoo", False),
        ("ssh://git@example.org/nlzoo", False),
        ("file:///home/me/nlzoo", False),
    ],
)
def test_a_space_asks_for_nlzoo_from_where_this_one_came(hub, machine, model, tmp_path, url, named):
    summary = tmp_path / "site" / "nlzoo-0.1.0.dist-info"
    summary.mkdir(parents=True)
    (summary / "METADATA").write_text("Metadata-Version: 2.1\nName: nlzoo\nVersion: 0.1.0\n")
    (summary / "direct_url.json").write_text(
        json.dumps({"url": url, "vcs_info": {"vcs": "git", "commit_id": "0a" * 20}})
    )
    one = machine()
    one.do(f"sys.path.insert(0, {str(summary.parent)!r})")
    one.do(push_space(model))
    line = hub.files("spaces/alice/waving")["requirements.txt"].decode().splitlines()[0]
    assert line == (f"nlzoo[serve] @ git+{url}@{'0a' * 20}" if named else f"nlzoo[serve]=={nlzoo.__version__}")


def test_an_app_of_somebodys_own_is_left_alone(hub, machine, model):
    one, space = machine(), "spaces/alice/waving"
    repo = hub.create(space, private=True)
    repo.add({"app.py": b"mine", "README.md": b"---\ntags:\n- mine\n---\n"}, "by hand")
    assert "the Space alice/waving holds an app of another kind" in one.refused(push_space(model))
    assert len(commits(hub, space)) == 1
    repo.add({"README.md": b"# as the Hub makes it", "metrics.json": b"theirs"}, "no app yet")
    one.do(push_space(model))
    assert hub.files(space)["metrics.json"] == b"theirs" and len(commits(hub, space)) == 3
    assert "the Space alice/waving is private" in one.refused(push_space(model, private=False))


def test_a_space_after_a_passing_fault_is_exactly_one_commit(hub, machine, model):
    one, space = machine(), "spaces/alice/waving"
    hub.fail(*CALLS["create"], drop="after")
    hub.fail(*CALLS["commit"], drop="after")
    one.do(push_space(model))
    assert all(f.times == 0 for f in hub.faults) and len(commits(hub, space)) == 1
    hub.fail(*CALLS["commit"], status=403)
    (model / "config.json").write_text((model / "config.json").read_text().replace("apache-2.0", "mit"))
    assert "did not allow this for the Space alice/waving" in one.refused(push_space(model))
    one.do(push_space(model))
    assert len(commits(hub, space)) == 2


# --- refusals


def test_wrong_or_missing_login(hub, machine, model):
    hub.create("alice/waving", private=True)
    wrong, nobody = machine(token="token-of-nobody"), machine(token=None)
    for expression in (push(model), push(model, "waving"), "download.pull('alice/waving')", "hub_client.whoami()"):
        words = wrong.refused(expression)
        assert "did not accept the login" in words and "hf auth login" in words and "token-of-nobody" not in words
    hub.calls.clear()
    assert "not logged in" in nobody.refused(push(model)) and hub.calls == []
    assert "not logged in" in nobody.refused("hub_client.whoami()")
    assert commits(hub) == []


def test_repositories_that_cannot_be_had(hub, machine, model):
    hub.create("alice/secret", private=True)
    bob, nobody = machine(token="token-of-bob"), machine(token=None)
    for who in (bob, nobody):
        for repo in ("alice/secret", "alice/missing"):
            assert f"{repo} is not on the Hub, or it is private" in who.refused(f"download.pull({repo!r})")
    assert "did not allow this for alice/secret" in bob.refused(push(model, "alice/secret"))
    assert "did not allow this for alice/new" in bob.refused(push(model, "alice/new"))
    assert "alice/new" not in hub.repos and commits(hub, "alice/secret") == []
    for name in ("a b", "a/b/c", "../x", "user/", ""):
        assert "is not a name for a model" in bob.refused(push(model, name))
    assert "is not a name for a model" in bob.refused("download.pull('a//b')")


def test_a_repository_that_is_no_nlzoo_model(hub, machine):
    one = machine()
    repo = hub.create("alice/text", private=True)
    repo.add({"README.md": b"# hello"}, "x")
    assert "no model.safetensors and no config.json" in one.refused("download.pull('alice/text')", "WeightsError")
    repo.add({"model.safetensors": b"x" * 10**6, "config.json": b'{"model_type": "bert"}'}, "y")
    hub.calls.clear()
    assert "is not an nlzoo model" in one.refused("download.pull('alice/text')", "WeightsError")
    assert hub.calls and not [c for c in hub.calls if "model.safetensors" in c]  # refused before the weights travel
    repo.add({"model.safetensors": b"x", "config.json": b'{"format": 1, "backbone": "../../x"}'}, "z")
    assert "config.json of alice/text was refused" in one.refused("download.pull('alice/text')", "WeightsError")


def test_folders_that_are_no_model(hub, machine, model, tmp_path):
    one = machine()
    assert "no model.safetensors and no config.json" in one.refused(push(tmp_path / "nowhere"), "WeightsError")
    (model / "config.json").write_text('{"format": 1}')
    assert "lacks 'backbone'" in one.refused(push(model), "WeightsError")
    (model / "config.json").write_text("{")
    assert "config.json could not be read as JSON" in one.refused(push(model), "WeightsError")
    shutil.rmtree(model)
    write_model(model)
    (model / "metrics.json").write_text("[1]")
    assert "not a JSON object" in one.refused(push(model), "WeightsError")
    (model / "metrics.json").write_text('{"top1": {"val": 0.5}}')
    assert "not a flat JSON object" in one.refused(push(model), "WeightsError")
    (model / "metrics.json").unlink()
    os.truncate(model / "model.safetensors", 60)
    assert "not a whole .safetensors file" in one.refused(push(model), "WeightsError")
    assert hub.calls == []


def leaks():
    home, host, user = str(Path.home()), socket.gethostname(), getpass.getuser()
    return {
        "home folder": (f"trained on {home}/videos", "a path of this machine"),
        "another's home": ("trained on /home/somebody/videos", "home folder"),
        "windows home": (r"trained on C:\Users\somebody\videos", "home folder"),
        "user name as a path": (f"trained on /data/{user}/videos", "user name"),
        "user name as an address": (f"ask {user}@example.org", "user name"),
        "host": (f"trained on {host} last night", "this machine's name"),
        "own token": ("use token-of-alice to get it", "access token"),
        "token": ("use hf_" + "A1b2C3d4" * 4, "access token"),
        "video": ("worst on IMG_0042.MP4", "the name of a video"),
        **{f"video {end}": (f"worst on clip_7{end}", "the name of a video") for end in sorted(VIDEO_EXTENSIONS)},
        "user name at the end of a path": (f"trained on /data/{user}", "user name"),
        "user name at the end of a sentence": (f"trained on videos/{user}.", "user name"),
        "root's home": ("trained on /root/videos", "/root"),
        "an address": ("trained on file:%2F%2F%2Fhome%2Fsomebody%2Fvideos", "home folder"),
        "html": ("trained on &#47;home&#47;somebody", "home folder"),
        "html in an address": ("trained on %26%2347%3Bhome%26%2347%3Bsomebody", "home folder"),
        "an address in html": ("trained on &percnt;2Fhome&#37;2Fsomebody", "home folder"),
        "key of a cloud": ("with AKIA" + "Q1W2" * 4, "access token"),
        "key of a chat": ("with xoxb-" + "12345-abc" * 2, "access token"),
        "private key": ("-----BEGIN OPENSSH PRIVATE KEY-----", "access token"),
        "password in an address": ("from https://somebody:secret@example.org/data", "access token"),
        "password in another": ("from postgresql://:secret@db/data", "access token"),
        "markdown": (r"worst on clip\_7\.mp4", "the name of a video"),
    }


@pytest.mark.parametrize("file", ["README.md", "config.json", "model.safetensors"])
def test_nothing_pushed_tells_where_it_was_made(hub, machine, tmp_path, file):
    one, cases = machine(), leaks()
    for number, (text, words) in enumerate(cases.values()):
        folder = write_model(
            tmp_path / f"model{number}",
            source=text if file == "config.json" else "timm/resnet18",
            metadata={"note": text} if file == "model.safetensors" else None,
        )
        if file == "README.md":
            (folder / file).write_text(f"# Mine\n\n{text}\n")
        said = one.refused(push(folder))
        assert said.startswith(f"{file} in {folder} contains ") and words in said, (text, said)
        assert "nothing was uploaded" in said
    assert number > 35 and hub.calls == []


def test_escapes_of_json_hide_nothing(hub, machine, tmp_path):
    one = machine()
    hidden = {
        r"\u002fhome\u002fsomebody\u002fx": "home folder",
        r"clip\u002emp4": "the name of a video",
        r"\/root\/x": "/root",
    }
    for number, (text, words) in enumerate(hidden.items()):
        folder = write_model(tmp_path / f"model{number}", source="SOURCE")
        config = folder / "config.json"
        config.write_text(config.read_text().replace("SOURCE", text))
        assert words in one.refused(push(folder)), text
    assert hub.calls == []


def test_words_that_only_look_like_leaks_are_pushed(hub, machine, model):
    """A class may have the machine's name, and a Hub name the user's."""
    host, user = socket.gethostname(), getpass.getuser()
    config = json.loads((model / "config.json").read_text())
    config["classes"][0] = host
    (model / "config.json").write_text(json.dumps(config))
    text = f"# Mine\n\n{host}. By https://huggingface.co/{user}/x, see home/videos, {user}/x.\n"
    (model / "README.md").write_text(text)
    machine().do(push(model))
    assert hub.files("alice/waving")["README.md"].decode().endswith(text)


def test_names(machine):
    one = machine()
    for name in ("user/name", "a/b", "User_1/my-model.v2"):
        assert one.do(f"download.looks_like_repo({name!r})") is True, name
    for name in (
        "name",
        "a/b/c",
        "./a",
        "../a",
        "/a/b",
        "~/a",
        "a/",
        "weights/x",
        "runs/x",
        "a/b.safetensors",
        "videos/a.mp4",
        "a\n/b",
        "a/b\n",
        "a//b",
        "a/b..c",
    ):
        assert one.do(f"download.looks_like_repo({name!r})") is False, name


def test_a_name_that_the_hub_refuses_is_refused_with_its_rule_and_a_name_that_would_do(hub, machine, model):
    one = machine()
    for name, rule, proposed in (
        ("a/b/c", "user/name", "b/c"),
        ("a--b", "'--'", "a-b"),
        ("alice/a..b", "'..'", "alice/a.b"),
        ("x.git", "end with '.git'", "x"),
        ("n" * 97, "at most 96 characters, and this has 97", "n" * 96),
        ("-x", "begin or end", "x"),
        ("alice/x.", "begin or end", "alice/x"),
        ("Übung (1)", "no 'Ü'", "Ubung-1"),
        ("ходьба", "no 'х'", "my-model"),
        ("alice/my model", "no ' '", "alice/my-model"),
        ("runs/waving", "a path of this machine", "waving"),
        ("alice/waving.mp4", "a path of this machine", "alice/waving"),
    ):
        words = one.refused(push(model, name, dry_run=True))
        assert rule in words and words.endswith(f"| for example {proposed}"), words
        assert one.do(push(model, proposed, dry_run=True))["repo"] == proposed
    for name in ("a", "_x", "A.b_c-9", "alice/_", "n" * 96):
        assert one.do(push(model, name, dry_run=True))["repo"] == name
    assert hub.calls == []


def test_a_push_to_a_branch_leaves_main_alone_and_a_tag_names_the_commit(hub, machine, model, tmp_path):
    one = machine()
    first = one.do(push(model, tag="v1"))
    (model / "README.md").write_text("the second\n")
    second = one.do(push(model, revision="next/try", tag="v2"))
    repo = hub.repos["alice/waving"]
    assert repo.tags == {"v1": first["commit"], "v2": second["commit"]}
    assert repo.commits[-1].oid == first["commit"] and repo.branches["next/try"][-1].oid == second["commit"]
    assert one.do(push(model, revision="next/try", tag="v2"))["uploaded_bytes"] == 0
    words = one.refused(push(model, tag="v1"))
    assert "has a tag 'v1' already" in words and len(commits(hub)) == 1
    for revision in ("v1", "next/try"):
        folder = tmp_path / revision.replace("/", "-")
        one.do(f"download.pull_to('alice/waving', Path({str(folder)!r}), {revision!r})")
        assert ("the second" in (folder / "README.md").read_text()) is (revision == "next/try")
    for name in ("../x", "a..b", "/x", "x/", "x.lock", "-x", "a b"):
        assert "is not a name for a branch or a tag" in one.refused(push(model, tag=name), "UsageError")
        assert "--revision" in one.refused(f"download.pull('alice/waving', {name!r})", "UsageError")


@pytest.mark.parametrize("call", ["/branch/", "/tag/", "/refs"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": "after"}])
def test_a_passing_fault_at_a_branch_or_tag_changes_nothing(hub, machine, model, call, fault):
    hub.fail("", call, **fault)
    made = machine().do(push(model, revision="next", tag="v1"))
    repo = hub.repos["alice/waving"]
    assert repo.tags == {"v1": made["commit"]} and [c.oid for c in repo.branches["next"][1:]] == [made["commit"]]
    assert len(repo.commits) == 1


# --- faults


CALLS = {
    "info": ("GET", "/api/models/"),
    "create": ("POST", "/api/repos/create"),
    "yaml": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "put": ("PUT", "/lfs/"),
    "commit": ("POST", "/commit/"),
}
PASSING = [{"status": 503}, {"status": 429}, {"drop": "before"}, {"drop": "after"}]
SLOW = ("preupload", "batch", "put")  # the client's own retry waits a second


@pytest.mark.parametrize("call", CALLS)
def test_a_passing_fault_ends_in_exactly_one_commit(hub, machine, model, call):
    one = machine()
    for number, fault in enumerate(PASSING[::2] if call in SLOW else PASSING):
        save_file({"fc.weight": torch.full((6, 100), float(number))}, model / "model.safetensors")  # bytes not seen yet
        repo = f"alice/case{number}"
        hub.fail(*CALLS[call], **fault)
        done = one.do(push(model, repo))
        assert hub.faults.pop().times == 0, "the fault was never met"
        (commit,) = commits(hub, repo)
        assert done["commit"] == commit.oid and set(commit.files) == FILES | {".gitattributes"}
        assert one.do(push(model, repo))["uploaded_bytes"] == 0 and len(commits(hub, repo)) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412])
def test_a_refused_commit_is_reported_and_can_be_made_later(hub, machine, model, status):
    one = machine()
    hub.fail("POST", "/commit/", status=status)
    assert f"injected {status}" in one.refused(push(model)) or status in (409, 412)
    assert commits(hub) == []
    one.do(push(model))
    assert len(commits(hub)) == 1


def test_retries_are_bounded(hub, machine, model):
    one = machine()
    hub.fail("POST", "/commit/", status=503, times=99)
    assert "a problem of its own" in one.refused(push(model), "Unreachable")
    assert len([c for c in hub.calls if "/commit/" in c]) == 4 and commits(hub) == []


def test_somebody_else_commits_meanwhile(hub, machine, model):
    one = machine()
    repo = hub.create("alice/waving", private=True)
    hub.fail("POST", "/commit/", meanwhile=lambda: repo.add({**repo.commits[-1].files, "x": b"y"}, "theirs"))
    assert "changed on the Hub during the push" in one.refused(push(model))
    assert [c.message for c in commits(hub)] == ["theirs"]
    one.do(push(model))
    assert len(commits(hub)) == 2 and hub.files("alice/waving")["x"] == b"y"


def test_a_hub_that_falls_silent_is_not_waited_for(hub, machine, model):
    one = machine()
    one.do("setattr(hub_client, 'TIMEOUT', 0.5)")
    hub.fail("POST", "/commit/", stall=10)  # the commit is made; nobody says so
    one.do(push(model))
    assert len(commits(hub)) == 1


def test_killed_while_committing(hub, machine, model):
    one, two = machine(), machine()
    hub.fail("POST", "/commit/", meanwhile=one.process.kill, stall=0.1)
    print(push(model), file=one.process.stdin, flush=True)
    one.process.wait(60)
    two.do(push(model))
    assert len(commits(hub)) == 1 and set(hub.files("alice/waving")) == FILES | {".gitattributes"}


def test_without_the_hub_what_was_pulled_serves(hub, machine, model, tmp_path):
    one = machine(home="kept")
    one.do(push(model))
    there = one.do("download.pull('alice/waving')")
    offline = machine(home="kept", HF_HUB_OFFLINE="1")
    assert offline.do("download.pull('alice/waving')") == there
    assert "offline mode is on" in offline.refused(push(model), "Unreachable")
    assert "offline mode is on" in offline.refused("download.pull('alice/other')", "Unreachable")
    hub.close()
    assert one.do("download.pull('alice/waving')") == there
    for expression in (
        "download.pull('alice/other')",
        push(model),
        "hub_client.whoami()",
        "hub_client.whoami(timeout=2)",
    ):
        assert "could not be reached" in one.refused(expression, "Unreachable")


def test_failures_while_pulling(hub, machine, model, tmp_path):
    machine().do(push(model))
    one = machine()
    hub.fail("GET", "/api/models/", drop="after")
    hub.fail("HEAD", "/config.json", status=500)
    assert Path(one.do("download.pull('alice/waving')")).is_dir()
    assert all(f.times == 0 for f in hub.faults)
    taken = tmp_path / "file"
    taken.write_text("")
    words = machine().refused(f"download.pull_to('alice/waving', Path({str(taken / 'x')!r}))", "DiskError")
    assert "could not be written" in words
    without_cache = machine(home="file/x")
    assert "could not be read or written" in without_cache.refused("download.pull('alice/waving')", "DiskError")


# --- a fault at every request


ONCE, ALWAYS = 1, 99
GARBAGE = (b"", b"<html>log in</html>", b"[]", b"{}", b"null", b'"x"', b"[[1]]", b"7", b'{"sha": 7}', b"[" * 9999)
HEADERS = (
    {"ETag": None, "X-Linked-Etag": None},
    {"ETag": '"../../../evil"', "X-Linked-Etag": None},
    {"ETag": '"' + "0" * 40 + '"', "X-Linked-Etag": None},
    {"X-Repo-Commit": None},
    {"X-Repo-Commit": "../../../evil"},
    {"X-Repo-Commit": "0" * 40},
    {"X-Linked-Size": "many"},
    {"X-Linked-Size": "-1"},
    {"Content-Length": "7"},
    {"Content-Length": "many"},
    {"Content-Length": "999999"},
)
FAULTS = [
    *({"status": status} for status in (400, 401, 403, 404, 409, 412, 416, 418, 429, 500, 502, 503, 504)),
    *({"drop": when} for when in ("before", "after")),
    *({"body": body} for body in GARBAGE),
    *({"headers": headers} for headers in HEADERS),
    {"status": 302, "headers": {"Location": "http://127.0.0.1:9/elsewhere"}},
    {"stall": 0.5},
    {"drip": 0.05},
    {"drip_body": 0.05},
]
PULLS, PUSHES = 9, 10  # requests of a first pull; of a first push
QUICK = "(setattr(hub_client, 'TIMEOUT', 0.2), setattr(hub_client.time, 'sleep', lambda seconds: None))[0]"


def cases(requests, count):
    """`(request, fault, times)`: all of them, or `count` spread over them."""
    every = [(at, fault, times) for at in range(requests) for fault in FAULTS for times in (ONCE, ALWAYS)]
    return every if count is None else every[:: len(every) // count]


def nothing_but_ours(reply):
    """A success, or our own error with the Hub's exit code, or the disk's."""
    assert "value" in reply or reply["exit_code"] in (4, 6), reply
    assert "value" in reply or (reply["message"] and "Traceback" not in reply["message"]), reply
    return "value" in reply


FEW_OR_ALL = pytest.mark.parametrize("count", [30, pytest.param(None, marks=pytest.mark.torture)])


@FEW_OR_ALL
def test_a_pull_is_whole_or_not_there_whatever_the_hub_answers(hub, machine, model, tmp_path, count):
    machine().do(push(model))
    one, target = machine(home="cache"), tmp_path / "weights" / "waving"
    one.do(QUICK)
    pull_to = f"download.pull_to('alice/waving', Path({str(target)!r}))"
    hub.calls.clear()
    one.do(pull_to)
    assert len(hub.calls) == PULLS
    whole, outcomes = {name: hub.files("alice/waving")[name] for name in FILES}, set()
    tried = cases(PULLS, count)
    for at, fault, times in tried:
        shutil.rmtree(target)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        hub.fail("", "", after=at, times=times, **fault)
        done = nothing_but_ours(one.ask(pull_to))
        outcomes.add(done)
        hub.faults.clear()
        assert target.exists() is done, (at, fault, times)
        assert not done or tree(target) == whole, (at, fault, times)
        assert Path(one.do(pull_to)) == target and tree(target) == whole, (at, fault, times)  # from a healthy Hub
    assert outcomes == {True, False} and len(tried) >= (count or 2 * PULLS * len(FAULTS))
    assert not list(tmp_path.rglob("*evil*"))


@FEW_OR_ALL
def test_a_push_is_exactly_one_commit_whatever_the_hub_answers(hub, machine, model, count):
    one = machine()
    one.do(QUICK)
    hub.calls.clear()
    one.do(push(model, "alice/first"))
    assert len(hub.calls) == PUSHES
    for number, (at, fault, times) in enumerate(cases(PUSHES, count)):
        save_file({"fc.weight": torch.full((6, 100), float(number))}, model / "model.safetensors")  # bytes not seen yet
        repo = f"alice/case{number}"
        hub.fail("", "", after=at, times=times, **fault)
        nothing_but_ours(one.ask(push(model, repo)))
        hub.faults.clear()
        made = commits(hub, repo) if repo in hub.repos else []
        assert len(made) <= 1, (at, fault, times)
        one.do(push(model, repo))
        (commit,) = commits(hub, repo)
        assert hub.repos[repo].private and set(commit.files) == FILES | {".gitattributes"}, (at, fault, times)
        assert commit.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert number + 1 >= (count or 2 * PUSHES * len(FAULTS))


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_listing_that_fails_after_the_config_leaves_nothing(hub, machine, model, tmp_path, status):
    machine().do(push(model))
    one, target = machine(), tmp_path / "weights" / "waving"
    one.do(QUICK)
    pull_to = f"download.pull_to('alice/waving', Path({str(target)!r}))"
    hub.fail("", "", after=3, status=status, times=ALWAYS)
    one.refused(pull_to, "Unreachable" if status == 500 else "HubError")
    assert not target.exists()
    hub.faults.clear()
    one.do(pull_to)
    assert tree(target) == {name: hub.files("alice/waving")[name] for name in FILES}


@pytest.mark.parametrize("name", sorted(FILES))
def test_changed_bytes_of_the_right_size_are_refused(hub, machine, model, name):
    """On the way, and in the cache, with the Hub and without it."""
    machine().do(push(model))
    right = hub.files("alice/waving")[name]
    changed = right[:-1] + bytes([right[-1] ^ 1])
    one = machine(home="kept")
    one.do(QUICK)
    hub.fail("GET", f"/{name}", headers=headers_of(changed), body=changed, times=ALWAYS)
    words = one.refused("download.pull('alice/waving')")
    assert f"{name} of alice/waving is not what the Hub lists" in words
    hub.faults.clear()
    file = Path(one.do("download.pull('alice/waving')")) / name
    assert file.read_bytes() == right
    file.resolve().write_bytes(changed)
    offline = machine(home="kept", HF_HUB_OFFLINE="1")
    assert "offline mode is on" in offline.refused("download.pull('alice/waving')", "Unreachable")
    assert (Path(one.do("download.pull('alice/waving')")) / name).read_bytes() == right  # fetched again
    assert (Path(offline.do("download.pull('alice/waving')")) / name).read_bytes() == right


def headers_of(content):
    return {"Content-Length": str(len(content)), "Content-Type": "application/octet-stream"}


def test_what_is_too_large_is_not_read(hub, machine, model):
    """Listed as large, or larger than it is listed."""
    machine().do(push(model))
    repo = hub.repos["alice/waving"]
    for name in ("config.json", "README.md", "metrics.json"):
        repo.add({**commits(hub)[0].files, name: b" " * (20 << 20)}, "large")
        hub.calls.clear()
        words = machine().refused("download.pull('alice/waving')", "WeightsError")
        assert f"{name} of alice/waving has {20 << 20} bytes; at most {16 << 20} are read" in words
        assert not [call for call in hub.calls if "/resolve/" in call]
    repo.add(commits(hub)[0].files, "as it was")
    hub.fail("GET", "/config.json", body=b" " * (60 << 20), times=ALWAYS)
    one = machine()
    before = one.do(PEAK)
    words = one.refused("download.pull('alice/waving')", "Unreachable")
    assert "about alice/waving was not understood (Consistency check failed: file should be of size" in words
    assert one.do(PEAK) - before < 40 << 20


PEAK = "__import__('resource').getrusage(__import__('resource').RUSAGE_SELF).ru_maxrss * 1024"


def test_pull_and_load_agree_on_a_config(hub, machine, model, tmp_path):
    """Twice the same key, UTF-16, a byte order mark: other readers read other things, so none is accepted by any."""
    machine().do(push(model))
    one, repo = machine(), hub.repos["alice/waving"]
    text = (model / "config.json").read_text()
    twice = text.replace('"num_outputs": 6', '"num_outputs": 6, "num_outputs": 6')
    nested = text.replace('"size": 64', '"size": 64, "size": 64')
    for number, content in enumerate(
        (twice.encode(), nested.encode(), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode())
    ):
        repo.add({**commits(hub)[0].files, "config.json": content}, "odd")
        pulled = one.refused("download.pull('alice/waving')", "WeightsError")
        (model / "config.json").write_bytes(content)
        loaded = one.refused(f"download.load({str(model)!r})", "WeightsError")
        pushed = one.refused(push(model, f"alice/odd{number}"), "WeightsError")
        reasons = {re.search(r"could not be read[^|]*", words)[0] for words in (pulled, loaded, pushed)}
        assert len(reasons) == 1 and (number > 1 or "the same key twice" in reasons.pop()), reasons


def test_the_weights_of_a_backbone(hub, machine):
    """timm's repositories: fetched once, compared, then from the cache; fetched again where the cache is damaged."""
    name, content = "timm/resnet18.a1_in1k", bytes(range(256)) * 40
    hub.create(name, private=False).add({"model.safetensors": content, "README.md": b"x"}, "timm's")
    hub.create("timm/empty", private=False)
    one, fetch = machine(), f"download.backbone_weights({name!r})"
    one.do(QUICK)
    hub.fail("GET", "/model.safetensors", headers=headers_of(content), body=content[::-1], times=ALWAYS)
    assert "model.safetensors of timm/resnet18.a1_in1k is not what the Hub lists" in one.refused(fetch)
    hub.faults.clear()
    file = Path(one.do(fetch))
    assert file.read_bytes() == content and hub.calls
    hub.calls.clear()
    assert one.do(fetch) == str(file) and hub.calls == []
    file.resolve().write_bytes(content[::-1])
    assert Path(one.do(fetch)).read_bytes() == content and hub.calls
    assert "timm/empty on the Hub has no model.safetensors" in one.refused("download.backbone_weights('timm/empty')")


def test_a_login_that_is_answered_with_anything(hub, machine):
    one = machine()
    one.do(QUICK)
    for body in (*GARBAGE, b'{"name": 7}', b'{"name": null}', b'{"name": ["alice"]}'):
        hub.fail("GET", "/api/whoami-v2", body=body, times=ALWAYS)
        assert "the Hub's answer about the login was not understood" in one.refused(
            "hub_client.whoami()", "Unreachable"
        )
        hub.faults.clear()


def test_a_push_of_an_unfinished_run_says_so(hub, model, tmp_path):
    run = tmp_path / "runs" / "waving"
    run.mkdir(parents=True)
    model.rename(run / "best")
    (run / "videos.csv").write_text("path,label\n")
    (run / "config.json").write_text("{}")
    command = [sys.executable, "-m", "nlzoo", "push", "waving", "--dry-run"]
    env = hub.env(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}

    def warnings():
        done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)
        assert done.returncode == 0 and "nothing was sent" in done.stdout, done.stderr
        return [line for line in done.stderr.splitlines() if line.startswith("warning: ")]

    assert warnings() == ["warning: the run runs/waving is unfinished: this is its best model so far"]
    (run / "result.json").write_text("{}")
    assert warnings() == [] and hub.calls == []
    (run / "result.json").unlink()
    config = json.loads((run / "best/config.json").read_text()) | {"classes": []}
    (run / "best/config.json").write_text(json.dumps(config))
    assert len(warnings()) == 2 and "has never been trained on videos" in warnings()[1]


# --- patience


def test_a_silent_hub_is_given_up_after_four_tries_of_any_request(hub, machine, model):
    """The client's own tries are counted with ours; what is waited for is said."""
    machine().do(push(model))
    one = machine()
    one.do(QUICK)
    for call in ("info", "head", "file"):
        method, pattern = {"info": CALLS["info"], "head": ("HEAD", "/resolve/"), "file": ("GET", "/resolve/")}[call]
        hub.fail(method, pattern, stall=0.6, times=ALWAYS)
        hub.calls.clear()
        one.refused("download.pull('alice/waving')", "Unreachable")
        asked = [c for c in hub.calls if c.startswith(f"{method} ") and pattern in c]
        assert 1 <= len(asked) <= 4 and len(set(asked)) == 1, hub.calls
        hub.faults.clear()
    for number, call in enumerate(CALLS):
        save_file({"fc.weight": torch.full((6, 100), float(number))}, model / "model.safetensors")  # bytes not seen yet
        hub.fail(*CALLS[call], stall=0.6, times=ALWAYS)
        hub.calls.clear()
        one.refused(push(model, f"alice/{call}"), "Unreachable")
        assert 1 <= len([c for c in hub.calls if c.startswith(CALLS[call][0]) and CALLS[call][1] in c]) <= 4, hub.calls
        hub.faults.clear()
    assert "the Hub does not answer about alice/waving" in one.log.read_text()


@pytest.mark.parametrize("drops", ["drip", "drip_body"])
def test_a_hub_that_answers_drop_by_drop_is_given_up_like_a_silent_one(hub, machine, model, drops):
    """Each byte came within the time that is waited for one, so that nothing ended it."""
    machine().do(push(model))
    one = machine()
    one.do(QUICK)
    for method, pattern in (CALLS["info"], ("GET", "/resolve/"), *([("HEAD", "/resolve/")] if drops == "drip" else [])):
        hub.fail(method, pattern, **{drops: 0.05}, times=ALWAYS)
        hub.calls.clear()
        one.refused("download.pull('alice/waving')", "Unreachable")
        assert 1 <= len([c for c in hub.calls if c.startswith(f"{method} ") and pattern in c]) <= 4, hub.calls
        hub.faults.clear()
    save_file({"fc.weight": torch.zeros(6, 100)}, model / "model.safetensors")
    hub.fail(*CALLS["batch"], **{drops: 0.05}, times=ALWAYS)
    one.refused(push(model), "Unreachable")
    assert "the Hub does not answer about alice/waving" in one.log.read_text()
    hub.faults.clear()
    one.do(push(model))


def test_two_minutes_at_most(machine):
    assert machine().do("4 * hub_client.TIMEOUT + 7") <= 120


# --- who may see it, and what a token is


@pytest.mark.parametrize("call", ["preupload", "batch", "put"])
def test_a_repository_that_turns_public_meanwhile_gets_no_commit(hub, machine, model, call):
    def publish():
        hub.repos["alice/waving"].private = False

    one = machine()
    hub.fail(*CALLS[call], meanwhile=publish)
    assert "is public on the Hub; nothing was committed" in one.refused(push(model))
    assert commits(hub) == []


def test_a_repository_that_turns_public_with_the_commit_is_told(hub, machine, model):
    def publish():
        hub.repos["alice/waving"].private = False

    hub.fail(*CALLS["commit"], meanwhile=publish)
    words = machine().refused(push(model))
    assert "alice/waving was made public during the push" in words and commits(hub)[0].oid in words


def test_a_refused_read_does_not_advise_a_token_that_may_write(hub, machine, model):
    machine().do(push(model))
    one = machine()
    hub.fail("GET", "/api/models/", status=403)
    assert "take a token that may read there" in one.refused("download.pull('alice/waving')")
    hub.fail("POST", "/commit/", status=403)
    assert "take a token that may write there" in one.refused(push(model, "alice/other"))


@pytest.mark.parametrize("token", ["t\u00f6ken", "token of alice", "token\u200b", "t\u4e16"])
def test_a_token_that_is_none_is_told_at_once(hub, machine, model, token):
    one = machine(token=token)
    for expression in (push(model), "download.pull('alice/waving')", "hub_client.whoami()"):
        words = one.refused(expression)
        assert "holds a character that no token has" in words and "hf auth login" in words and token not in words
    assert hub.calls == []


def test_the_server_can_be_started_by_hand():
    command = [sys.executable, str(ROOT / "tests/hub_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", process.stdout.readline())
        process.terminate()


def test_push_to_transformers_is_a_repository_of_its_own(hub, machine, tmp_path):
    """The files of the export, a card that says transformers; no mixing with the model as nlzoo has it."""
    net = nlzoo.build(ModelSpec("tiny", clip=ClipSpec(4, None, 32), classes=("a", "b|c"), num_outputs=2))
    folder = save_model(tmp_path / "small", net, FIGURES)
    alice = machine()
    done = alice.do(push(folder, "alice/hf", to="transformers"))
    (commit,) = commits(hub, "alice/hf")
    assert (
        set(commit.files)
        == {*TRANSFORMERS_FILES, ".gitattributes"}
        == {f["path"] for f in done["files"]} | {".gitattributes"}
    )
    _, block, body = commit.files["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(block)
    assert data["library_name"] == "transformers" and "nlzoo" in data["tags"] and data["model-index"]
    assert 'model="alice/hf", trust_remote_code=True' in body and "nlzoo.load" not in body
    config = json.loads(commit.files["config.json"])
    assert config["id2label"] == {"0": "a", "1": "b|c"} and "AutoModelForVideoClassification" in config["auto_map"]
    again = alice.do(push(folder, "alice/hf", to="transformers"))
    assert again["uploaded_bytes"] == 0 and len(commits(hub, "alice/hf")) == 1
    assert "holds a model of transformers" in alice.refused(push(folder, "alice/hf"))
    alice.do(push(folder, "alice/small"))
    assert "holds a model of nlzoo" in alice.refused(push(folder, "alice/small", to="transformers"))
