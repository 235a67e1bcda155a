"""Qualcomm's compiler through LiteRT's plugin, and the proof of what it made: the binary in the file, run in emulation.

That all operators are taken in one piece says nothing about numbers: a graph of 4-axis SiLUs was, and gave noise (docs/targets.md). So the
binary is pulled out of the file and run in the emulator of ONNX Runtime's QNN package against LiteRT's interpreter on the CPU. Where they
part, the first tensor that differs is found by compiling the file again with some of its tensors as outputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quad.compile.first_divergence import first_under
from quad.compile.litert.aot.chips import Chip
from quad.compile.litert.aot.dispatch import read_dispatch, write_context
from quad.compile.litert.aot.observed import ObservedModel, computed_tensors, has_byte_activations, observed_name, with_outputs
from quad.compile.litert.aot.plugin import PluginRun, apply_plugin
from quad.compile.qnn.chips import soc_named
from quad.compile.qnn.compile_graph import compiler_options
from quad.compile.qnn.htp import require_compiler
from quad.core.decibels import array_sqnr_db
from quad.core.errors import BackendError, mismatch
from quad.core.storage.files import scratch_directory, write_bytes

Arrays = Mapping[str, NDArray[Any]]
# LiteRT's interpreter and the HTP round at other places. Measured with 16-bit activations: 47.6 to 64.8 dB on the reference model's U-Net,
# 50 dB on one of 16 channels; with 8-bit ones 23 dB and more. A fault of the compiler gave 8 dB and less.
AGREE_DB, BYTE_AGREE_DB = 35.0, 20.0
_STAND_IN = "libQnnLpai.so"


@dataclass(frozen=True, kw_only=True)
class ProvenFile:
    """A file for one chip, proven.

    Args:
        run: what the plugin said.
        agreement_db: SQNR against the interpreter, by what the graph was fed with.
    """

    run: PluginRun
    agreement_db: Mapping[str, float]


def require_qualcomm(chip: Chip) -> None:
    """Refuse a build whose binaries could not be made.

    Raises:
        BackendError: the package with Qualcomm's compiler is not installed.
    """
    try:
        require_compiler()
    except BackendError as error:
        raise BackendError(f"--soc {chip.name}: {error}") from error


def compile_qualcomm(model: Path, chip: Chip, output: Path, feeds: Mapping[str, Arrays]) -> ProvenFile:
    """Compile a file for a chip and prove it; nothing stays where it is not right.

    Args:
        model: the `.tflite` file, of integers.
        feeds: name -> every input of the graph, as the file has them.

    Raises:
        BackendError: the compiler does not take the whole graph, or computes it under `limit_of` it; the first wrong tensor is named.
    """
    with scratch_directory() as scratch:
        run = _compile(model, chip, scratch / output.name, scratch)
        observed = ObservedModel(model.read_bytes(), model.parent.name)
        limit_db = limit_of(observed.content)
        agreement_db: dict[str, float] = {}
        for name, feed in feeds.items():
            (agreement_db[name],) = emulated_db(scratch / output.name, chip, observed, feed, observed.outputs, scratch)
            if agreement_db[name] < limit_db:
                where = f"{model.parent.name} on {chip.name} with {name}"
                hint = _first_wrong(model, chip, observed, feed, limit_db)
                raise BackendError(
                    mismatch(where, f"at least {limit_db:.0f} dB against LiteRT's CPU", f"{agreement_db[name]:.1f} dB", hint)
                )
        write_bytes(output, (scratch / output.name).read_bytes())
    return ProvenFile(run=run, agreement_db=agreement_db)


def _compile(model: Path, chip: Chip, output: Path, scratch: Path) -> PluginRun:
    run = apply_plugin(model, chip, output, libraries=[qualcomm_libraries(scratch)])
    where = f"{model.parent.name} on {chip.name} through LiteRT"
    if not run.done:
        raise BackendError(mismatch(where, "a graph that the compiler takes", run.fault, "report it with the model's name"))
    if not run.whole:
        found = f"{run.selected} of {run.ops}, {run.partitions} partitions"
        raise BackendError(mismatch(where, f"all {run.ops} operators in one partition", found, "report it with the model's name"))
    return run


def qualcomm_libraries(scratch: Path) -> Path:
    """A folder with Qualcomm's libraries, as LiteRT's plugin is linked against them.

    It also wants that of an accelerator which quad compiles nothing for and the package has not: another one stands in, unused.
    """
    import onnxruntime_qnn  # an extra

    folder = scratch / "qnn"
    if not folder.exists():
        folder.mkdir()
        package = Path(onnxruntime_qnn.__file__).parent
        for library in [*package.glob("*.so*"), *package.with_name(f"{package.name}.libs").glob("*.so*"), *package.glob(".libs/*.so*")]:
            os.symlink(library, folder / library.name)
        if not (folder / _STAND_IN).exists():
            os.symlink(package / "libQnnSystem.so", folder / _STAND_IN)
    return folder


def emulated_db(compiled: Path, chip: Chip, observed: ObservedModel, feed: Arrays, tensors: Sequence[int], scratch: Path) -> list[float]:
    """SQNR of each of these tensors, outputs of the compiled file in this order, in emulation against the interpreter.

    Args:
        feed: every input, as the file has it.
        tensors: places in `observed`.
        scratch: a folder for the binary.

    Raises:
        BackendError: the binary has not the file's names, or the emulator does not take it.
    """
    from quad.runtime.engines.qnn import htp_session  # an extra

    dispatch = read_dispatch(compiled)
    if odd := [each.port for each in (*dispatch.inputs, *dispatch.outputs) if each.port.encode() not in dispatch.binary]:
        # The provider would end the process.
        raise BackendError(mismatch(compiled.name, "the file's names in its binary", f"no {odd[0]}", "report it with the model's name"))
    session = htp_session(write_context(dispatch, scratch), options=compiler_options(soc_named(chip.name)))
    outputs = session.run([each.port for each in dispatch.outputs], {each.port: feed[each.name] for each in dispatch.inputs})
    values = {each.name: output for each, output in zip(dispatch.outputs, outputs, strict=True)}
    names = [name if (name := observed_name(place)) in values else observed.names[place] for place in tensors]
    return [
        array_sqnr_db(observed.real(place, true), observed.real(place, values[name]))
        for place, true, name in zip(tensors, observed.run(feed, tensors), names, strict=True)
    ]


def _first_wrong(model: Path, chip: Chip, observed: ObservedModel, feed: Arrays, limit_db: float) -> str:
    """A hint that names the first tensor, in the order of the graph, which is computed wrongly."""
    candidates = computed_tensors(observed.content)

    def compare(places: Sequence[int]) -> list[float]:
        tensors = sorted({candidates[place] for place in places}, key=candidates.index)
        with scratch_directory() as scratch:
            altered = scratch / model.parent.name / model.name
            altered.parent.mkdir()
            write_bytes(altered, with_outputs(observed.content, tensors))
            _compile(altered, chip, scratch / "observed.tflite", scratch)
            return emulated_db(scratch / "observed.tflite", chip, observed, feed, tensors, scratch)

    try:
        first = first_under(len(candidates), compare, limit_db)
    except BackendError:  # a file with more outputs may be one that the compiler refuses
        first = None
    if first is None:
        return "report it with the model's name"
    name = observed.names[candidates[first[0]]]
    return f"first to diverge is {name} ({first[1]:.1f} dB): write its operator another way"


def limit_of(content: bytes) -> float:
    """The least agreement that a file is held to: lower where it computes on 8-bit activations."""
    return BYTE_AGREE_DB if has_byte_activations(content) else AGREE_DB
