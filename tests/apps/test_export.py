"""`nlzoo export`: other programs compute what our network computes. The right answers are our own eager network's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import command
from torch import nn

import nlzoo as package
from nlzoo.apps import draw, export, onnx_graph, plain
from nlzoo.core.errors import DiskError, NlzooError, UsageError, WeightsError
from nlzoo.core.model_spec import POOLS, Inflation, ModelSpec, NonLocal
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import checkpoint, inflate, model
from nlzoo.networks.model import relative_error

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


def network(inflation=Inflation(), classes=NAMES, multi_label=False, backbone="tiny", outputs=3, **kind):
    """A small network of random numbers, with a block that has many positions and one that has few."""
    blocks = (NonLocal("res3", (1,), **kind), NonLocal("res4", (0,), **kind)) if kind is not None else ()
    spec = ModelSpec(backbone, inflation, blocks, CLIP, classes, outputs, multi_label=multi_label)
    return randomised(model.build(spec))


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
def run(tmp_path_factory):
    """A finished run of one epoch, with validation videos."""
    place = tmp_path_factory.mktemp("run")
    draw.write_videos(place / "videos", draw.CLASSES[:2], 4, seed=1, frames=4, size=(32, 48))
    words = "finetune videos --from weights/start --epochs 1 --frames 4 --size 32 --batch 2 --device cpu --name it"
    here = os.getcwd()
    os.chdir(place)
    try:
        assert command("inflate", "tiny", "--name", "start") == command(*words.split()) == 0
    finally:
        os.chdir(here)
    return place / "runs" / "it"


def without_nlzoo(script, *words):
    """What a script prints, in a process that cannot import nlzoo."""
    code = (
        "import runpy, sys; sys.modules['nlzoo'] = None; sys.argv = sys.argv[1:]; "
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", code, str(script), *map(str, words)]
    done = subprocess.run(words, text=True, capture_output=True, env=env, cwd=Path(script).parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def scores_in(text):
    """`{class: probability}` of lines such as `0.812  waving`."""
    return {name: float(score) for score, _, name in (line.partition("  ") for line in text.strip().splitlines())}


# --- the network in torch alone, and its graph


@pytest.mark.parametrize(
    "form,span", [("gaussian", "spacetime"), ("embedded", "spacetime"), ("dot", "space"), ("concat", "time")]
)
def test_a_graph_of_every_form_serves_every_shape(form, span, seed):
    subsample = {"spacetime": "before", "space": "after", "time": "none"}[span]
    net = network(form=form, span=span, subsample=subsample, norm="none" if form == "dot" else "bn")
    network_alone, folded = plain.folded(net)
    assert not any(isinstance(m, nn.BatchNorm3d) for m in network_alone.modules()) and folded >= 20
    content = onnx_graph.write(network_alone, {})
    run = session(content)
    for shape in ((1, 3, 4, 64, 32), (3, 3, 1, 33, 47)):
        assert error_on(net, run, *shape) < 1e-5 and error_on(net, network_alone, *shape) < 1e-5
        assert error_on(net, plain.rebuild(net), *shape) < 1e-5
    assert onnx_graph.operators(content) <= set(TENSORRT)
    half = network_alone.half()
    half.fc.float()
    assert error_on(net, session(onnx_graph.write(half, {})), 2, 3, 3, 32, 32) < 0.02


@pytest.mark.parametrize("pools", [name for name in POOLS if name != "none"])
def test_temporal_pools_take_every_number_of_frames(pools, seed):
    net = network(Inflation("i3d-333", temporal_padding="zeros", pools=pools, pool1_padding=0))
    run = session(onnx_graph.write(plain.folded(net)[0], {}))
    least, size = export.smallest(net.spec)
    for frames in (least, least + 1, 13):
        assert error_on(net, run, 1, 3, frames, size, size + 7) < 1e-5


@pytest.mark.parametrize("name", "seresnet50 ecaresnet50t resnetblur50 resnet50_gn ecaresnetlight".split())
def test_every_kind_of_layer_can_be_exported(name, seed):
    """Squeeze-and-excitation, channel attention, blur, group norm, pooled shortcuts, deep stems."""
    layers = {"channels": (8, 16, 16, 16)} | ({} if "_gn" not in name else {"channels": (32, 32, 32, 32)})
    flat = model.import_timm().create_model(name, num_classes=5, layers=(1, 1, 1, 1), **layers)
    net = randomised(inflate.inflate_(flat, Inflation()))
    described = json.loads(json.dumps(plain.describe(net)))
    assert described == plain.describe(net)  # it is plain data
    run = session(content := onnx_graph.write(plain.folded(net)[0], {}))
    assert error_on(net, run, 2, 3, 3, 64, 96) < 1e-5 and onnx_graph.operators(content) <= set(TENSORRT)


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
    assert code == 0 and told["error"] < 1e-5 and len(told["shapes"]) == 3 and told["folded"] > 20
    assert {file.name for file in place.iterdir()} == {"model.onnx", "usage.py"}
    written = onnx.load(place / "model.onnx")
    (clips,) = written.graph.input
    sizes = [size.dim_param or size.dim_value for size in clips.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "frames", "height", "width"] and written.opset_import[0].version == 17
    about = onnxruntime.InferenceSession(place / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == list(NAMES) and json.loads(about["mean"]) == list(CLIP.mean)
    assert (json.loads(about["frames"]), json.loads(about["stride"]), json.loads(about["size"])) == (4, None, 32)
    video = next((run.parents[1] / "videos").rglob("*.mp4"))
    scores = scores_in(without_nlzoo(place / "usage.py", video))
    (row,) = package.predict(folder, video, device="cpu")
    assert scores.keys() == set(NAMES) and max(abs(scores[n] - row["scores"][n]) for n in NAMES) < 0.02
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
        assert 0 <= done.validation["exported"] <= 1 and "top-1 on 2 validation videos" in export.in_words(done)


def test_a_network_of_several_labels_and_one_without_names(tmp_path, clip_file):
    several = export.export(network(multi_label=True), "onnx", tmp_path / "several")
    scores = scores_in(without_nlzoo(tmp_path / "several" / "usage.py", clip_file))
    assert several.error < 1e-5 and abs(sum(scores.values()) - 1) > 0.01
    export.export(network(classes=(), outputs=4), "onnx", tmp_path / "nameless")
    assert scores_in(without_nlzoo(tmp_path / "nameless" / "usage.py", clip_file)).keys() == set("0123")


# --- torch.export


def test_torch_export_serves_every_shape_without_nlzoo(tmp_path, clip_file, seed):
    spec = ModelSpec("tiny", Inflation(), (NonLocal("res4", (0,)),), CLIP, NAMES, 3)
    net = randomised(model.build(spec))
    done = export.export(net, "torch", tmp_path / "it")
    assert done.error < 1e-5
    run = torch.export.load(tmp_path / "it" / "model.pt2").module()
    assert error_on(net, run, 1, 3, 5, 96, 40) < 1e-5 and error_on(net, run, 3, 3, 1, 64, 64) < 1e-5
    scores = scores_in(without_nlzoo(tmp_path / "it" / "usage.py", clip_file))
    (row,) = package.predict(net, clip_file, device="cpu")
    assert {name: pytest.approx(score, abs=6e-4) for name, score in row["scores"].items()} == scores


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
