"""BatchNorm folded into the convolutions before it: the network that answers, with a pass over memory less for each."""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .frames import BatchNorm
from .network import Network
from .twin import twin

# Of the clip that is looked at: I3D's own pools take none of fewer frames, Inception of fewer pixels than 75
FRAMES, SIZE = 3, 80


def fold_bn(net: Network) -> Network:
    """A copy of `net` in eval mode whose BatchNorms stand in the convolutions that feed them; for forward passes alone.

    Computed in float64, so that the logits are those of `net` but for rounding. Which convolution feeds which
    BatchNorm is seen on a clip, not told from names. The copy must not be saved: its keys are not those of `net`.
    """
    folded = twin(net).eval()
    names = {module: name for name, module in folded.named_modules()}
    for conv, bn in _pairs(folded):
        bias = None if conv.bias is None else _exact(conv.bias)
        assert bn.running_mean is not None and bn.running_var is not None  # all of ours have them
        statistics = _exact(bn.running_mean), _exact(bn.running_var), bn.eps, _exact(bn.weight), _exact(bn.bias)
        weight, bias = fuse_conv_bn_weights(_exact(conv.weight), bias, *statistics)
        conv.weight, conv.bias = (nn.Parameter(x.to(conv.weight), False) for x in (weight, bias))
        parent, _, name = names[bn].rpartition(".")
        setattr(folded.get_submodule(parent), name, nn.Identity())
    return folded


def _exact(x: Tensor) -> Tensor:
    return x.cpu().double()  # Metal has no float64


@torch.no_grad()
def _pairs(net: Network) -> list[tuple[nn.Conv3d, BatchNorm]]:
    """Each BatchNorm with the convolution whose output it is given, where both are computed once."""
    outputs: dict[int, tuple[nn.Conv3d, Tensor]] = {}  # by identity; the tensors are kept, so that no id comes again
    inputs: list[tuple[BatchNorm, Tensor]] = []

    def see(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, BatchNorm):
            inputs.append((module, given[0]))
        elif isinstance(module, nn.Conv3d):
            outputs[id(output)] = module, output

    seen = [module for module in net.modules() if isinstance(module, (nn.Conv3d, BatchNorm))]
    if not seen:
        return []
    hooks = [module.register_forward_hook(see) for module in seen]
    kernel = seen[0].weight
    net(torch.zeros(1, kernel.shape[1], FRAMES, SIZE, SIZE, dtype=kernel.dtype, device=kernel.device))
    for hook in hooks:
        hook.remove()
    calls = Counter([conv for conv, _ in outputs.values()] + [bn for bn, _ in inputs])
    pairs = [(outputs[id(x)][0], bn) for bn, x in inputs if id(x) in outputs]
    return [(conv, bn) for conv, bn in pairs if calls[conv] == calls[bn] == 1]
