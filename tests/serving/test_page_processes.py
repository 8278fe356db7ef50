"""`vargpt demo` and the Space's app.py as processes: they start, answer Gradio's client, and end at an interrupt."""

import io
import signal
import socket
import sys
import time
from pathlib import Path

import httpx
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


def test_they_start_draw_and_end():
    """One after the other, and who ends first takes no file from the other, though both have drawn the same."""
    from gradio_client import Client

    pages = [demo(), space()]
    try:
        drawn = [Client(address, verbose=False, download_files=False).predict(PROMPT, 1, *SET, api_name="/draw") for _, address in pages]
        for (process, _), (current, images, strip, *_), code in zip(pages, drawn, (130, 0)):
            shown = httpx.get(current["url"])
            assert Image.open(io.BytesIO(shown.content)).size == (480, 480) and len(images) == 1 and len(strip) == 3
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=30)
            assert process.returncode == code and "Traceback" not in said, said
            assert time.monotonic() - begin < 10
    finally:
        for process, _ in pages:
            process.kill()
            process.communicate()
