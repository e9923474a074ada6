"""The page of a run: true, whole, safe whatever is in names, and fit for a browser."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from nlzoo.apps import charts, draw, report
from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import DiskError, NlzooError, UsageError, VideoError, WeightsError
from nlzoo.core.text import printable
from nlzoo.networks import card, checkpoint, describe, model
from nlzoo.training import evaluate, metrics, plan, run_folder, train
from nlzoo.training.engine import Engine
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import listing, loader, scanning

CPU = torch.device("cpu")
VOID = {"meta", "link", "img", "br", "hr", "input", "source", "wbr"}
HOSTILE = ("<script>alert('&amp;')</script>", "\"' onload=x $\\frac{1}{0}$ [red]\x1b[31m\nnext \u202e 🎬", "long" * 75)
HARMLESS = ("first", "second", "third")
FILE = "<img src=x onerror='alert(1)'>&\"\x1b[31m\n🎬\udcff.mp4"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four small clips of each of three classes."""
    return draw.write_videos(tmp_path_factory.mktemp("clips"), draw.CLASSES[:3], 4, seed=1, frames=8, size=(32, 48))


def trained(source, run, epochs=1):
    """A run on a folder or list."""
    found = scanning.split(scanning.scan(source), "0.5", 0)
    places = model_spec.parse_nl("res4:1", {"res2": 2, "res3": 2, "res4": 2, "res5": 2})
    torch.manual_seed(0)
    net = model.set_head(
        model.build(model_spec.ModelSpec("tiny", non_local=places, clip=view_spec.ClipSpec(4, None, 32))),
        found.classes,
        found.multi_label,
    )
    options = FinetuneOptions(epochs=epochs, batch=3, lr=1e-3, val="0.5")
    config, decisions = plan.plan(found, str(source), "weights/x", options, Engine(CPU))
    train.train(net, found, dataclasses.replace(config, workers=0), run, decisions=decisions)
    events = run_folder.read_events(run)
    events[0]["grouped_by"] = {"code": "field", "field": 7}
    events[-1]["time"] = "2026-01-02 03:04:05"
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory):
    return trained(clips[0].parent.parent, tmp_path_factory.mktemp("runs") / "plain-1", 2)


@pytest.fixture(scope="module")
def facts(run):
    return report.gather(run, CPU)


@pytest.fixture(scope="module")
def page(facts):
    return report.page(facts)


@pytest.fixture(scope="module")
def several(clips, tmp_path_factory):
    """Of a run whose videos have no, one or two labels."""
    rows = [f"{f},{f.parent.name}{';even' if n % 2 else ';'}" for n, f in enumerate(clips)]
    rows[0] = f"{clips[0]},"
    folder = tmp_path_factory.mktemp("several")
    (folder / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return report.gather(trained(folder / "list.csv", folder / "run"), CPU)


@pytest.fixture(scope="module")
def several_page(several):
    return report.page(several)


@pytest.fixture(scope="module")
def hostile(clips, tmp_path_factory):
    """Of a run whose classes and files have names that would break out of a page, if any could."""
    folder = tmp_path_factory.mktemp("hostile")
    items = []
    for n, clip in enumerate(clips):
        name = f"{n}{FILE}"
        shutil.copy(clip, os.path.join(folder, name))
        items.append(listing.Item(name, (HOSTILE[n // 4],), f"g{n % 4}"))
    listing.write(items, folder / "list.csv")
    (folder / ".bad").mkdir()
    run = trained(folder / "list.csv", folder / "r & <b>un")
    with open(run / "skipped.csv", "a", encoding="utf-8") as opened:
        opened.write('"<b>lost</b>.mp4","""bad"" & <i>broken</i>"\n')
    facts = report.gather(run, CPU)
    foreign = dataclasses.replace(facts.spec, source=HOSTILE[0], licence=HOSTILE[1])
    return dataclasses.replace(facts, spec=foreign, environment={HOSTILE[0]: HOSTILE[1], "command": list(HOSTILE)})


@pytest.fixture(scope="module")
def hostile_page(hostile):
    return report.page(hostile)


class Parsed(HTMLParser):
    """What is on a page: elements in order, text, tables by their caption's id. Each element must be closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.shape, self.tables, self.text = [], [], [], {}, ""
        self.feed(page)
        self.close()
        assert not self.open and not self.rawdata
        self.text = re.sub("[ \n]+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        self.shape.append((tag, sorted(name for name, _ in attrs)))
        if tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.shape.append(f"/{tag}")
        if tag == "table":
            self.tables[next(a["id"] for t, a in reversed(self.elements) if t == "caption")] = self.rows

    def handle_data(self, text):
        if "style" not in self.open:
            self.text += text
            if self.open and self.open[-1] in ("th", "td") or "span" in self.open and "thead" in self.open:
                self.rows[-1][-1] += text

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def percent(share):
    return "–" if share is None else f"{share * 100:.1f}\u00a0%"


def figures_on(page, summary, chance):
    """Asserts that a page of one label a video shows what `metrics.full` told."""
    seen, total, classes = Parsed(page), summary["videos"], [row["class"] for row in summary["per_class"]]
    assert (
        percent(summary["top1"]) in seen.text
        and f"{round(summary['top1'] * total)} of {total} validation videos" in seen.text
    )
    for share in (
        chance,
        *(summary[key] for key in ("mean_class", "macro_f1", "ece", *(["top5"] if len(classes) > 5 else []))),
    ):
        assert percent(share) in seen.text
    assert (
        f"{summary['loss']:.3f}" in seen.text
        and f"{total - np.trace(summary['confusion'])} videos of {total} were misclassified" in seen.text
    )
    ends = [f"{percent(bounds[0])} to {percent(bounds[1])}" for bounds in summary["intervals"].values() if bounds]
    assert all(words in seen.text for words in ends) and ("too few for a 95 % interval" in seen.text) == (not ends)
    assert seen.tables["class-figures"][1:] == [
        [r["class"], str(r["videos"]), *(percent(r[k]) for k in ("precision", "recall", "f1"))]
        for r in summary["per_class"]
    ]
    assert [row[1:] for row in seen.tables["confusion-table"][1:]] == [
        list(map(str, row)) for row in summary["confusion"]
    ]
    assert [row[0] for row in seen.tables["confusion-table"]][1:] == seen.tables["confusion-table"][0][1:] == classes
    assert seen.tables["calibration-bins"][1:] == [
        [percent(b["confidence"]), percent(b["accuracy"]), str(b["videos"])] for b in summary["calibration"]
    ]
    return seen


def test_every_figure_is_that_of_the_metrics(run, facts, page):
    net = checkpoint.load_model(run / "best")
    held = loader.Clips(
        run, tuple(i for i in scanning.scan(run / "videos.csv").items if i.split == listing.VAL), net.spec.clip
    )
    said = evaluate.predictions(net, held, CPU)
    seen = figures_on(page, metrics.full(said.scores, said.items, net.spec.classes, False), 1 / 3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row[:4] for row in seen.tables["epochs"][1:]] == [
        [str(e["epoch"]), f"{e['train_loss']:.3f}", f"{e['loss']:.3f}", percent(e["top1"])] for e in lines
    ]
    losses = -np.log(said.scores[range(6), [net.spec.classes.index(i.labels[0]) for i in said.items]])
    assert (facts.best[0].path, facts.worst[0].path) == tuple(
        said.items[k].path for k in (losses.argmin(), losses.argmax())
    )
    assert (facts.worst[0].frames == held.read(-1, int(losses.argmax()))[0].numpy()).all()
    top, share = facts.worst[0].scores[0]
    assert share == said.scores[losses.argmax()].max() and facts.worst[0].correct == (
        (top,) == said.items[losses.argmax()].labels
    )
    assert facts.explanations[0][1].prediction == facts.best[0].scores[0][0] and facts.explanations[0][
        1
    ].score == pytest.approx(facts.best[0].scores[0][1], abs=1e-6)


def test_figures_of_random_answers(facts, seed):
    rng = np.random.default_rng(seed)
    classes = tuple("abcdefgh")
    items = [listing.Item(f"{n}.mp4", (classes[n % 7],), str(n // 7)) for n in range(140)]  # h has none
    scores = rng.dirichlet(np.ones(8), 140) + 0.3 * metrics.targets(items, classes)
    summary = metrics.full(scores / scores.sum(1, keepdims=True), items, classes, False)
    known = dataclasses.replace(facts.spec, classes=classes, num_outputs=8)
    seen = figures_on(
        report.page(dataclasses.replace(facts, spec=known, figures=summary, chance=0.1234, explanations=())),
        summary,
        0.1234,
    )
    assert summary["intervals"]["top1"][0] > 0.1234 and "All of it lies above the majority-class baseline" in seen.text
    ends = summary["intervals"]["top1"]
    assert ends == metrics.interval(scores / scores.sum(1, keepdims=True), items, classes, False)
    text = card.body(known, {"top1": summary["top1"], "val": 140, "groups": 20, "interval": ends})
    assert (
        f"95 % interval of top-1 is {100 * ends[0]:.1f} % to {100 * ends[1]:.1f} %" in text
    )  # one figure, one interval
    assert f"of videos, is {percent(ends[0])} to {percent(ends[1])}." in seen.text
    assert "the difference may be chance" in report.page(
        dataclasses.replace(facts, spec=known, figures=summary, chance=summary["top1"], explanations=())
    )


def test_the_page_has_all_parts(run, facts, page):
    seen = Parsed(page)
    links = [a["href"][1:] for a in seen.all("a")]
    parts = "main result clips evidence confusion classes calibration training data recipe network usage environment"
    assert links == parts.split()
    assert (
        len([a for a in seen.all("img") if a["alt"].startswith("Frames of")]) == len(facts.best) + len(facts.worst) == 6
    )
    assert len([a for a in seen.all("img") if a["alt"].startswith("Heat over")]) == 2
    assert any(a["alt"].startswith("Arrows over") for a in seen.all("img"))
    assert seen.tables["split"][1:] == [[c, "2", "2", "2", "2"] for c in facts.spec.classes]
    assert (
        "train: 6 videos of 2 groups" in seen.text
        and "validation: 6 videos of 2 groups" in seen.text
        and "No group is in both" in seen.text
    )
    assert "Grouped by the 7th field of the file name." in seen.text and "trained 2026-01-02" in seen.text
    assert (
        "under 50,000" in seen.text
        and ["train", "3"] not in seen.tables["settings"]
        and ["batch", "3"] in seen.tables["settings"]
    )
    described = describe.describe(checkpoint.load_model(run / "best"))
    assert (
        f"{described['params'] / 1e6:.2f} million" in seen.text
        and f"{described['macs'] / 1e9:.2f} billion" in seen.text
    )
    assert f'nlzoo.load("{run}/best")' in seen.text and torch.__version__ in seen.text
    assert len(page.encode()) < 1.5e6
    assert charts.curves({"x": [0.5]}, 1) == charts.curves({"x": [0.5]}, 1)  # the same bytes each time


def test_a_page_of_several_labels(several, several_page):
    seen, summary = Parsed(several_page), several.figures
    keys = ("average_precision", "precision", "recall", "f1")
    assert several.spec.multi_label and percent(summary["map"]) in seen.text and percent(several.chance) in seen.text
    assert "mAP" in seen.tables["epochs"][0]
    assert seen.tables["class-figures"][1:] == [
        [r["class"], str(r["videos"]), *(percent(r[k]) for k in keys)] for r in summary["per_class"]
    ]
    assert not {"confusion", "calibration"} & {a.get("id") for _, a in seen.elements}


def test_four_hundred_classes(facts, seed):
    rng = np.random.default_rng(seed)
    classes = tuple(f"class {k:03}" for k in range(400))
    items = tuple(listing.Item(f"{n}.mp4", (classes[n % 400],), str(n % 4), listing.VAL) for n in range(1200))
    scores = rng.dirichlet(np.ones(400), 1200)
    known = dataclasses.replace(facts.spec, classes=classes, num_outputs=400)
    figures = metrics.full(scores, items, classes, False)
    many = dataclasses.replace(facts, spec=known, items=(*facts.items, *items), figures=figures, explanations=())
    page = report.page(many)
    seen = Parsed(page)
    wrong = {}
    for n, k in enumerate(scores.argmax(1)):
        if n % 400 != k:
            wrong[n % 400, k] = wrong.get((n % 400, k), 0) + 1
    counts = [int(row[2]) for row in seen.tables["confusions"][1:]]
    assert counts == sorted(wrong.values(), reverse=True)[:20] and "confusion-table" not in seen.tables
    for row in seen.tables["confusions"][1:]:
        assert wrong[classes.index(row[0]), classes.index(row[1])] == int(row[2])
    assert len(seen.tables["class-figures"]) == 401 and len(seen.tables["hardest-classes"]) == 21
    assert (
        len(seen.all("details"))
        == len(Parsed(report.page(dataclasses.replace(facts, explanations=()))).all("details")) + 2
    )
    assert len(page.encode()) < 1.5e6


def checked(page):
    """A page that is well formed, names nothing outside itself, and can be read without seeing it."""
    seen = Parsed(page)
    ids = [a["id"] for _, a in seen.elements if "id" in a]
    assert len(ids) == len(set(ids)) > 12
    for _, attrs in seen.elements:
        for name in ("aria-labelledby",) if "aria-labelledby" in attrs else ():
            assert attrs[name] in ids
        assert not [name for name in attrs if name.startswith("on")]
        assert all(
            attrs[name].startswith(("data:image/", "#"))
            for name in ("src", "href", "srcset", "action", "data")
            if name in attrs
        )
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & {tag for tag, _ in seen.elements}
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:image/[a-z+]+;base64,[\w+/=]*", "", page))
    assert seen.all("html")[0]["lang"] and len(seen.all("h1")) == len(seen.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    assert all(a["alt"].strip() for a in seen.all("img")) and all("scope" in a for a in seen.all("th"))
    assert len(seen.all("table")) == len(seen.all("caption")) == len(seen.tables)
    (policy,) = [a["content"] for a in seen.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return seen


def test_pages_are_well_formed_and_lonely(page, several_page, hostile_page):
    for text in (page, several_page, hostile_page):
        checked(text)


def renamed(value, names):
    """The same facts with other names in every text."""
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
        return value
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{f.name: renamed(getattr(value, f.name), names) for f in dataclasses.fields(value)}
        )
    if isinstance(value, dict):
        return {renamed(k, names): renamed(v, names) for k, v in value.items()}
    return type(value)(renamed(v, names) for v in value) if type(value) in (tuple, list) else value


def test_no_name_makes_an_element(hostile, hostile_page):
    seen = Parsed(hostile_page)
    for name in (*HOSTILE, FILE, Path(hostile.run).name, "<b>lost</b>.mp4", '"bad" & <i>broken</i>'):
        assert printable(name) in seen.text
    names = {
        **dict(zip(HOSTILE, HARMLESS)),
        **{printable(old): new for old, new in zip(HOSTILE, HARMLESS)},
        FILE: ".mp4",
        printable(FILE): ".mp4",
        "r & <b>un": "run",
        "<b>lost</b>": "lost",
        '"bad" & <i>broken</i>': "broken",
    }
    assert Parsed(report.page(renamed(hostile, names))).shape == seen.shape
    assert (
        not any(c in hostile_page for c in "\x1b\u202e\udcff")
        and "<script" not in hostile_page
        and "<b>" not in hostile_page
    )


def test_an_unfinished_run_says_so_and_what_is_missing_is_told(run, tmp_path, monkeypatch):
    def copy(*without):
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        shutil.copytree(run, tmp_path / "r", ignore=shutil.ignore_patterns("checkpoints", "last"))
        for name in without:
            (shutil.rmtree if (tmp_path / "r" / name).is_dir() else os.remove)(tmp_path / "r" / name)
        return tmp_path / "r"

    half = copy("result.json", "events.jsonl", "skipped.csv", "environment.json")
    settings = json.loads((half / "config.json").read_text())
    assert settings.pop("decisions")  # as runs of before have it
    (half / "config.json").write_text(json.dumps(settings))
    with open(half / "metrics.jsonl", "a") as opened:
        opened.write('{"epoch": 3, "train_l')
    written = report.write(half, CPU)
    seen = checked(written.read_text(encoding="utf-8"))
    assert (
        written == half / "report.html"
        and "This run has not finished: 2 of 2 epochs" in seen.text
        and "The reasons for these settings were not recorded." in seen.text
        and "nlzoo run r A video classifier" in seen.text  # of no known day
    )
    for missing, kind in (
        ("config.json", UsageError),
        ("metrics.jsonl", UsageError),
        ("best", WeightsError),
        ("videos.csv", VideoError),
    ):
        with pytest.raises(kind) as caught:
            report.gather(copy(missing), CPU)
        assert caught.value.hint and "\n" not in caught.value.message
    for line, words in (
        ('{"code": "started", "grouped_by": {"code": "moon"}}', "a rule that this version does not know"),
        ('{"grouped_by": 3}', "Grouped by the column group"),
    ):
        other = copy()
        (other / "events.jsonl").write_text(line + "\n")
        assert words in checked(report.write(other, CPU).read_text(encoding="utf-8")).text
    (copy() / "events.jsonl").write_text("[1]\n")
    with pytest.raises(WeightsError, match="events.jsonl could not be read"):
        report.gather(tmp_path / "r", CPU)
    (copy() / "report.html").unlink(missing_ok=True)
    (tmp_path / "r" / "report.html").mkdir()
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="report.html could not be written"):
        patch.setattr(report, "gather", None)  # said before the videos are read
        report.write(tmp_path / "r", CPU)
    (copy() / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(WeightsError, match="metrics.jsonl"):
        report.gather(tmp_path / "r", CPU)


def test_a_linear_probe_has_no_epochs_and_no_recipe(facts, page):
    seen = checked(report.page(dataclasses.replace(facts, probe_c=0.25)))
    assert "This run is a linear probe" in seen.text and "(C = 0.25)" in seen.text
    assert not {"training", "recipe"} & {a["href"][1:] for a in seen.all("a")} and "epochs" not in seen.tables
    assert "The best epoch was chosen" in Parsed(page).text and "The best epoch was chosen" not in seen.text


def test_a_video_that_is_gone_is_told_and_all_gone_is_refused(run, clips, tmp_path):
    rows = (run / "videos.csv").read_text()
    moved = shutil.copytree(clips[0].parent.parent, tmp_path / "videos")
    shutil.copytree(run, tmp_path / "r", ignore=shutil.ignore_patterns("checkpoints", "last"))
    (tmp_path / "r" / "videos.csv").write_text(rows.replace(str(clips[0].parent.parent), str(moved)))
    lost = next(i.path for i in scanning.scan(tmp_path / "r" / "videos.csv").items if i.split == listing.VAL)
    os.remove(lost)
    facts = report.gather(tmp_path / "r", CPU)
    assert facts.figures["videos"] == 5 and [skipped.path for skipped in facts.gone] == [lost]
    assert Parsed(report.page(dataclasses.replace(facts, explanations=()))).tables["gone"][1][0] == lost
    shutil.rmtree(moved)
    with pytest.raises(NlzooError, match="none is there"):
        report.gather(tmp_path / "r", CPU)


CONTROL = """<!doctype html><body><div style="width: 3000px">wide</div><p style="color: #999">faint
<div style="overflow-x: auto"><img width="2000" src="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'
width='9' height='9'><rect width='9' height='9' fill='white'/></svg>"></div><script>console.log('control')</script>"""
LOOK = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1)
  return [...canvas.getImageData(0, 0, 1, 1).data]
}
function light([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  return 0.2126 * x + 0.7152 * y + 0.0722 * z
}
function contrast(one, other) {
  const [a, b] = [light(one), light(other)].sort((x, y) => y - x)
  return (a + 0.05) / (b + 0.05)
}
function ground(element, view) {
  for (; element; element = element.parentElement) {
    const colour = rgba(view.getComputedStyle(element).backgroundColor)
    if (colour[3] == 255) return colour
  }
  return [255, 255, 255]
}
function glare(picture, view) {  // the share of it that is white, as it lies on the page
  canvas.fillStyle = `rgb(${ground(picture, view).slice(0, 3)})`
  canvas.fillRect(0, 0, 64, 64)
  canvas.drawImage(picture, 0, 0, 64, 64)
  const data = canvas.getImageData(0, 0, 64, 64).data
  let white = 0
  for (let i = 0; i < data.length; i += 4) white += Math.min(data[i], data[i + 1], data[i + 2]) > 235
  return white / 4096
}
function cut(picture) {  // whether one has to scroll sideways to see all of it
  for (let box = picture.parentElement; box; box = box.parentElement) if (box.scrollWidth > box.clientWidth) return true
  return false
}
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement
  page.querySelectorAll('details').forEach(it => it.open = true)
  const all = [...page.body.querySelectorAll('*')], pictures = [...page.images].filter(it => it.checkVisibility())
  const own = all.filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
  const faint = own.map(e => contrast(rgba(view.getComputedStyle(e).color), ground(e, view)))
  const stuck = all.filter(e => e.scrollWidth > e.clientWidth && view.getComputedStyle(e).overflowX == 'auto'
    && e.tabIndex < 0)
  const blank = pictures.filter(i => !(i.complete && i.naturalWidth > 1 && i.getBoundingClientRect().width > 20))
  const drawn = pictures.filter(it => !it.alt.startsWith('Frames of'))
  return {over: root.scrollWidth - root.clientWidth, ground: rgba(view.getComputedStyle(root).backgroundColor),
    texts: own.length, least: Math.min(...faint), stuck: stuck.length, pictures: pictures.length, blank: blank.length,
    cut: pictures.filter(cut).length, glare: Math.max(...drawn.map(it => glare(it, view)))}
}
onload = () => {
  document.getElementById('out').textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(look))
}
"""


def test_it_renders_in_chromium(page, hostile_page, tmp_path):
    """No message, nothing wider than its window, contrast of 4.5, no white picture on dark; a control fails at each."""
    if not (browser := shutil.which("chromium")):
        assert not os.environ.get("CI"), "CI must run the browser test: apt-get install chromium"
        pytest.skip("there is no chromium here")
    pages = {"plain": page, "hostile": hostile_page, "control": CONTROL}
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
    sizes = [(width, scheme) for width in (320, 1400) for scheme in ("light", "dark")]
    looks = [(name, *size) for name in ("plain", "hostile") for size in sizes] + [("control", 320, "light")]
    frames = "".join(
        f'<iframe src="{name}.html" style="width: {width}px; height: 900px; border: 0; color-scheme: {scheme}">'
        "</iframe>"
        for name, width, scheme in looks
    )
    (tmp_path / "all.html").write_text(
        f"<!doctype html><meta charset=utf-8>{frames}<pre id=out></pre><script>{LOOK}</script>"
    )
    quiet = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    ).split()
    done = subprocess.run(
        [
            browser,
            "--headless",
            *quiet,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1300,1900",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            f"--screenshot={tmp_path / 'shot.png'}",
            "--dump-dom",
            (tmp_path / "all.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    *ours, control = json.loads(re.search(r'<pre id="out">(.*?)</pre>', done.stdout)[1])
    for (name, width, scheme), it in zip(looks, ours):
        assert it["over"] <= 0 and it["stuck"] == 0 and it["blank"] == 0, (name, width, it)
        assert it["least"] >= 4.5 and it["texts"] > 100 and it["pictures"] > 8, (name, scheme, it)
        assert it["cut"] == 0, (name, width, it)
        assert (sum(it["ground"][:3]) > 384) == (scheme == "light") == (it["glare"] > 0.2), (name, scheme, it)
    assert control["over"] > 1000 and control["least"] < 4.5 and control["cut"] == 1 and control["glare"] == 1
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(said) == 1 and "control" in said[0]
    from matplotlib.image import imread

    shot = imread(tmp_path / "shot.png")
    assert shot.shape[:2] == (1900, 1300) and len(np.unique(shot.reshape(len(shot) * shot.shape[1], -1), axis=0)) > 100
