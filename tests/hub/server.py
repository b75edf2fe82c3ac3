"""The local Hub: a real HTTP server on 127.0.0.1 that the unpatched clients talk to."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.hub.faults import Fault, Request, label_of
from tests.hub.routes import Answer, Refused, Routes, as_json
from tests.hub.state import Blob, Repo, State, uses_lfs

Hook = Callable[[Request], None]


class LocalHub:
    """A Hub with users, organisations, repositories and faults that a test switches on.

    Args:
        port: Where to listen on 127.0.0.1; 0: anywhere. Large files are served from `localhost`, another origin.

    Attributes:
        requests: Everything that was asked, in order.
        faults: What goes wrong; the first that fits is taken.
        before: Called before a request is carried out; raising ConnectionAbortedError drops it undone.
        after: Called when it was carried out, before it is answered.
    """

    def __init__(self, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.lock = threading.RLock()
        self.reset()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            self.state = State()
            self.routes = Routes(self.state, self.url, f"http://localhost:{self.port}")
            self.requests: list[Request] = []
            self.faults: list[Fault] = []
            self.before: Hook | None = None
            self.after: Hook | None = None

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    # What a test arranges

    def add_user(self, name: str) -> None:
        self.state.users.add(name)

    def add_org(self, name: str, roles: Mapping[str, str]) -> None:
        self.state.orgs[name] = dict(roles)

    def token(self, user: str, role: str = "write") -> str:
        """Make a token: `write`, `read`, `fineGrained` or `expired`."""
        return self.state.new_token(user, role)

    def create_repo(
        self,
        repo_id: str,
        *,
        repo_type: str = "dataset",
        private: bool = False,
        gated: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> str:
        """Make a repository; returns its head."""
        with self.lock:
            repo = self.routes.new_repo(repo_id, repo_type, private=private, gated=gated)
        if files:
            return self.commit(repo_id, files, repo_type=repo_type)
        return repo.branches["main"]

    def grant(self, repo_id: str, user: str) -> None:
        """Let a user into a gated repository."""
        self._repo(repo_id).granted.add(user)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        *,
        branch: str = "main",
        title: str = "Somebody else's commit",
        repo_type: str = "dataset",
    ) -> str:
        """Commit as somebody else does; None deletes a file. Returns the commit."""
        with self.lock:
            repo = self._repo(repo_id, repo_type)
            base = repo.commits[repo.branches[branch]]
            tree = dict(base.tree)
            for path, data in files.items():
                if data is None:
                    tree.pop(path, None)
                else:
                    tree[path] = Blob(data, uses_lfs(path, len(data)))
            repo.branches[branch] = repo.add(tree, base.oid, title, "somebody").oid
            return repo.branches[branch]

    def delete_repo(self, repo_id: str, repo_type: str = "dataset") -> None:
        with self.lock:
            del self.state.repos[repo_type, repo_id]

    def snapshot(self) -> State:
        """Remember what the Hub holds; commits and files are never changed, so only what names them is copied."""
        with self.lock:
            repos = {key: replace(repo, commits=dict(repo.commits), branches=dict(repo.branches), tags=dict(repo.tags),
                                  pulls=dict(repo.pulls)) for key, repo in self.state.repos.items()}  # fmt: skip
            state, orgs = self.state, {name: dict(roles) for name, roles in self.state.orgs.items()}
            return replace(
                state,
                users=set(state.users),
                orgs=orgs,
                tokens=dict(state.tokens),
                repos=repos,
                large=dict(state.large),
            )

    def restore(self, state: State) -> None:
        """Go back to a snapshot, which can be used again."""
        with self.lock:
            self.state = state
            self.state = self.routes.state = self.snapshot()

    # What a test looks at

    def _repo(self, repo_id: str, repo_type: str = "dataset") -> Repo:
        return self.state.repos[repo_type, repo_id]

    def exists(self, repo_id: str, repo_type: str = "dataset") -> bool:
        return (repo_type, repo_id) in self.state.repos

    def is_private(self, repo_id: str) -> bool:
        return self._repo(repo_id).private

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        commit = self._repo(repo_id).resolve(revision)
        assert commit is not None, f"{repo_id} has no revision {revision}"
        return {path: blob.data for path, blob in commit.tree.items()}

    def head(self, repo_id: str, branch: str = "main") -> str:
        return self._repo(repo_id).branches[branch]

    def commits(self, repo_id: str, branch: str = "main") -> list[str]:
        """List the commits of a branch, newest first."""
        repo, found = self._repo(repo_id), []
        oid: str | None = repo.branches[branch]
        while oid is not None:
            found.append(oid)
            oid = repo.commits[oid].parent
        return found

    def tags(self, repo_id: str) -> dict[str, str]:
        return dict(self._repo(repo_id).tags)

    def branches(self, repo_id: str) -> dict[str, str]:
        return dict(self._repo(repo_id).branches)

    def pull_requests(self, repo_id: str) -> dict[str, str]:
        return dict(self._repo(repo_id).pulls)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    hub: LocalHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed or that we dropped is no error of the server's."""


class _Dropped(Exception):  # noqa: N818
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:  # noqa: N802
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _serve(self) -> None:
        hub = self.server.hub
        split = urlsplit(self.path)
        header = self.headers.get("Authorization", "")
        with hub.lock:
            request = Request(
                number=len(hub.requests),
                method=self.command,
                path=split.path,
                query=dict(parse_qsl(split.query, keep_blank_values=True)),
                token=header.removeprefix("Bearer ") or None,
                label=label_of(self.command, split.path),
                headers={name.lower(): value for name, value in self.headers.items()},
            )
            hub.requests.append(request)
            fault = self._fault(hub, request)
        try:
            self._answer(hub, request, fault)
        except (_Dropped, ConnectionAbortedError):
            self._drop()

    def _answer(self, hub: LocalHub, request: Request, fault: Fault | None) -> None:
        action = fault.action if fault is not None else ""
        request.body = self._body(half=action == "drop-midway")
        if action in ("drop-before", "drop-midway"):
            raise _Dropped
        if hub.before is not None:
            hub.before(request)
        if fault is not None and action.isdigit():
            words = {"401": "Invalid credentials in Authorization header", "403": "forbidden by a test",
                     "404": "Repository not found", "429": "rate limited", "503": "Service Unavailable"}  # fmt: skip
            answer = _error(Refused(int(action), words.get(action, "Internal Error"),
                                    "RepoNotFound" if action == "404" else ""))  # fmt: skip
            if action in ("429", "503"):
                answer.headers["Retry-After"] = str(fault.retry_after)
        else:
            try:
                with hub.lock:
                    answer = hub.routes.answer(request)
            except Refused as refused:
                answer = _error(refused)
        if hub.after is not None:
            hub.after(request)
        if action == "drop-after":
            raise _Dropped
        if action == "flip" and answer.body:
            middle = len(answer.body) // 2
            answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]
        self._send(request, answer)

    def _fault(self, hub: LocalHub, request: Request) -> Fault | None:
        for fault in hub.faults:
            if fault.label != request.label or fault.path not in request.path or fault.times <= 0:
                continue
            if fault.action == "flip" and request.method != "GET":
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.times -= 1
            return fault
        return None

    def _body(self, *, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    return b"".join(parts)
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length // 2 if half else length)

    def _send(self, request: Request, answer: Answer) -> None:
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _drop(self) -> None:
        """Close the connection at once, without an answer and without the usual farewell."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _error(refused: Refused) -> Answer:
    answer = as_json(
        {"error": refused.message} | {k: v for k, v in refused.extra.items() if k != "headers"}, refused.status
    )
    answer.headers |= {"X-Error-Message": refused.message} | refused.extra.get("headers", {})
    if refused.code:
        answer.headers["X-Error-Code"] = refused.code
    return answer


def dump(hub: LocalHub) -> str:
    """Write what a Hub holds, for a person."""
    return json.dumps({id: sorted(hub.files(id)) for _, id in hub.state.repos}, indent=2)
