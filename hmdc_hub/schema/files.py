"""The files that a run leaves: header of the tensors, info.json, scores.json, manifest.json."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import FailFast, Field, field_serializer, model_validator

from hmdc_hub.schema.base import FORMAT_VERSION, LOCAL, ModelSpec, Name, NotNegative, Share, Strict, TrainingSet
from hmdc_hub.schema.protocol import EvaluateSpec

FILE = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # a file in a package, as a regular expression: no folder, no hidden file
PARQUET = "train-00000-of-00001.parquet"  # in a configuration's folder, as `datasets` names shards
NEEDED = (PARQUET, "condensed.safetensors", "recipe.yaml", "info.json")  # every configuration's folder has these

# A list whose first wrong entry ends its validation: pydantic keeps a kilobyte for each, and a stranger's file of
# megabytes has millions.
_T = TypeVar("_T")
Items = Annotated[list[_T], FailFast()]


class SetHeader(Strict):
    """The metadata of condensed.safetensors, under its one key `hmdc`."""

    format_version: int = FORMAT_VERSION
    name: str
    ipc: int
    factor: int
    class_names: Items[str]
    mean: Items[float]  # channel means of the source, pixels in [0, 1]; with `std` what "source-normalised" means
    std: Items[float]
    condense_hash: str


class LeftOut(Strict):
    """Files of a source that are no part of it."""

    reason: str  # why, such as "no images"
    count: NotNegative
    examples: Items[str]  # the first few, as paths below the source's folder


class SourceInfo(Strict):
    """Where the real images came from."""

    id: str  # as in the recipe; published, a local path is `local:<base name>@<fingerprint>`
    kind: Literal["builtin", "torchvision", "hub", "local"]
    revision: str | None
    fingerprint: str  # SHA-256 (hex) over the pixels and labels of both splits as this program sees them
    config: str | None
    train_split: str
    test_split: str  # equal to `train_split` where `test_fraction` divides that split in two
    image_column: str
    label_column: str
    class_names: Items[str]
    train_counts: Items[int]  # images per class that are condensed
    test_count: int
    size: int
    channels: int
    mean: Items[float]
    std: Items[float]
    license: str | None  # Hub licence id, if the source names one
    gated: bool  # whether the Hub asks for consent before a download
    private: bool = False  # whether only some accounts of the Hub see it
    test_fraction: float | None = None
    repeated: NotNegative = 0  # test images that are, pixel by pixel, train images too
    bits: NotNegative | None = None  # in use, of images of more than eight; null: none has more, or all 16 are in use
    left_out: Items[LeftOut] = []  # what is in the source's folder and was not read

    def without_paths(self) -> SourceInfo:
        """Return it as it is published: a local source is called by its base name and the fingerprint of its images.

        `local:<base name>@<16 hex digits>` tells a reader who has the data too which they are; no program takes it for
        a path. Files that were left out are counted there, not named.
        """
        if self.kind != "local" or self.id.startswith(LOCAL):
            return self
        # PureWindowsPath splits at both kinds of slash.
        name = "".join(filter(str.isprintable, PureWindowsPath(self.id).name)) or "data"
        left_out = [one.model_copy(update={"examples": []}) for one in self.left_out]
        return self.model_copy(update={"id": f"{LOCAL}{name}@{self.fingerprint[:16]}", "left_out": left_out})


class Record(Strict):
    """A file with names that have changed: whatever version was read, today's is written."""

    format_version: int = FORMAT_VERSION

    @field_serializer("format_version")
    def _as_written(self, _: int) -> int:
        return FORMAT_VERSION


class ArtifactInfo(Record):
    """info.json: provenance of a condensed set. No path, user or host name is in it."""

    renamed: ClassVar[dict[str, str]] = {"stored_images": "synthetic_images"}

    hmdc_hub_version: str
    recipe_name: str
    condense_hash: str
    protocol_hash: str
    seed: int
    source: SourceInfo
    models: Items[ModelSpec]
    parameters: dict[str, int]
    versions: dict[str, str]
    device: str
    threads: int  # CPU threads of torch, on which the last bits depend; 1 on a GPU
    tf32: bool | None = None  # whether products of float32 were rounded to TF32; null: by an older program
    memory: Literal["low", "fast"] | None = None  # how the matching step was computed; null: by an older program
    seconds: float  # wall time of condensing over all resumes, evaluation and the training of a bank apart
    # Of training the networks of `condense.networks.bank`, by whichever run; null: there is none, or not any more.
    bank_seconds: float | None = Field(None, exclude_if=lambda seconds: seconds is None)
    image_steps: int
    peak_memory_bytes: int  # of the process on a CPU, of the device otherwise
    clamped_share: float
    ipc: int
    factor: int
    synthetic_images: int
    training_images: int
    tensors_sha256: str  # SHA-256 (hex) of condensed.safetensors; `parquet_sha256` of train.parquet
    parquet_sha256: str

    def without_paths(self) -> ArtifactInfo:
        """Return it as it is published: where somebody keeps data and weights is nobody's business."""
        models = [model.without_paths() for model in self.models]
        return self.model_copy(update={"source": self.source.without_paths(), "models": models})


class Cell(Strict):
    """One training."""

    model: Name
    training_set: TrainingSet
    draw: int
    seed: int
    accuracy: Share  # at the last epoch, on all images that are scored on
    ece: Share  # expected calibration error (Guo et al., ICML 2017): 15 bins of the largest softmax probability
    best: Share | None = None  # of all looks at the test split, where the protocol asks for it; never compared


class Budget(Strict):
    """What a training set costs to keep and to train on."""

    stored: NotNegative  # images as they are kept: real ones, or synthetic ones that may hold several training images
    images: NotNegative
    bytes: NotNegative  # pixels of the images as they are kept, uncompressed: 8 bits each, of `exact` 32


MIN_SEEDS = 3  # below, an interval is so wide that it says nothing, and none is given


class Estimate(Strict):
    """Mean, standard deviation and 95 % t interval of n numbers; sd null for n = 1, bounds below `MIN_SEEDS`."""

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None

    @model_validator(mode="before")
    @classmethod
    def _no_interval_of_two(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(n := data.get("n"), int) and n < MIN_SEEDS:  # older programs had one
            return data | {key: None for key in ("low", "high") if key in data}
        return data


class Ranking(Strict):
    """What DD-Ranking (Li et al., 2025) asks of a condensed set; labels are hard in all of ours."""

    improvement: Estimate  # IOR, accuracy over that of random images that are kept in the same number
    recovery: Estimate | None  # HLR, accuracy of the full set over that of the condensed one: less is better
    score: Estimate | None  # (exp(a) - exp(-1)) / (e - exp(-1)) with a = (IOR - HLR) / 2; in [0, 1]


class SoftRanking(Strict):
    """What DD-Ranking (Li et al., 2025) asks of a condensed set with soft labels; weights of one half."""

    improvement: Estimate  # IOR, accuracy with soft labels over that of random images with soft labels
    label_robust: Estimate | None  # LRS, of IOR and of HLR with hard labels; null without trainings on the full set
    augmentation_robust: Estimate  # ARS, of IOR with and without augmentation; both scores in [0, 1]


class SoftLabelScores(Strict):
    """Trainings on a teacher's soft labels: never to be compared with those on hard labels."""

    teachers: dict[Name, Share]  # by student: accuracy of its teacher on the images that are scored on
    cells: Items[Cell]  # every training by the protocol, in a fixed order
    unaugmented: Items[Cell]  # the same without augmentation and CutMix
    table: dict[TrainingSet, dict[Name, Estimate]]  # accuracy as in `Scores.table`
    unaugmented_table: dict[TrainingSet, dict[Name, Estimate]]
    ranking: dict[Name, SoftRanking]  # by model; empty without random images


class Scores(Record):
    """scores.json: every training, the protocol it followed, and the means."""

    hmdc_hub_version: str
    versions: dict[str, str]  # of the libraries that trained; `device` where
    device: str
    name: str  # what was scored
    condense_hash: str | None  # of the recipe that made it; null for a set of another program, like the two next
    family_hash: str | None  # of that recipe without its seed, as it is published: a local source by what it holds
    condense_seed: int | None  # the seed of that recipe
    protocol_hash: str
    protocol: EvaluateSpec  # the resolved `evaluate` section
    fingerprint: str  # of the source, as in info.json
    parquet_sha256: str  # of the file that was trained on
    condensed_by: Items[Name]  # names of the pool's models; the other evaluated ones took no part in condensing
    test_count: int  # images scored on
    class_names: Items[str]  # by label
    budgets: dict[TrainingSet, Budget]
    cells: Items[Cell]  # every training, in a fixed order
    table: dict[TrainingSet, dict[Name, Estimate]]  # accuracy; model "mean": over architectures, seed by seed
    gain: dict[TrainingSet, dict[Name, Estimate]]  # condensed minus each baseline, paired by seed
    # Accuracy on architectures that took part minus that on the others, seed by seed; empty unless there are both.
    gap: dict[TrainingSet, Estimate]
    ece: dict[TrainingSet, dict[Name, Estimate]]  # as `table`, of the calibration error
    ranking: dict[Name, Ranking]  # by model; empty without random images
    per_class: dict[TrainingSet, dict[Name, Items[float]]]  # accuracy over all trainings, by label
    # Where the protocol asks for them; otherwise the file has no such key, as those of older programs.
    soft_labels: SoftLabelScores | None = Field(None, exclude_if=lambda found: found is None)


class PackagedFile(Strict):
    """One file of a package; `path` is relative to the package, with forward slashes."""

    path: str
    size: NotNegative
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Strict):
    """manifest.json: every file of one configuration but itself, and what the parquet's footer says."""

    format_version: int = FORMAT_VERSION
    config: Name
    rows: NotNegative  # training images in the parquet
    data_bytes: NotNegative  # size of the parquet's columns before its own compression
    class_names: Items[str]  # as the parquet names them
    files: Items[PackagedFile]  # sorted by path; all of them in the folders of this configuration

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
