"""What `hmdc_hub.load` does: a condensed set from a run, a package or the Hub, ready to train on."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hmdc_hub import multi_formation
from hmdc_hub.contact_sheet import contact_sheet
from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.schema import SetHeader, is_hub_id
from hmdc_hub.store.condensed import read_condensed, training_shape
from hmdc_hub.store.configs import check_name, choose, read_card, read_card_text, refuse_links
from hmdc_hub.store.files import read_info, sha256_file
from hmdc_hub.store.parquet import png_bytes, to_uint8
from hmdc_hub.store.rundir import RunDir

if TYPE_CHECKING:
    import datasets


_SHOWN, _TILE = 8, 24  # most classes and images of each in a notebook, and their pixels: a few KB


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images float32 M x ch x H x W with labels int64 M, as a torch dataset; a slice gives a batch of both."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]: ...

    def __getitem__(self, index: Any) -> tuple[Tensor, int | Tensor]:
        labels = self.labels[index]
        return self.images[index], labels if labels.ndim else int(labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {' x '.join(map(str, self.images.shape[1:]))})"


class CondensedDataset(ImageDataset):
    """A condensed set with exact floats, as a torch dataset of its training images: (float32 ch x H x W, int).

    The training images are cut out of the synthetic images and enlarged when one is first asked for. They are those of
    the published parquet before rounding to 8 bits, in the same order. A slice, or several indices, give a batch:
    images and labels as tensors.

    Attributes:
        synthetic_images: float32 N x ch x H x W in [0, 1], class by class, as optimised: each holds factor x factor
            training images (multi-formation, as in IDC).
        labels: int64 M, the label of each training image; M = N x factor x factor.
        class_names: Name of each class, by label.
        ipc: Synthetic images per class.
        factor: Training images along each side of a synthetic image.
        mean: Channel means of the source, float32 ch, pixels in [0, 1].
        std: Channel standard deviations of the source, float32 ch.
        header: The same as the file has it, with the name of the set and its condense hash.

    Example:
        >>> train = hmdc_hub.load("someone/cifar10-hmdc", "ipc1")
        >>> loader = DataLoader(train.normalised(), batch_size=128, shuffle=True)
    """

    def __init__(self, synthetic_images: Tensor, header: SetHeader) -> None:
        self.synthetic_images, self.header = synthetic_images, header
        self.class_names, self.ipc, self.factor = header.class_names, header.ipc, header.factor
        self.mean, self.std = torch.tensor(header.mean), torch.tensor(header.std)
        self.labels = torch.arange(len(self.class_names)).repeat_interleave(self.ipc * self.factor**2)

    @cached_property
    def images(self) -> Tensor:  # type: ignore[override]  # decoded when they are first asked for
        """The training images: float32 M x ch x H x W in [0, 1]."""
        stored = self.synthetic_images.reshape(len(self.class_names), self.ipc, *self.synthetic_images.shape[1:])
        return multi_formation.decode(stored, self.factor).flatten(0, 1)

    def normalised(self) -> ImageDataset:
        """Subtract the source's mean from the training images and divide by its standard deviation, per channel."""
        return ImageDataset((self.images - self.mean[:, None, None]) / self.std[:, None, None], self.labels)

    def to_dataset(self) -> datasets.Dataset:
        """Make a `datasets.Dataset` of the training images: 8-bit `image`, `label` with the names of the classes."""
        import datasets

        pixels = to_uint8(self.images).permute(0, 2, 3, 1).contiguous().numpy()
        names = datasets.ClassLabel(names=self.class_names)
        return datasets.Dataset.from_dict(
            {"image": [{"bytes": png_bytes(image), "path": None} for image in pixels], "label": self.labels.tolist()},
            features=datasets.Features({"image": datasets.Image(), "label": names}),
            split=datasets.Split.TRAIN,
        )

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.synthetic_images.shape[1:]))
        return (
            f"CondensedDataset({self.header.name!r}, {len(self.class_names)} classes, {self.ipc} synthetic = "
            f"{self.ipc * self.factor**2} training images per class, {shape})"
        )

    def _repr_html_(self) -> str:
        """Show some training images in a notebook, a row per class."""
        rows = self.images.reshape(len(self.class_names), -1, *self.images.shape[1:])[:_SHOWN, :_SHOWN]
        picture = contact_sheet(to_uint8(rows.flatten(0, 1)), rows.shape[1], gap=0)
        buffer = io.BytesIO()
        picture.resize((rows.shape[1] * _TILE, rows.shape[0] * _TILE)).save(buffer, format="JPEG", quality=60)
        data = base64.b64encode(buffer.getvalue()).decode()
        size = f'width="{2 * picture.width * _TILE // rows.shape[-1]}"'
        return f'<p>{html.escape(repr(self))}</p><img {size} src="data:image/jpeg;base64,{data}">'


def load(source: str | os.PathLike[str], config: str | None = None, revision: str | None = None) -> CondensedDataset:
    """Load a condensed set and check it against its hash.

    Args:
        source: A run directory, a package folder, one configuration's folder in it, or a Hub dataset id such as
            `someone/cifar10-hmdc`. A path that exists wins over a Hub id.
        config: Which configuration of a package or size of a run, such as `ipc10`; None: the only one, or the default
            one.
        revision: Branch, tag or commit of a Hub dataset; None: the main branch.

    Raises:
        NotFoundError: There is no such folder, dataset, configuration or revision, or no access to it.
        UsageError: The package has several configurations and no default one.
        FormatError: The files are damaged or of a newer format version.
        NetworkError: The Hub cannot be reached.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise UsageError(f"{path} is a folder here: revision {revision!r} belongs to Hub datasets.")
        return _from_folder(_config_folder(path, config))
    if isinstance(source, str) and is_hub_id(source):
        from hmdc_hub.store.hub import download  # late: huggingface_hub is slow to import

        return _from_folder(download(source, config, revision))
    raise NotFoundError(
        f"There is no folder {str(source)!r}.",
        hint="Give a run directory, a package folder, or a Hub dataset id such as someone/cifar10-hmdc.",
    )


_UNFINISHED = "An unfinished run goes on with `hmdc-hub condense` and its recipe."


def _config_folder(path: Path, config: str | None) -> Path:
    """Find the folder with condensed.safetensors in a run, a package or a configuration's folder."""
    if path.is_file():
        path = path.parent
    if (path / "condensed.safetensors").is_file():
        if config is not None and config != path.name:
            raise UsageError(f"{path} is one condensed set, without configurations such as {config!r}.")
        return path
    if config is not None:
        check_name(config)
    run = RunDir(path)
    if run.sizes != [run]:
        sets = run.sets()
        place = sets[choose(list(sets), next(iter(sets)), config, str(path))]
        if not place.info.is_file():
            raise NotFoundError(f"{path} holds no condensed set.", hint=_UNFINISHED)
        return place.path
    found = sorted(folder.parent.name for folder in path.glob("*/condensed.safetensors"))
    if not found:
        raise NotFoundError(f"{path} holds no condensed set.", hint=_UNFINISHED)
    card = path / "README.md"
    _, default = read_card(read_card_text(card)) if card.is_file() else ([], None)
    return path / choose(found, default, config, str(path))


def _from_folder(folder: Path) -> CondensedDataset:
    if (folder / "manifest.json").is_file():
        refuse_links(folder.parent, [folder.name])
    info, path = read_info(folder / "info.json"), folder / "condensed.safetensors"
    training_shape(info, path)
    if sha256_file(path) != info.tensors_sha256:
        raise FormatError(
            f"{path} is damaged: its SHA-256 is not the one that info.json names.", hint="Download or copy it again."
        )
    images, _, header = read_condensed(path)
    return CondensedDataset(images, header)
