"""What the Hub's client raises while something is read, in our own words; huggingface_hub is imported on first use."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hmdc_hub.errors import AccessError, HmdcError, NetworkError, NotFoundError, RunError, UsageError

LOG_IN = "If it is private, log in with `hf auth login` or set HF_TOKEN; an expired token looks the same."
NEW_TOKEN = "Log in again with `hf auth login`, or set HF_TOKEN; without any token, public datasets can be read."
AGAIN = "Run the same command again in a while; what was there before is unchanged."


@contextmanager
def reading(repo_id: str, revision: str | None, *, kind: str = "dataset") -> Iterator[None]:
    """Translate what the Hub's client raises while the block reads a repository.

    Args:
        repo_id: The repository.
        revision: Branch, tag or commit; None: main.
        kind: What messages call it, `dataset` or `model`.

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
    except (hub.HTTPError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise _ours(error, repo_id, revision, kind) from error
    except ValueError as error:
        if error.__cause__ is None:
            raise
        raise _ours(error, repo_id, revision, kind) from error  # a forced download that failed


def _ours(error: Exception, repo_id: str, revision: str | None, kind: str) -> HmdcError:
    """Choose by the client's type first, then by the status behind it; subclasses stand before their bases."""
    from huggingface_hub import errors as hub

    reasons = list(_chain(error))
    if any(isinstance(reason, hub.GatedRepoError) for reason in reasons):
        return NotFoundError(
            f"The {kind} {repo_id} asks for consent before a download.",
            hint="Accept its conditions on its Hub page, then log in with `hf auth login`.",
        )
    if any(isinstance(reason, hub.RepositoryNotFoundError) for reason in reasons):
        return NotFoundError(f"There is no folder and no Hub {kind} {repo_id}.", hint=LOG_IN)
    if isinstance(error, hub.RevisionNotFoundError):
        return NotFoundError(
            f"The {kind} {repo_id} has no revision {revision!r}.", hint="Its branches and tags are on its Hub page."
        )
    if any(isinstance(reason, hub.OfflineModeIsEnabled) for reason in reasons) or _offline():
        return NetworkError(
            f"HF_HUB_OFFLINE is set, and the cache does not hold all files of {repo_id}.",
            hint="Unset HF_HUB_OFFLINE, then run the same command again.",
        )
    if (local := next(filter(of_this_machine, reasons), None)) is not None:
        return local_error(f"Downloading {repo_id}", local)
    return _by_status(next((s for s in map(status_of, reasons) if s is not None), None), repo_id, reasons[-1])


_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE,
    errno.ENFILE,
}  # fmt: skip


def of_this_machine(error: Exception) -> bool:
    """Tell whether an error is the local file system's: it names a file, or a disk that is full and the like."""
    return (
        isinstance(error, OSError) and error.errno is not None and (error.filename is not None or error.errno in _DISK)
    )


def local_error(doing: str, error: Exception) -> RunError:
    """Word an error of the local file system, of which `of_this_machine` is true."""
    assert isinstance(error, OSError)
    return RunError(
        f"{doing}: {error.strerror}: {error.filename or 'the cache'}.",
        hint="This is a failure of this machine's disk or folder, not of the Hub; mend it, then run the same command "
        "again.",
    )


def _by_status(status: int | None, repo_id: str, reason: Exception) -> HmdcError:
    if status == 401:
        return AccessError("The Hub does not accept your token: it is invalid or has expired.", hint=NEW_TOKEN)
    if status == 403:
        return AccessError(f"This account or token may not read {repo_id}.", hint=LOG_IN)
    if status is None:
        return NetworkError(
            f"The Hub cannot be reached, and the cache does not hold all files of {repo_id} ({words(reason)}).",
            hint=f"Check the connection. {AGAIN}",
        )
    said = "too many requests" if status == 429 else "it is failing or overloaded" if status >= 500 else words(reason)
    return NetworkError(f"Downloading {repo_id} failed: the Hub answered {status}, {said}.", hint=AGAIN)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _chain(error: Exception) -> Iterator[Exception]:
    """Give an error and what caused it: the client hides a failing Hub behind a missing file of the cache."""
    seen: set[int] = set()
    current: BaseException | None = error
    while isinstance(current, Exception) and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


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
