"""The full-precision side of an ablation, made once: pictures, their features, and the adapters' true effects on the U-Net."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quad.core.device import CPU
from quad.core.digests import digest
from quad.core.manifest import TaskSpec
from quad.core.storage.files import write_bytes
from quad.evaluate.figures.effect import TrueEffect, calls_in_turns, held_out_probes, true_effects
from quad.evaluate.figures.identity import adapter_identities, model_identity
from quad.evaluate.figures.paired import PictureFeatures, extract
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import PictureRequest, Reference
from quad.zoo.judge import Judge
from quad.zoo.samples import TASKS


class ReferenceSide:
    """The side that every row is compared with; pictures are kept in files, so that a run that was killed does not make them again."""

    def __init__(self, model: Path, *, adapters: Mapping[str, Path], n: int, cache: Path, device: str = CPU) -> None:
        """Open the model.

        Args:
            n: held-out samples a task.
            cache: directory for the pictures.
            device: that torch computes on.

        Files made from this model are named by `digest`, of its weights and settings, and `adapter_digests`, by name.
        """
        self.n = n
        self._model, self._adapters, self._cache = model, dict(adapters), cache
        self._reference, self.judge = Reference(model, self._adapters).on(device), Judge.load()
        self.digest = model_identity(model, self._reference.digest)
        self.adapter_digests = adapter_identities(self._adapters)
        self._features: dict[str, PictureFeatures] = {}
        self._effects: dict[str, list[TrueEffect]] = {}

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """The model's tasks that have held-out samples."""
        return {task: self._reference.tasks[task] for task in TASKS if task in self._reference.tasks}

    def requests(self, task: str) -> list[PictureRequest]:
        """The requests of both sides."""
        return picture_requests(held_out(task, self.n))

    def features(self, task: str, spec: TaskSpec) -> PictureFeatures:
        """The task's FP32 pictures with the judge's features of them, run as `spec` says."""
        adapter = None if spec.adapter is None else self.adapter_digests[spec.adapter]
        key = digest({"model": self.digest, "adapter": adapter, "spec": spec, "task": task, "n": self.n})[:16]
        if key not in self._features:
            self._features[key] = extract(self._pictures(task, spec, self._cache / f"{task}-{key}.npy"), self.judge)
        return self._features[key]

    def _pictures(self, task: str, spec: TaskSpec, file: Path) -> NDArray[np.uint8]:
        if file.is_file():
            pictures: NDArray[np.uint8] = np.load(file, allow_pickle=False)
            return pictures
        pictures = self._reference.pictures(task, self.requests(task), spec)
        buffer = io.BytesIO()
        np.save(buffer, pictures, allow_pickle=False)
        write_bytes(file, buffer.getvalue())
        return pictures

    def effects(self, tasks: Mapping[str, TaskSpec]) -> list[TrueEffect]:
        """The change that the adapters of these tasks make in single U-Net calls."""
        effects = []
        for task, spec in tasks.items():
            key = digest({"spec": spec, "task": task})
            if key not in self._effects:
                probes = held_out_probes(self._model, self._adapters, {task: spec}, self.n, self._reference.device)
                self._effects[key] = true_effects(self._reference, calls_in_turns(probes))
            effects += self._effects[key]
        return effects
