"""stable-diffusion.cpp with weights in q8_0 and a LoRA at run time as a peer.

    python -m benchmarks.rig.peers.sdcpp FILES LATENT THREADS

It knows whole pictures alone: a step is the time between two of its steps. The picture is decoded by a tiny decoder, untimed.
"""

import sys
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.rig.peers.loop import serve
from stable_diffusion_cpp import StableDiffusion

STEPS = 3


def main():
    """Load and serve."""
    files, latent, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model = StableDiffusion(
        model_path=str(files / "sdcpp"), taesd_path=str(files / "taesd" / "diffusion_pytorch_model.safetensors"),
        lora_model_dir=str(files / "kohya"), lora_apply_mode="at_runtime", wtype="q8_0", n_threads=threads, verbose=False,
    )  # fmt: skip
    names = sorted(file.stem for file in (files / "kohya").glob("*.safetensors"))

    def picture(number, steps=STEPS):
        """Seconds to the first step's end, and ms of each further one, by the clock and of all processors."""
        ends, start = [], time.perf_counter()

        def heard(step, total, seconds):
            if total == steps and step > len(ends):
                ends.append((time.perf_counter(), time.process_time()))

        model.generate_image(
            prompt=f"a red house <lora:{names[number % len(names)]}:1>", width=8 * latent, height=8 * latent, cfg_scale=1.0,
            sample_method="euler", sample_steps=steps, seed=1, progress_callback=heard,
        )  # fmt: skip
        return ends[0][0] - start, [[(b - a) * 1e3 for a, b in zip(*two, strict=True)] for two in pairwise(ends)]

    def switch():
        same, other = picture(0, 1)[0], picture(1, 1)[0]
        return max(0.0, other - same) * 1e3

    serve(lambda: picture(0)[1], switch)


if __name__ == "__main__":
    main()
