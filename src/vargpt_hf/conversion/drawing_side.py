"""What draws: an image tokenizer and a visual decoder, from files of VAR, of Infinity or of this package, or a decoder with fresh weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..modeling.bsq_vargpt import VargptBSQModel
from ..modeling.checkpoint_vargpt import read_json
from ..modeling.configuration_vargpt import IMAGE_TOKENIZERS, VISUAL_DECODERS, VargptConfig
from ..modeling.infinity_decoder_vargpt import VargptInfinityDecoder
from ..modeling.scales_vargpt import VAR_SIDES
from ..modeling.var_decoder_vargpt import VargptVARDecoder
from ..modeling.vq_vargpt import VargptVQModel
from ..shipped import folder_of
from .checkpoint import SourceTensor, open_checkpoint, open_part, said_of
from .formats import infinity as infinity_format
from .formats import var as var_format
from .renaming import Part
from .shapes import TensorShapes

# Layers, width and heads of fresh visual decoders: 0.13, 0.31 and 1.0 billion parameters with VAR's layers.
DECODER_SIZES = {"small": (12, 768, 12), "base": (16, 1024, 16), "large": (24, 1536, 24)}
VQ, BSQ = (part.config_class.model_type for part in (VargptVQModel, VargptBSQModel))
VAR, INFINITY = (part.config_class.model_type for part in (VargptVARDecoder, VargptInfinityDecoder))
_IMAGE_TOKENIZER, _VISUAL_DECODER = "model.image_tokenizer.", "model.visual_decoder."
_SAME = [("{rest}", "{rest}")]


@dataclass
class DrawingSide:
    """Image tokenizer and visual decoder, by their configurations and, where these come from files, their tensors.

    Args:
        image_tokenizer_config, visual_decoder_config: as `VargptConfig` takes them.
        image_tokenizer: tensors of the image tokenizer.
        visual_decoder: those of the visual decoder; None where its weights are fresh.
        names: of the files, for messages.
    """

    image_tokenizer_config: dict[str, Any] | PreTrainedConfig
    visual_decoder_config: dict[str, Any] | PreTrainedConfig
    image_tokenizer: Part
    visual_decoder: Part | None
    names: list[str]

    def parts(self, config: VargptConfig, seed: int) -> list[Part]:
        """Tensors of both, with fresh ones of the seed where no file has them: a whole visual decoder, or the condition that Infinity lacks."""
        drawn = config.visual_decoder_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.visual_decoder is None:
                fresh = VISUAL_DECODERS[drawn.model_type](drawn).state_dict()
            elif drawn.model_type == INFINITY:
                fresh = {"condition_embedding": torch.randn(1, drawn.hidden_size) * drawn.initializer_range}
            else:
                fresh = {}
        made = Part({name: SourceTensor(tensor, "fresh") for name, tensor in fresh.items()}, _SAME, _VISUAL_DECODER)
        return [self.image_tokenizer, *([] if self.visual_decoder is None else [self.visual_decoder]), *([made] if fresh else [])]


def open_drawing_side(
    image_tokenizer: str | Path | None = None,
    vqvae: str | Path | None = None,
    bsq: str | Path | None = None,
    var: str | Path | None = None,
    infinity: str | Path | None = None,
    decoder_size: str | None = None,
    scales: Sequence[int] | None = None,
) -> DrawingSide:
    """What draws, by the names of files and the headers in them; no weights are read.

    Args:
        image_tokenizer: folder of an image tokenizer of this package, or of a VARGPT, of which its own is taken.
        vqvae, bsq: in place of it, weights of VAR's or of Infinity's image tokenizer.
        var, infinity: weights of the visual decoder; of fresh ones by default.
        decoder_size: of a fresh visual decoder: a name in `DECODER_SIZES` ("base" by default), or layers, width and heads between commas.
        scales: side lengths of the scales, where `vqvae` or `bsq` are given and these are not theirs as released.

    Raises:
        ValueError: none of the image tokenizers or several; a visual decoder of the other kind, or a size beside its weights; files that
            hold something else.
        OSError: files that are not there or damaged.
    """
    if sum(given is not None for given in (image_tokenizer, vqvae, bsq)) != 1:
        raise ValueError(
            "Give one image tokenizer: a folder as --image-tokenizer (one that you trained, or a VARGPT), VAR's as --vqvae, or Infinity's as "
            "--bsq."
        )
    if var is not None and infinity is not None:
        raise ValueError("Give the weights of one visual decoder: --var or --infinity.")
    if decoder_size is not None and (var or infinity):
        raise ValueError("--decoder-size is of a fresh visual decoder: leave it out, or leave out the weights of one.")
    if scales is not None and image_tokenizer is not None:
        raise ValueError("--scales are the image tokenizer's own, where it comes as a folder: leave them out.")
    decoder = open_part(Path(var), var_format.DECODER_WRAPPERS) if var is not None else None
    if image_tokenizer is not None:
        config, part = _open_folder(Path(folder_of(image_tokenizer)))
    elif vqvae is not None:
        config, part = _open_vqvae(Path(vqvae), decoder, scales)
    else:
        config, part = _open_bsq(Path(bsq), scales)
    kind = config["model_type"]
    if (var is not None and kind != VQ) or (infinity is not None and kind != BSQ):
        raise ValueError("VAR's decoder draws the codes of a VQ-VAE, Infinity's those of a BSQ-VAE: give an image tokenizer of the same kind.")
    names = [Path(given).name for given in (image_tokenizer, vqvae, bsq, var, infinity) if given is not None]
    if var is not None:
        var_format.refuse_shared_modulation(decoder, Path(var))
        shapes = TensorShapes({name: source.tensor for name, source in decoder.items()}, where=str(var))
        adapt = partial(var_format.adapt_decoder, conditions=var_format.var_conditions)
        return DrawingSide(
            config,
            var_format.decoder_config_of(shapes),
            part,
            Part(decoder, var_format.DECODER_NAMES, _VISUAL_DECODER, adapt, var_format.stored_as),
            names,
        )
    grids = {"reference_grids": infinity_format.schedules_of(scales, None)[1]} if bsq is not None else {}
    if infinity is not None:
        return DrawingSide(config, *_open_infinity(Path(infinity), grids, part), names)
    needs_any_schedule = kind == BSQ or len(config["schedules"]) > 1  # VAR's decoder learns the positions of one schedule
    layers, width, heads = _sizes(decoder_size or "base")
    fields = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    return DrawingSide(config, {"model_type": INFINITY if needs_any_schedule else VAR, **fields, **grids}, part, None, names)


def _sizes(decoder_size: str) -> tuple[int, int, int]:
    """Layers, width and heads of a fresh visual decoder."""
    if decoder_size in DECODER_SIZES:
        return DECODER_SIZES[decoder_size]
    numbers = decoder_size.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() and int(number) for number in numbers):
        known = ", ".join(f"{name} ({','.join(map(str, sizes))})" for name, sizes in DECODER_SIZES.items())
        raise ValueError(f"--decoder-size is {decoder_size!r}; it must be one of {known}, or layers, width and heads, such as 16,1024,16.")
    return tuple(map(int, numbers))


def _open_folder(folder: Path) -> tuple[dict[str, Any], Part]:
    """The image tokenizer in a folder of this package's own format, alone or inside a VARGPT."""
    fields = read_json(folder / "config.json")
    prefix = ""
    if fields.get("model_type") == VargptConfig.model_type:
        with said_of(folder / "config.json"):
            fields, prefix = VargptConfig.from_pretrained(folder).image_tokenizer_config.to_dict(), _IMAGE_TOKENIZER
    if fields.get("model_type") not in IMAGE_TOKENIZERS:
        raise ValueError(
            f"{folder} holds a model of type {fields.get('model_type')!r}; an image tokenizer is one of {', '.join(IMAGE_TOKENIZERS)}, or part "
            f"of a {VargptConfig.model_type}."
        )
    tensors = {name: source for name, source in open_checkpoint(folder).items() if name.startswith(prefix)}
    with said_of(folder / "config.json"):
        config = IMAGE_TOKENIZERS[fields["model_type"]].config_class.from_dict(fields).to_dict()
    table = [(f"{prefix}{{rest}}", f"{_IMAGE_TOKENIZER}{{rest}}")]
    return {name: value for name, value in config.items() if name not in ("architectures", "dtype", "transformers_version")}, Part(
        tensors, table
    )


def _open_vqvae(path: Path, decoder: dict[str, SourceTensor] | None, scales: Sequence[int] | None) -> tuple[dict[str, Any], Part]:
    """VAR's image tokenizer, with the scales of VAR's decoder where there is one."""
    opened = open_part(path, var_format.VQ_WRAPPERS)
    with said_of(path):
        if decoder is not None:
            tensors = {name: source.tensor for name, source in decoder.items()}
            scales = var_format.scales_of(TensorShapes(tensors, where="VAR's decoder"), tensors.get(var_format.SCALE_OF_POSITION), scales)
        shapes = TensorShapes({name: source.tensor for name, source in opened.items()}, where=str(path))
        config = var_format.vq_config_of(shapes, scales or VAR_SIDES)
    return config.to_dict(), Part(opened, var_format.VQ_NAMES, _IMAGE_TOKENIZER)


def _open_bsq(path: Path, scales: Sequence[int] | None) -> tuple[dict[str, Any], Part]:
    """Infinity's image tokenizer, by default with the schedules of 512×512 pixels in all aspect ratios."""
    opened = open_part(path, infinity_format.BSQ_WRAPPERS)
    with said_of(path):
        shapes = TensorShapes({name: source.tensor for name, source in opened.items()}, where=str(path))
        fields = infinity_format.tokenizer_config(shapes, infinity_format.schedules_of(scales, None)[0])
    return fields, Part(opened, infinity_format.BSQ_NAMES, _IMAGE_TOKENIZER)


def _open_infinity(path: Path, grids: dict[str, list], image_tokenizer: Part) -> tuple[dict[str, Any], Part, Part]:
    """Configuration of Infinity's decoder, and both parts that draw."""
    opened = open_part(path, infinity_format.DECODER_WRAPPERS)
    shapes = TensorShapes({name: source.tensor for name, source in opened.items()}, where=str(path))
    adapt = partial(infinity_format.adapt_infinity, blocks_of_chunk=infinity_format.blocks_of_chunk(shapes))
    part = Part(opened, infinity_format.INFINITY_NAMES, _VISUAL_DECODER, adapt)
    fields = {name: value for name, value in infinity_format.decoder_config(shapes, []).items() if name != "reference_grids"}
    return {**fields, **grids}, image_tokenizer, part


__all__ = ["DECODER_SIZES", "DrawingSide", "open_drawing_side"]
