"""What a push would change: the package of a run laid over what the repository holds. No network here.

The outcome is decided per group of files. When pixels, labels and tensors are the repository's, its data and their
provenance stay, so that the same recipe run again with other library versions, or on another day, makes no commit.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hmdc_hub.errors import FormatError, UsageError
from hmdc_hub.publish.card import render
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_facts
from hmdc_hub.publish.remote import Remote
from hmdc_hub.schema import PackagedFile
from hmdc_hub.store.configs import read_card_text, split_card
from hmdc_hub.store.files import json_text, sha256_file, write_text_atomic

SMALL = ("manifest.json", "info.json", "recipe.yaml", "scores.json")
"""Files of a configuration that the card is made of."""


@dataclass(frozen=True)
class Staged:
    """What one push would do to a repository.

    Attributes:
        config: The configuration it is about.
        uploads: Path in the repository to content, of files that are new or differ.
        deletes: Paths of this configuration that go.
        manifest: manifest.json as it will be; `card` the same of README.md.
        facts: What the configuration will be.
        default: Configuration that the card names as default afterwards.
        notes: What was decided, for the person at the terminal.
    """

    config: str
    uploads: Mapping[str, bytes | Path]
    deletes: tuple[str, ...]
    manifest: bytes
    card: bytes
    facts: ConfigFacts
    default: str
    notes: tuple[str, ...] = field(default=())

    @property
    def tag(self) -> str:
        """Name of the tag: configuration and the first 8 hex digits of the manifest's SHA-256."""
        return f"{self.config}-{hashlib.sha256(self.manifest).hexdigest()[:8]}"

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 (hex) by path of everything that this configuration will be, with its manifest and the card."""
        own = {f"{self.config}/manifest.json": self.manifest, "README.md": self.card}
        listed = {file.path: file.sha256 for file in self.facts.manifest.files}
        return listed | {path: hashlib.sha256(data).hexdigest() for path, data in own.items()}


def configs_in(remote: Remote) -> list[str]:
    """Name the folders of a repository that look like configurations of ours."""
    return sorted(
        {path.split("/")[0] for path in remote.files if path.endswith("/manifest.json") and path.count("/") == 1}
    )


def wanted_files(remote: Remote, configs: list[str]) -> list[str]:
    """List the small files that the card is made of, and the card."""
    names = ["README.md", *(f"{config}/{name}" for config in configs for name in SMALL)]
    return [name for name in names if name in remote.files]


def check_config(facts: ConfigFacts, folder: Path, remote: Remote) -> None:
    """Refuse a published configuration whose small files and data do not belong together.

    Args:
        facts: The configuration.
        folder: Where its small files were downloaded to, at their paths.
        remote: The repository they came from.

    Raises:
        FormatError: They do not.
    """
    where = f"{facts.name} in {remote.repo_id}"
    hint = "`hmdc-hub verify` says more; push the run it came from with --force, or delete that folder on the Hub."
    for file in facts.manifest.files:
        there, copy = remote.files.get(file.path), folder / file.path
        content = sha256_file(copy) if copy.is_file() else there and there.sha256
        if there is None or (content is not None and content != file.sha256):
            problem = "is missing" if there is None else "is another file than its manifest lists"
            raise FormatError(f"{where} is damaged: {file.path} {problem}.", hint=hint)
    parquet = facts.file(f"{facts.name}/{PARQUET}")
    if parquet is None or parquet.sha256 != facts.info.parquet_sha256:
        raise FormatError(f"{where} is damaged: info.json is about another {PARQUET}.", hint=hint)
    if facts.scores is not None and facts.scores.parquet_sha256 != facts.info.parquet_sha256:
        raise FormatError(f"{where} is damaged: scores.json is about another {PARQUET}.", hint=hint)


@dataclass(frozen=True)
class Wanted:
    """What the pusher asked for that decides what changes.

    Attributes:
        default: Make this configuration the default one.
        scores_only: Leave images and tensors alone.
        force: Replace everything of the configuration, whatever it holds.
    """

    default: bool = False
    scores_only: bool = False
    force: bool = False


def stage(
    package: Path,
    union: Path,
    remote: Remote | None,
    repo_id: str,
    wanted: Wanted,
    same_images: Callable[[ConfigFacts, ConfigFacts], bool],
) -> Staged:
    """Lay a package over a repository.

    Args:
        package: Folder with one configuration, as `package` builds it.
        union: Working folder; holds README.md and the small files of every published configuration, checked. Gets
            those of this one.
        remote: The repository; None if there is none yet.
        repo_id: Where it will be.
        wanted: What was asked for.
        same_images: Compares local and published pixels, labels and tensors; asked only if hashes leave it open.

    Raises:
        UsageError: `scores_only`, and there are no scores, or other images are published.
        FormatError: A file is damaged.
    """
    (local,) = read_facts(package)
    config = local.name
    there = next((facts for facts in _facts(union) if facts.name == config), None)
    keep, notes = _keep(local, there, wanted, same_images)
    entries, contents = _merge(local, there, keep, package, union)
    manifest = _manifest(local, there, keep, entries, union)
    _lay(union / config, contents, manifest)
    previous = union / "README.md"
    card = render(
        union,
        repo_id=repo_id,
        default=config if wanted.default else None,
        previous=read_card_text(previous) if previous.is_file() else None,
    )
    everything: dict[str, bytes | Path] = {
        **contents,
        f"{config}/manifest.json": manifest,
        "README.md": card.encode(),
    }
    files = {} if remote is None else remote.files
    uploads = {path: data for path, data in everything.items() if path not in files or not files[path].holds(data)}
    gone = [] if there is None else [file.path for file in there.manifest.files if file.path not in entries]
    (facts,) = (facts for facts in _facts(union) if facts.name == config)
    return Staged(
        config=config,
        uploads=uploads,
        deletes=tuple(path for path in gone if path in files),
        manifest=manifest,
        card=card.encode(),
        facts=facts,
        default=default_of(card),
        notes=tuple(notes),
    )


def default_of(card: str) -> str:
    """Read which configuration a card names as the default one."""
    block, _ = split_card(card)
    return next(
        (str(c.get("config_name", "default")) for c in block.get("configs", []) if c.get("default") is True), ""
    )


def _facts(folder: Path) -> list[ConfigFacts]:
    return read_facts(folder) if any(folder.glob("*/manifest.json")) else []


_DATA, _RECIPE, _SCORES = "data", "recipe", "scores"


def _group(path: str) -> str:
    """Say which group a file of a configuration belongs to; a group is kept or replaced as a whole."""
    if "scores" in path.split("/")[-1] or path.startswith("scores/"):
        return _SCORES
    return _RECIPE if path.endswith(("/recipe.yaml", "/info.json")) else _DATA


def _keep(
    local: ConfigFacts,
    there: ConfigFacts | None,
    wanted: Wanted,
    same_images: Callable[[ConfigFacts, ConfigFacts], bool],
) -> tuple[set[str], list[str]]:
    """Decide which groups of the published configuration stay as they are."""
    name = local.name
    if wanted.scores_only:
        _refuse_scores_only(local, there)
    if there is None or wanted.force:
        return set(), []
    bytes_equal = _hashes(local) == _hashes(there)
    if not bytes_equal and not (_hashes(local)[0] == _hashes(there)[0] or same_images(local, there)):
        return set(), [f"{name}: other images than the published ones, which are replaced"]
    if local.scores is None and there.scores is not None:
        note = f"{name}: the same images are published with scores, which this run has none of; all of it stays"
        return {_DATA, _RECIPE, _SCORES}, [note]
    same_recipe = local.recipe == there.recipe
    same_scores = _scored_alike(local, there) and not wanted.scores_only
    if same_recipe and same_scores:
        return {_DATA, _RECIPE, _SCORES}, [f"{name}: the same images and protocol are published; they stay"]
    if not bytes_equal:
        # The run's provenance and scores name the run's own files: they cannot stand beside other bytes.
        return set(), []
    kept = {_DATA} | ({_RECIPE} if same_recipe else set()) | ({_SCORES} if same_scores else set())
    return kept, [f"{name}: the same images are published; they stay"]


def _hashes(facts: ConfigFacts) -> tuple[str, str]:
    return facts.info.tensors_sha256, facts.info.parquet_sha256


def _scored_alike(local: ConfigFacts, there: ConfigFacts) -> bool:
    if local.scores is None or there.scores is None:
        return local.scores is there.scores
    return local.scores.protocol_hash == there.scores.protocol_hash


def _refuse_scores_only(local: ConfigFacts, there: ConfigFacts | None) -> None:
    if local.scores is None:
        raise UsageError(
            f"--scores-only: this run of {local.name} has no scores.", hint="`hmdc-hub evaluate` makes them."
        )
    if there is None:
        raise UsageError(
            f"--scores-only: no {local.name} is published yet that they could stand beside.",
            hint="Leave --scores-only out to publish images and scores.",
        )
    if _hashes(local)[1] != _hashes(there)[1]:
        raise UsageError(
            f"--scores-only: the scores of this run are about other images than the published {local.name}.",
            hint="Leave --scores-only out to replace both.",
        )


def _merge(
    local: ConfigFacts, there: ConfigFacts | None, keep: set[str], package: Path, union: Path
) -> tuple[dict[str, PackagedFile], dict[str, bytes | Path]]:
    """Choose every file from the package or from the repository.

    Returns:
        Path to its line in the manifest, for all files; and the content of those that are at hand.
    """
    entries = {file.path: file for file in local.manifest.files if _group(file.path) not in keep}
    contents: dict[str, bytes | Path] = {path: package / path for path in entries}
    for file in there.manifest.files if there is not None else []:
        if _group(file.path) in keep:
            entries[file.path] = file
            if (union / file.path).is_file():
                contents[file.path] = (union / file.path).read_bytes()
    return entries, contents


def _manifest(
    local: ConfigFacts, there: ConfigFacts | None, keep: set[str], entries: Mapping[str, PackagedFile], union: Path
) -> bytes:
    """Write the manifest of the files as they will be, from the footer that belongs to the chosen parquet."""
    if there is not None and keep == {_DATA, _RECIPE, _SCORES}:
        return (union / local.name / "manifest.json").read_bytes()
    base = there.manifest if there is not None and _DATA in keep else local.manifest
    # In the order of path parts, as a package lists them.
    files = [entries[path] for path in sorted(entries, key=lambda path: path.split("/"))]
    return json_text(base.model_copy(update={"files": files})).encode()


def _lay(folder: Path, contents: Mapping[str, bytes | Path], manifest: bytes) -> None:
    """Put the small files of a configuration into its folder of the union."""
    small = {
        name: data.read_bytes() if isinstance(data, Path) else data
        for path, data in contents.items()
        for name in SMALL
        if path == f"{folder.name}/{name}"
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in (small | {"manifest.json": manifest}).items():
        write_text_atomic(folder / name, data.decode())
