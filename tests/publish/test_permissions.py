"""Whose repository it is, who may see it, which names may be used."""

from __future__ import annotations

import pytest

from hmdc_hub.errors import AccessError, NewerFormatError, UsageError
from hmdc_hub.publish.hub import Account, Remote, RemoteFile
from hmdc_hub.publish.plan import check_branch, check_tag, refuse_foreign, repository_id, visibility
from hmdc_hub.schema import FORMAT_VERSION, SourceInfo
from tests.builders import make_recipe, make_source_info

HEAD = "a" * 40
FILE = RemoteFile(1, "0" * 40, None)


def remote(*files: str, private: bool = False, **keys: object) -> Remote:
    return Remote("ann/x", private, "main", HEAD, files=dict.fromkeys(files, FILE), **keys)  # type: ignore[arg-type]


def source(kind: str = "hub") -> SourceInfo:
    return make_source_info(make_recipe(), kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(None, "ann/digits-hmdc"), ("other", "ann/other"), ("lab/cifar", "lab/cifar"), ("Lab.1/c_2-x", "Lab.1/c_2-x")],
)
def test_a_name_without_owner_is_the_accounts(wanted: str | None, found: str) -> None:
    assert repository_id(wanted, "ann", "digits-hmdc") == found


@pytest.mark.parametrize(
    "wanted", ["a/b/c", "/x", "x/", "a b", "../x", "a/..", "ann/a--b", "x" * 97, "https://hf.co/a/b"]
)
def test_what_cannot_be_a_repository_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match="--repo-id") as caught:
        repository_id(wanted, "ann", "x")
    assert "ann/" in str(caught.value)


def test_a_repository_without_our_block_is_foreign_unless_empty() -> None:
    assert refuse_foreign(remote(".gitattributes"), ["ipc1"], "", force=False) == {}
    for card in ("", "# theirs", "---\nlicense: mit\n---\n# theirs", "---\nhmdc: yes\n---\n"):
        with pytest.raises(UsageError, match=r"README\.md"):
            refuse_foreign(remote("README.md", ".gitattributes"), ["ipc1"], card, force=False)
        assert refuse_foreign(remote("README.md"), ["ipc1"], card, force=True) == {}
    ours = f"---\nhmdc:\n  format_version: {FORMAT_VERSION}\n---\n"
    assert refuse_foreign(remote("README.md"), ["ipc1"], ours, force=False) == {"format_version": FORMAT_VERSION}


@pytest.mark.parametrize("force", [False, True])
def test_a_newer_format_is_refused_with_the_way_out(force: bool) -> None:
    card = f"---\nhmdc:\n  format_version: {FORMAT_VERSION + 1}\n---\n"
    with pytest.raises(NewerFormatError, match="pip install -U"):
        refuse_foreign(remote("README.md"), ["ipc1"], card, force=force)


def test_a_foreign_configuration_keeps_its_name() -> None:
    card = "---\nconfigs:\n- config_name: raw\n- config_name: ipc1\nhmdc:\n  configs:\n    ipc1: {}\n---\n"
    refuse_foreign(remote("README.md"), ["ipc1"], card, force=False)
    refuse_foreign(remote("README.md"), ["ipc10"], card, force=False)
    with pytest.raises(UsageError, match="raw"):
        refuse_foreign(remote("README.md"), ["raw"], card, force=False)
    refuse_foreign(remote("README.md"), ["raw"], card, force=True)


@pytest.mark.parametrize(
    ("wanted", "kind", "closed", "private"),
    [
        (None, "hub", "", False),
        (True, "hub", "", True),
        (False, "hub", "", False),
        (None, "hub", "gated", True),
        (None, "hub", "private", True),
        (True, "hub", "gated", True),
        (None, "local", "", True),
        (False, "local", "", False),
        (None, "builtin", "", False),
    ],
)
def test_a_new_repository_is_never_more_open_than_its_source(
    wanted: bool | None, kind: str, closed: str, private: bool
) -> None:
    found, why = visibility(wanted, source(kind), closed, None, force=False)
    assert found is private
    assert bool(why) == (private and wanted is None)


def test_publishing_a_closed_source_in_public_takes_force() -> None:
    for there, wanted in ((None, False), (remote(), None), (remote(), False)):
        with pytest.raises(UsageError, match="gated"):
            visibility(wanted, source(), "gated", there, force=False)
        assert visibility(wanted, source(), "gated", there, force=True) == (False, "")
    assert visibility(None, source(), "gated", remote(private=True), force=False) == (True, "")


@pytest.mark.parametrize("private", [False, True])
def test_the_visibility_of_what_is_there_is_never_changed(private: bool) -> None:
    assert visibility(private, source(), "", remote(private=private), force=False) == (private, "")
    with pytest.raises(UsageError, match="does not change"):
        visibility(not private, source(), "", remote(private=private), force=True)


def test_a_tag_never_moves() -> None:
    check_tag("v1", None, changes=True)
    check_tag("v1", remote(tags={"v2": HEAD}), changes=True)
    check_tag("v1", remote(tags={"v1": HEAD}), changes=False)  # an interrupted push comes back
    for there, changes in (({"v1": HEAD}, True), ({"v1": "b" * 40}, False)):
        with pytest.raises(UsageError, match="never moves"):
            check_tag("v1", remote(tags=there), changes=changes)


@pytest.mark.parametrize("branch", ["main", "next", "feature/x", "v1.2_3-4"])
def test_branches(branch: str) -> None:
    check_branch(branch, None)
    check_branch(branch, remote(tags={"other": HEAD}))


@pytest.mark.parametrize("branch", ["", "a b", "-x", "a..b", "x.lock", "x/", "a~1", HEAD, "v1", "a:b"])
def test_what_is_no_branch_is_refused(branch: str) -> None:
    with pytest.raises(UsageError, match="--revision next"):
        check_branch(branch, remote(tags={"v1": HEAD}))


@pytest.mark.parametrize("tag", ["", "a b", "-x", "a..b", "x.lock", "refs/tags/x", "a~1"])
def test_what_cannot_be_a_tag_is_refused(tag: str) -> None:
    with pytest.raises(UsageError, match="--tag"):
        check_tag(tag, None, changes=True)


def test_accounts_publish_under_their_name_and_their_organisations() -> None:
    account = Account("ann", {"lab": "write", "club": "read", "team": ""}, "write")
    for namespace in ("ann", "lab", "team"):
        account.refuse_unless_writer(namespace)
    for namespace in ("club", "bob"):
        with pytest.raises(AccessError, match=f"{namespace}.*\n.*ann, lab, team"):
            account.refuse_unless_writer(namespace)
    with pytest.raises(AccessError, match="only read"):
        Account("ann", {}, "read").refuse_unless_writer("ann")
    Account("ann", {}, "fineGrained").refuse_unless_writer("lab")
    with pytest.raises(AccessError):
        Account("ann", {}, "write").refuse_unless_writer("lab")


def test_remote_files_are_compared_as_git_and_lfs_name_them() -> None:
    # `printf hello | git hash-object --stdin`, and `sha256sum`
    git = RemoteFile(5, "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", None)
    lfs = RemoteFile(5, "0" * 40, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
    for file in (git, lfs):
        assert file.holds(b"hello") and not file.holds(b"hellO") and not file.holds(b"hello!")
