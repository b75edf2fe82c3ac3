"""Building the package of a run: exactly the files that the Hub repository will hold, and nothing secret in them."""

from __future__ import annotations

import mmap
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from hmdc_hub.catalog import read_recipe_file, stored_recipe_text
from hmdc_hub.errors import FormatError, NotFoundError, RunError, UsageError
from hmdc_hub.metrics import scores_rows
from hmdc_hub.publish.card import read_facts, render
from hmdc_hub.publish.croissant import CROISSANT, croissant
from hmdc_hub.publish.verify import refuse_damaged
from hmdc_hub.report.plots import rendered, scores_figure, set_pictures
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

    A run of several sizes gives a configuration for each, of which the first in its recipe is the default; and so does
    the directory of one size.

    Packaging twice gives the same bytes. Data files are copied unchanged. A local source's path becomes its base name
    and fingerprint. Without scores.json the parts about scores are left out. `config` names the configuration in place
    of the recipe's `publish.config`; of several sizes it can only be one of theirs. What was built is put there only if
    `verify` finds nothing wrong with it.
    """
    run = run.whole
    if not all(size.info.is_file() for size in run.sizes):
        raise NotFoundError(
            f"{run.path} holds no complete condensed set to package.",
            hint="`hmdc-hub condense` with its recipe and --resume goes on with it.",
        )
    for size in run.sizes:
        refuse_damaged(size)
    several = run.sizes != [run]
    if several and config is not None and config not in (there := run.sets()):
        raise UsageError(
            f"{run.path} has a configuration for each of its sizes, {', '.join(there)}, and none that is called "
            f"{config!r}.",
            hint=f"Name one of them, --config {next(iter(there))}, or leave --config out.",
        )
    facts = [_facts(size, None if several else config) for size in run.sizes]
    try:
        with workplace(run.package) as folder:
            building = folder / "new"
            for size, (recipe, info, scores) in zip(run.sizes, facts, strict=True):
                _build(building, size, info.without_paths(), recipe.without_paths(info.source), scores)
            default = facts[0][0].publish.config
            write_text_atomic(building / "README.md", render(building, default=default))
            write_text_atomic(building / CROISSANT, croissant(read_facts(building), default))
            refuse_damaged(run, building)
            refuse_secrets({path.relative_to(building).as_posix(): path for path in files_of(building)})
            put(building, run.package)
    except OSError as error:
        raise RunError(f"Cannot write {run.package}: {error.strerror or error}.") from error
    return run.package


def _facts(run: RunDir, config: str | None) -> tuple[Recipe, ArtifactInfo, Scores | None]:
    """Read what one set's configuration is made of, with another name of it if one is given."""
    recipe, info = read_recipe_file(run.recipe), read_info(run.info)
    scores = read_scores(run.scores) if run.scores.is_file() else None
    if scores is not None and scores.protocol.holdout is not None:
        raise UsageError(
            f"{run.scores} is about held-out images of the train split (evaluate.holdout), for choosing settings.",
            hint="Publish scores on the test split: -o evaluate.holdout=null",
        )
    if config is not None:
        try:
            publish = PublishSpec.model_validate(recipe.publish.model_dump() | {"config": config})
        except ValidationError as error:
            raise UsageError(
                f"{config!r} cannot be the name of a configuration: letters, digits, dots, dashes and underscores, at "
                "most 64, and not data, scores or assets.",
                hint="For example --config ipc10.",
            ) from error
        recipe = recipe.model_copy(update={"publish": publish})
    return recipe, info, scores


def files_of(folder: Path) -> list[Path]:
    """List the files below a folder, by name; a FormatError for what is neither a file nor a folder, such as a link."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise FormatError(f"{path} is no regular file: a package holds nothing else.")
    return found


def _build(folder: Path, run: RunDir, info: ArtifactInfo, recipe: Recipe, scores: Scores | None) -> None:
    """Write every file of one configuration into the folder of a package."""
    from hmdc_hub.store.parquet import rows_and_bytes

    config = recipe.publish.config
    data = folder / config
    data.mkdir(parents=True)
    parquet = data / PARQUET
    shutil.copyfile(run.parquet, parquet)
    shutil.copyfile(run.condensed, data / "condensed.safetensors")
    write_text_atomic(data / "recipe.yaml", stored_recipe_text(recipe))
    write_text_atomic(data / "info.json", json_text(info))
    assets = folder / "assets" / config
    drawn = set_pictures(info, parquet, data / "condensed.safetensors", run.initialisation)
    write_bytes_atomic(assets / "preview.png", drawn.preview)
    write_bytes_atomic(assets / "formation.png", drawn.formation)
    if scores is not None:
        write_bytes_atomic(data / "scores.json", run.public_scores())
        write_scores_parquet(folder / "scores" / f"{config}.parquet", scores, config)
        write_bytes_atomic(assets / "scores.png", rendered(scores_figure, scores))
    rows, data_bytes = rows_and_bytes(parquet)
    manifest = Manifest(
        config=config,
        rows=rows,
        data_bytes=data_bytes,
        class_names=info.source.class_names,
        files=[
            PackagedFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_file(path))
            for path in files_of(folder)
            if config in (parts := path.relative_to(folder).parts)[:-1] or parts == ("scores", f"{config}.parquet")
        ],
    )
    write_text_atomic(data / "manifest.json", json_text(manifest))


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


# Secrets: a last net. Packages are made of typed facts, and nothing of this kind should ever get this far; what people
# write themselves (descriptions, names, a hand-written section of the card) can hold anything.

_SHAPES = {
    "a Hugging Face token": rb"hf_[A-Za-z0-9]{30,}",
    "a GitHub token": rb"gh[oprsu]_[A-Za-z0-9]{36}",
    "an AWS access key": rb"AKIA[0-9A-Z]{16}",
    "a private key": rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----",
}
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 12  # characters below which the value of a variable is no secret: words that short stand in any text


def refuse_secrets(files: Mapping[str, bytes | Path]) -> None:
    """Refuse files, name in the package to content or path, that hold a secret or a path of this machine.

    Secrets are what looks like one, and what this process knows as one. The UsageError names file and kind, never the
    value.
    """
    from huggingface_hub import get_token

    known = {
        value.encode(): f"the value of the environment variable {name}"
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST and not Path(value).exists()
    }
    if token := get_token():  # last: the name that is more use if HF_TOKEN holds it
        known[token.encode()] = "your Hugging Face token"
    home = Path(os.path.expanduser("~"))
    for folder, what in ((home, "a path in your home folder"), (Path.cwd(), "a path in the current folder")):
        if len(folder.parts) > 1:  # "/" begins every path, and "~" stands for a home that nobody knows
            known.setdefault(f"{folder}{os.sep}".encode(), what)
    for name, content in files.items():
        with _bytes(content) as data:
            found = next((kind for value, kind in known.items() if data.find(value) >= 0), None)
            found = found or next((kind for kind, shape in _SHAPES.items() if re.search(shape, data)), None)
        if found is not None:
            raise UsageError(
                f"{name} holds {found}: it cannot be published.",
                hint="Take it out of the recipe (description, names) or of the card's hand-written section, then push "
                "again." + (" A token that was ever published must be revoked." if "token" in found else ""),
            )


@contextmanager
def _bytes(content: bytes | Path) -> Iterator[bytes | mmap.mmap]:
    """Give the content; a file's is mapped, as tensors may be larger than memory."""
    if isinstance(content, bytes) or content.stat().st_size == 0:
        yield content if isinstance(content, bytes) else b""
        return
    with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped
