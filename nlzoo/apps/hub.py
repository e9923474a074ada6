"""Model folders to the Hugging Face Hub, and a page for one.

Unusual: nothing but named files travels (four of a model, three of a Space), in one commit on top of the commit that
was looked at. A push is private unless asked otherwise, and never changes who may see a repository. Since a lost reply
looks like a failure, every new try of a commit first asks the Hub whether the last one arrived.
"""

import dataclasses
import json
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub  # imports its parts when they are used
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..core import files as disk
from ..core.bounds import one_of
from ..core.errors import HubError, WeightsError
from ..core.model_spec import ModelSpec, from_json
from ..core.text import printable
from ..networks import card, hub_client
from ..networks.download import FILES, NEEDED, looks_like_repo, refuse_revision
from ..networks.hub_client import LOGIN, MAIN, Repo, RepoState
from . import hub_card, leaks

# names that a push writes, or deletes where it has them not
_MODELS = {"nlzoo": FILES, "transformers": hub_card.TRANSFORMERS_FILES}  # by their library
_MAX_HEADER = 100 << 20  # bytes, safetensors' own limit
_MAX_NAME = 96  # characters of a repository's name

LIBRARIES = tuple(_MODELS)

Contents = Mapping[str, Path | bytes]  # by name; a path for the weights. Text is of memory: what was checked is sent


@dataclass(frozen=True)
class Pushed:
    """What a push did, or with `dry_run` would do."""

    repo: str  # user/name
    url: str
    commit: str  # that holds these files; empty after a dry run
    files: list[dict]  # {"path", "bytes"} of every file of the push, also those that were there already
    uploaded_bytes: int  # of the files that were new or had changed


@dataclass(frozen=True)
class _Model:
    """A sound model folder that gives nothing away."""

    folder: Path
    spec: ModelSpec
    metrics: dict
    texts: dict[str, str]  # of `FILES` but the weights


def push(
    folder: Path,
    repo: str,
    private: bool = True,
    dry_run: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    to: str = "nlzoo",
) -> Pushed:
    """Put the model folder on the Hub as `repo` (`user/name`, or `name`) in one commit; none if it is there already.

    `revision`: a branch, made where there is none, instead of main; `tag`: a name for the commit, which must be new
    or this commit's already. `to`: `transformers` for what `export` writes for it. A dry run checks everything that
    can be checked here and asks the Hub nothing (so a bare name stays bare). Raises `WeightsError` for a folder that is
    not a sound model; `HubError` for a name that the Hub does not take, text that gives this machine away, a repository
    whose visibility is not the one asked for or that changed meanwhile, and whatever the Hub refuses.
    """
    one_of(to, LIBRARIES, "--to")
    target = Repo(repo, branch=revision or MAIN, library=to)
    if to == "nlzoo":
        return _push(Path(folder), target, private, dry_run, tag)
    refuse_name(repo)

    from . import export  # torch

    with tempfile.TemporaryDirectory(prefix="nlzoo-") as scratch:
        exported = Path(export.export(folder, to, Path(scratch) / "model").folder)
        return _push(Path(folder), target, private, dry_run, tag, exported)


def push_space(folder: Path, repo: str, private: bool = True, dry_run: bool = False) -> Pushed:
    """Put a Space `repo` on the Hub: the page of `nlzoo serve` for the model that `push` put there under that name.

    As careful as `push`, and raises the same; also `HubError` for a Space that holds an app which is not ours.
    """
    return _push(Path(folder), Repo(repo, "space"), private, dry_run)


def _push(
    folder: Path, repo: Repo, private: bool, dry_run: bool, tag: str | None = None, exported: Path | None = None
) -> Pushed:
    refuse_name(repo.name)
    refuse_revision(repo.branch)
    refuse_revision(tag or MAIN, "--tag")
    model = _read_model(folder)  # before the first request
    if not dry_run and not hub_client.has_token():
        raise HubError("this machine is not logged in to the Hub", LOGIN)
    if not dry_run and "/" not in repo.name:
        repo = dataclasses.replace(repo, name=f"{hub_client.whoami()}/{repo.name}")
    contents = _exported(model, repo, exported) if exported else _contents(model, repo)
    commit, sent = ("", 0) if dry_run else _upload(repo, contents, private, tag)
    listing = [{"path": name, "bytes": _size(content)} for name, content in contents.items()]
    return Pushed(repo.name, repo.url, commit, listing, sent)


def _upload(repo: Repo, contents: Contents, private: bool, tag: str | None) -> tuple[str, int]:
    """The commit that holds these files, with its tag, and how many bytes were sent for it. Raises `HubError`."""
    state = _repository(repo, private)
    tagged = _tagged(repo, tag)
    if tagged and (tagged != state.commit or any(_difference(repo, contents, state))):
        raise HubError(
            f"{repo} has a tag {tag!r} already, of the commit {tagged}; nothing was uploaded", "give another --tag"
        )
    commit, sent = _commit(repo, contents, state, private)
    if private and not hub_client.repo_state(repo).private:
        raise HubError(
            f"{repo} was made public during the push, and everybody can see its commit {commit}",
            f"make it private again or delete it: {repo.url}/settings",
        )
    if tag and not tagged:  # one that is there now is that of a try whose reply was lost
        hub_client.ask(repo, lambda: hub_client.client().create_tag(repo.name, tag=tag, revision=commit, exist_ok=True))
    return commit, sent


# --- names


def refuse_name(name: str, command: str = "") -> None:
    """Raises `HubError` for what cannot name a repository, with the rule that it breaks and a name that would do.

    The rules are the Hub's, which knows letters of ASCII alone, and that `pull` must not take the name for a path.
    `command`: stands before the proposed name in the hint.
    """
    if rule := _broken_rule(name):
        raise HubError(
            f"'{printable(name)}' is not a name for a model on the Hub: {rule}",
            f"for example {command}{propose(name)}",
        )


def _broken_rule(name: str) -> str:
    """The first rule that a name breaks, "" where it may be a repository's."""
    parts = name.split("/")
    strange = re.findall(r"[^A-Za-z0-9_.\-/]", name)
    if len(parts) > 2 or not all(parts):
        return "it has the form user/name, or name"
    if strange:
        return f"only the letters A to Z, digits, '-', '_' and '.' may be in it, and no {printable(strange[0])!r}"
    if len(parts[-1]) > _MAX_NAME:
        return f"a name has at most {_MAX_NAME} characters, and this has {len(parts[-1])}"
    if any(part[0] in "-." or part[-1] in "-." for part in parts):
        return "it may not begin or end with '-' or '.'"
    if "--" in name or ".." in name:
        return "'--' and '..' may not be in it"
    if name.endswith(".git"):
        return "it may not end with '.git'"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return printable(str(error))
    if not looks_like_repo(name if "/" in name else f"user/{name}"):
        return "pull and predict would take it for a path of this machine"
    return ""


def propose(name: str) -> str:
    """The nearest name that the Hub takes: letters without their accents, and '-' for all else."""
    *user, last = name.rstrip("/").split("/")[-2:]
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", plain)
    plain = re.sub(r"\.{2,}", ".", plain).strip("-.")[:_MAX_NAME].strip("-.")
    bare = plain if not _broken_rule(plain) else os.path.splitext(plain)[0].strip("-.")
    proposed = bare if bare and not _broken_rule(bare) else "my-model"
    return "/".join([*user, proposed]) if user and not _broken_rule(f"{user[0]}/{proposed}") else proposed


# --- what goes into a push


def _read_model(folder: Path) -> _Model:
    """Raises the refusals of `push`."""
    missing = [n for n in NEEDED if not (folder / n).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} is not a model folder: it has no {' and no '.join(missing)}",
            "give a folder that nlzoo inflate or finetune wrote, such as runs/NAME/best",
        )
    texts = {n: disk.read_text(folder / n) for n in FILES[1:] if (folder / n).is_file()}
    config, figures = folder / "config.json", folder / "metrics.json"
    spec = from_json(disk.parse_object(texts["config.json"], config), str(config))
    metrics = disk.parse_object(texts.get("metrics.json", "{}"), figures)
    if any(isinstance(v, dict) for v in metrics.values()):
        raise WeightsError(f"{figures} is not a flat JSON object", "remove it, or evaluate again")
    texts.setdefault("README.md", card.body(spec, metrics))
    for name, text in {**texts, FILES[0]: _header(folder / FILES[0])}.items():
        if leak := leaks.find_leak(text, folder) or _host(spec.source if name == "config.json" else text, spec):
            raise HubError(
                f"{name} in {folder} contains {leak}; nothing was uploaded",
                f"take it out of {name}; a push must not tell where or by whom it was made",
            )
    return _Model(folder, spec, metrics, texts)


def _header(file: Path) -> str:
    """The JSON header of a .safetensors file; its shapes and values are the loader's concern."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise ValueError("its header has no such length")
            header = stream.read(length).decode()
        json.loads(header)
    except (ValueError, RecursionError):
        raise WeightsError(f"{file} is not a whole .safetensors file") from None
    return header


def _host(text: str, spec: ModelSpec) -> str:
    """This machine's name where it is in `text` for no other reason."""
    figures = dict.fromkeys(("top1", "top5", "map", "majority", "val", "train", "epochs"), 0.5)
    checks = dict.fromkeys(("nonlocal_identical", "still_clip_error", "moving_clip_error"), 0.5)
    bare = dataclasses.replace(spec, source="", licence="")
    words = (
        card.body(bare, figures, checks),
        *figures,
        *spec.classes,
        "localhost format pt dtype shape interval groups",
    )
    return leaks.find_host(text, " ".join(words))


def _contents(model: _Model, repo: Repo) -> Contents:
    """The files as they will be on the Hub: of the model, README.md with the Hub's front matter, or of its Space."""
    if repo.kind == "space":
        return {name: text.encode() for name, text in hub_card.space(repo, model.spec).items()}
    readme = hub_card.readme(model.texts["README.md"], repo.name, model.spec, model.metrics)
    texts = {**model.texts, "README.md": readme}
    return {FILES[0]: model.folder / FILES[0], **{n: texts[n].encode() for n in FILES if n in texts}}


def _exported(model: _Model, repo: Repo, folder: Path) -> Contents:
    """The files of an export for another library, its README.md with the Hub's front matter."""
    text = card.body(model.spec, model.metrics, use=card.transformers_usage(repo.name))
    readme = hub_card.readme(text, repo.name, model.spec, model.metrics, repo.library)
    texts = {name: (folder / name).read_bytes() for name in _ours(repo)[1:]} | {"README.md": readme.encode()}
    return {FILES[0]: folder / FILES[0], **texts}


def _ours(repo: Repo) -> tuple[str, ...]:
    return hub_card.SPACE_FILES if repo.kind == "space" else _MODELS[repo.library]


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


# --- the repository


def _state(repo: Repo) -> RepoState | None:
    """The repository at its newest commit, or None where there is none."""
    try:
        return hub_client.repo_state(repo, None, _ours(repo))
    except HubError as error:
        if type(error.__cause__) is RepositoryNotFoundError:  # not its child for a gated one
            return None
        raise


def _tagged(repo: Repo, tag: str | None) -> str:
    """The commit that has the tag; "" where none has it."""
    if not tag:
        return ""
    refs = hub_client.ask(repo, lambda: hub_client.client().list_repo_refs(repo.name))
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), "")


def _repository(repo: Repo, private: bool) -> RepoState:
    """The repository as it is, created if need be, and seen by those it was asked for."""
    state = _state(repo)
    if state is None:
        sdk = "gradio" if repo.kind == "space" else None
        try:
            hub_client.ask(
                repo,
                lambda: hub_client.client().create_repo(repo.name, private=private, repo_type=repo.kind, space_sdk=sdk),
            )
        except HubError as error:
            if (
                hub_client.status(error.__cause__) != 409
            ):  # it exists: a try whose reply was lost, or somebody was first
                raise
        state = _state(repo)
    if state is None:
        raise HubError(f"{repo} was created, but this login may not see it", "check the rights of the token")
    _refuse_visibility(repo, state, private)
    if other := _other(repo, state):
        raise HubError(f"{repo} holds {other}; nothing was uploaded", "push to another name")
    return state if repo.branch == MAIN else _branch(repo, state)


def _branch(repo: Repo, main: RepoState) -> RepoState:
    """The branch at its newest commit, begun at main's where there is none."""
    try:
        return hub_client.repo_state(repo, repo.branch, _ours(repo))
    except HubError as error:
        if type(error.__cause__) is not RevisionNotFoundError:
            raise
    hub_client.ask(
        repo,
        lambda: hub_client.client().create_branch(repo.name, branch=repo.branch, revision=main.commit, exist_ok=True),
    )
    return hub_client.repo_state(repo, repo.branch, _ours(repo))


def _refuse_visibility(repo: Repo, state: RepoState, private: bool) -> None:
    if private and not state.private:
        raise HubError(
            f"{repo} is public on the Hub; nothing was committed",
            "--public if everybody may see it; otherwise push to another name",
        )
    if state.private and not private:
        raise HubError(
            f"{repo} is private on the Hub; nothing was committed",
            "push without --public, or make it public in its settings on the Hub first",
        )


def _other(repo: Repo, state: RepoState) -> str:
    """What a repository holds that is not ours, in words; empty where nothing is, or an older push."""
    if repo.kind == "model":
        ours = repo.library == "nlzoo" or "nlzoo" in state.tags
        return f"a model of {state.library}" if state.library not in ("", repo.library if ours else "") else ""
    return "an app of another kind" if "app.py" in state.files and "nlzoo" not in state.tags else ""


# --- the commit


def _revision(repo: Repo) -> str | None:
    """The branch as the client takes it: none for the main one."""
    return None if repo.branch == MAIN else repo.branch


def _commit(repo: Repo, contents: Contents, state: RepoState, private: bool) -> tuple[str, int]:
    """`(commit, uploaded bytes)`: at most one commit, on top of `state`, however often a reply is lost."""
    parent, sent = state.commit, 0
    for wait in (*hub_client.WAITS, None):
        changed, gone = _difference(repo, contents, state)
        if not changed and not gone:
            return state.commit, sent
        sent = sum(_size(content) for content in changed.values())
        try:
            return _send(repo, changed, gone, parent, private), sent
        except HubError as error:
            failure, cause = error, error.__cause__
        moved = hub_client.status(cause) in (409, 412)
        if not moved and not (isinstance(cause, Exception) and hub_client.may_pass(cause)):
            raise failure
        time.sleep(0 if moved or wait is None else wait)
        state = hub_client.repo_state(repo, _revision(repo), _ours(repo))  # is it already there?
        if any(_difference(repo, contents, state)) and (moved or state.commit != parent):
            raise _changed(repo) from cause
    if not any(_difference(repo, contents, state)):
        return state.commit, sent
    raise failure


def _send(repo: Repo, changed: Contents, gone: list[str], parent: str, private: bool) -> str:
    """The commit that was made. Large files are sent first, so that the last look at the repository is recent."""
    additions = [huggingface_hub.CommitOperationAdd(name, content) for name, content in changed.items()]
    to: dict[str, Any] = {"repo_id": repo.name, "repo_type": repo.kind, "revision": _revision(repo)}
    client = hub_client.client()
    hub_client.ask(repo, lambda: client.preupload_lfs_files(additions=additions, free_memory=False, **to), tries=1)
    state = hub_client.repo_state(repo, _revision(repo))
    _refuse_visibility(repo, state, private)
    if state.commit != parent:
        raise _changed(repo)
    made = hub_client.ask(
        repo,
        lambda: client.create_commit(
            operations=[*additions, *map(huggingface_hub.CommitOperationDelete, gone)],
            commit_message=f"{repo.kind.capitalize()} by nlzoo",
            parent_commit=parent,
            **to,
        ),
        tries=1,
    )
    return made.oid


def _changed(repo: Repo) -> HubError:
    return HubError(
        f"{repo} changed on the Hub during the push; nothing of this push was committed",
        "see what is new there, then push again",
    )


def _difference(repo: Repo, contents: Contents, state: RepoState) -> tuple[dict[str, Path | bytes], list[str]]:
    """`(files to send, names to delete)`; only our own names are ever deleted, as metrics.json of an earlier model."""
    changed = {n: c for n, c in contents.items() if n not in state.files or not state.files[n].is_same(c)}
    return changed, [n for n in _ours(repo) if n in state.files and n not in contents]
