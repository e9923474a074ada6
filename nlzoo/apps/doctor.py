"""What this machine can do, and what to run where it cannot: data for `nlzoo doctor`.

Unusual: a check must survive the very thing it looks for, so each imports what it needs itself and a failure of any
kind becomes a finding. Nothing waits for the network longer than a few seconds.
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

LOW_DISK = 2e9  # bytes; a ResNet-50 run keeps two models of 0.2 GB and their optimiser state
BF16_ERROR = 2e-2  # of the largest output; rounding the inputs to 8 bits costs about 4e-3
HUB_SECONDS = 5.0
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "huggingface-hub",
    "safetensors",
    "av",
    "decord2",
    "typer",
    "rich",
)  # where nlzoo is not installed and so cannot say what it needs


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool | None  # None: a note, nothing to mend
    value: str  # what was found
    fix: str = ""  # the command to run next; never empty where ok is False


def examine() -> list[Finding]:
    """Every check, in the order to read them. Never raises."""
    findings = []
    for name, check, fix in _CHECKS:
        findings += guarded(name, check, fix)
    return findings


def guarded(name: str, check: Callable[[], list[Finding]], fix: str) -> list[Finding]:
    """What `check` found, or its failure as a finding."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 a broken installation raises anything
        said = " ".join(str(error).split())[:200]
        return [Finding(name, False, f"{type(error).__name__}: {said}", fix)]


def versions() -> list[Finding]:
    """Python, nlzoo, and what nlzoo needs against the ranges it was tested with."""
    python = Finding("python", None, f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    try:
        own = Finding("nlzoo", True, importlib.metadata.version("nlzoo"))
        needed = importlib.metadata.requires("nlzoo") or []
    except importlib.metadata.PackageNotFoundError:
        own = Finding("nlzoo", None, "used from a folder, not installed", "pip install -e . (in the checkout)")
        needed = _PACKAGES
    return [own, python, *(f for text in needed if (f := _requirement(text)))]


def _requirement(text):
    from packaging.requirements import Requirement

    asked = Requirement(text)
    if asked.marker and not asked.marker.evaluate({"extra": ""}):
        return None
    found = _version(asked.name)
    if found is None:
        return Finding(asked.name, False, "not installed", f"pip install '{asked.name}{asked.specifier}'")
    if not asked.specifier.contains(found, prereleases=True):
        return Finding(
            asked.name, False, f"{found}; tested are {asked.specifier}", f"pip install '{asked.name}{asked.specifier}'"
        )
    return Finding(asked.name, True, found)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def one_decord() -> list[Finding]:
    """decord, decord2 and eva-decord are three packages with one import name; each overwrites the others' files."""
    found = [f"{name} {version}" for name in ("decord", "decord2", "eva-decord") if (version := _version(name))]
    if len(found) < 2:
        return []
    return [
        Finding(
            "decord",
            False,
            f"{' and '.join(found)} are installed over one another",
            "pip uninstall -y decord decord2 eva-decord && pip install decord2",
        )
    ]


def timm() -> list[Finding]:
    """Whether timm imports; beside a torchvision for another torch it does only through `model.import_timm`."""
    from ..networks import model

    return [Finding("timm imports", True, f"yes, {model.import_timm().__version__}")]


def device() -> list[Finding]:
    """Where networks will run, and why not on the GPU if one seems to be here."""
    import torch

    if torch.cuda.is_available():
        return [_gpu(torch, number) for number in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = Finding("device", None, f"CPU, {cores} cores, {torch.get_num_threads()} threads; no GPU that torch can use")
    if not shutil.which("nvidia-smi"):
        return [cpu]
    if torch.version.cuda is None:
        return [
            cpu,
            Finding(
                "gpu",
                False,
                "nvidia-smi is here, but this torch is built without CUDA",
                "pip install --force-reinstall torch torchvision (see https://pytorch.org/get-started)",
            ),
        ]
    return [
        cpu,
        Finding(
            "gpu",
            False,
            f"nvidia-smi is here, but torch for CUDA {torch.version.cuda} sees no GPU",
            "nvidia-smi (is the driver new enough for that CUDA?); echo $CUDA_VISIBLE_DEVICES",
        ),
    ]


def _gpu(torch, number):
    free, total = torch.cuda.mem_get_info(number)
    name = torch.cuda.get_device_name(number)
    return Finding(
        "device" if number == 0 else f"device {number}",
        True,
        f"{name}, {_size(total)} of memory, {_size(free)} free, CUDA {torch.version.cuda}",
    )


def bf16() -> list[Finding]:
    """A conv3d really computed in bfloat16 and float32 on the device, against float64 on the CPU."""
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 16, 4, 28, 28, generator=source, dtype=torch.float64)  # B, C, T, H, W
    kernel = torch.randn(32, 16, 3, 3, 3, generator=source, dtype=torch.float64) / (16 * 27) ** 0.5
    exact = torch.nn.functional.conv3d(clip, kernel, padding=1)
    errors = {}
    for kind in (torch.float32, torch.bfloat16):
        out = torch.nn.functional.conv3d(clip.to(where, kind), kernel.to(where, kind), padding=1)
        errors[kind] = float((out.cpu().double() - exact).abs().max() / exact.abs().max())
    good = errors[torch.float32] < BF16_ERROR and errors[torch.bfloat16] < BF16_ERROR  # False for NaN too
    value = f"relative error {errors[torch.bfloat16]:.0e} on {where} (float32: {errors[torch.float32]:.0e})"
    return [Finding("bf16 conv3d", good, value, "" if good else f"pip install -U torch; until then, not on {where}")]


def decoders() -> list[Finding]:
    """The decoders that `video` found, with their FFmpeg."""
    from ..videos import video

    return [Finding(f"decoder {name}", True, text) for name, text in video.backends().items()]


def here() -> list[Finding]:
    """Room and right to write in the working folder, where weights/ and runs/ go."""
    return _place("working folder", Path.cwd(), "cd to a folder on another disk")


def cache() -> list[Finding]:
    """The same for the Hub's cache."""
    from ..networks import hub_client

    return _place("hub cache", hub_client.cache_folder(), "export HF_HOME=… on another disk")


def _place(name, folder, fix):
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free, problem = shutil.disk_usage(there).free, _unwritable(there)
    roomy = free >= LOW_DISK
    return [
        Finding(f"disk, {name}", roomy, f"{_size(free)} free", "" if roomy else f"free some room, or {fix}"),
        Finding(f"write, {name}", not problem, problem or "yes", problem and fix),
    ]


def _unwritable(folder):
    """Why no file can be made in `folder`, or nothing; tried, since permission bits do not tell (root, mounts)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"no: {error.strerror}"


def login() -> list[Finding]:
    """Whether there is a Hub token, and whose it is if the Hub answers soon."""
    from ..core.errors import HubError
    from ..networks import hub_client

    if not hub_client.has_token():
        return [Finding("hub login", None, "none; only push and private models need one", "hf auth login")]
    answers = []

    def ask():
        try:
            answers.append(Finding("hub login", True, hub_client.whoami(timeout=HUB_SECONDS)))
        except hub_client.Unreachable as error:
            answers.append(Finding("hub login", None, f"a token is here; not verified: {error.message}"))
        except HubError as error:
            answers.append(Finding("hub login", False, error.message, error.hint))

    # a thread, because looking up the Hub's address obeys no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * HUB_SECONDS)
    return answers or [Finding("hub login", None, f"a token is here; no answer in {2 * HUB_SECONDS:.0f} s")]


def _size(count):
    return f"{count / 1e9:.1f} GB"


_AGAIN = f"{Path(sys.executable).name} -m pip install --force-reinstall "
_CHECKS = (
    ("packages", versions, _AGAIN + "nlzoo"),
    ("decord", one_decord, _AGAIN + "decord2"),
    ("timm imports", timm, _AGAIN + "torch torchvision timm"),
    ("device", device, _AGAIN + "torch"),
    ("bf16 conv3d", bf16, "pip install -U torch"),
    ("decoders", decoders, _AGAIN + "av"),
    ("disk, working folder", here, "cd to a folder that exists"),
    ("disk, hub cache", cache, _AGAIN + "huggingface_hub"),
    ("hub login", login, _AGAIN + "huggingface_hub"),
)
