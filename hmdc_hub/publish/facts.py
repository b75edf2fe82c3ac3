"""What a package says about itself: the small files of each configuration, read for the card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hmdc_hub.catalog import read_recipe_file
from hmdc_hub.errors import NotFoundError
from hmdc_hub.schema import PARQUET as PARQUET
from hmdc_hub.schema import ArtifactInfo, Manifest, PackagedFile, Recipe, Scores
from hmdc_hub.store.files import read_info, read_record, read_scores


@dataclass(frozen=True)
class ConfigFacts:
    """One configuration of a package: its name, which is its folder's, and its small files; `scores` may be None."""

    name: str
    info: ArtifactInfo
    recipe: Recipe
    scores: Scores | None
    manifest: Manifest

    def file(self, name: str) -> PackagedFile | None:
        """Find a file of this configuration by its path in the package."""
        return next((file for file in self.manifest.files if file.path == name), None)


def read_facts(package: Path) -> list[ConfigFacts]:
    """Read every configuration of a package, smallest first; needs none of the large files.

    Args:
        package: A folder with `<config>/manifest.json`, `info.json`, `recipe.yaml` and, where there are scores,
            `scores.json`.

    Raises:
        NotFoundError: There is no configuration in it, or a file of one is missing.
        FormatError: A file is damaged or of a newer format version.
    """
    facts = [read_config(path.parent) for path in package.glob("*/manifest.json")]
    if not facts:
        raise NotFoundError(f"{package} is no package: no folder in it has a manifest.json.")
    return sorted(facts, key=lambda config: (config.info.ipc, config.name))


def read_config(folder: Path) -> ConfigFacts:
    """Read one configuration by its folder; errors as `read_facts`."""
    scores = folder / "scores.json"
    return ConfigFacts(
        name=folder.name,
        info=read_info(folder / "info.json"),
        recipe=read_recipe_file(folder / "recipe.yaml"),
        scores=read_scores(scores) if scores.is_file() else None,
        manifest=read_record(folder / "manifest.json", Manifest),
    )
