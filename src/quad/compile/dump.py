"""`--dump-passes`: the graph after each pass, to be opened in a viewer, and a census of its operators.

DIR/census.md, DIR/census.json                       what each pass did, as a table and as JSON
DIR/COMPONENT/NN-PASS.onnx                           the graphs; the Sites of those before placement are nodes of the domain `quad`
DIR/COMPONENT/weights.data                           every constant of theirs over 1 KiB, once
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from quad.compile.passes import Observer, unobserved
from quad.core.storage.directories import new_directory

CENSUS_FILE = "census.json"
TABLE_FILE = "census.md"
OPTION = "--dump-passes"
WEIGHTS_FILE = "weights.data"
_LARGE_BYTES = 1024
_ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class DumpStep:
    """A graph after one pass.

    Args:
        operators: operator type -> how many; those of another domain as `domain::type`.
        changed: operator type -> how many more than one step before.
        seconds: from the end of the step before, what writing took left out.
    """

    name: str
    file: str
    operators: Mapping[str, int]
    changed: Mapping[str, int]
    seconds: float

    @property
    def nodes(self) -> int:
        return sum(self.operators.values())

    def to_json(self) -> dict[str, Any]:
        """As it stands in `census.json`."""
        return {"pass": self.name, "file": self.file, "nodes": self.nodes, "operators": dict(self.operators), "changed": dict(self.changed),
                "seconds": round(self.seconds, 4)}  # fmt: skip


def census(model: ir.Model) -> dict[str, int]:
    """How many operators of each type, sorted by type."""
    return dict(sorted(Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph).items()))


@contextmanager
def dumping(directory: Path | None) -> Iterator[Dump | None]:
    """A dump that gets its name when the block ends well; None where no directory is given.

    Raises:
        InputError: the directory holds something that is no dump.
        BackendError: the disk is full or the place cannot be written to.
    """
    if directory is None:
        yield None
        return
    with new_directory(directory, CENSUS_FILE, OPTION) as stage:
        dump = Dump(stage)
        yield dump
        dump.write_census()


def observer_of(dump: Dump | None, component: str) -> Observer:
    """The observer that a component's passes report to."""
    return unobserved if dump is None else dump.component(component)


class Dump:
    """The dump of one build in its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._steps: dict[str, list[DumpStep]] = {}

    def component(self, name: str) -> Observer:
        """An observer that writes each graph it is told of."""
        steps = self._steps.setdefault(name, [])
        folder = self._directory / name
        folder.mkdir()
        weights, since = _Weights(folder / WEIGHTS_FILE), time.perf_counter()

        def observe(step: str, model: ir.Model) -> None:
            nonlocal since
            seconds, operators = time.perf_counter() - since, census(model)
            before = steps[-1].operators if steps else {}
            changed = {op: n for op in sorted({*operators, *before}) if (n := operators.get(op, 0) - before.get(op, 0))}
            file = f"{name}/{len(steps):02d}-{step}.onnx"
            steps.append(DumpStep(name=step, file=file, operators=operators, changed=changed if steps else {}, seconds=seconds))
            weights.save(model, self._directory / file)
            since = time.perf_counter()

        return observe

    def write_census(self) -> None:
        """Both forms of it."""
        components = {name: [step.to_json() for step in steps] for name, steps in self._steps.items()}
        (self._directory / CENSUS_FILE).write_text(json.dumps({"components": components}, indent=1) + "\n", encoding="utf-8")
        (self._directory / TABLE_FILE).write_text("\n".join(_table(self._steps)) + "\n", encoding="utf-8")


def _table(components: Mapping[str, Sequence[DumpStep]]) -> list[str]:
    lines = ["# What each pass did", "", "`+` and `-`: operators more or fewer than one line above; a line without had nothing to do.", ""]
    for name, steps in components.items():
        lines += [f"## {name}", "", "| | after | nodes | changed | s |", "|---|---|---|---|---|"]
        for index, step in enumerate(steps):
            shown = step.changed if index else step.operators
            changed = ", ".join(f"{op} {count:+d}" if index else f"{op} {count}" for op, count in shown.items())
            lines.append(f"| {index:02d} | {step.name} | {step.nodes} | {changed} | {step.seconds:.2f} |")
        lines.append("")
    return lines


class _Weights:
    """The one file of a component's large constants; graphs refer to places in it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def save(self, model: ir.Model, path: Path) -> None:
        """Write a graph whose large constants are in the file; the model stays as it is."""
        copy = model.clone()
        with self._file.open("ab") as stream:
            for value in copy.graph.initializers.values():
                if value.const_value is not None and value.const_value.nbytes >= _LARGE_BYTES:
                    value.const_value = self._placed(value.const_value, stream)
        ir.save(copy, path)

    def _placed(self, tensor: ir.TensorProtocol, stream: BinaryIO) -> ir.ExternalTensor:
        data = tensor.tobytes()
        key = hashlib.sha256(data).hexdigest()
        if key not in self._places:
            padding = -self._end % _ALIGNMENT
            stream.write(b"\0" * padding + data)
            self._places[key] = (self._end + padding, len(data))
            self._end += padding + len(data)
        shape, base = ir.Shape(tensor.shape.numpy()), self._file.parent
        return ir.ExternalTensor(WEIGHTS_FILE, *self._places[key], tensor.dtype, shape=shape, name=tensor.name or "", base_dir=base)
