"""Backbones and their weights: names, files in every accepted shape, and refusals that say what to do."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import HubError, UsageError, WeightsError
from nlzoo.networks import describe, model, zoo


def no_hub(repo):
    raise HubError("the Hub could not be reached")


def trained():
    """A 2-D state dict as an exporter would give it: no BN counters."""
    net = model.plain_resnet("resnet18")
    return {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("how", ["safetensors", "half", "pth", "nested", "module"])
def test_weights_files_in_every_accepted_shape(tmp_path, how):
    tensors = trained()
    file = tmp_path / ("w.safetensors" if how in ("safetensors", "half") else "w.pth")
    if how == "half":
        tensors = {k: v.half() for k, v in tensors.items()}
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        data = {"module." + k: v for k, v in tensors.items()} if how == "module" else tensors
        torch.save({"state_dict": data, "epoch": 3} if how != "pth" else data, file)
    backbone = model.load_backbone("resnet18", file, no_hub)
    assert all(torch.equal(backbone.net.state_dict()[k], v.float()) for k, v in tensors.items())
    assert backbone.net.conv1.weight.dtype is torch.float32 and backbone.source == f"file {file.name}"


def test_a_head_of_another_size_is_taken_with_its_file(tmp_path):
    tensors = trained()
    tensors["fc.weight"], tensors["fc.bias"] = torch.randn(7, 512), torch.randn(7)
    save_file(tensors, tmp_path / "w.safetensors")
    assert model.load_backbone("resnet18", tmp_path / "w.safetensors", no_hub).net.fc.out_features == 7


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "there is no weights file"),
        (b"", "is empty"),
        (b"hello", "could not be read as weights"),
        (pickle.dumps(Evil(), 2), "was not opened: it names (builtins|__builtin__).print"),
        ({"a": 1}, "no state dict"),
        ([1], "no state dict"),
        ({"conv1.weight": torch.zeros(1)}, "missing .*another shape"),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path, content, words, capsys):
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(WeightsError, match=words):
        model.load_backbone("resnet18", file, no_hub)
    assert "code ran" not in capsys.readouterr().out


def test_the_wrong_backbone_and_nan_are_named(tmp_path):
    tensors = trained()
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit resnet50: 165 missing .*, 24 of another shape"):
        model.load_backbone("resnet50", tmp_path / "w.safetensors", no_hub)
    tensors["layer1.0.bn1.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"NaN or infinity in layer1\.0\.bn1\.bias"):
        model.load_backbone("resnet18", tmp_path / "w.safetensors", no_hub)


@pytest.mark.parametrize(
    "name, words", [("resnot50", "not a ResNet"), ("vit_base_patch16_224", "not a ResNet"), ("resnet50.nope", "tags")]
)
def test_names_that_timm_does_not_know(name, words):
    with pytest.raises(UsageError) as caught:
        model.load_backbone(name, None, no_hub)
    assert words in caught.value.message + caught.value.hint


def test_offline_says_which_file_to_fetch():
    with pytest.raises(WeightsError) as caught:
        model.load_backbone("resnet50", None, no_hub)
    assert (
        caught.value.exit_code == 4
        and "--weights" in caught.value.hint
        and "timm/resnet50.a1_in1k" in caught.value.hint
    )


def test_fetched_weights_carry_tag_source_and_licence(tmp_path):
    save_file(trained(), tmp_path / "w.safetensors")
    backbone = model.load_backbone("resnet18.tv_in1k", None, lambda repo: tmp_path / "w.safetensors")
    assert (backbone.name, backbone.source, backbone.licence) == (
        "resnet18.tv_in1k",
        "timm/resnet18.tv_in1k",
        "bsd-3-clause",
    )


def test_the_embedded_backbone_is_small_and_loads():
    assert zoo.shipped("tiny/model.safetensors").stat().st_size < 3_000_000
    net, checks = model.inflate("tiny", None, model_spec.Inflation(), "res3:1,res4:1", no_hub)
    assert checks.nonlocal_identical and checks.still_clip_error < 1e-5 and checks.moving_clip_error < 1e-5
    assert net.spec.licence == "apache-2.0"


def test_checks_can_fail(monkeypatch):
    """The negative control: a block whose gamma is 1 is seen, and a kernel off the centre too."""
    insert = model.insert_nonlocal_

    def spoiled(net, placement):
        insert(net, placement)
        for places in placement:
            net.layer3.get_submodule(f"nl{places.blocks[0]}").bn.weight.data.fill_(1.0)
        return net

    monkeypatch.setattr(model, "insert_nonlocal_", spoiled)
    _, checks = model.inflate("tiny", None, model_spec.Inflation(), "res4:1", no_hub)
    assert checks.nonlocal_identical is False

    def shifted(net, how, inflate_=model.inflate_):
        net = inflate_(net, how)
        net.conv1.weight.data = net.conv1.weight.data.roll(1, 2)
        return net

    monkeypatch.setattr(model, "inflate_", shifted)
    _, checks = model.inflate("tiny", None, model_spec.Inflation(), "none", no_hub)
    assert checks.moving_clip_error > 1e-3 and checks.nonlocal_identical is None


def test_temporal_pools_are_put_aside_and_told():
    _, checks = model.inflate("tiny", None, model_spec.Inflation(pools="paper"), "none", no_hub)
    assert checks.moving_clip_error < 1e-5 and checks.pools_change > 1e-3


@torch.no_grad()
def test_block_costs_are_those_of_the_maps_they_sit_on():
    net, _ = model.inflate("tiny", None, model_spec.Inflation(), "res3:1,res4:1", no_hub)
    _, macs, blocks = describe.cost(net, view_spec.ClipSpec(8, None, 64))
    _, bare, none = describe.cost(
        model.inflate("tiny", None, model_spec.Inflation(), "none", no_hub)[0], view_spec.ClipSpec(8, None, 64)
    )
    assert none == {} and list(blocks) == ["res3 after 1", "res4 after 1"]
    assert (
        blocks["res3 after 1"].naive_bytes == (8 * 8 * 8) * (8 * 4 * 4) * 4
    )  # 8 frames of 8 x 8 queries, 4 x 4 keys, float32
    assert macs - bare == sum(b.projections + b.products for b in blocks.values())
