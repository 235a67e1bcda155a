"""What an attacker does to a server, one function an attack, and the line that the device says to each.

Every attack finds a publisher with pack 1 and a device that runs it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner

from quad.delivery.offer import REVOKED
from tests.delivery.simulator import World, expire, flip, rewrite_json


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        run: does it; returns what the device is asked to install.
        says: part of the line, a regular expression.
    """

    name: str
    run: Callable[[World], str]
    says: str


def _kept(world: World, name: str) -> Path:
    """The server as it is now, put aside."""
    return Path(shutil.copytree(world.server, world.home / name))


def _serve(world: World, folder: Path) -> None:
    shutil.rmtree(world.server)
    shutil.copytree(folder, world.server)


def rollback(world: World) -> str:
    before = _kept(world, "before")
    world.add(2)
    world.device().fetch()
    _serve(world, before)
    return "ink"


def rollback_of_the_list(world: World) -> str:
    """A new timestamp and snapshot that name an older list of packs."""
    world.add(2)
    world.device().fetch()
    world._raise_snapshot(targets=2)
    return "ink"


def freeze(world: World) -> str:
    world.add(2)
    world.forge("timestamp", expire)
    return "ink"


def freeze_of_the_list(world: World) -> str:
    def old(signed: Any) -> None:
        expire(signed)
        signed.version -= 1

    world.forge_targets(old)
    return "ink"


def fast_forward(world: World) -> str:
    def leap(signed: Any) -> None:
        signed.version += 2_000_000

    world.forge("timestamp", leap)
    return "ink"


def mix_and_match(world: World) -> str:
    """The newest timestamp and snapshot, and the list of packs of before under the new one's name."""
    older = world.metadata("targets").read_bytes()
    world.add(2)
    world.metadata("targets").write_bytes(older)
    return "ink:2"


def mix_of_snapshots(world: World) -> str:
    older = world.metadata("snapshot").read_bytes()
    world.add(2)
    world.metadata("snapshot").write_bytes(older)
    return "ink:2"


def endless_metadata(world: World) -> str:
    with world.metadata("timestamp").open("ab") as stream:
        stream.write(b" " * 2**20)
    return "ink"


def endless_pack(world: World) -> str:
    world.add(2)
    for path in world.pack_files():
        with path.open("ab") as stream:
            stream.write(bytes(2**20))
    return "ink"


def wrong_keys(world: World) -> str:
    def newer(signed: Any) -> None:
        signed.version += 1

    world.forge("timestamp", newer, [CryptoSigner.generate_ed25519()])
    return "ink"


def below_threshold(world: World) -> str:
    path = world.metadata("root")
    shutil.copy(path, path.with_name("2.root.json"))

    def newer(signed: Any) -> None:
        signed.version += 1

    world.forge("root", newer, world.signers("root")[:1])
    return "ink"


def tampered_pack(world: World) -> str:
    world.add(2)
    for path in world.pack_files():
        flip(path)
    return "ink"


def tampered_metadata(world: World) -> str:
    world.add(2)
    rewrite_json(world.metadata("timestamp"), lambda text: text["signed"].update(version=77))
    return "ink"


def metadata_of_noise(world: World) -> str:
    world.add(2)
    world.metadata("timestamp").write_bytes(b"\x00\xffnoise")
    return "ink"


def swapped_pack(world: World) -> str:
    """A pack of another graph whose signed terms say that it is of this one."""
    world.add(2, parents={"slots": "7" * 64, "profile": "8" * 64})

    def lie(signed: Any) -> None:
        signed.targets["ink/2.qpack"].custom.update(world.parents)

    world.forge_targets(lie)
    return "ink"


def pack_of_another_graph(world: World) -> str:
    """The same, said openly: refused before it is fetched."""
    world.add(2, parents={"slots": "7" * 64, "profile": "8" * 64})
    for path in world.pack_files():
        path.unlink()
    return "ink:2"


def path_escape(world: World) -> str:
    def away(signed: Any) -> None:
        signed.targets["../../installed/ink.json"] = signed.targets.pop("ink/1.qpack")

    world.forge_targets(away)
    return "ink"


def name_escape(world: World) -> str:
    def away(signed: Any) -> None:
        signed.targets["ink/1.qpack"].custom.update(name="../ink")

    world.forge_targets(away)
    return "ink"


def digest_escape(world: World) -> str:
    def away(signed: Any) -> None:
        signed.targets["ink/1.qpack"].hashes.update(sha256="../../ink")

    world.forge_targets(away)
    return "ink"


def revoked(world: World) -> str:
    world.add(2)
    world.repository.revoke("ink:2", "it draws ghosts")
    world.serve()
    return "ink:2"


def revoked_and_offered(world: World) -> str:
    """A revoked pack that is put back on offer."""
    world.add(2)

    def both(signed: Any) -> None:
        offered = signed.targets["ink/2.qpack"]
        entry = {"name": "ink", "version": 2, "sha256": offered.hashes["sha256"]}
        signed.unrecognized_fields[REVOKED] = [entry]

    world.forge_targets(both)
    return "ink:2"


_ANOTHER_FILE = r"expected the file that the metadata before it names, found another one \(mix-and-match\)"

ATTACKS = tuple(
    Attack(run.__name__, run, says)
    for run, says in (
        (rollback, r"timestamp\.json: expected a version of at least 3, found 2 \(rollback\)"),
        (rollback_of_the_list, r"snapshot\.json: expected a version of at least 3, found 2 \(rollback\)"),
        (freeze, r"timestamp\.json: expected metadata that has not expired, found the newest .* clock here says .* \(freeze\)"),
        (freeze_of_the_list, r"targets\.json: expected metadata that has not expired, found the newest .* clock here says .* \(freeze\)"),
        (fast_forward, r"timestamp\.json: expected a version of at most 1000002, found 2000002 \(fast-forward\)"),
        (mix_and_match, rf"targets\.json: {_ANOTHER_FILE}"),
        (mix_of_snapshots, rf"snapshot\.json: {_ANOTHER_FILE}"),
        (endless_metadata, r"timestamp\.json: expected a file that ends, found more than 16384 bytes \(endless data\)"),
        (endless_pack, r"\.2\.qpack: expected a file that ends, found more than \d+ bytes \(endless data\)"),
        (wrong_keys, r"timestamp\.json: expected 1 signature of role timestamp, found keys that the root does not name \(wrong keys\)"),
        (below_threshold, r"2\.root\.json: expected 2 signatures of role root, found 1 \(below threshold\)"),
        (tampered_pack, r"\.2\.qpack: expected digest \w{8}, found \w{8} \(tampered pack\)"),
        (tampered_metadata, r"expected 1 signature of role timestamp, found signatures of other bytes \(tampered m"),
        (metadata_of_noise, r"timestamp\.json: expected signed metadata, found something else: .* \(tampered metadata\)"),
        (swapped_pack, r"ink:2 in .*: expected slots \w{8}, found 77777777 \(a pack of another graph\)"),
        (pack_of_another_graph, r"ink:2: expected slots 77777777, found slots \w{8} of bundle 'phone'; nothing was fetched, it is a pack"),
        (path_escape, r"expected the path ink/1\.qpack, found '\.\./\.\./installed/ink\.json' \(path escape\)"),
        (name_escape, r"expected a name, digests and a version in their signed form \(path escape\), found something else"),
        (digest_escape, r"expected a name, digests and a version in their signed form \(path escape\), found something else"),
        (revoked, r"adapter 'ink:2': expected a pack on offer, found version 2 revoked: it draws ghosts"),
        (revoked_and_offered, r"adapter 'ink:2': expected a pack on offer, found version 2 revoked"),
    )
)  # fmt: skip
