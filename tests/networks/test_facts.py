"""What `info` says without torch: the same as with it, kept until anything that it follows from changes."""

import json
import random

import pytest
import torch
from torch import nn

from nlzoo.core import files
from nlzoo.core.errors import WeightsError
from nlzoo.core.model_spec import ModelSpec, NonLocal, parse_name
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import checkpoint, describe, facts, model, shapes
from nlzoo.networks.inflate import TemporalMaxPool


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))
    net = model.build(ModelSpec("tiny", non_local=(NonLocal("res4", (0,)),), clip=ClipSpec(4, 2, 32), num_outputs=3))
    return checkpoint.save_model(tmp_path / "m", net)


def test_counts_are_kept_until_the_folder_changes(folder):
    key = facts.key_of_folder(folder)
    assert facts.recall(key) is None
    counts = describe.count_folder(folder)
    assert facts.recall(key) == counts == describe.count(checkpoint.load_model(folder))
    assert counts.depths == {"res2": 2, "res3": 2, "res4": 2, "res5": 2}
    config = json.loads((folder / "config.json").read_text())
    config["clip"]["frames"] = 8
    files.write_json(folder / "config.json", config)
    assert facts.recall(facts.key_of_folder(folder)) is None
    assert describe.count_folder(folder).macs > 1.9 * counts.macs


def test_weights_that_do_not_fit_are_refused_whatever_is_kept(folder):
    describe.count_folder(folder)
    other = checkpoint.save_model(folder.with_name("other"), model.build(ModelSpec("tiny", num_outputs=4)))
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert facts.recall(facts.key_of_folder(folder)) is None
    with pytest.raises(WeightsError, match="does not fit its config.json"):
        describe.count_folder(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert facts.key_of_folder(folder) == ""
    with pytest.raises(WeightsError):
        describe.count_folder(folder)


def test_damaged_or_unwritable_caches_cost_only_time(folder, tmp_path, monkeypatch):
    counts = describe.count_folder(folder)
    (kept,) = (tmp_path / "cache" / "networks").iterdir()
    for damaged in ("", "[]", "{", '{"params": 1}'):
        kept.write_text(damaged)
        assert facts.recall(facts.key_of_folder(folder)) is None
    assert describe.count_folder(folder) == counts == facts.recall(facts.key_of_folder(folder))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "file"))
    assert describe.count_folder(folder) == counts and facts.recall(facts.key_of_folder(folder)) is None


def test_a_named_net_has_the_spec_of_its_network():
    name = "nl5-i3d-r50-8x8"
    net = model.blueprint(parse_name(name), 12)
    counts = describe.count_named(name, parse_name(name), 12)
    assert facts.recall(facts.key_of_name(name, 12)) == counts
    assert parse_name(name).spec(counts.depths, 12) == net.spec
    assert facts.key_of_name(name, 13) != facts.key_of_name(name, 12)


def _layer(draw):
    kernel, padding = draw.choice([(k, p) for k in (1, 2, 3, 5) for p in range(k // 2 + 1)])
    kind = {"kernel_size": kernel, "stride": draw.randint(1, 3), "padding": padding}
    ceil, dilation = draw.random() < 0.5, draw.randint(1, 2)
    return draw.choice(
        [
            (nn.Conv1d(2, 3, **kind, dilation=dilation), 1),
            (nn.Conv2d(2, 3, **kind, dilation=dilation), 2),
            (nn.Conv3d(2, 3, **kind), 3),
            (nn.MaxPool2d(**kind, ceil_mode=ceil), 2),
            (nn.MaxPool3d(**kind, ceil_mode=ceil), 3),
            (nn.AvgPool3d(**kind, ceil_mode=ceil), 3),
            (TemporalMaxPool(draw.randint(1, 3)), 3),
        ]
    )


@torch.no_grad()
def test_shapes_are_those_that_torch_computes(seed):
    draw = random.Random(seed)
    for _ in range(60):
        layer, axes = _layer(draw)
        x = torch.zeros(1, 2, *(draw.randint(9, 14) for _ in range(axes)))
        assert shapes._shape_of(layer, x).shape == layer(x).shape, (layer, x.shape)
