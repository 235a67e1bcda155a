#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0 (JavaScript): one tokenizer.json gives other ids than tokenizers 0.23.3 (Python): `Whitespace` splits at
# letters beyond ASCII, and a `WordLevel` model gives a word outside its vocabulary no id in place of the unknown token's.
#
# The pre-tokenizer `Whitespace` is the pattern `\w+|[^\w\s]+`. In Rust `\w` is a letter of any script; the port runs it without the flag
# that says so, and without a word for it: `étage` becomes `é` and `tage`. No class reads `WordLevel`: its vocabulary is read by that of
# older models, which knows no `unk_token`, and `ids` then holds `undefined`, which is no number and not told.
#
# Seen, for a vocabulary of [UNK], the and étage:
#   Python      the étage    [1, 2]        the zebra    [1, 0]
#   JavaScript  the étage    [1, null, null]  the zebra    [1, null]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/tokenizer.json" <<'JSON'
{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
 "post_processor": null, "decoder": null,
 "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "the": 1, "étage": 2}, "unk_token": "[UNK]"}}
JSON
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tokenizers==0.23.3
cat > "$work/try.py" <<'PY'
import sys
from tokenizers import Tokenizer, __version__

print(f"tokenizers {__version__}")
tokenizer = Tokenizer.from_file(sys.argv[1])
ids = {text: tokenizer.encode(text).ids for text in ("the étage", "the zebra")}
print(ids)
assert ids == {"the étage": [1, 2], "the zebra": [1, 0]}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work/tokenizer.json"
cd "$work"
npm install --silent --no-fund --no-audit @huggingface/tokenizers@0.2.0
cat > try.mjs <<'JS'
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

const { version } = JSON.parse(readFileSync("node_modules/@huggingface/tokenizers/package.json", "utf8"));
console.log(`@huggingface/tokenizers ${version}`);
const tokenizer = new Tokenizer(JSON.parse(readFileSync("tokenizer.json", "utf8")), {});
const ids = Object.fromEntries(["the étage", "the zebra"].map((text) => [text, tokenizer.encode(text).ids]));
console.log(JSON.stringify(ids));
assert.deepEqual(ids, { "the étage": [1, undefined, undefined], "the zebra": [1, undefined] }, "the behaviour has changed");
JS
node try.mjs
echo "as described"
