#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata give other bytes in each call.
#
# The metadata of a file, `save(tensors, metadata)`, is kept in a hash map whose order is drawn anew for each map, and is written in that
# order; tensors are sorted. With two words half of the files differ, with six nearly all. A digest of the file then says nothing about
# whether its content was made again, and caches and signatures by digest miss.
#
# Seen:
#   0 words: 1 file of 40 calls    1 word: 1    2 words: 2    6 words: 39 (all of one length)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cat > "$work/try.py" <<'PY'
import numpy as np
import safetensors
from safetensors.numpy import save

print(f"safetensors {safetensors.__version__}")
different = {}
for words in (0, 1, 2, 6):
    metadata = {f"word{number}": "value" for number in range(words)}
    files = [save({"a": np.zeros(4, np.float32), "b": np.ones(4, np.float32)}, metadata) for _ in range(40)]
    different[words] = len(set(files))
    print(f"{words} words: {different[words]} files of 40 calls, lengths {sorted({len(data) for data in files})}")
assert (different[0], different[1]) == (1, 1), "the behaviour has changed"
assert different[2] == 2 and different[6] > 20, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py"
echo "as described"
