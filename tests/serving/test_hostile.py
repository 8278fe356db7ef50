"""What clients do that mean no good: nothing of it is a fault of the server's, nothing keeps a place for long, and the others are answered."""

import json
import socket
import threading
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
from PIL import Image
from served import PROMPT, ask, png, serving, until, url_of

from vargpt_hf.serving import connections, guard, reading

GENERATE, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
WORDS = [{"role": "user", "content": "what can you do"}]


@pytest.fixture(scope="module")
def hostile(tiny):
    """A server that tells of every fault: (service, address)."""
    with serving(*tiny, max_images=3, max_pixels=200_000, max_body_bytes=4 * 2**20, max_prompt_chars=5000) as made:
        yield made


@pytest.fixture(autouse=True)
def no_fault(hostile, caplog):
    """None is counted, none is logged, and others are still answered."""
    yield
    assert ask(hostile[1], CHAT, {"messages": WORDS, "max_tokens": 1})[0] == 200
    assert ask(hostile[1], "/health")[2] == {"status": "ok", "waiting": 0}
    assert 'status="500"' not in hostile[0].engine.metrics.text().decode()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def connect(address, sent=b""):
    """A connection on which something was sent already, or as much of it as the server took."""
    parts = urlsplit(address)
    made = socket.create_connection((parts.hostname, parts.port), timeout=30)
    with suppress(ConnectionError):
        made.sendall(sent)
    return made


def answer_to(address, sent):
    """All that comes back, until the server closes the connection."""
    parts = [b""]
    with connect(address, sent) as made, suppress(ConnectionError):
        while parts[-1] or len(parts) == 1:
            parts.append(made.recv(2**16))
    return b"".join(parts)


def request(path, body=b"", *headers, method=b"POST"):
    """A request's bytes."""
    kind = [] if any(header.lower().startswith(b"content-type") for header in headers) else [b"Content-Type: application/json"]
    given = [b"Host: localhost", b"Connection: close", b"Content-Length: %d" % len(body), *kind, *headers]
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method, path.encode(), b"\r\n".join(given), body)


EXTREME = [1e-320, 1e-6, 1e308, 5e-324, 10**400, -(10**400), 2**63, 2**31 - 1, 1e400, float("nan"), "\ud800", "\0", [], {}, True]
NAMES = (
    *("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "max_output_images", "seed", "n", "size", "stop", "model"),
    *("guidance_scale", "guidance_type", "negative_prompt", "image_temperature", "image_top_k", "image_top_p", "output_compression"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", [GENERATE, CHAT])
def test_extreme_values_are_refused_or_computed_with(hostile, path, name):
    rest = {"prompt": PROMPT} if path == GENERATE else {"messages": WORDS, "modalities": ["text", "image"]}
    limits = {} if path == GENERATE or name == "max_tokens" else {"max_tokens": 6}
    for value in EXTREME:
        status, _, answered = ask(hostile[1], path, {**rest, **limits, name: value})
        assert status == 200 or 400 <= status < 500 and answered["error"]["message"], (name, value, status, answered)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "\ud800": 1},
        {"prompt": "a", "size": "\ud800"},
        {"prompt": "\udfff"},
        {"prompt": "a\0b"},
        {"prompt": "a", "model": "\ud800" * 100},
        b'{"prompt": "a", "n": ' + b"1" * 5000 + b"}",
        b'{"prompt": "a", "guidance_scale": 1e999}',
        b'{"prompt": "a", "guidance_scale": -Infinity}',
        b'{"prompt":' * 50_000 + b"1" + b"}" * 50_000,
        '{"prompt": "a"}'.encode("utf-32"),
        b'{"prompt": "a", "prompt": 3}',
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "\ud800", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "\ud800"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:\ud800"}}]}]},
        {"messages": [{"role": "user", "content": ""}] * 60_000},
        {"messages": [{"role": "assistant", "content_parts": [{"type": "image", "index": True}], "images": []}, *WORDS]},
        {"messages": [{"role": "assistant", "content_parts": [{"type": "image", "index": 0}], "images": [4]}, *WORDS]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url_of(Image.new("RGB", (1, 1)))}}]}]},
        {"messages": WORDS, "stop": "\ud800", "max_tokens": 4},
        {"messages": WORDS, "stream_options": {"include_usage": {}}, "max_tokens": 4},
    ],
)  # fmt: skip
def test_strange_bodies(hostile, body):
    path = CHAT if isinstance(body, dict) and "messages" in body else GENERATE
    begin = time.monotonic()
    status, _, answered = ask(hostile[1], path, body)
    assert status == 200 or 400 <= status < 500 and answered["error"]["message"], answered
    assert time.monotonic() - begin < 10


def form(*parts, boundary=b"x", end=b"--x--\r\n"):
    """A multipart body of (headers, content)."""
    return b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, headers, content) for headers, content in parts) + end


def field(name, file=None, more=b""):
    return b'Content-Disposition: form-data; name="%b"%b%b' % (name, b"" if file is None else b'; filename="%b"' % file, more)


IMAGE = png(Image.new("RGB", (48, 48)))
PROMPTED = (field(b"prompt"), b"a red circle")
MULTIPART = b"Content-Type: multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(PROMPTED, (field(b"image", b"a.png"), IMAGE)), MULTIPART + b"; charset=none"),
        (form(PROMPTED, (field(b"image", b"a.png"), IMAGE)), MULTIPART + b"; charset=utf-16"),
        (form(PROMPTED, (field(b"image", b"a.png"), IMAGE)), b"Content-Type: multipart/form-data; boundary="),
        (form(PROMPTED, (field(b"image", b"a.png"), IMAGE)), b"Content-Type: multipart/form-data; boundary=" + b"y" * 5000),
        (form(PROMPTED, (b"Content-Type: image/png", IMAGE)), MULTIPART),
        (form((field(b"prompt"), b"\xff\xfe\x80"), (field(b"image", b"a.png"), IMAGE)), MULTIPART),
        (form((field(b"prompt", b"p.txt"), b"a"), (field(b"image", b"a.png"), IMAGE)), MULTIPART),
        (form(PROMPTED, (field(b"image"), IMAGE)), MULTIPART),
        (form(PROMPTED, *[(field(b"image", b"a.png"), IMAGE)] * 20), MULTIPART),
        (form(PROMPTED, *[(field(b"x%d" % number), b"1") for number in range(500)]), MULTIPART),
        (form(PROMPTED, (field(b"image", b"../../etc/passwd\x00"), IMAGE), (field(b"mask", b""), b"")), MULTIPART),
        (form(PROMPTED, (field(b"image", b"a.png"), IMAGE), (field(b"mask", b"m"), png(Image.new("1", (48, 1))))), MULTIPART),
        (form(PROMPTED, (field(b"image", b"a.png"), IMAGE), (field(b"n"), b"1e400"), (field(b"seed"), b"9" * 4000)), MULTIPART),
        (form(PROMPTED, (field(b"image", b"a.png"), b"\x89PNG" + bytes(2**20))), MULTIPART),
        (form((field(b"prompt"), b"a" * 2**20), (field(b"image", b"a.png"), IMAGE)), MULTIPART),
        (form(PROMPTED, end=b""), MULTIPART),
        (form((b"X: y\r\n" * 5000 + field(b"prompt"), b"a")), MULTIPART),
        (form((b"X" * 100_000 + b": y\r\n" + field(b"prompt"), b"a")), MULTIPART),
        (b"--x\r\n" * 100_000, MULTIPART),
        (b"\r\n" * 1_000_000, MULTIPART),
        (b"", MULTIPART),
    ],
    ids=range(21),
)  # fmt: skip
def test_strange_forms(hostile, body, kind):
    begin = time.monotonic()
    head, _, answered = answer_to(hostile[1], request(EDIT, body, kind)).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status == 200 or 400 <= status < 500 and json.loads(answered)["error"]["message"], (head, answered)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ff%00%ed%a0%80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/models/%ff%00 HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: a b:99999999\r\nConnection: close\r\n\r\n",
        b"GET /nothing?\xc3\x28 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        request(GENERATE, b'{"prompt": "a red circle", "response_format": "url"}').replace(b"Host: localhost", b"Host: [bad"),
    ],
    ids=range(15),
)  # fmt: skip
def test_strange_requests(hostile, sent):
    answered = answer_to(hostile[1], sent)
    cut_off = len(sent) > 100_000 and not answered  # closed while it was still sending
    assert cut_off or answered.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")), answered[:300]


def closed_within(seconds, *made):
    """Whether the server closes all these connections in time."""
    end = time.monotonic() + seconds
    for one in made:
        one.settimeout(max(0.1, end - time.monotonic()))
        try:
            while one.recv(2**16):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
    return True


def test_connections_that_ask_nothing_are_closed(hostile, monkeypatch):
    """Without a word, with half a head, with half a second head, and with a body that does not come: also where it is of no use."""
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    monkeypatch.setattr(reading, "_SECONDS_TO_READ", 1.0)
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    half = request(GENERATE, b'{"prompt": "a"}')[:-5]
    refused = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    with ExitStack() as stack:
        made = [stack.enter_context(connect(hostile[1], sent)) for sent in (b"", b"GET /hea", whole + b"GET", half, refused)]
        assert closed_within(10, *made)
    until(lambda: ask(hostile[1], "/health")[0] == 200)


def test_a_client_that_sends_one_byte_at_a_time_is_cut_off(hostile, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    with connect(hostile[1]) as made:
        begin = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - begin < 10:
                made.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - begin < 5


def test_an_answer_that_nobody_reads_is_given_up(hostile, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    with connect(hostile[1]) as made:
        made.settimeout(5)
        begin = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)) as ended:
            while time.monotonic() - begin < 20:
                made.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        assert ended.type is not TimeoutError


def test_slow_large_bodies_keep_others_waiting_for_a_while_only(hostile, monkeypatch):
    """Large ones, that is; small requests are answered meanwhile, and the large one is told when to come back."""
    monkeypatch.setattr(reading, "_SECONDS_TO_READ", 2.0)
    slow = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n{" % GENERATE.encode()
    with ExitStack() as stack:
        made = [stack.enter_context(connect(hostile[1], slow)) for _ in range(12)]
        time.sleep(0.5)
        assert ask(hostile[1], GENERATE, {"prompt": PROMPT})[0] == 200
        late = ask(hostile[1], GENERATE, b'{"prompt": "a red circle"' + b" " * 2**20 + b"}")
        assert late[0] == 200 or late[0] == 503 and int(late[1]["retry-after"]) >= 1
        assert closed_within(30, *made)
    assert ask(hostile[1], GENERATE, b'{"prompt": "a red circle"' + b" " * 2**20 + b"}")[0] == 200


def test_clients_that_leave_in_the_middle_of_a_body_are_no_fault(hostile):
    service, address = hostile
    half = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: 300\r\n\r\n--x\r\n"
    for path, kind in ((GENERATE, b"application/json"), (EDIT, b"multipart/form-data; boundary=x")):
        connect(address, half % (path.encode(), kind)).close()
    left = 'vargpt_requests_total{path="%s",status="499"}'
    until(lambda: all(left % path in service.engine.metrics.text().decode() for path in (GENERATE, EDIT)))


def test_refused_clients_that_go_on_sending_are_cut_off(tiny, monkeypatch):
    monkeypatch.setattr(guard, "_SECONDS_TO_DRAIN", 1)
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    with serving(*tiny, api_key="secret") as (_, address):
        with connect(address, b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{" % GENERATE.encode()) as made:
            assert made.recv(2**16).startswith(b"HTTP/1.1 401") and closed_within(10, made)


def test_two_hundred_at_once(hostile):
    """Each gets an answer, or is told to come back."""
    answers = []

    def draw(number):
        path, body = ((GENERATE, {"prompt": PROMPT}), (CHAT, {"messages": WORDS, "max_tokens": 3}), ("/health", None))[number % 3]
        answers.append(ask(hostile[1], path, body, timeout=120)[0])

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(answers) == 200 and set(answers) <= {200, 429} and answers.count(200) > 66
