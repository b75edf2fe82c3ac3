"""Answers of the Hub, route by route, as far as the clients ask. Where the public Hub's words are unknown, the clients'
code decided: statuses, headers and keys are those that it reads."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import yaml

from tests.hub.faults import Request
from tests.hub.state import GITATTRIBUTES, Blob, Commit, Repo, State, Token, uses_lfs


class Refused(Exception):  # noqa: N818
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **extra: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers)


class Routes:
    """All routes over one state.

    Args:
        state: What the Hub remembers; the caller holds a lock.
        url: Of the API.
        large_url: Of the storage of large files, another origin.
    """

    def __init__(self, state: State, url: str, large_url: str) -> None:
        self.state, self.url, self.large_url = state, url, large_url

    def answer(self, request: Request) -> Answer:
        token = self._token(request)
        for method, pattern, handler in self._table():
            found = re.fullmatch(pattern, request.path)
            if found and request.method in method.split("|"):
                groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                return handler(request, token, **groups)
        raise Refused(404, "Not Found")

    def _table(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        repo = r"(?P<id>[^/]+/[^/]+)"
        api = rf"/api/(?P<type>models|datasets)/{repo}"
        page = rf"(?:/(?P<type>datasets))?/{repo}"
        return [
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/repos/create", self.create),
            ("DELETE", "/api/repos/delete", self.delete),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("GET", "/api/agent-harnesses", lambda request, token: as_json({"harnesses": {}, "standardEnvVars": []})),
            ("GET", rf"{api}/auth-check(?P<write>/write)?", self.auth_check),
            ("GET", rf"{api}/refs", self.refs),
            ("GET", rf"{api}/commits/(?P<revision>[^/]+)", self.history),
            ("GET", rf"{api}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", self.tree),
            ("POST", rf"{api}/paths-info/(?P<revision>[^/]+)", self.paths_info),
            ("POST", rf"{api}/preupload/(?P<revision>[^/]+)", self.preupload),
            ("POST", rf"{api}/commit/(?P<revision>[^/]+)", self.commit),
            ("POST|DELETE", rf"{api}/tag/(?P<name>[^/]+)", self.tag),
            ("POST|DELETE", rf"{api}/branch/(?P<name>[^/]+)", self.branch),
            ("GET", rf"{api}(?:/revision/(?P<revision>[^/]+))?", self.info),
            ("GET", r"/api/(?P<type>models|datasets)/(?P<id>[^/]+)", self.info),  # a name without an owner
            ("POST", rf"{page}\.git/info/lfs/objects/batch", self.lfs_batch),
            ("GET|HEAD", rf"{page}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
            ("PUT|POST|GET|HEAD", r"/lfs-files/(?P<sha>[0-9a-f]{64})", self.large),
        ]

    # Accounts

    def _token(self, request: Request) -> Token | None:
        if request.token is None:
            return None
        token = self.state.tokens.get(request.token)
        if token is None or token.role == "expired":
            raise Refused(401, "Invalid credentials in Authorization header")
        return token

    def whoami(self, request: Request, token: Token | None) -> Answer:
        if token is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": org, "roleInOrg": roles[token.user]}
                for org, roles in self.state.orgs.items() if token.user in roles]  # fmt: skip
        access = {"displayName": "tests", "role": token.role}
        return as_json(
            {"type": "user", "name": token.user, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}}
        )

    # Repositories

    def _repo(self, type: str | None, id: str, token: Token | None, *, write: bool = False) -> Repo:
        kind = {"datasets": "dataset", "dataset": "dataset"}.get(type or "models", "model")
        repo = self.state.repos.get((kind, id))
        if repo is None or not self.state.may_see(token, repo):
            # A repository that this account may not see looks like one that is not there.
            raise Refused(401 if token is None else 404, "Repository not found", "RepoNotFound")
        if write and not self.state.may_write(token, repo.namespace):
            raise Refused(403, f"You don't have the rights to write to {id}: forbidden")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def create(self, request: Request, token: Token | None) -> Answer:
        asked = json.loads(request.body)
        if token is None:
            raise Refused(401, "Invalid username or password.")
        namespace = asked.get("organization") or token.user
        id, kind = f"{namespace}/{asked['name']}", asked.get("type", "model")
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{id}"
        if (kind, id) in self.state.repos:
            raise Refused(409, f"You already created this {kind} repo", url=url)
        if not self.state.may_write(token, namespace):
            raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        self.new_repo(id, kind, private=asked.get("private") or asked.get("visibility") == "private")
        return as_json({"url": url, "id": id, "name": id})

    def new_repo(self, id: str, kind: str, *, private: bool, gated: bool = False) -> Repo:
        repo = Repo(id, kind, bool(private), gated)
        repo.branches["main"] = repo.add({".gitattributes": Blob(GITATTRIBUTES, False)}, None, "initial commit", "").oid
        self.state.repos[kind, id] = repo
        return repo

    def delete(self, request: Request, token: Token | None) -> Answer:
        asked = json.loads(request.body)
        namespace = asked.get("organization") or (token.user if token else "")
        kind, id = asked.get("type", "model"), f"{namespace}/{asked['name']}"
        self._repo(f"{kind}s", id, token, write=True)
        del self.state.repos[kind, id]
        return Answer()

    def info(self, request: Request, token: Token | None, type: str, id: str, revision: str = "main") -> Answer:
        repo = self._repo(type, id, token)
        commit = self._commit(repo, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.tree)]
        if request.query.get("blobs") in ("true", "True", "1"):
            for sibling in siblings:
                blob = commit.tree[sibling["rfilename"]]
                sibling |= {"size": len(blob.data), "blobId": blob.oid}
                if blob.lfs:
                    sibling["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 130}
        card = commit.tree.get("README.md")
        block = re.match(rb"---\n(.*?)\n---", card.data, re.DOTALL) if card else None
        try:
            data = yaml.safe_load(block.group(1)) if block else None
        except yaml.YAMLError:
            data = None
        said = {"id": repo.id, "author": repo.namespace, "sha": commit.oid, "private": repo.private,
                "gated": "manual" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0,
                "tags": [], "siblings": siblings, "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z"}  # fmt: skip
        if isinstance(data, dict):
            said["cardData"] = data
        return Answer(200, json.dumps(said, default=str).encode(), {"Content-Type": "application/json"})

    def auth_check(self, request: Request, token: Token | None, type: str, id: str, write: str | None = None) -> Answer:
        repo = self._repo(type, id, token, write=bool(write))
        self._gate(repo, token)
        return as_json({})

    def _gate(self, repo: Repo, token: Token | None) -> None:
        if not self.state.may_read_files(token, repo):
            raise Refused(401 if token is None else 403, f"Access to {repo.id} is restricted", "GatedRepo")

    def refs(self, request: Request, token: Token | None, type: str, id: str) -> Answer:
        repo = self._repo(type, id, token)

        def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name.removeprefix("refs/"), "ref": prefix + name, "targetCommit": oid}
                    for name, oid in names.items()]  # fmt: skip

        said = {
            "branches": listed(repo.branches, "refs/heads/"),
            "tags": listed(repo.tags, "refs/tags/"),
            "converts": [],
        }
        if request.query.get("include_prs"):
            said["pullRequests"] = listed(repo.pulls, "")
        return as_json(said)

    def history(self, request: Request, token: Token | None, type: str, id: str, revision: str) -> Answer:
        repo = self._repo(type, id, token)
        said, commit = [], self._commit(repo, revision)
        while True:
            said.append({"id": commit.oid, "title": commit.title, "message": "", "authors": [{"user": commit.author}],
                         "date": "2026-01-01T00:00:00.000Z"})  # fmt: skip
            if commit.parent is None:
                return as_json(said)
            commit = repo.commits[commit.parent]

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
        return entry

    def tree(self, request: Request, token: Token | None, type: str, id: str, revision: str, path: str = "") -> Answer:
        tree = self._commit(self._repo(type, id, token), revision).tree
        below = {
            name: blob for name, blob in sorted(tree.items()) if not path or name.startswith(path.rstrip("/") + "/")
        }
        if path and not below and path not in tree:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        deep = request.query.get("recursive") in ("true", "True", "1")
        folders, entries = set(), []
        for name, blob in below.items():
            rest = name[len(path.rstrip("/")) + 1 if path else 0 :].split("/")
            for depth in range(1, len(rest) if deep else min(len(rest), 2)):
                folders.add("/".join([*([path.rstrip("/")] if path else []), *rest[:depth]]))
            if deep or len(rest) == 1:
                entries.append(self._entry(name, blob))
        return as_json(
            [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)] + entries
        )

    def paths_info(self, request: Request, token: Token | None, type: str, id: str, revision: str) -> Answer:
        tree = self._commit(self._repo(type, id, token), revision).tree
        said = []
        for path in _form(request)["paths"]:
            name = path.rstrip("/")
            if name in tree:
                said.append(self._entry(name, tree[name]))
            elif any(other.startswith(name + "/") for other in tree) or not name:
                said.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
        return as_json(said)

    def tag(self, request: Request, token: Token | None, type: str, id: str, name: str) -> Answer:
        repo = self._repo(type, id, token, write=True)
        if request.method == "DELETE":
            if repo.tags.pop(name, None) is None:
                raise Refused(404, f"Tag {name} does not exist", "RevisionNotFound")
            return Answer()
        # Of a creation, the path names the revision, the body the tag.
        commit, tag = self._commit(repo, name), json.loads(request.body)["tag"]
        if tag in repo.tags:
            raise Refused(409, f"Reference already exists: refs/tags/{tag}")
        repo.tags[tag] = commit.oid
        return as_json({})

    def branch(self, request: Request, token: Token | None, type: str, id: str, name: str) -> Answer:
        repo = self._repo(type, id, token, write=True)
        if request.method == "DELETE":
            repo.branches.pop(name, None)
            return Answer()
        if name in repo.branches:
            raise Refused(409, f"Reference already exists: refs/heads/{name}")
        start = json.loads(request.body or b"{}").get("startingPoint", "main")
        repo.branches[name] = self._commit(repo, start).oid
        return as_json({})

    # Uploading

    def validate_yaml(self, request: Request, token: Token | None) -> Answer:
        text = json.loads(request.body)["content"]
        block = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        try:
            data = yaml.safe_load(block.group(1)) if block else {}
        except yaml.YAMLError as error:
            return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            return as_json({"errors": [{"message": "the front matter is no mapping"}], "warnings": []}, 400)
        return as_json({"errors": [], "warnings": []})

    def preupload(self, request: Request, token: Token | None, type: str, id: str, revision: str) -> Answer:
        pull = "create_pr" in request.query
        repo = self._repo(type, id, token, write=not pull)
        if token is None or token.role == "read":
            raise Refused(403, "this token may only read")
        tree = self._commit(repo, revision).tree
        said = []
        for file in json.loads(request.body)["files"]:
            path, lfs = file["path"], uses_lfs(file["path"], file["size"])
            there = tree.get(path)
            # The client compares: git's id for a regular file, the SHA-256 for a large one.
            oid = None if there is None else there.sha256 if there.lfs else there.oid
            said.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        return as_json({"files": said})

    def lfs_batch(self, request: Request, token: Token | None, id: str, type: str | None = None) -> Answer:
        repo = self._repo(type, id, token)
        if token is None or token.role == "read":
            raise Refused(403, f"You don't have the rights to upload to {repo.id}")
        said = []
        for wanted in json.loads(request.body)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.state.large:
                place = f"{self.large_url}/lfs-files/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": place, "header": {}}, "verify": {"href": place, "header": {}}}
            said.append(entry)
        return as_json({"transfer": "basic", "objects": said})

    def large(self, request: Request, token: Token | None, sha: str) -> Answer:
        import hashlib

        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != sha:
                raise Refused(400, "BadDigest: the content is not what was announced")
            self.state.large[sha] = request.body
            return Answer()
        if request.method == "POST":
            asked = json.loads(request.body)
            if asked["oid"] not in self.state.large or len(self.state.large[sha]) != asked["size"]:
                raise Refused(404, "Object not found")
            return as_json({})
        if sha not in self.state.large:
            raise Refused(404, "NoSuchKey")
        return ranged(request, Answer(200, self.state.large[sha], {"ETag": f'"{sha}"'}))

    def commit(self, request: Request, token: Token | None, type: str, id: str, revision: str) -> Answer:
        pull = request.query.get("create_pr") in ("1", "true")
        repo = self._repo(type, id, token, write=not pull)
        if token is None or token.role == "read":
            raise Refused(403, "this token may only read")
        if not pull and revision not in repo.branches and revision not in repo.pulls:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        base = self._commit(repo, revision)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = header.get("parentCommit")
        if parent is not None and parent != base.oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(base.tree)
        for line in lines:
            self._apply(tree, line["key"], line["value"])
        if tree == dict(base.tree):
            return as_json(self._done(repo, base, None))
        made = repo.add(tree, base.oid, header["summary"], token.user)
        if pull:
            ref = f"refs/pr/{len(repo.pulls) + 1}"
            repo.pulls[ref] = made.oid
            return as_json(self._done(repo, made, ref))
        (repo.pulls if revision in repo.pulls else repo.branches)[revision] = made.oid
        return as_json(self._done(repo, made, None))

    def _apply(self, tree: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            data = base64.b64decode(value["content"])
            tree[value["path"]] = Blob(data, False)
        elif key == "lfsFile":
            if value["oid"] not in self.state.large:
                raise Refused(400, f"LFS pointer {value['oid']} points to a file that was never uploaded")
            tree[value["path"]] = Blob(self.state.large[value["oid"]], True)
        elif key == "deletedFile":
            if tree.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            for name in [name for name in tree if name.startswith(value["path"].rstrip("/") + "/")]:
                del tree[name]

    def _done(self, repo: Repo, commit: Commit, ref: str | None) -> dict[str, Any]:
        page = f"{self.url}/{'datasets/' if repo.type == 'dataset' else ''}{repo.id}"
        said: dict[str, Any] = {"success": True, "commitOid": commit.oid, "commitUrl": f"{page}/commit/{commit.oid}",
                                "hookOutput": ""}  # fmt: skip
        if ref is not None:
            said["pullRequestUrl"] = f"{page}/discussions/{ref.rpartition('/')[2]}"
        return said

    # Reading

    def resolve(
        self, request: Request, token: Token | None, id: str, revision: str, path: str, type: str | None = None
    ) -> Answer:
        repo = self._repo(type, id, token)
        commit = self._commit(repo, revision)
        self._gate(repo, token)
        blob = commit.tree.get(path)
        if blob is None:
            raise Refused(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": commit.oid})
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return ranged(request, Answer(200, blob.data, headers))
        self.state.large.setdefault(blob.sha256, blob.data)
        headers |= {
            "X-Linked-Etag": f'"{blob.sha256}"',
            "X-Linked-Size": str(len(blob.data)),
            "Location": f"{self.large_url}/lfs-files/{blob.sha256}",
        }
        return Answer(302, b"", headers)


def ranged(request: Request, answer: Answer) -> Answer:
    """Cut an answer to the range that was asked for."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not found:
        return answer
    size, (first, last) = len(answer.body), found.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    if start >= size:
        raise Refused(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    headers = answer.headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Answer(206, answer.body[start:stop], headers)


def _form(request: Request) -> dict[str, list[str]]:
    """Read a JSON or form body with lists."""
    from urllib.parse import parse_qs

    if "json" in request.headers.get("content-type", ""):
        found: dict[str, list[str]] = json.loads(request.body)
        return found
    return parse_qs(request.body.decode())
