"""What this machine can do, and what to run where it cannot: data for `nlzoo doctor`.

Unusual: a check must survive the very thing it looks for, so each imports what it needs itself and a failure of any
kind becomes a result. Nothing waits for the network longer than a few seconds.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

LOW_DISK = 2e9  # bytes; a ResNet-50 run keeps two models of 0.2 GB and their optimiser state
BF16_ERROR = 2e-2  # of the largest output; rounding the inputs to 8 bits costs about 4e-3
HUB_SECONDS = 5.0
EXTRAS = {  # of the package: what they are for
    "flow": "nlzoo finetune --stream flow",
    "multi": "several GPUs, --track",
    "onnx": "nlzoo export --to onnx",
    "parquet": "answers and features as .parquet",
    "serve": "nlzoo serve",
}
PACKAGES = (  # where nlzoo is not installed and so cannot say what it needs
    *("torch", "torchvision", "timm", "numpy", "safetensors", "huggingface-hub", "av", "decord2", "scikit-learn"),
    *("scipy", "matplotlib", "jinja2", "typer", "rich"),
    *("onnx; extra == 'onnx'", "onnxruntime; extra == 'onnx'", "opencv-python-headless; extra == 'flow'"),
    *("accelerate; extra == 'multi'", "pyarrow; extra == 'parquet'", "gradio; extra == 'serve'"),
)


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    name: str
    ok: bool | None  # None: a note, nothing to fix
    value: str  # what is there
    fix: str = ""  # the command to run next; never empty where ok is False


def examine() -> list[Result]:
    """Every check, in the order to read them. Never raises."""
    return [result for name, check, fix in _CHECKS for result in guarded(name, check, fix)]


def guarded(name: str, check: Callable[[], list[Result]], fix: str) -> list[Result]:
    """What `check` found, or its failure as a result."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 a broken installation raises anything
        words = " ".join(str(error).split())[:200]
        return [Result(name, False, f"{type(error).__name__}: {words}", fix)]


def versions() -> list[Result]:
    """Python, nlzoo, and what nlzoo and its extras need against the ranges they were tested with."""
    python = Result("python", None, f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    try:
        own = Result("nlzoo", True, importlib.metadata.version("nlzoo"))
        needed = importlib.metadata.requires("nlzoo") or []
    except importlib.metadata.PackageNotFoundError:
        own = Result("nlzoo", None, "used from a folder, not installed", "pip install -e . (in the checkout)")
        needed = list(PACKAGES)
    return [own, python, *(result for text in needed for result in _requirement(text))]


def _requirement(text: str) -> list[Result]:
    """The result for a package, none for one that is needed elsewhere. One of an extra may be missing."""
    from packaging.requirements import Requirement

    needed = Requirement(text)
    extra = ""
    if needed.marker and not needed.marker.evaluate({"extra": ""}):
        extra = next((name for name in EXTRAS if needed.marker.evaluate({"extra": name})), "")
        if not extra:
            return []
    version, fix = _version(needed.name), f"pip install '{needed.name}{needed.specifier}'"
    if version is None and extra:
        return [Result(needed.name, None, f"not installed; {EXTRAS[extra]} needs it", f"pip install 'nlzoo[{extra}]'")]
    if version is None:
        return [Result(needed.name, False, "not installed", fix)]
    if not needed.specifier.contains(version, prereleases=True):
        return [Result(needed.name, False, f"{version}; tested are {needed.specifier}", fix)]
    return [Result(needed.name, True, version)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def one_decord() -> list[Result]:
    """decord, decord2 and eva-decord are three packages with one import name; each overwrites the others' files."""
    packages = ("decord", "decord2", "eva-decord")
    here = [f"{name} {_version(name)}" for name in packages if _version(name)]
    if len(here) < 2:
        return []
    fix = "pip uninstall -y decord decord2 eva-decord && pip install decord2"
    return [Result("decord", False, f"{' and '.join(here)} are installed over one another", fix)]


def timm() -> list[Result]:
    """Whether timm imports; beside a torchvision for another torch it does only through `model.import_timm`."""
    from ..networks import model

    return [Result("timm imports", True, f"yes, {model.import_timm().__version__}")]


def device() -> list[Result]:
    """Where networks will run, and why not on the GPU if one seems to be here."""
    import torch

    if torch.cuda.is_available():
        return [_gpu(torch, number) for number in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = Result("device", None, f"CPU, {cores} cores, {torch.get_num_threads()} threads; no GPU that torch can use")
    if not shutil.which("nvidia-smi"):
        return [cpu]
    if torch.version.cuda is None:
        value = "nvidia-smi is here, but this torch is built without CUDA"
        fix = "pip install --force-reinstall torch torchvision (see https://pytorch.org/get-started)"
    else:
        value = f"nvidia-smi is here, but torch for CUDA {torch.version.cuda} sees no GPU"
        fix = "nvidia-smi (is the driver new enough for that CUDA?); echo $CUDA_VISIBLE_DEVICES"
    return [cpu, Result("gpu", False, value, fix)]


def _gpu(torch: ModuleType, number: int) -> Result:
    free, total = torch.cuda.mem_get_info(number)
    memory = f"{_size(total)} of memory, {_size(free)} free"
    value = f"{torch.cuda.get_device_name(number)}, {memory}, CUDA {torch.version.cuda}"
    return Result("device" if number == 0 else f"device {number}", True, value)


def bf16() -> list[Result]:
    """A conv3d really computed in bfloat16 and float32 on the device, against float64 on the CPU."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 16, 4, 28, 28, generator=source, dtype=torch.float64)  # B, C, T, H, W
    kernel = torch.randn(32, 16, 3, 3, 3, generator=source, dtype=torch.float64) / (16 * 27) ** 0.5
    exact = torch.nn.functional.conv3d(clip, kernel, padding=1)
    errors = {}
    for kind in (torch.float32, torch.bfloat16):
        out = torch.nn.functional.conv3d(clip.to(device, kind), kernel.to(device, kind), padding=1)
        errors[kind] = float((out.cpu().double() - exact).abs().max() / exact.abs().max())
    good = errors[torch.float32] < BF16_ERROR and errors[torch.bfloat16] < BF16_ERROR  # False for NaN too
    value = f"relative error {errors[torch.bfloat16]:.0e} on {device} (float32: {errors[torch.float32]:.0e})"
    return [Result("bf16 conv3d", good, value, "" if good else f"pip install -U torch; until then, not on {device}")]


def decoders() -> list[Result]:
    """The decoders that `video` found, with their FFmpeg."""
    from ..videos import video

    return [Result(f"decoder {name}", True, text) for name, text in video.backends().items()]


def cache() -> list[Result]:
    """Room and right to write in the Hub's cache."""
    from ..networks import hub_client

    return _place("hub cache", hub_client.cache_folder(), "export HF_HOME=… on another disk")


def _place(name: str, folder: Path, fix: str) -> list[Result]:
    """Room and right to write in a folder, which may not be there yet."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free, problem = shutil.disk_usage(there).free, _unwritable(there)
    room = "" if free >= LOW_DISK else f"free some room, or {fix}"
    return [
        Result(f"disk, {name}", not room, f"{_size(free)} free", room),
        Result(f"write, {name}", not problem, problem or "yes", problem and fix),
    ]


def _unwritable(folder: Path) -> str:
    """Why no file can be made in `folder`, or nothing; tried, since permission bits do not tell (root, mounts)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"no: {error.strerror}"


def login() -> list[Result]:
    """Whether there is a Hub token, and whose it is if the Hub answers soon."""
    from ..core.errors import HubError
    from ..networks import hub_client

    if not hub_client.has_token():
        return [Result("hub login", None, "none; only push and private models need one", "hf auth login")]
    answers: list[Result] = []

    def ask() -> None:
        try:
            answers.append(Result("hub login", True, hub_client.whoami(timeout=HUB_SECONDS)))
        except hub_client.Unreachable as error:
            answers.append(Result("hub login", None, f"a token is here; not verified: {error.message}"))
        except HubError as error:
            answers.append(Result("hub login", False, error.message, error.hint))

    # a thread, because looking up the Hub's address obeys no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * HUB_SECONDS)
    return answers or [Result("hub login", None, f"a token is here; no answer in {2 * HUB_SECONDS:.0f} s")]


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


_AGAIN = f"{Path(sys.executable).name} -m pip install --force-reinstall "
_CHECKS = (
    ("packages", versions, _AGAIN + "nlzoo"),
    ("decord", one_decord, _AGAIN + "decord2"),
    ("timm imports", timm, _AGAIN + "torch torchvision timm"),
    ("device", device, _AGAIN + "torch"),
    ("bf16 conv3d", bf16, "pip install -U torch"),
    ("decoders", decoders, _AGAIN + "av"),
    (
        "disk, working folder",
        lambda: _place("working folder", Path.cwd(), "cd to a folder on another disk"),
        "cd to a folder that exists",
    ),
    ("disk, hub cache", cache, _AGAIN + "huggingface_hub"),
    ("hub login", login, _AGAIN + "huggingface_hub"),
)
