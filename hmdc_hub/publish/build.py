"""Building the package of a run: exactly the files that the Hub repository will hold."""

from __future__ import annotations

import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

from pydantic import ValidationError

from hmdc_hub.catalog import dump_recipe, read_recipe_file
from hmdc_hub.errors import FormatError, NotFoundError, RunError, UsageError
from hmdc_hub.publish.card import render
from hmdc_hub.publish.facts import PARQUET
from hmdc_hub.publish.scan import refuse_secrets
from hmdc_hub.report.plots import plot_scores
from hmdc_hub.report.preview import preview_of
from hmdc_hub.schema import ArtifactInfo, Manifest, PackagedFile, PublishSpec, Recipe, Scores
from hmdc_hub.store.files import (
    TEMPORARY,
    json_text,
    read_info,
    read_scores,
    sha256_file,
    write_bytes_atomic,
    write_text_atomic,
)
from hmdc_hub.store.rundir import RunDir


def package(run: RunDir, *, config: str | None = None) -> Path:
    """Build `<run>/package` from the run's files, in the place of an earlier one; packaging twice gives the same bytes.

    Data files are copied unchanged. A local source's path becomes its base name and fingerprint. Without scores.json
    the parts about scores are left out.

    Args:
        run: A run whose condensing is complete.
        config: Name of the configuration; None: the recipe's `publish.config`.

    Returns:
        The package folder.

    Raises:
        NotFoundError: Condensing is not complete.
        FormatError: A file is damaged: it has not the SHA-256 that info.json or scores.json names.
        UsageError: What the recipe says would publish a secret or a path of this machine.
        RunError: The file system failed; an earlier package is still there.
    """
    if not run.info.is_file():
        raise NotFoundError(
            f"{run.path} holds no complete condensed set to package.",
            hint="`hmdc-hub condense` with its recipe and --resume goes on with it.",
        )
    info, recipe = read_info(run.info), read_recipe_file(run.recipe)
    if config is not None:
        recipe = recipe.model_copy(update={"publish": renamed(recipe.publish, config)})
    scores = read_scores(run.scores) if run.scores.is_file() else None
    _refuse_mismatch(run, info, scores)
    building = run.path / f".package{TEMPORARY}"
    try:
        shutil.rmtree(building, ignore_errors=True)
        _build(building, run, *without_paths(info, recipe), scores)
        refuse_secrets({path.relative_to(building).as_posix(): path for path in files_of(building)})
        _swap(building, run.package)
    except OSError as error:
        raise RunError(f"Cannot write {run.package}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return run.package


def renamed(publish: PublishSpec, config: str) -> PublishSpec:
    """Give another name to the configuration that a recipe fills.

    Raises:
        UsageError: It cannot be the name of one.
    """
    try:
        return PublishSpec.model_validate(publish.model_dump() | {"config": config})
    except ValidationError as error:
        raise UsageError(
            f"{config!r} cannot be the name of a configuration: letters, digits, dots, dashes and underscores, at most "
            "64, and not data, scores or assets.",
            hint="For example --config ipc10.",
        ) from error


def files_of(folder: Path) -> list[Path]:
    """List the files below a folder, by name.

    Raises:
        FormatError: Something in it is neither a regular file nor a folder; links are never followed.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise FormatError(f"{path} is no regular file: a package holds nothing else.")
    return found


def _refuse_mismatch(run: RunDir, info: ArtifactInfo, scores: Scores | None) -> None:
    """Refuse data that is not what provenance and scores were written about."""
    for path, wanted in ((run.condensed, info.tensors_sha256), (run.parquet, info.parquet_sha256)):
        if sha256_file(path) != wanted:
            raise FormatError(
                f"{path} is not the file that info.json names: it was changed or damaged since.",
                hint="`hmdc-hub condense` with its recipe and --force makes it again.",
            )
    if scores is not None and scores.parquet_sha256 != info.parquet_sha256:
        raise FormatError(
            f"{run.scores} is about other images than {run.parquet}.",
            hint="`hmdc-hub evaluate` scores these images.",
        )
    if scores is not None and scores.protocol.holdout is not None:
        raise UsageError(
            f"{run.scores} is about held-out images of the train split (evaluate.holdout), for choosing settings.",
            hint="Publish scores on the test split: -o evaluate.holdout=null",
        )


def without_paths(info: ArtifactInfo, recipe: Recipe) -> tuple[ArtifactInfo, Recipe]:
    """Replace paths by base names and fingerprints: where somebody keeps data and weights is nobody's business.

    The placeholder, `local:<base name>@<16 hex digits of the fingerprint>`, tells a reader who has the data too which
    they are; no program takes it for a path.
    """
    info = info.model_copy(update={"models": [model.without_paths() for model in info.models]})
    recipe = recipe.model_copy(
        update={
            "pool": [model.without_paths() for model in recipe.pool],
            "evaluate": recipe.evaluate.without_paths(),
        }
    )
    if info.source.kind != "local":
        return info, recipe
    # PureWindowsPath splits at both kinds of slash.
    name = PureWindowsPath(recipe.source.id).name or "data"
    place = f"local:{name}@{info.source.fingerprint[:16]}"
    source = info.source.model_copy(update={"id": place})
    return (
        info.model_copy(update={"source": source}),
        recipe.model_copy(update={"source": recipe.source.model_copy(update={"id": place})}),
    )


def _build(folder: Path, run: RunDir, info: ArtifactInfo, recipe: Recipe, scores: Scores | None) -> None:
    """Write every file of the package into an empty folder."""
    from hmdc_hub.store import training_shape  # late: torch

    config = recipe.publish.config
    data = folder / config
    data.mkdir(parents=True)
    parquet = data / PARQUET
    shutil.copyfile(run.parquet, parquet)
    shutil.copyfile(run.condensed, data / "condensed.safetensors")
    write_text_atomic(data / "recipe.yaml", dump_recipe(recipe))
    write_text_atomic(data / "info.json", json_text(info))
    _refuse_other_images(parquet, info)
    shape = training_shape(info, data / "condensed.safetensors")
    picture = preview_of(parquet, shape, info.source.class_names)
    write_bytes_atomic(folder / "assets" / config / "preview.png", picture)
    if scores is not None:
        write_bytes_atomic(data / "scores.json", run.public_scores())
        write_scores_parquet(folder / "scores" / f"{config}.parquet", scores, config)
        write_bytes_atomic(folder / "assets" / config / "scores.png", plot_scores(scores))
    write_text_atomic(data / "manifest.json", json_text(_manifest(folder, config, parquet, info)))
    write_text_atomic(folder / "README.md", render(folder))


def _refuse_other_images(parquet: Path, info: ArtifactInfo) -> None:
    """Refuse a parquet whose footer does not agree with info.json."""
    import pyarrow.parquet as pq

    from hmdc_hub.store.parquet import read_class_names

    names, footer = read_class_names(parquet), pq.read_metadata(parquet)
    if names != info.source.class_names or footer.num_rows != info.training_images:
        raise FormatError(
            f"train.parquet has {footer.num_rows} images of the classes {', '.join(names[:5])}; info.json says "
            f"{info.training_images} of {', '.join(info.source.class_names[:5])}."
        )


def _manifest(folder: Path, config: str, parquet: Path, info: ArtifactInfo) -> Manifest:
    """List this configuration's files."""
    import pyarrow.parquet as pq

    footer = pq.read_metadata(parquet)
    return Manifest(
        config=config,
        rows=footer.num_rows,
        data_bytes=sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)),
        class_names=info.source.class_names,
        files=[
            PackagedFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_file(path))
            for path in files_of(folder)
        ],
    )


def write_scores_parquet(path: Path, scores: Scores, config: str) -> None:
    """Write one row per training; columns, types and order are fixed per format version (docs/formats.md)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, tuple[Any, list[Any]]] = {
        "config": (pa.string(), [config for _ in scores.cells]),
        "training_set": (pa.string(), [cell.training_set for cell in scores.cells]),
        "stored_images": (pa.int64(), [scores.budgets[cell.training_set].stored for cell in scores.cells]),
        "training_images": (pa.int64(), [scores.budgets[cell.training_set].images for cell in scores.cells]),
        "model": (pa.string(), [cell.model for cell in scores.cells]),
        "condensed_by": (pa.bool_(), [cell.model in scores.condensed_by for cell in scores.cells]),
        "draw": (pa.int64(), [cell.draw for cell in scores.cells]),
        "seed": (pa.int64(), [cell.seed for cell in scores.cells]),
        "accuracy": (pa.float64(), [cell.accuracy for cell in scores.cells]),
        "ece": (pa.float64(), [cell.ece for cell in scores.cells]),
    }
    arrays = [pa.array(values, type=kind) for kind, values in columns.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, names=list(columns)), path)


def _swap(building: Path, package: Path) -> None:
    """Put a finished folder in the place of an earlier one."""
    old = package.with_name(f".package-old{TEMPORARY}")
    shutil.rmtree(old, ignore_errors=True)
    if package.exists():
        package.rename(old)
    try:
        building.rename(package)
    except OSError:
        if old.exists():
            old.rename(package)
        raise
    shutil.rmtree(old, ignore_errors=True)
