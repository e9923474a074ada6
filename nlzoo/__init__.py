"""nlzoo: non-local I3D networks from timm's ResNets, fine-tuned on your own videos.

Everything here is imported when it is first used, so that `nlzoo --help` stays quick.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "NlzooError": "core.errors",
    "ClipSpec": "core.view_spec",
    "Inflation": "core.model_spec",
    "ModelSpec": "core.model_spec",
    "NonLocal": "core.model_spec",
    "NonLocalBlock": "networks.layers",
    "inflate_": "networks.inflate",
    "insert_nonlocal_": "networks.inflate",
    "build": "networks.model",
    "compare": "apps.compare",
    "finetune": "training.finetune",
    "fuse": "training.fuse",
    "load": "networks.download",
    "evaluate": "training.evaluate",
    "export": "apps.export",
    "predict": "apps.predict",
    "probe": "training.probe",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'nlzoo' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
