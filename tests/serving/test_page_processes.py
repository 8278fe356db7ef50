"""`vargpt demo` and the Space's app.py as processes: they start, answer Gradio's client, and end at an interrupt."""

import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from served import PROMPT, started, vargpt
from test_page import SET

pytest.importorskip("gradio", reason='an extra of its own: pip install "vargpt-hf[demo]"')
SPACE = Path(__file__).parents[2] / "examples/space/app.py"


def demo():
    return vargpt("demo", "--port", 0, "--device", "cpu")


def space():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    return started([sys.executable, SPACE], r"(http://[\w.]+:\d+)", GRADIO_SERVER_PORT=port, GRADIO_ANALYTICS_ENABLED="False")


@pytest.mark.parametrize(("start", "code"), [(demo, 130), (space, 0)])
def test_it_starts_draws_and_ends(start, code):
    from gradio_client import Client

    process, address = start()
    try:
        visitor = Client(address, verbose=False)
        current, images, strip, *_ = visitor.predict(PROMPT, 1, *SET, api_name="/draw")
        assert Image.open(current).size == (480, 480) and len(images) == 1 and len(strip) == 3
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == code and "Traceback" not in said, said
        assert time.monotonic() - begin < 10
    finally:
        process.kill()
        process.communicate()
