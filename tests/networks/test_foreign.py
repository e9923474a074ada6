"""Weights files as people have them, and files that mean harm: types, prefixes, nestings, views, and what they cost.

Costs are those of a process of its own: its CPU time, and its peak of memory above what it has once all is imported.
"""

import argparse
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import HubError, WeightsError
from nlzoo.networks import checkpoint, foreign, model

MOST_SECONDS, MOST_MIB = 1.5, 150  # of a refusal; 1 s on a machine without other work


def no_hub(repo):
    raise HubError("the Hub could not be reached")


def backbone(file, name="resnet18"):
    return model.load_backbone(name, file, no_hub)


@pytest.fixture(scope="module")
def trained():
    """A 2-D state dict with a head of seven outputs."""
    net = model.plain_resnet("resnet18")
    net.fc = torch.nn.Linear(512, 7)
    return net.state_dict()


# --- files as people have them


@pytest.mark.parametrize(
    "prefix",
    [
        *("_orig_mod.", "module.", "model.", "backbone.", "encoder.", "net.", "base_model."),
        *("module._orig_mod.", "module.model.encoder.", "module.encoder_q.", "student.backbone."),
    ],
)
def test_one_common_prefix_is_taken_off_and_said(trained, tmp_path, prefix):
    torch.save({prefix + key: value for key, value in trained.items()}, tmp_path / "w.pth")
    found = backbone(tmp_path / "w.pth")
    assert torch.equal(found.net.conv1.weight, trained["conv1.weight"]) and found.net.fc.out_features == 7
    assert found.notes == (f"prefix '{prefix}' taken off all names",)


def test_a_prefix_of_some_names_stays(trained, tmp_path):
    """Another network's part beside it (MoCo, Lightning): which of them is meant nobody can know."""
    torch.save({**{f"encoder_q.{k}": v for k, v in trained.items()}, "queue": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"does not fit resnet18: \d+ missing") as refused:
        backbone(tmp_path / "w.pth")
    assert "lie under 'encoder_q.'" in refused.value.hint


@pytest.mark.parametrize("key", foreign.NESTS)
def test_a_trainers_dict_is_opened_and_said(trained, tmp_path, key):
    torch.save({"epoch": 3, key: trained, "best": 0.7, "names": ["a"], "optimizer": {"state": {}}}, tmp_path / "w.pth")
    assert backbone(tmp_path / "w.pth").notes == (f"taken from its part '{key}'",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_files_of_both_formats_and_all_floats(trained, tmp_path, legacy, dtype):
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in trained.items()}
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].to(memory_format=torch.channels_last)
    tensors["fc.weight"] = torch.stack([tensors["fc.weight"]] * 2, 2)[..., 1]  # a view with gaps
    tensors["fc.bias"] = torch.nn.Parameter(tensors["fc.bias"])
    torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    own = backbone(tmp_path / "w.pth").net.state_dict()
    assert all(torch.equal(own[key], value.to(own[key].dtype)) for key, value in tensors.items())
    assert all(value.dtype in (torch.float32, torch.int64) for value in own.values())


def test_files_with_numpy_numbers_and_without_checksums_are_read(trained, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": trained, "best": np.float64(0.7), "seen": np.arange(3)}, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(backbone(tmp_path / "w.pth").net.fc.bias, trained["fc.bias"])


def test_damaged_numbers_are_noticed(trained, tmp_path):
    torch.save(trained, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="a checksum in it differs"):
        backbone(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "data, named",
    [
        ({"args": argparse.Namespace(lr=0.1), "state_dict": {}}, "argparse.Namespace"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "torch.nn.modules.container.Sequential"),
        ({"model": torch.nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_type_that_is_no_part_of_weights_is_named(tmp_path, data, named, legacy):
    torch.save(data, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=f"holds more than weights and was not opened: it names {named}$") as refused:
        backbone(tmp_path / "w.pth")
    assert refused.value.hint.startswith("where you trust it, save the state dict alone: torch.save(model.state_dict()")
    assert "weights_only" not in str(refused.value) and "\x1b" not in str(refused.value)


def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="is a TorchScript program, not weights"):
        backbone(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "change, hint",
    [
        (lambda t: (t.pop("fc.weight"), t.pop("fc.bias")), "the backbone fits, but its head does not"),
        (lambda t: t.update({"fc.weight": torch.zeros(7, 99)}), "the backbone fits, but its head does not"),
        (lambda t: t.update({"ema.decay": torch.zeros(())}), "the backbone fits; save the file again without"),
        (lambda t: t.pop("layer1.0.conv1.weight"), "name the backbone that the file was made for"),
        (lambda t: t.update({"bn1.num_batches_tracked": torch.zeros(1)}), "bn1.num_batches_tracked counts BatchNorm's"),
    ],
)
def test_the_hint_says_what_does_not_fit(trained, tmp_path, change, hint):
    tensors = dict(trained)
    change(tensors)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"does not fit resnet18: [12] (missing|unknown|of another shape)"
    ) as refused:
        backbone(tmp_path / "w.pth")
    assert refused.value.hint.startswith(hint)


# --- weights that are not weights

WRONG = {
    "complex64": lambda t: t.to(torch.complex64),
    "bool": lambda t: t > 0,
    "int64": lambda t: t.long(),
    "uint8": lambda t: t.to(torch.uint8),
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda t: t.to(torch.float8_e5m2),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", WRONG)
def test_types_that_no_weights_have_are_refused_by_name(trained, tmp_path, kind, suffix):
    tensors = {**trained, "layer1.0.bn1.bias": WRONG[kind](trained["layer1.0.bn1.bias"])}
    file = tmp_path / f"w{suffix}"
    torch.save(tensors, file) if suffix == ".pth" else save_file(tensors, file)
    accepted = "float16, bfloat16, float32, float64"
    with pytest.raises(WeightsError, match=f"holds {kind} numbers in layer1.0.bn1.bias; .* may hold {accepted}"):
        backbone(file)


PACKED = {"F4": "float4", "F6_E2M3": "float6_e2m3", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz"}


@pytest.mark.parametrize("written", PACKED)
def test_types_that_only_safetensors_has_are_refused_by_name(tmp_path, written):
    header = json.dumps({"conv1.weight": {"dtype": written, "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    own = {"conv1.weight": torch.zeros(4)}
    with pytest.raises(WeightsError, match=f"holds {PACKED[written]} numbers in conv1.weight") as refused:
        foreign.read_weights(tmp_path / "w.safetensors").load({"conv1.weight": "conv1.weight"}, own)
    assert refused.value.hint == "convert them to float32 where that is right"


NUMBERS = [
    ("layer1.0.bn1.bias", torch.full((64,), 1e300, dtype=torch.float64), "numbers too large for float32"),
    ("layer1.0.bn1.bias", torch.full((64,), float("inf")), "NaN or infinity"),
    ("layer1.0.bn1.bias", torch.full((64,), float("nan"), dtype=torch.float16), "NaN or infinity"),
    ("layer1.0.bn1.running_var", torch.full((64,), -1e-3), "a variance below 0"),
    ("layer1.0.bn1.num_batches_tracked", torch.zeros(()), "float32 numbers"),
]


@pytest.mark.parametrize("name, wrong, words", NUMBERS)
def test_numbers_that_no_weights_have_are_refused_by_name(trained, tmp_path, name, wrong, words):
    torch.save({**trained, name: wrong}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"holds {words} in {name}"):
        backbone(tmp_path / "w.pth")


def test_a_model_folder_is_held_to_the_same(tmp_path):
    net = model.build(model_spec.ModelSpec("tiny", num_outputs=2, clip=view_spec.ClipSpec(4, None, 32)))
    folder = checkpoint.save_model(tmp_path / "m", net)
    for name, wrong, words in NUMBERS:
        like = net.state_dict()[name].shape
        tensors = {**net.state_dict(), name: wrong.flatten()[0].expand(like).contiguous()}
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(WeightsError, match=f"holds {words} in {name}"):
            checkpoint.load_model(folder)


# --- files that mean harm: what a refusal costs

COST = """
import ctypes, resource, sys, time
from pathlib import Path
from nlzoo.core.errors import NlzooError
from nlzoo.networks import checkpoint, convert, describe, model
convert.read  # all is imported
model.plain_resnet("resnet18")
status = Path("/proc/self/status")
def reset():  # ru_maxrss starts with that of the process that started this one
    if status.exists():
        if hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again unseen
        Path("/proc/self/clear_refs").write_text("5")
def peak():
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def no_hub(repo):
    raise AssertionError
ways = {
    "import": lambda p: convert.read(p),
    "inflate": lambda p: model.load_backbone("resnet18", p, no_hub),
    "load": lambda p: checkpoint.load_model(p),
    "info": lambda p: describe.describe(checkpoint.read_blueprint(p)),
}
for line in sys.stdin:
    way, _, path = line.rstrip("\\n").partition(" ")
    reset()
    before, start, said = peak(), time.process_time(), "accepted"
    try:
        ways[way](Path(path))
    except NlzooError as error:
        said = f"{type(error).__name__} {error.message}"
    print(f"{time.process_time() - start:.3f} {(peak() - before) / 1024:.1f} {ascii(said)}", flush=True)
"""


@pytest.fixture(scope="module")
def costs():
    """`[(CPU seconds, MiB above what it has, what was said)]` of `(way, path)`s, in one process that stays."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", COST], **pipes, text=True) as child:

        def ask(way, path):
            print(way, path, file=child.stdin, flush=True)
            seconds, mib, said = child.stdout.readline().split(" ", 2)
            return float(seconds), float(mib), said.rstrip("\n")

        yield lambda asked: [ask(way, path) for way, path in asked]
        child.stdin.close()
    assert child.returncode == 0


def in_zip(parts, kind=zipfile.ZIP_STORED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return content.getvalue()


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(key, count, shape, strides=b")"):
    """The steps that make a float32 tensor of storage `key`."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"J" + count + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + strides + b"\x89}tR"


def bombs():
    """Files whose reading once took minutes or gigabytes, by name."""
    pth = {"w/data/0": bytes(4), "w/version": b"3\n"}

    def zipped(pickled):
        return in_zip({"w/data.pkl": b"\x80\x02" + pickled + b".", **pth})

    four = struct.pack("<i", 1)
    megabyte = text("a" * 10**6)[1:]
    long_bytes = b"B" + struct.pack("<I", 2**31 - 1)
    empty = b"".join(text(f"t{i}") + tensor("0", four, b"K\0\x85", b"K\1\x85") for i in range(30_000))
    # before any check: allocated inside the pickle
    yield "bytearray.pth", zipped(b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R")
    yield "bytes.pth", zipped(b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R")
    yield "raw.pth", b"\x80\x02" + b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    yield "raw.pkl", b"\x80\x02}X\x01\0\0\0a" + long_bytes + b"s."
    yield "long.pth", b"\x80\x02\x8b\xff\xff\xff\x7f."
    yield "memo.pth", b"\x80\x02}r\xff\xff\xff\x7f."
    yield "frame.pth", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x00."
    yield "storage.pth", zipped(b"ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R")
    yield "tensor.pth", zipped(b"ctorch._utils\n_rebuild_tensor_v2\nctorch\nFloatStorage\n\x85R")
    # copies by an allowed function
    copies = b"h\0c_codecs\nencode\nh\0" + text("latin1") + b"\x86R0" * 1
    yield "copies.pkl", b"\x80\x02X" + megabyte + b"q\0" + b"c_codecs\nencode\nh\0X\x06\0\0\0latin1\x86R" * 3000 + b"."
    pairs = b"(l" + b"(K\1K\2ta" * 10_000 + b"q\0"
    yield "ordered.pth", zipped(pairs + b"ccollections\nOrderedDict\nh\0\x85R" * 20_000)
    yield "sets.pth", zipped(pairs + b"c__builtin__\nset\nh\0\x85R" * 20_000)
    del copies
    # many small things
    yield "empty.pth", zipped(b"}(" + empty + b"u")
    yield "lists.pth", zipped(b"]" * 1_900_000)
    yield "dicts.pkl", b"\x80\x02" + b"}" * 3_000_000 + b"."
    yield "marks.pth", b"\x80\x02" + b"(" * 3_000_000
    yield "deep.pth", zipped(b")" + b"\x85" * 300_000 + b"q\0}h\0K\1s")
    yield "names.pth", zipped(b"}(" + b"".join(text(f"{'module.' * 9000}{i}") + b"K\1" for i in range(30)) + b"u")
    # zips
    yield "prefixed.pth", b"PK\x03\x04" + b"\0" * 26 + zipped(b"}")
    yield "tail.pth", zipped(b"}") + b"\0" * 70_000
    yield "directory.pth", in_zip({**{f"w/{i:05}" + "x" * 200: b"" for i in range(30_000)}, "w/data.pkl": b"}."})
    yield "deflated.pth", in_zip({"w/data.pkl": b"]" * 200_000_000}, zipfile.ZIP_DEFLATED)
    # views
    wide = struct.pack("<i", 2**30)
    yield (
        "repeated.pth",
        zipped(b"}(" + text("conv1.weight") + tensor("0", four, b"J" + wide + b"\x85", b"K\0\x85") + b"u"),
    )
    head = text("fc.weight") + tensor("0", four, b"J" + struct.pack("<i", 100_000) + b"M\0\2\x86", b"K\0K\0\x86")
    yield "head.pth", zipped(b"}(" + head + b"u")
    # safetensors
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"t{i}": one for i in range(400_000)}).encode()
    yield "many.safetensors", struct.pack("<Q", len(many)) + many
    yield "length.safetensors", struct.pack("<Q", 2**40) + b"{}"
    yield "nested.safetensors", struct.pack("<Q", 2_000_000) + b"[" * 2_000_000
    yield "shallow.safetensors", struct.pack("<Q", 2_000_000) + b"[" + b"[]," * 666_666 + b"]"


def test_hostile_files_are_refused_at_little_cost(tmp_path, costs):
    asked = []
    for name, content in bombs():
        (tmp_path / name).write_bytes(content)
        asked += [("import", tmp_path / name), ("inflate", tmp_path / name)]
    found = costs(asked)
    for (way, file), (seconds, mib, said) in zip(asked, found, strict=True):
        assert "WeightsError" in said, (way, file.name, said)
        assert seconds < MOST_SECONDS and mib < MOST_MIB, (way, file.name, seconds, mib)
    assert len(asked) > 50


def test_hostile_folders_are_refused_at_little_cost(tmp_path, costs):
    """A small config.json that describes gigabytes, and headers of a million tensors."""
    spec = model_spec.to_json(model_spec.ModelSpec("wide_resnet101_2", num_outputs=100_000))
    spec["non_local"] = [
        {"stage": stage, "blocks": list(range(count)), "reduction": 1, "form": "concat"}
        for stage, count in (("res2", 3), ("res3", 4), ("res4", 23), ("res5", 3))
    ]
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"t{i}": one for i in range(1_000_000)}).encode()
    contents = {
        "config": (json.dumps(spec).encode(), struct.pack("<Q", 2) + b"{}"),
        "none": (json.dumps(spec).encode(), b""),
        "many": (json.dumps(spec).encode(), struct.pack("<Q", len(many)) + many),
        "lists": (b'{"format": 1, "classes": [' + b"[]," * 5_000_000 + b"[]]}", b""),
        "dicts": (b'{"format": 1, "clip": [' + b'{"a":0},' * 1_900_000 + b"0]}", b""),
        "texts": (b'{"format": 1, "classes": [' + b'"abc",' * 2_600_000 + b'""]}', b""),
    }
    asked = []
    for name, (config, weights) in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(config)
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        asked += [("load", tmp_path / name), ("info", tmp_path / name)]
    found = costs(asked)
    for (way, folder), (seconds, mib, said) in zip(asked, found, strict=True):
        assert "WeightsError" in said, (way, folder.name, said)
        assert seconds < MOST_SECONDS and mib < MOST_MIB, (way, folder.name, seconds, mib)


def test_the_measure_sees_memory_and_time(tmp_path, trained, costs):
    """The negative control: a valid file is accepted, and costs what its network has."""
    torch.save(trained, tmp_path / "w.pth")
    ((_, mib, said),) = costs([("inflate", tmp_path / "w.pth")])
    assert said == "'accepted'" and mib > 30


def mutate(content, rng):
    """Some bytes changed, moved, left out or doubled; or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, kind = rng.randrange(max(len(content), 1)), rng.randrange(5)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1 and content:
            content[at % len(content)] = rng.randrange(256)
        elif kind == 2:
            del content[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randrange(1, 40)]
        else:
            content = content[: max(at, 1)]
    return bytes(content) or b"\0"


def mutants(costs, count, tmp_path, rng):
    """Of small files of every format: refused in a sentence or accepted, within the costs."""
    state = {f"layer1.{i}.conv1.weight": torch.zeros(()).expand(64, 64, 3, 3) for i in range(20)}
    arrays = {f"res{i}_w": np.zeros((2, 3), np.float32) for i in range(20)}
    wholes = {}
    for name, zipped in (("m.pth", True), ("l.pth", False)):
        torch.save({"state_dict": state, "epoch": 1}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        wholes[name] = (tmp_path / name).read_bytes()
    save_file({name: torch.zeros(2) for name in state}, tmp_path / "s.safetensors")
    wholes["s.safetensors"] = (tmp_path / "s.safetensors").read_bytes()
    wholes["c.pkl"] = pickle.dumps({"blobs": arrays}, 2)
    names = list(wholes)
    worst = [0.0, 0.0]
    for first in range(0, count, 500):
        asked = []
        for i in range(first, min(first + 500, count)):
            name = names[i % len(names)]
            file = tmp_path / f"{i}{os.path.splitext(name)[1]}"
            file.write_bytes(mutate(wholes[name], rng))
            asked.append((("import", "inflate")[i // len(names) % 2], file))
        for (_, file), (seconds, mib, said) in zip(asked, costs(asked), strict=True):
            assert "WeightsError" in said and "\\n" not in said, (file, said)
            worst = [max(worst[0], seconds), max(worst[1], mib)]
            file.unlink()
    return worst


def test_mutants_of_every_format_are_refused_cheaply(tmp_path, seed, costs):
    seconds, mib = mutants(costs, 200, tmp_path, random.Random(seed))
    assert seconds < MOST_SECONDS and mib < MOST_MIB


@pytest.mark.torture
def test_ten_thousand_mutants_are_refused_cheaply(tmp_path, seed, costs):
    seconds, mib = mutants(costs, 10_000, tmp_path, random.Random(seed))
    print(f"10,000 mutants: at most {seconds:.2f} s and {mib:.0f} MiB")
    assert seconds < MOST_SECONDS and mib < MOST_MIB
