"""The small U-Net and the files made for it serve this room too."""

from tests.model.conftest import inputs as inputs
from tests.model.conftest import lora_file as lora_file
from tests.model.conftest import lora_tensors as lora_tensors
from tests.model.conftest import model_dir as model_dir
from tests.model.conftest import unet as unet
