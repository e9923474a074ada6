"""What nlzoo calls a network: timm's own `ResNet` object with 3-D leaves, and its `ModelSpec` as attribute `spec`.

At run time it is nothing of its own; a type checker learns here which attributes it has.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..core.model_spec import ModelSpec
    from ..core.view_spec import ClipSpec

    class Network(nn.Module):
        """`(B, 3, T, H, W)` float to `(B, num_outputs)` logits."""

        spec: ModelSpec
        fc: nn.Linear
        conv1: nn.Module
        maxpool: nn.Module
        layer1: nn.Sequential  # and so on to layer4
        backbone: nn.Module  # of a network on single frames alone
        drop_rate: float
        members: "Sequence[Network]"  # of a fused model or a sequence alone

        head: nn.Module  # of a sequence alone, like the next three
        dropout: nn.Module
        mean: Tensor
        scale: Tensor

        def columns_of_members(self) -> list[slice]:
            """Of a sequence: where the features of each member stand."""

        def columns(self) -> "list[tuple[ClipSpec, slice]]":
            """Of a sequence: where the features of the members of each clip stand."""

        def classify(self, features: Tensor) -> Tensor:
            """Of a sequence: logits of the features `(B, W, D)` of windows."""

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            """timm's: of every block only the input is kept."""

        def forward_features(self, x: Tensor) -> Tensor:
            """timm's: the last stage's output `(B, C, T, H, W)`."""

        def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
            """timm's: logits `(B, num_outputs)` of the last stage's output, or with `pre_logits` its means `(B, C)`."""

else:
    Network = nn.Module
