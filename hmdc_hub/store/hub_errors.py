"""What the Hub's client raises, in our own words: while something is read, and while something is asked or changed.

huggingface_hub is imported on first use.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hmdc_hub.errors import AccessError, HmdcError, NetworkError, NotFoundError, RunError, UsageError

LOG_IN = "If it is private, log in with `hf auth login` or set HF_TOKEN; an expired token looks the same."
NEW_TOKEN = "Log in again with `hf auth login`, or set HF_TOKEN; without any token, public datasets can be read."
AGAIN = "Run the same command again in a while; what was there before is unchanged."
LOG_IN_TO_WRITE = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write; then push again."
GO_ON = "Run the same command again: it goes on from what the Hub has."
ONLINE = "Unset HF_HUB_OFFLINE, then run the same command again."
_OFFLINE = "HF_HUB_OFFLINE is set, and the cache does not hold all files of {repo_id}."
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE,
    errno.ENFILE,
}  # fmt: skip


class ConflictError(Exception):
    """The branch is no longer at the commit that ours was to follow; never leaves `hmdc_hub.publish`."""


class MissingError(Exception):
    """The repository or revision is not there, or this account does not see it; never leaves `hmdc_hub.publish`."""


class UnsureError(Exception):
    """The Hub failed or did not answer: what was asked for may or may not have been done.

    `reason` is the failure as an error of ours, for when asking again does not help; `wait` are seconds that the Hub
    asks to wait, None if it does not say.
    """

    def __init__(self, reason: HmdcError, wait: float | None) -> None:
        super().__init__(str(reason))
        self.reason, self.wait = reason, wait


@contextmanager
def reading(repo_id: str, revision: str | None, *, kind: str = "dataset") -> Iterator[None]:
    """Translate what the Hub's client raises while the block reads a repository of a kind, `dataset` or `model`.

    Raises:
        NotFoundError: There is no such dataset or revision, or this account does not see it.
        AccessError: The token is invalid, has expired, or may not read this.
        UsageError: The id cannot be one.
        NetworkError: The Hub cannot be reached or fails, or the cache does not hold the files while offline.
        RunError: The disk is full or cannot be written.
    """
    from huggingface_hub import errors as hub

    try:
        yield
    except HmdcError:
        raise
    except hub.HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no folder here and cannot be a Hub {kind} id.") from error
    except UnicodeEncodeError as error:
        raise AccessError(
            "Your Hub token cannot be sent: it has other characters than ASCII.", hint=NEW_TOKEN
        ) from error
    # HTTPError is the base of transfer errors whatever HTTP library is underneath; the client only passes it on.
    except (hub.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        if type(error) is ValueError and error.__cause__ is None:
            raise  # a bug; with a cause it is a forced download that failed
        raise _not_read(error, repo_id, revision, kind) from error


# The client's types before the status behind them; the first that is among an error and its causes, since the client
# hides a failing Hub behind a missing file of the cache.
_READING: tuple[tuple[str, type[HmdcError], str, str], ...] = (
    (
        "GatedRepoError",
        NotFoundError,
        "The {kind} {repo_id} asks for consent before a download.",
        "Accept its conditions on its Hub page, then log in with `hf auth login`.",
    ),
    ("RepositoryNotFoundError", NotFoundError, "There is no folder and no Hub {kind} {repo_id}.", LOG_IN),
    (
        "RevisionNotFoundError",
        NotFoundError,
        "The {kind} {repo_id} has no revision {revision!r}.",
        "Its branches and tags are on its Hub page.",
    ),
    ("OfflineModeIsEnabled", NetworkError, _OFFLINE, ONLINE),
)


def _not_read(error: Exception, repo_id: str, revision: str | None, kind: str) -> HmdcError:
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    reasons = [error]
    while isinstance(cause := reasons[-1].__cause__, Exception) and cause not in reasons:
        reasons.append(cause)
    for name, ours, message, hint in _READING:
        if any(isinstance(reason, getattr(hub, name)) for reason in reasons):
            return ours(message.format(kind=kind, repo_id=repo_id, revision=revision), hint=hint)
    if constants.HF_HUB_OFFLINE:
        return NetworkError(_OFFLINE.format(repo_id=repo_id), hint=ONLINE)
    if (local := next(filter(of_this_machine, reasons), None)) is not None:
        return local_error(f"Downloading {repo_id}", local)
    status = next((status for status in map(status_of, reasons) if status is not None), None)
    said = words(reasons[-1])
    if status is None:
        return NetworkError(
            f"The Hub cannot be reached, and the cache does not hold all files of {repo_id} ({said}).",
            hint=f"Check the connection. {AGAIN}",
        )
    if status == 401:
        return AccessError("The Hub does not accept your token: it is invalid or has expired.", hint=NEW_TOKEN)
    if status == 403:
        return AccessError(f"This account or token may not read {repo_id}.", hint=LOG_IN)
    said = "too many requests" if status == 429 else "it is failing or overloaded" if status >= 500 else said
    return NetworkError(f"Downloading {repo_id} failed: the Hub answered {status}, {said}.", hint=AGAIN)


@contextmanager
def explained(doing: str, repo_id: str) -> Iterator[None]:
    """Translate what the Hub's client raises while the block asks or changes something: `creating someone/x`.

    Raises:
        AccessError: The token is missing, invalid or expired, or may not do this.
        MissingError: There is no such repository or revision for this account.
        ConflictError: Somebody else pushed meanwhile.
        UnsureError: The Hub failed, or the connection did.
        RunError: The disk is full, or the Hub refused what it was sent.
    """
    from huggingface_hub import errors as hub

    try:
        yield
    except HmdcError:
        raise
    except hub.LocalTokenNotFoundError as error:
        raise AccessError("You are not logged in to the Hub.", hint=LOG_IN_TO_WRITE) from error
    except hub.OfflineModeIsEnabled as error:
        raise NetworkError(f"{doing}: HF_HUB_OFFLINE is set.", hint=ONLINE) from error
    except (hub.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        raise _not_done(error, doing, repo_id) from error


def _not_done(error: Exception, doing: str, repo_id: str) -> Exception:
    status, headers = status_of(error), getattr(getattr(error, "response", None), "headers", {})
    if status is None:
        if of_this_machine(error):
            return local_error(doing, error)
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            return RunError(f"{doing}: {words(error)}")
        return UnsureError(NetworkError(f"{doing}: the connection failed ({words(error)}).", hint=GO_ON), None)
    said = f"{doing}: the Hub answered {status}, {'too many requests' if status == 429 else words(error)}"
    if status == 401 and "Repo" not in headers.get("X-Error-Code", ""):
        text = f"{doing}: the Hub does not accept your token; it is invalid or has expired."
        return AccessError(text, hint=LOG_IN_TO_WRITE)
    if status == 403:
        hint = f"Log in with a token that may write to {repo_id.partition('/')[0]} (`hf auth login`), then push again."
        return AccessError(f"{doing}: your token may not do that ({words(error)}).", hint=hint)
    if status in (401, 404):
        return MissingError(said)
    if status in (409, 412):
        return ConflictError(said)
    if status in _TRANSIENT:
        after = headers.get("Retry-After", "")
        return UnsureError(NetworkError(said, hint=GO_ON), min(float(after), 300.0) if after.isdigit() else None)
    return RunError(said, hint=GO_ON)


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


def of_this_machine(error: Exception) -> bool:
    """Tell whether an error is the local file system's: it names a file, or a disk that is full and the like."""
    return (
        isinstance(error, OSError) and error.errno is not None and (error.filename is not None or error.errno in _DISK)
    )


def local_error(doing: str, error: Exception) -> RunError:
    """Word an error of the local file system, of which `of_this_machine` is true."""
    where = getattr(error, "filename", None) or "the cache"
    return RunError(
        f"{doing}: {getattr(error, 'strerror', error)}: {where}.",
        hint="This is a failure of this machine's disk or folder, not of the Hub; mend it, then run the same command "
        "again.",
    )


def status_of(error: Exception) -> int | None:
    """Give the HTTP status of an answer that became an error; None if there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def words(error: Exception) -> str:
    """Give the Hub's or the client's own words, shortened to a clause without anything secret in it."""
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return scrubbed(" ".join(lines)[:160].rstrip("."))


def scrubbed(text: str) -> str:
    """Take out the token in force, whatever looks like one, and the login in an address."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "(token)")
    return re.sub(r"(?<=://)[^/@\s]+@", "", re.sub(r"hf_[A-Za-z0-9]{8,}", "(token)", text))
