"""A Hub on loopback for the unmodified client: repositories with branches and commits, tokens with rights, faults.

It keeps the Hub's own rules where a push could break them: who may write where, that an uploaded object is what its sum
says, that a branch is there, that a card's base model is a name of the Hub.  What it does not know it answers with 501
and remembers in `unknown`.  It says how we use the client's protocol, not how the Hub is.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS_FROM = 20_000  # bytes; what is smaller and holds no zero byte is a file of git's
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ROUTES = []


@dataclass(frozen=True)
class Owner:
    """Whom a token is of, and what it may do: read, write, or fineGrained with the repositories it may write."""

    name: str = "tester"
    role: str = "write"
    repositories: tuple[str, ...] = ()

    def may_write(self, repository: str) -> bool:
        if self.role == "fineGrained":
            return repository in self.repositories
        return self.role == "write" and repository.startswith(f"{self.name}/")


@dataclass
class Repository:
    """Branches are names of commits; a commit is all its files."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[tuple[str, str]] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        oid = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.titles.append((branch, title))
        return oid

    def oid(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class HubStandIn(ThreadingHTTPServer):
    """The server; use it as a context manager.

    Attributes:
        refusals: pattern of `METHOD path` -> the status that it gets; change it while the server runs.
        open: while it is not set, commits wait.
    """

    daemon_threads = True

    def __init__(self, tokens: dict[str, Owner]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, bytes]] = []
        self.unknown: list[str] = []
        self.refusals: dict[str, int] = {}
        self.open = threading.Event()
        self.open.set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.open.set()
        self.shutdown()
        self.server_close()

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repositories[repository]
        return found.commits[found.oid(revision)]

    def everything(self) -> bytes:
        """All that was ever sent here but the headers that tokens belong into, and all that is kept."""
        kept = [content for repository in self.repositories.values() for files in repository.commits.values()
                for content in files.values()]  # fmt: skip
        sent = [piece for _, path, body in self.requests for piece in (path.encode(), body, *_contents(body))]
        return b"\0".join([*sent, *kept, *self.objects.values()])


def _contents(body: bytes):
    """What a commit holds in base64."""
    for line in body.splitlines():
        if b'"encoding": "base64"' in line:
            yield base64.b64decode(json.loads(line)["value"]["content"])


def route(method: str, pattern: str):
    """Answer requests whose path is the pattern, in which {name} is a part that the function gets.

    Repositories of data sets are kept as those of models are.
    """
    pattern = pattern.replace("/api/models/", "/api/(?:models|datasets)/")
    pattern = f"(?:/datasets)?{pattern}" if pattern.startswith("/{id}") else pattern
    compiled = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern.replace("{id}", "(?P<id>[^/]+/[^/]+?)")))

    def keep(function):
        ROUTES.append((method, compiled, function))
        return function

    return keep


class Refused(Exception):
    """A request that is answered with a status, a code that the client knows, and a line."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None, **body: str):
        super().__init__(message)
        self.body = {"error": message, **body}
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.status, self.headers = status, {name: value for name, value in headers.items() if value}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self):
        # Names of branches and files are quoted whole, so the path is split before it is unquoted.
        hub, body, path = self.server, self._body(), urlsplit(self.path).path
        said = f"{self.command} {path}"
        with hub.lock:
            hub.requests.append((self.command, path, body))
            refusal = next((status for pattern, status in hub.refusals.items() if re.search(pattern, said)), None)
        try:
            if refusal:
                raise Refused(refusal, "refused by the test")
            self.send(200, *self.routed(path, body))
        except Refused as refused:
            self.send(refused.status, json.dumps(refused.body).encode(), refused.headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    def send(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def routed(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in ROUTES:
            if wanted == method and (match := pattern.fullmatch(path)):
                given = {name: unquote(value) for name, value in match.groupdict().items()}
                found = function(self.server, self.owner(), body, **given)
                return found if isinstance(found, tuple) else (json.dumps(found).encode(), {})
        self.server.unknown.append(f"{self.command} {path}")
        raise Refused(501, "the stand-in does not know this")

    def owner(self) -> Owner | None:
        """Whom the request is of; None for nobody."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        owner = self.server.tokens.get(given.removeprefix("Bearer "))
        if owner is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return owner


def readable(hub: HubStandIn, owner: Owner | None, name: str) -> Repository:
    found = hub.repositories.get(name)
    if found is None or (found.private and not (owner and name.startswith(f"{owner.name}/"))):
        raise Refused(404 if owner else 401, "Repository not found", "RepoNotFound")
    return found


def writable(hub: HubStandIn, owner: Owner | None, name: str) -> Repository:
    if owner is None:
        raise Refused(401, "Invalid username or password.")
    found = readable(hub, owner, name)
    if not owner.may_write(name):
        raise Refused(403, "Forbidden: this token may not write to this repository")
    return found


def files_at(repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
    oid = repository.oid(revision)
    if oid is None:
        raise Refused(404, "Revision not found", "RevisionNotFound")
    return oid, repository.commits[oid]


def is_large(content: bytes, size: int) -> bool:
    return size >= LFS_FROM or b"\0" in content[:512]


def content_oid(content: bytes) -> str:
    """What the client compares with, to leave out what has not changed: git's sum of a file, or the large file's."""
    if is_large(content, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@route("GET", "/api/whoami-v2")
def whoami(hub, owner, body):
    if owner is None:
        raise Refused(401, "Invalid username or password.")
    return {"type": "user", "name": owner.name, "orgs": [], "auth": {"accessToken": {"role": owner.role}}}


@route("POST", "/api/repos/create")
def create(hub, owner, body):
    asked = json.loads(body)
    if owner is None:
        raise Refused(401, "Invalid username or password.")
    name = f"{asked['organization'] or owner.name}/{asked['name']}"
    if not owner.may_write(name):
        raise Refused(403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
    if name in hub.repositories:
        raise Refused(409, "You already created this model repo", url=f"{hub.url}/{name}")
    hub.repositories[name] = Repository(asked.get("visibility") == "private")
    hub.repositories[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
    return {"url": f"{hub.url}/{name}", "name": name, "id": "1"}


@route("POST", "/api/models/{id}/branch/{branch}")
def branch(hub, owner, body, id, branch):
    repository = writable(hub, owner, id)
    if branch in repository.branches:
        raise Refused(409, "Reference already exists")
    repository.branches[branch] = repository.branches["main"]
    return {}


@route("POST", "/api/validate-yaml")
def validate_card(hub, owner, body):
    import yaml

    content = json.loads(body)["content"]
    header = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
    base = (header or {}).get("base_model")
    wrong = [name for name in (base if isinstance(base, list) else [base]) if name and not NAME.fullmatch(name)]
    return {"errors": [{"message": f'"base_model" with value "{name}" is not valid'} for name in wrong], "warnings": []}


@route("POST", "/api/models/{id}/preupload/{revision}")
def preupload(hub, owner, body, id, revision):
    _, there = files_at(writable(hub, owner, id), revision)
    answers = []
    for file in json.loads(body)["files"]:
        mode = "lfs" if is_large(base64.b64decode(file["sample"]), file["size"]) else "regular"
        oid = content_oid(there[file["path"]]) if file["path"] in there else None
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answers}


@route("POST", "/{id}.git/info/lfs/objects/batch")
def batch(hub, owner, body, id):
    writable(hub, owner, id)
    answers = []
    for asked in json.loads(body)["objects"]:
        upload = {"upload": {"href": f"{hub.url}/lfs/{asked['oid']}"}, "verify": {"href": f"{hub.url}/lfs/verify"}}
        answers.append({**asked, **({} if asked["oid"] in hub.objects else {"actions": upload})})
    return {"transfer": "basic", "objects": answers}


@route("PUT", "/lfs/{oid}")
def upload(hub, owner, body, oid):
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "the object is not what its sum says")
    hub.objects[oid] = body
    return {}


@route("POST", "/lfs/verify")
def verify(hub, owner, body):
    asked = json.loads(body)
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, "there is no such object")
    return {}


@route("POST", "/api/models/{id}/commit/{revision}")
def commit(hub, owner, body, id, revision):
    repository = writable(hub, owner, id)
    hub.open.wait()
    if revision not in repository.branches:
        raise Refused(404, "Revision not found", "RevisionNotFound")
    header, *operations = [json.loads(line) for line in body.splitlines()]
    with hub.lock:
        files = dict(files_at(repository, revision)[1])
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                content = base64.b64decode(value["content"])
                if is_large(content, len(content)):
                    raise Refused(400, f"{value['path']} is large and was sent as a file of git's")
                files[value["path"]] = content
            elif kind == "lfsFile":
                if value["oid"] not in hub.objects:
                    raise Refused(400, f"{value['path']} was never uploaded")
                files[value["path"]] = hub.objects[value["oid"]]
            else:
                raise Refused(501, f"the stand-in does not know {kind}")
        oid = repository.commit(revision, files, header["value"]["summary"])
    return {"success": True, "commitUrl": f"{hub.url}/{id}/commit/{oid}", "commitOid": oid}


@route("GET", "/api/models/{id}")
def information(hub, owner, body, id, revision="main"):
    repository = readable(hub, owner, id)
    oid, files = files_at(repository, revision)
    listed = [{"rfilename": name} for name in sorted(files)]
    return {"id": id, "modelId": id, "sha": oid, "private": repository.private, "siblings": listed}


@route("GET", "/api/models/{id}/revision/{revision}")
def information_at(hub, owner, body, id, revision):
    return information(hub, owner, body, id, revision)


@route("GET", "/api/models/{id}/tree/{revision}")
def tree(hub, owner, body, id, revision):
    _, files = files_at(readable(hub, owner, id), revision)
    return [{"type": "file", "path": name, "size": len(content), "oid": content_oid(content)}
            for name, content in sorted(files.items())]  # fmt: skip


@route("GET", "/api/models/{id}/tree/{revision}/(?P<folder>.+)")
def tree_of_folder(hub, owner, body, id, revision, folder):
    found = [file for file in tree(hub, owner, body, id, revision) if file["path"].startswith(f"{folder}/")]
    if not found:
        raise Refused(404, "Entry not found", "EntryNotFound", files_at(hub.repositories[id], revision)[0])
    return found


@route("GET", "/{id}/resolve/{revision}/(?P<path>.+)")
def resolve(hub, owner, body, id, revision, path):
    oid, files = files_at(readable(hub, owner, id), revision)
    if path not in files:
        raise Refused(404, "Entry not found", "EntryNotFound", oid)
    headers = {
        "ETag": f'"{content_oid(files[path])}"',
        "X-Repo-Commit": oid,
        "Content-Type": "application/octet-stream",
    }
    return files[path], headers
