"""Planning a push: what the Hub holds now, what it will hold, and whether it may.

The package of a run is laid over what the repository holds, and the outcome is decided per group of files. When
pixels, labels and tensors are the repository's, its data and their provenance stay, so that the same recipe run again
with other library versions, or on another day, makes no commit.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hmdc_hub.catalog import read_published_recipe
from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, UsageError
from hmdc_hub.publish.card import render
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_config, read_facts
from hmdc_hub.publish.hub import Hub, Remote
from hmdc_hub.publish.permissions import check_branch, check_tag, refuse_foreign, refuse_name, visibility
from hmdc_hub.schema import PackagedFile
from hmdc_hub.store.configs import read_card, read_card_text
from hmdc_hub.store.files import json_text, sha256_file, write_bytes_atomic

SMALL = ("manifest.json", "info.json", "recipe.yaml", "scores.json")
"""Files of a configuration that the card is made of."""


@dataclass(frozen=True)
class Wanted:
    """What is published anew.

    Attributes:
        default: Make this configuration the default one.
        scores_only: Leave images and tensors alone.
        force: Replace everything of the configuration, whatever it holds.
    """

    default: bool = False
    scores_only: bool = False
    force: bool = False


@dataclass(frozen=True)
class PushOptions:
    """How to push.

    Attributes:
        repo_id: `owner/name` or `name`; None: the recipe's `publish.name`.
        config: None: the recipe's `publish.config`.
        private: Visibility of a new repository; None: public, unless the source is not.
        branch: Where to commit.
        create_pr: Open a pull request instead of committing to the branch.
        tag: A further tag; it does not move either.
        content: What is published anew.
    """

    repo_id: str | None = None
    config: str | None = None
    private: bool | None = None
    branch: str = "main"
    create_pr: bool = False
    tag: str | None = None
    content: Wanted = Wanted()


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
    notes: tuple[str, ...]

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


@dataclass(frozen=True)
class PushPlan:
    """What a push will do, known before it does anything.

    Attributes:
        remote: The repository now; None: it will be created.
        private: Whether it is or will be private.
        staged: The change.
        tags: Tags to create, or to find at a commit of the same content.
        configs: All configurations of ours there will be.
        there: manifest.json of this configuration on the Hub, as SHA-256; None: not there.
        notes: What was decided, for the person at the terminal.
    """

    repo_id: str
    remote: Remote | None
    branch: str
    private: bool
    staged: Staged
    tags: tuple[str, ...]
    configs: tuple[str, ...]
    there: str | None
    create_pr: bool
    notes: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether a commit is needed."""
        return bool(self.staged.uploads or self.staged.deletes)

    @property
    def existing(self) -> Remote:
        """The repository; only for a plan whose repository is there."""
        if self.remote is None:
            raise AssertionError("the repository is not created yet")
        return self.remote

    @property
    def title(self) -> str:
        """First line of the commit message."""
        if set(self.staged.uploads) == {"README.md"} and not self.staged.deletes:
            return "Update the card"
        return f"{'Add' if self.there is None else 'Update'} {self.staged.config}"

    @property
    def text(self) -> str:
        """Rest of the commit message."""
        info = self.staged.facts.info
        return (
            f"{info.ipc} synthetic images per class of {info.source.id}, condense hash {info.condense_hash[:12]}; "
            f"hmdc-hub {info.hmdc_hub_version}."
        )


def make_plan(hub: Hub, package: Path, closed: str, repo_id: str, options: PushOptions, work: Path) -> PushPlan:
    """Look at the Hub, which is only read, and plan.

    Args:
        hub: The Hub.
        package: Folder with the one configuration to publish.
        closed: Why not everybody may read the source; empty if everybody may.
        repo_id: Where to.
        options: How.
        work: A folder of this plan's own, which must outlive it.

    Raises:
        UsageError: What was asked for does not go with the run or the repository.
        FormatError: A published configuration is damaged, or of a newer format version.
        NetworkError: The Hub failed.
    """
    remote = hub.look(repo_id, options.branch, pulls=options.create_pr)
    check_branch(options.branch, remote)
    if remote is None and options.create_pr:
        raise UsageError(f"--create-pr: there is no {repo_id} yet.", hint="Push without --create-pr first.")
    (local,) = read_facts(package)
    force = options.content.force
    private, why = visibility(options.private, local.info.source, closed, remote, force=force)
    notes = [why] if why else []
    union = work / "union"
    union.mkdir(parents=True)
    if remote is not None:
        _gather(hub, remote, local.name, union, work / "cache", notes, force=force)
    there = union / local.name / "manifest.json"
    published = sha256_file(there) if there.is_file() else None

    def same_images(theirs: ConfigFacts) -> bool:
        if remote is None or local.info.condense_hash != theirs.info.condense_hash:
            return False  # another recipe: not worth a download
        return _same_images(hub, remote, package, theirs, work / "images")

    staged = _stage(local, package, union, remote, repo_id, options.content, same_images)
    if options.tag is not None:
        check_tag(options.tag, remote, changes=bool(staged.uploads or staged.deletes))
    return PushPlan(
        repo_id=repo_id,
        remote=remote,
        branch=options.branch,
        private=private,
        staged=staged,
        tags=() if options.create_pr else tuple(dict.fromkeys([staged.tag, *([options.tag] if options.tag else [])])),
        configs=tuple(facts.name for facts in read_facts(union)),
        there=published,
        create_pr=options.create_pr,
        notes=(*notes, *staged.notes),
    )


def _gather(hub: Hub, remote: Remote, own: str, union: Path, cache: Path, notes: list[str], *, force: bool) -> None:
    """Download the card and the small files of every published configuration into the union, and check them."""
    card = ""
    if "README.md" in remote.files:
        card = read_card_text(hub.fetch(remote, ["README.md"], cache) / "README.md")
    listed = refuse_foreign(remote, card, force=force).get("configs")
    refuse_name(own, card, force=force)
    found = sorted(
        path.split("/")[0] for path in remote.files if path.count("/") == 1 and path.endswith("/manifest.json")
    )
    # Without a list of ours (a card that was lost, or somebody else's), whatever can be read as one of ours is.
    configs = [name for name in found if name in listed or name == own] if isinstance(listed, dict) else found
    names = ["README.md", *(f"{config}/{name}" for config in configs for name in SMALL)]
    names = [name for name in names if name in remote.files]
    folder = hub.fetch(remote, names, cache) if names else cache
    for name in names:
        (union / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, union / name)
    for config in configs:
        try:
            _check_config(union, config, remote)
        except NewerFormatError:
            raise
        except (FormatError, NotFoundError) as error:
            if not force:
                raise FormatError(
                    f"{config} in {remote.repo_id} cannot be read: {error}",
                    hint="Push the run it came from with --force, or delete its folder on the Hub; `hmdc-hub verify "
                    f"{remote.repo_id}` says more.",
                ) from error
            shutil.rmtree(union / config)
            if config != own:
                notes.append(f"{config} cannot be read, so the card leaves it out; its files stay")


def _check_config(union: Path, config: str, remote: Remote) -> None:
    """Refuse a published configuration whose small files and data do not belong together."""
    facts = read_config(union / config)
    read_published_recipe(union / config / "recipe.yaml", here=False)
    for file in facts.manifest.files:
        there, copy = remote.files.get(file.path), union / file.path
        if there is None:
            raise FormatError(f"{file.path} is missing.")
        content = sha256_file(copy) if copy.is_file() else there.sha256
        if content is not None and content != file.sha256:
            raise FormatError(f"{file.path} is another file than its manifest lists.")
    parquet = facts.file(f"{config}/{PARQUET}")
    if parquet is None or parquet.sha256 != facts.info.parquet_sha256:
        raise FormatError(f"info.json is about another {PARQUET}.")
    if facts.scores is not None and facts.scores.parquet_sha256 != facts.info.parquet_sha256:
        raise FormatError(f"scores.json is about another {PARQUET}.")


def _same_images(hub: Hub, remote: Remote, package: Path, theirs: ConfigFacts, cache: Path) -> bool:
    """Compare pixels, labels and tensors where the bytes differ, as other library versions write them."""
    import torch

    from hmdc_hub.store.condensed import read_condensed, training_shape
    from hmdc_hub.store.parquet import read_parquet

    parquet, tensors = f"{theirs.name}/{PARQUET}", f"{theirs.name}/condensed.safetensors"
    folder = hub.fetch(remote, [parquet, tensors], cache)
    shape = training_shape(theirs.info, folder / tensors)
    found = [*zip(read_parquet(package / parquet), read_parquet(folder / parquet, shape=shape), strict=True)]
    found += [*zip(read_condensed(package / tensors)[:2], read_condensed(folder / tensors)[:2], strict=True)]
    return all(torch.equal(ours, published) for ours, published in found)


_DATA, _RECIPE, _SCORES = "data", "recipe", "scores"
_ALL = {_DATA, _RECIPE, _SCORES}


def _group(path: str) -> str:
    """Say which group a file of a configuration belongs to; a group is kept or replaced as a whole."""
    if "scores" in path.split("/")[-1] or path.startswith("scores/"):
        return _SCORES
    return _RECIPE if path.endswith(("/recipe.yaml", "/info.json")) else _DATA


def _stage(
    local: ConfigFacts,
    package: Path,
    union: Path,
    remote: Remote | None,
    repo_id: str,
    wanted: Wanted,
    same_images: Callable[[ConfigFacts], bool],
) -> Staged:
    """Lay a package over a repository, whose small files are in the union; those of this configuration come there."""
    config, own = local.name, union / local.name
    there = read_config(own) if own.is_dir() else None
    keep, notes = _keep(local, there, wanted, same_images)
    entries: dict[str, PackagedFile] = {f.path: f for f in local.manifest.files if _group(f.path) not in keep}
    contents: dict[str, bytes | Path] = {path: package / path for path in entries}
    for file in there.manifest.files if there is not None else []:
        if _group(file.path) in keep:
            entries[file.path] = file
            if (union / file.path).is_file():
                contents[file.path] = (union / file.path).read_bytes()
    if keep == _ALL:
        manifest = (own / "manifest.json").read_bytes()
    else:
        # Rows and sizes are those of the chosen parquet; files in the order of path parts, as a package lists them.
        base = there.manifest if there is not None and _DATA in keep else local.manifest
        files = [entries[path] for path in sorted(entries, key=lambda path: path.split("/"))]
        manifest = json_text(base.model_copy(update={"files": files})).encode()
    contents[f"{config}/manifest.json"] = manifest
    small = {name: contents[f"{config}/{name}"] for name in SMALL if f"{config}/{name}" in contents}
    read = {name: data.read_bytes() if isinstance(data, Path) else data for name, data in small.items()}
    shutil.rmtree(own, ignore_errors=True)
    for name, data in read.items():
        write_bytes_atomic(own / name, data)
    before = union / "README.md"
    previous = read_card_text(before) if before.is_file() else None
    card = render(union, repo_id=repo_id, default=config if wanted.default else None, previous=previous)
    contents["README.md"] = card.encode()
    files_there = {} if remote is None else remote.files
    gone = [file.path for file in there.manifest.files if file.path not in entries] if there is not None else []
    return Staged(
        config=config,
        uploads={p: data for p, data in contents.items() if p not in files_there or not files_there[p].holds(data)},
        deletes=tuple(path for path in gone if path in files_there),
        manifest=manifest,
        card=card.encode(),
        facts=read_config(own),
        default=read_card(card)[1] or "",
        notes=tuple(notes),
    )


def _keep(
    local: ConfigFacts, there: ConfigFacts | None, wanted: Wanted, same_images: Callable[[ConfigFacts], bool]
) -> tuple[set[str], list[str]]:
    """Decide which groups of the published configuration stay as they are."""
    name = local.name
    if wanted.scores_only:
        _refuse_scores_only(local, there)
    if there is None or wanted.force:
        return set(), []
    ours, theirs = local.info, there.info
    same_tensors = ours.tensors_sha256 == theirs.tensors_sha256
    same_bytes = same_tensors and ours.parquet_sha256 == theirs.parquet_sha256
    if not same_tensors and not same_images(there):
        return set(), [f"{name}: other images than the published ones, which are replaced"]
    if local.scores is None and there.scores is not None:
        return _ALL, [f"{name}: the same images are published with scores, which this run has none of; all of it stays"]
    same_recipe = local.recipe == there.recipe
    same_scores = not wanted.scores_only and _protocol(local) == _protocol(there)
    if same_recipe and same_scores:
        return _ALL, [f"{name}: the same images and protocol are published; they stay"]
    if not same_bytes:
        # The run's provenance and scores name the run's own files: they cannot stand beside other bytes.
        return set(), []
    kept = {_DATA} | ({_RECIPE} if same_recipe else set()) | ({_SCORES} if same_scores else set())
    return kept, [f"{name}: the same images are published; they stay"]


def _protocol(facts: ConfigFacts) -> str | None:
    return facts.scores.protocol_hash if facts.scores is not None else None


def _refuse_scores_only(local: ConfigFacts, there: ConfigFacts | None) -> None:
    if local.scores is None:
        message, hint = f"this run of {local.name} has no scores", "`hmdc-hub evaluate` makes them."
    elif there is None:
        message = f"no {local.name} is published yet that they could stand beside"
        hint = "Leave --scores-only out to publish images and scores."
    elif local.info.parquet_sha256 != there.info.parquet_sha256:
        message = f"the scores of this run are about other images than the published {local.name}"
        hint = "Leave --scores-only out to replace both."
    else:
        return
    raise UsageError(f"--scores-only: {message}.", hint=hint)
