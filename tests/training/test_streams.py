"""A run of another stream: what it was trained on is in its config.json, and every command reads the right thing."""

import json

import numpy as np
import pytest
import torch

from nlzoo.apps import draw, explain, predict
from nlzoo.core.errors import UsageError
from nlzoo.core.model_spec import Inflation
from nlzoo.networks import checkpoint, model
from nlzoo.training import evaluate, finetune
from nlzoo.videos import flow, loader, video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Drawn videos, a network that was only inflated, and a run of flow on them."""
    folder = tmp_path_factory.mktemp("streams")
    draw.write_videos(folder / "v", draw.CLASSES[:2], 3, seed=3, frames=12, size=(32, 48))
    net, _ = model.inflate("tiny", None, Inflation(), "res4:1", lambda repo: None, frames=4)
    checkpoint.save_model(folder / "net", net)
    result = finetune.finetune(
        folder / "v",
        folder / "net",
        stream="flow",
        size=32,
        epochs=1,
        cache=folder / "cache",
        workers=0,
        device="cpu",
        runs=folder / "runs",
    )
    return folder, result


def test_the_stream_is_recorded_and_the_split_is_that_of_rgb(work):
    folder, result = work
    spec = json.loads((folder / "runs/v-1/best/config.json").read_text())
    assert spec["clip"]["stream"] == "flow" and len(spec["clip"]["mean"]) == 2 and spec["clip"]["size"] == 32
    settings = json.loads((folder / "runs/v-1/config.json").read_text())
    (augment,) = (d for d in settings["decisions"] if d["code"] == "augment")
    assert "only what means something for flow" in augment["reason"] and settings["train"]["augment"]["colour"] == 0
    assert len(list((folder / "cache").iterdir())) == 6
    rgb = finetune.finetune(
        folder / "v", folder / "net", size=32, epochs=1, workers=0, device="cpu", runs=folder / "rgb"
    )
    lists = [(folder / runs / "v-1/videos.csv").read_text() for runs in ("runs", "rgb")]
    assert lists[0] == lists[1] and (rgb.train, rgb.val) == (result.train, result.val)


def test_every_command_reads_flow_without_being_told(work):
    folder, _ = work
    best = folder / "runs/v-1/best"
    done = evaluate.evaluate(best, folder / "v", device="cpu")
    assert len(done.predictions.items) == 6
    net = checkpoint.load_model(best)
    path = folder / "v" / done.predictions.items[0].path
    info = video.probe(path)
    source = loader.Clips(path.parent, (loader.Item(path.name, ()),), net.spec.clip)
    seen = source.read(-1, 0)
    assert seen.shape == (1, 4, 32, 32, 2) and not (seen == flow.STILL).all()
    with torch.inference_mode():
        clip = (seen[0].double() / 255 - 128 / 255) / 0.226
        expected = net(clip.permute(3, 0, 1, 2)[None].float()).softmax(-1)[0]
    assert np.allclose(done.predictions.scores[0], expected.numpy(), atol=1e-4) and info.frames == 12
    (row,) = predict.predict(best, path, device="cpu")
    assert np.allclose([row["scores"][name] for name in net.spec.classes], expected.numpy(), atol=1e-4)
    shown = explain.explain(net, path, CPU)
    assert shown.frames.shape == (4, 32, 32, 3) and np.array_equal(shown.frames[..., :2], seen[0].numpy())


def test_windows_are_read_by_a_sweep_to_the_same_bits(work):
    folder, _ = work
    best = folder / "runs/v-1/best"
    path = next((folder / "v").rglob("*.mp4"))
    rows = predict.predict(best, path, every="0.1s", window="0.3s", device="cpu")[0]["windows"]
    net = checkpoint.load_model(best)
    items = tuple(loader.Item(path.name, (), start=row["start"], end=row["end"]) for row in rows)
    scores = evaluate.predictions(net, loader.Clips(path.parent, items, net.spec.clip), CPU).scores
    assert len(rows) > 3
    got = [[row["scores"][name] for name in net.spec.classes] for row in rows]
    assert np.allclose(got, scores, atol=1e-6)


def test_a_network_of_flow_starts_another_of_flow_only(work):
    folder, _ = work
    with pytest.raises(UsageError, match="is of flow"):
        finetune.finetune(folder / "v", folder / "runs/v-1/best", stream="rgb", runs=folder / "other", device="cpu")


def test_it_is_not_exported_to_programs_that_read_rgb(work):
    from nlzoo.apps import export

    with pytest.raises(UsageError, match="the model is of flow; .* read frames of RGB alone"):
        export.export(work[0] / "runs/v-1/best", "onnx", work[0] / "e")
