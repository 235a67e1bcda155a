"""`QuadClient`: the methods of `QuadPipeline`, the model in another process. Needs no engine, only the standard library and Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from http.client import HTTPResponse
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from quad.core.errors import BackendError, BusyError, InputError, QuadError, UsageError, mismatch
from quad.core.manifest import TaskSpec
from quad.core.storage.reading import is_file
from quad.runtime.adapters.block_weights import adapter_weights
from quad.runtime.arguments import check_callback, number, path_of, text, texts
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.conditioning.guidance import parse_interval
from quad.runtime.conditioning.picture import PictureSource
from quad.runtime.conditioning.prompt_syntax import PromptSyntax
from quad.runtime.conditioning.size_conditions import SIZE_NAMES, stated_sizes
from quad.runtime.not_here import CLIENT_CALL, refuse_arguments
from quad.runtime.stages import PipelineOutput
from quad.serve.admission.options import AdmissionOptions
from quad.serve.api import (
    LONGEST_ADMISSION_S,
    PACK,
    Adapters,
    Health,
    Named,
    NewRequest,
    RequestState,
    Step,
    Tasks,
    Uploaded,
    Verdict,
    as_exception,
)
from quad.serve.http_client import HttpClient
from quad.serve.pictures import from_png, picture_file

# As the pipeline's: called as f(client, step index, timestep, {}); the latents stay with the server.
StepCallback = Callable[["QuadClient", int, float, dict[str, Any]], Any]


class QuadClient:
    """One app's view of a running `quad serve`. Which adapters are chosen is this client's own matter: no other app sees it."""

    def __init__(self, address: str | Path, token: str | None = None, *, timeout_s: float = 60.0, name: str = "") -> None:
        """Args:
        address: the socket's path, or `http://127.0.0.1:PORT`.
        token: what the server's token file holds; on TCP alone.
        timeout_s: the longest silence of the server.
        name: of this app, told to the server with each request.

        Raises:
            UsageError: one of them is of another type.
        """
        place = address if isinstance(address, str) and "://" in address else str(path_of("address", address))
        seconds = number(timeout_s)
        if not 0.0 < seconds <= TIMEOUT_MAX:
            raise UsageError(mismatch("timeout_s", "seconds, more than 0", repr(timeout_s), "leave it out for 60"))
        self._http = HttpClient(place, None if token is None else text("token", token).strip(), seconds)
        self._name = name
        self._chosen: dict[str, float] | None = None
        self._last: tuple[str, ...] = ()

    @property
    def health(self) -> Health:
        return self._http.json("GET", "/health", Health)

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """The tasks that the server can do now."""
        return self._http.json("GET", "/v1/tasks", Tasks).tasks

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that `set_adapters` takes."""
        return tuple(adapter.name for adapter in self._http.json("GET", "/v1/adapters", Adapters).adapters)

    def get_active_adapters(self) -> list[str]:
        """Names that `set_adapters` chose, or that the last picture was made with."""
        return list(self._last if self._chosen is None else self._chosen)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: float | Sequence[float] | None = None) -> None:
        """Use these from now on. Raises: UsageError, an unknown name or a wrong weight; ranks that do not fit are told by the next call."""
        chosen = adapter_weights(texts("adapter_names", adapter_names), weights)
        available = self.adapters
        for name in chosen:
            if name not in available:
                names = ", ".join(available) or "none loaded"
                raise UsageError(mismatch("adapter", f"one of {names}", repr(name), "choose one of these or load_lora_weights first"))
        numbers = {name: weight for name, weight in chosen.items() if isinstance(weight, float)}
        if len(numbers) < len(chosen):
            raise UsageError(mismatch("adapter weights", "a number each, which a server takes", "weights by block", "give numbers"))
        self._chosen = numbers

    def disable_lora(self) -> None:
        """Use the base from now on."""
        self._chosen = {}

    def load_lora_weights(self, path: str | Path, adapter_name: str) -> str:
        """Send a pack, or a LoRA file (safetensors), to the server, for all of its apps; the server has to run with `--allow-uploads`."""
        self._upload(path, adapter_name)
        return adapter_name

    def admit(self, path: str | Path, adapter_name: str, options: AdmissionOptions = AdmissionOptions()) -> Verdict:  # noqa: B008 - frozen
        """Send a LoRA file (safetensors) and hear what the server measured of it; it is the server's adapter from then on.

        Args:
            options: as `quad adapt` has them: its task, what that is like, and how it is meant to be run.

        Raises:
            CompatibilityError: the bundle does not take it, and why. InputError: it is a pack, which nobody measures.
        """
        verdict = self._upload(path, adapter_name, options).verdict
        if verdict is msgspec.UNSET:
            raise InputError(mismatch(str(path), "a LoRA file", "a pack, which the server has taken", "use load_lora_weights for it"))
        return verdict

    def _upload(self, path: str | Path, adapter_name: str, options: AdmissionOptions | None = None) -> Uploaded:
        place = path_of("path", path)
        if not is_file(place):
            raise InputError(mismatch(str(path), "a pack file", "none", "check the path"))
        patient = replace(self._http, timeout_s=self._http.timeout_s + LONGEST_ADMISSION_S)
        where = _adapter(adapter_name)
        if query := {} if options is None else msgspec.to_builtins(options):
            where += f"?{urlencode(query)}"
        with place.open("rb") as file, patient.answer("PUT", where, file, PACK) as answer, patient.reporting():
            return msgspec.json.decode(answer.read(), type=Uploaded)

    def unload(self, adapter_name: str) -> None:
        """Take back a pack that was sent."""
        self._http.fetch("DELETE", _adapter(adapter_name))
        if self._chosen is not None and adapter_name in self._chosen:
            self._chosen = {}

    def preload(self, name: str) -> None:
        """A hint: this adapter will be used soon."""
        self._http.json("POST", f"{_adapter(name)}/preload", Named)

    def install(self, name: str) -> None:
        """Take up at once what `quad install` put into the server's store."""
        self._http.json("POST", f"{_adapter(name)}/install", Named)

    def __call__(  # noqa: PLR0913 - the names and the number are the pipeline's
        self,
        prompt: str = "",
        task: str | None = None,
        image: PictureSource | None = None,
        mask_image: PictureSource | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        negative_prompt: str | None = "",
        callback_on_step_end: StepCallback | None = None,
        mask_grow: int = DEFAULT_GROW_PX,
        strength: float | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: str | Sequence[float] | None = None,
        reuse: int = 1,
        tiny_decoder: bool = False,
        prompt_syntax: PromptSyntax = "a1111",
        sampler: str | None = None,
        width: int | None = None,
        height: int | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        **others: object,
    ) -> PipelineOutput:
        """Make one picture, the same as the pipeline's, bit for bit. Leaving early, by an exception too, frees the server's work.

        Args:
            others: sizes that a model is told, see `SizeConditions`; words that a server does not take are refused with the way.

        Raises:
            QuadError: as the pipeline. BackendError: no server there. BusyError: no room now. StoppedError: it was stopped.
        """
        check_callback("callback_on_step_end", callback_on_step_end)
        refuse_arguments({name: value for name, value in others.items() if name not in SIZE_NAMES}, CLIENT_CALL)
        sizes = asdict(stated_sizes({name: value for name, value in others.items() if name in SIZE_NAMES}).checked())
        request = NewRequest(
            prompt=prompt, task=task, adapters=self._chosen,
            image=picture_file(image, "image"), mask_image=picture_file(mask_image, "mask"),
            num_inference_steps=num_inference_steps, sampler=sampler, width=width, height=height, guidance_scale=guidance_scale, seed=seed,
            negative_prompt="" if negative_prompt is None else negative_prompt, mask_grow=mask_grow, strength=strength,
            image_guidance_scale=image_guidance_scale,
            guidance_interval=None if guidance_interval is None else parse_interval(guidance_interval), reuse=reuse,
            tiny_decoder=tiny_decoder, prompt_syntax=prompt_syntax, **sizes, priority=priority, deadline_s=deadline_s, client=self._name,
        )  # fmt: skip
        return self._make(request, callback_on_step_end)

    def _make(self, request: NewRequest, callback: StepCallback | None) -> PipelineOutput:
        """Ask for a picture, follow it and fetch it."""
        queued = self._http.json("POST", "/v1/requests", RequestState, request)
        where = f"/v1/requests/{queued.id}"
        try:
            end = self._follow(where, callback)
        except BusyError:  # no stream was to be had, whose end would have told that nobody waits
            self._forget(where)
            raise
        return self._fetch(where, end)

    def _follow(self, where: str, callback: StepCallback | None) -> RequestState:
        with self._http.answer("GET", f"{where}/events") as stream:
            for event in _events(self._http, stream):
                if isinstance(event, RequestState):
                    return event
                if callback is not None:
                    callback(self, event.index, event.timestep, {})
        raise BackendError(mismatch("server", "the end of what it began", "a stream that broke off", "see whether it runs, and ask again"))

    def _fetch(self, where: str, end: RequestState) -> PipelineOutput:
        if end.error is not None or end.task is None or end.seed is None:
            raise as_exception(end.error) if end.error else BackendError(mismatch("server", "a picture", end.state, "ask again"))
        picture = from_png(self._http.fetch("GET", f"{where}/image"))
        self._forget(where)
        self._last = tuple(end.adapters)
        return PipelineOutput(
            images=[picture],
            notes=end.notes,
            timings_ms=end.timings_ms,
            task=end.task,
            adapters=end.adapters,
            seed=end.seed,
            sampler=end.sampler,
            guidance=end.guidance,
        )

    def _forget(self, where: str) -> None:
        with suppress(QuadError):  # it forgets by itself too, only later
            self._http.fetch("DELETE", where)


def _adapter(name: str) -> str:
    """Where a server has an adapter; half a character, which no name has, is spelled out."""
    return f"/v1/adapters/{quote(text('adapter', name), safe='', errors='backslashreplace')}"


def _events(http: HttpClient, stream: HTTPResponse) -> Iterator[Step | RequestState]:
    """Steps, then the final state."""
    kind: type[Step | RequestState] = RequestState
    while True:
        with http.reporting():
            line = stream.readline()
            name, _, value = line.rstrip(b"\n").partition(b": ")
            event = msgspec.json.decode(value, type=kind) if name == b"data" else None
        if event is not None:
            yield event
        elif name == b"event":
            kind = Step if value == b"step" else RequestState
        elif not line:
            return
