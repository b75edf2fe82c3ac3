"""Planning a push: what the Hub holds now, what it will hold, and whether it may.

The package of a run, which has a configuration for each of its sizes, is laid over what the repository holds, and the
outcome is decided per configuration and group of files. When pixels, labels and tensors are the repository's, its data
and their provenance stay, so that the same recipe run again with other library versions, or on another day, makes no
commit.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmdc_hub.catalog import read_published_recipe
from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, UsageError
from hmdc_hub.publish.card import ConfigFacts, read_config, read_facts, render
from hmdc_hub.publish.croissant import CROISSANT, croissant
from hmdc_hub.publish.hub import Hub, Remote
from hmdc_hub.schema import PARQUET, PackagedFile, SourceInfo
from hmdc_hub.store.configs import configs_of, read_card, read_card_text, split_card
from hmdc_hub.store.files import json_text, refuse_newer, sha256_file, write_bytes_atomic

SMALL = ("manifest.json", "info.json", "recipe.yaml", "scores.json")  # what the card is made of


@dataclass(frozen=True)
class PushOptions:
    """How to push."""

    repo_id: str | None = None  # `owner/name` or `name`; None: the recipe's `publish.name`
    config: str | None = None  # None: the recipe's `publish.config`, or all of a run of several sizes
    private: bool | None = None  # visibility of a new repository; None: public, unless the source is not
    default: bool = False  # make this configuration the default one, of several the package's
    branch: str = "main"  # where to commit
    create_pr: bool = False  # open a pull request instead of committing to the branch
    tag: str | None = None  # a further tag; it does not move either
    scores_only: bool = False  # leave images and tensors alone
    force: bool = False  # replace everything of the configuration, whatever it holds


@dataclass(frozen=True)
class ConfigPlan:
    """What one configuration will be."""

    facts: ConfigFacts
    there: str | None  # SHA-256 of its manifest.json on the Hub; None: not there
    manifest: bytes  # manifest.json as it will be
    contents: Mapping[str, bytes | Path]  # by path, of its files but for those that stay and are not small
    gone: tuple[str, ...]  # paths of its files that it will not have any more
    note: str  # what was decided of what is there; may be empty

    @property
    def name(self) -> str:
        """Name of the configuration."""
        return self.facts.name

    @property
    def manifest_path(self) -> str:
        """Path of its manifest in the repository."""
        return f"{self.name}/manifest.json"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its manifest as it will be."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def tag(self) -> str:
        """Name of the tag: configuration and the first 8 hex digits of the manifest's SHA-256."""
        return f"{self.name}-{self.digest[:8]}"

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 (hex) by path of everything that it will be, with its manifest."""
        return {file.path: file.sha256 for file in self.facts.manifest.files} | {self.manifest_path: self.digest}

    @property
    def text(self) -> str:
        """What the message of the commit says of it."""
        info = self.facts.info
        return (
            f"{info.ipc} synthetic images per class of {info.source.id}, condense hash {info.condense_hash[:12]}; "
            f"hmdc-hub {info.hmdc_hub_version}."
        )


@dataclass(frozen=True)
class PushPlan:
    """What a push will do, known before it does anything."""

    repo_id: str
    remote: Remote | None  # the repository now; None: it will be created
    private: bool  # whether it is or will be private
    options: PushOptions
    pushed: tuple[ConfigPlan, ...]  # the configurations that it is about: one, or each size of the run
    top: Mapping[str, bytes]  # files that are about all configurations: the card, croissant.json
    uploads: Mapping[str, bytes | Path]  # content by path in the repository, of files that are new or differ
    deletes: tuple[str, ...]  # paths of these configurations that go
    configs: tuple[str, ...]  # all of ours there will be
    default: str  # configuration that the card names as default afterwards
    notes: tuple[str, ...]  # what was decided, for the person at the terminal

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags to create, or to find at a commit of the same content."""
        wanted = [*(one.tag for one in self.pushed), *filter(None, [self.options.tag])]
        return () if self.options.create_pr else tuple(dict.fromkeys(wanted))

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 (hex) by path of everything that these configurations will be, and of `top`."""
        every = {path: digest for one in self.pushed for path, digest in one.files.items()}
        return every | {path: hashlib.sha256(data).hexdigest() for path, data in self.top.items()}

    @property
    def changes(self) -> bool:
        """Whether a commit is needed."""
        return bool(self.uploads or self.deletes)

    @property
    def existing(self) -> Remote:
        """The repository; only for a plan whose repository is there."""
        if self.remote is None:
            raise AssertionError("the repository is not created yet")
        return self.remote

    @property
    def title(self) -> str:
        """First line of the commit message."""
        changed = {*self.uploads, *self.deletes}
        touched = [one for one in self.pushed if changed & {*one.files, *one.gone}]
        added = ", ".join(one.name for one in touched if one.there is None)
        updated = ", ".join(one.name for one in touched if one.there is not None)
        words = [f"add {added}"] * bool(added) + [f"update {updated or 'the card'}"] * bool(updated or not added)
        text = " and ".join(words)
        return text[0].upper() + text[1:]

    @property
    def text(self) -> str:
        """Rest of the commit message."""
        return "\n".join(one.text for one in self.pushed)


# The rules: whose repository it is, who may see it, and what may be written to it


def repository_id(wanted: str | None, account: str, name: str) -> str:
    """Say where a push goes: `owner/name` or `name` as wanted, else the recipe's name, below the account."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

    wanted = name if wanted is None else wanted
    try:
        validate_repo_id(found := wanted if "/" in wanted else f"{account}/{wanted}")
    except HFValidationError as error:
        raise UsageError(
            f"{wanted!r} cannot be a Hub dataset: letters, digits, dots, dashes and underscores, at most 96.",
            hint=f"For example --repo-id {account}/cifar10-hmdc.",
        ) from error
    return found


def refuse_foreign(remote: Remote, configs: Sequence[str], card: str, *, force: bool) -> dict[str, Any]:
    """Refuse what is not ours by the card, repository or configurations, unless forced, and what a newer program wrote.

    Gives the card's `hmdc` block; empty for a new or foreign repository.
    """
    block = split_card(card)[0]
    if isinstance(ours := block.get("hmdc"), dict):
        refuse_newer(ours, remote.repo_id)
    elif remote.own_files and not force:
        raise UsageError(
            f"{remote.repo_id} holds something that hmdc-hub did not publish: {', '.join(remote.own_files[:4])}.",
            hint="--repo-id publishes elsewhere; --force adds to it all the same and keeps its files and card text.",
        )
    foreign = set(read_card(card)[0]) - set(configs_of(block))
    if not force and (taken := [config for config in configs if config in foreign]):
        raise UsageError(
            f"The card there has a configuration {taken[0]} that hmdc-hub did not publish.",
            hint="--config publishes under another name; --force puts yours in its place.",
        )
    return ours if isinstance(ours, dict) else {}


def visibility(
    wanted: bool | None, source: SourceInfo, closed: str, remote: Remote | None, *, force: bool
) -> tuple[bool, str]:
    """Decide whether a repository is private, and say why if that was not `wanted`.

    It is never more open than its source, of which `closed` says why not everybody may read it, unless forced; and
    that of a repository never changes. A UsageError where what was wanted is against that.
    """
    if remote is not None and wanted is not None and wanted != remote.private:
        now, said = ("private", "public") if remote.private else ("public", "private")
        raise UsageError(
            f"{remote.repo_id} is {now}, and a push does not change that.",
            hint=f"Leave --{said} out, or change it first in the settings of the dataset on the Hub.",
        )
    private = remote.private if remote is not None else wanted
    if closed and private is False and not force:
        raise UsageError(
            f"The source {source.id} is {closed}: a set made from it would be open to everybody.",
            hint="Leave --public out, or take a private repository with --repo-id; --force publishes all the same, if "
            "the source's terms let you.",
        )
    if private is not None:
        return private, ""
    if closed:
        return True, f"private, as the source is {closed}"
    if source.kind == "local":
        return True, "private, as the source is on your disk; --public if everybody may have it"
    return False, ""


_REF = re.compile(r"(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9]([\w./-]{0,98}[\w-])?")  # of a branch; a tag has no slash


def check_branch(branch: str, remote: Remote | None) -> None:
    """Refuse, with a UsageError, what is no branch: a tag and a commit never change."""
    what = "" if _REF.fullmatch(branch) else "cannot be the name of a branch"
    if re.fullmatch(r"[0-9a-f]{40}", branch) or (remote is not None and branch in remote.tags):
        what = "is a commit or a tag, which a push cannot add to"
    if what:
        example = "For example --revision next; a branch that does not exist is made from main."
        raise UsageError(f"--revision {branch}: that {what}.", hint=example)


def check_tag(tag: str, remote: Remote | None, *, changes: bool) -> None:
    """Refuse, with a UsageError, a further tag that exists at another commit, or cannot be one."""
    if not _REF.fullmatch(tag) or "/" in tag:
        raise UsageError(f"--tag {tag}: letters, digits, dots, dashes and underscores.", hint="For example --tag v1.")
    there = remote.tags.get(tag) if remote is not None else None
    if there is not None and remote is not None and (changes or there != remote.head):
        raise UsageError(
            f"--tag {tag}: {remote.repo_id} has that tag at {there[:12]}, and a tag never moves.",
            hint="Choose another name.",
        )


# The plan


def make_plan(hub: Hub, package: Path, closed: str, repo_id: str, options: PushOptions, work: Path) -> PushPlan:
    """Look at the Hub, which is only read, and plan to push a package, or one configuration of it (`options.config`).

    `closed` says why not everybody may read the source; `work` is a folder of this plan's own, which must outlive it.
    A UsageError if what was asked for does not go with the run or the repository, a FormatError if a published
    configuration is damaged.
    """
    remote = hub.look(repo_id, options.branch, pulls=options.create_pr)
    check_branch(options.branch, remote)
    if remote is None and options.create_pr:
        raise UsageError(f"--create-pr: there is no {repo_id} yet.", hint="Push without --create-pr first.")
    local = [one for one in read_facts(package) if options.config in (None, one.name)]
    private, closed_note = visibility(options.private, local[0].info.source, closed, remote, force=options.force)
    union, notes = work / "union", list[str]()
    union.mkdir(parents=True)
    if remote is not None:
        notes = _gather(hub, remote, [one.name for one in local], union, work / "cache", force=options.force)
    published = any(union.glob("*/manifest.json"))
    pushed = tuple(_plan_config(hub, remote, one, package, union, options, work / "images") for one in local)
    contents = {path: content for one in pushed for path, content in one.contents.items()}
    before = union / "README.md"
    previous = read_card_text(before) if before.is_file() else None
    default = None  # stays what it is
    if options.default or not (published or read_card(previous or "")[1]):
        of_package, names = read_card(read_card_text(package / "README.md"))[1], [one.name for one in local]
        default = of_package if of_package in names else names[0]
    card = render(union, repo_id=repo_id, default=default, previous=previous)
    contents["README.md"], every = card.encode(), read_facts(union)
    # One in a repository that was not ours is its author's.
    if remote is None or CROISSANT not in remote.files or isinstance(split_card(previous or "")[0].get("hmdc"), dict):
        contents[CROISSANT] = croissant(every, read_card(card)[1] or "", repo_id).encode()
    plan = PushPlan(
        repo_id=repo_id,
        remote=remote,
        private=private,
        options=options,
        pushed=pushed,
        top={name: bytes(data) for name in ("README.md", CROISSANT) if isinstance(data := contents.get(name), bytes)},
        uploads={path: data for path, data in contents.items() if remote is None or not remote.holds(path, data)},
        deletes=tuple(path for one in pushed for path in one.gone if remote is not None and path in remote.files),
        configs=tuple(one.name for one in every),
        default=read_card(card)[1] or "",
        notes=tuple(note for note in (closed_note, *notes, *(one.note for one in pushed)) if note),
    )
    if options.tag is not None:
        check_tag(options.tag, remote, changes=plan.changes)
    return plan


def _plan_config(
    hub: Hub, remote: Remote | None, local: ConfigFacts, package: Path, union: Path, options: PushOptions, cache: Path
) -> ConfigPlan:
    """Lay one configuration of a package over what the union has of it; its small files come into the union."""
    own = union / local.name
    there = read_config(own) if own.is_dir() else None
    published = sha256_file(own / "manifest.json") if there is not None else None
    keep, why = _keep(
        local, there, options, lambda one: remote is not None and _same_images(hub, remote, package, one, cache)
    )
    contents = _laid(local, there, keep, package, union)
    facts = read_config(own)
    gone = [file.path for file in there.manifest.files if not facts.file(file.path)] if there is not None else []
    return ConfigPlan(facts, published, (own / "manifest.json").read_bytes(), contents, tuple(gone), why)


def _gather(hub: Hub, remote: Remote, own: Sequence[str], union: Path, cache: Path, *, force: bool) -> list[str]:
    """Download the card and the small files of every published configuration into the union, and check them."""
    card, notes = "", []
    if "README.md" in remote.files:
        card = read_card_text(hub.fetch(remote, ["README.md"], cache) / "README.md")
    listed = refuse_foreign(remote, own, card, force=force).get("configs")
    found = sorted(
        path.split("/")[0] for path in remote.files if path.count("/") == 1 and path.endswith("/manifest.json")
    )
    # Without a list of ours (a card that was lost, or somebody else's), whatever can be read as one of ours is.
    configs = [name for name in found if name in listed or name in own] if isinstance(listed, dict) else found
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
            if config not in own:
                notes.append(f"{config} cannot be read, so the card leaves it out; its files stay")
    return notes


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


def _laid(
    local: ConfigFacts, there: ConfigFacts | None, keep: set[str], package: Path, union: Path
) -> dict[str, bytes | Path]:
    """Lay a package over what is published: content by path of what the configuration will be.

    Of what is kept and not in the union, which has its small files, nothing is said. They come into the union.
    """
    own = union / local.name
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
    contents[f"{local.name}/manifest.json"] = manifest
    shutil.rmtree(own, ignore_errors=True)
    for name in SMALL:
        if (data := contents.get(f"{local.name}/{name}")) is not None:
            write_bytes_atomic(own / name, data.read_bytes() if isinstance(data, Path) else data)
    return contents


def _keep(
    local: ConfigFacts, there: ConfigFacts | None, options: PushOptions, same_images: Callable[[ConfigFacts], bool]
) -> tuple[set[str], str]:
    """Decide which groups of the published configuration stay as they are, and say why."""
    name = local.name
    if options.scores_only:
        message, hint = "", "Leave --scores-only out to publish images and scores."
        if local.scores is None:
            message, hint = f"this run of {name} has no scores", "`hmdc-hub evaluate` makes them."
        elif there is None:
            message = f"no {name} is published yet that they could stand beside"
        elif local.info.parquet_sha256 != there.info.parquet_sha256:
            message = f"the scores of this run are about other images than the published {name}"
        if message:
            raise UsageError(f"--scores-only: {message}.", hint=hint)
    if there is None or options.force:
        return set(), ""
    ours, theirs = local.info, there.info
    same_tensors = ours.tensors_sha256 == theirs.tensors_sha256
    same_bytes = same_tensors and ours.parquet_sha256 == theirs.parquet_sha256
    # Those of another recipe are not worth a download.
    if not same_tensors and not (ours.condense_hash == theirs.condense_hash and same_images(there)):
        return set(), f"{name}: other images than the published ones, which are replaced"
    if local.scores is None and there.scores is not None:
        return _ALL, f"{name}: the same images are published with scores, which this run has none of; all of it stays"
    same_recipe = local.recipe == there.recipe
    protocols = {facts.scores.protocol_hash if facts.scores is not None else None for facts in (local, there)}
    same_scores = not options.scores_only and len(protocols) == 1
    if same_recipe and same_scores:
        return _ALL, f"{name}: the same images and protocol are published; they stay"
    if not same_bytes:
        # The run's provenance and scores name the run's own files: they cannot stand beside other bytes.
        return set(), ""
    kept = {_DATA} | ({_RECIPE} if same_recipe else set()) | ({_SCORES} if same_scores else set())
    return kept, f"{name}: the same images are published; they stay"
