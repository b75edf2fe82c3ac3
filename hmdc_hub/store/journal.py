"""log.jsonl: one line for every image step, and the events that are made of the same."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from hmdc_hub.events import Callback, ImageStep, Note
from hmdc_hub.store.files import write_bytes_atomic

RECENT = 50
"""Steps that the remaining time is told from."""


class Journal:
    """The log of a run, log.jsonl; the callback is told about every step. A rank that only works writes none."""

    def __init__(self, path: Path, callback: Callback, *, writes: bool = True) -> None:
        self.path, self.callback, self.writes = path, callback, writes
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._lines: list[str] = []

    def add(self, step: ImageStep, seconds: float) -> None:
        """Note an image step that took so long, and tell the callback."""
        self._recent.append(seconds)
        event = replace(
            step,
            images_per_second=step.images / max(seconds, 1e-9),
            seconds_left=(step.total - step.done) * sum(self._recent) / len(self._recent),
        )
        self._lines.append(json.dumps(_plain(event)) + "\n")
        self.callback(event)

    def flush(self) -> None:
        """Write what was noted since the last time."""
        if self.writes and self._lines:
            with self.path.open("a", encoding="utf-8") as log:
                log.writelines(self._lines)
        self._lines.clear()

    def truncate(self, done: int) -> None:
        """Drop lines of steps that a resume makes again, and whatever is no line of ours: a log stops no run."""
        if not self.writes or not os.path.lexists(self.path):
            return
        try:
            if not self.path.is_file():
                raise OSError("it is no file")
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            self.path.rename(aside)
            self.callback(Note(f"log.jsonl cannot be read ({error.strerror or error}): it is now {aside.name}"))
            return
        steps = [_step(line) for line in lines]
        kept = [line for line, step in zip(lines, steps, strict=True) if step is not None and step <= done]
        if damaged := steps.count(None):
            self.callback(Note(f"{damaged} damaged line{'s' * (damaged > 1)} of log.jsonl dropped"))
        if kept != lines:
            write_bytes_atomic(self.path, b"".join(kept))


def _step(line: bytes) -> int | None:
    """Read which image step a line is about; None for what is no line of ours, or not a whole one."""
    try:
        fields = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    step = fields.get("done") if isinstance(fields, dict) else None
    return step if type(step) is int and step > 0 else None


def _plain(event: ImageStep) -> dict[str, Any]:
    """Turn an event into a log line's fields, numbers rounded to what a reader can use."""
    fields = {name: value for name, value in vars(event).items() if name != "images"}
    for key in ("losses", "shares", "accuracies"):
        fields[key] = {name: float(f"{value:.6g}") for name, value in fields[key].items()}
    tenths = {key: round(fields[key], 1) for key in ("images_per_second", "seconds_left")}
    return fields | {"clamped": float(f"{event.clamped:.6g}")} | tenths
