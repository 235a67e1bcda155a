"""A target's passes refuse what they have no form for, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quad.compile.export import GraphSpec
from quad.compile.passes import unobserved
from quad.core.errors import UnsupportedError
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from tests.compile.qnn.placed_htp import htp_compiler


class CountsIds(nn.Module):
    """An embedding of ids that are computed with first, as no accelerator's 32 bits take them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(16, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.rows(input_ids + 1)
        return rows


def test_an_operator_without_a_form_is_refused_by_name(tmp_path: Path) -> None:
    compiler = htp_compiler(Profile(encodings={}), SlotTable(slots=()), [], tmp_path)
    spec = GraphSpec(component="text_encoder", inputs={"input_ids": torch.zeros(1, 6, dtype=torch.int64)}, output="states")
    with pytest.raises(
        UnsupportedError, match=r"text_encoder: expected a graph that the passes of qnn-htp can rewrite, found .*Add reads ids of 64 bits"
    ):
        compiler.exported(CountsIds(), spec, unobserved)
