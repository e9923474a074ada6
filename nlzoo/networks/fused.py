"""Several whole networks as one, whose probabilities are averaged (late fusion)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.model_spec import ModelSpec
from .network import Network


class FusedNetwork(nn.Module):
    """`members`, with weights in its `spec`.

    Each member has a clip of its own (`spec.members[n].model.clip`), of other frames, another size or another stream,
    so that `nlzoo.predict` and `nlzoo.evaluate` ask them one by one.
    """

    spec: ModelSpec

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *clips: Any) -> Tensor:
        """A clip `(B, C, T, H, W)` for each member, or one for all, to logits `(B, num_outputs)`.

        A member that is a sequence takes several, those of its own members. The softmax of the logits (sigmoid, where a
        video may have several labels) is the mean of the members'.
        """
        given = clips * len(self.members) if len(clips) == 1 else clips
        weights = torch.tensor([member.weight for member in self.spec.members])
        squash = torch.sigmoid if self.spec.multi_label else lambda logits: logits.softmax(-1)
        logits = [
            member(clip) if isinstance(clip, Tensor) else member(*clip) for member, clip in zip(self.members, given)
        ]
        mean = torch.stack([w * squash(each) for w, each in zip(weights / weights.sum(), logits)]).sum(0)
        return mean.logit() if self.spec.multi_label else mean.log()
