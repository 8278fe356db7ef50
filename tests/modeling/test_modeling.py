"""The model as a whole: mixtures of rows, losses, placeholders, saving."""

import pytest
import torch
from golden_v11_helpers import golden_v11_config
from transformers import PreTrainedModel

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.modeling import image_tokenizer_vargpt
from vargpt_hf.modeling.losses_vargpt import IGNORE_INDEX
from vargpt_hf.modeling.visual_decoder_vargpt import block_causal_mask
from vargpt_hf.testing import tiny_config, tiny_model

PAD, IMAGE, START, END, PLACEHOLDER = 0, 60, 61, 62, 63
L = 21
READ, DRAWN = [IMAGE] * 4, [START, *[PLACEHOLDER] * L, END]
ROWS = {
    "text": [1, 5, 6, 7, 2],
    "reads": [1, *READ, 5, 6, 2],
    "draws": [1, 8, 9, *DRAWN, 2],
    "both": [1, *READ, 10, *DRAWN, 11, *READ, *DRAWN, 2],
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def images(row: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels to read and codes to draw, as many as the row has."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(row.count(IMAGE) // 4, 3, 16, 16, generator=generator)
    return read, torch.randint(0, 24, (row.count(START), L), generator=generator)


def batch(names: list[str], side: str = "right") -> dict[str, torch.Tensor]:
    """Model inputs of several rows, padded on one side, labels everywhere."""
    longest = max(len(ROWS[name]) for name in names)
    ids, masks, read, codes = [], [], [], []
    for name in names:
        row, padding = ROWS[name], [PAD] * (longest - len(ROWS[name]))
        ids.append(row + padding if side == "right" else padding + row)
        masks.append([1] * len(row) + padding if side == "right" else padding + [1] * len(row))
        more_read, more_codes = images(row, seed=len(name))
        read.append(more_read)
        codes.append(more_codes)
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    if len(torch.cat(read)):
        inputs["pixel_values"] = torch.cat(read)
    if len(torch.cat(codes)):
        inputs["output_image_codes"] = torch.cat(codes)
    if side == "left":
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return inputs


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_does_not_depend_on_its_batch(model, side):
    together = model(**batch(list(ROWS), side))
    mask, drawn = batch(list(ROWS), side)["attention_mask"].bool(), 0
    for index, name in enumerate(ROWS):
        alone = model(**batch([name]))
        torch.testing.assert_close(together.logits[index][mask[index]], alone.logits[0], atol=1e-5, rtol=1e-4)
        count = ROWS[name].count(START)
        if count:
            torch.testing.assert_close(together.output_image_logits[drawn : drawn + count], alone.output_image_logits, atol=1e-5, rtol=1e-4)
        drawn += count
    assert drawn == len(together.output_image_logits) == 3


def test_losses_are_weighted_means_over_targets():
    model = tiny_model(text_loss_weight=0.5, image_loss_weight=2.0)
    inputs = batch(["draws", "reads"])
    outputs = model(**inputs)
    logits = outputs.logits[:, :-1].log_softmax(-1)
    targets = inputs["labels"][:, 1:].clone()
    targets[(targets == IMAGE) | (targets == PLACEHOLDER)] = IGNORE_INDEX
    kept = targets != IGNORE_INDEX
    by_hand = -logits[kept].gather(1, targets[kept][:, None]).mean()
    torch.testing.assert_close(outputs.text_loss, by_hand)
    code_logits = outputs.output_image_logits.log_softmax(-1)
    torch.testing.assert_close(outputs.output_image_loss, -code_logits.gather(-1, inputs["output_image_codes"][..., None, None]).mean())
    torch.testing.assert_close(outputs.loss, 0.5 * outputs.text_loss + 2 * outputs.output_image_loss)


def test_text_loss_needs_no_logits_but_those_that_predict_targets(model):
    inputs = batch(["draws", "reads", "text"])
    whole = model(**inputs)
    targets = torch.nn.functional.pad(inputs["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:]
    predict = (targets != IGNORE_INDEX) & (targets != IMAGE) & (targets != PLACEHOLDER)
    kept = model(**inputs, logits_to_keep=predict)
    assert 0 < len(kept.logits) == predict.sum() < predict.numel()
    torch.testing.assert_close(kept.logits, whole.logits[predict], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kept.text_loss, whole.text_loss)
    smooth = [model(**inputs, label_smoothing=0.1, logits_to_keep=keep).text_loss for keep in (0, predict)]
    torch.testing.assert_close(*smooth)
    last = model(**inputs, logits_to_keep=5)
    log_probs, ends = whole.logits[:, -5:].log_softmax(-1), predict[:, -5:]
    torch.testing.assert_close(last.text_loss, -log_probs[ends].gather(1, targets[:, -5:][ends][:, None]).mean())


INFINITY = {"model_type": "vargpt_infinity_decoder", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_scales": 4}


@pytest.mark.parametrize("numbers", [[1, 3, 2], [2, 2, 2]], ids=str)
@pytest.mark.parametrize("decoder", [{}, INFINITY], ids=["var", "infinity"])
def test_coarse_scales_alone_get_the_scores_that_they_get_among_all(decoder, numbers):
    """No position sees a finer scale, in language model and visual decoder."""
    model = tiny_model(image_scale_power=0.5, **({"visual_decoder_config": decoder} if decoder else {}))
    whole_batch = batch(["draws", "both", "text"])
    whole = model(**whole_batch)
    lengths = [sum((1, 4, 16)[:number]) for number in numbers]
    after = iter([[END, 2], [END, 11, *READ], [END, 2]])
    parts = [[PLACEHOLDER] * length + next(after) for length in lengths]
    rows = [[1, 8, 9, START, *parts[0]], [1, *READ, 10, START, *parts[1], START, *parts[2]], ROWS["text"]]
    inputs = {name: whole_batch[name] for name in ("pixel_values", "output_image_codes")}
    inputs["input_ids"] = torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])
    inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
    coarse = model(**inputs, output_image_num_scales=torch.tensor(numbers))
    assert coarse.output_image_codes.shape == (3, max(lengths))
    weights, total = model.model.schedules[0].loss_weights(0.5), 0.0
    for index, length in enumerate(lengths):
        if index < 2:  # before the third, text has moved
            here = coarse.output_image_logits[index, :length], whole.output_image_logits[index, :length]
            torch.testing.assert_close(*here, atol=1e-5, rtol=1e-4)
        codes = whole.output_image_codes[index, :length]
        assert coarse.output_image_codes[index].tolist() == [*codes.tolist(), *[-1] * (max(lengths) - length)]
        losses = -coarse.output_image_logits[index, :length, 0].log_softmax(-1).gather(-1, codes[:, None])[:, 0]
        total = total + (losses * weights[:length]).sum()
    torch.testing.assert_close(coarse.output_image_loss, total / sum(lengths))
    with pytest.raises(ValueError, match="placeholders of images to draw, but 3 images were given, which fill 63"):
        model(**inputs)
    for wrong in ([0, 1, 1], [1, 1, 4], [1, 1]):
        with pytest.raises(ValueError, match=r"`output_image_num_scales` must be \(3,\), from 1 to as many scales"):
            model(**inputs, output_image_num_scales=torch.tensor(wrong))
    with pytest.raises(ValueError, match="leave out `output_image_num_scales`"):
        model(**inputs, output_image_num_scales=torch.tensor(numbers), output_image_inputs=whole.output_image_inputs)


def test_images_of_several_schedules_have_coarse_scales_of_their_own():
    tokenizer = tiny_config().image_tokenizer_config.to_dict() | {"schedules": [[1, 2, 4], [[1, 2], [2, 4]]]}
    model = tiny_model(visual_decoder_config=INFINITY, image_tokenizer_config=tokenizer)
    codes = torch.full((3, 21), -1)
    codes[0], codes[1:, :10] = torch.arange(21), torch.arange(10)
    rows = [[1, 8, START, *[PLACEHOLDER] * length, END, 2] for length in (5, 10, 2)]
    ids = torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])
    schedules = {"output_image_schedule_ids": torch.tensor([0, 1, 1])}
    outputs = model(input_ids=ids, output_image_codes=codes, output_image_num_scales=torch.tensor([2, 2, 1]), **schedules)
    alone = [
        model(input_ids=ids[1:2], output_image_codes=codes[1:2], output_image_schedule_ids=torch.tensor([1])).output_image_logits[0],
        model(
            input_ids=ids[:1, :10],
            output_image_codes=codes[:1],
            output_image_num_scales=torch.tensor([2]),
            output_image_schedule_ids=torch.tensor([0]),
        ).output_image_logits[0],
    ]
    assert outputs.output_image_codes.tolist() == [[*range(5), *[-1] * 5], list(range(10)), [0, 1, *[-1] * 8]]
    torch.testing.assert_close(outputs.output_image_logits[1], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.output_image_logits[2, :2], alone[0][:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.output_image_logits[0, :5], alone[1], atol=1e-5, rtol=1e-4)


def test_text_goes_on_after_coarse_images(model):
    rows = [[1, 8, START, *[PLACEHOLDER] * length, END, last] for length, last in ((1, 5), (5, 40))]
    codes, scales = torch.arange(2 * L).view(2, L) % 24, torch.tensor([1, 2])
    settings = {"generation_mode": "text", "max_new_tokens": 4, "do_sample": True, "top_k": 1, "num_return_sequences": 2}
    alone = [
        model.generate(torch.tensor([row]), output_image_codes=codes[[i]], output_image_num_scales=scales[[i]], **settings)[:, len(row) :]
        for i, row in enumerate(rows)
    ]
    ids = torch.tensor([[PAD] * (len(rows[1]) - len(row)) + row for row in rows])
    together = model.generate(ids, attention_mask=(ids != PAD).long(), output_image_codes=codes, output_image_num_scales=scales, **settings)
    assert together[:, ids.shape[1] :].tolist() == torch.cat(alone).tolist() and alone[0].tolist() != alone[1].tolist()


def test_coarse_scales_can_weigh_more():
    model = tiny_model(image_scale_power=0.5)
    inputs = batch(["draws"])
    outputs = model(**inputs)
    losses = -outputs.output_image_logits.log_softmax(-1).gather(-1, inputs["output_image_codes"][..., None, None])[..., 0, 0]
    sides = torch.tensor([side for side in (1, 2, 4) for _ in range(side * side)])
    weights = 4.0 / sides  # the root of the areas' ratio
    torch.testing.assert_close(outputs.output_image_loss, (losses * weights).sum() / weights.sum())
    assert not torch.isclose(outputs.output_image_loss, losses.mean())


def test_labels_of_both_losses_can_be_smoothed(model):
    inputs = batch(["draws", "text"])
    plain, smoothed = model(**inputs), model(**inputs, label_smoothing=0.2)
    targets = inputs["labels"][:, 1:].masked_fill(inputs["labels"][:, 1:] == PLACEHOLDER, IGNORE_INDEX)
    even = -plain.logits[:, :-1].log_softmax(-1).mean(-1)[targets != IGNORE_INDEX].mean()
    torch.testing.assert_close(smoothed.text_loss, 0.8 * plain.text_loss + 0.2 * even)
    even = -plain.output_image_logits.log_softmax(-1).mean()
    torch.testing.assert_close(smoothed.output_image_loss, 0.8 * plain.output_image_loss + 0.2 * even)


def test_counts_of_the_accumulated_batch_scale_the_losses(model):
    inputs = batch(["draws"])
    whole, half = model(**inputs), model(**inputs, num_items_in_batch=10, num_codes_in_batch=2 * L)
    torch.testing.assert_close(half.output_image_loss, whole.output_image_loss / 2)
    torch.testing.assert_close(half.text_loss, whole.text_loss * 5 / 10)  # the row has 5 text targets


def test_without_targets_the_text_loss_is_zero(model):
    inputs = batch(["text"])
    inputs["labels"] = torch.full_like(inputs["labels"], IGNORE_INDEX)
    assert model(**inputs).text_loss.item() == 0


def test_pixels_to_draw_are_encoded(model):
    inputs = batch(["draws"])
    del inputs["output_image_codes"]
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    from_pixels = model(**inputs, output_pixel_values=pixels)
    from_codes = model(**inputs, output_image_codes=model.model.image_tokenizer.encode(pixels))
    torch.testing.assert_close(from_pixels.output_image_loss, from_codes.output_image_loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "4 placeholders of images to read, but no images were given: pass `pixel_values`"),
        ({"output_image_codes": None}, "21 placeholders of images to draw, but no images were given: pass `output_pixel_values`"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16)}, "do not match, tokens: 4, features: 256"),
        ({"output_image_codes": torch.zeros(2, L, dtype=torch.long)}, "21 placeholders of images to draw, but 2 .* which fill 42"),
        ({"output_image_codes": torch.full((1, L), 24)}, r"Codes must lie in \[0, 24\)"),
        ({"output_image_codes": torch.zeros(1, 5, dtype=torch.long)}, "must have shape"),
        ({"output_pixel_values": torch.zeros(1, 3, 16, 16)}, "not as both"),
        ({"output_image_codes": None, "output_pixel_values": torch.zeros(1, 3, 8, 8)}, r"shape \(batch, 3, 16, 16\), got \(1, 3, 8, 8\)"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "exactly one of `input_ids` and `inputs_embeds`"),
    ],
)
def test_images_and_placeholders_must_agree(model, change, message):
    row = [1, *READ, 5, *DRAWN]
    read, codes = images(row, 0)
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": torch.tensor([row]), "pixel_values": read, "output_image_codes": codes, **change})


def test_inputs_embeds_find_their_placeholders(model):
    inputs = batch(["both"])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    expected = model(**inputs).logits
    del inputs["input_ids"]
    torch.testing.assert_close(model(**inputs, inputs_embeds=embeds).logits, expected)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_saving_is_exact(model, tmp_path, attn_implementation):
    model.save_pretrained(tmp_path)
    loaded = VargptForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=attn_implementation).eval()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    expected, got = model(**batch(["both", "draws"])), loaded(**batch(["both", "draws"]))
    torch.testing.assert_close(got.output_image_logits, expected.output_image_logits, atol=1e-5, rtol=1e-4)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(visual_decoder_config={**tiny_config().visual_decoder_config.to_dict(), "condition_dropout": 0.0})
        model.train()
        model.config.visual_decoder_config.drop_path_rate = 0.0
        for layer in model.model.visual_decoder.layers:
            layer.drop_path_rate = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch(["both", "text"]), use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


def test_every_part_that_draws_or_speaks_gets_gradients(model):
    fresh = tiny_model(seed=1)
    fresh(**batch(["both"])).loss.backward()
    without = {name for name, p in fresh.named_parameters() if p.grad is None}
    assert all(name.startswith(("model.image_tokenizer.", "model.vlm.vision_tower.")) for name in without)


def test_initialisation_is_seeded_and_finite():
    first, second, other = tiny_model(3).state_dict(), tiny_model(3).state_dict(), tiny_model(4).state_dict()
    assert all(torch.isfinite(value).all() for value in first.values())
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["model.visual_decoder.head.weight"], other["model.visual_decoder.head.weight"])


@pytest.mark.parametrize("config", [tiny_config, golden_v11_config], ids=["var", "infinity"])
def test_a_fresh_decoder_s_attention_has_the_scale_of_var(config):
    """4, as in VAR's and Infinity's code (`scale_mul_1H11`)."""
    made = VargptForConditionalGeneration(config())
    scales = [p.exp() for name, p in made.named_parameters() if name.endswith("log_scale")]
    assert scales
    for scale in scales:
        torch.testing.assert_close(scale, torch.full_like(scale, 4.0))


def test_weights_that_a_checkpoint_lacks_are_initialised(model):
    """Those of layers whose parent says how to start them, too; what the checkpoint has stays as it is."""
    lacking = ("model.visual_decoder.layers.", "model.vlm.multi_modal_projector.", "model.vlm.vision_tower.encoder.")
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(lacking)}
    loaded = VargptForConditionalGeneration.from_pretrained(None, config=tiny_config(), state_dict=kept).state_dict()
    for name, value in model.state_dict().items():
        if name in kept:
            assert torch.equal(loaded[name], value)
        elif value.std() > 0:
            assert 0.5 < loaded[name].std() / value.std() < 2, name
        else:
            assert torch.equal(loaded[name], value), name


def test_shifted_labels_replace_labels(model):
    """As sequence-parallel training gives them: the same loss, whatever `labels` say."""
    inputs = batch(["draws", "reads"])
    expected = model(**inputs)
    shifted = torch.nn.functional.pad(inputs.pop("labels"), (0, 1), value=IGNORE_INDEX)[:, 1:]
    for labels in (None, torch.zeros_like(shifted)):
        outputs = model(**inputs, labels=labels, shift_labels=shifted)
        torch.testing.assert_close(outputs.text_loss, expected.text_loss)
        torch.testing.assert_close(outputs.loss, expected.loss)


@pytest.mark.parametrize("kind", ["v1", "v1.1"])
def test_attention_can_be_chosen_for_every_part(kind):
    fresh = tiny_model() if kind == "v1" else VargptForConditionalGeneration(golden_v11_config())
    for chosen in ("eager", "sdpa"):
        fresh.set_attn_implementation(chosen)
        parts = {name: part for name, part in fresh.named_modules() if isinstance(part, PreTrainedModel)}
        assert {name: part.config._attn_implementation for name, part in parts.items()} == dict.fromkeys(parts, chosen)


def test_another_language_model():
    text = {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = tiny_model(vlm_config={**tiny_config().vlm_config.to_dict(), "text_config": text})
    outputs = model(**batch(["both", "text"]))
    assert torch.isfinite(outputs.loss)
    drawn = model.generate(torch.tensor([[1, 5, 6]]), generation_mode="image", max_new_tokens=2, return_dict_in_generate=True)
    assert drawn.output_images.shape == (1, 3, 16, 16)


def test_block_causal_mask(model):
    """A position sees its own and coarser scales: the drawing of `block_causal_mask`, for sides 1, 2, 4."""
    mask = block_causal_mask(model.model.visual_decoder.config, torch.zeros(1, L, 24), model.config.schedules[0])[0, 0].bool()
    scale = torch.tensor([0, *[1] * 4, *[2] * 16])
    assert torch.equal(mask, scale[:, None] >= scale[None])


def test_codes_do_not_depend_on_autocast(model):
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        codes = model.model.image_tokenizer.encode(pixels)
    assert torch.equal(codes, model.model.image_tokenizer.encode(pixels))


@torch.no_grad()
def test_the_image_tokenizer_takes_a_batch_in_parts(monkeypatch):
    model = tiny_model().model.image_tokenizer
    pixels = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = model.encode(pixels)
    images = model.decode(codes)
    monkeypatch.setattr(image_tokenizer_vargpt, "PIXELS_AT_ONCE", 2 * 16**2)
    assert torch.equal(model.encode(pixels), codes)
    torch.testing.assert_close(model.decode(codes), images)
    assert model.decode(codes[:0]).shape == (0, 3, 16, 16)
