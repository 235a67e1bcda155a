"""diffusers' U-Net with three adapters of PEFT as a peer.

python -m benchmarks.rig.peers.diffusers_peft FILES LATENT THREADS f32|bf16|compile
"""

import sys
from pathlib import Path

import torch
from benchmarks.rig.peers.loop import middle, serve, timed, timed_call
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file


def main():
    """Load and serve."""
    files, latent, threads, mode = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    unet = UNet2DConditionModel.from_pretrained(files / "pipeline" / "unet", torch_dtype=dtype).eval()
    names = []
    for file in sorted((files / "peft").glob("*.safetensors")):
        unet.load_lora_adapter(load_file(file), prefix="unet", adapter_name=file.stem)
        names.append(file.stem)
    unet.to(dtype).requires_grad_(False)
    unet.set_adapters(names[:1])
    draw = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, latent, latent, generator=draw).to(dtype), torch.randn(1, 77, 768, generator=draw).to(dtype)
    timestep = torch.tensor([500.0])
    network = torch.compile(unet) if mode == "compile" else unet

    def step():
        with torch.no_grad():
            network(sample, timestep, text, return_dict=False)

    def switch():
        return middle([timed(lambda name=name: unet.set_adapters([name])) for name in [*names[1:], names[0]] * 3])

    # A compiled network is compiled anew for each set of adapters: minutes, and not timed.
    serve(lambda: [timed_call(step)], (lambda: None) if mode == "compile" else switch)


if __name__ == "__main__":
    main()
