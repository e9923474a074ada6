"""Import parity: each peer's own network with random weights, saved as the peer saves it, imported, compared.

The peers stay out of nlzoo's own environment; in a scratch one, beside this project's torch and timm:

    python -m venv ~/peers/venv
    echo "$(python -c 'import site; print(site.getsitepackages()[0])')" > \
        "$(~/peers/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
    ~/peers/venv/bin/pip install --no-deps pytorchvideo fvcore iopath portalocker yacs termcolor tabulate \
        parameterized mmengine mmcv-lite addict yapf platformdirs opencv-python-headless simplejson
    cd ~/peers && for r in facebookresearch/SlowFast open-mmlab/mmaction2 Tushar-N/pytorch-resnet3d dmlc/gluon-cv; do
        git clone --depth 1 https://github.com/$r; done
    ~/peers/venv/bin/python tests/bench/peer_checkpoints.py --peers ~/peers \
        [--record tests/networks/peer_logits.json.gz] [name …]

Prints one line per network and fails if one differs by more than 1e-4 relative (max |a - b| / max |b| of the logits),
or if nothing was compared. `--record` writes what `tests/networks/test_convert.py` holds on to: names, shapes and a few
logits of each peer for weights that both sides draw from the same seed; no code and no weights of theirs.
"""

import argparse
import contextlib
import gzip
import importlib.util
import json
import os
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from seeded import clip_of, python2_pickle, seeded_tensor

from nlzoo.networks import convert
from nlzoo.networks.model import import_timm, relative_error

import_timm()  # repairs torchvision where it was built for another torch
OUTPUTS = 13


def module(name, **members):
    """A stand-in for a package that a peer imports and its networks do not use."""
    made = types.ModuleType(name)
    made.__dict__.update(members)
    made.__path__ = []
    sys.modules[name] = made
    return made


def load(name, path):
    """One file of a repository as a module, without its package's __init__."""
    found = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


# ---- pytorchvideo


def pytorchvideo(peers, arch, size, frames):
    from pytorchvideo.models.hub import resnet

    # its head pools 4 x 7 x 7 at 224 pixels; at this size the same layer pools what there is
    return getattr(resnet, f"{arch}_r50")(
        model_num_class=OUTPUTS, head_pool_kernel_size=(frames // 2, size // 32, size // 32)
    )


def save_pytorchvideo(net, folder, name):
    torch.save({"model_state": net.state_dict()}, folder / name)


# ---- SlowFast


def slowfast(peers, config, size, frames):
    import pytorchvideo.layers.distributed as distributed

    for name in (
        "cat_all_gather",
        "get_local_process_group",
        "get_local_rank",
        "get_local_size",
        "get_world_size",
        "init_distributed_training",
    ):
        if not hasattr(
            distributed, name
        ):  # SlowFast wants a newer pytorchvideo than the registry has; no network uses them
            setattr(distributed, name, None)
    for name in ("detectron2", "detectron2.layers"):
        if name not in sys.modules:
            module(name, ROIAlign=None)
    sys.path.insert(0, str(peers / "SlowFast"))
    if "slowfast.models" not in sys.modules:  # its __init__ imports losses that the registry's pytorchvideo lacks
        module("slowfast.models").__path__ = [str(peers / "SlowFast" / "slowfast" / "models")]
    from slowfast.config.defaults import get_cfg
    from slowfast.models import video_model_builder

    cfg = get_cfg()
    cfg.merge_from_file(str(peers / "SlowFast" / "configs" / "Kinetics" / f"{config}.yaml"))
    cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.MODEL.NUM_CLASSES, cfg.MODEL.HEAD_ACT = (
        frames,
        size,
        OUTPUTS,
        "none",
    )
    if (
        "NOPOOL" in config
    ):  # its class, ResNet_nopool, is gone from the repository; slow_c2d is the same without temporal pools
        cfg.MODEL.ARCH = "slow_c2d"
    net = video_model_builder.ResNet(cfg)
    net.saved_cfg = cfg
    return net


def save_slowfast(net, folder, name):
    torch.save(
        {
            "epoch": 3,
            "model_state": net.state_dict(),
            "optimizer_state": torch.optim.SGD(net.parameters(), 0.1).state_dict(),
            "cfg": net.saved_cfg.dump(),
        },
        folder / name,
    )


# ---- mmaction2


def mmaction2(peers, config, size, frames):
    """The backbone and head that the config names, built from the repository's own files."""
    from mmengine.config import Config

    root = peers / "mmaction2" / "mmaction"
    if "mmaction" not in sys.modules:
        module("mmaction")
        for name in (
            "models",
            "models.backbones",
            "models.heads",
            "models.losses",
            "models.common",
            "utils",
            "evaluation",
        ):
            module(
                f"mmaction.{name}",
                ConfigType=dict,
                OptConfigType=dict,
                SampleList=list,
                ForwardResults=dict,
                LabelList=list,
                OptMultiConfig=dict,
                top_k_accuracy=None,
                get_str_type=str,
            )
        from mmengine.registry import MODELS

        module("mmaction.registry", MODELS=MODELS)
        sys.modules["mmaction.models.heads"].BaseHead = None
        for part in (
            "losses.base",
            "losses.cross_entropy_loss",
            "backbones.resnet",
            "backbones.resnet3d",
            "backbones.c2d",
            "heads.base",
            "heads.i3d_head",
            "heads.tsn_head",
        ):
            load(f"mmaction.models.{part}", root / "models" / Path(*part.split(".")).with_suffix(".py"))
    cfg = Config.fromfile(next((peers / "mmaction2" / "configs" / "recognition").glob(f"*/{config}*.py"))).model
    from mmengine.registry import MODELS

    cfg.cls_head.num_classes = OUTPUTS
    cfg.backbone.pretrained = None
    net = torch.nn.Module()
    net.backbone, net.cls_head = MODELS.build(cfg.backbone), MODELS.build(cfg.cls_head)
    flat = cfg.type == "Recognizer2D"
    net.forward = types.MethodType(
        _recognizer2d if flat else lambda self, clips: self.cls_head(self.backbone(clips)), net
    )
    return net


def _recognizer2d(self, clips):
    """Frames as a batch, scores averaged over them by the head (TSN)."""
    frames = clips.transpose(1, 2).flatten(0, 1)
    return self.cls_head(self.backbone(frames), clips.shape[2])


def save_mmaction2(net, folder, name):
    torch.save({"meta": {"epoch": 100, "cfg": "model = dict()"}, "state_dict": net.state_dict()}, folder / name)


# ---- Tushar-N/pytorch-resnet3d, and through its own key map the authors' Caffe2 files


def resnet3d(peers, non_local, size, frames):
    net = load("tushar_resnet", peers / "pytorch-resnet3d" / "models" / "resnet.py").I3Res50(
        num_classes=OUTPUTS, use_nl=non_local
    )
    net.forward = net.forward_single
    return net


def save_resnet3d(net, folder, name):
    torch.save({k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}, folder / name)


def authors(peers, non_local, sparse, c2d, size, frames):
    """Caffe2 runs nowhere here. Tushar-N's network is the authors' 32x2 I3D.

    C2D and 8x8 have its layers with other kernels and strides.
    """
    net = resnet3d(peers, non_local, size, frames)
    if c2d:
        for m in net.modules():
            if isinstance(m, torch.nn.Conv3d) and m.kernel_size[0] > 1:
                m.weight = torch.nn.Parameter(m.weight[:, :, :1].clone())
                m.kernel_size, m.padding = (1, *m.kernel_size[1:]), (0, *m.padding[1:])
    if sparse:  # lib/models/resnet_video.py of the authors: stem stride 1, pool1 1x3x3
        net.conv1.stride = (1, 2, 2)
        net.maxpool1.kernel_size, net.maxpool1.stride = (1, 3, 3), (1, 2, 2)
    return net


def affine(peers, size, frames):
    """The authors' long-clip nets: BN folded into scale and shift (AffineNd), here mean 0 and variance 1 - eps."""
    net = authors(peers, False, False, False, size, frames)
    net.affine = True
    return net


def save_caffe2(net, folder, name):
    """As lib/utils/checkpoints.py of the authors: blobs, momenta, learning rate and step, pickled by python 2."""
    blobs = {"model_iter": 400001, "lr": np.array([1e-4], np.float32)}
    for key, value in net.state_dict().items():
        if not key.endswith("num_batches_tracked") and not (hasattr(net, "affine") and "running" in key):
            blobs[caffe2_name(key)] = value.numpy()
    blobs.update({k + "_momentum": v for k, v in list(blobs.items()) if k.endswith(("_w", "_b", "_bn_s"))})
    (folder / name).write_bytes(python2_pickle({"blobs": blobs}))


def caffe2_name(key):
    """Tushar-N's utils/convert_weights.py, backwards."""
    words = key.split(".")
    leaf = {"weight": "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}[words[-1]]
    norm = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}[words[-1]]
    if words[0] == "fc":
        return f"pred_{leaf}"
    if words[0] in ("conv1", "bn1"):
        return "conv1_w" if words[0] == "conv1" else f"res_conv1_bn_{norm}"
    stage, block = int(words[0][5:]) + 1, words[1]
    if words[2] == "nl":
        return f"nonlocal_conv{stage}_{block}_{words[3]}_{norm if words[3] == 'bn' else leaf}"
    if words[2] == "downsample":
        return f"res{stage}_{block}_branch1_" + ("w" if words[3] == "0" else f"bn_{norm}")
    part = "abc"[int(words[2][-1]) - 1]
    return f"res{stage}_{block}_branch2{part}_" + ("w" if words[2].startswith("conv") else f"bn_{norm}")


def save_slowfast_caffe2(net, folder, name):
    """The files of SlowFast's zoo, which its own `c2_model_loading` translates; here that is turned around."""
    from slowfast.utils.c2_model_loading import get_name_convert_func

    translate, state, blobs = get_name_convert_func(), net.state_dict(), {}
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            blobs[slowfast_caffe2_name(key)] = value.numpy()
    assert {translate(name) for name in blobs} == {k for k in state if not k.endswith("num_batches_tracked")}
    (folder / name).write_bytes(python2_pickle({"blobs": blobs}))


def slowfast_caffe2_name(key):
    words = key.split(".")
    leaf = {"weight": "w", "bias": "b"}.get(words[-1], "")
    norm = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}[words[-1]]
    if words[0] == "head":
        return f"pred_{leaf}"
    if words[0] == "s1":
        return "conv1_w" if words[2] == "conv" else f"res_conv1_bn_{norm}"
    stage, block = words[0][1:], words[1].removeprefix("pathway0_res").removeprefix("pathway0_nonlocal")
    if "nonlocal" in words[1]:
        part = words[2].removeprefix("conv_")
        return f"nonlocal_conv{stage}_{block}_{part}_{norm if part == 'bn' else leaf}"
    if words[2] != "branch2":
        return f"res{stage}_{block}_branch1_" + ("w" if words[2] == "branch1" else f"bn_{norm}")
    return f"res{stage}_{block}_branch2{words[3][0]}_" + ("w" if len(words[3]) == 1 else f"bn_{norm}")


# ---- gluoncv


def gluoncv(peers, name, size, frames):
    root = peers / "gluon-cv" / "gluoncv"
    for package in (
        "gluoncv",
        "gluoncv.torch",
        "gluoncv.torch.model_zoo",
        "gluoncv.torch.model_zoo.action_recognition",
        "gluoncv.torch.utils",
    ):
        if package not in sys.modules:
            module(package)
    here = "gluoncv.torch"
    load(f"{here}.utils.utils", root / "torch" / "utils" / "utils.py")
    load(
        f"{here}.model_zoo.action_recognition.non_local",
        root / "torch" / "model_zoo" / "action_recognition" / "non_local.py",
    )
    zoo = load(
        f"{here}.model_zoo.action_recognition.i3d_resnet",
        root / "torch" / "model_zoo" / "action_recognition" / "i3d_resnet.py",
    )
    model = types.SimpleNamespace(
        PRETRAINED=False, PRETRAINED_BASE=True, BN_EVAL=False, PARTIAL_BN=False, BN_FROZEN=False
    )
    cfg = types.SimpleNamespace(
        CONFIG=types.SimpleNamespace(
            MODEL=model,
            DATA=types.SimpleNamespace(NUM_CLASSES=OUTPUTS, NUM_SEGMENT=1, NUM_CROP=1),
            INFERENCE=types.SimpleNamespace(FEAT=False),
        )
    )
    zoo.I3D_ResNetV1.inflate_weights = lambda self: None  # would fetch ImageNet weights; all weights are drawn below
    return getattr(zoo, name)(cfg)


def save_gluoncv(net, folder, name):
    torch.save(net.state_dict(), folder / name)


SIZE = 64
# label: (build, arguments, save, file's name, wishes, frames)
NETS = {
    "pytorchvideo C2D R50": (pytorchvideo, ("c2d",), save_pytorchvideo, "C2D_8x8_R50.pyth", {}, 8),
    "pytorchvideo I3D R50": (pytorchvideo, ("i3d",), save_pytorchvideo, "I3D_8x8_R50.pyth", {}, 8),
    "SlowFast C2D R50": (slowfast, ("C2D_8x8_R50",), save_slowfast, "C2D_8x8_R50.pyth", {}, 8),
    "SlowFast I3D R50": (slowfast, ("I3D_8x8_R50",), save_slowfast, "I3D_8x8_R50.pyth", {}, 8),
    "SlowFast NL C2D R50": (slowfast, ("C2D_NLN_8x8_R50",), save_slowfast, "C2D_NLN_8x8_R50.pyth", {}, 8),
    "SlowFast NL I3D R50": (slowfast, ("I3D_NLN_8x8_R50",), save_slowfast, "I3D_NLN_8x8_R50.pyth", {}, 8),
    "SlowFast I3D R101": (slowfast, ("I3D_8x8_R101",), save_slowfast, "I3D_8x8_R101.pyth", {}, 8),
    "SlowFast NL I3D R101": (slowfast, ("I3D_NLN_8x8_R101",), save_slowfast, "I3D_NLN_8x8_R101.pyth", {}, 8),
    "mmaction2 I3D R50": (
        mmaction2,
        ("i3d_imagenet-pretrained-r50_8xb8-32x2x1",),
        save_mmaction2,
        "i3d-r50_32x2x1.pth",
        {},
        8,
    ),
    "mmaction2 NL dot": (
        mmaction2,
        ("i3d_imagenet-pretrained-r50-nl-dot",),
        save_mmaction2,
        "i3d-r50-nl-dot-product_32x2x1.pth",
        {},
        8,
    ),
    "mmaction2 NL embedded": (
        mmaction2,
        ("i3d_imagenet-pretrained-r50-nl-embedded",),
        save_mmaction2,
        "nl.pth",
        {"form": "embedded"},
        8,
    ),
    "mmaction2 NL gaussian": (mmaction2, ("i3d_imagenet-pretrained-r50-nl-gaussian",), save_mmaction2, "nl.pth", {}, 8),
    "mmaction2 C2D R50": (mmaction2, ("c2d_r50-in1k-pre_8xb32-8x8x1",), save_mmaction2, "c2d_r50_8x8x1.pth", {}, 8),
    "mmaction2 C2D R50 nopool": (
        mmaction2,
        ("c2d_r50-in1k-pre-nopool",),
        save_mmaction2,
        "c2d_r50-nopool_8x8x1.pth",
        {},
        8,
    ),
    "Tushar-N I3D R50": (resnet3d, (False,), save_resnet3d, "i3d_r50_kinetics.pth", {}, 16),
    "Tushar-N NL I3D R50": (resnet3d, (True,), save_resnet3d, "i3d_r50_nl_kinetics.pth", {}, 16),
    "authors NL I3D 32x2": (
        authors,
        (True, False, False),
        save_caffe2,
        "i3d_nonlocal_32x2_IN_pretrain_400k.pkl",
        {},
        16,
    ),
    "authors NL I3D 8x8": (authors, (True, True, False), save_caffe2, "i3d_nonlocal_8x8_IN_pretrain_400k.pkl", {}, 8),
    "authors C2D 32x2": (authors, (False, False, True), save_caffe2, "c2d_baseline_32x2_IN_pretrain_400k.pkl", {}, 16),
    "authors I3D 128x1, affine": (affine, (), save_caffe2, "i3d_baseline_128x1_I3D_pretrain_400k.pkl", {}, 16),
    "SlowFast NL I3D, Caffe2": (slowfast, ("c2/I3D_NLN_8x8_R50",), save_slowfast_caffe2, "I3D_NLN_8x8_R50.pkl", {}, 8),
    "SlowFast C2D nopool, Caffe2": (
        slowfast,
        ("c2/C2D_NOPOOL_8x8_R50",),
        save_slowfast_caffe2,
        "C2D_NOPOOL_8x8_R50.pkl",
        {},
        8,
    ),
    "gluoncv I3D R50": (
        gluoncv,
        ("i3d_resnet50_v1_kinetics400",),
        save_gluoncv,
        "i3d_resnet50_v1_kinetics400.pth",
        {},
        8,
    ),
    "gluoncv NL5 I3D R50": (gluoncv, ("i3d_nl5_resnet50_v1_kinetics400",), save_gluoncv, "i3d_nl5_resnet50.pth", {}, 8),
    "gluoncv NL10 I3D R50": (
        gluoncv,
        ("i3d_nl10_resnet50_v1_kinetics400",),
        save_gluoncv,
        "i3d_nl10_resnet50.pth",
        {},
        8,
    ),
    "gluoncv NL5 I3D R101": (
        gluoncv,
        ("i3d_nl5_resnet101_v1_kinetics400",),
        save_gluoncv,
        "i3d_nl5_resnet101.pth",
        {},
        8,
    ),
}


def fill(net, theta):
    """Weights and statistics drawn from each tensor's name, so that the test can draw them again without the peer."""
    state = net.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(seeded_tensor(name, tuple(value.shape), theta))
            if hasattr(net, "affine") and "running_" in name:
                value.fill_(0 if "mean" in name else 1 - 1e-5)


@torch.no_grad()
def compare(label, peers, folder):
    build, arguments, save, name, wishes, frames = NETS[label]
    net = build(peers, *arguments, size=SIZE, frames=frames)
    theta = 1e-3 if "dot" in label else 1.0
    fill(net, theta)
    net.eval()
    clip = clip_of(frames, SIZE)
    theirs = net([clip]) if build is slowfast else net(clip)
    theirs = theirs.reshape(theirs.shape[0], -1)
    save(net, folder, name)
    imported = convert.read(folder / name, convert.ImportOptions(**{"frames": frames, **wishes}))
    ours = imported.net(clip)
    error, spread = relative_error(ours, theirs), relative_error(theirs[:1], theirs[1:])
    print(
        f"{label:26} relative error {error:.1e} (clips differ by {spread:.1e}); {imported.zoo}: "
        f"{imported.net.spec.inflation.arch} {imported.net.spec.backbone}, {len(imported.dropped)} dropped, "
        f"{len(imported.filled)} filled",
        flush=True,
    )
    assert spread > 1e-2 and error <= 1e-4, label
    rename = {save_caffe2: caffe2_name, save_slowfast_caffe2: slowfast_caffe2_name}.get(save)
    last = {v.data_ptr(): k for k, v in net.state_dict().items()}  # two names of one tensor: the second was drawn last
    names = {k: [list(v.shape), last[v.data_ptr()]] for k, v in net.state_dict().items()}
    if rename:
        names = {rename(k): v for k, v in names.items() if not k.endswith("num_batches_tracked")}
    if save in (save_caffe2, save_resnet3d):
        kept = set(convert.read_weights(folder / name).entries)
        names = {k: v for k, v in names.items() if k in kept}
    logits = [[round(float(x), 6) for x in row[:6]] for row in theirs]
    return {"file": name, "wishes": wishes, "frames": frames, "theta": theta, "names": names, "logits": logits}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path.home() / "peers")
    parser.add_argument("--record", type=Path)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    records, chosen = {}, [n for n in NETS if not asked.names or any(a.lower() in n.lower() for a in asked.names)]
    assert chosen, f"no net is called so; there are: {', '.join(NETS)}"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(sys.stdout):
        for label in chosen:
            records[label] = compare(label, asked.peers, Path(folder))
            for file in Path(folder).iterdir():
                file.unlink()
    print(f"{len(records)} networks compared, largest error within 1e-4")
    if asked.record:
        asked.record.write_bytes(gzip.compress(json.dumps(records, sort_keys=True).encode(), mtime=0))


if __name__ == "__main__":
    main()
