"""A model hub on the loopback interface, for the real huggingface_hub client.

Speaks what that client asks for: repository information, the tree of a commit, and files with ETag,
commit and ranges; no Xet. It can ask for a token, refuse like a gated repository, break off a
transfer, and stop. Assumes one test at a time; promises a log of what was asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?")
FILE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repo:
    """Commits by hash, each a mapping of file names to contents; branches and tags by name."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None  # Private: this token or 401.
    gated: bool = False  # 403 on every file and listing.


@dataclass
class Hub:
    """What the server serves and what happened to it.

    cut : file names to the number of bytes after which their next transfer breaks off, once
    status : answer everything with this status, unless it is 200
    status_after_cut : what a cut sets `status` to
    log : (method, path, Range header) of each request
    """

    repos: dict[str, Repo]
    cut: dict[str, int] = field(default_factory=dict)
    status: int = 200
    status_after_cut: int = 200
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""
    server: ThreadingHTTPServer | None = None

    def stop(self) -> None:
        """Take the hub off the network; its port then refuses connections."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def fetched(self) -> set[str]:
        """Names of the files whose contents were asked for."""
        paths = (path for method, path, _ in self.log if method == "GET")
        return {match[3] for path in paths if (match := FILE.fullmatch(path))}


@contextmanager
def serve(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Run a hub on a free port until the block ends."""
    hub = Hub(repos)

    class BoundHandler(Handler):
        pass

    BoundHandler.hub = hub
    hub.server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
    hub.endpoint = f"http://127.0.0.1:{hub.server.server_port}"
    threading.Thread(target=hub.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.stop()


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, so that no connection outlives its answer and `stop` is final."""

    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        # Not self.path, in which Python forgives a doubled slash at the start.
        path = unquote(self.requestline.split(" ")[1].split("?")[0])
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if self.hub.status != 200:
            headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return self.answer(self.hub.status, b"", headers)
        match = API.fullmatch(path) or FILE.fullmatch(path)
        repo = self.hub.repos.get(match[1]) if match else None
        if match is None or repo is None:
            # Without a token the real hub does not tell a missing repository from a private one.
            known = "Authorization" in self.headers
            return self.refuse(404 if known else 401, "RepoNotFound", "Repository not found")
        if repo.token is not None and self.headers.get("Authorization") != f"Bearer {repo.token}":
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        if repo.gated:
            return self.refuse(403, "GatedRepo", "Access is restricted")
        revision = (match[3] if match.re is API else match[2]) or "main"
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[commit]
        if match.re is API:
            return self.describe(match, commit, files)
        if match[3] not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.file(match[3], commit, files[match[3]])

    def describe(self, match: re.Match[str], commit: str, files: dict[str, bytes]) -> None:
        """Repository information, or the tree of a commit."""
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
            for name, content in files.items()
        ]
        info = {
            "id": match[1],
            "sha": commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in files],
        }
        self.answer(200, json.dumps(tree if match[2] == "tree" else info).encode())

    def file(self, name: str, commit: str, content: bytes) -> None:
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        limit = len(content)
        if self.command == "GET" and name in self.hub.cut:
            limit = self.hub.cut.pop(name)
            self.hub.status = self.hub.status_after_cut
        self.answer(206 if start else 200, content[start:], headers, limit)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        """Send an answer; only the first `limit` bytes of a body whose length is announced."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:limit])


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
