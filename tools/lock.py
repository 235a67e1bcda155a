"""What `make install` installs, by version and hash: `requirements/*.txt`, locked from the requirements in `pyproject.toml`.

`python tools/lock.py` writes them with uv and keeps the versions that they name, wherever these still satisfy the requirements;
`python tools/lock.py --upgrade` takes the newest. `python tools/lock.py --check` asks nobody: it exits 1 and names each requirement that no
pin satisfies, each pin without a hash, each line that says where packages come from, and each installed package of another version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# File -> the extras of pyproject.toml that it locks; BASE has the base install with them.
LOCKS = {"install": ("build", "openvino", "delivery", "serve", "c2pa", "dev"), "qnn": ("qnn",), "litert": ("litert",), "docs": ("docs",)}
BASE, BESIDE = "install", ("qnn", "litert")  # the others go where the first is, and hold what that has not
PYTHON = {"docs": "3.11.5"}  # the oldest that a file is for, where it is not 3.11
# What torch for CUDA needs beside, in a file of its own: its build for CPUs, which many machines bring, is complete without.
CUDA, CUDA_NAMES = "cuda", ("cuda-", "nvidia-", "triton")
# That build comes first: of two that a pin allows, pip takes the one that an index lists with its hash. uv sees none where the index has
# none, so its hashes stand here: linux x86_64, Python 3.11.
CPU = "cpu"
CPU_BUILDS = {"torch==2.13.0": ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",)}
_PIN = re.compile(r"(?P<pin>[A-Za-z0-9._-]+==[^\s;\\]+)( ; [^\\]+)?(?P<hashes>( \\\n +--hash=sha256:[0-9a-f]{64})+)\n")


@dataclass(frozen=True)
class Pin:
    """One package of a lock file: its requirement, and its lines as they stand there."""

    requirement: Requirement
    text: str


def pins(text: str) -> list[Pin]:
    """The pins of a lock file.

    Raises:
        ValueError: a line is no pin with hashes, or a comment.
    """
    body = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    if rest := _PIN.sub("", body).strip():
        raise ValueError(f"neither a pin with hashes nor a comment: {rest.splitlines()[0]}")
    return [Pin(Requirement(match[0].split("\\")[0].strip()), match[0]) for match in _PIN.finditer(body)]


def required(name: str) -> list[Requirement]:
    """What `pyproject.toml` asks for in this file; nothing in one that is not in `LOCKS`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [text for extra in LOCKS.get(name, ()) for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in (*(project["dependencies"] if name == BASE else ()), *texts)]


def file_of(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.txt"


def problems() -> list[str]:
    """One line each."""
    said = []
    for name in (*LOCKS, CUDA, CPU):
        where = f"requirements/{name}.txt"
        try:
            locked = pins(file_of(name).read_text())
        except (OSError, ValueError) as error:
            said.append(f"{where}: {error}")
            continue
        by_name = {canonicalize_name(pin.requirement.name): pin.requirement for pin in locked}
        for asked in required(name):
            pin = by_name.get(canonicalize_name(asked.name))
            if pin is None or not asked.specifier.contains(_pinned(pin), prereleases=True):
                said.append(f"{where}: expected a pin for {asked}, found {pin or 'none'}; run make lock")
        said += [f"{where}: {line}" for line in _unlike(by_name) if name == BASE]
    return said


def _pinned(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def _unlike(by_name: dict[str, Requirement]) -> list[str]:
    """Installed packages that are not what the file names; a build of its own (`2.13.0+cpu`) is."""
    lines = []
    for name, pin in by_name.items():
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "none"
        if not pin.specifier.contains(installed, prereleases=True) if installed != "none" else True:
            lines.append(f"expected {name} {_pinned(pin)} installed, found {installed}; run make install")
    return lines


def lock(name: str, upgrade: bool) -> list[Pin]:
    """The pins of one file, and of torch for CUDA; what is not upgraded keeps its version where it can.

    Raises:
        SystemExit: uv says why.
    """
    others = [file_of(other) for other in (name, BASE, CUDA) if not upgrade or (name in BESIDE and other == BASE)]
    before = [word for other in others if other.is_file() for word in ("--constraint", str(other))]
    command = [
        "uv", "pip", "compile", "--no-config", "--quiet", "--universal", "--python-version", PYTHON.get(name, "3.11"), "--generate-hashes",
        "--no-header", "--no-annotate", "--no-emit-index-url", *before, "-",
    ]  # fmt: skip
    asked = "\n".join(map(str, required(name)))
    done = subprocess.run(
        [Path(sys.executable).parent / command[0], *command[1:]], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    return pins(done.stdout)


def cpu_build(pin: Pin) -> list[Pin]:
    """The pin of a build for CPUs; none where none is known."""
    exact = f"{pin.requirement.name}=={_pinned(pin.requirement)}"
    hashes = "".join(f" \\\n    --hash=sha256:{sha256}" for sha256 in CPU_BUILDS.get(exact, ()))
    return pins(f"{exact}+cpu ; sys_platform == 'linux'{hashes}\n") if hashes else []


def main(words: list[str]) -> int:
    if "--check" in words:
        said = problems()
        print("\n".join(said) or "lock: every requirement is pinned, hashed and installed", file=sys.stderr if said else sys.stdout)
        return 1 if said else 0
    for name in LOCKS:
        locked = lock(name, "--upgrade" in words)
        if name == BASE:
            write(CPU, [build for pin in locked for build in cpu_build(pin)])
            write(CUDA, [pin for pin in locked if pin.requirement.name.startswith(CUDA_NAMES)])
        shared = {pin.requirement.name for pin in pins(file_of(BASE).read_text())} if name in BESIDE else set()
        write(name, [pin for pin in locked if not pin.requirement.name.startswith(CUDA_NAMES) and pin.requirement.name not in shared])
    return 0


def write(name: str, locked: list[Pin]) -> None:
    file_of(name).parent.mkdir(exist_ok=True)
    file_of(name).write_text(f"# {name}: made by `make lock`, see tools/lock.py.\n" + "".join(pin.text for pin in locked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
