"""`QuadPipeline`: pictures from a bundle, tasks by swapping buffers. Names follow diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from quad.core.float_type import AUTO, F32
from quad.core.manifest import BUNDLE_FILE, EMBEDDINGS_FILE, TOKENIZER_FILE, TaskSpec
from quad.core.storage.replaced import unless_replaced
from quad.runtime.adapter_switch import AdapterSwitch
from quad.runtime.adapters.follow_store import InstalledAdapters
from quad.runtime.arguments import check_callback, flag, path_of, text, thread_count
from quad.runtime.batch import BatchWords, check_output, expand, joined
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.conditioning.denoising import beside_of
from quad.runtime.conditioning.embeddings import TextEmbeddings, parse_embeddings
from quad.runtime.conditioning.picture import PictureSource
from quad.runtime.conditioning.prompt_syntax import PromptSyntax
from quad.runtime.conditioning.size_conditions import stated_sizes
from quad.runtime.conditioning.text_memo import TextMemo
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.embedding_methods import EmbeddingMethods
from quad.runtime.engines.engine import default_threads, open_engine
from quad.runtime.engines.float_types import denoiser_engine
from quad.runtime.engines.graph import Graph, open_graphs
from quad.runtime.lora_methods import LoraMethods
from quad.runtime.not_here import is_missing, missing_attribute, refuse_arguments
from quad.runtime.preview import bundle_preview
from quad.runtime.request import Request
from quad.runtime.samplers import OnStep
from quad.runtime.stages import OutputType, PipelineOutput, Prepared, Stages

Float = NDArray[np.float32]
# As in diffusers: called as f(pipe, step index, timestep, {"latents": array, "denoised": array}); what it returns is not used, what it
# raises ends the call. `denoised` is the clean latent as the network saw it in that step.
StepCallback = Callable[["QuadPipeline", int, float, dict[str, Any]], Any]


class QuadPipeline(LoraMethods, EmbeddingMethods):
    """One resident model and its adapters.

    Args:
        notes: what could not be taken from the store, one line each.
    """

    def __init__(
        self, bundle: Bundle, graphs: Mapping[str, Graph], *, engine: str, memory: str, float_type: str = F32,
        adapter_budget_bytes: int | None = None,
    ) -> None:  # fmt: skip
        """Use `from_pretrained`; this takes what it opened.

        Raises:
            VerificationError: the U-Net reads other channels than its bundle says.
        """
        self.bundle, self.engine, self.memory, self.float_type = bundle, engine, memory, float_type
        self.notes: tuple[str, ...] = ()
        self.switch = AdapterSwitch(bundle, graphs, adapter_budget_bytes)
        self._graphs = graphs
        tokenizer = Tokenizer(bundle.read(TOKENIZER_FILE), bundle.manifest.text)
        self.embeddings = TextEmbeddings(tokenizer.text, tokenizer.room)
        if EMBEDDINGS_FILE in bundle.manifest.files:
            self.embeddings.add(f"{bundle.root}", parse_embeddings(f"{bundle.root}", bundle.read(EMBEDDINGS_FILE)))
        self.stages = Stages(manifest=bundle.manifest, graphs=graphs, tokenizer=tokenizer, embeddings=self.embeddings)
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
        float_type: str = AUTO,
        **unknown: Any,
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
            float_type: of what is float in the U-Net: `f32`, `bf16`, or `auto` for bf16 where the engine has it on this processor and the
                bundle was proven with it, else f32.

        Raises:
            InputError: no bundle there. VerificationError: it was changed.
            BackendError: no engine can run it, or the store cannot be read.
            CompatibilityError: bf16 is asked for, and the engine or the processor has none.
        """
        refuse_arguments(unknown, "from_pretrained")
        root, place = path_of("path", path), None if store is None else path_of("store", store)
        for word, value in (("engine", engine), ("memory", memory), ("float_type", float_type)):
            text(word, value)
        n_threads = default_threads() if threads is None else thread_count("threads", threads)

        def open_pipeline() -> QuadPipeline:
            bundle = open_bundle(root, verify).without_weights()
            opened = open_engine(engine, bundle.manifest.engines, bundle.manifest.precision)
            denoiser = denoiser_engine(opened, float_type, bundle.manifest)
            graphs = open_graphs(bundle, opened, n_threads, memory, denoiser.engine)
            return cls(
                bundle, graphs, engine=opened.name, memory=memory, float_type=denoiser.float_type, adapter_budget_bytes=adapter_budget_bytes
            )

        pipe = unless_replaced(root / BUNDLE_FILE, open_pipeline)
        if place is not None:
            installed = InstalledAdapters(place, partial(pipe.switch.register, verify=False, mapped=True), pipe.switch.unregister)
            installed.open()
            pipe.notes = installed.notes
        return pipe

    def __call__(  # noqa: PLR0913 - the names and the number are diffusers'
        self,
        prompt: str | Sequence[str] = "",
        task: str | None = None,
        image: PictureSource | None = None,
        mask_image: PictureSource | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        negative_prompt: str | Sequence[str] | None = "",
        callback_on_step_end: StepCallback | None = None,
        latents: Float | None = None,
        mask_grow: int = DEFAULT_GROW_PX,
        strength: float | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: str | Sequence[float] | None = None,
        reuse: int = 1,
        tiny_decoder: bool = False,
        prompt_syntax: PromptSyntax = "a1111",
        sampler: str | None = None,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        width: int | None = None,
        height: int | None = None,
        output_type: OutputType = "pil",
        **more: Any,
    ) -> PipelineOutput:
        """Make pictures, one after another.

        Args:
            prompt, negative_prompt: one, or a list; a list makes pictures of each in turn.
            task: None for the active adapter's task, or text-to-image where none is.
            sampler: `KIND` or `KIND:STEPS`, see `quad.runtime.samplers.names`; None for what active adapters bring, else the task's own.
            image, mask_image: PIL, array or path, any size; see `quad.runtime.conditioning.condition`.
            seed: noise is `default_rng(seed).standard_normal((1, c, h, w))` as float32; `seed + k` for picture k of a call.
            generator: a NumPy generator in place of the seed, or a list of one for each picture. Of torch's the seed is taken.
            latents: that noise itself, float32 `(n, c, h, w)`.
            mask_grow: pixels of the graph's picture by which the mask is grown.
            strength: how much of the given picture is made anew, more than 0, at most 1.
            guidance_scale, image_guidance_scale: how strongly the prompt and the given picture count, 1 is plainly.
            guidance_interval, reuse, tiny_decoder: what is not computed, by choice, see `quad.runtime.request.Request`.
            prompt_syntax: `a1111` reads `(word:1.2)`, `[word]` and `BREAK` in both prompts; `plain` reads every character as it stands.
            width, height: pixels, one of the bundle's sizes; None for its first one.
            more: `original_size`, `crops_coords_top_left`, `target_size` and the same with `negative_`, see `SizeConditions`.
            output_type: `pil`; `np`, float32 `(n, H, W, 3)` in [0, 1]; or `latent`, the clean latents float32 `(n, c, h, w)`.

        Raises:
            UsageError: unknown task, an input it needs is missing, or a number is out of its range.
            InputError: a picture is no picture, the mask is empty.
        """
        common = Request(
            task=task, adapters=self.switch.chosen, image=image, mask_image=mask_image, mask_grow=mask_grow, seed=seed, latents=latents,
            num_inference_steps=num_inference_steps, sampler=sampler, guidance_scale=guidance_scale, strength=strength,
            image_guidance_scale=image_guidance_scale, guidance_interval=guidance_interval, reuse=reuse, tiny_decoder=tiny_decoder,
            prompt_syntax=prompt_syntax, width=width, height=height, sizes=stated_sizes(more),
        )  # fmt: skip
        words = BatchWords(prompt=prompt, negative_prompt=negative_prompt, num_images_per_prompt=num_images_per_prompt, generator=generator)
        requests, notes = expand(common, words)
        return joined(list(self.generate(requests, callback_on_step_end, output_type)), notes)

    def generate(
        self, requests: Iterable[Request], callback_on_step_end: StepCallback | None = None, output_type: OutputType = "pil"
    ) -> Iterator[PipelineOutput]:
        """Pictures of a call one by one, each when it is asked for, so that not all of them are in memory.

        Raises:
            QuadError: as a call, when the picture is asked for that it is about.
        """
        check_output(output_type)
        check_callback("callback_on_step_end", callback_on_step_end)
        texts = TextMemo()
        for request in requests:
            yield self.finish(self.prepare(request, texts), callback_on_step_end, output_type)

    def prepare(self, request: Request, texts: TextMemo | None = None) -> Prepared:
        """The first half of a call: text, condition, adapter buffers. It does not touch the U-Net, which may work on another picture.

        Args:
            texts: what prompts of the same call became already, and where those of this one go.

        Raises:
            UsageError, InputError: as a call. CompatibilityError: the adapters' ranks together exceed a slot's.
        """
        return self.stages.prepare(request, *self.switch.resolve_mix(request), texts)

    def prepare_ahead(self, request: Request) -> Prepared:
        """As `prepare`, and the adapters are laid out for the U-Net too, while it works on another picture: binding them is then a choice.

        Raises:
            UsageError, InputError, CompatibilityError: as `prepare`.
        """
        prepared = self.prepare(request)
        self.stages.lay_out(prepared.resolved, prepared.mix)
        return prepared

    def lay_out(self, request: Request) -> None:
        """Have a request's adapters in memory and laid out for the U-Net by the time that its picture is made.

        Raises:
            UsageError, CompatibilityError: as `prepare`.
        """
        self.stages.lay_out(*self.switch.resolve_mix(request))

    def finish(
        self, prepared: Prepared, callback_on_step_end: StepCallback | None = None, output_type: OutputType = "pil"
    ) -> PipelineOutput:
        """The second half of a call, once for each `prepare`: the same picture, bit for bit, whatever happened between."""
        on_step: OnStep | None = None
        if callback_on_step_end is not None:
            prepared, estimate = prepared.watched(self.bundle.manifest.schedule.prediction)

            # As in diffusers, whatever the callback returns.
            def on_step(index: int, timestep: float, x: NDArray[Any]) -> None:
                callback_on_step_end(self, index, timestep, {"latents": x, "denoised": estimate()})

        x0 = self.stages.denoise(prepared, on_step)
        return self.stages.decode(prepared, x0, output_type)

    def preview(self, latents: Float, tiny_decoder: bool = False) -> Image:
        """A coarse picture of latents `(1, c, h, w)`, in no time: best of `denoised`, which the callback of a call gets.

        Args:
            tiny_decoder: a sharp one, by the bundle's small decoder, in a fraction of a step's time.

        Raises:
            UsageError: the bundle is of an older build, or was built without a picture, or without that decoder.
        """
        return self.stages.tiny_picture(latents) if flag("tiny_decoder", tiny_decoder) else bundle_preview(self.bundle.manifest, latents)

    def __getattr__(self, name: str) -> Any:
        """Words of diffusers that are not here, told with the way that is.

        Raises:
            AttributeError: always.
        """
        raise missing_attribute(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Words of diffusers that nobody here would read, such as `scheduler`, are refused likewise.

        Raises:
            AttributeError: it is one.
        """
        if is_missing(name):
            raise missing_attribute(name)
        super().__setattr__(name, value)

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """The tasks this pipeline can do now."""
        return self.switch.store.tasks()

    def graph(self, component: str) -> Graph:
        """One graph by `graph_name`, the component alone for the bundle's first size; it is loaded where it is needed."""
        return self._graphs[component]
