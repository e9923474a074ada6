"""Tables that other programs read back: whatever is in the names, in all three formats."""

import csv
import json
import sys
from pathlib import Path

import pytest

from nlzoo.core import tables
from nlzoo.core.errors import DiskError, UsageError

NAMES = [
    "plain.mp4",
    'a,b;"c".mp4',
    "<b>&.mp4",
    "line\nend.mp4",
    "\x1b[31m.mp4",
    "=1+1.mp4",
    "👩‍👩‍👧.mp4",
    "bytes\udcff.mp4",
]
TEXTS = [*NAMES[:-1], "bytes\\xff.mp4"]  # that of bytes which are no text
ROWS = [{"path": name, "score": n / 7, "p:" + name: 0.5, "none": None} for n, name in enumerate(NAMES)] + [
    {"path": "x", "error": "gone"}
]


def read(file):
    if file.suffix == ".csv":
        with open(file, encoding="utf-8", newline="") as opened:
            return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(opened)]
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


@pytest.mark.parametrize("ending", tables.ENDINGS)
def test_rows_come_back(ending, tmp_path):
    file = tmp_path / f"rows{ending}"
    tables.write(file, ROWS)
    back = read(file)
    exact = NAMES if ending == ".jsonl" else TEXTS  # JSON has codes for such bytes
    assert [row["path"] for row in back] == [*exact, "x"] and back[-1]["error"] == "gone"
    assert [float(row["score"]) for row in back[:-1]] == [n / 7 for n in range(len(NAMES))]
    assert all(float(row["p:" + name]) == 0.5 for row, name in zip(back, exact))


def test_columns_of_no_rows(tmp_path):
    tables.write(tmp_path / "none.csv", [], ("path", "reason"))
    assert (tmp_path / "none.csv").read_text().splitlines() == ["path,reason"]


def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="ends in none of .csv, .jsonl, .parquet") as error:
        tables.check(tmp_path / "a.xlsx")
    assert error.value.hint == "for example a.csv"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow") as error:
        tables.check(tmp_path / "a.parquet")
    assert "nlzoo[parquet]" in error.value.hint
    for file in (tmp_path / "nowhere" / "a.csv", tmp_path / "nowhere" / "more" / "a.jsonl"):
        with pytest.raises(DiskError, match="could not be written"):
            tables.check(file)
        with pytest.raises(DiskError):
            tables.write(file, ROWS)
    assert not list(tmp_path.iterdir())


def test_an_output_overwrites_neither_an_input_nor_a_part_of_a_model_or_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DiskError, match="Is a directory"):
        tables.check(tmp_path / "folder.csv")
    with pytest.raises(UsageError, match="would overwrite what is read"):
        tables.check(tmp_path / "run" / "list.csv", inputs=[Path("run/../run/list.csv")])
    for name in ("videos.csv", "skipped.csv", "metrics.jsonl"):
        tables.check(tmp_path / "run" / name)  # no run yet
        (tmp_path / "run" / "config.json").write_text("{}")
        with pytest.raises(UsageError, match="a part of the model or run"):
            tables.check(tmp_path / "run" / name)
        (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "config.json").write_text("{}")
    tables.check(tmp_path / "run" / "mine.csv")
    with pytest.raises(UsageError, match="a part of the model or run"):
        tables.check(tmp_path / "run" / "model.safetensors", [".safetensors"])
