"""The processors of many backbones as readers: what they make passes through unread, and what is drawn stands beside it."""

import functools
import json

import pytest
import torch
from backbone_configs import backbone_config
from noise_images import noise_image
from reader_helpers import DRAWN, DRAWN_TOKENS, READERS, TEXT_TEMPLATE, make_reader, make_reader_tokenizer
from repository_helpers import run_without_package
from transformers.utils import is_torchvision_available

from vargpt_hf import ScaleSchedule, VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.processing import VargptImageProcessor
from vargpt_hf.testing import tiny_config
from vargpt_hf.training.collator import VargptDataCollator

DRAWING = "".join(DRAWN_TOKENS)
START, END, PLACEHOLDER = 61, 62, 63
LENGTHS = [ScaleSchedule.of(scales).num_positions for scales in DRAWN["schedules"]]
PREFIX = ["paligemma"]
AT_HAND = [family for family, reader in READERS.items() if is_torchvision_available() or not reader.needs_torchvision]
every_reader = pytest.mark.parametrize("family", AT_HAND)
every_chat_reader = pytest.mark.parametrize("family", [family for family in AT_HAND if family not in PREFIX])


def make_processor(family: str, **settings) -> VargptProcessor:
    return VargptProcessor(reader=make_reader(family), output_image_settings={**DRAWN, **settings})


def drawn_images():
    """A square, and one that is wider than high."""
    return noise_image(1, 20, 20), noise_image(2, 30, 20)


def equal(first, second) -> bool:
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(torch.as_tensor(first), torch.as_tensor(second))


def without_drawings(ids: torch.Tensor, values: torch.Tensor) -> list[list[int]]:
    """Values of all tokens that belong to no image to draw."""
    kept = ~torch.isin(ids, torch.tensor([START, END, PLACEHOLDER]))
    return [row[mask].tolist() for row, mask in zip(values, kept)]


def prompts(family: str) -> tuple[list[str], list[str], list[list]]:
    """Texts with images to read, the same with images to draw, and the images."""
    image = READERS[family].image
    plain = [f"what is {image} a ?", f"it is {image} here {image} b .", "no image ."]
    drawn = [f"what is {image} {DRAWING} a ?", f"{DRAWING} it is {image} here {image} b .", "no image ."]
    return plain, drawn, [[noise_image(3, 40, 24)], [noise_image(4, 16, 40), noise_image(5, 17, 17)], []]


@every_chat_reader
def test_all_but_the_drawings_is_the_librarys_own(family):
    plain, drawn, images = prompts(family)
    options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    reader = make_reader(family)
    expected = reader(text=plain, images=images, return_token_type_ids=False, **options)
    found = make_processor(family)(text=drawn, images=images, output_images=drawn_images(), **options)
    assert set(found) == {*expected, "output_pixel_values", "output_image_schedule_ids"}
    ids = found["input_ids"]
    for name, value in expected.items():
        if value.shape[:2] == expected["input_ids"].shape[:2] and name.endswith(("_ids", "attention_mask")):
            mask = found["attention_mask"].bool()
            kept = [torch.tensor(row) for row in without_drawings(ids[mask][None], found[name][mask][None])]
            assert torch.equal(kept[0], value[expected["attention_mask"].bool()]), name
        else:
            assert equal(found[name], value), name
    for name in {"token_type_ids", "mm_token_type_ids"} & set(found):
        assert not found[name][torch.isin(ids, torch.tensor([START, END, PLACEHOLDER]))].any()
    assert [(row == PLACEHOLDER).sum().item() for row in ids] == [LENGTHS[0], LENGTHS[1], 0]
    assert found["output_image_schedule_ids"].tolist() == [0, 1] and found["output_pixel_values"].shape == (2, 3, 16, 24)


@pytest.mark.parametrize("family", PREFIX)
def test_answers_of_a_prefix_reader(family):
    """PaliGemma's prompt is read in both directions: what is drawn belongs into the suffix, which is causal (type 1)."""
    image = READERS[family].image
    texts, images = [f"{image} what ?", f"{image} draw"], [[noise_image(3)], [noise_image(4)]]
    options = {"padding": True, "return_tensors": "pt"}
    expected = make_reader(family)(text=texts, images=images, suffix=["it is a", "yes"], **options)
    processor = make_processor(family)
    found = processor(text=texts, images=images, suffix=["it is a", f"{DRAWING} yes"], output_images=drawn_images()[:1], **options)
    drawn = torch.isin(found["input_ids"], torch.tensor([START, END, PLACEHOLDER]))
    assert (found["input_ids"] == PLACEHOLDER).sum() == LENGTHS[0] and (found["token_type_ids"][drawn] == 1).all()
    for name in ("input_ids", "token_type_ids", "labels"):
        for row in range(2):
            kept = found["attention_mask"][row].bool() & ~drawn[row]
            assert torch.equal(found[name][row][kept], expected[name][row][expected["attention_mask"][row].bool()]), name
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert "labels" not in processor(text=texts, images=images, **options)
    with pytest.raises(ValueError, match="in both directions.*belong into `suffix`"):
        processor(text=[f"{image} {DRAWING}"], images=images[:1], output_images=drawn_images()[:1])
    with pytest.raises(ValueError, match="one for each text"):
        processor(text=texts, images=images, suffix="yes")


@every_chat_reader
@pytest.mark.parametrize("marked", [True, False])
def test_assistant_masks(family, marked):
    """Right between placeholders of both kinds, whether the template marks the assistant's turns or they must be found."""
    processor = make_processor(family)
    if marked:
        template = processor.chat_template
        turn = template[template.index("{{ m['role'] }}") : template.index("{% endfor %}{% if")]
        marked_turn = "".join(["{% if m['role'] == 'assistant' %}{% generation %}", turn, "{% endgeneration %}{% else %}", turn, "{% endif %}"])
        processor.chat_template = template.replace(turn, marked_turn)
    first, second = drawn_images()
    image = {"type": "image", "image": noise_image(3, 40, 24)}
    said = {"type": "text", "text": "here "}, {"type": "output_image", "image": first}, {"type": "text", "text": " yes"}
    chats = [
        [
            {"role": "user", "content": [image, {"type": "text", "text": "what ? "}, image]},
            {"role": "assistant", "content": list(said)},
            {"role": "user", "content": [{"type": "output_image", "image": second}, image]},
            {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
        ],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ]
    out = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True, processor_kwargs={"padding": True}
    )
    tokenizer, masks = processor.tokenizer, torch.as_tensor(out["assistant_masks"]).bool()
    said = [" ".join(tokenizer.convert_ids_to_tokens(ids[mask])) for ids, mask in zip(out["input_ids"], masks)]
    drawn = " ".join([DRAWN_TOKENS[0], *[DRAWN_TOKENS[1]] * LENGTHS[0], DRAWN_TOKENS[2]])
    prompt = "assistant : " if marked else ""
    between = f" {prompt}" if marked else " "
    assert said == [f"{prompt}here {drawn} yes .{between}blue .", f"{prompt}b ."]
    assert out["output_image_schedule_ids"].tolist() == [0, 1]


@every_chat_reader
def test_spans_of_images(family):
    processor = make_processor(family)
    plain, drawn, images = prompts(family)
    out = processor(text=drawn, images=images, output_images=drawn_images(), padding=True, return_tensors="pt", return_image_spans=True)
    assert [len(row) for row in out["image_spans"]] == [1, 2, 0] and [len(row) for row in out["output_image_spans"]] == [1, 1, 0]
    found = torch.zeros_like(out["input_ids"])
    for row, spans in enumerate(out["image_spans"]):
        for first, last in spans:
            assert (out["input_ids"][row, first:last] == processor.image_token_id).any()
            found[row, first:last] = 1
    assert found[out["input_ids"] == processor.image_token_id].all()
    for row, spans in enumerate(out["output_image_spans"]):
        for first, last in spans:
            assert out["input_ids"][row, [first, last - 1]].tolist() == [START, END] and last - first == LENGTHS[row] + 2
    assert not {"offset_mapping", "text_replacement_offsets"} & set(out)


@every_chat_reader
def test_images_alone_are_prepared_as_with_their_text(family):
    processor = make_processor(family)
    plain, _, images = prompts(family)
    whole = processor(text=plain, images=images, padding=True, return_tensors="pt")
    alone = processor.reading_inputs(images)
    assert alone and all(equal(alone[name], whole[name]) for name in alone)
    assert processor.reading_inputs([[], []]) == {}


@every_reader
def test_saving_and_loading(family, tmp_path):
    processor = make_processor(family)
    processor.save_pretrained(tmp_path)
    loaded = VargptProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict() and loaded.chat_template == processor.chat_template
    image = READERS[family].image
    if family in PREFIX:
        given = {"text": f"{image} draw", "suffix": DRAWING, "images": noise_image(0), "output_images": drawn_images()[1]}
    else:
        given = {"text": f"{image} draw {DRAWING}", "images": noise_image(0), "output_images": drawn_images()[1]}
    before, after = processor(**given, return_tensors="pt"), loaded(**given, return_tensors="pt")
    assert before.keys() == after.keys() and all(equal(before[name], after[name]) for name in before)


LOAD = """
import sys
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
folder, image_token, drawing = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert "vargpt_hf" not in sys.modules
image = Image.new("RGB", (48, 48), (255, 0, 0))
out = processor(text=f"{image_token} draw {drawing}", images=image, output_images=image, return_tensors="pt")
names = [type(auto.from_pretrained(folder, trust_remote_code=True)).__name__ for auto in (AutoImageProcessor, AutoTokenizer)]
print(sorted(out), out["input_ids"].tolist(), names)
"""


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_saved_code_works_without_the_package(family, tmp_path):
    folder = tmp_path / "repo"
    processor = make_processor(family)
    processor.save_pretrained(folder)
    image = noise_image(0)
    out = processor(text=f"{READERS[family].image} draw {DRAWING}", images=image, output_images=image, return_tensors="pt")
    printed = run_without_package(LOAD, tmp_path, folder, READERS[family].image, DRAWING)
    name = type(processor.image_processor).__name__.removesuffix("Pil")
    assert printed.startswith(f"{sorted(out)} {out['input_ids'].tolist()} ['{name}")


# ---- a model that reads no images


def text_only(**kwargs) -> VargptProcessor:
    return VargptProcessor(VargptImageProcessor(**DRAWN), make_reader_tokenizer(), **kwargs)


def test_text_only(tmp_path):
    processor = text_only(chat_template=TEXT_TEMPLATE)
    chat = [
        {"role": "user", "content": "draw a"},
        {"role": "assistant", "content": [{"type": "output_image", "image": drawn_images()[0]}, {"type": "text", "text": " yes"}]},
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    out = processor.apply_chat_template(chat, **options)
    assert set(out) == {"input_ids", "attention_mask", "assistant_masks", "output_pixel_values", "output_image_schedule_ids"}
    assert (out["input_ids"] == PLACEHOLDER).sum() == LENGTHS[0] and (out["input_ids"] == 1).sum() == 2
    said = out["input_ids"][torch.as_tensor(out["assistant_masks"]).bool()]
    assert processor.decode(said[-2:]) == "yes ." and said[0] == START and len(said) == LENGTHS[0] + 4
    processor.save_pretrained(tmp_path)
    loaded = VargptProcessor.from_pretrained(tmp_path)
    again = loaded.apply_chat_template(chat, **options)
    assert loaded.to_dict() == processor.to_dict() and loaded.reader is None
    assert all(equal(out[name], again[name]) for name in out)
    with pytest.raises(ValueError, match="reads no images"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "image": drawn_images()[0]}]}])
    with pytest.raises(ValueError, match="reads no images"):
        processor(text="a", images=drawn_images()[0])


def test_an_empty_turn_of_a_text_only_model():
    """As training has it, where a prompt is dropped."""
    processor, chat = text_only(chat_template=TEXT_TEMPLATE), [{"role": "user", "content": ""}]
    rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert rendered == "<s>user :  . <s>assistant : "
    out = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert out["input_ids"] == processor(text=rendered)["input_ids"]


def test_our_template_without_images():
    rendered = text_only().apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "output_image"}]}])
    assert rendered == f"USER: a ASSISTANT:{DRAWING}</s>"


def test_what_a_template_refuses_is_a_value_error():
    processor = text_only(chat_template="{{ raise_exception('Conversations must start with a joke') }}")
    with pytest.raises(ValueError, match="cannot use .*start with a joke"):
        processor.apply_chat_template([{"role": "user", "content": "a"}])
    processor = text_only(chat_template="{% for m in messages %}{{ m.content }}{{ messages | length }}{% endfor %}")
    with pytest.raises(ValueError, match="does not mark what the assistant says"):
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)


# ---- refusals


def change_settings(folder, change):
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    change(settings["reader"])
    file.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda reader: reader.update(processor_class="NoProcessor"), "needs a `processor_class` of Transformers"),
        (lambda reader: reader.pop("processor_class"), "needs a `processor_class` of Transformers"),
        (lambda reader: reader.update(processor_class="AutoProcessor"), "needs a `processor_class` of Transformers"),
        (lambda reader: reader.update(processor_class="Gemma3Processor"), "do not make a Gemma3Processor"),
        (lambda reader: reader.update(processor_class="LlavaOnevisionProcessor"), "needs the settings and class of its `video_processor`"),
    ],
)
def test_readers_that_cannot_be_made(change, message, tmp_path):
    make_processor("llava").save_pretrained(tmp_path)
    change_settings(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        VargptProcessor.from_pretrained(tmp_path)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_missing_torchvision_is_said(tmp_path):
    make_processor("llava").save_pretrained(tmp_path)
    video = {"video_processor": {"video_processor_type": "Qwen2VLVideoProcessor"}}
    change_settings(tmp_path, lambda reader: reader.update(processor_class="Qwen2VLProcessor", **video))
    with pytest.raises(ImportError, match="by Qwen2VLProcessor.*not installed.*pip install torchvision"):
        VargptProcessor.from_pretrained(tmp_path)


def test_parts_that_do_not_belong_together():
    reader = make_reader("llava")
    with pytest.raises(ValueError, match="give the `reader`"):
        VargptProcessor(reader.image_processor, reader.tokenizer)

    class Own(type(reader)):
        pass

    reader.__class__ = Own
    with pytest.raises(ValueError, match="must be a processor of Transformers itself"):
        VargptProcessor(reader=reader).to_dict()


# ---- with models


def fitting_model(family: str) -> VargptForConditionalGeneration:
    """A tiny model that draws images of several schedules."""
    tokenizer = {
        "model_type": "vargpt_bsq",
        "schedules": DRAWN["schedules"],
        "latent_channels": 4,
        "base_channels": 8,
        "channel_multipliers": (1, 1, 2),
        "num_res_blocks": 1,
        "norm_num_groups": 4,
    }
    decoder = {"model_type": "vargpt_infinity_decoder", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    parts = {"image_tokenizer_config": tokenizer, "visual_decoder_config": {**decoder, "unconditional_context_size": 4}}
    torch.manual_seed(0)
    return VargptForConditionalGeneration(tiny_config(vlm_config=backbone_config(family), **parts)).eval()


MODELS = [family for family in AT_HAND if family not in PREFIX]


@pytest.mark.parametrize("family", MODELS)
def test_trains_and_generates(family):
    model, processor = fitting_model(family), make_processor(family)
    processor.check_fits(model.config)
    _, drawn, images = prompts(family)
    inputs = processor(text=drawn, images=images, output_images=drawn_images(), padding=True, return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    out = model(**inputs, labels=labels)
    out.loss.backward()
    assert torch.isfinite(out.loss) and out.output_image_logits.shape[1] == LENGTHS[1]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    single = processor(text=drawn[0] + DRAWN_TOKENS[0], images=images[0], output_images=drawn_images()[0], return_tensors="pt")
    generated = model.generate(
        **single, do_sample=False, max_new_tokens=LENGTHS[1] + 3, output_image_size=(16, 24), return_dict_in_generate=True
    )
    (parts,) = processor.post_process_interleaved(generated, single["input_ids"].shape[1])
    assert parts[0]["type"] == "output_image" and parts[0]["image"].size == (24, 16) and len(parts[0]["codes"]) == LENGTHS[1]


def test_prefix_reader_trains():
    family = "paligemma"
    model, processor = fitting_model(family), make_processor(family)
    given = {"text": ["<image> draw"], "images": noise_image(0), "suffix": [f"{DRAWING} yes"], "output_images": drawn_images()[0]}
    out = model(**processor(**given, return_tensors="pt"))
    assert torch.isfinite(out.loss) and out.text_loss > 0


@pytest.mark.parametrize("family", MODELS)
def test_fits(family):
    config = fitting_model(family).config
    make_processor(family).check_fits(config)
    for settings, message in (
        ({"schedules": [[1, 2, 4]]}, "schedules is .* in the processor, .* in the model"),
        ({"downsampling": 8}, "downsampling is 8 in the processor, 4 in the model"),
    ):
        with pytest.raises(ValueError, match=f"not that of this model: {message}"):
            make_processor(family, **settings).check_fits(config)
    config.output_image_token_id = 50
    with pytest.raises(ValueError, match="output_image_token_id is 63 in the processor, 50 in the model"):
        make_processor(family).check_fits(config)
    with pytest.raises(ValueError, match="whether images are read"):
        text_only().check_fits(fitting_model(family).config)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llava", {"patch_size": 4}, "patch_size is 4 in the processor, 8"),
        ("llava", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'full'"),
        ("llava_next", {"patch_size": 4}, "patch_size is 4 in the processor, 8"),
        ("idefics3", {"image_seq_len": 9}, "image_token_count is 9 in the processor, 4"),
        ("gemma3", {"image_seq_length": 9}, "image_token_count is 9 in the processor, 4"),
    ],
)
def test_readers_of_other_sizes_do_not_fit(family, change, message):
    processor = make_processor(family)
    for name, value in change.items():
        setattr(processor.reader, name, value)
    with pytest.raises(ValueError, match=message):
        processor.check_fits(fitting_model(family).config)


# ---- batches for training


def rows_of(family: str) -> list[dict]:
    """Rows for training: with images of both kinds, of several sizes, and without."""
    drawn = drawn_images()

    def row(said: str, images: list, outputs: list) -> dict:
        seen = [{"type": "image"} for _ in images]
        answer = [part for _ in outputs for part in ({"type": "output_image"}, {"type": "text", "text": " yes "})]
        turns = [{"role": "user", "content": [*seen, {"type": "text", "text": said}]}, {"role": "assistant", "content": [*answer]}]
        return {"messages": turns, "images": images, "output_images": outputs}

    image = functools.partial(noise_image, width=24, height=40)
    return [row("what ?", [image(3)], [*drawn]), row("a b c", [image(4), image(5)], [drawn[1]]), row("draw a", [], [drawn[0]])]


# Of LLaVA-OneVision an image has other tokens alone than beside others, and none of its rows is the start of a longer one.
CUT = [family for family in AT_HAND if family not in (*PREFIX, "llava_onevision")]


@pytest.mark.parametrize("family", CUT)
def test_a_cut_batch_is_that_of_its_rows_cut_alone(family):
    """Wherever rows are cut, what is read and what is drawn is what the kept tokens have places for."""
    processor, rows, model = make_processor(family), rows_of(family), fitting_model(family)
    whole = VargptDataCollator(processor)(rows)
    for max_length in range(4, int(whole["attention_mask"].sum(1).max()) + 1, 5):
        cut = VargptDataCollator(processor, max_length=max_length)(rows)
        alone = [VargptDataCollator(processor, max_length=max_length)([row]) for row in rows]
        for index, single in enumerate(alone):
            mask = cut["attention_mask"][index].bool()
            assert torch.equal(cut["input_ids"][index][mask], single["input_ids"][0][single["attention_mask"][0].bool()])
            assert mask.sum() <= max_length and torch.equal(cut["labels"][index][mask], single["labels"][0][single["attention_mask"][0].bool()])
        ids = torch.cat([single["output_image_schedule_ids"] for single in alone if "output_image_schedule_ids" in single] or [torch.zeros(0)])
        assert cut.get("output_image_schedule_ids", torch.zeros(0)).tolist() == ids.tolist()
        assert (cut["input_ids"] == PLACEHOLDER).sum() == sum(LENGTHS[int(index)] for index in ids)
        if max_length % 4 == 0:  # the model counts what is read
            assert torch.isfinite(model(**cut).text_loss)


PACKED = [family for family in AT_HAND if family in ("llava", "llava_siglip", "llava_next", "idefics3", "smolvlm", "internvl", "mistral3")]


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_have_the_losses_of_padded_ones(family):
    processor, rows, model = make_processor(family), rows_of(family), fitting_model(family)
    collator, padded = VargptDataCollator(processor, packing=True), VargptDataCollator(processor)(rows)
    collator.pack_in_one_row = True
    packed = collator([rows[2], rows[0], rows[1]])
    assert len(packed["input_ids"]) == 1 and "position_ids" in packed
    with torch.no_grad():
        ours, theirs = model(**packed), model(**padded)
    torch.testing.assert_close(ours.text_loss, theirs.text_loss, atol=1e-4, rtol=1e-4)
    assert (packed["input_ids"] == PLACEHOLDER).sum() == (padded["input_ids"] == PLACEHOLDER).sum()


@pytest.mark.parametrize("family", [family for family in AT_HAND if family in ("gemma3", "qwen2_vl", "qwen2_5_vl")])
def test_what_cannot_be_packed_says_so(family):
    with pytest.raises(ValueError, match="cannot be packed: .*token_type_ids.*`packing` off"):
        VargptDataCollator(make_processor(family), packing=True)(rows_of(family))
