"""Commands of the Hub: push, pull."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UsageError
from . import console
from .options import Json

if TYPE_CHECKING:
    from ..apps.hub import Pushed

_NAMES = {"model": "model", "space": "Space"}


def push(
    model: Annotated[str | None, typer.Argument(help="A run or model folder; the newest finished run.")] = None,
    repo: Annotated[str | None, typer.Option(help="user/name or name on the Hub; the run's name.")] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    space: Annotated[bool, typer.Option("--space", help="Also a Space: the web demo of the model.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and bytes, send nothing.")] = False,
    json: Json = False,
) -> None:
    """Publish a model to the Hugging Face Hub, private unless you say otherwise."""
    from ..networks import download, zoo

    folder = download.locate(model) if model else zoo.newest_run()

    from ..apps import hub

    in_run = folder.name in ("best", "last")
    repo = repo or (folder.parent.name if in_run else folder.name)
    if in_run and zoo.is_unfinished(folder.parent):
        console.warn(f"the run {folder.parent} is unfinished: this is its best model so far")
    kinds = {"model": hub.push, "space": hub.push_space} if space else {"model": hub.push}
    plans = {kind: send(folder, repo, private, dry_run=True) for kind, send in kinds.items()}
    for kind, plan in plans.items():
        console.log(_plan_in_words(folder, _NAMES[kind], plan, private))
    if dry_run:
        return console.result(_as_json(plans), "nothing was sent (--dry-run)")
    if not yes:
        _confirm()
    done = {}
    for kind, send in kinds.items():
        console.log(f"sending the {_NAMES[kind]} {repo} to the Hub")
        done[kind] = send(folder, repo, private)
        repo = done[kind].repo
    sent = [f"{pushed.url}\n{pushed.uploaded_bytes:,} bytes sent" for pushed in done.values()]
    console.result(_as_json(done), "\n".join([*sent, f"load it with: nlzoo.load({repo!r})"]))


def _plan_in_words(folder: Path, kind: str, plan: "Pushed", private: bool) -> str:
    who = "private" if private else "public: everybody can see it"
    rows = [f"  {file['path']:20} {file['bytes']:>12,} bytes" for file in plan.files]
    return "\n".join([f"{folder} to the {kind} {plan.repo}, {who}:", *rows])


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise UsageError("push asks before it sends, and this is not a terminal", "use --yes")
    if not typer.confirm("send it?", err=True):
        raise typer.Exit(0)


def _as_json(pushed: dict[str, "Pushed"]) -> dict:
    """The model's, with that of its Space beside it."""
    kinds = {kind: dataclasses.asdict(one) for kind, one in pushed.items()}
    return {**kinds.pop("model"), **kinds}


def pull(
    repo: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    name: Annotated[str | None, typer.Option(help="Folder in weights/; the repository's name.")] = None,
    json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face Hub into weights/NAME."""
    from ..networks import download, zoo

    if not download.looks_like_repo(repo):
        raise UsageError(f"{repo!r} is not user/name", "for example: nlzoo pull alice/gestures")
    folder = zoo.WEIGHTS / zoo.folder_name(name or repo.split("/")[1])
    console.log(f"fetching {repo} from the Hub")
    download.pull_to(repo, folder)
    console.result({"repo": repo, "model": str(folder)}, f"wrote {folder}")
