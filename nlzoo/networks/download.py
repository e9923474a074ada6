"""Models of the Hugging Face Hub on this machine: `locate`, `load`, `pull`.

Four named files travel, never code, and each is compared with the hash that the Hub lists before it is read.
"""

import contextlib
import functools
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub  # imports its parts when they are used

from ..core import files
from ..core.errors import DiskError, HubError, UsageError, WeightsError
from ..core.model_spec import from_json, parse_name
from ..core.text import did_you_mean, nearest, printable
from . import pretrained, zoo

if TYPE_CHECKING:  # what asks the Hub imports its client, and `load` torch, when they are called: names need neither
    from .hub_client import RemoteFile
    from .network import Network

FILES = ("model.safetensors", "config.json", "README.md", "metrics.json")  # of a model: all that is pushed or pulled
NEEDED = FILES[:2]
MAX_WEIGHTS = 8 << 30  # bytes; the largest network that nlzoo builds has less than half
_WEIGHTS = (".pth", ".pyth", ".pt", ".safetensors", ".pkl", ".ckpt")  # endings of files of weights
_ORDER = (*FILES[1:], FILES[0])  # of fetching: where the weights are, all is; and they may be large


def looks_like_repo(name: str) -> bool:
    """Whether `name` has the form `user/name`; ask only once no folder of that name is found. No network."""
    part = r"\w(?:[\w.\-]{0,94}\w)?"
    ending = os.path.splitext(name)[1].lower()
    local = name.startswith(("weights/", "runs/")) or "--" in name or ".." in name
    local = local or ending in {".git", ".safetensors", ".pth", ".pt", ".json", *files.VIDEO_EXTENSIONS}
    return not local and re.fullmatch(f"{part}/{part}", name, re.ASCII) is not None


def refuse_revision(name: str, option: str = "--revision") -> None:
    """Raises `UsageError` for what git takes for no branch, tag or commit."""
    odd = any(part in name for part in ("..", "//", "/.")) or name.endswith(("/", ".", ".lock"))
    if odd or not re.fullmatch(r"\w[\w./\-]{0,199}", name, re.ASCII):
        raise UsageError(
            f"{option} {printable(name)!r} is not a name for a branch or a tag",
            f"of letters, digits, '-', '_', '.' and '/', for example {option} v1.0",
        )


def locate(name: str) -> Path:
    """The model folder that a user's word means: one that is here (`zoo.find`), or `user/name` fetched from the Hub.

    Raises as `refuse_unknown` and `pull`.
    """
    refuse_unknown(name)
    return zoo.find(name) or pull(name)


def refuse_unknown(name: str) -> None:
    """Raises `UsageError` for a name that is neither a model here nor `user/name`. The Hub is not asked."""
    if zoo.find(name) is None and (Path(name).exists() or not looks_like_repo(name)):
        raise UsageError(f"there is no model {name!r} here, and it is not user/name on the Hub", _what_was_meant(name))


def names_model(word: str) -> bool:
    """Whether a user's word means a model or run that is here, a file of one, or a network that could be made."""
    path = Path(word)
    if path.is_file():
        return path.suffix.lower() in _WEIGHTS or (path.name in FILES and zoo.is_model(path.parent))
    if path.exists():
        return zoo.is_run(path) or any(map(zoo.is_model, (path, path / "best")))
    if zoo.find(word) or zoo.is_run(zoo.RUNS / word):
        return True
    with contextlib.suppress(UsageError):  # of such a name, but not possible
        return any(word in names for names in _names().values()) or parse_name(word) is not None
    return True


@functools.cache
def _names() -> dict[str, list[str]]:
    """Of networks that a command makes, by the command."""
    backbones = [backbone.name for backbone in pretrained.backbones()]
    plain = dict.fromkeys(name.partition(".")[0] for name in backbones)
    return {
        "import": [model.name for model in pretrained.known()],
        "inflate": [*plain, *backbones, *zoo.EMBEDDED],
    }


def _repo_in_address(name: str) -> str:
    match = re.match(r"https?:/{1,2}(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s]+/[^/\s]+)", name)
    return match[1] if match else ""


def what_repo_was_meant(name: str) -> str:
    """The hint for a text that should be `user/name`."""
    if repo := _repo_in_address(name):
        return f"give it as {repo}"
    if zoo.find(name):
        return f"{printable(name)} is here already"
    return "for example: nlzoo pull alice/gestures"


def _what_was_meant(name: str) -> str:
    """The hint for a name that is no model."""
    if repo := _repo_in_address(name):
        return f"give it as {repo}"
    path = Path(name)
    for run in (path, path.parent, zoo.RUNS / name):
        if zoo.is_unfinished(run):
            return f"the run {printable(run)} is unfinished and has no model yet; nlzoo finetune --resume continues it"
    if path.is_file() and zoo.is_model(path.parent):
        return f"give its folder: {printable(path.parent)}"
    if path.is_file() and path.suffix.lower() in _WEIGHTS:
        return "nlzoo import makes a model folder of a weights file; nlzoo inflate --weights one of a 2-D network's"
    here = [folder.name for folder in (*zoo.models(), *zoo.runs(), *zoo.unfinished_runs())]
    return did_you_mean(path.name, here, _what_could_be_made(name))


def _what_could_be_made(name: str) -> str:
    """The hint for the name of a network that is not here yet, or for one near to such."""
    if parse_name(name):
        return f"nlzoo inflate {name} makes a model of that name"
    for command, names in _names().items():
        if near := nearest(name, names, 1):
            return f"nlzoo {command} {near[0]} makes a model of that name"
    for network in nearest(name, zoo.image_networks(), 1, cutoff=0.85):
        trained = f"; nlzoo finetune VIDEOS --from {network} trains it" if zoo.is_frame_network(network) else ""
        return f"nlzoo probe {network} VIDEOS takes that 2-D network as it is{trained}"
    return "nlzoo list shows the models that are here"


def backbone_weights(repo: str) -> Path:
    """timm's `model.safetensors` of a 2-D backbone, from the cache or fetched into it (timm's own place).

    The cache is asked first. `torchvision/NAME` is one of the list that torchvision publishes. Raises `HubError`.
    """
    for backbone in pretrained.backbones():
        if backbone.hash and repo == f"{backbone.by}/{backbone.name}":
            return pretrained.fetch(backbone)[0]
    from . import hub_client

    cached = huggingface_hub.try_to_load_from_cache(repo, FILES[0])
    if isinstance(cached, str) and _is_as_fetched(Path(cached)):
        return Path(cached)
    state = hub_client.repo_state(hub_client.Repo(repo), None, FILES[:1])
    if not state.files:
        raise HubError(f"{repo} on the Hub has no {FILES[0]}", "choose another backbone")
    path = _fetch(repo, FILES[0], state.commit, state.files[FILES[0]])
    _remember(path.parent, "main")
    return path


def load(name: str) -> "Network":
    """The network of a model folder, a run, a name in weights/ or runs/, or `user/name` on the Hub.

    On the CPU, float32, in eval mode; `(B, 3, T, H, W)` normalised clips to `(B, classes)` logits. Its `spec` says
    which clips it wants and what its outputs are. Raises as `locate`, and `WeightsError`.
    """
    from . import checkpoint

    return checkpoint.load_model(locate(str(name)))


def pull(repo: str, revision: str | None = None) -> Path:
    """The model `repo` in the Hub's cache on this machine, fetched as far as it is not there yet; the folder.

    When the Hub cannot be reached, the last model that was fetched whole serves. Raises as `refuse_revision`, and
    `HubError`, `WeightsError` for a repository that is not an nlzoo model, `DiskError`.
    """
    from . import hub_client

    refuse_revision(revision or hub_client.MAIN)
    try:
        state = hub_client.repo_state(hub_client.Repo(repo), revision, FILES)
    except hub_client.Unreachable:
        if folder := _cached(repo, revision or "main"):
            return folder
        raise
    _check_listing(state.files, repo)
    for name in _ORDER:
        if name in state.files:
            path = _fetch(repo, name, state.commit, state.files[name])
            if name == "config.json":
                _check_config(path, repo)  # before the weights
    for name, file in state.files.items():
        if name != FILES[0] and not hub_client.ask(repo, partial(file.is_same, path.with_name(name))):
            raise _changed(name, repo)  # by a later file, which the Hub gave the same name in the cache
    _remember(path.parent, revision or "main")
    return path.parent


def _check_listing(listed: dict[str, "RemoteFile"], repo: str) -> None:
    missing = [n for n in NEEDED if n not in listed]
    if missing:
        raise WeightsError(f"{repo} on the Hub is not an nlzoo model: it has no {' and no '.join(missing)}")
    for name, file in listed.items():
        most = MAX_WEIGHTS if name == FILES[0] else files.MAX_CONFIG
        if file.size > most:
            raise WeightsError(f"{name} of {repo} has {file.size} bytes; at most {most} are read")


def _fetch(repo: str, name: str, commit: str, listed: "RemoteFile") -> Path:
    """A file in the cache that has the hash that the Hub lists. One that was damaged there is fetched again."""

    from . import hub_client

    def fetch() -> Path | None:
        path = Path(hub_client.client().hf_hub_download(repo, name, revision=commit))
        if path.parent.name == commit and listed.is_same(path):
            return path
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        return None

    path = hub_client.ask(repo, fetch) or hub_client.ask(repo, fetch)
    if path is None:
        raise _changed(name, repo)
    return path


def _changed(name: str, repo: str) -> HubError:
    return HubError(
        f"{name} of {repo} is not what the Hub lists: its size or hash is another",
        "try again; if it stays so, ask who pushed it to push it again",
    )


def _check_config(file: Path, repo: str) -> None:
    data = files.read_json(file)
    if "format" not in data:
        raise WeightsError(f"{repo} on the Hub is not an nlzoo model: its config.json is another program's")
    from_json(data, f"config.json of {repo}")


def _remember(snapshot: Path, revision: str) -> None:
    """Writes which commit a whole model has, where the client looks for it without the Hub."""
    reference = snapshot.parents[1] / "refs" / revision
    if revision != snapshot.name:
        with contextlib.suppress(OSError, DiskError):  # of a cache that cannot be written
            reference.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(reference, snapshot.name)


def _cached(repo: str, revision: str) -> Path | None:
    """The whole model as an earlier pull left it in the cache, or None."""
    cached = [huggingface_hub.try_to_load_from_cache(repo, name, revision=revision) for name in FILES]
    paths = [Path(path) for path in cached if isinstance(path, str)]
    if not {path.name for path in paths}.issuperset(NEEDED):
        return None
    return paths[0].parent if all(map(_is_as_fetched, paths)) else None


def _is_as_fetched(path: Path) -> bool:
    """Whether a file in the cache has the bytes that came; they are named by their hash, where there are links."""
    if not path.is_symlink():
        return True
    name = Path(os.readlink(path)).name
    from .hub_client import RemoteFile

    return RemoteFile(path.stat().st_size, name if len(name) == 64 else "", name).is_same(path)


def pull_to(repo: str, folder: Path, revision: str | None = None) -> Path:
    """The same as a folder of its own, `weights/NAME` for example: it appears whole or not at all. Returns `folder`.

    A folder that holds just this model already is left alone. Raises as `pull`, and `DiskError` where another is there.
    """
    folder = Path(folder)
    source = pull(repo, revision)
    names = [n for n in FILES if (source / n).is_file()]
    if not os.path.lexists(folder):
        return files.write_folder(folder, lambda part: [shutil.copyfile(source / n, part / n) for n in names])
    mine = [n for n in FILES if (folder / n).is_file()]
    if mine == names and all(files.sha256(source / n) == files.sha256(folder / n) for n in names):
        return folder
    raise DiskError(
        f"{folder} exists and is not {repo} as it is on the Hub", f"move it away, or: nlzoo pull {repo} --name ANOTHER"
    )
