"""Released VARGPT checkpoints (v1: model_type `vargpt_llava`; v1.1: `vargpt_qwen2_vl`) to complete model folders of ours."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..modeling.checkpoint_vargpt import read_json
from ..modeling.configuration_vargpt import VargptConfig
from ..processing import VargptProcessor
from . import vargpt_v1_1
from .assembly import (
    RELEASED_GENERATION,
    Adapt,
    Part,
    adapt_decoder,
    assemble,
    check_destination,
    floating_dtype,
    make_processor,
    token_ids,
    write_folder,
)
from .checkpoint import SourceTensor, has_tokenizer, open_checkpoint, open_tokenizer, said_of
from .names import WHOLE_NAMES
from .sizes import TensorShapes, decoder_config_of, scales_of, vq_config_of

logger = logging.get_logger(__name__)

RELEASED_MODEL_TYPE = "vargpt_llava"
LICENCE_NOTE = (
    "The weights that the authors of VARGPT released are for research only, and those of LLaVA and Vicuna inside them have "
    "terms of their own: converting changes none of these."
)


class ReleasedFormat(NamedTuple):
    """A released format in our terms.

    Args:
        config: our configuration, of a released config, the tensors and what the caller says of scales.
        names: table of the tensors.
        adapt: how tensors become ours, of the tensors and our configuration.
        generation: settings of the released system.
        embeddings: released name of the token embeddings.
        license_note: what users of the weights must know.
        processor: makes the processor, of the folder, its tokenizer and our configuration.
    """

    config: Callable[..., VargptConfig]
    names: list[tuple[str, str | None]]
    adapt: Callable[[dict[str, SourceTensor], VargptConfig], Adapt]
    generation: dict[str, Any]
    embeddings: str
    license_note: str
    processor: Callable[[Path, PreTrainedTokenizerBase, VargptConfig], VargptProcessor]


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    scales: Sequence[int] | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_size: str = "5GB",
    reference_grid: tuple[int, int] | None = None,
) -> None:
    """Writes a checkpoint in the released format as a complete model folder: config, generation config, weights, model card,
    and the processor where a tokenizer is there.

    Tensors stay in their files until they are written, so memory holds one copy at most, and none where `dtype` changes
    nothing. The folder appears under its name when all is written, or not at all.

    Args:
        source: folder with `config.json` and the weights: safetensors or pickled `.bin`, whole or sharded.
        destination: folder to make; an empty one may be there.
        scales: side lengths of the code maps, needed only where the checkpoint does not tell them.
        dtype: of the new weights, like `torch.bfloat16` or "bfloat16"; by default what the source's config says, else that
            of its token embeddings.
        max_shard_size: of the new weight files.
        reference_grid: of v1.1 with `scales` of its own, the grid (height, width) that its rotary positions count on.

    Raises:
        ValueError: a source of another format; tensors that are missing, unexpected or twice there, of the wrong shape, no floating-point
            numbers, not finite or beyond the range of `dtype`; scales that are needed and not given; a tokenizer without the model's
            image tokens.
        OSError: a source that is not there, without weights or with damaged files; a destination that is not empty.
    """
    source, destination = Path(source), Path(destination)
    check_destination(destination)
    source_config = read_released_config(source)
    released = FORMATS[source_config["model_type"]]
    tensors = open_checkpoint(source)
    with said_of(source):
        given = {"reference_grid": reference_grid} if reference_grid is not None else {}
        config = released.config(source_config, tensors, scales, **given)
    processor = released_processor(source, config, released)
    part = Part(tensors, released.names, adapt=released.adapt(tensors, config))
    complaint = f"The tensors in {source} are not those of the released format."
    model = assemble(config, [part], _target_dtype(source_config, tensors.get(released.embeddings), dtype), complaint)
    ids = token_ids(source_config, source / "config.json", model.config.text_config)
    model.generation_config = GenerationConfig(**ids, **released.generation)
    logger.warning(released.license_note)
    write_folder(model, processor, destination, max_shard_size)


def read_released_config(source: Path) -> dict:
    """`config.json` of a released checkpoint.

    Raises:
        OSError: no folder, or no config in it.
        ValueError: a config of another kind of model.
    """
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder: download the checkpoint first, then give the folder it is in.")
    config = read_json(source / "config.json")
    model_type = config.get("model_type")
    if model_type == VargptConfig.model_type:
        raise ValueError(f"{source} needs no conversion: it is a model of this package already (model_type {model_type!r}).")
    if model_type not in FORMATS:
        known = " or ".join(map(repr, FORMATS))
        raise ValueError(f"{source} is not a released VARGPT checkpoint: its model_type is {model_type!r}, not {known}.")
    return config


def released_config(source_config: dict, tensors: dict[str, SourceTensor], scales: Sequence[int] | None = None) -> VargptConfig:
    """Our configuration of a released checkpoint: what its config says, and the sizes that only its tensors tell.

    Raises:
        ValueError: a field or a tensor that is needed is absent, `scales` are needed or do not fit, or the numbers
            contradict one another.
    """
    opened = {name: source.tensor for name, source in tensors.items()}
    decoder_shapes = TensorShapes(opened, "vargpt_gen.")
    scales = scales_of(decoder_shapes, opened.get("vargpt_gen.lvl_1L"), scales)
    for name in ("text_config", "vision_config"):
        if not isinstance(source_config.get(name), dict):
            raise ValueError(f"The released config.json has no `{name}`.")
    kept = ("image_seq_length", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act")
    return VargptConfig(
        vlm_config={
            "model_type": "llava",
            "text_config": {"model_type": "llama", **source_config["text_config"]},
            "vision_config": {"model_type": "clip_vision_model", **source_config["vision_config"]},
            "image_token_index": _token_id(source_config, "image_token_index", "image_token_id"),
            "multimodal_projector_bias": "multi_modal_projector.linear_1.bias" in opened,
            "tie_word_embeddings": source_config.get("tie_word_embeddings", False),
            **{name: source_config[name] for name in kept if source_config.get(name) is not None},
        },
        image_tokenizer_config=vq_config_of(TensorShapes(opened, "vae_local."), scales),
        visual_decoder_config=decoder_config_of(decoder_shapes),
        output_image_start_token_id=_token_id(source_config, "image_gen_start_token_id"),
        output_image_end_token_id=_token_id(source_config, "image_gen_end_token_id"),
        output_image_token_id=_token_id(source_config, "image_gen_pad_token_id"),
        license_note=LICENCE_NOTE,
    )


def _token_id(source_config: dict, *names: str) -> int:
    """A token id that the released config has at its top or among its special tokens."""
    special = source_config.get("special_tokens")
    for fields in (special if isinstance(special, dict) else {}, source_config):
        for name in names:
            if type(fields.get(name)) is int:
                return fields[name]
    raise ValueError(f"The released config.json has no token id `{' or '.join(names)}`, nor do its `special_tokens`.")


def released_conditions(table: torch.Tensor, generate_row: int) -> torch.Tensor:
    """The rows for "generate" and null, (2, C), of a released table; one of another size than it has comes back whole."""
    return table[[generate_row, -1]] if table.dim() == 2 and len(table) == generate_row + 2 else table


def _adapt_v1(tensors: dict[str, SourceTensor], config: VargptConfig) -> Adapt:
    return partial(adapt_decoder, conditions=partial(released_conditions, generate_row=config.output_image_start_token_id))


FORMATS = {
    RELEASED_MODEL_TYPE: ReleasedFormat(
        released_config, WHOLE_NAMES, _adapt_v1, RELEASED_GENERATION, "language_model.model.embed_tokens.weight", LICENCE_NOTE, make_processor
    ),
    vargpt_v1_1.MODEL_TYPE: ReleasedFormat(
        vargpt_v1_1.config_of,
        vargpt_v1_1.NAMES,
        vargpt_v1_1.adapt,
        vargpt_v1_1.GENERATION,
        vargpt_v1_1.EMBEDDINGS,
        vargpt_v1_1.LICENSE_NOTE,
        vargpt_v1_1.make_processor,
    ),
}


def _target_dtype(source_config: dict, embeddings: SourceTensor | None, dtype: torch.dtype | str | None) -> torch.dtype:
    """What the caller wants, else what the source's config says, else the dtype of its token embeddings."""
    default = torch.float32 if embeddings is None else embeddings.tensor.dtype
    return floating_dtype(dtype or source_config.get("torch_dtype") or source_config.get("dtype"), default)


def released_processor(source: Path, config: VargptConfig, released: ReleasedFormat) -> VargptProcessor | None:
    """The processor of a released checkpoint, or None where no tokenizer is in its folder.

    Raises:
        OSError: files of a tokenizer that cannot be read.
        ValueError: a tokenizer whose image tokens are absent or have other ids than the model's, or one that needs code of its own.
        ImportError: a package that the processor needs is not installed.
    """
    if not has_tokenizer(source):
        logger.warning(f"{source} has no tokenizer: the new folder will have no processor.")
        return None
    return released.processor(source, open_tokenizer(source), config)


__all__ = ["convert_checkpoint"]
