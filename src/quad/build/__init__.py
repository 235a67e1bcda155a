"""A build, stage by stage and resumable: the only room where quantization and compilation meet.

`quad.build` is this room and, called, `quad.build.build.build`: whichever of the two a program has imported first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    """A module that is called as the function of its name."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """See `quad.build.build.build`."""
        from quad.build.build import build  # brings torch

        return build(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallableRoom
