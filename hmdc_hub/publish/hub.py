"""What publishing asks of the Hub, one method per question; nothing else in `hmdc_hub.publish` touches the network."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hmdc_hub
from hmdc_hub.errors import AccessError, FormatError, RunError
from hmdc_hub.store.hub_errors import GO_ON, LOG_IN_TO_WRITE, ConflictError, MissingError, UnsureError, explained

TRIES = 4
"""How often a question is asked that may safely be asked again."""
READS = 3
"""How often a file is downloaded that does not arrive as it was sent: a byte may flip on the way."""


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
        """Refuse a namespace that this account cannot create a repository in, with an AccessError."""
        if self.role == "read":
            raise AccessError("Your Hub token may only read.", hint=LOG_IN_TO_WRITE)
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
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
            if self.sha256 is not None:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
            # The id that git gives a file: SHA-1 over a header and the content.
            return hashlib.sha1(b"blob %d\0" % size + file.read(), usedforsecurity=False).hexdigest() == self.oid


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


class Hub:
    """The Hub, with the token that huggingface_hub finds.

    Args:
        pause: Waits some seconds before a question is asked again; None: `time.sleep`.
    """

    def __init__(self, pause: Callable[[float], None] | None = None) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(library_name="hmdc-hub", library_version=hmdc_hub.__version__)
        self.pause = pause or time.sleep

    def ask(self, doing: str, repo_id: str, call: Callable[..., Any], *arguments: Any, **keys: Any) -> Any:
        """Ask something that may be asked twice, a few times if the Hub fails; errors as `explained`."""
        for tried in range(1, TRIES + 1):
            try:
                with explained(doing, repo_id):
                    return call(*arguments, **keys)
            except UnsureError as error:
                if tried == TRIES:
                    raise error.reason from error
                self.rest(error, tried)
        raise AssertionError("unreachable")

    def rest(self, error: UnsureError, tried: int) -> None:
        """Wait before trying again: as long as the Hub asks for, else 1, 2, 4 seconds."""
        self.pause(2.0 ** (tried - 1) if error.wait is None else error.wait)

    def account(self) -> Account:
        """Ask who is logged in; an AccessError if nobody is."""
        said = self.ask("asking who you are", "", self.api.whoami)
        orgs = {org["name"]: str(org.get("roleInOrg", "")) for org in said.get("orgs", [])}
        role = said.get("auth", {}).get("accessToken", {}).get("role", "fineGrained")
        return Account(said["name"], orgs, str(role))

    def look(self, repo_id: str, branch: str, *, pulls: bool = False) -> Remote | None:
        """See what a repository is now; None if there is none that this account sees."""
        there = self._info(repo_id, branch)
        info = there or self._info(repo_id, "main")
        if info is None:
            return None
        keys = {"repo_type": "dataset", "include_pull_requests": pulls}
        refs = self.ask(f"reading {repo_id}", repo_id, self.api.list_repo_refs, repo_id, **keys)
        return Remote(
            repo_id=info.id,
            private=bool(info.private),
            branch=branch,
            head=info.sha,
            branch_exists=there is not None,
            files={file.rfilename: _file(file) for file in info.siblings or []},
            tags={tag.name: tag.target_commit for tag in refs.tags},
            pulls=frozenset(pull.ref for pull in refs.pull_requests or []),
        )

    def _info(self, repo_id: str, revision: str) -> Any:
        keys = {"revision": revision, "files_metadata": True}
        try:
            return self.ask(f"reading {repo_id}", repo_id, self.api.dataset_info, repo_id, **keys)
        except MissingError:
            return None

    def closed_to_strangers(self, repo_id: str) -> str:
        """Say why not everybody may read a dataset: `private`, `gated`, or nothing if everybody may."""
        try:
            info = self.ask(f"reading {repo_id}", repo_id, self.api.dataset_info, repo_id, token=False)
        except (MissingError, AccessError):
            return "private"
        return "gated" if info.gated else ""

    def check_write(self, repo_id: str) -> None:
        """Refuse, before a byte is sent, a token that may not push to an existing repository."""
        doing = f"asking for write access to {repo_id}"
        try:
            self.ask(doing, repo_id, self.api.auth_check, repo_id, repo_type="dataset", write=True)
        except MissingError as error:
            raise AccessError(f"You may not write to {repo_id}.", hint=LOG_IN_TO_WRITE) from error

    def fetch(self, remote: Remote, wanted: Iterable[str], cache: Path) -> Path:
        """Download files of a repository at its head into a cache of one's own, and check every one.

        The Hub's shared cache would serve a damaged file again.

        Raises:
            FormatError: A file arrived with other content than the Hub lists.
        """
        names = sorted(wanted)
        checks = {name: remote.files[name].holds for name in names}
        folder, wrong = self.download(remote.repo_id, remote.head, names, cache, checks)
        if wrong:
            message = f"{wrong[0]} of {remote.repo_id} did not arrive as the Hub lists it."
            raise FormatError(message, hint="Run the same command again.")
        return folder

    def download(
        self, repo_id: str, revision: str, names: list[str], cache: Path, checks: Mapping[str, Callable[[Path], bool]]
    ) -> tuple[Path, list[str]]:
        """Download files by names or patterns, and those again that did not arrive as they must.

        Returns:
            A folder with the files at their paths, and the paths that fail their check after `READS` downloads.

        Raises:
            RunError: The repository or the revision is gone.
        """
        keys = {"repo_type": "dataset", "revision": revision, "cache_dir": cache, "allow_patterns": names}
        for tried in range(1, READS + 1):
            doing = f"downloading from {repo_id}"
            try:
                folder = Path(self.ask(doing, repo_id, self.api.snapshot_download, repo_id, **keys))
            except MissingError as error:
                raise RunError(f"{repo_id} is gone, or has no {revision} any more.", hint="Push again.") from error
            wrong = [name for name, good in checks.items() if not ((folder / name).is_file() and good(folder / name))]
            if not wrong or tried == READS:
                return folder, wrong
            for path in (folder / name for name in wrong):
                path.resolve().unlink(missing_ok=True)  # the client takes what its cache holds for right
                path.unlink(missing_ok=True)
        raise AssertionError("unreachable")

    def create(self, repo_id: str, *, private: bool) -> None:
        """Create a repository, unless it has come to be meanwhile."""
        self._make(f"creating {repo_id}", self.api.create_repo, repo_id, private=private)

    def create_branch(self, remote: Remote) -> None:
        """Create a remote's branch at its head, unless it has come to be meanwhile."""
        keys = {"branch": remote.branch, "revision": remote.head}
        self._make(f"creating the branch {remote.branch}", self.api.create_branch, remote.repo_id, **keys)

    def _make(self, doing: str, call: Callable[..., Any], repo_id: str, **keys: Any) -> None:
        try:
            self.ask(doing, repo_id, call, repo_id, repo_type="dataset", exist_ok=True, **keys)
        except MissingError as error:
            raise AccessError(f"{error}.", hint=LOG_IN_TO_WRITE) from error
        except ConflictError as error:
            raise RunError(f"{error}.", hint=GO_ON) from error

    def commit(
        self,
        remote: Remote,
        uploads: Mapping[str, bytes | Path],
        deletes: Iterable[str],
        title: str,
        text: str,
        *,
        create_pr: bool = False,
    ) -> Any:
        """Commit all changes as one, on top of exactly the remote's head.

        Asked once only: after `UnsureError` the caller must look whether the commit is there.

        Returns:
            The client's CommitInfo.

        Raises:
            ConflictError: The branch has moved on.
            UnsureError: It may or may not be there.
            AccessError: This token may not.
            RunError: The repository is gone, or the Hub refused the commit.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in deletes]
        operations += [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in uploads.items()]
        try:
            with explained(f"committing to {remote.repo_id}", remote.repo_id):
                return self.api.create_commit(
                    remote.repo_id,
                    operations,
                    commit_message=title,
                    commit_description=text,
                    repo_type="dataset",
                    revision=remote.branch,
                    parent_commit=remote.head,
                    create_pr=create_pr,
                )
        except MissingError as error:
            message = f"{remote.repo_id} was deleted or renamed meanwhile; nothing was published."
            raise RunError(message, hint="Push again to create it anew.") from error

    def tag(self, repo_id: str, tag: str, commit: str) -> bool:
        """Tag a commit; False if there is a tag of that name already, which is left where it is."""
        keys = {"tag": tag, "revision": commit, "repo_type": "dataset"}
        try:
            self.ask(f"tagging {repo_id}", repo_id, self.api.create_tag, repo_id, **keys)
        except ConflictError:
            return False
        except MissingError as error:
            raise RunError(f"{repo_id} is gone: it could not be tagged.", hint="Push again.") from error
        return True

    def file_at(self, repo_id: str, path: str, revision: str) -> RemoteFile | None:
        """Look one file up at a revision; None if it is not there."""
        keys = {"revision": revision, "repo_type": "dataset"}
        try:
            found = self.ask(f"reading {repo_id}", repo_id, self.api.get_paths_info, repo_id, [path], **keys)
        except MissingError:
            return None
        return _file(found[0]) if found and hasattr(found[0], "blob_id") else None


def _file(found: Any) -> RemoteFile:
    return RemoteFile(found.size or 0, found.blob_id, found.lfs["sha256"] if found.lfs else None)
