"""Packages of others of which only a part is imported.

timm and torchvision import all their models and operators at once, and with them torch's compiler: two seconds more
than the part that a ResNet needs. A package that `partly` has prepared runs its own `__init__` when it is first asked
for something that is not there yet, so whoever else uses it finds all of it.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType


class _Package(ModuleType):
    """A package that has not run its `__init__`; its modules can be imported."""

    def __getattr__(self, name: str) -> object:
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ and self.__spec__.loader
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def partly(name: str, **known: object) -> None:
    """From now on importing a module of the package `name` does not import the rest; `known` is there at once.

    Nothing is done where it is imported already, or is not there.
    """
    if name in sys.modules:
        return
    over, _, last = name.rpartition(".")
    parent = find_spec(over) if over else None
    spec = PathFinder.find_spec(name, parent.submodule_search_locations if parent else None)
    if spec:
        module = module_from_spec(spec)
        module.__class__ = _Package
        vars(module).update(known)
        sys.modules[name] = module
        if over in sys.modules:
            setattr(sys.modules[over], last, module)
