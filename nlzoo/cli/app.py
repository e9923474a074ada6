"""The command line: its commands in groups, and one place where every error becomes a message and an exit code.

Everything heavy is imported inside the command that needs it, so that `nlzoo --help` stays quick.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .. import __version__
from ..core.errors import NlzooError, UsageError
from ..core.text import did_you_mean
from . import answers, arguments, console, fusion, hub, machine, networks, training, videos

CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]  # click.ClickException, wherever this typer keeps click
PIPE_CLOSED = 128 + signal.SIGPIPE


class _Commands(TyperGroup):
    """The commands; an unknown one is an error like any other of ours, with the nearest names."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            hint = did_you_mean(args[0], known, f"the commands: {', '.join(known)}")
            raise UsageError(f"there is no command {args[0]!r}", hint)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="nlzoo",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Non-local I3D networks from ImageNet ResNets, fine-tuned on your own videos.",
    epilog="Start with: nlzoo demo, or nlzoo check VIDEOS and nlzoo finetune VIDEOS.",
)


# panel, name, command, summary and examples, in the order of `nlzoo --help`
_COMMANDS: tuple[tuple[str, str, Callable[..., object], str, *tuple[str, ...]], ...] = (
    (
        "Networks", "inflate", networks.inflate, "Make a 3-D network from a 2-D ResNet.",
        "nlzoo inflate resnet50 --nl 5",
        "nlzoo inflate nl5-i3d-r50-8x8 --name mine",
        "nlzoo inflate resnet18 --weights my2d.safetensors --nl none",
    ),
    (
        "Networks", "import", networks.import_, "Convert a Kinetics checkpoint of another zoo.",
        "nlzoo import nl5-i3d-r50-8x8.authors --labels kinetics400",
        "nlzoo import I3D_8x8_R50.pth --name kinetics",
    ),
    (
        "Networks", "list", networks.list_, "List models, runs and known checkpoints.",
        "nlzoo list",
        "nlzoo list --json",
    ),
    (
        "Networks", "info", networks.info, "Show a model's stages, blocks, cost and classes.",
        "nlzoo info weights/resnet50-nl5",
        "nlzoo info nl5-i3d-r50-8x8",
    ),
    (
        "Networks", "export", networks.export, "Write a model for ONNX, torch, transformers, timm.",
        "nlzoo export runs/videos --to onnx",
        "nlzoo export runs/videos --to onnx --int8 --out small/",
        "nlzoo export runs/videos --to transformers",
    ),
    (
        "Videos", "check", videos.check, "Find what is wrong with videos before training.",
        "nlzoo check videos/",
        "nlzoo check list.csv --deep",
    ),
    (
        "Videos", "prepare", videos.prepare, "Copy videos into small ones that are quick to read.",
        "nlzoo prepare videos/ small/ --size 256",
    ),
    (
        "Training", "finetune", training.finetune, "Train a classifier on your videos.",
        "nlzoo finetune videos/",
        "nlzoo finetune videos/ --from nl5-i3d-r50-8x8.authors --recipe paper,epochs=20",
        "nlzoo finetune videos/ --resume",
    ),
    (
        "Training", "probe", answers.probe_, "Train a linear classifier on a model's features.",
        "nlzoo probe weights/resnet50-nl5 videos/",
        "nlzoo probe vit_small_patch14_dinov2 videos/",
    ),
    (
        "Training", "fuse", fusion.fuse, "Make one model of several runs (late fusion).",
        "nlzoo fuse videos-1 videos-2",
        "nlzoo fuse videos-rgb videos-flow --by weights --name two-stream",
    ),
    (
        "Training", "compare", fusion.compare, "Compare systems on your videos, in one table.",
        "nlzoo compare videos/",
        "nlzoo compare videos/ --probe vit_small_patch14_dinov2 --seeds 3",
        "nlzoo compare videos/ --system probe --system i3d --system nl-i3d",
    ),
    (
        "Results", "eval", answers.eval_, "Measure a model on labelled videos.",
        "nlzoo eval runs/videos videos/",
        "nlzoo eval runs/videos videos/ --control --out rows.csv",
    ),
    (
        "Results", "predict", answers.predict, "Classify videos.",
        "nlzoo predict runs/videos clip.mp4",
        "nlzoo predict runs/videos day.mp4 --every 1s --out windows.csv",
    ),
    (
        "Results", "explain", answers.explain_, "Show the evidence for a prediction, as pictures.",
        "nlzoo explain runs/videos clip.mp4 --out pictures/",
    ),
    (
        "Results", "report", answers.report, "Write a run's figures and curves as one HTML page.",
        "nlzoo report runs/videos",
    ),
    (
        "Results", "serve", answers.serve, "Start a local web demo.",
        "nlzoo serve runs/videos --port 7860",
    ),
    (
        "Hub", "push", hub.push, "Publish a model to the Hugging Face Hub.",
        "nlzoo push runs/videos --dry-run",
        "nlzoo push runs/videos alice/gestures",
        "nlzoo push runs/videos alice/gestures --public --tag v1.0",
    ),
    (
        "Hub", "pull", hub.pull, "Fetch a model from the Hugging Face Hub.",
        "nlzoo pull alice/gestures",
        "nlzoo pull alice/gestures --revision v1.0 --name gestures-v1",
    ),
    (
        "This machine", "demo", machine.demo, "Run the whole job on drawn videos, offline.",
        "nlzoo demo",
    ),
    (
        "This machine", "bench", machine.bench, "Measure how fast this machine trains a model.",
        "nlzoo bench",
        "nlzoo bench weights/nl5-i3d-resnet50 ./videos",
    ),
    (
        "This machine", "doctor", machine.doctor, "Show what this machine can do.",
        "nlzoo doctor",
    ),
)  # fmt: skip
for panel, name, command, summary, *examples in _COMMANDS:
    epilog = "\n\n".join(["Examples:", *examples])  # of its own help
    app.command(name, cls=arguments.Command, short_help=summary, epilog=epilog, rich_help_panel=panel)(command)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Before every command."""
    console.tame_libraries()
    console.status(f"starting {ctx.invoked_subcommand} …")


def main() -> NoReturn:
    """Runs the command line and exits: 0, the code of the `NlzooError`, or 130 when interrupted."""
    console.state.json = "--json" in sys.argv[1:]  # also for errors of the arguments themselves
    try:
        code = app(prog_name="nlzoo", standalone_mode=False)
    except NlzooError as problem:
        code = _fail(problem)
    except CLICK_ERROR as problem:
        code = _fail_usage(problem)
    except typer.Abort as abort:
        console.log("aborted")
        code = 130 if isinstance(abort.__cause__, KeyboardInterrupt) else 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone: `nlzoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    console.end_status()
    sys.exit(code or 0)


def _fail(problem: NlzooError) -> int:
    console.error(problem)
    return problem.exit_code


def _fail_usage(problem: Any) -> int:
    """An error of click's as one of ours."""
    if type(problem).__name__ == "NoArgsIsHelpError":
        problem.show()
        return problem.exit_code
    near = getattr(problem, "possibilities", None)
    message = problem.message if near else problem.format_message()
    command = " ".join(["nlzoo", *(word for word in sys.argv[1:2] if not word.startswith("-"))])
    hint = f"did you mean {' or '.join(near)}?" if near else f"{command} --help lists arguments and options"
    return _fail(UsageError(message[:1].lower() + message[1:].rstrip("."), hint))
