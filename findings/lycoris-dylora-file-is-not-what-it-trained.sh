#!/usr/bin/env bash
# lycoris-lora 4.1.3: DyLoRA's forward pass draws a new rank at every call, in eval mode too, and scales by alpha / blocks; its file says alpha / dim.
#
# A DyLoRA module trains blocks of its rank in turn, by design. `eval()` does not end that: every forward pass, and `merge_to`, takes a random
# number of blocks, so that one picture drawn twice differs and a merge is a lottery. Where all blocks are drawn the update is
# `up @ down * alpha / blocks`. The file it saves holds `lora_up`, `lora_down`, `alpha` and nothing else: every reader takes that as a plain
# LoRA, `alpha / dim`. With the default block of 4 the adapter in use is 4 times weaker than the one that was trained, whatever reads it.
#
# Seen, dim 8, alpha 8, blocks of 4, norms over that of the plain reading of the saved tensors, `eval()`, ten forward passes:
#   forward pass     2 values: 4.000 (both blocks) and about 5.8 (the first alone, at alpha / 1)
#   merge_to         one of the same two
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-deps lycoris-lora==4.1.3
"$work/venv/bin/pip" install --quiet einops==0.8.2 safetensors==0.8.0 toml==0.10.2 tqdm==4.68.4
cat > "$work/try.py" <<'PY'
import random
from importlib.metadata import version

import torch
from lycoris.modules.dylora import DyLoraModule

WIDTH, RANK, ALPHA, BLOCK = 64, 8, 8.0, 4
print(f"lycoris-lora {version('lycoris-lora')}, torch {torch.__version__}")
torch.manual_seed(0)
random.seed(0)
layer = torch.nn.Linear(WIDTH, WIDTH, bias=False)
base = layer.weight.detach().clone()
module = DyLoraModule("layer", layer, multiplier=1.0, lora_dim=RANK, alpha=ALPHA, block_size=BLOCK)
for parameter in module.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
saved = module.custom_state_dict()
print("in the file:", ", ".join(sorted(saved)))
plain = saved["lora_up.weight"] @ saved["lora_down.weight"].reshape(RANK, -1) * (float(saved["alpha"]) / RANK)
first = saved["lora_up.weight"][:, :BLOCK] @ saved["lora_down.weight"].reshape(RANK, -1)[:BLOCK] * (float(saved["alpha"]) / RANK)

module.apply_to()
module.eval()
with torch.no_grad():
    updates = [layer(torch.eye(WIDTH)).T - base for _ in range(10)]
    module.restore()
    module.merge_to(1.0)
    merged = layer.weight.detach() - base
norms = sorted({round(float(update.norm() / plain.norm()), 2) for update in updates})
print("forward passes in eval mode, norm over the plain reading:", norms)
print(f"merge_to: {float(merged.norm() / plain.norm()):.2f}")
both = [update for update in updates if torch.allclose(update, BLOCK * plain, atol=1e-4)]
one = [update for update in updates if torch.allclose(update, RANK * first, atol=1e-4)]
assert both and one and len(both) + len(one) == 10, "the behaviour has changed"
assert any(torch.allclose(merged, each, atol=1e-4) for each in (BLOCK * plain, RANK * first)), "the merge has changed"
PY
"$work/venv/bin/python" -W ignore "$work/try.py"
echo "as described"
