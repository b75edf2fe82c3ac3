"""One run of the condenser: from a resolved recipe to condensed.safetensors, train.parquet and info.json."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import replace

import torch

from hmdc_hub import __version__
from hmdc_hub.condense import checkpoint
from hmdc_hub.condense.checkpoint import Position
from hmdc_hub.condense.data import RealImages
from hmdc_hub.condense.hmdc import HMDC, block_of
from hmdc_hub.condense.memory import AtOnce, choose
from hmdc_hub.condense.networks import Networks
from hmdc_hub.condense.ranks import Ranks
from hmdc_hub.condense.results import write_decoded, write_set
from hmdc_hub.condense.synthetic import SyntheticImages
from hmdc_hub.errors import OutOfMemoryError
from hmdc_hub.events import Listener, Note, Stage, StopFlag, silent
from hmdc_hub.execution import Execution, settings
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.provenance import device_name, peak_resident_bytes, versions
from hmdc_hub.schema import ArtifactInfo, Recipe
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_info, sha256_file, write_json_atomic
from hmdc_hub.store.files import TEMPORARY
from hmdc_hub.store.journal import Journal


def condense(
    recipe: Recipe,
    source: Source,
    run: RunDir,
    *,
    device: torch.device,
    ranks: Ranks | None = None,
    listener: Listener = silent,
    stop: StopFlag | None = None,
) -> ArtifactInfo:
    """Condense a source, going on from the newest checkpoint of the same recipe in the run directory if there is one.

    Args:
        recipe: Resolved.
        source: The source that the recipe names, loaded.
        run: An existing directory, one for all ranks; gets start.safetensors, condensed.safetensors, train.parquet,
            info.json, log.jsonl and checkpoints/.
        device: Where networks are and images are matched.
        ranks: The processes that condense together, of which this is one; None: this one alone.
        listener: Told about every stage and image step.
        stop: Looked at after every image step.

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
    session = _Session(recipe, source, run, device, ranks or Ranks(), listener, stop or StopFlag())
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


def make_start(recipe: Recipe, source: Source, run: RunDir, *, device: torch.device) -> None:
    """Make start.safetensors alone: of a set that was condensed elsewhere, as packages leave it out, or a damaged one.

    Args:
        recipe: Resolved.
        source: The source that the recipe names, loaded.
        run: The directory; nothing else in it is read or changed.
        device: Where the first model of the pool embeds images.
    """
    apart = RunDir(run.path / f".start{TEMPORARY}")  # where no checkpoint says that the start is long past
    shutil.rmtree(apart.path, ignore_errors=True)
    apart.path.mkdir(parents=True)
    session = _Session(recipe, source, apart, device, Ranks(), silent, StopFlag())
    try:
        with settings(device):
            session.begin()
        apart.start.replace(run.start)
    finally:
        shutil.rmtree(apart.path, ignore_errors=True)


class _Session:
    """What `condense` holds while it runs."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        run: RunDir,
        device: torch.device,
        ranks: Ranks,
        listener: Listener,
        stop: StopFlag,
    ) -> None:
        self.recipe, self.source, self.run, self.device = recipe, source, run, device
        self.ranks, self.listener, self.stop = ranks, listener, stop
        self.writes = ranks.index == 0
        self.hash = recipe.condense_hash()
        self.earlier_seconds, self.began = 0.0, time.monotonic()
        self.total = recipe.condense.resets * recipe.condense.networks.reset_every
        self.journal = Journal(run.log, listener, writes=self.writes)
        self.hmdc: HMDC

    def begin(self) -> None:
        """Build everything and go to the newest checkpoint, or make the starting images."""
        spec, seed = self.recipe.condense, self.recipe.seed
        found = checkpoint.newest(self.run.checkpoints, self.hash, self.ranks, self.listener)
        models = [build_for(model, self.source).to(self.device) for model in self.recipe.pool]
        real = RealImages(self.source, spec, seed, self.device)
        networks = Networks(models, spec, seed, real, self.ranks)
        at_once = self._agreed(choose(networks.constitutions(), real, spec))
        if at_once.why:
            self.listener(Note(at_once.why))
        block = block_of(at_once, self.device)
        own = [label for label in range(real.classes) if self.ranks.owner(label, block) == self.ranks.index]
        if found is None:
            self.listener(Stage("start", f"{spec.start}, {spec.factor**2 * spec.ipc} images per class"))
            networks.reset(0)
            shape = (0, spec.ipc, self.source.train.channels, real.side, real.side)
            chosen = [real.initial_images(networks.networks[0], label) for label in own]
            pixels = torch.stack(chosen) if chosen else torch.empty(shape)
        else:
            pixels = found.rows("images", own)
        images = SyntheticImages(own, pixels.to(self.device), self.source)
        execution = Execution(self.device, self.listener)
        self.hmdc = HMDC(spec, seed, real, networks, images, at_once, execution, self.ranks)
        if found is None:
            write_set(self.run.start, self.hmdc.all_rows(images.pixels), self.recipe, self.source, self.ranks)
            self.journal.truncate(0)
        else:
            self.hmdc.load_state(found)
            self.earlier_seconds = found.position.seconds
            self.journal.truncate(self.done)
            self.listener(Stage("resume", f"image step {self.done} of {self.total}"))
        self.listener(Stage("condense", f"{self.total} image steps"))

    @property
    def done(self) -> int:
        """Image steps done."""
        return self.hmdc.outer * self.recipe.condense.networks.reset_every + self.hmdc.inner

    def loop(self) -> None:
        """Make image steps until the last; a checkpoint after every outer iteration and where a stop was asked for."""
        try:
            if self.done < self.total:
                self._raise_if_stopped()
            for step in self.hmdc.run():
                self.journal.add(step, self.hmdc.seconds)
                if self.hmdc.inner == 0:
                    self.journal.flush()
                    self._checkpoint()
                if self.done < self.total:
                    self._raise_if_stopped()
        finally:
            self.journal.flush()

    def finish(self) -> ArtifactInfo:
        """Write the results; info.json comes last."""
        images = self.hmdc.images
        rows = self.hmdc.all_rows(images.pixels)
        write_set(self.run.condensed, rows, self.recipe, self.source, self.ranks)
        clamped = float(self.ranks.together(images.clamped().sum().cpu()[None]) / self.source.train.num_classes)
        if self.writes:
            info = self._info(*write_decoded(self.run, self.recipe, self.source), clamped)
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
        asked = self.ranks.together(torch.tensor([float(self.stop.signal_number > 0)]))
        if not bool(asked):
            return
        self._checkpoint()
        number = self.stop.signal_number or signal.SIGTERM  # another rank was asked
        message = f"stopped after image step {self.done} of {self.total}; a checkpoint was written"
        StopFlag(number).raise_if_set(message)

    def _checkpoint(self) -> None:
        position = Position(self.hmdc.outer, self.hmdc.inner, self._seconds())
        checkpoint.save(self.run.checkpoints, self.hmdc.state(), position, self.hash, self.ranks)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    def _info(self, stored: int, training: int, clamped: float) -> ArtifactInfo:
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
            memory="fast" if self.hmdc.at_once.images is None else "low",
            seconds=round(self._seconds(), 1),
            image_steps=self.total,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_resident_bytes(),
            clamped_share=clamped,
            ipc=self.recipe.condense.ipc,
            factor=self.recipe.condense.factor,
            stored_images=stored,
            training_images=training,
            tensors_sha256=sha256_file(self.run.condensed),
            parquet_sha256=sha256_file(self.run.parquet),
        )
