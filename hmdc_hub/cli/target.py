"""What `hmdc-hub evaluate` is pointed at, as a run directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hmdc_hub.cli.choose import require_hub_id
from hmdc_hub.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.schema import Scores
    from hmdc_hub.store import RunDir


def run_of(
    target: str, root: Path, config: str | None, revision: str | None, run_dir: Path | None
) -> tuple[RunDir, Scores | None]:
    """Find the run that is meant, or make one of a package or published set; with the scores that came with it.

    Args:
        target: Run, package folder or dataset on the Hub.
        root: Folder of the runs.
        config: Configuration of a package or published set.
        revision: Of a published set.
        run_dir: Where to make a run of what is none.

    Raises:
        NotFoundError: There is nothing of that name.
        UsageError: An option does not apply to what it is.
    """
    from hmdc_hub.store import RunDir

    for path in (Path(target), root / target):
        if (path / "info.json").is_file() and (path / "train.parquet").is_file():
            _refuse("a run", config=config, revision=revision, run_dir=run_dir)
            return RunDir(path), None
        if (path / "recipe.yaml").is_file() and (path / ".lock").is_file():
            raise NotFoundError(f"{path} is not completely condensed.", hint="`hmdc-hub condense` goes on with it.")
    from hmdc_hub.cli.adopt import adopt, chosen_config
    from hmdc_hub.publish import read_config
    from hmdc_hub.store.links import refuse_links

    package = Path(target)
    if package.is_file() or (package.is_dir() and not any(package.glob("*/manifest.json"))):
        raise UsageError(
            f"{target} is no run and no package of ours: as a set of another program it needs a recipe that names its "
            "source, the models and the protocol.",
            hint=f"hmdc-hub evaluate {shlex.quote(target)} --recipe cifar10_ipc10  (`hmdc-hub recipes ls` lists them)",
        )
    if package.is_dir():
        _refuse("a folder", revision=revision)
        refuse_links(package, [path.parent.name for path in package.glob("*/manifest.json")])
        name, facts = package.resolve().name, chosen_config(package, config)
    else:
        require_hub_id(target, root)
        from hmdc_hub.store.download import download_package

        found = download_package(target, config=config, revision=revision)
        package, name = found.folder, target.rpartition("/")[2]
        facts = read_config(package / found.configs[0])
    run = RunDir(run_dir or root / f"{name}-{facts.name}")
    adopt(package, facts, run)
    return run, facts.scores


def _refuse(what: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to {what}.", hint="Leave it out.")
