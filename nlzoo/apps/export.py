"""`nlzoo.export`: a network for other programs, compared with ours before it is called done.

Each format is a folder of its files and a `usage.py`, written beside its place and renamed. What is exported is the
network as `plain` rebuilds it; its logits are compared with those of our own on clips of three shapes.
"""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import __version__
from ..core import files
from ..core.bounds import one_of
from ..core.errors import DiskError, NlzooError, UsageError
from ..core.model_spec import POOLS, ModelSpec, refuse_other_kinds
from ..core.progress import Stages, no_stages
from ..core.text import counted, printable
from ..networks import card, checkpoint, download, model as models, zoo
from ..networks.model import relative_error
from ..networks.network import Network
from ..training import evaluate, metrics, provenance
from ..videos import items, loader, pool, scanning
from . import flatten, plain
from .portable import network_nlzoo

FORMATS = ("onnx", "torch", "transformers", "timm")
FOLDER = Path("exports")  # default output, in the working folder
MOST_ERROR = 1e-4  # relative, of an export in float32; rounding alone gives about 1e-6
MOST_FRAMES, MOST_SIZE = (
    32,
    256,
)  # of the clips that it is compared on: an exported graph may hold all pairs of positions
_CPU = torch.device("cpu")
_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
_PORTABLE = Path(__file__).with_name("portable")

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and what was measured on it."""

    folder: str
    to: str
    precision: str  # float32, half, int8
    files: list[dict]  # {"path", "bytes"}
    shapes: list[list[int]]  # of the clips that it was compared on
    error: float  # the largest |difference| of their logits, over the largest |logit|
    least_frames: int  # what it takes
    least_size: int
    folded: int  # batch norms that became part of a convolution
    validation: dict = field(default_factory=dict)  # of the run: {"figure": "top1", "exported", "original", "videos"}
    notes: tuple[str, ...] = ()


def export(
    model: str | Path | Network,
    to: str,
    out: str | Path | None = None,
    half: bool = False,
    int8: bool = False,
    stages: Stages = no_stages,
) -> Exported:
    """Writes `model` for other programs into a new folder `out`; `exports/NAME-FORMAT` without one.

    `model`: a network, or what `download.locate` finds. `to`: one of `FORMATS`. `half`, `int8`: ONNX in half precision,
    or with weights and dynamic activations of 8 bits; where the model's run has validation videos, they are measured
    again. Raises `UsageError` for what cannot be, `DiskError` for a folder that is there already or cannot be written,
    and `NlzooError` where the exported network does not compute what ours does; nothing is written then.
    """
    one_of(to, FORMATS, "--to")
    precision = _precision(to, half, int8)
    _need(to)
    folder = None if isinstance(model, nn.Module) else download.locate(str(model))
    place = Path(out) if out else FOLDER / _name(model, folder, to, precision)
    if place.exists():
        raise DiskError(f"{printable(place)} already exists", "choose another folder with --out, or move it away")
    files.check_folder(place)
    net = checkpoint.load_model(folder) if folder else _whole(model)
    refuse_other_kinds(net.spec, "be exported")
    if (stream := net.spec.clip.stream) != "rgb":
        raise UsageError(
            f"the model is of {stream}; the programs that travel with an export read frames of RGB alone",
            "nlzoo predict, eval and serve take the model as it is",
        )
    job = _Job(net.to(_CPU).eval(), folder, precision, stages)
    files.write_folder(place, lambda part: _WRITERS[to](job, part))
    written = [{"path": file.name, "bytes": file.stat().st_size} for file in sorted(place.iterdir())]
    return Exported(
        str(place), to, precision, written, job.shapes, job.error, *smallest(net.spec), job.folded, job.validation,
        (*filter(None, [zoo.unfinished_note(folder)]), *job.notes),
    )  # fmt: skip


def in_words(done: Exported) -> str:
    """What was written and measured, line by line."""
    clips = ", ".join("x".join(map(str, shape)) for shape in done.shapes)
    lines = [f"relative error of the logits {done.error:.1e}, on clips of {clips}"]
    if done.folded:
        lines.append(f"{done.folded} batch norms are part of their convolutions")
    if done.validation:
        key = {"top1": "top-1", "map": "mAP"}[done.validation["figure"]]
        after, before, videos = (done.validation[name] for name in ("exported", "original", "videos"))
        lines.append(f"{key} on {counted(videos, 'validation video')} {after:.3f}, of the original {before:.3f}")
    takes = f"takes clips of {counted(done.least_frames, 'frame')} or more, {done.least_size} pixels or more"
    rows = [f"  {file['path']:24} {file['bytes']:>13,} bytes" for file in done.files]
    return "\n".join([*lines, takes, f"wrote {printable(done.folder)}", *rows])


@dataclass
class _Job:
    """A network on its way out, and what was measured on it."""

    net: Network
    folder: Path | None
    precision: str
    stages: Stages
    shapes: list[list[int]] = field(default_factory=list)
    error: float = 0.0
    folded: int = 0
    validation: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def verify(self, run: Run, still: bool = False) -> None:
        """Compares what `run` gives with the network's logits; `still`: on clips of one frame, repeated.

        Raises `NlzooError` where they are not the same.
        """
        self.shapes = shapes(self.net.spec)
        errors: list[float] = []
        with self.stages("comparing with the original") as progress:
            for number, shape in enumerate(self.shapes, 1):
                errors.append(_error(self.net, run, shape, still, number))
                progress(number, len(self.shapes))
        self.error = max(errors)
        most = MOST_ERROR if self.precision == "float32" else float("inf")
        if not all(error <= most for error in errors):  # NaN too
            raise NlzooError(
                f"the exported network gives other logits than the original: relative error {self.error:.1e} on clips "
                f"of {self.shapes[errors.index(max(errors))]}; nothing was written",
                "a network whose activations overflow in half precision stays in float32"
                if self.precision != "float32"
                else "nlzoo doctor shows versions that were tested",
            )


# --- what can be told before any work


def _precision(to: str, half: bool, int8: bool) -> str:
    if half and int8:
        raise UsageError("--half and --int8 exclude one another", "export twice, with another --out")
    if to != "onnx" and (half or int8):
        raise UsageError("--half and --int8 are for --to onnx", f"omit them; what --to {to} gives can be converted")
    return "half" if half else "int8" if int8 else "float32"


def _need(to: str) -> None:
    """Raises `UsageError` where packages are missing."""
    missing = [name for name in ("onnx", "onnxruntime") if to == "onnx" and find_spec(name) is None]
    if missing:
        raise UsageError(f"--to onnx needs {' and '.join(missing)}, not installed here", "pip install 'nlzoo[onnx]'")


def _name(model: object, folder: Path | None, to: str, precision: str) -> str:
    if folder is None:
        raise UsageError("a network without a folder needs a name for its export", "give out=FOLDER")
    name = zoo.home(folder).name
    if zoo.find(str(model)) is None:  # in the Hub's cache, whose folders are called by commits
        name = str(model).rpartition("/")[2]
    return "-".join([name, to] if precision == "float32" else [name, to, precision])


def _whole(net: Any) -> Network:
    if not hasattr(net, "spec"):
        raise UsageError("a network needs its `spec` to be exported", "nlzoo.load and nlzoo.build give such networks")
    return net


def about(spec: ModelSpec) -> dict[str, Any]:
    """What a program must know to use the network: clip and labels."""
    clip = spec.clip
    names = spec.classes or tuple(str(number) for number in range(spec.num_outputs))
    return {
        "labels": list(names),
        "multi_label": spec.multi_label,  # sigmoid instead of softmax
        "threshold": spec.label_threshold if spec.multi_label else None,  # from which on a class is predicted
        "frames": clip.frames,
        "stride": clip.stride,  # null: spread over the whole video
        "fps": clip.fps,
        "size": clip.size,
        "mean": list(clip.mean),
        "std": list(clip.std),
        "backbone": spec.backbone,
        "licence": spec.licence,
        "nlzoo": __version__,
    }


def smallest(spec: ModelSpec) -> tuple[int, int]:
    """`(frames, size)` from which on every clip can be computed."""
    pools = POOLS[spec.inflation.pools]
    halved = 2 in (pools.pool1_kernel, pools.pool2_kernel)
    pooled = [n.stage for n in spec.non_local if n.subsample != "none" and n.span != "time"]
    frames = 2 * pools.stem_stride * pools.pool1_stride if halved else 1
    return frames, max([32, *(2 * _STRIDES[stage] for stage in pooled)])


def shapes(spec: ModelSpec) -> list[list[int]]:
    """Of the clips that an export is compared on: the network's own, and two of other batch, frames and size."""
    frames, size = smallest(spec)
    clip = spec.clip
    count = min(clip.frames, MOST_FRAMES)
    own, other = max(count, frames), max(count // 2 + 1, frames)
    side = max(size, min(clip.size, MOST_SIZE))
    c = clip.channels
    return [[1, c, own, side, side], [2, c, other, size, 2 * size], [3, c, own + 3, 2 * size, size]]


@torch.no_grad()
def _error(net: Network, run: Run, shape: Sequence[int], still: bool, seed: int) -> float:
    """The relative error of `run` on a random clip of that shape."""
    clips = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if still:
        clips = clips[:, :, :1].expand(*shape)
    return relative_error(run(clips), net(clips))


# --- ONNX


def _write_onnx(job: _Job, folder: Path) -> None:
    from . import onnx_graph

    network, job.folded = plain.folded(job.net)
    if job.precision == "half":
        network.half().get_submodule("fc").float()
    metadata = {key: json.dumps(value) for key, value in about(job.net.spec).items()}
    file = folder / "model.onnx"
    file.write_bytes(onnx_graph.write(network, metadata))
    if job.precision == "int8":
        onnx_graph.quantize(file)
    session = onnx_graph.Session(file, job.net.spec)
    job.verify(session)
    if job.precision != "float32":
        _validate(job, session)
    _copy(folder, "onnx", "video_nlzoo")


def _validate(job: _Job, exported: Any) -> None:
    """Measures the exported network and ours on the validation videos of the model's run, where there are any."""
    run = provenance.run_of(job.folder) if job.folder else None
    if run is None:
        job.notes.append("this model is of no run: there are no validation videos to measure it on")
        return
    spec = job.net.spec
    try:
        dataset = scanning.scan(run / "videos.csv")
        source = loader.Clips(dataset.root, tuple(scanning.items_in(dataset, items.VAL)), spec.clip)
        figures = []
        for name, net in (("exported", exported), ("original", job.net)):
            with job.stages(f"measuring the {name} network") as progress:
                made = evaluate.predictions(net, source, _CPU, pool.default_workers("cpu"), progress)
            figures.append(metrics.brief(made.scores, made.items, evaluate.class_names(job.net), spec.multi_label))
    except NlzooError as error:
        job.notes.append(f"the validation videos of {printable(run)} cannot be read: {error.message}")
        return
    key = "map" if spec.multi_label else "top1"
    after, before = (figure[key] for figure in figures)
    job.validation = {"figure": key, "exported": after, "original": before, "videos": len(made.items)}


# --- torch.export


def _write_torch(job: _Job, folder: Path) -> None:
    network, job.folded = plain.folded(job.net)
    with job.stages("tracing it for every shape"):
        program = _program(network, job.net.spec)
    content = io.BytesIO()  # torch's own error for a full disk says nothing
    torch.export.save(program, content, extra_files={"about.json": json.dumps(about(job.net.spec))})
    (folder / "model.pt2").write_bytes(content.getvalue())
    job.verify(torch.export.load(folder / "model.pt2").module())
    _copy(folder, "torch", "video_nlzoo")


def _program(network: nn.Module, spec: ModelSpec) -> torch.export.ExportedProgram:
    """The graph for every batch, number of frames, height and width."""
    config: Any = import_module("torch.fx.experimental._config")

    frames, size = smallest(spec)
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 3, 4 * frames, size + 32, size + 64)
    with torch.no_grad(), config.patch(backed_size_oblivious=True):  # or a batch of 1 would need a graph of its own
        return torch.export.export(network, (example,), dynamic_shapes=(dict.fromkeys((0, 2, 3, 4), dynamic),))


# --- transformers


def _write_transformers(job: _Job, folder: Path) -> None:
    """The folder that `pipeline("video-classification", model=…, trust_remote_code=True)` takes."""
    spec, layers = job.net.spec, plain.describe(job.net)
    known = about(spec)
    config = {
        "model_type": "nlzoo",
        "architectures": ["NlzooForVideoClassification"],
        "auto_map": {
            "AutoConfig": "modeling_nlzoo.NlzooConfig",
            "AutoModelForVideoClassification": "modeling_nlzoo.NlzooForVideoClassification",
        },
        "problem_type": f"{'multi' if spec.multi_label else 'single'}_label_classification",
        "num_frames": spec.clip.frames,
        "image_size": spec.clip.size,
        "id2label": {str(number): name for number, name in enumerate(known["labels"])},
        "label2id": {name: number for number, name in enumerate(known["labels"])},
        "layers": layers,
    }
    clip = {key: known[key] for key in ("frames", "stride", "fps", "size", "mean", "std")}
    processor = {"auto_map": {"AutoVideoProcessor": "video_processing_nlzoo.NlzooVideoProcessor"}, "about": clip}
    files.write_json(folder / "config.json", config)
    files.write_json(folder / "video_preprocessor_config.json", processor)
    tensors = {f"network.{name}": value.contiguous() for name, value in job.net.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors lets nobody else read its file
    readme = card.body(
        spec, zoo.read_metrics(job.folder) if job.folder else None, use=card.transformers_usage(card.HERE)
    )
    files.write_text(folder / "README.md", readme)
    _copy(folder, "transformers", "network_nlzoo", "modeling_nlzoo", "video_nlzoo", "video_processing_nlzoo")
    job.verify(_from_files(folder))


def _from_files(folder: Path) -> Run:
    """The network that the files of a folder for transformers make, by the code in it, without transformers."""
    config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = network_nlzoo.build(config["layers"])
    tensors = load_file(folder / "model.safetensors")
    network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
    return network


# --- timm


def _write_timm(job: _Job, folder: Path) -> None:
    """The 2-D network that the network is on every frame."""
    spec = job.net.spec
    tensors, by_frame = flatten.flatten(job.net)
    architecture, arguments = models.architecture(spec.backbone)
    config = flatten.timm_config(job.net, architecture, arguments, about(spec)["labels"])
    files.write_json(folder / "config.json", config)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    _copy(folder, "timm")
    flat = models.load_timm(folder)
    job.verify(lambda clips: torch.stack([flat(frame) for frame in clips.unbind(2)]).mean(0), still=not by_frame)
    if not by_frame:
        job.notes.append("equal on still clips alone: temporal kernels or strides mix the frames of a moving one")


def _copy(folder: Path, usage: str, *modules: str) -> None:
    """The modules that travel with an export, and its usage."""
    for name in modules:
        shutil.copyfile(_PORTABLE / f"{name}.py", folder / f"{name}.py")
    shutil.copyfile(_PORTABLE / f"usage_{usage}.py", folder / "usage.py")


_WRITERS: dict[str, Callable[[_Job, Path], None]] = {
    "onnx": _write_onnx,
    "torch": _write_torch,
    "transformers": _write_transformers,
    "timm": _write_timm,
}
