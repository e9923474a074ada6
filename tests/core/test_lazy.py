"""Packages of which only a part is imported: their own `__init__` runs when somebody asks for what is not there yet."""

import importlib
import sys

import pytest

from nlzoo.core.lazy import partly


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a part and a sub-package; each `__init__` counts its runs in `sys.runs`."""
    for folder in ("alpha_pkg", "alpha_pkg/beta"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(
            "import sys\nsys.runs.append(__name__)\nfrom . import part\nwhole = part.value\nversion = 'own'\n"
        )
        (tmp_path / folder / "part.py").write_text("value = [1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "runs", [], raising=False)
    yield "alpha_pkg"
    for name in [name for name in sys.modules if name.partition(".")[0] == "alpha_pkg"]:
        del sys.modules[name]


def test_a_part_is_imported_alone_and_the_rest_when_it_is_asked_for(package):
    partly(package, version="known")
    partly(f"{package}.beta")
    part = importlib.import_module(f"{package}.beta.part")
    whole = importlib.import_module(package)
    assert sys.runs == [] and part.value == [1]
    assert whole.version == "known" and whole.beta.part is part and sys.runs == []
    assert whole.beta.whole is part.value and sys.runs == ["alpha_pkg.beta"]
    assert whole.whole == [1] and whole.version == "own" and sys.runs == ["alpha_pkg.beta", "alpha_pkg"]
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        whole.beta.other  # noqa: B018
    assert len(sys.runs) == 2


def test_what_is_imported_already_or_not_there_is_left_alone(package):
    whole = importlib.import_module(package)
    partly(package, version="known")
    partly("no_such_package_anywhere")
    assert sys.modules[package] is whole and whole.version == "own" and "no_such_package_anywhere" not in sys.modules
