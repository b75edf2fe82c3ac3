"""What publishing asks of the Hub, one method per question; nothing else in `hmdc_hub.publish` touches the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmdc_hub.errors import AccessError, NotFoundError, RunError
from hmdc_hub.store.hub import GO_ON, LOG_IN, Client, ConflictError, MissingError, holds

if TYPE_CHECKING:
    from hmdc_hub.publish.plan import PushPlan


@dataclass(frozen=True)
class Account:
    """Who is logged in."""

    name: str
    orgs: Mapping[str, str]  # role in each organisation; empty where the token hides it
    role: str  # what the token may do: `read`, `write` or `fineGrained`

    def refuse_unless_writer(self, namespace: str) -> None:
        """Refuse a namespace that this account cannot create a repository in, with an AccessError."""
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

    @property
    def digest(self) -> str:
        """What `holds` compares."""
        return self.sha256 or self.oid

    def holds(self, content: bytes | Path) -> bool:
        """Tell whether it has this content."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        return size == self.size and holds(content, self.digest)


@dataclass(frozen=True)
class Remote:
    """A repository as it is at one moment."""

    repo_id: str
    private: bool
    branch: str
    head: str  # commit of the branch
    branch_exists: bool = True  # False: `head` is that of main, which the branch is to begin at
    files: Mapping[str, RemoteFile] = field(default_factory=dict)  # by path
    tags: Mapping[str, str] = field(default_factory=dict)  # name to commit
    pulls: frozenset[str] = frozenset()  # refs of the pull requests, such as `refs/pr/1`

    @property
    def own_files(self) -> list[str]:
        """Paths of all but what the Hub puts into a new repository."""
        return sorted(set(self.files) - {".gitattributes"})

    def holds(self, path: str, content: bytes | Path) -> bool:
        """Tell whether a file is there with this content."""
        return path in self.files and self.files[path].holds(content)


class Hub(Client):
    """The Hub as somebody who publishes asks it."""

    tries = 4

    def account(self) -> Account:
        """Ask who is logged in; an AccessError if nobody is."""
        said = self.ask("asking who you are", self.api.whoami)
        orgs = {org["name"]: str(org.get("roleInOrg", "")) for org in said.get("orgs", [])}
        role = said.get("auth", {}).get("accessToken", {}).get("role", "fineGrained")
        return Account(said["name"], orgs, str(role))

    def look(self, repo_id: str, branch: str, *, pulls: bool = False) -> Remote | None:
        """See what a repository is now; None if there is none that this account sees."""
        info, exists = None, False
        for revision in dict.fromkeys((branch, "main")):
            try:
                info, exists = self.info(repo_id, revision, files_metadata=True), revision == branch
                break
            except MissingError:
                pass
        if info is None:
            return None
        keys: dict[str, Any] = {"repo_type": "dataset", "include_pull_requests": pulls}
        refs = self.ask(f"reading {repo_id}", self.api.list_repo_refs, repo_id, **keys)
        return Remote(
            repo_id=info.id,
            private=bool(info.private),
            branch=branch,
            head=info.sha,
            branch_exists=exists,
            files={
                file.rfilename: RemoteFile(file.size or 0, file.blob_id, file.lfs["sha256"] if file.lfs else None)
                for file in info.siblings or []
            },
            tags={tag.name: tag.target_commit for tag in refs.tags},
            pulls=frozenset(pull.ref for pull in refs.pull_requests or []),
        )

    def closed_to_strangers(self, repo_id: str) -> str:
        """Say why not everybody may read a dataset: `private`, `gated`, or nothing if everybody may."""
        try:
            return "gated" if self.info(repo_id, token=False).gated else ""
        except (NotFoundError, AccessError):
            return "private"

    def check_write(self, repo_id: str) -> None:
        """Refuse, before a byte is sent, a token that may not push to an existing repository."""
        doing = f"asking for write access to {repo_id}"
        try:
            self.ask(doing, self.api.auth_check, repo_id, repo_type="dataset", write=True)
        except MissingError as error:
            raise AccessError(f"You may not write to {repo_id}.", hint=LOG_IN) from error

    def snapshot(self, repo_id: str, *about: Any, revision: str | None, **keys: Any) -> Path:
        """Download as `Client.snapshot` does; a RunError if what was there a moment ago is gone."""
        try:
            return super().snapshot(repo_id, *about, revision=revision, **keys)
        except MissingError as error:
            raise RunError(f"{repo_id} is gone, or has no {revision} any more.", hint="Push again.") from error

    def fetch(self, remote: Remote, names: Iterable[str], cache: Path) -> Path:
        """Download files of a repository at its head into a cache of one's own, each as the Hub lists it."""
        digests = {name: remote.files[name].digest for name in names}
        return self.snapshot(remote.repo_id, sorted(digests), digests, revision=remote.head, cache=cache)

    def create(self, repo_id: str, *, private: bool) -> None:
        """Create a repository, unless it has come to be meanwhile."""
        self._make(f"creating {repo_id}", self.api.create_repo, repo_id, private=private)

    def create_branch(self, remote: Remote) -> None:
        """Create a remote's branch at its head, unless it has come to be meanwhile."""
        keys: dict[str, Any] = {"branch": remote.branch, "revision": remote.head}
        self._make(f"creating the branch {remote.branch}", self.api.create_branch, remote.repo_id, **keys)

    def _make(self, doing: str, call: Callable[..., Any], repo_id: str, **keys: Any) -> None:
        try:
            self.ask(doing, call, repo_id, repo_type="dataset", exist_ok=True, **keys)
        except MissingError as error:
            raise AccessError(f"{doing}: the Hub does not let you ({error.message}).", hint=LOG_IN) from error

    def commit(self, plan: PushPlan) -> Any:
        """Commit all changes of a plan as one, on top of exactly its remote's head, and give the client's CommitInfo.

        Asked once only: after `UnsureError` the caller must look whether the commit is there. ConflictError if the
        branch has moved on.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        remote, operations = plan.existing, list[Any]()
        operations += [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in plan.deletes]
        operations += [CommitOperationAdd(path_in_repo=path, path_or_fileobj=at) for path, at in plan.uploads.items()]
        keys: dict[str, Any] = {"revision": remote.branch, "parent_commit": remote.head, "repo_type": "dataset"}
        keys |= {"commit_message": plan.title, "commit_description": plan.text, "create_pr": plan.options.create_pr}
        doing = f"committing to {remote.repo_id}"
        try:
            return self.ask(doing, self.api.create_commit, remote.repo_id, operations, once=True, **keys)
        except MissingError as error:
            message = f"{remote.repo_id} was deleted or renamed meanwhile; nothing was published."
            raise RunError(message, hint="Push again to create it anew.") from error

    def tag(self, repo_id: str, tag: str, commit: str) -> bool:
        """Tag a commit; False if there is a tag of that name already, which is left where it is."""
        keys: dict[str, Any] = {"tag": tag, "revision": commit, "repo_type": "dataset"}
        try:
            self.ask(f"tagging {repo_id}", self.api.create_tag, repo_id, **keys)
        except ConflictError:
            return False
        except MissingError as error:
            raise RunError(f"{repo_id} is gone: it could not be tagged.", hint=GO_ON) from error
        return True
