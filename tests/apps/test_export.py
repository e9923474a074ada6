"""`nlzoo export`: other programs compute what our network computes. The right answers are our own eager network's."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from forked import Forked
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import nlzoo as package
from nlzoo.apps import export, hub_card, onnx_graph, plain
from nlzoo.apps.portable import video_nlzoo
from nlzoo.core.errors import DiskError, NlzooError, UsageError, WeightsError
from nlzoo.core.model_spec import POOLS, Inflation, ModelSpec, NonLocal
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import checkpoint, inflate, model, vision
from nlzoo.networks.model import relative_error
from nlzoo.videos import clips, loader
from nlzoo.videos.items import Item

NAMES = ("waving", "a, b", "Größe")
CLIP = ClipSpec(4, None, 32)
# Operators that TensorRT imports: the table "Supported ONNX Operators" of onnx/onnx-tensorrt, docs/operators.md at
# commit 009d6541 (TensorRT 8.4), as far as they are of interest here. Later versions add to it.
TENSORRT = """
    Add AveragePool BatchNormalization Cast Clip Concat Constant Conv Div Erf Exp Expand Flatten Gather Gemm
    GlobalAveragePool Identity LeakyRelu MatMul Max MaxPool Min Mul Pad Pow ReduceMax ReduceMean ReduceSum Relu Reshape
    Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze Where
""".split()


def randomised(net):
    """Statistics and affines that a fold must not get wrong; blocks that do something; kernels that see time."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, inflate.InflatedConv3d) and module.weight.shape[2] > 1:
            nn.init.kaiming_normal_(module.weight)
        if type(module).__name__ == "NonLocalBlock" and module.norm == "none":
            nn.init.normal_(module.w_z.weight, std=0.05)
    return net.eval()


def randomised_2d(net):
    """Statistics and affines of a 2-D network that are not the usual ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def network(inflation=Inflation(), classes=NAMES, multi_label=False, backbone="tiny", outputs=3, **kind):
    """A small network of random numbers, with a block that has many positions and one that has few."""
    blocks = (NonLocal("res3", (1,), **kind), NonLocal("res4", (0,), **kind)) if kind is not None else ()
    spec = ModelSpec(backbone, inflation, blocks, CLIP, classes, outputs, multi_label=multi_label)
    return randomised(model.build(spec))


def operators(content):
    """The names of the operators in a `.onnx` file."""
    return {node.op_type for node in onnx.load_from_string(content).graph.node}


def session(content):
    return onnx_graph.Session(content)


@torch.no_grad()
def error_on(net, run, *shape):
    clips = torch.randn(shape)
    return relative_error(run(clips), net(clips))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder."""
    torch.manual_seed(1)
    return checkpoint.save_model(tmp_path_factory.mktemp("model") / "mine", network())


@pytest.fixture(scope="module")
def run(warm):
    """A finished run of one epoch, with validation videos."""
    return warm / "runs" / "videos-1"


# The registry's torchvision is a CUDA build: beside torch for CPUs it lacks two operators, and timm and transformers
# import it.
REPAIR = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor d, Tensor s, float iou_threshold)"):
    library.define(name + " -> Tensor")
"""
ALONE = """
import os, runpy, sys
sys.modules["nlzoo"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_nlzoo(script, *words, before=""):
    """What a script prints, in a process that cannot import nlzoo."""
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path(script).parent / "home")}
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | home
    words = [sys.executable, "-c", before + ALONE, str(script), *map(str, words)]
    done = subprocess.run(words, text=True, capture_output=True, env=env, cwd=Path(script).parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def forked_without_nlzoo(script, *words):
    """The same in a fork of this process, which has imported torch and timm already."""

    def alone():
        for name in [name for name in sys.modules if name.partition(".")[0] == "nlzoo"]:
            del sys.modules[name]
        sys.argv = ["", str(script), *map(str, words)]
        exec(ALONE, {})

    out, err = (Path(script).parent.parent / name for name in ("out.txt", "err.txt"))
    assert Forked(alone, script.parent, out, err).wait() == 0, err.read_text()
    return out.read_text()


@pytest.fixture(scope="module")
def repair():
    """What a process must do before it can import torchvision; nothing where it is of this torch."""
    vision.import_torchvision()
    return REPAIR if vision._kept_alive else ""


def scores_in(text):
    """`{class: probability}` of lines such as `0.812  waving`."""
    return {name: float(score) for score, _, name in (line.partition("  ") for line in text.strip().splitlines())}


# --- the network in torch alone, and its graph


@pytest.mark.parametrize(
    "form,span", [("gaussian", "spacetime"), ("embedded", "spacetime"), ("dot", "space"), ("concat", "time")]
)
def test_a_graph_of_every_form_serves_every_shape(form, span, seed):
    subsample = {"spacetime": "before", "space": "after", "time": "none"}[span]
    net = network(form=form, span=span, subsample=subsample, norm="none" if form == "embedded" else "bn")
    network_alone, folded = plain.folded(net)
    assert not any(isinstance(m, nn.BatchNorm3d) for m in network_alone.modules()) and folded >= 20
    content = onnx_graph.write(network_alone, {})
    run = session(content)
    for shape in ((1, 3, 4, 64, 32), (3, 3, 1, 33, 47)):
        assert error_on(net, run, *shape) < 3e-5 and error_on(net, network_alone, *shape) < 3e-5
        assert error_on(net, plain.rebuild(net), *shape) < 3e-5
    assert operators(content) <= set(TENSORRT)
    if form in ("gaussian", "dot"):  # whose products of numbers that were drawn have no room in half precision
        return
    half = network_alone.half()
    half.fc.float()
    assert error_on(net, session(onnx_graph.write(half, {})), 2, 3, 3, 32, 32) < 0.02


@pytest.mark.parametrize("pools", [name for name in POOLS if name != "none"])
def test_temporal_pools_take_every_number_of_frames(pools, seed):
    net = network(Inflation("i3d-333", temporal_padding="zeros", pools=pools, pool1_padding=0))
    run = session(onnx_graph.write(plain.folded(net)[0], {}))
    least, size = export.smallest(net.spec)
    for frames in (least, least + 1):
        assert error_on(net, run, 1, 3, frames, size, size + 7) < 3e-5


@pytest.mark.parametrize("name", "seresnet50 ecaresnet50t resnetblur50 resnet50_gn ecaresnetlight".split())
def test_every_kind_of_layer_can_be_exported(name, seed):
    """Squeeze-and-excitation, channel attention, blur, group norm, pooled shortcuts, deep stems."""
    layers = {"channels": (8, 16, 16, 16)} | ({} if "_gn" not in name else {"channels": (32, 32, 32, 32)})
    flat = model.import_timm().create_model(name, num_classes=5, layers=(1, 1, 1, 1), **layers)
    net = randomised(inflate.inflate_(flat, Inflation()))
    described = json.loads(json.dumps(plain.describe(net)))
    assert described == plain.describe(net)  # it is plain data
    run = session(content := onnx_graph.write(plain.folded(net)[0], {}))
    assert error_on(net, run, 1, 3, 2, 64, 64) < 3e-5 and operators(content) <= set(TENSORRT)


def test_a_layer_that_exports_do_not_know_is_refused():
    net = network()
    net.layer2[0].act1 = nn.Softsign()
    with pytest.raises(WeightsError, match=r"layer2.0.act1: Softsign is not a layer"):
        plain.describe(net)


# --- ONNX


def test_onnx_says_what_its_network_wants(nlzoo, folder, tmp_path, run):
    code, out, _ = nlzoo("export", folder, "--to", "onnx", "--json")
    told = json.loads(out)
    place = tmp_path / "exports" / "mine-onnx"
    assert code == 0 and told["error"] < 3e-5 and len(told["shapes"]) == 3 and told["folded"] > 20
    assert {file.name for file in place.iterdir()} == {"model.onnx", "usage.py", "video_nlzoo.py"}
    written = onnx.load(place / "model.onnx")
    (clips,) = written.graph.input
    sizes = [size.dim_param or size.dim_value for size in clips.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "frames", "height", "width"] and written.opset_import[0].version == 17
    about = onnxruntime.InferenceSession(place / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == list(NAMES) and json.loads(about["mean"]) == list(CLIP.mean)
    assert (json.loads(about["frames"]), json.loads(about["stride"]), json.loads(about["size"])) == (4, None, 32)
    video = next((run.parents[1] / "videos").rglob("*.mp4"))
    scores = scores_in(without_nlzoo(place / "usage.py", video, before="import sys; sys.modules['torch'] = None"))
    (row,) = package.predict(folder, video, device="cpu")
    assert scores.keys() == set(NAMES) and max(abs(scores[n] - row["scores"][n]) for n in NAMES) < 0.05
    assert nlzoo("export", folder, "--to", "onnx")[0] == 5  # never over what is there


def test_half_and_int8_are_measured_on_the_runs_validation_videos(run, tmp_path):
    float32 = export.export(run, "onnx", tmp_path / "full")
    half = export.export(run, "onnx", tmp_path / "half", half=True)
    int8 = export.export(run, "onnx", tmp_path / "int8", int8=True)
    assert float32.error < half.error < int8.error < 0.5 and not float32.validation
    sizes = [next(f["bytes"] for f in done.files if f["path"] == "model.onnx") for done in (float32, half, int8)]
    assert sizes[0] > 1.9 * sizes[1] > 3 * sizes[2]
    figures = json.loads((run / "best" / "metrics.json").read_text())
    for done in (half, int8):
        assert done.validation["videos"] == figures["val"] and done.validation["original"] == figures["top1"]
        assert 0 <= done.validation[
            "exported"
        ] <= 1 and f"top-1 on {figures['val']} validation video" in export.in_words(done)


def test_a_network_of_several_labels_and_one_without_names(tmp_path, clip_file):
    several = export.export(network(multi_label=True), "onnx", tmp_path / "several")
    scores = scores_in(without_nlzoo(tmp_path / "several" / "usage.py", clip_file))
    assert several.error < 3e-5 and abs(sum(scores.values()) - 1) > 0.01
    assert export.about(network(classes=(), outputs=4).spec)["labels"] == ["0", "1", "2", "3"]


# --- torch.export


def test_torch_export_serves_every_shape_without_nlzoo(tmp_path, clip_file, seed):
    shallow = {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16), "num_classes": 3}
    flat = model.import_timm().create_model("resnet18", **shallow)
    net = inflate.insert_nonlocal_(inflate.inflate_(flat, Inflation()), (NonLocal("res4", (0,)),))
    net.spec = ModelSpec("resnet18", Inflation(), (NonLocal("res4", (0,)),), CLIP, NAMES, 3)
    randomised(net)
    done = export.export(net, "torch", tmp_path / "it")
    assert done.error < 3e-5
    run = torch.export.load(tmp_path / "it" / "model.pt2").module()
    assert error_on(net, run, 1, 3, 1, 64, 40) < 3e-5
    scores = scores_in(forked_without_nlzoo(tmp_path / "it" / "usage.py", clip_file))
    (row,) = package.predict(net, clip_file, device="cpu")
    assert {name: pytest.approx(score, abs=6e-4) for name, score in row["scores"].items()} == scores


# --- transformers

ASK = """
import json, runpy, sys
import torch
from transformers import pipeline
folder, video = sys.argv[1:]
classify = pipeline("video-classification", model=folder, trust_remote_code=True)
clips = classify.video_processor([video, torch.zeros(4, 30, 40, 3, dtype=torch.uint8)], num_frames=4)["pixel_values"]
assert clips.shape == (2, 4, 3, 32, 32), clips.shape
several = classify.model.config.problem_type == "multi_label_classification"
labels = torch.tensor([[1.0, 0.0, 1.0]] * 2) if several else torch.tensor([0, 2])
classify.model(pixel_values=clips, labels=labels).loss.backward()
assert classify.model.network.conv1.weight.grad.abs().sum() > 0
print(json.dumps({row["label"]: row["score"] for row in classify(video)}))
sys.argv = ["usage.py", video]
runpy.run_path(folder + "/usage.py", run_name="__main__")
"""


def test_the_pipeline_of_transformers_gives_the_same_scores(folder, run, tmp_path, repair):
    """On an mp4, in a process that cannot import nlzoo; it can be trained on there too."""
    done = export.export(folder, "transformers", tmp_path / "it")
    assert done.error < 3e-5 and {file["path"] for file in done.files} == set(hub_card.TRANSFORMERS_FILES)
    video = next((run.parents[1] / "videos").rglob("*.mp4"))
    (tmp_path / "ask.py").write_text(ASK)
    answer, usage = without_nlzoo(tmp_path / "ask.py", tmp_path / "it", video, before=repair).split("\n", 1)
    scores = json.loads(answer)
    assert scores_in(usage) == {name: pytest.approx(score, abs=6e-4) for name, score in scores.items()}
    (row,) = package.predict(folder, video, device="cpu")
    assert scores == {name: pytest.approx(score, abs=1e-5) for name, score in row["scores"].items()}


def test_a_clip_is_cut_as_our_own_is(run, shared):
    """Frames and pixels, bit for bit: spread, dense, at a rate, and more of them than the video has."""
    video = str(next((shared / "videos").rglob("*.mp4")))
    for clip in (CLIP, ClipSpec(8, 2, 48), ClipSpec(4, 3, 32, fps=10.0), ClipSpec(64, 50, 16)):
        pixels = loader.Clips(Path(), (Item(video, ()),), clip).read(-1, 0)[0]
        spec = ModelSpec("tiny", clip=clip)
        assert torch.equal(video_nlzoo.read_clip(video, export.about(spec)), clips.to_input(pixels[None], clip))


# --- timm


@pytest.mark.parametrize("still", [False, True])
def test_a_start_goes_back_to_timm(still, tmp_path, seed):
    """Its own network, loaded by timm alone; with the paper's initialisation it is equal on still clips."""
    flat = randomised_2d(model.plain_resnet("tiny"))
    net = inflate.inflate_(copy.deepcopy(flat), Inflation(init="mean" if still else "centre"))
    inflate.insert_nonlocal_(net, (NonLocal("res4", (0,)),))
    net.spec = ModelSpec("tiny", Inflation(init="mean" if still else "centre"), (NonLocal("res4", (0,)),), CLIP, (), 40)
    done = export.export(net.eval(), "timm", tmp_path / "it")
    assert done.error < 3e-5 and bool(done.notes) == still
    tensors = load_file(tmp_path / "it" / "model.safetensors")
    own = flat.state_dict()
    assert tensors.keys() == own.keys()
    most = 1e-6 if still else 0.0
    assert all((tensors[name].double() - own[name].double()).abs().max() <= most for name in own)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (50, 40), (200, 30, 90)).save(picture)
    if not still:
        assert len(scores_in(forked_without_nlzoo(tmp_path / "it" / "usage.py", picture))) == 5


def test_what_has_learnt_in_time_stays_three_dimensional(tmp_path):
    def refused(net, reason):
        with pytest.raises(UsageError, match=reason):
            export.export(net, "timm", tmp_path / "it")
        assert not list(tmp_path.iterdir())

    c2d = Inflation("c2d")
    refused(network(c2d), "the non-local block res3.nl1 has been trained")
    spec = ModelSpec("tiny", c2d, (), CLIP, NAMES, 3)
    assert export.export(randomised(model.build(spec)), "timm", tmp_path / "flat").error < 3e-5
    shutil.rmtree(tmp_path / "flat")
    refused(randomised(model.build(replace(spec, inflation=Inflation()))), "temporal kernel conv1 has been trained")
    refused(model.build(replace(spec, inflation=Inflation("c2d", pool1_padding=0))), "max-pool is not padded")


# --- what is refused


def test_a_wrong_graph_is_not_written(folder, tmp_path, monkeypatch):
    """Negative control: a fold that leaves out eps, or one frame repeated too little, must not pass."""
    honest = plain.folded

    def wrong(net):
        alone, count = honest(net)
        alone.conv1.bias.mul_(1.01)
        return alone, count

    monkeypatch.setattr(plain, "folded", wrong)
    with pytest.raises(NlzooError, match="gives other logits than the original.*nothing was written"):
        export.export(folder, "onnx", tmp_path / "it")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_one_sentence(nlzoo, folder, tmp_path, monkeypatch):
    assert nlzoo("export", folder, "--to", "caffe")[0] == 2
    assert nlzoo("export", folder, "--to", "onnx", "--half", "--int8")[0] == 2
    assert nlzoo("export", folder, "--to", "torch", "--half")[0] == 2
    assert nlzoo("export", "nothing-here", "--to", "onnx")[0] == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, _, err = nlzoo("export", folder, "--to", "onnx", "--out", blocked / "it")
    assert code == 5 and "Traceback" not in err and blocked.read_text() == ""
    with pytest.raises(UsageError, match="needs a name"):
        export.export(network(), "onnx")
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 1000)
    with pytest.raises(WeightsError, match="holds 1,000 at most"):
        export.export(folder, "onnx", tmp_path / "large")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="onnx and onnxruntime, not installed") as refused:
        export.export(folder, "onnx", tmp_path / "it")
    assert refused.value.hint == "pip install 'nlzoo[onnx]'"


def test_no_room_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskError, match="No space left"):
        export.export(folder, "onnx", tmp_path / "it")
    assert not list(tmp_path.iterdir())
