"""Pydantic models of everything that is a file: recipes, pool entries, provenance and scores.

Nothing here knows torch or reads a file; `hmdc_hub.catalog` reads YAML into it and turns its complaints into
`RecipeError`. Field descriptions are the recipe reference in docs/ and the JSON schema in recipes/; examples are what
an error message shows as a value that would be right.
"""

from hmdc_hub.schema.base import (
    BASELINES,
    CHECKSUM,
    CONDENSED,
    FORMAT_VERSION,
    FORMER_BASELINES,
    FULL,
    HUB_DATASET,
    LOCAL,
    NAME,
    NEW_ENCODING,
    RANDOM,
    RANDOM_ENCODED,
    RESERVED,
    TRAINING_SETS,
    Baseline,
    Encoding,
    ModelSpec,
    Strict,
    canonical_json,
    is_hub_id,
    is_intact,
    is_local_path,
    plain_models,
    sealed,
    sha256_of,
    unsealed,
)
from hmdc_hub.schema.condense import CondenseSpec, Distance, Distillation, ImagesSpec
from hmdc_hub.schema.files import (
    MIN_SEEDS,
    NEEDED,
    PARQUET,
    ArtifactInfo,
    Budget,
    Cell,
    Estimate,
    LeftOut,
    Manifest,
    PackagedFile,
    Ranking,
    Scores,
    SetHeader,
    SoftLabelScores,
    SoftRanking,
    SourceInfo,
)
from hmdc_hub.schema.protocol import AugmentSpec, EvaluateSpec
from hmdc_hub.schema.recipe import PublishSpec, Recipe, SourceSpec
