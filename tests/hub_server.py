"""A small Hub on loopback: as much of the protocol as nlzoo's push and pull need, with faults on demand.

    with HubServer() as hub:
        subprocess.run([...], env=hub.env(tmp_path / "home"))      # logged in as alice
        hub.fail("POST", "/commit/", drop="after")                 # the next commit arrives, its reply does not
        assert hub.files("alice/model")["config.json"] == b"..."

Models, Spaces and datasets; a Space is `repos["spaces/user/name"]`. Standard library and PyYAML only; `python
tests/hub_server.py` serves until Ctrl-C. The environment must be set before huggingface_hub is imported, so use a
subprocess. Nothing is stored on disk.
"""

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"token-of-alice": "alice", "token-of-bob": "bob"}


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str
    message: str
    files: dict  # path -> bytes, the whole tree


@dataclass
class Repo:
    name: str  # user/name, spaces/user/name or datasets/user/name
    private: bool
    commits: list = field(default_factory=list)  # oldest first; the first holds .gitattributes alone, as on the Hub
    branches: dict = field(default_factory=dict)  # those beside main: name -> list of commits
    tags: dict = field(default_factory=dict)  # name -> oid

    def add(self, files, message, branch="main"):
        commits = self.of_branch(branch)
        parent = commits[-1].oid if commits else ""
        oid = hashlib.sha1(repr((parent, message, sorted(files.items()))).encode()).hexdigest()
        commits.append(Commit(oid, parent, message, files))
        return commits[-1]

    def of_branch(self, name):
        return self.commits if name == "main" else self.branches.get(name, [])


@dataclass
class Fault:
    method: str
    pattern: str  # searched for in the path
    status: int = 0  # answer this instead of doing anything
    drop: str = ""  # close the connection "before" or "after" doing what was asked
    stall: float = 0  # seconds of silence after doing what was asked; those who wait get a 400
    drip: float = 0  # seconds between the bytes of the reply, headers included; or of the body alone, below
    drip_body: float = 0
    meanwhile: Callable = lambda: None  # what somebody else does just before
    body: bytes | None = None  # answer this instead of what is asked for, with status 200
    headers: dict = field(default_factory=dict)  # beside or instead of the right ones; None: without that one
    times: int = 1
    after: int = 0  # so many such requests pass first


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that went away is none."""


class HubServer:
    """`repos`, `objects` (LFS, by sha256) and `calls` (`"POST /api/…"`) may be read at any time."""

    def __init__(self):
        self.repos, self.objects, self.calls, self.faults = {}, {}, [], []
        self.lock, self.closed = threading.Lock(), False
        self.http = _Server(("127.0.0.1", 0), _Handler)
        self.http.daemon_threads = True
        self.http.hub = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """From now on nobody is there, not for kept-alive connections either. May be called twice."""
        self.closed = True
        self.http.shutdown()
        self.http.server_close()

    def env(self, home, token: str | None = "token-of-alice", **more) -> dict:
        """The environment of a machine whose Hub this is, with an empty cache in `home`; no token: not logged in."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return env | ({"HF_TOKEN": token} if token else {}) | more

    def files(self, repo: str) -> dict:
        """The newest tree of `repo`, path to bytes."""
        return self.repos[repo].commits[-1].files

    def create(self, repo: str, private: bool) -> Repo:
        self.repos[repo] = Repo(repo, private)
        self.repos[repo].add({".gitattributes": b"*.safetensors filter=lfs -text\n"}, "initial commit")
        return self.repos[repo]

    def fail(self, method: str, pattern: str, **how):
        """The next request (`times`: so many) with this method and `pattern` in its path goes wrong; see `Fault`."""
        self.faults.append(Fault(method, pattern, **how))

    def fault(self, method, path):
        if path.startswith("/api/agent-harnesses"):  # the client's own, once
            return Fault(method, path)
        with self.lock:
            self.calls.append(f"{method} {path}")
            for fault in self.faults:
                if fault.method in ("", method) and fault.pattern in path and fault.times > 0:
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return Fault(method, path)


class _Drops:
    """A file that is written byte by byte, until nobody reads any more."""

    def __init__(self, file, seconds):
        self.file, self.seconds = file, seconds

    def write(self, content):
        for byte in content:
            time.sleep(self.seconds)
            self.file.write(bytes([byte]))

    def flush(self):
        self.file.flush()


class _Refused(Exception):
    def __init__(self, status, code="", words="", **more):
        self.status, self.code, self.words, self.more = status, code, words, more


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive: every reply needs a Content-Length
    disable_nagle_algorithm = True  # headers and body are two writes; without this each reply takes 40 ms more

    def handle_any(self):
        self.path = unquote(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.hub.fault(self.command, self.path)
        if fault.drop == "before" or self.server.hub.closed:
            self.close_connection = True
            return
        fault.meanwhile()
        try:
            if fault.status:
                raise _Refused(fault.status, words=f"injected {fault.status}")
            with self.server.hub.lock:
                status, headers, reply = self.answer(content)
        except _Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.words}
            status, headers = error.status, {k: v for k, v in headers.items() if v}
            reply = json.dumps({"error": error.words, **error.more}).encode()
        if fault.stall:
            time.sleep(fault.stall)
            status, headers, reply = 400, {}, b'{"error": "you should not have waited so long"}'
        if fault.drop == "after":
            self.close_connection = True
            return
        if fault.body is not None:
            status, reply, headers = 200, fault.body, {}
        self.close_connection = self.close_connection or bool(fault.headers)  # a length may be a lie
        whole, self.wfile = self.wfile, _Drops(self.wfile, fault.drip) if fault.drip else self.wfile
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(reply)), **headers, **fault.headers}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            (_Drops(whole, fault.drip_body) if fault.drip_body else self.wfile).write(reply)
        self.wfile = whole

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, *_):
        pass

    def answer(self, content):
        """`(status, headers, body)` for the request, by the first route that fits."""
        url = urlsplit(self.path)
        for method, pattern, route in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, url.path)):
                reply = route(self, *match.groups(), content=content, query=parse_qs(url.query))
                return reply if isinstance(reply, tuple) else (200, {}, json.dumps(reply).encode())
        raise _Refused(404, words=f"no route for {self.command} {self.path}")

    def user(self, must=True):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise _Refused(401, words="Invalid credentials in Authorization header")
        if must and not token:
            raise _Refused(401, words="Invalid username or password.")
        return TOKENS.get(token)

    def repo(self, name, write=False):
        """The repository; to a stranger a private one does not exist, and without a login nothing missing does."""
        user, repo = self.user(must=write), self.server.hub.repos.get(name)
        if repo is None or (repo.private and user != name.split("/")[-2]):
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != name.split("/")[-2]:
            raise _Refused(403, words=f"you are not allowed to write to {name}")
        return repo

    def commit_of(self, repo, revision):
        made = [c for commits in (repo.commits, *repo.branches.values()) for c in commits]
        found = [c for c in made if c.oid == repo.tags.get(revision, revision)] or repo.of_branch(revision)[-1:]
        if not found:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found[0]

    # --- the routes

    def whoami(self, content, query):
        return {"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}}

    def validate_yaml(self, content, query):
        text = json.loads(content)["content"]
        if not re.match(r"---\n.+?\n---\n", text, re.DOTALL):
            return 400, {}, json.dumps({"errors": [{"message": "no metadata"}], "warnings": []}).encode()
        return {"errors": [], "warnings": []}

    def create_repo(self, content, query):
        asked, user = json.loads(content), self.user()
        owner = asked.get("organization") or user
        if owner != user:
            raise _Refused(403, words=f"you don't have the rights to create a model under {owner}")
        name = f"{owner}/{asked['name']}"
        if asked.get("type") == "space":
            name = f"spaces/{name}"
            if asked.get("sdk") not in ("gradio", "docker", "static"):
                raise _Refused(400, words="a Space needs an sdk")
        if name in self.server.hub.repos:
            raise _Refused(409, words="You already created this repo", url=f"{self.server.hub.url}/{name}")
        self.server.hub.create(name, private=asked.get("private") is True or asked.get("visibility") == "private")
        return {"url": f"{self.server.hub.url}/{name}", "name": name}

    def repo_info(self, name, revision, content, query):
        repo = self.repo(name)
        commit = self.commit_of(repo, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        if "blobs" in query:
            siblings = [
                {"rfilename": path, "size": len(data), "blobId": _blob(path, data), **_lfs(path, data, "sha256")}
                for path, data in commit.files.items()
            ]
        plain = name.removeprefix("spaces/").removeprefix("datasets/")
        info = {
            "_id": "0",
            "id": plain,
            "modelId": plain,
            "author": plain.partition("/")[0],
            "sha": commit.oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
        block = re.match(r"---\n(.*?)\n---\n", commit.files.get("README.md", b"").decode(), re.DOTALL)
        card = yaml.safe_load(block[1]) if block else {}
        library = {"library_name": card["library_name"]} if plain == name and "library_name" in card else {}
        return info | ({"cardData": card} if block else {}) | library

    def tree(self, name, revision, content, query):
        commit = self.commit_of(self.repo(name), revision)
        return [
            {"type": "file", "path": path, "size": len(data), "oid": _blob(path, data), **_lfs(path, data, "oid")}
            for path, data in commit.files.items()
        ]

    def refs(self, name, content, query):
        repo = self.repo(name)
        heads = [("main", repo.commits[-1].oid), *((n, commits[-1].oid) for n, commits in repo.branches.items())]
        rows = {"branches": ("heads", heads), "tags": ("tags", repo.tags.items())}
        named = {
            kind: [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in refs]
            for kind, (folder, refs) in rows.items()
        }
        return {"converts": [], **named}

    def branch(self, name, branch, content, query):
        repo = self.repo(name, write=True)
        if repo.of_branch(branch):
            raise _Refused(409, words=f"Reference already exists: {branch}")
        start = json.loads(content).get("startingPoint", "main")
        repo.branches[branch] = [self.commit_of(repo, start)]
        return {}

    def tag(self, name, revision, content, query):
        repo, tag = self.repo(name, write=True), json.loads(content)["tag"]
        if tag in repo.tags:
            raise _Refused(409, words=f"Tag reference exists already: {tag}")
        repo.tags[tag] = self.commit_of(repo, revision).oid
        return {}

    def preupload(self, name, revision, content, query):
        there = self.commit_of(self.repo(name, write=True), revision).files
        return {
            "files": [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if _is_lfs(f["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(f["path"], there.get(f["path"])),
                }
                for f in json.loads(content)["files"]
            ]
        }

    def lfs_batch(self, name, content, query):
        self.repo(name, write=True)
        objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(content)["objects"]]
        for o in objects:
            if o["oid"] not in self.server.hub.objects:
                o["actions"] = {"upload": {"href": f"{self.server.hub.url}/lfs/{o['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid, content, query):
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, words="the content does not have this hash")
        self.server.hub.objects[oid] = content
        return {}

    def commit(self, name, branch, content, query):
        repo = self.repo(name, write=True)
        newest = self.commit_of(repo, branch)
        header, *operations = [json.loads(line) for line in content.splitlines()]
        if header["value"].get("parentCommit", newest.oid) != newest.oid:
            raise _Refused(412, words="A commit has happened since. Please refresh and try again.")
        files = dict(newest.files)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and value["oid"] in self.server.hub.objects:
                files[value["path"]] = self.server.hub.objects[value["oid"]]
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise _Refused(400, words=f"{kind} {value['path']}: not possible")
        made = repo.add(files, header["value"]["summary"], branch)
        url = f"{self.server.hub.url}/{name}/commit/{made.oid}"
        return {"success": True, "commitOid": made.oid, "commitUrl": url}

    def resolve(self, name, revision, path, content, query):
        commit = self.commit_of(self.repo(name), revision)
        if path not in commit.files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        data = commit.files[path]
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{_oid(path, data)}"',
            "Accept-Ranges": "bytes",
            "X-Linked-Etag": f'"{_oid(path, data)}"',
            "X-Linked-Size": str(len(data)),
            "Content-Type": "application/octet-stream",
        }
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), int(part[2] or len(data) - 1)
            return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]
        return 200, headers, data


_REPO = r"((?:(?:spaces|datasets)/)?[\w.\-]+/[\w.\-]+)"
_API = f"/api/(?:models/|(?=spaces/|datasets/)){_REPO}"
_ROUTES = (
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", "/api/repos/create", _Handler.create_repo),
    ("GET", f"{_API}(?:/revision/(.+))?", _Handler.repo_info),
    ("GET", f"{_API}/tree/(.+)", _Handler.tree),
    ("GET", f"{_API}/refs", _Handler.refs),
    ("POST", f"{_API}/branch/(.+)", _Handler.branch),
    ("POST", f"{_API}/tag/(.+)", _Handler.tag),
    ("POST", f"{_API}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/{_REPO}.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", _Handler.lfs_put),
    ("POST", f"{_API}/commit/(.+)", _Handler.commit),
    (("GET", "HEAD"), f"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
)


def _is_lfs(path):
    return path.endswith(".safetensors")


def _blob(path, data):
    """git's hash of what git stores: for an LFS file its pointer."""
    if _is_lfs(path):
        sha256 = hashlib.sha256(data).hexdigest()
        data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(path, data):
    """What the client compares: sha256 of an LFS file, git's hash of any other."""
    if data is None:
        return None
    return hashlib.sha256(data).hexdigest() if _is_lfs(path) else _blob(path, data)


def _lfs(path, data, key):
    if not _is_lfs(path):
        return {}
    return {"lfs": {key: hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}


if __name__ == "__main__":
    with HubServer() as server:
        print(server.url, flush=True)
        print("tokens:", ", ".join(TOKENS), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
