"""What a Hub account may do and what a repository holds, as plain data: no network here."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hmdc_hub.errors import AccessError
from hmdc_hub.publish.hub_errors import LOG_IN


@dataclass(frozen=True)
class Account:
    """Who is logged in.

    Attributes:
        name: Namespace of the user.
        orgs: Role in each organisation; empty where the token hides it.
        role: What the token may do: `read`, `write` or `fineGrained`.
    """

    name: str
    orgs: Mapping[str, str]
    role: str

    def refuse_unless_writer(self, namespace: str) -> None:
        """Refuse a namespace that this account cannot create a repository in.

        Raises:
            AccessError: It cannot.
        """
        if self.role == "read":
            raise AccessError("Your Hub token may only read.", hint=LOG_IN)
        # A fine-grained token may hide organisations and roles. What it may do, the Hub says when asked to create the
        # repository, which is before any byte is sent.
        known = namespace == self.name or namespace in self.orgs or self.role == "fineGrained"
        if not known or self.orgs.get(namespace) == "read":
            mine = ", ".join([self.name, *(org for org, role in self.orgs.items() if role != "read")])
            raise AccessError(
                f"{namespace} is no organisation that {self.name} may publish in.",
                hint=f"You may publish under {mine}: --repo-id {self.name}/NAME.",
            )


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `sha256` is None for one that git holds itself, whose `oid` is its blob id."""

    size: int
    oid: str
    sha256: str | None

    def holds(self, content: bytes | Path) -> bool:
        """Tell whether it has this content."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size != self.size:
            return False
        with _opened(content) as file:
            if self.sha256 is not None:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
            # The id that git gives a file: SHA-1 over a header and the content.
            return hashlib.sha1(b"blob %d\0" % size + file.read(), usedforsecurity=False).hexdigest() == self.oid


def _opened(content: bytes | Path) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


@dataclass(frozen=True)
class Remote:
    """A repository as it is at one moment.

    Attributes:
        head: Commit of `branch`.
        branch_exists: False: `head` is that of main, which the branch is to begin at.
        files: By path.
        tags: Name to commit.
        pulls: Refs of the pull requests, such as `refs/pr/1`.
    """

    repo_id: str
    private: bool
    branch: str
    head: str
    branch_exists: bool = True
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    pulls: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether it holds nothing but what the Hub puts into a new repository."""
        return not set(self.files) - {".gitattributes"}
