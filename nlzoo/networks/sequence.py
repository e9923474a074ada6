"""A head over the features of windows of a video: their mean, an LSTM, or multi-group shifting attention.

The last two are those of Bian et al. 2017 (arXiv 1708.03805); docs/fusion.md says what that text leaves open.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..core.model_spec import SequenceHead
from ..core.view_spec import ClipSpec
from .fused import FusedNetwork
from .network import Network

DROPOUT = 0.5  # before the last layer, in training


class Mean(nn.Module):
    """`(B, W, D)` to `(B, D)`."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.out_features = sum(widths)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class BidirectionalLstm(nn.Module):
    """`(B, W, D)` to `(B, 2 units)`: the last state of an LSTM, and that of one that reads backwards."""

    def __init__(self, widths: Sequence[int], units: int) -> None:
        super().__init__()
        self.lstm, self.out_features = nn.LSTM(sum(widths), units, batch_first=True, bidirectional=True), 2 * units

    def forward(self, x: Tensor) -> Tensor:
        _, (last, _) = self.lstm(x)  # (2, B, units)
        return last.transpose(0, 1).flatten(1)


class ShiftingAttention(nn.Module):
    """`(B, W, D)` to `(B, units D)`: so many weighted means over W, each shifted and of the length 1 / sqrt(units).

    `weights = softmax(x w + b)` over W; `v = alpha * mean + beta`, two scalars that each unit learns; and
    `v / (sqrt(units) |v|)`. So it is in the code of the authors of "Attention Clusters" (arXiv 1711.09550, its first
    author's github.com/longxiang92/Flash-MNIST, `main_feature_satt.py`), and in PaddlePaddle's `AttentionCluster`.
    """

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, units)
        self.alpha, self.beta = (nn.Parameter(torch.empty(units, 1)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both scalars from N(0, units^-1/2), as theirs: units that start alike would learn alike."""
        for scalars in (self.alpha, self.beta):
            nn.init.normal_(scalars, std=len(scalars) ** -0.25)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(1)  # (B, W, units)
        shifted = self.alpha * (weights.transpose(1, 2) @ x) + self.beta
        return (nn.functional.normalize(shifted, dim=2) / math.sqrt(len(self.alpha))).flatten(1)


class MultiGroupAttention(nn.Module):
    """`ShiftingAttention` of the features of each member by itself, side by side."""

    def __init__(self, widths: Sequence[int], units: int) -> None:
        super().__init__()
        self.widths, self.out_features = list(widths), units * sum(widths)
        self.groups = nn.ModuleList(ShiftingAttention(width, units) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.widths, 2)
        return torch.cat([group(part) for group, part in zip(self.groups, parts)], 1)


Head = Mean | BidirectionalLstm | MultiGroupAttention


def build_head(head: SequenceHead, widths: Sequence[int]) -> Head:
    """The head for members of so many features, `(B, W, sum of widths)` to `(B, out_features)`."""
    if head.kind == "lstm":
        return BidirectionalLstm(widths, head.units)
    return MultiGroupAttention(widths, head.units) if head.kind == "attention" else Mean(widths)


class SequenceNetwork(FusedNetwork):
    """A head over what `members` see of the windows of a video; they stay as they are."""

    mean: Tensor
    scale: Tensor

    def __init__(self, members: Sequence[Network], head: Head, width: int, outputs: int) -> None:
        super().__init__(members)
        self.head, self.fc = head, nn.Linear(head.out_features, outputs)
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer("mean", torch.zeros(width))  # of the features, in training
        self.register_buffer("scale", torch.ones(width))

    def columns(self) -> list[tuple[ClipSpec, slice]]:
        """The clips of the members, and where in `features` the numbers of those that share it stand."""
        own = self.columns_of_members()
        shared = self.spec.shared_clips()
        return [(clip, slice(own[numbers[0]].start, own[numbers[-1]].stop)) for clip, numbers in shared]

    def columns_of_members(self) -> list[slice]:
        """Where in `features` the numbers of each member stand, which are in the order of their clips."""
        slices, end = {}, 0
        for number in (number for _, numbers in self.spec.shared_clips() for number in numbers):
            start, end = end, end + cast(Network, self.members[number]).fc.in_features
            slices[number] = slice(start, end)
        return [slices[number] for number in range(len(slices))]

    def classify(self, features: Tensor) -> Tensor:
        """Logits `(B, num_outputs)` of features `(B, W, D)`, members side by side in the order of their clips."""
        return self.fc(self.dropout(self.head((features - self.mean) / self.scale)))

    def forward(self, *clips: Tensor) -> Tensor:
        """A clip of all windows, one after the other, `(B, C, W T, H, W)`, for each member, or one for all."""
        given = clips * len(self.members) if len(clips) == 1 else clips
        order = [number for _, numbers in self.spec.shared_clips() for number in numbers]
        return self.classify(torch.cat([self._windows(cast(Network, self.members[n]), given[n]) for n in order], 2))

    def _windows(self, member: Network, clip: Tensor) -> Tensor:
        assert self.spec.head
        windows = torch.cat(clip.chunk(self.spec.head.windows, 2))  # (W B, C, T, H, W)
        rows = member.forward_head(member.forward_features(windows), pre_logits=True)
        return rows.view(self.spec.head.windows, len(clip), -1).transpose(0, 1)
