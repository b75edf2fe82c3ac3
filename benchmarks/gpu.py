"""Everything that is to be known on one GPU, in order of worth and within a budget of time; `gpu.sh` says how.

Every row is printed as it is ready, a failing item gives its error in one line, and all rows come once more as one
Markdown table. Items that need a GPU say so on a CPU, where `--tiny` runs the rest on sizes that take a moment.

Times are medians of five in turn with nothing else, after three calls that warm up and capture. `busy` is the time in
which the GPU ran kernels of one profiled step over the time of a step without a profiler.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from data import recipe_on
from driver import Engine
from stepper import Stepper

from hmdc_hub.catalog import load_model
from hmdc_hub.provenance import device_name
from hmdc_hub.schema import Recipe
from hmdc_hub.sources import Source, load_source
from hmdc_hub.store.files import write_json_atomic

LAUNCHES = {
    "kernels": ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
    "graphs": ("cudaGraphLaunch",),
    "copies": ("cudaMemcpyAsync", "cudaMemsetAsync"),
    "synchronisations": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
}
"""Calls of the host, by what they are."""

PARTS = {"convnet_tiny": {"depth": 1, "width": 4}, "mlp_tiny": {"depth": 2, "width": 8}}
SMALL = [
    "condense.batch=8", "condense.ipc=1", "condense.cluster.candidates=24", "condense.networks.batches_per_step=2",
    "condense.networks.batch=16", "condense.projection.batches_per_step=1", "condense.networks.reset_every=4",
]  # fmt: skip


class NoTimeError(Exception):
    """The budget is used up."""


class Session:
    """Where everything is measured.

    Args:
        folder: With CIFAR-10.
        device: A GPU, or a CPU.
        tiny: Digits and two tiny networks in place of everything.
        ends: When `time.monotonic` says that the budget is used up.
        old: Folder with the old engine's files.
    """

    def __init__(self, folder: str, device: torch.device, tiny: bool, ends: float, old: Path | None) -> None:
        self.folder, self.device, self.tiny, self.ends, self.old = folder, device, tiny, ends, old
        self.rows: list[tuple[str, str, str]] = []
        self._sources: dict[str, Source] = {}

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.ends - time.monotonic()

    def say(self, item: str, case: str, result: str) -> None:
        """Add a row."""
        self.rows.append((item, case, result))
        print(f"[{self.left():.0f} s left] {item} | {case} | {result}", flush=True)

    def recipe(self, name: str, precision: str | None = None) -> Recipe:
        """Read one of `POOLS` or a shipped recipe, with networks from scratch."""
        shipped, models = POOLS.get(name, (name, None))
        folder = None if self.tiny or shipped.startswith("digits") else self.folder
        found = recipe_on(folder, "digits_ipc1" if self.tiny else shipped, SMALL if self.tiny else [])
        plain = {"weights": "none", "revision": None}
        pool = [load_model(one).model_copy(update=more) for one, more in models or ()] or found.pool
        pool = [one.model_copy(update=plain if one.weights != "none" else {}) for one in pool]
        if self.tiny:
            sizes = {"convnet_tiny": "convnet", "mlp_tiny": "mlp"}
            pool = [
                pool[0].model_copy(
                    update={"name": tiny, "source": "builtin", "id": sizes[tiny], "args": PARTS[tiny], "input_size": 8}
                )
                for tiny in PARTS
            ]
        if precision:
            pool = [one.model_copy(update={"precision": precision}) for one in pool]
        return found.model_copy(update={"pool": pool})

    def source(self, recipe: Recipe) -> Source:
        """Load a recipe's source, once."""
        key = recipe.source.model_dump_json()
        if key not in self._sources:
            self._sources[key] = load_source(recipe.source)
        return self._sources[key]

    @contextlib.contextmanager
    def stepper(self, recipe: Recipe, method: str = "new") -> Iterator[Stepper]:
        """Make an engine, and leave no memory of it."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        made = Stepper(recipe, self.source(recipe), self.device, method)
        try:
            yield made
        finally:
            made.close()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Time work: the median of five calls, or of fewer once five seconds have passed."""
        times: list[float] = []
        while len(times) < (1 if self.tiny else 5) and sum(times) < 5:
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def warm(self, work: Callable[[], Any]) -> None:
        """Do work so often that a graph of it is there: as it is, captured, replayed."""
        for _ in range(3 if self.device.type == "cuda" else 1):
            work()

    def case(self, pool: str, precision: str, method: str) -> str:
        """Name what is measured."""
        on_gpu = self.device.type == "cuda"
        words = [pool, "TF32" if on_gpu and precision == "float32" else precision]
        return ", ".join([*words, "captured" if on_gpu and method == "new" else "eager"])

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory(self) -> str:
        """Say the peak since the last stepper was made: what tensors took, and what torch kept for them and graphs."""
        if self.device.type != "cuda":
            return ""
        numbers = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        return "; peak {:.1f} GiB, reserved {:.1f}".format(*(number / 2**30 for number in numbers))


# what is measured


def reference(session: Session) -> None:
    """Compute the image gradients of the method's first program."""
    from hmdc_hub.execution import settings
    from tests.reference.test_image_step import FILES, Vector, image_step, relative_error

    for name, word in (("float32", "highest"), ("TF32", "high")):
        if name == "TF32" and session.device.type != "cuda":
            session.say("reference vectors", name, "needs a GPU")
            continue
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = word == "high"
        errors = []
        try:
            for path in FILES:
                vector = Vector(path)
                vector.tensors = {key: value.to(session.device) for key, value in vector.tensors.items()}
                for module in (*vector.networks, *(pair.distillation for pair in vector.pairs)):
                    module.to(session.device)
                with settings(session.device), session.device:
                    torch.set_float32_matmul_precision(word)
                    errors.append(relative_error(image_step(vector, True)[0], vector.tensors["image_grad"]))
        finally:
            torch.backends.cudnn.allow_tf32 = before
        session.say("reference vectors", name, f"relative errors {min(errors):.1e} to {max(errors):.1e}")


def functions_of(stepper: Stepper) -> dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]]:
    """Give every function of a step, and what makes inputs for it."""
    found: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
        "matching": (stepper.function("image_step", update=False), lambda: stepper.classes()[0]),
        "matching, with update": (stepper.function("image_step", update=True), lambda: stepper.classes()[0]),
        "training": (stepper.function("train"), lambda: stepper.minibatches(1)[0]),
    }
    if stepper.hmdc.networks.objectives.pairs:
        found["projections"] = (stepper.function("train_projections"), lambda: stepper.minibatches(1)[0])
    return found


def synchronising(session: Session, pool: str) -> None:
    """Say which function of a step synchronises, as it is and as a graph."""
    if session.device.type != "cuda":
        session.say("synchronisation in functions", pool, "needs a GPU")
        return
    for method in ("eager", "new"):
        with session.stepper(session.recipe(pool), method) as stepper:
            said = []
            for name, (function, inputs) in functions_of(stepper).items():
                for _ in range(2):
                    function(inputs())
                torch.cuda.set_sync_debug_mode("error")
                try:
                    function(inputs())
                except RuntimeError as error:
                    said.append(f"{name}: {one_line(error)}")
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        session.say("synchronisation in functions", session.case(pool, "float32", method), "; ".join(said) or "none")


def determinism(session: Session, name: str) -> None:
    """Condense twice and compare bytes."""
    from hmdc_hub.condenser import condense
    from hmdc_hub.store.rundir import RunDir

    recipe = session.recipe(name)
    networks = recipe.condense.networks.model_copy(update={"reset_every": 3})
    recipe = recipe.model_copy(
        update={"condense": recipe.condense.model_copy(update={"resets": 2, "networks": networks})}
    )
    digests, notes = [], list[str]()
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            run = RunDir(Path(folder))
            condense(
                recipe,
                session.source(recipe),
                run,
                device=session.device,
                callback=lambda event: notes.append(getattr(event, "text", "")),
            )
            digests.append(hashlib.sha256(run.condensed.read_bytes()).hexdigest())
    same = "same bytes" if digests[0] == digests[1] else "other bytes"
    said = "; ".join(dict.fromkeys(note for note in notes if note))
    session.say("two short runs", name, f"{same}{f' ({said})' if said else ''}")


def parts(session: Session, pool: str, precision: str, method: str) -> None:
    """Time the functions of a step and whole steps; count what the host and the GPU do in one."""
    case = session.case(pool, precision, method)
    with session.stepper(session.recipe(pool, precision), method) as stepper:
        if session.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of the steps, not of clustering
        for visits in (1, 0):
            session.warm(partial(stepper.step, visits))
        step, update = (session.seconds(partial(stepper.step, visits)) for visits in (1, 0))
        memory = session.memory()
        found = [f"**a step {step:.3f}**, with real batches and update {update:.3f} s"]
        chunk = stepper.hmdc.at_once
        for name, (function, inputs) in functions_of(stepper).items():
            session.warm(partial(lambda call, draw: call(draw()), function, inputs))
            if name.startswith("matching"):
                visits = name.endswith("update")
                found.append(f"{name} {session.seconds(partial(stepper.matching, update=visits)):.3f} s")
            else:
                given = inputs()
                found.append(f"a {name} minibatch {1000 * session.seconds(partial(function, given)):.1f} ms")
        held = f"{chunk.classes} classes at a time" + (f", {chunk.images} images" if chunk.images else "")
        session.say("parts of a step", case, f"{', '.join(found)}; {held}{memory}")
        launches(session, case, stepper, step)


def launches(session: Session, case: str, stepper: Stepper, seconds: float) -> None:
    """Profile one step without an update."""
    if session.device.type != "cuda":
        session.say("launches of a step", case, "needs a GPU")
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        stepper.step(1)
        session.wait()
    counts, busy, kernels = dict.fromkeys(LAUNCHES, 0), 0, 0
    for event in recorded.profiler.kineto_results.events():
        name = event.name()
        if event.device_type() == torch._C._autograd.DeviceType.CUDA:
            if not name.startswith(("ProfilerStep", "gpu_user_annotation")):
                kernels, busy = kernels + 1, busy + event.duration_ns()
        else:
            for kind, names in LAUNCHES.items():
                counts[kind] += name in names
    counts["synchronisations"] -= 1  # the one above
    host = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    share = f"GPU: {kernels} kernels and copies, {busy / 1e9:.3f} s, busy {busy / 1e9 / seconds:.0%}"
    session.say("launches of a step", case, f"host: {host}; {share}")


def shipped(session: Session, name: str) -> None:
    """Make a few steps of a recipe."""
    recipe = session.recipe(name)
    with session.stepper(recipe) as stepper:
        for visits in (1, 0):
            session.warm(partial(stepper.step, visits))
        often, seldom = (session.seconds(partial(stepper.step, visits)) for visits in (1, 0))
        memory = session.memory()
    spec = recipe.condense
    every = spec.cluster.every if spec.cluster.enabled else 1
    mean = (seldom + (every - 1) * often) / every
    steps = spec.resets * spec.networks.reset_every
    pool = " + ".join(f"{net.name} {net.input_size or recipe.source.size}" for net in recipe.pool)
    session.say(
        "recipe",
        f"{name}: {pool}, from scratch",
        f"{1 / mean:.2f} steps/s; {steps} steps take {steps * mean / 60:.1f} min{memory}",
    )


def evaluation(session: Session, name: str, precision: str) -> None:
    """Time the evaluator and the plain loop on the same trainings: five seeds of a model on 400 images, or fewer.

    The plain loop trains seeds one after another, so that one of them is timed, with the better of two DataLoaders.
    """
    from evaluate import Both

    epochs, seeds = (2, 2) if session.tiny else (40, 5)
    recipe = session.recipe("digits")
    update: dict[str, Any] = {"epochs": epochs, "steps": None, "schedule": "constant", "batch": 64}
    update["precision"] = precision
    if not session.tiny:
        recipe = session.recipe(NATIVE)
        update |= {"models": [load_model(name)]}
    else:
        update |= {"models": recipe.pool[:1]}
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=update)})
    plain = []
    for workers in (0,) if session.tiny or precision != "float32" else (0, 8):
        both = Both(recipe, session.source(recipe), [], session.device, workers, 1)
        if precision == "float32":
            plain.append(seeds * both.plain(both.names[0], 1, torch.get_num_threads())[0])
    mine = [both.ours(both.names, seeds)[0] for _ in range(1 if session.tiny else 2)]  # the first warms up
    case = f"{both.names[0]}, {len(both.images[0].labels)} images, {epochs} epochs, {seeds} seeds, {precision}"
    said = [f"ours {mine[-1]:.2f} s ({mine[0]:.2f} the first time)"]
    if plain:
        said += ["plain loop " + ", ".join(f"{took:.1f}" for took in plain) + " s (0, 8 loader processes)"]
        said += [f"plain / ours {min(plain) / mine[-1]:.1f}"]
    session.say("evaluation", case, ", ".join(said) + session.memory())


def apart(session: Session, pool: str, method: str) -> None:
    """Time steps of another engine, or of the compiled derivative, in a process of its own."""
    if method == "old" and session.old is None:
        session.say("a step", f"{pool}, engine of 2922b06", "needs --old")
        return
    if session.device.type != "cuda":
        session.say("a step", f"{pool}, {method}", "needs a GPU")
        return
    recipe = session.recipe(pool)
    gc.collect()
    torch.cuda.empty_cache()  # another process needs the memory now
    with contextlib.closing(Engine(method, recipe, str(session.device), None, session.old)) as engine:
        for part in ("a step", "a step, with update"):
            session.warm(partial(engine.seconds, part))
        found = {p: statistics.median(engine.seconds(p) for _ in range(3)) for p in ("a step", "a step, with update")}
    session.say("a step", f"{pool}, {method}", ", ".join(f"{part} {took:.3f} s" for part, took in found.items()))


NATIVE = "ConvNet-3 + ViT-micro at 32"
POOLS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]] | None]] = {
    "digits": ("digits_ipc1", None),
    NATIVE: ("cifar10_ipc10", [("convnet3", {}), ("vit_micro", {})]),
    "ConvNet-3 + ViT-tiny at 224": ("cifar10_ipc10", [("convnet3", {}), ("vit_tiny", {})]),
    "ConvNet-3 + ViT-tiny at 112": ("cifar10_ipc10", [("convnet3", {}), ("vit_tiny", {"input_size": 112})]),
}
RECIPES = ("digits_ipc1", "cifar10_ipc1", "cifar10_ipc10", "cifar10_ipc50")


def items() -> list[tuple[str, Callable[[Session], None]]]:
    """List everything in order of worth, with names for what fails."""
    large = list(POOLS)[2:]
    found: list[tuple[str, Callable[[Session], None]]] = [("reference vectors", reference)]
    for pool in ("digits", NATIVE):
        found.append((f"synchronisation, {pool}", partial(synchronising, pool=pool)))
        found.append((f"parts, {pool}", partial(parts, pool=pool, precision="float32", method="new")))
        found.append((f"two short runs, {pool}", partial(determinism, name=pool)))
    for precision, method, pools in (
        ("float32", "new", large),
        ("bfloat16", "new", [NATIVE, *large]),
        ("float32", "eager", ["digits", NATIVE]),
    ):
        found += [
            (f"parts, {pool}, {precision}, {method}", partial(parts, pool=pool, precision=precision, method=method))
            for pool in pools
        ]
    found += [(f"recipe {name}", partial(shipped, name=name)) for name in RECIPES]
    for name in ("convnet3", "vit_mini", "resnet18_native"):
        for precision in ("float32", "bfloat16"):
            found.append((f"evaluation, {name}, {precision}", partial(evaluation, name=name, precision=precision)))
    found += [
        (f"parts, {pool}, eager", partial(parts, pool=pool, precision="float32", method="eager")) for pool in large
    ]
    found += [(f"old, {pool}", partial(apart, pool=pool, method="old")) for pool in ("digits", NATIVE, large[0])]
    found.append((f"compiled, {NATIVE}", partial(apart, pool=NATIVE, method="compiled")))
    return found


def one_line(error: BaseException) -> str:
    """Say an error shortly."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def stop_at_end(*_: Any) -> None:
    raise NoTimeError("the budget was used up here")


@click.command()
@click.option("--source", default="", help="Folder with CIFAR-10.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="The same items on sizes that take a moment.")
@click.option("--seconds", default=480.0, show_default=True, help="Budget, from the start of the imports.")
@click.option("--old", type=click.Path(exists=True, path_type=Path), help="Folder with the files of commit 2922b06.")
@click.option("--only", default="", help="Items whose names begin so.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file with the rows.")
def main(source: str, device: str, tiny: bool, seconds: float, old: Path | None, only: str, out: Path | None) -> None:
    """Measure and print."""
    if tiny:
        torch.set_num_threads(1)
    session = Session(source, torch.device(device), tiny, STARTED + seconds, old)
    session.say("machine", device_name(session.device), f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    signal.signal(signal.SIGALRM, stop_at_end)
    for name, work in items():
        if not name.startswith(only):
            continue
        if session.left() <= 0:
            session.say(name, "", "not done: the budget is used up")
            continue
        signal.setitimer(signal.ITIMER_REAL, session.left())
        began = time.monotonic()
        try:
            work(session)
        except Exception as error:  # the next item is worth as much
            session.say(name, f"after {time.monotonic() - began:.0f} s", one_line(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    print("\n| item | case | result |\n|---|---|---|")
    for row in session.rows:
        print("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
    if out is not None:
        write_json_atomic(out, {"rows": session.rows})


STARTED = time.monotonic()

if __name__ == "__main__":
    main()
