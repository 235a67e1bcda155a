"""What a server's pictures say of how they were made: nothing, or what it was started to say."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from quad.runtime.provenance.png import PngOptions
from tests.serve.conftest import Serve


@pytest.mark.parametrize("png", [None, PngOptions(parameters=True, mark=True)])
def test_a_file_says_what_the_server_was_started_to_say(serve: Serve, png: PngOptions | None) -> None:
    served = serve(real=True, png=png)
    _, told = served.call("POST", "/v1/requests", {"prompt": "a secret car", "seed": 4})
    status, data = served.call("GET", f"/v1/requests/{told['id']}/image?wait=60")
    assert status == 200
    with Image.open(BytesIO(data)) as image:
        info = image.info
    if png is None:
        assert b"secret" not in data
        assert not info
    else:
        assert info["parameters"].startswith("a secret car\n")
        assert "Seed: 4, Size: 16x16" in info["parameters"]
        assert "trainedAlgorithmicMedia" in info["XML:com.adobe.xmp"]
