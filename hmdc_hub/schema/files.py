"""The files that a run leaves: header of the tensors, info.json, scores.json, manifest.json."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hmdc_hub.schema.base import FORMAT_VERSION, Name, NotNegative, Strict
from hmdc_hub.schema.model import ModelSpec
from hmdc_hub.schema.recipe import EvaluateSpec

FILE = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Name of a file in a package, as a regular expression: no folder, no hidden file."""


PARQUET = "train-00000-of-00001.parquet"
"""Name of the parquet in a configuration's folder, as `datasets` names shards."""

NEEDED = (PARQUET, "condensed.safetensors", "recipe.yaml", "info.json")
"""Files that every configuration of a package has in its folder."""


class SetHeader(Strict):
    """The metadata of condensed.safetensors, under its one key `hmdc`.

    Attributes:
        mean: Channel means of the source, pixels in [0, 1]; with `std` what "source-normalised" means.
    """

    format_version: int = FORMAT_VERSION
    name: str
    ipc: int
    factor: int
    class_names: list[str]
    mean: list[float]
    std: list[float]
    condense_hash: str


class SourceInfo(Strict):
    """Where the real images came from.

    Attributes:
        id: As in the recipe; published, a local path is `local:<base name>@<fingerprint>`.
        fingerprint: SHA-256 (hex) over the pixels and labels of both splits as this program sees them.
        train_counts: Images per class of the train split.
        license: Hub licence id if the source names one.
        gated: Whether the Hub asks for consent before a download.
        private: Whether only some accounts of the Hub see it.
    """

    id: str
    kind: Literal["builtin", "torchvision", "hub", "local"]
    revision: str | None
    fingerprint: str
    config: str | None
    train_split: str
    test_split: str
    image_column: str
    label_column: str
    class_names: list[str]
    train_counts: list[int]
    test_count: int
    size: int
    channels: int
    mean: list[float]
    std: list[float]
    license: str | None
    gated: bool
    private: bool = False


class ArtifactInfo(Strict):
    """info.json: provenance of a condensed set. No path, user or host name is in it.

    Attributes:
        tensors_sha256: SHA-256 (hex) of condensed.safetensors; `parquet_sha256` of train.parquet.
        threads: CPU threads that worked side by side; the bytes do not depend on them.
        memory: How the matching step was computed, low or fast; null in a set of an older program.
        seconds: Wall time of condensing over all resumes, evaluation apart.
        peak_memory_bytes: Of the process on a CPU, of the device otherwise.
    """

    format_version: int = FORMAT_VERSION
    hmdc_hub_version: str
    recipe_name: str
    condense_hash: str
    protocol_hash: str
    seed: int
    source: SourceInfo
    models: list[ModelSpec]
    parameters: dict[str, int]
    versions: dict[str, str]
    device: str
    threads: int
    memory: Literal["low", "fast"] | None = None
    seconds: float
    image_steps: int
    peak_memory_bytes: int
    clamped_share: float
    ipc: int
    factor: int
    stored_images: int
    training_images: int
    tensors_sha256: str
    parquet_sha256: str


class Cell(Strict):
    """One training: its last-epoch accuracy on the whole test split, in [0, 1]."""

    model: Name
    training_set: Name
    draw: int
    seed: int
    accuracy: float


class Estimate(Strict):
    """Mean, standard deviation and 95 % t interval of n numbers; sd and bounds null for n = 1."""

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None


class Scores(Strict):
    """scores.json: every training, the protocol it followed, and the means.

    Attributes:
        protocol: The resolved `evaluate` section.
        condensed_by: Names of the pool's models; the other evaluated ones took no part in condensing.
        cells: Every training, in a fixed order.
        table: `table[training set][model]`; model "mean" is the mean over architectures, seed by seed.
        gain: `gain[baseline]`: condensed minus baseline of the mean over architectures, paired by seed.
    """

    format_version: int = FORMAT_VERSION
    condense_hash: str
    protocol_hash: str
    protocol: EvaluateSpec
    parquet_sha256: str
    condensed_by: list[Name]
    test_count: int
    budgets: dict[Name, int]
    cells: list[Cell]
    table: dict[Name, dict[Name, Estimate]]
    gain: dict[Name, Estimate]


class PackagedFile(Strict):
    """One file of a package; `path` is relative to the package, with forward slashes."""

    path: str
    size: NotNegative
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Strict):
    """manifest.json: every file of one configuration but itself, and what the parquet's footer says.

    Attributes:
        rows: Training images in the parquet.
        data_bytes: Size of the parquet's columns before its own compression.
        class_names: As the parquet names them.
        files: Sorted by path; all of them in the folders of this configuration.
    """

    format_version: int = FORMAT_VERSION
    config: Name
    rows: NotNegative
    data_bytes: NotNegative
    class_names: list[str]
    files: list[PackagedFile]

    @model_validator(mode="after")
    def _own_files(self) -> Manifest:
        # A manifest may come from a stranger: what it lists is read, hashed and copied.
        own = re.compile(
            rf"({re.escape(self.config)}/{FILE}|assets/{re.escape(self.config)}/{FILE}"
            rf"|scores/{re.escape(self.config)}\.parquet)"
        )
        paths = [file.path for file in self.files]
        strange = [path for path in paths if not own.fullmatch(path) or path == f"{self.config}/manifest.json"]
        if strange:
            raise ValueError(f"{strange[0]!r} is no file of the configuration {self.config}")
        if len(set(paths)) < len(paths):
            raise ValueError("a file is listed twice")
        return self
