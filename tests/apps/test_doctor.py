"""The doctor on a sound machine, and on one where everything it looks for is wrong.

Each machine is a process of its own, since what is broken is what gets imported.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from hub_server import HubServer

from nlzoo.apps import doctor

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import json
from nlzoo.apps import doctor
{first}
print(json.dumps([vars(f) for f in {what}]))
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def ask(env, what="doctor.examine()", first="", path=(), cwd=None):
    """The findings by name, from a fresh process that prints nothing else."""
    env = env | {"PYTHONPATH": ":".join(map(str, (*path, ROOT)))}
    code = ASK.format(what=what, first=first)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(f["fix"] for f in found if f["ok"] is False), found
    assert all(f["value"] for f in found)
    return {f["name"]: f for f in found}


def test_a_sound_machine(hub, tmp_path):
    found = ask(hub.env(tmp_path / "home"), cwd=tmp_path)
    expected = {
        "nlzoo",
        "python",
        "torch",
        "timm",
        "huggingface-hub",
        "timm imports",
        "device",
        "bf16 conv3d",
        "disk, working folder",
        "write, working folder",
        "disk, hub cache",
        "write, hub cache",
        "hub login",
    }
    assert expected <= set(found)
    assert found["hub login"]["ok"] and found["hub login"]["value"] == "alice"
    for name in ("torch", "timm", "timm imports", "bf16 conv3d", "write, working folder", "write, hub cache"):
        assert found[name]["ok"], found[name]
    assert found["torch"]["value"] == torch.__version__
    assert ("CPU" in found["device"]["value"]) is not torch.cuda.is_available()
    assert [n for n in found if n.startswith("decoder ")], "no decoder was reported"
    assert list(tmp_path.iterdir()) == [], "the doctor leaves nothing behind"


def distribution(folder, name, version, *needs):
    """What pip leaves of an installed package, as far as its metadata goes."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
def test_a_machine_where_everything_is_wrong(hub, tmp_path):
    distribution(tmp_path, "nlzoo", "9.9", "torch>=99", "no-such-package>=1,<2", "not-here; extra == 'test'", "timm")
    distribution(tmp_path, "decord", "0.6.0")
    distribution(tmp_path, "decord2", "3.4.0")
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator timm::broken does not exist')")
    (tmp_path / "av.py").write_text("raise ImportError('libavcodec.so.99: cannot open')")
    found = ask(
        hub.env(tmp_path / "home", token="token-of-nobody"),
        path=[tmp_path],
        cwd="/proc",
        first="doctor.LOW_DISK = 1e30",
    )
    wrong = {
        "torch": ">=99",
        "no-such-package": "not installed",
        "decord": "over one another",
        "timm imports": "timm::broken",
        "decoders": "libavcodec.so.99",
        "write, working folder": "no: ",
        "disk, working folder": "free",
        "disk, hub cache": "free",
        "hub login": "did not accept",
    }
    for name, words in wrong.items():
        assert found[name]["ok"] is False and words in found[name]["value"], found.get(name)
    assert "decord2" in found["decord"]["fix"] and "hf auth login" in found["hub login"]["fix"]
    assert found["no-such-package"]["fix"] == "pip install 'no-such-package<2,>=1'"
    assert found["nlzoo"]["value"] == "9.9" and found["timm"]["ok"] and "not-here" not in found


def test_hub_login_in_every_state(hub, tmp_path):
    def login(**env):
        return ask(hub.env(tmp_path / "home", **env), what="doctor.login()")["hub login"]

    nobody = login(token=None)
    assert nobody["ok"] is None and nobody["fix"] == "hf auth login"
    offline = login(HF_HUB_OFFLINE="1")
    assert offline["ok"] is None and "offline mode is on" in offline["value"]
    with HubServer() as gone:
        url = gone.url
    away = login(HF_ENDPOINT=url)
    assert away["ok"] is None and "could not be reached" in away["value"]


def test_a_hub_that_says_nothing_is_not_waited_for(hub, tmp_path):
    hub.fail("GET", "/api/whoami-v2", stall=20)
    found = ask(hub.env(tmp_path / "home"), what="doctor.login()", first="doctor.HUB_SECONDS = 0.3")
    assert found["hub login"]["ok"] is None


@pytest.mark.parametrize("factor", [1, 1.05, float("nan")])
def test_bf16_that_does_not_agree_is_found(factor, monkeypatch):
    right = torch.nn.functional.conv3d

    def conv3d(x, *rest, **more):
        return right(x, *rest, **more) * (factor if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(torch.nn.functional, "conv3d", conv3d)
    (found,) = doctor.bf16()
    assert found.ok is (factor == 1) and bool(found.fix) is not found.ok


def test_it_needs_only_what_is_installed():
    """The names it falls back on where nlzoo is not installed are those that the package needs."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {Requirement(text).name for text in project["dependencies"]}
    needed |= {f"{Requirement(text).name}; extra == '{extra}'" for extra in doctor.EXTRAS for text in extras[extra]}
    assert set(doctor.PACKAGES) == needed and set(doctor.EXTRAS) == set(extras) - {"test"}


def test_extras_are_notes_where_they_are_missing(hub, tmp_path):
    needs = ("no-such-a>=1; extra == 'serve'", "no-such-b; extra == 'test'", "torch>=99; extra == 'multi'")
    distribution(tmp_path, "nlzoo", "9.9", *needs, "rich>=13; extra == 'parquet'")
    found = ask(hub.env(tmp_path / "home"), what="doctor.versions()", path=[tmp_path])
    assert set(found) == {"nlzoo", "python", "no-such-a", "torch", "rich"}
    missing = {"name": "no-such-a", "ok": None, "value": "not installed; nlzoo serve needs it"}
    assert found["no-such-a"] == {**missing, "fix": "pip install 'nlzoo[serve]'"}
    assert found["torch"]["ok"] is False and found["torch"]["fix"] == "pip install 'torch>=99'" and found["rich"]["ok"]
