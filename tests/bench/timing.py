"""What all benchmarks share: interleaved timing of several ways to do the same, and where it was measured."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def machine(device: torch.device) -> str:
    """`commit, torch, processor or card`, as a table says where its numbers come from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True).stdout
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"commit {commit.strip() or 'unknown'}, torch {torch.__version__}, {name}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Of one call, in the mean of `repeats`."""
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def compare(
    ways: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = 5, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds a call of each way, in every round; the ways take turns, so that a busy minute meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            times[name].append(seconds(work, device, repeats))
    return times


def table(title: str, times: Mapping[str, list[float]], more: Mapping[str, str] | None = None) -> str:
    """One line a way: median, spread between rounds, and how often it is as fast as the first."""
    base = statistics.median(next(iter(times.values())))
    lines = [title]
    for name, values in times.items():
        middle = statistics.median(values)
        spread = (max(values) - min(values)) / middle
        extra = (more or {}).get(name, "")
        lines.append(
            f"  {name:44} {1000 * middle:9.1f} ms  +-{100 * spread / 2:3.0f} %  {base / middle:5.2f}x  {extra}"
        )
    return "\n".join(lines)


def peak(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that the device held at most while `work` ran; 0 on a CPU."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
