"""The evaluation loop as research code has it, for `benchmarks/evaluate.py` to compare with.

A DataLoader over PIL images with torchvision's transforms for each image, torch's SGD as it comes, CutMix by batch, a
second DataLoader for the test split. Networks and their first weights are the evaluator's. What can be done in several
ways is done in the quickest: images are decoded before the clock runs, shapes are changed as PIL images (as tensors
that takes three times as long), colours by one line of tensor code (ColorJitter takes more than twice as long), and
each model is built once for all its trainings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hmdc_hub import rng
from hmdc_hub.augment import MAX_DEGREES, MAX_SCALE, MAX_SHIFT
from hmdc_hub.evaluator import TrainingSet
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.schema import AugmentSpec, Cell, EvaluateSpec, ModelSpec
from hmdc_hub.sources import Source

# torchvision is imported in functions: the evaluator's processes import this module too, and need not wait for it.

HABIT = 10
"""Epochs from one look at the test split to the next, where somebody has that habit."""

TEST_BATCH = 256
Transform = Callable[[Any], Any]
Loader = DataLoader[tuple[Tensor, Tensor]]


class Pictures(Dataset[tuple[Tensor, int]]):
    """PIL images and their labels, each image transformed anew whenever it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Transform) -> None:
        arrays = images.permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(a[:, :, 0] if a.shape[2] == 1 else a) for a in arrays]
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def one_of(transforms: Sequence[Transform], image: Any) -> Any:
    return transforms[int(torch.randint(len(transforms), ()))](image)


def brightness(x: Tensor) -> Tensor:
    return x + (torch.rand(()) - 0.5)


def saturation(x: Tensor) -> Tensor:
    grey = x.mean(0, keepdim=True)
    return (x - grey) * (2 * torch.rand(())) + grey


def contrast(x: Tensor) -> Tensor:
    mean = x.mean()
    return (x - mean) * (0.5 + torch.rand(())) + mean


def cutout(x: Tensor) -> Tensor:
    side = x.shape[-1]
    half = side // 4
    row, column = torch.randint(side + 1, (2,)).tolist()
    x[:, max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0
    return x


def training_transform(spec: AugmentSpec, source: Source) -> Transform:
    """Say the augmentation with torchvision's transforms; shapes come before colours, not after them."""
    from torchvision import transforms

    side, channels = source.train.side, source.train.channels
    mean = tuple(round(255 * value) for value in source.info.mean)
    fill = mean[0] if channels == 1 else mean
    smooth = {"interpolation": transforms.InterpolationMode.BILINEAR, "fill": fill}
    shapes = {
        "crop": transforms.RandomCrop(side, padding=int(side * MAX_SHIFT + 0.5), fill=fill),
        "scale": transforms.RandomAffine(0, scale=(1 / MAX_SCALE, MAX_SCALE), **smooth),
        "rotate": transforms.RandomRotation(MAX_DEGREES, **smooth),
    }
    chosen = [shape for name, shape in shapes.items() if getattr(spec, name)]
    colours = {"brightness": brightness, "saturation": saturation, "contrast": contrast}
    steps: list[Transform] = [transforms.RandomHorizontalFlip()] if spec.flip else []
    steps += [partial(one_of, chosen)] if chosen else []
    steps += [transforms.ToTensor(), transforms.Normalize(source.info.mean, source.info.std)]
    steps += [colours[name] for name in spec.color if channels == 3 or name != "saturation"]
    whole: Transform = transforms.Compose([*steps, cutout] if spec.cutout else steps)
    return whole


def testing_transform(source: Source) -> Transform:
    from torchvision import transforms

    whole: Transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(source.info.mean, source.info.std)]
    )
    return whole


def cutmix(images: Tensor) -> tuple[Tensor, Tensor, float]:
    """Paste a box of other images; gives the batch, which images the box is of, and the share that stays."""
    side, lam = images.shape[-1], float(torch.rand(()))
    half = int(side * (1 - lam) ** 0.5) // 2
    row, column = torch.randint(side, (2,)).tolist()
    top, bottom = max(row - half, 0), min(row + half, side)
    left, right = max(column - half, 0), min(column + half, side)
    others = torch.randperm(len(images))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
    return mixed, others, 1 - (bottom - top) * (right - left) / side**2


@dataclass(frozen=True)
class Loop:
    """Trains one model on several sets.

    Attributes:
        protocol: Epochs, batch, SGD, augmentation, CutMix; everything else of it is at its default.
        workers: Of the DataLoaders.
    """

    protocol: EvaluateSpec
    source: Source
    device: torch.device
    workers: int

    def run(
        self, spec: ModelSpec, sets: Sequence[TrainingSet], seeds: int, threads: int
    ) -> tuple[float, float, list[Cell]]:
        """Run every training of a model; seconds without looks before the end and with them, and accuracies."""
        transform = training_transform(self.protocol.augment, self.source)
        train = [Pictures(made.images, made.labels, transform) for made in sets]
        test = Pictures(self.source.test_images, self.source.test_labels, testing_transform(self.source))
        cells, looking, before = [], 0.0, torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            began = time.perf_counter()
            model = build_for(spec, self.source).to(self.device)
            loader = self._loader(test, TEST_BATCH, shuffle=False)
            for made, pictures in zip(sets, train, strict=True):
                for seed in range(seeds):
                    with rng.global_seed(rng.generator(seed, "plain-loop", spec.name, made.name, made.draw)):
                        accuracy, looks = self._train(model, pictures, loader, seed)
                    looking += looks
                    key: dict[str, Any] = {"model": spec.name, "training_set": made.name, "draw": made.draw}
                    cells.append(Cell(**key, seed=seed, accuracy=accuracy, ece=0))
            seconds = time.perf_counter() - began
        finally:
            torch.set_num_threads(before)
        return seconds - looking, seconds, cells

    def _train(self, model: PoolModel, train: Pictures, test: Loader, seed: int) -> tuple[float, float]:
        protocol, looking = self.protocol, 0.0
        model.reset(rng.generator(protocol.seed, "evaluate-weights", model.spec.name, seed))
        rate, momentum, decay = model.spec.lr.evaluate, protocol.momentum, protocol.weight_decay
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay)
        probability = protocol.cutmix.probability if protocol.cutmix.evaluate and model.spec.cutmix else 0.0
        loader = self._loader(train, protocol.batch, shuffle=True)
        for epoch in range(1, protocol.epochs + 1):
            model.train()
            for images, labels in loader:
                images, labels = self._moved(images), self._moved(labels)
                if torch.rand(()) < probability:
                    images, others, lam = cutmix(images)
                    logits = model.logits(model.prepare(images))
                    loss = lam * F.cross_entropy(logits, labels) + (1 - lam) * F.cross_entropy(logits, labels[others])
                else:
                    loss = F.cross_entropy(model.logits(model.prepare(images)), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if epoch % HABIT == 0 and epoch < protocol.epochs:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # else the look is charged with steps that are under way
                began = time.perf_counter()
                self._look(model, test)
                looking += time.perf_counter() - began
        return self._look(model, test), looking

    def _look(self, model: PoolModel, test: Loader) -> float:
        model.eval()
        right, count = torch.zeros((), dtype=torch.int64, device=self.device), 0
        with torch.no_grad():
            for images, labels in test:
                found = model.logits(model.prepare(self._moved(images))).argmax(1)
                right += (found == self._moved(labels)).sum()
                count += len(labels)
        return int(right) / count

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _loader(self, pictures: Pictures, batch: int, *, shuffle: bool) -> Loader:
        pin, keep = self.device.type == "cuda", self.workers > 0
        keys: dict[str, Any] = {"num_workers": self.workers, "pin_memory": pin, "persistent_workers": keep}
        return DataLoader[Any](pictures, batch, shuffle=shuffle, **keys)
