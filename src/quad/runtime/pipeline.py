"""`QuadPipeline`: pictures from a bundle, tasks by swapping buffers. Names follow diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import AdapterManifest, TaskSpec
from quad.runtime.adapted import Mixer
from quad.runtime.adapters import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.conditioning import DEFAULT_GROW_PX
from quad.runtime.engine import default_threads, open_engine
from quad.runtime.installed import InstalledAdapters
from quad.runtime.mix import weights_of
from quad.runtime.network import beside_of
from quad.runtime.output import PipelineOutput
from quad.runtime.picture import PictureSource
from quad.runtime.request import Request, Resolved, resolve
from quad.runtime.residency import Graph, open_graphs
from quad.runtime.stages import Prepared, Stages
from quad.runtime.tokenizer import Tokenizer

Float = NDArray[np.float32]
# As in diffusers: called as f(pipe, step index, timestep, {"latents": array}); what it returns is not used, what it raises ends the call.
StepCallback = Callable[["QuadPipeline", int, float, dict[str, Any]], Any]


class QuadPipeline:
    """One resident model and its adapters.

    Until `set_adapters` or `disable_lora` is called, each call uses its task's own adapter; after that, what they set.
    """

    def __init__(
        self, bundle: Bundle, graphs: Mapping[str, Graph], engine: str, memory: str, adapter_budget_bytes: int | None = None
    ) -> None:
        """Use `from_pretrained`; this takes what it opened.

        Raises:
            VerificationError: the U-Net reads other channels than its bundle says.
        """
        self.bundle, self.engine, self.memory = bundle, engine, memory
        self._graphs = graphs
        self.notes: tuple[str, ...] = ()
        self._store = AdapterStore(bundle, adapter_budget_bytes)
        self._mixer = Mixer(self._store)
        self._stages = Stages(bundle.manifest, graphs, Tokenizer(bundle.tokenizer_file, bundle.manifest.text))
        beside_of(graphs["unet"], bundle.manifest.latent)
        self._chosen: dict[str, float] | None = None
        self._bound: dict[str, float] = {}
        self._use({})

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
            verify: compare the digest of every file.
            memory: which graphs stay in memory between calls: `keep-all`; `balanced`, the U-Net; `minimal`, none.
            store: the device's installed adapters, each in place of the bundle's own of its name; what of them cannot be used is left out
                and told in `notes`. None for the bundle's own alone.
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
            installed = InstalledAdapters(Path(store), pipe.admit, pipe.dismiss)
            installed.look()
            pipe.notes = installed.notes
        return pipe

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """The tasks this pipeline can do now."""
        return self._store.tasks()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that `set_adapters` takes."""
        return self._store.names

    def adapter_manifest(self, name: str) -> AdapterManifest:
        """What an adapter says of itself.

        Raises:
            UsageError: no adapter has that name.
        """
        return self._store.manifest(name)

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
        wanted = weights_of(names, weights)
        self._use(wanted)
        self._chosen = wanted

    def disable_lora(self) -> None:
        """Use the base from now on: zero buffers, its output bit for bit."""
        self._use({})
        self._chosen = {}

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None) -> str:
        """Admit a pack or an adapter directory; `set_adapters` makes it active.

        Returns:
            The name it was given.

        Raises:
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        name = self.admit(path, adapter_name)
        if name in self._bound:
            self._use(dict(self._bound))
        return name

    def admit(self, path: str | Path, adapter_name: str | None = None) -> str:
        """As `load_lora_weights`, but pictures that are prepared or on their way keep the adapter that they began with."""
        name = self._store.load(path, adapter_name)
        self._forget(name)
        return name

    def unload(self, adapter_name: str | None = None) -> None:
        """Forget an adapter, or all of them; the base rules where one of them was active.

        Raises:
            UsageError: an unknown name.
        """
        names = self._store.names if adapter_name is None else (adapter_name,)
        for name in names:
            self.dismiss(name)
        if self._chosen is not None and self._chosen.keys() & set(names):
            self._chosen = {}
        if self._bound.keys() & set(names):
            self._use({})

    def dismiss(self, name: str) -> None:
        """As `unload`, but pictures that are prepared or on their way keep the adapter that they began with."""
        self._store.drop(name)
        self._forget(name)

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

    def resolve(self, request: Request) -> Resolved:
        """Which task and which adapters a request means; what of its call is wrong is told here, before any work.

        Raises:
            UsageError: an unknown task or adapter, or a number out of its range.
        """
        resolved = resolve(request, self.tasks, self.bundle.manifest.schedule)
        for name in resolved.weights:
            self._store.manifest(name)
        return resolved

    def prepare(self, request: Request, resolved: Resolved | None = None) -> Prepared:
        """The first half of a call: text, condition, adapter buffers. It does not touch the U-Net, which may work on another picture.

        Args:
            resolved: of this request, where it is known already.

        Raises:
            UsageError, InputError: as a call. CompatibilityError: the adapters' ranks together exceed a slot's.
        """
        meant = self.resolve(request) if resolved is None else resolved
        return self._stages.prepare(request, meant, self._mixer.adapted(meant.weights))

    def finish(self, prepared: Prepared, callback_on_step_end: StepCallback | None = None) -> PipelineOutput:
        """The second half of a call, once for each `prepare`: the same picture, bit for bit, whatever happened between."""
        self._bound = dict(prepared.adapted.weights)
        x0 = self._stages.denoise(prepared, self._on_step(callback_on_step_end))
        return self._stages.decode(prepared, x0)

    def graph(self, component: str) -> Graph:
        """One graph, which is loaded where it is needed."""
        return self._graphs[component]

    def pinned(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """While inside, these adapters stay in memory."""
        return self._store.pinned(names)

    def preload(self, name: str) -> None:
        """Read an adapter on another thread, so that it is there when it is needed.

        Raises:
            UsageError: no adapter has that name. What is wrong with its file is told when it is used.
        """
        self._store.preload(name)

    def _use(self, weights: Mapping[str, float]) -> None:
        adapted = self._mixer.adapted(weights)
        for graph in self._graphs.values():
            graph.bind(adapted.buffers, adapted.keep_as)
        self._bound = dict(weights)

    def _forget(self, name: str) -> None:
        self._mixer.forget(name)
        for graph in self._graphs.values():
            graph.forget(name)

    def _on_step(self, callback: StepCallback | None) -> Callable[[int, float, NDArray[Any]], None] | None:
        if callback is None:
            return None

        def on_step(index: int, timestep: float, x: NDArray[Any]) -> None:
            callback(self, index, timestep, {"latents": x})

        return on_step
