"""Whose repository it is, who may see it, and what may be written to it: the rules of a push, without network."""

from __future__ import annotations

import re
from typing import Any

from hmdc_hub.errors import UsageError
from hmdc_hub.publish.hub import Remote
from hmdc_hub.schema import SourceInfo
from hmdc_hub.store.configs import configs_of, read_card, split_card
from hmdc_hub.store.files import refuse_newer

_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}$")


def repository_id(wanted: str | None, account: str, name: str) -> str:
    """Say where a push goes: `owner/name` or `name` as wanted, else the recipe's name, below the account.

    Raises:
        UsageError: It cannot be a repository.
    """
    owner, slash, rest = (wanted or name).rpartition("/")
    if not (_ID.match(rest) and (not slash or _ID.match(owner)) and "--" not in rest and ".." not in rest):
        raise UsageError(
            f"{wanted or name!r} cannot be a Hub dataset: letters, digits, dots, dashes and underscores, at most 96.",
            hint=f"For example --repo-id {account}/cifar10-hmdc.",
        )
    return f"{owner or account}/{rest}"


def refuse_foreign(remote: Remote, card: str, *, force: bool) -> dict[str, Any]:
    """Refuse a repository that is not ours by its card, unless forced, and one that a newer program wrote.

    Returns:
        The card's `hmdc` block; empty for a new or foreign repository.

    Raises:
        UsageError: It holds something else.
        NewerFormatError: Its format version is newer; never forced.
    """
    block = split_card(card)[0].get("hmdc")
    if isinstance(block, dict):
        refuse_newer(block, remote.repo_id)
        return block
    if not remote.empty and not force:
        shown = ", ".join(sorted(set(remote.files) - {".gitattributes"})[:4])
        raise UsageError(
            f"{remote.repo_id} holds something that hmdc-hub did not publish: {shown}.",
            hint="--repo-id publishes elsewhere; --force adds to it all the same and keeps its files and card text.",
        )
    return {}


def refuse_name(config: str, card: str, *, force: bool) -> None:
    """Refuse a configuration's name that the card gives to something that is not ours, with a UsageError."""
    if not force and config in read_card(card)[0] and config not in configs_of(split_card(card)[0]):
        raise UsageError(
            f"The card there has a configuration {config} that hmdc-hub did not publish.",
            hint="--config publishes under another name; --force puts yours in its place.",
        )


def visibility(
    wanted: bool | None, source: SourceInfo, closed: str, remote: Remote | None, *, force: bool
) -> tuple[bool, str]:
    """Decide whether a repository is private: never more open than its source, and never changed once it is there.

    Args:
        wanted: Whether --private (True) or --public (False) was said.
        source: What the set was made from.
        closed: Why not everybody may read the source: `private`, `gated` or nothing.
        remote: The repository; None if it will be created.
        force: Publish what is made from a closed source all the same.

    Returns:
        Whether it is private, and why if that was not said.

    Raises:
        UsageError: What was wanted is against the rule.
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


def check_branch(branch: str, remote: Remote | None) -> None:
    """Refuse, with a UsageError, what is no branch: a tag and a commit never change."""
    example = "For example --revision next; a branch that does not exist is made from main."
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]{0,99}", branch) or ".." in branch or branch.endswith(("/", ".", ".lock")):
        raise UsageError(f"--revision {branch}: that cannot be the name of a branch.", hint=example)
    if re.fullmatch(r"[0-9a-f]{40}", branch) or (remote is not None and branch in remote.tags):
        raise UsageError(f"--revision {branch}: that is a commit or a tag, which a push cannot add to.", hint=example)


def check_tag(tag: str, remote: Remote | None, *, changes: bool) -> None:
    """Refuse, with a UsageError, a further tag that exists at another commit, or cannot be one."""
    if not re.match(r"^[A-Za-z0-9][\w.-]{0,99}$", tag) or ".." in tag or tag.endswith((".lock", ".")):
        raise UsageError(f"--tag {tag}: letters, digits, dots, dashes and underscores.", hint="For example --tag v1.")
    there = remote.tags.get(tag) if remote is not None else None
    if there is not None and remote is not None and (changes or there != remote.head):
        raise UsageError(
            f"--tag {tag}: {remote.repo_id} has that tag at {there[:12]}, and a tag never moves.",
            hint="Choose another name.",
        )
