"""pytorchvideo's I3D with its own NonLocal blocks, at the places and of the size of nlzoo's, to be measured beside.

It is not in nlzoo's environment: `NLZOO_PEERS` names a folder with its `pytorchvideo/` (0.1.5). Of what it imports
only `layers` and `models.resnet` are used, so nothing else has to be installed: fvcore, which it takes two functions
from, is stood in for here.
"""

import os
import sys
import types
from pathlib import Path

from torch import nn

from nlzoo.networks.vision import import_torchvision

WIDTHS = {1: 256, 2: 512, 3: 1024, 4: 2048}
NL5 = {2: (1, 3), 3: (1, 3, 5)}  # stage of pytorchvideo -> blocks that one follows; nlzoo's res3:2,res4:3


def available() -> bool:
    """Whether there is one to compare with."""
    folder = os.environ.get("NLZOO_PEERS")
    return bool(folder) and (Path(folder) / "pytorchvideo").is_dir()


def _importable() -> None:
    import_torchvision()
    folder = Path(os.environ["NLZOO_PEERS"])
    sys.path.insert(0, str(folder))
    weight_init = types.ModuleType("fvcore.nn.weight_init")
    weight_init.c2_msra_fill = weight_init.c2_xavier_fill = lambda module: None  # torch's own initialisation stays
    distributed = types.ModuleType("fvcore.nn.distributed")
    distributed.differentiable_all_reduce = distributed.differentiable_all_gather = None
    for name, module in {"fvcore": types.ModuleType("fvcore"), "fvcore.nn": types.ModuleType("fvcore.nn")}.items():
        module.__path__ = []
        sys.modules.setdefault(name, module)
    sys.modules.setdefault("fvcore.nn.weight_init", weight_init)
    sys.modules.setdefault("fvcore.nn.distributed", distributed)
    models = types.ModuleType("pytorchvideo.models")  # its __init__ imports every model, and their dependencies
    models.__path__ = [str(folder / "pytorchvideo" / "models")]
    sys.modules.setdefault("pytorchvideo.models", models)


class _Head(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3, 4)))


def i3d(non_local: bool, classes: int = 400) -> nn.Module:
    """An I3D ResNet-50 of 3x1x1 kernels without temporal pools, with five non-local blocks or none."""
    _importable()
    from pytorchvideo.layers.nonlocal_net import create_nonlocal
    from pytorchvideo.models.resnet import create_resnet

    kernels = ((3, 1, 1), [(3, 1, 1), (1, 1, 1)], [(3, 1, 1), (1, 1, 1)], [(1, 1, 1), (3, 1, 1)])
    net = create_resnet(
        input_channel=3,
        model_depth=50,
        model_num_class=classes,
        dropout_rate=0,
        stem_conv_kernel_size=(5, 7, 7),
        stem_conv_stride=(1, 2, 2),
        stem_pool=nn.MaxPool3d,
        stem_pool_kernel_size=(1, 3, 3),
        stem_pool_stride=(1, 2, 2),
        stage_conv_a_kernel_size=kernels,
        stage_conv_b_kernel_size=((1, 3, 3),) * 4,
        stage_spatial_h_stride=(1, 2, 2, 2),
        stage_spatial_w_stride=(1, 2, 2, 2),
        stage_temporal_stride=(1, 1, 1, 1),
        head=None,
    )
    for stage, places in (NL5 if non_local else {}).items():
        blocks = []
        for n, block in enumerate(net.blocks[stage].res_blocks):
            blocks.append(block)
            if n in places:
                width = WIDTHS[stage]
                blocks.append(create_nonlocal(dim_in=width, dim_inner=width // 2, pool_size=(1, 2, 2)))
        net.blocks[stage].res_blocks = nn.ModuleList(blocks)
    net.blocks.append(_Head(classes))
    return net
