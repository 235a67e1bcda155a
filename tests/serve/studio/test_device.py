"""The switch "run on this device" on the page of a real server, where the runtime was built."""

from __future__ import annotations

import os
import subprocess

import pytest

from quad.serve.studio.files import DEVICE
from tests.serve.studio.test_walks import CHROMIUM, IS_THERE, PACKAGE, RUNNER, address  # noqa: F401

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not IS_THERE or not DEVICE.is_dir(), reason="no Chromium, or no runtime for pages: apt install chromium, make js"
)


def test_the_device_makes_the_servers_picture(address: str) -> None:  # noqa: F811
    environment = {**os.environ, "QUAD_STUDIO": address, "CHROMIUM": str(CHROMIUM)}
    command = ["node", RUNNER, "run", "test/device_switch.test.ts"]
    done = subprocess.run(command, cwd=PACKAGE, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout
