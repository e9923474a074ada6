"""A 2-D network on every frame of a clip: the strongest cheap baseline there is for a small set."""

from torch import Tensor, nn

from ..core.model_spec import ModelSpec


class FrameNetwork(nn.Module):
    """`(B, 3, T, H, W)` to logits `(B, num_outputs)`: the features of single frames, their mean over T, a linear head.

    `backbone` is any module `(N, 3, H, W)` to `(N, C)`. The methods are those of timm's networks.
    """

    spec: ModelSpec

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
        mean = x.mean(2)
        return mean if pre_logits else self.fc(mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
