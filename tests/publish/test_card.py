"""The card: valid metadata, nothing of strangers lost, nothing of strangers executed."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import TypeAdapter

from hmdc_hub import metrics
from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import BEGIN, END, ConfigFacts, front_matter, read_facts, render
from hmdc_hub.report.document import escape_markdown
from hmdc_hub.report.headline import headline
from hmdc_hub.schema import FORMAT_VERSION, Cell, Recipe, sealed
from hmdc_hub.store.configs import split_card
from tests.builders import CONVNET, edit_json, make_recipe, make_run, make_source_info


def block(card: str) -> dict[str, Any]:
    return split_card(card)[0]


def packed(folder: Path, *recipes: Recipe, scored: bool = True, **source: Any) -> Path:
    """Package recipes and put the packages into one folder, as a repository holds them."""
    union = folder / "union"
    for number, recipe in enumerate(recipes):
        run = make_run(folder / f"run{number}", recipe=recipe, source=make_source_info(recipe, **source), scored=scored)
        shutil.copytree(package(run), union, dirs_exist_ok=True)
    (union / "README.md").unlink()
    return union


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("one"), make_recipe())


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(
        tmp_path_factory.mktemp("several"),
        make_recipe(name="tiny_ipc2"),
        make_recipe(name="tiny_ipc5", ipc=5),
        make_recipe(name="other_ipc1", ipc=1, source_id="uoft-cs/cifar10", license="mit", channels=1, config="grey"),
    )


# Metadata


def test_the_fields_that_the_hub_reads(one: Path) -> None:
    top = block(render(one, repo_id="ann/tiny-hmdc"))
    assert top["license"] == "cc-by-4.0" and top["pretty_name"] == "someone/tiny condensed, 2 images per class"
    assert top["size_categories"] == ["n<1K"] and top["source_datasets"] == ["someone/tiny"]
    assert top["task_categories"] == ["image-classification"]
    assert top["task_ids"] == ["multi-class-image-classification"]
    assert {"synthetic", "dataset-condensation", "dataset-distillation", "ipc-2"} < set(top["tags"])
    assert "arxiv:2409.14538" in top["tags"]
    assert [entry["config_name"] for entry in top["configs"]] == ["ipc2", "scores"]
    assert [entry.get("default") for entry in top["configs"]] == [True, None]
    (info,) = top["dataset_info"]
    assert info["splits"] == [{"name": "train", "num_bytes": info["dataset_size"], "num_examples": 24}]
    assert info["features"][1]["dtype"]["class_label"]["names"] == {"0": "cat", "1": "dog", "2": "ship"}
    assert info["download_size"] == (one / "ipc2" / "train-00000-of-00001.parquet").stat().st_size
    assert top["hmdc"]["format_version"] == FORMAT_VERSION and set(top["hmdc"]["configs"]) == {"ipc2"}


def test_numbers_in_dataset_info_are_those_of_the_footer(one: Path) -> None:
    import pyarrow.parquet as pq

    footer = pq.read_metadata(one / "ipc2" / "train-00000-of-00001.parquet")
    (info,) = block(render(one))["dataset_info"]
    assert info["splits"][0]["num_examples"] == footer.num_rows
    assert info["dataset_size"] == sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yes", "1e3", "null", "0o17", "12"])
def test_names_stay_text_to_every_reader_of_yaml(tmp_path: Path, name: str) -> None:
    ruamel = pytest.importorskip("ruamel.yaml")
    card = render(packed(tmp_path, make_recipe(config=name), class_names=["on", "1e3", "~"]))
    text = card.split("---\n")[1]
    for top in (block(card), vars(DatasetCard(card).data), ruamel.YAML(typ="safe", pure=True).load(text)):
        assert top["configs"][0]["config_name"] == name and list(top["hmdc"]["configs"]) == [name]
        label = top["dataset_info"][0]["features"][1]
        assert label["dtype"]["class_label"]["names"] == {"0": "on", "1": "1e3", "2": "~"}


@pytest.mark.slow
def test_the_libraries_read_the_block(several: Path, tmp_path: Path) -> None:
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs

    data = DatasetCard(render(several)).data
    assert data.get("hmdc")["format_version"] == FORMAT_VERSION
    configs = MetadataConfigs.from_dataset_card_data(data)
    assert list(configs) == ["grey", "ipc2", "ipc5", "scores"] and configs.get_default_config_name() == "grey"
    infos = DatasetInfosDict.from_dataset_card_data(data)
    assert infos["ipc5"].splits["train"].num_examples == 60
    assert infos["ipc2"].features["label"].names == ["cat", "dog", "ship"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "recipe", "shown"),
    [
        (None, None, {"license": "unknown"}),
        ("cc-by-4.0", None, {"license": "cc-by-4.0"}),
        ("cc-by-4.0", "mit", {"license": "mit"}),
        (
            "Special Terms v2",
            None,
            {
                "license": "other",
                "license_name": "special-terms-v2",
                "license_link": "https://huggingface.co/datasets/someone/tiny",
            },
        ),
    ],
)
def test_a_licence_is_carried_over_never_invented(
    tmp_path: Path, source: str | None, recipe: str | None, shown: dict[str, str]
) -> None:
    folder = packed(tmp_path, make_recipe(license=recipe), license=source)
    top = block(render(folder))
    assert {key: value for key, value in top.items() if key.startswith("license")} == shown


@pytest.mark.slow
def test_several_licences_are_all_named(several: Path) -> None:
    assert block(render(several))["license"] == ["cc-by-4.0", "mit"]
    text = render(several)
    assert "(`ipc2`, `ipc5`) is under cc-by-4.0" in text and "(`grey`) is under mit" in text


@pytest.mark.slow
def test_gating_is_said(tmp_path: Path) -> None:
    text = render(packed(tmp_path, make_recipe(), gated=True))
    assert "asks for consent" in text
    assert "asks for consent" not in render(packed(tmp_path / "open", make_recipe()))


def test_without_scores_their_parts_are_absent(tmp_path: Path) -> None:
    text = render(packed(tmp_path, make_recipe(), scored=False))
    shown = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert "was not evaluated" in shown and "random-encoded" not in shown and "scores.png" not in shown
    assert [entry["config_name"] for entry in block(text)["configs"]] == ["ipc2"]


def test_the_default_is_the_one_asked_for(several: Path) -> None:
    def default(card: str) -> list[str]:
        return [entry["config_name"] for entry in block(card)["configs"] if entry.get("default")]

    assert default(render(several)) == ["grey"]
    chosen = render(several, default="ipc5", repo_id="your-name/tiny-hmdc")
    assert default(chosen) == ["ipc5"] and 'load_dataset("your-name/tiny-hmdc", "ipc5"' in chosen
    assert default(render(several, previous=chosen)) == ["ipc5"]
    assert default(render(several, previous=chosen, default="ipc2")) == ["ipc2"]
    with pytest.raises(NotFoundError, match="ipc7"):
        render(several, default="ipc7")


# Text


def test_the_first_screen_is_the_result_a_picture_and_the_means(one: Path) -> None:
    body = split_card(render(one))[1]
    lines = body.strip().splitlines()
    scores = read_facts(one)[0].scores
    assert scores is not None and lines[0] == "# someone/tiny condensed, 2 images per class"
    head, order = headline(scores), ["assets/ipc2/formation.png", "| **condensed** |", "| chance | 33.3 |"]
    assert head.beats_all and lines[2].startswith(f"**{escape_markdown(head.sentence)}** ")
    assert escape_markdown(head.verdict) in lines[2] and escape_markdown(head.seen_line[1:]) in body
    places = [body.index(words) for words in order]
    assert places == sorted(places) and "2 synthetic = 8 training images per class" in body
    assert "@software{hmdc_hub" in body and "author  = {{The hmdc-hub authors}}" in body
    assert "pip install hmdc-hub" not in body and "moon2024hmdc" in body


@pytest.mark.slow
def test_a_set_that_beats_nothing_is_not_bold_and_one_that_was_not_scored_says_so(tmp_path: Path) -> None:
    folder = packed(tmp_path, make_recipe())

    def lose(scores: Any) -> None:
        for cell in scores["cells"]:
            cell["accuracy"] = 0.5
        models = [model["name"] for model in scores["protocol"]["models"]]
        cells = [Cell.model_validate(cell) for cell in scores["cells"]]
        found = metrics.summarise(cells, list(scores["table"]), models, scores["condensed_by"])
        scores |= json.loads(TypeAdapter(dict[str, Any]).dump_json(found))

    edit_json(folder / "ipc2" / "scores.json", lose)
    first = split_card(render(folder))[1].partition("## Train on it")[0]
    assert "The condensed set is not shown to beat random real images" in first and "**" not in first
    unscored = split_card(render(packed(tmp_path / "bare", make_recipe(), scored=False)))[1]
    assert "**This set was not evaluated**" in unscored and "not evaluated: no number to expect" in unscored


def test_the_title_is_the_recipes_or_what_people_call_the_source(several: Path, tmp_path: Path) -> None:
    assert "# CIFAR-10 and someone/tiny condensed, 1, 2 and 5 images per class\n" in render(several, default="grey")
    publish = {"name": "tiny-hmdc", "config": "ipc2", "title": "Tiny *things*"}
    card = render(packed(tmp_path / "own", make_recipe(publish=publish)), previous="---\npretty_name: Theirs\n---\n")
    assert block(card)["pretty_name"] == "Tiny *things*" and "\n# Tiny \\*things\\*\n" in card
    local = render(packed(tmp_path / "local", make_recipe(source_id="/data/cats"), kind="local"))
    made = local.index("## How it was made")
    assert block(local)["pretty_name"] == "cats condensed, 2 images per class"
    assert "ab12ab12" not in split_card(local[:made])[1] and "ab12ab12" in local[made:]
    again = render(several, previous="---\npretty_name: someone/tiny condensed with HMDC\n---\n")  # by an older program
    assert block(again)["pretty_name"].startswith("CIFAR-10 and")
    assert block(render(several, previous=again))["tags"].count("ipc-2") == 1
    gone = render(packed(tmp_path / "less", make_recipe()), previous=again)
    assert [tag for tag in block(gone)["tags"] if tag.startswith("ipc-")] == ["ipc-2"]


def test_nothing_true_of_one_configuration_is_said_of_all(several: Path) -> None:
    body = split_card(render(several))[1]
    intro = body[: body.index("| configuration")]
    assert "someone/tiny" in intro and "uoft-cs/cifar10" in intro
    assert "`grey`, the default configuration: 1 synthetic = 4 training images per class" in intro
    for name, count in (("ipc2", "24"), ("ipc5", "60"), ("grey", "12")):
        (row,) = [line for line in body.splitlines() if line.startswith(f"| `{name}`")]
        assert f"| {count} |" in row
    assert "krizhevsky2009" in body and "Please cite the source as well" in body


def test_the_loop_is_short_and_python(several: Path) -> None:
    loop = next(code for code in re.findall(r"```python\n(.*?)```", render(several), re.DOTALL) if "optimizer" in code)
    ast.parse(loop)
    training, _, test = loop.partition("# The real test images")
    assert (
        len([line for line in training.splitlines() if line.strip()]) == 16 and max(map(len, loop.splitlines())) <= 120
    )
    assert "test accuracy" in test and "# convnet_tiny came to" in test.splitlines()[-1]


def test_what_strangers_wrote_stays_a_string_of_the_loop(tmp_path: Path) -> None:
    source = {"id": "someone/tiny", "size": 8, "image_column": "a```\n'\"); import os #"}
    card = render(packed(tmp_path, make_recipe(source=source)))
    loop = next(code for code in re.findall(r"```python\n(.*?)\n```\n", card, re.DOTALL) if "optimizer" in code)
    calls = [
        node
        for node in ast.walk(ast.parse(loop))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "SourceSpec"
    ]
    assert {key.arg: ast.literal_eval(key.value) for key in calls[0].keywords}["image_column"] == source["image_column"]


@pytest.mark.slow
def test_what_nobody_else_has_is_named(tmp_path: Path) -> None:
    mine = {"name": "mine", "source": "python", "id": "lab.nets.Mine@1a2b3c4d"}
    evaluate = {"models": [CONVNET, mine], "seeds": 2, "random_draws": 1, "epochs": 3}
    recipe = make_recipe(source_id="/data/cats", pool=[CONVNET, mine], evaluate=evaluate)
    text = render(packed(tmp_path, recipe, kind="local"))
    (model,) = [line for line in text.splitlines() if line.startswith("- Model: `mine`")]
    assert model.endswith("from a Python session, not reproducible by id")
    assert "From a Python session, and not reproducible by id: `mine`." in text
    assert "data on its author's disk (cats" in text and "Only its author has the data" in text
    assert "Only its author has every network of the pool" in text
    plain = render(packed(tmp_path / "plain", make_recipe()))
    assert "Python session" not in plain and "Only its author" not in plain


def test_every_picture_is_in_the_package(several: Path) -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", render(several))
    assert len(pictures) == 5 and all((several / picture).is_file() for picture in pictures)


def test_the_card_does_not_know_the_installed_version(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = render(one)
    monkeypatch.setattr("hmdc_hub.__version__", "99.0")
    assert render(one) == before and "0.1.0" in before


def test_a_manifest_that_lacks_a_file_is_an_error(one: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(one, folder)
    path = folder / "ipc2" / "manifest.json"
    text = path.read_text().replace("condensed.safetensors", "condensed.other")
    path.write_text(json.dumps(sealed(json.loads(text))))
    with pytest.raises(FormatError, match=r"condensed\.safetensors"):
        render(folder)


# What others wrote


def test_what_stands_between_the_markers_survives_to_the_byte(one: Path, several: Path) -> None:
    words = "\n\n## Notes\r\n\tMind the *sixes*. \u00e9\u4e2d  \n\n<!-- a comment -->\n\n"
    card = render(one).replace(f"{BEGIN}\n{END}", f"{BEGIN}{words}{END}")
    assert words in card
    assert render(several, previous=card).count(f"{BEGIN}{words}{END}") == 1


@pytest.mark.parametrize("damage", [(BEGIN, ""), (END, ""), (BEGIN, BEGIN * 2), (END, f"{END}\n{END}")])
def test_damaged_markers_are_never_guessed_at(one: Path, damage: tuple[str, str]) -> None:
    card = render(one).replace(*damage)
    with pytest.raises(FormatError, match="markers") as caught:
        render(one, previous=card)
    assert BEGIN in caught.value.hint and END in caught.value.hint


def test_swapped_markers_are_never_guessed_at(one: Path) -> None:
    card = render(one).replace(BEGIN, "@").replace(END, BEGIN).replace("@", END)
    with pytest.raises(FormatError, match="markers"):
        render(one, previous=card)


def test_a_card_that_is_not_ours_moves_between_the_markers(one: Path) -> None:
    card = render(one, previous="---\nlicense: gpl-3.0\n---\n# My data\n\nWords.\n")
    assert f"{BEGIN}\n# My data\n\nWords.\n{END}" in card
    assert block(card)["license"] == ["cc-by-4.0", "gpl-3.0"]
    assert render(one, previous=card) == card


FOREIGN = """---
language:
- en
pretty_name: Digits, but few
viewer: false
extra_gated_prompt: |-
  Be nice.
  Please.
tags:
- mine
- hmdc
task_categories:
- zero-shot-image-classification
license: other
license_name: my-own
license_link: LICENSE
configs:
- config_name: raw
  data_files: raw/*.csv
  default: true
- config_name: ipc2
  data_files: wrong/*.parquet
dataset_info:
- config_name: raw
  features:
  - name: a
    dtype: int64
- config_name: ipc2
  features: []
---
# Theirs
"""


def test_keys_and_configurations_that_are_not_ours_survive(one: Path, several: Path) -> None:
    top = block(render(one, previous=FOREIGN))
    assert (top["language"], top["viewer"], top["extra_gated_prompt"]) == (["en"], False, "Be nice.\nPlease.")
    assert top["pretty_name"] == "Digits, but few" and top["tags"].count("hmdc") == 1 and "mine" in top["tags"]
    assert top["task_categories"] == ["image-classification", "zero-shot-image-classification"]
    assert top["license"] == ["cc-by-4.0", "other"] and top["license_name"] == "my-own"
    names = [entry["config_name"] for entry in top["configs"]]
    assert names == ["ipc2", "scores", "raw"]
    assert [entry["config_name"] for entry in top["configs"] if entry.get("default")] == ["raw"]
    assert top["configs"][0]["data_files"][0]["path"].startswith("ipc2/")
    assert [entry["config_name"] for entry in top["dataset_info"]] == ["ipc2", "raw"]
    again = block(render(several, previous=render(one, previous=FOREIGN), default="ipc2"))
    assert [entry["config_name"] for entry in again["configs"]] == ["grey", "ipc2", "ipc5", "scores", "raw"]
    assert [entry["config_name"] for entry in again["configs"] if entry.get("default")] == ["ipc2"]
    assert again["license"] == ["cc-by-4.0", "mit", "other"]


def test_a_configuration_of_ours_that_is_gone_leaves_the_card(one: Path, several: Path) -> None:
    top = block(render(one, previous=render(several)))
    assert [entry["config_name"] for entry in top["configs"]] == ["ipc2", "scores"]
    assert [entry["config_name"] for entry in top["dataset_info"]] == ["ipc2"] and top["license"] == "cc-by-4.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    "previous",
    ["", "no front matter", "---\n[1, 2]\n---\n", "---\na: [\n---\ntext",
     "---\nconfigs: 7\ndataset_info: x\ntags: 3\n---\n", "---\nhmdc: 5\nlicense: {a: 1}\n---\n",
     "---\nhmdc: {configs: [1]}\nconfigs: [1, {x: y}]\n---\n", "---\n---\n"],
)  # fmt: skip
def test_any_text_can_be_the_previous_card(one: Path, previous: str) -> None:
    card = render(one, previous=previous)
    assert [e["config_name"] for e in block(card)["configs"] if e.get("default")] == ["ipc2"]
    assert render(one, previous=card) == card


_scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OURS = {"pretty_name", "license", "license_name", "license_link", "task_categories", "task_ids", "size_categories",
        "source_datasets", "tags", "configs", "dataset_info", "hmdc"}  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda key: key not in OURS), _values, max_size=4))
def test_foreign_keys_survive_whatever_they_are(previous: dict[str, Any]) -> None:
    facts = _facts()
    once = front_matter(facts, None, previous)
    assert {key: value for key, value in once.items() if key not in OURS} == previous
    assert front_matter(facts, None, yaml.safe_load(yaml.safe_dump(_plain(once)))) == once


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k) if isinstance(k, str) else k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, str) else value


_kept: list[list[ConfigFacts]] = []


def _facts() -> list[ConfigFacts]:
    if not _kept:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            _kept.append(read_facts(packed(Path(folder), make_recipe())))
    return _kept[0]


# Strangers' text

NASTY = [
    "<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://evil/x.png)", "a | b", "`code`", "``` x",
    "# heading", "- item", "**bold** _em_", "&lt;b&gt;", "{{ 7*7 }}", "{% raw %}", "---", "a\n---\nb: c", "'\"", ": x",
    "\u202egnp.exe", "-->", BEGIN, "$x$", "www.evil.example", "user@evil.example", "</details>", "\\",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text", NASTY)
def test_text_of_strangers_is_shown_not_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    recipe = make_recipe(source_id=f"x{text}", license=f"L{text}").model_copy(update={"description": f"D{text}"})
    source = {"class_names": [f"{text}{n}" for n in range(3)], "license": f"L{text}"}
    run = make_run(tmp_path / "run", recipe=recipe, source=make_source_info(recipe, **source))  # type: ignore[arg-type]
    edit_json(run.info, lambda info: info | {"device": f"cpu {text}"})
    # Of such a source no package passes; cards are rendered of what others published, too.
    monkeypatch.setattr("hmdc_hub.publish.build.refuse_damaged", lambda *_: None)
    card = (package(run) / "README.md").read_text()
    top = block(card)
    assert [entry["config_name"] for entry in top["configs"]] == ["ipc2", "scores"]
    names = top["dataset_info"][0]["features"][1]["dtype"]["class_label"]["names"]
    assert list(names.values()) == source["class_names"]
    body = split_card(card)[1]
    outside = re.sub(r"(`{3,})yaml\n.*?\n\1", "", body, flags=re.DOTALL)  # the recipe is shown as it is
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(outside)
    assert "<script" not in html
    for address in re.findall(r'(?:href|src)="([^"]*)"', html):
        assert address.startswith(("https://huggingface.co/datasets/x", "https://arxiv.org/abs/", "assets/ipc2/")), (
            address
        )
    assert html.count("<details>") == html.count("</details>") == 1 and html.count("<h1>") == 1
    assert body.count(BEGIN) == 1 or BEGIN in text
    rows = [line for line in outside.splitlines() if line.startswith("| `ipc2`")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 9
