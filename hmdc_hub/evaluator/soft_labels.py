"""Trainings on soft labels: teachers, what they say of every training image, and students that learn that.

A network that learns a teacher's answers learns from the full set, through its teacher, on any images: such scores
stand in a table of their own, and random images are trained on in the same way beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmdc_hub.errors import Interrupted, RunError
from hmdc_hub.evaluator.baselines import TrainingSet
from hmdc_hub.evaluator.result_log import BaselineCache, CellName, FinishedTraining, ResultLog
from hmdc_hub.evaluator.train import Images, logits_of, train_and_score
from hmdc_hub.evaluator.trainer import Trainer, TrainingJob, one_thread, run_jobs, training_tensors, worker_count
from hmdc_hub.events import Note, Stage, Training
from hmdc_hub.metrics import FULL, SOFT_SETS, summarise_soft_labels
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.processes import Work
from hmdc_hub.schema import AugmentSpec, Cell, EvaluateSpec, SoftLabelScores
from hmdc_hub.sources import Source
from hmdc_hub.store.files import write_bytes_atomic

# No student has it, so none begins with the weights that its teacher began with.
TEACHER_SEED = -1
DIGEST = "sha256"  # of a teacher's weights, in the metadata of their file


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network, as far as students need it."""

    accuracy: float  # on the images that are scored on, in [0, 1]
    targets: list[Tensor]  # of each training set its soft labels, float32 M x C on the CPU
    weights: str  # SHA-256 (hex)


def soft_labels(logits: Tensor, temperature: float) -> Tensor:
    """Turn a teacher's logits into what its students learn: softmax(logits / temperature).

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, equation 1.

    Args:
        logits: ... x C, of any floating type.
        temperature: Above 0; 1 leaves the teacher's probabilities, larger ones are softer.

    Returns:
        float32 ... x C, each row with the sum 1.
    """
    return (logits.float() / temperature).softmax(-1)


def without_augmentation(protocol: EvaluateSpec) -> EvaluateSpec:
    """Return the protocol with augmentation and CutMix off, and everything else as it is."""
    off = AugmentSpec(flip=False, color=[], crop=False, scale=False, rotate=False, cutout=False)
    return protocol.model_copy(
        update={"augment": off, "cutmix": protocol.cutmix.model_copy(update={"evaluate": False})}
    )


class SoftLabelEvaluation:
    """The trainings on soft labels of one evaluation.

    `sets` are all of its training sets, `seconds` guesses of how long trainings on them take; `log` holds those on hard
    labels, and the lines of these go into the same file. Below `worth` guessed seconds no processes are started.
    """

    def __init__(
        self,
        protocol: EvaluateSpec,
        source: Source,
        sets: Sequence[TrainingSet],
        seconds: Mapping[TrainingJob, float],
        log: ResultLog,
        cache: BaselineCache,
        work: Work,
        worth: float,
    ) -> None:
        self.protocol = protocol.model_copy(update={"best_every": None})
        self.source, self.log, self.cache, self.work = source, log, cache, work
        self.numbers = [number for number, made in enumerate(sets) if made.name in SOFT_SETS]
        self.sets = [sets[number] for number in self.numbers]
        self.seconds, self.worth = seconds, worth
        self.kind = (log.environment, log.images)

    def scores(self, hard: Sequence[Cell]) -> SoftLabelScores:
        """Do what nobody has done yet, and put everything together; `hard` are the trainings on hard labels."""
        names = [model.name for model in self.protocol.models]
        asked = self.protocol.soft_labels.teacher
        taught_by = {name: name if asked == "same" else asked for name in names}
        try:
            wanted = list(dict.fromkeys(taught_by.values()))
            self.work.callback(Stage("soft labels", f"teacher {', '.join(wanted)}, trained on the full set"))
            teachers = {name: self.teacher(names.index(name)) for name in wanted}
            cells, unaugmented = self._train([teachers[taught_by[name]] for name in names])
        except Interrupted as error:
            raise Interrupted(
                "stopped while training on soft labels; finished trainings are kept",
                signal_number=error.signal_number,
                hint="The same call goes on with the others.",
            ) from error
        return SoftLabelScores(
            teachers={name: teachers[taught_by[name]].accuracy for name in names},
            cells=cells,
            unaugmented=unaugmented,
            **summarise_soft_labels(hard, cells, unaugmented, names),
        )

    def teacher(self, index: int) -> Teacher:
        """Train one of the protocol's models on the full set, or read its weights, and ask it."""
        spec, device, train = self.protocol.models[index], self.work.device, self.source.train
        setting = Trainer(self.protocol, training_tensors(self.source, []), device, self.work.stop).setting
        full = TrainingSet(FULL, 0, train.images, train.labels, len(train.images))
        model, path = build_for(spec, self.source).to(device), self.cache.weights(full, spec.name, TEACHER_SEED)
        with one_thread(device):
            if path is None or not self.work.reuse or not _read_weights(model, str(path)):
                images = Images(train.images, train.labels).to(device)
                train_and_score([model], images, [TEACHER_SEED], setting, full=True)
                if path is not None:
                    with suppress(OSError, RunError):  # a folder that cannot be written is no reason to lose it
                        state = _state(model)
                        write_bytes_atomic(path, safetensors.torch.save(state, {DIGEST: _digest(state)}))
            answers = logits_of(model, setting.test.pixels, setting).argmax(1)
            temperature = self.protocol.soft_labels.temperature
            targets = [soft_labels(logits_of(model, made.images, setting), temperature).cpu() for made in self.sets]
        accuracy = int((answers == setting.test.labels).sum()) / len(answers)
        self.work.callback(Note(f"teacher {spec.name}: {accuracy:.1%} of the images that are scored on"))
        return Teacher(accuracy, targets, _digest(_state(model)))

    def _train(self, teachers: Sequence[Teacher]) -> tuple[list[Cell], list[Cell]]:
        """Train every student on the answers of its teacher, with augmentation and without."""
        jobs, guesses = dict[CellName, TrainingJob](), dict[TrainingJob, float]()
        # The sets of one student after those of another: each has the labels of its own teacher.
        for (student, model), (place, made), seed in product(
            enumerate(self.protocol.models), enumerate(self.sets), range(self.protocol.seeds)
        ):
            job = TrainingJob(student, student * len(self.sets) + place, seed)
            jobs[model.name, made.name, made.draw, seed] = job
            guesses[job] = self.seconds[TrainingJob(student, self.numbers[place], seed)]
        tensors = self._tensors(teachers)
        # Other weights of a teacher, such as another device gives, make other trainings.
        about = {"soft_labels": [teacher.weights for teacher in teachers]}
        logs = [
            ResultLog(self.log.path, self.log.hashes | about | {"augmented": augmented}, *self.kind)
            for augmented in (True, False)
        ]
        protocols = (self.protocol, without_augmentation(self.protocol))
        done, total = sum(len(log.finished) for log in logs), len(logs) * len(jobs)
        if done:
            self.work.callback(Note(f"{done} of {total} trainings on soft labels were done before"))
        left = sum(guesses[job] for log in logs for whole, job in jobs.items() if whole not in log.finished)
        work = replace(self.work, workers=1) if self.work.workers is None and left < self.worth else self.work
        guessed = taken = 0.0
        for log, protocol, how in zip(logs, protocols, ("soft labels", "soft labels, no augmentation"), strict=True):
            ahead = {job: whole for whole, job in jobs.items() if whole not in log.finished}
            longest_first = sorted(ahead, key=lambda job: -guesses[job])
            for job, result in run_jobs(protocol, tensors, longest_first, work):
                (student_name, name, draw, number), done = ahead[job], done + 1
                cell = Cell(
                    model=student_name, training_set=name, draw=draw, seed=number,
                    accuracy=result.accuracy, ece=result.ece,
                )  # fmt: skip
                log.add(FinishedTraining(cell, result.predicted))
                guessed, taken = guessed + guesses[job], taken + result.seconds
                more = max(left - guessed, 0.0) * taken / guessed / worker_count(work, len(ahead))
                self.work.callback(Training(done, total, cell.model, f"{name}, {how}", cell.accuracy, more))
        order = sorted(jobs, key=lambda name: (jobs[name].training_set % len(self.sets), jobs[name].model, name[-1]))
        with_it, without = ([log.finished[name].cell for name in order] for log in logs)
        return with_it, without

    def _tensors(self, teachers: Sequence[Teacher]) -> dict[str, Tensor]:
        """Gather what students read: for each teacher all sets, with its labels."""
        # Copies, since a file for worker processes holds no tensor under two names.
        again = [replace(made, images=made.images.clone()) for _ in teachers for made in self.sets]
        targets = [labels for teacher in teachers for labels in teacher.targets]
        labels = {f"{number}.labels": made.labels.clone() for number, made in enumerate(again)}
        soft = {f"{number}.targets": values.clone() for number, values in enumerate(targets)}
        return training_tensors(self.source, again) | labels | soft


def _state(model: PoolModel) -> dict[str, Tensor]:
    """Copy a model's parameters and buffers to the CPU."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


def _digest(state: Mapping[str, Tensor]) -> str:
    """Hash tensors with their names: SHA-256 (hex)."""
    whole = hashlib.sha256()
    for name, value in sorted(state.items()):
        whole.update(name.encode() + b"\0" + value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _read_weights(model: PoolModel, path: str) -> bool:
    """Give a model the weights in a file; False, and the model as it was, if they are not there or damaged."""
    try:
        with safe_open(path, "pt") as file:
            checksum = (file.metadata() or {}).get(DIGEST)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    if checksum != _digest(state):
        return False
    model.load_state_dict(state)
    return True
