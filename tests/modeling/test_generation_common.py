"""What every generative model of Transformers is held to: caches, padding, dict outputs, embeddings as prompts, continuations.

How images are drawn, and that rows do not depend on their neighbors, is in `test_generation.py`.
"""

import pytest
import torch
from transformers import DynamicCache

from vargpt_hf.testing import drawing_model, tiny_config, tiny_model

IMAGE, START, END, PLACEHOLDER, L = 60, 61, 62, 63, 21
READS = [1, *[IMAGE] * 4, 5, 6]
HOLDS = [1, 8, START, *[PLACEHOLDER] * L, END, 9, 10]
MODES = ["text", "auto"]
VOCABULARY, LAYERS, HEADS, WIDTH = 64, 2, 4, 32


@pytest.fixture(scope="module")
def model():
    return drawing_model()


def prompt(*rows: list[int]) -> dict[str, torch.Tensor]:
    """Rows padded on the left, with the images that they hold."""
    longest = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }
    generator = torch.Generator().manual_seed(5)
    read, held = sum(row.count(IMAGE) for row in rows) // 4, sum(row.count(PLACEHOLDER) for row in rows) // L
    if read:
        inputs["pixel_values"] = torch.randn(read, 3, 16, 16, generator=generator)
    if held:
        inputs["output_image_codes"] = torch.randint(0, 24, (held, L), generator=generator)
    return inputs


def generate(model, inputs, seed=0, **settings):
    torch.manual_seed(seed)
    defaults = {"do_sample": False, "max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, "eos_token_id": None}
    return model.generate(**inputs, **{**defaults, **settings})


def assert_same(one, other, **tolerances):
    """The same tokens and images, from the same scores."""
    assert torch.equal(one.sequences, other.sequences)
    assert torch.equal(one.output_image_codes, other.output_image_codes)
    assert len(one.scores) == len(other.scores)
    for ours, theirs in zip(one.scores, other.scores):
        torch.testing.assert_close(ours, theirs, **{"atol": 1e-4, "rtol": 1e-4, **tolerances})


@pytest.mark.parametrize("do_sample", [False, True])
def test_without_a_cache_text_is_the_same(model, do_sample):
    """Rows that read an image, hold a drawn one, or neither; without a cache all of them enter anew at every step."""
    inputs = prompt(READS, HOLDS, [1, 20, 21])
    settings = {"do_sample": do_sample, "generation_mode": "text"}
    assert_same(generate(model, inputs, **settings), generate(model, inputs, **settings, use_cache=False))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_static_cache_changes_nothing(model, mode, do_sample):
    inputs = prompt(READS, HOLDS, [1, 20, 21])
    settings = {"do_sample": do_sample, "generation_mode": mode}
    assert_same(generate(model, inputs, **settings), generate(model, inputs, **settings, cache_implementation="static"))


@pytest.mark.parametrize("mode", MODES)
def test_left_padding_changes_no_scores(model, mode):
    """The same row, alone and with three columns of padding before it."""
    inputs = prompt(READS)
    padded = {**inputs, **{name: torch.nn.functional.pad(inputs[name], (3, 0)) for name in ("input_ids", "attention_mask")}}
    plain, moved = generate(model, inputs, generation_mode=mode), generate(model, padded, generation_mode=mode)
    assert torch.equal(plain.sequences, moved.sequences[:, 3:])
    for ours, theirs in zip(plain.scores, moved.scores):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_dict_output(model, mode):
    """Scores and raw logits of every step, the tokens that they name, and a cache that holds all but the last token."""
    inputs = prompt(READS, [1, 20])
    output = generate(model, inputs, generation_mode=mode, output_logits=True, max_output_images=0)
    assert output.sequences.shape == (2, 15)
    assert len(output.scores) == len(output.logits) == 8
    for step, (scores, logits) in enumerate(zip(output.scores, output.logits)):
        assert scores.shape == logits.shape == (2, VOCABULARY)
        assert torch.equal(scores.argmax(-1), output.sequences[:, 7 + step])
        assert torch.isinf(scores[:, [IMAGE, END, PLACEHOLDER]]).all()  # never emitted
        assert torch.isfinite(logits).all()
    assert isinstance(output.past_key_values, DynamicCache)
    assert output.past_key_values.get_seq_length() == 14
    assert output.hidden_states is None and output.attentions is None


@pytest.mark.parametrize("mode", MODES)
def test_scores_are_those_of_one_forward_pass(model, mode):
    inputs = prompt([1, 9, 10, 11])
    output = generate(model, inputs, generation_mode=mode, output_logits=True, max_output_images=0)
    expected = model(output.sequences).logits[0, 3:-1]
    torch.testing.assert_close(torch.cat(output.logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_attentions_and_hidden_states_of_every_step(mode, cache_implementation):
    """The first step has the whole prompt's, later ones those of one token over all that came."""
    model = tiny_model()
    model.set_attn_implementation("eager")
    settings = {"generation_mode": mode, "max_output_images": 0, "max_new_tokens": 4, "cache_implementation": cache_implementation}
    output = generate(model, prompt(READS, [1, 20]), output_attentions=True, output_hidden_states=True, **settings)
    assert len(output.attentions) == len(output.hidden_states) == 4
    columns = output.attentions[0][0].shape[-1]
    for step, (attentions, hidden_states) in enumerate(zip(output.attentions, output.hidden_states)):
        tokens = 7 if step == 0 else 1
        seen = columns if cache_implementation else 7 + step
        assert [tuple(layer.shape) for layer in attentions] == [(2, HEADS, tokens, seen)] * LAYERS
        assert [tuple(layer.shape) for layer in hidden_states] == [(2, tokens, WIDTH)] * (LAYERS + 1)
        torch.testing.assert_close(attentions[0][0].sum(-1), torch.ones(HEADS, tokens))
        logits = model.lm_head(hidden_states[-1][:, -1])
        allowed = torch.isfinite(output.scores[step])
        torch.testing.assert_close(logits[allowed], output.scores[step][allowed], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("with_ids", [False, True])
def test_embeddings_as_the_prompt(model, mode, with_ids):
    """Embedded prompts give the same, with what they read; given alone, what is returned is what was generated."""
    inputs = prompt(READS, HOLDS)
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    if not with_ids:
        del embedded["input_ids"]
    settings = {"generation_mode": mode, "max_output_images": 0, "do_sample": True, "num_return_sequences": 2}
    expected, output = (generate(model, given, **settings) for given in (inputs, embedded))
    assert torch.equal(expected.sequences if with_ids else expected.sequences[:, len(HOLDS) :], output.sequences)
    for ours, theirs in zip(output.scores, expected.scores):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_generation_goes_on_from_a_past(model, mode, do_sample):
    """Stopped after some tokens and taken up again from the cache, generation ends where it would have ended at once."""
    inputs = prompt(READS, [1, 20, 21])
    settings = {"generation_mode": mode, "do_sample": do_sample, "top_k": 1, "max_output_images": 0}
    at_once = generate(model, inputs, max_new_tokens=8, **settings)
    first = generate(model, inputs, max_new_tokens=3, **settings)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    past = {"input_ids": first.sequences, "attention_mask": mask, "past_key_values": first.past_key_values}
    then = generate(model, past, max_new_tokens=5, **settings)
    assert torch.equal(then.sequences, at_once.sequences)
    for ours, theirs in zip([*first.scores, *then.scores], at_once.scores):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_generation_goes_on_from_a_past_with_a_drawing(model):
    """The cache that a drawing left behind stands for the drawing: its codes need not be given again."""
    inputs = prompt([1, 5, 6, START])
    drawn = generate(model, inputs, max_new_tokens=1, max_output_images=1)
    assert drawn.sequences[0, -1] == END
    anew = {"input_ids": drawn.sequences, "attention_mask": torch.ones_like(drawn.sequences)}
    past = {**anew, "past_key_values": drawn.past_key_values}
    expected, output = (
        generate(model, given, max_output_images=0) for given in ({**anew, "output_image_codes": drawn.output_image_codes}, past)
    )
    assert_same(output, expected)


def test_a_past_without_the_prompt_before_it(model):
    """`forward` step by step over a cache gives what it gives at once."""
    ids = torch.tensor([[1, 7, 8, 9, 10, 11]])
    whole = model(ids).logits
    start = model(ids[:, :3], use_cache=True)
    rest = model(ids[:, 3:], past_key_values=start.past_key_values)
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], dim=1), whole, atol=1e-5, rtol=1e-5)


def test_sizes_of_the_micro_model():
    text = tiny_config().text_config
    sizes = (text.vocab_size, text.num_hidden_layers, text.num_attention_heads, text.hidden_size)
    assert sizes == (VOCABULARY, LAYERS, HEADS, WIDTH)
