"""One run of the condenser: from a resolved recipe to condensed.safetensors, train.parquet and info.json."""

from __future__ import annotations

import io
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hmdc_hub import __version__, multi_formation
from hmdc_hub.catalog import stored_recipe_text
from hmdc_hub.condenser import checkpoint
from hmdc_hub.condenser.checkpoint import Position
from hmdc_hub.condenser.choice import difficulty, kept
from hmdc_hub.condenser.cost import choose
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.hmdc import HMDC, Size, prefix
from hmdc_hub.condenser.images import SyntheticImages, initial_images
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.condenser.stages import Bank, training
from hmdc_hub.contact_sheet import contact_sheet
from hmdc_hub.errors import OutOfMemoryError
from hmdc_hub.events import Callback, ImageGrid, Note, Stage, StopFlag, silent
from hmdc_hub.execution import Execution, settings
from hmdc_hub.models import PoolModel, build_for, parameter_count
from hmdc_hub.provenance import device_name, peak_resident_bytes, versions
from hmdc_hub.schema import ArtifactInfo, Recipe, SetHeader
from hmdc_hub.sources import Source
from hmdc_hub.store.condensed import read_classes, write_classes
from hmdc_hub.store.files import TEMPORARY, read_info, sha256_file, write_json_atomic, write_text_atomic
from hmdc_hub.store.parquet import to_uint8, write_parquet_parts
from hmdc_hub.store.rundir import Journal, RunDir
from hmdc_hub.text import count, first_line

GRID = 20, 10  # classes and images of each that a picture shows at most


def condense(
    recipe: Recipe,
    source: Source,
    run: RunDir,
    *,
    device: torch.device,
    ranks: Ranks | None = None,
    callback: Callback = silent,
    stop: StopFlag | None = None,
    image_grids: bool = False,
) -> list[ArtifactInfo]:
    """Condense a source, going on from the newest checkpoint of the same recipe in the run directory if there is one.

    The directory exists, one for all ranks; info.json, whose contents are returned, is written last: a run that has it
    is complete. Where `condense.ipc` is a list, each size has its recipe and its results in a directory of its own
    (`RunDir.of_size`), and info.json of each is returned, in order. Where any rank was asked to `stop`, it is after an
    image step, with a checkpoint of exactly this step.
    With `image_grids`, alike in all ranks, `callback` gets an `ImageGrid` at every network reset and at the end.
    """
    session = _Session(recipe, source, run, device, ranks or Ranks(), callback, stop or StopFlag(), image_grids)
    try:
        with settings(device):
            session.begin()
            session.fill_bank()
            session.loop()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{device} has too little memory for this recipe: {first_line(error)}",
            hint="Lower condense.batch (-o condense.batch=64) or take a smaller pool; --resume goes on where it was.",
        ) from error
    return session.finish()


def make_initialisation(recipe: Recipe, source: Source, run: RunDir, *, device: torch.device) -> None:
    """Make initialisation.safetensors alone, which packages leave out and which may be damaged.

    Nothing else in the run directory is read or changed.
    """
    apart = RunDir(run.path / f".start{TEMPORARY}")  # where no checkpoint says that they are long past
    shutil.rmtree(apart.path, ignore_errors=True)
    apart.path.mkdir(parents=True)
    session = _Session(recipe, source, apart, device, Ranks(), silent, StopFlag())
    try:
        with settings(device):
            session.begin()
        apart.initialisation.replace(run.initialisation)
    finally:
        shutil.rmtree(apart.path, ignore_errors=True)


@dataclass
class _Session:
    """What `condense` holds while it runs."""

    recipe: Recipe
    source: Source
    run: RunDir
    device: torch.device
    ranks: Ranks
    callback: Callback
    stop: StopFlag
    image_grids: bool = False
    hmdc: HMDC = field(init=False)

    def __post_init__(self) -> None:
        self.writes, self.hash = self.ranks.index == 0, self.recipe.condense_hash()
        sizes, several = self.recipe.of_sizes(), isinstance(self.recipe.condense.ipc, list)
        # Of each size, what makes it alone, and where its files are.
        self.sets = [(one, self.run.of_size(one.condense.size) if several else self.run) for one in sizes]
        self.earlier_seconds, self.began = 0.0, time.monotonic()
        self.total = self.recipe.condense.resets * self.recipe.condense.networks.reset_every
        self.journal = Journal(self.run.log, self.callback, writes=self.writes)

    def begin(self) -> None:
        """Build everything and go to the newest checkpoint, or make the initialisation."""
        spec = self.recipe.condense
        found = checkpoint.newest(self.run.checkpoints, self.hash, self.ranks, self.callback)
        models = [build_for(model, self.source).to(self.device) for model in self.recipe.pool]
        real = RealImages(self.source, spec, self.recipe.seed, self.device)
        networks = ModelPool(models, real, self.ranks)
        at_once = choose(networks)
        if self.device.type == "cpu":  # where it decides who owns which class: the first rank's choice counts
            told = torch.tensor([float(at_once.classes), float(at_once.images or 0)]) * float(self.writes)
            classes, few = (int(number) for number in self.ranks.together(told))
            at_once = replace(at_once, classes=classes, images=few or None)
        if at_once.why:
            self.callback(Note(at_once.why))
        block = at_once.block(self.device)
        own = [label for label in range(real.classes) if self.ranks.owner(label, block) == self.ranks.index]
        if spec.difficulty.keep < 1:
            self._observe(models, real)
            real.kept = kept(real, difficulty(real, models))
        if found is None:
            each = " and ".join(str(spec.factor**2 * ipc) for ipc in spec.sizes)
            self.callback(Stage("initialisation", f"{spec.initialisation}, {each} images per class"))
            if spec.initialisation != "mosaic":
                networks.reset(0)
            elif real.kept is None:  # otherwise it has been trained already
                self._observe(models[:1], real)
        images = []
        for ipc in spec.sizes:
            if found is None:
                shape = (0, ipc, self.source.train.channels, real.side, real.side)
                first = models[0] if spec.initialisation == "mosaic" else networks.networks[0]
                chosen = [initial_images(real, first, label, ipc) for label in own]
                pixels = torch.stack(chosen) if chosen else torch.empty(shape)
            else:
                pixels = found.rows(f"{prefix(spec, ipc)}images", own)
            images.append(SyntheticImages(own, pixels.to(self.device), self.source, spec.images))
        self.hmdc = HMDC(networks, images, at_once, Execution(self.device, self.callback))
        if found is None:
            for size, (recipe, run) in zip(self.hmdc.sizes, self.sets, strict=True):
                if size.prefix and self.writes:
                    run.path.mkdir(exist_ok=True)
                    write_text_atomic(run.recipe, stored_recipe_text(recipe))
                self._write_set(size, recipe, run.initialisation)
            self.journal.truncate(0)
        else:
            self.hmdc.load_state(found)
            self.earlier_seconds = found.position.seconds
            self.journal.truncate(self.done)
            self.callback(Stage("resume", f"image step {self.done} of {self.total}"))

    def fill_bank(self) -> None:
        """Let networks begin from the bank, and train what of it is not there.

        Not before: the initialisation, which an evaluation may make again, is as without.
        """
        if not self.recipe.condense.networks.bank.num_models:
            return
        networks = self.hmdc.networks
        networks.bank = Bank(self.recipe, networks.real, self.run.checkpoints, self.callback, self.stop, self.ranks)
        if self.done < self.total:
            self.began += networks.bank.fill()  # its time is counted apart

    def _observe(self, models: Sequence[PoolModel], real: RealImages) -> None:
        """Train networks that judge real images; a resumed run does it again, and sees the same."""
        epochs = self.recipe.condense.observer_epochs
        for model in models:
            self.callback(Stage("observer", f"{model.spec.name}, {count(epochs, 'epoch')} on the source"))
            for _ in training(model, real, epochs=epochs, seed=self.recipe.seed, callback=self.callback):
                if self.ranks.count == 1:  # several stop together, at an image step
                    self.stop.raise_if_set("stopped before the first image step; nothing was written")

    @property
    def done(self) -> int:
        """Image steps done."""
        return self.hmdc.outer * self.recipe.condense.networks.reset_every + self.hmdc.inner

    def loop(self) -> None:
        """Make image steps until the last; a checkpoint after every outer iteration and where a stop was asked for."""
        self.callback(Stage("condense", f"{self.total} image steps"))
        try:
            self._raise_if_stopped()
            if self.done == 0:
                self._show()
            for step in self.hmdc.run():
                self.journal.add(step, self.hmdc.seconds)
                if self.hmdc.inner == 0:
                    self.journal.flush()
                    self._checkpoint()
                    self._show()
                self._raise_if_stopped()
        finally:
            self.journal.flush()

    def finish(self) -> list[ArtifactInfo]:
        """Write the results; of each size info.json comes last."""
        for size, (recipe, run) in zip(self.hmdc.sizes, self.sets, strict=True):
            self._write_set(size, recipe, run.condensed)
            clamped = self.ranks.together(size.images.clamped().sum().cpu()[None]) / self.source.train.num_classes
            if self.writes:
                training = write_parquet_parts(run.parquet, self._decoded(run), self.source.info.class_names)
                write_json_atomic(run.info, self._info(recipe, run, training, float(clamped)))
        self.ranks.any(False)  # nobody goes on before the files are there
        return [read_info(run.info) for _, run in self.sets]

    def _decoded(self, run: RunDir) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode what was written, class by class, so that whoever decodes the file gets the same pixels."""
        for label, images in enumerate(read_classes(run.condensed)):
            found = to_uint8(multi_formation.decode(images, self.recipe.condense.factor))
            yield found, torch.full((len(found),), label)

    def _raise_if_stopped(self) -> None:
        if self.done < self.total and self.ranks.any(self.stop.signal_number > 0):
            self._checkpoint()
            number = self.stop.signal_number or signal.SIGTERM  # another rank was asked
            message = f"stopped after image step {self.done} of {self.total}; a checkpoint was written"
            StopFlag(number).raise_if_set(message)

    def _checkpoint(self) -> None:
        position = Position(self.hmdc.outer, self.hmdc.inner, self._seconds())
        checkpoint.save(self.run.checkpoints, self.hmdc.state(), position, self.hash, self.ranks)

    def _show(self) -> None:
        """Tell the callback what the synthetic images look like, if it wants to know: a row for each class."""
        if not self.image_grids:
            return
        # Where there are several sizes, of the largest: whoever is shown has room for one.
        size = max(self.hmdc.sizes, key=lambda size: size.ipc)
        classes = self._classes(size)
        shown = [images[: GRID[1]] for _, images in zip(range(GRID[0]), classes, strict=False)]
        deque(classes, maxlen=0)
        if self.writes:
            file = io.BytesIO()
            contact_sheet(to_uint8(torch.cat(shown)), len(shown[0]), gap=1).save(file, format="PNG")
            caption = f"synthetic images after {self.done} of {self.total} image steps"
            self.callback(ImageGrid(file.getvalue(), caption))

    def _classes(self, size: Size) -> Iterator[Tensor]:
        """Give the first rank the synthetic images, mapped to [0, 1], class by class; all ranks go through this."""
        return (self.source.denormalise(one)[0] for one in self.hmdc.all_rows(size.images.condensed))

    def _write_set(self, size: Size, recipe: Recipe, path: Path) -> None:
        info, train = self.source.info, self.source.train
        if not self.writes:
            deque(self._classes(size), maxlen=0)
            return
        header = SetHeader(
            name=recipe.name,
            ipc=size.ipc,
            factor=recipe.condense.factor,
            class_names=list(info.class_names),
            mean=info.mean,
            std=info.std,
            condense_hash=recipe.condense_hash(),
        )
        write_classes(path, self._classes(size), (train.channels, train.side, train.side), header)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    def _info(self, recipe: Recipe, run: RunDir, training: int, clamped: float) -> ArtifactInfo:
        on_gpu, models = self.device.type == "cuda", self.hmdc.networks.models
        return ArtifactInfo(
            hmdc_hub_version=__version__,
            recipe_name=recipe.name,
            condense_hash=recipe.condense_hash(),
            protocol_hash=recipe.protocol_hash(),
            seed=recipe.seed,
            source=self.source.info,
            models=list(recipe.pool),
            parameters={net.spec.name: parameter_count(net) for net in models},
            versions=versions({model.source for model in recipe.pool}),
            device=device_name(self.device),
            threads=torch.get_num_threads() if self.device.type == "cpu" else 1,
            tf32=on_gpu and torch.cuda.get_device_capability(self.device)[0] >= 8,  # `settings` asks for it
            memory="fast" if self.hmdc.at_once.images is None else "low",
            seconds=round(self._seconds(), 1),
            bank_seconds=None if self.hmdc.networks.bank is None else self.hmdc.networks.bank.seconds(),
            image_steps=self.total,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_resident_bytes(),
            clamped_share=clamped,
            ipc=recipe.condense.size,
            factor=recipe.condense.factor,
            synthetic_images=self.source.train.num_classes * recipe.condense.size,
            training_images=training,
            tensors_sha256=sha256_file(run.condensed),
            parquet_sha256=sha256_file(run.parquet),
        )
