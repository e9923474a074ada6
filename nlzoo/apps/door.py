"""What the server of `nlzoo serve` lets in: the requests of its own page, and no others.

Unusual: gradio's server hands out files, and fetches any address that a request names. So it sees no route but those
that the page lives on, and no request for an answer but one that this module has read and written anew: about a video
that was sent here. That holds in every session, for every request, whatever address the page is on.
"""

import contextlib
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = ("127.0.0.1", "localhost", "::1")
MOST_FILES = 32  # videos that may lie here, sent and not yet answered
MOST_TOTAL = 10  # times the size of one: of all that lie here
_MOST_QUESTION = 16_384  # bytes of a request for an answer
_SLACK = 16_384  # bytes of an upload around the video
_ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.*|/gradio_api/(startup-events|info|upload"
    r"|upload_progress|queue/(join|data)|heartbeat/\w+|cancel|reset|call/answer(/\w+)?)/?"
)
_UPLOAD = re.compile(r"/gradio_api/upload/?")
_QUESTION = re.compile(r"/gradio_api/(queue/join|call/answer)/?")
# Nothing from elsewhere, whatever a page of gradio's may come to ask for: its scripts write code and styles themselves.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'"
)

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


class Door:
    """The ASGI application `app` behind the door; `sent` is the folder of uploads, each at most `most_bytes`.

    `local`: the page has names of this machine alone, which its own requests go to, and not a name that was made to
    lead here; and it gets nothing from elsewhere.
    """

    def __init__(self, app: App, sent: Path, most_bytes: int, local: bool) -> None:
        self.app, self.sent, self.most_bytes, self.local = app, sent, most_bytes, local
        self.arriving = 0  # bytes of the uploads that are under way

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if not _ROUTES.fullmatch(path) or not self._is_own(headers):
            await _refuse(send, 404, "")
        elif scope["method"] == "POST" and _UPLOAD.fullmatch(path):
            await self._upload(scope, headers, receive, send)
        elif scope["method"] == "POST" and _QUESTION.fullmatch(path):
            question = self._question(await _body(receive))
            if question is None:
                return await _refuse(send, 403, "this is not a video that was sent here")
            scope["headers"] = [h for h in scope["headers"] if h[0] != b"content-length"]
            scope["headers"].append((b"content-length", str(len(question)).encode()))
            await self.app(scope, _once(question, receive), self._with_policy(send))
        else:
            await self.app(scope, receive, self._with_policy(send))

    def _is_own(self, headers: dict[str, str]) -> bool:
        """Whether a request comes from the page itself, or from no page at all. Another port is another page."""
        host = _address(f"//{headers.get('host', '')}")
        if host is None or (self.local and host[0] not in HERE):
            return False
        if "origin" not in headers:
            return True
        origin = _address(headers["origin"])
        own = {host, _address(f"//{os.environ.get('SPACE_HOST', '')}")}  # a Space's name, where its proxy hides it
        if self.local:
            own |= {(name, host[1]) for name in HERE}
        return origin is not None and origin in own

    def _question(self, body: bytes | None) -> bytes | None:
        """The request for an answer as the page makes it, about one video that lies here; None for any other."""
        try:
            request = json.loads(body or b"")
            (file,) = request["data"]
            path, name = Path(file["path"]).resolve(), file.get("orig_name")
            is_sent = path.is_relative_to(self.sent.resolve()) and path.is_file()
            if not is_sent or not isinstance(name, str | None):
                return None
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            return None
        video = {"path": str(path), "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        kept = {key: request[key] for key in ("fn_index", "session_hash", "trigger_id") if key in request}
        return json.dumps({**kept, "data": [video]}).encode()

    async def _upload(self, scope: dict[str, Any], headers: dict[str, str], receive: Receive, send: Send) -> None:
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > self.most_bytes + _SLACK:
            return await _refuse(send, 413, "the video exceeded the maximum allowed size")
        files = self._files()
        total = sum(size for _, size, _ in files) + self.arriving + int(length)
        if len(files) >= MOST_FILES or total > MOST_TOTAL * self.most_bytes:
            return await _refuse(send, 503, "too many videos wait here; try again in a minute")
        self.arriving += int(length)
        try:
            await self.app(scope, receive, self._with_policy(send))
        finally:
            self.arriving -= int(length)
            for _, _, file in sorted(self._files())[MOST_FILES:]:  # one request may hold many
                file.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        """`(time of change, bytes, path)` of what was sent and lies here."""
        files = []
        for folder, _, names in os.walk(self.sent):  # which goes on where one was removed
            for file in (Path(folder, name) for name in names):
                with contextlib.suppress(OSError):  # answered just now
                    files.append((file.stat().st_mtime, file.stat().st_size, file))
        return files

    def _with_policy(self, send: Send) -> Send:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start" and self.local:
                headers = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        return with_policy


def _address(url: str) -> tuple[str, int | None] | None:
    """`(name, port)` of an address such as `http://localhost:7860`; None for what is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname, parts.port) if parts.hostname else None
    except ValueError:
        return None


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None for one that is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _MOST_QUESTION:
            return None
    return body


def _once(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body`, then what comes after it."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _refuse(send: Send, status: int, words: str) -> None:
    content = json.dumps({"detail": words}).encode() if words else b""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": content})
