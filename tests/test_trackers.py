"""Trackers: the real trackio and TensorBoard writing into a folder; wandb, which is not installed, as a stand-in."""

from __future__ import annotations

import io
import json
import platform
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from hmdc_hub.errors import RunError, UsageError
from hmdc_hub.events import Event, ImageGrid, ImageStep, Note, Stage, Training
from hmdc_hub.schema import Recipe
from hmdc_hub.trackers import make_callbacks
from tests.tiny import RECIPE, tiny_recipe

TOKEN = "hf_" + "Secret" * 6


def step(done: int) -> ImageStep:
    losses = {"match/convnet_tiny": 1.0 / done, "distill/convnet_tiny+mlp_tiny": 2.0}
    shares, accuracies = {"match/convnet_tiny": 0.25}, {"mlp_tiny": 0.5}
    return ImageStep(0, done - 1, done, 6, losses, shares, accuracies, 0.125, 10, images_per_second=float(done))


def grid() -> ImageGrid:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (250, 0, 0)).save(file, "PNG")
    return ImageGrid(file.getvalue(), "after 3 of 6 image steps")


def events(first: int = 1, last: int = 6) -> Iterator[Event]:
    yield Stage("condense")
    for done in range(first, last + 1):
        if done == 4:
            yield grid()
        yield step(done)
    yield Note("of no interest to a tracker")


def trainings() -> list[Event]:
    return [Training(done, 2, "mlp_tiny", "condensed", 0.5 + done / 10, 0.0) for done in (1, 2)]


def log(report_to: str, run: Path, *told: Event, recipe: Recipe | None = None) -> None:
    (tracker,) = make_callbacks(report_to, run, recipe or tiny_recipe())
    for event in told:
        tracker(event)
    tracker.close()
    tracker.close()


def secret_recipe() -> Recipe:
    """One with paths of this machine wherever a recipe may have some."""
    weights = {"weights": "/home/anna/weights/mlp.safetensors"}
    model = RECIPE["pool"][1] | weights
    source = {"id": "/home/anna/my_images", "size": 8, "channels": 1}
    evaluate = RECIPE["evaluate"] | {"models": [model]}
    return Recipe.model_validate(RECIPE | {"pool": [model], "source": source, "evaluate": evaluate})


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    found.Reload()
    images = {name: [(one.step, one.encoded_image_string[:4]) for one in found.Images(name)]
              for name in found.Tags()["images"]}  # fmt: skip
    assert all(start == b"\x89PNG" for shown in images.values() for _, start in shown)
    numbers = {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}
    return numbers | {name: [(at, 0.0) for at, _ in shown] for name, shown in images.items()}


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    log("tensorboard", tmp_path, *events(), *trainings())
    found = scalars(tmp_path)
    assert [at for at, _ in found["loss/match/convnet_tiny"]] == [1, 2, 3, 4, 5, 6]
    assert found["loss/match/convnet_tiny"][3] == (4, 0.25)
    assert found["share/match/convnet_tiny"][0] == (1, 0.25) and found["accuracy/mlp_tiny"][0] == (1, 0.5)
    assert found["clamped"][0] == (1, 0.125) and found["images_per_second"][-1] == (6, 6.0)
    assert found["synthetic_images"] == [(3, 0.0)], "drawn before step 4: what three steps made"
    assert [at for at, _ in found["evaluate/condensed/mlp_tiny"]] == [1, 2]


def test_tensorboard_goes_on_where_the_resumed_run_does(tmp_path: Path) -> None:
    log("tensorboard", tmp_path, *events(last=5))
    log("tensorboard", tmp_path, *events(first=4))  # steps 4 and 5 are made again
    assert [at for at, _ in scalars(tmp_path)["loss/match/convnet_tiny"]] == [1, 2, 3, 4, 5, 6]
    log("tensorboard", tmp_path, *trainings())
    assert len(scalars(tmp_path)["loss/match/convnet_tiny"]) == 6, "evaluating takes nothing away"


def trackio_logs(run: Path, recipe: str = "tiny") -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    name = f"{recipe}-{(run / 'trackers' / 'id').read_text()}"
    assert SQLiteStorage.get_runs("hmdc-hub").count(name) == 1
    return list(SQLiteStorage.get_logs("hmdc-hub", name))


def test_trackio_keeps_what_was_logged_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log("trackio", tmp_path, *events(last=4))
    log("trackio", tmp_path, *events(first=5), *trainings())
    kept = trackio_logs(tmp_path)
    condensed = [one for one in kept if "clamped" in one]
    assert [one["step"] for one in condensed] == [1, 2, 3, 4, 5, 6]
    assert condensed[3]["loss/match/convnet_tiny"] == 0.25 and condensed[3]["accuracy/mlp_tiny"] == 0.5
    (pictured,) = (one for one in kept if "synthetic_images" in one)
    assert pictured["step"] == 3 and pictured["synthetic_images"]["caption"] == "after 3 of 6 image steps"
    assert [one["evaluate/condensed/mlp_tiny"] for one in kept if "evaluate/condensed/mlp_tiny" in one] == [0.6, 0.7]
    out, err = capsys.readouterr()
    assert out == "" and "Resumed existing run" in err


def test_nothing_of_this_machine_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trackio.utils

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # A short name, such as "vm", is in random bytes.
    monkeypatch.setattr(socket, "gethostname", lambda: "annas-workstation")
    monkeypatch.setattr(platform, "node", lambda: "annas-workstation")
    with warnings.catch_warnings(action="ignore"):  # nobody answers for the account
        for tracker in ("trackio", "tensorboard"):
            log(tracker, tmp_path, *events(), *trainings(), recipe=secret_recipe())
    logged = [path for place in (tmp_path, trackio.utils.TRACKIO_DIR) for path in place.rglob("*") if path.is_file()]
    assert {path.suffix for path in logged} >= {".db", ".png"}
    for path in logged:
        content = path.read_bytes()
        for secret in (TOKEN, "/home/anna", str(Path.home()), str(tmp_path), "annas-workstation"):
            assert secret.encode() not in content, f"{secret} in {path}"
    assert any(b"local:my_images" in path.read_bytes() for path in logged)


class StandIn(SimpleNamespace):
    """What of wandb is called, with its signatures."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str]] = []
        self.finished = 0

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def Image(self, image: Image.Image, caption: str) -> tuple[Any, str]:  # noqa: N802
        return image.size, caption

    def init(self, **keys: Any) -> StandIn:
        json.dumps(keys["config"])
        self.opened.append(keys)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_wandb_is_told_the_same(tmp_path: Path, wandb: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    log("wandb", tmp_path, *events(), *trainings(), recipe=secret_recipe())
    assert [one["image_step"] for one in wandb.logged if "clamped" in one] == [1, 2, 3, 4, 5, 6]
    assert {"synthetic_images": ((4, 3), "after 3 of 6 image steps"), "image_step": 3} in wandb.logged
    assert wandb.logged[-1] == {"evaluate/condensed/mlp_tiny": 0.7, "training": 2}
    assert ("evaluate/*", "training") in wandb.metrics and wandb.finished == 1
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    log("wandb", tmp_path, step(6))
    first, second = wandb.opened
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert (first["project"], second["project"]) == ("hmdc-hub", "mine")
    assert first["config"]["pool"][0]["weights"] == "local:mlp.safetensors" and "versions" in first["config"]
    assert "/home/anna" not in json.dumps(first["config"])
    assert first["settings"]["host"] == "hmdc-hub" and first["settings"]["x_disable_meta"]


def test_nothing_is_opened_before_there_is_a_number(tmp_path: Path, wandb: StandIn) -> None:
    trackers = make_callbacks("trackio, wandb,tensorboard", tmp_path / "run", tiny_recipe())
    assert [tracker.name for tracker in trackers] == ["trackio", "wandb", "tensorboard"]
    for tracker in trackers:
        tracker(Stage("source"))
        tracker(grid())
        tracker.close()
    assert not (tmp_path / "run").exists() and not wandb.opened


@pytest.mark.parametrize("nothing", ["", "none", [], ["none"]])
def test_no_tracker(tmp_path: Path, nothing: Any) -> None:
    assert make_callbacks(nothing, tmp_path, tiny_recipe()) == []


def test_a_tracker_that_does_not_exist_or_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="report_to: mlflow is no tracker\nThere are trackio, wandb, tensorboard"):
        make_callbacks(["mlflow"], tmp_path, tiny_recipe())
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UsageError, match="pip install trackio"):
        make_callbacks("trackio", tmp_path, tiny_recipe())


def test_a_tracker_that_does_not_start_says_how_to_go_on(tmp_path: Path, wandb: StandIn) -> None:
    def refuse(**keys: Any) -> Any:
        raise ValueError("No API key configured")

    wandb.init = refuse  # type: ignore[method-assign]
    (tracker,) = make_callbacks("wandb", tmp_path, tiny_recipe())
    with pytest.raises(RunError, match="wandb did not start: No API key configured\n.*WANDB_MODE=offline"):
        tracker(step(1))


def test_a_tracker_that_fails_later_stops_no_run(tmp_path: Path, wandb: StandIn) -> None:
    (tracker,) = make_callbacks("wandb", tmp_path, tiny_recipe())
    tracker(step(1))

    def fail(values: dict[str, Any]) -> None:
        raise ConnectionError("nobody listens")

    wandb.log = fail  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="wandb gets nothing more of this run: nobody listens; log.jsonl goes on"):
        tracker(step(2))
    tracker(step(3))  # in silence
    tracker.close()
    assert len(wandb.logged) == 1


def test_a_damaged_id_gives_a_new_run(tmp_path: Path, wandb: StandIn) -> None:
    log("wandb", tmp_path, step(1))
    (tmp_path / "trackers" / "id").write_bytes(b"\xff../../x")
    log("wandb", tmp_path, step(2))
    log("wandb", tmp_path, step(3))
    ids = [keys["id"] for keys in wandb.opened]
    assert len(ids[1]) == 8 and ids[0] != ids[1] == ids[2]
