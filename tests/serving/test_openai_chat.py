"""Chats by OpenAI's own client: texts and images both ways."""

import openai
import pytest
from served import PROMPT, image_of, url_of

from vargpt_hf.inference.drawing import answer
from vargpt_hf.serving.bodies import ChatBody, parse
from vargpt_hf.serving.preparing import Preparer
from vargpt_hf.serving.settings import ServerSettings
from vargpt_hf.tiny.digits import digit_image, load_split

BOTH = {"modalities": ["text", "image"], "model": "vargpt-tiny"}
DRAW_AND_SAY = [{"role": "user", "content": f"draw {PROMPT} and say what you drew"}]
CAN_DO = "i can draw shapes and digits and answer questions about pictures"


def digit_question(index):
    digits, labels = load_split("test")
    image = {"type": "image_url", "image_url": {"url": url_of(digit_image(digits[index])), "detail": "low"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "which digit is this"}]}], str(labels[index])


def test_answers_about_images(client):
    for index in range(3):
        question, label = digit_question(index)
        choice = client.chat.completions.create(messages=question, model="vargpt-tiny").choices[0]
        assert (choice.message.content, choice.finish_reason) == (label, "stop")


def test_answers_come_word_by_word(client):
    chunks = list(client.chat.completions.create(messages=[{"role": "user", "content": "what can you do"}], model="", stream=True))
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(words) == CAN_DO and len(words) > 5
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("given", [{"top_p": 0.5}, {"top_k": 7}, {"temperature": 0.5}, {"image_top_p": 0.5}, {"image_top_k": 7}])
def test_settings_of_sampling_count_where_the_model_takes_the_likeliest(tiny, monkeypatch, given):
    """Whoever gives one wants to sample; what is not given, and nothing else, is as likely as can be."""
    preparer = Preparer(*tiny, ServerSettings())
    monkeypatch.setattr(preparer.defaults, "do_sample", False)
    messages = [{"role": "user", "content": "what can you do"}]
    likeliest = {"do_sample": True, "output_image_top_k": 1, "output_image_top_p": 0.0, "output_image_temperature": 1.0}
    likeliest |= {"temperature": 1.0, "top_k": 1}
    assert preparer.answers(parse(ChatBody, {"messages": messages}))[0].settings.items() >= likeliest.items()
    settings = preparer.answers(parse(ChatBody, {"messages": messages, **given}))[0].settings
    ((name, value),) = given.items()
    assert settings[name.replace("image_", "output_image_")] == value
    other = "output_image_temperature" if name in ("top_p", "top_k", "temperature") else "temperature"
    assert settings[other] == 1.0


def test_draws_nothing_unless_asked_for_images(client):
    """Asked to draw, it goes on in words: no image's tokens come out, which would be 46."""
    answered = client.chat.completions.create(messages=DRAW_AND_SAY, model="vargpt-tiny")
    assert answered.usage.completion_tokens < 40 and "<" not in answered.choices[0].message.content


def test_texts_and_images_come_in_order(client, tiny):
    message = client.chat.completions.create(messages=DRAW_AND_SAY, seed=3, **BOTH).choices[0].message
    (parts,) = answer(*tiny, [DRAW_AND_SAY], seeds=[3], max_new_tokens=64).parts
    assert [part["type"] for part in parts] == ["output_image", "text"]
    assert message.content == PROMPT == parts[1]["text"]
    assert message.content_parts == [{"type": "image", "index": 0}, {"type": "text", "text": PROMPT}]
    assert image_of(message.images[0]["image_url"]["url"]).tobytes() == parts[0]["image"].tobytes()


@pytest.mark.parametrize("more", [{"max_tokens": 1}, {"extra_body": {"max_output_images": 0}, "max_tokens": 20}])
def test_where_no_image_may_follow_words_do(client, more):
    answered = client.chat.completions.create(messages=DRAW_AND_SAY, **BOTH, **more)
    message = answered.choices[0].message
    assert message.content and not hasattr(message, "images") and answered.usage.completion_tokens <= more["max_tokens"]


def test_streams_texts_and_images_in_order(client):
    """What is streamed is what comes at once, an image when it is whole."""
    whole = client.chat.completions.create(messages=DRAW_AND_SAY, seed=3, **BOTH).choices[0].message
    stream = client.chat.completions.create(messages=DRAW_AND_SAY, seed=3, stream=True, stream_options={"include_usage": True}, **BOTH)
    chunks, order, text, images = list(stream), [], "", []
    for chunk in chunks[:-1]:
        delta = chunk.choices[0].delta
        if getattr(delta, "images", None):
            images += delta.images
            order.append("image")
        elif delta.content:
            text += delta.content
            order.append("text")
    assert order[0] == "image" and set(order[1:]) == {"text"}
    assert text == whole.content and [image["index"] for image in images] == [0]
    assert image_of(images[0]["image_url"]["url"]).tobytes() == image_of(whole.images[0]["image_url"]["url"]).tobytes()
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 46


def test_an_image_alone(client):
    message = client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], model="vargpt-tiny", modalities=["image"])
    choice = message.choices[0]
    assert choice.message.content is None and len(choice.message.images) == 1 and choice.finish_reason == "stop"


def test_an_answer_can_be_sent_back_as_it_came(client, tiny):
    """Its image is one that the model drew, at its place before the text."""
    first = client.chat.completions.create(messages=DRAW_AND_SAY, seed=3, **BOTH).choices[0].message
    more = {"role": "user", "content": "which shape is red"}
    second = client.chat.completions.create(messages=[*DRAW_AND_SAY, first.model_dump(exclude_none=True), more], **BOTH)
    drawn = {"type": "output_image", "image": image_of(first.images[0]["image_url"]["url"])}
    said = {"role": "assistant", "content": [drawn, {"type": "text", "text": PROMPT}]}
    (parts,) = answer(*tiny, [[*DRAW_AND_SAY, said, more]], max_new_tokens=64).parts
    assert second.choices[0].message.content == "".join(part["text"] for part in parts if part["type"] == "text")
    assert second.usage.prompt_tokens > 46


def test_several_answers(client):
    choices = client.chat.completions.create(messages=DRAW_AND_SAY, n=2, seed=1, **BOTH).choices
    assert [choice.index for choice in choices] == [0, 1] and all(len(choice.message.images) == 1 for choice in choices)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_end_an_answer_and_are_no_part_of_it(client, stream):
    """Even where they come over several tokens, and nothing of them is streamed before."""
    asked = {"messages": [{"role": "user", "content": "what can you do"}], "model": "vargpt-tiny", "stop": ["s and digits", "never"]}
    answered = client.chat.completions.create(stream=stream, **asked)
    if stream:
        chunks = list(answered)
        said, reason = "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0].finish_reason
    else:
        said, reason = answered.choices[0].message.content, answered.choices[0].finish_reason
    assert (said, reason) == ("i can draw shape", "stop")


def test_an_answer_that_is_cut_says_so(client):
    answered = client.chat.completions.create(messages=[{"role": "user", "content": "what can you do"}], model="", max_tokens=3)
    choice = answered.choices[0]
    assert (choice.message.content, choice.finish_reason, answered.usage.completion_tokens) == ("i can draw", "length", 3)


def test_system_and_developer_messages_are_read(client):
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "be brief"}, {"role": "user", "content": "what can you do"}]
        assert client.chat.completions.create(messages=messages, model="").usage.prompt_tokens > 11


def test_models(client):
    assert [model.id for model in client.models.list()] == ["vargpt-tiny"] and client.models.retrieve("vargpt-tiny").owned_by == "vargpt-hf"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-image-2' here; leave `model` out, or give 'vargpt-tiny'"):
        client.images.generate(prompt=PROMPT, model="gpt-image-2")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "This model calls no tools: leave out `tools`"),
        ({"tool_choice": "required"}, "leave out `tool_choice`"),
        ({"response_format": {"type": "json_object"}}, "Answers are plain text"),
        ({"logprobs": True}, "Log probabilities are not given out"),
        ({"frequency_penalty": 0.5}, "There is `repetition_penalty` instead"),
        ({"stop": ["a"] * 5}, "`stop` must be up to 4 texts"),
        ({"max_tokens": 10_000}, "this server gives up to 1024 tokens"),
        ({"n": 100}, "this server gives up to 8 at once"),
        ({"messages": [*DRAW_AND_SAY, {"role": "tool", "content": "4", "tool_call_id": "x"}]}, "is about tools, and this model calls none"),
        ({"messages": [*DRAW_AND_SAY, {"role": "assistant", "content": "yes"}]}, "The last message is the assistant's"),
        ({"messages": [{"role": "user", "content": "red <image> circle"}]}, "special token '<image>'"),
        ({"messages": [{"role": "user", "content": "red " * 1200}]}, "the model has room for 1024"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(client, more, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**{"messages": DRAW_AND_SAY, "model": "vargpt-tiny", **more})


def test_what_asks_for_nothing_is_taken(client):
    idle = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logprobs": False, "presence_penalty": 0, "user": "me"}
    said = client.chat.completions.create(messages=[{"role": "user", "content": "what can you do"}], model="", **idle)
    assert said.choices[0].message.content == CAN_DO
