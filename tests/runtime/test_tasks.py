"""Which task a call means, and how many steps it may take."""

from __future__ import annotations

import pytest

from quad.core.errors import UsageError
from quad.core.manifest import NoiseSchedule, OlssTable, SamplerSpec, TaskSpec
from quad.core.sampling import SamplerSettings
from quad.runtime.request import OLSS_STAND_IN, Request, choose_task, with_overrides, with_steps

EULER = SamplerSpec(kind="euler", steps=4)
OLSS = SamplerSpec(kind="olss", steps=1, olss=OlssTable((999,), (1.0,), ((0.5,),)))
TASKS = {
    "sketch": TaskSpec(adapter="lines", sampler=EULER, condition="image", mask="ones"),
    "text-to-image": TaskSpec(adapter=None, sampler=EULER, condition="none", mask="ones"),
}


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
    settings = SamplerSettings(sigmas="karras")
    assert with_steps(SamplerSpec(kind="unipc", steps=20, settings=settings), 12, schedule) == SamplerSpec(
        kind="unipc", steps=12, settings=settings
    )
    assert with_steps(OLSS, 1, schedule) is OLSS
    assert with_steps(OLSS, 9, schedule) == SamplerSpec(kind=OLSS_STAND_IN, steps=9)
    with pytest.raises(UsageError, match="1 to 1000"):
        with_steps(EULER, 1001, schedule)


def test_wishes_change_a_task_for_one_call() -> None:
    edit = TaskSpec(adapter=None, sampler=EULER, condition="image", mask="ones", guidance=7.5, image_guidance=1.5)
    request = Request(num_inference_steps=3, strength=0.5, guidance_scale=2, image_guidance_scale=1)
    expected = TaskSpec(
        adapter=None,
        sampler=SamplerSpec(kind="euler", steps=3),
        condition="image",
        mask="ones",
        guidance=2.0,
        strength=0.5,
        image_guidance=1.0,
    )
    assert with_overrides("transform", edit, request, NoiseSchedule()) == expected
    assert with_overrides("transform", edit, Request(), NoiseSchedule()) == edit


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (Request(strength=0.5), "strength: expected a task that begins at a picture, which text-to-image does not, found 0.5"),
        *(
            (Request(guidance_interval=odd), "guidance_interval: expected START:END")
            for odd in ("0.5", "1:0", "-1:1", (0, 2), ("a", 1), 3, "nan:1")
        ),
        (Request(image_guidance_scale=2.0), "image_guidance_scale: expected a task with picture guidance, found text-to-image"),
        (Request(guidance_scale=float("inf")), "guidance_scale: expected a finite number, found inf"),
        (Request(guidance_scale=1e300), "guidance_scale: expected a number from -10000 to 10000, found 1e\\+300"),
    ],
)
def test_wishes_that_cannot_be_granted(overrides: Request, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        with_overrides("text-to-image", TASKS["text-to-image"], overrides, NoiseSchedule())
    for strength in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(UsageError, match="strength: expected more than 0, at most 1"):
            with_overrides("sketch", TASKS["sketch"], Request(strength=strength), NoiseSchedule())
