"""Texts and chats with images of both kinds to tensors; generated sequences back to chat content."""

import functools
import time

import numpy as np
import pytest
import torch
from noise_images import noise_image
from processing_helpers import CODES, IMAGE_TOKENS, PLACEHOLDERS, SIDE, codes_of, make_processor
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils import ModelOutput

from vargpt_hf.processing import VargptProcessor

IMAGE, START, PLACEHOLDER, END = IMAGE_TOKENS
DRAWING = START + PLACEHOLDER + END


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(*parts):
    return {"role": "assistant", "content": list(parts)}


def text(content):
    return {"type": "text", "text": content}


def seen(seed):
    return {"type": "image", "image": noise_image(seed)}


def drawn(seed):
    return {"type": "output_image", "image": noise_image(seed)}


def coded(seed):
    return {"type": "output_image", "codes": codes_of(seed)}


MARK = {"type": "output_image"}


def to_tensors(processor, chat, **processor_kwargs):
    return processor.apply_chat_template(
        chat,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, **processor_kwargs},
    )


def output_pixels(processor, *seeds):
    images = [noise_image(seed) for seed in seeds]
    return processor.output_image_processor(images, return_tensors="pt")["output_pixel_values"]


# -- texts ------------------------------------------------------------------------------------------------------------


def test_places_of_both_kinds(processor):
    out = processor(text=f"a {IMAGE} b {DRAWING} c", images=noise_image(0), output_images=noise_image(1), return_tensors="pt")
    expanded = processor.decode(out["input_ids"][0])
    assert expanded == f"a {IMAGE * PLACEHOLDERS} b {START}{PLACEHOLDER * CODES}{END} c"
    assert set(out) == {"input_ids", "attention_mask", "pixel_values", "output_pixel_values"}
    assert out["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert torch.equal(out["output_pixel_values"], output_pixels(processor, 1))


def test_text_alone_and_images_alone(processor):
    for nothing in (None, [], [[]], [[], None], ()):
        assert set(processor(text="hi", videos=nothing, audio=nothing, audios=nothing)) == {"input_ids", "attention_mask"}
    assert set(processor(images=noise_image(0))) == {"pixel_values"}
    assert set(processor(output_images=noise_image(0))) == {"output_pixel_values"}
    plain, raw = (processor(images=noise_image(0), return_tensors="pt", **more)["pixel_values"] for more in ({}, {"do_rescale": False}))
    assert raw.abs().max() > 20 * plain.abs().max()
    nested = processor(images=noise_image(0), return_tensors="pt", images_kwargs={"do_rescale": False})
    assert torch.equal(nested["pixel_values"], raw)
    with pytest.raises(ValueError):
        processor()
    with pytest.raises(ValueError, match="videos and audio must be None"):
        processor(text="hi", videos=[1])
    with pytest.raises(ValueError, match="videos and audio must be None"):
        processor(text="hi", audios=[[], ["a.wav"]])


@pytest.mark.parametrize("codes", ["tensor", "tensors", "lists", "rows", "arrow"])
def test_codes_in_every_nesting(processor, codes):
    expected = torch.stack([codes_of(0), codes_of(1), codes_of(2)])
    given = {
        "tensor": expected,
        "tensors": list(expected),
        "lists": expected.tolist(),
        "rows": [[], expected[:1], list(expected[1:])],
        "arrow": [[], expected[:1].tolist(), expected[1:].numpy().astype(np.uint16)],
    }[codes]
    out = processor(text=["a", DRAWING, DRAWING * 2], output_image_codes=given, return_tensors="pt", padding=True)
    assert out["output_image_codes"].dtype == torch.int64
    assert torch.equal(out["output_image_codes"], expected)


def test_one_image_of_codes(processor):
    out = processor(text=DRAWING, output_image_codes=codes_of(3).tolist(), return_tensors="pt")
    assert torch.equal(out["output_image_codes"], codes_of(3)[None])


def test_padding_is_on_the_left_whatever_the_tokenizer_says(tmp_path):
    processor = make_processor()
    processor.tokenizer.padding_side = "right"
    processor.tokenizer.init_kwargs["padding_side"] = "right"
    processor.save_pretrained(tmp_path)
    out = processor(text=["a", "a b c"], padding=True, return_tensors="pt")
    assert out["attention_mask"][0, 0] == 0 and out["attention_mask"][0, -1] == 1
    out = processor(text=["a", "a b c"], padding=True, padding_side="right", return_tensors="pt")
    assert out["attention_mask"][0, 0] == 1 and out["attention_mask"][0, -1] == 0


def test_sequences_with_all_places_can_be_fed_back(processor):
    out = processor(text=DRAWING, output_image_codes=codes_of(0), return_tensors="pt")
    again = processor(text=processor.decode(out["input_ids"][0]), output_image_codes=codes_of(0), return_tensors="pt")
    assert torch.equal(again["input_ids"], out["input_ids"])


def test_forced_image_needs_none(processor):
    out = processor(text=[f"a{START}", f"b{DRAWING}{START}"], output_image_codes=[[], [codes_of(0)]], padding=True)
    assert [ids[-1] for ids in out["input_ids"]] == [processor.output_image_start_token_id] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(text=IMAGE), "In all, the number of <image> tokens .* images in images: there are 1 and 0."),
        (dict(text="a", images=[noise_image(0)]), "<image> tokens .*: there are 0 and 1."),
        (dict(text=[IMAGE, IMAGE], images=[noise_image(0)]), "<image> tokens .*: there are 2 and 1."),
        (dict(text=[IMAGE, "a"], images=[[], [noise_image(0)]]), "In row 0, .*<image> tokens .*: there are 1 and 0."),
        (dict(text=["a", "b"], images=[[noise_image(0)]]), "images has 1 rows, but there are 2 texts"),
        (dict(text=["a", IMAGE], images=[[], noise_image(0)]), "not as a mixture"),
        (dict(text=DRAWING), "gen_end.> tokens .* in output_images or output_image_codes: there are 1 and 0."),
        (dict(text="a", output_image_codes=[codes_of(0)]), "gen_end.> tokens .* in output.*: there are 0 and 1."),
        (dict(text=["a", DRAWING * 2], output_images=[[noise_image(0)]] * 2), "In row 0, .*: there are 0 and 1."),
        (dict(text=DRAWING, output_images=[noise_image(0)], output_image_codes=[codes_of(0)]), "not both.*model.encode_images"),
        (dict(text=DRAWING, output_image_codes=[codes_of(0)[:-1]]), r"output_image_codes\[0\] has shape \(4,\).*has 5 codes"),
        (dict(text=DRAWING, output_image_codes=[codes_of(0) - 99]), "integers of at least 0"),
        (dict(text=DRAWING, output_image_codes=[codes_of(0).float()]), "dtype float32; an image has 5 codes, integers"),
        (dict(text=["a", PLACEHOLDER]), "Row 1 of the text has a stray"),
        (dict(text=START + END), "Row 0 of the text has a stray"),
        (dict(text=START + " a"), "Row 0 of the text has a stray"),
        (dict(text=START + PLACEHOLDER * 2 + END), "2 <|image_gen_pad|>; expected 1, or all 5"),
        (dict(text=[1]), "must be a string or a list"),
        (dict(text=[]), "at least one string"),
        (dict(text=5), "`text` is a int; it must be a string or a list"),
        (dict(text={"a": 1}), "`text` is a dict"),
        (dict(text="a\ud800"), "Row 0 of the text has half a character"),
        (dict(text=DRAWING, output_image_codes=5), "output_image_codes have a int"),
        (dict(text=DRAWING, output_image_codes=["abc"]), r"output_image_codes\[0\] has shape"),
        (dict(text=DRAWING, output_image_codes=[{"a": 1}]), r"output_image_codes\[0\] has shape"),
        (dict(text=DRAWING, output_image_codes=[[[1, [2]]]]), "output_image_codes.*are no codes"),
        (dict(text="a", sanitize_control_tokens=True), "not supported"),
    ],
)
def test_wrong_counts_are_refused(processor, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message.replace("|", r"\|")) as caught:
        processor(**arguments)
    assert type(caught.value) in (ValueError, TypeError)


def test_truncation_may_not_cut_images(processor):
    options = dict(truncation=True, max_length=5, return_tensors="pt")
    with pytest.raises(ValueError, match="4 of the 5 placeholders .* truncation"):
        processor(text=DRAWING, output_image_codes=[codes_of(0)], **options)
    with pytest.raises(ValueError, match="[Mm]ismatch in `image` token count"):
        processor(text="a b c " + IMAGE, images=noise_image(0), **options)


def test_bad_image_is_named_by_its_place(processor):
    with pytest.raises(ValueError, match=r"^output_images\[1\]\[0\]"):
        processor(text=[DRAWING] * 2, output_images=[[noise_image(0)], [b"x"]])


def test_random_crop_reaches_the_image_processor():
    processor = make_processor()
    image = noise_image(0, 90, 90)
    processor.output_image_processor.resize_factor = 1.5

    def pixels(**options):
        return processor(text=DRAWING, output_images=image, return_tensors="pt", **options)["output_pixel_values"]

    assert torch.equal(pixels(random_crop=True, generator=3), pixels(random_crop=True, generator=3))
    assert not torch.equal(pixels(random_crop=True, generator=3), pixels())


# -- chats ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bos", [False, True])
def test_exactly_the_tokenizers_own_bos(with_bos):
    processor = make_processor(with_bos=with_bos)
    chat = [user(text("hi"))]
    bos = processor.tokenizer.bos_token_id
    for ids in (
        to_tensors(processor, chat)["input_ids"][0],
        processor(text=processor.apply_chat_template(chat), return_tensors="pt")["input_ids"][0],
    ):
        assert (ids == bos).sum() == int(with_bos)
    assert (processor(text="<s>hi", return_tensors="pt")["input_ids"] == bos).sum() == 1


def test_batch_of_chats(processor):
    chats = [
        [user(text("hi")), assistant(text("hello"))],
        [user(seen(0), text("what?")), assistant(text("noise"))],
        [user(text("draw")), assistant(drawn(1), text(" and "), drawn(2))],
        [user(seen(3), text("draw it")), assistant(text("Here: "), drawn(4)), user(text("more")), assistant(drawn(5))],
    ]
    out = to_tensors(processor, chats)
    counts = [[int((row == i).sum()) for row in out["input_ids"]] for i in processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS)]
    assert counts == [[0, PLACEHOLDERS, 0, PLACEHOLDERS], [0, 0, 2, 2], [0, 0, 2 * CODES, 2 * CODES], [0, 0, 2, 2]]
    assert torch.equal(out["output_pixel_values"], output_pixels(processor, 1, 2, 4, 5))
    expected = processor.image_processor([noise_image(0), noise_image(3)], return_tensors="pt")["pixel_values"]
    assert torch.equal(out["pixel_values"], expected)
    for index, chat in enumerate(chats):  # a row does not depend on its neighbors
        single = to_tensors(processor, chat)
        mask = out["attention_mask"][index].bool()
        assert torch.equal(out["input_ids"][index][mask], single["input_ids"][0])


def test_codes_in_chats(processor):
    out = to_tensors(processor, [[user(text("draw")), assistant(coded(1), coded(2))], [user(coded(3), text("why?"))]])
    assert torch.equal(out["output_image_codes"], torch.stack([codes_of(1), codes_of(2), codes_of(3)]))
    assert "output_pixel_values" not in out
    both = [user(text("draw")), assistant({**drawn(1), **coded(1)})]
    assert "output_image_codes" in to_tensors(processor, both)
    assert "output_pixel_values" in to_tensors(processor, [*both, user(text("more")), assistant(drawn(2))])
    with pytest.raises(ValueError, match="only codes and some only images.*model.encode_images"):
        to_tensors(processor, [user(text("draw")), assistant(coded(1), drawn(2))])


def test_training_rows(processor):
    """Parts without images (and, from Arrow, with empty keys); the images apart."""
    empty = {"text": None, "image": None, "codes": None}
    rows = [
        [user({**empty, "type": "image"}, {**empty, **text("draw it")}), assistant({**empty, "type": "output_image"})],
        [user({**empty, **text("hi")}), assistant({**empty, **text("hello")})],
    ]
    images, outputs = [[noise_image(0)], []], [[noise_image(1)], []]
    out = to_tensors(processor, rows, images=images, output_images=outputs)
    assert out["pixel_values"].shape[0] == 1
    assert torch.equal(out["output_pixel_values"], output_pixels(processor, 1))
    out = to_tensors(processor, rows[0], images=images[0], output_image_codes=[codes_of(1).tolist()])
    assert torch.equal(out["output_image_codes"], codes_of(1)[None])
    with pytest.raises(ValueError, match="output_image parts carry output_images; processor_kwargs must not"):
        to_tensors(processor, [user(text("draw")), assistant(drawn(1))], output_image_codes=[codes_of(1)])
    with pytest.raises(ValueError, match="gen_end.> tokens .*: there are 1 and 0."):
        to_tensors(processor, rows[0], images=images[0])
    with pytest.raises(ValueError, match="In row 0, .*: there are 2 and 1."):
        to_tensors(processor, [user(text("draw")), assistant(drawn(1), MARK)])


@pytest.mark.parametrize("return_tensors", ["pt", None])
@pytest.mark.parametrize("with_bos", [False, True])
def test_assistant_mask_is_aligned_after_expansion(with_bos, return_tensors):
    processor = make_processor(with_bos=with_bos)
    chats = [
        [
            user(seen(0), text("what?")),
            assistant(text("Here:"), drawn(1), text(" done")),
            user(text("hi")),
            assistant(text("hello")),
        ],
        [user(text("draw"), drawn(2)), assistant(drawn(3))],
        [user(text("hi"))],
    ]
    out = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors=return_tensors, return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True},
    )  # fmt: skip
    assert "offset_mapping" not in out and "text_replacement_offsets" not in out
    marked = [
        processor.decode([i for i, mask in zip(ids, masks, strict=True) if mask])
        for ids, masks in zip(out["input_ids"], out["assistant_masks"], strict=True)
    ]
    whole = START + PLACEHOLDER * CODES + END
    assert marked == [f" Here:{whole} done</s> hello</s>", f"{whole}</s>", ""]


def test_ids_and_text_forms(processor):
    chat = [user(text("hi"))]
    ids = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    assert processor.decode(ids[0]) == "USER: hi ASSISTANT:"
    assert processor.apply_chat_template([chat, chat]) == ["USER: hi"] * 2
    assert processor.apply_chat_template(chat, "{{ messages[0]['content'][0]['text'] }}") == "hi"
    with pytest.raises(ValueError, match="sanitize_control_tokens is not supported"):
        processor.apply_chat_template(chat, tokenize=True, sanitize_control_tokens=True)


def test_saving_and_loading(tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    loaded = VargptProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.output_image_processor.num_positions, loaded.reader.patch_size) == ([CODES], SIDE // 2)
    assert loaded.chat_template == processor.chat_template
    chat = [user(seen(0), text("what?")), assistant(drawn(1))]
    before, after = to_tensors(processor, chat), to_tensors(loaded, chat)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_places_for_serving_engines(processor):
    found = processor._get_num_multimodal_tokens(image_sizes=[(10, 20), (30, 40)])
    assert (found.num_image_tokens, found.num_image_patches) == ([PLACEHOLDERS, PLACEHOLDERS], [1, 1])


def test_batch_of_32_is_fast():
    processor = make_processor()
    processor.reader.patch_size = SIDE // 6
    processor.output_image_processor.schedules = [[1, 4, 7]]
    processor.output_image_processor.downsampling = 7
    chats = [[user(seen(i), text("what is it?")), assistant(text("Here: "), drawn(i))] for i in range(32)]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        to_tensors(processor, chats)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.09  # 15 ms on the reference machine; the margin is for loaded ones


# -- what was generated -----------------------------------------------------------------------------------------------


def generated(processor, rows, pad_to=None):
    """What `generate` returns for texts with `{seed}`-coded drawings: rows of (text, seeds of its drawings)."""
    sequences = [processor.tokenizer.encode(row, add_special_tokens=False) for row, _ in rows]
    length = max(len(ids) for ids in sequences)
    pad = processor.tokenizer.pad_token_id
    sequences = [ids + [pad] * (length - len(ids)) for ids in sequences]
    entries = [
        (row, position, seed)
        for row, (ids, (_, seeds)) in enumerate(zip(sequences, rows, strict=True))
        for position, seed in zip(
            [i for i, token in enumerate(ids) if token == processor.output_image_start_token_id][-len(seeds) :] if seeds else [],
            seeds,
            strict=True,
        )
    ]
    entries.sort(key=lambda entry: -entry[2])  # generate need not give them in reading order
    images = [noise_image(seed) for _, _, seed in entries]
    images = processor.output_image_processor(images, return_tensors="pt") if images else {}
    out = GenerateDecoderOnlyOutput(sequences=torch.tensor(sequences))
    out["output_image_codes"] = torch.stack([codes_of(seed) for *_, seed in entries]) if entries else torch.empty(0, CODES).long()
    out["output_image_rows"] = torch.tensor([row for row, _, _ in entries], dtype=torch.long)
    out["output_image_positions"] = torch.tensor([position for _, position, _ in entries], dtype=torch.long)
    out["output_images"] = images.get("output_pixel_values", torch.empty(0, 3, SIDE, SIDE))
    return out


WHOLE = START + PLACEHOLDER * CODES + END


def same(part, seed):
    return (
        part["type"] == "output_image" and torch.equal(part["codes"], codes_of(seed)) and part["image"].tobytes() == noise_image(seed).tobytes()
    )


def test_interleaved_parts(processor):
    rows = [
        (f" Here: {WHOLE} and {WHOLE} done</s>", [1, 2]),
        (" hello</s>", []),
        (f"{WHOLE}</s>", [3]),
        (f" a{WHOLE}{WHOLE}", [4, 5]),
    ]
    first, second, third, fourth = processor.post_process_interleaved(generated(processor, rows))
    assert [part["type"] for part in first] == ["text", "output_image", "text", "output_image", "text"]
    assert [part["text"] for part in first[::2]] == ["Here: ", " and ", " done"]
    assert same(first[1], 1) and same(first[3], 2)
    assert second == [text("hello")]
    assert len(third) == 1 and same(third[0], 3)
    assert [part["type"] for part in fourth] == ["text", "output_image", "output_image"] and same(fourth[2], 5)


def test_interleaved_parts_after_a_prompt(processor):
    prompt = f"USER: draw {WHOLE} ASSISTANT:"
    length = len(processor.tokenizer.encode(prompt))
    out = generated(processor, [(f"{prompt} Yes{WHOLE}.</s>", [1])])
    (parts,) = processor.post_process_interleaved(out, length)
    assert [part["type"] for part in parts] == ["text", "output_image", "text"]
    assert (parts[0]["text"], parts[2]["text"]) == ("Yes", ".") and same(parts[1], 1)
    forced = generated(processor, [(f"{prompt}{WHOLE} done</s>", [2])])
    (parts,) = processor.post_process_interleaved(forced, length + 1)  # the prompt ended in image-start
    assert same(parts[0], 2) and parts[1] == text(" done")
    in_prompt_too = generated(processor, [(f"{prompt} Yes{WHOLE}.</s>", [3, 1])])
    (parts,) = processor.post_process_interleaved(in_prompt_too, length)
    assert [part["type"] for part in parts] == ["text", "output_image", "text"] and same(parts[1], 1)


def test_image_tokens_never_show_even_if_the_tokenizer_keeps_them():
    processor = make_processor()
    for name in ("decode", "batch_decode"):
        original = getattr(processor.tokenizer, name)
        keep = functools.partial(lambda ids, original, **options: original(ids), original=original)
        setattr(processor.tokenizer, name, keep)
    (parts,) = processor.post_process_interleaved(generated(processor, [(f" a{WHOLE}b", [1])]))
    assert [parts[0], parts[2]] == [text("a"), text("b")]


@pytest.mark.parametrize("metaspace", [False, True])
def test_generated_turn_goes_into_the_next(metaspace):
    """The prompt of the second turn begins with the very tokens of the first turn, and carries the same codes."""
    processor = make_processor(metaspace=metaspace)
    chat = [user(seen(0), text("draw a red circle"))]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    prompt = inputs["input_ids"]
    answer = [f" Here it is: {WHOLE} a red circle. hello</s>", [1]]
    out = generated(processor, [answer])
    out.sequences = torch.cat([prompt, out.sequences], dim=1)
    out["output_image_positions"] = out["output_image_positions"] + prompt.shape[1]
    (parts,) = processor.post_process_interleaved(out, prompt.shape[1])
    chat += [{"role": "assistant", "content": parts}, user(text("what is in the image?"))]
    second = to_tensors(processor, chat)
    assert torch.equal(second["output_image_codes"], codes_of(1)[None])
    assert second["pixel_values"].shape[0] == 1
    if not metaspace:  # SentencePiece-like tokenizers write a space of their own after special tokens
        length = out.sequences.shape[1]
        assert torch.equal(second["input_ids"][:, :length], out.sequences)
    assert parts[0]["text"].startswith("Here it is:") and parts[2]["text"].strip() == "a red circle. hello"


def test_output_without_pixels(processor):
    out = generated(processor, [(WHOLE, [1])])
    out["output_images"] = None
    ((part,),) = processor.post_process_interleaved(ModelOutput(out))
    assert part.keys() == {"type", "codes"}
    text_only = ModelOutput(sequences=out.sequences)
    assert processor.post_process_interleaved(text_only) == [[]]
    assert processor.post_process_multimodal_output(text_only, generation_mode="image") == [None]


def test_pipeline_post_processing(processor):
    out = generated(processor, [(f" hi{WHOLE}{WHOLE}</s>", [1, 2]), (" hello</s>", []), (f"{WHOLE}</s>", [3])])
    for form in (out, ModelOutput(out)):  # pipelines hand on a plain ModelOutput
        assert processor.post_process_multimodal_output(form) == [" hi", " hello", ""]
        first, second, third = processor.post_process_multimodal_output(form, generation_mode="image")
        assert second is None
        assert [p.tobytes() for p in (first, third)] == [noise_image(s).tobytes() for s in (1, 3)]
    texts = processor.post_process_multimodal_output(
        out.sequences, skip_special_tokens=True, generation_mode="text", clean_up_tokenization_spaces=False
    )
    assert texts == [" hi", " hello", ""]
    kept = processor.post_process_multimodal_output(out.sequences[1:2], skip_special_tokens=False)
    assert kept[0].startswith(" hello</s><pad>")
    with pytest.raises(ValueError, match="return_dict_in_generate=True"):
        processor.post_process_multimodal_output(out.sequences, generation_mode="image")
    with pytest.raises(ValueError, match="generation_mode must be .* got 'audio'"):
        processor.post_process_multimodal_output(out, generation_mode="audio")
