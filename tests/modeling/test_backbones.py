"""Every backbone that is promised reads as the library's own model does, and draws as one forward over what it drew."""

import functools

import pytest
import torch
from backbone_configs import FAMILIES, IMAGE, backbone_config, reading_inputs
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, LogitsProcessor

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.modeling.visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION
from vargpt_hf.testing import tiny_config, tiny_model

PAD, BOS, EOS, START, DRAWN = 0, 1, 2, 61, 63
TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}
READERS = [name for name in FAMILIES if FAMILIES[name].num_placeholders]
RECURRENT = ["qwen3_5", "lfm2_vl"]
ONE_BY_ONE = [name for name in FAMILIES if name not in RECURRENT]
NUM_POSITIONS = 21

every_family = pytest.mark.parametrize("name", FAMILIES)


def fresh_model(name: str, **kwargs) -> VargptForConditionalGeneration:
    """A tiny model whose random weights make every input count: with those of a fresh model a wrong position would hardly show."""
    model = tiny_model(vlm_config=backbone_config(name), **kwargs)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in [*model.model.vlm.parameters(), *model.lm_head.parameters()]:
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.get_input_embeddings().weight.normal_()
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape) * (1.0 if model.config.tie_word_embeddings else 0.5))
    return model


model_of = functools.cache(fresh_model)


def library_model(model: VargptForConditionalGeneration):
    """The library's own model with a head, of the same weights."""
    reads = model.model.backbone.reads_images
    library = (AutoModelForImageTextToText if reads else AutoModelForCausalLM).from_config(model.config.vlm_config).eval()
    library.model.load_state_dict(model.model.vlm.state_dict())
    library.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    return library


def image(name: str) -> list[int]:
    """Placeholders of an image that is read."""
    return [IMAGE] * FAMILIES[name].num_placeholders


def batch(name: str, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows of tokens, padded on the left, with what the family's processor would deliver; each row reads an image of its own."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **reading_inputs(name, ids)}


def two_rows(name: str) -> dict[str, torch.Tensor]:
    return batch(name, [[BOS, 5, 6, *image(name), 7, 8, 9], [BOS, *image(name), 11, 12]])


def row_of(name: str, inputs: dict[str, torch.Tensor], row: int, skip: int = 0) -> dict[str, torch.Tensor]:
    """One row of a batch, without its first columns of padding."""
    num_rows = len(inputs["input_ids"])
    parts = {key: value.chunk(num_rows)[row] for key, value in inputs.items()}
    return {key: value[:, skip:] if key.endswith("_ids") or key == "attention_mask" else value for key, value in parts.items()}


def continued(name: str, inputs: dict[str, torch.Tensor], sequences: torch.LongTensor) -> dict[str, torch.Tensor]:
    """The inputs of rows that go on to `sequences`: what was generated is neither padding nor an image that is read."""
    new = sequences.shape[1] - inputs["input_ids"].shape[1]
    values = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": int(name == "paligemma")}
    longer = {key: torch.nn.functional.pad(inputs[key], (0, new), value=value) for key, value in values.items() if key in inputs}
    return {**inputs, **longer, "input_ids": sequences}


class Script(LogitsProcessor):
    """Forces tokens at some steps of a row, which it knows by the last token of its prompt; elsewhere no image starts and nothing ends."""

    def __init__(self, prompt_length: int, scripts: dict[int, dict[int, int]]):
        self.prompt_length = prompt_length
        self.scripts = scripts

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, [START, EOS]] = -torch.inf
        for row, tokens in enumerate(input_ids.tolist()):
            forced = self.scripts.get(tokens[self.prompt_length - 1], {}).get(len(tokens) - self.prompt_length)
            if forced is not None:
                scores[row] = -torch.inf
                scores[row, forced] = 0
        return scores


def draw(model: VargptForConditionalGeneration, inputs: dict, scripts: dict[int, dict[int, int]], **kwargs):
    """Greedy generation along scripts; returns the output, and the scores of codes of every scale pass."""
    passes = []
    hook = model.model.visual_decoder.register_forward_hook(lambda module, args, logits: passes.append(logits))
    script = Script(inputs["input_ids"].shape[1], scripts)
    kwargs = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, **kwargs}
    output = model.generate(**inputs, logits_processor=[script], **kwargs)
    hook.remove()
    return output, passes


# ---- reading


@torch.no_grad()
@every_family
def test_reads_as_the_librarys_own_model(name):
    model, inputs = model_of(name), two_rows(name)
    expected = library_model(model)(**inputs)
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[seen], expected.logits[seen], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", READERS)
def test_what_is_read_matters(name):
    """Else the tests above and below would show nothing of images."""
    model, inputs = model_of(name), two_rows(name)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0) + 1}
    assert (model(**inputs).logits - model(**other).logits)[:, -1].abs().max() > 0.05


@torch.no_grad()
@every_family
def test_generates_text_as_the_librarys_own_model(name):
    model, inputs = model_of(name), two_rows(name)
    settings = {"do_sample": False, "max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    expected = library_model(model).generate(**inputs, **settings, suppress_tokens=[IMAGE, 61, 62, 63])
    output = model.generate(**inputs, **settings, generation_mode="text")
    assert output.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", READERS)
def test_a_row_without_images_beside_one_that_reads(name):
    model, text = model_of(name), [BOS, 5, 6, 7, 8]
    inputs = batch(name, [[BOS, 5, 6, *image(name), 7, 8, 9], text])
    logits, expected = model(**inputs).logits, library_model(model)(**inputs).logits
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[seen], expected[seen], **TOLERANCE)
    types = {key: value[1:, -len(text) :] for key, value in inputs.items() if key == "token_type_ids"}
    torch.testing.assert_close(logits[1, -len(text) :], model(torch.tensor([text]), **types).logits[0], **TOLERANCE)


@pytest.mark.parametrize(("name", "expected"), [("llava", range(7)), ("paligemma", range(1, 8)), ("qwen3", range(7))])
def test_positions_count_tokens(name, expected):
    """Padding takes none. Rotary positions being relative, an offset shows in no logit, but it is the library's."""
    mask = torch.tensor([[0, 0] + [1] * 7])
    positions, after = model_of(name).model.backbone.positions(torch.full((1, 9), 5), mask)
    assert positions[0, 2:].tolist() == [*expected] and after.tolist() == [expected[-1] + 1]


def test_positions_after_an_image_go_on_from_its_larger_side():
    """A grid of 2 × 3 takes three positions of a row, in which it has six tokens."""
    inputs = batch("qwen2_vl", [[BOS, *image("qwen2_vl"), 7, 8]])
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    positions, after = model_of("qwen2_vl").model.backbone.positions(ids, mask, **inputs)
    assert positions[:, 0].tolist() == [[0, 1, 1, 1, 1, 1, 1, 4, 5], [0, 1, 1, 1, 2, 2, 2, 4, 5], [0, 1, 2, 3, 1, 2, 3, 4, 5]]
    assert after.tolist() == [6]


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere2"])
def test_logits_are_scaled_as_by_the_librarys_own_head(name):
    more = {"logits_scaling": 4.0} if name == "granite" else {"final_logit_softcapping": 3.0} if name == "gemma2" else {}
    model = tiny_model(vlm_config={**backbone_config("llama"), "model_type": name, **more})
    model.lm_head.weight.normal_()
    ids = torch.tensor([[BOS, 5, 6, 7]])
    torch.testing.assert_close(model(ids).logits, library_model(model)(ids).logits, **TOLERANCE)


# ---- drawing


@torch.no_grad()
@every_family
def test_what_is_drawn_is_what_one_forward_predicts(name):
    """A left-padded row that reads an image, writes, draws and writes on, token by token and scale by scale."""
    model = model_of(name)
    inputs = row_of(name, batch(name, [[BOS, 3, 4, 5, 6, *image(name), 7], [BOS, 5, *image(name), 10]]), 1)
    output, passes = draw(model, inputs, {10: {2: START, 6: EOS}}, output_logits=True)
    full = model(
        **continued(name, inputs, output.sequences),
        output_image_codes=output.output_image_codes,
        output_image_condition_ids=torch.tensor([GENERATE_CONDITION]),
    )
    assert output.output_image_codes.shape == (1, NUM_POSITIONS)
    assert full.output_image_logits.argmax(-1).squeeze(-1).tolist() == output.output_image_codes.tolist()
    torch.testing.assert_close(torch.cat(passes, dim=1), full.output_image_logits, **TOLERANCE)
    prompt = inputs["input_ids"].shape[1]
    after = output.sequences[0].tolist().index(62, prompt)
    text = [*range(prompt - 1, prompt + 2), *range(after, after + 3)]
    torch.testing.assert_close(torch.cat(output.logits), full.logits[0, text], **TOLERANCE)


# Sampling among the one likeliest.
TWO_OF_EACH = {"num_return_sequences": 2, "do_sample": True, "top_k": 1, "output_image_top_k": 1}
SCRIPTS = {10: {0: START, 4: START, 7: EOS}, 11: {1: START, 6: EOS}, 12: {3: START, 6: EOS}}


@torch.no_grad()
@every_family
def test_rows_do_not_depend_on_their_neighbors(name):
    """Rows of unequal length draw at different steps, one of them twice; who has ended takes no part in what others do."""
    model = model_of(name)
    rows = [[BOS, 5, *image(name), 10], [BOS, 4, 5, 6, *image(name), 7, 8, 9, 11], [BOS, *image(name), 12]]
    inputs = batch(name, rows)
    together, _ = draw(model, inputs, SCRIPTS)
    assert together.output_image_rows.tolist() == [0, 0, 1, 2]
    for row, tokens in enumerate(rows):
        skip = inputs["input_ids"].shape[1] - len(tokens)
        alone, _ = draw(model, row_of(name, inputs, row, skip), SCRIPTS)
        sequence = alone.sequences[0].tolist()
        assert together.sequences[row, skip:][: len(sequence)].tolist() == sequence
        codes = together.output_image_codes[together.output_image_rows == row]
        assert codes.tolist() == alone.output_image_codes.tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_guidance_by_a_prompt(name):
    """Both halves of every scale's scores are those of a forward over what was drawn: after all before it, and after the unconditional prompt.

    Every row draws two images; the unconditional prompt of the second one does not see the first one.
    """
    model, inputs = model_of(name), two_rows(name)
    script = {0: START, 2: START, 4: EOS}
    output, passes = draw(model, inputs, {9: script, 12: script}, output_image_guidance_type="prompt", output_image_guidance_ramp=False)
    halves = [torch.cat(part, dim=1) for part in zip(*(logits.chunk(2) for logits in passes))]
    conditional, unconditional = (torch.stack(half.split(NUM_POSITIONS, 1), 1).flatten(0, 1) for half in halves)
    codes = output.output_image_codes
    full = model(
        **continued(name, inputs, output.sequences), output_image_codes=codes, output_image_condition_ids=torch.full((4,), GENERATE_CONDITION)
    )
    torch.testing.assert_close(conditional, full.output_image_logits, **TOLERANCE)
    row = torch.tensor([[BOS, START, *[DRAWN] * NUM_POSITIONS]])
    alone = model(row.expand(4, -1), output_image_codes=codes, output_image_condition_ids=torch.full((4,), NULL_CONDITION))
    torch.testing.assert_close(unconditional, alone.output_image_logits, **TOLERANCE)
    assert (2.5 * conditional - 1.5 * unconditional).argmax(-1).squeeze(-1).tolist() == codes.tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma", "smolvlm", "qwen3"])
@pytest.mark.parametrize("more", [{"cache_implementation": "static"}, TWO_OF_EACH], ids=["static cache", "two of each"])
def test_other_ways_to_generate_the_same(name, more):
    model = model_of(name)
    inputs = batch(name, [[BOS, 5, *image(name), 10], [BOS, 4, 5, 6, *image(name), 7, 8, 9, 11]])
    expected, _ = draw(model, inputs, SCRIPTS)
    output, _ = draw(model, inputs, SCRIPTS, **more)
    copies = more.get("num_return_sequences", 1)
    assert output.sequences.tolist() == expected.sequences.repeat_interleave(copies, 0).tolist()
    by_rows = [expected.output_image_codes[expected.output_image_rows == row] for row in range(2) for _ in range(copies)]
    assert output.output_image_codes.tolist() == torch.cat(by_rows).tolist()


@torch.no_grad()
@every_family
def test_text_without_a_cache_is_the_same(name):
    model, inputs = model_of(name), two_rows(name)
    settings = {"do_sample": False, "max_new_tokens": 4, "generation_mode": "text"}
    assert model.generate(**inputs, **settings, use_cache=False).tolist() == model.generate(**inputs, **settings).tolist()


@torch.no_grad()
@every_family
def test_goes_on_from_a_cache(name):
    """A drawing and its prompt stay in the cache; what follows them is as in one generation from all of it."""
    model = model_of(name)
    inputs = row_of(name, batch(name, [[BOS, 3, 4, 5, 6, *image(name), 7], [BOS, 5, *image(name), 10]]), 1)
    first, _ = draw(model, inputs, {10: {1: START, 4: EOS}})
    more = continued(name, inputs, torch.cat([first.sequences, torch.tensor([[8, 9]])], dim=1))
    settings = {"do_sample": False, "max_new_tokens": 4, "generation_mode": "text"}
    expected = model.generate(**more, **settings, output_image_codes=first.output_image_codes)
    held = {key: value for key, value in more.items() if not key.startswith("pixel_")}
    assert model.generate(**held, **settings, past_key_values=first.past_key_values).tolist() == expected.tolist()


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_cannot_wait_beside_unconditional_rows(name):
    with pytest.raises(ValueError, match="fold every column into a state"):
        model_of(name).generate(**two_rows(name), output_image_guidance_type="prompt")


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral3", "gemma3"])
def test_rows_do_not_wait_beyond_a_window(name):
    """Columns in which a row waits would push its own tokens out of a window: a batch gives what its rows give alone, or says why not."""
    fields = backbone_config(name)
    fields["text_config"]["sliding_window"] = 8
    model = tiny_model(vlm_config=fields)
    torch.manual_seed(2)
    for parameter in model.model.vlm.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    rows = [[BOS, *range(3, 9), 9, 10], [BOS, *range(20, 26), 11, 12]]

    def inputs(rows):
        return {name: value for name, value in batch("llama", rows).items() if name in ("input_ids", "attention_mask")}

    scripts = {10: {1: START, 4: EOS}, 12: {6: START, 8: EOS}}
    together, _ = draw(model, inputs(rows), scripts)
    for row, tokens in enumerate(rows):
        alone, _ = draw(model, inputs([tokens]), scripts)
        assert torch.equal(together.output_image_codes[together.output_image_rows == row], alone.output_image_codes)
    with pytest.raises(ValueError, match="layers that look back over 8 columns alone, and text and images take up to"):
        draw(model, inputs(rows), scripts, output_image_guidance_type="prompt")
    at_once, _ = draw(model, inputs(rows), {}, output_image_guidance_type="prompt", generation_mode="image")
    assert len(at_once.output_image_codes) == 2


# ---- saving and training


@torch.no_grad()
@every_family
def test_saved_and_loaded(name, tmp_path):
    model, inputs = model_of(name), two_rows(name)
    model.save_pretrained(tmp_path)
    loaded = VargptForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == model.config.tie_word_embeddings


@pytest.mark.parametrize("of_text", [True, False])
@pytest.mark.parametrize("of_vlm", [True, False])
def test_head_is_tied_as_the_librarys_own(of_vlm, of_text):
    """The two fields disagree in several families."""
    config = backbone_config("llava")
    config = {**config, "tie_word_embeddings": of_vlm, "text_config": {**config["text_config"], "tie_word_embeddings": of_text}}
    model = tiny_model(vlm_config=config)
    library = AutoModelForImageTextToText.from_config(model.config.vlm_config)
    tied = library.get_output_embeddings().weight is library.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def gradients(model: VargptForConditionalGeneration, name: str) -> dict[str, torch.Tensor]:
    """Of a training step with two rows that read an image each and draw one each."""
    inputs = two_rows(name)
    sequences = torch.cat([inputs["input_ids"], torch.tensor([[START, *[DRAWN] * NUM_POSITIONS, 62, EOS]] * 2)], dim=1)
    inputs = continued(name, inputs, sequences)
    codes = torch.arange(2 * NUM_POSITIONS).view(2, -1) % 24
    labels = sequences.masked_fill(inputs["attention_mask"] == 0, -100)
    conditions = torch.full((2,), GENERATE_CONDITION)
    model.train()
    model(**inputs, output_image_codes=codes, labels=labels, output_image_condition_ids=conditions).loss.backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


@every_family
def test_gradients_reach_what_draws_and_what_reads(name):
    found = gradients(model := fresh_model(name), name)
    drawing = ["model.projector_to_llm.fc1.weight", "model.projector_to_decoder.fc1.weight", "lm_head.weight"]
    patches = [key for key in found if "patch_" in key and key.endswith("weight")]
    assert bool(patches) == (name in READERS)
    embeddings = [key for key in found if key.startswith("model.visual_decoder.")]
    for key in [*drawing[: 2 if model.config.tie_word_embeddings else 3], *patches, *embeddings[:1]]:
        assert found[key].abs().max() > 0, key
    checkpointed = fresh_model(name)
    checkpointed.activation_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.model.vlm.modules())
    again = gradients(checkpointed, name)
    assert again.keys() == found.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(again[key], gradient, msg=lambda text, key=key: f"{key}: {text}", **TOLERANCE)


# ---- what cannot be read, or cannot read here


@pytest.mark.parametrize("name", READERS)
def test_images_without_what_belongs_to_them(name):
    model, inputs = model_of(name), two_rows(name)
    beside = {"image_sizes", "image_grid_thw", "spatial_shapes", "pixel_attention_mask"} & inputs.keys()
    for lacking in beside:
        incomplete = {key: value for key, value in inputs.items() if key != lacking}
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=f"needs `{lacking}` beside `pixel_values`"):
                call(**incomplete)
    first = {
        key: value if key.endswith("type_ids") else value[: len(value) // 2]
        for key, value in inputs.items()
        if "mask" not in key or key in beside
    }
    half = {**inputs, **first, "input_ids": inputs["input_ids"]}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="placeholders|do not match"):
            call(**half)
    nothing = {key: value[:0] for key, value in inputs.items() if key == "pixel_values" or key in beside}
    if beside:
        with pytest.raises(ValueError, match="of no images"):
            model(torch.tensor([[BOS, 5]]), **nothing)
    else:
        torch.testing.assert_close(model(torch.tensor([[BOS, 5]]), **nothing).logits, model(torch.tensor([[BOS, 5]])).logits)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_a_language_model_alone_reads_no_images(name):
    for call in (model_of(name), model_of(name).generate):
        with pytest.raises(ValueError, match="reads no images: leave out pixel_values"):
            call(torch.tensor([[BOS, 5]]), pixel_values=torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("name", "types", "wanted"), [("qwen2_vl", "mm_token_type_ids", 0), ("gemma3", "token_type_ids", 0), ("paligemma", "token_type_ids", 1)]
)
def test_drawn_images_must_be_causal(name, types, wanted):
    """Of another type, their scales would see those that follow."""
    model, inputs = model_of(name), two_rows(name)
    sequences = torch.cat([inputs["input_ids"], torch.tensor([[START, *[DRAWN] * NUM_POSITIONS]] * 2)], dim=1)
    inputs = continued(name, inputs, sequences)
    inputs[types][:, -3:] = 1 - wanted
    if name == "qwen2_vl":
        inputs["position_ids"] = torch.arange(sequences.shape[1]).expand(2, -1)
    with pytest.raises(ValueError, match=f"other `{types}` than {wanted}"):
        model(**inputs, output_image_codes=torch.zeros(2, NUM_POSITIONS, dtype=torch.long))


def test_positions_after_a_cache_with_images_must_be_known():
    """Of a model that counts positions by grids: a silent guess would be wrong."""
    model, inputs = model_of("qwen2_vl"), two_rows("qwen2_vl")
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="give `position_ids`"):
        model(torch.tensor([[5], [6]]), past_key_values=cache)
    with pytest.raises(ValueError, match="give the whole sequence"):
        model.generate(torch.tensor([[5], [6]]), attention_mask=torch.ones(2, 14), past_key_values=cache, max_new_tokens=1)
    with pytest.raises(ValueError, match="give both"):
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        model(inputs_embeds=embeds, **inputs)


def refused(model_type: str, **kwargs) -> str:
    """What the construction of a model with this backbone says."""
    with torch.device("meta"), pytest.raises(ValueError) as raised:
        config = AutoConfig.for_model(model_type, **kwargs)
        VargptForConditionalGeneration(tiny_config(vlm_config=config))
    return str(raised.value)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mllama", "cross-attention"),
        ("gemma3n", "every token id"),
        ("gemma4", "every token id"),
        ("llama4", "final norm"),
        ("bart", "it has an encoder"),
        ("t5gemma2", "it has an encoder"),
        ("florence2", "it has an encoder"),
        ("clip", "no language model"),
        ("siglip", "no language model"),
        ("vit", "no language model"),
        ("blip-2", "it takes no"),
        ("bert", "causal"),
        ("bloom", "position_ids"),
        ("mamba", "position_ids"),
    ],
)
def test_refused_with_the_reason(model_type, reason):
    message = refused(model_type)
    assert f"{model_type!r} model cannot be the reading side" in message and reason in message
