"""Run folders as crashes, full disks, editors and other programs leave them: a sentence or the work, never a traceback.

Whatever a file of a run has become, every command that reads runs ends with one of our exit codes.
"""

import random
import shutil
from collections import Counter

import pytest

CODES = (0, 2, 3, 4, 5, 7)  # nothing of ours reads the Hub here
DAMAGES = {
    "gone": None,
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "other bytes": lambda content: bytes(range(256)) * 4,
    "zeros": lambda content: bytes(len(content)),
    "a list": lambda content: b"[]\n",
    "an object": lambda content: b"{}\n",
    "null": lambda content: b"null\n",
    "nested": lambda content: b"[" * 100_000,
    "not finite": lambda content: content.replace(b"1", b"NaN", 1).replace(b"0.", b"Infinity", 1),
    "other types": lambda content: content.replace(b": ", b': ["x"], "y": ', 3),
    "no text": lambda content: b"\xff\xfe" + content,
    "a folder": None,
}


COMMANDS = (
    "list",
    "list --json",
    "info videos-1",
    "info videos-1 --json",
    "push videos-1 --dry-run",
    "report videos-1 --json",
    "eval videos-1 videos",
    "predict videos-1 {video}",
    "explain videos-1 {video} --out pictures",
    "finetune videos --from videos-1 --dry-run",
)
RESUME = "finetune videos --resume --name videos-1"


@pytest.fixture
def place(warm, tmp_path):
    """A working folder with six videos, `weights/start` and the finished run `runs/videos-1`."""
    return shutil.copytree(warm, tmp_path / "place")


def damage(file, kind):
    """Makes `file` what it may have become."""
    content = file.read_bytes()
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    elif kind != "gone":
        file.write_bytes(DAMAGES[kind](content))


def cases(run, count, rng):
    """`(file, damage, commands)`: all of them, or `count`, with two commands each."""
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    every = [(file, kind, (*COMMANDS, RESUME)) for file in files for kind in DAMAGES]
    if count is None:
        return every
    return [
        (file, kind, [rng.choice(commands[:5]), rng.choice(commands[5:])])
        for file, kind, commands in rng.sample(every, count)
    ]


@pytest.mark.parametrize("count", [8, pytest.param(None, marks=pytest.mark.torture)])
def test_a_damaged_run_folder_is_a_sentence_or_no_matter(place, nlzoo, monkeypatch, seed, count):
    monkeypatch.chdir(place)
    run, whole = place / "runs" / "videos-1", place.with_name("whole")
    shutil.copytree(run, whole)
    video = next((place / "videos").rglob("*.mp4"))
    outcomes, failed = Counter(), []
    for file, kind, commands in cases(whole, count, random.Random(seed)):
        for words in commands:
            if words == RESUME:
                (run / "result.json").unlink()
            if (run / file).exists():
                damage(run / file, kind)
            try:
                code, out, err = nlzoo(*words.format(video=video).split())
            except BaseException as error:
                failed.append((file, kind, words, repr(error)))
            else:
                outcomes[code] += 1
                if code not in CODES or "Traceback" in err or (code and not (err or out)):
                    failed.append((file, kind, words, code, err[-300:]))
            shutil.rmtree(run)
            shutil.copytree(whole, run)
    print(dict(outcomes))
    assert not failed
    assert outcomes[0] > 0 and sum(outcomes.values()) >= (2 * count if count else 1000)
