"""Condensed sets from the Hub: one commit, checked by hash, every failure in our own words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub import errors as hub

import hmdc_hub
from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.schema import NEEDED, Manifest
from hmdc_hub.store.configs import check_name, choose, configs_of, is_name, read_card, read_card_text, split_card
from hmdc_hub.store.files import MAX_RECORD, parse_record, refuse_newer, sha256_file
from hmdc_hub.store.hub_errors import reading


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

    Returns:
        The folder with both files, all of one commit; arguments and errors as those of `download_package`.
    """
    with reading(repo_id, revision):
        at, (chosen,), _ = _open(repo_id, config, revision, None)
        listed = at.manifest(chosen)
        at.checked(f"{chosen}/info.json", listed)
        return at.checked(f"{chosen}/condensed.safetensors", listed).parent


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
        check: Download what the manifests list and compare every file. False: download whatever lies in the folders of
            the configurations, and leave comparing to the caller.

    Raises:
        NotFoundError: No such dataset, revision or configuration, or this account does not see it.
        AccessError: The token is invalid, has expired, or may not read it.
        UsageError: Several configurations and no default one.
        FormatError: A file on the Hub is not the one that its manifest lists, or a manifest is damaged or lists too
            little.
        NewerFormatError: The set is of a newer format version than this program reads.
        NetworkError: The Hub cannot be reached, or the cache does not hold the files while offline.
    """
    with reading(repo_id, revision):
        at, chosen, default = _open(repo_id, config, revision, cache, everything=everything)
        wanted, listed = ["README.md", *(f"{name}/manifest.json" for name in chosen)], dict[str, str]()
        if check:
            for name in chosen:
                listed |= at.manifest(name)
            wanted += listed
        else:
            wanted += [pattern for name in chosen for pattern in (f"{name}/*", f"assets/{name}/*")]
            # What nobody listed may be there all the same, and `scores/*.parquet` is what viewers show.
            all_of_it = everything and config is None
            wanted += ["*/manifest.json", "scores/*"] if all_of_it else [f"scores/{name}.parquet" for name in chosen]
        folder = Path(
            snapshot_download(
                repo_id, repo_type="dataset", revision=at.revision, cache_dir=cache, allow_patterns=wanted, **_LIBRARY
            )
        )
        for path in listed:
            at.checked(path, listed)
    return Downloaded(folder, folder.name, tuple(chosen), default if default in chosen else None)


_LIBRARY: dict[str, Any] = {"library_name": "hmdc-hub", "library_version": hmdc_hub.__version__}


@dataclass(frozen=True)
class _Dataset:
    """A dataset at one commit; before the card has come, at whatever a branch or tag means now."""

    repo_id: str
    revision: str | None
    cache: Path | None

    def fetch(self, name: str, *, force: bool = False) -> Path:
        """Download one file."""
        keys: dict[str, Any] = {"revision": self.revision, "cache_dir": self.cache, "force_download": force}
        try:
            return Path(str(hf_hub_download(self.repo_id, name, repo_type="dataset", **keys, **_LIBRARY)))
        except hub.LocalEntryNotFoundError:
            raise  # the cache has none; whether the Hub has is not known
        except hub.EntryNotFoundError as error:
            raise FormatError(
                f"{name} of {self.repo_id} is missing.", hint=f"`hmdc-hub verify {self.repo_id}` says what else is."
            ) from error

    def whole(self, name: str) -> Path:
        """Download a file that no manifest lists; the cache's copy is replaced if it is not what the Hub named it."""
        path = self.fetch(name)
        return path if constants.HF_HUB_OFFLINE or _is_blob(path) else self.fetch(name, force=True)

    def manifest(self, config: str) -> dict[str, str]:
        """Read which files a configuration has: path to SHA-256."""
        where = f"{config}/manifest.json of {self.repo_id}"
        with self.whole(f"{config}/manifest.json").open("rb") as file:
            found = parse_record(file.read(MAX_RECORD + 1), Manifest, where)
        listed = {file.path: file.sha256 for file in found.files}
        lacking = [f"{config}/{name}" for name in NEEDED if f"{config}/{name}" not in listed]
        if found.config != config or lacking:
            what = f"does not list {lacking[0]}" if lacking else f"is that of {found.config}"
            raise FormatError(f"{where} is damaged: it {what}.", hint="Tell its author, who can push again.")
        return listed

    def checked(self, name: str, listed: dict[str, str]) -> Path:
        """Download a file and check it; the client checks sizes only, and serves a damaged cache again."""
        for force in (False, True):
            path = self.fetch(name, force=force)
            if sha256_file(path) == listed[name]:
                return path
        raise FormatError(
            f"{name} of {self.repo_id} is not the file that its manifest lists.",
            hint=f"`hmdc-hub verify {self.repo_id}` says what else is wrong; tell its author.",
        )


def _is_blob(path: Path) -> bool:
    """Tell whether a file of the cache is what its name there says: SHA-256, or git's id of a small file.

    True if the name says nothing: on Windows the cache holds files under their own names.
    """
    blob = path.resolve()
    if len(blob.name) == 64:
        return sha256_file(blob) == blob.name
    data = blob.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return len(blob.name) != 40 or git == blob.name


def _open(
    repo_id: str, config: str | None, revision: str | None, cache: Path | None, *, everything: bool = False
) -> tuple[_Dataset, list[str], str | None]:
    """Download the card, and choose among the configurations that hmdc-hub published.

    Returns:
        The dataset at the commit that the card is of, the chosen configurations in the card's order, and the card's
        default one. Files of a Hub cache live under snapshots/<commit>/: what is asked for by that commit belongs to
        this card, even if somebody pushes in between.
    """
    if config is not None:
        check_name(config)
    try:
        path = _Dataset(repo_id, revision, cache).fetch("README.md")
    except FormatError as error:
        raise _foreign(repo_id, "it has no card") from error
    at = _Dataset(repo_id, path.parent.name, cache)
    card = read_card_text(at.whole("README.md"))
    block = split_card(card)[0]
    refuse_newer(block.get("hmdc"), repo_id)
    ours = list(configs_of(block))
    if not ours:
        raise _foreign(repo_id, "its card lists no configurations of one")
    for name in ours:
        if not isinstance(name, str) or not is_name(name):
            raise FormatError(
                f"The card of {repo_id} is damaged: {str(name)[:80]!r} is not the name of a configuration.",
                hint="Tell its author, who can push again.",
            )
    shown, default = read_card(card)
    names = [*[name for name in shown if name in ours], *[name for name in ours if name not in shown]]
    return at, names if everything and config is None else [choose(names, default, config, repo_id)], default


def _foreign(repo_id: str, why: str) -> NotFoundError:
    return NotFoundError(
        f"{repo_id} is no condensed set of hmdc-hub: {why}.",
        hint=f'`datasets.load_dataset("{repo_id}")` loads any dataset.',
    )
