"""The command line: one short function per command. Everything heavy is imported inside the command that needs it."""

import os
import signal
import sys
from typing import Annotated

import typer

from .. import __version__
from ..core.errors import NlzooError
from . import answers, console, hub, machine, networks, training, videos

app = typer.Typer(
    name="nlzoo",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Non-local I3D networks from ImageNet ResNets, fine-tuned on your own videos.",
)

# in the order of `nlzoo --help`
app.command()(networks.inflate)
app.command("import")(networks.import_)
app.command()(videos.check)
app.command()(videos.prepare)
app.command()(training.finetune)
app.command("eval")(answers.eval_)
app.command()(answers.predict)
app.command()(training.probe)
app.command("explain")(answers.explain_)
app.command()(answers.report)
app.command()(answers.serve)
app.command("list")(networks.list_)
app.command()(networks.info)
app.command()(hub.push)
app.command()(hub.pull)
app.command()(machine.demo)
app.command()(machine.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
):
    pass


def main() -> None:
    """Runs the command line and exits: 0, or the code of the `NlzooError`, or 130 when interrupted."""
    try:
        app()
    except NlzooError as problem:
        console.error(problem)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has gone: `nlzoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
