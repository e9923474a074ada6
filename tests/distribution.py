"""What `python -m build` made is whole: `python tests/distribution.py dist/` in a checkout.

The wheel has every tracked file of the package and the two that ship from weights/; the source distribution, from
which that wheel was built, has every tracked file. Both say the version of `nlzoo.__version__`, and pip needs no more.
"""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {  # in the checkout: in the wheel
    "weights/starts.toml": "nlzoo/_weights/starts.toml",
    "weights/tiny/model.safetensors": "nlzoo/_weights/tiny/model.safetensors",
    "weights/tiny/README.md": "nlzoo/_weights/tiny/README.md",
}


def tracked() -> set[str]:
    """The files of the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return set(filter(None, listed.split("\0")))


def main(folder: Path) -> None:
    """Raises `AssertionError` for what is missing, or should not be there."""
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "nlzoo/__init__.py").read_text(), re.M)[1]
    files = tracked()
    with zipfile.ZipFile(wheel) as opened:
        inside = set(opened.namelist())
        about = next(name for name in inside if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(opened.read(about))
    wanted = {name for name in files if name.startswith("nlzoo/")} | set(SHIPPED.values())
    packed = {name for name in inside if not name.startswith(f"nlzoo-{version}.dist-info/")}
    assert packed == wanted, f"the wheel lacks {wanted - packed}, and should not have {packed - wanted}"
    assert "nlzoo/py.typed" in packed
    with tarfile.open(source) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames() if opened.getmember(name).isfile()}
    missing = files - inside
    assert not missing, f"the source distribution lacks {missing}"
    assert metadata["Version"] == version and metadata["License-Expression"] == "Apache-2.0"
    print(f"{wheel.name} and {source.name} are whole: {len(packed)} and {len(inside)} files")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
