"""Files get their names in one place, `quad.core.storage`: what writes otherwise is listed here, with the reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import quad

ROOT = Path(quad.__file__).parent
# Names of calls that give a file its name, or write to one that has it.
METHODS = {
    "write_text", "write_bytes", "rename", "mkstemp", "NamedTemporaryFile", "save_file", "serialize_file", "savez", "save_pretrained",
    "copyfile", "copytree", "symlink_to", "hardlink_to",
}  # fmt: skip
FUNCTIONS = {"os.open", "os.replace", "os.rename", "os.link", "os.symlink", "ir.save", "onnx.save", "np.save", "json.dump", "open"}
TO_STREAM = ("stream", "data", "buffer")  # first arguments of `save` that are no names
# File -> calls that may stand there.
ALLOWED = {
    "core/memory.py": ({"write_text"}, "a switch of the kernel, /proc/self/clear_refs"),
    "cli/streams.py": ({"open"}, "/dev/null"),
    "runtime/engines/litert.py": ({"open"}, "/dev/null"),
    "compile/artifact.py": ({"link", "copyfile", "save"}, "into a new directory of `new_directory`, or the locked one of a build"),
    "compile/dump.py": ({"open", "write_text", "save"}, "into a new directory of `new_directory`"),
    "compile/shared_weights.py": ({"open", "save"}, "into a new directory of `new_directory`, or the locked one of a build"),
    "compile/shallow.py": ({"open", "save"}, "as `compile/shared_weights.py`"),
    "compile/litert/aot/dispatch.py": ({"save"}, "into the scratch directory of a build"),
    "compile/litert/aot/qualcomm.py": ({"symlink"}, "into the scratch directory of a build"),
    "compile/passes/contract.py": ({"save"}, "into a new directory for temporary files"),
    "delivery/device/download.py": ({"open"}, "a part that is gone on with has a name that is known; in the store, under its lock"),
    "delivery/device/refresh.py": ({"write_text"}, "into the store's scratch directory, under its lock"),
    "delivery/device/store.py": ({"replace"}, "a whole pack, from one place of the store to another, under its lock"),
    "delivery/publisher/keys.py": ({"open", "replace"}, "a key is never replaced, so it is made under its own name, with O_EXCL"),
    "serve/lock.py": ({"open"}, "the lock of a server, O_NOFOLLOW, empty"),
    "serve/endpoint.py": ({"open", "replace"}, "the token, with O_EXCL, in a directory of the user's own"),
    "serve/operations/uploads.py": (
        {"open", "replace"},
        "an upload, with O_EXCL under a name that is drawn, in a directory of the server's own, in which an admitted one is renamed",
    ),
    "serve/studio/export.py": ({"write_bytes", "copyfile"}, "into a new directory of `new_directory`"),
    "export/bake/files.py": ({"copyfile"}, "files of a bundle into the hidden directory that is renamed into place"),
    "export/ort_adapters.py": ({"open", "save"}, "graphs and adapters, into the hidden directory that is renamed into place"),
    "zoo/train/assemble.py": ({"save_pretrained"}, "diffusers' own layout, of a training that is run by hand"),
    "zoo/train/loop.py": ({"open"}, "the log of a training that is run by hand"),
}


def _writes(call: ast.Call) -> bool:
    function, first = ast.unparse(call.func), ast.unparse(call.args[0]) if call.args else ""
    if function in FUNCTIONS or (function.endswith(".save") and function.startswith("Image.")):
        return first not in TO_STREAM
    if not isinstance(call.func, ast.Attribute):
        return function in METHODS - {"write_bytes"}  # which is the writer
    method = call.func.attr
    if method == "open":
        return any(set(str(mode.value)) & set("wxa+") for mode in call.args if isinstance(mode, ast.Constant))
    if method == "replace":  # of a path: a text takes two, a struct takes names
        return len(call.args) == 1 and not call.keywords
    return method in METHODS and first not in TO_STREAM


def _calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _writes(node):
            yield ast.unparse(node.func).rpartition(".")[2]


def test_nothing_else_writes_files() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("core/storage/") and (calls := set(_calls(ast.parse(path.read_text(encoding="utf-8"))))):
            found[name] = calls
    assert found == {name: calls for name, (calls, _) in ALLOWED.items()}
