"""The classes of an image by the 2-D network in this folder, in timm: python usage.py IMAGE

pip install timm pillow
"""

import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image

folder = Path(__file__).resolve().parent
about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(net)
pixels = timm.data.create_transform(**config, is_training=False)(Image.open(sys.argv[1]).convert("RGB"))
with torch.inference_mode():
    logits = net(pixels.unsqueeze(0))[0]
scores = logits.sigmoid() if about["multi_label"] else logits.softmax(0)
best = scores.topk(min(5, len(scores)))
for score, number in zip(best.values.tolist(), best.indices.tolist()):
    print(f"{score:.3f}  {about['label_names'][number]}")
