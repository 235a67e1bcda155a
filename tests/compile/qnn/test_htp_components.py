"""The other three graphs of a Stable Diffusion model, small and random, on the emulator: operators that the reference model has not.

CLIP with either activation, and two as SDXL reads them; AutoencoderKL with attention in its middle, downsampling that pads on two sides
only, and moments of which half are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.compile.export import GraphSpec
from quad.compile.passes import unobserved
from quad.compile.shared_weights import write_variants
from quad.core.component_call import ComponentCall
from quad.core.manifest import LatentSpec
from quad.core.picture_size import PictureSize
from quad.core.profile import GroupRanges
from quad.core.slots import SlotTable
from quad.model.base.modules import TextModule, VaeDecoderModule, VaeEncoderModule, share_copy
from quad.model.base.text.clip_pair import ClipPair
from quad.model.slots.attention import add_sites
from quad.model.slots.layers import weights_of
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from tests.compile.qnn.placed_htp import htp_compiler

pytest.importorskip("onnxruntime_qnn")

CALLS, TOKENS, WORDS, END, SIDE = 3, 77, 64, 2, 32
LATENT = LatentSpec(channels=4, factor=4, scale=(0.18215,) * 4, shift=(0.0,) * 4)
NO_SLOTS = SlotTable(())


def clip(activation: str, kind: type[nn.Module] = transformers.CLIPTextModel) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=TOKENS, hidden_act=activation, bos_token_id=1, eos_token_id=END, pad_token_id=END, projection_dim=24,
    )  # fmt: skip
    return kind(config).eval()


def clip_pair() -> nn.Module:
    """Two, whose prompts are filled up with another token in the second."""
    return ClipPair(clip("quick_gelu"), clip("gelu", transformers.CLIPTextModelWithProjection), end=END, pads=(END, 0))


def vae() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(16, 16, 32),
        layers_per_block=1, norm_num_groups=8, latent_channels=LATENT.channels, sample_size=SIDE,
    ).eval()  # fmt: skip


def networks() -> Iterator[tuple[str, nn.Module, GraphSpec]]:
    """Test name, network and what it is fed with."""
    generator = torch.Generator().manual_seed(1)
    ids = prompt(generator)
    for name, encoder in (("quick_gelu", clip("quick_gelu")), ("gelu", clip("gelu")), ("pair", clip_pair())):
        spec = GraphSpec(component="text_encoder", inputs={"input_ids": ids}, output="last_hidden_state")
        yield name, TextModule(share_copy(encoder)), spec
    picture = torch.rand(1, 3, SIDE, SIDE, generator=generator) * 2 - 1
    yield (
        "encoder",
        VaeEncoderModule(share_copy(vae()), LATENT),
        GraphSpec(component="vae_encoder", inputs={"image": picture}, output="latent"),
    )
    z = torch.randn(1, LATENT.channels, SIDE // LATENT.factor, SIDE // LATENT.factor, generator=generator)
    yield "decoder", VaeDecoderModule(share_copy(vae()), LATENT), GraphSpec(component="vae_decoder", inputs={"latent": z}, output="image")


def prompt(generator: torch.Generator) -> Tensor:
    """Tokens of some words, its end, and the end again up to the full length."""
    ids = torch.randint(END + 1, WORDS, (1, TOKENS), generator=generator)
    ids[:, int(torch.randint(2, TOKENS, (), generator=generator)) :] = END
    return ids


def others_like(given: Tensor) -> list[Tensor]:
    """That input and some more of its kind."""
    generator = torch.Generator().manual_seed(2)
    if given.dtype == torch.int64:
        return [given, *(prompt(generator) for _ in range(CALLS - 1))]
    return [given, *(given.flatten()[torch.randperm(given.numel(), generator=generator)].view(given.shape) for _ in range(CALLS - 1))]


@pytest.mark.parametrize(("network", "spec"), [pytest.param(network, spec, id=name) for name, network, spec in networks()])
def test_a_component_is_whole_on_the_chip_and_near_the_float_network(network: nn.Module, spec: GraphSpec, tmp_path: Path) -> None:
    from quad.core.decibels import array_sqnr_db
    from quad.runtime.engines.qnn import open_engine

    add_sites(network)
    (name, given), component = next(iter(spec.inputs.items())), spec.component
    examples = others_like(given)
    with torch.no_grad():
        statistics = observe({component: network}, [Feed("base", lambda one=one: network(one)) for one in examples])
        expected: list[NDArray[np.float32]] = [network(one).numpy() for one in examples]
    profile = unify(statistics, {component: weights_of(network)}, NO_SLOTS, (), UnifyOptions())
    calls = [ComponentCall(component=component, source="base", inputs={name: one.numpy()}) for one in examples]
    compiler = htp_compiler(profile, NO_SLOTS, calls, tmp_path)
    made = compiler.artifact(network, spec, unobserved)
    assert (made.placement["on_cpu"], made.placement["partitions"]) == (0, 1)
    assert made.agreement_db["base"] > 50.0
    session = open_engine("w8a16").load(tmp_path / component / "model.onnx", 1)
    found = [session.run({name: one.numpy()}) for one in examples]
    assert min(array_sqnr_db(e, f) for e, f in zip(expected, found, strict=True)) > 34.0


class Sharpen(nn.Module):
    """A decoder that is soon compiled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Conv2d(LATENT.channels, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, latent: Tensor) -> Tensor:
        inner: Tensor = self.inner(latent)
        return latent[:, :3] + self.outer(inner)


def test_each_size_and_group_has_a_binary_of_its_own_and_all_run(tmp_path: Path) -> None:
    from quad.core.decibels import array_sqnr_db
    from quad.runtime.engines.qnn import open_engine

    network, component = Sharpen().eval(), "vae_decoder"
    add_sites(network)
    sizes = {None: (8, 8), PictureSize(48, 32): (8, 12)}
    generator = torch.Generator().manual_seed(1)
    examples = {size: [torch.randn(1, LATENT.channels, *grid, generator=generator) for _ in range(CALLS)] for size, grid in sizes.items()}
    specs = {
        size: GraphSpec(component=component, inputs={"latent": given[0]}, output="image", size=size) for size, given in examples.items()
    }
    with torch.no_grad():
        feeds = [Feed("base", lambda one=one: network(one)) for given in examples.values() for one in given]
        profile = unify(observe({component: network}, feeds), {component: weights_of(network)}, NO_SLOTS, (), UnifyOptions())
    calls = [
        ComponentCall(component=component, source="base", inputs={"latent": one.numpy()}) for given in examples.values() for one in given
    ]
    wider = {name: replace(each, scale=(2 * each.scale[0],)) for name, each in profile.component(component).items() if not each.symmetric}
    profile = replace(profile, groups=(GroupRanges(encodings={component: wider}, mode="unified"),))
    compiler = htp_compiler(profile, NO_SLOTS, calls, tmp_path / "scratch")
    variants = ((None, 0), (PictureSize(48, 32), 0), (None, 1))
    artifacts = {(size, group): compiler.of_group(group).artifact(network, specs[size], unobserved) for size, group in variants}
    written = write_variants(tmp_path / component, artifacts)
    assert len(set(written.files)) == 9
    assert len({written.identity, *(artifact.identity for artifact in artifacts.values())}) == 4
    for size, group in variants:
        session = open_engine("w8a16").load(tmp_path / written.of(size, group).file, 1)
        for one in examples[size]:
            with torch.no_grad():
                assert array_sqnr_db(network(one).numpy(), session.run({"latent": one.numpy()})) > 34.0, (size, group)
