"""One run of the condenser: from a resolved recipe to condensed.safetensors, train.parquet and info.json."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from hmdc_hub import __version__, pack
from hmdc_hub.condense import checkpoint
from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.checkpoint import Position
from hmdc_hub.condense.images import StoredImages, starting_images
from hmdc_hub.condense.loop import Condenser, StepReport
from hmdc_hub.condense.memory import Memory, choose_memory
from hmdc_hub.condense.meter import peak_resident_bytes
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.threads import Threads
from hmdc_hub.errors import DivergedError, OutOfMemoryError
from hmdc_hub.events import ImageStep, Listener, Note, Stage, StopFlag, silent
from hmdc_hub.models import build_for, parameter_count
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import ArtifactInfo, Recipe, SetHeader
from hmdc_hub.sources import Source
from hmdc_hub.store import (
    RunDir,
    read_condensed,
    sha256_file,
    to_uint8,
    write_condensed,
    write_json_atomic,
    write_parquet,
)


def condense(
    recipe: Recipe,
    source: Source,
    run: RunDir,
    *,
    device: torch.device,
    listener: Listener = silent,
    stop: StopFlag | None = None,
) -> ArtifactInfo:
    """Condense a source, going on from the newest checkpoint of the same recipe in the run directory if there is one.

    Args:
        recipe: Resolved.
        source: The source that the recipe names, loaded.
        run: An existing directory; gets start.safetensors, condensed.safetensors, train.parquet, info.json, log.jsonl
            and checkpoints/.
        device: Where networks and images live.
        listener: Told about every stage and image step.
        stop: Looked at after every image step.

    Returns:
        The provenance, as written to info.json, which is written last: a run that has it is complete.

    Raises:
        DivergedError: A loss or gradient is not finite; the checkpoints before it are kept.
        Interrupted: `stop` was set; a checkpoint of exactly this step was written.
        OutOfMemoryError: The device ran out of memory.
    """
    session = _Session(recipe, source, run, device, listener, stop or StopFlag())
    try:
        with session.threads.one_each():
            session.begin()
            session.loop()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{device} has too little memory for this recipe: {str(error).splitlines()[0]}",
            hint="Lower condense.batch (-o condense.batch=64) or take a smaller pool; --resume goes on where it was.",
        ) from error
    finally:
        session.threads.close()
    return session.finish()


def make_start(recipe: Recipe, source: Source, run: RunDir, *, device: torch.device) -> None:
    """Make start.safetensors alone, for a set that was condensed elsewhere: packages leave it out, as anybody can.

    Args:
        recipe: Resolved.
        source: The source that the recipe names, loaded.
        run: A directory without checkpoints.
        device: Where the first model of the pool embeds images.
    """
    session = _Session(recipe, source, run, device, silent, StopFlag())
    try:
        with session.threads.one_each():
            session.begin()
    finally:
        session.threads.close()


class _Session:
    """What `condense` holds while it runs."""

    def __init__(
        self, recipe: Recipe, source: Source, run: RunDir, device: torch.device, listener: Listener, stop: StopFlag
    ) -> None:
        self.recipe, self.source, self.run, self.device = recipe, source, run, device
        self.listener, self.stop = listener, stop
        self.hash = recipe.condense_hash()
        self.earlier_seconds, self.began = 0.0, time.monotonic()
        self.recent: deque[float] = deque(maxlen=50)
        self.total = recipe.condense.resets * recipe.condense.networks.reset_every
        self.clamped = 0.0
        self.threads = Threads(device)
        self.parameters: dict[str, int] = {}
        self.condenser: Condenser
        self.memory: Memory

    def begin(self) -> None:
        """Build everything and go to the newest checkpoint, or make the starting images."""
        spec, seed = self.recipe.condense, self.recipe.seed
        found = checkpoint.load_newest(self.run.checkpoints, self.hash, self.listener)
        real = RealImages(self.source, spec, seed, self.device)
        networks = [build_for(model, self.source).to(self.device) for model in self.recipe.pool]
        self.parameters = {net.spec.name: parameter_count(net) for net in networks}
        pool = Pool(networks, spec, seed, self.threads)
        self.memory = choose_memory(pool, real, self.recipe)
        pool.low_memory = self.memory.low
        if self.memory.low and spec.memory == "auto":
            self.listener(Note(self.memory.why))
        if found is None:
            self.listener(Stage("start", f"{spec.start}, {spec.factor**2 * spec.ipc} images per class"))
            pool.reset(0, real)
            images = StoredImages.begin(starting_images(pool.networks[0], real, spec, seed, self.threads), self.source)
            self._write_set(self.run.start, images)
            self.condenser = Condenser(spec, seed, real, pool, images)
            self._truncate_log(0)
        else:
            tensors, position = found
            images = StoredImages.begin(tensors["images"].to(self.device), self.source)
            self.condenser = Condenser(spec, seed, real, pool, images)
            self.condenser.load_state(tensors, position)
            self.earlier_seconds = position.seconds
            self.clamped = images.clamp()
            self._truncate_log(self.done)
            self.listener(Stage("resume", f"image step {self.done} of {self.total}"))
        self.listener(Stage("condense", f"{self.total} image steps"))

    @property
    def done(self) -> int:
        """Image steps done."""
        return self.condenser.outer * self.recipe.condense.networks.reset_every + self.condenser.inner

    def loop(self) -> None:
        """Make image steps until the last; a checkpoint after every outer iteration and where a stop was asked for."""
        with self.run.log.open("a", encoding="utf-8") as log:
            while self.done < self.total:
                self._raise_if_stopped()
                place = (self.condenser.outer, self.condenser.inner)
                report = self.condenser.step()
                event = self._event(report, place)
                log.write(json.dumps(_plain(event)) + "\n")
                self.listener(event)
                if self.condenser.inner == 0:
                    log.flush()
                    self._checkpoint()

    def finish(self) -> ArtifactInfo:
        """Write the results; info.json comes last."""
        self._write_set(self.run.condensed, self.condenser.images)
        # What is published is decoded from the file, not from memory: whoever decodes the file gets the same pixels.
        stored, labels, header = read_condensed(self.run.condensed)
        classes, n = len(header.class_names), header.ipc
        decoded = pack.decode(torch.unflatten(stored, 0, (classes, n)), header.factor)
        pixels = to_uint8(decoded.flatten(0, 1))
        decoded_labels = torch.arange(classes).repeat_interleave(decoded.shape[1])
        write_parquet(self.run.parquet, pixels, decoded_labels, header.class_names)
        info = self._info(len(labels), len(decoded_labels))
        write_json_atomic(self.run.info, info.model_dump(mode="json"))
        return info

    def _raise_if_stopped(self) -> None:
        if not self.stop.signal_number:
            return
        self._checkpoint()
        self.stop.raise_if_set(f"stopped after image step {self.done} of {self.total}; a checkpoint was written")

    def _checkpoint(self) -> None:
        position = Position(self.condenser.outer, self.condenser.inner, self._seconds())
        tensors = self.condenser.state()
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            raise DivergedError(
                f"the state after image step {self.done} is not finite, so it was not saved",
                hint="Lower pool.*.lr.condense in the recipe; the last good checkpoint was kept.",
            )
        checkpoint.save(self.run.checkpoints, tensors, position, self.hash)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    def _event(self, report: StepReport, place: tuple[int, int]) -> ImageStep:
        self.recent.append(report.seconds)
        self.clamped = report.clamped
        names = self.condenser.pool.objectives.names()
        networks = [net.spec.name for net in self.condenser.pool.networks]
        return ImageStep(
            outer=place[0],
            inner=place[1],
            done=self.done,
            total=self.total,
            losses=dict(zip(names, report.losses, strict=True)),
            shares={} if report.shares is None else dict(zip(names, report.shares, strict=True)),
            accuracies=dict(zip(networks, report.accuracies, strict=True)),
            clamped=report.clamped,
            images_per_second=report.images / max(report.seconds, 1e-9),
            seconds_left=(self.total - self.done) * sum(self.recent) / len(self.recent),
        )

    def _write_set(self, path: Path, images: StoredImages) -> None:
        pixels = self.source.denormalise(images.pixels).clamp(0, 1).cpu()
        classes, n = pixels.shape[:2]
        header = SetHeader(
            name=self.recipe.name,
            ipc=n,
            factor=self.recipe.condense.factor,
            class_names=list(self.source.info.class_names),
            mean=self.source.info.mean,
            std=self.source.info.std,
            condense_hash=self.hash,
        )
        write_condensed(path, pixels.flatten(0, 1), torch.arange(classes).repeat_interleave(n), header)

    def _truncate_log(self, done: int) -> None:
        """Drop log lines of steps that a resume makes again."""
        if not self.run.log.exists():
            return
        kept = []
        for line in self.run.log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["done"] <= done:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                self.listener(Note("a half-written line of log.jsonl was dropped"))
        self.run.log.write_text("".join(kept), encoding="utf-8")

    def _info(self, stored: int, training: int) -> ArtifactInfo:
        on_gpu = self.device.type == "cuda"
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
            memory="low" if self.memory.low else "fast",
            seconds=round(self._seconds(), 1),
            image_steps=self.total,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_resident_bytes(),
            clamped_share=self.clamped,
            ipc=self.recipe.condense.ipc,
            factor=self.recipe.condense.factor,
            stored_images=stored,
            training_images=training,
            tensors_sha256=sha256_file(self.run.condensed),
            parquet_sha256=sha256_file(self.run.parquet),
        )


def _plain(event: ImageStep) -> dict[str, Any]:
    """Turn an event into a log line's fields, numbers rounded to what a reader can use."""
    fields = dict(vars(event))
    for key in ("losses", "shares", "accuracies"):
        fields[key] = {name: float(f"{value:.6g}") for name, value in fields[key].items()}
    return fields | {
        "clamped": float(f"{event.clamped:.6g}"),
        "images_per_second": round(event.images_per_second, 1),
        "seconds_left": round(event.seconds_left, 1),
    }
