"""Pydantic models of everything that is a file: recipes, pool entries, provenance and scores.

Nothing here knows torch or reads a file; `hmdc_hub.catalog` reads YAML into it and turns its complaints into
`RecipeError`. Field descriptions are the recipe reference in docs/ and the JSON schema in recipes/; examples are what
an error message shows as a value that would be right.
"""

from hmdc_hub.schema.base import (
    CHECKSUM,
    FORMAT_VERSION,
    FORMER_BASELINES,
    HUB_DATASET,
    HUB_ID,
    NAME,
    RESERVED,
    Strict,
    canonical_json,
    is_hub_id,
    is_intact,
    present_name,
    sealed,
    sha256_of,
    unsealed,
)
from hmdc_hub.schema.evaluate import BASELINES, CHOSEN, AugmentSpec, Baseline, EvaluateCutmix, EvaluateSpec
from hmdc_hub.schema.files import (
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
    SourceInfo,
)
from hmdc_hub.schema.model import LOCAL, LearningRates, ModelSpec, is_local_path, plain_models
from hmdc_hub.schema.recipe import (
    ClusterSpec,
    CondenseCutmix,
    CondenseSpec,
    ImagesSpec,
    NetworksSpec,
    ProjectionSpec,
    PublishSpec,
    Recipe,
    SourceSpec,
)
