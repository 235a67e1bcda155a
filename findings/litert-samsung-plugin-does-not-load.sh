#!/usr/bin/env bash
# ai-edge-litert 2.2.0 and 2.3.0 (Linux x86-64): the compiler plugin for Samsung's chips that the wheel brings cannot be loaded, on any machine.
#
# It leaves an object of flatbuffers undefined, `flatbuffers::ClassicLocale::instance_`, that no library of the wheel defines. LiteRT's ahead-of-time
# tool then finds no plugin for Samsung, with Samsung's SDK at hand too. With the symbol preloaded from ten lines of C the plugin loads. The wheel's
# plugins for Google Tensor, Intel, MediaTek and Qualcomm do not ask for it.
#
# Seen:
#   2.2.0   undefined symbol: _ZN11flatbuffers13ClassicLocale9instance_E
#   2.3.0   undefined symbol: _ZN11flatbuffers13ClassicLocale9instance_E
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
for pinned in ai-edge-litert==2.2.0 ai-edge-litert==2.3.0; do
    "$work/venv/bin/pip" install --quiet --no-deps "$pinned"
    "$work/venv/bin/python" - "${pinned#*==}" <<'PY'
import ctypes
import importlib.util
import sys
from pathlib import Path

package = Path(importlib.util.find_spec("ai_edge_litert").origin).parent
library = package / "vendors" / "samsung" / "compiler" / "libLiteRtCompilerPlugin_Samsung.so"
assert library.is_file(), "the wheel has no such plugin any more"
try:
    ctypes.CDLL(str(library))
except OSError as error:
    print(f"{sys.argv[1]}   {str(error).removeprefix(f'{library}: ')}")
    assert "ClassicLocale9instance_" in str(error), "another reason than described"
else:
    raise SystemExit("the plugin loads: the behaviour has changed")
PY
done
echo "ai-edge-litert 2.2.0, 2.3.0: as described"
