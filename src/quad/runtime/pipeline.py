"""`QuadPipeline`: pictures from a bundle, tasks by swapping buffers. Names follow diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.errors import BackendError, UsageError, mismatch
from quad.core.manifest import TaskSpec
from quad.runtime.adapters import AdapterStore
from quad.runtime.binding import Binder
from quad.runtime.bundle import COMPONENTS, Bundle, open_bundle
from quad.runtime.conditioning import DEFAULT_GROW_PX, Condition, Given, make_condition, to_picture
from quad.runtime.denoising import Inputs, is_guided, plan_denoising
from quad.runtime.engine import SwitchSession, default_threads, open_engine
from quad.runtime.mix import weights_of
from quad.runtime.network import beside_of, draw_noise, slot_inputs
from quad.runtime.output import PipelineOutput, Run
from quad.runtime.picture import PictureSource
from quad.runtime.samplers import run_sampler
from quad.runtime.tasks import Wishes, as_wished, choose_task
from quad.runtime.tokenizer import Tokenizer

Float = NDArray[np.float32]
# As in diffusers: called as f(pipe, step index, timestep, {"latents": array}); what it returns is not used.
StepCallback = Callable[["QuadPipeline", int, float, dict[str, Any]], Any]


class QuadPipeline:
    """One resident model and its adapters.

    Until `set_adapters` or `disable_lora` is called, each call uses its task's own adapter; after that, what they set.
    """

    def __init__(self, bundle: Bundle, sessions: dict[str, SwitchSession], engine: str) -> None:
        """Use `from_pretrained`; this takes what it opened.

        Raises:
            VerificationError: the graphs' inputs are not those of the slot table.
        """
        self.bundle, self.engine = bundle, engine
        self._sessions = sessions
        names = slot_inputs(bundle, sessions)  # before buffers are made of a table's numbers, the graphs have to bear it out
        self._store = AdapterStore(bundle)
        self._tokenizer = Tokenizer(bundle.tokenizer_file, bundle.manifest.text)
        beside_of(sessions["unet"], bundle.manifest.latent)
        self._binder = Binder(sessions, names)
        self._bound: dict[str, float] = {}
        self._bound_notes: tuple[str, ...] = ()
        self._chosen = False
        self._use({})

    @classmethod
    def from_pretrained(cls, path: str | Path, engine: str = "auto", threads: int | None = None, verify: bool = True) -> QuadPipeline:
        """Open a bundle directory.

        Args:
            engine: `auto` for the bundle's first installed one, or a name.
            threads: CPU threads, None for as many as the process may use.
            verify: compare the digest of every file.

        Raises:
            InputError: no bundle there. VerificationError: it was changed. BackendError: no engine can run it.
        """
        bundle = open_bundle(path, verify)
        if threads is not None and threads < 1:
            raise UsageError(mismatch("threads", "1 or more", threads, "leave it out for all cores"))
        chosen = open_engine(engine, bundle.manifest.engines, bundle.manifest.precision)
        try:
            sessions = {name: chosen.load(bundle.graph(name), threads or default_threads()) for name in COMPONENTS}
        except BackendError as error:
            if not bundle.device:
                raise
            raise BackendError(f"{error}; this bundle is for {bundle.device}") from error
        return cls(bundle, sessions, chosen.name)

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """The tasks this pipeline can do now."""
        return self._store.tasks()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that `set_adapters` takes."""
        return self._store.names

    def get_active_adapters(self) -> list[str]:
        """Adapters bound at this moment; empty for the base."""
        return list(self._bound)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: float | Sequence[float] | None = None) -> None:
        """Use these adapters from now on; several are added on the integer lattice.

        Args:
            adapter_names: one name or several.
            weights: one for all, or one each; 1 where not given.

        Raises:
            UsageError: an unknown name, or a wrong weight.
            CompatibilityError: their ranks together exceed a slot's.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._use(weights_of(names, weights))
        self._chosen = True

    def disable_lora(self) -> None:
        """Use the base from now on: zero buffers, its output bit for bit."""
        self._use({})
        self._chosen = True

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None) -> str:
        """Admit a pack or an adapter directory; `set_adapters` makes it active.

        Returns:
            The name it was given.

        Raises:
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        name = self._store.load(path, adapter_name)
        self._binder.forget(name)
        if name in self._bound:
            self._use(dict(self._bound))
        return name

    def unload(self, adapter_name: str | None = None) -> None:
        """Forget an adapter, or all of them; the base rules where one of them was active.

        Raises:
            UsageError: an unknown name.
        """
        names = self._store.names if adapter_name is None else (adapter_name,)
        for name in names:
            self._store.drop(name)
            self._binder.forget(name)
        if self._bound.keys() & set(names):
            self._use({})

    def __call__(  # noqa: PLR0913 - the names and the number are diffusers'
        self,
        prompt: str = "",
        task: str | None = None,
        image: PictureSource | None = None,
        mask_image: PictureSource | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        negative_prompt: str = "",
        callback_on_step_end: StepCallback | None = None,
        latents: Float | None = None,
        mask_grow: int = DEFAULT_GROW_PX,
        strength: float | None = None,
        image_guidance_scale: float | None = None,
    ) -> PipelineOutput:
        """Make one picture.

        Args:
            task: None for the active adapter's task, or text-to-image where none is.
            image, mask_image: PIL, array or path, any size; see `quad.runtime.conditioning`.
            seed: noise is `default_rng(seed).standard_normal((1, c, h, w))` as float32.
            latents: that noise itself, float32 `(1, c, h, w)`.
            mask_grow: pixels of the graph's square by which the mask is grown.
            strength: how much of the given picture is made anew, more than 0, at most 1.
            guidance_scale, image_guidance_scale: how strongly the prompt and the given picture count, 1 is plainly.

        Raises:
            UsageError: unknown task, an input it needs is missing, or a number is out of its range.
            InputError: a picture is no picture, the mask is empty.
        """
        run, manifest = Run(), self.bundle.manifest
        with run.clock("total"):
            name = choose_task(task, list(self._bound) if self._chosen else (), self.tasks)
            wishes = Wishes(num_inference_steps, strength, guidance_scale, image_guidance_scale)
            spec = as_wished(name, self.tasks[name], wishes, manifest.schedule)
            rng, noise = draw_noise(seed, latents, manifest)
            condition = make_condition(name, spec, Given(image, mask_image, mask_grow), manifest.size, manifest.latent.factor)
            run.notes += [*condition.notes, *self._adapt(name, spec)]
            inputs = Inputs(condition, self._texts(prompt, negative_prompt, is_guided(spec), run), noise, partial(self._encode, run))
            plan = plan_denoising(self._sessions["unet"], manifest.latent, spec, inputs)
            told = self._on_step(callback_on_step_end)
            with run.clock("unet"):
                x0 = run_sampler(spec.sampler, manifest.schedule, plan.network, noise, rng, told, start=plan.start)
            picture = self._decode(x0, condition, run)
        notes = tuple(dict.fromkeys(run.notes))
        return PipelineOutput([picture], notes, run.timings_ms, name, dict(self._bound), seed)

    def _adapt(self, task: str, spec: TaskSpec) -> tuple[str, ...]:
        """Bind the task's adapter where the user chose none; else say when the choice does not hold it."""
        if not self._chosen:
            wanted = {spec.adapter: 1.0} if spec.adapter is not None else {}
            if wanted != self._bound:
                self._use(wanted)
        elif spec.adapter is not None and spec.adapter not in self._bound:
            return (f"adapters: task {task} is meant for {spec.adapter!r}, which is not active", *self._bound_notes)
        return self._bound_notes

    def _use(self, weights: dict[str, float]) -> None:
        buffers, notes = self._store.mix(list(weights), list(weights.values()))
        # An adapter as it is, and the base, come as the same buffers again; a mix does not.
        plain = list(weights.values()) in ([], [1.0])
        self._binder.bind(buffers, "".join(weights) if plain else None)
        self._bound, self._bound_notes = dict(weights), notes

    def _texts(self, prompt: str, negative: str, guided: bool, run: Run) -> tuple[Float, Float | None]:
        if guided:
            return self._text(prompt, run), self._text(negative, run)
        if negative:
            run.notes.append("negative prompt: it counts only with guidance other than 1, it was not used")
        return self._text(prompt, run), None

    def _text(self, prompt: str, run: Run) -> Float:
        if not isinstance(prompt, str):
            raise UsageError(mismatch("prompt", "one string", type(prompt).__name__, "call once per prompt"))
        with run.clock("text_encoder"):
            tokens = self._tokenizer(prompt)
            run.notes += tokens.notes
            hidden: Float = self._sessions["text_encoder"].run({"input_ids": tokens.ids})
        return hidden

    def _encode(self, run: Run, image: Float) -> Float:
        with run.clock("vae_encoder"):
            latent: Float = self._sessions["vae_encoder"].run({"image": image})
        return latent

    def _on_step(self, callback: StepCallback | None) -> Callable[[int, float, NDArray[Any]], None] | None:
        if callback is None:
            return None

        def on_step(index: int, timestep: float, x: NDArray[Any]) -> None:
            callback(self, index, timestep, {"latents": x})

        return on_step

    def _decode(self, x0: NDArray[Any], condition: Condition, run: Run) -> Image.Image:
        with run.clock("vae_decoder"):
            image = self._sessions["vae_decoder"].run({"latent": np.asarray(x0, np.float32)})
        if not np.isfinite(image).all():
            then = "use guidance_scale or adapter weights nearer to 1"
            raise BackendError(mismatch(f"engine {self.engine}", "a picture of finite numbers", "NaN or Inf", then))
        return to_picture(image, condition.paste)
