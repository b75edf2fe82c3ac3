"""`hmdc-hub pull`: a verified copy of a published set as a folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, PATH
from hmdc_hub.errors import HmdcError, RunError, RunExistsError

if TYPE_CHECKING:
    from hmdc_hub.store.hub import Downloaded

EPILOG = """\b
hmdc-hub pull someone/cifar10-hmdc
hmdc-hub pull someone/cifar10-hmdc --config ipc10 --to small
hmdc-hub pull someone/cifar10-hmdc --revision ipc10-1a2b3c4d"""


@click.command(short_help="Get a verified copy of a published set as a folder.", epilog=EPILOG)
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--config", metavar="NAME", help="Only this configuration.  [default: all]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
@click.option("--to", type=PATH, metavar="DIR", help="Folder to make.  [default: ./NAME]")
@click.option("--force", is_flag=True, help="Replace an earlier copy in that folder.")
@JSON
def pull(repo_id: str, config: str | None, revision: str | None, to: Path | None, force: bool, as_json: bool) -> None:
    """Get a verified copy of the published set OWNER/NAME as a folder.

    Every file is compared with its manifest. The folder is there completely or not at all, and holds what
    `load_dataset`, `hmdc_hub.load`, `hmdc-hub verify` and `hmdc-hub evaluate` read.
    """
    from hmdc_hub.store.files import workplace
    from hmdc_hub.store.hub import download_package

    place = to or Path(repo_id.rpartition("/")[2])
    if place.exists() and not ((place / "README.md").is_file() and any(place.glob("*/manifest.json"))):
        raise RunExistsError(f"{place} exists and is no copy of a published set.", hint="--to makes another folder.")
    try:
        with workplace(place) as building:
            cache = building / "cache"
            got = download_package(repo_id, config=config, revision=revision, everything=True, cache=cache)
            _copy(got, building / "new", repo_id)
            state = _put(building / "new", place, force=force)
    except HmdcError:
        raise  # some of ours are OSErrors too
    except OSError as error:
        raise RunError(
            f"Cannot write {place}: {error.strerror or error}; what was there is unchanged.",
            hint="--to makes another folder, on another disk if it must be.",
        ) from error
    configs = list(got.configs)
    output.emit(
        as_json,
        lambda: {"folder": str(place), "repo_id": repo_id, "commit": got.commit, "configs": configs, "state": state},
        lambda: (
            f"folder     {place} ({state})\nfrom       {repo_id} at {got.commit}\nconfigs    {', '.join(configs)}\n"
            "checked    every SHA-256"
        ),
        f'load_dataset("{place.as_posix()}", "{configs[0]}"), hmdc-hub evaluate {place.as_posix()}',
    )


def _copy(got: Downloaded, folder: Path, repo_id: str) -> None:
    """Copy what belongs to the set out of a cache, whose files are links.

    The card stays as it is if it speaks of nothing but what was pulled: `datasets` asks for the files of every
    configuration that a card lists. Otherwise it is written anew for the part that is here.
    """
    from hmdc_hub.catalog import read_published_recipe
    from hmdc_hub.publish.card import dump, read_config, read_facts, render
    from hmdc_hub.publish.croissant import CROISSANT, croissant
    from hmdc_hub.store.configs import read_card_text, split_card

    for name in got.configs:
        # Here it is a stranger's; in a folder it will be yours.
        read_published_recipe(got.folder / name / "recipe.yaml")
        for path in [*(file.path for file in read_config(got.folder / name).manifest.files), f"{name}/manifest.json"]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(got.folder / path, folder / path)
    card = read_card_text(got.folder / "README.md")
    block, body = split_card(card)
    entries = block.get("configs")
    listed = {entry.get("config_name") for entry in entries if isinstance(entry, dict)} if entries else set()
    if not listed <= {*got.configs, "scores"}:
        rest = {key: value for key, value in block.items() if key not in ("configs", "dataset_info", "license")}
        previous = f"---\n{dump(rest)}---\n{body}"
        card = render(folder, repo_id=repo_id, default=got.default, previous=previous)
    (folder / "README.md").write_text(card, encoding="utf-8", newline="")
    if (got.folder / CROISSANT).is_file():
        text = croissant(read_facts(folder), got.default or "", repo_id)  # of what is here
        (folder / CROISSANT).write_text(text, encoding="utf-8", newline="")


def _put(new: Path, place: Path, *, force: bool) -> str:
    """Put a finished folder in its place; says what it did."""
    from hmdc_hub.schema import Manifest
    from hmdc_hub.store.files import put, read_record

    if not place.exists():
        put(new, place)
        return "new"
    there = _contents(place)
    if _contents(new) == there:
        return "was there already"
    if not force:
        raise RunExistsError(
            f"{place} holds another state of a published set.", hint="--force replaces it, --to makes another folder."
        )
    ours = {"README.md", "croissant.json", ".gitattributes"}
    for path in place.glob("*/manifest.json"):
        ours.add(path.relative_to(place).as_posix())
        with suppress(HmdcError):  # a manifest that cannot be read vouches for nothing
            ours |= {file.path for file in read_record(path, Manifest).files}
    if others := sorted(set(there) - ours):
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise RunExistsError(
            f"{place} also holds {others[0]}{more}, which no manifest there lists: replacing the folder would remove "
            "it.",
            hint="Move it elsewhere, or make another folder with --to.",
        )
    put(new, place)
    return "replaced"


def _contents(folder: Path) -> dict[str, str]:
    from hmdc_hub.store.files import sha256_file

    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
