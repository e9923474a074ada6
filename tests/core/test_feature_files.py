"""Files of features may come from anybody: what is none is told in a sentence, before its numbers are read."""

import json
import re
import struct

import numpy as np
import pytest

from nlzoo.core import feature_files
from nlzoo.core.errors import UsageError


def test_features_of_windows_are_read_as_they_were_written_and_those_asked_for_alone(tmp_path):
    file = tmp_path / "f.safetensors"
    rows = [{"path": f"/v/{n}", "features": np.full((2, 3), n, np.float32)} for n in range(3)]
    feature_files.write(file, [*rows, {"path": "/v/3", "error": "is empty"}])
    assert {path: row.tolist() for path, row in feature_files.read(file).items()} == {
        row["path"]: row["features"].tolist() for row in rows
    }
    assert list(feature_files.read(file, {"/v/1", "/v/7"}, (2, 3))) == ["/v/1"]
    for shape, sentence in (
        ((3, 3), "2 windows of each video, and those of 3 windows of each video are needed"),
        ((3,), "2 windows of each video, and those of whole videos are needed"),
        ((2, 4), "has 3 features where this network has 4"),
    ):
        with pytest.raises(UsageError, match=sentence):
            feature_files.read(file, (), shape)


def raw(paths, kind="F32", shape=(1, 2), numbers=bytes(8)):
    """A .safetensors file of such a header."""
    tensor = {"dtype": kind, "shape": shape, "data_offsets": [0, len(numbers)]}
    header = json.dumps({"__metadata__": {"paths": paths}, "features": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + numbers


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (raw("[" * 100_000), "recursion"),
        (raw('{"a": 1}'), "not one row for each path"),
        (raw('["a", "b"]'), "not one row for each path"),
        (raw("[1]"), "not one row for each path"),
        (raw('["a"]', shape=(2,)), "not one row for each path"),
        (raw('["a"]', "BF16", (1, 4)), "its numbers are BF16"),
        (raw('["a"]', "I32"), "its numbers are I32"),
        (raw('["a"]', numbers=np.float32([1, np.nan]).tobytes()), "those of .*a are not finite"),
        (raw('["a"]', shape=(1, 2**40), numbers=bytes(8)), "has no features of videos"),
        (raw('["a"]')[:-1], "has no features of videos"),
        (struct.pack("<Q", 2**62), "has no features of videos"),
        (b"\x80\x04cposix\nsystem\n", "has no features of videos"),  # a pickle
        (b"", "has no features of videos"),
    ],
)
def test_any_other_file_is_a_sentence(tmp_path, content, sentence):
    file = tmp_path / "f.safetensors"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="f.safetensors has no features of videos") as caught:
        feature_files.read(file)
    assert re.search(sentence, str(caught.value))
    with pytest.raises(UsageError, match="has no features of videos"):
        feature_files.read(tmp_path)
