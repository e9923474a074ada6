"""Folders of real, small videos."""

import numpy as np
import pytest

from nlzoo.videos import encode


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """One real mp4 of 12 frames, 32 x 48."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encode.write_video(file, np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), np.uint8))
    return file


@pytest.fixture
def tree(tmp_path, clip_file):
    """Writes the named videos; each with its own bytes unless told, as copies would be joined into one group."""

    def write(*names, same=False):
        for n, name in enumerate(names):
            place = tmp_path / "videos" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            tail = b"" if same else b"\0\0\0\x0cfree" + n.to_bytes(4, "big")  # an empty box at the end of an mp4
            place.write_bytes(clip_file.read_bytes() + tail)
        return tmp_path / "videos"

    return write
