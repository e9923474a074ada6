"""Several whole networks as one, whose probabilities are averaged (late fusion)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..core.model_spec import ModelSpec
    from .network import Network


class FusedNetwork(nn.Module):
    """`members`, with weights in its `spec`.

    Each member has a clip of its own (`spec.members[n].model.clip`), of other frames, another size or another stream,
    so that `nlzoo.predict` and `nlzoo.evaluate` ask them one by one.
    """

    spec: "ModelSpec"

    def __init__(self, members: Sequence["Network"]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *clips: Tensor) -> Tensor:
        """A clip `(B, C, T, H, W)` for each member, or one for all, to logits `(B, num_outputs)`.

        Their softmax (sigmoid, where a video may have several labels) is the mean of the members'.
        """
        given = clips * len(self.members) if len(clips) == 1 else clips
        weights = torch.tensor([member.weight for member in self.spec.members])
        squash = torch.sigmoid if self.spec.multi_label else lambda logits: logits.softmax(-1)
        rows = [w * squash(member(clip)) for w, member, clip in zip(weights / weights.sum(), self.members, given)]
        mean = torch.stack(rows).sum(0)
        return mean.logit() if self.spec.multi_label else mean.log()
