"""OpenVINO GenAI's own U-Net with adapters as a peer, at the precision that it takes by itself.

python -m benchmarks.rig.peers.genai FILES LATENT THREADS
"""

import sys
from pathlib import Path

import numpy as np
from benchmarks.rig.peers.loop import middle, serve, timed, timed_call

sys.modules["openvino_telemetry"] = None  # which would report over the network

import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402


def main():
    """Load and serve."""
    files, latent, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    adapters = [genai.Adapter(str(file)) for file in sorted((files / "kohya").glob("*.safetensors"))]
    every = genai.AdapterConfig()
    for adapter in adapters:
        every.add(adapter, 0.0)
    unet = genai.UNet2DConditionModel(
        str(files / "openvino" / "unet"), "CPU", adapters=every, INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY"
    )
    draw = np.random.default_rng(0).standard_normal
    unet.set_hidden_states("encoder_hidden_states", ov.Tensor(draw((1, 77, 768), np.float32)))
    sample, timestep = ov.Tensor(draw((1, 4, latent, latent), np.float32)), ov.Tensor(np.array([500], np.int64))

    def use(number):
        unet.set_adapters(genai.AdapterConfig(adapters[number % len(adapters)], 1.0))

    use(0)
    serve(
        lambda: [timed_call(lambda: unet.infer(sample, timestep))],
        lambda: middle([timed(lambda number=number: use(number)) for number in range(1, 8)]),
    )


if __name__ == "__main__":
    main()
