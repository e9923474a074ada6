"""What `describe` has counted of a network: in words, and kept on disk, so that a second look needs no torch.

Importing torch takes five times as long as all else that `nlzoo info` does. Counts follow from a model folder's
config.json and the header of its weights, so both, byte for byte, are what they are kept by: where counts are found,
the two were compared. Nothing depends on it: what is missing or damaged is counted anew.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import files, kept
from ..core.model_spec import Member, ModelSpec
from ..core.text import counted, printable

MAX_NAMES = 20  # classes in words
_MAX_HEADER = 2**21  # bytes; no network of ours has a longer one


@dataclass(frozen=True)
class Counts:
    """One clip's way through a network."""

    params: int
    macs: int  # multiply-adds
    blocks: dict[str, dict[str, int]]  # "res4 after 1" to the fields of `layers.Cost`
    stages: list[dict[str, Any]]  # from the stem to res5; none of a network that is not inflated

    @property
    def depths(self) -> dict[str, int]:
        """Residual blocks of each stage, `{"res2": 3, …}`."""
        return {row["stage"]: row["residual_blocks"] for row in self.stages if row["stage"].startswith("res")}


# --- kept on disk


def key_of_name(name: str, classes: int) -> str:
    """What the counts of a named net (`nl5-i3d-r50-8x8`) with so many outputs are kept by."""
    return kept.key(f"{name} {classes}".encode())


def key_of_folder(folder: Path) -> str:
    """What the counts of a model folder are kept by; "" where they are not, as its weights have no proper header."""
    folder = files.current(Path(folder))
    try:
        with open(folder / "model.safetensors", "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = opened.read(length) if length <= _MAX_HEADER else b""
        if len(header) != length:
            return ""
        size = (folder / "model.safetensors").stat().st_size
        return kept.key((folder / "config.json").read_bytes(), header, str(size).encode())
    except OSError:
        return ""


def recall(key: str) -> Counts | None:
    """What is kept by `key`."""
    value = kept.recall(key) if key else None
    try:
        return Counts(**value) if value else None
    except TypeError:
        return None


def keep(key: str, counts: Counts) -> Counts:
    """Keeps them, where it can; returns them."""
    if key:
        kept.keep(key, dataclasses.asdict(counts))
    return counts


# --- what `inflate`, `import` and `info` print


def summary(spec: ModelSpec, counts: Counts) -> dict[str, Any]:
    """The facts: names, placement, parameters, multiply-adds of one clip."""
    return {
        "backbone": spec.backbone,
        "arch": spec.inflation.arch,
        "nonlocal": {n.stage: list(n.blocks) for n in spec.non_local},
        **dataclasses.asdict(counts),
        "clip": dataclasses.asdict(spec.clip),
        "classes": list(spec.classes),
        "outputs": spec.num_outputs,
        "source": spec.source,
        "licence": spec.licence,
        **({"members": [_member(one) for one in spec.members]} if spec.members else {}),
        **({"head": dataclasses.asdict(spec.head)} if spec.head else {}),
    }


def _member(member: Member) -> dict[str, Any]:
    spec = member.model
    kind: dict[str, Any] = {
        "backbone": spec.backbone,
        "arch": spec.inflation.arch,
        "nonlocal": sum(len(n.blocks) for n in spec.non_local),
    }
    kind |= {"head": dataclasses.asdict(spec.head)} if spec.head else {}
    return {"weight": member.weight, **kind, "clip": dataclasses.asdict(spec.clip)}


def in_words(spec: ModelSpec, counts: Counts, notes: Iterable[str] = ()) -> str:
    """All of it as lines for a person. `notes`: how the names in a weights file were read."""
    clip = "the clips of all" if spec.members else str(spec.clip)
    lines = [
        *_architecture(spec, counts.depths),
        f"  {counts.params / 1e6:.2f} M parameters, {counts.macs / 1e9:.2f} G multiply-adds for {clip}",
        f"  {spec.num_outputs} outputs; {_origin(spec)}",
        *(f"  weights file: {note}" for note in notes),
        *(_stage_lines(counts.stages) if counts.stages else ()),
        *_block_lines(counts.blocks),
    ]
    return "\n".join(lines)


def _architecture(spec: ModelSpec, depths: dict[str, int]) -> list[str]:
    inflation = spec.inflation
    if spec.members:
        lines = [f"  {member}, {member.sees}" for member in spec.members]
        joined = f"{spec.head}, on features of" if spec.head else "the mean of the probabilities of"
        return [f"{joined} {counted(len(spec.members), 'model')}", *lines]
    if not spec.is_inflated:
        return [f"{spec.backbone}, on each frame; its features are averaged"]
    first = (
        f"{spec.backbone}, {inflation.arch}, init {inflation.init}, temporal padding {inflation.temporal_padding}, "
        f"pools {inflation.pools}"
    )
    blocks = [
        f"  non-local, {n.form}, {n.span}: {n.stage} after residual blocks {', '.join(map(str, n.blocks))} "
        f"of 0-{depths[n.stage] - 1}"
        for n in spec.non_local
    ]
    return [first, *(blocks or ["  no non-local blocks"])]


def _origin(spec: ModelSpec) -> str:
    weights = f"weights from {printable(spec.source)}" if spec.source else "randomly initialised"
    return f"{weights}, licence {printable(spec.licence)}" if spec.licence else weights


def trained_lines(spec: ModelSpec, metrics: dict) -> list[str]:
    """The classes of a trained model, and how good it was in validation."""
    names = [repr(printable(name)) for name in spec.classes[:MAX_NAMES]]
    more = [f"… and {len(spec.classes) - MAX_NAMES} more"] if len(spec.classes) > MAX_NAMES else []
    lines = [f"  classes: {', '.join(names + more)}"] if names else ["  its outputs have no names"]
    scores = {"top1": "top-1", "top5": "top-5", "map": "mean average precision", "majority": "majority-class baseline"}
    figures = [f"{words} {metrics[key]:.3f}" for key, words in scores.items() if isinstance(metrics.get(key), float)]
    if figures:
        lines.append(f"  validated on {printable(str(metrics.get('val', '?')))} videos: {', '.join(figures)}")
    return lines


def _stage_lines(stages: list[dict]) -> list[str]:
    lines = ["  stage  output (C, T, H, W)  residual blocks, kernels in time"]
    for row in stages:
        size = ", ".join(map(str, row["output"]))
        parts = [row["time"]] if row["time"] else []
        if row["non_local_after"]:
            parts.append(f"non-local after {', '.join(map(str, row['non_local_after']))}")
        lines.append(f"  {row['stage']:6} {size:20} {row['residual_blocks'] or '':<3} {'; '.join(parts)}".rstrip())
    return lines


def _block_lines(blocks: dict[str, dict]) -> list[str]:
    """Multiply-adds and memory of each block: as computed here, and through the matrix of all pairs."""
    if not blocks:
        return []
    total = {key: sum(block[key] for block in blocks.values()) for key in next(iter(blocks.values()))}
    lines = ["non-local blocks, forward pass of one clip (in brackets: through the matrix of all pairs):"]
    for name, block in {**blocks, "all blocks": total}.items():
        macs = block["projections"] + block["products"]
        naive = block["projections"] + block["naive_products"]
        memory = f"{block['bytes'] / 2**20:8.1f} MiB attention-matrix memory ({block['naive_bytes'] / 2**20:.1f})"
        lines.append(f"  {name:15} {macs / 1e9:7.2f} G multiply-adds ({naive / 1e9:.2f}), {memory}")
    return lines
