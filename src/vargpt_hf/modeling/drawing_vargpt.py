"""Drawing: one batch of images, scale by scale. What it depends on is what it is given.

Shapes: N images, M decoder rows of them (N, or 2N under guidance), L positions of an image, l of one scale, D width of the language model.
"""

from collections.abc import Callable, Sequence

import torch

from .image_sampling_vargpt import CodeProcessor, Generators, Guidance, ScaleStep, process_scores, sample_codes
from .scales_vargpt import ScaleSchedule

# Called after every scale with its index and f̂ (N, Cz, H, W), from which the image tokenizer decodes the images so far.
OnScale = Callable[[int, torch.Tensor], None]


def draw_codes(
    model,
    rows,
    which: torch.LongTensor,
    schedule: ScaleSchedule,
    guidance: Guidance,
    code_processors: Sequence[CodeProcessor] = (),
    do_sample: bool = False,
    generators: Generators = None,
    on_scale: OnScale | None = None,
) -> torch.LongTensor:
    """Codes (N, L) of one image for each of the rows `which` (N,).

    Args:
        model: the `VargptModel` whose parts draw.
        rows: the `LLMRows` that the images belong to; their cache grows by the images' positions.
        schedule: of these images.
        guidance: combines the scores of an image's decoder rows.
        code_processors: applied in turn to the scores of every scale.
        do_sample: sample codes instead of taking the likeliest.
        generators: source of randomness; a list has one for each image.
        on_scale: called after every scale.
    """
    tokenizer, decoder = model.image_tokenizer, model.visual_decoder
    num_images = len(which)
    conditions = torch.tensor(guidance.conditions(), device=which.device).repeat_interleave(num_images)
    llm_rows, starting = rows.begin_drawing(which, guidance.unconditional_rows)
    context = rows.context_of(llm_rows)
    if context is not None:
        context = guidance.context(decoder, model.projector_to_decoder(context[0]), context[1])
    state = decoder.begin(conditions, schedule, *context or ())
    inputs, f_hat, codes = None, 0, []
    for scale in range(len(schedule)):
        tokens = decoder.embed_scale(inputs, conditions[: len(llm_rows)], scale, schedule)
        hidden_states = rows.scale_pass(model.projector_to_llm(tokens), llm_rows, starting if scale == 0 else None)
        own_inputs = None if inputs is None else inputs[:num_images]
        unconditional = guidance.unconditional(ScaleStep(model, scale, schedule, own_inputs, hidden_states, generators))
        if unconditional is not None:
            hidden_states = torch.cat([hidden_states, unconditional])
        logits = decoder(model.projector_to_decoder(hidden_states), conditions, schedule, state=state)
        logits = process_scores(guidance.combine(logits.float(), scale, len(schedule)), code_processors, scale, schedule)
        codes.append(sample_codes(logits, do_sample, generators))
        f_hat = f_hat + tokenizer.contribution(codes[-1], scale, schedule)
        if on_scale is not None:
            on_scale(scale, f_hat)
        if scale + 1 < len(schedule):
            inputs = tokenizer.next_input(f_hat, scale + 1, schedule).repeat(len(llm_rows) // num_images, 1, 1)
    return torch.cat(codes, dim=1)


__all__ = ["draw_codes"]
