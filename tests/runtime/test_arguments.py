"""Whatever an argument of the runtime is given, it is taken or refused by its name; nothing of Python's own comes out."""

from __future__ import annotations

import inspect
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.core.errors import QuadError, UsageError
from quad.runtime import AdapterStore, QuadPipeline, Request, Scheduler, SchedulerOptions, open_bundle
from quad.runtime.arguments import path_of, whole_number
from tests.arguments import try_all

# Words of a call beside the one that is tried: none of it may take long.
CALL: dict[str, Any] = {"prompt": "a", "task": "text-to-image", "num_inference_steps": 1}
# A method of the pipeline -> what it needs beside the argument that is tried.
METHODS: dict[str, dict[str, Any]] = {
    "__call__": CALL,
    "set_adapters": {"adapter_names": ["sketch"]},
    "load_lora_weights": {"path": "/nowhere"},
    "unload": {},
    "delete_adapters": {},
    "adapter_manifest": {},
    "load_textual_inversion": {"path": "/nowhere"},
    "unload_textual_inversion": {},
    "preview": {"latents": np.zeros((1, 4, 8, 8), np.float32)},
    "generate": {"requests": [Request(**CALL)]},
    "prepare": {},
    "prepare_ahead": {},
    "lay_out": {},
}


def test_a_pipeline_is_opened_or_refused(tiny_bundle: Path) -> None:
    try_all(QuadPipeline.from_pretrained, {"path": tiny_bundle, "threads": 1})
    try_all(open_bundle, {"path": tiny_bundle})
    with pytest.raises(UsageError, match="threads: expected a whole number, 1 or more, found 'x'; leave it out for all cores"):
        QuadPipeline.from_pretrained(tiny_bundle, threads="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_does_or_refuses(method: str, tiny_bundle: Path) -> None:
    try_all(getattr(QuadPipeline.from_pretrained(tiny_bundle, threads=1), method), METHODS[method])


def test_a_queue_takes_or_refuses(tiny_bundle: Path) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    with Scheduler(pipe) as scheduler:
        try_all(scheduler.register, {"path": "/nowhere"})
        try_all(scheduler.cancel_client, {})

        def submit_and_wait(**words: Any) -> None:
            with suppress(QuadError):
                scheduler.submit(**words).result(60)

        submit_and_wait.__signature__ = inspect.signature(scheduler.submit)  # type: ignore[attr-defined]
        try_all(submit_and_wait, {"request": Request(**CALL)})
    try_all(SchedulerOptions, {})
    with closing(AdapterStore(open_bundle(tiny_bundle))):
        try_all(lambda budget_bytes: AdapterStore(open_bundle(tiny_bundle), budget_bytes).close(), {})


def test_numbers_and_paths_of_other_libraries_are_taken(tmp_path: Path) -> None:
    assert [whole_number("n", number) for number in (3, np.int64(3), np.uint8(3))] == [3, 3, 3]
    assert path_of("path", str(tmp_path)) == path_of("path", tmp_path) == tmp_path
