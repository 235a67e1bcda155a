"""`QuadPipeline`: pictures from a bundle, tasks by swapping buffers. Names follow diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.runtime.adapter_switch import AdaptedGraphs
from quad.runtime.adapters.follow_store import InstalledAdapters
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.conditioning.denoising import beside_of
from quad.runtime.conditioning.picture import PictureSource
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.engine import default_threads, open_engine
from quad.runtime.engines.graph import Graph, open_graphs
from quad.runtime.request import Request
from quad.runtime.stages import PipelineOutput, Prepared, Stages

Float = NDArray[np.float32]
# As in diffusers: called as f(pipe, step index, timestep, {"latents": array}); what it returns is not used, what it raises ends the call.
StepCallback = Callable[["QuadPipeline", int, float, dict[str, Any]], Any]


class QuadPipeline(AdaptedGraphs):
    """One resident model and its adapters."""

    def __init__(
        self, bundle: Bundle, graphs: Mapping[str, Graph], engine: str, memory: str, adapter_budget_bytes: int | None = None
    ) -> None:
        """Use `from_pretrained`; this takes what it opened.

        Raises:
            VerificationError: the U-Net reads other channels than its bundle says.
        """
        super().__init__(bundle, graphs, adapter_budget_bytes)
        self.engine, self.memory = engine, memory
        self.notes: tuple[str, ...] = ()
        self._stages = Stages(bundle.manifest, graphs, Tokenizer(bundle.tokenizer_file, bundle.manifest.text))
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
            InputError: no bundle there. VerificationError: it was changed. BackendError: no engine can run it.
        """
        bundle = open_bundle(path, verify)
        if threads is not None and threads < 1:
            raise UsageError(mismatch("threads", "1 or more", threads, "leave it out for all cores"))
        chosen = open_engine(engine, bundle.manifest.engines, bundle.manifest.precision)
        graphs = open_graphs(bundle, chosen, threads or default_threads(), memory)
        pipe = cls(bundle, graphs, chosen.name, memory, adapter_budget_bytes)
        if store is not None:
            installed = InstalledAdapters(Path(store), partial(pipe.admit, verify=False), pipe.dismiss)
            installed.look()
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
    ) -> PipelineOutput:
        """Make one picture.

        Args:
            task: None for the active adapter's task, or text-to-image where none is.
            image, mask_image: PIL, array or path, any size; see `quad.runtime.conditioning.condition`.
            seed: noise is `default_rng(seed).standard_normal((1, c, h, w))` as float32.
            latents: that noise itself, float32 `(1, c, h, w)`.
            mask_grow: pixels of the graph's square by which the mask is grown.
            strength: how much of the given picture is made anew, more than 0, at most 1.
            guidance_scale, image_guidance_scale: how strongly the prompt and the given picture count, 1 is plainly.

        Raises:
            UsageError: unknown task, an input it needs is missing, or a number is out of its range.
            InputError: a picture is no picture, the mask is empty.
        """
        request = Request(
            prompt=prompt,
            task=task,
            adapters=self._chosen,
            image=image,
            mask_image=mask_image,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            negative_prompt=negative_prompt,
            mask_grow=mask_grow,
            strength=strength,
            image_guidance_scale=image_guidance_scale,
            latents=latents,
        )
        return self.finish(self.prepare(request), callback_on_step_end)

    def prepare(self, request: Request) -> Prepared:
        """The first half of a call: text, condition, adapter buffers. It does not touch the U-Net, which may work on another picture.

        Raises:
            UsageError, InputError: as a call. CompatibilityError: the adapters' ranks together exceed a slot's.
        """
        return self._stages.prepare(request, *self._adapted(request))

    def finish(self, prepared: Prepared, callback_on_step_end: StepCallback | None = None) -> PipelineOutput:
        """The second half of a call, once for each `prepare`: the same picture, bit for bit, whatever happened between."""
        self._bound = dict(prepared.adapted.weights)
        x0 = self._stages.denoise(prepared, self._on_step(callback_on_step_end))
        return self._stages.decode(prepared, x0)

    def graph(self, component: str) -> Graph:
        """One graph, which is loaded where it is needed."""
        return self._graphs[component]

    def _on_step(self, callback: StepCallback | None) -> Callable[[int, float, NDArray[Any]], None] | None:
        if callback is None:
            return None

        def on_step(index: int, timestep: float, x: NDArray[Any]) -> None:
            callback(self, index, timestep, {"latents": x})

        return on_step
