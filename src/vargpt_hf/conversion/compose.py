"""LLaVA-1.5, VAR and VAR's image tokenizer → the weights from which stage 1 of training starts (VARGPT, arXiv 2501.12327, section 4)."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..modeling.configuration_vargpt import VargptConfig
from ..processing.chat_vargpt import OUTPUT_IMAGE_END_TOKEN, OUTPUT_IMAGE_START_TOKEN, OUTPUT_IMAGE_TOKEN, UNCONDITIONAL_CHAT
from .assembly import assemble, check_destination, floating_dtype, write_folder
from .checkpoint import SourceTensor, open_checkpoint, open_part, open_tokenizer, said_of
from .formats import llava as llava_format
from .formats import var as var_format
from .formats.vargpt_v1 import GENERATION
from .renaming import Part
from .shapes import TensorShapes

logger = logging.get_logger(__name__)

LICENSE_NOTE = (
    "Composed of LLaVA-1.5 (with its language model Vicuna and its vision tower CLIP), VAR and VAR's image tokenizer: the weights of "
    "each keep its own terms. The generation projectors are fresh, so that nothing sensible is drawn before training."
)
FRESH = ("model.projector_to_llm", "model.projector_to_decoder")
# In the order in which the released vocabulary has them: 32002, 32003, 32004 after LLaVA-1.5's own.
NEW_TOKENS = (OUTPUT_IMAGE_START_TOKEN, OUTPUT_IMAGE_END_TOKEN, OUTPUT_IMAGE_TOKEN)
VOCABULARY_MULTIPLE = 64  # rows of LLaVA-1.5's token embeddings come in such numbers
_TOKEN_EMBEDDING = "model.vlm.language_model.embed_tokens.weight"
_VOCABULARY_TABLES = (_TOKEN_EMBEDDING, "lm_head.weight")


def compose_checkpoint(
    llava: str | Path,
    var: str | Path,
    vqvae: str | Path,
    destination: str | Path,
    scales: Sequence[int] | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    max_shard_size: str = "5GB",
) -> None:
    """Writes the starting weights of stage 1 as a complete model folder: config, generation config, weights, processor, model card.

    Language model, vision tower and its projector are LLaVA's, the visual decoder is VAR's, the image tokenizer VAR's VQ-VAE; the two
    generation projectors are fresh. Images are read after as before: text logits are LLaVA's own. The tokenizer gets the three tokens of
    images to draw. Where the token tables have no rows left for them, they grow to the next multiple of 64, and each new row, of
    the embeddings and of the head, is the mean of the old ones.

    Both conditions of the visual decoder start as VAR's null class, the last row of its class table: the one condition under which VAR
    has learned to draw without a class, as here, where content comes from the language model. Stage 1 trains them apart.

    Tensors stay in their files until they are written, so memory holds one copy at most, and of tensors whose dtype does not
    change none. The folder appears under its name when all is written, or not at all.

    Args:
        llava: folder of LLaVA-1.5 in Transformers' format, such as llava-hf/llava-1.5-7b-hf, with its tokenizer.
        var: VAR's weights, such as var_d30.pth; also a checkpoint of VAR's own training.
        vqvae: weights of VAR's image tokenizer, such as vae_ch160v4096z32.pth.
        destination: folder to make; an empty one may be there.
        scales: side lengths of the code maps, needed only where VAR's weights do not tell them.
        dtype: of the new weights, like `torch.bfloat16` or "bfloat16"; by default what LLaVA's config says, else that of its token
            embeddings.
        seed: of the generation projectors.
        max_shard_size: of the new weight files.

    Raises:
        ValueError: files of another kind of model; tensors that are missing, unexpected, twice there, of the wrong shape, also where one
            part does not fit another, no floating-point numbers, not finite or beyond the range of `dtype`; scales that are needed and
            not given; a tokenizer that does not fit.
        OSError: files that are not there or damaged; a destination that is not empty.
    """
    llava, var, vqvae, destination = map(Path, (llava, var, vqvae, destination))
    check_destination(destination)
    llava_config = llava_format.read_config(llava)
    understanding = Part(open_checkpoint(llava), llava_format.NAMES)
    decoder = open_part(var, var_format.DECODER_WRAPPERS)
    image_tokenizer = open_part(vqvae, var_format.VQ_WRAPPERS)
    var_format.refuse_shared_modulation(decoder, var)

    tokenizer = tokenizer_with_image_tokens(llava)
    old_rows = token_embedding(understanding, llava)
    rows = vocabulary_rows(old_rows.shape[0], tokenizer)
    with said_of(f"{llava}, {var.name} and {vqvae.name}"):
        config = _composed_config(llava_config, understanding, (var, decoder), (vqvae, image_tokenizer), tokenizer, rows, scales)
    processor = llava_format.make_processor(llava, tokenizer, config)
    adapt = partial(var_format.adapt_decoder, conditions=var_format.var_conditions)
    parts = [
        understanding._replace(adapt=partial(with_new_rows, old_rows=old_rows.shape[0], rows=rows)),
        Part(decoder, var_format.DECODER_NAMES, "model.visual_decoder.", adapt, var_format.stored_as),
        Part(image_tokenizer, var_format.VQ_NAMES, "model.image_tokenizer."),
    ]
    wanted = dtype or llava_config.get("dtype") or llava_config.get("torch_dtype")
    complaint = f"The tensors of {llava}, {var.name} and {vqvae.name} do not make a VARGPT."
    model = assemble(config, parts, floating_dtype(wanted, old_rows.dtype), complaint, FRESH, seed)
    unconditional = processor.apply_chat_template(UNCONDITIONAL_CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
    model.generation_config = GenerationConfig(
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        **{
            **GENERATION,
            "output_image_guidance_type": "prompt",
            "output_image_unconditional_ids": list(unconditional["input_ids"][0]),
        },
    )
    logger.warning(LICENSE_NOTE)
    write_folder(model, processor, destination, max_shard_size)


def tokenizer_with_image_tokens(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder and, after its own tokens, those of images to draw.

    Raises:
        OSError: no tokenizer there, or files that cannot be read.
        ValueError: one that needs code of its own, or files that do not make one.
    """
    tokenizer = open_tokenizer(folder)
    tokenizer.add_tokens(list(NEW_TOKENS), special_tokens=True)
    return tokenizer


def vocabulary_rows(old_rows: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the token tables: as many as there are, or, where a token lies beyond them, enough of them in multiples of 64."""
    needed = max(tokenizer.get_vocab().values()) + 1
    return old_rows if needed <= old_rows else math.ceil(needed / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def token_embedding(understanding: Part, folder: Path) -> torch.Tensor:
    """The table of token embeddings, (rows, D), of the model that reads, whatever its name."""
    for released, source in understanding.tensors.items():
        try:
            if understanding.ours(released) == _TOKEN_EMBEDDING and source.tensor.dim() == 2:
                return source.tensor
        except KeyError:
            continue  # named with all other misfits, later
    raise ValueError(f"{folder} lacks the matrix {understanding.released(_TOKEN_EMBEDDING)}, which holds the token embeddings.")


def with_new_rows(name: str, tensor: torch.Tensor, old_rows: int, rows: int) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor of the model that reads; the tables of tokens with new rows, each the mean of the old ones."""
    if name in _VOCABULARY_TABLES and tensor.dim() == 2 and len(tensor) == old_rows < rows and tensor.is_floating_point():
        mean = tensor.mean(0, keepdim=True, dtype=torch.float32).to(tensor.dtype)
        tensor = torch.cat([tensor, mean.expand(rows - old_rows, -1)])
    yield name, tensor


def _composed_config(
    llava_config: dict,
    understanding: Part,
    decoder: tuple[Path, dict[str, SourceTensor]],
    image_tokenizer: tuple[Path, dict[str, SourceTensor]],
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    scales: Sequence[int] | None,
) -> VargptConfig:
    """Our configuration: LLaVA's for what reads, sizes inferred from the tensors for what draws."""
    opened = [{name: source.tensor for name, source in tensors.items()} for _, tensors in (decoder, image_tokenizer)]
    decoder_shapes, vq_shapes = (TensorShapes(part, where=str(path)) for part, (path, _) in zip(opened, (decoder, image_tokenizer)))
    scales = var_format.scales_of(decoder_shapes, opened[0].get(var_format.SCALE_OF_POSITION), scales)
    return VargptConfig(
        vlm_config=llava_format.vlm_config_of(llava_config, llava_config["image_token_index"], understanding.tensors, rows),
        image_tokenizer_config=var_format.vq_config_of(vq_shapes, scales),
        visual_decoder_config=var_format.decoder_config_of(decoder_shapes),
        output_image_start_token_id=tokenizer.convert_tokens_to_ids(OUTPUT_IMAGE_START_TOKEN),
        output_image_end_token_id=tokenizer.convert_tokens_to_ids(OUTPUT_IMAGE_END_TOKEN),
        output_image_token_id=tokenizer.convert_tokens_to_ids(OUTPUT_IMAGE_TOKEN),
        license_note=LICENSE_NOTE,
    )


__all__ = ["compose_checkpoint"]
