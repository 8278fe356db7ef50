"""Guidance of VARGPT v1.1: what it does to drawings in every path, at any length, and what work it makes."""

import pytest
import torch
from golden_v11_helpers import golden_v11, golden_v11_model

from vargpt_hf.modeling.image_tokenizer_vargpt import from_symbols
from vargpt_hf.modeling.visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION

KINDS = {
    "scale": {},
    "prompt": {"output_image_unconditional_ids": [301, 5, 6]},
    "noise": {},
}
# Ways to an image: none may pass guidance by.
PATHS = {
    "one row": {},
    "static cache": {"cache_implementation": "static"},
    "sampled": {"do_sample": True},
    "another size": {"output_image_aspect_ratio": 2.0},
    "a generator for each row": {"do_sample": True, "generator": "list"},
    "several of one prompt": {"do_sample": True, "num_return_sequences": 2},
    "streamed": {"output_image_streamer": "streamer"},
    "half kept": {"output_image_codes_to_keep": torch.zeros(1, 30, dtype=torch.long), "output_image_mask": torch.arange(30)[None] > 3},
    "two rows, one padded": {"rows": 2},
    "text first": {"generation_mode": "auto"},
}


@pytest.fixture(scope="module")
def model():
    return golden_v11_model()


class Streamer:
    """Notes that images came after every scale."""

    wants_pixels = True

    def __init__(self):
        self.scales = []

    def put(self, images, rows, scale_index) -> None:
        assert images.isfinite().all()
        self.scales.append(scale_index)

    def end(self) -> None:
        assert self.scales == list(range(4))


def prompt_of(rows: int) -> dict[str, torch.Tensor]:
    ids = golden_v11("generation/plain.prompt_ids")
    mask = torch.ones_like(ids)
    if rows == 2:
        ids, mask = torch.cat([ids, ids]), torch.cat([mask, mask])
        ids[1, :3], mask[1, :3] = 301, 0
    return {"input_ids": ids, "attention_mask": mask}


def drawn(model, scale: float = 2.0, guidance: str = "none", rows: int = 1, **settings) -> torch.LongTensor:
    """Codes of the drawn images."""
    if settings.get("generator") == "list":
        settings["generator"] = [torch.Generator().manual_seed(7) for _ in range(rows)]
    if settings.get("output_image_streamer") == "streamer":
        settings["output_image_streamer"] = Streamer()
    if settings.get("generation_mode") == "auto":
        plan = [7, 8, model.config.output_image_start_token_id, 9]
        settings |= {"max_new_tokens": 5, "prefix_allowed_tokens_fn": lambda _, ids: [plan[min(len(ids) - 10, 3)]]}
    torch.manual_seed(3)
    options = {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True, "output_image_guidance_ramp": False}
    options |= {"output_image_guidance_type": guidance, "output_image_guidance_scale": scale}
    return model.generate(**prompt_of(rows), **{**options, **settings}).output_image_codes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_guided_and_unguided_drawings_differ_in_every_path(model, path, kind):
    plain = drawn(model, **PATHS[path])
    guided = drawn(model, guidance=kind, **PATHS[path], **KINDS[kind])
    assert plain.shape == guided.shape
    for one, other in zip(plain, guided):  # every image, not the first of a batch alone
        assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["scale", "prompt"])
def test_strength_0_is_no_guidance_and_no_work(model, kind):
    plain, work = counted(model)
    guided, same = counted(model, guidance=kind, scale=0.0, **KINDS[kind])
    assert torch.equal(plain, guided) and work == same


@pytest.mark.parametrize(("length", "negative"), [(70, 90), (90, 1), (12, 60)])
def test_a_negative_prompt_guides_at_any_length(model, length, negative):
    """Held against two teacher-forced passes; the released guidance ends at as many tokens as it has stored rows, here 40."""
    generator = torch.Generator().manual_seed(length)
    ids, against = (torch.randint(5, 290, (1, count), generator=generator) for count in (length, negative))
    settings = {"output_image_guidance_type": "prompt", "output_image_guidance_scale": 1.5, "output_image_guidance_ramp": False}
    settings |= {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True}
    codes = model.generate(ids, output_image_unconditional_ids=against[0].tolist(), **settings).output_image_codes
    config, logits = model.config, []
    for prompt, condition in ((ids, GENERATE_CONDITION), (against, NULL_CONDITION)):
        drawing = [[config.output_image_start_token_id, *[config.output_image_token_id] * 30]]
        row = torch.cat([prompt, torch.tensor(drawing)], dim=1)
        with torch.no_grad():
            output = model(row, output_image_codes=codes, output_image_condition_ids=torch.tensor([condition]))
        logits.append(output.output_image_logits)
    assert torch.equal(from_symbols((2.5 * logits[0] - 1.5 * logits[1]).argmax(-1), 2), codes)


# ---- work that nobody reads


def counted(model, **settings) -> tuple[torch.LongTensor, dict[str, int]]:
    """Drawn codes, and how many rows (or positions) went through each part while they were drawn."""
    inner, work, handles = model.model, {}, []

    def count(name: str, unit):
        def hook(module, args, kwargs, output):
            work[name] = work.get(name, 0) + unit(args, kwargs, output)

        return hook

    def positions(args, kwargs, output) -> int:
        tokens = args[0] if args else kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        return tokens.shape[0] * tokens.shape[1]

    layer = inner.visual_decoder.layers[0]
    parts = {
        "language model": (inner.backbone.decoder, positions),
        "lm_head": (model.lm_head, positions),
        "visual decoder": (inner.visual_decoder, positions),
        "cross-attention keys": (layer.cross_attn.k_proj, lambda *_: 1),
        "cross-attention values": (layer.cross_attn.v_proj, lambda *_: 1),
        "modulation": (inner.visual_decoder.shared_modulation, lambda *_: 1),
        "pixels": (inner.image_tokenizer.decoder, lambda *_: 1),
        "encoder": (inner.image_tokenizer.encoder, lambda *_: 1),
    }
    for name, (module, unit) in parts.items():
        handles.append(module.register_forward_hook(count(name, unit), with_kwargs=True))
    try:
        return drawn(model, **settings), work
    finally:
        for handle in handles:
            handle.remove()


def test_nothing_is_computed_that_nobody_reads(model):
    """A prompt of 10 tokens, image-start and the 30 positions of 4 scales."""
    _, work = counted(model)
    assert work == {
        "language model": 10 + 1 + 30,  # every position once: neither image-end nor a token after it is fed
        "lm_head": 1,  # the end of the prompt alone: no score of a token at any position of an image
        "visual decoder": 30,
        "cross-attention keys": 1,  # once an image, not once a scale
        "cross-attention values": 1,
        "modulation": 1,
        "pixels": 1,
    }
    _, guided = counted(model, guidance="scale")
    assert guided == work | {"language model": 10 + 1 + 2 * 30, "visual decoder": 2 * 30}
    _, against = counted(model, guidance="prompt", output_image_unconditional_ids=[301, 5, 6])
    assert against == work | {"language model": 2 * (10 + 1 + 30), "visual decoder": 2 * 30, "lm_head": 2}


def test_a_prompt_in_chunks_is_refused_where_the_decoder_sees_all_of_it(model):
    with pytest.raises(ValueError, match="`prefill_chunk_size` leaves hidden states of the last chunk alone"):
        drawn(model, prefill_chunk_size=2)
    settings = {"generation_mode": "text", "max_new_tokens": 3, "do_sample": False}
    whole, chunks = (model.generate(**prompt_of(1), **settings, **more) for more in ({}, {"prefill_chunk_size": 2}))
    assert torch.equal(whole, chunks)
