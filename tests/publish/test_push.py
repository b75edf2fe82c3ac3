"""Pushes with the unpatched client to the local Hub."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import AccessError, FormatError, HmdcError, NetworkError, NewerFormatError, RunError, UsageError
from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import BEGIN, read_facts, render
from hmdc_hub.publish.croissant import croissant
from hmdc_hub.publish.hub import Hub
from hmdc_hub.publish.push import publish
from hmdc_hub.schema import FORMAT_VERSION, sealed
from hmdc_hub.store.files import read_info, write_json_atomic
from hmdc_hub.store.rundir import RunDir
from tests.builders import edit_json, make_recipe, make_run, make_scores, make_source_info
from tests.hub import LocalHub, Request
from tests.publish.pushing import REPO, SOURCE, made_run, no_wait, options, plan, prepare, push


@pytest.fixture(autouse=True)
def account(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> str:
    token = prepare(hub)
    monkeypatch.setenv("HF_TOKEN", token)
    return token


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "run")


def front(hub: LocalHub, repo: str = REPO) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(hub.files(repo)["README.md"].decode().split("---")[1])
    return found


def default(hub: LocalHub) -> list[str]:
    return [c["config_name"] for c in front(hub)["configs"] if c.get("default")]


def asked(hub: LocalHub, *labels: str) -> list[Request]:
    return [request for request in hub.requests if request.label in labels]


WRITING = ("create-repo", "preupload", "lfs-batch", "lfs-upload", "lfs-verify", "commit", "tag", "branch")


@pytest.mark.slow
def test_the_first_push_is_the_package_in_one_commit(hub: LocalHub, run: RunDir) -> None:
    done = push(run)
    folder = run.package
    there = hub.files(REPO)
    packed = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert set(there) - {".gitattributes"} == set(packed)
    for name, data in packed.items():
        if name == "README.md":  # the package does not know yet where it will be
            assert there[name].decode() == render(folder, repo_id=REPO)
        elif name == "croissant.json":
            assert there[name].decode() == croissant(read_facts(folder), "ipc2", REPO)
        else:
            assert there[name] == data, name
    assert len(hub.commits(REPO)) == 2 and len(asked(hub, "commit")) == 1
    assert done.commit == hub.head(REPO) and done.changed and not hub.is_private(REPO)
    manifest = hashlib.sha256(there["ipc2/manifest.json"]).hexdigest()
    assert hub.tags(REPO) == {f"ipc2-{manifest[:8]}": done.commit} and done.revision == f"ipc2-{manifest[:8]}"
    assert done.loads == {"ipc2": 24, "scores": len(json.loads(there["ipc2/scores.json"])["cells"])}


@pytest.mark.slow
def test_planning_changes_nothing(hub: LocalHub, run: RunDir) -> None:
    found = plan(run)
    assert (found.repo_id, found.remote, found.private) == (REPO, None, False)
    assert {"README.md", "ipc2/manifest.json"} < set(found.uploads)
    assert not hub.exists(REPO) and not asked(hub, *WRITING)


@pytest.mark.slow
def test_pushing_again_commits_nothing(hub: LocalHub, run: RunDir) -> None:
    first = push(run)
    hub.requests.clear()
    again = push(run)
    assert again.commit == first.commit and not again.changed and again.tags == first.tags
    assert not asked(hub, "commit", "lfs-upload", "preupload")


@pytest.mark.slow
def test_other_library_versions_alone_make_no_commit(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    head = push(run).commit
    info = json.loads(run.info.read_text())
    info["versions"]["torch"], info["seconds"], info["hmdc_hub_version"] = "9.9.9", 1.0, "7.0"
    run.info.write_text(json.dumps(sealed(info)))
    assert push(run).commit == head == hub.head(REPO)


@pytest.mark.slow
def test_the_same_pixels_in_other_bytes_make_no_commit(hub: LocalHub, run: RunDir) -> None:
    import pyarrow.parquet as pq

    head = push(run).commit
    pq.write_table(pq.read_table(run.parquet), run.parquet, compression="gzip")
    sha = hashlib.sha256(run.parquet.read_bytes()).hexdigest()
    for path in (run.info, run.scores):
        run_file = json.loads(path.read_text())
        assert run_file["parquet_sha256"] != sha
        path.write_text(json.dumps(sealed(run_file | {"parquet_sha256": sha})))
    assert push(run).commit == head


@pytest.mark.slow
def test_equal_tensors_and_pixels_in_other_bytes_make_no_commit(hub: LocalHub, run: RunDir) -> None:
    import pyarrow.parquet as pq
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    head = push(run).commit
    pq.write_table(pq.read_table(run.parquet), run.parquet, compression="gzip")
    with safe_open(run.condensed, framework="pt") as file:
        header = json.loads(file.metadata()["hmdc"])
    save_file(load_file(run.condensed), run.condensed, metadata={"hmdc": json.dumps(header, indent=1)})
    changed = {
        "parquet_sha256": hashlib.sha256(run.parquet.read_bytes()).hexdigest(),
        "tensors_sha256": hashlib.sha256(run.condensed.read_bytes()).hexdigest(),
    }
    edit_json(run.info, lambda info: info | changed)
    edit_json(run.scores, lambda scores: scores | {"parquet_sha256": changed["parquet_sha256"]})
    assert push(run).commit == head
    assert push(run, force=True).commit != head
    assert hub.files(REPO)["ipc2/condensed.safetensors"] == run.condensed.read_bytes()


@pytest.mark.slow
def test_a_card_that_is_no_text_is_no_crash(hub: LocalHub, run: RunDir) -> None:
    hub.create_repo(REPO, files={"README.md": b"\xff\xfe# \x80"})
    with pytest.raises(UsageError, match="--force"):
        push(run)
    assert push(run, force=True).changed


@pytest.mark.slow
def test_other_images_replace_the_published_ones(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    first = push(run)
    other = made_run(tmp_path / "other", seed=1)
    second = push(other)
    assert second.changed and second.commit != first.commit
    assert hub.files(REPO)["ipc2/condensed.safetensors"] == other.condensed.read_bytes()
    # What was published stays reachable.
    assert hub.tags(REPO) == {first.tags[0]: first.commit, second.tags[0]: second.commit}
    assert hub.files(REPO, first.tags[0])["ipc2/condensed.safetensors"] == run.condensed.read_bytes()


@pytest.mark.slow
def test_scores_of_replaced_images_go(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    push(made_run(tmp_path / "other", seed=1, scored=False))
    assert not [name for name in hub.files(REPO) if "scores" in name]
    assert [c["config_name"] for c in front(hub)["configs"]] == ["ipc2"]


@pytest.mark.slow
def test_a_run_without_scores_leaves_published_ones_alone(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    head = push(run).commit
    shutil.copytree(run.path, tmp_path / "bare")
    bare = RunDir(tmp_path / "bare")
    bare.scores.unlink()
    assert push(bare).commit == head


@pytest.mark.slow
def test_several_recipes_share_a_repository(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    before = hub.files(REPO)
    hub.requests.clear()
    done = push(made_run(tmp_path / "five", 5))
    there = hub.files(REPO)
    of_all = {"README.md", "croissant.json"}
    assert {k: v for k, v in there.items() if k not in of_all and "ipc5" not in k} == {
        k: v for k, v in before.items() if k not in of_all
    }
    assert [c["config_name"] for c in front(hub)["configs"]] == ["ipc2", "ipc5", "scores"] and default(hub) == ["ipc2"]
    assert set(done.loads) == {"ipc5", "scores"} and len(hub.tags(REPO)) == 2
    (sent,) = asked(hub, "commit")
    assert b"ipc5/info.json" in sent.body and b"ipc2/" not in sent.body


@pytest.mark.slow
def test_the_first_configuration_stays_the_default_until_told(hub: LocalHub, tmp_path: Path) -> None:
    large, small = made_run(tmp_path / "5", 5), made_run(tmp_path / "2", 2)
    push(large)
    push(small)
    assert default(hub) == ["ipc5"]
    push(small, default=True)
    assert default(hub) == ["ipc2"]
    push(large)
    assert default(hub) == ["ipc2"]


@pytest.mark.slow
def test_config_repo_id_and_visibility_are_obeyed(hub: LocalHub, run: RunDir) -> None:
    done = push(run, repo_id="lab/other", config="two", private=True)
    assert done.repo_id == "lab/other" and done.url.endswith("/datasets/lab/other")
    assert done.commit == hub.head("lab/other") and hub.is_private("lab/other")
    assert push(run, repo_id="lab/other", config="two", private=True).commit == done.commit
    assert "two/train-00000-of-00001.parquet" in hub.files("lab/other") and done.loads["two"] == 24
    with pytest.raises(UsageError, match="scores"):
        push(run, config="scores")


@pytest.mark.slow
def test_hand_written_words_and_foreign_keys_survive(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    card = hub.files(REPO)["README.md"].decode()
    words = f"{BEGIN}\n\nMind the *sixes*.\r\n\t\u00e9 \n"
    mine = card.replace(BEGIN, words).replace("---\n", "---\nlanguage:\n- en\n", 1)
    hub.commit(REPO, {"README.md": mine.encode(), "notes/extra.txt": b"kept"})
    push(made_run(tmp_path / "five", 5))
    after = hub.files(REPO)
    assert words in after["README.md"].decode() and front(hub)["language"] == ["en"]
    assert after["notes/extra.txt"] == b"kept"


@pytest.mark.slow
def test_scores_only(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ipc2 is published"):
        push(run, scores_only=True)
    push(run)
    write_json_atomic(run.scores, make_scores(read_recipe_file(run.recipe), read_info(run.info), seed=7))
    head = hub.head(REPO)
    assert push(run).commit == head  # the same protocol: the published ones stay
    hub.requests.clear()
    push(run, scores_only=True)
    assert hub.files(REPO)["ipc2/scores.json"] == run.scores.read_bytes()
    assert not [r for r in asked(hub, "commit") if b"condensed.safetensors" in r.body]
    with pytest.raises(UsageError, match="other images"):
        push(made_run(tmp_path / "other", seed=1), scores_only=True)
    with pytest.raises(UsageError, match="no scores"):
        push(made_run(tmp_path / "bare", scored=False), scores_only=True)


@pytest.mark.slow
def test_a_pull_request_leaves_main_alone(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="create-pr"):
        push(run, create_pr=True)
    push(run)
    head, tags = hub.head(REPO), hub.tags(REPO)
    done = push(made_run(tmp_path / "five", 5), create_pr=True)
    assert hub.head(REPO) == head and hub.tags(REPO) == tags and not done.tags
    assert push(run, create_pr=True).revision == "main"
    assert done.revision.startswith("refs/pr/") and "/discussions/" in done.url
    assert "ipc5/manifest.json" in hub.files(REPO, done.revision)


@pytest.mark.slow
def test_a_pull_request_needs_no_write_access(hub: LocalHub, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run)
    monkeypatch.setenv("HF_TOKEN", hub.token("bob"))
    other = made_run(run.path.parent / "five", 5)
    hub.requests.clear()
    with pytest.raises(AccessError, match="write"):
        push(other, repo_id=REPO)
    assert not asked(hub, *WRITING)
    assert push(other, repo_id=REPO, create_pr=True).revision.startswith("refs/pr/")


@pytest.mark.slow
def test_a_branch_is_made_and_filled(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    head = hub.head(REPO)
    done = push(made_run(tmp_path / "five", 5), branch="try/next")
    assert hub.head(REPO) == head and hub.head(REPO, "try/next") == done.commit
    assert {"ipc2/manifest.json", "ipc5/manifest.json"} <= set(hub.files(REPO, "try/next"))
    assert not push(made_run(tmp_path / "again", 5), branch="try/next").changed
    with pytest.raises(UsageError, match="--revision"):
        push(run, branch=done.tags[0])


@pytest.mark.slow
def test_a_further_tag(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    done = push(run, tag="v1")
    assert hub.tags(REPO)["v1"] == done.commit and push(run, tag="v1").commit == done.commit
    with pytest.raises(UsageError, match="never moves"):
        push(made_run(tmp_path / "five", 5), tag="v1")
    assert hub.tags(REPO)["v1"] == done.commit == hub.head(REPO)


@pytest.mark.slow
@pytest.mark.parametrize("wish", [None, True])
def test_a_gated_source_makes_a_private_repository(hub: LocalHub, tmp_path: Path, wish: bool | None) -> None:
    hub.create_repo("someone/closed", gated=True, files={"README.md": b"x"})
    recipe = make_recipe(source_id="someone/closed")
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe))
    push(run, private=wish)
    assert hub.is_private(REPO)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gated", "private", "gone", "recorded"])
def test_public_from_a_closed_source_takes_force(hub: LocalHub, tmp_path: Path, how: str) -> None:
    if how in ("gated", "private"):
        hub.create_repo("someone/closed", gated=how == "gated", private=how == "private", files={"README.md": b"x"})
    recipe = make_recipe(source_id=SOURCE if how == "recorded" else "someone/closed")
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe, gated=how == "recorded"))
    with pytest.raises(UsageError, match="--force"):
        push(run, private=False)
    assert not hub.exists(REPO)
    push(run, private=False, force=True)
    assert not hub.is_private(REPO)


@pytest.mark.slow
def test_a_repository_that_is_not_ours_is_refused(hub: LocalHub, run: RunDir) -> None:
    theirs = {"README.md": b"---\nlicense: mit\n---\n# Mine\nWords.\n", "data/train.csv": b"a,b\n"}
    hub.create_repo(REPO, files=theirs)
    head = hub.head(REPO)
    with pytest.raises(UsageError, match="--repo-id"):
        push(run)
    assert hub.head(REPO) == head and not asked(hub, *WRITING)
    push(run, force=True)
    there = hub.files(REPO)
    assert there["data/train.csv"] == b"a,b\n" and "Words." in there["README.md"].decode()


@pytest.mark.slow
def test_an_empty_repository_is_taken(hub: LocalHub, run: RunDir) -> None:
    hub.create_repo(REPO, private=True)
    push(run)
    assert hub.is_private(REPO) and "ipc2/manifest.json" in hub.files(REPO)


@pytest.mark.slow
def test_a_newer_format_is_refused(hub: LocalHub, run: RunDir) -> None:
    push(run)
    card = hub.files(REPO)["README.md"]
    card = card.replace(b"format_version: %d" % FORMAT_VERSION, b"format_version: %d" % (FORMAT_VERSION + 1))
    hub.commit(REPO, {"README.md": card})
    with pytest.raises(NewerFormatError, match="pip install -U"):
        push(run, force=True)


@pytest.mark.slow
def test_a_damaged_configuration_is_not_published_over_silently(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    five = made_run(tmp_path / "five", 5)
    push(five)
    info = json.loads(hub.files(REPO)["ipc5/info.json"])
    hub.commit(REPO, {"ipc5/info.json": json.dumps(sealed(info | {"parquet_sha256": "0" * 64})).encode()})
    with pytest.raises(FormatError, match="ipc5"):
        push(run)
    with pytest.raises(FormatError, match="--force"):
        push(five)
    push(five, force=True)
    assert [c["config_name"] for c in front(hub)["configs"]] == ["ipc2", "ipc5", "scores"]


@pytest.mark.slow
@pytest.mark.parametrize("role", ["read", "expired"])
def test_a_token_that_may_not_write_is_found_before_a_byte_is_sent(
    hub: LocalHub, run: RunDir, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token("ann", role=role))
    with pytest.raises(AccessError, match="hf auth login") as caught:
        push(run)
    assert not asked(hub, *WRITING) and "hf_" not in str(caught.value)


def test_without_a_token(hub: LocalHub, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AccessError, match="not logged in"):
        push(run)


@pytest.mark.slow
@pytest.mark.parametrize("repo", ["nobody/x", "bob/x"])
def test_somebody_elses_namespace(hub: LocalHub, run: RunDir, repo: str) -> None:
    with pytest.raises(AccessError, match=r"ann, lab"):
        push(run, repo_id=repo)
    assert not asked(hub, *WRITING)


@pytest.mark.slow
def test_a_fine_grained_token_is_judged_by_the_hub(hub: LocalHub, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token("ann", role="fineGrained"))
    with pytest.raises(AccessError, match="bob"):
        push(run, repo_id="bob/x")
    assert not hub.exists("bob/x") and {request.label for request in asked(hub, *WRITING)} == {"create-repo"}
    assert push(run).changed


def test_reading_roles_in_an_organisation_do_not_suffice(hub: LocalHub, run: RunDir) -> None:
    hub.add_org("club", {"ann": "read"})
    with pytest.raises(AccessError):
        push(run, repo_id="club/x")


def test_a_secret_in_the_recipe_is_not_published(hub: LocalHub, tmp_path: Path, account: str) -> None:
    recipe = make_recipe().model_copy(update={"description": f"made with {account}"})
    run = make_run(tmp_path / "run", recipe=recipe)
    with pytest.raises(UsageError, match="token") as caught:
        push(run)
    assert account not in str(caught.value) and not hub.exists(REPO)


@pytest.mark.slow
def test_a_secret_in_the_hand_written_part_is_not_published_again(hub: LocalHub, run: RunDir, account: str) -> None:
    push(run)
    card = hub.files(REPO)["README.md"].decode()
    hub.commit(REPO, {"README.md": card.replace(BEGIN, f"{BEGIN}\n{account}\n").encode()})
    head = hub.head(REPO)
    with pytest.raises(UsageError, match=r"README\.md.*token"):
        push(made_run(run.path.parent / "five", 5))
    assert hub.head(REPO) == head


@pytest.mark.slow
def test_a_local_source_is_published_without_its_path(hub: LocalHub, tmp_path: Path) -> None:
    recipe = make_recipe(source_id=str(tmp_path / "cats"))
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe, kind="local"))
    push(run)
    assert hub.is_private(REPO)
    for name, data in hub.files(REPO).items():
        assert str(tmp_path).encode() not in data, name
    assert yaml.safe_load(hub.files(REPO)["ipc2/recipe.yaml"])["source"]["id"] == "local:cats@" + "ab12" * 4


def test_a_link_in_the_package_is_refused(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    from hmdc_hub.publish.push import Push
    from tests.publish.pushing import options

    (tmp_path / "secret").write_text("x")
    with Push(run, options()) as pushing:
        planned = pushing.plan()
        parquet = run.package / "ipc2" / "train-00000-of-00001.parquet"
        content = parquet.read_bytes()
        parquet.unlink()
        (tmp_path / "elsewhere").write_bytes(content)
        parquet.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FormatError, match="changed"):
            pushing.apply(planned)
        parquet.unlink()
        parquet.write_bytes(content[:-1] + b"x")
        with pytest.raises(FormatError, match="changed"):
            pushing.apply(planned)
    assert not asked(hub, "commit", "preupload")


def once_before(hub: LocalHub, label: str, action: Any) -> None:
    def before(request: Request) -> None:
        if request.label == label:
            hub.before = None
            action()

    hub.before = before


@pytest.mark.slow
def test_somebody_elses_other_configuration_in_between_is_kept(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    nine, between = made_run(tmp_path / "nine", 9), []
    once_before(hub, "commit", lambda: between.append(push(nine)))
    done = push(made_run(tmp_path / "five", 5))
    assert done.changed and between[0].changed and hub.commits(REPO)[:2] == [done.commit, between[0].commit]
    assert [c["config_name"] for c in front(hub)["configs"]] == ["ipc2", "ipc5", "ipc9", "scores"]
    theirs = {name: data for name, data in hub.files(REPO, between[0].commit).items() if "ipc9" in name}
    assert len(theirs) == 10 and theirs.items() <= hub.files(REPO).items()


@pytest.mark.slow
def test_folders_of_others_are_left_alone(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    theirs = {"raw/manifest.json": b"[1, 2]", "raw/info.json": b"x", "web/manifest.json": b'{"name": "app"}'}
    hub.commit(REPO, theirs)
    push(made_run(tmp_path / "five", 5))
    assert theirs.items() <= hub.files(REPO).items()
    assert [c["config_name"] for c in front(hub)["configs"]] == ["ipc2", "ipc5", "scores"]


@pytest.mark.slow
def test_a_lost_card_is_made_again_with_force(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    five = made_run(tmp_path / "five", 5)
    push(five)
    hub.commit(REPO, {"README.md": b"# Oops\n", "web/manifest.json": b"{}"})
    with pytest.raises(UsageError, match="--force"):
        push(run)
    push(run, force=True)
    assert [c["config_name"] for c in front(hub)["configs"]] == ["ipc2", "ipc5", "scores"]
    assert "# Oops" in hub.files(REPO)["README.md"].decode()
    assert not push(five).changed


@pytest.mark.slow
def test_our_own_configuration_changed_in_between(hub: LocalHub, run: RunDir, tmp_path: Path) -> None:
    push(run)
    mine, theirs = made_run(tmp_path / "mine", seed=1), made_run(tmp_path / "theirs", seed=2)
    package(theirs)
    files = {p.relative_to(theirs.package).as_posix(): p.read_bytes() for p in theirs.package.rglob("*") if p.is_file()}
    del files["README.md"]
    once_before(hub, "commit", lambda: hub.commit(REPO, files))
    with pytest.raises(RunError, match="--force"):
        push(mine)
    assert hub.files(REPO)["ipc2/condensed.safetensors"] == theirs.condensed.read_bytes()
    push(mine, force=True)
    assert hub.files(REPO)["ipc2/condensed.safetensors"] == mine.condensed.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("label", ["resolve", "tag"])
def test_a_repository_deleted_while_it_is_read(hub: LocalHub, run: RunDir, tmp_path: Path, label: str) -> None:
    push(run)
    once_before(hub, label, lambda: hub.delete_repo(REPO))
    with pytest.raises(RunError, match="is gone") as caught:
        push(made_run(tmp_path / "five", 5))
    assert not isinstance(caught.value, UsageError) and caught.value.hint


@pytest.mark.slow
def test_a_large_file_that_the_hub_refuses_is_no_bug_of_ours(hub: LocalHub, run: RunDir) -> None:
    asking = Hub(no_wait)

    def refused(*_: object, **__: object) -> None:
        raise ValueError(f"LFS batch API returned errors:\nfile with OID {'0' * 64}: `You have exceeded your storage`")

    asking.api.create_commit = refused  # type: ignore[method-assign,assignment]
    with pytest.raises(RunError, match="committing to ann/tiny-hmdc: LFS .* exceeded your storage"):
        publish(run, options(), hub=asking)


def test_pushing_offline_says_so(hub: LocalHub, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match=r"HF_HUB_OFFLINE is set.*asking who you are\.") as caught:
        push(run)
    assert "Unset HF_HUB_OFFLINE" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("label", ["preupload", "commit"])
def test_a_repository_deleted_in_between(hub: LocalHub, run: RunDir, tmp_path: Path, label: str) -> None:
    push(run)
    once_before(hub, label, lambda: hub.delete_repo(REPO))
    with pytest.raises(HmdcError, match=r"[Pp]ush again"):
        push(made_run(tmp_path / "five", 5))
    assert not hub.exists(REPO)
    assert push(run).changed


@pytest.mark.slow
def test_a_repository_created_in_between_by_another(hub: LocalHub, run: RunDir) -> None:
    once_before(hub, "create-repo", lambda: hub.create_repo(REPO, files={"README.md": b"# Theirs"}))
    with pytest.raises(UsageError, match="did not publish"):
        push(run)
    assert hub.files(REPO)["README.md"] == b"# Theirs"


@pytest.mark.slow
def test_the_tag_of_other_content_is_not_moved(hub: LocalHub, run: RunDir) -> None:
    hub.create_repo(REPO)
    head, (tag,) = hub.head(REPO), plan(run).tags
    other = HfApi(token=hub.token("ann"))
    once_before(hub, "commit", lambda: other.create_tag(REPO, tag=tag, revision=head, repo_type="dataset"))
    with pytest.raises(RunError, match="never moves"):
        push(run)
    assert hub.tags(REPO) == {tag: head}
