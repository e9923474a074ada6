"""A network of nlzoo as a model of transformers; `network_nlzoo` has the network."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .network_nlzoo import build


class NlzooConfig(PreTrainedConfig):
    """`layers`: of `network_nlzoo.build`. `num_frames`: of a clip."""

    model_type = "nlzoo"

    def __init__(self, layers: dict | None = None, num_frames: int = 8, image_size: int = 224, **more: Any):
        self.layers, self.num_frames, self.image_size = layers or {}, num_frames, image_size
        super().__init__(**more)


class NlzooForVideoClassification(PreTrainedModel):
    """Videos `(B, T, 3, H, W)`, normalised, to logits `(B, classes)`."""

    config_class = NlzooConfig
    main_input_name = "pixel_values"

    def __init__(self, config: NlzooConfig):
        super().__init__(config)
        self.network = build(config.layers)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """They come from the file."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        logits = self.network(pixel_values.transpose(1, 2))
        loss = None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
