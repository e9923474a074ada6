"""The list of pretrained models, and fetching one from a server on loopback that cuts, lies and refuses."""

import hashlib
import http.server
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nlzoo.core import files
from nlzoo.core.errors import UsageError, WeightsError
from nlzoo.networks import pretrained
from nlzoo.networks.model import import_timm


def test_the_list_is_sound():
    listed = pretrained.known()
    assert len({s.name for s in listed}) == len(listed) >= 20
    for s in listed:
        assert s.net is not None and s.zoo and s.url.startswith("https://") and s.licence and s.by, s.name
        assert s.top1 is None or 60 < s.top1 < 80
        assert s.top5 is None or s.top1 < s.top5 < 95
        assert not s.hash or s.hash.partition(":")[0] in ("sha256", "sha1")
    assert {s.licence for s in listed if s.zoo == "authors"} == {"cc-by-nc-4.0"}


def test_backbones_are_timms_or_have_a_hash():
    timm = import_timm()
    assert [b.name for b in pretrained.backbones() if b.hash] == ["googlenet.tv_in1k"]
    for b in (b for b in pretrained.backbones() if not b.hash):
        own = timm.get_pretrained_cfg(b.name)
        assert b.url.endswith(own.hf_hub_id) and b.licence == own.license and timm.is_model(b.name.partition(".")[0])
    assert "resnet50.a1_in1k" in {b.name for b in pretrained.backbones()}  # what a plain resnet50 is


def test_published_figures_are_the_references():
    """reference.md, section 6."""
    summary = {s.name: (s.top1, s.top5) for s in pretrained.known()}
    assert summary["nl5-i3d-r50-32x2.authors"] == (74.9, 91.6) and summary["i3d-r50-128x1.authors"] == (75.2, 92.0)
    assert summary["i3d-r50-8x8.slowfast"][0] == 73.5 and summary["nl5-i3d-r50-8x8.slowfast"][0] == 74.0
    assert summary["c2d-r50-8x8.pytorchvideo"][0] == 71.46 and summary["nl10-i3d-r50-32x2.gluoncv"][0] == 75.93


def test_a_name_that_is_not_there_is_told_what_is():
    with pytest.raises(UsageError, match="nowhere") as caught:
        pretrained.find("nowhere")
    assert "nlzoo list" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        pretrained.find("i3d-r50-8x8")
    assert "i3d-r50-8x8.pytorchvideo" in caught.value.hint


def checkpoint_bytes(value):
    """A file of one tensor of 576,000 numbers."""
    content = io.BytesIO()
    torch.save({"state_dict": {"x": torch.full((576_000,), value)}}, content)
    return content.getvalue()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves `server.content` at /net.pth; `cut` ends an answer early, `ranges` False ignores Range, `code` refuses."""
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            own = self.server
            own.asked.append(self.headers.get("Range"))
            if own.garbage:
                return self.wfile.write(own.garbage)
            if own.code != 200:
                return self.send_error(own.code)
            first = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if own.ranges else 0
            if first >= len(own.content):
                return self.send_error(416)
            body = own.content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", own.length or str(len(body)))
            if own.drops == "headers":
                for _ in range(100):
                    self.wfile.write(b"X")
                    time.sleep(0.02)
            self.end_headers()
            for _ in range(100 if own.drops == "body" else 0):
                self.wfile.write(body[:1])
                time.sleep(0.02)
            self.wfile.write(body[: own.cut] if own.cut else body)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.cut, httpd.ranges, httpd.code, httpd.asked = checkpoint_bytes(1.0), None, True, 200, []
    httpd.drops, httpd.garbage, httpd.length = "", b"", ""
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


def start(server, digest=""):
    return pretrained.PretrainedModel(
        "i3d-r50-8x8.here", f"http://127.0.0.1:{server.server_port}/net.pth", "us", "mit", hash=digest
    )


def test_fetched_once_and_checked(server):
    seen, sha = [], hashlib.sha256(server.content).hexdigest()
    file, found = pretrained.fetch(start(server, "sha256:" + sha[:8]), lambda done, total: seen.append((done, total)))
    assert file.read_bytes() == server.content and found == sha and seen[-1] == (len(server.content),) * 2
    assert pretrained.fetch(start(server, "sha256:" + sha[:8])) == (file, sha) and len(server.asked) == 1


@pytest.mark.parametrize("drops", ["headers", "body"])
def test_a_server_that_answers_drop_by_drop_is_given_up(server, monkeypatch, drops):
    monkeypatch.setattr(pretrained, "TIMEOUT", 0.3)
    server.drops = drops
    with pytest.raises(WeightsError, match="could not be fetched .*timed out"):
        pretrained.fetch(start(server))
    server.drops = ""
    (files.cache_folder() / "here" / "net.pth.part").unlink(missing_ok=True)
    assert pretrained.fetch(start(server))[0].read_bytes() == server.content


@pytest.mark.parametrize("garbage, length", [(b"SSH-2.0-x\r\n", ""), (b"HTTP/1.1 \xff\r\n\r\n", ""), (b"", "many")])
def test_what_is_no_answer_is_a_sentence(server, garbage, length):
    server.garbage, server.length = garbage, length
    with pytest.raises(WeightsError, match="could not be fetched") as caught:
        pretrained.fetch(start(server))
    assert "\n" not in caught.value.message and caught.value.hint.startswith("fetch it on a machine with a network")


@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_where_it_stopped(server, ranges):
    server.cut, server.ranges = 1_500_000, ranges
    with pytest.raises(WeightsError, match=f"1500000 of {len(server.content)} bytes") as caught:
        pretrained.fetch(start(server))
    assert caught.value.hint == "the same command resumes the transfer there"
    server.cut = None
    assert pretrained.fetch(start(server))[0].read_bytes() == server.content
    assert server.asked == [None, "bytes=1500000-"]


def test_a_whole_part_is_not_fetched_again(server):
    part = files.cache_folder() / "here" / "net.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content)
    assert pretrained.fetch(start(server))[0].read_bytes() == server.content and not part.exists()


@pytest.mark.parametrize("digest", ["sha256:00000000", "sha1:" + "0" * 40])
def test_other_bytes_than_published_are_refused_and_removed(server, digest):
    with pytest.raises(WeightsError, match="is not the file that was published"):
        pretrained.fetch(start(server, digest))
    assert not list(files.cache_folder().rglob("net.pth*"))


def test_an_unknown_hash_is_recorded_and_held(server):
    file, sha = pretrained.fetch(start(server))
    assert file.with_name("net.pth.sha256").read_text().strip() == sha
    file.unlink()
    server.content = checkpoint_bytes(2.0)
    with pytest.raises(WeightsError, match="fetched before") as caught:
        pretrained.fetch(start(server))
    record = file.with_name("net.pth.sha256")
    assert caught.value.hint.endswith(f"if they published another file, remove {record} too")
    for damage in (b"", b"\xff\xfe", sha[:9].encode(), b"<html>"):  # no hash: that of the next file is recorded
        record.write_bytes(damage)
        file, sha = pretrained.fetch(start(server))
        assert record.read_text().strip() == sha == files.sha256(file)


def test_what_cannot_be_had_says_how_else(server):
    server.code = 404
    with pytest.raises(WeightsError, match="HTTP 404") as caught:
        pretrained.fetch(start(server))
    assert "nlzoo import net.pth" in caught.value.hint
    server.code, server.content = 200, b""
    with pytest.raises(WeightsError, match="HTTP 416"):
        pretrained.fetch(start(server))
    server.server_close()
    with pytest.raises(WeightsError, match="could not be fetched"):
        pretrained.fetch(pretrained.PretrainedModel("x", "http://127.0.0.1:9/net.pth", "us", "mit"))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"<!DOCTYPE html><html>Sign in to the network</html>", "is a web page, not weights"),
        (b"PK\x03\x04 no zip", "could not be read as weights"),
        (b"OK", "could not be read as weights"),
    ],
)
def test_what_is_no_checkpoint_is_not_remembered(server, content, words):
    """A captive portal answers 200 with a page of its own: it is neither kept nor its hash recorded."""
    right, server.content = server.content, content
    with pytest.raises(WeightsError, match=f"gave no weights: .*{words}") as caught:
        pretrained.fetch(start(server))
    assert "nlzoo import net.pth" in caught.value.hint and not list(files.cache_folder().rglob("net.pth*"))
    server.content = right
    assert pretrained.fetch(start(server))[0].read_bytes() == right


def test_two_at_once_fetch_one_file(server):
    """Each of them used to append to the other's part."""
    with ThreadPoolExecutor(4) as several:
        got = list(several.map(lambda _: pretrained.fetch(start(server)), range(4)))
    assert len(set(got)) == 1 and got[0][0].read_bytes() == server.content and server.asked == [None]


def test_the_cache_is_where_the_variable_says(server, monkeypatch, tmp_path):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "elsewhere"))
    assert pretrained.fetch(start(server))[0] == tmp_path / "elsewhere" / "here" / "net.pth"
