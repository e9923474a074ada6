"""Commands on this machine: demo, doctor."""

import typer

from . import console
from .options import Json


def demo(json: Json = False) -> None:
    """The whole job on drawn videos and an embedded backbone: offline, without a GPU, in under three minutes."""
    from ..apps import demo as job

    console.result(job.run(console.log), "")


def doctor(json: Json = False) -> None:
    """What this machine can do, and how to fix what it cannot."""
    import dataclasses

    from ..apps import doctor as examiner

    console.status("examining this machine …")
    findings = examiner.examine()
    console.result([dataclasses.asdict(f) for f in findings])
    marks = {True: "ok", False: "problem", None: "note"}
    console.table(["", "what", "here", "fix"], [[marks[f.ok], f.name, f.value, f.fix] for f in findings])
    if any(f.ok is False for f in findings):
        raise typer.Exit(1)
