"""Whether a processor is that of a model: tokens, schedules and numbers of image tokens are compared before anything runs."""

from collections.abc import Iterator
from typing import Any

TOKENS = ("image_token_id", "output_image_start_token_id", "output_image_token_id", "output_image_end_token_id")


def check_fits(processor: Any, config: Any) -> None:
    """Compares a processor with the configuration of a model.

    Args:
        processor: a `VargptProcessor`.
        config: a `VargptConfig`.

    Raises:
        ValueError: they differ; all differences are named.
    """
    faults = [
        f"{name} is {ours!r} in the processor, {theirs!r} in the model"
        for name, ours, theirs in (*_drawn(processor, config), *_read(processor, config))
        if ours != theirs
    ]
    if faults:
        raise ValueError(f"The processor is not that of this model: {'; '.join(faults)}. Load both from one folder.")


def _drawn(processor: Any, config: Any) -> Iterator[tuple[str, Any, Any]]:
    """Numbers of images to draw, and tokens: (name, the processor's, the model's)."""
    for name in TOKENS:
        yield name, getattr(processor, name), getattr(config, name)
    if len(processor.tokenizer) > config.text_config.vocab_size:
        yield "the size of the vocabulary", len(processor.tokenizer), config.text_config.vocab_size
    drawn = processor.output_image_processor
    yield "schedules", drawn.grids, [list(schedule.grids) for schedule in config.schedules]
    yield "downsampling", drawn.downsampling, config.image_tokenizer_config.downsampling


def _read(processor: Any, config: Any) -> Iterator[tuple[str, Any, Any]]:
    """Numbers of images to read, of those kinds that both know."""
    reader, vlm, vision = processor.reader, config.vlm_config, config.vision_config
    if reader is None or vision is None:
        yield "whether images are read", reader is not None, vision is not None
        return
    images = processor.image_processor
    patch = _side(getattr(vision, "patch_size", None))
    merge = getattr(vision, "spatial_merge_size", getattr(vlm, "spatial_merge_size", None))
    pairs = [
        ("patch_size", _first(reader, "patch_size", images, "patch_size"), patch),
        ("spatial_merge_size", _first(reader, "spatial_merge_size", images, "merge_size"), merge),
        ("vision_feature_select_strategy", *(getattr(one, "vision_feature_select_strategy", None) for one in (reader, vlm))),
        ("image_token_count", _count_of(reader), _expected_count(vlm, vision, patch)),
    ]
    if type(reader).__name__ == "LlavaProcessor" and vlm.model_type == "llava" and getattr(images, "crop_size", None):
        pairs.append(("image_size", images.crop_size["height"], _side(vision.image_size)))
    yield from ((name, ours, theirs) for name, ours, theirs in pairs if ours is not None and theirs is not None)


def _first(*owners_and_names: Any) -> Any:
    """The first attribute that is there and not None."""
    pairs = zip(owners_and_names[::2], owners_and_names[1::2])
    return next((value for owner, name in pairs if (value := _side(getattr(owner, name, None))) is not None), None)


def _side(value: Any) -> int | None:
    """A side of a square, which some configurations write as (height, width) or {"height", "width"}."""
    if isinstance(value, dict):
        value = (value.get("height"), value.get("width"))
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _count_of(reader: Any) -> int | None:
    """Placeholders of an image or of one of its tiles, where they are a constant of the reader."""
    names = ("image_seq_length", "image_seq_len", "num_image_tokens")
    return next((value for name in names if (value := getattr(reader, name, None)) is not None), None)


def _expected_count(vlm: Any, vision: Any, patch: int | None) -> int | None:
    """Features that the model makes of an image or of one of its tiles, where they are a constant of the model."""
    if (count := getattr(vlm, "mm_tokens_per_image", None)) is not None:
        return count
    if patch is None or (side := _side(getattr(vision, "image_size", None))) is None:
        return None
    scale = getattr(vlm, "downsample_ratio", 1 / (getattr(vlm, "scale_factor", None) or 1))
    return int((side // patch * scale) ** 2)


__all__ = ["check_fits"]
