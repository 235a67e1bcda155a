#!/usr/bin/env bash
# transformers 5.23.0: a T5 tokenizer folder with `spiece.model` alone, as PixArt and DeepFloyd publish it, ends with an error that asks for
# tiktoken where sentencepiece is missing; with tiktoken installed it fails still.
#
# `T5Tokenizer.from_pretrained(DIR)` falls back from sentencepiece to tiktoken, and the error that a program sees is the fallback's; the one line that names
# sentencepiece is a log message. A file of sentencepiece cannot be read by tiktoken. With sentencepiece (and protobuf) the folder opens.
#
# Seen:
#   none of them                  ValueError, "`tiktoken` is required to read a `tiktoken` file"
#   tiktoken and blobfile         an error still
#   sentencepiece and protobuf    opens, the ids of sentencepiece itself
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/maker" && "$work/maker/bin/pip" install --quiet sentencepiece==0.2.2
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet transformers==5.23.0
mkdir "$work/tokenizer"
cat > "$work/make.py" <<'PY'
import sys

import sentencepiece

lines = [f"a {colour} {thing} in the {place}" for colour in ("red", "green", "blue") for thing in ("house", "car", "tree") for place in ("middle", "north")]
open(f"{sys.argv[1]}/lines.txt", "w").write("\n".join(lines * 20))
sentencepiece.SentencePieceTrainer.train(input=f"{sys.argv[1]}/lines.txt", model_prefix=f"{sys.argv[1]}/spiece", vocab_size=60, pad_id=0,
                                         eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
model = sentencepiece.SentencePieceProcessor(model_file=f"{sys.argv[1]}/spiece.model")
open(f"{sys.argv[1]}/expected.txt", "w").write(" ".join(map(str, model.encode("a green house in the north") + [1])))
PY
"$work/maker/bin/python" "$work/make.py" "$work" 2>/dev/null
cp "$work/spiece.model" "$work/tokenizer/"
echo '{"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}' > "$work/tokenizer/tokenizer_config.json"
cat > "$work/try.py" <<'PY'
import sys
from importlib.metadata import version

from transformers import T5Tokenizer

print(f"transformers {version('transformers')}")
try:
    tokenizer = T5Tokenizer.from_pretrained(sys.argv[1], extra_ids=0)
except Exception as error:
    print(type(error).__name__, str(error).splitlines()[0][:160])
    sys.exit(3)
print("ids", tokenizer("a green house in the north").input_ids)
assert tokenizer("a green house in the north").input_ids == list(map(int, open(sys.argv[2]).read().split())), "the behaviour has changed"
PY
try_it() { code=0; "$work/venv/bin/python" -W ignore "$work/try.py" "$work/tokenizer" "$work/expected.txt" 2>/dev/null || code=$?; }
changed() { echo "the behaviour has changed"; exit 1; }
try_it > "$work/said"; cat "$work/said"
[ "$code" = 3 ] && grep -q "Error.*tiktoken" "$work/said" || changed
"$work/venv/bin/pip" install --quiet tiktoken==0.13.0 blobfile==3.2.0
echo "with tiktoken:"; try_it; [ "$code" = 3 ] || changed
"$work/venv/bin/pip" install --quiet sentencepiece==0.2.2 protobuf==7.36.2
echo "with sentencepiece:"; try_it; [ "$code" = 0 ] || changed
echo "as described"
