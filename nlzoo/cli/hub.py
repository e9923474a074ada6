"""Commands of the Hub: push, pull."""

import sys
from typing import Annotated

import typer

from ..core.errors import UsageError
from . import console
from .options import Json


def push(
    model: Annotated[str | None, typer.Argument(help="A run or model folder; the newest finished run.")] = None,
    repo: Annotated[str | None, typer.Option(help="user/name or name on the Hub; the run's name.")] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Also a Space: a page of that name where one drops a video.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and bytes, send nothing.")] = False,
    json: Json = False,
) -> None:
    """Publish a model to the Hugging Face Hub, private unless you say otherwise."""
    from ..apps import hub
    from ..networks import download, zoo

    folder = download.locate(model) if model else zoo.newest_run()
    repo = repo or (folder.parent.name if folder.name in ("best", "last") else folder.name)
    plans = {"model": hub.push(folder, repo, private, dry_run=True)} | (
        {"space": hub.push_space(folder, repo, private, dry_run=True)} if space else {}
    )
    who = "only you can see" if private else "everybody can see"
    for kind, plan in plans.items():
        listing = "\n".join(f"  {f['path']:20} {f['bytes']:>12,} bytes" for f in plan.files)
        console.log(f"{folder} to the {kind} {plan.repo}, which {who}:\n{listing}")
    if dry_run:
        return console.result(_pushed(plans), "nothing was sent (--dry-run)")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("push asks before it sends, and there is nobody to ask", "add --yes")
        if not typer.confirm("send it?", err=True):
            raise typer.Exit(0)
    done = {"model": hub.push(folder, repo, private)}
    if space:
        done["space"] = hub.push_space(folder, done["model"].repo, private)
    console.result(
        _pushed(done),
        "\n".join(f"{d.url}\n{d.uploaded_bytes:,} bytes sent" for d in done.values())
        + f"\nload it with: nlzoo.load({done['model'].repo!r})",
    )


def _pushed(done):
    import dataclasses

    return dataclasses.asdict(done["model"]) | {
        kind: dataclasses.asdict(what) for kind, what in done.items() if kind != "model"
    }


def pull(
    repo: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    name: Annotated[str | None, typer.Option(help="Folder in weights/; the repository's name.")] = None,
    json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face Hub into weights/NAME."""
    from ..networks import download, zoo

    if not download.looks_like_repo(repo):
        raise UsageError(f"{repo!r} is not user/name", "for example: nlzoo pull alice/gestures")
    folder = download.pull_to(repo, zoo.WEIGHTS / zoo.folder_name(name or repo.split("/")[1]))
    console.result({"repo": repo, "model": str(folder)}, f"wrote {folder}")
