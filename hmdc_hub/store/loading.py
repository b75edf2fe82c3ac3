"""What `hmdc_hub.load` does: a condensed set from a run, a package or the Hub, ready to train on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hmdc_hub import pack
from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.schema import SetHeader
from hmdc_hub.store.condensed import read_condensed, training_shape
from hmdc_hub.store.configs import check_name, choose, read_card, read_card_text
from hmdc_hub.store.files import read_info, sha256_file
from hmdc_hub.store.links import refuse_links

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


class DecodedSet(Dataset[tuple[Tensor, int]]):
    """Training images with labels, as a torch dataset.

    Attributes:
        images: float32 M x ch x H x W.
        labels: int64 M.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True, eq=False)
class CondensedSet:
    """A condensed set with exact floats.

    Attributes:
        images: float32 N x ch x H x W in [0, 1], in stored form: each holds factor x factor training images.
        labels: int64 N, class by class.
        header: Name, images per class, factor, class names, mean and std.

    Example:
        >>> condensed = hmdc_hub.load("runs/digits_ipc1")
        >>> loader = DataLoader(condensed.decoded(), batch_size=128, shuffle=True)
    """

    images: Tensor
    labels: Tensor
    header: SetHeader

    @property
    def class_names(self) -> list[str]:
        """Name of each class, by label."""
        return self.header.class_names

    @property
    def mean(self) -> Tensor:
        """Channel means of the source, float32 ch, pixels in [0, 1]."""
        return torch.tensor(self.header.mean)

    @property
    def std(self) -> Tensor:
        """Channel standard deviations of the source, float32 ch."""
        return torch.tensor(self.header.std)

    def decoded(self) -> DecodedSet:
        """Cut the stored images into the training images: float32 ch x H x W in [0, 1], int label.

        These are the images of the published parquet before rounding to 8 bits, in the same order.
        """
        classes, ipc = len(self.header.class_names), self.header.ipc
        stored = self.images.reshape(classes, ipc, *self.images.shape[1:])
        images = pack.decode(stored, self.header.factor)
        labels = torch.arange(classes).repeat_interleave(images.shape[1])
        return DecodedSet(images.flatten(0, 1), labels)

    def normalised(self) -> DecodedSet:
        """Decode, then subtract the source's mean and divide by its standard deviation, per channel."""
        decoded = self.decoded()
        return DecodedSet((decoded.images - self.mean[:, None, None]) / self.std[:, None, None], decoded.labels)


def load(source: str | Path, config: str | None = None, revision: str | None = None) -> CondensedSet:
    """Load a condensed set and check it against its hash.

    Args:
        source: A run directory, a package folder, one configuration's folder in it, or a Hub dataset id such as
            `someone/cifar10-hmdc`. A path that exists wins over a Hub id.
        config: Which configuration of a package, such as `ipc10`; None: the only one, or the default one.
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
    if isinstance(source, str) and HUB_ID.match(source):
        from hmdc_hub.store.download import download  # late: huggingface_hub is slow to import

        return _from_folder(download(source, config, revision))
    raise NotFoundError(
        f"There is no folder {str(source)!r}.",
        hint="Give a run directory, a package folder, or a Hub dataset id such as someone/cifar10-hmdc.",
    )


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
    found = sorted(folder.parent.name for folder in path.glob("*/condensed.safetensors"))
    if not found:
        raise NotFoundError(
            f"{path} holds no condensed set.",
            hint="An unfinished run goes on with `hmdc-hub condense` and its recipe.",
        )
    card = path / "README.md"
    _, default = read_card(read_card_text(card)) if card.is_file() else ([], None)
    return path / choose(found, default, config, str(path))


def _from_folder(folder: Path) -> CondensedSet:
    if (folder / "manifest.json").is_file():
        refuse_links(folder.parent, [folder.name])
    info = read_info(folder / "info.json")
    path = folder / "condensed.safetensors"
    training_shape(info, path)
    if sha256_file(path) != info.tensors_sha256:
        raise FormatError(
            f"{path} is damaged: its SHA-256 is not the one that info.json names.",
            hint="Download or copy it again.",
        )
    return CondensedSet(*read_condensed(path))
