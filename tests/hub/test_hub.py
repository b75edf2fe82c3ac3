"""The local Hub answers the unpatched clients as they expect; what its users rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub import errors as client
from huggingface_hub.errors import HfHubHTTPError

from tests.hub import Fault, LocalHub

REPO = "ann/things"
PARQUET = b"PAR1" + bytes(range(256)) * 40


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    hub.add_user("ann")
    hub.add_user("bob")
    hub.add_org("lab", {"ann": "write", "bob": "read"})
    return HfApi(token=hub.token("ann"))


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "/").replace("_", "."), data) for name, data in files.items()]


def commit(api: HfApi, operations: Any, **keys: Any) -> Any:
    return api.create_commit(REPO, operations, commit_message="x", repo_type="dataset", **keys)


def status(error: Any) -> int:
    return int(error.value.response.status_code)


def test_accounts(hub: LocalHub, api: HfApi) -> None:
    said = api.whoami()
    assert said["name"] == "ann" and said["orgs"][0]["name"] == "lab" and said["orgs"][0]["roleInOrg"] == "write"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token=hub.token("ann", role="expired")).whoami()


def test_repositories_are_created_where_one_may(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset", private=True)
    assert hub.is_private(REPO) and set(hub.files(REPO)) == {".gitattributes"}
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(REPO, repo_type="dataset")
    assert status(error) == 409
    api.create_repo("lab/x", repo_type="dataset")
    for name, token in (("bob/x", "ann"), ("lab/y", "bob")):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(token=hub.token(token)).create_repo(name, repo_type="dataset")
        assert status(error) == 403
    api.delete_repo(REPO, repo_type="dataset")
    assert not hub.exists(REPO)


def test_commits_hold_regular_and_large_files(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset")
    done = commit(api, add(README_md=b"# hello\n", data__a_parquet=PARQUET))
    assert done.oid == hub.head(REPO) and hub.files(REPO)["data/a.parquet"] == PARQUET
    info = api.dataset_info(REPO, files_metadata=True)
    sizes = {file.rfilename: (file.size, file.lfs is not None) for file in info.siblings or []}
    assert sizes["README.md"] == (8, False) and sizes["data/a.parquet"] == (len(PARQUET), True)
    hub.requests.clear()
    again = commit(api, add(README_md=b"# hello\n", data__a_parquet=PARQUET))
    assert again.oid == done.oid and not [r for r in hub.requests if r.label in ("commit", "lfs-upload")]
    commit(api, [CommitOperationDelete("README.md"), *add(b_txt=b"b")])
    assert set(hub.files(REPO)) == {".gitattributes", "data/a.parquet", "b.txt"} and len(hub.commits(REPO)) == 3


def test_a_commit_on_an_older_state_is_a_conflict(hub: LocalHub, api: HfApi) -> None:
    head = hub.create_repo(REPO)
    hub.commit(REPO, {"theirs.txt": b"1"})
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, add(a_txt=b"a"), parent_commit=head)
    assert status(error) == 412
    commit(api, add(a_txt=b"a"), parent_commit=hub.head(REPO))


def test_front_matter_that_is_none_is_refused(hub: LocalHub, api: HfApi) -> None:
    hub.create_repo(REPO)
    with pytest.raises(ValueError, match="README"):
        commit(api, add(README_md=b"---\na: [\n---\n"))


def test_pull_requests_branches_and_tags(hub: LocalHub, api: HfApi) -> None:
    head = hub.create_repo(REPO)
    done = commit(api, add(a_txt=b"a"), create_pr=True)
    assert done.pr_revision == "refs/pr/1" and hub.head(REPO) == head and "a.txt" in hub.files(REPO, "refs/pr/1")
    assert [pull.ref for pull in api.list_repo_refs(REPO, repo_type="dataset", include_pull_requests=True).pull_requests or []] == ["refs/pr/1"]  # fmt: skip  # noqa: E501
    api.create_branch(REPO, branch="next", repo_type="dataset")
    commit(api, add(b_txt=b"b"), revision="next")
    assert hub.head(REPO) == head and "b.txt" in hub.files(REPO, "next")
    api.create_tag(REPO, tag="v1", revision="next", repo_type="dataset")
    assert hub.tags(REPO) == {"v1": hub.head(REPO, "next")}
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(REPO, tag="v1", repo_type="dataset")
    assert status(error) == 409
    api.create_tag(REPO, tag="v1", repo_type="dataset", exist_ok=True)
    with pytest.raises(client.RevisionNotFoundError):
        commit(api, add(c_txt=b"c"), revision="nowhere")


@pytest.mark.parametrize("role", ["read", "expired"])
def test_tokens_that_may_not_write(hub: LocalHub, api: HfApi, role: str) -> None:
    hub.create_repo(REPO)
    weak = HfApi(token=hub.token("ann", role=role))
    wanted = {"read": 403, "expired": 401}[role]
    with pytest.raises(HfHubHTTPError) as error:
        weak.auth_check(REPO, repo_type="dataset", write=True)
    assert status(error) == wanted
    with pytest.raises(HfHubHTTPError) as error:
        commit(weak, add(a_txt=b"a"))
    assert status(error) == wanted
    api.auth_check(REPO, repo_type="dataset", write=True)


def test_who_sees_and_reads_what(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    hub.create_repo("ann/private", private=True, files={"a.txt": b"a"})
    hub.create_repo("ann/gated", gated=True, files={"a.txt": b"a"})
    tokens: dict[str, Any] = {"ann": api.token, "bob": hub.token("bob"), "nobody": False}
    for name, token in tokens.items():
        for repo, error in (("ann/private", client.RepositoryNotFoundError), ("ann/gated", client.GatedRepoError)):
            keys = {"repo_type": "dataset", "token": token, "cache_dir": tmp_path / name}
            if name == "ann":
                assert Path(hf_hub_download(repo, "a.txt", **keys)).read_bytes() == b"a"
            else:
                with pytest.raises(error):
                    hf_hub_download(repo, "a.txt", **keys)
    assert HfApi(token=False).dataset_info("ann/gated").gated
    hub.grant("ann/gated", "bob")
    hf_hub_download("ann/gated", "a.txt", repo_type="dataset", token=tokens["bob"], cache_dir=tmp_path / "granted")


def test_downloads_by_branch_tag_and_commit(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    first = hub.create_repo(REPO, files={"a.txt": b"1", "b.parquet": PARQUET})
    api.create_tag(REPO, tag="v1", repo_type="dataset")
    hub.commit(REPO, {"a.txt": b"2"})
    for revision, wanted in ((None, b"2"), ("main", b"2"), ("v1", b"1"), (first, b"1")):
        path = hf_hub_download(REPO, "a.txt", repo_type="dataset", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == wanted
    folder = Path(api.snapshot_download(REPO, repo_type="dataset", revision="v1", cache_dir=tmp_path / "s"))
    assert folder.name == first and (folder / "b.parquet").read_bytes() == PARQUET
    with pytest.raises(client.EntryNotFoundError):
        hf_hub_download(REPO, "none.txt", repo_type="dataset", cache_dir=tmp_path)
    with pytest.raises(client.RevisionNotFoundError):
        hf_hub_download(REPO, "a.txt", repo_type="dataset", revision="none", cache_dir=tmp_path)


def test_the_file_system_reads_ranges(hub: LocalHub, api: HfApi) -> None:
    hub.create_repo(REPO, files={"data/b.parquet": PARQUET, "data/deep/c.txt": b"c"})
    system = HfFileSystem(token=api.token, skip_instance_cache=True)
    assert sorted(system.find(f"datasets/{REPO}/data")) == [
        f"datasets/{REPO}/data/b.parquet",
        f"datasets/{REPO}/data/deep/c.txt",
    ]
    with system.open(f"datasets/{REPO}/data/b.parquet", "rb", block_size=64) as file:
        file.seek(-100, 2)
        assert file.read(10) == PARQUET[-100:-90]


READ = """
import sys, datasets
datasets.disable_progress_bars()
d = datasets.load_dataset("ann/things", *sys.argv[1:2], split="train", streaming="stream" in sys.argv)
print([row["x"] for row in d])
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["second"], ["first", "stream"]])
def test_load_dataset_in_a_fresh_process(
    hub: LocalHub, tmp_path: Path, child_environment: dict[str, str], arguments: list[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: dict[str, bytes] = {}
    for number, name in enumerate(("first", "second")):
        pq.write_table(pa.table({"x": [number, number + 1]}), tmp_path / name)
        files[f"{name}/train.parquet"] = (tmp_path / name).read_bytes()
    card = "---\nconfigs:\n- config_name: first\n  data_files: first/*.parquet\n  default: true\n"
    card += "- config_name: second\n  data_files: second/*.parquet\n---\n"
    hub.create_repo(REPO, files=files | {"README.md": card.encode()})
    line = [sys.executable, "-c", READ, *arguments]
    done = subprocess.run(line, env=child_environment, capture_output=True, text=True)
    assert done.stdout.strip() == ("[1, 2]" if arguments == ["second"] else "[0, 1]"), done.stderr
    assert not [request.path for request in hub.requests if request.label == "other" and request.status == 500]


@pytest.mark.parametrize("action", ["500", "503", "429", "403", "drop-before", "drop-after", "drop-midway"])
def test_faults_are_what_they_say(hub: LocalHub, api: HfApi, action: str) -> None:
    head = hub.create_repo(REPO)
    hub.faults.append(Fault(label="commit", action=action))  # type: ignore[arg-type]
    with pytest.raises(client.HTTPError) as error:  # type: ignore[attr-defined]
        commit(api, add(a_txt=b"a" * 100_000))
    if action.isdigit():
        assert status(error) == int(action)
    assert (hub.head(REPO) == head) is (action != "drop-after")
    hub.faults.clear()
    commit(api, add(b_txt=b"b"))


def test_faults_count_and_wait_their_turn(hub: LocalHub, api: HfApi) -> None:
    hub.faults.append(Fault(label="whoami", action="500", skip=1, times=1))
    api.whoami()
    with pytest.raises(HfHubHTTPError):
        api.whoami()
    api.whoami()
    assert [request.status for request in hub.requests if request.label == "whoami"] == [200, 500, 200]


def test_a_flipped_byte_is_served_and_not_noticed_by_the_client(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    hub.create_repo(REPO, files={"b.parquet": PARQUET})
    hub.faults.append(Fault(label="lfs-download", action="flip"))
    path = hf_hub_download(REPO, "b.parquet", repo_type="dataset", cache_dir=tmp_path)
    served = Path(path).read_bytes()
    assert served != PARQUET and sum(a != b for a, b in zip(served, PARQUET, strict=True)) == 1


def test_the_token_goes_to_the_api_and_not_to_the_storage(hub: LocalHub, api: HfApi) -> None:
    hub.create_repo(REPO)
    commit(api, add(a_parquet=PARQUET))
    tokens = {request.label: request.token for request in hub.requests}
    assert tokens["commit"] == api.token and tokens["lfs-upload"] is None


def test_models_are_repositories_too(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    hub.create_repo("ann/net", repo_type="model", files={"config.json": b"{}"})
    assert Path(hf_hub_download("ann/net", "config.json", cache_dir=tmp_path)).read_bytes() == b"{}"
    assert not hub.exists("ann/net")
