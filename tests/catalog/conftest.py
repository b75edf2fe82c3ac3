from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MODEL = "{name: tiny, source: builtin, id: mlp, args: {depth: 2, width: 8}}"

RECIPE = f"""\
name: small
description: For tests
source:
  id: builtin:digits
  size: 16
  channels: 1
pool:
  - {MODEL}
  - name: other
    source: builtin
    id: convnet
    lr:
      condense: 0.05
condense:
  ipc: 1
  resets: 4
evaluate:
  models: [{MODEL}]
publish:
  name: small-hmdc
  config: ipc1
"""

WriteRecipe = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> WriteRecipe:
    """Write the recipe above with pieces of text replaced, and return its path."""

    def write_recipe(*replace: tuple[str, str], name: str = "small.yaml") -> str:
        text = RECIPE
        for old, new in replace:
            assert old in text, f"{old!r} is not in the recipe of the tests"
            text = text.replace(old, new, 1)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_recipe


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the folders that ship, so that tests do not depend on what is in them: two models, two recipes."""
    package = tmp_path / "installed" / "hmdc_hub"
    for folder in ("recipes", "model_pool"):
        (package / folder).mkdir(parents=True)
    (package / "model_pool" / "net_a.yaml").write_text(
        "# What it is.\ndescription: Net A\nsource: builtin\nid: convnet\nargs: {depth: 3, width: 128}\n"
    )
    (package / "model_pool" / "net_b.yaml").write_text("description: Net B\nsource: builtin\nid: mlp\n")
    shipped = RECIPE.replace(f"models: [{MODEL}]", "models: [net_a, net_b]").replace(f"  - {MODEL}\n", "  - net_a\n")
    header = "# yaml-language-server: $schema=hmdc-recipe.schema.json\n#\n# Two minutes.\n#   run recipes/first.yaml\n"
    (package / "recipes" / "first.yaml").write_text(header + shipped.replace("name: small", "name: first", 1))
    (package / "recipes" / "second.yaml").write_text(shipped.replace("name: small", "name: second", 1))
    (package / "recipes" / "hmdc-recipe.schema.json").write_text('{"title": "hmdc-hub recipe"}\n')
    (package / "model_pool" / "hmdc-model.schema.json").write_text('{"title": "hmdc-hub pool entry"}\n')
    monkeypatch.setattr("hmdc_hub.catalog.entries._PACKAGE", package)
    return package
