"""Generation against what the released system computed: every tensor of every scale, from the prompt to the image."""

import pytest
import torch
from golden_helpers import assert_close_to_golden, assert_golden_choices, golden, golden_json, golden_tolerance

from vargpt_hf.modeling.image_sampling_vargpt import filters, process_scores

CASES = ["cfg0", "cfg15", "cfg15_image_prompt", "cfg15_late"]
SIZES = [1, 4, 9, 16]  # codes of each scale


def assert_codes(case: str, codes: torch.LongTensor) -> bool:
    """Asserts that an image's codes (1, L) are those of a case, up to ties of its guided logits; returns whether they are."""
    expected = torch.cat([golden(f"generation/{case}.idx_{index}") for index in range(4)], dim=1)
    logits = torch.cat([golden(f"generation/{case}.logits_{index}") for index in range(4)], dim=1)
    allowed = max(golden_tolerance(f"generation/{case}.logits_{index}") for index in range(4))
    return assert_golden_choices(f"generation/{case}", codes, expected, logits, allowed, SIZES)


def prompt_up_to_image_start(case: str, output_image_start_token_id: int) -> torch.LongTensor:
    """The ids of a case up to its image-start token; the released loop repeats what follows it."""
    sequences = golden(f"generation/{case}.sequences")
    return sequences[:, : sequences[0].tolist().index(output_image_start_token_id) + 1]


def draw(model, case: str, **settings):
    """Draws a case's image; returns the output and what passed through decoder and language model at each scale."""
    seen = {"decoder_in": [], "raw_logits": [], "llm_hidden": []}

    def note_decoder(module, args, output):
        seen["decoder_in"].append(args[0])
        seen["raw_logits"].append(output.squeeze(2))

    def note_hidden(module, args):
        seen["llm_hidden"].append(args[0])

    hooks = [
        model.model.visual_decoder.register_forward_hook(note_decoder),
        model.model.projector_to_decoder.register_forward_pre_hook(note_hidden),
    ]
    prompt = prompt_up_to_image_start(case, model.config.output_image_start_token_id)
    if "image_prompt" in case:
        settings["pixel_values"] = golden("understanding/pixel_values")[:1]
    try:
        output = model.generate(
            prompt,
            generation_mode="image",
            output_image_guidance_type="noise",
            output_image_guidance_scale=golden_json("meta")["generation"][case]["cfg"],
            output_image_noise=[golden(f"generation/{case}.noise_{index}") for index in range(4)],
            do_sample=False,
            max_new_tokens=4,
            return_dict_in_generate=True,
            **settings,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return output, seen


@pytest.mark.parametrize("cache_implementation", [None, "static"])
@pytest.mark.parametrize("case", CASES)
def test_generation(golden_model, case, cache_implementation):
    output, seen = draw(golden_model, case, cache_implementation=cache_implementation)
    if not assert_codes(case, output.output_image_codes):
        return
    for index in range(4):
        assert_close_to_golden(f"generation/{case}.llm_hidden_{index}", seen["llm_hidden"][index][:1])
        rows = seen["raw_logits"][index].shape[0]  # without guidance the unconditional half is not computed
        expected = golden(f"generation/{case}.raw_logits_{index}")
        assert rows == (1 if case == "cfg0" else 2)
        if rows == 2:
            assert_close_to_golden(f"generation/{case}.raw_logits_{index}", seen["raw_logits"][index])
            assert_close_to_golden(f"generation/{case}.dec_in_{index}", seen["decoder_in"][index])
        else:
            assert_close_to_golden(f"generation/{case}.logits_{index}", seen["raw_logits"][index])
            torch.testing.assert_close(seen["raw_logits"][index], expected[:1], atol=1e-4, rtol=1e-4)
    f_hat = golden_model.model.image_tokenizer.accumulate(output.output_image_codes)
    assert_close_to_golden(f"generation/{case}.fhat_3", f_hat)
    assert_close_to_golden(f"generation/{case}.image", (output.output_images + 1) / 2)


def test_image_after_text(golden_model):
    """The released case in which text comes before image-start, decoded by our loop from the bare prompt."""
    case = "cfg15_late"
    forced = golden_json("meta")["generation"][case]["forced_tokens"]
    prompt = golden(f"generation/{case}.prompt_ids")

    def force(batch_id, ids):
        step = len(ids) - prompt.shape[1]
        return [forced[step]] if step < len(forced) - 1 else [golden_model.config.text_config.eos_token_id]

    output = golden_model.generate(
        prompt,
        output_image_guidance_type="noise",
        output_image_guidance_scale=1.5,
        output_image_noise=[golden(f"generation/{case}.noise_{index}") for index in range(4)],
        do_sample=False,
        max_new_tokens=10,
        prefix_allowed_tokens_fn=force,
        return_dict_in_generate=True,
    )
    assert_codes(case, output.output_image_codes)
    assert output.output_image_positions.tolist() == [prompt.shape[1] + forced.index(golden_model.config.output_image_start_token_id)]


def filtered_logits(logits: torch.Tensor, top_k: int = 0, top_p: float = 0.0) -> torch.Tensor:
    """Logits (N, l, V) after the filters of code scores."""
    return process_scores(logits[:, :, None], filters(1.0, top_k, top_p), 0, None).squeeze(2)


@pytest.mark.parametrize("case", golden_json("meta")["sampling"]["cases"], ids=lambda case: f"k{case['top_k']}-p{case['top_p']}")
def test_filtered_distributions(case):
    filtered = filtered_logits(golden("sampling/logits"), case["top_k"], case["top_p"])
    expected = golden(f"sampling/masked_{case['i']}")
    assert torch.equal(filtered.isinf(), expected.isinf())
    assert_close_to_golden(f"sampling/probs_{case['i']}", filtered.softmax(-1))


def test_top_k_beyond_the_codebook_keeps_all():
    logits = golden("sampling/logits")
    assert torch.equal(filtered_logits(logits, top_k=10_000), logits)
