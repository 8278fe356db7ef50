"""Released VARGPT checkpoints (model_type `vargpt_llava`) to complete model folders of ours."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import logging

from ..modeling.card_vargpt import make_card
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration, list_misfits
from ..processing import RELEASED_SYSTEM_PROMPT, VargptImageProcessor, VargptProcessor, make_chat_template
from .checkpoint import SourceTensor, open_checkpoint, read_json
from .names import WHOLE_NAMES, rename
from .sizes import TensorShapes, decoder_config_of, scales_of, vq_config_of

logger = logging.get_logger(__name__)

RELEASED_MODEL_TYPE = "vargpt_llava"
LICENCE_NOTE = (
    "The weights that the authors of VARGPT released are for research only, and those of LLaVA and Vicuna inside them have "
    "terms of their own: converting changes none of these."
)
# How pictures are drawn by the released system.
RELEASED_GENERATION = {
    "do_sample": True,
    "image_guidance_type": "noise",
    "image_guidance_scale": 1.5,
    "image_top_k": 900,
    "image_top_p": 0.96,
}
_CLIP_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
_DECODER_QKV = re.compile(r"(.*visual_decoder\.layers\.\d+\.self_attn)\.[qkv]_proj\.weight")


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    scales: Sequence[int] | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_size: str = "5GB",
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

    Raises:
        ValueError: a source of another format or without weights; tensors that are missing, unexpected or twice there, or of
            the wrong shape; scales that are needed and not given; a tokenizer without the model's picture tokens.
        FileExistsError: a destination that is not empty.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists already: give a folder that is new or empty.")
    source_config = read_released_config(source)
    tensors = open_checkpoint(source)
    config = released_config(source_config, tensors, scales)
    processor = released_processor(source, config)
    model = _load(config, tensors, _target_dtype(source_config, tensors, dtype), source)
    model.generation_config = _generation_config(source_config, model.config)
    logger.warning(LICENCE_NOTE)

    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(folder)
        make_card(model, destination.name).save(folder / "README.md")
        folder.rename(destination)


def read_released_config(source: Path) -> dict:
    """`config.json` of a released checkpoint.

    Raises:
        ValueError: no folder, no config, or one of another kind of model.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder: download the checkpoint first, then give the folder it is in.")
    config = read_json(source / "config.json")
    model_type = config.get("model_type")
    if model_type == VargptConfig.model_type:
        raise ValueError(f"{source} needs no conversion: it is a model of this package already (model_type {model_type!r}).")
    if model_type != RELEASED_MODEL_TYPE:
        raise ValueError(f"{source} is not a released VARGPT checkpoint: its model_type is {model_type!r}, not {RELEASED_MODEL_TYPE!r}.")
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
        text_config={"model_type": "llama", **source_config["text_config"]},
        vision_config={"model_type": "clip_vision_model", **source_config["vision_config"]},
        vq_config=vq_config_of(TensorShapes(opened, "vae_local."), scales),
        visual_decoder_config=decoder_config_of(decoder_shapes),
        image_token_id=_token_id(source_config, "image_token_index", "image_token_id"),
        image_start_token_id=_token_id(source_config, "image_gen_start_token_id"),
        image_end_token_id=_token_id(source_config, "image_gen_end_token_id"),
        image_place_token_id=_token_id(source_config, "image_gen_pad_token_id"),
        multimodal_projector_bias="multi_modal_projector.linear_1.bias" in opened,
        tie_word_embeddings=source_config.get("tie_word_embeddings", False),
        license_note=LICENCE_NOTE,
        **{name: source_config[name] for name in kept if source_config.get(name) is not None},
    )


def _token_id(source_config: dict, *names: str) -> int:
    """A token id that the released config has at its top or among its special tokens."""
    for fields in (source_config.get("special_tokens") or {}, source_config):
        for name in names:
            if isinstance(fields.get(name), int):
                return fields[name]
    raise ValueError(f"The released config.json has no token id `{' or '.join(names)}`, nor do its `special_tokens`.")


def _target_dtype(source_config: dict, tensors: dict[str, SourceTensor], dtype: torch.dtype | str | None) -> torch.dtype:
    """What the caller wants, else what the source's config says, else the dtype of its token embeddings."""
    wanted = dtype or source_config.get("torch_dtype") or source_config.get("dtype")
    if wanted is None:
        embeddings = tensors.get("language_model.model.embed_tokens.weight")
        wanted = torch.float32 if embeddings is None else embeddings.tensor.dtype
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point type like 'float16', 'bfloat16' or 'float32', got {wanted!r}.")
    return found


def adapt(name: str, tensor: torch.Tensor, generate_row: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors, as views, of a released one that the name table has renamed to `name`.

    `generate_row` is the row of the released condition table that stands for "generate"; the null row follows and is the last.
    A table of another size comes back whole, for the check of shapes to refuse.
    """
    if name.endswith("self_attn.qkv_proj.weight"):
        for part, weight in zip("qkv", tensor.chunk(3)):
            yield name.replace("qkv_proj", f"{part}_proj"), weight
    elif name.endswith("condition_embedding.weight"):
        yield name, tensor[[generate_row, -1]] if len(tensor) == generate_row + 2 else tensor
    elif name.endswith((".start_embedding", ".position_embedding")):
        yield name, tensor.flatten(0, -2)
    elif name.endswith(".log_scale"):
        yield name, tensor.flatten()
    else:
        yield name, tensor


def _load(config: VargptConfig, tensors: dict[str, SourceTensor], dtype: torch.dtype, source: Path) -> VargptForConditionalGeneration:
    """The model with the released tensors in it, in `dtype` but for what stays in float32.

    Raises:
        ValueError: tensors that are unexpected, missing, twice there, or of the wrong shape; all of them in one message.
    """
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    exact = re.compile(rf"(^|\.)({'|'.join(model._keep_in_fp32_modules_strict)})\.")
    loaded: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    unexpected, twice, misshapen = [], [], []
    for released, (tensor, file) in tqdm(tensors.items(), desc="Converting tensors", unit=" tensors"):
        try:
            renamed = rename(released, WHOLE_NAMES)
        except KeyError:
            unexpected.append(f"{released} ({file})")
            continue
        for name, part in adapt(renamed, tensor, config.image_start_token_id) if renamed else ():
            if name not in expected:
                unexpected.append(f"{released} ({file})")
            elif name in loaded:
                twice.append(f"{released} ({file}), which is {origin[name]} again")
            elif part.shape != expected[name]:
                misshapen.append(f"{released} ({file}): {name} is {tuple(part.shape)}, not {tuple(expected[name])}")
            else:
                part = part.to(torch.float32 if exact.search(name) else dtype)
            loaded[name], origin[name] = part, f"{released} ({file})"
    tied = set(model.all_tied_weights_keys)
    missing = sorted({_released_name(name) for name in expected if name not in loaded and name not in tied})
    problems = {"unexpected": unexpected, "missing": missing, "twice there": twice, "of the wrong shape": misshapen}
    if misfits := list_misfits(problems):
        raise ValueError(f"The tensors in {source} are not those of the released format. {misfits}.")
    model.load_state_dict(loaded, strict=not tied, assign=True)
    model.tie_weights()
    return model


def _released_name(name: str) -> str:
    """The released name of a tensor of ours."""
    name = _DECODER_QKV.sub(r"\1.qkv_proj.weight", name)
    return rename(name, [(ours, released) for released, ours in WHOLE_NAMES if ours]) or name


def _generation_config(source_config: dict, config: VargptConfig) -> GenerationConfig:
    """Settings of the released system, and the source's token ids."""
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = source_config.get(name)
        ids[name] = getattr(config.text_config, name, None) if value is None else value
    return GenerationConfig(**ids, **RELEASED_GENERATION)


def released_processor(source: Path, config: VargptConfig) -> VargptProcessor | None:
    """The processor of a released checkpoint, or None where no tokenizer is in its folder.

    Raises:
        ValueError: a tokenizer whose picture tokens are absent or have other ids than the model's.
    """
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        logger.warning(f"{source} has no tokenizer: the new folder will have no processor.")
        return None
    side = config.vision_config.image_size
    settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if (source / "preprocessor_config.json").is_file():
        found = read_json(source / "preprocessor_config.json")
        settings.update({name: found[name] for name in _CLIP_SETTINGS if found.get(name) is not None})
    processor = VargptProcessor(
        VargptImageProcessor(**settings, output_size=config.vq_config.image_size),
        AutoTokenizer.from_pretrained(source),
        chat_template=make_chat_template(RELEASED_SYSTEM_PROMPT),
        image_seq_length=config.image_seq_length,
        num_image_gen_tokens=config.vq_config.num_image_tokens,
    )
    for name in ("image_token_id", "image_start_token_id", "image_place_token_id", "image_end_token_id"):
        if getattr(processor, name) != getattr(config, name):
            raise ValueError(
                f"The tokenizer in {source} and its config.json disagree: `{name}` is {getattr(processor, name)} in the one, "
                f"{getattr(config, name)} in the other."
            )
    return processor


__all__ = ["convert_checkpoint"]
