"""One resident model for several apps: `python examples/several_apps.py BUNDLE`.

The server would normally be started once, by the system. Here it is a child process that tells its address in its first line.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quad.serve import QuadClient


def app(name: str, socket: str, priority: int) -> str:
    """One app: its own client, its own adapter, its own picture."""
    pipe = QuadClient(socket)
    steps: list[int] = []
    out = pipe(
        "a red house by day",
        task="text-to-image",
        seed=priority,
        priority=priority,
        callback_on_step_end=lambda client, index, timestep, values: steps.append(index) or values,
    )
    return f"{name}: {out.images[0].size} after {len(steps)} steps"


def main(bundle: str) -> None:
    command = shlex.split(os.environ.get("QUAD", "quad"))
    with tempfile.TemporaryDirectory() as directory:
        socket = str(Path(directory) / "quad.sock")
        with subprocess.Popen([*command, "serve", bundle, "--socket", socket, "--json"], stdout=subprocess.PIPE, text=True) as server:
            try:
                print("serving", json.loads(server.stdout.readline())["bundle"])
                with ThreadPoolExecutor() as apps:
                    for line in apps.map(app, ("gallery", "keyboard"), (socket, socket), (0, 1)):
                        print(line)
            finally:
                server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
