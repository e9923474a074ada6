"""nlzoo: non-local I3D networks from timm's ResNets, fine-tuned on your own videos.

Everything here is imported when it is first used, so that `nlzoo --help` stays quick.
"""

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {"NonLocalBlock": "layers", "NonLocal": "spec", "Inflation": "spec", "ClipSpec": "spec", "ModelSpec": "spec",
          "NlzooError": "errors", "inflate_": "inflate", "insert_nonlocal_": "inflate", "load": "hub", "build": "model"}
__all__ = ["__version__", *_WHERE]


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'nlzoo' has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__():
    return __all__
