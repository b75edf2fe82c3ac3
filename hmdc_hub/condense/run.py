"""One run of the condenser: from a resolved recipe to condensed.safetensors, train.parquet and info.json."""

from __future__ import annotations

import shutil
import signal
import time

import torch

from hmdc_hub import __version__
from hmdc_hub.condense import checkpoint
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.checkpoint import Position
from hmdc_hub.condense.crew import Crew
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.images import StoredImages
from hmdc_hub.condense.journal import Journal
from hmdc_hub.condense.loop import Condenser
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.memory import Memory, choose_memory
from hmdc_hub.condense.meter import peak_resident_bytes
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.ranks import Alone, Ranks
from hmdc_hub.condense.results import write_decoded, write_set
from hmdc_hub.condense.team import Threads, Values
from hmdc_hub.errors import OutOfMemoryError
from hmdc_hub.events import Listener, Note, Stage, StopFlag, silent
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import ArtifactInfo, Recipe
from hmdc_hub.sources import Source
from hmdc_hub.store import RunDir, read_info, sha256_file, write_json_atomic
from hmdc_hub.store.files import TEMPORARY

WORTH_A_CREW = 10.0
"""Seconds of image steps left from which on worker processes are started, which takes some five seconds."""

WORTH_A_CREW_AT_ONCE = 400
"""Parts of classes left for which that is known before a step was timed: the smallest networks take 20 ms for one."""


def condense(
    recipe: Recipe,
    source: Source,
    run: RunDir,
    *,
    device: torch.device,
    workers: int = 1,
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
        workers: Processes that a long run on a CPU may start; with 1 there are threads alone. A script that asks for
            more must keep its own start behind `if __name__ == "__main__":`. The result does not depend on them.
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
        RunError: A worker process died.
        UsageError: Ranks do not see one run directory.
    """
    session = _Session(recipe, source, run, device, workers, ranks or Alone(), listener, stop or StopFlag())
    done = False
    try:
        with session.threads.one_each():
            session.begin()
            session.loop()
        done = True
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{device} has too little memory for this recipe: {str(error).splitlines()[0]}",
            hint="Lower condense.batch (-o condense.batch=64) or take a smaller pool; --resume goes on where it was.",
        ) from error
    finally:
        session.close(at_once=not done)
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
    session = _Session(recipe, source, apart, device, 1, Alone(), silent, StopFlag())
    try:
        with session.threads.one_each():
            session.begin()
        apart.start.replace(run.start)
    finally:
        session.close()
        shutil.rmtree(apart.path, ignore_errors=True)


class _Session:
    """What `condense` holds while it runs."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        run: RunDir,
        device: torch.device,
        workers: int,
        ranks: Ranks,
        listener: Listener,
        stop: StopFlag,
    ) -> None:
        self.recipe, self.source, self.run, self.device = recipe, source, run, device
        self.workers, self.ranks, self.listener, self.stop = workers, ranks, listener, stop
        self.writes = ranks.index == 0
        self.hash = recipe.condense_hash()
        self.earlier_seconds, self.began = 0.0, time.monotonic()
        self.total = recipe.condense.resets * recipe.condense.networks.reset_every
        self.threads = Threads(device)
        self.crew: Crew | None = None
        self.journal = Journal(run.log, self.total, listener, writes=self.writes)
        self.parameters: dict[str, int] = {}
        self.condenser: Condenser
        self.memory: Memory

    def begin(self) -> None:
        """Build everything and go to the newest checkpoint, or make the starting images."""
        spec, seed = self.recipe.condense, self.recipe.seed
        found = checkpoint.newest(self.run.checkpoints, self.hash, self.ranks, self.listener)
        made = found.position.outer * spec.networks.reset_every + found.position.inner if found else 0
        classes = min(self.source.train.num_classes, spec.classes_per_step or self.source.train.num_classes)
        if (self.total - made) * classes > WORTH_A_CREW_AT_ONCE * self.ranks.count:
            self._call_the_crew()
        real = RealImages(self.source, spec, seed, self.device)
        networks = [build_for(model, self.source).to(self.device) for model in self.recipe.pool]
        self.parameters = {net.spec.name: parameter_count(net) for net in networks}
        members = Members(networks, spec, seed, listener=self.listener)
        self.memory = choose_memory(members, real, self.recipe, max(self.workers, self.threads.count))
        members.at_once = self.memory.at_once
        if self.memory.at_once is not None and spec.memory == "auto":
            self.listener(Note(self.memory.why))
        hand = Hand(spec, seed, real, members)
        pool = Pool(hand, self.threads, self.ranks)
        own = list(self.ranks.share(real.classes))
        if found is None:
            self.listener(Stage("start", f"{spec.start}, {spec.factor**2 * spec.ipc} images per class"))
            pool.reset(0, real)
            items = [(label,) for label in own]
            chosen = list(self.threads.map(hand.starting_images, items, Values(0, members.values)))
            shape = (0, spec.ipc, self.source.train.channels, real.side, real.side)
            pixels = torch.stack(chosen) if chosen else torch.empty(shape)
            self.condenser = Condenser(spec, seed, real, pool, StoredImages.begin(own, pixels, self.source))
            write_set(self.run.start, pixels, self.recipe, self.source, self.ranks)
            self.journal.truncate(0)
        else:
            images = StoredImages.begin(own, found.rows("images", own), self.source)
            self.condenser = Condenser(spec, seed, real, pool, images)
            self.condenser.load_state(found)
            self.earlier_seconds = found.position.seconds
            self.journal.truncate(self.done)
            self.listener(Stage("resume", f"image step {self.done} of {self.total}"))
        self.listener(Stage("condense", f"{self.total} image steps"))

    @property
    def done(self) -> int:
        """Image steps done."""
        return self.condenser.outer * self.recipe.condense.networks.reset_every + self.condenser.inner

    def loop(self) -> None:
        """Make image steps until the last; a checkpoint after every outer iteration and where a stop was asked for."""
        try:
            while self.done < self.total:
                self._raise_if_stopped()
                place = (self.condenser.outer, self.condenser.inner)
                report = self.condenser.step()
                event = self.journal.add(report, self.condenser.pool.members, place, self.done)
                if self.condenser.inner == 0:
                    self.journal.flush()
                    self._checkpoint()
                if self.crew is None and event.seconds_left > WORTH_A_CREW:
                    self._call_the_crew()
                self._go_on_with_the_crew()
        finally:
            self.journal.flush()

    def close(self, *, at_once: bool = False) -> None:
        """End threads and processes; `at_once` gives up what they are doing."""
        if self.crew is not None:
            self.crew.close(at_once=at_once)
        self.threads.close()

    def finish(self) -> ArtifactInfo:
        """Write the results; info.json comes last."""
        write_set(self.run.condensed, self.condenser.images.pixels, self.recipe, self.source, self.ranks)
        clamped = float(self.ranks.together(self.condenser.clamped).mean())
        if self.writes:
            info = self._info(*write_decoded(self.run, self.recipe, self.source), clamped)
            write_json_atomic(self.run.info, info)
        self.ranks.together(torch.zeros(1))  # nobody goes on before the files are there
        return read_info(self.run.info)

    def _call_the_crew(self) -> None:
        """Start worker processes where there may be some; they are not waited for."""
        if self.device.type == "cpu" and self.workers > 1:
            self.crew = Crew(self.workers, self.recipe, self.source)

    def _go_on_with_the_crew(self) -> None:
        """Leave the work to the worker processes once they are there."""
        if self.crew is None or self.condenser.pool.team is self.crew:
            return
        if self.crew.ready:
            self.crew.at_once = self.memory.at_once
            self.condenser.pool.team = self.crew
            self.journal.forget_recent()
        elif self.crew.failed:
            self.listener(Note(f"worker processes could not be started, threads do it ({self.crew.failed})"))
            self.crew.failed = ""

    def _raise_if_stopped(self) -> None:
        asked = self.ranks.together(torch.tensor([float(self.stop.signal_number > 0)]))
        if not bool(asked):
            return
        self._checkpoint()
        number = self.stop.signal_number or signal.SIGTERM  # another rank was asked
        message = f"stopped after image step {self.done} of {self.total}; a checkpoint was written"
        StopFlag(number).raise_if_set(message)

    def _checkpoint(self) -> None:
        position = Position(self.condenser.outer, self.condenser.inner, self._seconds())
        checkpoint.save(self.run.checkpoints, self.condenser.state(), position, self.hash, self.ranks)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    def _info(self, stored: int, training: int, clamped: float) -> ArtifactInfo:
        on_gpu = self.device.type == "cuda"
        resident = peak_resident_bytes() + (self.crew.peak_bytes if self.crew else 0)
        return ArtifactInfo(
            hmdc_hub_version=__version__,
            recipe_name=self.recipe.name,
            condense_hash=self.hash,
            protocol_hash=self.recipe.protocol_hash(),
            seed=self.recipe.seed,
            source=self.source.info,
            models=list(self.recipe.pool),
            parameters=self.parameters,
            versions=versions({model.source for model in self.recipe.pool}),
            device=device_name(self.device),
            threads=self.threads.count,
            memory="fast" if self.condenser.pool.members.at_once is None else "low",
            seconds=round(self._seconds(), 1),
            image_steps=self.total,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else resident,
            clamped_share=clamped,
            ipc=self.recipe.condense.ipc,
            factor=self.recipe.condense.factor,
            stored_images=stored,
            training_images=training,
            tensors_sha256=sha256_file(self.run.condensed),
            parquet_sha256=sha256_file(self.run.parquet),
        )
