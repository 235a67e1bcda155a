"""A synthetic adapter, not trained: a LoRA several times too strong, so that adapters truly disagree about ranges.

The five of the reference model may fit one profile by luck; a profile that also serves this one cannot.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from quad.core.storage.files import write_bytes
from quad.core.storage.reading import is_file
from quad.lora.file import open_lora
from quad.lora.keys import parse_key

SYNTHETIC = "made-loud"
FACTOR = 4.0
_FACTORS = ("up", "diff", "hada_w1_a", "lokr_w1", "lokr_w1_a")  # one of them is a factor of the update, whatever the kind


def write_amplified(source: Path, directory: Path, factor: float = FACTOR) -> Path:
    """A copy of a LoRA with every up-projection, hence every update `B A`, `factor` times as large; other kinds have their own factor.

    Of a DoRA it is the update that comes before the norms, as a weight of PEFT's is.

    Args:
        source: a LoRA file or directory.
        directory: gets the file, and the config beside it where there is one: alpha may be in it.

    Returns:
        The file.

    Raises:
        InputError: as `open_lora`. BackendError: the place cannot be written to.
    """
    lora = open_lora(source)
    with safe_open(lora.path, "np") as opened:
        metadata = opened.metadata()  # or alpha is in here
    roles = {name: key.role for name in lora.tensors if (key := parse_key(name)) is not None}
    tensors: dict[str, NDArray[np.float32]] = {name: tensor.values().astype(np.float32) for name, tensor in lora.tensors.items()}
    for name, role in roles.items():
        if role in _FACTORS:
            tensors[name] *= np.float32(factor)
    write_bytes(file := directory / lora.path.name, save(tensors, metadata))
    if is_file(config := lora.path.with_name("adapter_config.json")):
        write_bytes(directory / config.name, config.read_bytes())
    return file
