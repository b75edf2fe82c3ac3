"""One run of the condenser: from a resolved recipe to condensed.safetensors, train.parquet and info.json."""

from __future__ import annotations

import io
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hmdc_hub import __version__, multi_formation
from hmdc_hub.condenser import checkpoint
from hmdc_hub.condenser.checkpoint import Position
from hmdc_hub.condenser.data import RealImages, SyntheticImages
from hmdc_hub.condenser.hmdc import HMDC, block_of
from hmdc_hub.condenser.memory import AtOnce, choose
from hmdc_hub.condenser.pool import ModelPool
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.contact_sheet import contact_sheet
from hmdc_hub.errors import OutOfMemoryError
from hmdc_hub.events import Callback, ImageGrid, Note, Stage, StopFlag, silent
from hmdc_hub.execution import Execution, settings
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.provenance import device_name, peak_resident_bytes, versions
from hmdc_hub.schema import ArtifactInfo, Recipe, SetHeader
from hmdc_hub.sources import Source
from hmdc_hub.store.condensed import read_classes, write_classes
from hmdc_hub.store.files import TEMPORARY, read_info, sha256_file, write_json_atomic
from hmdc_hub.store.journal import Journal
from hmdc_hub.store.parquet import to_uint8, write_parquet_parts
from hmdc_hub.store.rundir import RunDir

GRID = 20, 10
"""Classes and images of each that a picture shows at most."""


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
) -> ArtifactInfo:
    """Condense a source, going on from the newest checkpoint of the same recipe in the run directory if there is one.

    Args:
        recipe: Resolved.
        source: The source that the recipe names, loaded.
        run: An existing directory, one for all ranks; gets initialisation.safetensors, condensed.safetensors,
            train.parquet, info.json, log.jsonl and checkpoints/.
        device: Where networks are and images are matched.
        ranks: The processes that condense together, of which this is one; None: this one alone.
        callback: Told about every stage and image step.
        stop: Looked at after every image step.
        image_grids: Whether `callback` gets an `ImageGrid` of the synthetic images at every network reset and at the
            end; alike in all ranks.

    Returns:
        The provenance, as written to info.json, which is written last: a run that has it is complete.

    Raises:
        DivergedError: A loss or gradient is not finite; the checkpoints before it are kept.
        Interrupted: `stop` was set, in whichever rank; a checkpoint of exactly this step was written.
        OutOfMemoryError: The device ran out of memory, with one image at a time.
        PeerLostError: Another rank ended.
        RunError: torch.compile failed, or the file system.
        UsageError: Ranks do not see one run directory.
    """
    session = _Session(recipe, source, run, device, ranks or Ranks(), callback, stop or StopFlag(), image_grids)
    try:
        with settings(device):
            session.begin()
            session.loop()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{device} has too little memory for this recipe: {str(error).splitlines()[0]}",
            hint="Lower condense.batch (-o condense.batch=64) or take a smaller pool; --resume goes on where it was.",
        ) from error
    return session.finish()


def make_initialisation(recipe: Recipe, source: Source, run: RunDir, *, device: torch.device) -> None:
    """Make initialisation.safetensors alone: packages leave it out, and it may be damaged.

    Args:
        recipe: Resolved.
        source: The source that the recipe names, loaded.
        run: The directory; nothing else in it is read or changed.
        device: Where the first model of the pool embeds images.
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
        self.earlier_seconds, self.began = 0.0, time.monotonic()
        self.total = self.recipe.condense.resets * self.recipe.condense.networks.reset_every
        self.journal = Journal(self.run.log, self.callback, writes=self.writes)

    def begin(self) -> None:
        """Build everything and go to the newest checkpoint, or make the initialisation."""
        spec, seed = self.recipe.condense, self.recipe.seed
        found = checkpoint.newest(self.run.checkpoints, self.hash, self.ranks, self.callback)
        models = [build_for(model, self.source).to(self.device) for model in self.recipe.pool]
        real = RealImages(self.source, spec, seed, self.device)
        networks = ModelPool(models, spec, seed, real, self.ranks)
        at_once = self._agreed(choose(networks.constitutions(), real, spec))
        if at_once.why:
            self.callback(Note(at_once.why))
        block = block_of(at_once, self.device)
        own = [label for label in range(real.classes) if self.ranks.owner(label, block) == self.ranks.index]
        if found is None:
            images_each = spec.factor**2 * spec.ipc
            self.callback(Stage("initialisation", f"{spec.initialisation}, {images_each} images per class"))
            networks.reset(0)
            shape = (0, spec.ipc, self.source.train.channels, real.side, real.side)
            chosen = [real.initial_images(networks.networks[0], label) for label in own]
            pixels = torch.stack(chosen) if chosen else torch.empty(shape)
        else:
            pixels = found.rows("images", own)
        images = SyntheticImages(own, pixels.to(self.device), self.source)
        execution = Execution(self.device, self.callback)
        self.hmdc = HMDC(spec, seed, real, networks, images, at_once, execution, self.ranks)
        if found is None:
            _write_set(self.run.initialisation, self.hmdc.all_rows(images.pixels), self.recipe, self.source, self.ranks)
            self.journal.truncate(0)
        else:
            self.hmdc.load_state(found)
            self.earlier_seconds = found.position.seconds
            self.journal.truncate(self.done)
            self.callback(Stage("resume", f"image step {self.done} of {self.total}"))
        self.callback(Stage("condense", f"{self.total} image steps"))

    @property
    def done(self) -> int:
        """Image steps done."""
        return self.hmdc.outer * self.recipe.condense.networks.reset_every + self.hmdc.inner

    def loop(self) -> None:
        """Make image steps until the last; a checkpoint after every outer iteration and where a stop was asked for."""
        try:
            if self.done < self.total:
                self._raise_if_stopped()
            if self.done == 0:
                self._show()
            for step in self.hmdc.run():
                self.journal.add(step, self.hmdc.seconds)
                if self.hmdc.inner == 0:
                    self.journal.flush()
                    self._checkpoint()
                    self._show()
                if self.done < self.total:
                    self._raise_if_stopped()
        finally:
            self.journal.flush()

    def finish(self) -> ArtifactInfo:
        """Write the results; info.json comes last."""
        images = self.hmdc.images
        rows = self.hmdc.all_rows(images.pixels)
        _write_set(self.run.condensed, rows, self.recipe, self.source, self.ranks)
        clamped = float(self.ranks.together(images.clamped().sum().cpu()[None]) / self.source.train.num_classes)
        if self.writes:
            info = self._info(*_write_decoded(self.run, self.recipe, self.source), clamped)
            write_json_atomic(self.run.info, info)
        self.ranks.together(torch.zeros(1))  # nobody goes on before the files are there
        return read_info(self.run.info)

    def _agreed(self, mine: AtOnce) -> AtOnce:
        """Take the first rank's choice on a CPU, where it decides who owns which class."""
        if self.device.type != "cpu":
            return mine
        told = torch.tensor([float(mine.classes), float(mine.images or 0)]) * float(self.writes)
        classes, images = (int(number) for number in self.ranks.together(told))
        return replace(mine, classes=classes, images=images or None)

    def _raise_if_stopped(self) -> None:
        if bool(self.ranks.together(torch.tensor([float(self.stop.signal_number > 0)]))):
            self._checkpoint()
            number = self.stop.signal_number or signal.SIGTERM  # another rank was asked
            message = f"stopped after image step {self.done} of {self.total}; a checkpoint was written"
            StopFlag(number).raise_if_set(message)

    def _checkpoint(self) -> None:
        position = Position(self.hmdc.outer, self.hmdc.inner, self._seconds())
        checkpoint.save(self.run.checkpoints, self.hmdc.state(), position, self.hash, self.ranks)

    def _show(self) -> None:
        if self.image_grids:
            png = _image_grid(self.hmdc.all_rows(self.hmdc.images.pixels), self.source, self.ranks)
            if self.writes:
                self.callback(ImageGrid(png, f"synthetic images after {self.done} of {self.total} image steps"))

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    def _info(self, synthetic: int, training: int, clamped: float) -> ArtifactInfo:
        on_gpu, models = self.device.type == "cuda", self.hmdc.networks.models
        return ArtifactInfo(
            hmdc_hub_version=__version__,
            recipe_name=self.recipe.name,
            condense_hash=self.hash,
            protocol_hash=self.recipe.protocol_hash(),
            seed=self.recipe.seed,
            source=self.source.info,
            models=list(self.recipe.pool),
            parameters={net.spec.name: parameter_count(net) for net in models},
            versions=versions({model.source for model in self.recipe.pool}),
            device=device_name(self.device),
            threads=torch.get_num_threads() if self.device.type == "cpu" else 1,
            tf32=on_gpu and torch.cuda.get_device_capability(self.device)[0] >= 8,  # `settings` asks for it
            memory="fast" if self.hmdc.at_once.images is None else "low",
            seconds=round(self._seconds(), 1),
            image_steps=self.total,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_resident_bytes(),
            clamped_share=clamped,
            ipc=self.recipe.condense.ipc,
            factor=self.recipe.condense.factor,
            synthetic_images=synthetic,
            training_images=training,
            tensors_sha256=sha256_file(self.run.condensed),
            parquet_sha256=sha256_file(self.run.parquet),
        )


def _write_set(path: Path, rows: Iterator[Tensor], recipe: Recipe, source: Source, ranks: Ranks) -> None:
    """Write the synthetic images: of all classes, source-normalised, as `Ranks.gather` gives them to the first rank."""
    train = source.train
    classes = (source.denormalise(one)[0] for one in rows)
    if ranks.index != 0:
        deque(classes, maxlen=0)
        return
    header = SetHeader(
        name=recipe.name,
        ipc=recipe.condense.ipc,
        factor=recipe.condense.factor,
        class_names=list(source.info.class_names),
        mean=source.info.mean,
        std=source.info.std,
        condense_hash=recipe.condense_hash(),
    )
    write_classes(path, classes, (train.channels, train.side, train.side), header)


def _write_decoded(run: RunDir, recipe: Recipe, source: Source) -> tuple[int, int]:
    """Write train.parquet from condensed.safetensors, so that whoever decodes that gets the same pixels.

    Returns:
        Numbers of synthetic and of decoded images.
    """
    spec, names = recipe.condense, source.info.class_names

    def decoded() -> Iterator[tuple[Tensor, Tensor]]:
        for label, images in enumerate(read_classes(run.condensed)):
            found = to_uint8(multi_formation.decode(images, spec.factor))
            yield found, torch.full((len(found),), label)

    return len(names) * spec.ipc, write_parquet_parts(run.parquet, decoded(), names)


def _image_grid(rows: Iterator[Tensor], source: Source, ranks: Ranks) -> bytes:
    """Draw the synthetic images, rows as for `_write_set`, as a PNG with a row for each class; elsewhere no bytes."""
    shown = [source.denormalise(one)[0, : GRID[1]] for _, one in zip(range(GRID[0]), rows, strict=False)]
    deque(rows, maxlen=0)
    if ranks.index != 0:
        return b""
    file = io.BytesIO()
    contact_sheet(to_uint8(torch.cat(shown)), len(shown[0]), gap=1).save(file, format="PNG")
    return file.getvalue()
