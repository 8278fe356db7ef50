"""VARGPT v1 as it was released (model_type `vargpt_llava`): LLaVA-1.5, VAR and its image tokenizer in one checkpoint, with two projectors."""

from collections.abc import Sequence
from functools import partial

import torch

from ...modeling.configuration_vargpt import VargptConfig
from ..checkpoint import SourceTensor
from ..renaming import Adapt
from ..shapes import TensorShapes
from . import llava, var
from .llava import make_processor
from .var import stored_as

MODEL_TYPE = "vargpt_llava"
LICENSE_NOTE = (
    "The weights that the authors of VARGPT released are for research only, and those of LLaVA and Vicuna inside them have "
    "terms of their own: converting changes none of these."
)
# How images are drawn by the released system.
GENERATION = {
    "do_sample": True,
    "output_image_guidance_type": "noise",
    "output_image_guidance_scale": 1.5,
    "output_image_top_k": 900,
    "output_image_top_p": 0.96,
}
EMBEDDINGS = "language_model.model.embed_tokens.weight"

# The projectors between language model and visual decoder, in the checkpoints of v1 and of v1.1.
PROJECTOR_NAMES = [
    ("image_gen_projector.mlp.0.{}", "model.projector_to_llm.fc1.{}"),
    ("image_gen_projector.mlp.2.{}", "model.projector_to_llm.fc2.{}"),
    ("image_gen_projector_out.mlp.0.{}", "model.projector_to_decoder.fc1.{}"),
    ("image_gen_projector_out.mlp.2.{}", "model.projector_to_decoder.fc2.{}"),
    ("image_gen_projector.ln_q.{}", None),
    ("image_gen_projector_out.ln_q.{}", None),
]

# What the whole checkpoint adds to VAR's two parts.
NAMES = [
    *((f"vae_local.{released}", ours and f"model.image_tokenizer.{ours}") for released, ours in var.VQ_NAMES),
    *((f"vargpt_gen.{released}", ours and f"model.visual_decoder.{ours}") for released, ours in var.DECODER_NAMES),
    *PROJECTOR_NAMES,
    *llava.OLD_NAMES,
]


def config_of(source_config: dict, tensors: dict[str, SourceTensor], scales: Sequence[int] | None = None) -> VargptConfig:
    """Our configuration of a released checkpoint: what its config says, and the sizes that only its tensors tell.

    Raises:
        ValueError: a field or a tensor that is needed is absent, `scales` are needed or do not fit, or the numbers
            contradict one another.
    """
    opened = {name: source.tensor for name, source in tensors.items()}
    decoder_shapes = TensorShapes(opened, "vargpt_gen.")
    scales = var.scales_of(decoder_shapes, opened.get("vargpt_gen.lvl_1L"), scales)
    for name in ("text_config", "vision_config"):
        if not isinstance(source_config.get(name), dict):
            raise ValueError(f"The released config.json has no `{name}`.")
    return VargptConfig(
        vlm_config=llava.vlm_config_of(source_config, token_id(source_config, "image_token_index", "image_token_id"), opened),
        image_tokenizer_config=var.vq_config_of(TensorShapes(opened, "vae_local."), scales),
        visual_decoder_config=var.decoder_config_of(decoder_shapes),
        **output_image_token_ids(source_config),
        license_note=LICENSE_NOTE,
    )


def output_image_token_ids(source_config: dict) -> dict[str, int]:
    """The ids of the tokens of images to draw, as our configuration names them."""
    return {
        f"output_image_{ours}token_id": token_id(source_config, f"image_gen_{released}_token_id")
        for ours, released in (("start_", "start"), ("end_", "end"), ("", "pad"))
    }


def token_id(source_config: dict, *names: str) -> int:
    """A token id that the released config has at its top or among its special tokens."""
    special = source_config.get("special_tokens")
    for fields in (special if isinstance(special, dict) else {}, source_config):
        for name in names:
            if type(fields.get(name)) is int:
                return fields[name]
    raise ValueError(f"The released config.json has no token id `{' or '.join(names)}`, nor do its `special_tokens`.")


def conditions_of(table: torch.Tensor, generate_row: int) -> torch.Tensor:
    """The rows for "generate" and null, (2, C), of a released table; one of another size than it has comes back whole."""
    return table[[generate_row, -1]] if table.dim() == 2 and len(table) == generate_row + 2 else table


def adapt(tensors: dict[str, SourceTensor], config: VargptConfig) -> Adapt:
    """How tensors become ours under their new names."""
    return partial(var.adapt_decoder, conditions=partial(conditions_of, generate_row=config.output_image_start_token_id))


__all__ = [
    "EMBEDDINGS",
    "GENERATION",
    "LICENSE_NOTE",
    "MODEL_TYPE",
    "NAMES",
    "PROJECTOR_NAMES",
    "adapt",
    "config_of",
    "make_processor",
    "stored_as",
]
