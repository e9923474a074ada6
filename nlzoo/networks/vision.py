"""The only door to torchvision, also where the registry's torchvision (a CUDA build) stands beside a CPU torch."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from ..core.lazy import partly

_kept_alive: list[torch.library.Library] = []  # torch.library definitions vanish with their Library object


def import_torchvision() -> ModuleType:
    """torchvision, repaired where its operators are missing.

    Beside a torch of another build `import torchvision` raises `operator torchvision::nms does not exist`
    (pytorch/vision #9077). Defining the schemas of the missing operators first is enough for all that we use:
    timm's models and v2 transforms; torchvision.ops stays without them.
    """
    try:
        return _import()
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        return _import()


def _import() -> ModuleType:
    for part in ("models", "ops", "datasets", "io"):
        partly(f"torchvision.{part}")
    import torchvision

    return torchvision


def import_transforms() -> ModuleType:
    """`torchvision.transforms.v2`, without torch's compiler, which takes two seconds in every decoding worker.

    torchvision marks a function for subclasses of tensors, which we have none of, with `torch.compiler.disable`, and
    that imports the compiler; torch's own mark does the same when the function is called.
    """
    import_torchvision()
    later = getattr(torch, "_disable_dynamo", torch.compiler.disable)  # it is torch's own affair
    with mock.patch.object(torch.compiler, "disable", later):
        from torchvision.transforms import v2

    return v2


def import_googlenet() -> Callable[..., Any]:
    """torchvision's GoogLeNet, a class."""
    import_torchvision()
    from torchvision.models.googlenet import GoogLeNet

    return GoogLeNet


def kinetics400() -> tuple[str, ...]:
    """The classes of Kinetics-400 in the order of every zoo's outputs.

    `torchvision.models.video` publishes the same list in the metadata of its weights, and takes seconds to import.
    """
    import_torchvision()
    from torchvision.models import _meta

    return tuple(_meta._KINETICS400_CATEGORIES)
