"""Rows cut to a length and laid end to end: images stay whole, and no row sees another."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from micro import ROWS, row

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.packing import num_tokens
from vargpt_hf.training.stages import apply_stage
from vargpt_hf.training.targets import number_of_codes
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

PER_TOKEN = ("input_ids", "attention_mask", "labels", "position_ids")
DRAWING = ROWS[3]  # "draw two": "first", an image, "then", an image


def positions(inputs, processor, row=0):
    """Where the row's second image to draw begins and ends, image-start and image-end included."""
    ids = inputs["input_ids"][row]
    starts = (ids == processor.output_image_start_token_id).nonzero().flatten().tolist()
    ends = (ids == processor.output_image_end_token_id).nonzero().flatten().tolist()
    return starts[1], ends[1] + 1


@pytest.mark.parametrize("inside", [1, 2, 12, 22])
def test_a_image_is_never_halved(processor, inside):
    whole = VargptDataCollator(processor)([DRAWING, ROWS[4]])
    start, end = positions(whole, processor)
    assert end - start == 23
    cut = VargptDataCollator(processor, max_length=start + inside)([DRAWING, ROWS[4]])
    assert cut["attention_mask"].sum(1).tolist()[0] == start
    assert torch.equal(cut["labels"][0, :start], whole["labels"][0, :start]) and (cut["labels"][0, start:] == -100).all()
    assert processor.output_image_token_id not in cut["input_ids"][0, start - 1 :][cut["attention_mask"][0, start - 1 :].bool()]
    kept = [0, 2] if int(whole["attention_mask"][1].sum()) <= start + inside else [0]  # of both rows
    assert torch.equal(cut["output_pixel_values"], whole["output_pixel_values"][kept])


def test_a_cut_beside_images_keeps_them(processor):
    whole = VargptDataCollator(processor)([DRAWING])
    start, end = positions(whole, processor)
    for length, images in ((start, 1), (end, 2)):
        cut = VargptDataCollator(processor, max_length=length)([DRAWING])
        assert cut["input_ids"].shape[1] == length and len(cut["output_pixel_values"]) == images


def test_images_to_understand_are_not_halved(processor):
    rows = [ROWS[7]]  # two of them, side by side
    whole = VargptDataCollator(processor)(rows)
    places = (whole["input_ids"][0] == processor.image_token_id).nonzero().flatten()
    each = processor.typical_lengths()["image"]
    assert places[each] == places[each - 1] + 1
    cut = VargptDataCollator(processor, max_length=int(places[each]) + 1)(rows)
    assert cut["input_ids"].shape[1] == places[each] and torch.equal(cut["pixel_values"], whole["pixel_values"][:1])


LONG = row(["say a longer thing than the others"], ["a longer thing " * 30])  # longer than any row with images
CUT = {
    "read": [LONG, ROWS[1]],
    "drawn": [ROWS[2], LONG],
    "both in one row": [LONG, ROWS[4]],
    "both": [ROWS[7], LONG, ROWS[3]],
    "alone": [ROWS[4]],
}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("codes", [False, True], ids=["pixels", "codes"])
@pytest.mark.parametrize("kind", CUT)
def test_a_cut_at_any_place_is_a_cut_of_everything(model, processor, kind, codes, packing):
    """Wherever rows of unequal lengths are cut: tokens, masks, labels and images are those of the rows cut one by one, and no more."""
    rows = CUT[kind]
    if codes:
        made = [[list(range(index, index + 21)) for index, _ in enumerate(entry["output_images"])] for entry in rows]
        rows = [{**entry, "output_images": [], "output_image_codes": found} for entry, found in zip(rows, made)]
    alone = [VargptDataCollator(processor)([entry]) for entry in rows]
    collator = VargptDataCollator(processor, packing=packing)
    model, pad, sizes = (
        model.eval(),
        processor.tokenizer.pad_token_id,
        (processor.typical_lengths()["image"], processor.output_image_processor.num_positions[0]),
    )
    tokens = (processor.image_token_id, processor.output_image_token_id)
    longest = max(int(inputs["attention_mask"].sum()) for inputs in alone)
    for max_length in range(1, longest + 1):
        collator.max_length = max_length
        inputs, single = collator(rows), VargptDataCollator(processor, max_length=max_length)
        assert {value.shape for name, value in inputs.items() if name in PER_TOKEN} == {inputs["input_ids"].shape}
        kept = inputs["attention_mask"].bool() if not packing else inputs["labels"].new_ones(inputs["labels"].shape).bool()
        assert (inputs["input_ids"][~kept] == pad).all() and (inputs["labels"][~kept] == -100).all()
        images = [
            len(inputs.get("pixel_values", ())),
            sum(len(inputs.get(name, ())) for name in ("output_pixel_values", "output_image_codes")),
        ]
        assert [int((inputs["input_ids"] == token).sum()) for token in tokens] == [size * number for size, number in zip(sizes, images)]
        parts = [single([entry]) for entry in rows]
        assert max_length == 1 or num_tokens(inputs) == sum(num_tokens(part) for part in parts)
        for whole, part in zip(alone, parts):
            length = part["input_ids"].shape[1]
            assert length <= max_length and torch.equal(part["input_ids"], whole["input_ids"][:, :length])
            assert torch.equal(part["labels"], whole["labels"][:, :length])
        for name in ("pixel_values", "output_pixel_values", "output_image_codes"):
            cut = [part[name] for part in parts if name in part]
            assert (name in inputs) == bool(cut) and (not cut or torch.equal(inputs[name], torch.cat(cut)))
        if max_length % 7 == 1:
            with torch.no_grad():
                ours, theirs = model(**inputs, num_items_in_batch=1), [model(**part, num_items_in_batch=1) for part in parts]
            torch.testing.assert_close(ours.text_loss, sum(each.text_loss for each in theirs), atol=1e-4, rtol=1e-4)


def test_a_cut_batch_without_images_left_has_none(processor):
    inputs = VargptDataCollator(processor, max_length=8)([ROWS[2]])
    assert set(inputs) == {"input_ids", "attention_mask", "labels"}


@pytest.fixture(params=["VAR's decoder", "Infinity's decoder"])
def either(request, model, base):
    """A model whose visual decoder sees the language model's state before an image, or one that sees all of the text before it."""
    if request.param == "VAR's decoder":
        return model
    config = VargptConfig.from_pretrained(base).to_dict()
    decoder = {"model_type": "vargpt_infinity_decoder", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    found = VargptForConditionalGeneration(VargptConfig.from_dict({**config, "visual_decoder_config": {**decoder, "drop_path_rate": 0.0}}))
    found.load_state_dict({name: value for name, value in model.state_dict().items() if "visual_decoder" not in name}, strict=False)
    return found.eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("one_row", [False, True])
def test_packed_rows_have_the_losses_of_padded_ones(either, processor, attention, one_row):
    model = either
    model.set_attn_implementation(attention)
    collator = VargptDataCollator(processor, packing=True, assistant_only=False)
    collator.pack_in_one_row = one_row
    packed, padded = collator(ROWS), VargptDataCollator(processor, assistant_only=False)(ROWS)
    assert len(packed["input_ids"]) == 1 if one_row else 1 < len(packed["input_ids"]) < len(ROWS)
    assert num_tokens(packed) == num_tokens(padded) == padded["attention_mask"].sum()
    ours, theirs = model(**packed), model(**padded)
    for name in ("loss", "text_loss", "output_image_loss"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    ours.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs.loss.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-5, rtol=1e-4)


def test_packed_rows_do_not_see_one_another(either, processor):
    """Other words in one row leave the scores in all others exactly as they were."""
    collator = VargptDataCollator(processor, packing=True)
    collator.pack_in_one_row = True
    rows = [row(["say hello"], ["hello"]), ROWS[2], row(["say a longer thing"], ["a longer thing"])]
    others = copy.deepcopy(rows)
    others[0]["messages"][1]["content"][0]["text"] = "noise"
    first, second = collator(rows), collator(others)
    length = int(num_tokens(collator(rows[:1])))
    assert not torch.equal(first["input_ids"][:, :length], second["input_ids"][:, :length])
    ours, theirs = either.eval()(**first), either(**second)
    assert torch.equal(ours.logits[:, length:], theirs.logits[:, length:]) and torch.equal(ours.output_image_logits, theirs.output_image_logits)


def test_the_trainer_packs(base, processor, tmp_path):
    results = []
    for packing in (False, True):
        model = VargptForConditionalGeneration.from_pretrained(base)
        apply_stage(model, "pretrain")
        args = VargptSFTConfig(
            str(tmp_path), use_cpu=True, packing=packing, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1,
            max_length=60, bf16=False, logging_steps=1, optim="sgd", max_grad_norm=0.0, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        rows = Dataset.from_list(ROWS, features=ROW_FEATURES)
        trainer = VargptSFTTrainer(model, args=args, train_dataset=rows, processing_class=processor)
        trainer.train()
        batch = next(iter(trainer.get_train_dataloader()))
        assert ("position_ids" in batch) == packing
        results.append((trainer.state.log_history[0], {name: p.detach() for name, p in model.named_parameters()}))
    (log, weights), (packed_log, packed_weights) = results
    for name in ("text_loss", "output_image_loss", "num_tokens", "text_accuracy", "image_accuracy"):
        assert math.isclose(packed_log[name], log[name], rel_tol=1e-4), name
    for name, weight in weights.items():
        torch.testing.assert_close(packed_weights[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("coarse", [1, 2])
def test_images_to_draw_without_their_fine_scales(processor, coarse):
    """Their placeholders are fewer, and nothing else is another."""
    length = (1, 5)[coarse - 1]
    plain = VargptDataCollator(processor)(ROWS)
    collator = VargptDataCollator(processor, scale_dropout=1.0, coarse_scales=coarse)
    inputs = collator(ROWS)
    ids = (processor.output_image_start_token_id, processor.output_image_token_id, processor.output_image_end_token_id)
    lengths = inputs["attention_mask"].sum(1)
    for index in range(len(ROWS)):
        written, expected = (batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist() for batch in (inputs, plain))
        count = expected.count(ids[0])
        assert written.count(ids[1]) == count * length
        spans = [written[place + 1 : place + 1 + length + 1] for place, token in enumerate(written) if token == ids[0]]
        assert spans == [[ids[1]] * length + [ids[2]]] * count
        rest = [[token for token in tokens if token != ids[1]] for tokens in (written, expected)]
        assert rest[0] == rest[1]
        assert (
            inputs["labels"][index][inputs["labels"][index] != -100].tolist() == plain["labels"][index][plain["labels"][index] != -100].tolist()
        )
        assert (inputs["labels"][index, lengths[index] :] == -100).all() and not inputs["attention_mask"][index, lengths[index] :].any()
    assert inputs["input_ids"].shape[1] == lengths.max() < plain["input_ids"].shape[1]
    assert inputs["output_image_num_scales"].tolist() == [coarse] * len(plain["output_pixel_values"])
    for name in ("output_pixel_values", "pixel_values"):
        assert torch.equal(inputs[name], plain[name])
    assert "output_image_num_scales" not in VargptDataCollator(processor, scale_dropout=1.0)([ROWS[0]])


def test_which_images_are_coarse_follows_from_rows_and_epoch(processor):
    rows = [row([f"draw number {number}"], ["output_image"], number) for number in range(64)]
    collator = VargptDataCollator(processor, scale_dropout=0.75)
    first, again = (collator(rows)["output_image_num_scales"] for _ in range(2))
    assert torch.equal(first, again) and set(first.tolist()) == {1, 3} and 36 <= (first == 1).sum() <= 60
    collator.set_epoch(1)
    assert not torch.equal(collator(rows)["output_image_num_scales"], first)
    assert "output_image_num_scales" not in collator.for_evaluation()(rows)


def test_coarse_images_are_packed_and_cut_like_others(base, processor):
    model = VargptForConditionalGeneration.from_pretrained(base)
    settings = {"scale_dropout": 0.5, "coarse_scales": 2, "seed": 1, "assistant_only": False}
    padded, packed = (VargptDataCollator(processor, packing=packing, **settings)(ROWS) for packing in (False, True))
    scales = padded["output_image_num_scales"]
    assert set(scales.tolist()) == {2, 3}
    assert number_of_codes(padded, model.config) == number_of_codes(packed, model.config) == sum((0, 1, 5, 21)[n] for n in scales)
    ours, theirs = model(**packed), model(**padded)
    for name in ("loss", "text_loss", "output_image_loss"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    whole = VargptDataCollator(processor, **settings)([DRAWING])
    _, end = positions(whole, processor)
    cut = VargptDataCollator(processor, max_length=end - 1, **settings)([DRAWING])
    assert len(whole["output_image_num_scales"]) == 2 and len(cut["output_image_num_scales"]) == len(cut["output_pixel_values"]) == 1


def test_coarse_images_are_refused_where_weights_are_sharded(model, processor):
    with pytest.raises(ValueError, match="`scale_dropout` and sharded weights do not go together"):
        VargptDataCollator(processor, scale_dropout=0.5).bind(model, sharded=True)
    for wrong in ({"scale_dropout": 1.5}, {"coarse_scales": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            VargptDataCollator(processor, **wrong)


def test_packing_needs_our_collator(model, processor, tmp_path):
    with pytest.raises(ValueError, match="not by a function"):
        VargptSFTTrainer(model, args=VargptSFTConfig(str(tmp_path), packing=True), data_collator=lambda rows: rows, processing_class=processor)
