"""A local web demo: drop a video, see its classes, over time too, and the evidence. The only door to gradio.

Unusual: there is nothing to fetch (see `door`, which stands before gradio's server): the overlay travels inside the
answer, and a video is removed as soon as it has one.
"""

import base64
import contextlib
import html
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..core.errors import NlzooError, UsageError, VideoError
from ..core.model_spec import ModelSpec
from ..core.progress import Log, Progress, no_progress
from ..core.stopping import stopping
from ..core.text import counted, printable
from ..networks import card
from ..networks.network import Network
from ..videos import records, video
from . import door, explain, pictures, predict

MOST_BYTES = 200 * 2**20  # of a video
MOST_SECONDS = 120.0  # likewise
WINDOWS = 20  # over a video, about: what an answer costs does not grow with its length
SHORTEST = 0.5  # seconds from a window to the next
TOP = 5  # classes shown of a video
LISTED = 30  # classes named on the empty page
_LEFT = 3600  # seconds that a video may lie here which was sent, but never asked about
_ENDING = 10.0  # seconds that the answer under way may take when the page is closed
_QUEUE = 16  # videos that may wait; one is answered at a time
_CAPTION = "The frames that the network saw, and beside them the evidence for its prediction."

Answer = tuple[dict[str, float], list[dict], bytes]  # (scores, windows, mp4)

# of gradio's `launch`: it returns, says nothing, opens nothing, and starts nothing beside the page
_LAUNCH: dict[str, Any] = {
    "prevent_thread_lock": True,
    "quiet": True,
    "share": False,
    "inline": False,
    "inbrowser": False,
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "num_workers": 0,
    "pwa": False,
    "mcp_server": False,
    "state_session_capacity": 100,
}


def serve(
    net: Network,
    device: torch.device,
    host: str = "127.0.0.1",
    port: int = 0,
    name: str = "this model",
    log: Log = print,
    most_seconds: float = MOST_SECONDS,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Serves the page for `net`, which is on `device`, until Ctrl-C or a SIGTERM. `log` gets its address.

    Port 0 is any free one. Anybody who reaches `host` may send videos of at most `most_seconds` and `most_bytes`.
    Raises `UsageError` without gradio, and for an address that cannot be listened on.
    """
    host = host.strip("[]")
    port = _free(host, port)
    temporary = tempfile.TemporaryDirectory(prefix="nlzoo-serve-", ignore_cleanup_errors=True)
    with stopping() as stop, temporary as folder:
        gradio, answering = _gradio(Path(folder)), threading.Lock()
        from starlette.middleware import Middleware

        def refuse_stopped(done: int, total: int) -> None:
            if stop.signal:
                raise NlzooError("the page was closed")

        def answer(sent: dict) -> Iterator[tuple]:
            steps = answers(net, Path(sent["path"]), device, most_seconds, refuse_stopped)
            with answering:
                yield from _shown(gradio, sent, steps, net.spec)

        limits = f"A video of at most {most_seconds:g} s and {most_bytes / 2**20:.3g} MiB"
        page = _page(gradio, answer, name, net.spec, limits)
        _, url, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            max_file_size=most_bytes,
            app_kwargs={"middleware": [Middleware(door.Door, _sent(Path(folder)), most_bytes, host in door.HERE)]},
            **_LAUNCH,
        )
        log(url)
        while not stop.signal:
            time.sleep(0.1)
        page.close(verbose=False)
        if answering.acquire(timeout=_ENDING):  # or what answers now would make its folder anew
            answering.release()


def answers(
    net: Network,
    path: Path,
    device: torch.device,
    most_seconds: float = MOST_SECONDS,
    progress: Progress = no_progress,
) -> Iterator[Answer]:
    """What the page shows of one video, in three steps of which each adds one; what is not there yet is empty.

    `scores`: of the classes, as `predict.predict` gives them. `windows`: of `predict.windows`, those that could be
    read. `mp4`: the frames that the network saw, and beside them the evidence for its prediction. Raises `VideoError`
    for a video that cannot be read, or is too long.
    """
    progress(0, 1)  # which raises where the page was closed meanwhile
    (record,) = records.examine([path], workers=1)  # in a process of its own: a file may crash a decoder
    if record.problem:
        raise VideoError(record.problem, path=path.name)
    if record.seconds > most_seconds:
        reason = f"is {record.seconds:.1f} s long; at most {most_seconds:g} s are answered here"
        raise VideoError(reason, "cut it first", path.name)
    (row,) = predict.predict(net, [path], device=device)
    if "error" in row:
        raise VideoError(row["error"], path=path.name)
    if "note" in row and not net.spec.members:  # what is the same for every silent video is no answer
        raise VideoError(row["note"], path=path.name)
    yield row["scores"], [], b""
    spacing = predict.Windows(max(SHORTEST, record.seconds / WINDOWS))
    predicted = predict.windows(net, path, device, spacing, 1, progress=progress)
    windows = [window for window in predicted.get("windows", ()) if "scores" in window]
    yield row["scores"], windows, b""
    if not net.spec.is_inflated:  # there is no evidence to show
        return
    progress(0, 1)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder, "evidence.mp4")
        pictures.evidence_video(explain.explain(net, path, device, points=0), file)
        mp4 = file.read_bytes()
    yield row["scores"], windows, mp4


def _sent(folder: Path) -> Path:
    """Where gradio keeps what is sent, in the folder of a page."""
    return folder / "sent"


def _gradio(folder: Path) -> Any:
    """The library, told by the environment to keep files in `folder`, to find itself past a proxy, and to call nobody.

    What is known of videos is kept there too.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(_sent(folder))
    os.environ["NLZOO_CACHE"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    try:
        import gradio
    except ImportError:
        raise UsageError("nlzoo serve needs gradio, which is not installed", "pip install 'nlzoo[serve]'") from None
    return gradio


def _free(host: str, port: int) -> int:
    """The port, or a free one. Raises `UsageError`: gradio would try for minutes before it said that there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"{host} port {port} cannot be listened on: {getattr(error, 'strerror', None) or error}",
            "leave --port and --host out to take a free one of this machine",
        ) from None


# --- the page


def _page(gradio: Any, answer: Callable, name: str, spec: ModelSpec, limits: str) -> Any:
    with gradio.Blocks(title=f"nlzoo: {name}", analytics_enabled=False, delete_cache=(60, _LEFT)) as page:
        gradio.Markdown(f"# {card.escape(printable(name))}\n\n{_classes(spec.classes)}")
        drop = gradio.File(label=limits, file_types=sorted(video.EXTENSIONS), height=140)
        with gradio.Column(visible=False) as results:  # nothing is drawn before there is something to see
            with gradio.Row():
                whole = gradio.Label(label="Whole video")
                overlay = gradio.HTML(_player(b""), container=True, padding=True, visible=spec.is_inflated)
            times = gradio.LinePlot(
                x="seconds", y="probability", color="class", y_lim=[0, 1], show_label=False, height=340, buttons=[]
            )
        drop.upload(
            answer,
            drop,
            [drop, whole, times, overlay, results],
            api_name="answer",
            preprocess=False,
            concurrency_limit=1,
            trigger_mode="multiple",
            show_progress_on=[drop, whole, times, overlay],
        )
    page.queue(max_size=_QUEUE, api_open=False)
    return page


def _classes(classes: tuple[str, ...]) -> str:
    """What the model may predict, for the empty page."""
    if not classes:
        return "Its classes have no names: predictions are numbers of outputs."
    names = " · ".join(card.escape(printable(name)) for name in classes[:LISTED])
    more = len(classes) - LISTED
    return f"{counted(len(classes), 'class', 'classes')}: {names}" + (f" · and {more} more" if more > 0 else "")


def _shown(gradio: Any, sent: dict, steps: Iterable[Answer], spec: ModelSpec) -> Iterator[tuple]:
    """The steps of `answers` as values of the page's components.

    Afterwards the video is removed, and its box is empty for the next.
    """
    path, skip = Path(sent["path"]), gradio.skip()
    title = f"Whole video: {printable(sent.get('orig_name') or path.name)}"
    try:
        for scores, windows, mp4 in steps:
            best = {printable(name): score for name, score in list(scores.items())[:TOP]}
            whole, seen = gradio.Label(best, label=f"{title}{_labels(scores, spec)}"), gradio.Column(visible=True)
            yield skip, whole, _lines(gradio, windows), _player(mp4), seen
        yield None, skip, skip, skip, skip
    except NlzooError as problem:
        yield None, None, None, _player(b""), gradio.Column(visible=False)
        words = problem.message.replace(f"{path.parent}{os.sep}", "")
        if problem.hint:
            words = f"{words}: {problem.hint}"
        raise gradio.Error(html.escape(words), duration=None, print_exception=False) from None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()


def _labels(scores: dict[str, float], spec: ModelSpec) -> str:
    """The labels that are predicted, behind the title; nothing where a video has one class."""
    if not spec.multi_label:
        return ""
    labels = [printable(name) for name, score in scores.items() if score >= spec.label_threshold]
    return f"; labels from {spec.label_threshold:g}: {', '.join(labels) or 'none'}"


def _lines(gradio: Any, windows: list[dict]) -> Any:
    """The probabilities of the classes that are strongest somewhere in the video, each at the middle of its window.

    One window gives level lines.
    """
    if not windows:
        return None
    import pandas

    start, end = windows[0]["start"], windows[-1]["end"]
    strongest = {name: max(w["scores"][name] for w in windows) for name in windows[0]["scores"]}
    top = sorted(strongest, key=lambda name: strongest[name], reverse=True)[:TOP]
    points = [((w["start"] + w["end"]) / 2, w) for w in windows]
    if len(windows) == 1:
        points = [(start, windows[0]), (end, windows[0])]
    rows = [(seconds, window["scores"][name], printable(name)) for seconds, window in points for name in top]
    return gradio.LinePlot(pandas.DataFrame(rows, columns=["seconds", "probability", "class"]), x_lim=[start, end])


def _player(mp4: bytes) -> str:
    if not mp4:
        return f"<figure><figcaption>{_CAPTION}</figcaption></figure>"
    source = f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"
    options = 'controls autoplay loop muted playsinline style="width: 100%" aria-label="frames and evidence"'
    return f'<figure><video {options} src="{source}"></video><figcaption>{_CAPTION}</figcaption></figure>'
