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
    results = examiner.examine()
    console.result([dataclasses.asdict(result) for result in results])
    marks = {True: "ok", False: "problem", None: "note"}
    console.table(["", "what", "here", "fix"], [[marks[r.ok], r.name, r.value, r.fix] for r in results])
    if any(result.ok is False for result in results):
        raise typer.Exit(1)
