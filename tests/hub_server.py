"""A local server that answers as huggingface.co does, for models: reading, and uploading without Xet.

Written after the requests of huggingface_hub and https://huggingface.co/docs/hub/api.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".png")  # what a repository keeps in LFS
WANTED_RANGE = re.compile(r"bytes=(\d+)-")

Files = dict[str, bytes]


@dataclass
class Hub:
    """Repositories by name: the files of each revision. `asked` are the requests, without their queries.

    The connection breaks once after so many bytes of each file in `breaks`; `damaged` files are sent with another
    first byte than they have. `sent` counts the bytes of each file that were sent.
    """

    endpoint: str = ""
    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    breaks: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)
    stored: Files = field(default_factory=dict)  # LFS objects by sha256
    tokens: set[str] = field(default_factory=set)  # who may write

    def put(self, repository: str, files: Files, revision: str = "main") -> None:
        self.repositories.setdefault(repository, {})[revision] = files

    def find(self, repository: str, revision: str) -> tuple[str, Files] | None:
        """The commit and files of a revision, which may be a commit itself."""
        for name, files in self.repositories.get(repository, {}).items():
            commit = hashlib.sha1(f"{name}{sorted(files.items())}".encode()).hexdigest()
            if revision in (name, commit):
                return commit, files
        return None

    def fetched(self) -> list[str]:
        """Names of the files that were sent, in alphabetical order."""
        return sorted(
            {unquote(line.rpartition("/")[2]) for line in self.asked if re.match("GET .*/resolve/", line)}
        )


def lfs_of(data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; `hub` is set by the server that is made of it."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command in ("POST", "PUT"):
            self.write_to_hub(path, body)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            self.describe(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*map(unquote, found.groups()))
        else:
            self.refuse(404, "EntryNotFound")

    def describe(self, repository: str, what: str, revision: str) -> None:
        found = self.hub.find(repository, unquote(revision))
        if found is None:
            missing = "RevisionNotFound" if repository in self.hub.repositories else "RepoNotFound"
            self.refuse(404, missing)
            return
        commit, files = found
        entries = []
        for name, data in files.items():
            large = {"lfs": lfs_of(data)} if name.endswith(LARGE) else {}
            blob = hashlib.sha1(data).hexdigest()
            common = {"size": len(data), "oid": blob, "blobId": blob, **large}
            entries.append({"type": "file", "path": name, "rfilename": name, **common})
        self.reply(entries if what == "tree" else {"id": repository, "sha": commit, "siblings": entries})

    def send_file(self, repository: str, revision: str, name: str) -> None:
        found = self.hub.find(repository, revision)
        if found is None or name not in found[1]:
            self.refuse(404, "EntryNotFound")
            return
        commit, files = found
        data = files[name]
        digest = hashlib.sha256(data) if name.endswith(LARGE) else hashlib.sha1(data)
        if name in self.hub.damaged:
            data = b"?" + data[1:]
        wanted = WANTED_RANGE.match(self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{digest.hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        end = self.hub.breaks.pop(name, len(data))
        self.wfile.write(data[start:end])
        self.hub.sent[name] = self.hub.sent.get(name, 0) + end - start
        self.close_connection = end < len(data)

    def write_to_hub(self, path: str, body: bytes) -> None:
        if path.startswith("/lfs/"):
            self.hub.stored[path.removeprefix("/lfs/")] = body
            self.reply({})
        elif self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.tokens:
            self.refuse(401, "")
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.hub.repositories.setdefault(name, {"main": {}})
            self.reply({"url": f"{self.hub.endpoint}/{name}", "name": name})
        elif re.fullmatch(r"/api/models/.+/preupload/main", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            self.reply({"files": [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [self.upload_of(wanted) for wanted in json.loads(body)["objects"]]
            self.reply({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.refuse(404, "EntryNotFound")

    def upload_of(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where an object goes; nowhere when it is there."""
        if wanted["oid"] in self.hub.stored:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}}

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[repository]["main"]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        self.reply(
            {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.hub.endpoint}/{repository}/commit/0"}
        )

    def reply(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code: int, error: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
