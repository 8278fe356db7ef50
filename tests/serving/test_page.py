"""The page: what its buttons do, by themselves and by Gradio's client."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from noise_images import noise_image
from PIL import Image
from served import PROMPT

from vargpt_hf.inference.drawing import answer
from vargpt_hf.serving.app import listen
from vargpt_hf.serving.errors import ApiError
from vargpt_hf.serving.image_files import encode, facts_of
from vargpt_hf.serving.page_actions import PageActions, enlarge, enlarged_times, message_of_model, message_of_user, restored
from vargpt_hf.serving.settings import ServerSettings
from vargpt_hf.tiny.shapes import Scene, SceneObject, render


@pytest.fixture(scope="module")
def actions(tiny):
    made = PageActions(*tiny, "vargpt-tiny", ServerSettings())
    made.engine.start()
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def scene():
    return render(Scene((SceneObject("circle", "red", "large", (0, 0)), SceneObject("square", "blue", "large", (1, 0)))))


def last(stream):
    *_, end = stream
    return end


def test_images_grow_scale_by_scale_side_by_side(actions, tiny):
    counts = [[len(drawing.frames) for drawing in drawings] for drawings in actions.draw("me", PROMPT, 2, {"seed": 4})]
    assert counts[-1] == [3, 3] and all(a != b for a, b in zip(counts, counts[1:]))
    for drawing in last(actions.draw("me", PROMPT, 2, {"seed": 4})):
        (here,) = answer(*tiny, [PROMPT], "image", seeds=[drawing.seed], do_sample=True).images
        there = Image.open(drawing.file)
        assert np.abs(np.asarray(here, int) - np.asarray(there, int)).max() <= 1
        assert facts_of(there) == {"model": "vargpt-tiny", "prompt": PROMPT, "seed": drawing.seed, "size": "48x48"}


def test_only_a_model_that_is_known_has_prompts_to_try(actions, tiny):
    assert PROMPT in actions.prompts and not PageActions(*tiny, "mine", ServerSettings()).prompts


def test_a_png_brings_its_settings_back(actions, tmp_path):
    given = {"seed": 5, "guidance_type": "prompt", "guidance_scale": 2.5, "negative_prompt": "a digit", "image_temperature": 0.5}
    (drawing,) = last(actions.draw("me", PROMPT, 1, given))
    facts = restored(drawing.file)
    prompt = facts.pop("prompt")
    (again,) = last(actions.draw("me", prompt, 1, facts))
    assert facts == {**given, "size": "48x48"} and Image.open(again.file).tobytes() == Image.open(drawing.file).tobytes()
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    (tmp_path / "words.png").write_text("no image")
    for file in ("other.png", "words.png"):
        with pytest.raises(ApiError, match="does not say what it was drawn from"):
            restored(tmp_path / file)


@pytest.mark.parametrize("enlarged", [True, False])
def test_only_what_is_painted_changes(actions, scene, enlarged):
    """On the small image, and on it as the page shows it, enlarged."""
    shown = enlarge(scene) if enlarged else scene
    area = Image.new("L", shown.size)
    area.paste(255, (0, shown.height // 2, shown.width, shown.height))
    (drawing,) = last(actions.edit("me", shown, area, "a green triangle", {"seed": 1}))
    before, after = np.asarray(scene), np.asarray(Image.open(drawing.file))
    assert np.array_equal(before[:24], after[:24]) and np.abs(before[24:].astype(int) - after[24:]).mean() > 5
    assert all(np.array_equal(before[:24], np.asarray(frame)[:24]) for frame in drawing.frames)


def test_without_paint_the_image_is_read(actions, scene, tiny):
    (drawing,) = last(actions.edit("me", enlarge(scene), None, PROMPT, {"seed": 2}))
    chat = [{"role": "user", "content": [{"type": "image", "image": scene}, {"type": "text", "text": PROMPT}]}]
    (here,) = answer(*tiny, [chat], "image", seeds=[2], do_sample=True).images
    assert Image.open(drawing.file).tobytes() == here.tobytes()


def test_enlarging_can_be_undone_and_large_images_stay():
    noise, flat = noise_image(0, 48, 32), Image.new("RGB", (512, 512))
    assert enlarge(noise).size == (480, 320) and enlarged_times(enlarge(noise), [(16, 16), (32, 48)]) == 10
    assert enlarged_times(noise, [(32, 48)]) == enlarged_times(flat, [(48, 48)]) == enlarged_times(noise.resize((480, 320)), [(32, 48)]) == 1
    assert enlarge(Image.new("RGB", (300, 20))).size == (300, 20)


def test_chat_with_images_both_ways(actions, scene, tmp_path):
    scene.save(tmp_path / "scene.png")
    asked = [message_of_user(f"draw {PROMPT} and say what you drew", [])]
    parts = last(actions.chat("me", asked, True, 64, {"seed": 3}))
    assert isinstance(parts[0], Path) and parts[1] == PROMPT and facts_of(Image.open(parts[0]))["seed"] == 3
    more = [*asked, message_of_model(parts), message_of_user("which shape is at the top", [str(tmp_path / "scene.png")])]
    assert all(isinstance(part, str) for part in last(actions.chat("me", more, False, 64, {})))


def test_the_stop_button_stops_at_once(actions):
    """One session's alone; what was shown stays."""
    shown, other = [], []
    stream = actions.draw("me", PROMPT, 8, {})
    theirs = threading.Thread(target=lambda: other.extend(actions.draw("you", PROMPT, 1, {})))
    theirs.start()
    for drawings in stream:
        shown.append(drawings)
        actions.stop("me")
    theirs.join(timeout=30)
    assert other[-1][0].file and not any(drawing.file for drawing in shown[-1])
    end = time.monotonic() + 10
    while actions.engine._running and time.monotonic() < end:
        time.sleep(0.01)
    assert not actions.engine._running and not actions._running


def test_the_stop_button_knows_all_that_a_session_runs(actions):
    """Also what still runs when something else of the same session has ended."""
    first, shown = actions.draw("me", PROMPT, 1, {}), []
    next(first)
    second = threading.Thread(target=lambda: shown.extend(actions.draw("me", PROMPT, 8, {})))
    second.start()
    end = time.monotonic() + 10
    while len(actions._running) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert last(first)[0].file
    actions.stop("me")
    second.join(timeout=30)
    assert not second.is_alive() and not any(drawing.file for drawings in shown for drawing in drawings) and not actions._running


def test_errors_are_sentences(actions, scene):
    for stream, message in (
        (actions.draw("me", "", 1, {}), "The prompt is empty."),
        (actions.draw("me", PROMPT, 99, {"seed": -1}), "`seed` is -1"),
        (actions.edit("me", None, None, PROMPT, {}), "There is no image to edit"),
        (actions.chat("me", [message_of_user("", [])], True, 20, {}), "There is nothing to answer"),
    ):
        with pytest.raises(ApiError, match=message):
            next(stream)


# ---- the page itself


@pytest.fixture(scope="module")
def page(actions):
    """Its address."""
    pytest.importorskip("gradio", reason='an extra of its own: pip install "vargpt-hf[demo]"')
    from vargpt_hf.serving.page import build_page, launching

    built = build_page(actions)
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    built.launch(server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, **launching(actions.engine.settings))
    yield built.local_url
    built.close()


@pytest.fixture(scope="module")
def visitor(page):
    from gradio_client import Client

    return Client(page, verbose=False)


SET = [5, "48x48", "", "the model's own", "", "", "", "", False]  # the settings of the page, the seed not rolled


def test_gradio_s_client_draws(visitor, tiny):
    current, images, strip, *_ = visitor.predict(PROMPT, 2, *SET, api_name="/draw")
    (here,) = answer(*tiny, [PROMPT], "image", seeds=[5], do_sample=True).images
    assert len(images) == 2 and len(strip) == 3 and images[0]["caption"] == "seed 5"
    assert Image.open(images[0]["image"]).tobytes() == here.tobytes() and facts_of(Image.open(images[0]["image"]))["prompt"] == PROMPT
    assert Image.open(current).size == (480, 480)
    coarse = visitor.predict(1, api_name="/scrub")
    assert Image.open(coarse).tobytes() == Image.open(strip[0]["image"]).convert("RGB").tobytes()


def test_gradio_s_client_restores(visitor, actions):
    from gradio_client import handle_file

    (drawing,) = last(actions.draw("me", PROMPT, 1, {"seed": 77, "guidance_scale": 2}))
    prompt, seed, _, _, _, scale, *_, rolls = visitor.predict(handle_file(drawing.file), *SET, api_name="/restore")
    assert (prompt, seed, scale, rolls) == (PROMPT, 77, "2.0", False)


def test_a_size_of_another_model_is_not_restored(visitor, actions):
    """This one does not draw it, and would refuse it from then on."""
    from gradio_client import handle_file

    (drawing,) = last(actions.draw("me", PROMPT, 1, {"seed": 77}))
    with Image.open(drawing.file) as image:
        facts = facts_of(image)
    other = Path(drawing.file).with_name("other.png")
    other.write_bytes(encode(Image.new("RGB", (64, 64)), "png", facts={**facts, "size": "64x64"}))
    _, seed, size, *_ = visitor.predict(handle_file(str(other)), *SET, api_name="/restore")
    assert (seed, size) == (77, "48x48")


def test_gradio_s_client_edits(visitor, scene, tmp_path):
    from gradio_client import handle_file

    shown = enlarge(scene)
    paint = Image.new("RGBA", shown.size)
    paint.paste((255, 255, 255, 255), (0, 240, 480, 480))
    for name, image in (("background", shown), ("paint", paint)):
        image.save(tmp_path / f"{name}.png")
    painted = {"background": handle_file(tmp_path / "background.png"), "layers": [handle_file(tmp_path / "paint.png")], "composite": None}
    edited, strip = visitor.predict(painted, "a green triangle", *SET, api_name="/edit")
    before, after = np.asarray(scene), np.asarray(Image.open(edited))
    assert np.array_equal(before[:24], after[:24]) and not np.array_equal(before[24:], after[24:]) and len(strip) == 3


def test_gradio_s_client_chats_and_hears_of_errors(visitor):
    from gradio_client.exceptions import AppError

    talk, _ = visitor.predict({"text": "what can you do", "files": []}, [], True, 64, *SET, api_name="/chat")
    assert talk[-1]["content"][0]["text"] == "i can draw shapes and digits and answer questions about pictures"
    with pytest.raises(AppError, match="The prompt is empty."):
        visitor.predict(" ", 1, *SET, api_name="/draw")
    with pytest.raises(AppError, match="Top-k is 'many': give a number, or nothing for the model's own."):
        visitor.predict(PROMPT, 1, *SET[:6], "many", *SET[7:], api_name="/draw")
    visitor.predict(api_name="/stop")
