"""What all our pydantic models share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

FORMAT_VERSION = 3
"""Version of every file format of ours; readers refuse a larger one. 3 has the names of today, `initialisation` and
`synthetic_images`, which programs that wrote 1 and 2 would take for damage; those are read."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_REPOSITORY = r"[A-Za-z0-9][\w.-]*"
HUB_ID = rf"{_REPOSITORY}/{_REPOSITORY}"
"""Regular expression of a repository on the Hub, `owner/name`; ASCII."""
HUB_DATASET = rf"({_REPOSITORY}/)?{_REPOSITORY}"
"""The same of a dataset, of which old ones have no owner."""


def is_hub_id(text: str) -> bool:
    """Tell whether a text is written like `owner/name` on the Hub."""
    return re.fullmatch(HUB_ID, text, re.ASCII) is not None


RESERVED = frozenset({"data", "scores", "assets"})
"""Names that no configuration may have: a package uses these folders itself."""


class Strict(BaseModel):
    """Base: unknown keys refused, no silent conversion of types, values fixed once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of keys, which are still read: old name to new."""

    @classmethod
    def former_keys(cls, prefix: str = "") -> dict[str, str]:
        """Map the former names of all keys, those of sections within included, to today's: dotted keys."""
        found = {prefix + old: prefix + new for old, new in cls.renamed.items()}
        for name, field in cls.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
                found |= field.annotation.former_keys(f"{prefix}{name}.")
        return found

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and any(old in data and new not in data for old, new in cls.renamed.items()):
            return {cls.renamed.get(key, key): value for key, value in data.items()}
        return data


FORMER_BASELINES = {"start": "initialisation"}
"""Former names of training sets, which are still read: old name to new."""


def present_name(name: Any) -> Any:
    """Give a training set the name it has today."""
    return FORMER_BASELINES.get(name, name) if isinstance(name, str) else name


Name = Annotated[str, Field(pattern=NAME)]
"""Letters, digits, dots, dashes, underscores: safe in file names, tables and addresses."""

TrainingSet = Annotated[Name, BeforeValidator(present_name)]
"""Name of a training set; former ones are read as today's."""

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
