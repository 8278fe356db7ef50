"""What `generate` refuses, in words; what it leaves as it was; what its signature says."""

import copy
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from vargpt_hf import VargptForConditionalGeneration, VargptGenerationConfig, VargptImageStreamer
from vargpt_hf.testing import drawing_model, tiny_model

IMAGE, START, END, PLACEHOLDER, L, POSITIONS = 60, 61, 62, 63, 21, 512
PROMPT = torch.tensor([[1, 5, 6, 7]])
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def model():
    return drawing_model()


def generate(model, ids=PROMPT, **settings):
    return model.generate(ids, **{"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, **settings})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("max_new_tokens", "max_output_images", "output_image_top_k", "top_k", "num_beams")
            for value in ("4", 2.0, True, [4])
        ),
        *(
            (name, value)
            for name in ("output_image_guidance_scale", "output_image_temperature", "output_image_top_p", "temperature")
            for value in ("1", [1.0], True)
        ),
        *((name, value) for name in ("do_sample", "output_image_guidance_ramp", "use_cache") for value in (1, "yes")),
        *((name, value) for name in ("eos_token_id", "suppress_tokens", "output_image_unconditional_ids") for value in ("</s>", [1.5], [[1]])),
        ("generator", 7),
        ("generator", ["a"]),
        ("output_image_streamer", object()),
        ("output_image_noise", torch.zeros(1, 1, 32)),
    ],
)
def test_settings_of_the_wrong_type(model, name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        generate(model, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("output_image_guidance_scale", "output_image_temperature", "output_image_top_p", "temperature")
            for value in (NAN, INF, -INF, -1.0)
        ),
        *(
            (name, value)
            for name in ("max_output_images", "output_image_top_k", "top_k", "max_new_tokens", "max_length")
            for value in (-1, 2**40)
        ),
        *((name, value) for name in ("output_image_top_p", "top_p", "min_p") for value in (1.5, NAN)),
        *((name, value) for name in ("eos_token_id", "pad_token_id", "bos_token_id", "forced_bos_token_id") for value in (64, -1)),
        *((name, [5, value]) for name in ("eos_token_id", "suppress_tokens", "output_image_unconditional_ids") for value in (64, -1)),
        ("output_image_unconditional_ids", []),
        *((name, 5) for name in ("suppress_tokens", "begin_suppress_tokens", "output_image_unconditional_ids")),
        ("output_image_guidance_scale", 100.5),
        ("max_new_tokens", 0),
        ("generation_mode", "sketch"),
        ("generation_mode", 3),
        ("output_image_guidance_type", "cfg"),
        ("output_image_noise", [torch.zeros(1, 1, 32)]),
        ("output_image_noise", [torch.zeros(1, side**2, 31) for side in (1, 2, 4)]),
    ],
)
def test_settings_out_of_range(model, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        generate(model, **{name: value})


@pytest.mark.parametrize("value", [0.0, 0, 1e-9, 1e-45])
@pytest.mark.parametrize("name", ["temperature", "output_image_temperature"])
def test_a_temperature_like_zero_gets_advice(model, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be positive.*do_sample=False"):
        generate(model, do_sample=True, **{name: value})


def test_what_people_write_is_taken(model):
    """Greedy decoding with a temperature of 0, of texts and of images, and numbers of numpy."""
    expected = generate(model).sequences
    drawn = [generate(model, generation_mode="image", output_image_temperature=value).output_image_codes for value in (1.0, 0.0)]
    assert torch.equal(*drawn)
    assert torch.equal(generate(model, temperature=0.0).sequences, expected)
    assert torch.equal(generate(model, max_new_tokens=np.int64(4), output_image_guidance_scale=np.float32(2)).sequences, expected)


@pytest.mark.parametrize("mode", ["auto", "text", "text_image"])
@pytest.mark.parametrize(
    "name", ["eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "output_image_unconditional_ids"]
)
def test_token_ids_may_be_tensors_or_tuples(model, name, mode):
    settings = {"generation_mode": mode, "output_image_guidance_type": "prompt", "max_new_tokens": 6, "output_image_guidance_ramp": False}

    def codes_and_tokens(ids=None, **more):
        output = generate(model, **settings, **({} if ids is None else {name: ids}), **more)
        return output.sequences.tolist(), output.output_image_codes.tolist()

    for several in ([9, 8], [2]):
        expected = codes_and_tokens(several)
        forms = [tuple(several), torch.tensor(several)]
        if len(several) == 1 and name.endswith("eos_token_id"):
            forms += [several[0], torch.tensor(several[0])]
        assert all(codes_and_tokens(form) == expected for form in forms)
        of_config = VargptGenerationConfig(**{name: torch.tensor(several)})
        assert codes_and_tokens(generation_config=of_config) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_implementation": "paged"}, "paged"),
        ({"assistant_early_exit": 1, "generation_mode": "text"}, "assistant_early_exit"),
        ({"num_beams": 2, "generation_mode": "text", "generator": torch.Generator()}, "beam_search does not take `generator`"),
        ({"generation_mode": "image", "generator": [torch.Generator()] * 2}, "2 generators for 1 rows"),
    ],
)
def test_ways_of_decoding_that_do_not_go_together(model, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **settings)


def test_a_prompt_with_images_is_not_cut_into_chunks(model):
    ids = torch.tensor([[1, *[IMAGE] * 4, 5, 6]])
    with pytest.raises(ValueError, match="`prefill_chunk_size` cannot cut a prompt with images"):
        generate(model, ids, pixel_values=torch.zeros(1, 3, 16, 16), prefill_chunk_size=3)


# ---- NaN and infinities


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("settings", [{"generation_mode": "text"}, {"generation_mode": "text", "num_beams": 2}, {"generation_mode": "auto"}])
@pytest.mark.parametrize("do_sample", [False, True])
def test_scores_that_are_no_numbers(model, value, settings, do_sample):
    """The first step is sound; the second one's scores are not."""

    class Broken(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([9]), value) if input_ids.shape[1] > 4 else scores

    with pytest.raises(ValueError, match="scores of the next token of row 0, after 5 tokens, are NaN or infinite"):
        generate(model, logits_processor=[Broken()], suppress_tokens=[START], do_sample=do_sample, eos_token_id=None, **settings)


def test_settings_that_forbid_every_token(model):
    with pytest.raises(ValueError, match="No token may follow.*row 0, after 4 tokens"):
        generate(model, suppress_tokens=list(range(64)), generation_mode="text")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("do_sample", [False, True])
def test_code_logits_that_are_no_numbers(value, do_sample):
    model = tiny_model()
    with torch.no_grad():
        model.model.visual_decoder.head.bias[3] = value
    with pytest.raises(ValueError, match="logits of the codes of scale 0 are NaN or infinite, first in image 0 at position 0"):
        generate(model, generation_mode="image", do_sample=do_sample)


@pytest.mark.parametrize("value", [NAN, INF])
def test_noise_that_is_no_number(model, value):
    noise = [torch.zeros(1, side**2, 32) for side in (1, 2, 4)]
    settings = {"generation_mode": "image", "output_image_guidance_type": "noise"}
    assert generate(model, output_image_noise=noise, **settings).output_image_codes.shape == (1, L)
    noise[1][0, 2, 5] = value
    with pytest.raises(ValueError, match="`output_image_noise` of scale 1 has values that are NaN or infinite"):
        generate(model, output_image_noise=noise, **settings)
    with pytest.raises(ValueError, match=r"`output_image_noise\[0\]` is for 2 images, but 1 are drawn together"):
        generate(model, output_image_noise=[part.zero_().repeat(2, 1, 1) for part in noise], **settings)
    with pytest.raises(ValueError, match="`output_image_noise` is used by guidance of the type 'noise' alone"):
        generate(model, output_image_noise=[part.zero_() for part in noise], **{**settings, "output_image_guidance_type": "prompt"})


def test_images_to_read_that_are_no_numbers(model):
    ids = torch.tensor([[1, *[IMAGE] * 4, 5, 6]])
    with pytest.raises(ValueError, match="scores of the next token of row 0, after 7 tokens, are NaN or infinite"):
        generate(model, ids, pixel_values=torch.full((1, 3, 16, 16), NAN), generation_mode="image")


# ---- room


def row_of(tokens: int) -> torch.Tensor:
    return torch.full((1, tokens), 5).index_fill_(1, torch.tensor([0]), 1)


@pytest.mark.parametrize("settings", [{"generation_mode": "text"}, {"generation_mode": "text", "num_beams": 2}, {"generation_mode": "auto"}])
def test_a_prompt_beyond_the_positions(model, settings):
    generate(model, row_of(POSITIONS), max_new_tokens=1, **settings)
    with pytest.raises(ValueError, match="the prompt has 513 tokens; the model has room for 512"):
        generate(model, row_of(POSITIONS + 1), max_new_tokens=1, **settings)


def test_a_prompt_without_room_for_a_image(model):
    room = POSITIONS - L - 1
    assert len(generate(model, row_of(room), generation_mode="image").output_images) == 1
    started = torch.cat([row_of(room), torch.tensor([[START]])], dim=1)
    assert len(generate(model, started, generation_mode="image").output_images) == 1
    with pytest.raises(ValueError, match="has 491 tokens; beside an image the model has room for 490"):
        generate(model, row_of(room + 1), generation_mode="image")
    padded = torch.cat([torch.zeros(1, 30, dtype=torch.long), row_of(room)], dim=1)  # what pads takes no position
    assert len(generate(model, padded, attention_mask=(padded != 0).long(), generation_mode="image").output_images) == 1


def test_the_model_draws_no_image_beyond_its_positions():
    class Start(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([START]), 1e4)

    model, room = drawing_model(), POSITIONS - L - 1
    for tokens, images in ((room, 1), (room + 1, 0)):
        output = generate(model, row_of(tokens), logits_processor=[Start()], max_new_tokens=3, max_output_images=1)
        assert len(output.output_images) == images


@pytest.mark.parametrize("settings", [{"generation_mode": "text"}, {"generation_mode": "text", "num_beams": 2}, {"generation_mode": "auto"}])
@pytest.mark.parametrize("cache", [None, "static"])
def test_text_ends_at_the_last_position(model, settings, cache):
    """Each row at its own, whatever is asked for; the token after it is the last, which is fed to no model."""
    settings = {**settings, "suppress_tokens": [2, START], "max_new_tokens": 600, "cache_implementation": cache}
    assert generate(model, row_of(POSITIONS - 3), **settings).sequences.shape[1] == POSITIONS + 1
    ids = torch.cat([torch.zeros(1, 2, dtype=torch.long), row_of(POSITIONS - 5)], dim=1)
    output = generate(model, ids, attention_mask=(ids != 0).long(), **settings)
    assert output.sequences.shape[1] == 2 + POSITIONS + 1


@pytest.mark.parametrize("mode", ["auto", "text", "text_image"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_a_long_prompt_does_not_shorten_its_neighbor_s_text(model, mode, cache):
    """Each row has a generator of its own, as answers of a server have, so that texts are decoded by our own loop, too."""
    settings = {"generation_mode": mode, "eos_token_id": None, "max_new_tokens": 40, "cache_implementation": cache}
    settings["suppress_tokens"] = None if mode == "text_image" else [START]
    room = 30 if mode == "text_image" else 8
    prompts = [row_of(4), row_of(POSITIONS - room)]
    longest = prompts[1].shape[1]
    ids = torch.cat([torch.nn.functional.pad(prompt, (longest - prompt.shape[1], 0)) for prompt in prompts])
    generators = [torch.Generator() for _ in prompts]
    together = generate(model, ids, attention_mask=(ids != 0).long(), generator=generators, **settings).sequences[:, longest:]
    for row, (prompt, length) in enumerate(zip(prompts, (40 + L * (mode == "text_image"), room + 1))):
        alone = generate(model, prompt, generator=generators[:1], **settings).sequences[0, prompt.shape[1] :]
        assert len(alone) == length and torch.equal(together[row, :length], alone) and not together[row, length:].any()


class LikesToDraw(LogitsProcessor):
    """Makes image-start all but certain."""

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([START]), 50.0)


@pytest.mark.parametrize("sampling", [{"top_k": 1}, *({"top_k": 0, name: 0.5} for name in ("top_p", "min_p", "typical_p"))])
@pytest.mark.parametrize(
    ("tokens", "settings", "images"),
    [
        (4, {"max_output_images": 0}, 0),
        (4, {"max_new_tokens": 1}, 0),
        (4, {"max_output_images": 1}, 1),
        (POSITIONS - L, {}, 0),
    ],
    ids=["none wanted", "no room for its tokens", "one wanted", "no positions left"],
)
def test_filters_leave_a_token_where_no_image_may_follow(model, sampling, tokens, settings, images):
    settings = {"logits_processor": [LikesToDraw()], "do_sample": True, "eos_token_id": None, "output_logits": True, **settings}
    output = generate(model, row_of(tokens), generator=torch.Generator().manual_seed(0), **settings, **sampling)
    assert len(output.output_images) == images and output.sequences.eq(START).sum() == images
    assert output.sequences.shape[1] == tokens + images * L + settings.get("max_new_tokens", 4)
    assert torch.stack(output.logits).isfinite().all()  # as the model gave them


def test_a_token_has_to_follow_where_no_image_may(model):
    settings = {"suppress_tokens": [token for token in range(64) if token != START], "max_output_images": 0}
    for do_sample in (False, True):
        with pytest.raises(ValueError, match="No token may follow.*row 0, after 4 tokens"):
            generate(model, do_sample=do_sample, **settings)


def test_a_row_that_has_drawn_ends_at_its_last_position():
    class StartOnce(LogitsProcessor):
        def __call__(self, input_ids, scores):
            token = 9 if (input_ids == START).any() else START
            return scores.index_fill(1, torch.tensor([token]), 1e4)

    output = generate(drawing_model(), row_of(POSITIONS - L - 5), logits_processor=[StartOnce()], max_new_tokens=100, eos_token_id=None)
    assert len(output.output_images) == 1 and output.sequences.shape[1] == POSITIONS + 1


def test_no_prompt_at_all(model):
    for settings in ({"generation_mode": "text"}, {"generation_mode": "image"}):
        with pytest.raises(ValueError, match="prompt is empty"):
            generate(model, torch.zeros(1, 0, dtype=torch.long), **settings)


# ---- what the caller holds, and what the caller reads


@pytest.mark.parametrize("make", [GenerationConfig, VargptGenerationConfig])
def test_the_caller_s_configuration_is_left_alone(make):
    model, config = drawing_model(), make(max_new_tokens=4, suppress_tokens=[7], do_sample=False)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    before, own = copy.deepcopy(vars(config)), copy.deepcopy(vars(model.generation_config))
    model.generate(PROMPT, generation_config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(PROMPT, generation_config=config, generation_mode="image", output_image_top_k=3)
    assert vars(config) == before and vars(model.generation_config) == own


def test_a_call_wins_over_its_configuration_and_that_over_the_model_s():
    model = drawing_model()
    model.generation_config.generation_mode, model.generation_config.max_output_images = "image", 1
    config = VargptGenerationConfig(generation_mode="text", max_new_tokens=4)
    assert len(model.generate(PROMPT, return_dict_in_generate=True).output_images) == 1
    assert len(model.generate(PROMPT, generation_config=config)[0]) <= 8
    output = model.generate(PROMPT, generation_config=config, generation_mode="image", return_dict_in_generate=True)
    assert len(output.output_images) == 1


@pytest.mark.parametrize("mode", ["image", "text"])
def test_images_need_no_length_and_give_no_warning(model, mode, recwarn):
    output = model.generate(PROMPT, generation_mode=mode, do_sample=False)
    warned = [str(warning.message) for warning in recwarn if "max_length" in str(warning.message)]
    assert (len(warned) == 0) == (mode == "image")
    assert mode == "text" or output[0, -1] == END
    started = torch.tensor([[1, 5, START]])
    assert model.generate(started, generation_mode="image", do_sample=False)[0, -1] == END


def test_the_signature_names_what_there_is():
    parameters = inspect.signature(VargptForConditionalGeneration.generate).parameters
    own = {
        name for name in vars(VargptGenerationConfig()) if name.startswith(("output_image_", "generation_mode")) or name == "max_output_images"
    }
    for name in {*own, "generator", "output_image_streamer", "output_image_noise"}:
        assert name in parameters and f"{name}:" in inspect.getdoc(VargptForConditionalGeneration.generate), name
    stock = set(inspect.signature(super(VargptForConditionalGeneration, VargptForConditionalGeneration).generate).parameters)
    assert {"inputs", "generation_config", "kwargs"} <= stock & set(parameters)


def test_a_streamer_that_wants_no_pixels_costs_no_decoding(model):
    calls = []
    hook = model.model.image_tokenizer.decoder.register_forward_pre_hook(lambda module, args: calls.append(1))

    class Progress(VargptImageStreamer):
        wants_pixels = False

        def __init__(self):
            self.seen = []

        def put(self, images, rows, scale_index):
            self.seen.append((images, scale_index))

        def end(self):
            self.seen.append("end")

    progress = Progress()
    generate(model, generation_mode="image", output_image_streamer=progress)
    assert progress.seen == [(None, 0), (None, 1), (None, 2), "end"] and len(calls) == 1
    Progress.wants_pixels = True
    generate(model, generation_mode="image", output_image_streamer=Progress())
    hook.remove()
    assert len(calls) == 1 + 3 + 1
    progress = Progress()
    generate(model, generation_mode="text", output_image_streamer=progress)
    assert progress.seen == ["end"]
