"""Networks that are trained on the source before condensing begins, and the bank of their early stages.

The bank (`condense.networks.bank`) is that of Acc-DD: Zhang et al., Accelerating Dataset Distillation via Model
Augmentation, CVPR 2023 (arXiv 2212.06152). A network that matching meets need be neither fresh nor trained between
image steps: it begins as an early stage of one of a few networks that were trained beforehand, and weight noise makes
it another one at every reset.
"""

from __future__ import annotations

import copy
import json
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from hmdc_hub import rng
from hmdc_hub.condenser.checkpoint import UNUSABLE
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.condenser.pool import ModelPool, parts_of_a_minibatch
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.errors import DivergedError, RunError
from hmdc_hub.events import Callback, Note, Stage, StopFlag, silent
from hmdc_hub.execution import Execution
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.provenance import device_name, versions
from hmdc_hub.schema import CondenseSpec, ModelSpec, Recipe, canonical_json, plain_models, sha256_of
from hmdc_hub.store.condensed import METADATA_KEY, Parts, check_header, content_digest, write_tensors
from hmdc_hub.store.files import cache_folder
from hmdc_hub.text import amount, count, duration

FORM = 1  # of the files, and of how their networks are trained; the keys of all have it
EPSILON = 1e-10  # beside the length of a filter of noise


def training(
    model: PoolModel, real: RealImages, *, epochs: int, seed: int, callback: Callback = silent
) -> Iterator[int]:
    """Train a model of the pool on the source in place, from fresh weights; in evaluation mode after each minibatch.

    It is trained as the pool is between image steps (`condense.augment`, `cutmix.train`, `networks.batch`, its own
    `lr.condense`), alone: without mutual distillation. Nothing is drawn from the recipe's seed, so that the same
    arguments give the same network in every run, and in every rank.

    Args:
        model: On the device of `real`.
        real: The source, and what the recipe says of condensing it.
        epochs: Passes over the train split, at least 1.
        seed: Of weights, minibatches and augmentation.
        callback: Told where a function cannot run as was meant.

    Yields:
        The number of minibatches done, after each.
    """
    seeded = copy.copy(real)  # the same images, drawn by another seed
    seeded.seed = seed
    networks = ModelPool([model], seeded, Ranks.alone())
    networks.reset(0)
    execution, done = Execution(real.device, callback), 0
    function = execution.function(networks.train, f"training of {model.spec.name}")
    for epoch in range(epochs):
        drawn = seeded.draw_minibatches("trained", (0, epoch), minibatches(real))
        for batch in execution.upload(drawn, together=real.resident):
            function(batch)
            done += 1
            yield done


def minibatches(real: RealImages) -> int:
    """Count the minibatches of a pass over the train split."""
    return -(-len(real.labels) // real.spec.networks.batch)


def perturbed(values: Tensor, noise: float, gen: torch.Generator) -> Tensor:
    """Add weight noise to a parameter, filter by filter.

    Filter i of `values` becomes values_i + noise |values_i| d_i / |d_i| with d_i normal: a random direction of the
    filter's own length (Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018, section 4), as Acc-DD
    takes it. The authors' program adds two such directions, each times a number from [0.01, 0.09] of random sign; by
    root mean square that is a noise of 0.08.

    Args:
        values: float32, on the CPU: filters x ...; with one dimension or none (biases, norms) it is left as it is.
        noise: Length of what is added, as a share of the filter's.
        gen: Draws the directions.

    Returns:
        float32, the shape of `values`.
    """
    if values.dim() < 2 or noise == 0:
        return values
    direction = torch.randn(values.shape, generator=gen).flatten(1)
    length = values.flatten(1).norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True).clamp_min(EPSILON)
    moved: Tensor = values + (noise * length * direction).view_as(values)
    return moved


class _File(NamedTuple):
    path: Path
    bytes: int
    seconds: float  # that training its network took


class Bank:
    """The networks of `condense.networks.bank`: N of every pool entry, each a file with its stages.

    A file's name is a hash of what decides the networks, of the device and of the libraries, so it holds for every
    recipe that asks for the same. Modules of a Python session stay in the run directory: their id does not tell what
    they compute.

    Args:
        recipe: With its source and models settled; what the bank is like, and of which models.
        real: The source.
        own: A folder of this run, for what the user's cache does not take.
        callback: Told what is trained.
        stop: Looked at while networks are trained.
        ranks: That share the networks, and may have different caches.
    """

    def __init__(
        self, recipe: Recipe, real: RealImages, own: Path, callback: Callback, stop: StopFlag, ranks: Ranks
    ) -> None:
        self.recipe, self.real, self.own = recipe, real, own
        self.callback, self.stop, self.ranks = callback, stop, ranks
        self.spec = recipe.condense.networks.bank
        self._alone = ranks.count == 1  # otherwise all stop together
        self._models: dict[int, PoolModel] = {}
        self._found: dict[tuple[int, int], _File] = {}  # those that were whole when they were looked at last
        self._told: set[Path] = set()  # of what damaged files were said

    @cached_property
    def networks(self) -> list[tuple[int, int]]:
        """All of them: places in the pool, with the number of the network."""
        return [(m, n) for n in range(self.spec.num_models) for m in range(len(self.recipe.pool))]

    def start(self, m: int, net: PoolModel, gen: torch.Generator) -> None:
        """Give a model of the pool, in place, the values of a stage that `gen` draws, perturbed by weight noise.

        Running statistics of batch norm are those of the stage.
        """
        n, stage = (int(torch.randint(most, (), generator=gen)) for most in (self.spec.num_models, self.spec.stages))
        values = self._read(m, n, stage, net)
        if values is None:  # it was damaged or removed since the run began
            self._train(m, n)
            values = self._read(m, n, stage, net)
        assert values is not None
        learnt = {name for name, _ in net.named_parameters()}
        net.load_state_dict(
            {name: perturbed(v, self.spec.noise, gen) if name in learnt else v for name, v in values.items()}
        )

    def fill(self) -> float:
        """Train what is not there; returns how long that took. All ranks call it at the same time.

        Interrupted if a stop was asked for; networks that are finished are kept.
        """
        began = time.monotonic()
        here = torch.tensor([float(self._path(*network) is None) for network in self.networks])
        missing = [
            network
            for network, ranks in zip(self.networks, self.ranks.together(here).tolist(), strict=True)
            if ranks > 0
        ]
        if missing:
            self.callback(
                Stage(
                    "bank",
                    f"{count(len(missing), 'network')} of {len(self.networks)}, {self.spec.pretrain_epochs} epochs",
                )
            )
        for i in range(0, len(missing), self.ranks.count):
            for m, n in missing[i : i + self.ranks.count][self.ranks.index :][:1]:
                if self._path(m, n) is None:
                    self._train(m, n)
            if self.ranks.any(self.stop.signal_number > 0):
                self._stopped()
        for m, n in missing:  # what another rank put into a cache that is not this machine's
            if self._path(m, n) is None:
                self._train(m, n)
        self._models.clear()
        seconds, files = time.monotonic() - began, self._files()
        how = f"{len(missing)} of them trained in {duration(seconds)}" if missing else "all there already"
        where = " and ".join(sorted({str(file.path.parent) for file in files}))
        self.callback(
            Note(
                f"bank: {count(len(files), 'network')}, {how}; {count(self.spec.stages, 'stage')} each, "
                f"{amount(sum(file.bytes for file in files))} in {where}"
            )
        )
        return seconds

    def seconds(self) -> float | None:
        """Return how long training all of them took, whenever that was, one after another; None if one is not there."""
        files = self._files()
        return round(sum(file.seconds for file in files), 1) if len(files) == len(self.networks) else None

    def _files(self) -> list[_File]:
        """List the files that are there, or were when they were read last."""
        for network in self.networks:
            if network not in self._found:
                self._path(*network)
        return [self._found[network] for network in self.networks if network in self._found]

    def _stopped(self) -> None:
        message = f"stopped while the bank was trained; {len(self._files())} of {len(self.networks)} networks are kept"
        StopFlag(self.stop.signal_number or signal.SIGTERM).raise_if_set(message)  # or another rank was asked

    def _folders(self, m: int) -> list[Path]:
        return [cache_folder("bank"), self.own] if self.recipe.pool[m].reproducible else [self.own]

    def _name(self, m: int, n: int) -> str:
        key = file_key(self.recipe.pool[m], self.recipe.condense, n, self.real.device)
        return f"{key}-{self.real.source.info.fingerprint[:32]}.safetensors"

    def _path(self, m: int, n: int) -> Path | None:
        """Find a network's file, if it is whole."""
        for folder in self._folders(m):
            path = folder / self._name(m, n)
            if path.is_file() and (found := self._whole(path)) is not None:
                self._found[m, n] = found
                return path
        return None

    def _whole(self, path: Path) -> _File | None:
        try:
            facts = _facts(path)
            if facts["digest"] != content_digest(path):
                raise ValueError("its contents do not match its digest")
            if facts["name"] != path.name:
                raise ValueError("it was renamed")
            return _File(path, path.stat().st_size, float(facts["seconds"]))
        except UNUSABLE as error:
            if path not in self._told:
                self._told.add(path)
                self.callback(Note(f"{path} cannot be used ({error}); the network is trained again"))
            return None

    def _read(self, m: int, n: int, stage: int, net: PoolModel) -> dict[str, Tensor] | None:
        """Read a stage as the model's `state_dict`; None if there is none."""
        if (path := self._path(m, n)) is None:
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(f"{stage}.{name}") for name in net.state_dict()}

    def _train(self, m: int, n: int) -> None:
        """Train a network, and write its stages."""
        spec, real = self.spec, self.real
        if m not in self._models:
            self._models[m] = build_for(self.recipe.pool[m], real.source).to(real.device)
        model, total, stages = self._models[m], spec.pretrain_epochs * minibatches(real), dict[str, Tensor]()
        began, wanted = time.monotonic(), stage_ends(total, spec.stages)
        seed = rng.derived_seed(spec.seed, "bank", n)
        for done in training(model, real, epochs=spec.pretrain_epochs, seed=seed, callback=self.callback):
            if self._alone and self.stop.signal_number:
                self._stopped()
            for stage in (stage for stage, end in enumerate(wanted) if end == done):
                for name, value in model.state_dict().items():
                    stages[f"{stage}.{name}"] = value.detach().cpu().clone()
        if not all(bool(torch.isfinite(value).all()) for value in stages.values()):
            raise DivergedError(
                f"network {n + 1} of {model.spec.name} in condense.networks.bank is not finite after {total} "
                "minibatches",
                hint=f"Lower lr.condense of pool entry {model.spec.name}, which is {model.spec.lr.condense:g}.",
            )
        self._write(m, n, stages, time.monotonic() - began)

    def _write(self, m: int, n: int, stages: dict[str, Tensor], seconds: float) -> None:
        name = self._name(m, n)
        facts = {"format_version": FORM, "name": name, "source": source_key(self.recipe), "seconds": f"{seconds:.3f}"}
        parts = {key: Parts.of(value) for key, value in stages.items()}
        *first, last = self._folders(m)
        for folder in first:
            with suppress(RunError):  # a cache that cannot be written is no reason to stop
                write_tensors(folder / name, parts, lambda digest: canonical_json(facts | {"digest": digest}))
                return
        write_tensors(last / name, parts, lambda digest: canonical_json(facts | {"digest": digest}))


def stage_ends(minibatches: int, stages: int) -> list[int]:
    """Say after how many minibatches of all each stage is kept; where there are fewer of them, some are the same."""
    return [-(-minibatches * (stage + 1) // stages) for stage in range(stages)]


def file_key(model: ModelSpec, spec: CondenseSpec, n: int, device: torch.device) -> str:
    """Hash what decides network n of a pool entry beside the source: how it is trained, on what, by which libraries."""
    entry = plain_models([model.model_dump(mode="json")])[0]
    # What it is called, and what evaluation does with it.
    entry = {key: value for key, value in entry.items() if key not in ("name", "cutmix", "lr")}
    networks, cpu = spec.networks, device.type == "cpu"
    whole = {
        "form": FORM,
        "model": entry | {"lr": model.lr.condense},
        "epochs": networks.bank.pretrain_epochs,
        "stages": networks.bank.stages,
        "seed": networks.bank.seed,
        "network": n,
        "batch": networks.batch,
        "parts": parts_of_a_minibatch(spec),  # they tell in the last bits
        "augment": spec.augment.model_dump(mode="json"),
        "cutmix": spec.cutmix.probability if spec.cutmix.train else None,
        "versions": versions([model.source]),
        "device": device_name(device),
        "cpu": [torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()] if cpu else None,
    }
    return sha256_of(whole)[:32]


def source_key(recipe: Recipe) -> str:
    """Hash what a recipe says of its source: with it a dry run, which reads no images, finds the files of a bank."""
    return sha256_of(recipe.source.model_dump(mode="json"))


def missing_networks(recipe: Recipe, device: torch.device) -> list[int]:
    """Count for each model of the pool the networks of its bank that no file was found for, without reading images."""
    spec, source = recipe.condense, source_key(recipe)

    def there(model: ModelSpec, n: int) -> bool:
        for path in cache_folder("bank").glob(f"{file_key(model, spec, n, device)}-*.safetensors"):
            with suppress(*UNUSABLE):
                if model.reproducible and _facts(path)["source"] == source:
                    return True
        return False

    return [sum(not there(model, n) for n in range(spec.networks.bank.num_models)) for model in recipe.pool]


def _facts(path: Path) -> dict[str, Any]:
    check_header(path)
    with safetensors.safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[METADATA_KEY])
    if facts["format_version"] != FORM:
        raise ValueError(f"its format is {facts['format_version']}, this program's is {FORM}")
    return facts
