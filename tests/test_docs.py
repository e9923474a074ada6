"""The code in docs/python.md runs, as one program, in an empty folder."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"


def test_the_python_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 6
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
    assert sorted(p.name for p in (tmp_path / "weights/mine").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
