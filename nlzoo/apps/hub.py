"""Model folders to the Hugging Face Hub, and a page for one.

Unusual: nothing but four named files travels (three of a Space), in one commit on top of the commit that was looked at;
a push is private unless asked otherwise and never changes who may see a repository; and since the client does not retry
a commit, and a lost reply looks like a failure, every new try first asks the Hub whether the last one arrived.
"""

import dataclasses
import getpass
import importlib.metadata
import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as theirs

from .. import __version__
from ..core.errors import HubError, WeightsError
from ..core.model_spec import from_json
from ..networks import card, download
from ..networks import hub_client as client
from ..networks.hub_client import FILES, MOST_TEXT, NEEDED, Repo

SPACE_FILES = ("app.py", "requirements.txt", "README.md")
_OURS = {"model": FILES, "space": SPACE_FILES}
GRADIO, PYTHON = "6.31.0", "3.11"  # that a Space runs on; what the tests run with
_MOST_HEADER = 100 << 20  # bytes, safetensors' own limit

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


@dataclass(frozen=True)
class Pushed:
    """What a push did, or with `dry_run` would do."""

    repo: str  # user/name
    url: str
    commit: str  # that holds these files; empty after a dry run
    files: list[dict]  # {"path", "bytes"} of every file of the push, also those that were there already
    uploaded_bytes: int  # of the files that were new or had changed


@dataclass(frozen=True)
class _File:
    name: str
    content: Path | bytes  # a path for the weights; text is sent from memory, so what was checked is what goes
    size: int
    sha256: str
    blob: str  # git's own hash, which the Hub gives for files outside LFS


# --- push


def push(folder: Path, repo: str, private: bool = True, dry_run: bool = False) -> Pushed:
    """Put the model folder on the Hub as `repo` (`user/name`, or `name`) in one commit; none if it is there already.

    A dry run checks everything that can be checked here and asks the Hub nothing (so a bare name stays bare).
    Raises `WeightsError` for a folder that is not a sound model; `HubError` for text that gives this machine away, a
    repository whose visibility is not the one asked for or that changed meanwhile, and whatever the Hub refuses.
    """
    return _push(Path(folder), Repo(repo), private, dry_run)


def push_space(folder: Path, repo: str, private: bool = True, dry_run: bool = False) -> Pushed:
    """Put a Space `repo` on the Hub: the page of `nlzoo serve` for the model that `push` put there from `folder` under that name.

    As careful as `push`, and raises the same; also `HubError` for a Space that holds an app which is not ours.
    """
    return _push(Path(folder), Repo(repo, "space"), private, dry_run)


def _push(folder, repo, private, dry_run):
    client.quiet_without_terminal()
    if not (download.looks_like_repo(repo.name) or download.looks_like_repo(f"user/{repo.name}")):
        raise HubError(
            f"{repo.name!r} is not a name for a model on the Hub",
            "user/name, of letters, digits, '-', '_' and '.', as in: nlzoo push me/waving",
        )
    sound = _sound(folder)  # before the first request
    if dry_run:
        return Pushed(repo.name, repo.url, "", _listing(_files(folder, repo, *sound)), 0)
    if not client.has_token():
        raise HubError("this machine is not logged in to the Hub", client.LOGIN)
    if "/" not in repo.name:
        repo = dataclasses.replace(repo, name=f"{client.whoami()}/{repo.name}")
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
            client.patiently(
                repo, lambda: client.api().create_repo(repo.name, private=private, repo_type=repo.kind, **sdk)
            )
        except HubError as error:
            if (
                client.status(error.__cause__) != 409
            ):  # it exists: a try of ours whose reply was lost, or somebody was first
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
        return client.patiently(repo, lambda: client.repo_info(repo))
    except HubError as error:
        if type(error.__cause__) is theirs.RepositoryNotFoundError:  # not its child for a gated one
            return None
        raise


def _commit(repo, files, info):
    """`(commit, uploaded bytes)`: at most one commit, on top of `info.sha`, however often a reply is lost."""
    parent, sent = info.sha, 0
    for wait in (*client.WAITS, None):
        changed, gone = _difference(repo, files, info)
        if not changed and not gone:
            return info.sha, sent
        sent = sum(f.size for f in changed)
        try:
            return _send(repo, changed, gone, parent), sent
        except client.FAILURES as error:
            problem = client.root(error)
        moved = client.status(problem) in (409, 412)
        if not moved and not client.passing(problem):
            client.raise_ours(problem, repo)
        time.sleep(0 if moved or wait is None else wait)
        info = _info(repo)  # is it already there?
        if info is not None and not any(_difference(repo, files, info)):
            return info.sha, sent
        if moved or info is None or info.sha != parent:
            raise HubError(
                f"{repo} changed on the Hub during the push; nothing of this push was committed",
                "see what is new there, then push again",
            ) from problem
    client.raise_ours(problem, repo)


def _send(repo, changed, gone, parent):
    operations = [huggingface_hub.CommitOperationAdd(f.name, f.content) for f in changed]
    operations += [huggingface_hub.CommitOperationDelete(name) for name in gone]
    client.limit_waiting()
    return (
        client.api()
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
        _File(weights.name, weights, size, *download.hashes(download.chunks(weights), size)),
        *_from_memory({n: texts[n] for n in FILES if n in texts}),
    ]


def _from_memory(texts):
    return [_File(name, text, len(text), *download.hashes([text], len(text))) for name, text in texts.items()]


def _sound(folder):
    """`(spec, metrics, the texts by name)` of a model folder that may be pushed; the refusals of `push` otherwise."""
    missing = [n for n in NEEDED if not (folder / n).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} is not a model folder: it has no {' and no '.join(missing)}",
            "give a folder that nlzoo inflate or finetune wrote, such as runs/NAME/best",
        )
    texts = {n: _text(folder / n) for n in FILES[1:] if (folder / n).is_file()}
    spec = from_json(download.parse_json(texts["config.json"], folder / "config.json"), str(folder / "config.json"))
    metrics = download.parse_json(texts["metrics.json"], folder / "metrics.json") if "metrics.json" in texts else {}
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
        url=Repo(model).url,
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


def _text(file):
    if file.stat().st_size > MOST_TEXT:
        raise WeightsError(f"{file} has {file.stat().st_size} bytes; at most {MOST_TEXT} are pushed")
    content = file.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        raise WeightsError(f"{file} is not UTF-8 text") from None
    return content
