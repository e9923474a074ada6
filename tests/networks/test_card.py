"""The text of a model folder's README.md."""

import getpass
import re
import socket
from pathlib import Path

import pytest

from nlzoo.core.model_spec import Inflation, ModelSpec, NonLocal
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import card

FIGURES = {"top1": 0.9, "top5": 0.98, "majority": 0.25, "train": 30, "val": 10, "epochs": 5}
BLOCKS = (NonLocal("res3", (1, 3)), NonLocal("res4", (5,), "dot", "time"))
SPEC = ModelSpec(
    "resnet50.a1_in1k",
    Inflation("i3d", "centre"),
    BLOCKS,
    ClipSpec(16, 4, 112),
    tuple(f"class {i}" for i in range(7)),
    7,
    "timm/resnet50.a1_in1k",
    "apache-2.0",
)


def test_it_says_what_the_network_is():
    text = card.body(SPEC, FIGURES)
    assert text.startswith("# Non-local I3D, resnet50.a1\\_in1k\n") and text.endswith("\n") and "\n\n\n" not in text
    for words in (
        "I3D, 3x1x1 temporal kernels",
        "in the middle of its 3-D kernel",
        "16 frames every 4, 112x112",
        "res3 after residual blocks 1, 3 (embedded, spacetime, subsampled before); "
        "res4 after residual block 5 (dot, time, subsampled before)",
        "timm/resnet50.a1\\_in1k",
        "apache-2.0",
        "class 0 · class 1",
        "Classes (7,",
    ):
        assert words in text, words
    plain = card.body(ModelSpec("resnet18", Inflation("c2d", "mean")), None)
    assert plain.startswith("# C2D, resnet18\n") and "copied along time" in plain and "non-local blocks: none" in plain
    assert "non-local blocks (Wang" not in plain and "still has the 1000 outputs" in plain
    assert "None came with this model." in plain and plain.count("not recorded") == 2


def test_figures_stand_beside_chance_and_say_what_they_are_worth():
    text = card.body(SPEC, FIGURES)
    for row in (
        "| top-1 | 90.0 % (9 of 10) |",
        "| top-5 | 98.0 % |",
        "| majority-class baseline | 25.0 % |",
        "| validation videos | 10 |",
        "| training videos | 30 |",
    ):
        assert row in text, row
    assert "interval" not in text and "chosen by its score on these same videos" in text
    assert "no better" not in text
    assert "no better than the majority-class baseline" in card.body(SPEC, FIGURES | {"top1": 0.25})
    few = ModelSpec("resnet18", classes=tuple("abcde"), num_outputs=5)
    assert "top-5" not in card.body(few, FIGURES | {"top5": 1.0})  # five of five: says nothing


@pytest.mark.parametrize("metrics", [{}, {"top1": None}, {"top1": float("nan")}, {"top1": True}, {"top1": "0.9"}])
def test_figures_that_are_none_are_not_shown(metrics):
    assert "None came with this model." in card.body(SPEC, metrics)


def test_top1_alone_is_enough():
    assert "| top-1 | 50.0 % |" in card.body(SPEC, {"top1": 0.5})
    assert "interval" not in card.body(SPEC, {"top1": 0.5, "val": 0})


def test_the_interval_is_the_one_that_was_measured_over_groups():
    measured = FIGURES | {"groups": 12, "interval": [0.7, 0.95]}
    assert (
        "With 10 validation videos of 12 groups the 95 % interval of top-1 is 70.0 % to 95.0 %: too few to rank"
        in card.body(SPEC, measured)
    )
    assert "is 88.0 % to 91.5 %." in card.body(SPEC, measured | {"interval": [0.88, 0.915]})
    several = {"map": 0.5, "val": 20, "groups": 15, "interval": [0.4, 0.6]}
    assert "of 15 groups the 95 % interval of mean average precision is 40.0 % to 60.0 %" in card.body(SPEC, several)
    few = "10 validation videos of 1 group are too few for an interval"
    for interval in (None, [1.0, 1.0], [0.5], ["a", "b"], [float("nan"), 1.0], [-3, 5]):
        assert few in card.body(SPEC, FIGURES | {"groups": 1, "interval": interval})


def test_only_an_epoch_that_was_chosen_flatters():
    probe = {name: value for name, value in FIGURES.items() if name != "epochs"}
    assert "flatter the model" in card.body(SPEC, FIGURES) and "flatter the model" not in card.body(SPEC, probe)


def test_checks_are_shown_as_computed():
    text = card.body(SPEC, None, {"nonlocal_identical": True, "still_clip_error": 2.5e-7, "moving_clip_error": None})
    assert "bit-identical: yes" in text and "relative error: 2.5e-07" in text and "moving clip" not in text
    assert "Computed on this network" not in card.body(SPEC, None, {"moving_clip_error": None})


NASTY = (
    "# heading",
    "a|b",
    "*bold*",
    "`code`",
    "[link](http://x.org)",
    "<script>alert(1)</script>",
    "two\nlines",
    "\x1b[31mred",
    "www.x.org",
    "\u202egnp.exe",
    "back\\slash",
    "&amp;",
    "$x$",
    "caf\u00e9 \U0001f3c3\u200d\u2640\ufe0f",
    "bad\udcff",
    "tab\there",
    "line\u2028separator",
    "_em_",
    "~~gone~~",
)


def test_class_names_cannot_become_markup():
    text = card.body(ModelSpec("resnet18", classes=NASTY, num_outputs=len(NASTY), source="<b>*x*"), FIGURES)
    text.encode()  # a name that was not UTF-8 on disk must not make the card unwritable
    (line,) = [line for line in text.splitlines() if line.startswith("Classes (")]
    for shown in (
        "\\# heading",
        "a\\|b",
        "\\*bold\\*",
        "\\`code\\`",
        "\\[link\\](http\\://x.org)",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "two\\\\nlines",
        "\\\\x1b\\[31mred",
        "www\\.x.org",
        "\\\\u202egnp.exe",
        "back\\\\slash",
        "&amp;amp;",
        "\\$x\\$",
        "caf\u00e9 \U0001f3c3\u200d\u2640\ufe0f",
        "bad\\\\udcff",
        "tab\\\\there",
        "line separator",
        "\\_em\\_",
        "\\~\\~gone\\~\\~",
    ):
        assert f" {shown} ·" in f"{line} ·", shown
    assert "- starting weights: &lt;b&gt;\\*x\\*" in text
    assert not re.search(r"<[a-z/]", text) and "\x1b" not in text and "\u202e" not in text


def test_many_classes_are_cut_aloud():
    names = tuple(f"c{i}" for i in range(1500))
    text = card.body(ModelSpec("resnet18", classes=names, num_outputs=1500), None)
    assert "c999 · and 500 more in config.json" in text and "c1000" not in text


def test_it_does_not_know_the_machine():
    text = card.body(SPEC, FIGURES, {"still_clip_error": 1e-7})
    words = set(re.findall(r"[\w./~-]+", text))
    assert len(words) > 50
    assert not words & {str(Path.home()), str(Path.cwd()), socket.gethostname(), getpass.getuser()}
    assert not re.search(r"(?<![\w.])/\w", text.replace("3x1x1", "")) and "---" not in text.splitlines()


def test_the_address_is_filled_in_where_it_is_ours():
    text = card.body(SPEC, None)
    assert 'nlzoo.load("PATH")' in text and "nlzoo predict PATH VIDEO" in text
    once = card.addressed(text, "me/one")
    assert 'nlzoo.load("me/one")' in once and "nlzoo predict me/one VIDEO" in once and "PATH" not in once
    assert card.addressed(once, "me/two") == card.addressed(text, "me/two")
    own = 'I wrote nlzoo.load("me/other") myself.'
    assert card.addressed(own, "me/one") == own


def test_an_imported_network_says_what_it_is_and_what_its_licence_forbids():
    how = Inflation("i3d", "imported", "zeros", "authors", 0)
    text = card.body(
        ModelSpec("resnet50", how, (), ClipSpec(32, 2), (), 400, "video-nonlocal-net, x.pkl", "cc-by-nc-4.0"), None
    )
    assert "imported into nlzoo" in text and "inflated to 3-D" not in text
    assert "cc-by-nc-4.0: no commercial use" in text and "400 outputs that the network was trained with" in text
    assert "no commercial use" not in card.body(ModelSpec("resnet50", licence="apache-2.0"), None)
