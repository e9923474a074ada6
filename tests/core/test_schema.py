"""docs/config.schema.json and the reader agree: what one accepts the other accepts, on thousands of changed configs."""

import copy
import json
import random
from itertools import product
from pathlib import Path

import jsonschema
import pytest

from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import WeightsError

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "config.schema.json").read_text(encoding="utf-8"))
R50 = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}
VALUES = [
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    1.5,
    16,
    64,
    65,
    999,
    1000,
    2048,
    2049,
    100_000,
    100_001,
    "",
    "i3d",
    "frames",
    "mean",
    "zeros",
    "8x8",
    "dot",
    "time",
    "after",
    "none",
    "res3",
    "résumé",
    "x" * 1001,
    "resnet50.a1_in1k",
    [],
    ["a"],
    ["a", "b"],
    [0.1, 0.2, 0.3],
    [0.5, 0.5],
    [0.5],
    "flow",
    "audio",
    "rgb",
    [0, 1, 1],
    [1, 3],
    {},
    {"arch": "c2d"},
]


def example(stream="rgb"):
    whole = model_spec.ModelSpec(
        "resnet50.tv_in1k",
        model_spec.Inflation("i3d-333", "mean", "zeros", "8x8"),
        model_spec.parse_nl("5", R50, form="dot"),
        view_spec.ClipSpec(32, 2, 224, fps=30.0).of_stream(stream),
        ("a", "b\n<b>"),
        2,
        source="timm/x",
        licence="mit",
        threshold=0.3,
        prior=(0.5, 0.5) if stream == "audio" else (),
    )
    return json.loads(json.dumps(model_spec.to_json(whole)))


def fused():
    """Two whole models as one."""
    model = {key: value for key, value in example().items() if key not in ("format", "threshold")}
    shared = {key: model[key] for key in ("classes", "num_outputs", "multi_label")}
    members = [{"weight": weight, "model": copy.deepcopy(model)} for weight in (0.25, 0.75)]
    return {"format": 1, "backbone": "fused", "inflation": {"arch": "fused"}, **shared, "members": members}


def sequence():
    """A head over windows of them."""
    head = {"kind": "lstm", "windows": 8, "units": 64}
    return fused() | {"backbone": "sequence", "inflation": {"arch": "sequence"}, "head": head}


def fused_with_a_sequence():
    """A whole model and a sequence as one."""
    data = fused()
    data["members"][1]["model"] = {key: value for key, value in sequence().items() if key != "format"}
    return data


def places(data, path=()):
    """Every path to a value."""
    yield path
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places(data[key], (*path, key))


def changed(data, rng):
    """The config with one value replaced, removed or added."""
    data = copy.deepcopy(data)
    *path, key = rng.choice([p for p in places(data) if p])
    place = data
    for part in path:
        place = place[part]
    if isinstance(place, dict) and rng.random() < 0.2:
        place["unheard_of"] = 1
    elif isinstance(place, dict) and rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(VALUES)
    return data


def accepted(data):
    try:
        model_spec.from_json(data, "here")
        return True
    except WeightsError:
        return False


def beyond_the_schema(data):
    """The rules that its description adds in words."""
    non_local, sizes = data.get("non_local", []), [len(data.get(name, [])) for name in ("classes", "prior")]
    stages, blocks = [n["stage"] for n in non_local], [n["blocks"] for n in non_local]
    return (
        stages == sorted(set(stages))
        and all(b == sorted(b) for b in blocks)
        and all(size in (0, data.get("num_outputs", 1000)) for size in sizes)
        and all(beyond_the_schema(m["model"]) and outputs(m["model"]) == outputs(data) for m in data.get("members", ()))
        and any(m["weight"] for m in data.get("members") or [{"weight": 1}])
        and (not data.get("head") or all(frames(m) * data["head"]["windows"] <= 1024 for m in data["members"]))
    )


def frames(member):
    return member["model"].get("clip", {}).get("frames", 8)


def outputs(data):
    return [data.get(key, default) for key, default in (("classes", []), ("num_outputs", 1000), ("multi_label", False))]


def without_stride():
    data = example()
    del data["clip"]["stride"]  # fps needs one
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(data)
    return data


def agree(count, seed):
    rng, validator = random.Random(seed), jsonschema.Draft202012Validator(SCHEMA)
    examples = [fused(), sequence(), fused_with_a_sequence(), *map(example, view_spec.STREAMS)]
    verdicts = []
    for _ in range(count):
        data = changed(rng.choice(examples), rng)
        expected = validator.is_valid(data) and beyond_the_schema(data)
        assert accepted(data) == expected, data
        verdicts.append(expected)
    assert count / 30 < sum(verdicts) < count * 29 / 30


@pytest.mark.torture
def test_schema_and_reader_agree_about_many_changes(seed):
    agree(3000, seed)


def test_schema_and_reader_agree(seed):
    agree(1000, seed)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert accepted(example()) and not accepted(without_stride())
    for data in (sequence(), fused_with_a_sequence()):
        spec = model_spec.from_json(data, "here")
        again = model_spec.from_json(json.loads(json.dumps(model_spec.to_json(spec))), "here")
        assert validator.is_valid(data) and spec == again and len(spec.members) == 2
    for outer, inner in product((fused, sequence, fused_with_a_sequence), (fused, sequence, fused_with_a_sequence)):
        nested = outer()
        nested["members"][0]["model"] = {key: value for key, value in inner().items() if key != "format"}
        allowed = outer is not sequence and inner is sequence
        assert accepted(nested) == validator.is_valid(nested) == allowed
    deep = fused_with_a_sequence()
    deep["members"][1]["model"]["members"][0]["model"] = copy.deepcopy(deep["members"][1]["model"])
    assert not accepted(deep) and not validator.is_valid(deep)
