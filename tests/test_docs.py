"""What the pages of documentation, and the headers of recipes and pool entries, name is there."""

from __future__ import annotations

import pkgutil
import re
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest

from hmdc_hub.catalog.problems import all_keys, schema_of
from hmdc_hub.cli.main import cli
from hmdc_hub.schema import BASELINES, Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
HEADERS = [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("model_pool/*.yaml")]
FOLDERS = ("hmdc_hub", "tests", "tools", "benchmarks")
CODE = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.[ps][yh]")]
KEYS = {key for key, _ in all_keys(schema_of(Recipe))}


def text_of(page: Path) -> str:
    """The page with each command on one line, without the former names."""
    return page.read_text(encoding="utf-8").partition("## Former names")[0].replace("\\\n", " ")


def is_name(name: str) -> bool:
    try:
        return pkgutil.resolve_name(name) is not None
    except (ImportError, AttributeError):
        return False


def options_of(verbs: str) -> set[str]:
    command: click.Command | None = cli
    for verb in verbs.split():
        inner = command.get_command(click.Context(command), verb) if isinstance(command, click.Group) else None
        command = inner or command
    assert command
    return {"--help", *(option for parameter in command.params for option in parameter.opts)}


@pytest.mark.parametrize("page", sorted(PAGES + HEADERS), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = text_of(page)
    wrong = [
        name
        for name in re.findall(r"(?<![/\w.])[\w.][\w./*-]*\.(?:py|sh)\b", text)
        if not any(fnmatch(f"/{path.relative_to(ROOT)}", f"*/{name.removeprefix('./')}") for path in CODE)
    ]
    wrong += [name for name in re.findall(r"`(hmdc_hub(?:\.\w+)+)", text) if not is_name(name)]
    for verbs, rest in re.findall(r"hmdc[-_]hub ((?:[a-z]+ ?)+)([^`\n|#]*)", text):
        wrong += [f"{verbs}: {option}" for option in set(re.findall(r"--[a-z][\w-]*", rest)) - options_of(verbs)]
    keys = set(re.findall(r"(?<=-o )((?:\w+\.)+\w+)=", text))
    keys |= set(re.findall(r"`((?:condense|evaluate|publish)\.[a-z_]+(?:\.[a-z_]+)*)[`=:]", text))
    wrong += [key for key in keys - KEYS if not re.match(r"pool\.\d", key) and not key.endswith(".safetensors")]
    assert not wrong


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"", text):
        path, _, anchor = "".join(target).partition("#")
        if "://" in path:
            continue
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file.read_text(encoding="utf-8"))):
            wrong.append("".join(target))
    assert wrong == []


def test_nobody_is_sent_to_a_package_index_for_hmdc_hub() -> None:
    """It is on none yet: whoever ran `pip install hmdc-hub` would get nothing, or what somebody else called so."""
    kinds = (".py", ".jinja", ".md", ".yaml", ".json")
    files = [*PAGES, *HEADERS, *(path for path in ROOT.glob("hmdc_hub/**/*") if path.suffix in kinds)]
    index = re.compile(r"install(?: +-\S+)* +[\"']?hmdc-hub\b|hmdc-hub\[|hmdc-hub==")
    sent = {str(path.relative_to(ROOT)): index.findall(path.read_text(encoding="utf-8")) for path in files}
    assert {name: found for name, found in sent.items() if found} == {}


def test_the_readme_lists_every_page_and_a_user_has_twelve_at_most() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for_users, _, for_developers = readme.partition("For those who change the code")
    listed = [set(re.findall(r"\]\((docs/[\w/-]+\.md)\)", part)) for part in (for_users, for_developers)]
    assert {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")} == listed[0] | listed[1]
    assert len(listed[0]) <= 12


def test_every_baseline_and_every_pool_entry_has_its_row() -> None:
    baselines, models = (text_of(ROOT / "docs" / name) for name in ("evaluating.md", "models.md"))
    assert [name for name in BASELINES if f"| `{name}` |" not in baselines] == []
    assert [path.stem for path in ROOT.glob("model_pool/*.yaml") if f"| {path.stem} |" not in models] == []
