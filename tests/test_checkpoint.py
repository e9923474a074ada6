"""Model folders: equal logits after a round trip, whole or not at all, and strict reading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlzoo import checkpoint, model, spec
from nlzoo.errors import DiskError, WeightsError
from nlzoo.inflate import depths


@pytest.fixture
def net(seed):
    placement = spec.parse_nl("res3:1,res4:1", {"res2": 2, "res3": 2, "res4": 2, "res5": 2})
    built = model.build(spec.ModelSpec("tiny", non_local=placement, classes=("a", "b/ü"), num_outputs=2, clip=spec.ClipSpec(4, None, 32)))
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return built


def test_round_trip_gives_equal_logits_and_exactly_these_files(net, tmp_path):
    folder = checkpoint.save_model(tmp_path / "m", net, {"top1": 0.5})
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "metrics.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    clip = torch.randn(2, 3, 4, 32, 32)
    again = checkpoint.load_model(folder)
    assert again.spec == net.spec and torch.equal(again(clip), net.eval()(clip))
    assert depths(again) == depths(net)


def test_saving_again_replaces_and_a_failure_keeps_what_was_there(net, tmp_path, monkeypatch):
    folder = checkpoint.save_model(tmp_path / "m", net)
    net.fc.bias.data.fill_(3.0)
    checkpoint.save_model(folder, net)
    assert torch.equal(checkpoint.load_model(folder).fc.bias, net.fc.bias)

    def full(part):
        (part / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"):
        checkpoint.write_folder(folder, full)
    assert torch.equal(checkpoint.load_model(folder).fc.bias, net.fc.bias)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("fc.bias"), "fc.bias: missing"),
    (lambda t: t.update({"extra.weight": torch.zeros(1)}), "extra.weight"),
    (lambda t: t.update({"../x": torch.zeros(1)}), "names that no network"),
    (lambda t: t.update({"fc.bias": torch.zeros(3)}), r"\(3,\) instead of \(2,\)"),
    (lambda t: t["fc.bias"].fill_(float("nan")), "NaN or infinity in fc.bias"),
])
def test_weights_that_do_not_fit_are_refused_by_name(net, tmp_path, change, words):
    folder = checkpoint.save_model(tmp_path / "m", net)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=words):
        checkpoint.load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_refused(net, tmp_path, keep):
    file = checkpoint.save_model(tmp_path / "m", net) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="could not be read"):
        checkpoint.load_model(tmp_path / "m")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", json.dumps({"format": 1})])
def test_a_config_that_is_damaged_is_refused(net, tmp_path, text):
    folder = checkpoint.save_model(tmp_path / "m", net)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError):
        checkpoint.load_model(folder)
