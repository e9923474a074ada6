"""What a name that is no model may have meant. What travels to and from the Hub is tested in apps/test_hub.py."""

import pytest

from nlzoo.core.errors import UsageError
from nlzoo.networks import download


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model `nl5-i3d-resnet50`, a finished run `videos-1`, and `half`, which has no model yet."""
    for folder in ("weights/nl5-i3d-resnet50", "runs/videos-1/best"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (tmp_path / folder / name).write_text("{}")
    for name in ("result.json", "config.json", "videos.csv"):
        (tmp_path / "runs/videos-1" / name).write_text("{}")
    (tmp_path / "runs/half").mkdir()
    for name in ("config.json", "videos.csv"):
        (tmp_path / "runs/half" / name).write_text("{}")
    (tmp_path / "net.pth").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("vidz-1", "did you mean videos-1?"),
        ("VIDEOS-1", "did you mean videos-1?"),
        ("runs/video-1", "did you mean videos-1?"),
        ("nl5-i3d-resnett50", "did you mean nl5-i3d-resnet50?"),
        ("half", "the run runs/half is unfinished and has no model yet; nlzoo finetune --resume continues it"),
        (
            "runs/half/best",
            "the run runs/half is unfinished and has no model yet; nlzoo finetune --resume continues it",
        ),
        (
            "net.pth",
            "nlzoo import makes a model folder of a weights file; nlzoo inflate --weights one of a 2-D network's",
        ),
        ("https://huggingface.co/alice/waving", "give it as alice/waving"),
        ("https://hf.co/alice/waving/tree/main", "give it as alice/waving"),
        ("resnett34", "nlzoo inflate resnet34 makes a model of that name"),
        ("something", "nlzoo list shows the models that are here"),
    ],
)
def test_a_name_that_is_no_model_gets_what_was_meant(place, name, hint):
    with pytest.raises(UsageError, match="there is no model") as caught:
        download.locate(name)
    assert caught.value.hint == hint
