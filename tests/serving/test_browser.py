"""The page of `vargpt demo` in a real browser: what a visitor types, paints and sees, on a desktop, on a phone, in light and in dark.

`pytest tests/serving/test_browser.py --screenshots docs/demo` writes the screenshots of docs/demo.md.
"""

import io
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import PROMPT, until, vargpt

from vargpt_hf.shipped import DEFAULT_NAME

pytestmark = pytest.mark.browser
DOCS = Path(__file__).parents[2] / "docs"
SCREENSHOTS = ("draw", "edit", "chat", "phone_light", "phone_dark")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Root's browser has no sandbox; WebGL, on which the editor paints, is computed here.
OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"]
# Notes the files that the page sends.
NOTE_FILES = """
    const send = window.fetch
    window.sent = []
    window.fetch = (address, options) => {
        if (options && options.body instanceof FormData)
            window.sent.push(...[...options.body.values()].filter(value => value instanceof Blob))
        return send(address, options)
    }
"""
BYTES_OF_FILES = "() => Promise.all(window.sent.map(async file => Array.from(new Uint8Array(await file.arrayBuffer()))))"
SCOOTER = "a red scooter, flat look"
RED, PINK = (225, 30, 30), (240, 102, 176)  # of the circle, and of paint on white
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright, which brings none where nothing can be downloaded."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no browser here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(browser):
    """The address of a model's page, which is served from when it is first asked for."""
    pytest.importorskip("gradio", reason='pip install "vargpt-hf[demo]"')
    served = {}

    def address(model):
        if model not in served:
            served[model] = vargpt("demo", "--port", 0, "--device", "cpu", "--model", model)
        return served[model][1]

    yield address
    for process, _ in served.values():
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.fixture
def visit(browser, pages):
    """Opens a model's page; whatever its scripts complain about is an error of the test."""
    contexts, complaints = [], []

    def opened(model="vargpt-tiny", **more):
        contexts.append(browser.new_context(**{"viewport": DESKTOP, **more}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(NOTE_FILES)
        page.goto(pages(model), wait_until="domcontentloaded")
        page.get_by_label("What to draw", exact=True).wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def keep(request):
    """Keeps a screenshot, of few colors, where the command says so."""
    folder = request.config.getoption("--screenshots", default=None)

    def kept(page, name):
        assert name in SCREENSHOTS
        shot = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
        if folder is not None:
            shot.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(f"{folder}/{name}.png", optimize=True)
        return shot

    return kept


def draw(page, prompt=PROMPT, seed=5):
    """Draws a prompt from a seed; the image."""
    page.locator("button.label-wrap", has_text="Settings").click()
    choose_seed(page, str(seed))
    page.get_by_label("What to draw", exact=True).fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#strip img").nth(2).wait_for()
    page.locator("#images").get_by_text(f"seed {seed}").wait_for()
    page.locator("button.label-wrap", has_text="Settings").click()  # only now: what is folded away at once may not have been taken over
    return image_of(page, "#current img")


def choose_seed(page, seed):
    """Chooses until the page keeps it: Gradio builds what was folded away bit by bit, and overwrites what was chosen meanwhile."""
    field, rolls = page.get_by_label("Seed", exact=True), page.get_by_label("Roll anew each time")
    for _ in range(20):
        field.fill(seed)
        field.press("Tab")
        rolls.uncheck()
        page.wait_for_timeout(500)
        if field.input_value() == seed and not rolls.is_checked():
            return
    raise AssertionError(f"the page does not keep seed {seed}")


def image_of(page, where):
    """The file that an element shows."""
    shown = page.locator(where).first
    shown.wait_for()
    until(lambda: shown.evaluate("image => image.complete && image.currentSrc"))  # a picture that changes is there before its file is
    return Image.open(io.BytesIO(page.request.get(shown.evaluate("image => image.currentSrc")).body())).convert("RGB")


def test_a_visitor_draws_paints_and_only_what_is_painted_changes(visit, keep):
    page = visit()
    before = draw(page)
    assert before.size == (480, 480)

    page.get_by_role("button", name="Edit this image").click()
    page.get_by_role("tab", name="Edit").click()
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    until(lambda: shows(canvas, RED))
    page.wait_for_timeout(500)  # until the editor has fitted the image in
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7
    page.mouse.move(x - 60, y)
    page.mouse.down()
    for step in range(13):
        page.mouse.move(x - 60 + 10 * step, y)
    page.mouse.up()
    until(lambda: shows(canvas, PINK))
    page.get_by_label("What to draw there").fill("a green triangle")
    page.get_by_role("button", name="Draw there").click()
    after = image_of(page, "#edited img")
    page.wait_for_timeout(500)
    keep(page, "edit")
    assert is_crisp_and_large(page, "#edited img")

    painted = painted_area(page)
    small = np.asarray(before)[5::10, 5::10].astype(int)
    changed = np.abs(small - np.asarray(after.resize((48, 48), Image.Resampling.NEAREST))).max(-1) > 0
    assert 20 < painted.sum() < 48 * 48 / 2 and not painted[:20].any()
    assert changed.sum() > 20 and not changed[~painted].any()


def shows(element, color):
    """Whether a color is seen on an element."""
    pixels = np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"), int)
    return (np.abs(pixels - color).max(-1) < 20).sum() > 100


def painted_area(page):
    """Where the visitor painted: the positions (48, 48) that the transparent one among the files touched."""
    files = [Image.open(io.BytesIO(bytes(content))) for content in page.evaluate(BYTES_OF_FILES)]
    alphas = [file.getchannel("A") for file in files if file.mode == "RGBA"]
    layers = [alpha for alpha in alphas if alpha.getextrema()[0] == 0 < alpha.getextrema()[1]]
    return np.asarray(layers[-1].point(lambda level: 255 if level else 0).resize((48, 48), Image.Resampling.BOX)) > 0


def is_crisp_and_large(page, where):
    """Whether a small image is enlarged, its pixels as squares."""
    shown = page.locator(where).first
    ways = shown.evaluate("image => [getComputedStyle(image).imageRendering, getComputedStyle(image).objectFit]")
    box = shown.bounding_box()
    return ways == ["pixelated", "contain"] and min(box["width"], box["height"]) > 90


def test_small_images_are_crisp_and_large_enough(visit):
    page = visit()
    draw(page)
    assert all(is_crisp_and_large(page, where) for where in ("#current img", "#images img", "#strip img"))
    assert page.locator("#current img").first.bounding_box()["width"] > 250


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(visit, keep, scheme):
    """In one column, nothing wider than the screen, in the colors that the phone asks for."""
    page = visit(DEFAULT_NAME, viewport=PHONE, is_mobile=True, has_touch=True, color_scheme=scheme)
    draw(page, "a rocket, 3d style")
    for tab in ("Edit", "Chat", "Gallery", "Draw"):
        page.get_by_role("tab", name=tab, exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab
    shot = keep(page, f"phone_{scheme}")
    corner = np.asarray(shot.convert("L"))[-1, 0]
    assert corner < 80 if scheme == "dark" else corner > 200


def test_a_visitor_chats_and_gets_an_image(visit):
    page = visit(color_scheme="dark")
    page.get_by_role("tab", name="Chat").click()
    box = page.get_by_placeholder("Say something")
    box.fill(f"draw {PROMPT} and say what you drew")
    box.press("Enter")
    page.locator("#talk img").first.wait_for()
    page.locator("#talk").get_by_text(PROMPT, exact=True).wait_for()
    assert is_crisp_and_large(page, "#talk .message img")
    page.get_by_role("tab", name="Gallery").click()
    until(lambda: page.locator("img:visible").count() >= 1)


def test_a_visitor_meets_the_default_model(visit, keep):
    """Takes a prompt that the page offers, and has it drawn; asks for a drawing in a chat, and is told what it is."""
    page = visit(DEFAULT_NAME)
    page.get_by_role("button", name=SCOOTER, exact=True).click()
    until(lambda: page.get_by_label("What to draw", exact=True).input_value() == SCOOTER)
    drawn = np.asarray(draw(page, SCOOTER), int)
    assert drawn.shape == (512, 512, 3) and (drawn[..., 0] > drawn[..., 1] + 80).mean() > 0.05  # red
    keep(page, "draw")
    page = visit(DEFAULT_NAME, color_scheme="dark")
    page.get_by_role("tab", name="Chat").click()
    box = page.get_by_placeholder("Say something")
    box.fill("draw a turtle in the flat look and say what you drew")
    box.press("Enter")
    page.locator("#talk img").first.wait_for()
    page.locator("#talk .bot").get_by_text("turtle").wait_for()
    keep(page, "chat")


def test_a_visitor_takes_a_prompt_that_the_page_offers(visit):
    page = visit()
    page.get_by_role("button", name="three orange squares").click()
    until(lambda: page.get_by_label("What to draw", exact=True).input_value() == "three orange squares")


def test_errors_are_shown_as_sentences(visit):
    page = visit()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("The prompt is empty.").wait_for()


def test_the_docs_show_these_screenshots_and_they_are_small():
    stored = {file.name: file.stat().st_size for file in (DOCS / "demo").glob("*.png")}
    assert stored.keys() == set(re.findall(r"\(demo/(\w+\.png)\)", (DOCS / "demo.md").read_text())) == {f"{name}.png" for name in SCREENSHOTS}
    assert max(stored.values()) < 200_000
