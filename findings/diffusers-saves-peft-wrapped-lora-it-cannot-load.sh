#!/usr/bin/env bash
# diffusers 0.42.1 with PEFT 0.21.2: save_lora_weights writes a LoRA that diffusers itself cannot load, and without its alpha.
#
# Trainers wrap the U-Net with `peft.get_peft_model` and hand `get_peft_model_state_dict(model)` to `save_lora_weights`, as the LCM-LoRA and
# PixArt scripts do. The wrapper's name stays in the keys (`unet.base_model.model.*`), and nothing in the file says alpha: the config that
# holds it is written only by the wrapper's own `save_pretrained`. Saving raises nothing and warns of nothing; loading the file into the very
# U-Net that was trained ends in an error about target modules. A reader that strips the wrapper's name and takes scale 1, as is right for
# files of diffusers' own, applies the adapter at rank / alpha times its strength: here 2.
#
# Seen:
#   saved keys begin with unet.base_model.model., metadata {'format': 'pt'}
#   alpha / rank of the trained adapter 0.5, in the file: none
#   diffusers' own loader: NoMatchingPeftModuleError (a ValueError)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0
cat > "$work/try.py" <<'PY'
import copy
import sys
from pathlib import Path

import diffusers
import peft
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

folder, name = Path(sys.argv[1]), "pytorch_lora_weights.safetensors"
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
config = peft.LoraConfig(r=16, lora_alpha=8, target_modules=["to_q", "to_v"])
trained = peft.get_peft_model(copy.deepcopy(unet), config)
StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(trained))
with safe_open(folder / name, "pt") as file:
    keys, metadata = list(file.keys()), file.metadata()
print(f"diffusers {diffusers.__version__}, PEFT {peft.__version__}")
print(f"saved {len(keys)} keys, the first {keys[0]}, metadata {metadata}")
try:
    tensors, alphas = StableDiffusionPipeline.lora_state_dict(folder, weight_name=name)
    StableDiffusionPipeline.load_lora_into_unet(tensors, alphas, unet)
    error = None
except ValueError as raised:
    error = raised
print(f"diffusers' own loader: {type(error).__name__}: {str(error)[:100]}")
assert all(key.startswith("unet.base_model.model.") for key in keys), "the behaviour has changed"
assert metadata == {"format": "pt"} and not any("alpha" in key for key in keys), "the behaviour has changed"
assert error is not None and "arget modules" in str(error), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work"
echo "as described"
