"""The example that serves by Ray, on a Ray of its own: OpenAI's client draws by it and chats with it."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

pytest.importorskip("ray.serve", reason="an extra of its own, whose start alone takes longer than most of these tests")
SCRIPT = Path(__file__).parents[2] / "examples" / "ray_serve.py"
PROMPT = "a red circle above a blue square"


@pytest.mark.slow
def test_replicas_draw_and_chat():
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, SCRIPT, "--model", "vargpt-tiny", "--replicas", "1", "--port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let what they start in the background ignore it
    )
    try:
        said = next((line for line in process.stdout if line.startswith("Serving")), "")
        assert re.fullmatch(rf"Serving vargpt-tiny at http://localhost:{port}/v1\n", said), process.communicate(timeout=60)[1][-3000:]
        with OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", timeout=60) as client:
            seeded = {"prompt": PROMPT, "extra_body": {"seed": 5}}
            plain = client.images.generate(**seeded).data[0]
            *partial, whole = client.images.generate(**seeded, stream=True)
            assert len(partial) == 2 and whole.b64_json == plain.b64_json
            asked = [{"role": "user", "content": "what can you do"}]
            chunks = client.chat.completions.create(messages=asked, model="vargpt-tiny", stream=True)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert said == "i can draw shapes and digits and answer questions about pictures"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors[-3000:]
    finally:
        process.kill()
        process.communicate()
