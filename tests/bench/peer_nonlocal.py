"""The block against pytorchvideo's `NonLocal` and mmcv's `NonLocal3d`: same weights, same output and gradients.

The peers stay out of nlzoo's own environment; in a scratch one, beside this project's torch:

    python -m venv scratch
    echo "$(python -c 'import torch; print(torch.__path__[0] + "/..")')" > \
        "$(scratch/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
    scratch/bin/pip install --no-deps pytorchvideo mmcv-lite
    scratch/bin/pip install fvcore mmengine addict yapf opencv-python-headless
    scratch/bin/python tests/bench/peer_nonlocal.py

Prints one line per comparison and fails at the first difference beyond float64 rounding, or if it compared nothing.
`python -m tests.bench pairwise --block` in the same environment times them side by side.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from nlzoo.networks.layers import NonLocalBlock

CHANNELS = 12
# theirs -> ours
PYTORCHVIDEO = {"conv_theta": "theta", "conv_phi": "phi", "conv_g": "g", "conv_out": "w_z", "norm": "bn"}
MMCV = {
    "theta.conv": "theta",
    "phi.conv": "phi",
    "g.conv": "g",
    "theta.0.conv": "theta",
    "phi.0.conv": "phi",
    "g.0.conv": "g",
    "conv_out.conv": "w_z",
    "conv_out.bn": "bn",
    "concat_project.conv": "w_f",
}


def randomised(peer):
    """`peer` in float64 with every parameter and statistic random, so that no part of it is silent."""
    peer = peer.double()
    with torch.no_grad():
        for name, value in peer.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.5)
    return peer


def block_like(peer, names, **options):
    """An nlzoo block with the peer's weights."""
    block = NonLocalBlock(CHANNELS, **options).double()
    state = {}
    for key, value in peer.state_dict().items():
        prefix, _, leaf = key.rpartition(".")
        name = f"{names[prefix]}.{leaf}"
        state[name] = value.reshape(block.state_dict()[name].shape)
    if "w_z.bias" not in state:  # mmcv has none in front of a norm
        state["w_z.bias"] = torch.zeros(CHANNELS).double()
    block.load_state_dict(state)
    return block


def compare(label, peer, block):
    """What is added to x, and to its gradient, in eval and train mode."""
    worst = 0.0
    for training in (False, True):
        x = torch.randn(2, CHANNELS, 3, 6, 7).double().requires_grad_()
        dy = torch.randn_like(x)
        results = []
        for net in (peer.train(training), block.train(training)):
            y = net(x)
            results.append([(y - x).detach()])
            if "concat" not in label:  # mmcv's divides the ReLU's output in place, which its backward refuses
                results[-1].append(torch.autograd.grad(y, x, dy)[0] - dy)
        for theirs, ours in zip(*results, strict=True):
            worst = max(worst, ((theirs - ours).norm() / theirs.norm()).item())
    print(f"{label:60} relative difference {worst:.1e}", flush=True)
    if not worst < 1e-10:
        sys.exit(f"{label}: they differ")


def pytorchvideo_cases():
    from pytorchvideo.layers.nonlocal_net import create_nonlocal

    for form, kind in (("embedded", "softmax"), ("dot", "dot_product")):
        for subsample, pool in (("before", (1, 2, 2)), ("none", None)):
            for norm in (nn.BatchNorm3d, None):
                peer = randomised(
                    create_nonlocal(
                        dim_in=CHANNELS, dim_inner=CHANNELS // 2, pool_size=pool, instantiation=kind, norm=norm
                    )
                )
                options = dict(form=form, subsample=subsample, norm="bn" if norm else "none")
                yield f"pytorchvideo {options}", peer, block_like(peer, PYTORCHVIDEO, **options)


def mmcv_cases():
    from mmcv.cnn import NonLocal3d

    modes = {"gaussian": "gaussian", "embedded": "embedded_gaussian", "dot": "dot_product", "concat": "concatenation"}
    for form, mode in modes.items():
        for subsample in ("after", "none"):
            for scale in (True, False) if form == "embedded" else (False,):
                for norm in ("bn", "none"):
                    peer = randomised(
                        NonLocal3d(
                            CHANNELS,
                            mode=mode,
                            sub_sample=subsample == "after",
                            use_scale=scale,
                            norm_cfg=dict(type="BN3d") if norm == "bn" else None,
                        )
                    )
                    # gaussian: keys are x itself, so mmcv pools x for them and g's output for the values
                    options = dict(form=form, subsample=subsample, scale=scale, norm=norm)
                    yield f"mmcv {options}", peer, block_like(peer, MMCV, **options)


def main():
    seed = torch.seed()
    print(f"seed {seed}, torch {torch.__version__}")
    compared = 0
    for cases in (pytorchvideo_cases, mmcv_cases):
        try:
            for case in cases():
                compare(*case)
                compared += 1
        except ImportError as error:
            print(f"{cases.__name__}: {error}")
    if not compared:
        sys.exit("no peer could be imported; the docstring says how to install them")


if __name__ == "__main__":
    main()
