"""Rows of weights against all pairs in float64, evidence against Grad-CAM by hand, pictures whatever the names."""

import dataclasses
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_layers import naive_block, trained, visible
from test_pairwise import peak_bytes
from torch import nn
from torch.nn import functional as F

from nlzoo.apps import draw, explain, pictures, predict
from nlzoo.core import errors, model_spec, view_spec
from nlzoo.networks import checkpoint, model, pairwise
from nlzoo.networks.layers import NonLocalBlock
from nlzoo.videos import clips, video

CPU = torch.device("cpu")
BLOCK = explain.Block("res4 after 3", "gaussian", "spacetime", 0.1, "")
HOSTILE = ('<script>alert("1")</script> & \'$x^2$', "\x1b[31m[red]\nzwei 😀 中文 \udcff", "$\\frac{" * 30)


def naive_matrix(block, x):
    """f(x_i, x_j) / C(x) for all pairs of x (1, C, T, H, W), from the formulas of the paper: (queries, keys)."""
    conv = {name: lambda y, m=m: F.conv3d(y, m.weight, m.bias) for name, m in block.named_children() if name != "bn"}
    pool = nn.MaxPool3d((1, min(2, x.shape[3]), min(2, x.shape[4])))
    before, after = (
        pool if block.subsample == s and block.span != "time" else nn.Identity() for s in ("before", "after")
    )
    q = x if block.form == "gaussian" else conv["theta"](x)
    k = after(before(x) if block.form == "gaussian" else conv["phi"](before(x)))
    seen = visible(block.span, q.shape[2:], k.shape[2:])
    q, k = (y.flatten(2)[0].mT for y in (q, k))
    if block.form == "concat":
        w = block.w_f.weight.flatten()
        f = torch.stack([torch.stack([torch.cat([a, b]) @ w for b in k]) for a in q]).relu()
        return f * seen / seen.sum(1, keepdim=True)
    f = q @ k.mT
    return (
        f * seen / seen.sum(1, keepdim=True)
        if block.form == "dot"
        else (f * block.scale).masked_fill(~seen, -torch.inf).softmax(1)
    )


@pytest.mark.parametrize("large_n", [False, True], ids=["as shipped", "large N"])
@pytest.mark.parametrize("span", model_spec.SPANS)
@pytest.mark.parametrize("form", model_spec.FORMS)
def test_rows_are_those_of_the_matrix_and_make_the_output(form, span, large_n, monkeypatch, seed):
    if large_n:
        for limit in ("CHUNK", "FEW_PAIRS", "FEW_KEYS"):
            monkeypatch.setattr(pairwise, limit, 0)
    negative = False
    for subsample in model_spec.SUBSAMPLES:
        block, x = trained(4, form, span, subsample).eval(), torch.randn(1, 4, 3, 5, 3).double()
        block.bn.running_mean.normal_(), block.bn.running_var.uniform_(0.5, 2)
        with torch.no_grad():
            matrix, z, v = naive_matrix(block, x).view(3, 5, 3, -1), block(x), block.project(x)[2].flatten(2)[0]
        for query in ((0, 0, 0), (2, 4, 2), (1, 3, 1)):
            weights = explain.weights_of(block, x, query)
            assert weights.dtype == torch.float64 and not weights.requires_grad
            torch.testing.assert_close(weights.flatten(), matrix[query], rtol=1e-9, atol=1e-12)
            negative |= bool((weights < 0).any())
            place = (0, slice(None), *query)
            add = block.w_z.weight.flatten(1) @ (v @ weights.flatten()) + block.w_z.bias
            add = (add - block.bn.running_mean) / (
                block.bn.running_var + block.bn.eps
            ).sqrt() * block.bn.weight + block.bn.bias
            torch.testing.assert_close(x[place] + add, z[place], rtol=1e-8, atol=1e-8)
    assert negative == (form == "dot")


def test_the_matrix_of_this_file_is_the_blocks(seed):
    """So that a mistake common to rows and matrix would show."""
    for form in model_spec.FORMS:
        block, x = trained(4, form, "space", "after", norm="none"), torch.randn(1, 4, 2, 5, 4).double()
        y = naive_matrix(block, x) @ block.project(x)[2].flatten(2)[0].mT
        torch.testing.assert_close(x + block.w_z(y.mT.view(1, -1, 2, 5, 4)), naive_block(block, x, block.scale))


@pytest.mark.parametrize("form", model_spec.FORMS)
def test_memory_of_a_row_is_linear(form, seed):
    block, x = NonLocalBlock(8, form, subsample="none").eval(), torch.randn(1, 8, 8, 32, 32)
    size = x[0, 0].numel()
    peak, largest = peak_bytes(lambda: explain.weights_of(block, x, (3, 5, 7)))
    assert largest <= 4 * 16 * size and peak <= 4 * 100 * size < 4 * size**2 / 50


# --- which points are chosen, and where a cell lies


def test_the_strongest_points_are_apart(seed):
    for shape in ((4, 14, 14), (8, 7, 7), (3, 2, 5), (2, 1, 1)):
        change = torch.rand(shape)
        found = explain.strongest(change, 4)
        assert found[0] == np.unravel_index(int(change.argmax()), shape) and 1 <= len(found) <= 4
        values = [float(change[place]) for place in found]
        assert values == sorted(values, reverse=True)
        for n, (_, y, x) in enumerate(found):
            assert all(max(abs(y - b) / shape[1], abs(x - c) / shape[2]) >= explain.APART for _, b, c in found[:n])
    assert len(explain.strongest(torch.rand(4, 14, 14), 4)) == 4
    assert explain.strongest(torch.zeros(2, 3, 3), 4) == []


@pytest.mark.parametrize("subsample", model_spec.SUBSAMPLES)
def test_a_query_points_at_its_twin(subsample, seed):
    """Two places alike in all the clip: one's strongest key is the other, and the drawn point lies on it."""
    block, x = NonLocalBlock(8, "gaussian", subsample=subsample), 0.1 * torch.randn(1, 8, 6, 7, 9)
    x[0, :, 1, 2, 3] = x[0, :, 4, 5, 6] = 10 * torch.eye(8)[seed % 8]
    row = explain.row_of(BLOCK, explain.weights_of(block, x, (1, 2, 3)), (1, 2, 3), x.shape[2:], 12)
    assert row.query == (3, 2.5 / 7, 3.5 / 9)  # twice as many frames as the grid has
    twin = next(k for k in row.keys if k.frame == 9)
    assert twin.weight > 0.49 and abs(twin.y - 5.5 / 7) <= 0.5 / 7 + 1e-9 and abs(twin.x - 6.5 / 9) <= 0.5 / 9 + 1e-9
    assert row.share > 0.99 and row.cover == ((1, 1) if subsample == "none" else (6 / 7, 8 / 9))


# --- a whole network


def network(classes=("a", "b", "c"), multi_label=False, stages=("res3", "res4"), frames=8, pools="none", **kind):
    """A tiny network of random weights, in eval mode, whose blocks do something; none where `stages` is empty."""
    places = tuple(model_spec.NonLocal(s, (1,), **kind) for s in stages)
    net = model.build(
        model_spec.ModelSpec("tiny", model_spec.Inflation(pools=pools), places, view_spec.ClipSpec(frames, None, 64))
    )
    model.set_head(net, classes, multi_label)
    nn.init.normal_(net.fc.weight)
    for m in net.modules():
        if isinstance(m, NonLocalBlock):
            nn.init.normal_(m.bn.weight, std=0.3)
    return net


def moving(seed, frames=8, size=64):
    return torch.from_numpy(draw.motion_clip("rise", seed, frames, (size, size)))


@pytest.fixture
def file(tmp_path, seed):
    return draw.write_videos(tmp_path, ("rise",), 1, seed % 1000, 8, (32, 48))[0]


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_answer_is_predicts(file, multi_label):
    net = network(multi_label=multi_label)
    summary = explain.explain(net, file, CPU)
    (name, score), *_ = predict.predict(net, [file], device=CPU)[0]["scores"].items()
    assert (
        summary.prediction == summary.target_class == name
        and summary.score == summary.target_score == pytest.approx(score, abs=1e-6)
    )
    other = next(c for c in "abc" if c != name)
    asked = explain.explain(net, file, CPU, target_class=other)
    assert asked.prediction == name and asked.target_class == other and asked.target_score < asked.score
    assert (
        summary.frames.shape == (8, 64, 64, 3)
        and summary.frames.dtype == np.uint8
        and summary.evidence.shape == (8, 64, 64)
    )
    assert [b.name for b in summary.blocks] == ["res3 after 1", "res4 after 1"]
    assert {r.block.name for r in summary.rows} == {"res3 after 1", "res4 after 1"} and len(summary.rows) > 3
    for row in summary.rows:
        assert 0 < len(row.keys) <= explain.KEYS and row.weights.sum() == pytest.approx(1, abs=1e-5)
        assert [k.weight for k in row.keys] == sorted((k.weight for k in row.keys), reverse=True)
    assert json.loads(json.dumps(summary.summary()))["blocks"][0]["queries"][0]["keys"][0].keys() == {
        "frame",
        "y",
        "x",
        "weight",
    }


def stretched(values, size, axis):
    """Linear between the middles of the cells along one axis, level beyond the outer ones."""
    cells = values.shape[axis]
    at = (np.arange(size) + 0.5) * cells / size - 0.5
    return np.apply_along_axis(lambda v: np.interp(at, np.arange(cells), v), axis, values)


@pytest.mark.parametrize("pools", ["none", "8x8"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_evidence_is_grad_cam_by_hand(multi_label, pools, seed):
    net, clip, kept = network(multi_label=multi_label, pools=pools), moving(seed), []
    summary = explain.explain_clip(net, clip, CPU, target_class="b")
    net.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = net(clips.to_input(clip[None], net.spec.clip))
    kept[0].retain_grad()
    logits[0, 1].backward()
    features, gradient = kept[0].detach().double()[0], kept[0].grad.double()[0]
    heat = np.maximum(sum(gradient[c].mean() * features[c] for c in range(len(features))).numpy(), 0)
    assert heat.shape[0] == (8 if pools == "none" else 4)
    for axis, size in enumerate((8, 64, 64)):
        heat = stretched(heat, size, axis)
    if heat.max() > 0:
        assert np.allclose(summary.evidence, heat / heat.max(), atol=1e-4) and summary.evidence.max() == pytest.approx(
            1
        )
    else:
        assert not summary.evidence.any() and "evidence for b in the clip" in summary.notes[-1]


def test_evidence_lies_where_the_class_does(seed):
    """A square shows in one corner in the second half; the class is what res5 says there and not elsewhere."""
    net, clip = network(stages=()), torch.full((8, 64, 64, 3), 90, dtype=torch.uint8)
    down, right = seed % 2, seed // 2 % 2
    clip[4:, 32 * down : 32 * down + 32, 32 * right : 32 * right + 32] = torch.tensor([250, 240, 30], dtype=torch.uint8)
    with torch.no_grad():
        there = net.forward_features(clips.to_input(clip[None], net.spec.clip))[0]
        net.fc.weight[0] = there[:, 6, down, right] - there.mean((1, 2, 3))
    heat = explain.explain_clip(net, clip, CPU, target_class="a").evidence
    t, y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert t >= 4 and y // 32 == down and x // 32 == right


def test_the_network_stays_as_it_was(seed):
    net, clip = network(), moving(seed)
    net.train()
    net.layer1.eval()
    net.conv1.weight.requires_grad_(False)
    net.fc.bias.grad = torch.ones(3)

    def state():
        return (
            [m.training for m in net.modules()],
            [p.requires_grad for p in net.parameters()],
            [p.grad is None for p in net.parameters()],
            [len(m._forward_hooks) for m in net.modules()],
            [t.clone() for t in net.state_dict().values()],
            net.fc.bias.grad.tolist(),
        )

    before, summary = state(), explain.explain_clip(net, clip, CPU)
    with pytest.raises(RuntimeError):
        explain.explain_clip(net, clip[..., :2], CPU)  # fails inside the pass
    with torch.inference_mode():
        again = explain.explain_clip(net, clip, CPU)
    after = state()
    assert (
        before[:4] == after[:4]
        and before[5] == after[5]
        and all(torch.equal(a, b) for a, b in zip(before[4], after[4]))
    )
    frozen = explain.explain_clip(net.requires_grad_(False), clip, CPU)
    for other in (again, frozen):
        assert (
            np.array_equal(other.evidence, summary.evidence) and other.summary() == summary.summary() and summary.rows
        )


def test_chosen_points(seed):
    for pools, frames in (("none", 8), ("8x8", 4), ("paper", 1)):
        summary = explain.explain_clip(
            network(pools=pools, span="time", form="concat"), moving(seed), CPU, at=[(7, 1.0, 0.0), (0, 0.2, 0.9)]
        )
        assert len(summary.rows) == 4
        for row in summary.rows:
            cells = row.weights.shape
            assert cells[0] == frames and np.count_nonzero(row.weights) <= frames and 0 <= row.query.frame < 8
            assert all((k.y, k.x) == (row.query.y, row.query.x) for k in row.keys)
        assert (
            summary.rows[0].query.y > 0.5 > summary.rows[0].query.x
            and summary.rows[1].query.y < 0.5 < summary.rows[1].query.x
        )
        if frames == 8:
            assert [r.query.frame for r in summary.rows] == [7, 0, 7, 0]


def test_what_is_said_where_there_is_nothing_to_draw(seed, tmp_path):
    summary = explain.explain_clip(network(stages=()), moving(seed), CPU, at=[(0, 0.5, 0.5)])
    assert (
        not summary.rows
        and not summary.blocks
        and "no non-local blocks" in summary.notes[0]
        and summary.evidence.shape == (8, 64, 64)
    )
    net = network(stages=("res3",))
    (block,) = (m for m in net.modules() if isinstance(m, NonLocalBlock))
    nn.init.zeros_(block.bn.weight)
    summary = explain.explain_clip(net, moving(seed), CPU)
    assert (
        summary.blocks[0].change == 0
        and not summary.rows
        and "res3 after 1 is not trained: it adds nothing" in summary.notes
    )
    assert "adds nothing" in str(summary)
    assert len(explain.explain_clip(net, moving(seed), CPU, at=[(0, 0.5, 0.5)]).rows) == 1  # asked for, so shown
    nn.init.ones_(block.bn.bias)
    summary = explain.explain_clip(net, moving(seed), CPU)
    assert summary.blocks[0].change > 0 and not summary.rows and "adds the same everywhere" in summary.notes[0]
    files = pictures.write(summary, tmp_path / "few")
    assert sorted(f.name for f in files) == ["evidence.mp4", "evidence.png", "explain.json"]


def test_a_query_that_takes_nothing(seed):
    net = network(stages=("res3",), form="concat")
    (block,) = (m for m in net.modules() if isinstance(m, NonLocalBlock))
    nn.init.zeros_(block.w_f.weight)
    summary = explain.explain_clip(net, moving(seed), CPU, at=[(0, 0.5, 0.5)])
    assert summary.rows[0].keys == () and summary.rows[0].share == 0 and "attends to nothing" in " ".join(summary.notes)
    assert Image.open(io.BytesIO(pictures.strip(pictures.arrows(summary, summary.rows[0])))).size[0] > 900


def test_refusals(tmp_path, file):
    net = network(classes=HOSTILE)
    with pytest.raises(errors.UsageError, match=r"does not know class '\\x1b'") as caught:
        explain.explain(net, file, CPU, target_class="\x1b")
    assert "script" in caught.value.hint and "\x1b" not in caught.value.hint
    for bad in ((8, 0.5, 0.5), (-1, 0.5, 0.5), (0, 1.1, 0.5), (0, 0.5, float("nan"))):
        with pytest.raises(errors.UsageError, match="outside the clip") as caught:
            explain.explain(net, file, CPU, at=[bad])
        assert "0 to 7" in caught.value.hint
    assert explain.parse_point("3,0.5, .25") == (3, 0.5, 0.25)
    for bad in ("", "3", "1,2", "1,2,3,4", "a,b,c", "1.5,0,0"):
        with pytest.raises(errors.UsageError, match="not a point FRAME,Y,X"):
            explain.parse_point(bad)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(errors.VideoError, match="no.mp4"):
        explain.explain(net, tmp_path / "no.mp4", CPU)
    with pytest.raises(errors.DiskError, match="no.mp4"):
        pictures.write(explain.explain(net, file, CPU), tmp_path / "no.mp4")
    net.fc.bias.data[0] = float("nan")
    with pytest.raises(errors.DivergedError, match=f"for {file} is not finite"):
        explain.explain(net, file, CPU)


# --- pictures


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_pictures_with_any_names(tmp_path, seed):
    """Warnings fail, as those of missing glyphs and of mathtext would be; frames stand where they should."""
    name = tmp_path / "$a$ <b>\udcff\n中.mp4"
    draw.write_videos(tmp_path, ("toss",), 1, seed % 1000, 8, (32, 48))[0].rename(name)
    net = network(classes=HOSTILE, form="dot")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = explain.explain(net, name, CPU, target_class=HOSTILE[1], points=1)
        files = pictures.write(summary, tmp_path / "out")
    assert [f.name for f in files] == ["evidence.png", "res3-1-1.png", "res4-1-1.png", "evidence.mp4", "explain.json"]
    for f in files[:3]:
        with Image.open(f) as image:
            assert image.format == "PNG" and image.size[0] > 1200
            image.load()
    info = video.probe(files[3])
    assert (info.frames, info.width, info.height) == (8, 512, 256)
    halves = video.read_frames(files[3], range(8)).astype(int)
    assert np.abs(halves[:, :, :256] - summary.frames.repeat(4, 1).repeat(4, 2)).mean() < 12  # 4:2:0
    kept = json.loads(files[4].read_text())
    assert kept == summary.summary() and kept["of"] == HOSTILE[1]
    assert "\x1b" not in str(summary) and "\udcff" not in kept["path"]


def test_a_strip_shows_the_frames_and_the_heat_over_them(seed):
    """Frame by frame: the right colour above, and below grey where there is no heat and colour where there is."""
    rng = np.random.default_rng(seed)
    shades = [np.array([s, s, 0]) for s in rng.permutation(np.linspace(40, 215, 11).astype(int))]
    frames = np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in shades])
    hot, evidence = int(rng.integers(11)), np.zeros((11, 64, 64), np.float32)
    evidence[hot] = 1
    summary = explain.Explanation("", "a", 1, "a", 1, frames, evidence, (), (), ())
    image = pixels(pictures.strip(pictures.evidence(summary)))
    for n, shade in enumerate(shades):
        grey = int(0.75 * shade @ np.array([0.299, 0.587, 0.114]))
        assert (np.abs(image - shade).max(2) <= 1).sum() > 20_000
        assert ((np.abs(image - grey).max(2) <= 1).sum() > 20_000) == (n != hot)


def test_arrows_run_to_the_frames_of_the_keys(seed):
    """The picture with arrows differs from the one without in the frames that they touch and in no other."""
    block = explain.Block("res4 after 3", "dot", "spacetime", 0.1, "")
    frames, weights = np.full((8, 64, 64, 3), 100, np.uint8), np.zeros((8, 2, 2), np.float32)
    weights[5, 0, 0], weights[5, 1, 1] = 0.5, -0.25
    keys = (explain.Key(5, 0.25, 0.25, 0.5), explain.Key(5, 0.75, 0.75, -0.25))
    row = explain.Row(block, explain.Place(3, 0.5, 0.5), keys, 1.0, weights, (1, 1))
    summary = explain.Explanation("", "a", 1, "a", 1, frames, np.zeros((8, 64, 64), np.float32), (block,), (row,), ())
    image = pixels(pictures.strip(pictures.arrows(summary, row)))
    plain = pixels(pictures.strip(pictures.arrows(summary, dataclasses.replace(row, keys=()))))
    top_half = image[int(image.shape[0] * 0.2) : image.shape[0] // 2]
    touching = np.abs(image - plain).max(2)[int(image.shape[0] * 0.2) : image.shape[0] // 2].max(0) > 30
    step = pictures.SIDE * pictures.DPI * (1 + pictures.GAP)
    touched = {int((x - pictures.MARGIN * pictures.DPI) / step) for x in np.flatnonzero(touching)}
    assert touched == {3, 4, 5}
    amber, blue = top_half[..., 0] - top_half[..., 2] > 100, top_half[..., 2] - top_half[..., 0] > 40
    assert amber.sum() > 100 and blue.sum() > 100


def test_the_page_runs(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    checkpoint.save_model(Path("weights/mine"), network())
    file.rename("clip.mp4")
    page = Path(__file__).parents[2] / "docs" / "explain.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    exec(compile(code, str(page), "exec"), {})
    assert sorted(f.name for f in Path("why").iterdir()) == [
        "evidence.mp4",
        "evidence.png",
        "explain.json",
        "res3-1-1.png",
        "res4-1-1.png",
    ]
    assert page.with_name("explain.png").stat().st_size < 150_000
