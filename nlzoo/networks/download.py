"""Models of the Hugging Face Hub on this machine: `locate`, `load`, `pull`. Nothing but four named files travels."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import errors as theirs

from ..core import files
from ..core.errors import DiskError, UsageError, WeightsError
from ..core.model_spec import from_json
from . import hub_client as client
from . import zoo
from .hub_client import FILES, MOST_TEXT, NEEDED, Repo

if TYPE_CHECKING:
    from .network import Network  # `load` imports torch when it is called: pushing needs none

_VIDEO = re.compile(r"\.(?:mp4|avi|mkv|webm|mov|m4v|mpe?g|wmv|flv|ogv|3gp|mts)\b", re.IGNORECASE)


def looks_like_repo(name: str) -> bool:
    """Whether `name` has the form `user/name`; ask only once no folder of that name is found. No network."""
    part = r"[A-Za-z0-9](?:[\w.\-]{0,94}[A-Za-z0-9_])?"
    local = name.startswith(("weights/", "runs/")) or name.endswith((".safetensors", ".pth", ".pt", ".json"))
    local = local or _VIDEO.search(name) or "--" in name or ".." in name
    return bool(re.fullmatch(f"{part}/{part}", name)) and not local


# --- pull


def locate(name: str) -> Path:
    """The model folder that a user's word means: one that is here (`zoo.find`), or `user/name` fetched from the Hub.

    Raises `UsageError` for a name that is neither, and as `pull`.
    """
    if folder := zoo.find(name):
        return folder
    if looks_like_repo(name) and not Path(name).exists():
        return pull(name)
    raise UsageError(
        f"there is no model {name!r} here, and it is not user/name on the Hub",
        "nlzoo list shows the models that are here",
    )


def backbone_weights(repo: str) -> Path:
    """timm's `model.safetensors` of a 2-D backbone, from the cache or fetched into it (timm's own place).

    Raises `HubError`. The cache is asked first and the Hub once, since the client would try ten times, aloud, before it said "offline".
    """
    try:
        return Path(client.api().hf_hub_download(repo, "model.safetensors", local_files_only=True))
    except theirs.LocalEntryNotFoundError:
        client.patiently(repo, lambda: client.repo_info(Repo(repo)))
        return Path(client.patiently(repo, lambda: client.api().hf_hub_download(repo, "model.safetensors")))


def load(name: str) -> "Network":
    """The network of a model folder, a run, a name in weights/ or runs/, or `user/name` on the Hub.

    On the CPU, float32, in eval mode; `(B, 3, T, H, W)` normalised clips to `(B, classes)` logits. Its `spec` says
    which clips it wants and what its outputs are. Raises as `locate`, and `WeightsError`.
    """
    from . import checkpoint

    return checkpoint.load_model(locate(str(name)))


def pull(repo: str, revision: str | None = None) -> Path:
    """The model `repo` in the Hub's cache on this machine, fetched as far as it is not there yet; the folder.

    When the Hub cannot be reached, what was fetched before serves.
    Raises `HubError`, `WeightsError` for a repository that is not an nlzoo model, `DiskError`.
    """
    client.quiet_without_terminal()
    what = repo if revision is None else f"{repo}@{revision}"
    try:
        info = client.patiently(what, lambda: client.repo_info(Repo(repo), revision))
    except client.Unreachable:
        if folder := _cached(repo, revision):
            return folder
        raise
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    missing = [n for n in NEEDED if n not in sizes]
    if missing:
        raise WeightsError(f"{repo} on the Hub is not an nlzoo model: it has no {' and no '.join(missing)}")
    if large := [n for n in FILES[1:] if sizes.get(n, 0) > MOST_TEXT]:
        raise WeightsError(f"{large[0]} of {repo} has {sizes[large[0]]} bytes; at most {MOST_TEXT} are read")
    config = client.patiently(what, lambda: client.api().hf_hub_download(repo, "config.json", revision=info.sha))
    _accepted(Path(config), repo)  # before the weights, which may be large
    return Path(client.patiently(what, lambda: _snapshot(repo, revision)))


def _snapshot(repo, revision, **how):
    return client.api().snapshot_download(repo, revision=revision, allow_patterns=list(FILES), **how)


def _accepted(config, repo):
    data = parse_json(config.read_bytes(), f"config.json of {repo}")
    if not isinstance(data, dict) or "format" not in data:
        raise WeightsError(f"{repo} on the Hub is not an nlzoo model: its config.json is another program's")
    from_json(data, f"config.json of {repo}")


def _cached(repo, revision):
    """The whole model as an earlier pull left it in the cache, or None."""
    try:
        folder = Path(_snapshot(repo, revision, local_files_only=True))
    except theirs.LocalEntryNotFoundError:
        return None
    return folder if all((folder / n).is_file() for n in NEEDED) else None


def pull_to(repo: str, folder: Path, revision: str | None = None) -> Path:
    """The same as a folder of its own, `weights/NAME` for example: it appears whole or not at all. Returns `folder`.

    A folder that holds just this model already is left alone. Raises as `pull`, and `DiskError` where another is there.
    """

    folder = Path(folder)
    source = pull(repo, revision)
    names = [n for n in FILES if (source / n).is_file()]
    if not os.path.lexists(folder):
        return files.write_folder(folder, lambda part: [shutil.copyfile(source / n, part / n) for n in names])
    if _equal(source, folder, names):
        return folder
    raise DiskError(
        f"{folder} exists and is not {repo} as it is on the Hub", f"move it away, or: nlzoo pull {repo} --name ANOTHER"
    )


def _equal(source, folder, names):
    mine = [n for n in FILES if (folder / n).is_file()]
    return mine == names and all(hashes(chunks(source / n), 0) == hashes(chunks(folder / n), 0) for n in names)


def chunks(file):
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def hashes(chunks, size):
    """`(sha256, git's blob hash)` in hex."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for chunk in chunks:
        sha256.update(chunk)
        blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


def parse_json(content, where):
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where} is not JSON ({error})") from None
