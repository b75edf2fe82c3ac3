"""Recipes in Python: from a name, a file or data of this session, with what they would cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from hmdc_hub import catalog, schema
from hmdc_hub.errors import UsageError

if TYPE_CHECKING:
    import torch

    from hmdc_hub.pipeline.estimate import RunEstimate
    from hmdc_hub.pipeline.proposal import Preset


class Recipe(schema.Recipe):
    """One experiment: what is condensed, how, how it is scored, what it is called; every default is filled in.

    Example:
        >>> recipe = load_recipe("digits_ipc1", condense={"resets": 2})
        >>> print(recipe.plan())
        >>> recipe = Recipe.from_source("my_images/", ipc=10)
    """

    _overridden: bool = PrivateAttr(default=False)

    @classmethod
    def of(cls, recipe: schema.Recipe, *, overridden: bool = False) -> Recipe:
        """Take a checked recipe as one of this class; `overridden`: keys of it were changed, as by `-o`."""
        made = cls.model_construct(_fields_set=recipe.model_fields_set, **dict(recipe))
        made._overridden = overridden
        return made

    def __repr__(self) -> str:
        return (
            f"Recipe({self.name}: {self.source.id}, {', '.join(map(str, self.condense.sizes))} per class, condensed by "
            f"{', '.join(model.name for model in self.pool)})"
        )

    def __str__(self) -> str:
        return catalog.dump_recipe(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    @property
    def overridden(self) -> bool:
        """Whether keys were changed when it was loaded: it then runs in a directory of its own."""
        return self._overridden

    @classmethod
    def from_source(
        cls,
        data: Any,
        *,
        ipc: int = 10,
        name: str | None = None,
        pool: Sequence[Any] | None = None,
        preset: Preset | None = None,
        size: int | None = None,
        progress: bool | None = None,
        **sections: Any,
    ) -> Recipe:
        """Look at a dataset and propose a recipe for it, as `hmdc-hub init` does.

        Args:
            data: A folder, a parquet file, a dataset id of the Hub, `torchvision:Name`; or an object of this process: a
                datasets.Dataset or DatasetDict, a torch dataset of (image, label) pairs, a mapping of split names to
                such, or (images, labels) tensors.
            ipc: Synthetic images per class.
            name: Of the data: the recipe is `<name>_ipc<ipc>`, the package `<name>-hmdc`; None: found.
            pool: Models that condense, as for `load_recipe`; None: as the preset says.
            preset: How much work: `cpu` (minutes), `gpu` (an hour) or `paper`; None: what is here.
            size: Side in pixels of every image; None: by the images and the preset.
            progress: Whether to say on stderr what should be known of the data; None: yes.
            **sections: Sections of the recipe, as for `load_recipe`. Of `source`, what names splits, columns,
                configuration and revision goes before what is found.

        Raises:
            SourceError: The data cannot be used as a source.
            UsageError: There is no such preset.
            RecipeError: A section is wrong.
            NetworkError: The data must be downloaded and that failed.
        """
        from hmdc_hub.events import Note
        from hmdc_hub.pipeline.progress import reporting
        from hmdc_hub.pipeline.proposal import PRESETS, preset_here, propose, render
        from hmdc_hub.sources import describe, register_dataset

        if preset is not None and preset not in PRESETS:
            raise UsageError(f"there is no preset {preset!r}", hint=f"preset= is one of {', '.join(PRESETS)}.")
        given = dict(sections.pop("source", {}))
        asked = {key: given.pop(key) for key in _DETECTED if key in given}
        source = os.fspath(data) if isinstance(data, str | os.PathLike) else register_dataset(data, name)
        found = describe(source, **asked)
        proposal = propose(found, ipc, preset or preset_here(), size, name)
        with reporting(progress) as tell:
            for note in proposal.notes:
                tell(Note(note))
        changes = sections | ({"source": given} if given else {}) | ({} if pool is None else {"pool": pool})
        where = f"Recipe.from_source({source!r})"
        plain = catalog.read_yaml(render(found, proposal, None), where).data
        recipe = catalog.recipe_from_dict(plain, where)
        return cls.of(changed(recipe, where, (), changes) if changes else recipe, overridden=bool(changes))

    def plan(
        self,
        device: str | torch.device = "auto",
        *,
        ranks: int = 1,
        workers: int | None = None,
        progress: bool | None = None,
    ) -> RunEstimate:
        """Estimate steps, memory and time of the whole run: half a minute at most, and nothing is written.

        Args:
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, or a torch.device.
            ranks: Processes of torchrun that would condense together.
            workers: CPU processes of the evaluation; None: one per core.
            progress: Whether to show what is measured; None: yes.

        Raises:
            UsageError: The source, a model or the device is not as it must be.
        """
        from hmdc_hub.pipeline.device import pick
        from hmdc_hub.pipeline.estimate import estimate_run
        from hmdc_hub.pipeline.progress import reporting

        chosen = pick(device)
        with reporting(progress) as callback:
            return estimate_run(self, chosen, ranks=ranks, workers=workers, callback=callback)


_DETECTED = ("revision", "config", "train_split", "test_split", "test_fraction", "image_column", "label_column")


def load_recipe(name_or_path: str | os.PathLike[str] | schema.Recipe, *overrides: str, **sections: Any) -> Recipe:
    """Read a recipe and change keys of it: every default filled in, every model written out.

    Args:
        name_or_path: A path, a shipped recipe as `hmdc-hub recipes ls` names it, or a recipe that was loaded.
        *overrides: Keys in the form of the command line, such as `"condense.ipc=1"`.
        **sections: Keys as nested dicts, such as `condense={"ipc": 1}`; in lists of models also an nn.Module, a class
            or a function that makes one, which are known to this process alone.

    Raises:
        RecipeError: The file or a change breaks the schema; it holds every problem.
        NotFoundError: There is no such recipe.
        UsageError: An argument is of another type.

    Example:
        >>> load_recipe("cifar10_ipc10", "seed=1", condense={"ipc": 1}, evaluate={"seeds": 3})
    """
    hint = (
        "For example  load_recipe('digits_ipc1', 'seed=1', condense={'ipc': 1}) ; a dict of sections goes in as **dict."
    )
    if not isinstance(name_or_path, str | os.PathLike | schema.Recipe):
        raise UsageError(f"a recipe is a name or a path, not a {type(name_or_path).__name__}", hint=hint)
    if others := [type(one).__name__ for one in overrides if not isinstance(one, str)]:
        raise UsageError(f"a change is a string such as 'seed=1', not a {others[0]}", hint=hint)
    if isinstance(name_or_path, schema.Recipe):
        before = isinstance(name_or_path, Recipe) and name_or_path.overridden
        made = changed(name_or_path, name_or_path.name, overrides, sections)
        return Recipe.of(made, overridden=before or bool(overrides or sections))
    made = catalog.load_recipe(name_or_path, overrides, with_modules(sections))
    return Recipe.of(made, overridden=bool(overrides or sections))


def changed(recipe: schema.Recipe, where: str, overrides: Sequence[str], sections: Mapping[str, Any]) -> schema.Recipe:
    """Change keys of a recipe that was loaded before, as `load_recipe` does those of a file; errors call it `where`."""
    return catalog.change(recipe, overrides, with_modules(sections), where)


def with_modules(value: Any) -> Any:
    """Register the modules in nested values, and put their pool entries in their place."""
    if isinstance(value, Mapping):
        return {key: with_modules(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [with_modules(child) for child in value]
    if callable(value):
        from hmdc_hub.models import register_module

        return register_module(value)
    return value
