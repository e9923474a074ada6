"""Commands of the Hub: push, pull."""

import dataclasses
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core import files
from ..core.errors import UsageError
from ..core.text import printable
from . import console
from .options import TARGET, Json

if TYPE_CHECKING:
    from ..apps.hub import Pushed

_NAMES = {"model": "model", "space": "Space"}


def push(
    model: Annotated[str | None, typer.Argument(help="A run or model folder; the newest finished run.")] = None,
    repo_id: Annotated[str | None, typer.Argument(help="user/name or name on the Hub; the run's name.")] = None,
    repo: Annotated[str | None, typer.Option(help="The same as an option.", rich_help_panel=TARGET)] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.", rich_help_panel=TARGET)] = True,
    revision: Annotated[
        str | None, typer.Option(help="A branch instead of main; made where there is none.", rich_help_panel=TARGET)
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="A name for this version, such as v1.0.", rich_help_panel=TARGET)
    ] = None,
    to: Annotated[
        str, typer.Option(help="nlzoo, or transformers: for its pipelines.", rich_help_panel=TARGET)
    ] = "nlzoo",
    space: Annotated[
        bool, typer.Option("--space", help="Also a Space: the web demo of the model.", rich_help_panel=TARGET)
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and bytes, send nothing.")] = False,
    json: Json = False,
) -> None:
    """Publish a model to the Hugging Face Hub, private unless you say otherwise."""
    from ..networks import download, zoo

    if repo and repo_id and repo != repo_id:
        raise UsageError(f"two names for one push: {repo_id!r} and --repo {repo!r}", "leave one of them out")
    if space:
        _refuse_beside_space(revision, to)
    repo = repo or repo_id
    _refuse_swapped(model, repo)
    folder = download.locate(model) if model else zoo.newest_run()

    from ..apps import hub

    run = zoo.home(folder)
    repo = repo or run.name
    hub.refuse_name(repo, f"nlzoo push {shlex.quote(str(run))} ")
    doubts = _doubts(folder)
    for doubt in doubts:
        console.warn(doubt)
    kinds: dict[str, Callable[..., Pushed]] = {"model": partial(hub.push, revision=revision, tag=tag, to=to)}
    kinds |= {"space": hub.push_space} if space else {}
    plans = {kind: send(folder, repo, private, dry_run=True) for kind, send in kinds.items()}
    _tell_plans(folder, plans, private, {"revision": revision, "tag": tag})
    if dry_run:
        return console.result(_as_json(plans), "nothing was sent (--dry-run)")
    if not yes:
        _confirm("send it?", *(f"{doubt}; send it all the same?" for doubt in doubts))
    done = _send(kinds, folder, repo, private)
    console.result(_as_json(done), _sent_in_words(done, tag or revision, to))


def _refuse_beside_space(revision: str | None, to: str) -> None:
    if revision:
        raise UsageError("a Space shows what is on main: --space goes without --revision", "push it a second time")
    if to != "nlzoo":
        raise UsageError(f"a Space runs nlzoo: --space goes without --to {to}", "push it a second time")


def _refuse_swapped(model: str | None, repo: str | None) -> None:
    """`hf upload` has the repository first: what is none of ours and looks like one was meant as that."""
    from ..networks import download, zoo

    if model is None or zoo.find(model) or not download.looks_like_repo(model):
        return
    if repo is None:
        raise UsageError(
            f"there is no model {model!r} here to push", f"to publish a run under that name: nlzoo push RUN {model}"
        )
    if zoo.find(repo):
        raise UsageError("the model comes first, then its name on the Hub", f"nlzoo push {shlex.quote(repo)} {model}")


def _doubts(folder: Path) -> list[str]:
    """Why somebody may not want to publish this model, as sentences."""
    from ..networks import zoo

    doubts = list(filter(None, [zoo.unfinished_note(folder)]))
    spec = zoo.read_spec(folder)
    if spec.inflation.init != "imported" and not spec.classes:
        doubts.append(f"{printable(folder)} has never been trained on videos")
    return doubts


def _tell_plans(folder: Path, plans: dict[str, "Pushed"], private: bool, on_branch: dict[str, str | None]) -> None:
    for kind, plan in plans.items():
        console.log(_plan_in_words(folder, _NAMES[kind], plan, private, on_branch if kind == "model" else {}))


def _plan_in_words(folder: Path, kind: str, plan: "Pushed", private: bool, destination: dict[str, str | None]) -> str:
    who = "private" if private else "public: everybody can see it"
    who = ", ".join([*(f"{name} {value}" for name, value in destination.items() if value), who])
    rows = [f"  {file['path']:20} {file['bytes']:>12,} bytes" for file in plan.files]
    return "\n".join([f"{folder} to the {kind} {plan.repo}, {who}:", *rows])


def _confirm(*questions: str) -> None:
    """Goes on where all are answered with yes."""
    if not sys.stdin.isatty():
        raise UsageError("push asks before it sends, and this is not a terminal", "use --yes")
    for question in questions:
        if not typer.confirm(question, err=True):
            raise typer.Exit(0)


def _send(kinds: dict[str, Callable[..., "Pushed"]], folder: Path, repo: str, private: bool) -> dict[str, "Pushed"]:
    """One after another, the later ones to the user/name that the Hub gave the first."""
    done = {}
    for kind, send in kinds.items():
        console.log(f"sending the {_NAMES[kind]} {repo} to the Hub")
        done[kind] = send(folder, repo, private)
        repo = done[kind].repo
    return done


def _sent_in_words(done: dict[str, "Pushed"], version: str | None, to: str) -> str:
    """Where each went, and how the model is loaded: `version` is its tag or branch, None for main."""
    sent = [f"{pushed.url}\n{pushed.uploaded_bytes:,} bytes sent" for pushed in done.values()]
    repo = list(done.values())[-1].repo
    fetched = f"nlzoo pull {repo} --revision {version}" if version else f"nlzoo.load({repo!r})"
    if to == "transformers":
        fetched = f'pipeline("video-classification", model="{repo}", trust_remote_code=True)'
    return "\n".join([*sent, f"load it with: {fetched}"])


def _as_json(pushed: dict[str, "Pushed"]) -> dict:
    """The model's, with that of its Space beside it."""
    kinds = {kind: dataclasses.asdict(one) for kind, one in pushed.items()}
    return {**kinds.pop("model"), **kinds}


def pull(
    repo: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    name: Annotated[str | None, typer.Option(help="Folder in weights/; the repository's name.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit; the newest commit of main.")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face Hub into weights/NAME."""
    from ..networks import download, zoo

    if not download.looks_like_repo(repo):
        raise UsageError(f"{repo!r} is not user/name", download.what_repo_was_meant(repo))
    folder = zoo.WEIGHTS / zoo.folder_name(name or repo.split("/")[1])
    download.refuse_revision(revision or "main")
    files.check_folder(folder)
    console.log(f"fetching {repo} from the Hub")
    download.pull_to(repo, folder, revision)
    console.result({"repo": repo, "model": str(folder)}, f"wrote {folder}")
