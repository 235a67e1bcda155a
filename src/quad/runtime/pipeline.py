"""`QuadPipeline`: pictures from a bundle, tasks by swapping buffers. Names follow diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import BUNDLE_FILE, TOKENIZER_FILE, AdapterManifest, TaskSpec
from quad.core.storage.replaced import unless_replaced
from quad.runtime.adapter_switch import AdapterSwitch
from quad.runtime.adapters.follow_store import InstalledAdapters
from quad.runtime.adapters.store import StoreMetrics
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.conditioning.denoising import beside_of
from quad.runtime.conditioning.picture import PictureSource
from quad.runtime.conditioning.prompt_syntax import PromptSyntax
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.engine import default_threads, open_engine
from quad.runtime.engines.graph import Graph, open_graphs
from quad.runtime.request import Request
from quad.runtime.samplers import OnStep
from quad.runtime.stages import PipelineOutput, Prepared, Stages

Float = NDArray[np.float32]
# As in diffusers: called as f(pipe, step index, timestep, {"latents": array}); what it returns is not used, what it raises ends the call.
StepCallback = Callable[["QuadPipeline", int, float, dict[str, Any]], Any]


class QuadPipeline:
    """One resident model and its adapters.

    Until `set_adapters` or `disable_lora` is called, each call uses its task's own adapter; after that, what they set.

    Args:
        switch: the adapters, for those who register them while pictures are made.
        notes: what could not be taken from the store, one line each.
    """

    def __init__(
        self, bundle: Bundle, graphs: Mapping[str, Graph], *, engine: str, memory: str, adapter_budget_bytes: int | None = None
    ) -> None:
        """Use `from_pretrained`; this takes what it opened.

        Raises:
            VerificationError: the U-Net reads other channels than its bundle says.
        """
        self.bundle, self.engine, self.memory = bundle, engine, memory
        self.notes: tuple[str, ...] = ()
        self.switch = AdapterSwitch(bundle, graphs, adapter_budget_bytes)
        self._graphs = graphs
        self._stages = Stages(bundle.manifest, graphs, Tokenizer(bundle.read(TOKENIZER_FILE), bundle.manifest.text))
        beside_of(graphs["unet"], bundle.manifest.latent)

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - how a model is opened is said here or nowhere
        cls,
        path: str | Path,
        engine: str = "auto",
        threads: int | None = None,
        verify: bool = True,
        memory: str = "keep-all",
        store: str | Path | None = None,
        adapter_budget_bytes: int | None = None,
    ) -> QuadPipeline:
        """Open a bundle directory.

        Args:
            engine: `auto` for the bundle's first installed one, or a name.
            threads: CPU threads for all graphs together, None for as many as the process may use.
            verify: compare the digest of every file of the bundle.
            memory: which graphs stay in memory between calls: `keep-all`; `balanced`, the U-Net; `minimal`, none.
            store: the device's installed adapters, each in place of the bundle's own of its name; what cannot be one is left out and told
                in `notes`, and each is hashed when it is first used. None for the bundle's own alone.
            adapter_budget_bytes: of memory for adapters, None for no bound.

        Raises:
            InputError: no bundle there. VerificationError: it was changed.
            BackendError: no engine can run it, or the store cannot be read.
        """
        if threads is not None and threads < 1:
            raise UsageError(mismatch("threads", "1 or more", threads, "leave it out for all cores"))

        def open_pipeline() -> QuadPipeline:
            bundle = open_bundle(path, verify)
            opened = open_engine(engine, bundle.manifest.engines, bundle.manifest.precision)
            graphs = open_graphs(bundle, opened, threads or default_threads(), memory)
            return cls(bundle, graphs, engine=opened.name, memory=memory, adapter_budget_bytes=adapter_budget_bytes)

        pipe = unless_replaced(Path(path) / BUNDLE_FILE, open_pipeline)
        if store is not None:
            installed = InstalledAdapters(Path(store), partial(pipe.switch.register, verify=False, mapped=True), pipe.switch.unregister)
            installed.open()
            pipe.notes = installed.notes
        return pipe

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
        prompt_syntax: PromptSyntax = "a1111",
    ) -> PipelineOutput:
        """Make one picture.

        Args:
            task: None for the active adapter's task, or text-to-image where none is.
            image, mask_image: PIL, array or path, any size; see `quad.runtime.conditioning.condition`.
            seed: noise is `default_rng(seed).standard_normal((1, c, h, w))` as float32.
            latents: that noise itself, float32 `(1, c, h, w)`.
            mask_grow: pixels of the graph's picture by which the mask is grown.
            strength: how much of the given picture is made anew, more than 0, at most 1.
            guidance_scale, image_guidance_scale: how strongly the prompt and the given picture count, 1 is plainly.
            prompt_syntax: `a1111` reads `(word:1.2)`, `[word]` and `BREAK` in both prompts; `plain` reads every character as it stands.

        Raises:
            UsageError: unknown task, an input it needs is missing, or a number is out of its range.
            InputError: a picture is no picture, the mask is empty.
        """
        request = Request(
            prompt=prompt,
            task=task,
            adapters=self.switch.chosen,
            image=image,
            mask_image=mask_image,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            negative_prompt=negative_prompt,
            mask_grow=mask_grow,
            strength=strength,
            image_guidance_scale=image_guidance_scale,
            prompt_syntax=prompt_syntax,
            latents=latents,
        )
        return self.finish(self.prepare(request), callback_on_step_end)

    def prepare(self, request: Request) -> Prepared:
        """The first half of a call: text, condition, adapter buffers. It does not touch the U-Net, which may work on another picture.

        Raises:
            UsageError, InputError: as a call. CompatibilityError: the adapters' ranks together exceed a slot's.
        """
        return self._stages.prepare(request, *self.switch.resolve_mix(request))

    def finish(self, prepared: Prepared, callback_on_step_end: StepCallback | None = None) -> PipelineOutput:
        """The second half of a call, once for each `prepare`: the same picture, bit for bit, whatever happened between."""
        on_step: OnStep | None = None
        if callback_on_step_end is not None:
            # As in diffusers, whatever the callback returns.
            def on_step(index: int, timestep: float, x: NDArray[Any]) -> None:
                callback_on_step_end(self, index, timestep, {"latents": x})

        x0 = self._stages.denoise(prepared, on_step)
        return self._stages.decode(prepared, x0)

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """The tasks this pipeline can do now."""
        return self.switch.store.tasks()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that `set_adapters` takes."""
        return self.switch.store.names

    def adapter_manifest(self, name: str) -> AdapterManifest:
        """The manifest of an adapter.

        Raises:
            UsageError: no adapter has that name.
        """
        return self.switch.store.manifest(name)

    def adapter_metrics(self) -> StoreMetrics:
        """Memory of its adapters, and how they came there."""
        return self.switch.store.metrics()

    def get_active_adapters(self) -> list[str]:
        """Adapters bound at this moment; empty for the base."""
        return list(self.switch.active)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: float | Sequence[float] | None = None) -> None:
        """Use these adapters from now on; several are added on the integer lattice.

        Args:
            adapter_names: one name or several.
            weights: one for all, or one each; 1 where not given.

        Raises:
            UsageError: an unknown name, or a wrong weight.
            CompatibilityError: their ranks together exceed a slot's.
        """
        self.switch.set_adapters([adapter_names] if isinstance(adapter_names, str) else list(adapter_names), weights)

    def disable_lora(self) -> None:
        """Use the base from now on: zero buffers, its output bit for bit."""
        self.switch.disable()

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None) -> str:
        """Register a pack or an adapter directory; `set_adapters` makes it active.

        Returns:
            The name it was given.

        Raises:
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        return self.switch.load(path, adapter_name)

    def unload(self, adapter_name: str | None = None) -> None:
        """Unregister an adapter, or all of them; the base rules where one of them was active.

        Raises:
            UsageError: an unknown name.
        """
        self.switch.unload(adapter_name)

    def graph(self, component: str) -> Graph:
        """One graph, which is loaded where it is needed."""
        return self._graphs[component]
