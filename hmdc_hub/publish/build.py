"""Building the package of a run: exactly the files that the Hub repository will hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from hmdc_hub.catalog import read_recipe_file, stored_recipe_text
from hmdc_hub.errors import FormatError, NotFoundError, RunError, UsageError
from hmdc_hub.metrics import scores_rows
from hmdc_hub.publish.card import render
from hmdc_hub.publish.secret_scan import refuse_secrets
from hmdc_hub.publish.verify import refuse_damaged
from hmdc_hub.report.plots import preview_of, rendered, scores_figure
from hmdc_hub.schema import PARQUET, ArtifactInfo, Manifest, PackagedFile, PublishSpec, Recipe, Scores
from hmdc_hub.store.files import (
    json_text,
    put,
    read_info,
    read_scores,
    sha256_file,
    workplace,
    write_bytes_atomic,
    write_text_atomic,
)
from hmdc_hub.store.rundir import RunDir


def package(run: RunDir, *, config: str | None = None) -> Path:
    """Build `<run>/package` from the files of a condensed run, in the place of an earlier one; gives the folder.

    Packaging twice gives the same bytes. Data files are copied unchanged. A local source's path becomes its base name
    and fingerprint. Without scores.json the parts about scores are left out. `config` names the configuration in place
    of the recipe's `publish.config`. What was built is put there only if `verify` finds nothing wrong with it.
    """
    if not run.info.is_file():
        raise NotFoundError(
            f"{run.path} holds no complete condensed set to package.",
            hint="`hmdc-hub condense` with its recipe and --resume goes on with it.",
        )
    refuse_damaged(run)
    recipe, info = read_recipe_file(run.recipe), read_info(run.info)
    scores = read_scores(run.scores) if run.scores.is_file() else None
    if scores is not None and scores.protocol.holdout is not None:
        raise UsageError(
            f"{run.scores} is about held-out images of the train split (evaluate.holdout), for choosing settings.",
            hint="Publish scores on the test split: -o evaluate.holdout=null",
        )
    if config is not None:
        recipe = recipe.model_copy(update={"publish": renamed(recipe.publish, config)})
    try:
        with workplace(run.package) as folder:
            building = folder / "new"
            _build(building, run, info.without_paths(), recipe.without_paths(info.source), scores)
            refuse_damaged(run, building)
            refuse_secrets({path.relative_to(building).as_posix(): path for path in files_of(building)})
            put(building, run.package)
    except OSError as error:
        raise RunError(f"Cannot write {run.package}: {error.strerror or error}.") from error
    return run.package


def renamed(publish: PublishSpec, config: str) -> PublishSpec:
    """Give another name to the configuration that a recipe fills; a UsageError if it cannot be the name of one."""
    try:
        return PublishSpec.model_validate(publish.model_dump() | {"config": config})
    except ValidationError as error:
        raise UsageError(
            f"{config!r} cannot be the name of a configuration: letters, digits, dots, dashes and underscores, at most "
            "64, and not data, scores or assets.",
            hint="For example --config ipc10.",
        ) from error


def files_of(folder: Path) -> list[Path]:
    """List the files below a folder, by name; a FormatError for what is neither a file nor a folder, such as a link."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise FormatError(f"{path} is no regular file: a package holds nothing else.")
    return found


def _build(folder: Path, run: RunDir, info: ArtifactInfo, recipe: Recipe, scores: Scores | None) -> None:
    """Write every file of the package into an empty folder."""
    import pyarrow.parquet as pq

    from hmdc_hub.store.condensed import training_shape

    config = recipe.publish.config
    data = folder / config
    data.mkdir(parents=True)
    parquet = data / PARQUET
    shutil.copyfile(run.parquet, parquet)
    shutil.copyfile(run.condensed, data / "condensed.safetensors")
    write_text_atomic(data / "recipe.yaml", stored_recipe_text(recipe))
    write_text_atomic(data / "info.json", json_text(info))
    shape = training_shape(info, data / "condensed.safetensors")
    picture = preview_of(parquet, shape, info.source.class_names)
    write_bytes_atomic(folder / "assets" / config / "preview.png", picture)
    if scores is not None:
        write_bytes_atomic(data / "scores.json", run.public_scores())
        write_scores_parquet(folder / "scores" / f"{config}.parquet", scores, config)
        write_bytes_atomic(folder / "assets" / config / "scores.png", rendered(scores_figure, scores))
    footer = pq.read_metadata(parquet)
    manifest = Manifest(
        config=config,
        rows=footer.num_rows,
        data_bytes=sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)),
        class_names=info.source.class_names,
        files=[
            PackagedFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_file(path))
            for path in files_of(folder)
        ],
    )
    write_text_atomic(data / "manifest.json", json_text(manifest))
    write_text_atomic(folder / "README.md", render(folder))


def write_scores_parquet(path: Path, scores: Scores, config: str) -> None:
    """Write one row per training; columns, types and order are fixed per format version (docs/formats.md)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, share = pa.string(), pa.int64(), pa.float64()
    # The names since format 1: a repository's files of several versions are one table.
    columns = {"config": text, "training_set": text, "stored_images": number, "training_images": number, "model": text,
               "condensed_by": pa.bool_(), "draw": number, "seed": number, "accuracy": share, "ece": share}  # fmt: skip
    rows = [{"config": config} | row for row in scores_rows(scores)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), path)
