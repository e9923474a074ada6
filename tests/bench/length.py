"""What a clip's length costs a non-local block: time and memory, ours and through the matrix of all pairs, with theory.

    python -m tests.bench length [--most 256] [--plot docs/length.png]

One whole block of res4 at 112² (1,024 channels, 7 x 7 positions a frame, all of them keys), forward and backward of one
clip, float32, one thread: best CPU time of two, the allocator's peak above the clip and the given gradient. Theory's
line is the block's multiply-adds (`layers.block_cost`), three times for forward and backward, over the rate of a square
matrix product measured in the same run. `--plot` needs matplotlib.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nlzoo.networks.layers import block_cost

from . import pairwise, timing

CHANNELS, SIDE = 1024, 7
FIRST = 8  # frames
WAYS = {  # of the plot and the table: form, who computes it
    "all pairs, embedded": ("embedded", "naive"),
    "nlzoo, embedded": ("embedded", "nlzoo"),
    "nlzoo, dot": ("dot", "nlzoo"),
}
COLOURS = ("#b3412b", "#2b6cb3", "#2b8a57")


@dataclass(frozen=True)
class Point:
    """One way at one length."""

    way: str
    frames: int
    seconds: float
    bytes: int
    theory: float  # seconds


def rate() -> float:
    """Multiply-adds a second of a square matrix product."""
    a = torch.randn(1536, 1536)
    best = min(pairwise.seconds(lambda: a @ a, "cpu") for _ in range(5))
    return 1536**3 / best


def points(most: int) -> list[Point]:
    """All ways at 8 frames, 16, … up to `most`."""
    made, speed, frames = [], rate(), FIRST
    while frames <= most:
        for form in ("embedded", "dot"):
            candidates = pairwise.block_candidates(form, CHANNELS, frames, SIDE, False, {"device": "cpu"})
            asked = {name: (form, who) for name, (kind, who) in WAYS.items() if kind == form}
            figures = pairwise.measure({n: candidates[who] for n, (_, who) in asked.items()}, 2, "cpu")
            cost = block_cost(CHANNELS, frames, SIDE, SIDE, form, subsample="none")
            for name, (seconds, held) in figures.items():
                products = cost.naive_products if asked[name][1] == "naive" else cost.products
                made.append(Point(name, frames, seconds, held, 3 * (cost.projections + products) / speed))
        frames *= 2
    return made


def table(made: Sequence[Point]) -> str:
    """Markdown: a row for each length, each way as seconds (theory's) and MiB."""
    lines = ["| frames | " + " | ".join(WAYS) + " |", "|---:" * (1 + len(WAYS)) + "|"]
    for frames in dict.fromkeys(point.frames for point in made):
        row = {point.way: point for point in made if point.frames == frames}
        cells = [f"{p.seconds:.3g} s ({p.theory:.2g}), {p.bytes / 2**20:,.0f} MiB" for p in map(row.__getitem__, WAYS)]
        lines.append(f"| {frames} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(made: Sequence[Point], file: str) -> None:
    """Two panels, both axes logarithmic: measured points, theory as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for way, colour in zip(WAYS, COLOURS, strict=True):
        own = [point for point in made if point.way == way]
        frames = [point.frames for point in own]
        time.plot(frames, [point.theory for point in own], "--", color=colour, linewidth=1)
        time.plot(frames, [point.seconds for point in own], "o", color=colour, label=way)
        memory.plot(frames, [point.bytes / 2**20 for point in own], "o-", color=colour, label=way, linewidth=1)
    for panel, name in ((time, "seconds, forward and backward (dashed: theory)"), (memory, "peak memory, MiB")):
        panel.set(xscale="log", yscale="log", xlabel="frames of the clip", title=name)
        panel.set_xticks(frames, [str(count) for count in frames], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    time.legend(frameon=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main(arguments: list[str]) -> None:
    """Prints the table, and draws the plot where it is asked for."""
    parser = argparse.ArgumentParser(prog="length", description=__doc__)
    parser.add_argument("--most", type=int, default=256)
    parser.add_argument("--plot", default="")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    made = points(options.most)
    print(timing.machine(torch.device("cpu")))
    print(table(made))
    if options.plot:
        plot(made, options.plot)
