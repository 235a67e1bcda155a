"""Which task a call means, and how many steps it may take."""

from __future__ import annotations

import pytest

from quad.core.errors import UsageError
from quad.core.manifest import NoiseSchedule, OlssTable, SamplerSpec, TaskSpec
from quad.runtime.tasks import choose_task, with_steps

EULER = SamplerSpec("euler", 4)
OLSS = SamplerSpec("olss", 1, OlssTable((999,), (1.0,), ((0.5,),)))
TASKS = {"sketch": TaskSpec("lines", EULER, "image", "ones"), "text-to-image": TaskSpec(None, EULER, "none", "ones")}


def test_choice() -> None:
    assert choose_task(None, (), TASKS) == "text-to-image"
    assert choose_task(None, ("ink", "lines"), TASKS) == "sketch"
    assert choose_task("text-to-image", ("lines",), TASKS) == "text-to-image"
    with pytest.raises(UsageError, match=r"^task: expected one of sketch, text-to-image, found 'removal'; choose one of these$"):
        choose_task("removal", (), TASKS)


def test_steps() -> None:
    schedule = NoiseSchedule()
    assert with_steps(EULER, None, schedule) is EULER
    assert with_steps(EULER, 9, schedule).steps == 9
    assert with_steps(OLSS, 1, schedule) is OLSS
    with pytest.raises(UsageError, match="its olss table was solved, found 9"):
        with_steps(OLSS, 9, schedule)
    with pytest.raises(UsageError, match="1 to 1000"):
        with_steps(EULER, 1001, schedule)
