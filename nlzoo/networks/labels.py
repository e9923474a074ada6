"""Names for the outputs of an imported network: of a file, or of Kinetics-400 by its name.

No checkpoint says what its outputs mean; they are in the order of its zoo's own label file. For Kinetics-400 that is
one order: classids.json of the authors (and SlowFast's and pytorchvideo's kinetics_classnames.json), mmaction2's
label_map_k400.txt and torchvision's list are the same 400 names in the same order (docs/import.md).
"""

import dataclasses
from pathlib import Path

from ..core import files
from ..core.errors import UsageError
from ..core.model_spec import ModelSpec
from ..core.text import counted, printable

KINETICS400 = "kinetics400"
_HINT = f"a name on each line, a JSON list, a JSON object of names and numbers, or --labels {KINETICS400}"


def read(labels: str) -> tuple[str, ...]:
    """The names that `labels` says, a file or `kinetics400`, in the order of the outputs. Raises `UsageError`."""
    if labels == KINETICS400:
        from . import vision  # imports torch

        return vision.kinetics400()
    file = Path(labels)
    if not file.is_file():
        raise UsageError(f"--labels {printable(file)} is no file", _HINT)
    text = files.read_text(file)
    if file.suffix.lower() != ".json":
        return tuple(line.strip() for line in text.strip().splitlines())
    data = files.parse_json(text, file)
    names = data if isinstance(data, list) else _by_number(data) if isinstance(data, dict) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise UsageError(f"--labels {printable(file)} is not a list of names", _HINT)
    return tuple(name.strip('"') for name in names)  # Kinetics' own file has quotes inside of its quotes


def name_outputs(spec: ModelSpec, names: tuple[str, ...]) -> ModelSpec:
    """`spec` with names for its outputs. Raises `UsageError` where they are not as many, or repeat."""
    if len(names) != spec.num_outputs:
        raise UsageError(
            f"--labels has {counted(len(names), 'name')}, and the network {counted(spec.num_outputs, 'output')}",
            "give the label file of the set that it was trained on",
        )
    try:
        return dataclasses.replace(spec, classes=names)
    except UsageError as error:
        raise UsageError(f"--labels: {error.message}", _HINT) from None


def _by_number(data: dict) -> list | None:
    """The names of `{name: number}`, as in Kinetics' own file, or of `{number: name}`; None where it is neither."""
    if not all(type(number) is int for number in data.values()):
        if not all(key.isdecimal() and isinstance(name, str) for key, name in data.items()):
            return None
        data = {name: int(key) for key, name in data.items()}
    ranked = sorted(data, key=lambda name: data[name])
    return ranked if [data[name] for name in ranked] == list(range(len(ranked))) else None
