"""Read YAML 1.2 with a line number for every key, and write YAML that is read back as the same values.

PyYAML follows YAML 1.1: it reads `1e-3` as text, `off` as false, `12:30` as 750, and keeps the last of two equal keys.
Here PyYAML only takes the text apart into events; what they mean is decided in this package.
"""

from hmdc_hub.yaml12.read import MAX_BYTES, MAX_DEPTH, Document, decode, parse, read_value, read_yaml
from hmdc_hub.yaml12.scalars import plain, show
from hmdc_hub.yaml12.write import write_yaml

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "Document",
    "decode",
    "parse",
    "plain",
    "read_value",
    "read_yaml",
    "show",
    "write_yaml",
]
