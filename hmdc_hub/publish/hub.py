"""What publishing asks of the Hub, one method per question; nothing else in `hmdc_hub.publish` touches the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import hmdc_hub
from hmdc_hub.errors import AccessError, FormatError, RunError
from hmdc_hub.publish.hub_errors import AGAIN, LOG_IN, ConflictError, MissingError, UnsureError, explained
from hmdc_hub.publish.remote import Account, Remote, RemoteFile

TRIES = 4
"""How often a question is asked that may safely be asked again."""

READS = 3
"""How often a file is downloaded that does not arrive as it was sent: a byte may flip on the way."""

_Answer = TypeVar("_Answer")


class Hub:
    """The Hub, with the token that huggingface_hub finds.

    Args:
        pause: Waits some seconds before a question is asked again; None: `time.sleep`.
    """

    def __init__(self, pause: Callable[[float], None] | None = None) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(library_name="hmdc-hub", library_version=hmdc_hub.__version__)
        self.pause = pause or time.sleep

    def ask(self, doing: str, repo_id: str, call: Callable[[], _Answer]) -> _Answer:
        """Ask something that may be asked twice, a few times if the Hub fails; errors as `explained`."""
        for tried in range(1, TRIES + 1):
            try:
                with explained(doing, repo_id):
                    return call()
            except UnsureError as error:
                if tried == TRIES:
                    raise error.reason from error
                self.rest(error, tried)
        raise AssertionError("unreachable")

    def rest(self, error: UnsureError, tried: int) -> None:
        """Wait before trying again: as long as the Hub asks for, else 1, 2, 4 seconds."""
        self.pause(2.0 ** (tried - 1) if error.wait is None else error.wait)

    def account(self) -> Account:
        """Ask who is logged in.

        Raises:
            AccessError: Nobody, or the token is invalid.
        """
        said = self.ask("asking who you are", "", self.api.whoami)
        return Account(
            name=said["name"],
            orgs={org["name"]: str(org.get("roleInOrg", "")) for org in said.get("orgs", [])},
            role=str(said.get("auth", {}).get("accessToken", {}).get("role", "fineGrained")),
        )

    def look(self, repo_id: str, branch: str, *, pulls: bool = False) -> Remote | None:
        """See what a repository is now; None if there is none that this account sees."""
        info = self._info(repo_id, branch)
        at_branch = info is not None
        if info is None:
            info = self._info(repo_id, "main")
        if info is None:
            return None
        refs = self.ask(
            f"reading {repo_id}",
            repo_id,
            lambda: self.api.list_repo_refs(repo_id, repo_type="dataset", include_pull_requests=pulls),
        )
        return Remote(
            repo_id=info.id,
            private=bool(info.private),
            branch=branch,
            head=info.sha,
            branch_exists=at_branch,
            files={
                file.rfilename: RemoteFile(file.size or 0, file.blob_id, file.lfs["sha256"] if file.lfs else None)
                for file in info.siblings or []
            },
            tags={tag.name: tag.target_commit for tag in refs.tags},
            pulls=frozenset(pull.ref for pull in refs.pull_requests or []),
        )

    def _info(self, repo_id: str, revision: str) -> Any:
        def call() -> Any:
            return self.api.dataset_info(repo_id, revision=revision, files_metadata=True)

        try:
            return self.ask(f"reading {repo_id}", repo_id, call)
        except MissingError:
            return None

    def closed_to_strangers(self, repo_id: str) -> str:
        """Say why not everybody may read a dataset: `private`, `gated`, or nothing if everybody may."""
        try:
            info = self.ask(f"reading {repo_id}", repo_id, lambda: self.api.dataset_info(repo_id, token=False))
        except (MissingError, AccessError):
            return "private"
        return "gated" if info.gated else ""

    def check_write(self, repo_id: str) -> None:
        """Find out whether this token may push to an existing repository, before a byte is sent.

        Raises:
            AccessError: It may not.
        """
        doing = f"asking for write access to {repo_id}"
        try:
            self.ask(doing, repo_id, lambda: self.api.auth_check(repo_id, repo_type="dataset", write=True))
        except MissingError as error:
            raise AccessError(f"You may not write to {repo_id}.", hint=LOG_IN) from error

    def fetch(self, remote: Remote, wanted: Iterable[str], cache: Path) -> Path:
        """Download files of a repository at its head into a cache of one's own, and check every one.

        Args:
            remote: The repository.
            wanted: Paths, all of them in `remote.files`.
            cache: An empty or own folder: the Hub's shared cache would serve a damaged file again.

        Returns:
            A folder with the files at their paths.

        Raises:
            FormatError: A file arrived with other content than the Hub lists.
        """
        names = sorted(wanted)
        checks = {name: remote.files[name].holds for name in names}
        folder, wrong = self.download(remote.repo_id, remote.head, names, cache, checks)
        if wrong:
            raise FormatError(
                f"{wrong[0]} of {remote.repo_id} did not arrive as the Hub lists it.",
                hint="Run the same command again.",
            )
        return folder

    def download(
        self, repo_id: str, revision: str, names: list[str], cache: Path, checks: Mapping[str, Callable[[Path], bool]]
    ) -> tuple[Path, list[str]]:
        """Download files of one revision, and those again that did not arrive as they must.

        Args:
            repo_id: The repository.
            revision: Branch, tag, commit or ref of a pull request.
            names: Paths, or patterns of them.
            cache: A folder of one's own.
            checks: Says by path whether a file is as it must be.

        Returns:
            A folder with the files at their paths, and the paths that are not as they must be after `READS` downloads.
        """
        for tried in range(1, READS + 1):
            folder = self._download(repo_id, revision, names, cache)
            wrong = [name for name, good in checks.items() if not ((folder / name).is_file() and good(folder / name))]
            if not wrong or tried == READS:
                return folder, wrong
            for path in (folder / name for name in wrong):
                path.resolve().unlink(missing_ok=True)  # the client takes what its cache holds for right
                path.unlink(missing_ok=True)
        raise AssertionError("unreachable")

    def _download(self, repo_id: str, revision: str, names: list[str], cache: Path) -> Path:
        def call() -> str:
            return str(
                self.api.snapshot_download(
                    repo_id, repo_type="dataset", revision=revision, cache_dir=cache, allow_patterns=names
                )
            )

        try:
            return Path(self.ask(f"downloading from {repo_id}", repo_id, call))
        except MissingError as error:
            raise RunError(f"{repo_id} is gone, or has no {revision} any more.", hint="Push again.") from error

    def create(self, repo_id: str, *, private: bool) -> None:
        """Create a repository, unless it has come to be meanwhile."""

        def call() -> None:
            self.api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)

        self._refusable(f"creating {repo_id}", repo_id, call)

    def create_branch(self, remote: Remote) -> None:
        """Create a remote's branch at its head, unless it has come to be meanwhile."""

        def call() -> None:
            self.api.create_branch(
                remote.repo_id, repo_type="dataset", branch=remote.branch, revision=remote.head, exist_ok=True
            )

        self._refusable(f"creating the branch {remote.branch}", remote.repo_id, call)

    def _refusable(self, doing: str, repo_id: str, call: Callable[[], None]) -> None:
        try:
            self.ask(doing, repo_id, call)
        except MissingError as error:
            raise AccessError(f"{error}.", hint=LOG_IN) from error
        except ConflictError as error:
            raise RunError(f"{error}.", hint=AGAIN) from error

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
            raise RunError(
                f"{remote.repo_id} was deleted or renamed meanwhile; nothing was published.",
                hint="Push again to create it anew.",
            ) from error

    def tag(self, remote_id: str, tag: str, commit: str) -> bool:
        """Tag a commit; False if there is a tag of that name already, which is left where it is."""
        try:
            self.ask(
                f"tagging {remote_id}",
                remote_id,
                lambda: self.api.create_tag(remote_id, tag=tag, revision=commit, repo_type="dataset"),
            )
        except ConflictError:
            return False
        except MissingError as error:
            raise RunError(f"{remote_id} is gone: it could not be tagged.", hint="Push again.") from error
        return True

    def file_at(self, repo_id: str, path: str, revision: str) -> RemoteFile | None:
        """Look one file up at a revision; None if it is not there."""
        from huggingface_hub.hf_api import RepoFile

        try:
            found = self.ask(
                f"reading {repo_id}",
                repo_id,
                lambda: self.api.get_paths_info(repo_id, [path], revision=revision, repo_type="dataset"),
            )
        except MissingError:
            return None
        if not found or not isinstance(found[0], RepoFile):
            return None
        lfs = found[0].lfs
        return RemoteFile(found[0].size, found[0].blob_id, lfs["sha256"] if lfs else None)
