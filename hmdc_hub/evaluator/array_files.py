"""Arrays in files that older programs wrote: which belong together, and the lines of Python that convert them.

Nothing here opens such a file, as many of them can hold a pickle; of a .npz file, a zip archive, the names are listed.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmdc_hub.errors import UsageError

IMAGES = frozenset(("images", "image", "imgs", "img", "data", "x"))
LABELS = frozenset(("labels", "label", "targets", "target", "y"))
TEST = frozenset(("test", "t10k", "val", "valid", "validation", "eval"))

_READ = {
    ".npy": "np.load({file})",
    ".npz": "np.load({file})[{key}]",
    ".pt": "torch.load({file}, weights_only=True)",
    ".pth": "torch.load({file}, weights_only=True)",
    ".pkl": "pickle.load(open({file}, 'rb'))",
    ".pickle": "pickle.load(open({file}, 'rb'))",
}
_IDX = re.compile(r"[-.]idx[13][-.]ubyte(\.gz)?$")
_READ_IDX = (
    "idx = lambda file: (lambda raw: np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(np.frombuffer(raw, "
    "'>i4', raw[3], 4)))((gzip.open if file.endswith('.gz') else open)(file, 'rb').read())"
)


@dataclass(frozen=True)
class ArrayPair:
    """Images and their labels.

    Attributes:
        split: What the names say they are for.
        images: Python that reads the images as an array; `labels` likewise.
    """

    split: Literal["train", "test"]
    images: str
    labels: str


def find_pairs(path: Path) -> list[ArrayPair]:
    """Find the arrays that belong together: in a .npz file, beside the file that is named, or in a folder.

    `images.pt` goes with `labels.pt`, `x_train.npy` with `y_train.npy`, `train-images-idx3-ubyte` with
    `train-labels-idx1-ubyte`.
    """
    if path.is_dir():
        files = sorted([*path.glob("*"), *path.glob("*/*")])
        found = [pair for file in files if file.suffix.lower() == ".npz" for pair in find_pairs(file)]
        return found + _paired((str(file), _reading(file)) for file in files if file.suffix.lower() != ".npz")
    if path.suffix.lower() == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                keys = [name.removesuffix(".npy") for name in archive.namelist()]
        except (OSError, zipfile.BadZipFile):
            return []
        return _paired((key, _reading(path, key)) for key in keys)
    beside = [file for file in sorted(path.parent.glob("*")) if file.suffix.lower() == path.suffix.lower()]
    return [pair for pair in _paired((str(file), _reading(file)) for file in beside) if repr(str(path)) in str(pair)]


def class_folder_lines(pairs: Iterable[ArrayPair], folder: str) -> list[str]:
    """Write Python that makes a folder of images per class of them.

    Args:
        pairs: Arrays N x H x W, N x H x W x channels or N x channels x H x W, bytes or floats from 0 to 1.
        folder: Where to.
    """
    lines = [f"    ({pair.split!r}, {pair.images}, {pair.labels})," for pair in pairs]
    return [
        *_imports("\n".join(lines), "from pathlib import Path", "from PIL import Image"),
        "for split, x, y in [",
        *lines,
        "]:",
        "    x = x.transpose(0, 2, 3, 1) if x.ndim == 4 and x.shape[1] in (1, 3) else x",
        "    x = (255 * x).round() if x.dtype.kind == 'f' else x",
        "    assert 0 <= x.min() and x.max() <= 255, 'these are no pixels: undo their normalisation first'",
        "    for k, (image, label) in enumerate(zip(x.astype(np.uint8), y.reshape(-1))):",
        f"        place = Path({folder!r}, split, str(label))",
        "        place.mkdir(parents=True, exist_ok=True)",
        "        Image.fromarray(image.squeeze()).save(place / f'{k}.png')",
    ]


def refuse_pickle(path: Path) -> None:
    """Refuse files whose readers run code, or may, by their suffix; others pass.

    Raises:
        UsageError: It is one; the hint has the lines of Python that convert it, with the file of the labels beside it.
    """
    suffix = path.suffix.lower()
    if suffix not in _READ:
        return
    pairs = find_pairs(path)
    if pairs:
        both = f"({pairs[0].images}, {pairs[0].labels})"
    elif suffix == ".npz":
        both = f"[np.load({str(path)!r})[key] for key in ('images', 'labels')]"
    else:
        read = _READ[suffix].format(file=repr(str(path)))
        both = f"({read}, np.load('labels.npy'))" if suffix == ".npy" else read
    first = "; ".join(
        [*_imports(both, "import torch, safetensors.torch"), f"images, labels = map(torch.as_tensor, {both})"]
    )
    saved = str(path.with_suffix(".safetensors"))
    raise UsageError(
        f"{path} is not read: a {path.suffix} file can hold a pickle, and to open one can run any program.",
        hint="If you trust it, convert it; where it names or nests images and labels otherwise, adapt the first "
        f"line:\n  {first}\n"
        '  safetensors.torch.save_file({"images": images.contiguous(), "labels": labels.contiguous()}, '
        f"{saved!r})",
    )


def _imports(text: str, *more: str) -> list[str]:
    """Write the imports that some Python needs, with the function `idx` if it calls it."""
    idx = [_READ_IDX] if "idx(" in text else []
    names = [name for name in ("gzip", "pickle", "torch") if f"{name}." in text + "".join(idx)]
    return [f"import {', '.join([*names, 'numpy as np'])}", *more, *idx]


def _reading(file: Path, key: str = "") -> str | None:
    if _IDX.search(file.name):
        return f"idx({str(file)!r})"
    form = _READ.get(file.suffix.lower())
    return None if form is None else f"np.asarray({form.format(file=repr(str(file)), key=repr(key))})"


def _paired(named: Iterable[tuple[str, str | None]]) -> list[ArrayPair]:
    """Pair what is called alike but for the word that says images or labels."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name, reading in named:
        if reading is None:
            continue
        folder, _, last = _IDX.sub(".idx", name.lower()).rpartition("/")
        words = re.split(r"[^a-z0-9]+", last)
        role = "labels" if LABELS & set(words) else "images" if IMAGES & set(words) else None
        if role is not None:
            rest = (folder, *(word for word in words if word not in IMAGES | LABELS))
            found.setdefault(rest, {}).setdefault(role, reading)
    return [
        ArrayPair("test" if TEST & set(rest) else "train", pair["images"], pair["labels"])
        for rest, pair in found.items()
        if len(pair) == 2
    ]
