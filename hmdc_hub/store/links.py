"""Links in a package: nothing that a stranger made is followed to somewhere else on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hmdc_hub.errors import FormatError


def refuse_links(package: Path, configs: Iterable[str]) -> None:
    """Refuse a package in which a link leads out of it.

    Links within it are harmless. So are those of a snapshot in a cache of the Hub's client, whose files are links to
    the cache's own.

    Args:
        package: The folder; it may itself be a link.
        configs: Its configurations; what belongs to none of them is not read, and not looked at.

    Raises:
        FormatError: There is one.
    """
    root = os.path.realpath(package)
    above, name = os.path.split(os.path.dirname(root))
    inside = [root, os.path.join(above, "blobs")] if name == "snapshots" else [root]
    for path in _parts(package, configs):
        if path.is_symlink():
            target = os.path.realpath(path)
            if not any(target.startswith(place + os.sep) for place in inside):
                raise FormatError(
                    f"{path} is a link that leads out of {package}, to {os.readlink(path)}; it was not followed.",
                    hint="Do not trust the package; if it is yours, put a copy in the place of the link.",
                )


def _parts(package: Path, configs: Iterable[str]) -> Iterator[Path]:
    """List what is read of a package, folders before what is in them; folders that are links are not entered."""
    yield from (package / name for name in ("README.md", "assets", "scores"))
    for config in configs:
        yield package / "scores" / f"{config}.parquet"
        for top in (package / config, package / "assets" / config):
            yield top
            for folder, folders, files in os.walk(top):
                yield from (Path(folder, name) for name in (*folders, *files))
