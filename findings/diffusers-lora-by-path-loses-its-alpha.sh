#!/usr/bin/env bash
# diffusers 0.42.1 with PEFT 0.21.2: load_lora_adapter given the path of a LoRA's file leaves out the file's metadata, and so its alpha.
#
# `save_lora_weights` and `save_lora_adapter` write rank and alpha into the file's header (`lora_adapter_metadata`). A model's
# `load_lora_adapter(DIR, weight_name=NAME)` reads them; `load_lora_adapter(DIR/NAME)` loads the same tensors by another branch, which takes
# no metadata: alpha becomes the rank, the scale 1, and nothing is said. The documentation names directories, not files, but the path of a
# file is taken without a word. The pipelines' own way (`lora_state_dict`, then `load_lora_into_unet`) is right with it, and so is
# `load_lora_adapter` with `use_safetensors=True`.
#
# Seen, how much of up @ down each way adds to the weights when it is merged (rank 4, alpha 8), and warnings of diffusers meanwhile:
#   load_lora_adapter(DIR, weight_name=NAME)           scale 2.000, 0 warnings
#   load_lora_adapter(DIR/NAME)                        scale 1.000, 0 warnings
#   load_lora_adapter(DIR/NAME, use_safetensors=True)  scale 2.000, 0 warnings
#   lora_state_dict(DIR/NAME), load_lora_into_unet     scale 2.000, 0 warnings
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0
cat > "$work/try.py" <<'PY'
import copy
import logging
import sys
import warnings
from pathlib import Path

import diffusers
import peft
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

folder, name = Path(sys.argv[1]), "pytorch_lora_weights.safetensors"
file = folder / name
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
trained = copy.deepcopy(unet)
trained.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False))
StableDiffusionPipeline.save_lora_weights(
    folder, unet_lora_layers=get_peft_model_state_dict(trained), unet_lora_adapter_metadata=trained.peft_config["default"].to_dict()
)
with safe_open(file, "pt") as opened:
    tensors, header = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()
print(f"diffusers {diffusers.__version__}, PEFT {peft.__version__}; header {sorted(header)}, first key {min(tensors)}")
assert '"unet.lora_alpha": 8' in header["lora_adapter_metadata"] and '"unet.r": 4' in header["lora_adapter_metadata"]
layer = min(tensors).removeprefix("unet.").removesuffix(".lora_A.weight")
whole = tensors[f"unet.{layer}.lora_B.weight"] @ tensors[f"unet.{layer}.lora_A.weight"]


class Counter(logging.Handler):
    count = 0

    def emit(self, record):
        Counter.count += 1


def through_the_pipeline(model):
    tensors, alphas, metadata = StableDiffusionPipeline.lora_state_dict(str(file), return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(tensors, alphas, model, metadata=metadata)


def merged_scale(load):
    """How often up @ down was added to a weight, by least squares; the warnings."""
    model, Counter.count = copy.deepcopy(unet), 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(model)
    model.fuse_lora()
    model.unload_lora()
    change = (model.get_submodule(layer).weight - unet.get_submodule(layer).weight).detach()
    return float((change * whole).sum() / (whole * whole).sum()), Counter.count + len(caught)


logging.getLogger("diffusers").addHandler(Counter(logging.WARNING))
logging.getLogger("peft").addHandler(Counter(logging.WARNING))
ways = {
    "load_lora_adapter(DIR, weight_name=NAME)": (lambda model: model.load_lora_adapter(str(folder), weight_name=name, prefix="unet"), 2.0),
    "load_lora_adapter(DIR/NAME)": (lambda model: model.load_lora_adapter(str(file), prefix="unet"), 1.0),
    "load_lora_adapter(DIR/NAME, use_safetensors=True)": (
        lambda model: model.load_lora_adapter(str(file), prefix="unet", use_safetensors=True), 2.0),
    "lora_state_dict(DIR/NAME), load_lora_into_unet": (through_the_pipeline, 2.0),
}
for way, (load, expected) in ways.items():
    scale, said = merged_scale(load)
    print(f"{way:50s} scale {scale:.3f}, {said} warnings")
    assert abs(scale - expected) < 1e-3, "the behaviour has changed"
    assert expected == 2.0 or said == 0, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work"
echo "as described"
