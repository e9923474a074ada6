"""A 2-D network on every frame of a clip, as TSN has it: the strongest cheap baseline there is for a small set."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.model_spec import ModelSpec
from .network import Network


class FrameNetwork(nn.Module):
    """`(B, C, T, H, W)` to logits `(B, num_outputs)`: the features of single frames, their mean over T, a linear head.

    The logits are the mean of those of the frames (TSN's consensus by average), since the head is linear. `backbone` is
    any module `(N, C, H, W)` to `(N, features)`. The methods are those of timm's networks.
    """

    spec: ModelSpec
    drop_rate = 0.0  # before the head

    def __init__(self, backbone: nn.Module, channels: int, outputs: int) -> None:
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(channels, outputs)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features of each frame, `(B, C, T)`."""
        batch, _, frames = x.shape[:3]
        rows = self.backbone(x.transpose(1, 2).flatten(0, 1))
        return rows.view(batch, frames, -1).transpose(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of features `(B, C, T)`, or with `pre_logits` their means over T `(B, C)`."""
        mean = F.dropout(x.mean(2), self.drop_rate, self.training)
        return mean if pre_logits else self.fc(mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """The backbone's own. Raises `AssertionError` or `AttributeError` for one that cannot."""
        if enable or hasattr(self.backbone, "set_grad_checkpointing"):
            cast(Network, self.backbone).set_grad_checkpointing(enable)
