"""A server under load: fifty clients that draw, edit, chat, stream, send nonsense and go away; then it is killed, and starts anew."""

import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from noise_images import noise_image
from PIL import Image
from served import PROMPT, ask, png, until, url_of, vargpt

CLIENTS = 50
SECONDS_AT_MOST = 60
IMAGE = noise_image(0)
DRAW = {"prompt": PROMPT}
WORDS = {"messages": [{"role": "user", "content": "what can you do"}]}
QUESTION = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url_of(IMAGE)}}, {"type": "text", "text": "which digit is this"}],
        }
    ]
}
BOTH = {"messages": [{"role": "user", "content": f"draw {PROMPT} and say what you drew"}], "modalities": ["text", "image"]}
GENERATE, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
MASK = Image.new("L", (48, 48))
MASK.paste(255, (0, 24, 48, 48))
KINDS = {
    "draw": (GENERATE, DRAW),
    "draw, guided": (GENERATE, {**DRAW, "guidance_scale": 2.0}),
    "draw 2, streamed": (GENERATE, {**DRAW, "n": 2, "stream": True}),
    "edit": (EDIT, {"prompt": PROMPT, "image": png(IMAGE), "mask": png(MASK)}),
    "chat": (CHAT, WORDS),
    "chat, streamed": (CHAT, {**WORDS, "stream": True}),
    "chat about an image": (CHAT, QUESTION),
    "chat with a drawing": (CHAT, BOTH),
    "nonsense": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,%"}}]}]}),
    "goes away": (GENERATE, {**DRAW, "n": 8, "stream": True}),
}


def serve(port=0, *more):
    """A server in a process of its own: (process, address)."""
    return vargpt("serve", "--port", port, "--device", "cpu", *more)


def resident(process):
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def encoded(body):
    """A request's body and headers: JSON, or a form where it holds files."""
    if not any(isinstance(value, bytes) for value in body.values()):
        return json.dumps(body), {"Content-Type": "application/json"}
    parts = b""
    for name, value in body.items():
        file, value = ('; filename="x.png"', value) if isinstance(value, bytes) else ("", value.encode())
        parts += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"
    return parts + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


class Crowd:
    """Clients that ask until they are told to stop, and note what they got.

    Attributes:
        seconds: of the answers with status 200, by kind.
        statuses: how often each kind got each; "broken" for what is no answer.
    """

    def __init__(self, address, clients=CLIENTS):
        self.address = address
        self.stopping = threading.Event()
        self.seconds, self.statuses = defaultdict(list), Counter()
        self.threads = [threading.Thread(target=self._ask, args=(random.Random(number),), daemon=True) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    @property
    def missing(self):
        """Kinds that were not answered yet."""
        return set(KINDS) - {kind for kind, status in list(self.statuses) if status in (200, 400, "left")}

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=60)

    def _ask(self, rng):
        while not self.stopping.is_set():
            kind = rng.choice(list(KINDS))
            start, (status, wait) = time.monotonic(), self._once(kind, *KINDS[kind])
            self.statuses[kind, status] += 1
            if status == 200:
                self.seconds[kind].append(time.monotonic() - start)
            self.stopping.wait(min(wait, 2) * rng.uniform(0.5, 1))

    def _once(self, kind, path, body):
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=120)
        try:
            connection.request("POST", path, *encoded(body))
            answer = connection.getresponse()
            if kind == "goes away" and answer.status == 200:
                answer.read(1)
                return "left", 0
            content = answer.read()
            whole = answer.status != 200 or not body.get("stream") or b'completed"' in content or b"[DONE]" in content
            wait = float(answer.headers.get("Retry-After", 0))
            return (answer.status if whole and b'"error"' not in content[:20] * (answer.status == 200) else "broken"), wait
        except OSError as error:
            return f"broken: {error!r}", 1
        finally:
            connection.close()


def run_load(seconds):
    """Server and crowd for a while: (statuses, seconds by kind, MiB over time, the address)."""
    process, address = serve(0, "--max-waiting", "32")
    try:
        crowd, memory = Crowd(address), []
        end = time.monotonic() + seconds
        # On a busy machine until each kind was answered once, however long the rest of it takes.
        while time.monotonic() < end or (crowd.missing and time.monotonic() < end + SECONDS_AT_MOST):
            time.sleep(min(1.0, seconds / 20))
            memory.append(resident(process))
        crowd.stop()
        assert ask(address, "/health")[2] == {"status": "ok", "waiting": 0}
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return crowd.statuses, crowd.seconds, memory, address


def check_the_end(process, address):
    """SIGTERM finishes what runs and sends away what waits, and nothing is said but to them."""
    answers = []

    def draw():
        try:
            answers.append(ask(address, GENERATE, DRAW))
        except OSError:  # it came when nobody listened any more
            answers.append(("refused", {}, {}))

    threads = [threading.Thread(target=draw) for _ in range(40)]
    for thread in threads:
        thread.start()
    until(lambda: ask(address, "/health")[2]["waiting"] > 10)
    process.terminate()
    for thread in threads:
        thread.join(timeout=60)
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 128 + signal.SIGTERM
    assert len(answers) == 40 and {200, 503} <= {answer[0] for answer in answers} <= {200, 503, "refused"}
    away = next(answer for answer in answers if answer[0] == 503)
    assert away[2]["error"]["message"] == "The server is shutting down." and away[1]["retry-after"] == "10"


@pytest.mark.parametrize("seconds", [pytest.param(30, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.thorough)])
def test_fifty_clients(seconds, capsys):
    """No answer but 200 and 429, and 400 for nonsense; memory stays where it is once the server has warmed up.

    Killed then, it starts anew at the same port, answers, and ends as it should.
    """
    statuses, latencies, memory, address = run_load(seconds)
    with capsys.disabled():
        print(f"\n{CLIENTS} clients, {seconds} s: {sum(statuses.values())} requests; ", end="")
        print(f"{memory[0]:.0f} MiB at first, {max(memory):.0f} at most, {memory[-1]:.0f} at the end")
        for kind, values in sorted(latencies.items()):
            refused = statuses[kind, 429]
            median, late = np.percentile(values, [50, 95])
            print(f"  {kind:20} {len(values):5} answered, {refused:5} refused; median {median:5.2f} s, 95 % within {late:5.2f} s")
    allowed = {(kind, status) for kind in KINDS for status in (200, 429)} | {("nonsense", 400), ("goes away", "left")}
    assert set(statuses) <= allowed, statuses
    assert {kind for kind, status in statuses if status in (200, 400, "left")} == set(KINDS), statuses
    warm = len(memory) // 3
    assert max(memory[warm:]) < memory[warm] + max(100.0, 0.1 * memory[warm]) or seconds < 60, memory
    again, _ = serve(address.rpartition(":")[2], "--max-batch", "1")
    assert ask(address, GENERATE, DRAW)[0] == 200
    check_the_end(again, address)
