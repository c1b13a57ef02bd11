"""A small Hugging Face hub on 127.0.0.1: the requests that huggingface_hub makes for models, and no others."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


@dataclass
class Repo:
    """Files by commit, and commits by branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files on top of a branch; returns the commit."""
        content = self.commits.get(self.refs.get(branch, ""), {}) | files
        name = hashlib.sha1(repr((len(self.commits), sorted(content))).encode()).hexdigest()
        self.commits[name] = content
        self.refs[branch] = name
        return name

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs[branch]]


class Hub(ThreadingHTTPServer):
    """The server; large files are those named `*.safetensors`, stored by their SHA-256 and served from elsewhere."""

    daemon_threads, block_on_close = True, False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        self.requests.append("ERROR")
        super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        parts = [unquote(p) for p in path.split("/")[1:]]
        match (self.command, parts):
            case ("GET", ["api", "models", owner, name, *rest]):
                self.seen(owner, name, lambda repo: self.describe(f"{owner}/{name}", repo, rest))
            case ("POST", ["api", "repos", "create"]):
                self.allowed(self.create)
            case ("POST", ["api", "validate-yaml"]):
                self.body()
                self.send({"errors": [], "warnings": []})
            case ("POST", ["api", "models", owner, name, action, revision]):
                self.allowed(lambda: self.write(f"{owner}/{name}", action, revision))
            case ("POST", [_, _, "info", "lfs", "objects", "batch"]):
                self.allowed(self.batch)
            case ("PUT", ["lfs", oid]):
                self.server.stored[oid] = self.body()
                self.send({})
            case ("POST", ["lfs", "verify"]):
                wanted = json.loads(self.body())
                self.send({}, 200 if len(self.server.stored[wanted["oid"]]) == wanted["size"] else 400)
            case (_, [owner, name, "resolve", revision, *file]):
                self.seen(owner, name, lambda repo: self.resolve(repo, revision, "/".join(file)))
            case (_, ["cdn", oid]):
                self.send(self.server.stored[oid])
            case _:
                self.send({"error": f"not known here: {self.command} {path}"}, 404)

    # Reading.

    def seen(self, owner, name, action) -> None:
        repo = self.server.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and not self.known()):
            self.send({"error": "Repository not found"}, 404 if self.known() else 401, {"X-Error-Code": "RepoNotFound"})
        else:
            action(repo)

    def find(self, repo, revision) -> str | None:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self.send({"error": f"Invalid rev id: {revision}"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def describe(self, name, repo, rest) -> None:
        if (commit := self.find(repo, rest[1] if rest else "main")) is None:
            return
        files = repo.commits[commit]
        if rest[:1] == ["tree"]:
            self.send([self.entry(path, content) for path, content in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self.send({"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []})

    def entry(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if large(path):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def resolve(self, repo, revision, path) -> None:
        if (commit := self.find(repo, revision)) is None:
            return
        if repo.gated and not self.known():
            self.send({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
            return
        if path not in repo.commits[commit]:
            self.send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = repo.commits[commit][path]
        headers = {"X-Repo-Commit": commit}
        if not large(path):
            self.send(content, 200, headers | {"ETag": f'"{git_hash(content)}"'})
            return
        oid = hashlib.sha256(content).hexdigest()
        self.server.stored[oid] = content
        place = {"Location": f"http://localhost:{self.server.server_port}/cdn/{oid}"}  # another host, as the hub has it
        self.send(b"", 302, headers | place | {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))})

    # Writing.

    def allowed(self, action) -> None:
        if self.known():
            action()
        else:
            self.body()
            self.send({"error": "Invalid username or password."}, 401)

    def create(self) -> None:
        asked = json.loads(self.body())
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.server.repos
        private = asked.get("private") is True or asked.get("visibility") == "private"
        repo = self.server.repos.setdefault(name, Repo(private))
        if not there:
            repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.send({"url": f"{self.server.endpoint}/{name}"}, 409 if there else 200)

    def write(self, name, action, revision) -> None:
        body, repo = self.body(), self.server.repos[name]
        if action == "branch":
            there = revision in repo.refs
            repo.refs.setdefault(revision, repo.refs["main"])
            self.send({}, 409 if there else 200)
        elif self.find(repo, revision) is None:
            return
        elif action == "preupload":
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if large(f["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for f in json.loads(body)["files"]
            ]
            self.send({"files": modes})
        elif action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = {}
            for value in (line["value"] for line in lines if line["key"] == "file"):
                files[value["path"]] = base64.b64decode(value["content"])
            for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
                files[value["path"]] = self.server.stored[value["oid"]]
            commit = repo.commit(files, revision)
            self.send({"commitUrl": f"{self.server.endpoint}/{name}/commit/{commit}", "commitOid": commit})

    def batch(self) -> None:
        objects = []
        for asked in json.loads(self.body())["objects"]:
            upload = {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.server.endpoint}/lfs/verify"}}
            objects.append({"oid": asked["oid"], "size": asked["size"], "actions": actions})
        self.send({"transfer": "basic", "objects": objects})

    # HTTP.

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        return content

    def send(self, content, status=200, headers=None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def large(path: str) -> bool:
    return path.endswith(".safetensors")


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join(10)
    assert "ERROR" not in hub.requests
