"""Any 2-D network of timm on single frames: its own features, whatever its weights file holds beside them."""

import pytest
import torch
from safetensors.torch import save_file

from nlzoo.core import model_spec
from nlzoo.core.errors import UsageError, WeightsError
from nlzoo.networks import card, checkpoint, describe, facts, model

VIT = "vit_tiny_patch16_224"


def load(name, file=None):
    def no_hub(repo):
        raise AssertionError("the Hub was asked")

    return model.load_on_frames(name, file, no_hub, "nlzoo probe")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A transformer with a classifier of its own: `(timm's network, its file)`."""
    net = model.import_timm().create_model(VIT, num_classes=7).eval()
    file = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(net.state_dict(), file)
    return net, file


def test_features_are_timms_own_of_each_frame_and_a_model_folder_keeps_them(vit, tmp_path, seed):
    theirs, file = vit
    net, clip = load(VIT, file), torch.randn(1, 3, 2, 224, 224)
    model.set_head(net, ("a", "b"))
    torch.nn.init.normal_(net.fc.weight)
    with torch.no_grad():
        frames = [theirs.forward_head(theirs.forward_features(clip[:, :, t]), pre_logits=True) for t in range(2)]
        expected = torch.stack(frames, 2)
        assert torch.allclose(net.forward_features(clip), expected, atol=1e-5)
        assert torch.allclose(net(clip), net.fc(expected.mean(2)), atol=1e-5)
        back = checkpoint.load_model(checkpoint.save_model(tmp_path / "m", net))
        assert back.spec == net.spec and torch.equal(back(clip), net(clip))
    assert model.takes_size(net, 32) and not model.takes_size(net, 50)


def test_the_embedded_backbone_keeps_its_features_and_costs_what_its_2d_network_costs(seed):
    net, image = load("tiny"), torch.randn(2, 3, 32, 32)
    flat = model.load_backbone("tiny", None, None).net
    with torch.no_grad():
        expected = flat.forward_head(flat.forward_features(image), pre_logits=True)
        assert torch.allclose(net.forward_features(image[:, :, None])[:, :, 0], expected, atol=1e-5)
    counts = describe.count(net)
    assert counts.params == sum(p.numel() for p in net.parameters()) and counts.stages == []
    inflated = model.build(model_spec.ModelSpec("tiny", model_spec.Inflation("c2d"), clip=net.spec.clip))
    assert abs(counts.macs / describe.count(inflated).macs - 1) < 1e-2
    assert "on each frame" in facts.in_words(net.spec, counts) and "Frame by frame, tiny" in card.body(net.spec, None)


def test_what_does_not_fit_is_a_sentence(vit, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file(model.plain_resnet("resnet18").state_dict(), file)
    with pytest.raises(WeightsError, match=rf"does not fit {VIT}: 150 missing"):
        load(VIT, file)
    tensors = vit[0].state_dict()
    save_file(tensors | {"blocks.0.odd": tensors["norm.bias"].clone()}, file)  # in a part of the network: no classifier
    with pytest.raises(WeightsError, match="blocks.0.odd"):
        load(VIT, file)
    with pytest.raises(UsageError, match="knows no network 'vit_nano'"):
        load("vit_nano")
    with pytest.raises(UsageError, match="frames is no inflation"):
        model.inflate("tiny", None, model_spec.Inflation("frames"), "none", None)


def test_what_needs_an_inflated_network_is_refused():
    with pytest.raises(UsageError, match="cannot be exported: it is tiny on single frames"):
        model_spec.refuse_other_kinds(load("tiny").spec, "be exported")
    with pytest.raises(UsageError, match="has no non-local blocks"):
        model_spec.ModelSpec("tiny", model_spec.Inflation("frames"), (model_spec.NonLocal("res4", (0,)),))
