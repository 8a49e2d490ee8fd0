"""A hub of models in memory behind the few requests of the Hugging Face hub's API that its client sends.

Repositories with branches and commits, uploads as regular files and by the LFS protocol, downloads, the list of models.
No tokens, no Xet.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

DAY = "2026-11-28T00:00:00.000Z"


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """A commit of these files beside those of the branch; returns its id."""
        now = self.commits.get(self.branches.get(branch, ""), {}) | files
        content = repr([len(self.commits), sorted(now)]).encode()
        sha = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.commits[sha], self.branches[branch] = now, sha
        return sha


@dataclass
class FakeHub:
    """What a server holds.

    Attributes:
        repositories: by org/name.
        lfs: contents by SHA-256.
        requests: every "METHOD path" so far.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        return self.repositories.setdefault(repository, Repository()).commit(branch, files)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *arguments):
        pass

    def _answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, code=200, **headers):
        self._answer(code, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _missing(self, kind):
        self._json({"error": kind}, 404, X_Error_Code=kind, X_Error_Message=kind)

    def _handle(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            for methods, pattern, answer in _ROUTES:
                if self.command in methods and (found := re.fullmatch(pattern, path)):
                    return answer(self, body=body, query=query, **found.groupdict())
        return self._json({"error": f"no route: {self.command} {path}"}, 400)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _create(self, body, query):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        repository = self.hub.repositories[name] = Repository(
            private=asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        repository.commit("main", {".gitattributes": b""})
        return self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _branch(self, body, query, repo, revision):
        branches = self.hub.repositories[repo].branches
        if revision in branches:
            return self._json({"error": "exists"}, 409)
        branches[revision] = branches["main"]
        return self._json({})

    def _validate(self, body, query):
        content = json.loads(body)["content"]
        good = content.startswith("---\n") and "\n---\n" in content
        self._json({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def _preupload(self, body, query, repo, revision):
        asked = json.loads(body)["files"]
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
            for f in asked
        ]
        self._json({"files": files})

    def _batch(self, body, query, repo):
        objects = []
        for each in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            objects.append(each | ({} if each["oid"] in self.hub.lfs else {"actions": upload}))
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body, query, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400)
        self.hub.lfs[oid] = body
        return self._answer(200)

    def _commit(self, body, query, repo, revision):
        if repo not in self.hub.repositories:
            return self._missing("RepoNotFound")
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        sha = self.hub.repositories[repo].commit(revision, files)
        return self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def _files(self, repo, revision):
        """(commit, its files), or None once the answer says what is missing."""
        if repo not in self.hub.repositories:
            self._missing("RepoNotFound")
            return None
        repository = self.hub.repositories[repo]
        sha = repository.branches.get(revision or "main", revision)
        if sha not in repository.commits:
            self._missing("RevisionNotFound")
            return None
        return sha, repository.commits[sha]

    def _info(self, body, query, repo, revision=None):
        if (found := self._files(repo, revision)) is not None:
            names = [{"rfilename": name} for name in sorted(found[1])]
            self._json({"id": repo, "modelId": repo, "sha": found[0], "private": False, "siblings": names})

    def _tree(self, body, query, repo, revision):
        if (found := self._files(repo, revision)) is not None:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
                for name, content in sorted(found[1].items())
            ]
            self._json(rows)

    def _resolve(self, body, query, repo, revision, name):
        if (found := self._files(repo, revision)) is None:
            return
        sha, files = found
        if name not in files:
            self._missing("EntryNotFound")
            return
        self._answer(200, files[name], ETag=f'"{_blob(files[name])}"', X_Repo_Commit=sha)

    def _list(self, body, query):
        rows = []
        for name, repository in self.hub.repositories.items():
            card = repository.commits[repository.branches["main"]].get("README.md", b"").decode()
            tags = re.findall(r'"([\w-]+)"', next(iter(re.findall(r"^tags: (.*)$", card, re.M)), ""))
            tags += [f"license:{found}" for found in re.findall(r'^license: "(.*)"$', card, re.M)]
            tags += re.findall(r'^pipeline_tag: "(.*)"$', card, re.M)
            wanted = query.get("filter", [])
            author, search = query.get("author", [""])[0], query.get("search", [""])[0]
            if set(wanted) <= set(tags) and name.startswith(author) and search in name:
                rows.append({"id": name, "modelId": name, "tags": tags, "downloads": 3, "lastModified": DAY})
        self._json(rows[: int(query.get("limit", ["100"])[0])])


def _blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


_REPO, _REVISION = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
_ROUTES = (
    (("POST",), "/api/repos/create", _Handler._create),
    (("POST",), "/api/validate-yaml", _Handler._validate),
    (("POST",), f"/api/models/{_REPO}/branch/{_REVISION}", _Handler._branch),
    (("POST",), f"/api/models/{_REPO}/preupload/{_REVISION}", _Handler._preupload),
    (("POST",), f"/api/models/{_REPO}/commit/{_REVISION}", _Handler._commit),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler._store),
    (("GET",), "/api/models", _Handler._list),
    (("GET",), f"/api/models/{_REPO}/revision/{_REVISION}", _Handler._info),
    (("GET",), f"/api/models/{_REPO}/tree/{_REVISION}", _Handler._tree),
    (("GET",), f"/api/models/{_REPO}", _Handler._info),
    (("GET", "HEAD"), f"/{_REPO}/resolve/{_REVISION}/(?P<name>.+)", _Handler._resolve),
)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on the loopback address."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
