"""What all our pydantic models share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 2
"""Version of every file format of ours; readers refuse a larger one."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

RESERVED = frozenset({"data", "scores", "assets"})
"""Names that no configuration may have: a package uses these folders itself."""


class Strict(BaseModel):
    """Base: unknown keys refused, no silent conversion of types, values fixed once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Name = Annotated[str, Field(pattern=NAME)]
"""Letters, digits, dots, dashes, underscores: safe in file names, tables and addresses."""

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def canonical_json(value: Any) -> str:
    """Serialise plain data to the one JSON text that hashes and headers use: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256 (hex) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


CHECKSUM = "checksum"
"""Key of plain data that check themselves; data of an older program have none."""


def sealed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with a checksum over all of them as the last key."""
    rest = unsealed(plain)
    return rest | {CHECKSUM: sha256_of(rest)}


def unsealed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data without their checksum."""
    return {key: value for key, value in plain.items() if key != CHECKSUM}


def is_intact(plain: Mapping[str, Any]) -> bool:
    """Tell whether plain data have a checksum and are what it was made of."""
    try:
        return CHECKSUM in plain and plain[CHECKSUM] == sha256_of(unsealed(plain))
    except (ValueError, RecursionError):  # text that is no Unicode, numbers that JSON does not have
        return False
