"""Qwen2-VL, Infinity and Infinity's image tokenizer → the weights from which stage 1 of VARGPT v1.1 starts (arXiv 2504.02949)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..modeling.configuration_vargpt import VargptConfig
from ..processing import VargptProcessor
from ..processing.chat_vargpt import OUTPUT_IMAGE_END_TOKEN, OUTPUT_IMAGE_START_TOKEN, OUTPUT_IMAGE_TOKEN
from .assembly import assemble, check_destination, floating_dtype, token_ids, write_folder
from .checkpoint import SourceTensor, open_checkpoint, open_part, said_of
from .compose import FRESH, token_embedding, tokenizer_with_image_tokens, vocabulary_rows, with_new_rows
from .formats import infinity as infinity_format
from .formats import qwen2_vl, vargpt_v1_1
from .renaming import Part
from .shapes import TensorShapes

logger = logging.get_logger(__name__)

LICENSE_NOTE = (
    "Composed of Qwen2-VL, Infinity and Infinity's image tokenizer: the weights of each keep its own terms. The projectors of drawn images "
    "and the condition row are fresh, so that nothing sensible is drawn before training."
)
_CONDITION = "condition_embedding"


def compose_v1_1(
    vlm: str | Path,
    infinity: str | Path,
    bsq: str | Path,
    destination: str | Path,
    scales: Sequence[int] | None = None,
    reference_grid: tuple[int, int] | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    max_shard_size: str = "5GB",
) -> None:
    """Writes the starting weights of stage 1 of VARGPT v1.1 as a complete model folder, as [`compose_checkpoint`] does those of v1.

    What reads is Qwen2-VL, whose text logits stay as they are; the visual decoder is Infinity's, the image tokenizer that of Infinity. Both
    projectors and the condition row are fresh. The tokenizer gets the three tokens of images to draw; rows that the token tables have in
    reserve serve them, else the tables grow. Without torchvision, which Qwen2-VL's processor needs, the folder has a tokenizer in place of
    the processor, and a warning says so.

    Args:
        vlm: folder of a Qwen2-VL in Transformers' format, such as Qwen/Qwen2-VL-7B-Instruct, with its tokenizer.
        infinity: Infinity's weights, such as infinity_2b_reg.pth.
        bsq: weights of its image tokenizer, such as infinity_vae_d32reg.pth, in either spelling of their names.
        destination: folder to make; an empty one may be there.
        scales, reference_grid: sides of square images and the grid of their rotary positions; by default the schedules of 512×512 pixels.
        dtype: of the new weights; by default what the config of `vlm` says, else that of its token embeddings.
        seed: of the projectors and the condition row.
        max_shard_size: of the new weight files.

    Raises:
        ValueError: files of another kind of model; tensors that are missing, unexpected, twice there, of the wrong shape, also where one
            part does not fit another, no floating-point numbers, not finite or beyond the range of `dtype`; a tokenizer that does not fit.
        OSError: files that are not there or damaged; a destination that is not empty.
    """
    vlm, infinity, bsq, destination = map(Path, (vlm, infinity, bsq, destination))
    check_destination(destination)
    source, vlm_config = qwen2_vl.read_config(vlm)
    understanding = Part(open_checkpoint(vlm), qwen2_vl.NAMES)
    decoder, image_tokenizer = open_part(infinity, infinity_format.DECODER_WRAPPERS), open_part(bsq, infinity_format.BSQ_WRAPPERS)
    tokenizer = tokenizer_with_image_tokens(vlm)
    old_rows = token_embedding(understanding, vlm)
    rows = vocabulary_rows(old_rows.shape[0], tokenizer)
    names = f"{vlm}, {infinity.name} and {bsq.name}"
    with said_of(names):
        shapes = [
            TensorShapes({name: entry.tensor for name, entry in part.items()}, where=str(path))
            for part, path in ((decoder, infinity), (image_tokenizer, bsq))
        ]
        config = _composed_config(vlm_config, *shapes, tokenizer, rows, infinity_format.schedules_of(scales, reference_grid))
    adapt = partial(infinity_format.adapt_infinity, blocks_of_chunk=infinity_format.blocks_of_chunk(shapes[0]))
    parts = [
        understanding._replace(adapt=partial(with_new_rows, old_rows=old_rows.shape[0], rows=rows)),
        Part(decoder, infinity_format.INFINITY_NAMES, "model.visual_decoder.", adapt),
        Part({_CONDITION: _condition_row(config, seed)}, [(_CONDITION, _CONDITION)], "model.visual_decoder."),
        Part(image_tokenizer, infinity_format.BSQ_NAMES, "model.image_tokenizer."),
    ]
    wanted = dtype or source.get("dtype") or source.get("torch_dtype")
    model = assemble(config, parts, floating_dtype(wanted, old_rows.dtype), f"The tensors of {names} do not make a VARGPT.", FRESH, seed)
    ids = token_ids(source, vlm / "config.json", config.text_config)
    ids["pad_token_id"] = tokenizer.pad_token_id if ids["pad_token_id"] is None else ids["pad_token_id"]
    model.generation_config = GenerationConfig(**ids, **vargpt_v1_1.GENERATION)
    logger.warning(LICENSE_NOTE)
    write_folder(model, _processor(vlm, tokenizer, config), destination, max_shard_size)


def _composed_config(
    vlm_config: PreTrainedConfig,
    decoder: TensorShapes,
    image_tokenizer: TensorShapes,
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    schedules: tuple[list, list],
) -> VargptConfig:
    """Our configuration: Qwen2-VL's for what reads, sizes read off the tensors for what draws."""
    vlm_config.get_text_config(decoder=True).vocab_size = rows
    fields = {name: value for name, value in vlm_config.to_dict().items() if name not in ("architectures", "_name_or_path", "dtype")}
    return VargptConfig(
        vlm_config=fields,
        image_tokenizer_config=infinity_format.tokenizer_config(image_tokenizer, schedules[0]),
        visual_decoder_config=infinity_format.decoder_config(decoder, schedules[1]),
        output_image_start_token_id=tokenizer.convert_tokens_to_ids(OUTPUT_IMAGE_START_TOKEN),
        output_image_end_token_id=tokenizer.convert_tokens_to_ids(OUTPUT_IMAGE_END_TOKEN),
        output_image_token_id=tokenizer.convert_tokens_to_ids(OUTPUT_IMAGE_TOKEN),
        image_loss_weight=3.0,
        plain_positions=True,
        license_note=LICENSE_NOTE,
    )


def _condition_row(config: VargptConfig, seed: int) -> SourceTensor:
    """The fresh row (1, C) of the condition "generate", which Infinity has not."""
    decoder = config.visual_decoder_config
    row = torch.randn(1, decoder.hidden_size, generator=torch.Generator().manual_seed(seed)) * decoder.initializer_range
    return SourceTensor(row, "fresh")


def _processor(vlm: Path, tokenizer: PreTrainedTokenizerBase, config: VargptConfig) -> VargptProcessor | PreTrainedTokenizerBase:
    """The processor, or the tokenizer alone where a package that the processor needs is missing."""
    try:
        return qwen2_vl.make_processor(vlm, tokenizer, config)
    except ImportError as error:
        logger.warning(f"The new folder has a tokenizer but no processor: {error} Then compose again.")
        return tokenizer


__all__ = ["compose_v1_1"]
