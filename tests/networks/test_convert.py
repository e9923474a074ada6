"""`convert` against what the peers' own networks answered, and against files that are damaged or mean harm.

`peer_logits.json.gz` was recorded by tests/bench/peer_checkpoints.py beside the peers: of each network the names and
shapes of its tensors and six logits of two clips. The weights are drawn here again, from the names. Look into it with
`zcat | python -m json.tool`.
"""

import gzip
import json
import pickle
import random
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seeded import clip_of, python2_pickle, seeded_tensor

from nlzoo.core import files
from nlzoo.core.errors import NlzooError, UsageError, WeightsError
from nlzoo.core.model_spec import ModelSpec
from nlzoo.networks import checkpoint, convert, foreign, labels, model, pretrained
from nlzoo.networks.convert import ImportOptions
from nlzoo.networks.model import relative_error

RECORDS = json.loads(gzip.decompress((Path(__file__).parent / "peer_logits.json.gz").read_bytes()))
# one of each zoo and form; the bench compares all
CASES = [
    "SlowFast NL I3D R50",
    "SlowFast C2D R50",
    "SlowFast NL I3D, Caffe2",
    "pytorchvideo I3D R50",
    "mmaction2 NL dot",
    "mmaction2 NL gaussian",
    "mmaction2 C2D R50",
    "Tushar-N I3D R50",
    "authors NL I3D 32x2",
    "authors I3D 128x1, affine",
    "gluoncv NL5 I3D R50",
]


def state_of(record):
    """What the peer's file holds, drawn again."""
    return {
        name: seeded_tensor(seed, tuple(shape), record["theta"]) if shape else torch.tensor(0)
        for name, (shape, seed) in record["names"].items()
    }


def write(record, folder, state):
    """The state as a file of that zoo."""
    file = folder / record["file"]
    if file.suffix == ".pkl":
        momenta = {f"{k}_momentum": np.zeros(3, np.float32) for k in state if k.endswith(("_w", "_b", "_bn_s"))}
        file.write_bytes(
            python2_pickle(
                {
                    "blobs": {
                        **{k: v.numpy() for k, v in state.items()},
                        **momenta,
                        "lr": np.float32(0.1),
                        "model_iter": 4,
                    }
                }
            )
        )
    else:
        torch.save({"epoch": 3, "model_state" if file.suffix == ".pyth" else "state_dict": state}, file)
    return file


def hollow(record):
    """The same names and shapes with one number behind each tensor, so that the file is small and quickly read."""
    return {
        name: torch.full((), 0.5).expand(shape) if shape else torch.tensor(0)
        for name, (shape, _) in record["names"].items()
    }


@torch.no_grad()
@pytest.mark.parametrize("label", CASES)
def test_logits_are_the_peers(label, tmp_path):
    record = RECORDS[label]
    found = convert.read(
        write(record, tmp_path, state_of(record)), ImportOptions(**{"frames": record["frames"], **record["wishes"]})
    )
    logits, theirs = found.net(clip_of(record["frames"], 64))[:, :6], torch.tensor(record["logits"])
    assert relative_error(theirs[:1], theirs[1:]) > 1e-2  # the clip matters
    assert relative_error(logits, theirs) < 1e-4
    assert found.net.spec.inflation.temporal_padding == "zeros" and found.net.spec.licence
    for m in found.net.modules():
        if isinstance(m, torch.nn.MaxPool3d):
            m.padding = (0, 1 - m.padding[1], 1 - m.padding[2])
    assert relative_error(found.net(clip_of(record["frames"], 64))[:, :6], theirs) > 1e-3  # the negative control


def test_all_recorded_networks_are_recognised(tmp_path):
    assert len(RECORDS) >= 26
    seen = set()
    for label, record in RECORDS.items():
        if record["file"].endswith(".pkl") or label in CASES[:2]:
            continue  # a Caffe2 array cannot be hollow; the cases above have those zoos
        found = convert.read(write(record, tmp_path, hollow(record)), ImportOptions(**record["wishes"]))
        blocks = tuple((n.stage, n.blocks, n.form, n.subsample, n.scale) for n in found.net.spec.non_local)
        seen.add((found.zoo, found.net.spec.backbone, found.net.spec.inflation.arch, bool(blocks)))
        kept = sum(k not in found.dropped for k in record["names"])
        assert kept + len(found.filled) == len(found.net.state_dict())
    assert {z for z, *_ in seen} == {
        z.title for n, z in convert.ZOOS.items() if n not in ("authors", "slowfast-caffe2")
    }
    assert {b for _, b, *_ in seen} == {"resnet50", "resnet101"} and {a for _, _, a, _ in seen} == {"c2d", "i3d"}


def test_the_spec_says_what_each_zoo_trained_with(tmp_path):
    def spec_of(label, name=None, **wishes):
        record = {**RECORDS[label], **({"file": name} if name else {})}
        return convert.read(write(record, tmp_path, hollow(record)), ImportOptions(**wishes)).net.spec

    slowfast = spec_of("SlowFast NL I3D R50")
    assert (slowfast.clip.frames, slowfast.clip.stride, slowfast.clip.mean) == (
        8,
        8,
        (0.45,) * 3,
    ) and slowfast.classes == ()
    assert slowfast.inflation.pools == "8x8" and slowfast.inflation.pool1_padding == 1 and slowfast.num_outputs == 13
    assert [(n.stage, n.blocks, n.form, n.subsample, n.scale) for n in slowfast.non_local] == [
        ("res3", (1, 3), "embedded", "before", True),
        ("res4", (1, 3, 5), "embedded", "before", True),
    ]
    dot = spec_of("mmaction2 NL dot")
    assert {(n.form, n.subsample, n.scale) for n in dot.non_local} == {("dot", "after", False)} and dot.clip.mean == (
        0.485,
        0.456,
        0.406,
    )
    assert spec_of("mmaction2 NL dot", "x.pth", form="embedded").non_local[0].form == "embedded"
    assert spec_of("mmaction2 NL gaussian").non_local[0].form == "gaussian"
    flat = spec_of("mmaction2 C2D R50")
    assert (flat.inflation.arch, flat.inflation.pools, flat.inflation.pool1_padding) == ("c2d", "8x8", 0)
    assert spec_of("mmaction2 C2D R50 nopool").inflation.pools == "none"
    authors = spec_of("Tushar-N NL I3D R50")
    assert (authors.inflation.pools, authors.inflation.pool1_padding, authors.licence) == ("authors", 0, "cc-by-nc-4.0")
    assert {n.subsample for n in spec_of("gluoncv NL5 I3D R50").non_local} == {"none"}
    assert spec_of("SlowFast I3D R50", "I3D_16x4_R50.pyth").clip.frames == 16
    assert spec_of("SlowFast I3D R50", frames=32, stride=2).clip.stride == 2


def caffe2(folder, name, **changes):
    """A small Caffe2 file: right in its first and last layer, so that it is recognised; a whole one has 100 MB."""
    blobs = {
        "conv1_w": np.zeros((64, 3, 5, 7, 7), np.float32),
        "pred_w": np.zeros((4, 2048), np.float32),
        "pred_b": np.zeros(4, np.float32),
    }
    (folder / name).write_bytes(python2_pickle({"blobs": {**blobs, **changes}}))
    return folder / name


@pytest.mark.parametrize(
    "label, file, words",
    [
        ("mmaction2 NL dot", "net.pth", "embedded and dot, and its name says neither"),
        ("mmaction2 C2D R50", "net.pth", "with temporal pools or without"),
    ],
)
def test_what_the_tensors_do_not_say_is_asked_for(label, file, words, tmp_path):
    record = {**RECORDS[label], "file": file}
    with pytest.raises(WeightsError, match=words) as refused:
        convert.read(write(record, tmp_path, hollow(record)))
    assert "--" in refused.value.hint


def test_caffe2_files_of_two_zoos_are_told_apart_or_asked_about(tmp_path):
    for name, wishes, words in [
        ("net.pkl", {}, "authors and of slowfast-caffe2"),
        ("net.pkl", {"zoo": "authors"}, "which clips"),
        ("net.pkl", {"zoo": "authors", "frames": 32, "stride": 2}, "0, 0, 0, 0 residual blocks"),
        ("i3d_baseline_32x2_IN.pkl", {}, "0, 0, 0, 0 residual blocks"),
        ("I3D_8x8_R50.pkl", {}, "0, 0, 0, 0 residual"),
        ("net.pkl", {"zoo": "gluoncv"}, "is not of gluoncv"),
    ]:
        with pytest.raises(WeightsError, match=words):
            convert.read(caffe2(tmp_path, name), ImportOptions(**wishes))
    with pytest.raises(UsageError, match="--zoo is 'x'"):
        convert.read(caffe2(tmp_path, "net.pkl"), ImportOptions(zoo="x"))
    with pytest.raises(UsageError, match="frames"):
        convert.read(caffe2(tmp_path, "net.pkl"), ImportOptions(frames=10**6))


def test_the_authors_long_clip_blocks_are_refused(tmp_path):
    record = RECORDS["authors NL I3D 32x2"]
    state = {
        k: v
        for k, v in state_of(record).items()
        if not k.endswith(("_rm", "_riv")) and not ("nonlocal" in k and "_bn_" in k)
    }
    file = write({**record, "file": "i3d_nonlocal_32x4_I3D_pretrain_400k.pkl"}, tmp_path, state)
    with pytest.raises(WeightsError, match="four frames at a time"):
        convert.read(file)


# ---- files that are damaged or mean harm

BASE = RECORDS["SlowFast NL C2D R50"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A valid checkpoint of 0.1 MB, its network imported once, so that the times below are those of refusing."""
    file = write(BASE, tmp_path_factory.mktemp("valid"), hollow(BASE))
    assert convert.read(file).net.spec.backbone == "resnet50" and file.stat().st_size < 3e5
    return file


def refused(file, words=".", within=1.5):
    """The error of importing `file`, which must come soon: within 1 s of CPU time on a machine without other work."""
    start = time.process_time()
    with pytest.raises(WeightsError, match=words) as caught:
        convert.read(file)
    assert time.process_time() - start < within
    assert caught.value.exit_code == 4 and "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("name", ["x.pth", "x.pyth", "x.pkl", "x.safetensors"])
@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"  <HTML>", "web page"),
        (b"hello", "."),
        (b"\x80\x02", "."),
        (b"PK\x03\x04" + b"\0" * 40, "."),
        (bytes(range(256)) * 9, "."),
        (b"\0" * 4096, "."),
    ],
)
def test_what_is_no_weights_file_is_refused(small, name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, words)


def test_files_cut_short_are_refused(small, tmp_path):
    whole = {"x.pyth": small.read_bytes(), "x.pkl": caffe2(tmp_path, "whole.pkl").read_bytes()}
    save_file({"s1.pathway0_stem.conv.weight": torch.zeros(64, 3, 1, 7, 7)}, tmp_path / "whole.safetensors")
    whole["x.safetensors"] = (tmp_path / "whole.safetensors").read_bytes()
    for name, content in whole.items():
        for keep in (1, 7, 60, 1000, len(content) // 2, len(content) - 1):
            (tmp_path / name).write_bytes(content[:keep])
            refused(tmp_path / name)


def changed(change, tmp_path, name="I3D_8x8_R50.pyth"):
    """The valid checkpoint with one thing wrong."""
    state = hollow(BASE)
    change(state)
    return write({**BASE, "file": name}, tmp_path, state)


FIRST, LAST = "s1.pathway0_stem.conv.weight", "head.projection.weight"
THIRD = "s3.pathway0_res0.branch2.b.weight"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop(THIRD), r"1 missing \(layer2.0.conv2.weight"),
        (
            lambda s: s.update({THIRD + "x": s.pop(THIRD)}),
            "no network of SlowFast has: s3.pathway0_res0.branch2.b.weightx",
        ),
        (lambda s: s.update({"extra": torch.zeros(2)}), "no network of SlowFast has: extra"),
        (lambda s: s.update({THIRD: s[THIRD][:, :5]}), "of another shape"),
        (lambda s: s.update({THIRD: s[THIRD].expand(128, 128, 3, 3, 3)}), "of another shape"),
        (lambda s: s.pop(LAST), "nothing for fc.weight"),
        (lambda s: s.update({LAST: torch.zeros(0, 2048)}), "num_outputs"),
        (lambda s: s.pop(FIRST), "of no zoo that nlzoo knows"),
        (
            lambda s: s.update({THIRD: torch.full(s[THIRD].shape, float("nan"))}),
            "NaN or infinity in layer2.0.conv2.weight",
        ),
        (lambda s: s.update({THIRD: torch.full((), float("inf")).expand(s[THIRD].shape)}), "NaN or infinity"),
        (lambda s: s.update({"s1.pathway0_stem.bn.running_var": torch.full((64,), -1.0)}), "variance below 0"),
        (
            lambda s: s.update({THIRD: torch.zeros((), dtype=torch.int64).expand(s[THIRD].shape)}),
            "holds int64 numbers in layer2.0.conv2.weight",
        ),
        (lambda s: s.update({"../../etc/passwd": torch.zeros(1)}), "no network of SlowFast has"),
        (
            lambda s: s.update({"\x1b[31m\u202e" + "x" * 999: torch.zeros(1)}),
            r"no network of SlowFast has: \\x1b\[31m\\u202ex{54}$",
        ),
        (lambda s: s.update({"x" * 99_999: torch.zeros(1)}), "a name in it has 99,999 bytes"),
        (
            lambda s: s.update(
                {
                    "s4.pathway0_nonlocal99.conv_g.weight": torch.zeros(512, 1024, 1, 1, 1),
                    "s4.pathway0_nonlocal99.conv_out.weight": torch.zeros(1024, 512, 1, 1, 1),
                }
            ),
            "no residual block 99 in res4",
        ),
        (
            lambda s: s.update({"s4.pathway0_res6.branch2.a.weight": torch.zeros(256, 1024, 1, 1, 1)}),
            "3, 4, 7, 3 residual blocks",
        ),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("s5")], "3, 4, 6, 0 residual blocks"),
        (
            lambda s: s.update({k: torch.zeros(()).expand(10**6, 10**6, 10**6) for k in (FIRST, THIRD)}),
            r"a tensor has the shape \(1000000, 1000000, 1000000\)",
        ),  # a stride bomb
        (
            lambda s: s.update({THIRD: torch.zeros(()).expand(10**4, 10**4, 10, 10, 10)}),
            "holds a view of other numbers",
        ),
        (
            lambda s: s.update({THIRD: torch.zeros(3).to_sparse()}),
            f"no state dict of tensors: '{THIRD}' is a sparse tensor",
        ),
        (lambda s: s.update({THIRD: torch.zeros(3, device="meta")}), "is a tensor without numbers"),
        (lambda s: s.update({THIRD: "text"}), "is a str"),
        (lambda s: s.clear(), "no state dict"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_name(small, change, words, tmp_path):
    refused(changed(change, tmp_path), words)


def test_second_names_must_hold_the_same(tmp_path):
    record = RECORDS["gluoncv NL5 I3D R50"]
    state = hollow(record)
    state["head.1.bias"] = torch.ones(13)
    refused(write(record, tmp_path, state), "head.1.bias, which should equal fc.bias", within=5)


def test_2d_weights_are_sent_to_inflate(small, tmp_path):
    torch.save(model.plain_resnet("resnet18").state_dict(), tmp_path / "resnet18.pth")
    assert "nlzoo inflate" in refused(tmp_path / "resnet18.pth", "of no zoo").hint


class Harm:
    """Writes a file when it is unpickled by a reader that runs code."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
def test_code_in_a_pickle_never_runs(small, name, protocol, tmp_path):
    target = tmp_path / "owned"
    file = tmp_path / name
    if name == "x.pkl":
        file.write_bytes(pickle.dumps({"blobs": {"conv1_w": Harm(target)}}, protocol))
    else:
        torch.save({"state_dict": {"conv1.weight": Harm(target)}}, file, pickle_protocol=max(protocol, 2))
    old = max(protocol, 2 if name == "x.pth" else 0) < 4
    refused(file, "it names io.open" if old else f"it is a pickle of protocol {protocol}")
    assert not target.exists()
    pickle.loads(pickle.dumps(Harm(target), protocol)).close()
    assert target.exists()  # the negative control: it does harm where code runs


def in_zip(file, parts, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file


def test_zip_bombs_are_refused(small, tmp_path):
    with zipfile.ZipFile(small) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    first = next(n for n in parts if n.endswith("/data/0"))
    refused(in_zip(tmp_path / "a.pth", {**parts, first: bytes(200_000_000)}, zipfile.ZIP_DEFLATED), "compressed part")
    refused(in_zip(tmp_path / "b.pth", {**parts, **{f"x{i}": b"" for i in range(20_001)}}), "parts", within=2)
    pkl = next(n for n in parts if n.endswith("data.pkl"))
    refused(
        in_zip(tmp_path / "c.pth", {**parts, pkl: b"(" * 3_000_000}),
        "describes its tensors in more than 2,097,152 bytes",
    )
    content = bytearray(small.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)  # sizes in the first central directory entry
    (tmp_path / "d.pth").write_bytes(content)
    refused(tmp_path / "d.pth", "claims more bytes than it has")


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"


def state(shape, raw):
    return b"(I1\n" + shape + b"cnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\n" + raw + b"tb"


@pytest.mark.parametrize(
    "content, words",
    [
        (b"}U\x07conv1_w" + ARRAY + state(b"(I1000000000000\nt", b"U\x04\0\0\0\0") + b"s.", "shape"),
        (b"}U\x07conv1_w" + ARRAY + state(b"(I1000000\nI1000000\nt", b"U\x04\0\0\0\0") + b"s.", "has 4 bytes"),
        (b"}U\x07conv1_w" + ARRAY + state(b"(I-1\nt", b"U\x04\0\0\0\0") + b"s.", "shape"),
        (b"}U\x07conv1_w" + ARRAY + b"s.", "'conv1_w' is an array without numbers"),
        (
            b"}r\xff\xff\xff\x7fU\x01as.",
            "it is damaged",
        ),  # a memo index that makes C's reader take 16 GB
        (b"}" + b"U\x01aI1\ns" * 200_000 + b".", "steps"),
        (b"(" * 500_000, "it takes more than 250,000 steps to read"),
        (b"(lp0\n" + b"(lp1\n" * 10_000 + b".", "no dict"),
        (b"\x8e" + b"\xff" * 8 + b".", "could not be read"),
        (b"B\xff\xff\xff\x7f.", "could not be read"),
        (b"X\xff\xff\xff\xff.", "could not be read"),
        (b"cos\nsystem\n(U\x02idtR.", "os.system"),
        (b"c__builtin__\neval\n(U\x011tR.", "eval"),
        (b"cnumpy\nload\n(U\x01xtR.", "numpy.load"),
        (b"(U\x02idios\nsystem\n.", "could not be read"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.", "could not be read"),
        (b"\x82\x01.", "could not be read"),
        (b"cnumpy\nndarray\n}U\x0c__setstate__I1\nsb.", "sets the state of what is no array"),
        (b"U\x01a)R.", "it calls what is no function"),
        (b"I5\n.", "no dict"),
        (b"}U\x05blobsI1\ns.", "no dict"),
        (b"}U\x01a]s.", "'a' is a list"),
    ],
)
def test_hostile_caffe2_pickles_are_refused(content, words, tmp_path):
    (tmp_path / "i3d_baseline_32x2.pkl").write_bytes(content)
    refused(tmp_path / "i3d_baseline_32x2.pkl", words)


def test_one_stretch_of_a_pickle_named_many_times_is_refused(tmp_path):
    one = ARRAY + state(b"(I1000\nt", b"T\xa0\x0f\0\0" + bytes(4000) + b"p7\n")
    again = ARRAY + state(b"(I1000\nt", b"g7\n")
    (tmp_path / "x.pkl").write_bytes(
        b"}U\x01a" + one + b"s" + b"".join(b"U\x02%02d" % i + again + b"s" for i in range(90)) + b"."
    )
    refused(tmp_path / "x.pkl", "more bytes than the file")
    (tmp_path / "y.pkl").write_bytes(b"}U\x01a" + one + b"s.")
    assert foreign.read_weights(tmp_path / "y.pkl").shapes == {"a": (1000,)}


def test_arrays_of_both_pythons_and_byte_orders_are_read(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(3, dtype=">f8"),
        "c": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "d": np.float32(2.5),
        "e": 7,
    }
    for i, content in enumerate(
        [python2_pickle({"blobs": arrays}), *(pickle.dumps({"blobs": arrays}, p) for p in (0, 1, 2, 3))]
    ):
        (tmp_path / f"{i}.pkl").write_bytes(content)
        like = {name: torch.zeros(np.shape(value)) for name, value in arrays.items()}
        read = foreign.read_weights(tmp_path / f"{i}.pkl").load({name: name for name in arrays}, like)
        assert all(np.array_equal(read[k].numpy(), np.asarray(v, np.float32)) for k, v in arrays.items()), i


def mutate(content, rng):
    """A few bytes changed, moved, left out or doubled; or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(content) or 1)
        kind = rng.randrange(5) if content else 3  # all of it cut off: nothing left to change
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randrange(1, 40)]
        else:
            content = content[: max(at, 1)]
    return bytes(content) or b"\0"


def mutants(count, small, tmp_path, rng):
    """Refused in plain words, or imported; no other exception, and nothing on stdout."""
    wholes = {
        "m_8x8.pyth": small.read_bytes(),
        "i3d_baseline_32x2.pkl": caffe2(
            tmp_path, "whole.pkl", conv1_w=np.zeros((64, 3, 1, 1, 1), np.float32), pred_w=np.zeros((4, 20), np.float32)
        ).read_bytes(),
    }
    with zipfile.ZipFile(small) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    pkl = next(n for n in parts if n.endswith("data.pkl"))
    summary, slowest = {"refused": 0, "imported": 0}, 0.0
    for i in range(count):
        kind = i % 3
        if kind == 2:  # the pickle inside alone, in a zip whose sums are right
            file = in_zip(tmp_path / "m_8x8.pyth", {**parts, pkl: mutate(parts[pkl], rng)})
        else:
            file = tmp_path / list(wholes)[kind]
            file.write_bytes(mutate(wholes[file.name], rng))
        start = time.process_time()
        try:
            convert.read(file)
            summary["imported"] += 1
        except NlzooError as error:
            assert isinstance(error, WeightsError) and "\n" not in error.message
            summary["refused"] += 1
            slowest = max(slowest, time.process_time() - start)
    return summary, slowest


def test_mutants_are_refused_or_imported(small, tmp_path, seed):
    summary, slowest = mutants(300, small, tmp_path, random.Random(seed))
    assert summary["refused"] > 150 and slowest < 1.5


@pytest.mark.torture
def test_ten_thousand_mutants(small, tmp_path, seed):
    summary, slowest = mutants(10_000, small, tmp_path, random.Random(seed))
    print(summary, f"slowest refusal {slowest:.2f} s")
    assert summary["refused"] > 5000 and slowest < 1.5


# ---- the command


def test_import_writes_a_model_folder(nlzoo, tmp_path):
    record = RECORDS["Tushar-N NL I3D R50"]
    (tmp_path / "in").mkdir()
    file = write({**record, "file": "<b>i3d_32x2.pth"}, tmp_path / "in", hollow(record))
    code, out, err = nlzoo("import", file)
    assert (
        code == 0
        and "recognised: pytorch-resnet3d" in out
        and "every 2: by the file's name" in out
        and "filled 58 tensors" in out
    ), err
    assert "no commercial use" in err and "wrote weights/b-i3d_32x2" in out
    folder = tmp_path / "weights/b-i3d_32x2"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text()
    assert "cc-by-nc-4.0: no commercial use" in card and "<b>" not in card and "imported" in card
    again = checkpoint.load_model(folder)
    assert again.spec.inflation.init == "imported" and again.spec.clip.frames == 32
    code, out, _ = nlzoo("import", file, "--frames", "16", "--stride", "4", "--name", "other", "--json")
    summary = json.loads(out)
    assert (
        code == 0
        and summary["clip"]["frames"] == 16
        and summary["model"] == "weights/other"
        and len(summary["filled"]) == 58
    )
    assert any("as you said" in n for n in summary["notes"])
    assert nlzoo("import", file, "--frames", "24", "--name", "other")[0] == 5  # holds something else
    assert nlzoo("inflate", "tiny", "--init", "imported")[0] == 2


def test_a_known_start_is_imported_by_its_name(nlzoo, tmp_path, monkeypatch):
    """From the cache; tests/test_pretrained.py has the fetching."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start, record = pretrained.find("i3d-r50-8x8.pytorchvideo"), RECORDS["pytorchvideo I3D R50"]
    folder = files.cache_folder() / start.zoo
    folder.mkdir(parents=True)
    write({**record, "file": start.url.rpartition("/")[2]}, folder, hollow(record))
    code, out, err = nlzoo("import", start.name)
    assert code == 0 and "clips of 8 frames, every 8" in out and "wrote weights/i3d-r50-8x8.pytorchvideo" in out, err
    outputs = json.loads((tmp_path / "weights" / start.name / "config.json").read_text())["num_outputs"]
    assert f"its {outputs} outputs have no names: --labels" in err
    (tmp_path / "names.txt").write_text("".join(f"class {k}\n" for k in range(outputs)))
    code, out, err = nlzoo("import", start.name, "--labels", "names.txt", "--json")  # over the one without names
    assert code == 0 and json.loads(out)["classes"][:2] == ["class 0", "class 1"] and "--labels" not in err, err
    card = (tmp_path / "weights" / start.name / "README.md").read_text()
    assert f"Classes ({outputs}" in card and "class 1" in card
    code, out, err = nlzoo("import", "i3d-r50-8x8.nobody")
    assert code == 2 and "i3d-r50-8x8.slowfast" in err


def test_the_names_of_kinetics_are_those_of_the_authors_in_their_order():
    names = labels.read("kinetics400")
    assert len(names) == 400 and list(names) == sorted(names)
    # some of the numbers of process_data/kinetics/classids.json in facebookresearch/video-nonlocal-net
    numbers = {"abseiling": 0, "cooking sausages": 73, "passing American football (in game)": 208, "push up": 260}
    numbers |= {"sharpening knives": 290, "skiing (not slalom or crosscountry)": 308, "zumba": 399}
    assert {name: names.index(name) for name in numbers} == numbers


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "run\n walk \r\nsit down\n\n"),
        ("a.json", '["run", "walk", "sit down"]'),
        ("a.json", '{"walk": 1, "\\"sit down\\"": 2, "run": 0}'),
        ("a.json", '{"1": "walk", "0": "run", "2": "sit down"}'),
    ],
)
def test_names_of_outputs_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    names = labels.read(str(tmp_path / name))
    assert names == ("run", "walk", "sit down")
    assert labels.name_outputs(ModelSpec("resnet50", num_outputs=3), names).classes == names


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.txt", "run\nwalk\n", "2 names, and the network 3 outputs"),
        ("a.txt", "run\nwalk\nrun\n", "repeat"),
        ("a.txt", "run\n\nwalk\n", "class name"),
        ("a.json", '{"run": 0, "walk": 2, "sit": 3}', "not a list of names"),
        ("a.json", '{"0": "run", "1": "run", "2": "sit"}', "not a list of names"),
        ("a.json", '["run", 1, "sit"]', "not a list of names"),
        ("a.json", "3", "not a list of names"),
        ("a.json", "{", "could not be read as JSON"),
        ("b.txt", None, "is no file"),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(NlzooError, match=words):
        labels.name_outputs(ModelSpec("resnet50", num_outputs=3), labels.read(str(tmp_path / name)))


def test_a_refused_import_leaves_nothing(nlzoo, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    code, out, err = nlzoo("import", "x.pth")
    assert code == 4 and "Git-LFS pointer" in err and "git lfs pull" in err and not out
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]
    assert nlzoo("import", "nothing.pth")[0] == 2
