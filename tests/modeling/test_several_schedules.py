"""Images of several scale schedules in one batch: each comes out as it does alone."""

import pytest
import torch
from reader_helpers import make_reader

from vargpt_hf import VargptProcessor
from vargpt_hf.modeling.image_sampling_vargpt import redrawn_positions
from vargpt_hf.modeling.image_tokenizer_vargpt import NO_CODE
from vargpt_hf.testing import tiny_model

SCHEDULES = [[1, 2, 4], [[1, 1], [2, 3], [4, 6]]]  # of 16 × 16 and of 16 × 24 pixels
LENGTHS = [21, 31]
BSQ = {"latent_channels": 4, "base_channels": 8, "channel_multipliers": (1, 1, 2), "num_res_blocks": 1, "norm_num_groups": 4}
START, END, DRAWN = 61, 62, 63
NOISE = {"generation_mode": "image", "do_sample": False, "output_image_guidance_type": "noise", "return_dict_in_generate": True}
PROMPTS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])


@pytest.fixture(scope="module")
def model():
    return tiny_model(
        image_tokenizer_config={"model_type": "vargpt_bsq", "schedules": SCHEDULES, **BSQ},
        visual_decoder_config={
            "model_type": "vargpt_infinity_decoder",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "reference_grids": [[4, 4], [4, 6]],
        },
    )


def row(schedules: list[int]) -> list[int]:
    """Tokens of a row that draws images of these schedules."""
    return [1, 5, *(token for index in schedules for token in (7, START, *[DRAWN] * LENGTHS[index], END)), 9]


def inputs_of(rows: list[list[int]], codes: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right, of rows of images of these schedules with their codes."""
    tokens = [torch.tensor(row(schedules)) for schedules in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in tokens], batch_first=True),
        "labels": ids.masked_fill(ids == 0, -100),
        "output_image_codes": torch.nn.utils.rnn.pad_sequence(codes, batch_first=True, padding_value=NO_CODE),
        "output_image_schedule_ids": torch.tensor([index for schedules in rows for index in schedules]),
        "output_image_condition_ids": torch.zeros(sum(map(len, rows)), dtype=torch.long),
    }


def random_codes(schedules: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 16, (LENGTHS[index],), generator=generator) for index in schedules]


def test_scores_and_losses_of_a_mixed_batch_are_those_of_its_rows(model):
    rows, codes = [[0, 1], [1]], random_codes([0, 1, 1])
    whole = inputs_of(rows, codes)
    together = model(**whole)
    assert together.output_image_logits.shape == (3, max(LENGTHS), 4, 2)
    alone = [model(**inputs_of(rows[:1], codes[:2])), model(**inputs_of(rows[1:], codes[2:]))]
    for index, (output, place) in enumerate(((alone[0], 0), (alone[0], 1), (alone[1], 0))):
        length = LENGTHS[[0, 1, 1][index]]
        torch.testing.assert_close(together.output_image_logits[index, :length], output.output_image_logits[place, :length])
    counts = [sum(LENGTHS), LENGTHS[1]]
    mean = sum(output.output_image_loss * count for output, count in zip(alone, counts)) / sum(counts)
    torch.testing.assert_close(together.output_image_loss, mean)


def test_pixels_and_their_codes_train_alike(model):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(2, 3, 16, 24)
    pixels[0, :, :, :16] = torch.rand(3, 16, 16, generator=generator) * 2 - 1
    pixels[1] = torch.rand(3, 16, 24, generator=generator) * 2 - 1
    codes = [
        model.encode_images(pixels[:1, :, :, :16], model.config.schedules[0])[0],
        model.encode_images(pixels[1:], model.config.schedules[1])[0],
    ]
    inputs = inputs_of([[0, 1]], codes)
    from_codes = model(**inputs)
    from_pixels = model(**{name: value for name, value in inputs.items() if name != "output_image_codes"}, output_pixel_values=pixels)
    assert torch.equal(from_pixels.output_image_codes, inputs["output_image_codes"])
    torch.testing.assert_close(from_pixels.output_image_logits, from_codes.output_image_logits)


def test_placeholders_are_counted_for_each_schedule(model):
    inputs = inputs_of([[0, 0]], random_codes([0, 0]))
    inputs["output_image_schedule_ids"] = torch.tensor([0, 1])
    inputs["output_image_codes"] = torch.nn.functional.pad(inputs["output_image_codes"], (0, 10), value=0)
    with pytest.raises(ValueError, match=r"42 placeholders of images to draw, but 2 images were given, which fill 52 \(21, 31 each\)"):
        model(**inputs)


def test_waiting_rows_draw_by_schedule_as_they_do_alone(model):
    settings = {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True}
    together = model.generate(PROMPTS, output_image_size=[(16, 24), (16, 16)], **settings)
    assert together.output_image_schedule_ids.tolist() == [1, 0]
    for index, size in enumerate([(16, 24), (16, 16)]):
        alone = model.generate(PROMPTS[index : index + 1], output_image_size=size, **settings)
        length = alone.output_image_codes.shape[1]
        assert torch.equal(together.output_image_codes[index, :length], alone.output_image_codes[0])
        assert tuple(together.output_images[index].shape) == (3, *size)


@pytest.mark.parametrize("guidance", ["none", "prompt", "scale"])
def test_exactly_the_positions_under_a_mask_of_pixels_change(model, guidance):
    """One mask of pixels, on each row's own grids of all scales."""
    schedules, sizes = model.config.schedules, [(16, 16), (16, 24)]
    codes = torch.nn.utils.rnn.pad_sequence(random_codes([0, 1]), batch_first=True)
    mask = torch.zeros(2, 32, 48)
    mask[0, 16:, 24:] = mask[1, :16] = 1
    settings = {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True, "output_image_guidance_type": guidance}
    kept = {"output_image_codes_to_keep": codes, "output_image_mask": mask}
    drawn = model.generate(PROMPTS, output_image_size=sizes, **kept, **settings).output_image_codes
    for index, schedule in enumerate(schedules):
        redrawn = redrawn_positions(mask[index : index + 1], schedule)[0]
        length = LENGTHS[index]
        changed = drawn[index, :length] != codes[index, :length]
        by_scale = [part.any().item() for part in redrawn.split(list(schedule.areas))]
        assert not (changed & ~redrawn).any() and (changed & redrawn).any() and by_scale == [index == 1, True, True]
        whole = torch.ones(1, length, dtype=torch.bool)
        free = model.generate(
            PROMPTS[index : index + 1],
            output_image_size=sizes[index],
            output_image_codes_to_keep=codes[index : index + 1],
            output_image_mask=whole,
            **settings,
        )
        assert (free.output_image_codes[0] != codes[index, :length])[~redrawn].any()  # the others would have changed, too


def test_noise_is_that_of_the_schedule_that_draws(model):
    noise = [[torch.zeros(2, height * width, 32) for height, width in schedule.grids] for schedule in model.config.schedules]
    wide = model.generate(PROMPTS, output_image_size=(16, 24), output_image_noise=noise[1], **NOISE)
    assert wide.output_images.shape == (2, 3, 16, 24)
    with pytest.raises(ValueError, match=r"expected \[\(1, 32\), \(6, 32\), \(24, 32\)\]"):
        model.generate(PROMPTS, output_image_size=(16, 24), output_image_noise=noise[0], **NOISE)
    with pytest.raises(ValueError, match=r"for images of one schedule, but the rows draw those of \[0, 1\]"):
        model.generate(PROMPTS, output_image_size=[(16, 16), (16, 24)], output_image_noise=noise[1], **NOISE)


def test_a_pipeline_draws_images_of_several_sizes_in_one_batch(model):
    drawn = {"schedules": SCHEDULES, "downsampling": 4, "resize_factor": 1.0}
    pipe = model.as_pipeline(VargptProcessor(reader=make_reader("llava"), output_image_settings=drawn))
    chats = [[{"role": "user", "content": [{"type": "text", "text": word}]}] for word in ("red", "blue")]
    sizes = [(16, 16), (16, 24)]
    records = pipe(chats, generation_mode="image", batch_size=2, output_image_size=sizes, do_sample=False)
    found = [record[0]["generated_image"] for record in records]
    assert [(image.height, image.width) for image in found] == sizes
    for chat, size, image in zip(chats, sizes, found):
        (alone,) = pipe(chat, generation_mode="image", output_image_size=size, do_sample=False)
        assert alone["generated_image"].tobytes() == image.tobytes()
