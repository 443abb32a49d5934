"""A stand-in for the Hub on this machine: the HTTP interface that huggingface_hub pushes to and loads from.

Repositories live in memory: commits are snapshots {path: bytes}, branches point to one. Small files come within the
commit, files larger than `LARGE` bytes through the LFS upload, as on the Hub.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_test"
USER = "me"
LARGE = 100_000


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str | None] = field(default_factory=lambda: {"main": None})
    messages: list[str] = field(default_factory=list)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits.get(self.branches.get(revision, revision), {})


class Hub:
    """`repos` maps ("model" | "space" | "dataset", "me/name") to a `Repo`; `requests`: (method, path) as they came."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = ""


@contextmanager
def hub_server():
    """A running `Hub`; its address is `hub.url`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/(models|spaces|datasets)/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/(models|spaces|datasets)/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/api/(models|spaces|datasets)/([^/]+/[^/]+)/branch/([^/]+)", "branch"),
        ("GET", r"/api/(models|spaces|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", "tree"),
        ("GET", r"/api/(models|spaces|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("POST", r"/(?:spaces/|datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(\w+)", "lfs_upload"),
        ("(?:HEAD|GET)", r"/(spaces/|datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def handle_any(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if found and re.fullmatch(method, self.command):
                return getattr(self, name)(*(unquote(part) if part else part for part in found.groups()))
        return self.answer(404, {"error": f"the stand-in has no {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, *args):
        """Nothing on the terminal."""

    def answer(self, status: int, content, headers: dict | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str):
        return self.answer(404, {"error": code}, {"X-Error-Code": code})

    @property
    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, kind: str | None, name: str) -> Repo | None:
        return self.hub.repos.get(((kind or "models").rstrip("/").removesuffix("s"), name))

    def whoami(self):
        return self.answer(200, {"name": USER, "type": "user"}) if self.allowed else self.answer(401, {})

    def create(self):
        asked = json.loads(self.body)
        if not self.allowed:
            return self.answer(401, {"error": "unauthorized"})
        kind, owner = asked.get("type", "model"), asked.get("organization") or USER
        if owner != USER:
            return self.answer(403, {"error": f"you may not write to {owner}"})
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
        if (kind, name) in self.hub.repos:
            return self.answer(409, {"error": "exists", "url": url})
        self.hub.repos[kind, name] = Repo(private=asked.get("visibility") == "private")
        return self.answer(200, {"url": url, "name": name})

    def validate_yaml(self):
        """Of a README.md; the Hub looks closer."""
        block = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.S)
        wrong = [] if block and isinstance(yaml.safe_load(block[1]), dict) else [{"message": "no metadata"}]
        return self.answer(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def preupload(self, kind, name, revision):
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular", "shouldIgnore": False}
            for f in json.loads(self.body)["files"]
        ]
        return self.answer(200, {"files": files})

    def lfs_batch(self):
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}}
            for asked in json.loads(self.body)["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, {"error": "other content than announced"})
        self.hub.large[oid] = self.body
        return self.answer(200, {})

    def commit(self, kind, name, revision):
        repo = self.repo(kind, name)
        if repo is None:
            return self.missing("RepoNotFound")
        if not self.allowed:
            return self.answer(401, {"error": "unauthorized"})
        if revision not in repo.branches:
            return self.missing("RevisionNotFound")
        files = dict(repo.files(revision))
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    repo.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = hashlib.sha1(f"{name} {len(repo.messages)}".encode()).hexdigest()
        repo.commits[oid], repo.branches[revision] = files, oid
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def branch(self, kind, name, revision):
        repo = self.repo(kind, name)
        if revision in repo.branches:
            return self.answer(409, {"error": "exists"})
        repo.branches[revision] = repo.branches["main"]
        return self.answer(200, {})

    def commit_of(self, kind, name, revision) -> tuple[Repo | None, str | None]:
        repo = self.repo(kind, name)
        return repo, None if repo is None else repo.branches.get(revision or "main", revision)

    def info(self, kind, name, revision):
        repo, oid = self.commit_of(kind, name, revision)
        if repo is None:
            return self.missing("RepoNotFound")
        if oid not in repo.commits:
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        return self.answer(200, {"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})

    def tree(self, kind, name, revision):
        repo, oid = self.commit_of(kind, name, revision)
        if repo is None or oid not in repo.commits:
            return self.missing("RepoNotFound" if repo is None else "RevisionNotFound")
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in repo.commits[oid].items()
        ]
        return self.answer(200, files)

    def resolve(self, kind, name, revision, path):
        repo, oid = self.commit_of(kind, name, revision)
        if repo is None:
            return self.missing("RepoNotFound")
        if path not in repo.commits.get(oid, {}):
            return self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid or ""})
        content = repo.commits[oid][path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, content, {"ETag": etag, "X-Repo-Commit": oid, "Accept-Ranges": "none"})
