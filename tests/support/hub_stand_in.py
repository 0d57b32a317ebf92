"""The part of the Hugging Face Hub's HTTP API that transfers use, on 127.0.0.1, for tests.

    with HubStandIn() as hub:
        connect(hub, monkeypatch)  # or, for another process: HF_ENDPOINT=hub.url and so on
        ...
        hub.repos["me/name"].files["config.json"]

Large files go as the Hub has them go: LFS batch, PUT to a storage under another host name, commit;
and they come from there, by ranges of bytes if that is asked for.  The storage keeps what has
arrived when a commit never comes.  `on_request` sees every request first: it may answer in the
stand-in's place, or break the connection off.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest

_MAX_BODY_BYTES = 64 << 20
_TIMEOUT_S = 20
_LFS_SUFFIXES = (".safetensors",)
_COMMIT = "0" * 40
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """A request as it came, before its body was read."""

    method: str
    path: str
    authorization: str | None


@dataclass(frozen=True)
class Answer:
    """What is answered in the stand-in's place; without a status the connection is cut."""

    status: int | None
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Repo:
    """A repository.

    Attributes:
        is_private: Whether it is.
        files: What its main branch holds.
        commits: Their messages.
    """

    is_private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class HubStandIn:
    """A server in threads of its own.

    Attributes:
        token: The one that it accepts.
        repos: By name.
        objects: What the storage has, by SHA-256.
        requests: All that came.
        knows_ranges: Whether the storage sends parts of files; else it sends all of them.
        sent_bytes: Of files, by their path in the repository, in answer to GET.
        on_request: Called with each request; an answer replaces the stand-in's own.
    """

    def __init__(self) -> None:
        self.token = "stand-in.Token_0123456789"  # not all of them begin with hf_
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.knows_ranges = True
        self.sent_bytes: dict[str, int] = {}
        self.on_request: Callable[[Request], Answer | None] = lambda _: None
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # 50 ms a test are saved over the default.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage_url(self) -> str:
        """Where large files go: another host, as on the Hub, so that tokens do not belong there."""
        return f"http://localhost:{self._server.server_port}/storage"

    def count(self, method: str, part: str) -> int:
        """Return how many requests there were with a part of a path."""
        return sum(r.method == method and part in r.path for r in self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(_TIMEOUT_S)
        self.close()

    def close(self) -> None:
        """Let the port go, which answers nothing from then on."""
        self._server.server_close()


class _RefusalError(Exception):
    def __init__(self, status: int, message: str, **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.more = more


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S
    # Headers and body in one packet: the other side's kernel waits 40 ms for the second.
    wbufsize = 1 << 16

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        request = Request(self.command, unquote(self.path), self.headers.get("Authorization"))
        self.hub.requests.append(request)
        answer = self.hub.on_request(request)
        if answer is not None and answer.status is None:
            self.close_connection = True
            self.connection.close()
            return
        body = self._read_body()
        if answer is not None:
            assert answer.status is not None
            self._send(answer.status, answer.body, answer.headers)
            return
        try:
            if self.command in ("GET", "HEAD") and self._send_file(urlsplit(request.path).path):
                return
            value = self._route(urlsplit(request.path).path, body)
            self._send(200, json.dumps(value).encode(), (("ETag", '"stored"'),))
        except _RefusalError as refusal:
            message = json.dumps({"error": str(refusal), **refusal.more}).encode()
            self._send(refusal.status, message, (("X-Error-Message", str(refusal)),))

    def _read_body(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        assert size <= _MAX_BODY_BYTES, f"a body of {size} bytes"
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(size)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), *headers):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, path: str) -> bool:
        """Send a file, or say where it is; False if the path is not that of one."""
        if path.startswith("/storage/files/"):
            _, _, user, name, file = path.removeprefix("/storage").split("/", 4)
            self._send_content(file, self.hub.repos[f"{user}/{name}"].files[file])
            return True
        parts = path.removeprefix("/").split("/", 4)
        if len(parts) != 5 or parts[2] != "resolve":
            return False
        self._check_token()
        user, name, _, _, file = parts
        repo = self.hub.repos.get(f"{user}/{name}")
        if repo is None or file not in repo.files:
            raise _RefusalError(404, "Entry not found")
        content = repo.files[file]
        headers = (("X-Repo-Commit", _COMMIT), ("ETag", f'"{self._oid_of(repo, file)}"'))
        if not file.endswith(_LFS_SUFFIXES):
            self._send_content(file, content, headers)
            return True
        location = f"{self.hub.storage_url}/files/{user}/{name}/{file}?X-Amz-Signature=Secret"
        headers += (("X-Linked-Size", str(len(content))), ("X-Linked-ETag", headers[1][1]))
        self._send(302, b"", (*headers, ("Location", location)))
        return True

    def _send_content(
        self, file: str, content: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        status, wanted = 200, self.headers.get("Range", "")
        if wanted.startswith("bytes=") and self.hub.knows_ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            size, start, stop = len(content), int(first), int(last or len(content)) + 1
            content, status = content[start:stop], 206
            headers += (("Content-Range", f"bytes {start}-{min(stop, size) - 1}/{size}"),)
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, len(content), _CHUNK_BYTES):
                self.wfile.write(content[start : start + _CHUNK_BYTES])
                self.wfile.flush()
                sent = len(content[start : start + _CHUNK_BYTES])
                self.hub.sent_bytes[file] = self.hub.sent_bytes.get(file, 0) + sent
        except ConnectionError:  # whoever asked has seen enough
            self.close_connection = True

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise _RefusalError(401, "Invalid credentials in Authorization header")

    def _route(self, path: str, body: bytes) -> Any:
        if path.startswith("/storage/"):
            return self._store(path.removeprefix("/storage/"), body)
        self._check_token()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if not path.startswith("/api/models/"):
            raise _RefusalError(404, f"no such address: {path}")
        user, name, *rest = path.removeprefix("/api/models/").split("/")
        full_name = f"{user}/{name}"
        repo = self.hub.repos.get(full_name)
        if repo is None:
            raise _RefusalError(404, "Repository not found")
        match rest:
            case [] | ["revision", "main"]:
                return self._describe(full_name, repo)
            case ["tree", _]:
                return [self._list_file(repo, path) for path in repo.files]
            case ["preupload", "main"]:
                return self._preupload(repo, json.loads(body))
            case ["commit", "main"]:
                oid = self._commit(repo, [json.loads(line) for line in body.splitlines()])
                url = f"{self.hub.url}/{full_name}/commit/{oid}"
                return {"commitUrl": url, "commitOid": oid}
            case _:
                raise _RefusalError(404, f"no such address: {path}")

    def _create(self, wish: dict[str, Any]) -> Any:
        name = f"{wish['organization']}/{wish['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            raise _RefusalError(409, "You already created this model repo", url=url)
        # Versions of the library before 2 say it in another way.
        is_private = wish.get("visibility") == "private" or bool(wish.get("private"))
        self.hub.repos[name] = Repo(is_private)
        return {"url": url, "name": name, "id": "1"}

    def _describe(self, name: str, repo: Repo) -> Any:
        return {
            "id": name,
            "modelId": name,
            "private": repo.is_private,
            "sha": _COMMIT,
            "siblings": [{"rfilename": path} for path in repo.files],
        }

    def _list_file(self, repo: Repo, path: str) -> Any:
        content = repo.files[path]
        size, oid = len(content), _git_oid(content)
        listed: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid}
        if path.endswith(_LFS_SUFFIXES):
            listed["lfs"] = {"oid": self._oid_of(repo, path), "size": size, "pointerSize": 130}
        return listed

    def _preupload(self, repo: Repo, wish: dict[str, Any]) -> Any:
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": self._oid_of(repo, file["path"]),
                }
                for file in wish["files"]
            ]
        }

    def _oid_of(self, repo: Repo, path: str) -> str | None:
        if path not in repo.files:
            return None
        content = repo.files[path]
        is_large = path.endswith(_LFS_SUFFIXES)
        return hashlib.sha256(content).hexdigest() if is_large else _git_oid(content)

    def _batch(self, wish: dict[str, Any]) -> Any:
        objects = []
        for item in wish["objects"]:
            found: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                href = f"{self.hub.storage_url}/{item['oid']}?X-Amz-Signature=SecretSignature"
                found["actions"] = {"upload": {"href": href}}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _RefusalError(400, "the content is not what was announced")
        self.hub.objects[oid] = body
        return {}

    def _commit(self, repo: Repo, lines: list[dict[str, Any]]) -> str:
        files = dict(repo.files)
        header, *operations = lines
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise _RefusalError(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case key:
                    raise _RefusalError(400, f"unknown operation: {key}")
        repo.files = files
        repo.commits.append(header["value"]["summary"])
        return f"{len(repo.commits):040x}"


def _git_oid(content: bytes) -> str:
    """Return git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def connect(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, *, token: str | None = None) -> None:
    """Have huggingface_hub, which read its environment when it was imported, talk to a stand-in."""
    from huggingface_hub import constants

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", token or hub.token)
    # Its waits between attempts add up to 23 s.
    waitless = SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("huggingface_hub.utils._http.time", waitless)
