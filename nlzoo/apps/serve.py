"""A page of this machine where one drops a video: its classes, over time too, and the evidence. The only door to gradio.

Unusual: gradio's server hands out files, fetches addresses and more, so `_only` lets through no route but those that the page lives on, and
there is nothing to fetch: the overlay travels inside the answer, and a video is removed as soon as it has one.
"""

import base64
import contextlib
import html
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from ..core.errors import NlzooError, UsageError, VideoError
from ..core.stopping import stopping
from ..core.text import printable
from ..networks import card
from ..videos import records, video
from . import explain, pictures, predict

MOST_BYTES = 200 * 2**20  # of a video
MOST_SECONDS = 120.0  # likewise
WINDOWS = 20  # over a video, about: what an answer costs does not grow with its length
SHORTEST = 0.5  # seconds from a window to the next
TOP = 5  # classes shown
_LEFT = 3600  # seconds that a video may lie here which was sent, but never asked about
_QUEUE = 16  # videos that may wait; one is answered at a time
_HERE = ("127.0.0.1", "localhost", "::1")
_ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.*|/gradio_api/(startup-events|info|upload|upload_progress|"
    r"queue/(join|data)|heartbeat/\w+|cancel|reset|call/answer(/\w+)?)/?"
)
# Nothing from elsewhere, whatever a page of gradio's may come to ask for: its scripts write code and styles themselves.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def serve(
    net: nn.Module,
    device: torch.device,
    host: str = "127.0.0.1",
    port: int = 0,
    name: str = "this model",
    tell: Callable[[str], None] = print,
    most_seconds: float = MOST_SECONDS,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Serves the page for `net`, which is on `where`, until Ctrl-C or a SIGTERM; `tell` gets its address once it is there.

    Port 0 is any free one. Anybody who reaches `host` may send videos of at most `most_seconds` and `most_bytes`. Raises `UsageError` without
    gradio, and for an address that cannot be listened on.
    """
    port = _free(host := host.strip("[]"), port)
    with (
        stopping() as stop,
        tempfile.TemporaryDirectory(prefix="nlzoo-serve-", ignore_cleanup_errors=True) as folder,
    ):
        gradio = _gradio(folder)

        def go_on(done, total):
            if stop.signal:
                raise NlzooError("the page was closed")

        def answer(sent):
            yield from _shown(gradio, sent, answers(net, Path(sent["path"]), device, most_seconds, go_on))

        page = _page(gradio, answer, name, f"A video of at most {most_seconds:g} s and {most_bytes / 2**20:.3g} MiB")
        _, url, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            max_file_size=most_bytes,
            app_kwargs={"middleware": [_middleware(host)]},
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inline=False,
            inbrowser=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            num_workers=0,
            pwa=False,
            mcp_server=False,
            state_session_capacity=100,
        )
        tell(url)
        while not stop.signal:
            time.sleep(0.1)
        page.close(verbose=False)


def answers(
    net: nn.Module,
    path: Path,
    device: torch.device,
    most_seconds: float = MOST_SECONDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[dict, list[dict], bytes]]:
    """What the page shows of one video, in three steps of which each adds one: `(scores, windows, mp4)`, as yet empty ones included.

    `scores`: of the classes, as `predict.predict` gives them. `windows`: of `predict.windows`, those that could be read. `mp4`: the frames
    that the network saw, and beside them the evidence for its answer. Raises `VideoError` for a video that cannot be read, or is too long.
    """
    (record,) = records.examine([path], workers=1)  # in a process of its own: a file may crash a decoder
    if record.problem:
        raise VideoError(record.problem, path=path.name)
    if record.seconds > most_seconds:
        raise VideoError(
            f"is {record.seconds:.1f} s long; at most {most_seconds:g} s are answered here", "cut it first", path.name
        )
    (row,) = predict.predict(net, path, device=device)
    if "error" in row:
        raise VideoError(row["error"], path=path.name)
    yield row["scores"], [], b""
    summary = predict.windows(
        net, path, device, predict.Windows(max(SHORTEST, record.seconds / WINDOWS)), 1, progress=progress
    )
    windows = [window for window in summary.get("windows", ()) if "scores" in window]
    yield row["scores"], windows, b""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        pictures.evidence_video(explain.explain(net, path, device, points=0), file := Path(folder, "evidence.mp4"))
        mp4 = file.read_bytes()
    yield row["scores"], windows, mp4


def _gradio(folder):
    """The library, told by the environment to keep its files and the memory of videos in `folder`, to find itself where a proxy is set, and to
    call nobody."""
    os.environ |= {
        "GRADIO_TEMP_DIR": os.path.join(folder, "sent"),
        "NLZOO_CACHE": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    try:
        import gradio
    except ImportError:
        raise UsageError("nlzoo serve needs gradio, which is not installed", "pip install 'nlzoo[serve]'") from None
    return gradio


def _free(host, port):
    """The port, or a free one. Raises `UsageError`: gradio would try for minutes before it said that there is none."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"{host} port {port} cannot be listened on: {getattr(error, 'strerror', None) or error}",
            "leave --port and --host out to take a free one of this machine",
        ) from None


# --- the page


def _page(gradio, answer, name, limits):
    async def only_sent(
        path,
    ):  # in the place of gradio's step between upload and answer, which takes addresses too, and fetches what is there
        if not Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
            raise gradio.Error("this is not a video that was sent here", print_exception=False)
        return path

    with gradio.Blocks(title=f"nlzoo: {name}", analytics_enabled=False, delete_cache=(60, _LEFT)) as page:
        gradio.Markdown(f"# {card.escape(printable(name))}")
        with gradio.Row():
            with gradio.Column():
                drop = gradio.File(label=limits, file_types=sorted(video.EXTENSIONS), height=140)
                drop.async_move_resource_to_block_cache = only_sent
                whole = gradio.Label(label="Whole video")
            overlay = gradio.HTML(_player(b""), container=True, padding=True)
        times = gradio.LinePlot(
            x="seconds", y="probability", color="class", y_lim=[0, 1], show_label=False, height=340, buttons=[]
        )
        drop.upload(
            answer,
            drop,
            [drop, whole, times, overlay],
            api_name="answer",
            preprocess=False,
            concurrency_limit=1,
            trigger_mode="multiple",
            show_progress_on=[whole, times, overlay],
        )
    page.queue(max_size=_QUEUE, api_open=False)
    return page


def _shown(gradio, sent, steps):
    """The steps of `answers` as values of the page's components; afterwards the video is removed, and its box empty for the next."""
    path = Path(sent["path"])
    title = f"Whole video: {printable(sent.get('orig_name') or path.name)}"
    try:
        for scores, windows, mp4 in steps:
            best = {printable(name): score for name, score in list(scores.items())[:TOP]}
            yield gradio.skip(), gradio.Label(best, label=title), _lines(gradio, windows), _player(mp4)
        yield None, gradio.skip(), gradio.skip(), gradio.skip()
    except NlzooError as problem:
        yield None, None, None, _player(b"")
        words = ": ".join(filter(None, [problem.message.replace(f"{path.parent}{os.sep}", ""), problem.hint]))
        raise gradio.Error(html.escape(words), duration=None, print_exception=False) from None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()


def _lines(gradio, windows):
    """The probabilities of the classes that are strongest somewhere in the video, each at the middle of its window; one window gives level lines."""
    if not windows:
        return None
    import pandas

    start, end = windows[0]["start"], windows[-1]["end"]
    most = {c: max(w["scores"][c] for w in windows) for c in windows[0]["scores"]}
    top = sorted(most, key=most.get, reverse=True)[:TOP]
    points = (
        [((w["start"] + w["end"]) / 2, w) for w in windows]
        if len(windows) > 1
        else [(start, windows[0]), (end, windows[0])]
    )
    table = pandas.DataFrame(
        [{"seconds": at, "probability": w["scores"][c], "class": printable(c)} for at, w in points for c in top]
    )
    return gradio.LinePlot(table, x_lim=[start, end])


def _player(mp4):
    player = (
        (
            '<video controls autoplay loop muted playsinline style="width: 100%" aria-label="frames and evidence" '
            f'src="data:video/mp4;base64,{base64.b64encode(mp4).decode()}"></video>'
        )
        if mp4
        else ""
    )
    return f"<figure>{player}<figcaption>The frames that the network saw, and beside them what in them spoke for its answer.</figcaption></figure>"


# --- what is let in


def _middleware(host):
    from starlette.middleware import Middleware

    return Middleware(_only, here=host in _HERE)


def _only(app, here):
    """The ASGI application behind a door that knows `_ROUTES` alone. `here`: with names of this machine alone, which its own page asks by,
    and not a site that a browser shows beside it, or one whose name was made to lead here; and that page gets nothing from elsewhere.
    """

    async def door(scope, receive, send):
        async def with_policy(message):
            if message["type"] == "http.response.start":
                message = message | {
                    "headers": [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
                }
            await send(message)

        if scope["type"] == "http":
            asked = [value.decode("latin-1") for key, value in scope["headers"] if key in (b"host", b"origin")]
            names = {re.sub(r"^https?://|:\d+$", "", name).strip("[]") for name in asked}
            if not _ROUTES.fullmatch(scope["path"]) or here and not names <= set(_HERE):
                await send({"type": "http.response.start", "status": 404, "headers": []})
                return await send({"type": "http.response.body"})
        await app(scope, receive, with_policy if here else send)

    return door
