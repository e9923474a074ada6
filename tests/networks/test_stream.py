"""A network of RGB becomes one of flow or of sound: its first kernel alone changes, as the paper of each says."""

import dataclasses
import json

import pytest
import torch

from nlzoo.core.errors import UsageError
from nlzoo.core.model_spec import Inflation, ModelSpec, from_json, parse_nl, to_json
from nlzoo.networks import card, model
from nlzoo.networks.inflate import stem

SPEC = ModelSpec("tiny", Inflation(), parse_nl("res4:1", {"res2": 2, "res3": 2, "res4": 2, "res5": 2}), num_outputs=5)


@pytest.fixture
def net(seed):
    return model.build(dataclasses.replace(SPEC, clip=dataclasses.replace(SPEC.clip, frames=4, size=32)))


@pytest.mark.parametrize("stream", ["flow", "flow-tvl1", "audio"])
def test_the_first_kernel_alone_changes_and_the_spec_builds_it_again(net, stream):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = model.set_stream(net, stream)
    channels = 1 if stream == "audio" else 2
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert made is net and changed == {"conv1.weight"} and stem(net).in_channels == channels
    kernel = before["conv1.weight"].double()
    expected = (
        kernel.sum(1, keepdim=True) if stream == "audio" else kernel.mean(1, keepdim=True).expand(-1, 2, *[-1] * 3)
    )
    assert torch.allclose(net.conv1.weight.double(), expected, atol=1e-7)
    again = model.build(from_json(json.loads(json.dumps(to_json(net.spec))), "here"))
    again.load_state_dict(net.state_dict())
    clip = torch.randn(2, channels, 4, 32, 32)
    assert torch.equal(again(clip), net(clip))
    assert f"(B, {channels}, T, H, W)" in card.body(net.spec, None)
    text = card.addressed(card.body(net.spec, None), "user/name")
    assert 'nlzoo.load("user/name")' in text and "PATH" not in text


@torch.no_grad()
def test_sound_is_seen_as_a_grey_picture_and_flow_as_its_mean(net):
    grey, flow = torch.randn(2, 1, 4, 32, 32), torch.randn(2, 2, 4, 32, 32)
    of_grey, of_mean = (
        net(grey.expand(-1, 3, -1, -1, -1)),
        net((flow.sum(1, keepdim=True) / 3).expand(-1, 3, -1, -1, -1)),
    )
    for stream, clip, expected in (("audio", grey, of_grey), ("flow", flow, of_mean)):
        other = model.build(net.spec)
        other.load_state_dict(net.state_dict())
        got = model.set_stream(other, stream)(clip)
        assert model.relative_error(got, expected) < 1e-5


def test_only_a_network_of_rgb_becomes_another(net):
    assert model.set_stream(net, "rgb") is net and net.spec.clip.stream == "rgb"
    model.set_stream(net, "flow")
    assert model.set_stream(net, "flow").spec.clip.channels == 2
    with pytest.raises(UsageError, match="is of flow, and cannot be made one of rgb"):
        model.set_stream(net, "rgb")
