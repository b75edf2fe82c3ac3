"""What the Hub's client raises, in our own words; huggingface_hub is imported on first use."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hmdc_hub.errors import AccessError, HmdcError, NetworkError, RunError
from hmdc_hub.store.hub_errors import local_error, of_this_machine, status_of, words
from hmdc_hub.store.hub_errors import scrubbed as scrubbed

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write; then push again."
AGAIN = "Run the same command again: it goes on from what the Hub has."
_TRANSIENT = {408, 429, 500, 502, 503, 504}


class ConflictError(Exception):
    """The branch is no longer at the commit that ours was to follow; never leaves `hmdc_hub.publish`."""


class UnsureError(Exception):
    """The Hub failed or did not answer: what was asked for may or may not have been done.

    Args:
        reason: The failure as an error of ours, for when asking again does not help.
        wait: Seconds the Hub asks to wait; None if it does not say.
    """

    def __init__(self, reason: HmdcError, wait: float | None) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.wait = wait


class MissingError(Exception):
    """The repository or revision is not there, or this account does not see it."""


@contextmanager
def explained(doing: str, repo_id: str) -> Iterator[None]:
    """Translate what the Hub's client raises while the block runs.

    Args:
        doing: What was being done, as a clause: `creating someone/x`.
        repo_id: For hints.

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
        raise AccessError("You are not logged in to the Hub.", hint=LOG_IN) from error
    except hub.OfflineModeIsEnabled as error:
        raise NetworkError(
            f"{doing}: HF_HUB_OFFLINE is set.", hint="Unset HF_HUB_OFFLINE, then run the same command again."
        ) from error
    # HTTPError is the base of transfer errors whatever HTTP library is underneath; the client only passes it on.
    except (hub.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        raise _ours(error, doing, repo_id) from error


def _ours(error: Exception, doing: str, repo_id: str) -> Exception:
    status = status_of(error)
    if status is None:
        return _without_answer(error, doing)
    said = f"{doing}: the Hub answered {status}, {'too many requests' if status == 429 else words(error)}"
    if status == 401 and "Repo" not in _code(error):
        return AccessError(f"{doing}: the Hub does not accept your token; it is invalid or has expired.", hint=LOG_IN)
    if status == 403:
        owner = repo_id.partition("/")[0]
        return AccessError(
            f"{doing}: your token may not do that ({words(error)}).",
            hint=f"Log in with a token that may write to {owner} (`hf auth login`), then push again.",
        )
    if status in (401, 404):
        return MissingError(said)
    if status in (409, 412):
        return ConflictError(said)
    if status in _TRANSIENT:
        return UnsureError(NetworkError(said, hint=AGAIN), _wait(error))
    return RunError(said, hint=AGAIN)


def _without_answer(error: Exception, doing: str) -> Exception:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"{doing}: no space is left on the disk.", hint=f"Free some space. {AGAIN}")
    if of_this_machine(error):
        return local_error(doing, error)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return RunError(f"{doing}: {words(error)}")
    return UnsureError(NetworkError(f"{doing}: the connection failed ({words(error)}).", hint=AGAIN), None)


def _code(error: Exception) -> str:
    headers = getattr(getattr(error, "response", None), "headers", {})
    return str(headers.get("X-Error-Code", ""))


def _wait(error: Exception) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers.get("Retry-After", "")), 300.0)
    except ValueError:
        return None
