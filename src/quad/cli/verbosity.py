"""`--verbose`: what the rooms below log, on stderr while the command runs; stdout belongs to results.

(none)          errors alone: what a user has to know is a result, a note or the one line of an error
-v, --verbose   INFO, what was decided: installed, refused, evicted, cancelled
-vv             DEBUG, every step as well
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

OPTIONS = {"-v": 1, "--verbose": 1, "-vv": 2}
_LEVELS = (logging.ERROR, logging.INFO, logging.DEBUG)
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def level_of(words: Sequence[str]) -> int:
    """The level that the options among the words of a call ask for; `-v` twice is `-vv`."""
    return _LEVELS[min(sum(OPTIONS.get(word, 0) for word in words), len(_LEVELS) - 1)]


@contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """Write quad's own log from `level` on to stderr while the block runs; that of libraries is left to them."""
    logger, handler = logging.getLogger("quad"), logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(_FORMAT))
    before = logger.level
    logger.addHandler(handler)
    if level < logger.getEffectiveLevel():
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
