"""What can be made to go wrong, and the record of what was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Action = Literal["500", "503", "429", "401", "403", "404", "drop-before", "drop-midway", "drop-after", "flip"]


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        label: Kind of request; see `label_of`.
        action: A status to answer with; or the connection closed before anything was done, while the body is read, or
            after all was done but before the answer; or one byte of a served file flipped.
        times: How often, after `skip` requests went well.
        path: Only requests whose path holds this.
        retry_after: Of 429 and 503, in seconds.
    """

    label: str
    action: Action
    times: int = 1
    skip: int = 0
    path: str = ""
    retry_after: int = 0


@dataclass
class Request:
    """One request as the server saw it; `status` is 0 where no answer was sent."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    token: str | None
    label: str
    body: bytes = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


def label_of(method: str, path: str) -> str:
    """Name the kind of a request."""
    parts = path.strip("/").split("/")
    if path == "/api/whoami-v2":
        return "whoami"
    if path.startswith(("/api/agent-harnesses", "/api/telemetry")):
        return "telemetry"
    if path == "/api/repos/create":
        return "create-repo"
    if path == "/api/repos/delete":
        return "delete-repo"
    if path == "/api/validate-yaml":
        return "validate-yaml"
    if path.endswith("/info/lfs/objects/batch"):
        return "lfs-batch"
    if parts[0] == "lfs-files":
        return {"PUT": "lfs-upload", "POST": "lfs-verify"}.get(method, "lfs-download")
    if "resolve" in parts[2:5]:
        return "resolve"
    if parts[0] == "api" and len(parts) >= 4:
        known = {"auth-check": "auth-check", "tree": "tree", "paths-info": "tree", "preupload": "preupload",
                 "commit": "commit", "commits": "commits", "tag": "tag", "refs": "refs", "branch": "branch",
                 "revision": "repo-info"}  # fmt: skip
        return "repo-info" if len(parts) == 4 else known.get(parts[4], "other")
    return "other"
