"""Released VARGPT checkpoints (v1: model_type `vargpt_llava`; v1.1: `vargpt_qwen2_vl`) to complete model folders of ours."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from ..modeling.checkpoint_vargpt import read_json
from ..modeling.configuration_vargpt import VargptConfig
from ..processing import VargptProcessor
from .assembly import assemble, check_destination, floating_dtype, token_ids, write_folder
from .checkpoint import SourceTensor, has_tokenizer, open_checkpoint, open_tokenizer, said_of
from .formats import vargpt_v1, vargpt_v1_1
from .renaming import Part

logger = logging.get_logger(__name__)

# What a format's module has: see vargpt_v1.py.
FORMATS: dict[str, ModuleType] = {each.MODEL_TYPE: each for each in (vargpt_v1, vargpt_v1_1)}


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
        config = released.config_of(source_config, tensors, scales, **given)
    processor = _processor(source, config, released)
    part = Part(tensors, released.NAMES, adapt=released.adapt(tensors, config), stored_as=released.stored_as)
    complaint = f"The tensors in {source} are not those of the released format."
    model = assemble(config, [part], _target_dtype(source_config, tensors.get(released.EMBEDDINGS), dtype), complaint)
    ids = token_ids(source_config, source / "config.json", model.config.text_config)
    model.generation_config = GenerationConfig(**ids, **released.GENERATION)
    logger.warning(released.LICENSE_NOTE)
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


def _target_dtype(source_config: dict, embeddings: SourceTensor | None, dtype: torch.dtype | str | None) -> torch.dtype:
    """What the caller wants, else what the source's config says, else the dtype of its token embeddings."""
    default = torch.float32 if embeddings is None else embeddings.tensor.dtype
    return floating_dtype(dtype or source_config.get("torch_dtype") or source_config.get("dtype"), default)


def _processor(source: Path, config: VargptConfig, released: ModuleType) -> VargptProcessor | None:
    """The processor of a checkpoint of this format, or None where no tokenizer is in its folder.

    Raises:
        OSError: files of a tokenizer that cannot be read.
        ValueError: a tokenizer whose image tokens are absent or have other ids than the model's, or one that needs code of its own.
        ImportError: a package that the processor needs is not installed.
    """
    if not has_tokenizer(source):
        logger.warning(f"{source} has no tokenizer: the new folder will have no processor.")
        return None
    return released.make_processor(source, open_tokenizer(source), config)


__all__ = ["convert_checkpoint"]
