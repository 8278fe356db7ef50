"""A server of vargpt-tiny in a thread of the tests, commands in processes of their own, and what the tests ask them with."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from vargpt_hf.serving.app import Service, listen, server_of
from vargpt_hf.serving.settings import ServerSettings

PROMPT = "a red circle above a blue square"


@contextmanager
def serving(model, processor, **limits):
    """A server with these settings: (its service, its address)."""
    service = Service(model, processor, "vargpt-tiny", ServerSettings(**limits))
    with listen("localhost", 0) as listening:
        server = server_of(service, "warning")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        yield service, f"http://localhost:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def started(command, says, **environment):
    """A command in a process of its own, and the address that it prints: what the pattern `says` finds in one of its lines."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let what they start in the background ignore it
    )
    said = ""
    for line in process.stdout:
        if found := re.search(says, line):
            return process, found[1]
        said += line
    pytest.fail(said)


def vargpt(*arguments, **environment):
    """A `vargpt` command that prints an address: (process, address)."""
    return started([Path(sys.executable).with_name("vargpt"), *map(str, arguments)], r" at (http://[\w.]+:\d+)", **environment)


def until(true, seconds=30):
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not come true in time"
        time.sleep(0.005)


def ask(address, path, body=None, headers=None, timeout=60):
    """Status, headers and JSON object of the answer to a request; a body of bytes is sent as it is."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def image_of(text):
    """The image of base64 text, or of a `data:` URL."""
    image = Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2])))
    image.load()
    return image


def png(image):
    """The bytes of an image."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def url_of(image):
    """An image as a `data:` URL."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
