"""The Hub: its client's errors in our own words, files that are compared as they arrive, and published sets.

huggingface_hub is imported on first use.
"""

from __future__ import annotations

import errno
import hashlib
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hmdc_hub
from hmdc_hub.errors import AccessError, FormatError, HmdcError, NetworkError, NotFoundError, RunError, UsageError
from hmdc_hub.schema import NEEDED, Manifest
from hmdc_hub.store.configs import check_name, choose, configs_of, is_name, read_card, read_card_text, split_card
from hmdc_hub.store.files import opened, read_record, refuse_newer
from hmdc_hub.text import cut

READS = 3  # how often a file is downloaded that does not arrive as it was sent: a byte may flip on the way
LOG_IN = (
    "Log in with `hf auth login`, or set HF_TOKEN: to push, with a token that may write; public datasets can be read "
    "without any."
)
ONLINE = "Unset HF_HUB_OFFLINE, then run the same command again."
GO_ON = "Run the same command again in a while: it goes on from what is there."


class MissingError(NotFoundError):
    """The repository or revision is not there, or this account does not see it."""


class MissingFileError(FormatError):
    """The repository is there, and has no such file."""


class ConflictError(RunError):
    """The branch is no longer at the commit that ours was to follow, or what was to be made exists."""


class UnsureError(NetworkError):
    """The Hub failed or did not answer: what was asked for may have been done; asking again may help."""

    wait: float | None = None  # seconds that the Hub asks to wait


# Type of the client's error, status of the Hub's answer, or what `_row_of` says -> our error, its words, what to do.
_ROWS: dict[str | int, tuple[type[HmdcError], str, str]] = {
    "UnicodeEncodeError": (AccessError, "Your Hub token cannot be sent: it has other characters than ASCII.", LOG_IN),
    "HFValidationError": (UsageError, "{repo_id!r} is no folder here and cannot be a Hub {kind} id.", ""),
    "LocalTokenNotFoundError": (AccessError, "You are not logged in to the Hub.", LOG_IN),
    "GatedRepoError": (
        NotFoundError,
        "The {kind} {repo_id} asks for consent before a download.",
        "Accept its conditions on its Hub page, then log in with `hf auth login`.",
    ),
    "RepositoryNotFoundError": (
        MissingError,
        "There is no folder and no Hub {kind} {repo_id}.",
        "If it is private, log in with `hf auth login` or set HF_TOKEN; an expired token looks the same.",
    ),
    "RevisionNotFoundError": (
        MissingError,
        "The {kind} {repo_id} has no revision {revision!r}.",
        "Its branches and tags are on its Hub page.",
    ),
    "RemoteEntryNotFoundError": (
        MissingFileError,
        "{doing}: it is missing.",
        "`hmdc-hub verify {repo_id}` says what else is.",
    ),
    "OfflineModeIsEnabled": (
        NetworkError,
        "HF_HUB_OFFLINE is set, and no cache has all that this takes: {doing}.",
        ONLINE,
    ),
    401: (AccessError, "The Hub does not accept your token: it is invalid or has expired.", LOG_IN),
    403: (AccessError, "{doing}: this account or token may not do that ({said}).", LOG_IN),
    404: (MissingError, "{doing}: the Hub answered 404, {said}.", LOG_IN),
    **dict.fromkeys((409, 412), (ConflictError, "{doing}: the Hub answered {status}, {said}.", GO_ON)),
    429: (UnsureError, "{doing}: the Hub answered 429, too many requests.", GO_ON),
    **dict.fromkeys(
        (408, 500, 502, 503, 504),
        (UnsureError, "{doing}: the Hub answered {status}, it is failing or overloaded.", GO_ON),
    ),
    "other status": (RunError, "{doing}: the Hub answered {status}, {said}.", GO_ON),
    "refused": (RunError, "{doing}: {said}.", GO_ON),
    "disk": (
        RunError,
        "{doing}: {said}.",
        "This is a failure of this machine's disk or folder, not of the Hub; mend it, then run the same command again.",
    ),
    "no answer": (UnsureError, "{doing}: the Hub cannot be reached ({said}).", f"Check the connection. {GO_ON}"),
}
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE,
    errno.ENFILE,
}  # fmt: skip


def translated(
    error: Exception, doing: str, repo_id: str, revision: str | None = None, kind: str = "dataset"
) -> HmdcError:
    """Put an error of the Hub's client in our own words: one of `_ROWS`."""
    chain = [error]  # the client hides a failing Hub behind a missing file of the cache
    while isinstance(cause := chain[-1].__cause__, Exception) and cause not in chain:
        chain.append(cause)
    answer = next((found for one in chain if (found := getattr(one, "response", None)) is not None), None)
    status, headers = getattr(answer, "status_code", None), getattr(answer, "headers", {})
    row = _row_of(chain, status, headers.get("X-Error-Code", ""))
    # The Hub's or the client's own words, as a clause without anything secret in it; addresses may be signed.
    words = str(getattr(chain[-1], "server_message", None) or chain[-1]) or type(chain[-1]).__name__
    said = cut(scrubbed(re.sub(r" for url '.*", "", words, flags=re.DOTALL)), 240).rstrip(".")
    if row == "disk":
        local = next(filter(_of_this_machine, chain))
        said = f"{getattr(local, 'strerror', local)}: {getattr(local, 'filename', None) or 'the cache'}"
    ours, message, hint = _ROWS[row]
    facts = {"doing": doing, "repo_id": repo_id, "revision": revision, "kind": kind, "status": status, "said": said}
    found = ours(message.format(**facts), hint=hint.format(**facts))
    after = headers.get("Retry-After", "")
    if isinstance(found, UnsureError) and after.isdigit():
        found.wait = min(float(after), 300.0)
    return found


def _row_of(chain: list[Exception], status: int | None, code: str) -> str | int:
    from huggingface_hub import constants, errors, get_token

    if status == 401 and "Repo" not in code and get_token():
        return 401  # with a token, a repository that is not there is a 404; the client cannot tell
    for row in _ROWS:
        kind = UnicodeEncodeError if row == "UnicodeEncodeError" else getattr(errors, str(row), None)
        if kind is not None and any(isinstance(one, kind) for one in chain):
            return row
    if constants.HF_HUB_OFFLINE:
        return "OfflineModeIsEnabled"
    if any(map(_of_this_machine, chain)):
        return "disk"
    if status is not None:
        return status if status in _ROWS else "other status"
    return "refused" if isinstance(chain[-1], ValueError) and not isinstance(chain[-1], OSError) else "no answer"


def _of_this_machine(error: Exception) -> bool:
    """Tell whether an error is the local file system's: it names a file, or a disk that is full and the like."""
    return (
        isinstance(error, OSError) and error.errno is not None and (error.filename is not None or error.errno in _DISK)
    )


def scrubbed(text: str) -> str:
    """Take out the token in force, whatever looks like one, and the login in an address."""
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "(token)")
    return re.sub(r"(?<=://)[^/@\s]+@", "", re.sub(r"hf_[A-Za-z0-9]{8,}", "(token)", text))


@contextmanager
def without_network() -> Iterator[None]:
    """Let nothing in this block ask the Hub, as if HF_HUB_OFFLINE were set: what is in no cache is a NetworkError."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def holds(content: bytes | Path, digest: str) -> bool:
    """Tell whether content has this SHA-256 (64 hex digits) or this blob id (40), which git gives a file."""
    with io.BytesIO(content) if isinstance(content, bytes) else opened(content) as file:
        if len(digest) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
        data = file.read()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == digest


def as_named(path: Path) -> bool:
    """Tell whether a file of the client's cache has the digest that is its name there.

    True if the name says nothing: on Windows the cache holds files under their own names.
    """
    blob = path.resolve()
    return len(blob.name) not in (40, 64) or holds(blob, blob.name)


class Client:
    """The Hub, with the token that huggingface_hub finds; `pause` waits some seconds before a question's next try."""

    tries = 1  # how often a question is asked that may safely be asked again

    def __init__(self, pause: Callable[[float], None] = time.sleep) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(library_name="hmdc-hub", library_version=hmdc_hub.__version__)
        self.pause = pause

    def ask(
        self, doing: str, call: Callable[..., Any], repo_id: str = "", *arguments: Any, once: bool = False, **keys: Any
    ) -> Any:
        """Ask, `tries` times if the Hub fails and it may be asked twice; errors are those of `translated`."""
        from huggingface_hub import errors

        about = (repo_id, keys.get("revision"), keys.get("repo_type", "dataset"))
        for tried in range(1, self.tries + 1):
            try:
                return call(*([repo_id] if repo_id else []), *arguments, **keys)
            # HTTPError is the base of transfer errors whatever HTTP library is underneath; the client passes it on.
            except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
                if type(error) is ValueError and error.__cause__ is None and not once:
                    raise  # a bug; with a cause a forced download failed, and of a commit the Hub refused a large file
                ours = translated(error, doing, *about)
                if not isinstance(ours, UnsureError) or once or tried == self.tries:
                    raise ours from error
                self.rest(ours, tried)
        raise AssertionError("unreachable")

    def rest(self, error: UnsureError, tried: int) -> None:
        """Wait before trying again: as long as the Hub asks for, else 1, 2, 4 seconds."""
        self.pause(2.0 ** (tried - 1) if error.wait is None else error.wait)

    def info(self, repo_id: str, revision: str | None = None, kind: str = "dataset", **keys: Any) -> Any:
        """Ask what a repository is: commit, visibility, card."""
        keys |= {"revision": revision, "repo_type": kind, "timeout": 30}
        return self.ask(f"reading {repo_id}", self.api.repo_info, repo_id, **keys)

    def file(
        self,
        repo_id: str,
        name: str,
        good: Callable[[Path], bool] = as_named,
        *,
        revision: str | None = None,
        cache: Path | None = None,
        kind: str = "dataset",
    ) -> Path:
        """Download a file, and again where it is not `good`: the client compares sizes, and serves a damaged cache.

        It is MissingFileError if there is none, FormatError if it never arrives as it must. With a cache of None, the
        client's own, which programs share.
        """
        from huggingface_hub import constants

        doing = f"reading {name} of {repo_id}"
        keys: dict[str, Any] = {"revision": revision, "repo_type": kind, "cache_dir": cache}
        for tried in range(1 if constants.HF_HUB_OFFLINE else READS):
            found = self.ask(doing, self.api.hf_hub_download, repo_id, name, force_download=tried > 0, **keys)
            if good(path := Path(found)):
                return path
        if constants.HF_HUB_OFFLINE:
            raise FormatError(f"{name} of {repo_id} is damaged in the cache, and HF_HUB_OFFLINE is set.", hint=ONLINE)
        raise FormatError(
            f"{name} of {repo_id} did not arrive as it is listed there.",
            hint=f"Run the same command again; if it stays so, `hmdc-hub verify {repo_id}` says what else is wrong.",
        )

    def snapshot(
        self,
        repo_id: str,
        patterns: Iterable[str],
        digests: Mapping[str, str],
        *,
        revision: str | None,
        cache: Path | None,
    ) -> Path:
        """Download files of a dataset by names or patterns, all of one commit, the folder's name.

        Each one with a digest (`holds`) arrives as it must, or it is an error of `file`.
        """
        doing = f"downloading {repo_id}"
        keys: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "cache_dir": cache}
        found = self.ask(doing, self.api.snapshot_download, repo_id, allow_patterns=list(patterns), **keys)
        folder = Path(found)
        for name, digest in digests.items():
            good = partial(holds, digest=digest)
            if not ((folder / name).is_file() and good(folder / name)):
                self.file(repo_id, name, good, revision=folder.name, cache=cache)
        return folder


# Published sets


@dataclass(frozen=True)
class Downloaded:
    """Files of a published set, all of one commit."""

    folder: Path  # where they are, at their paths in the repository
    commit: str  # forty hex digits
    configs: tuple[str, ...]  # those that were downloaded, in the card's order
    default: str | None  # the one that the card names as default, if it is one of ours


def download(repo_id: str, config: str | None, revision: str | None) -> Path:
    """Download info.json and condensed.safetensors of one configuration, into one folder of the client's cache."""
    of = _Published(repo_id, config, revision, None)
    (chosen,) = of.configs
    listed = of.listed(chosen)
    for name in (f"{chosen}/info.json", f"{chosen}/condensed.safetensors"):
        path = of.file(name, partial(holds, digest=listed[name]))
    return path.parent


def download_package(
    repo_id: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    everything: bool = False,
    cache: Path | None = None,
    check: bool = True,
) -> Downloaded:
    """Download whole configurations with the card: the named, the only or the default one, or `everything`.

    Into the client's cache, whose damaged files are fetched again, or into one's own. With `check`, what the manifests
    list, each file compared; without, whatever lies in the folders of the configurations, for the caller to compare. A
    FormatError if a file is not the one that its manifest lists, or a manifest is damaged or lists too little.
    """
    everything = everything and config is None
    of = _Published(repo_id, config, revision, cache, everything=everything)
    names = of.configs
    wanted, listed = ["README.md", "croissant.json", *(f"{name}/manifest.json" for name in names)], dict[str, str]()
    if check:
        for name in names:
            listed |= of.listed(name)
        wanted += listed
    else:
        wanted += [pattern for name in names for pattern in (f"{name}/*", f"assets/{name}/*")]
        # What nobody listed may be there all the same, and `scores/*.parquet` is what viewers show.
        wanted += ["*/manifest.json", "scores/*"] if everything else [f"scores/{name}.parquet" for name in names]
    folder = of.client.snapshot(repo_id, wanted, listed, revision=of.commit, cache=cache)
    return Downloaded(folder, of.commit, tuple(names), of.default if of.default in names else None)


class _Published:
    """A published set at the commit that its card is of: even if somebody pushes in between, all files are of it."""

    def __init__(
        self, repo_id: str, config: str | None, revision: str | None, cache: Path | None, *, everything: bool = False
    ) -> None:
        if config is not None:
            check_name(config)
        self.repo_id, self.cache, self.client = repo_id, cache, Client()
        try:
            path = self.client.file(repo_id, "README.md", revision=revision, cache=cache)
        except MissingFileError as error:
            raise self._foreign("it has no card") from error
        self.commit, card = path.parent.name, read_card_text(path)  # snapshots/<commit>/README.md
        block = split_card(card)[0]
        refuse_newer(block.get("hmdc"), repo_id)
        ours = list(configs_of(block))
        if not ours:
            raise self._foreign("its card lists no configurations of one")
        if wrong := [name for name in ours if not isinstance(name, str) or not is_name(name)]:
            raise FormatError(
                f"The card of {repo_id} is damaged: {str(wrong[0])[:80]!r} is not the name of a configuration.",
                hint="Tell its author, who can push again.",
            )
        shown, self.default = read_card(card)
        names = [*[name for name in shown if name in ours], *[name for name in ours if name not in shown]]
        self.configs = names if everything else [choose(names, self.default, config, repo_id)]

    def _foreign(self, why: str) -> NotFoundError:
        return NotFoundError(
            f"{self.repo_id} is no condensed set of hmdc-hub: {why}.",
            hint=f'`datasets.load_dataset("{self.repo_id}")` loads any dataset.',
        )

    def file(self, name: str, good: Callable[[Path], bool] = as_named) -> Path:
        return self.client.file(self.repo_id, name, good, revision=self.commit, cache=self.cache)

    def listed(self, config: str) -> dict[str, str]:
        """Read which files a configuration has: path to SHA-256."""
        where = f"{config}/manifest.json of {self.repo_id}"
        found = read_record(self.file(f"{config}/manifest.json"), Manifest, where)
        listed = {file.path: file.sha256 for file in found.files}
        lacking = [f"{config}/{name}" for name in NEEDED if f"{config}/{name}" not in listed]
        if found.config != config or lacking:
            what = f"does not list {lacking[0]}" if lacking else f"is that of {found.config}"
            raise FormatError(f"{where} is damaged: it {what}.", hint="Tell its author, who can push again.")
        return listed
