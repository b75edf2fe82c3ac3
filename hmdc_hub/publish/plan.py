"""Planning a push: what the Hub holds now, what it will hold, and whether it may."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, UsageError
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_facts
from hmdc_hub.publish.hub import Hub
from hmdc_hub.publish.ownership import check_branch, check_tag, damaged, refuse_foreign, refuse_name, visibility
from hmdc_hub.publish.remote import Remote
from hmdc_hub.publish.staging import Staged, Wanted, check_config, configs_in, stage, wanted_files
from hmdc_hub.store import sha256_file
from hmdc_hub.store.configs import read_card_text


@dataclass(frozen=True)
class Wishes:
    """What the command line says about a push.

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
class Plan:
    """What a push will do, known before it does anything.

    Attributes:
        remote: The repository now; None: it will be created.
        private: Whether it is or will be private.
        staged: The change.
        card: README.md as it will be.
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
        name = self.staged.config
        if all(path == "README.md" for path in self.staged.uploads) and not self.staged.deletes:
            return "Update the card"
        return f"Add {name}" if self.there is None else f"Update {name}"

    @property
    def text(self) -> str:
        """Rest of the commit message."""
        info = self.staged.facts.info
        return (
            f"{info.ipc} stored images per class of {info.source.id}, condense hash {info.condense_hash[:12]}; "
            f"hmdc-hub {info.hmdc_hub_version}."
        )


def make_plan(hub: Hub, package: Path, closed: str, repo_id: str, wishes: Wishes, work: Path) -> Plan:
    """Look at the Hub and plan.

    Args:
        hub: The Hub; read only.
        package: Folder with the one configuration to publish.
        closed: Why not everybody may read the source.
        repo_id: Where to.
        wishes: How.
        work: A folder of this plan's own, which must outlive it.

    Raises:
        UsageError: What was asked for does not go with the run or the repository.
        FormatError: A published configuration is damaged, or of a newer format version.
        NetworkError: The Hub failed.
    """
    remote = hub.look(repo_id, wishes.branch, pulls=wishes.create_pr)
    check_branch(wishes.branch, remote)
    if remote is None and wishes.create_pr:
        raise UsageError(f"--create-pr: there is no {repo_id} yet.", hint="Push without --create-pr first.")
    (local,) = read_facts(package)
    force = wishes.content.force
    private, why = visibility(wishes.private, local.info.source, closed, remote, force=force)
    notes = [why] if why else []
    union, there = work / "union", None
    union.mkdir(parents=True)
    if remote is not None:
        card, there = _gather(hub, remote, local.name, union, work / "cache", notes, force=force)
        refuse_name(local.name, card, force=force)

    def same_images(ours: ConfigFacts, theirs: ConfigFacts) -> bool:
        if remote is None or ours.info.condense_hash != theirs.info.condense_hash:
            return False  # another recipe: not worth a download
        return _same_images(hub, remote, package, theirs, work / "images")

    staged = stage(package, union, remote, repo_id, wishes.content, same_images)
    changes = bool(staged.uploads or staged.deletes)
    if wishes.tag is not None:
        check_tag(wishes.tag, remote, changes=changes)
    return Plan(
        repo_id=repo_id,
        remote=remote,
        branch=wishes.branch,
        private=private,
        staged=staged,
        tags=() if wishes.create_pr else tuple(dict.fromkeys([staged.tag, *([wishes.tag] if wishes.tag else [])])),
        configs=tuple(facts.name for facts in read_facts(union)),
        there=there,
        create_pr=wishes.create_pr,
        notes=(*notes, *staged.notes),
    )


def _gather(
    hub: Hub, remote: Remote, own: str, union: Path, cache: Path, notes: list[str], *, force: bool
) -> tuple[str, str | None]:
    """Download and check the small files of every published configuration into the union.

    Returns:
        The card there, empty if there is none; and the SHA-256 of our own manifest.json there, None if there is none.
    """
    card = ""
    if "README.md" in remote.files:
        card = read_card_text(hub.fetch(remote, ["README.md"], cache) / "README.md")
    listed = refuse_foreign(remote, card, force=force).get("configs")
    # Without a list of ours (a card that was lost, or somebody else's), whatever can be read as one of ours is.
    found = configs_in(remote)
    configs = [name for name in found if name in listed or name == own] if isinstance(listed, dict) else found
    names = wanted_files(remote, configs)
    folder = hub.fetch(remote, names, cache) if names else cache
    for name in names:
        (union / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, union / name)
    there = sha256_file(union / own / "manifest.json") if own in configs else None
    for config in configs:
        try:
            check_config(_facts_of(union, config), union, remote)
        except NewerFormatError:
            raise
        except (FormatError, NotFoundError) as error:
            if not force:
                raise damaged(remote.repo_id, config, error) from error
            shutil.rmtree(union / config)
            if config != own:
                notes.append(f"{config} cannot be read, so the card leaves it out; its files stay")
    return card, there


def _facts_of(union: Path, config: str) -> ConfigFacts:
    from hmdc_hub.catalog import read_published_recipe
    from hmdc_hub.publish.facts import read_config

    facts = read_config(union / config)
    read_published_recipe(union / config / "recipe.yaml", here=False)
    return facts


def _same_images(hub: Hub, remote: Remote, package: Path, theirs: ConfigFacts, cache: Path) -> bool:
    """Compare pixels, labels and tensors where the bytes differ, as other library versions write them."""
    import torch

    from hmdc_hub.store import read_condensed, read_parquet, training_shape

    name = theirs.name
    paths = [f"{name}/{PARQUET}", f"{name}/condensed.safetensors"]
    folder = hub.fetch(remote, paths, cache)
    pairs: Mapping[Path, Path] = {package / path: folder / path for path in paths}
    (our_parquet, their_parquet), (our_tensors, their_tensors) = pairs.items()
    shape = training_shape(theirs.info, their_tensors)
    found = [*zip(read_parquet(our_parquet), read_parquet(their_parquet, shape=shape), strict=True)]
    found += [*zip(read_condensed(our_tensors)[:2], read_condensed(their_tensors)[:2], strict=True)]
    return all(torch.equal(ours, published) for ours, published in found)
