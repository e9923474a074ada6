"""The page of `nlzoo serve` over plain HTTP: the app of a Space as `push --space` writes it, with small limits.

One server for all tests of a process; how it ends is tested when the last of them has ended.
"""

import asyncio
import base64
import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

from nlzoo.apps import door, draw, explain, hub_card, pictures, predict, serve
from nlzoo.core.errors import UsageError
from nlzoo.core.model_spec import Inflation, ModelSpec, NonLocal
from nlzoo.core.text import printable
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import checkpoint, model, zoo
from nlzoo.networks.hub_client import Repo
from nlzoo.videos import video

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
NAME = "</title></script><script>boo()</script> & *me*"
CLASSES = (
    "<img src=x onerror=boo()>",
    "a&amp;\"b'",
    "\x1b[31mred\n[bold]",
    "{{value}} ${boo()} $x$",
    "\u202eevil",
    "🙂 wave",
    "plain",
)
MOST_SECONDS, MOST_BYTES = 3.0, 200_000


class Page:
    """A server, and what a browser would ask it."""

    def __init__(self, folder):
        self.folder, self.temp = folder, folder / "tmp"
        self.temp.mkdir()
        self.log = folder / "log"
        text = hub_card.space(Repo("alice/net"), zoo.read_spec(folder / "alice/net"))["app.py"]
        end = 'host="0.0.0.0", port=7860, name="alice/net"'
        assert end in text
        text = text.replace(end, f"name={NAME!r}, most_seconds={MOST_SECONDS}, most_bytes={MOST_BYTES}")
        nobody = dict.fromkeys(
            ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"
        )  # it must find itself past a proxy
        env = os.environ | nobody | {"TMPDIR": str(self.temp), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", text],
            cwd=folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=open(self.log, "w"),
        )
        self.url = self.process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", self.url), self.log.read_text()[-3000:]

    def request(self, path="", body=None, **headers):
        """`(status, body)`."""
        asked = urllib.request.Request(self.url + path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def send(self, content, name="clip.mp4"):
        """Uploads a file: `(status, its path there, or what was said)`."""
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + f"\r\n--{edge}--\r\n".encode()
        status, said = self.request("gradio_api/upload", body, Content_Type=f"multipart/form-data; boundary={edge}")
        return status, json.loads(said)[0] if status == 200 else said.decode()

    def question(self, data, route="gradio_api/call/answer", **more):
        """Asks for an answer: `(status, what was said)`."""
        body = json.dumps({"data": data, **more}).encode()
        status, said = self.request(route, body, Content_Type="application/json")
        return status, json.loads(said)

    def begin(self, path, name="clip.mp4", **more):
        status, said = self.question([{"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}], **more)
        assert status == 200, said
        return said["event_id"]

    def ask(self, path, name="clip.mp4", **more):
        """The parts of the answer about a file that was sent: `[(event, data), …]`."""
        _, said = self.request(f"gradio_api/call/answer/{self.begin(path, name, **more)}")
        return [(event, json.loads(data)) for event, data in re.findall(r"event: (\w+)\ndata: (.*)\n", said.decode())]

    def refused(self, path):
        """The sentence that a person gets."""
        event, data = self.ask(path)[-1]
        assert event == "error", data
        return html.unescape(data["error"])

    def left(self):
        """Files of people that are there now."""
        folders = [walked for sent in self.temp.glob("nlzoo-serve-*/sent") for walked in os.walk(sent)]
        return [Path(folder, name) for folder, _, names in folders for name in names]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    spec = ModelSpec(
        "tiny",
        non_local=(NonLocal("res4", (0,)),),
        clip=ClipSpec(frames=4, size=32),
        classes=CLASSES,
        num_outputs=len(CLASSES),
    )
    net = model.build(spec)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    checkpoint.save_model(folder / "alice" / "net", net)
    served = Page(folder)
    yield served
    if served.process.poll() is None:
        _ends_cleanly(served)


def _ends_cleanly(served):
    """A SIGTERM while a video lies there and another is answered: exit code 0, nobody listens, nothing is left."""
    served.send(b"never asked about")
    served.begin(served.send(clip(served.folder, frames=24).read_bytes())[1])
    assert served.left() and list(served.temp.glob("nlzoo-serve-*"))
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0, served.log.read_text()[-3000:]
    assert not list(served.temp.iterdir())
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(served.url.rstrip("/").rpartition(":")[2])), 1)


@pytest.fixture
def videos(page, tmp_path, seed):
    return lambda **how: clip(tmp_path, seed=seed, **how)


def clip(folder, frames=12, seed=0):
    """A drawn clip of 12 frames a second."""
    return draw.write_videos(folder / f"{uuid.uuid4().hex}", ("rise",), 1, seed, frames, (32, 48))[0]


def test_an_answer_is_what_predict_and_explain_say(page, videos, tmp_path):
    file = videos(frames=30)
    _, there = page.send(file.read_bytes())
    parts = page.ask(there)
    assert [event for event, _ in parts] == ["generating"] * (len(parts) - 1) + ["complete"] and len(parts) > 3
    drop, whole, times, overlay, results = next(data for _, data in reversed(parts) if "value" in data[1])
    assert results["visible"] is True
    net = checkpoint.load_model(page.folder / "alice" / "net")
    (row,) = predict.predict(net, [file], device=CPU)
    expected = {printable(name): score for name, score in list(row["scores"].items())[: serve.TOP]}
    assert {c["label"]: c["confidence"] for c in whole["value"]["confidences"]} == pytest.approx(expected, abs=1e-6)
    assert whole["value"]["label"] == next(iter(expected))
    windows = predict.windows(net, file, CPU, predict.Windows(serve.SHORTEST))["windows"]
    assert len(windows) > 2 and len(times["value"]["data"]) == len(windows) * serve.TOP
    scores = {((w["start"] + w["end"]) / 2, printable(c)): p for w in windows for c, p in w["scores"].items()}
    for at, p, name in times["value"]["data"]:
        assert p == pytest.approx(scores[at, name], abs=1e-6)
    pictures.write(explain.explain(net, file, CPU), tmp_path)
    (encoded,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', overlay)
    (tmp_path / "answered.mp4").write_bytes(base64.b64decode(encoded))
    answered, expected = (
        video.read_frames(tmp_path / name, range(4)).astype(float) for name in ("answered.mp4", "evidence.mp4")
    )
    assert (
        abs(answered - expected).mean() < 1 < abs(answered[0] - expected[3]).mean()
    )  # libx264 does not give the same bits twice
    assert page.left() == []


def test_one_window_gives_level_lines(page, videos):
    _, there = page.send(videos(frames=4).read_bytes())
    data = next(data for _, data in reversed(page.ask(there)) if "value" in data[1])[2]["value"]["data"]
    assert (
        len(data) == 2 * serve.TOP
        and len({at for at, _, _ in data}) == 2
        and len({(p, name) for _, p, name in data}) == serve.TOP
    )


def test_names_are_plain_text(page, videos):
    sent = "<b>x</b>\x1b[31m\n&amp;.mp4"
    _, there = page.send(videos().read_bytes(), "<script>x.mp4")
    _, whole, times, overlay, _ = next(data for _, data in reversed(page.ask(there, sent)) if "value" in data[1])
    assert whole["label"] == f"Whole video: {printable(sent)}"
    known = {printable(name) for name in CLASSES}
    assert {c["label"] for c in whole["value"]["confidences"]} <= known and {
        row[2] for row in times["value"]["data"]
    } <= known
    assert not any(ord(c) < 32 or c == "\u202e" for c in json.dumps([whole, times, overlay], ensure_ascii=False))
    assert not any(name in overlay for name in known)
    status, text = page.request()
    assert status == 200 and b"boo()" in text and b"<script>boo" not in text and b"</title></script>" not in text


def test_what_cannot_be_answered_is_a_sentence(page, videos, tmp_path):
    cases = {
        b"": "is empty",
        b"x" * 5000: "is not a video",
        videos().read_bytes()[:600]: "cannot be read",
        videos(frames=int(12 * MOST_SECONDS) + 2).read_bytes(): f"at most {MOST_SECONDS:g} s",
    }
    before = page.log.stat().st_size
    for content, words in cases.items():
        status, there = page.send(content, "<b>a&b.mp4")
        assert status == 200
        said = page.refused(there)
        assert words in said and said.startswith(Path(there).name) and str(page.temp) not in said
    status, said = page.send(b"x" * (MOST_BYTES + 1))
    assert status == 413 and "exceeded" in said
    assert page.left() == [] and page.log.stat().st_size == before  # and no traceback


def test_nothing_but_what_was_sent_can_be_had(page, videos, tmp_path):
    outside = videos()
    _, there = page.send(outside.read_bytes())
    for place in (there, str(outside), "/etc/hostname", "http://127.0.0.1:1/x"):
        for route in (
            "gradio_api/file=",
            "gradio_api/file/",
            "gradio_api/proxy=",
            "file=",
            "assets/",
            "assets/../../",
            "static/..%2f..%2f",
        ):
            status, said = page.request(route + urllib.request.quote(place))
            assert status in (403, 404), (route, place, status)
    for path in (
        "docs",
        "openapi.json",
        "monitoring",
        *(f"gradio_api/{name}" for name in ("run/answer", "runs", "process_recording", "vibe-code/")),
    ):
        assert page.request(path)[0] == 404, path
    page.ask(there)
    assert page.left() == []


ELSEWHERE = "http://127.0.0.1:{port}/x.mp4"


def refused_questions(sent, outside, elsewhere):
    """What a client may send for an answer that is no video which was sent here."""
    meta = {"_type": "gradio.FileData"}
    for path in (
        elsewhere,
        str(outside),
        f"{sent}/../../../../../{outside}",
        "",
        "/etc/hostname",
        None,
        7,
        [],
        sent[:-1],
    ):
        for more in ({}, {"meta": None}, {"is_stream": True}, {"url": elsewhere}, {"url": f"file://{outside}"}):
            yield [{"path": path, "orig_name": "x.mp4", "meta": meta, **more}]
    own = {"path": sent, "orig_name": "x.mp4", "meta": meta}
    yield from (
        [],
        {},
        None,
        "x",
        [None],
        [elsewhere],
        [[own]],
        [own, own],
        [{"url": elsewhere, "meta": meta}],
        [{**own, "orig_name": []}],
    )


def test_no_request_of_any_session_makes_it_fetch_or_read_anything_else(page, videos):
    """gradio rebuilds a component for a session once it was answered: so in a new session and in one with an answer."""
    outside = videos()
    _, sent = page.send(outside.read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.3)
        address = ELSEWHERE.format(port=elsewhere.getsockname()[1])
        questions = list(refused_questions(sent, outside, address))
        assert len(questions) == 55
        for turn in range(2):
            for data in questions:
                for route, more in (("call/answer", {}), ("queue/join", {"session_hash": "s", "fn_index": 0})):
                    status, said = page.question(data, f"gradio_api/{route}", **more)
                    assert (status, said["detail"]) == (403, "this is not a video that was sent here"), (turn, data)
            assert page.ask(sent)[-1] == ("complete", ANY)  # an answer in between
            _, other = page.send(videos().read_bytes() + b"%d" % turn)
            own = {"path": other, "url": address, "meta": {"_type": "gradio.FileData"}}
            status, said = page.question([own], "gradio_api/queue/join", session_hash="s", fn_index=0)
            assert status == 200, said  # the file is its own; the address beside it is left out
            _, sent = page.send(outside.read_bytes())
        for body in (b"", b"[", b"\xff", b"x" * 20_000, b"[" * 10_000, json.dumps([1]).encode()):
            assert page.request("gradio_api/call/answer", body, Content_Type="application/json")[0] == 403
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert outside.exists()
    page.ask(sent)
    assert _settled(page, 0)


def test_only_its_own_page_may_ask(page):
    port = int(page.url.rstrip("/").rpartition(":")[2])
    own = [{}, {"Host": f"localhost:{port}"}, {"Origin": page.url.rstrip("/")}, {"Origin": f"http://localhost:{port}"}]
    own += [{"Host": "localhost:9", "Origin": "http://localhost:9"}]  # through a tunnel
    others = [
        {"Host": "example.org"},
        {"Host": f"127.0.0.1.example.org:{port}"},
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Origin": "http://localhost"},
        {"Origin": f"http://localhost:{port}.example.org"},
        {"Origin": ""},
    ]
    assert [page.request("config", **headers)[0] for headers in own] == [200] * len(own)
    assert [page.request("config", **headers)[0] for headers in others] == [404] * len(others)


def test_what_lies_here_is_bounded(page):
    """Many at once, many files in one request, and much in all."""
    _clear(page)
    statuses = [page.send(b"x%d" % number)[0] for number in range(door.MOST_FILES + 3)]
    assert statuses == [200] * door.MOST_FILES + [503] * 3 and len(page.left()) == door.MOST_FILES
    _clear(page)
    edge = "edge"
    part = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{{}}.mp4"\r\n\r\n{{}}\r\n'
    body = "".join(part.format(n, n) for n in range(100)) + f"--{edge}--\r\n"
    status, _ = page.request("gradio_api/upload", body.encode(), Content_Type=f"multipart/form-data; boundary={edge}")
    assert status == 200 and _settled(page, door.MOST_FILES)
    _clear(page)
    large = [page.send(os.urandom(MOST_BYTES - 100))[0] for _ in range(door.MOST_TOTAL + 2)]
    assert large == [200] * door.MOST_TOTAL + [503] * 2
    _clear(page)
    assert (
        page.request("gradio_api/upload", b"x" * (2 * MOST_BYTES), Content_Type="multipart/form-data; boundary=x")[0]
        == 413
    )


def _clear(page):
    for file in page.left():
        file.unlink(missing_ok=True)


def _settled(page, number):
    """Whether so many files lie there, within some seconds."""
    until = time.monotonic() + 20
    while len(page.left()) != number and time.monotonic() < until:
        time.sleep(0.05)
    return len(page.left()) == number


def test_an_empty_page_shows_its_classes_and_no_empty_charts(page):
    status, config = page.request("config")
    parts = {part["type"]: part["props"] for part in json.loads(config)["components"]}
    assert status == 200 and parts["column"]["visible"] is False
    assert "7 classes: " in parts["markdown"]["value"] and parts["markdown"]["value"].endswith("🙂 wave · plain")
    assert parts["html"]["visible"] is True


def test_there_is_no_box_for_evidence_where_there_is_none():
    """Its caption spoke of frames and evidence under nothing."""
    import gradio

    spec = ModelSpec("test_vit", Inflation("frames"), clip=ClipSpec(frames=4, size=32))
    config = serve._page(gradio, lambda video: None, NAME, spec, "").get_config_file()
    assert [part["props"]["visible"] for part in config["components"] if part["type"] == "html"] == [False]


def test_a_page_for_the_network_has_the_same_door():
    """Of another host: its own name at its own port, and a Space's name where a proxy hides it."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])

    async def send(message):
        pass

    def passes(**headers):
        seen.clear()
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "GET", "path": "/config", "headers": raw}
        asyncio.run(door.Door(app, Path("/nowhere"), 1000, False)(scope, None, send))
        return seen == ["/config"]

    assert passes(host="box:7860") and passes(host="box:7860", origin="http://box:7860")
    assert not passes(host="box:7860", origin="http://box:7861")
    assert not passes(host="box:7860", origin="https://example.org") and not passes(host="box:7860", origin="null")


def test_it_listens_on_loopback_alone(page):
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc")
    fds = Path(f"/proc/{page.process.pid}/fd")
    own = {os.readlink(fd) for fd in fds.iterdir() if fd.is_symlink()}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]
    assert listening == [f"0100007F:{int(page.url.rstrip('/').rpartition(':')[2]):04X}"]


def test_a_video_goes_though_nobody_waits_for_its_answer(page, videos):
    page.begin(page.send(videos().read_bytes())[1])
    assert _settled(page, 0)


def test_an_address_that_is_taken_and_a_missing_gradio(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.listen()
        with pytest.raises(UsageError, match="cannot be listened on"):
            serve.serve(None, CPU, port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match="gradio, which is not installed") as caught:
        serve.serve(None, CPU)
    assert "pip install 'nlzoo[serve]'" in caught.value.hint
