"""Clips of videos for transformers, cut as nlzoo cuts them; `video_nlzoo` does it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.image_processing_utils import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from .video_nlzoo import read_clip, squeeze


class NlzooVideoProcessor(BaseVideoProcessor):
    """`about`: frames, stride, fps, size, mean and std of the clips that the network was trained on."""

    model_input_names = ["pixel_values"]

    def __init__(self, about: dict | None = None, **more: Any):
        super().__init__(**more)
        self.about = about or {}

    def __call__(self, videos: Any, num_frames: int | None = None, **_: Any) -> BatchFeature:
        """`pixel_values` (B, T, 3, S, S) of files or addresses, or of frames: uint8 (T, H, W, 3), all of them used."""
        several = isinstance(videos, Sequence) and not isinstance(videos, str)
        about = self.about | ({"frames": num_frames} if num_frames else {})
        clips = [
            read_clip(str(video), about) if isinstance(video, str | Path) else squeeze(torch.as_tensor(video), about)
            for video in (videos if several else [videos])
        ]
        return BatchFeature({"pixel_values": torch.cat(clips).transpose(1, 2)})
