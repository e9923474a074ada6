"""Datasets of the Hugging Face Hub on this machine: `fetch`.

Videos, pictures and lists travel, never code, and nothing is fetched before its size is said and there is room for it.
They stay in the Hub's own cache, where the same command finds them again.
"""

import glob
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub  # imports its parts when they are used

from ..core import archives
from ..core.errors import DiskError, HubError, UsageError
from ..core.files import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS
from ..core.text import counted, printable
from . import download

if TYPE_CHECKING:  # names need no client
    from .hub_client import Repo, RepoState

_ADDRESS = re.compile(r"hf:/{1,2}datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")  # a path joins slashes
_SNAPSHOT = re.compile(r".*/datasets--[^/]+?--([^/]+)/snapshots/[0-9a-f]{40}(/.*)?")
_MEDIA = VIDEO_EXTENSIONS | PICTURE_EXTENSIONS
_LISTS = {".csv", ".tsv", ".jsonl"}
_NAMED = re.compile(r"(?:.*/)?(?:metadata\.parquet|(?:train|val|test)\.txt)")  # lists by their whole names
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")


def is_address(videos: str | os.PathLike) -> bool:
    """Whether what a user points at is on the Hub."""
    return os.fspath(videos).startswith("hf:/")


def parse(address: str | os.PathLike) -> tuple[str, str | None, str]:
    """`(user/name, revision, folder)` of `hf://datasets/user/name[@revision][/folder]`. Raises `UsageError`."""
    match = _ADDRESS.fullmatch(os.fspath(address))
    folder = (match[3] or "").strip("/") if match else ""
    if not match or not download.looks_like_repo(match[1]) or not _is_safe(folder or "all"):
        raise UsageError(
            f"{printable(address)} is not the address of a dataset on the Hub",
            "for example hf://datasets/user/name, or hf://datasets/user/name/folder",
        )
    if match[2]:
        download.refuse_revision(match[2], "the revision")
    return match[1], match[2], folder


def base_name(videos: Path) -> str:
    """The name of a folder or list of videos, without its ending; of a fetched dataset the one that it has there."""
    whole = videos.resolve()
    match = _SNAPSHOT.fullmatch(whole.as_posix())
    if match and not match[2]:
        return match[1]
    return videos.stem if videos.is_file() else whole.name


def fetch(address: str | os.PathLike, log: Callable[[str], object] = lambda text: None) -> Path:
    """The dataset on this machine, fetched as far as it is not there yet; its folder, or its list.

    `log` gets one sentence before anything is fetched: how many files and bytes. Raises `UsageError`, `HubError` for
    a dataset that is not there or has no files for us, `DiskError` where there is no room.
    """
    from . import hub_client

    name, revision, folder = parse(address)
    repo = hub_client.Repo(name, "dataset")
    state = hub_client.repo_state(repo, revision, None)
    chosen = _chosen(repo, state, folder)
    cached = partial(huggingface_hub.try_to_load_from_cache, name, revision=state.commit, repo_type="dataset")
    missing = [file for file in chosen if not isinstance(cached(file), str)]
    if missing:
        needed = sum(state.files[file].size for file in missing)
        _check_room(hub_client.cache_folder(), repo, needed)
        here = f" ({counted(len(chosen) - len(missing), 'other')} here already)" if len(missing) < len(chosen) else ""
        log(f"fetching {counted(len(missing), 'file')}, {_amount(needed)}, of {repo}{here}")

    def download_all() -> str:
        return hub_client.client().snapshot_download(
            name,
            repo_type="dataset",
            revision=state.commit,
            allow_patterns=_patterns(chosen),
            ignore_patterns=[".*", "*/.*"],
        )

    snapshot = Path(hub_client.ask(repo, download_all))
    for file in chosen:
        place = snapshot / file
        if not place.is_file() or place.stat().st_size != state.files[file].size:
            raise HubError(f"{printable(file)} of {repo} did not arrive whole", "try again: what has arrived stays")
    return snapshot / folder


def _chosen(repo: "Repo", state: "RepoState", folder: str) -> list[str]:
    """The files that are fetched: videos, pictures and lists, or an archive by its name. Raises `HubError`."""
    unsafe = [file for file in state.files if not _is_safe(file)]
    if unsafe:
        raise HubError(f"{repo} has a file with an impossible name: {printable(unsafe[0])}", "tell who pushed it")
    if folder in state.files and folder.lower().endswith(archives.ENDINGS):
        return [folder]
    below = [file for file in state.files if not folder or file == folder or file.startswith(f"{folder}/")]
    chosen = sorted(file for file in below if _is_wanted(file))
    if any(os.path.splitext(file)[1].lower() in _MEDIA for file in chosen) or folder in chosen:
        return chosen
    raise _nothing_in(repo, folder, below)


def _nothing_in(repo: "Repo", folder: str, below: list[str]) -> HubError:
    """What is wrong where none of the files below the folder is a video or a frame."""
    place = f"{folder} of {repo}" if folder else str(repo)
    if not below:
        return HubError(f"there is no {printable(place)} on the Hub", f"its files are at {repo.url}/tree/main")
    endings = Counter(os.path.splitext(file)[1].lower() or "no ending" for file in below).most_common(3)
    words = ", ".join(f"{number} {printable(ending)}" for ending, number in endings)
    hint = f"look at {repo.url}/tree/main"
    packed = sorted(file for file in below if file.lower().endswith(_ARCHIVES))
    if packed:
        hint = f"hf download {repo.name} --repo-type dataset --local-dir FOLDER, unpack the archives there"
    if len(packed) == 1 and packed[0].lower().endswith(archives.ENDINGS):
        hint = f"hf://datasets/{repo.name}/{printable(packed[0])} is read in place; or {hint}"
    return HubError(f"{place} has no files of videos or frames ({words})", hint)


def _is_wanted(file: str) -> bool:
    if any(part.startswith(".") for part in file.split("/")):
        return False
    return os.path.splitext(file)[1].lower() in _MEDIA | _LISTS or _NAMED.fullmatch(file) is not None


def _is_safe(file: str) -> bool:
    """Whether a name stays in its folder, on every system."""
    parts = re.split(r"[/\\]", file)
    return "\0" not in file and ":" not in parts[0] and all(part not in ("", ".", "..") for part in parts)


def _patterns(files: Iterable[str]) -> list[str]:
    """Patterns of the client's for these files: folders by ending, as each pattern is tried for each file."""
    patterns = set()
    for file in files:
        folder, ending = glob.escape(os.path.dirname(file)), os.path.splitext(file)[1]
        patterns.add(
            glob.escape(file)
            if _NAMED.fullmatch(file) or ending.lower() in archives.ENDINGS
            else f"{folder}/*{ending}".lstrip("/")
        )
    return sorted(patterns)


def _check_room(cache: Path, repo: "Repo", needed: int) -> None:
    """Raises `DiskError` where the cache has less room than that."""
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DiskError(
            f"{repo} takes {_amount(needed)}, and {printable(cache)} has room for {_amount(free)}",
            "set HF_HOME, the Hub's cache, to a folder on a larger disk",
        )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
