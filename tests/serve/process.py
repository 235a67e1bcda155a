"""`quad serve` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from quad.serve import QuadClient

PATIENCE_S = 60
QUAD = ("-m", "quad")


class ServerProcess:
    """A running server; `told` is what it announced once it took calls."""

    def __init__(self, bundle: Path, *options: str, program: Sequence[str] = QUAD) -> None:
        self.process = start(bundle, *options, program=program)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, said = self.process.communicate(timeout=PATIENCE_S)
            raise AssertionError(f"no server: {said}")
        self.told: dict[str, Any] = json.loads(line)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()

    def client(self, **options: Any) -> QuadClient:
        if "socket" in self.told:
            return QuadClient(self.told["socket"], **options)
        return QuadClient(self.told["address"], Path(self.told["token_file"]).read_text(), **options)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit code, and what was said on stderr."""
        self.process.send_signal(by)
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024


def start(bundle: Path, *options: str, program: Sequence[str] = QUAD) -> subprocess.Popen[str]:
    """The process alone, which may not have come so far as to take calls.

    Args:
        program: what Python runs in place of `quad`.
    """
    command = [sys.executable, *program, "serve", str(bundle), "--threads", "1", "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
