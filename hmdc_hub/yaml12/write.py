"""Write YAML that YAML 1.2 and YAML 1.1 readers take for the same values."""

from __future__ import annotations

from typing import Any

import yaml

from hmdc_hub.yaml12.scalars import plain


class _Writer(yaml.SafeDumper):
    """Block mappings, lists of plain values on one line, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the entries of a list below its key, which PyYAML does not."""
        super().increase_indent(flow, False)


def _represent_text(writer: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML quotes what YAML 1.1 would take for something else; what only YAML 1.2 would is left to us. It also writes
    # the line breaks of YAML 1.1 (NEL, LS, PS) bare, and reads them back as spaces; in double quotes they are escapes.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    if style is None and not isinstance(plain(text), str):
        style = "'"
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(writer: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, dict | list) for item in items)
    return writer.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Writer.add_representer(str, _represent_text)
_Writer.add_representer(list, _represent_list)


def write_yaml(data: dict[str, Any]) -> str:
    """Write plain values as YAML text that `read_yaml` reads as the same values (and YAML 1.1 readers, too).

    Args:
        data: Dicts with text keys, lists, text, finite numbers, booleans and None; the order of keys is kept.
    """
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=False)
