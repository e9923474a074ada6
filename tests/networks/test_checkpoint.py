"""Model folders: equal logits after a round trip, whole or not at all, and strict reading."""

import json
import os
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlzoo.core import files, model_spec, view_spec
from nlzoo.core.errors import DiskError, WeightsError
from nlzoo.networks import checkpoint, model, zoo
from nlzoo.networks.inflate import depths


@pytest.fixture
def net(seed):
    placement = model_spec.parse_nl("res3:1,res4:1", {"res2": 2, "res3": 2, "res4": 2, "res5": 2})
    built = model.build(
        model_spec.ModelSpec(
            "tiny", non_local=placement, classes=("a", "b/ü"), num_outputs=2, clip=view_spec.ClipSpec(4, None, 32)
        )
    )
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return built


def test_round_trip_gives_equal_logits_and_exactly_these_files(net, tmp_path):
    folder = checkpoint.save_model(tmp_path / "m", net, {"top1": 0.5}, "# mine\n")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "metrics.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and len({p.stat().st_mode for p in folder.iterdir()}) == 1
    assert (folder / "README.md").read_text() == "# mine\n"
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
        files.write_folder(folder, full)
    assert torch.equal(checkpoint.load_model(folder).fc.bias, net.fc.bias)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_one_that_stepped_aside_is_found_and_goes_back(net, tmp_path, monkeypatch):
    """Where two names cannot change places: after a kill between the two renames, and when the second fails."""
    folder = checkpoint.save_model(tmp_path / "m[0]", net)
    aside = folder.rename(tmp_path / ".m[0].0123abcd.old")
    assert files.current(folder) == aside and zoo.read_spec(folder) == net.spec
    assert (
        torch.equal(checkpoint.load_model(folder).fc.bias, net.fc.bias)
        and checkpoint.read_blueprint(folder).spec == net.spec
    )
    files.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m[0]"] and files.current(folder) == folder
    real = os.rename

    def fails(source, target):
        if source.suffix == ".part" and target == folder:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", fails)
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    with pytest.raises(DiskError, match="Input/output error"):
        checkpoint.save_model(folder, net)
    assert [p.name for p in tmp_path.iterdir()] == ["m[0]"] and checkpoint.load_model(folder).spec == net.spec


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="on Linux only")
def test_two_names_change_places_at_once(tmp_path):
    """Somebody who looks all the time always finds a folder of that name, while it is replaced 300 times."""
    folder, stop, seen, missed = tmp_path / "ü m", threading.Event(), set(), []

    def fill(number):
        return lambda part: [(part / name).write_text(str(number)) for name in "ab"]

    def look():
        while not stop.is_set():
            try:
                seen.add(folder.stat().st_mtime_ns)
            except FileNotFoundError:
                missed.append(1)

    files.write_folder(folder, fill(-1))
    reader = threading.Thread(target=look)
    reader.start()
    for number in range(300):
        files.write_folder(folder, fill(number))
    stop.set()
    reader.join()
    assert not missed and len(seen) > 10 and [p.name for p in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("fc.bias"), "fc.bias: missing"),
        (lambda t: t.update({"extra.weight": torch.zeros(1)}), "extra.weight"),
        (lambda t: t.update({"../x": torch.zeros(1)}), "names that no network"),
        (lambda t: t.update({"fc.bias": torch.zeros(3)}), r"\(3,\) instead of \(2,\)"),
        (lambda t: t["fc.bias"].fill_(float("nan")), "NaN or infinity in fc.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(net, tmp_path, change, words):
    folder = checkpoint.save_model(tmp_path / "m", net)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=words):
        checkpoint.load_model(folder)


@pytest.mark.parametrize(
    "keep, words", [(0, "is empty"), (4, "could not be read"), (100, "could not be read"), (-1, "could not be read")]
)
def test_a_file_cut_short_is_refused(net, tmp_path, keep, words):
    file = checkpoint.save_model(tmp_path / "m", net) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=words):
        checkpoint.load_model(tmp_path / "m")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", json.dumps({"format": 1})])
def test_a_config_that_is_damaged_is_refused(net, tmp_path, text):
    folder = checkpoint.save_model(tmp_path / "m", net)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError):
        checkpoint.load_model(folder)
