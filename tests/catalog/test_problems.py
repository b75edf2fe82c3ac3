"""What users get wrong in a recipe, and the words that tell them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmdc_hub.catalog import load_model, load_recipe
from hmdc_hub.errors import RecipeError, UsageError
from tests.catalog.conftest import MODEL, WriteRecipe


def complaint(path: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value


IPC, SIZE, SOURCE = "  ipc: 1\n", "  size: 16\n", "  id: builtin:digits\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        # numbers
        (IPC, "  ipc: 0\n", 15, "condense.ipc = 0: Input should be greater than or equal to 1"),
        (IPC, "  ipc: -3\n", 15, "condense.ipc = -3: Input should be greater than or equal to 1"),
        (IPC, "  ipc: ten\n", 15, "condense.ipc = ten: Input should be a valid integer"),
        (IPC, "  ipc: 10.0\n", 15, "condense.ipc = 10.0: Input should be a valid integer; write 10"),
        (IPC, "  ipc: 1e1\n", 15, "Input should be a valid integer; write 10"),
        (IPC, "  ipc: 2.5\n", 15, "condense.ipc = 2.5: Input should be a valid integer"),
        (IPC, '  ipc: "10"\n', 15, 'condense.ipc = "10": Input should be a valid integer; write it without'),
        (IPC, "  ipc: 1_000\n", 15, "condense.ipc = 1_000: Input should be a valid integer; write 1000"),
        (IPC, "  ipc: 1,000\n", 15, "condense.ipc = 1,000: Input should be a valid integer; write 1000"),
        (IPC, "  ipc: true\n", 15, "condense.ipc = true: Input should be a valid integer"),
        (IPC, "  ipc:\n", 15, "condense.ipc = null: Input should be a valid integer; it is empty"),
        (IPC, "  ipc: [1, 0]\n", 15, "condense.ipc = [1, 0]: Input should be greater than or equal to 1"),
        (IPC, "  ipc: [1, ten]\n", 15, "condense.ipc = [1, ten]: Input should be a valid integer"),
        (IPC, "  ipc: []\n", 15, "condense.ipc = []: List should have at least 1 item"),
        (IPC, "  ipc: [1, 10, 1]\n", 15, "condense.ipc: names 1 twice; a run makes one set of each size"),
        (IPC, "  ipc: 1, 10\n", 15, "condense.ipc = 1, 10: Input should be a valid integer; write [1, 10]"),
        (IPC, "  ipc: 9999999999999999999999\n", 15, "is too large; whole numbers have 64 bits"),
        (IPC, "  ipc: .nan\n", 15, "condense.ipc = .nan: must be a finite number"),
        (IPC, "  ipc: 1\n  factor:\n", 16, "leave the key out for the default, 2"),
        (SIZE, "  size: 2\n", 5, "source.size = 2: Input should be greater than or equal to 4"),
        (SIZE, "  size: 4096\n", 5, "source.size = 4096: Input should be less than or equal to 1024"),
        (SIZE, "  size: 16x16\n", 5, "source.size = 16x16: Input should be a valid integer"),
        (IPC, "  ipc: 1\n  images: {lr: 0}\n", 16, "condense.images.lr = 0: Input should be greater than 0"),
        (IPC, "  ipc: 1\n  images: {lr: -1e-3}\n", 16, "condense.images.lr = -0.001: Input should be greater than 0"),
        (IPC, "  ipc: 1\n  images: {lr: 1e999}\n", 16, "condense.images.lr = 1e999: must be a finite number"),
        (IPC, "  ipc: 1\n  images: {lr: inf}\n", 16, "condense.images.lr = inf: Input should be a valid number"),
        (IPC, "  ipc: 1\n  images: {lr: '1e-3'}\n", 16, "Input should be a valid number; write it without quotes"),
        (IPC, "  ipc: 1\n  images: {momentum: 1}\n", 16, "Input should be less than 1"),
        (IPC, "  ipc: 1\n  cutmix: {probability: 1.5}\n", 16, "Input should be less than or equal to 1"),
        (IPC, "  ipc: 1\n  cutmix: {probability: 50%}\n", 16, "= 50%: Input should be a valid number"),
        # booleans
        (IPC, "  ipc: 1\n  balance: off\n", 16, "off: Input should be a valid boolean; off is text in YAML 1.2"),
        (IPC, "  ipc: 1\n  balance: Yes\n", 16, "Input should be a valid boolean; Yes is text in YAML 1.2"),
        (IPC, "  ipc: 1\n  balance: 1\n", 16, "condense.balance = 1: Input should be a valid boolean"),
        (IPC, "  ipc: 1\n  balance: 'true'\n", 16, "Input should be a valid boolean; write it without quotes"),
        # choices
        (IPC, "  ipc: 1\n  initialisation: kmean\n", 16, "'kmeans', 'random' or 'mosaic'; did you mean kmeans?"),
        (IPC, "  ipc: 1\n  initialisation: 3\n", 16, "initialisation = 3: Input should be 'kmeans', 'random' or"),
        ("channels: 1", "channels: 2", 6, "source.channels = 2: Input should be 1 or 3"),
        ("channels: 1", "channels: true", 6, "source.channels = true: Input should be 1 or 3"),
        ("channels: 1", "channels: 3.0", 6, "source.channels = 3.0: Input should be 1 or 3"),
        ("channels: 1", "channels: '3'", 6, "Input should be 1 or 3; write it without quotes"),
        # text
        (SOURCE, "  id: 3\n", 4, "source.id = 3: Input should be a valid string; put it in quotes"),
        (SOURCE, "  id: ''\n", 4, 'source.id = "": String should have at least 1 character'),
        (SOURCE, SOURCE + "  revision: 1234567\n", 5, "= 1234567: Input should be a valid string; put it in quotes"),
        ("name: small\n", "name: my recipe\n", 1, "name = my recipe: Name should have letters, digits"),
        ("name: small\n", "name: ../up\n", 1, "name = ../up: Name should have letters, digits"),
        ("name: small\n", "name: 10\n", 1, "name = 10: Input should be a valid string; put it in quotes"),
        ("name: small-hmdc", "name: me/small", 20, "publish.name = me/small: Name should have letters, digits"),
        # sections and lists
        ("condense:\n  ipc: 1\n  resets: 4\n", "condense:\n", 14, "condense = null: Input should be a section"),
        ("condense:\n  ipc: 1\n  resets: 4\n", "condense: ipc:1\n", 14, "write a space after each colon"),
        ("condense:\n  ipc: 1\n  resets: 4\n", "condense: [ipc]\n", 14, "condense = [ipc]: Input should be a section"),
        (f"models: [{MODEL}]", "models: net", 18, "evaluate.models = net: Input should be a valid list"),
        (f"models: [{MODEL}]", "models: net", 18, "write [net]"),
        (f"models: [{MODEL}]", "models: []", 18, "evaluate.models = []: List should have at least 1 item"),
        (f"models: [{MODEL}]", "models: [1]", 18, "models.0 = 1: Input should be a name in model_pool/ or a mapping"),
        (IPC, "  ipc: 1\n  augment: {color: brightness}\n", 16, "a valid list; write [brightness]"),
        (IPC, "  ipc: 1\n  augment: {color: [hue]}\n", 16, "color.0 = hue: Input should be 'brightness'"),
        # keys
        (IPC, "  ipc: 1\n  factr: 2\n", 16, "condense.factr = 2: is not a known key; did you mean condense.factor?"),
        (IPC, "  ipc: 1\n  IPC: 2\n", 16, "condense.IPC = 2: is not a known key; did you mean condense.ipc?"),
        (IPC, "  ipc: 1\n  normalize: true\n", 16, "is not a known key; did you mean condense.normalise?"),
        (IPC, "  ipc: 1\n  epochs: 3\n", 16, "condense.epochs = 3: is not a known key; did you mean evaluate.epochs?"),
        (IPC, "  ipc: 1\n  zzz: 3\n", 16, "condense.zzz = 3: is not a known key; the keys here are ipc, factor"),
        ("name: small\n", "name: small\nsede: 1\n", 2, "sede = 1: is not a known key; did you mean seed?"),
        ("name: small\n", "name: small\nipc: 1\n", 2, "ipc = 1: is not a known key; did you mean condense.ipc?"),
        ("name: small\n", "name: small\nepoch: 1\n", 2, "epoch = 1: is not a known key; did you mean evaluate.epochs?"),
        ("name: small\n", "name: small\nname: x\n", 2, "name: stands here a second time; the first is on line 1"),
        (IPC, "", 14, "condense.ipc: Field required"),
        (SOURCE, "", 3, "source.id: Field required"),
        ("publish:\n  name: small-hmdc\n  config: ipc1\n", "", None, "publish: Field required"),
        # inline models
        ("condense: 0.05", "condense: 0", 13, "pool.1.lr.condense = 0: Input should be greater than 0"),
        ("id: mlp, args: {depth: 2,", "id: mlp, args: {depth: null,", 8, "should be a valid integer or a valid number"),
        ("id: mlp, args: {depth: 2,", "id: mlp, args: {depth: [[1]],", 8, "pool.0.args.depth"),
        ("id: mlp, args: {depth: 2,", "id: mlp, args: {depth:2,", 8, "pool.0.args.depth:2: needs a space after the"),
        ("id: mlp,", "id: mlp, args: 3, taps: [-1],", 8, "greater than or equal to 0 or a valid string"),
        ("id: mlp,", "id: mlp, taps: [0, a],", 8, "taps are indices or names of modules"),
        ("id: mlp,", "id: mlp, train: last, ", 8, "pool.0.train = last"),
        ("id: mlp,", "id: mlp, revision: main, ", 8, "revision belongs to a Hub id"),
        ("source: builtin, id", "sorce: builtin, id", 8, "is not a known key; did you mean pool.0.source?"),
        ("source: builtin, id", "sorce: builtin, id", 8, "pool.0.source: Field required"),
        ("source: builtin\n", "source: keras\n", 10, "pool.1.source = keras: Input should be 'builtin', 'torchvision'"),
        # rules about several keys
        (IPC, "  ipc: 1\n  factor: 3\n", 5, "source.size: 16 is not divisible by condense.factor 3"),
        (IPC, "  ipc: 1\n  match: false\n  distill: false\n", 14, "condense: match and distill are both off"),
        ("name: other", "name: tiny", 7, "pool names tiny twice; give inline mappings names of their own"),
        (f"models: [{MODEL}]", f"models: [{MODEL}, {MODEL}]", 18, "evaluate.models: names tiny twice"),
        ("name: other\n", "name: other\n    normalize: own\n", 9, "pool.1: normalize: own needs mean and std"),
        ("config: ipc1", "config: data", 21, "publish.config: may not be 'data': the package uses that folder itself"),
        # YAML
        ("name: small\n", "name: &x small\n", 1, "name = &x: anchors are not read"),
        ("channels: 1", "channels: *x", 6, "source.channels = *x: aliases are not read"),
        ("channels: 1", "\tchannels: 1", 6, "is indented with a tab; YAML takes spaces only"),
        ("description: For tests", "description: a: b", 2, "a colon stands where none can"),
    ],
)  # fmt: skip
def test_one_mistake_gives_its_line_and_rule(
    write: WriteRecipe, old: str, new: str, line: int | None, words: str
) -> None:
    error = complaint(write((old, new)))
    at = "" if line is None else f"line {line}: "
    assert any(text.strip().startswith(at) and words in text for text in error.message.splitlines()), error.message


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (IPC, "  ipc: [&a 1]\n", "condense.ipc.0"),
        (IPC, "  ipc: *a\n", "condense.ipc"),
        (IPC, "  ipc: x\n  ipc: 3\n", "condense.ipc"),
        ("channels: 1", "channels: {a: !!int 1}", "source.channels.a"),
        ("id: mlp, args: {depth: 2,", "id: mlp, args: {depth: [.inf],", "pool.0.args.depth.0"),
        (f"  - {MODEL}\n", "  - no_such_net\n", "pool.0"),
    ],
)
def test_a_mistake_is_not_reported_again_as_its_consequence(write: WriteRecipe, old: str, new: str, key: str) -> None:
    assert [problem.key for problem in complaint(write((old, new))).problems] == [key]


def test_every_mistake_is_reported_at_once_in_the_order_of_lines(write: WriteRecipe) -> None:
    path = write(
        ("name: small\n", "name: small\nsede: 1\n"),
        ("size: 16", "size: 16.0"),
        ("channels: 1", "channels: &c 1"),
        (f"  - {MODEL}\n", "  - no_such_net\n"),
        ("condense: 0.05", "condense: -1"),
        (IPC, "  ipc: x\n"),
        ("config: ipc1", "config: ipc1\n  config: ipc2"),
    )
    problems = complaint(path, "foo", "evaluate.epochs=0", "evaluate.epoch=3").problems
    assert [(problem.line, problem.key) for problem in problems] == [
        (2, "sede"),
        (6, "source.size"),
        (7, "source.channels"),
        (9, "pool.0"),
        (14, "pool.1.lr.condense"),
        (16, "condense.ipc"),
        (23, "publish.config"),
        (None, ""),
        (None, "evaluate.epoch"),
        (None, "evaluate.epochs"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "example"),
    [
        (IPC, "  ipc: x\n", "ipc: 10"),
        (IPC, "", "ipc: 10"),
        (IPC, "  ipc: 1\n  match: on\n", "match: true"),
        (f"models: [{MODEL}]", "models: x", "models: [convnet3, resnet18]"),
        ("id: mlp, args: {depth: 2, width: 8}", "id: mlp, args: 2", "args: {depth: 3, width: 128}"),
        ("source:\n  id: builtin:digits\n  size: 16\n  channels: 1\n", "", "source: {id: uoft-cs/cifar10, size: 32}"),
        ("publish:\n  name: small-hmdc\n  config: ipc1\n", "publish:", "publish: {name: cifar10-hmdc, config: ipc10}"),
    ],
)  # fmt: skip
def test_a_mistake_comes_with_a_line_that_would_be_right(write: WriteRecipe, old: str, new: str, example: str) -> None:
    error = complaint(write((old, new)))
    assert example in [problem.example for problem in error.problems]
    assert f"for example  {example}" in error.message


def test_no_jargon_of_the_library_comes_through(write: WriteRecipe) -> None:
    path = write(
        ("name: small\n", "name: 1\nx: 1\n"),
        ("size: 16", "size: a"),
        (IPC, "  match: 1\n  initialisation: 4\n  augment: 1\n"),
        ("args: {depth: 2, width: 8}", "args: {depth: null}"),
    )
    message = complaint(path).message.lower()
    for jargon in ("value error", "extra inputs", "dictionary", "instance of", "pydantic", "nonetype", "pattern"):
        assert jargon not in message


def test_long_values_are_shortened(write: WriteRecipe) -> None:
    error = complaint(write((IPC, f"  ipc: {'x' * 500}\n")))
    assert len(error.problems[0].value) == 60
    assert error.problems[0].value.endswith("x…")


def test_a_file_name_that_is_no_name_is_said_to_be_one(write: WriteRecipe) -> None:
    error = complaint(write(("name: small\n", ""), name="my recipe.yaml"))
    assert "name = my recipe: is no name, and comes from the file's" in error.message
    assert "so rename the file or give the recipe a name" in error.message
    assert len(error.problems) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content, words in (
        (b"", "is empty"),
        (b"a: \xff\n", "line 1: \\xff: is not UTF-8 text"),
        (b"a: 1\n" + b"#" * 70_000, "is larger than 64 KiB"),
        (b"- a\n", "line 1: holds a list; keys and values are expected"),
        (b"name: x\n---\nname: y\n", "line 2: a second document begins here"),
    ):
        path.write_bytes(content)
        assert words in complaint(str(path)).message
    path.write_bytes(b"a: 1\n" * 40_000)
    assert "is larger than 64 KiB" in complaint(str(path)).message


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; a recipe is a YAML file"):
        load_recipe(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("x: 1\n")
    with pytest.raises(UsageError, match="The recipe of a run is inside: .*recipe.yaml"):
        load_recipe(str(tmp_path))


def test_unknown_models_come_with_close_ones(write: WriteRecipe, pool: Path) -> None:
    path = write((f"  - {MODEL}\n", "  - net_c\n"), (f"models: [{MODEL}]", "models: [zzz, net_a, ./gone.yaml]"))
    (Path(path).parent / "zzz.yaml").write_text("source: builtin\nid: mlp\n")
    message = complaint(path).message
    assert "line 8: pool.0 = net_c: is not in the model pool; did you mean net_b or net_a?" in message
    assert (
        "evaluate.models.0 = zzz: is not in the model pool; did you mean ./zzz.yaml, the file beside the recipe?"
        in message
    )
    assert "evaluate.models.2 = ./gone.yaml: is no file, neither beside the recipe" in message
    (Path(path).parent / "zzz.yaml").unlink()
    assert "evaluate.models.0 = zzz: is not in the model pool; it holds net_a, net_b" in complaint(path).message


def test_mistakes_in_a_model_file_name_the_file_and_its_line(write: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("source: builtin\nid: mlp\nlr: {condense: 0}\ntap: [1]\n")
    message = complaint(write((f"  - {MODEL}\n", "  - ./mine.yaml\n"))).message
    assert (
        "line 8: pool.0 = ./mine.yaml: ./mine.yaml, line 3: lr.condense = 0: Input should be greater than 0" in message
    )
    assert "./mine.yaml, line 4: tap = [1]: is not a known key; did you mean taps?" in message
    with pytest.raises(RecipeError, match=r"(?s)2 problems.*line 3: lr.condense = 0: Input should be greater than 0"):
        load_model(str(tmp_path / "mine.yaml"))


@pytest.mark.slow
def test_ten_problems_are_listed_and_the_rest_counted(write: WriteRecipe) -> None:
    found = complaint(write((IPC, IPC + "".join(f"  k{i}: 1\n" for i in range(1_500)))))
    assert len(found.problems) == 1_500 and len(found.message) < 5_000
    lines = found.message.splitlines()
    assert lines[0].endswith(": 1,500 problems") and lines[-1] == "  and 1,490 more"
    assert [line for line in lines if "is not a known key" in line] == lines[1:11]
    assert "more" not in complaint(write((IPC, "".join(f"  k{i}: 1\n" for i in range(9))))).message.splitlines()[-1]


def test_keys_and_values_in_messages_are_shortened(write: WriteRecipe) -> None:
    long = "k" * 30_000
    for text in (f"  ? {long}\n  : 1\n", f"  ipc: {long}\n", f"  ipc: 1\n  {long[:900]}: 1\n"):
        found = complaint(write((IPC, text)))
        assert len(found.message) < 2_000, len(found.message)
        assert "k" * 50 in found.message and "…" in found.message
    named = complaint(write((f"  - {MODEL}\n", f"  - {long}\n")))
    assert "is not in the model pool" in named.message and len(named.message) < 4_000
    assert named.problems[0].value == long, "the error holds all of it"
    with pytest.raises(UsageError) as caught:
        load_recipe(write(), [f"{long}=1", f"condense.ipc={long}"])
    assert len(caught.value.message) < 3_000
