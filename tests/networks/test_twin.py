"""A second network on the same tensors, which nothing that is done to it reaches."""

import copy

import pytest
import torch
from torch import nn

from nlzoo.core.model_spec import ModelSpec, parse_nl
from nlzoo.networks import inflate, model
from nlzoo.networks.twin import twin


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = model.build(ModelSpec("tiny", num_outputs=5))
    inflate.insert_nonlocal_(made, parse_nl("1", inflate.depths(made)))
    return made.train()


def test_it_computes_the_same_on_the_same_tensors(net, seed):
    other = twin(net)
    clip = torch.randn(2, 3, 4, 32, 32)
    tensors = [*net.parameters(), *net.buffers()]
    assert all(a is b for a, b in zip(tensors, [*other.parameters(), *other.buffers()], strict=True))
    assert not {*net.modules()} & {*other.modules()}
    assert [*map(type, net.modules())] == [*map(type, other.modules())]
    assert torch.equal(other.eval()(clip), copy.deepcopy(net).eval()(clip))
    assert other.spec == net.spec


def test_what_is_done_to_it_leaves_the_network_as_it_was(net, seed):
    before = copy.deepcopy(net)
    called = []
    other = twin(net).eval()
    other.conv1.weight = nn.Parameter(torch.zeros_like(other.conv1.weight))
    other.layer3 = nn.Identity()
    other.bn1.register_forward_hook(lambda *_: called.append(1))
    other.bn1.register_buffer("more", torch.zeros(1))
    other.drop_rate = 0.9
    twin(net).to("meta")
    clip = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(net.eval()(clip), before.eval()(clip))
    assert [*net.state_dict()] == [*before.state_dict()]
    assert not called and net.drop_rate == before.drop_rate


def test_a_module_in_two_places_is_one_in_the_copy_too():
    layer = nn.Linear(2, 2)
    other = twin(nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer)))
    assert other[0] is other[2] is other[3][0] and other[0] is not layer and other[0].weight is layer.weight
