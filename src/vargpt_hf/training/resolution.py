"""Sizes of the images that a model draws, changed between stages."""

from ..modeling.bsq_vargpt import infinity_schedules
from ..modeling.configuration_vargpt import VargptConfig
from ..processing.processing_vargpt import VargptProcessor


def with_image_budget(config: VargptConfig, budget: str) -> VargptConfig:
    """The configuration with Infinity's schedules of a pixel budget: of a model with one schedule the square one, else all.

    Its visual decoder must count positions on reference grids, as Infinity's does: then no weight depends on the schedules.

    Args:
        budget: "0.06M" (256×256 pixels), "0.25M" (512×512), "0.60M" or "1M".

    Raises:
        ValueError: an unknown budget, or a visual decoder whose weights are for its schedules.
    """
    schedules, grids = infinity_schedules(budget)
    number = 1 if len(config.schedules) == 1 else len(schedules)
    fields = config.to_dict()
    if "reference_grids" not in fields["visual_decoder_config"]:
        raise ValueError(
            f"The weights of a visual decoder of model_type {config.visual_decoder_config.model_type!r} are for its own schedules: leave "
            "`image_budget` out."
        )
    fields["image_tokenizer_config"]["schedules"] = schedules[:number]
    fields["visual_decoder_config"] |= {"schedules": None, "reference_grids": grids[:number]}
    return VargptConfig.from_dict(fields)


def fit_processor(processor: VargptProcessor, config: VargptConfig) -> None:
    """Lets a processor prepare images to draw of the schedules of a configuration."""
    processor.output_image_processor.schedules = [list(scales) for scales in config.image_tokenizer_config.schedules]


__all__ = ["fit_processor", "with_image_budget"]
