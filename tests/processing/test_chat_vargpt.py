"""The chat template's exact text, and what conversations may contain."""

import numpy as np
import pytest
from noise_images import noise_image
from processing_helpers import IMAGE_TOKENS, LLAVA, make_tokenizer

from vargpt_hf.processing import RELEASED_SYSTEM_PROMPT, VargptCLIPImageProcessor, VargptProcessor, make_chat_template

IMAGE, START, PLACEHOLDER, END = IMAGE_TOKENS
DRAWING = START + PLACEHOLDER + END


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def text(content):
    return {"type": "text", "text": content}


HI = [user("hi"), assistant("hello")]


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        (HI, "USER: hi ASSISTANT: hello</s>"),
        ([user([text("hi")]), assistant([text("hel"), text("lo")])], "USER: hi ASSISTANT: hello</s>"),
        ([*HI, user("why"), assistant("so")], "USER: hi ASSISTANT: hello</s> USER: why ASSISTANT: so</s>"),
        ([{"role": "system", "content": "Be kind."}, *HI], "Be kind. USER: hi ASSISTANT: hello</s>"),
        ([user([{"type": "image"}, text("what?")])], f"USER: {IMAGE}\nwhat?"),
        ([user([text("what? "), {"type": "image"}])], f"USER: what? {IMAGE}"),
        ([user([{"type": "image"}, {"type": "image"}])], f"USER: {IMAGE}{IMAGE}"),
        ([user("draw"), assistant([{"type": "output_image"}])], f"USER: draw ASSISTANT:{DRAWING}</s>"),
        (
            [user("draw"), assistant([text("Here:"), {"type": "output_image"}, text(" done")])],
            f"USER: draw ASSISTANT: Here:{DRAWING} done</s>",
        ),
        ([user([text(""), {"type": "image"}, text("")]), assistant(None)], f"USER: {IMAGE} ASSISTANT:</s>"),
    ],
)
def test_rendered_text(processor, chat, expected):
    assert processor.apply_chat_template(chat) == expected


def test_generation_prompt_and_continuation(processor):
    assert processor.apply_chat_template(HI[:1], add_generation_prompt=True) == "USER: hi ASSISTANT:"
    assert processor.apply_chat_template(HI, continue_final_message=True) == "USER: hi ASSISTANT: hello"
    drawn = [user("hi"), assistant([{"type": "output_image"}, text("")])]
    assert processor.apply_chat_template(drawn, continue_final_message=True) == f"USER: hi ASSISTANT:{DRAWING}"
    with pytest.raises(ValueError, match="ends in a text part"):
        processor.apply_chat_template([user("hi"), assistant([{"type": "output_image"}])], continue_final_message=True)


def test_released_system_line():
    processor = VargptProcessor(None, make_tokenizer(), make_chat_template(RELEASED_SYSTEM_PROMPT))
    assert processor.apply_chat_template(HI) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: hi ASSISTANT: hello</s>"
    )
    own = processor.apply_chat_template([{"role": "system", "content": "Be kind."}, *HI])
    assert own == "Be kind. USER: hi ASSISTANT: hello</s>"


def test_template_takes_the_processors_tokens():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<look>"], special_tokens=True)
    processor = VargptProcessor(VargptCLIPImageProcessor(), tokenizer, reader={**LLAVA, "image_token": "<look>"})
    assert processor.apply_chat_template([user([{"type": "image"}])]) == "USER: <look>"
    with pytest.raises(ValueError, match="has no token '<draw>'.*add_tokens"):
        VargptProcessor(None, tokenizer, output_image_start_token="<draw>")
    with pytest.raises(ValueError, match="has no token '<see>'.*add_tokens"):
        VargptProcessor(VargptCLIPImageProcessor(), tokenizer, reader={**LLAVA, "image_token": "<see>"})


def test_conversation_is_left_as_it_was(processor):
    image = noise_image(0)
    chat = [user([text("a"), {"type": "image", "image": image, "text": None}]), assistant([{"type": "output_image"}])]
    options = {"padding": True, "output_images": [image]}
    processor.apply_chat_template(chat, tokenize=True, return_dict=True, processor_kwargs=options)
    assert chat == [
        user([text("a"), {"type": "image", "image": image, "text": None}]),
        assistant([{"type": "output_image"}]),
    ]
    assert options == {"padding": True, "output_images": [image]}
    with pytest.raises(ValueError, match="image parts carry images; processor_kwargs must not give `images` too"):
        processor.apply_chat_template(chat, tokenize=True, return_dict=True, processor_kwargs={**options, "images": [image]})


@pytest.mark.parametrize("token", [*IMAGE_TOKENS, "</s>", "<s>", "<pad>"])
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_texts_cannot_smuggle_special_tokens(processor, token, role):
    chat = [{"role": role, "content": f"a{token}b"}]
    with pytest.raises(ValueError, match="Message 0 has the special token .* in its text.*change its spelling"):
        processor.apply_chat_template(chat)


def test_special_token_spread_over_parts_is_refused(processor):
    with pytest.raises(ValueError, match="Message 0 has the special token '<image>'"):
        processor.apply_chat_template([user([text("<ima"), text("ge>")])])
    with_image_between = [user([text("<ima"), {"type": "image"}, text("ge>")])]
    assert processor.apply_chat_template(with_image_between) == f"USER: <ima{IMAGE}\nge>"


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "conversation is empty"),
        ("hello", "conversation is a str"),
        ({"role": "user", "content": "a"}, "conversation is a dict"),
        (["hello"], "Message 0 is a str; a message is a dict"),
        ([user(5)], "Message 0 has a content of type int"),
        ([user({"type": "text", "text": "a"})], "content of type dict; it must be a text or a list of parts"),
        ([{"from": "narrator", "value": "a"}], "role 'narrator'"),
        ([{"role": ["user"], "content": "a"}], "role .'user'."),
        ([user([{"type": "image_url", "image_url": 5}])], "image_url of type int"),
        ([user([{"type": "image_url", "image_url": {"url": 5}}])], "image_url of type int"),
        ([user([{"type": ["text"]}])], "type .'text'.; types are"),
        ([user("a\ud800b")], "half a character, .*, at character 1 of its text"),
        ([[user("a")], []], "conversation is empty"),
        ([{"role": "tool", "content": "a"}], "role 'tool'; roles are user, assistant and system"),
        ([user([{"type": "video"}])], "type 'video'; types are text, image and output_image"),
        ([user(["a"])], "must be a dict, got str"),
        ([user([{"type": "text"}])], "text part without a text"),
        ([user([{"type": "image", "codes": [1]}])], "part of type image with codes"),
        ([user([{"type": "image", "image": "a", "url": "b"}])], "with image and url"),
        ([user([{"type": "text", "text": "a", "image": "b"}])], "part of type text with image"),
    ],
)
def test_refused_conversations(processor, chat, message):
    with pytest.raises((ValueError, TypeError), match=message):
        processor.apply_chat_template(chat)


def test_llavas_form_of_a_message(processor):
    chat = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    assert processor.apply_chat_template(chat) == "Be kind. USER: hi ASSISTANT: hello</s>"


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% if %}", "{{ messages[7].a.b }}"])
def test_errors_of_a_template_are_put_into_words(processor, template):
    with pytest.raises(ValueError, match="The chat template cannot use what it was given") as caught:
        processor.apply_chat_template(HI, template)
    assert type(caught.value) is ValueError


def test_system_must_come_first(processor):
    with pytest.raises(ValueError, match="system comes first"):
        processor.apply_chat_template([*HI, {"role": "system", "content": "a"}])


def test_openai_form_of_a_image(processor, tmp_path):
    noise_image(0).save(tmp_path / "a.png")
    chat = [user([{"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}}])]
    out = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="np")
    reference = processor(text=IMAGE, images=noise_image(0), return_tensors="np")
    assert np.array_equal(out["pixel_values"], reference["pixel_values"])
