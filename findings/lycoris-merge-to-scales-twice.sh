#!/usr/bin/env bash
# lycoris-lora 4.1.3: `merge_to` of LoHa and LoKr merges alpha / dim of what the same module adds in its forward pass.
#
# A LoHa or LoKr module multiplies its product by `scale = alpha / dim` in the forward pass, which is what trainers train and files mean.
# `merge_to` applies that scale once more: at dim 2 and alpha 1 the merged layer carries half of the update, at dim 32 and alpha 1 a 32nd,
# and nothing says so. LoCon's two matrices merge right. Who checks a reader of such files against merged weights takes the wrong side for
# the truth; who ships merged models ships weaker ones.
#
# Seen, norm of the merged update over the norm of the forward pass's:
#   LoCon 1.000, LoHa 0.500, LoKr 0.500 at dim 2, alpha 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-deps lycoris-lora==4.1.3
"$work/venv/bin/pip" install --quiet einops==0.8.2 safetensors==0.8.0 toml==0.10.2 tqdm==4.68.4
cat > "$work/try.py" <<'PY'
from importlib.metadata import version

import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

print(f"lycoris-lora {version('lycoris-lora')}, torch {torch.__version__}")
shares = {}
for kind in (LoConModule, LohaModule, LokrModule):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    before = layer.weight.detach().clone()
    module = kind("layer", layer, multiplier=1.0, lora_dim=2, alpha=1.0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    module.apply_to()
    module.eval()
    with torch.no_grad():
        forward = layer(torch.eye(64)).T - before
        module.restore()
        module.merge_to(1.0)
        merged = layer.weight - before
    shares[kind.__name__] = float(merged.norm() / forward.norm())
    print(f"{kind.__name__}: merged {shares[kind.__name__]:.3f} of what it adds in its forward pass")
assert abs(shares["LoConModule"] - 1.0) < 1e-3, "the behaviour has changed"
assert all(abs(shares[name] - 0.5) < 1e-3 for name in ("LohaModule", "LokrModule")), "the behaviour has changed"
PY
"$work/venv/bin/python" -W ignore "$work/try.py"
echo "as described"
