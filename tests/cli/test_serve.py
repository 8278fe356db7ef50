"""`vargpt serve`: a server in a process of its own, asked over HTTP."""

import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vargpt_hf.tiny.digits import digit_image, load_split

SECONDS_TO_START = 120


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("vargpt"), "serve", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address, deadline = f"http://localhost:{port}", time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                pytest.fail(f"The server does not answer:\n{server.communicate()[0]}")
            time.sleep(0.2)
    yield address
    server.terminate()
    server.communicate(timeout=30)


def post(address, content, **fields):
    body = json.dumps({"messages": [{"role": "user", "content": content}], "temperature": 0.0, **fields}).encode()
    request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def question_with_digit(index):
    images, labels = load_split("test")
    file = io.BytesIO()
    digit_image(images[index]).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "which digit is this"}], str(labels[index])


def test_answers_about_images(address):
    for index in range(3):
        question, label = question_with_digit(index)
        answer = json.loads(post(address, question))["choices"][0]
        assert (answer["message"]["content"].strip(), answer["finish_reason"]) == (label, "stop")


def test_answers_come_word_by_word(address):
    events = [line.removeprefix("data: ") for line in post(address, "what can you do", stream=True).splitlines() if line.startswith("data: {")]
    words = [choice["delta"].get("content") for event in events for choice in json.loads(event)["choices"]]
    assert "".join(filter(None, words)).strip() == "i can draw shapes and digits and answer questions about pictures"
    assert len(list(filter(None, words))) > 5


def test_draws_nothing(address):
    """Asked for an image it goes on in words: no image's tokens come out, which would be 46."""
    answer = json.loads(post(address, "draw a red circle above a blue square and say what you drew"))
    assert answer["usage"]["completion_tokens"] < 40 and "<" not in answer["choices"][0]["message"]["content"]
