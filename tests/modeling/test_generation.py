"""`generate`: text and images in any order, in batches, through Transformers' own options."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from vargpt_hf import VargptGenerationConfig, VargptImageStreamer
from vargpt_hf.testing import drawing_model

START, END, PLACEHOLDER, L = 61, 62, 63, 21
PROMPTS = [[1, 5, 6, 7], [1, 9, 10, 11, 12, 13], [1, 20], [1, 33, 34, START], [1, 60, 60, 60, 60, 8]]
SETTINGS = {
    "do_sample": False,
    "max_new_tokens": 12,
    "output_image_guidance_type": "none",
    "output_image_unconditional_ids": [1, 3, 4, 5, 6, 7, 8],
    "output_image_guidance_scale": 2.0,
}


@pytest.fixture(scope="module")
def model():
    return drawing_model()


def generate(model, prompts, **settings):
    """Prompts padded on the left; returns their length and the output."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    if any(60 in prompt for prompt in prompts):
        settings["pixel_values"] = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    output = model.generate(input_ids=ids, attention_mask=mask, **{**SETTINGS, "return_dict_in_generate": True, **settings})
    return longest, output


def generated(output, prompt_length, row):
    """What a row generated, without the padding behind it."""
    ids = output.sequences[row, prompt_length:].tolist()
    while ids and ids[-1] == 0:
        ids.pop()
    return ids


def assert_rows_equal_single_calls(model, prompts=PROMPTS, **settings):
    """A batch gives each row what a call of its own gives; returns the batch's output."""
    length, together = generate(model, prompts, **settings)
    for row, prompt in enumerate(prompts):
        own_length, alone = generate(model, [prompt], **settings)
        assert generated(together, length, row) == generated(alone, own_length, 0)
        own = together.output_image_rows == row
        assert torch.equal(together.output_image_codes[own], alone.output_image_codes)
        assert (together.output_image_positions[own] - length).tolist() == (alone.output_image_positions - own_length).tolist()
        torch.testing.assert_close(together.output_images[own], alone.output_images)
    return together


@pytest.mark.parametrize("cache_implementation", [None, "static"])
@pytest.mark.parametrize("mode", ["auto", "text", "image", "text_image"])
@pytest.mark.parametrize("guidance", ["none", "prompt", "noise"])
def test_a_row_does_not_depend_on_its_neighbours(model, guidance, mode, cache_implementation):
    output = assert_rows_equal_single_calls(
        model, output_image_guidance_type=guidance, generation_mode=mode, cache_implementation=cache_implementation
    )
    assert len(output.output_images) == {"auto": 2, "text": 0, "image": 5, "text_image": 5}[mode]


def test_images_stand_in_the_sequences(model):
    length, output = generate(model, PROMPTS)
    for row, position in zip(output.output_image_rows.tolist(), output.output_image_positions.tolist()):
        ids = output.sequences[row].tolist()
        assert ids[position] == START
        assert ids[position + 1 : position + 1 + L] == [PLACEHOLDER] * L
        assert ids[position + 1 + L] == END
    assert torch.equal(output.output_images, model.model.image_tokenizer.decode(output.output_image_codes))


def test_what_was_generated_can_be_fed_back(model):
    """Teacher forcing on a result predicts its own codes and tokens: placeholders, positions and caches agree."""
    length, output = generate(model, PROMPTS[:1])
    assert len(output.output_image_codes) == 1
    again = model(input_ids=output.sequences, output_image_codes=output.output_image_codes)
    assert torch.equal(again.output_image_logits.argmax(-1)[..., 0], output.output_image_codes)
    ids, predicted = output.sequences[0, 1:], again.logits[0, :-1].argmax(-1)
    chosen = (ids != PLACEHOLDER) & (ids != END)
    assert torch.equal(predicted[chosen][length - 1 :], ids[chosen][length - 1 :])


def test_a_drawn_image_in_the_prompt(model):
    """The next turn starts from images of the last one, given as codes or repeated for several samples."""
    _, first = generate(model, [[1, 5, START]], generation_mode="image")
    prompt = [*first.sequences[0].tolist(), 9, 10]
    _, output = generate(model, [prompt], output_image_codes=first.output_image_codes, max_new_tokens=3)
    _, several = generate(
        model,
        [prompt, prompt],
        output_image_codes=first.output_image_codes.repeat(2, 1),
        max_new_tokens=3,
        num_return_sequences=2,
        do_sample=True,
        top_k=1,
    )
    assert all(several.sequences[row].tolist() == output.sequences[0].tolist() for row in range(4))


def force(model, *plans):
    """A logits processor that makes each row emit its plan of tokens, then end; padding in the place of an image that it may not draw."""

    class Plan(LogitsProcessor):
        def __call__(self, input_ids, scores):
            forced = torch.full_like(scores, -1e4)
            for row, plan in enumerate(plans):
                step = input_ids.shape[1] - 2
                forced[row, plan[step] if 0 <= step < len(plan) else 2] = 0
            return forced

    return LogitsProcessorList([Plan()])


def test_text_one_image_two_images_in_one_batch(model):
    plans = [[5, 6, 7, 8], [START, END, 9], [10, START, END, 11, 12, START, END, 13], []]
    plans[3] = [14, 15]
    length, output = generate(model, [[1, 5]] * 4, logits_processor=force(model, *plans), max_new_tokens=20)
    for row, plan in enumerate(plans):
        ids = [token for token in generated(output, length, row) if token != PLACEHOLDER]
        assert ids == [*plan, 2]
    assert output.output_image_rows.tolist() == [1, 2, 2]
    assert output.sequences[2].tolist().count(PLACEHOLDER) == 2 * L


def test_images_take_one_call_for_each_scale(model):
    calls = []
    hook = model.model.vlm.language_model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(1), with_kwargs=True)
    heads = model.lm_head.register_forward_pre_hook(lambda module, args: calls.append(0))
    generate(model, [[1, 5, 6]], generation_mode="image")
    hook.remove()
    heads.remove()
    assert calls == [1, 0, 1, 1, 1]  # the prompt and its head, then three scales


def test_max_new_tokens_never_cuts_a_image(model):
    for budget in range(1, 6):
        length, output = generate(model, [[1, 5]], logits_processor=force(model, [8, START, END, 9, 9, 9]), max_new_tokens=budget)
        ids = [token for token in generated(output, length, 0) if token != PLACEHOLDER]
        assert len(ids) <= budget
        assert ids.count(START) == ids.count(END) == len(output.output_images)
        assert (len(output.output_images) == 1) == (budget >= 3)


def test_max_images(model):
    plan = [START, END, START, END, START, END]
    for limit in (0, 1, 2):
        _, output = generate(model, [[1, 5]], logits_processor=force(model, plan), max_new_tokens=8, max_output_images=limit)
        assert len(output.output_images) == limit


def test_sampling_is_reproducible(model):
    def draw(**settings):
        return generate(model, PROMPTS[:2], do_sample=True, generation_mode="image", **settings)[1].output_image_codes

    first = draw(generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, draw(generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, draw(generator=torch.Generator().manual_seed(2)))
    torch.manual_seed(5)
    by_global_seed = draw()
    torch.manual_seed(5)
    assert torch.equal(by_global_seed, draw())


def test_a_generator_for_each_row_makes_samples_independent(model):
    def generators(rows):
        return [torch.Generator().manual_seed(row) for row in rows]

    length, together = generate(model, PROMPTS, do_sample=True, generator=generators(range(5)), output_image_guidance_type="noise")
    assert len(together.output_images) > 0
    for row, prompt in enumerate(PROMPTS):
        own_length, alone = generate(model, [prompt], do_sample=True, generator=generators([row]), output_image_guidance_type="noise")
        assert generated(together, length, row) == generated(alone, own_length, 0)
        assert torch.equal(together.output_image_codes[together.output_image_rows == row], alone.output_image_codes)
    _, of_tuple = generate(model, PROMPTS, do_sample=True, generator=tuple(generators(range(5))), output_image_guidance_type="noise")
    assert torch.equal(of_tuple.sequences, together.sequences) and torch.equal(of_tuple.output_image_codes, together.output_image_codes)
    with pytest.raises(ValueError, match="2 generators for 5 rows"):
        generate(model, PROMPTS, generator=tuple(generators(range(2))))


def test_text_only_equals_transformers_own_loop(model):
    """Where nothing draws, our loop gives what Transformers' loop gives, sampled and not, with its scores."""
    for do_sample in (False, True):
        results = []
        for mode in ("text", "auto"):
            torch.manual_seed(3)
            settings = {"do_sample": do_sample, "generation_mode": mode, "output_scores": True, "suppress_tokens": [START]}
            results.append(generate(model, PROMPTS[:3], **settings)[1])
        assert torch.equal(results[0].sequences, results[1].sequences)
        for ours, theirs in zip(results[1].scores, results[0].scores):
            torch.testing.assert_close(ours, theirs)


def test_plain_tensor(model):
    _, output = generate(model, PROMPTS)
    _, sequences = generate(model, PROMPTS, return_dict_in_generate=False)
    assert torch.equal(sequences, output.sequences)


def test_stopping_criteria_and_eos(model):
    class StopAtNine(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] == 9

    plan = [START, END, 9, 10]
    length, output = generate(model, [[1, 5]], logits_processor=force(model, plan), stopping_criteria=StoppingCriteriaList([StopAtNine()]))
    assert [token for token in generated(output, length, 0) if token != PLACEHOLDER] == [START, END, 9]


class Notes(VargptImageStreamer):
    """Notes what an image streamer is given."""

    def __init__(self):
        self.seen, self.ended = [], 0

    def put(self, images, rows, scale_index):
        self.seen.append((images, rows.tolist(), scale_index))

    def end(self):
        self.ended += 1


def test_image_streamer(model):
    notes = Notes()
    _, output = generate(model, [PROMPTS[2], PROMPTS[4]], generation_mode="image", output_image_streamer=notes)
    assert [(rows, scale) for _, rows, scale in notes.seen] == [([0, 1], 0), ([0, 1], 1), ([0, 1], 2)]
    assert notes.ended == 1
    torch.testing.assert_close(notes.seen[-1][0], output.output_images)
    torch.testing.assert_close(notes.seen[0][0], model.model.image_tokenizer.decode(output.output_image_codes, num_scales=1))


def test_text_streamer(model):
    class Tokens:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    tokens = Tokens()
    generate(model, [[1, 5]], logits_processor=force(model, [8, START, END, 9]), streamer=tokens)
    assert tokens.tokens == [1, 5, 8, START, END, 9, 2, "end"]
    tokens = Tokens()
    _, output = generate(model, [PROMPTS[4]], streamer=tokens)
    assert tokens.tokens == [*(token for token in output.sequences[0].tolist() if token != PLACEHOLDER), "end"]


def test_guidance_changes_the_image_and_strength_zero_does_not(model):
    def codes(**settings):
        return generate(model, PROMPTS[:1], generation_mode="image", **settings)[1].output_image_codes

    plain = codes(output_image_guidance_type="none")
    assert torch.equal(plain, codes(output_image_guidance_type="prompt", output_image_guidance_scale=0.0))
    strong = codes(output_image_guidance_type="prompt", output_image_guidance_scale=8.0, output_image_guidance_ramp=False)
    assert not torch.equal(plain, strong)


def test_a_strength_or_a_negative_prompt_alone_means_guidance_by_prompt(model, monkeypatch):
    """Of a call, unless it says a type; a strength, unless the model is saved with one, too."""

    def codes(**settings):
        unset = dict.fromkeys(name for name in SETTINGS if name.startswith("output_image_"))
        return generate(model, PROMPTS[:1], generation_mode="image", output_image_guidance_ramp=False, **unset | settings)[1].output_image_codes

    plain, kinds = codes(), {name: codes(output_image_guidance_type=name, output_image_guidance_scale=8.0) for name in ("prompt", "noise")}
    assert torch.equal(codes(output_image_guidance_scale=8.0), kinds["prompt"]) and not torch.equal(plain, kinds["prompt"])
    assert torch.equal(codes(output_image_guidance_type="none", output_image_guidance_scale=8.0), plain)
    negative = {"output_image_unconditional_ids": [1, 7]}
    assert torch.equal(codes(**negative), codes(output_image_guidance_type="prompt", **negative)) and not torch.equal(codes(**negative), plain)
    monkeypatch.setattr(model.generation_config, "output_image_guidance_scale", 8.0, raising=False)
    assert torch.equal(codes(), plain)
    monkeypatch.setattr(model.generation_config, "output_image_guidance_type", "noise", raising=False)
    assert torch.equal(codes(output_image_guidance_scale=8.0), kinds["noise"]) and not torch.equal(kinds["noise"], kinds["prompt"])
    assert torch.equal(codes(**negative), codes(output_image_guidance_type="prompt", **negative))


def test_a_strength_in_a_configuration_of_the_call_counts_as_given(model):
    """Unless it is what the model is saved with, as in the copy that pipelines pass."""

    def codes(**settings):
        ids = torch.tensor([PROMPTS[0]])
        return model.generate(ids, return_dict_in_generate=True, **settings).output_image_codes

    common = {"generation_mode": "image", "do_sample": False, "output_image_guidance_ramp": False}
    strong = codes(**common, output_image_guidance_scale=8.0)
    assert torch.equal(codes(generation_config=VargptGenerationConfig(**common, output_image_guidance_scale=8.0)), strong)
    assert not torch.equal(codes(generation_config=VargptGenerationConfig(**common)), strong)


def test_text_alone_draws_and_guides_nothing(model):
    """With a generator our own loop writes texts, too."""
    prompt, settings = torch.tensor([PROMPTS[3]]), {"generation_mode": "text", "max_new_tokens": 4, "do_sample": False}
    settings |= {"output_image_guidance_type": "prompt", "return_dict_in_generate": True}
    expected = model.generate(prompt, **settings).sequences
    passes = []
    with model.model.visual_decoder.register_forward_hook(lambda *_: passes.append(1)):
        output = model.generate(prompt, **settings, generator=torch.Generator())
        embeds = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **settings, generator=torch.Generator())
    assert torch.equal(output.sequences, expected) and not passes and not len(output.output_image_codes)
    assert torch.equal(embeds.sequences, expected[:, prompt.shape[1] :])


@pytest.mark.parametrize("mode", ["text", "auto"])
def test_without_a_cache_there_is_no_generator(model, mode):
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(torch.tensor([PROMPTS[0]]), generation_mode=mode, max_new_tokens=4, use_cache=False, generator=torch.Generator())


def test_settings_come_from_the_generation_config(model, tmp_path):
    config = VargptGenerationConfig(max_new_tokens=2, generation_mode="image", output_image_top_k=3)
    config.save_pretrained(tmp_path)
    loaded = VargptGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.generation_mode, loaded.output_image_top_k, loaded.output_image_top_p) == ("image", 3, None)
    output = model.generate(torch.tensor([[1, 5]]), generation_config=loaded)
    assert output[0].tolist() == [1, 5, START, *[PLACEHOLDER] * L, END]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "cannot be drawn under beam_search: it reorders"),
        ({"use_cache": False}, "cannot be drawn with `use_cache=False`"),
        ({"generation_mode": "sketch"}, "`generation_mode` must be one of"),
        ({"output_image_guidance_type": "cfg"}, "`output_image_guidance_type` must be one of"),
        ({"output_image_temperature": 0.0, "do_sample": True}, "`output_image_temperature` must be positive"),
        ({"output_image_top_p": 1.5}, r"`output_image_top_p` must be in \[0, 1\]"),
        ({"max_output_images": -1}, "`max_output_images` must not be negative"),
        ({"generation_mode": "image", "max_new_tokens": 1}, "leaves 1 tokens, but an image takes 2"),
        ({"generation_mode": "image", "max_output_images": 0}, "`max_output_images=0` forbids it"),
        ({"generator": [torch.Generator()]}, "1 generators for 2 rows"),
    ],
)
def test_what_cannot_work_says_why(model, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPTS[:2], **settings)


def test_beams_work_for_text(model):
    prompts = [PROMPTS[2], PROMPTS[4]]  # the second one reads an image, the first is padded beside it
    _, output = generate(model, prompts, num_beams=2, generation_mode="text", max_new_tokens=4, return_dict_in_generate=False)
    assert output.shape == (2, 10)
    _, alone = generate(model, prompts[1:], num_beams=2, generation_mode="text", max_new_tokens=4, return_dict_in_generate=False)
    assert torch.equal(output[1], alone[0])
    assert START not in output[:, 6:]
