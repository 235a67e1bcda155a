"""Words of diffusers that this pipeline does not have, each with the way that it has instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quad.core.errors import UsageError, mismatch

_LEAVE_OUT = "leave the call out: the graph is compiled as it is"
_MEMORY = 'say it when the bundle is opened: from_pretrained(path, memory="minimal")'
_ENGINE = "say it when the bundle is opened: from_pretrained(path, engine=...)"
_FUSE = "pipe.set_adapters(names, weights): the graph reads them beside its own weights; or a bundle with them in its weights: quad bake"
_GRAPH = "the networks are graphs of an engine: pipe.graph(component)"
_SAMPLER = 'name a sampler: pipe(..., sampler="euler:20")'
_SAFETY = "leave it out: the bundle holds no safety checker"
_WEIGHTS = 'pipe.set_adapters(name, weights=...), also by block: {"unet": {"down": 0.5}}'
_TEXT = "give the words: pipe(prompt)"

CLIENT_CALL = "client(...)"
_CALLBACK = "callback_on_step_end(pipe, step, timestep, tensors)"
_ON_DISK = "leave it out: a bundle is a directory on disk"

# Attribute or method -> what to do.
_ATTRIBUTES: Mapping[str, str] = {
    "to": _ENGINE,
    "device": _ENGINE,
    "dtype": "the types are those of the bundle's graphs: quad build --precision",
    **dict.fromkeys(("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"), _MEMORY),
    **dict.fromkeys(
        (
            "enable_xformers_memory_efficient_attention",
            "disable_xformers_memory_efficient_attention",
            "enable_attention_slicing",
            "disable_attention_slicing",
            "enable_vae_slicing",
            "enable_vae_tiling",
            "enable_freeu",
            "fuse_qkv_projections",
        ),
        _LEAVE_OUT,
    ),
    **dict.fromkeys(("fuse_lora", "unfuse_lora"), _FUSE),
    "enable_lora": "pipe.set_adapters(names)",
    "save_lora_weights": "an adapter is a file already: pack it with quad adapt",
    "save_pretrained": "copy the bundle's directory",
    **dict.fromkeys(("unet", "vae", "text_encoder", "transformer", "components"), _GRAPH),
    "scheduler": _SAMPLER,
    **dict.fromkeys(("safety_checker", "feature_extractor"), _SAFETY),
    "load_ip_adapter": "no bundle takes a picture as a prompt: pipe(prompt, image=...)",
    "encode_prompt": _TEXT,
    "set_progress_bar_config": "leave the call out: it shows none, callback_on_step_end hears of each step",
}
# Argument of a call -> what to do.
_ARGUMENTS: Mapping[str, str] = {
    "cross_attention_kwargs": _WEIGHTS,
    **dict.fromkeys(("timesteps", "sigmas"), _SAMPLER),
    "eta": _SAMPLER,
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), _TEXT),
    **dict.fromkeys(("ip_adapter_image", "ip_adapter_image_embeds"), "no bundle takes a picture as a prompt: pipe(prompt, image=...)"),
    "clip_skip": "say it when the bundle is built: quad build --clip-skip N",
    "guidance_rescale": "leave it out, or choose a lower guidance_scale",
    **dict.fromkeys(("callback", "callback_steps", "callback_on_step_end_tensor_inputs"), _CALLBACK),
    "return_dict": "leave it out and take .images",
    "padding_mask_crop": "leave it out: what lies outside of the mask stays",
    # Words of the command line.
    "mask": "say mask_image=",
    "steps": "say num_inference_steps=",
    "guidance": "say guidance_scale=",
    "image_guidance": "say image_guidance_scale=",
    "size": "say width= and height=",
    "num_images": "say num_images_per_prompt=",
    "output": "leave it out and save .images[0]",
    **dict.fromkeys(("adapter", "adapters", "adapter_names", "adapter_weights"), "pipe.set_adapters(names, weights)"),
}
# Argument of `from_pretrained` -> what to do.
_OPENING: Mapping[str, str] = {
    **dict.fromkeys(("torch_dtype", "dtype", "variant"), "the types are those of the bundle's graphs: quad build --precision"),
    **dict.fromkeys(("device_map", "provider"), "choose an engine: from_pretrained(path, engine=...)"),
    **dict.fromkeys(("safety_checker", "requires_safety_checker", "feature_extractor"), _SAFETY),
    **dict.fromkeys(("unet", "vae", "text_encoder", "tokenizer"), "build a bundle with it: quad build MODEL -o BUNDLE"),
    "scheduler": _SAMPLER,
    **dict.fromkeys(("use_safetensors", "local_files_only", "cache_dir", "low_cpu_mem_usage"), _ON_DISK),
}
# Argument of a call of `QuadClient` that the pipeline takes -> what to do.
_CLIENT: Mapping[str, str] = {
    **dict.fromkeys(("num_images_per_prompt", "num_images"), "a call makes one picture: call again with the next seed"),
    "generator": "say seed=",
    "latents": "say seed=: the noise is drawn on the server",
    "output_type": "take .images[0], a PIL picture",
}


class NotHereError(UsageError, AttributeError):
    """An attribute of diffusers' pipelines that this one does not have; to `hasattr` it is a plain missing one."""


def is_missing(name: str) -> bool:
    """Whether diffusers' pipelines have it and this one does not."""
    return name in _ATTRIBUTES


def missing_attribute(name: str) -> AttributeError:
    """The error for an attribute that a pipeline does not have."""
    if name not in _ATTRIBUTES:
        return AttributeError(f"'QuadPipeline' object has no attribute {name!r}")
    return NotHereError(mismatch(f"pipe.{name}", "what a compiled graph can do", "what diffusers does with modules", _ATTRIBUTES[name]))


def refuse_arguments(names: Iterable[str], call: str = "pipe(...)") -> None:
    """Refuse arguments that a call does not take.

    Raises:
        UsageError: the first, and what to do instead.
    """
    known = {"from_pretrained": _OPENING, CLIENT_CALL: {**_ARGUMENTS, **_CLIENT}}.get(call, _ARGUMENTS)
    for name in names:
        raise UsageError(mismatch(call, "arguments that it takes", f"{name}=", known.get(name, "see QuadPipeline")))
