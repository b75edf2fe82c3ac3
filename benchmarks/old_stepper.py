"""What `stepper.py` is, for the engine of commit 2922b06; runs in a process that imports that tree's package."""
# mypy: disable-error-code="import-not-found,import-untyped,attr-defined"

from __future__ import annotations

import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

COMMIT = "2922b06"


@contextmanager
def old_tree(given: Path | None) -> Iterator[Path]:
    """Give a folder with that commit's files: one that is there, or a copy out of this repository's history."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "old.tar"
        here = Path(__file__).parent.parent
        subprocess.run(["git", "-C", str(here), "archive", "-o", str(archive), COMMIT], check=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)


class OldStepper:
    """The old engine as a run has it after its start, on a CPU with its worker processes."""

    def __init__(self, recipe: Any, source: Any, device: Any) -> None:
        import torch
        from hmdc_hub.condense.batches import RealImages
        from hmdc_hub.condense.crew import Crew
        from hmdc_hub.condense.hand import Hand
        from hmdc_hub.condense.images import StoredImages
        from hmdc_hub.condense.loop import Condenser
        from hmdc_hub.condense.members import Members
        from hmdc_hub.condense.memory import choose_memory
        from hmdc_hub.condense.pool import Pool
        from hmdc_hub.condense.team import Threads

        from hmdc_hub.models import build_for

        workers = torch.get_num_threads()
        threads, spec, seed = Threads(device, 1), recipe.condense, recipe.seed
        self._held = ExitStack()
        self._held.callback(threads.close)
        self._held.enter_context(threads.one_each())
        real = RealImages(source, spec, seed, device)
        members = Members([build_for(model, source).to(device) for model in recipe.pool], spec, seed)
        members.at_once = choose_memory(members, real, recipe, workers).at_once
        hand = Hand(spec, seed, real, members)
        pool = Pool(hand, threads)
        pool.reset(0, real)
        pixels = torch.stack([hand.starting_images(label) for label in range(real.classes)])
        self.condenser = Condenser(spec, seed, real, pool, StoredImages.begin(range(real.classes), pixels, source))
        hand.prepare()
        if device.type == "cpu":
            crew = Crew(workers, recipe, source)
            self._held.callback(crew.close)
            crew.at_once = members.at_once
            while not crew.ready:
                if crew.failed:
                    raise RuntimeError(crew.failed)
                time.sleep(0.1)
            pool.team = crew
        self.condenser.outer, self.condenser.inner = 0, 1
        self.choose_real_batches()

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Give every part as a function of its own."""
        work = self.condenser
        return {
            "real batches": self.choose_real_batches,
            "matching": lambda: self.matching(1),
            "matching, with update": lambda: self.matching(0),
            "networks": lambda: work.pool.train_networks(work.real, (0, 1)),
            "projections": lambda: work.pool.train_projections(work.real, (0, 1)),
            "a step": lambda: self.step(1),
            "a step, with update": lambda: self.step(0),
        }

    def choose_real_batches(self) -> None:
        """Choose the real batches of all classes."""
        work = self.condenser
        work.visits = [0] * work.real.classes
        work.choose_real_batches(range(work.real.classes), work.values())

    def matching(self, visits: int) -> list[Any]:
        """Compute the image gradient of every class after so many steps: at 0 the balance is updated."""
        work = self.condenser
        work.visits = [visits] * work.real.classes
        return [part[0] for part in work.class_parts(range(work.real.classes), work.values())]

    def step(self, visits: int) -> None:
        """Make a whole step in the middle of an outer iteration, after so many."""
        work = self.condenser
        work.outer, work.inner, work.visits = 0, 1, [visits] * work.real.classes
        work.step()

    def gradients(self) -> Any:
        """Compute the image gradient of every class in a step without update, on the CPU, and move nothing."""
        import torch
        from hmdc_hub.condense.balance import normalise

        found = torch.stack(self.matching(1))
        return normalise(found) if self.condenser.spec.normalise else found

    def close(self) -> None:
        """End its workers."""
        self._held.close()
