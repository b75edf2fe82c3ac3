"""One engine in a process of its own that does parts of a step when it is told to: so two of them can take turns.

The other side is `Engine`. A request is a line of JSON on the standard input, `[verb, argument]`, and so is the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHODS = ("old", "new", "plain", "eager", "compiled")


class Engine:
    """A process with one engine in it.

    Args:
        method: One of `METHODS`.
        recipe: Resolved.
        device: Where.
        classes: The first so many of the source.
        old: Folder with the old engine's files.
    """

    def __init__(self, method: str, recipe: Any, device: str, classes: int | None, old: Path | None) -> None:
        tree = old if method == "old" else Path(__file__).resolve().parent.parent
        # An older package takes no keys that it does not know.
        job = {
            "method": method,
            "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
            "device": device,
            "classes": classes,
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,  # where its worker processes look first
            env=os.environ | {"PYTHONPATH": str(tree)},
        )
        try:
            self.parts: list[str] = self.ask(json.dumps(job))
        except BaseException:
            self.close()
            raise

    def ask(self, line: str) -> Any:
        """Send a line and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"an engine ended with status {self._process.wait()}; what it said stands above")
        return json.loads(answer)

    def seconds(self, part: str) -> float:
        """Do a part."""
        return float(self.ask(json.dumps(["seconds", part])))

    def peak(self, part: str) -> int:
        """Do a part twice; bytes that the second time grew at most."""
        return int(self.ask(json.dumps(["peak", part])))

    def gradients(self, path: Path) -> Any:
        """Compute the image gradients."""
        import safetensors.torch

        self.ask(json.dumps(["gradients", str(path)]))
        return safetensors.torch.load_file(path)["gradients"]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # in the midst of something that nobody waits for any more
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Be an engine until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer

    import safetensors.torch
    import torch
    from data import first_classes

    from hmdc_hub.schema import Recipe
    from hmdc_hub.sources import load_source

    job = json.loads(sys.stdin.readline())
    recipe, device = Recipe.model_validate(job["recipe"]), torch.device(job["device"])
    source = first_classes(load_source(recipe.source), job["classes"])
    stepper: Any
    if job["method"] == "old":
        from old_stepper import OldStepper

        stepper = OldStepper(recipe, source, device)
    else:
        from stepper import Stepper

        stepper = Stepper(recipe, source, device, job["method"])
    parts: dict[str, Callable[[], Any]] = stepper.parts()

    def seconds(part: str) -> float:
        began = time.perf_counter()
        parts[part]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    def peak(part: str) -> int:
        from hmdc_hub.condenser.cost import peak_bytes

        parts[part]()  # what is cached once, such as interpolation matrices, is no part of it
        return peak_bytes(parts[part])

    def gradients(path: str) -> None:
        safetensors.torch.save_file({"gradients": stepper.gradients().contiguous()}, path)

    verbs: dict[str, Callable[[str], Any]] = {"seconds": seconds, "peak": peak, "gradients": gradients}
    print(json.dumps(list(parts)), file=answers)
    try:
        for line in sys.stdin:
            verb, argument = json.loads(line)
            print(json.dumps(verbs[verb](argument)), file=answers)
    finally:
        stepper.close()


if __name__ == "__main__":
    main()
