"""Look for what must never be published in the bytes of a package: access tokens, keys, and where this machine has it.

A last net: packages are made of typed facts, and nothing of this kind should ever get this far. What people write
themselves (descriptions, names, a hand-written section of the card) can hold anything.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hmdc_hub.errors import UsageError

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

    The UsageError names the file and the kind, never the value.
    """
    known = _known()
    for name, content in files.items():
        with _bytes(content) as data:
            what = next((kind for value, kind in known.items() if data.find(value) >= 0), None)
            what = what or next((kind for kind, shape in _SHAPES.items() if re.search(shape, data)), None)
        if what is not None:
            raise UsageError(
                f"{name} holds {what}: it cannot be published.",
                hint="Take it out of the recipe (description, names) or of the card's hand-written section, then push "
                "again." + (" A token that was ever published must be revoked." if "token" in what else ""),
            )


@contextmanager
def _bytes(content: bytes | Path) -> Iterator[bytes | mmap.mmap]:
    """Give the content; a file's is mapped, as tensors may be larger than memory."""
    if isinstance(content, bytes) or content.stat().st_size == 0:
        yield content if isinstance(content, bytes) else b""
        return
    with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _known() -> dict[bytes, str]:
    """Give the secrets that this process knows, and the folders whose names tell who works here."""
    from huggingface_hub import get_token

    found = {
        value.encode(): f"the value of the environment variable {name}"
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST and not Path(value).exists()
    }
    if token := get_token():  # last: the name that is more use if HF_TOKEN holds it
        found[token.encode()] = "your Hugging Face token"
    home = Path(os.path.expanduser("~"))
    for folder, what in ((home, "a path in your home folder"), (Path.cwd(), "a path in the current folder")):
        if len(folder.parts) > 1:  # "/" begins every path, and "~" stands for a home that nobody knows
            found.setdefault(f"{folder}{os.sep}".encode(), what)
    return found
