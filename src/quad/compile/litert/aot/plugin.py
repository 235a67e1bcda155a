"""LiteRT's compiler plugins, run by the program that its package brings."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quad.compile.litert.aot.chips import Chip
from quad.core.errors import BackendError, mismatch

PACKAGE = "ai_edge_litert"
_CENSUS = re.compile(r"selected (\d+) ops, from a total of (\d+) ops\. resulted in (\d+) partitions")
_FAULT = re.compile(r"^.*?ERROR: \[[^\]]*\] (?!ERROR:)(\S.*)$", re.MULTILINE)
_LONGEST_S, _LONGEST_FAULT = 3600, 300


@dataclass(frozen=True, kw_only=True)
class PluginRun:
    """A plugin's run over a file.

    Args:
        done: it wrote its result.
        selected, ops: how many operators it takes, of how many.
        partitions: into how many pieces they fall.
        fault: what it says went wrong, in one line; empty where nothing did.
    """

    done: bool
    selected: int
    ops: int
    partitions: int
    fault: str

    @property
    def whole(self) -> bool:
        """All operators, in one piece."""
        return self.ops > 0 and self.selected == self.ops and self.partitions == 1


def package_folder() -> Path:
    """Where LiteRT's package lies; it is not imported.

    Raises:
        BackendError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise BackendError(mismatch("target litert", f"the package {PACKAGE}", "none", "install it: pip install 'quad[litert]'"))
    return Path(spec.origin).parent


def apply_plugin(model: Path, chip: Chip, output: Path, *, libraries: Sequence[Path] = (), environment: Mapping[str, str] | None = None
                 ) -> PluginRun:  # fmt: skip
    """Have a chip's plugin partition and compile a file.

    Args:
        model: the `.tflite` file.
        output: what the plugin writes.
        libraries: folders of the vendor's libraries.
        environment: variables, beside this process's.

    Raises:
        BackendError: the package is not installed, or its program does not run or end on this machine.
    """
    package = package_folder()
    command = [
        str(package / "tools" / "apply_plugin_main"), "--cmd=apply", f"--model={model}", f"--o={output}",
        f"--soc_manufacturer={chip.vendor.manufacturer}", f"--soc_model={chip.model}",
        f"--libs={package / 'vendors' / chip.vendor.plugin / 'compiler'}", *chip.flags,
    ]  # fmt: skip
    paths = [*map(str, libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    variables = {**os.environ, **(environment or {}), "LD_LIBRARY_PATH": os.pathsep.join(paths)}
    try:
        ended = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(
            mismatch(f"LiteRT's plugin for {chip.vendor.name}", "that it runs", error, "install quad[litert] again")
        ) from error
    log = ended.stdout.decode(errors="replace")
    census = _CENSUS.findall(log)
    selected, ops, partitions = map(int, census[-1]) if census else (0, 0, 0)
    done = ended.returncode == 0 and output.exists()
    return PluginRun(done=done, selected=selected, ops=ops, partitions=partitions, fault="" if done else _fault(log, ended.returncode))


def _fault(log: str, code: int) -> str:
    faults = _FAULT.findall(log)
    return faults[0].strip()[:_LONGEST_FAULT] if faults else f"exit code {code}"
