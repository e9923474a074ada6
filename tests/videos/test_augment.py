"""Pixels: one draw for all frames, keyed by its generator alone; MixUp and CutMix blend labels as pixels."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from nlzoo.core.errors import UsageError
from nlzoo.core.view_spec import AUGMENTS, Augment, default_augment, parse_augment
from nlzoo.networks import vision
from nlzoo.videos import augment

KINDS = {
    "colour": Augment(colour=0.4),
    "randaugment": Augment(randaugment=9),
    "erase": Augment(erase=1.0),
    "all": Augment(colour=0.8, randaugment=30, erase=0.5),
}


def noise(seed, frames=4, height=24, width=32):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_still_clip_stays_still(kind, seed):
    still, changed = noise(seed, 1).expand(5, -1, -1, -1), 0
    for n in range(40):
        got = augment.apply(still, KINDS[kind], np.random.default_rng([seed, n]))
        assert got.dtype is torch.uint8 and got.shape == still.shape and got.is_contiguous()
        assert torch.equal(got, got[:1].expand_as(got))
        changed += not torch.equal(got, still)
    assert changed > 20


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_depend_on_the_generator_alone(kind, seed):
    clip = noise(seed)
    before = clip.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [augment.apply(clip, KINDS[kind], rng) for rng in [np.random.default_rng(seed)] for _ in range(12)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = [augment.apply(clip, KINDS[kind], rng) for rng in [np.random.default_rng(seed)] for _ in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert len({a.numpy().tobytes() for a in first}) > 3  # and each draw is another
    assert torch.equal(clip, before)  # the clip itself is as it was


@pytest.mark.parametrize("name", ["light", "paper"])
def test_where_nothing_is_on_the_very_tensor_comes_back(name, seed):
    clip, rng = noise(seed), np.random.default_rng(seed)
    assert augment.apply(clip, AUGMENTS[name], rng) is clip
    assert rng.random() == np.random.default_rng(seed).random()
    pixels, targets = torch.rand(2, 3, 4, 8, 8), torch.eye(2)
    assert [a is b for a, b in zip(augment.mix(pixels, targets, AUGMENTS[name], 1), (pixels, targets))] == [True, True]


def test_light_leaves_torchvision_alone_and_the_others_find_it():
    """In a fresh process, since timm imports torchvision; beside a torch of another build it must be mended first."""
    code = """
import sys, numpy as np, torch
from nlzoo.videos import augment
from nlzoo.core.view_spec import AUGMENTS
clip, rng = torch.zeros(2, 16, 16, 3, dtype=torch.uint8), np.random.default_rng(0)
augment.apply(clip, AUGMENTS["light"], rng)
assert "torchvision" not in sys.modules
augment.apply(clip, AUGMENTS["strong"], rng)
assert "torchvision" in sys.modules and "timm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert vision.import_torchvision() is vision.import_torchvision()


def test_colour_stays_within_its_strength(seed):
    """Brightness, contrast and saturation of a plain grey clip: only brightness can show, between 1 - c and 1 + c."""
    grey = torch.full((3, 8, 8, 3), 100, dtype=torch.uint8)
    got = [augment.apply(grey, Augment(colour=0.4), np.random.default_rng([seed, n])) for n in range(200)]
    assert all(len(g.unique()) == 1 for g in got)
    values = [int(g[0, 0, 0, 0]) for g in got]
    assert 56 <= min(values) < 75 and 125 < max(values) <= 140  # each of the three rounds down


def test_erasing_greys_one_rectangle_in_every_frame(seed):
    clip = torch.zeros(3, 40, 40, 3, dtype=torch.uint8)
    for n in range(30):
        got = augment.apply(clip, Augment(erase=1.0), np.random.default_rng([seed, n]))
        rows, columns = np.nonzero(got[0, :, :, 0].numpy())
        expected = torch.zeros_like(clip)
        expected[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = torch.tensor(
            augment.GREY, dtype=torch.uint8
        )
        assert torch.equal(got, expected) and 0.01 < len(rows) / 1600 < 0.36
    erased = [
        bool(augment.apply(clip, Augment(erase=0.25), np.random.default_rng([seed, n])).any()) for n in range(300)
    ]
    assert 0.15 < np.mean(erased) < 0.35


def named_clips(batch, frames=4, height=30, width=20):
    """Float clips of which every pixel of every frame and channel says whose it is: clip b has b + 10 t + 1000 c."""
    b, c, t = (torch.arange(n, dtype=torch.float32) for n in (batch, 3, frames))
    values = b[:, None, None] + 1000 * c[:, None] + 10 * t
    return values[..., None, None].expand(batch, 3, frames, height, width).clone()


def test_cutmix_cuts_one_rectangle_from_every_frame_and_shares_the_label(seed):
    batch = 5
    pixels, targets, shares = named_clips(batch), torch.eye(batch), []
    for n in range(60):
        mixed, labels = augment.mix(pixels, targets, Augment(cutmix=1.0), seed + n)
        owner = mixed - (pixels - torch.arange(batch).view(-1, 1, 1, 1, 1))  # frame and channel stay in their places
        assert torch.equal(owner, owner[:, :1, :1].expand_as(owner))  # the same place in all frames and channels
        for b in range(batch):
            other = (b - 1) % batch
            cut = owner[b, 0, 0] == other
            assert torch.equal(cut, owner[b, 0, 0] != b)
            rows, columns = torch.nonzero(cut.any(1)), torch.nonzero(cut.any(0))
            assert int(cut.sum()) == len(rows) * len(columns)  # a rectangle
            assert not len(rows) or (len(rows), len(columns)) == (
                rows.max() - rows.min() + 1,
                columns.max() - columns.min() + 1,
            )
            share = cut.double().mean().item()
            assert labels[b, other].item() == pytest.approx(share, abs=1e-6) and labels[b, b].item() == pytest.approx(
                1 - share, abs=1e-6
            )
        shares.append(share)
    assert min(shares) < 0.2 and max(shares) > 0.5


def test_mixup_is_the_blend_that_its_labels_say(seed):
    """One-hot and multi-hot: lambda, read off the labels, gives the pixels."""
    batch = 4
    pixels, shares = torch.randn(batch, 3, 2, 6, 6), []
    multi = torch.cat([torch.eye(batch), (torch.rand(batch, 7) < 0.4).float()], 1)  # the first part names the clip
    for n in range(60):
        mixed, labels = augment.mix(pixels, multi, Augment(mixup=0.8), seed + n)
        share = labels[0, 0].item()
        shares.append(share)
        before = torch.arange(batch) - 1
        assert torch.allclose(labels, share * multi + (1 - share) * multi[before], atol=1e-6)
        expected = share * pixels.double() + (1 - share) * pixels[before].double()
        assert torch.allclose(mixed.double(), expected, atol=1e-5)
    assert min(shares) < 0.3 and max(shares) > 0.7 and all(0 <= s <= 1 for s in shares)


def test_with_both_on_each_comes_half_the_time_and_the_key_decides(seed):
    pixels, targets, both = named_clips(3), torch.eye(3), Augment(mixup=1.0, cutmix=1.0)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    got = [augment.mix(pixels, targets, both, seed + n) for n in range(200)]
    assert torch.equal(torch.get_rng_state(), state)
    cut = [bool((m == m.round()).all()) for m, _ in got]
    assert 0.3 < np.mean(cut) < 0.7
    torch.manual_seed(4)
    for n in range(0, 200, 20):
        again = augment.mix(pixels, targets, both, seed + n)
        assert torch.equal(again[0], got[n][0]) and torch.equal(again[1], got[n][1])


def test_mixing_keeps_layout_type_and_input(seed):
    pixels = torch.randn(2, 4, 8, 8, 3).permute(0, 4, 1, 2, 3)  # as `clips.to_input` gives it
    targets, copies = torch.eye(2), (pixels.clone(), torch.eye(2))
    for kind in (Augment(mixup=1.0), Augment(cutmix=1.0)):
        mixed, labels = augment.mix(pixels, targets, kind, seed)
        assert (
            mixed.stride() == pixels.stride()
            and mixed.dtype is labels.dtype is torch.float32
            and type(mixed) is torch.Tensor
        )
        assert torch.equal(pixels, copies[0]) and torch.equal(targets, copies[1])


# --- the words


@pytest.mark.parametrize("name", AUGMENTS)
def test_presets_read_back_from_their_name_and_their_description(name):
    assert parse_augment(name) == AUGMENTS[name] == parse_augment(str(AUGMENTS[name]))


def test_any_description_reads_back(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        made = Augment(
            ["area", "jitter"][rng.integers(2)],
            float(rng.uniform(0.05, 1)),
            bool(rng.integers(2)),
            float(rng.uniform()),
            int(rng.integers(31)),
            float(rng.uniform()),
            float(rng.uniform(0.01, 10)),
            float(rng.integers(2)),
            int(rng.integers(1, 17)),
            float(rng.uniform(0, 2)),
        )
        assert parse_augment(str(made)) == made


def test_texts_that_are_understood():
    assert str(Augment()) == "light" and str(AUGMENTS["medium"]) == "light,colour=0.4,erase=0.25"
    strong = dataclasses.replace(AUGMENTS["strong"], flip=False, mixup=0.0)
    assert parse_augment("strong,flip=no,mixup=0") == parse_augment(" Strong , FLIP = no,mixup=0.0") == strong
    assert parse_augment("flip=no") == parse_augment("light,flip=no") == Augment(flip=False)
    assert (
        parse_augment("flip=no", "few") == parse_augment("few,flip=no") == Augment(flip=False, colour=0.4, zoom_out=0.5)
    )
    assert parse_augment("crop=jitter") == AUGMENTS["paper"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no preset ''"),
        ("heavy", "no preset 'heavy'"),
        ("strong,paper", "'paper' was not understood"),
        ("light,hue=0.1", "'hue=0.1' was not"),
        ("light,", "'' was not understood"),
        ("light,flip", "'flip' was not understood"),
        ("flip=maybe", "flip must be yes or no; it is 'maybe'"),
        ("repeats=1.5", "repeats must be a whole number"),
        ("colour=much", "colour must be a number"),
        ("colour=nan", "colour is nan"),
        ("colour=-0.1", "colour is -0.1"),
        ("colour=1.1", "from 0 to 1"),
        ("randaugment=31", "from 0 to 30"),
        ("erase=2", "erase is 2.0"),
        ("mixup=-1", "mixup"),
        ("mixup=inf", "mixup"),
        ("cutmix=1e-300", "cutmix, where it is not 0, is 1e-300"),
        ("repeats=0", "from 1 to 16"),
        ("min_area=0", "min_area is 0.0"),
        ("crop=centre", "crop is 'centre'; it must be one of area, jitter"),
        ("flip=no,flip=yes", "flip is given twice"),
    ],
)
def test_texts_that_are_refused_with_words(text, words):
    with pytest.raises(UsageError, match=words) as refused:
        parse_augment(text)
    if "not understood" in words or "preset" in words or "must be" in words and "one of" not in words:
        assert all(name in refused.value.hint for name in [*AUGMENTS, "min_area", "repeats"])


def test_values_of_another_type_are_refused():
    for kwargs in (
        {"flip": 1},
        {"colour": True},
        {"colour": "0.4"},
        {"randaugment": 7.0},
        {"repeats": True},
        {"mixup": None},
        {"crop": None},
    ):
        with pytest.raises(UsageError):
            Augment(**kwargs)


def test_the_default_goes_by_the_size_of_the_set():
    assert default_augment(35) == ("few", "under 5,000 training clips") and default_augment(4999)[0] == "few"
    assert default_augment(5000) == ("medium", "5,000 training clips or more") and default_augment(10**6)[0] == "medium"
