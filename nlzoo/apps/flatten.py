"""A 3-D network back to the 2-D one that it is on every frame, where it is one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..networks.inflate import LAYER, InflatedConv3d
from ..networks.layers import NonLocalBlock
from ..networks.network import Network

_HINT = "only what a 2-D network can compute goes to timm: C2D without blocks, or a start that was never trained"


def flatten(net: Network) -> tuple[dict[str, Tensor], bool]:
    """`(tensors under timm's names, whether a clip's logits are the mean of its frames')`.

    Otherwise the two are equal on still clips alone, as the paper's initialisation and temporal strides have it. Raises
    `UsageError` for a network that is not a 2-D one, with the first reason.
    """
    inflation = net.spec.inflation
    if not inflation.pool1_padding:
        raise _not_flat("its first max-pool is not padded, as timm's is")
    tensors, by_frame = dict(net.state_dict()), inflation.pools == "none"
    for name, module in net.named_modules():
        if isinstance(module, NonLocalBlock):
            if not _is_identity(module):
                raise _not_flat(f"the non-local block {_paper(name)} has been trained")
            tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{name}.")}
        elif isinstance(module, InflatedConv3d):
            weight, alone = _flat_kernel(name, module)
            tensors[f"{name}.weight"] = weight
            by_frame = by_frame and alone
    return tensors, by_frame


def _flat_kernel(name: str, conv: InflatedConv3d) -> tuple[Tensor, bool]:
    """`(the 2-D kernel, whether it sees each frame alone)`."""
    kernel = conv.weight.detach()
    taps = kernel.shape[2]
    middle = kernel[:, :, taps // 2]
    if not (kernel.abs().sum((0, 1, 3, 4)) > 0)[torch.arange(taps) != taps // 2].any():
        return middle.clone(), True
    if conv.replicate and all(torch.equal(tap, middle) for tap in kernel.unbind(2)):
        return middle * taps, False
    raise _not_flat(f"the temporal kernel {_paper(name)} has been trained")


def _is_identity(block: NonLocalBlock) -> bool:
    last: Mapping[str, Tensor] = dict((block.bn if block.norm == "bn" else block.w_z).named_parameters())
    return not any(value.any() for value in last.values())


def _paper(name: str) -> str:
    """`res3.nl1` of `layer2.nl1`."""
    return next((name.replace(layer, stage, 1) for stage, layer in LAYER.items() if name.startswith(layer)), name)


def _not_flat(reason: str) -> UsageError:
    return UsageError(f"this network is no 2-D network: {reason}", _HINT)


def timm_config(net: Network, architecture: str, arguments: Mapping[str, object], names: list[str]) -> dict:
    """timm's `config.json` of the 2-D network."""
    clip = net.spec.clip
    settings = {
        "mean": list(clip.mean),
        "std": list(clip.std),
        "input_size": [3, clip.size, clip.size],
        "crop_pct": 1.0,
        "crop_mode": "squash",  # whole frames, as `predict` shows them
        "interpolation": "bilinear",
        "num_classes": net.spec.num_outputs,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": net.spec.licence or None,
    }
    return {
        "architecture": architecture,
        "num_classes": net.spec.num_outputs,
        "num_features": net.fc.in_features,
        "label_names": names,
        "multi_label": net.spec.multi_label,  # of ours: sigmoid instead of softmax
        "model_args": {**arguments, "num_classes": net.spec.num_outputs},
        "pretrained_cfg": settings,
    }
