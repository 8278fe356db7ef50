"""`pipeline("any-to-any")` and `pipeline("image-text-to-text")` with vargpt-tiny."""

import pytest
import torch
from PIL import Image
from transformers import pipeline

from vargpt_hf import VargptForConditionalGeneration, VargptGenerationConfig, VargptPipeline, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.judges import detect

SENTENCE = "a red circle above a blue square"


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def pipe():
    return pipeline("any-to-any", model=str(TINY_FOLDER), pipeline_class=VargptPipeline, dtype=torch.float32)


@pytest.fixture(scope="module")
def image(pipe):
    return pipe(user(text(SENTENCE)), generation_mode="image", max_new_tokens=2)[0]["generated_image"]


def seen(image):
    return sorted((item.colour, item.shape) for item in detect(image))


def test_image_mode_gives_a_image(image):
    assert isinstance(image, Image.Image) and image.size == (48, 48)
    assert seen(image) == [("blue", "square"), ("red", "circle")]


def test_the_model_decides_by_default(pipe):
    chat = user(text(f"draw {SENTENCE} and say what you drew"))
    (record,) = pipe(chat, max_new_tokens=40)
    assert record["input_text"] == chat
    drawn, said = record["generated_content"]
    assert seen(drawn["image"]) == [("blue", "square"), ("red", "circle")] and len(drawn["codes"]) == 46
    assert said == {"type": "text", "text": SENTENCE}


def test_where_no_image_may_follow_words_do(pipe):
    """The settings saved with the model sample among one token, which would be image-start."""
    for settings in ({"max_output_images": 0, "max_new_tokens": 8}, {"max_new_tokens": 1}):
        (record,) = pipe(f"draw {SENTENCE} and say what you drew", **settings)
        assert [part["type"] for part in record["generated_content"]] == ["text"] and record["generated_content"][0]["text"]


def test_full_text_is_a_chat_that_goes_on(pipe, image):
    chat = user({"type": "image", "image": image}, text("how many objects are there"))
    (record,) = pipe(chat, max_new_tokens=10, return_full_text=True)
    assert record["generated_content"] == [*chat, {"role": "assistant", "content": [text("two")]}]
    (begun,) = pipe([*chat, {"role": "assistant", "content": [text("tw")]}], max_new_tokens=3, return_full_text=True)
    assert begun["generated_content"][-1]["content"][0] == text("tw")
    longer = [*record["generated_content"], *user(text("what colour is the background"))]
    (record,) = pipe(longer, max_new_tokens=10)
    assert record["generated_content"] == [text("white")]


def test_text_mode_is_the_stock_one(pipe, image):
    chat = user({"type": "image", "image": image}, text("how many objects are there"))
    (new,) = pipe(chat, generation_mode="text", max_new_tokens=10, return_full_text=False)
    assert new["generated_text"].strip() == "two"
    (full,) = pipe(chat, generation_mode="text", max_new_tokens=10)
    assert full["generated_text"][0] == chat[0] and full["generated_text"][1]["role"] == "assistant"
    (ids,) = pipe(chat, generation_mode="text", max_new_tokens=10, return_tensors=True)
    assert pipe.tokenizer.decode(ids["generated_token_ids"], skip_special_tokens=True).endswith("two")
    (undrawn,) = pipe(user(text(f"draw {SENTENCE}")), generation_mode="text", max_new_tokens=5, return_tensors=True)
    assert pipe.model.config.output_image_start_token_id not in undrawn["generated_token_ids"]


def test_text_with_images_needs_no_chat(pipe, image):
    prompt = pipe.processor.apply_chat_template(user({"type": "image"}, text("how many objects are there")), add_generation_prompt=True)
    (record,) = pipe(text=prompt, images=image, max_new_tokens=10)
    assert record["generated_content"] == [text("two")]
    (record,) = pipe(text=prompt, images=image, max_new_tokens=10, return_full_text=True)
    assert record["generated_content"] == [text(prompt), text("two")]


def test_batches_give_what_single_chats_give(pipe, image):
    chats = [user(text(f"draw {SENTENCE}")), user(text("three orange squares")), user(text("hello"))]
    single = [pipe(chat, max_new_tokens=30) for chat in chats]
    batched = pipe(chats, max_new_tokens=30, batch_size=3)
    for alone, together in zip(single, batched, strict=True):
        left, right = alone[0]["generated_content"], together[0]["generated_content"]
        assert [part.get("text") for part in left] == [part.get("text") for part in right]
        assert [seen(part["image"]) for part in left if "image" in part] == [seen(part["image"]) for part in right if "image" in part]
    assert [part["type"] for part in batched[0][0]["generated_content"]] == ["output_image"]
    questions = [
        user({"type": "image", "image": image}, text(asked)) for asked in ("how many objects are there", "what colour is the background")
    ]
    assert [record[0]["generated_content"][0]["text"] for record in pipe(questions, batch_size=2, max_new_tokens=8)] == ["two", "white"]


def test_generate_kwargs_reach_the_model(pipe):
    chat = user(text(SENTENCE))
    given = {"generator": torch.Generator().manual_seed(1), "num_return_sequences": 3, "max_new_tokens": 2, "output_image_temperature": 1.5}
    records = pipe(chat, generation_mode="image", generate_kwargs=given)
    assert len({record["generated_image"].tobytes() for record in records}) == 3


def test_settings_of_the_pipeline_hold_until_a_call_says_otherwise():
    model, processor = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER), VargptProcessor.from_pretrained(TINY_FOLDER)
    pipe = model.float().as_pipeline(processor, generation_mode="image", generate_kwargs={"max_new_tokens": 2})
    assert isinstance(pipe(user(text(SENTENCE)))[0]["generated_image"], Image.Image)
    assert isinstance(pipe(user(text(SENTENCE)), generate_kwargs={"output_image_temperature": 0.1})[0]["generated_image"], Image.Image)
    assert pipe(user(text("hello")), generation_mode="text", max_new_tokens=20, return_full_text=False)[0]["generated_text"].strip()


def test_the_mode_is_what_the_call_the_pipeline_or_the_model_says(pipe):
    """In this order. In mode "text" the record has `generated_text`, in mode "image" `generated_image`."""

    def keys(made, **settings):
        return made(SENTENCE, max_new_tokens=2, **settings)[0].keys() - {"input_text"}

    for settings in ({"generate_kwargs": {"generation_mode": "image"}}, {"generation_config": VargptGenerationConfig(generation_mode="image")}):
        assert keys(pipe, **settings) == {"generated_image"}
        built = pipe.model.as_pipeline(pipe.processor, **settings)
        assert keys(built) == {"generated_image"} and keys(built, generate_kwargs={"generation_mode": "text"}) == {"generated_text"}
    assert keys(pipe, generation_mode="image", generate_kwargs={"generation_mode": "image"}) == {"generated_image"}
    with pytest.raises(ValueError, match="`generation_mode` is 'text', but in `generate_kwargs` it is 'image'"):
        keys(pipe, generation_mode="text", generate_kwargs={"generation_mode": "image"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.model.generation_config, "generation_mode", "text")
        made = pipe.model.as_pipeline(pipe.processor)
        assert keys(made) == {"generated_text"} and keys(made, generation_mode="image") == {"generated_image"}
    assert keys(pipe) == {"generated_content"}


@pytest.mark.parametrize("task", ["any-to-any", "image-text-to-text"])
def test_a_saved_folder_needs_neither_remote_code_nor_torchvision(task, tmp_path, image, caplog):
    """Holds also for a model object that was saved before: saving notes the repository's pipeline in its configuration."""
    model, processor = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER), VargptProcessor.from_pretrained(TINY_FOLDER)
    model.float().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert "custom_pipelines" in (tmp_path / "config.json").read_text()
    chat = user({"type": "image", "image": image}, text("how many objects are there"))
    for given in ({"model": str(tmp_path)}, {"model": model, "processor": processor}):
        caplog.clear()
        made = pipeline(task, dtype=torch.float32, **given)
        (record,) = made(chat, max_new_tokens=10, **({} if task == "any-to-any" else {"return_full_text": False}))
        answer = record["generated_content"][0]["text"] if task == "any-to-any" else record["generated_text"]
        assert answer == "two"
        assert not [entry for entry in caplog.records if "not supported" in entry.message]


def test_other_models_keep_the_stock_pipelines():
    from transformers import AnyToAnyPipeline, ImageTextToTextPipeline

    from vargpt_hf.modeling.pipeline_vargpt import AnyToAnyOfAll, ImageTextToTextOfAll

    class Stock(torch.nn.Module):
        input_modalities = ()

    for made, stock in ((AnyToAnyOfAll, AnyToAnyPipeline), (ImageTextToTextOfAll, ImageTextToTextPipeline)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stock, "__init__", lambda self, **kwargs: vars(self).update(kwargs))
            built = made(model=Stock(), task="x")
            assert type(built) is stock and built.task == "x"


def test_a_plain_text_is_the_turn_of_a_user(pipe, image):
    (record,) = pipe(f"draw {SENTENCE}", max_new_tokens=30)
    assert seen(record["generated_content"][0]["image"]) == [("blue", "square"), ("red", "circle")]
    assert record["input_text"][0]["role"] == "user"
    (record,) = pipe("how many objects are there", images=image, max_new_tokens=10)
    assert record["generated_content"] == [text("two")]
    both = pipe([f"draw {SENTENCE}", "hello"], max_new_tokens=30)
    assert [parts[0]["generated_content"][0]["type"] for parts in both] == ["output_image", "text"]
    streamed = list(pipe(({"text": words, "images": image} for words in ("how many objects are there",)), max_new_tokens=10))
    assert streamed[0][0]["generated_content"] == [text("two")]
    for empty in ("", "  ", [""], []):
        with pytest.raises(ValueError, match="empty"):
            pipe(empty)
    with pytest.raises(ValueError, match="2 texts and `images` for 1"):
        pipe(["a", "b"], images=[image])
    for wrong in (7, [7]):
        with pytest.raises(TypeError, match="must be a chat, a text"):
            pipe(wrong)
    with pytest.raises(ValueError, match="neither a text nor images"):
        pipe({"words": "a"})


def test_images_beside_a_chat_go_into_it(pipe, image):
    def answers(chat, **settings):
        records = pipe(chat, max_new_tokens=10, **settings)
        parts = [record["generated_content"] for each in records for record in (each if isinstance(each, list) else [each])]
        return [part["text"] for (part,) in parts]

    asked, place, other = "how many objects are there", {"type": "image"}, Image.new("RGB", (48, 48), "white")
    plain = [{"role": "user", "content": asked}]
    for chat in (plain, user(text(asked)), user(place, text(asked)), user({**place, "image": None}, text(asked))):
        before = repr(chat)
        assert answers(chat, images=image) == answers(chat, images=[image]) == ["two"] and repr(chat) == before
    assert answers([plain, user(text(asked))], images=image, batch_size=2) == ["two", "two"]
    assert answers([plain, user(place, text(asked))], images=[image, [image]]) == ["two", "two"]
    longer = [*user(text("hello")), {"role": "assistant", "content": "hello"}, *user(text(asked))]
    (record,) = pipe(longer, images=image, max_new_tokens=10)
    assert record["input_text"] == [*longer[:2], *user({"type": "image", "image": image}, text(asked))]
    (record,) = pipe(user(place, text("and"), place), images=[image, other], max_new_tokens=2)
    assert [part.get("image") for part in record["input_text"][0]["content"]] == [image, None, other]


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        (user({"type": "image"}, {"type": "image"}, text("a")), {"images": [1]}, "2 image parts without an image, and `images` has 1"),
        ([user(text("a"))] * 2, {"images": ["x.png"]}, "2 chats and `images` for 1"),
        ([{"role": "system", "content": "a"}], {"images": "x.png"}, "no turn of a user"),
        (user(text("a")), {"images": "/nowhere/x.png"}, "neither an existing file"),
        (({"text": words} for words in "a"), {"images": "x.png"}, "let each input hold its own"),
        (user(text("a")), {"videos": ["x.mp4"]}, "`videos` was given"),
        ("a", {"audio": "x.wav"}, "`audio` was given"),
        ({"text": "a", "videos": "x.mp4"}, {}, "`videos` was given"),
        ({"text": "a", "image": "x.png"}, {}, "takes `images` beside it, not `image`"),
    ],
)
def test_nothing_beside_a_text_or_chat_is_dropped(pipe, given, more, message):
    with pytest.raises((ValueError, OSError), match=message):
        pipe(given, max_new_tokens=2, **more)


def test_settings_of_generate_are_arguments_and_misspelt_ones_are_refused(pipe):
    given = {"generator": torch.Generator().manual_seed(1), "num_return_sequences": 3, "do_sample": True, "output_image_temperature": 1.5}
    records = pipe(SENTENCE, generation_mode="image", **given)
    assert len({record["generated_image"].tobytes() for record in records}) == 3
    for wrong, meant in (("image_temprature", "output_image_temperature"), ("max_new_token", "max_new_tokens"), ("genrator", "generator")):
        with pytest.raises(ValueError, match=f"no argument `{wrong}`: do you mean `{meant}`"):
            pipe(SENTENCE, **{wrong: 1})
        with pytest.raises(ValueError, match=f"no argument `{wrong}`: do you mean `{meant}`"):
            pipe.model.as_pipeline(pipe.processor, **{wrong: 1})
    with pytest.raises(ValueError, match="image_temprature"):
        pipe(SENTENCE, generate_kwargs={"image_temprature": 1.0})
    assert isinstance(pipe(SENTENCE, padding=True, generation_mode="image")[0]["generated_image"], Image.Image)


def test_codes_stay_out_of_sight_and_can_be_fed_back(pipe):
    (record,) = pipe(f"draw {SENTENCE}", max_new_tokens=30, return_full_text=True)
    shown = repr(record)
    assert "<46 codes>" in shown and "tensor" not in shown and len(shown) < 500
    chat = [*record["generated_content"], *user(text("how many objects are there"))]
    (record,) = pipe(chat, max_new_tokens=10)
    assert record["generated_content"] == [text("two")]


def test_an_answer_does_not_begin_with_a_space(pipe, image):
    chat = user({"type": "image", "image": image}, text("how many objects are there"))
    writer = pipeline("image-text-to-text", model=pipe.model, processor=pipe.processor)
    begun = [*user(text(f"repeat: {SENTENCE}")), {"role": "assistant", "content": [text("a red circle")]}]
    for made, settings in ((pipe, {"generation_mode": "text"}), (writer, {})):
        (new,) = made(text=chat, max_new_tokens=10, return_full_text=False, **settings)
        assert new["generated_text"] == "two"
        (full,) = made(text=chat, max_new_tokens=10, return_full_text=True, **settings)
        assert full["generated_text"][-1] == {"role": "assistant", "content": "two"}
        (more,) = made(text=begun, max_new_tokens=10, return_full_text=False, **settings)
        assert more["generated_text"] == " above a blue square"  # the next word of a turn that was begun


def test_what_cannot_be_is_refused(pipe):
    with pytest.raises(ValueError, match="generation_mode"):
        pipe(user(text(SENTENCE)), generation_mode="video")
    with pytest.raises(ValueError, match="return_type"):
        pipe(user(text(SENTENCE)), generation_mode="image", return_full_text=True)


def test_image_text_to_text_works_too(image):
    pipe = pipeline("image-text-to-text", model=str(TINY_FOLDER), dtype=torch.float32)
    chat = user({"type": "image", "image": image}, text("how many objects are there"))
    (record,) = pipe(text=chat, generate_kwargs={"generation_mode": "text"}, max_new_tokens=10, return_full_text=False)
    assert record["generated_text"].strip() == "two"
    with pytest.raises(ValueError, match="only writes, but `generation_mode` is 'image'"):
        pipe(text=chat, generate_kwargs={"generation_mode": "image"})
