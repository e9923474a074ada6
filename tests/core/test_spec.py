"""Specs: JSON both ways, bounds, and the placement grammar against the reference's table (section 2)."""

import json

import pytest

from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import UsageError, WeightsError

R50 = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}
R101 = {**R50, "res4": 23}


def placed(text, depths):
    return {n.stage: list(n.blocks) for n in model_spec.parse_nl(text, depths)}


@pytest.mark.parametrize(
    "text, depths, expected",
    [
        ("1", R50, {"res4": [4]}),
        ("1", R101, {"res4": [21]}),
        ("5", R50, {"res3": [1, 3], "res4": [1, 3, 5]}),
        ("5", R101, {"res3": [1, 3], "res4": [6, 13, 20]}),
        ("10", R50, {"res3": [0, 1, 2, 3], "res4": [0, 1, 2, 3, 4, 5]}),
        ("10", R101, {"res3": [0, 1, 2, 3], "res4": [2, 6, 10, 14, 18, 22]}),
        ("res4:5", R50, {"res4": [0, 1, 2, 3, 4]}),
        ("res3:2,res4:3", R50, {"res3": [1, 3], "res4": [1, 3, 5]}),
        ("res4@5,1,3", R50, {"res4": [1, 3, 5]}),
        ("res4@1,res2:1", R50, {"res2": [2], "res4": [1]}),
        ("none", R50, {}),
    ],
)
def test_placement_follows_the_reference(text, depths, expected):
    assert placed(text, depths) == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ("res4:7", "res4 has 6 residual blocks, 0 to 5"),
        ("res4@6", "no residual block 6; res4 has 6"),
        ("res4:0", "0 blocks"),
        ("res4", "not understood"),
        ("res6:1", "not understood"),
        ("res4:1,2", "not understood"),
        ("", "not understood"),
        ("res4:1,res4@2", "named twice"),
        ("res4@1,1", "repeats"),
        ("5,res4:1", "not understood"),
    ],
)
def test_placement_that_cannot_be_says_what_the_stage_has(text, words):
    with pytest.raises(UsageError, match=words):
        model_spec.parse_nl(text, R50)


@pytest.mark.parametrize(
    "text, hint",
    [
        ("3", "alone stand the paper's 1, 5, 10; 3 in one stage: res4:3; "),
        ("res4", "res4:N puts N blocks in the stage, evenly; res4@I,J says after which; "),
        ("res4:", "res4:N puts N blocks in the stage, evenly; res4@I,J says after which; "),
        ("res6:1", "there is no stage 'res6'; the stages are res2, res3, res4, res5; "),
        ("res4:1,layer3:2", "there is no stage 'layer3'; did you mean res4? the stages are res2, res3, res4, res5; "),
        ("all", ""),
    ],
)
def test_a_near_miss_says_what_is_possible(text, hint):
    with pytest.raises(UsageError, match="not understood") as refused:
        model_spec.parse_nl(text, R50)
    assert refused.value.hint == f"{hint}examples: res4:5   res3:2,res4:3   res4@1,3,5   1   5   10   none"


@pytest.mark.parametrize(
    "name, backbone, arch, pools, nl, frames, stride",
    [
        ("nl5-i3d-r50-8x8", "resnet50", "i3d", "8x8", "5", 8, 8),
        ("nl10-c2d-r50-32x2", "resnet50", "c2d", "paper", "10", 32, 2),
        ("i3d-333-r101-128x1", "resnet101", "i3d-333", "paper", "none", 128, 1),
        ("c2d-r18-32x4", "resnet18", "c2d", "8x8", "none", 32, 4),
    ],
)
def test_names_of_nets(name, backbone, arch, pools, nl, frames, stride):
    assert model_spec.parse_name(name) == model_spec.Named(
        backbone, arch, pools, nl, view_spec.ClipSpec(frames, stride)
    )


def test_names_that_are_none():
    assert not any(
        map(
            model_spec.parse_name,
            ["resnet50", "nl5-i3d-r51-8x8", "nl5-i3d-r50", "i3d-r50-8x8-x", "nl-i3d-r50-8x8", "NL5-i3d-r50-8x8"],
        )
    )
    for name, words in [
        ("nl3-i3d-r50-8x8", "1, 5, 10 non-local blocks, not 3"),
        ("i3d-r50-0x8", "frames"),
        ("i3d-r50-8x0", "stride"),
        ("i3d-r50-99999x1", "frames"),
    ]:
        with pytest.raises(UsageError, match=words):
            model_spec.parse_name(name)


def example():
    return model_spec.ModelSpec(
        "resnet50.tv_in1k",
        model_spec.Inflation("i3d-333", "mean", "zeros", "8x8"),
        model_spec.parse_nl("5", R50, form="dot"),
        view_spec.ClipSpec(32, 2, 224),
        ("a", "b\n<b>", "ü"),
        3,
        source="timm/x",
        licence="mit",
    )


def test_json_both_ways():
    assert model_spec.from_json(json.loads(json.dumps(model_spec.to_json(example()))), "here") == example()


def changed(path, value):
    data = json.loads(json.dumps(model_spec.to_json(example())))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "path, value",
    [
        (("format",), 2),
        (("surprise",), 1),
        (("backbone",), "../../etc/passwd"),
        (("backbone",), 7),
        (("num_outputs",), 4),
        (("num_outputs",), 10**9),
        (("classes",), ["a", "a", "b"]),
        (("classes",), "abc"),
        (("clip", "frames"), 10**9),
        (("clip", "frames"), True),
        (("clip", "mean"), [0, 0]),
        (("clip", "std"), [0.0, 1.0, 1.0]),
        (("clip", "extra"), 1),
        (("inflation", "arch"), "c4d"),
        (("inflation",), []),
        (("non_local",), [1]),
        (("non_local", 0, "blocks"), [-1]),
        (("non_local", 0, "blocks"), list(range(2000))),
        (("non_local", 0, "scale"), "yes"),
        (("non_local", 0, "stage"), "res9"),
        (("clip", "mean"), [float("nan")] * 3),
        (("clip", "fps"), 0.5),
        (("clip", "fps"), True),
        (("clip", "fps"), "30"),
        (("clip", "fps"), float("inf")),
    ],
)
def test_a_config_out_of_bounds_is_refused_by_name(path, value):
    with pytest.raises(WeightsError, match="somewhere"):
        model_spec.from_json(changed(path, value), "somewhere")


def test_a_rate_for_the_stride_is_optional_and_travels():
    old = changed(("clip", "fps"), None)
    del old["clip"]["fps"]
    assert model_spec.from_json(old, "here") == example()
    assert model_spec.from_json(
        json.loads(json.dumps(changed(("clip", "fps"), 29.97))), "here"
    ).clip == view_spec.ClipSpec(32, 2, fps=29.97)
    assert str(view_spec.ClipSpec(32, 2, fps=30.0)) == "32 frames every 2 at 30 fps, 224x224"
    for rate in (0, 1001, float("nan"), float("inf"), True, "30"):
        with pytest.raises(UsageError, match="fps is"):
            view_spec.ClipSpec(8, 4, fps=rate)
    with pytest.raises(UsageError, match="fps 30 needs a stride"):
        view_spec.ClipSpec(8, fps=30)


def test_view_specs_have_bounds():
    assert view_spec.ViewSpec() == view_spec.ViewSpec(1, 1)
    for clips, crops in ((0, 1), (101, 1), (1, 2), (1, 0), (2.0, 1), (True, 1)):
        with pytest.raises(UsageError):
            view_spec.ViewSpec(clips, crops)
    with pytest.raises(UsageError, match="order of the frames"):
        view_spec.ViewSpec(order="backwards")
    assert [view_spec.parse_views(text) for text in ("1x1", " 10X3", "2 x Full")] == [
        view_spec.ViewSpec(),
        view_spec.ViewSpec(10, 3),
        view_spec.ViewSpec(2, "full"),
    ]
    assert [(str(views), views.num_views) for views in (view_spec.ViewSpec(10, 3), view_spec.ViewSpec(10, "full"))] == [
        ("10x3", 30),
        ("10xfull", 10),
    ]
    for text in ("10", "x3", "10x2", "10xhalf", "0x1"):
        with pytest.raises(UsageError):
            view_spec.parse_views(text)


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_a_config_that_is_no_object_is_refused(data):
    with pytest.raises(WeightsError):
        model_spec.from_json(data, "somewhere")
