"""Broken recipes, models and sources: status 2, one readable message, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.cli import tiny
from tests.cli.conftest import Call
from tests.cli.test_condense import state_of
from tests.sources.conftest import no_bars, own_caches  # noqa: F401  (fixtures of this file, too)
from tests.sources.files import CLASSES, cells, image_folder, parquet_folder, png, rows, write_parquet

MLP = "{name: mlp_a, source: builtin, id: mlp, args: {depth: 1, width: 8}}"


def without(section: str) -> str:
    return "\n".join(line for line in tiny.TEXT.splitlines() if not line.startswith(section)) + "\n"


def pool(*models: str) -> str:
    text = tiny.TEXT
    start, end = text.index("pool:"), text.index("condense:")
    return text[:start] + f"pool: [{', '.join(models)}]\n" + text[end:]


def swap(old: str, new: str) -> str:
    assert old in tiny.TEXT
    return tiny.TEXT.replace(old, new, 1)


RECIPES: Mapping[str, tuple[str | bytes, tuple[str, ...]]] = {
    "unclosed bracket": (swap('channels: 1}', 'channels: 1'), ("line 1", "not closed")),
    "tab": (swap("  ipc: 1", "\tipc: 1"), ("line 6", "tab")),
    "empty file": ("", ("empty",)),
    "only comments": ("# nothing\n", ("empty",)),
    "a list": ("- 1\n- 2\n", ("holds a list", "keys and values")),
    "a sentence": ("please condense cifar10\n", ("single value", "keys and values")),
    "a key twice": (swap("  ipc: 1\n", "  ipc: 1\n  ipc: 2\n"), ("condense.ipc", "line 7", "second time", "line 6")),
    "anchor": (swap("  ipc: 1", "  ipc: &n 1"), ("line 6", "anchor")),
    "tag": (swap("  ipc: 1", "  ipc: !!python/name:os.system 1"), ("line 6", "tag")),
    "two documents": (tiny.TEXT + "---\n" + tiny.TEXT, ("document",)),
    "too large": (tiny.TEXT + "# x\n" * 20_000, ("64 KiB",)),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", ("UTF-8",)),
    "unknown section": (swap("condense:", "condence:"), ("condence", "did you mean condense")),
    "unknown key": (swap("  ipc: 1", "  ipcs: 1"), ("condense.ipcs", "line 6", "did you mean condense.ipc")),
    "missing section": (without("publish"), ("publish", "required")),
    "missing key": (swap("  ipc: 1\n", ""), ("condense.ipc", "required")),
    "text for a number": (swap("  ipc: 1", "  ipc: many"), ("condense.ipc = many", "valid integer")),
    "more images than there are": (swap("  ipc: 1", "  ipc: 500"), ("condense.ipc = 500", "largest class", "146")),
    "zero": (swap("  ipc: 1", "  ipc: 0"), ("condense.ipc = 0", "greater than or equal to 1")),
    "half": (swap("  ipc: 1", "  ipc: 1.5"), ("condense.ipc = 1.5", "valid integer")),
    "yes for true": (swap("distill: false", "distill: yes"), ("condense.distill = yes", "boolean; yes is text")),
    "infinite": (swap("  ipc: 1", "  ipc: 1\n  images: {lr: .inf}"), ("condense.images.lr", "line 7")),
    "negative rate": (swap("  ipc: 1", "  ipc: 1\n  images: {lr: -1e-3}"), ("lr = -0.001", "greater than 0")),
    "factor does not divide": (swap("factor: 2", "factor: 3"), ("8 is not divisible", "3")),
    "nothing to minimise": (swap("distill: false", "distill: false\n  match: false"), ("match", "distill", "both off")),
    "distillation with one model": (
        pool(MLP).replace("distill: false", "match: false"), ("two models", "condense.match"),
    ),
    "huge images": (swap("size: 8", "size: 5000"), ("source.size = 5000", "1024")),
    "two channels": (swap("channels: 1", "channels: 2"), ("source.channels = 2", "1 or 3")),
    "no models": (pool(), ("pool", "at least 1 item")),
    "a model twice": (pool(MLP, MLP), ("mlp_a", "twice")),
    "unknown pool entry": (pool("convnet33"), ("pool.0 = convnet33", "did you mean convnet3")),
    "pool file missing": (pool("./mine.yaml"), ("pool.0 = ./mine.yaml", "no file")),
    "pool file broken": (pool("./broken.yaml"), ("broken.yaml, line 2", "idd", "did you mean id")),
    "unknown library": (pool("{name: a, source: keras, id: x}"), ("pool.0.source = keras", "builtin")),
    "own statistics without numbers": (pool(MLP.replace("id: mlp", "id: mlp, normalize: own")), ("mean and std",)),
    "unknown baseline": (
        swap("baselines: [random, initialisation]", "baselines: [herdng]"), ("evaluate.baselines.0", "k-means")
    ),
    "reserved name": (swap("config: ipc1", "config: scores"), ("publish", "scores")),
    "name with a slash": (swap("name: tiny-hmdc", "name: me/tiny"), ("publish.name = me/tiny",)),
    "network that does not exist": (pool(MLP.replace("id: mlp", "id: mpl")), ("mlp_a", "mpl", "mlp")),
    "argument that does not exist": (pool(MLP.replace("width", "widht")), ("mlp_a", "widht", "width")),
    "argument out of range": (pool(MLP.replace("width: 8", "width: 0")), ("mlp_a", "width")),
    "patches that do not fit": (
        pool("{name: v, source: transformers, id: vit, args: {patch_size: 3, hidden_size: 8, num_hidden_layers: 1, "
             "num_attention_heads: 2, intermediate_size: 8}}"), ("v", "patch_size", "8"),
    ),
    "heads that do not fit": (
        pool("{name: v, source: transformers, id: vit, args: {patch_size: 4, hidden_size: 9, num_hidden_layers: 1, "
             "num_attention_heads: 2, intermediate_size: 8}}"), ("v", "hidden_size", "num_attention_heads"),
    ),
    "a ConvNet too deep for the images": (
        pool("{name: deep, source: builtin, id: convnet, args: {depth: 6, width: 4}}"), ("deep", "8"),
    ),
    "evaluated network that does not exist": (
        swap("models: [{name: mlp_a, source: builtin, id: mlp", "models: [{name: mlp_a, source: builtin, id: mpl"),
        ("mlp_a", "mpl"),
    ),
    "tap that does not exist": (pool(MLP.replace("id: mlp", "id: mlp, taps: [7]")), ("mlp_a", "7", "tap")),
}  # fmt: skip


@pytest.fixture
def condense(call: Call, folder: Path) -> Callable[..., str]:
    """Run `condense` on what must fail and return its message."""

    def running(*arguments: str | Path) -> str:
        before = state_of(folder)
        folders = sorted(path for path in folder.rglob("*") if path.is_dir())
        done = call("condense", *arguments)
        assert done.status == 2, done.err
        assert done.out == "" and "Traceback" not in done.err
        assert done.err.count("error: ") == 1
        assert state_of(folder) == before and sorted(p for p in folder.rglob("*") if p.is_dir()) == folders
        return done.err[done.err.index("error: ") :]

    return running


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_broken_recipe(condense: Callable[..., str], folder: Path, kind: str) -> None:
    text, words = RECIPES[kind]
    (folder / "broken.yaml").write_text("source: builtin\nidd: mlp\n")
    (folder / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = condense("r.yaml")
    assert len(said) < 1000
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], ("nowhere.yaml", "recipes ls")),
        (["digits_ipc"], ("digits_ipc", "did you mean digits_ipc1")),
        (["."], ("is a folder",)),
        (["r.yaml", "-o", "condense.ipc"], ("condense.ipc", "KEY=VALUE")),
        (["r.yaml", "-o", "condense.ipc=x", "-o", "seed=-1"], ("2 problems", "condense.ipc = x", "seed = -1")),
        (["r.yaml", "-o", "condense.factr=1"], ("condense.factr", "did you mean condense.factor")),
        (["r.yaml", "-o", "pool.9.lr.condense=1"], ("pool.9",)),
        (["r.yaml", "--device", "gpu"], ("'gpu' is not here", "cpu")),
    ],
    ids=str,
)
def test_broken_command(
    condense: Callable[..., str], folder: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    tiny.write(folder / "r.yaml")
    said = condense(*arguments)
    for word in words:
        assert word in said, said


def changed(index: int, value: object, count: int = 9) -> tuple[list[Any], list[Any]]:
    images, labels = rows(count)
    images[index] = value if value is None else cells([value])[0]  # type: ignore[list-item]
    return images, labels


def labelled(*labels: object) -> tuple[list[Any], list[Any]]:
    return cells([png(k) for k in range(len(labels))]), list(labels)


def text_source(root: Path) -> None:
    root.mkdir()
    (root / "notes.txt").write_text("no pictures here")


def no_images(root: Path) -> None:
    features = {"label": datasets.ClassLabel(names=list(CLASSES)), "text": datasets.Value("string")}
    for split in ("train", "test"):
        write_parquet(
            root / "data" / f"{split}-00000-of-00001.parquet", {"label": [0, 1, 2], "text": ["a"] * 3}, features
        )


SOURCES: Mapping[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    "empty folder": (Path.mkdir, "", ("data",)),
    "folder of text": (text_source, "", ("data", "split")),
    "no parquet": (lambda root: root.write_bytes(b"PAR1 no"), "", ("data",)),
    "no image column": (no_images, "", ("no image column", "text")),
    "wrong image column": (parquet_folder, "image_column: picture", ("image_column", "'picture'", "image (images)")),
    "label as image column": (parquet_folder, "image_column: label", ("image_column", "'label'", "not images")),
    "wrong label column": (parquet_folder, "label_column: kind", ("label_column", "'kind'", "label (ClassLabel)")),
    "wrong split": (parquet_folder, "train_split: training", ("train_split", "training", "train")),
    "bad slice": (parquet_folder, "train_split: 'train[5'", ("train_split", "train[5")),
    "empty slice": (parquet_folder, "train_split: 'train[5:5]'", ("train_split", "no rows")),
    "overlap": (parquet_folder, "train_split: train, test_split: 'train[:3]'", ("train", "share 3 rows")),
    "no test split": (lambda r: image_folder(r, {"train": {"a": 2, "b": 2}}), "", ("split to score on", "test_split")),
    "corrupt image": (lambda r: parquet_folder(r, train=changed(4, png(1)[:40])), "", ("row 4", "train")),
    "empty image": (lambda r: parquet_folder(r, train=changed(5, b"")), "", ("row 5", "train")),
    "missing image": (lambda r: parquet_folder(r, test=changed(2, None, 4)), "", ("row 2", "test")),
    "missing label": (lambda r: parquet_folder(r, train=labelled(0, 1, None, 2)), "", ("row 2", "label")),
    "label out of range": (lambda r: parquet_folder(r, train=labelled(0, 1, 2, 3)), "", ("row 3", "3", "0 to 2")),
    "label below range": (lambda r: parquet_folder(r, train=labelled(0, -7, 2, 1)), "", ("row 1", "-7")),
    "class without images": (lambda r: parquet_folder(r, train=labelled(0, 2, 0)), "", ("bee",)),
    "one class": (
        lambda r: parquet_folder(
            r, labelled(0, 0), labelled(0), label=datasets.ClassLabel(names=["only"])
        ), "", ("one class",),
    ),
    "labels are fractions": (
        lambda r: parquet_folder(r, labelled(0.5, 1.0), labelled(0.5), label=datasets.Value("float32")),
        "label_column: label", ("label", "float"),
    ),
    "unknown label in test": (
        lambda r: parquet_folder(r, labelled("x", "y"), labelled("z"), label=datasets.Value("string")), "",
        ("z", "row 0"),
    ),
    "revision of a folder": (parquet_folder, "revision: main", ("revision", "not a dataset of the Hub")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_broken_source(condense: Callable[..., str], folder: Path, kind: str) -> None:
    write, keys, words = SOURCES[kind]
    name = "data.parquet" if kind == "no parquet" else "data"
    write(folder / name)
    section = ", ".join(filter(None, [f"id: ./{name}", "size: 8, channels: 1", keys]))
    tiny.write(folder / "r.yaml", source=f"source: {{{section}}}")
    said = condense("r.yaml")
    assert len(said) < 1000
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('id: "builtin:digitz"', ("builtin:digitz", "builtin:digits")),
        ('id: "torchvision:FashonMNIST"', ("FashonMNIST", "FashionMNIST")),
        ('id: "./nowhere"', ("./nowhere", "nothing is there")),
        ('id: "builtin:digits", config: x', ("config",)),
        ('id: "builtin:digits", label_column: digit', ("digit", "label")),
        ('id: "builtin:digits", test_split: "train[:10%]"', ("train", "share 144 rows")),
    ],
)
def test_source_that_is_not_there(
    condense: Callable[..., str], folder: Path, section: str, words: tuple[str, ...]
) -> None:
    tiny.write(folder / "r.yaml", source=f"source: {{{section}, size: 8, channels: 1}}")
    said = condense("r.yaml")
    for word in words:
        assert word in said, said
