"""Condensed sets from the Hub: one commit, checked by hash, every failure in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import errors as hub
from huggingface_hub import hf_hub_download

import hmdc_hub
from hmdc_hub.errors import FormatError, HmdcError, NetworkError, NotFoundError, UsageError
from hmdc_hub.store.configs import check_name, choose, read_card
from hmdc_hub.store.files import read_info, sha256_file

LOG_IN = "If it is private, log in with `hf auth login` or set HF_TOKEN; an expired token looks the same."


def download(repo_id: str, config: str | None, revision: str | None) -> Path:
    """Download info.json and condensed.safetensors of one configuration into the Hub cache.

    Args:
        repo_id: The dataset.
        config: The configuration; None: the only or the default one of its card.
        revision: Branch, tag or commit; None: main.

    Returns:
        The folder with both files, all of one commit.

    Raises:
        NotFoundError: No such dataset, revision or configuration, or no access to it.
        UsageError: Several configurations and no default one.
        FormatError: The file on the Hub is not the one that info.json names.
        NetworkError: The Hub cannot be reached, or the cache does not hold the files while offline.
    """
    if config is not None:
        check_name(config)
    with _our_errors(repo_id, revision):
        card = _fetch(repo_id, "README.md", revision)
        # Files of the Hub cache live under snapshots/<commit>/: what follows comes from the same commit, even if
        # somebody pushes in between.
        commit = card.parent.name
        names, default = read_card(card.read_text(encoding="utf-8"))
        if not names:
            raise NotFoundError(f"{repo_id} is no condensed set of hmdc-hub: its card lists no configurations.")
        chosen = choose(names, default, config, repo_id)
        wanted = read_info(_fetch(repo_id, f"{chosen}/info.json", commit)).tensors_sha256
        tensors = _fetch(repo_id, f"{chosen}/condensed.safetensors", commit)
        if sha256_file(tensors) != wanted:  # the client checks sizes only, and serves a damaged cache again
            tensors = _fetch(repo_id, f"{chosen}/condensed.safetensors", commit, force=True)
            if sha256_file(tensors) != wanted:
                raise FormatError(f"{chosen}/condensed.safetensors of {repo_id} is not the file its info.json names.")
        return tensors.parent


def _fetch(repo_id: str, name: str, revision: str | None, *, force: bool = False) -> Path:
    return Path(
        hf_hub_download(
            repo_id,
            name,
            repo_type="dataset",
            revision=revision,
            force_download=force,
            library_name="hmdc-hub",
            library_version=hmdc_hub.__version__,
        )
    )


@contextmanager
def _our_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Translate what the Hub client raises; subclasses stand before their bases."""
    try:
        yield
    except HmdcError:
        raise
    except hub.GatedRepoError as error:
        raise NotFoundError(
            f"The dataset {repo_id} asks for consent before a download.",
            hint="Accept its conditions on its Hub page, then log in with `hf auth login`.",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise NotFoundError(f"There is no folder and no Hub dataset {repo_id}.", hint=LOG_IN) from error
    except hub.RevisionNotFoundError as error:
        raise NotFoundError(f"The dataset {repo_id} has no revision {revision!r}.") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise NetworkError(
            f"The Hub cannot be reached, and the cache does not hold all files of {repo_id}.",
            hint="Check the connection, and that HF_HUB_OFFLINE is not set.",
        ) from error
    except hub.EntryNotFoundError as error:
        raise NotFoundError(f"{repo_id} is no condensed set of hmdc-hub: a file is missing ({error}).") from error
    except hub.HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no folder here and cannot be a Hub dataset id.") from error
    # HTTPError is the base of transfer errors whatever HTTP library is underneath; the client only passes it on.
    except (hub.HTTPError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise NetworkError(f"Downloading {repo_id} failed: {error}.", hint=LOG_IN) from error
