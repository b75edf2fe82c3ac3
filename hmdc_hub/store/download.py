"""Condensed sets from the Hub: one commit, checked by hash, every failure in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub
from huggingface_hub import hf_hub_download, snapshot_download

import hmdc_hub
from hmdc_hub.errors import FormatError, HmdcError, NetworkError, NewerFormatError, NotFoundError, UsageError
from hmdc_hub.schema import FORMAT_VERSION, Manifest
from hmdc_hub.store.configs import check_name, choose, read_card, read_card_text, split_card
from hmdc_hub.store.files import UPGRADE, read_info, read_record, sha256_file

LOG_IN = "If it is private, log in with `hf auth login` or set HF_TOKEN; an expired token looks the same."


@dataclass(frozen=True)
class Downloaded:
    """Files of a published set, all of one commit.

    Attributes:
        folder: Where they are, at their paths in the repository.
        commit: Forty hex digits.
        configs: Those that were downloaded, in the card's order.
        default: The one that the card names as default, if it is one of ours.
    """

    folder: Path
    commit: str
    configs: tuple[str, ...]
    default: str | None


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
        card, commit = _card(repo_id, revision, None)
        names, default = read_card(card)
        ours = [name for name in names if name in _ours(card, repo_id)]
        chosen = choose(ours, default, config, repo_id)
        wanted = read_info(_fetch(repo_id, f"{chosen}/info.json", commit)).tensors_sha256
        return _checked(repo_id, f"{chosen}/condensed.safetensors", commit, wanted, None).parent


def download_package(
    repo_id: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    everything: bool = False,
    cache: Path | None = None,
    check: bool = True,
) -> Downloaded:
    """Download whole configurations with the card.

    Args:
        repo_id: The dataset.
        config: The configuration; None: the only or the default one.
        revision: Branch, tag or commit; None: main.
        everything: With no `config`: all of them.
        cache: Where to; None: the Hub cache, whose damaged files are fetched again.
        check: Compare every file with its manifest; False leaves that to the caller.

    Raises:
        NotFoundError: No such dataset, revision or configuration, or no access to it.
        UsageError: Several configurations and no default one.
        FormatError: A file on the Hub is not the one that its manifest lists, or a manifest is damaged.
        NewerFormatError: The set is of a newer format version than this program reads.
        NetworkError: The Hub cannot be reached, or the cache does not hold the files while offline.
    """
    if config is not None:
        check_name(config)
    with _our_errors(repo_id, revision):
        card, commit = _card(repo_id, revision, cache)
        ours = _ours(card, repo_id)
        names, default = read_card(card)
        listed = [*[name for name in names if name in ours], *[name for name in ours if name not in names]]
        chosen = listed if everything and config is None else [choose(listed, default, config, repo_id)]
        wanted = ["README.md"]
        for name in chosen:
            wanted += [f"{name}/*", f"assets/{name}/*", f"scores/{name}.parquet"]
        folder = Path(
            snapshot_download(
                repo_id, repo_type="dataset", revision=commit, cache_dir=cache, allow_patterns=wanted, **_LIBRARY
            )
        )
        for name in chosen if check else []:
            manifest = read_record(folder / name / "manifest.json", Manifest)
            for file in manifest.files:
                _checked(repo_id, file.path, commit, file.sha256, cache)
        return Downloaded(folder, commit, tuple(chosen), default if default in chosen else None)


_LIBRARY: dict[str, Any] = {"library_name": "hmdc-hub", "library_version": hmdc_hub.__version__}


def _card(repo_id: str, revision: str | None, cache: Path | None) -> tuple[str, str]:
    """Download the card; gives its text and the commit.

    Files of a Hub cache live under snapshots/<commit>/: what is asked for by that commit belongs to this card, even if
    somebody pushes in between.
    """
    card = _fetch(repo_id, "README.md", revision, cache=cache)
    return read_card_text(card), card.parent.name


def _ours(card: str, repo_id: str) -> list[str]:
    """Name the configurations that hmdc-hub published.

    Raises:
        NotFoundError: There are none.
        NewerFormatError: A newer program published them.
    """
    block = split_card(card)[0].get("hmdc")
    version = block.get("format_version") if isinstance(block, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{repo_id} has format version {version}; this hmdc-hub reads versions up to {FORMAT_VERSION}.",
            hint=UPGRADE,
        )
    configs = block.get("configs") if isinstance(block, dict) else None
    names = [name for name in configs if isinstance(name, str)] if isinstance(configs, dict) else []
    if not names:
        raise NotFoundError(
            f"{repo_id} is no condensed set of hmdc-hub: its card lists no configurations of one.",
            hint=f'`datasets.load_dataset("{repo_id}")` loads any dataset.',
        )
    for name in names:
        check_name(name)
    return names


def _checked(repo_id: str, name: str, commit: str, sha256: str, cache: Path | None) -> Path:
    """Download a file and check it; the client checks sizes only, and serves a damaged cache again."""
    for force in (False, True):
        path = _fetch(repo_id, name, commit, force=force, cache=cache)
        if sha256_file(path) == sha256:
            return path
    raise FormatError(
        f"{name} of {repo_id} is not the file that its provenance names.",
        hint=f"`hmdc-hub verify {repo_id}` says what else is wrong; tell its author.",
    )


def _fetch(repo_id: str, name: str, revision: str | None, *, force: bool = False, cache: Path | None = None) -> Path:
    return Path(
        hf_hub_download(
            repo_id, name, repo_type="dataset", revision=revision, force_download=force, cache_dir=cache, **_LIBRARY
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
        raise NotFoundError(
            f"The dataset {repo_id} has no revision {revision!r}.", hint="Its branches and tags are on its Hub page."
        ) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise NetworkError(
            f"The Hub cannot be reached, and the cache does not hold all files of {repo_id}.",
            hint="Check the connection, and that HF_HUB_OFFLINE is not set.",
        ) from error
    except hub.EntryNotFoundError as error:
        raise NotFoundError(
            f"{repo_id} is no condensed set of hmdc-hub: a file is missing.", hint=_first_line(error)
        ) from error
    except hub.HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no folder here and cannot be a Hub dataset id.") from error
    # HTTPError is the base of transfer errors whatever HTTP library is underneath; the client only passes it on.
    except (hub.HTTPError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise NetworkError(f"Downloading {repo_id} failed: {_first_line(error)}.", hint=LOG_IN) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
