"""BatchNorm folded into convolutions: the same answers, from fewer passes."""

import copy

import pytest
import torch
from torch import nn

from nlzoo.core import model_spec
from nlzoo.networks import folding, frames, inflate, model


def trained(arch, nl, form="embedded"):
    """A network whose statistics are not those of a fresh one, in float64."""
    torch.manual_seed(0)
    net = model.build(model_spec.ModelSpec(arch, num_outputs=5))
    inflate.insert_nonlocal_(net, model_spec.parse_nl(nl, inflate.depths(net), form=form))
    for module in net.modules():
        if isinstance(module, frames.BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.double().eval()


@pytest.mark.parametrize(
    ("arch", "nl", "form"),
    [("tiny", "1", "embedded"), ("tiny", "1", "concat"), ("resnet18d", "res4:1", "gaussian"), ("resnet26", "1", "dot")],
)
def test_the_answers_are_the_same_and_no_batchnorm_is_left(arch, nl, form):
    net = trained(arch, nl, form)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    clip = torch.randn(2, 3, 4, 40, 48, dtype=torch.double)
    folded = folding.fold_bn(net)
    assert not any(isinstance(module, frames.BatchNorm) for module in folded.modules())
    with torch.no_grad():
        expected = net(clip)
        torch.testing.assert_close(folded(clip), expected, rtol=1e-9, atol=1e-9)
        off = copy.deepcopy(net)
        off.bn1.running_mean += 0.1  # the control: that a BatchNorm went astray would be seen
        assert (off(clip) - expected).abs().max() > 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert len(net.state_dict()) == len(before)


class Odd(nn.Module):
    """A convolution that is used twice, a BatchNorm behind no convolution, and one pair."""

    def __init__(self):
        super().__init__()
        self.twice, self.once = (nn.Conv3d(3, 3, 1) for _ in range(2))
        self.first, self.behind, self.last = (frames.BatchNorm(3) for _ in range(3))

    def forward(self, x):
        return self.last(self.once(self.behind(self.twice(self.twice(self.first(x))).relu())))


def test_what_is_no_pair_stays():
    torch.manual_seed(0)
    net = Odd().eval()
    for module in (net.first, net.behind, net.last):
        nn.init.normal_(module.running_mean)
    folded = folding.fold_bn(net)
    left = {name for name, module in folded.named_modules() if isinstance(module, frames.BatchNorm)}
    assert left == {"first", "behind"}
    clip = torch.randn(2, 3, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(folded(clip), net(clip))
