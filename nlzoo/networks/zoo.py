"""What can be had: the backbone that ships with nlzoo, and the model folders and runs in the working folder."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core import files
from ..core.errors import DiskError, UsageError, WeightsError
from ..core.model_spec import Inflation, ModelSpec, from_json
from ..core.text import printable

WEIGHTS = Path("weights")  # default output of `inflate`, in the working folder
RUNS = Path("runs")  # default output of `finetune`
# written before config.json, by which a run is known
_BEFORE_A_RUN = {".lock", "log.txt", "videos.csv", "skipped.csv", "environment.json"}


# backbones in the package, trained by weights/make_tiny.py: timm's architecture, and arguments of its own
EMBEDDED: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("resnet18", {"layers": (2, 2, 2, 2), "channels": (24, 48, 96, 160), "num_classes": 40})
}


INFLATED = "resnet"  # timm's module of the networks that can be inflated


@cache
def image_networks() -> dict[str, str]:
    """timm's networks with the module of each, from its source: importing it, and torch with it, takes seconds."""
    spec = find_spec("timm")
    folders = (spec and spec.submodule_search_locations) or ()
    files_ = (file for folder in folders for file in Path(folder, "models").glob("*.py"))
    sources = ((file.stem, file.read_text(encoding="utf-8")) for file in files_)
    pattern = re.compile(r"^@register_model\ndef (\w+)\(", re.M)
    return {name: module for module, text in sources for name in pattern.findall(text)}


def shipped(name: str) -> Path:
    """A file of weights/ that ships with nlzoo, in the installed package or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    for file in (package / "_weights" / name, package.parent / "weights" / name):
        if file.is_file():
            return file
    raise WeightsError(f"weights/{name} is missing from this installation", "pip install --force-reinstall nlzoo")


def is_model(folder: Path) -> bool:
    """Whether this is a model folder of an inflated or fine-tuned network."""
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def read_spec(folder: Path) -> ModelSpec:
    """The `config.json` of a model folder. Raises `WeightsError`."""
    file = files.current(Path(folder)) / "config.json"
    return from_json(files.read_json(file), str(file))


def read_metrics(folder: Path) -> dict:
    """What its metrics.json says of a trained model; {} where it has none. Raises `WeightsError`."""
    file = files.current(Path(folder)) / "metrics.json"
    return files.read_json(file) if file.is_file() else {}


def models(root: Path = WEIGHTS) -> list[Path]:
    """Model folders in `root`, newest first."""
    return _newest_first(root, is_model, "config.json")


def runs(root: Path = RUNS) -> list[Path]:
    """Finished runs in `root`, newest first."""
    return _newest_first(root, lambda run: (run / "result.json").is_file(), "result.json")


def _newest_first(root: Path, belongs: Callable[[Path], bool], file: str) -> list[Path]:
    dated = []
    for folder in root.glob("[!.]*"):  # without what is being written or removed
        with contextlib.suppress(FileNotFoundError):  # removed or renamed meanwhile
            if belongs(folder):
                dated.append(((folder / file).stat().st_mtime, folder))
    return [folder for _, folder in sorted(dated, key=lambda each: each[0], reverse=True)]


def default_name(spec: ModelSpec) -> str:
    """`nl5-i3d-resnet50` for five blocks in an I3D ResNet-50; the tag and what is not default follow."""
    blocks = sum(len(n.blocks) for n in spec.non_local)
    inflation = spec.inflation
    kinds = {getattr(n, part) for n in spec.non_local for part in ("form", "span")} - {"embedded", "spacetime"}
    changed = [word for word in (inflation.init, inflation.temporal_padding, inflation.pools) if word not in _USUAL]
    parts = [f"nl{blocks}" if blocks else "", inflation.arch, spec.backbone, *sorted(kinds), *changed]
    return folder_name("-".join(part for part in parts if part))


_USUAL = (Inflation.init, Inflation.temporal_padding, Inflation.pools)


def folder_name(name: str) -> str:
    """A name that is one folder below ours. Raises `UsageError` for one that is nothing or would lead elsewhere."""
    plain = re.sub(r"[^\w.\-]+", "-", name).strip(".-")
    if not plain or "/" in name or "\\" in name:
        raise UsageError(f"{name!r} cannot name a folder", "use letters, digits, '-' and '_' in --name")
    return plain[:100]


def check_place(name: str | None) -> None:
    """Raises before the work what `refuse_other` and writing `weights/NAME` would: `UsageError`, `DiskError`."""
    folder = WEIGHTS / folder_name(name) if name else WEIGHTS
    if name and folder.exists() and not is_model(folder):
        raise _is_another(folder)
    files.check_folder(folder)


def refuse_other(folder: Path, spec: ModelSpec) -> None:
    """`inflate` and `import` may write over what the same command made, named or not. Raises `DiskError`."""
    if not folder.exists():
        return
    with contextlib.suppress(WeightsError):
        if read_spec(folder) in (spec, dataclasses.replace(spec, classes=())):
            return
    raise _is_another(folder)


def _is_another(folder: Path) -> DiskError:
    return DiskError(
        f"{folder} already exists and holds something else", "choose another name with --name, or move it away"
    )


def new_run(name: str, named: bool, root: Path = RUNS) -> Path:
    """A folder for a new run: ROOT/NAME when the user named it, ROOT/NAME-1, -2, … otherwise. Raises `UsageError`."""
    if named:
        run = root / folder_name(name)
        if _begun(run):
            raise UsageError(f"the run {run} already exists", "choose another --name, or omit it")
        return run
    numbered = (root / f"{name}-{n}" for n in itertools.count(1))
    return next(run for run in numbered if not _begun(run))


def is_run(folder: Path) -> bool:
    """Whether a run was started in `folder`."""
    return (folder / "videos.csv").is_file() and (folder / "config.json").is_file()


def home(folder: Path) -> Path:
    """The run whose model the folder is, or else the folder itself."""
    return folder.parent if folder.name in ("best", "last") else folder


def is_unfinished(run: Path) -> bool:
    """Whether the folder `run` holds a run that was started and has not finished; it may be training right now."""
    return is_run(run) and not (run / "result.json").exists()


def unfinished_note(folder: Path | None) -> str:
    """What is to be said of the model `folder` of a run that has not finished; "" for any other."""
    if folder and home(folder) != folder and is_unfinished(home(folder)):
        return f"the run {printable(home(folder))} is unfinished: this is its best model so far"
    return ""


def unfinished_runs(root: Path = RUNS) -> list[Path]:
    """Unfinished runs in `root`, newest first."""
    return _newest_first(root, is_unfinished, "config.json")


def unfinished_run(name: str, named: bool, root: Path = RUNS) -> Path | None:
    """The newest unfinished run of that name: ROOT/NAME when the user named it, else of ROOT/NAME-N."""
    pattern = re.escape(folder_name(name)) if named else re.escape(name) + r"-\d+"
    return next((run for run in unfinished_runs(root) if re.fullmatch(pattern, run.name)), None)


def _begun(run: Path) -> bool:
    """Whether there is more than a start leaves behind that was refused, or killed before its config.json."""
    try:
        return any(file.name not in _BEFORE_A_RUN and file.suffix != ".part" for file in run.iterdir())
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return run.exists()


def find(name: str) -> Path | None:
    """The model folder that a user's word means: a model folder, a run (its best), or a name in weights/ or runs/."""
    for place in (Path(name), WEIGHTS / name, RUNS / name):
        for folder in (place, place / "best"):
            if is_model(folder):
                return folder
    return None


def is_image_network(name: str) -> bool:
    """Whether a user's word means a 2-D network of timm, whatever its tag; a model that is here comes first."""
    return find(name) is None and name.partition(".")[0] in (*EMBEDDED, *image_networks())


def is_frame_network(name: str) -> bool:
    """The same of those networks that are not inflated, and therefore trained frame by frame."""
    return find(name) is None and image_networks().get(name.partition(".")[0], INFLATED) != INFLATED


def newest_run() -> Path:
    """The best model of the newest finished run. Raises `UsageError` when there is none."""
    finished = runs()
    if not finished:
        raise UsageError("there is no finished run in runs/", "nlzoo finetune ./videos makes one")
    return finished[0] / "best"


def find_run(name: str | None) -> Path:
    """The folder of a run: of a path, of a name in runs/, or of the newest finished run. Raises `UsageError`."""
    places = [newest_run().parent] if name is None else [Path(name), RUNS / name]
    run = next((place for place in places if (place / "config.json").is_file()), None)
    if run is None:
        raise no_run(places[0])
    return run


def refuse_without_model(run: Path) -> None:
    """Raises `UsageError` for a run that has not finished and has no model yet."""
    if is_unfinished(run) and not is_model(run / "best"):
        raise UsageError(
            f"the run {printable(run)} is unfinished and has no model yet", "nlzoo finetune --resume continues it"
        )


def no_run(folder: Path) -> UsageError:
    """The error for a folder that holds no run."""
    return UsageError(
        f"{printable(folder)} is not a run: it has no config.json of one",
        "give a run's folder, such as runs/videos-1; nlzoo list shows all",
    )


def run_row(run: Path) -> dict:
    """A row of `nlzoo list`: what a finished run measured, or that it is unfinished; figures that it lacks are None."""
    status = "unfinished" if is_unfinished(run) else "finished"
    figures = files.read_json(run / "result.json") if status == "finished" else {}
    here = {"run": str(run), "model": str(run / "best")}  # wherever it was when it was trained
    return {"status": status, **here, **{key: figures.get(key) for key in ("top1", "map", "majority", "val")}}


def model_row(spec: ModelSpec) -> dict:
    """A row of `nlzoo list`; a network without class names has outputs and 0 classes."""
    return {
        "backbone": spec.backbone,
        "arch": spec.inflation.arch,
        "nonlocal": sum(len(n.blocks) for n in spec.non_local),
        "classes": len(spec.classes),
        "outputs": spec.num_outputs,
    }
