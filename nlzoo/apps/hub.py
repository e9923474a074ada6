"""Model folders to the Hugging Face Hub and back: the only module that imports huggingface_hub.

Unusual: nothing but four named files travels (three of a Space), in one commit on top of the commit that was looked at;
a push is private unless asked otherwise and never changes who may see a repository; and since the client does not retry a
commit, and a lost reply looks like a failure, every new try first asks the Hub whether the last one arrived. Clients 1.x
and 2.x.
"""

import dataclasses
import errno
import getpass
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub import errors as theirs
from huggingface_hub.utils import disable_progress_bars, get_session

from .. import __version__
from ..core import files
from ..core.errors import DiskError, HubError, UsageError, WeightsError
from ..core.model_spec import from_json
from ..networks import card, zoo

if TYPE_CHECKING:
    from torch import nn  # `load` imports torch when it is called: pushing needs none

FILES = (
    "model.safetensors",
    "config.json",
    "README.md",
    "metrics.json",
)  # of a model: all that is ever pushed or pulled
NEEDED = FILES[:2]
SPACE_FILES = ("app.py", "requirements.txt", "README.md")
_OURS = {"model": FILES, "space": SPACE_FILES}
GRADIO, PYTHON = "6.31.0", "3.11"  # that a Space runs on; what the tests run with
WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth try
TIMEOUT = 60.0  # seconds without a byte; the client's own default is to wait for ever
_MOST_TEXT = 16 << 20  # bytes of config.json, README.md or metrics.json
_MOST_HEADER = 100 << 20  # bytes, safetensors' own limit

# The client speaks HTTP through httpx (1.x) or httpx2 (2.x); this is the base of its connection failures either way.
_Transport = next(c for c in theirs.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
_FAILURES = (_Transport, OSError, RuntimeError, ValueError)  # what the client raises for reasons outside our code

_KNOWN_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
    "gpl-3.0",
    "lgpl-3.0",
    "openrail",
    "unlicense",
}


class Unreachable(HubError):
    """The Hub did not answer, or offline mode forbids asking."""


@dataclass(frozen=True)
class Pushed:
    """What a push did, or with `dry_run` would do."""

    repo: str  # user/name
    url: str
    commit: str  # that holds these files; empty after a dry run
    files: list[dict]  # {"path", "bytes"} of every file of the push, also those that were there already
    uploaded_bytes: int  # of the files that were new or had changed


@dataclass(frozen=True)
class _Repo:
    name: str  # user/name
    kind: str = "model"  # or "space": a model and a Space may have the same name

    def __str__(self):
        return self.name if self.kind == "model" else f"the Space {self.name}"

    @property
    def url(self):
        return f"{huggingface_hub.constants.ENDPOINT}/{'spaces/' if self.kind == 'space' else ''}{self.name}"


@dataclass(frozen=True)
class _File:
    name: str
    content: Path | bytes  # a path for the weights; text is sent from memory, so what was checked is what goes
    size: int
    sha256: str
    blob: str  # git's own hash, which the Hub gives for files outside LFS


def looks_like_repo(name: str) -> bool:
    """Whether `name` has the form `user/name`; ask only once no folder of that name is found. No network."""
    part = r"[A-Za-z0-9](?:[\w.\-]{0,94}[A-Za-z0-9_])?"
    local = name.startswith(("weights/", "runs/")) or name.endswith((".safetensors", ".pth", ".pt", ".json"))
    local = local or _VIDEO.search(name) or "--" in name or ".." in name
    return bool(re.fullmatch(f"{part}/{part}", name)) and not local


# --- push


def push(folder: Path, repo: str, private: bool = True, dry_run: bool = False) -> Pushed:
    """Put the model folder on the Hub as `repo` (`user/name`, or `name`) in one commit; none if it is there already.

    A dry run checks everything that can be checked here and asks the Hub nothing (so a bare name stays bare).
    Raises `WeightsError` for a folder that is not a sound model; `HubError` for text that gives this machine away, a
    repository whose visibility is not the one asked for or that changed meanwhile, and whatever the Hub refuses.
    """
    return _push(Path(folder), _Repo(repo), private, dry_run)


def push_space(folder: Path, repo: str, private: bool = True, dry_run: bool = False) -> Pushed:
    """Put a Space `repo` on the Hub: the page of `nlzoo serve` for the model that `push` put there from `folder` under that name.

    As careful as `push`, and raises the same; also `HubError` for a Space that holds an app which is not ours.
    """
    return _push(Path(folder), _Repo(repo, "space"), private, dry_run)


def _push(folder, repo, private, dry_run):
    _quiet_without_terminal()
    if not (looks_like_repo(repo.name) or looks_like_repo(f"user/{repo.name}")):
        raise HubError(
            f"{repo.name!r} is not a name for a model on the Hub",
            "user/name, of letters, digits, '-', '_' and '.', as in: nlzoo push me/waving",
        )
    sound = _sound(folder)  # before the first request
    if dry_run:
        return Pushed(repo.name, repo.url, "", _listing(_files(folder, repo, *sound)), 0)
    if not has_token():
        raise HubError("this machine is not logged in to the Hub", _LOGIN)
    if "/" not in repo.name:
        repo = dataclasses.replace(repo, name=f"{whoami()}/{repo.name}")
    files = _files(folder, repo, *sound)
    info = _repository(repo, private)
    commit, sent = _commit(repo, files, info)
    return Pushed(repo.name, repo.url, commit, _listing(files), sent)


def _listing(files):
    return [{"path": f.name, "bytes": f.size} for f in files]


def _repository(repo, private):
    """The repository as it is, created if need be, and seen by those it was asked for."""
    info, sdk = _info(repo), {"space_sdk": "gradio"} if repo.kind == "space" else {}
    if info is None:
        try:
            _patiently(repo, lambda: _api().create_repo(repo.name, private=private, repo_type=repo.kind, **sdk))
        except HubError as error:
            if _status(error.__cause__) != 409:  # it exists: a try of ours whose reply was lost, or somebody was first
                raise
        info = _info(repo)
    if info is None:
        raise HubError(f"{repo} was created, but this login may not see it", "check the rights of the token")
    if info.private is not private and private:
        raise HubError(
            f"{repo} is public on the Hub; nothing was uploaded",
            "--public if everybody may see it; otherwise push to another name",
        )
    if info.private is not private:
        raise HubError(
            f"{repo} is private on the Hub; nothing was uploaded",
            "push without --public, or make it public in its settings on the Hub first",
        )
    if other := _other(repo, info):
        raise HubError(f"{repo} holds {other}; nothing was uploaded", "push to another name")
    return info


def _other(repo, info):
    """What a repository holds that is not ours, in words; empty where nothing is, or an older push."""
    if repo.kind == "model":
        library = getattr(info, "library_name", None)
        return f"a model of {library}" if library not in (None, "nlzoo") else ""
    ours = "nlzoo" in (getattr(info.card_data, "tags", None) or ())
    return "" if ours or "app.py" not in {s.rfilename for s in info.siblings or ()} else "an app of another kind"


def _info(repo):
    """The Hub's description of the repository at its newest commit, or None where there is none."""
    try:
        return _patiently(repo, lambda: _repo_info(repo))
    except HubError as error:
        if type(error.__cause__) is theirs.RepositoryNotFoundError:  # not its child for a gated one
            return None
        raise


def _repo_info(repo, revision=None):
    return _api().repo_info(
        repo.name, repo_type=repo.kind, revision=revision, files_metadata=True, timeout=_limit_waiting()
    )


def _commit(repo, files, info):
    """`(commit, uploaded bytes)`: at most one commit, on top of `info.sha`, however often a reply is lost."""
    parent, sent = info.sha, 0
    for wait in (*WAITS, None):
        changed, gone = _difference(repo, files, info)
        if not changed and not gone:
            return info.sha, sent
        sent = sum(f.size for f in changed)
        try:
            return _send(repo, changed, gone, parent), sent
        except _FAILURES as error:
            problem = _root(error)
        moved = _status(problem) in (409, 412)
        if not moved and not _passing(problem):
            _raise(problem, repo)
        time.sleep(0 if moved or wait is None else wait)
        info = _info(repo)  # is it already there?
        if info is not None and not any(_difference(repo, files, info)):
            return info.sha, sent
        if moved or info is None or info.sha != parent:
            raise HubError(
                f"{repo} changed on the Hub during the push; nothing of this push was committed",
                "see what is new there, then push again",
            ) from problem
    _raise(problem, repo)


def _send(repo, changed, gone, parent):
    operations = [huggingface_hub.CommitOperationAdd(f.name, f.content) for f in changed]
    operations += [huggingface_hub.CommitOperationDelete(name) for name in gone]
    _limit_waiting()
    return (
        _api()
        .create_commit(
            repo.name,
            operations,
            repo_type=repo.kind,
            commit_message=f"{repo.kind.capitalize()} by nlzoo",
            parent_commit=parent,
        )
        .oid
    )


def _difference(repo, files, info):
    """`(files to send, names to delete)`; only our own names are ever deleted, as metrics.json of an earlier model."""
    there = {s.rfilename: s for s in info.siblings or ()}
    changed = [f for f in files if f.name not in there or not _same(f, there[f.name])]
    return changed, [n for n in _OURS[repo.kind] if n in there and n not in {f.name for f in files}]


def _same(file, sibling):
    if sibling.lfs:
        return sibling.lfs["sha256"] == file.sha256
    return sibling.blob_id == file.blob


# --- what goes into a push


def _files(folder, repo, spec, metrics, texts):
    """The files of a sound model folder as they will be on the Hub, README.md with the Hub's front matter; or those of its Space."""
    if repo.kind == "space":
        return _from_memory(_space_texts(repo.name, spec))
    readme = card.addressed(_without_front_matter(texts["README.md"].decode()), repo.name)
    texts = {**texts, "README.md": (_front_matter(repo.name, spec, metrics) + readme).encode()}
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    return [
        _File(weights.name, weights, size, *_hashes(_chunks(weights), size)),
        *_from_memory({n: texts[n] for n in FILES if n in texts}),
    ]


def _from_memory(texts):
    return [_File(name, text, len(text), *_hashes([text], len(text))) for name, text in texts.items()]


def _chunks(file):
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def _hashes(chunks, size):
    """`(sha256, git's blob hash)` in hex."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for chunk in chunks:
        sha256.update(chunk)
        blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


def _sound(folder):
    """`(spec, metrics, the texts by name)` of a model folder that may be pushed; the refusals of `push` otherwise."""
    missing = [n for n in NEEDED if not (folder / n).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} is not a model folder: it has no {' and no '.join(missing)}",
            "give a folder that nlzoo inflate or finetune wrote, such as runs/NAME/best",
        )
    texts = {n: _text(folder / n) for n in FILES[1:] if (folder / n).is_file()}
    spec = from_json(_json(texts["config.json"], folder / "config.json"), str(folder / "config.json"))
    metrics = _json(texts["metrics.json"], folder / "metrics.json") if "metrics.json" in texts else {}
    if not isinstance(metrics, dict) or any(isinstance(v, (dict, list)) for v in metrics.values()):
        raise WeightsError(f"{folder / 'metrics.json'} is not a flat JSON object", "remove it, or evaluate again")
    texts.setdefault("README.md", card.body(spec, metrics).encode())
    header = _header(folder / "model.safetensors")
    for name, content in (*texts.items(), ("model.safetensors", header)):
        text = content.decode()
        if leak := _leak(text, folder) or (name != "config.json" and _host(text, spec)) or _host(spec.source, spec):
            raise HubError(
                f"{name} in {folder} contains {leak}; nothing was uploaded",
                f"take it out of {name}; a push must not tell where or by whom it was made",
            )
    return spec, metrics, texts


def _text(file):
    if file.stat().st_size > _MOST_TEXT:
        raise WeightsError(f"{file} has {file.stat().st_size} bytes; at most {_MOST_TEXT} are pushed")
    content = file.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        raise WeightsError(f"{file} is not UTF-8 text") from None
    return content


def _json(content, where):
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where} is not JSON ({error})") from None


def _header(file):
    """The JSON header of a .safetensors file, as bytes; its shapes and values are the loader's concern."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _MOST_HEADER):
            raise WeightsError(f"{file} is not a whole .safetensors file")
        header = stream.read(length)
    try:
        json.loads(header)
    except (ValueError, RecursionError):
        raise WeightsError(f"{file} is not a whole .safetensors file") from None
    return header


_TOKEN = re.compile(r"\b(?:hf|gh[pousr]|github_pat|glpat|sk)[_\-][A-Za-z0-9_\-]{20,}")
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:[\\/]+Users[\\/]+)[^\s\"'<>|]+")
_VIDEO = re.compile(r"[^\s\"'/\\]+\.(?:mp4|avi|mkv|webm|mov|m4v|mpe?g|wmv|flv|ogv|3gp|mts)\b", re.IGNORECASE)


def _leak(text, folder):
    """What in `text` gives away a secret, this machine, its user or a video; empty where nothing does."""
    if _TOKEN.search(text) or ((token := huggingface_hub.get_token()) and token in text):
        return "what looks like an access token"
    local = re.sub(r"https?://\S+", "", text)  # an address such as huggingface.co/user/name is meant to be read
    for place in (Path.home(), Path.cwd(), folder.resolve()):
        for form in {str(place), place.as_posix(), json.dumps(str(place))[1:-1]}:
            if place != Path(place.anchor) and re.search(rf"(?<![\w.]){re.escape(form)}(?![\w\-])", local):
                return f"a path of this machine ({form})"
    if found := _HOME.search(local):
        return f"a path in somebody's home folder ({found[0][:60]})"
    user = _user()
    if user and re.search(rf"[/\\]{re.escape(user)}[/\\]|\b{re.escape(user)}@", local):
        return f"this machine's user name as a path or address ({user})"
    if found := _VIDEO.search(local):
        return f"the name of a video file ({card.escape(found[0][:60])})"
    return ""


def _host(text, spec):
    """This machine's name where it is in `text` for no other reason: a computer may well be called `video`."""
    figures = dict.fromkeys(("top1", "top5", "map", "majority", "val", "train", "epochs"), 0.5)
    checks = dict.fromkeys(("nonlocal_identical", "still_clip_error", "moving_clip_error"), 0.5)
    bare = dataclasses.replace(spec, source="", licence="")
    expected = " ".join((card.body(bare, figures, checks), *figures, *spec.classes, "localhost format pt dtype shape"))
    host = socket.gethostname()
    for name in (host, host.partition(".")[0]):
        if name and _says(text, name) and not _says(expected, name):
            return f"this machine's name ({name})"
    return ""


def _user():
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a passwd entry
        return ""


def _says(text, word):
    return re.search(rf"(?<![\w\-]){re.escape(word)}(?![\w\-])", text) is not None


def _front_matter(repo, spec, metrics):
    """The YAML block that the Hub reads: searchable facts and, where there are any, the figures."""
    results = _eval_results(spec, metrics)
    named = {"eval_results": results, "model_name": repo.rpartition("/")[2]} if results else {}
    data = huggingface_hub.ModelCardData(
        library_name="nlzoo",
        pipeline_tag="video-classification",
        base_model=f"timm/{spec.backbone}" if "." in spec.backbone else None,
        tags=["nlzoo", "non-local"] if spec.non_local else ["nlzoo"],
        **_licence(spec.licence),
        **named,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _space_texts(model, spec):
    """`SPACE_FILES` as bytes. Nothing in them is of this machine, but for the place that nlzoo came from where that is a public one."""
    app = _APP.format(model=model)
    data = huggingface_hub.SpaceCardData(
        title=model.rpartition("/")[2],
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        models=[model],
        tags=["nlzoo", "video-classification"],
        **_licence(spec.licence),
    )
    forbids = "\nThe weights that its model was trained from are {}: no commercial use, of this page either.\n"
    readme = _SPACE_CARD.format(
        yaml=data.to_yaml(),
        name=model.rpartition("/")[2],
        model=model,
        url=_Repo(model).url,
        limits=forbids.format(card.escape(spec.licence)) if "-nc" in spec.licence.lower() else "",
    )
    requirements = f"{_requirement()}\ntorch\n"
    return {name: text.encode() for name, text in zip(SPACE_FILES, (app, requirements, readme))}


_APP = '''"""The page of {model}, as `nlzoo push --space` wrote it; the next one writes it again."""

import nlzoo
from nlzoo.apps import serve
from nlzoo.training import evaluate

serve.serve(nlzoo.load("{model}"), evaluate.resolve_device(None), host="0.0.0.0", port=7860, name="{model}")
'''
_SPACE_CARD = """---
{yaml}
---

# {name}

Drop a video on the page, and see what the model [{model}]({url}) says is in it, when, and what spoke for it.
Made with nlzoo; videos are removed as soon as they are answered.
{limits}
If the model is private, the Space needs a secret `HF_TOKEN` that may read it.
"""


def _requirement():
    """What pip is asked for in a Space: this version, or the commit of a public git address that it was installed from (PEP 610)."""
    try:
        summary = json.loads(importlib.metadata.distribution("nlzoo").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:  # a checkout that nobody installed
        summary = {}
    commit = summary.get("vcs_info", {}).get("commit_id", "")
    if re.fullmatch(r"https://[\w.\-/]+ [0-9a-f]{40}", f"{summary.get('url')} {commit}"):
        return f"nlzoo[serve] @ git+{summary['url']}@{commit}"
    return f"nlzoo[serve]=={__version__}"


def _licence(licence):
    if not licence:
        return {}
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")[:60]
    return {"license": slug} if slug in _KNOWN_LICENCES else {"license": "other", "license_name": slug or "unknown"}


def _eval_results(spec, metrics):
    keys = [("top1", "top-1 accuracy"), ("map", "mean average precision")] + (
        [("top5", "top-5 accuracy")] if spec.num_outputs > 5 else []
    )
    found = [(key, words, card.number(metrics, key)) for key, words in keys if card.number(metrics, key) is not None]
    return [
        huggingface_hub.EvalResult(
            task_type="video-classification",
            dataset_type="own",
            dataset_name="validation videos of the author's own",
            metric_type="mAP" if key == "map" else "accuracy",
            metric_name=f"{words}, on the videos that chose the epoch",
            metric_value=round(value, 4),
        )
        for key, words, value in found
    ]


def _without_front_matter(text):
    """A folder that was pulled has the block of its last push; the text after it is kept to the letter."""
    return re.sub(r"\A---\n.*?\n---\n\n?", "", text, count=1, flags=re.DOTALL)


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
    """timm's `model.safetensors` of a 2-D backbone, from the cache or fetched into it (timm's own place). Raises `HubError`.

    The cache is asked first and the Hub once, since the client would try ten times, aloud, before it said "offline".
    """
    try:
        return Path(_api().hf_hub_download(repo, "model.safetensors", local_files_only=True))
    except theirs.LocalEntryNotFoundError:
        _patiently(repo, lambda: _repo_info(_Repo(repo)))
        return Path(_patiently(repo, lambda: _api().hf_hub_download(repo, "model.safetensors")))


def load(name: str) -> "nn.Module":
    """The network of a model folder, a run, a name in weights/ or runs/, or `user/name` on the Hub.

    On the CPU, float32, in eval mode; `(B, 3, T, H, W)` normalised clips to `(B, classes)` logits. Its `spec` says
    which clips it wants and what its outputs are. Raises as `locate`, and `WeightsError`.
    """
    from ..networks import checkpoint

    return checkpoint.load_model(locate(str(name)))


def pull(repo: str, revision: str | None = None) -> Path:
    """The model `repo` in the Hub's cache on this machine, fetched as far as it is not there yet; the folder.

    When the Hub cannot be reached, what was fetched before serves.
    Raises `HubError`, `WeightsError` for a repository that is not an nlzoo model, `DiskError`.
    """
    _quiet_without_terminal()
    what = repo if revision is None else f"{repo}@{revision}"
    try:
        info = _patiently(what, lambda: _repo_info(_Repo(repo), revision))
    except Unreachable:
        if folder := _cached(repo, revision):
            return folder
        raise
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    missing = [n for n in NEEDED if n not in sizes]
    if missing:
        raise WeightsError(f"{repo} on the Hub is not an nlzoo model: it has no {' and no '.join(missing)}")
    if large := [n for n in FILES[1:] if sizes.get(n, 0) > _MOST_TEXT]:
        raise WeightsError(f"{large[0]} of {repo} has {sizes[large[0]]} bytes; at most {_MOST_TEXT} are read")
    config = _patiently(what, lambda: _api().hf_hub_download(repo, "config.json", revision=info.sha))
    _accepted(Path(config), repo)  # before the weights, which may be large
    return Path(_patiently(what, lambda: _snapshot(repo, revision)))


def _snapshot(repo, revision, **how):
    return _api().snapshot_download(repo, revision=revision, allow_patterns=list(FILES), **how)


def _accepted(config, repo):
    data = _json(config.read_bytes(), f"config.json of {repo}")
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
    return mine == names and all(_hashes(_chunks(source / n), 0) == _hashes(_chunks(folder / n), 0) for n in names)


# --- login, and the client itself


def has_token() -> bool:
    """Whether this machine holds a Hub token (HF_TOKEN or `hf auth login`); it may still be a wrong one."""
    return huggingface_hub.get_token() is not None


def whoami(timeout: float | None = None) -> str:
    """The user's name on the Hub. `timeout` seconds: one try, for those who only want to know."""
    if timeout is None:
        return _patiently("the login", lambda: _api().whoami())["name"]
    try:
        _limit_waiting(timeout)
        return _api().whoami()["name"]
    except _FAILURES as error:
        _raise(_root(error), "the login")


def cache_folder() -> Path:
    """Where the client keeps what it fetched."""
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


def _api():
    return huggingface_hub.HfApi(library_name="nlzoo")


def _limit_waiting(seconds=None):
    session = get_session()
    session.timeout = type(session.timeout)(seconds or TIMEOUT, connect=min(seconds or TIMEOUT, 10.0))
    return session.timeout


def _quiet_without_terminal():
    """The client's progress bars are for people; it writes them to stderr even where nobody watches."""
    if not sys.stderr.isatty() and huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()


# --- failures


def _patiently(repo, call):
    """`call()`, up to four times while the failure may pass. Raises what `_raise` makes of the last one."""
    for wait in (*WAITS, None):
        try:
            _limit_waiting()
            return call()
        except _FAILURES as error:
            problem = _root(error)
        nobody = type(problem).__name__ in ("ConnectError", "ConnectTimeout")  # offline: no use to wait
        if wait is None or nobody or not _passing(problem):
            _raise(problem, repo)
        time.sleep(wait)


def _root(error):
    """The failure inside the client's own wrappers ("not in the cache either", "error while uploading")."""
    while isinstance(error, (theirs.LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error):
    return error.response.status_code if isinstance(error, theirs.HfHubHTTPError) else None


def _passing(error):
    """Whether the same request may work in a moment."""
    if isinstance(error, theirs.HfHubHTTPError):
        return _status(error) in (408, 429, 500, 502, 503, 504)
    if isinstance(error, theirs.OfflineModeIsEnabled):
        return False
    # a proxy's error page where JSON was expected counts as a broken connection
    return isinstance(error, (_Transport, ConnectionError, TimeoutError, json.JSONDecodeError))


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO)
_LOGIN = "hf auth login, or set HF_TOKEN; tokens are made at https://huggingface.co/settings/tokens"
_LATER = "try again in a few minutes; what had arrived is not sent twice"

_OWN = "the Hub has a problem of its own: {said}"

# The client's failures, first match wins: class or HTTP status, our kind, message, hint. {said} is the Hub's own words.
_TABLE = (
    (
        theirs.OfflineModeIsEnabled,
        Unreachable,
        "the Hub was not asked for {repo}: offline mode is on",
        "unset HF_HUB_OFFLINE, or give a model folder that is on this machine",
    ),
    (theirs.LocalTokenNotFoundError, HubError, "this machine is not logged in to the Hub", _LOGIN),
    (theirs.HFValidationError, HubError, "{repo!r} is not a name for a model on the Hub", "it has the form user/name"),
    (
        theirs.GatedRepoError,
        HubError,
        "{repo} is only for those its author lets in ({said})",
        "ask for access on its page on the Hub, then: hf auth login",
    ),
    (theirs.DisabledRepoError, HubError, "{repo} was disabled on the Hub ({said})", ""),
    (
        theirs.RepositoryNotFoundError,
        HubError,
        "{repo} is not on the Hub, or it is private and hidden from you",
        "check the spelling; for a private model: hf auth login, or set HF_TOKEN",
    ),
    (theirs.RevisionNotFoundError, HubError, "there is no such revision: {repo}", "the newest needs none"),
    (theirs.RemoteEntryNotFoundError, HubError, "a file of {repo} is not on the Hub ({said})", "push the model again"),
    (401, HubError, "the Hub did not accept the login ({said})", _LOGIN),
    (
        403,
        HubError,
        "the Hub did not allow this for {repo} ({said})",
        "take a token that may write there: https://huggingface.co/settings/tokens",
    ),
    (409, HubError, "{repo} is in another state than expected ({said})", "look at it on the Hub, then try again"),
    (412, HubError, "{repo} has changed meanwhile ({said})", "see what is new there, then try again"),
    (429, HubError, "the Hub asks for patience ({said})", _LATER),
    *((status, Unreachable, _OWN, _LATER) for status in (408, 500, 502, 503, 504)),
    (theirs.HfHubHTTPError, HubError, "the Hub refused the request for {repo} ({said})", ""),
    (
        theirs.LocalEntryNotFoundError,
        Unreachable,
        "{repo} is not on this machine and the Hub could not be reached",
        "check the connection, then try again",
    ),
    (
        (_Transport, ConnectionError, TimeoutError),
        Unreachable,
        "the Hub could not be reached ({said})",
        "check the connection, then try again; a model folder on this machine needs none",
    ),
    (
        json.JSONDecodeError,
        Unreachable,
        "the Hub's answer was not understood ({said})",
        "something in between may have answered instead, such as a proxy or a login page",
    ),
    ((RuntimeError, ValueError), HubError, "the Hub's client gave up on {repo} ({said})", _LATER),
)


def _raise(error, repo):
    """The one translation: our error for the client's; what is not in the table is a bug and raised as it is."""
    if isinstance(error, OSError) and (error.errno in _DISK or error.filename):
        raise DiskError(
            f"{error.filename or cache_folder()} could not be read or written: {error.strerror}",
            "free some room, or set HF_HOME, the Hub's cache, to another folder",
        ) from error
    said = " ".join(str(getattr(error, "server_message", None) or error).split())[:300] or type(error).__name__
    for kind, ours, message, hint in _TABLE:
        if _status(error) == kind if isinstance(kind, int) else isinstance(error, kind):
            raise ours(message.format(repo=str(repo), said=said), hint) from error
    raise error
