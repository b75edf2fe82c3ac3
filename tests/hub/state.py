"""What a Hub remembers: accounts, tokens, repositories with commits, large files. Plain data, no HTTP."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field

GITATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LFS_ENDINGS = (".parquet", ".safetensors", ".png", ".jpg", ".bin", ".zip", ".gz", ".npy", ".pt", ".arrow")
LFS_FROM = 10 * 2**20
WRITERS = {"admin", "write", "contributor"}


def uses_lfs(path: str, size: int) -> bool:
    """Whether the Hub keeps a file outside git: by its ending, or because it is large."""
    return path.endswith(LFS_ENDINGS) or size > LFS_FROM


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The id git gives the file; of a large one, that of the pointer which stands in its place."""
        data = self.data
        if self.lfs:
            data = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
                self.sha256.encode(),
                len(data),
            )
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


Tree = Mapping[str, Blob]
_numbers = itertools.count()


@dataclass(frozen=True)
class Commit:
    tree: Tree
    parent: str | None
    title: str
    author: str
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def oid(self) -> str:
        """Forty hex digits that no other commit has."""
        return hashlib.sha1(f"{self.number} {self.parent} {self.title}".encode()).hexdigest()


@dataclass
class Repo:
    id: str
    type: str
    private: bool
    gated: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    granted: set[str] = field(default_factory=set)

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    def resolve(self, revision: str) -> Commit | None:
        """Find a commit by branch, tag, pull request, full or abbreviated id."""
        for names in (self.branches, self.tags, self.pulls):
            for name in (revision, revision.removeprefix("refs/heads/"), revision.removeprefix("refs/tags/")):
                if name in names:
                    return self.commits[names[name]]
        if len(revision) >= 7:
            return next((commit for oid, commit in self.commits.items() if oid.startswith(revision)), None)
        return None

    def add(self, tree: Tree, parent: str | None, title: str, author: str) -> Commit:
        commit = Commit(dict(tree), parent, title, author)
        self.commits[commit.oid] = commit
        return commit


@dataclass(frozen=True)
class Token:
    user: str
    role: str


@dataclass
class State:
    users: set[str] = field(default_factory=set)
    orgs: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def new_token(self, user: str, role: str) -> str:
        """Make a token that looks like a real one."""
        value = "hf_" + "".join(secrets.choice(string.ascii_letters) for _ in range(34))
        self.tokens[value] = Token(user, role)
        return value

    def may_write(self, token: Token | None, namespace: str) -> bool:
        if token is None or token.role not in ("write", "fineGrained"):
            return False
        return token.user == namespace or self.orgs.get(namespace, {}).get(token.user) in WRITERS

    def may_see(self, token: Token | None, repo: Repo) -> bool:
        if not repo.private:
            return True
        return token is not None and (token.user == repo.namespace or token.user in self.orgs.get(repo.namespace, {}))

    def may_read_files(self, token: Token | None, repo: Repo) -> bool:
        if not repo.gated:
            return True
        if token is None:
            return False
        own = token.user == repo.namespace or token.user in self.orgs.get(repo.namespace, {})
        return own or token.user in repo.granted
