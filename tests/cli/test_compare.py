"""`compare`: everything that may be named, every way to print it, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hmdc_hub.publish.build import package
from hmdc_hub.schema import Recipe, sealed
from hmdc_hub.store.rundir import RunDir
from tests.builders import CONVNET, MLP, make_recipe, make_run, make_source_info
from tests.cli.conftest import Call, Done
from tests.hub import LocalHub
from tests.publish.pushing import REPO, prepare

EVALUATE: dict[str, Any] = {
    "models": [CONVNET, MLP],
    "seeds": 2,
    "random_draws": 1,
    "epochs": 30,
    "baselines": ["random"],
}


def recipe(name: str, **keys: Any) -> Recipe:
    return make_recipe(name=name, config=name, size=4, channels=1, **{"evaluate": EVALUATE, **keys})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two condensing seeds of one recipe, another recipe, one without scores."""
    made = tmp_path_factory.mktemp("runs")
    make_run(made / "mine", recipe=recipe("mine"), seed=0)
    make_run(made / "mine-1a2b", recipe=recipe("mine", seed=1), seed=1)
    make_run(made / "other", recipe=recipe("other", pool=[MLP]), seed=2)
    make_run(made / "bare", recipe=recipe("bare"), scored=False)
    return made


@pytest.fixture
def root(runs: Path, folder: Path) -> Path:
    """A copy of them as `runs` of the working directory."""
    return Path(shutil.copytree(runs, folder / "runs"))


def labels(done: Done) -> list[str]:
    assert done.status == 0, done.err
    return [one["label"] for one in json.loads(done.out)["sets"]]


def wrong(done: Done, *words: str) -> None:
    assert done.status == 2 and done.out == "", done
    assert done.err.startswith("error: ") and "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err


def test_text(call: Call, root: Path) -> None:
    done = call("compare", "mine", "other")
    assert done.status == 0 and "mine" in done.out and "n = 1 condensing seed x 2 evaluation seeds" in done.out
    assert max(map(len, done.out.splitlines())) <= 80 and "--report DIR" in done.err


def test_condensing_seeds_are_put_together(call: Call, root: Path) -> None:
    document = json.loads(call("compare", "mine", "mine-1a2b", "other", "--json").out)
    assert [one["condensing_seeds"] for one in document["sets"]] == [2, 1]
    assert document["pairs"][0]["condensing_seeds"] == [2, 1]


def test_markdown_and_json(call: Call, root: Path) -> None:
    assert call("compare", "mine", "other", "--markdown").out.startswith("# mine and other\n")
    done = call("compare", "mine", "other", "--json")
    assert json.loads(done.out)["test_count"] == 300 and done.err == ""
    wrong(call("compare", "mine", "other", "--json", "--markdown"), "--json and --markdown")


@pytest.mark.slow
def test_a_report_holds_everything(call: Call, root: Path, folder: Path) -> None:
    make_run(root / "large", recipe=recipe("large", ipc=5), seed=3)
    done = call("compare", "mine", "large", "--report", "seen")
    assert done.status == 0 and "open seen/compare.html" in done.err
    pictures = {f"{name}.{kind}" for name in ("transfer", "differences", "budget") for kind in ("png", "svg")}
    there = {path.name for path in (folder / "seen").iterdir()}
    assert there == pictures | {"compare.html", "compare.md", "compare.json"}
    assert json.loads((folder / "seen/compare.json").read_text())["sets"][1]["label"] == "large"
    assert (folder / "seen/compare.html").read_text().count("<img ") == 3


@pytest.mark.slow
def test_pictures_of_an_earlier_report_go_away(call: Call, root: Path, folder: Path) -> None:
    (folder / "seen").mkdir()
    for name in ("budget.png", "budget.svg", "mine.png"):
        (folder / "seen" / name).write_text("x")
    assert call("compare", "mine", "other", "--report", "seen").status == 0
    there = {path.name for path in (folder / "seen").iterdir()}
    assert not there & {"budget.png", "budget.svg"} and {"mine.png", "transfer.svg"} <= there


def test_a_report_is_no_file(call: Call, root: Path, folder: Path) -> None:
    (folder / "file").write_text("x")
    wrong(call("compare", "mine", "other", "--report", "file"), "'file' is a file")


@pytest.mark.parametrize("name", ["other", "runs/other", "runs/other/scores.json", "./runs/other/"])
def test_what_may_be_named(call: Call, root: Path, name: str) -> None:
    assert labels(call("compare", "mine", name, "--json")) == ["mine", "other"]


def test_an_evaluation_is_called_by_its_run(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = root / "bare" / "evaluations" / "quick-1a2b3c4d"
    place.mkdir(parents=True)
    shutil.copy(root / "other" / "scores.json", place)
    assert labels(call("compare", "mine", place, "--json")) == ["mine", "bare"]
    wrong(call("compare", "mine", "bare"), "there are no scores in runs/bare", "runs/bare/evaluations/quick-1a2b3c4d")
    monkeypatch.chdir(place)
    assert labels(call("compare", "--root", root, "mine", ".", "--json")) == ["mine", "bare"]


def test_a_folder_of_that_name_does_not_hide_a_run(call: Call, root: Path, folder: Path) -> None:
    (folder / "other").mkdir()
    assert labels(call("compare", "mine", "other", "--json")) == ["mine", "other"]


@pytest.mark.slow
def test_packages(call: Call, root: Path, folder: Path) -> None:
    made = package(RunDir(root / "other"))
    shutil.copytree(made, folder / "pulled")
    shutil.copytree(package(RunDir(root / "mine")) / "mine", folder / "pulled/mine")
    assert labels(call("compare", "mine", made, "--json")) == ["mine", "other:other"]
    assert labels(call("compare", "mine", "pulled", "--config", "other", "--json")) == ["mine", "pulled:other"]
    for name in ("pulled:other", "pulled/other"):
        assert labels(call("compare", "pulled:mine", name, "--json")) == ["pulled:mine", "pulled:other"]
    wrong(call("compare", "mine", "pulled", "--config", "nope"), "nope", "other")
    wrong(call("compare", "mine", "other", "--config", "other"), "--config is about packages")


@pytest.mark.slow
def test_published_sets(call: Call, root: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", prepare(hub))
    package(RunDir(root / "other"))
    assert call("push", "other", "--yes").status == 0
    for name in (REPO, f"{REPO}:other"):
        assert labels(call("compare", "mine", name, "--json")) == ["mine", "tiny-hmdc:other"]
    assert labels(call("compare", "mine", REPO, "--config", "other", "--json")) == ["mine", "tiny-hmdc:other"]
    wrong(call("compare", "mine", f"{REPO}:nope"), "nope", "other")
    wrong(call("compare", "mine", "ann/nothing"), "ann/nothing")
    make_run(root / "longer", recipe=recipe("longer", evaluate=EVALUATE | {"epochs": 60}))
    done = call("compare", "longer", REPO)
    wrong(done, "evaluate.epochs: 60 in longer, 30 in tiny-hmdc:other")
    assert f"`hmdc-hub evaluate {REPO} --config other --protocol runs/longer/scores.json`" in done.err


def test_published_without_scores(call: Call, root: Path) -> None:
    made = package(RunDir(root / "bare"))
    wrong(call("compare", "mine", made), "bare has no scores of bare", "hmdc-hub evaluate")


def test_mistakes_are_one_clear_sentence(call: Call, root: Path, folder: Path) -> None:
    wrong(call("compare", "mine"), "two scored sets or more; there is 1.")
    wrong(call("compare"), "Missing argument 'NAME...'")
    wrong(call("compare", "mine", "nope"), "there is no run 'nope'", "runs ls")
    wrong(call("compare", "mine", "bare"), "there are no scores in runs/bare", "`hmdc-hub evaluate runs/bare`")
    wrong(call("compare", "mine", "runs"), "there are no scores in runs", "runs ls")
    wrong(call("compare", "mine", "runs/mine/info.json"), "runs/mine/info.json is no scores.json")
    wrong(call("compare", "mine", "runs/mine/train.parquet"), "is no scores.json")


def test_nothing_is_downloaded_for_a_command_with_a_mistake(call: Call, root: Path) -> None:
    """Here there is no Hub: asking it would fail with status 1."""
    wrong(call("compare", "ann/tiny-hmdc", "nope"), "there is no run 'nope'")


def test_other_protocols_and_other_data(call: Call, root: Path) -> None:
    make_run(root / "longer", recipe=recipe("longer", evaluate=EVALUATE | {"epochs": 60}))
    done = call("compare", "mine", "longer")
    wrong(done, "longer was scored by another protocol than mine:", "evaluate.epochs: 30 in mine, 60 in longer")
    assert "`hmdc-hub evaluate runs/longer --protocol runs/mine/scores.json`" in done.err
    of = recipe("elsewhere")
    source = make_source_info(of).model_copy(update={"fingerprint": "99" * 32})
    make_run(root / "elsewhere", recipe=of, source=source)
    wrong(call("compare", "mine", "elsewhere"), "was scored on other data than mine")


def test_scores_of_other_images_are_refused(call: Call, root: Path) -> None:
    shutil.copy(root / "other" / "scores.json", root / "mine" / "scores.json")
    wrong(
        call("compare", "mine", "other"), "the scores in runs/mine are of other images", "hmdc-hub evaluate runs/mine"
    )


def test_damage_is_no_mistake_of_the_user(call: Call, root: Path) -> None:
    (root / "other" / "scores.json").write_text("{")
    done = call("compare", "mine", "other")
    assert done.status == 1 and "scores.json is damaged" in done.err and "Traceback" not in done.err


def test_sets_of_other_programs_are_scored_again_from_their_file(call: Call, root: Path) -> None:
    place = root / "theirs" / "evaluations" / "custom-1a2b3c4d"
    place.mkdir(parents=True)
    plain = json.loads((root / "other" / "scores.json").read_text())
    plain |= {"condense_hash": None, "family_hash": None, "condense_seed": None, "condensed_by": [], "gap": {}}
    (place / "scores.json").write_text(json.dumps(sealed(plain)))
    done = call("compare", "mine", place)
    assert done.status == 0 and "condensed elsewhere; n = 1 condensing seed" in " ".join(done.out.split())
    make_run(root / "longer", recipe=recipe("longer", evaluate=EVALUATE | {"epochs": 60}))
    wrong(
        call("compare", "longer", place), "`hmdc-hub evaluate FILE --recipe RECIPE --protocol runs/longer/scores.json`"
    )
