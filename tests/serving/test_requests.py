"""What comes over the wire: bad requests, limits, keys, clients that go away. Everything is answered in OpenAI's shape."""

import http.client
import json
import socket
import threading
import time
import urllib.request
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from served import PROMPT, ask, serving, until, url_of

GENERATE, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
ASKED = [{"role": "user", "content": "what can you do"}]


def is_an_error(answered):
    status, _, body = answered
    error = body["error"]
    return 400 <= status < 500 and isinstance(error["message"], str) and error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (GENERATE, b"{", 400, "The body is no JSON"),
        (GENERATE, b"[" * 100_000, 400, "The body is no JSON"),
        (GENERATE, b"\xff\xfe", 400, "The body is no JSON"),
        (GENERATE, b"[" + b"1," * 300_000 + b"1]", 413, "more than 200,000 values"),
        (GENERATE, b" " * (2**20 + 1), 413, "The body has more than the 1,048,576 bytes"),
        (GENERATE, [], 400, "The body must be a JSON object, not a list"),
        (GENERATE, {}, 400, "The field `prompt` is missing"),
        (GENERATE, {"prompt": 3}, 422, "`prompt` is 3"),
        (GENERATE, {"prompt": "  "}, 400, "The prompt is empty."),
        (GENERATE, {"prompt": "\ud800"}, 400, "half a character"),
        (GENERATE, {"prompt": "x" * 6000}, 413, "this server reads up to 5,000"),
        (GENERATE, {"prompt": "red " * 1200}, 400, "the model has room for"),
        (GENERATE, {"prompt": PROMPT, "n": 0}, 422, "`n` is 0"),
        (GENERATE, {"prompt": PROMPT, "n": "2"}, 422, "`n` is '2'"),
        (GENERATE, {"prompt": PROMPT, "n": 9}, 400, "this server gives up to 8 at once"),
        (GENERATE, {"prompt": PROMPT, "size": "huge"}, 400, 'give "auto" or WIDTHxHEIGHT. This model draws 48x48.'),
        (GENERATE, {"prompt": PROMPT, "seed": -1}, 422, "`seed` is -1"),
        (GENERATE, {"prompt": PROMPT, "seed": 2**63 - 1, "n": 2}, 400, "too large for 2 seeds"),
        (GENERATE, {"prompt": PROMPT, "output_format": "gif"}, 422, "`output_format` is 'gif'"),
        (GENERATE, {"prompt": PROMPT, "background": "transparent"}, 422, "`background` is 'transparent'"),
        (GENERATE, {"prompt": PROMPT, "guidance_type": "magic"}, 400, "`output_image_guidance_type` must be one of"),
        (GENERATE, {"prompt": PROMPT, "guidance_scale": 1e9}, 400, "`output_image_guidance_scale` must be in"),
        (GENERATE, b'{"prompt": "a", "guidance_scale": NaN}', 422, "`guidance_scale` is nan"),
        (GENERATE, {"prompt": PROMPT, "promt": 1}, 422, "There is no field `promt`: do you mean `prompt`?"),
        (CHAT, {"messages": []}, 422, "`messages` is []"),
        (CHAT, {"messages": ["hello"]}, 422, "`messages.0` is 'hello'"),
        (CHAT, {"messages": [{}]}, 400, "`messages[0]` has the role None"),
        (CHAT, {"messages": [{"role": "user", "content": 4}]}, 400, "must be a text or a list of parts"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "has a part of type 'input_audio'"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "has no `url` that is a text"),
        (CHAT, {"messages": ASKED, "modalities": ["audio"]}, 422, "`modalities.0` is 'audio'"),
    ],
)  # fmt: skip
def test_bad_requests(address, path, body, status, message):
    answered = ask(address, path, body)
    assert answered[0] == status and message in answered[2]["error"]["message"], answered[2]
    assert is_an_error(answered)


def chat_with(url):
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("http://localhost:1/a.png", 400, "is an address, which this server does not fetch"),
        ("https://example.org/a.png", 400, "is an address, which this server does not fetch"),
        ("file:///etc/passwd", 400, "must be a data: URL"),
        ("/etc/passwd", 400, "must be a data: URL"),
        ("data:image/png;base64,%%%", 400, "without base64"),
        ("data:image/png;base64,aGVsbG8=", 400, "cannot be read as an image"),
        (url_of(Image.new("1", (600, 600))), 413, "more than 200,000 pixels together"),
        (url_of(Image.new("1", (500, 1))), 400, "one side is more than 200 times the other"),
    ],
)
def test_images_that_are_not_taken(address, url, status, message):
    answered = ask(address, CHAT, chat_with(url))
    assert answered[0] == status and message in answered[2]["error"]["message"], answered[2]


def test_images_are_counted_over_the_whole_request(address):
    part = {"type": "image_url", "image_url": {"url": url_of(Image.new("RGB", (48, 48)))}}
    answered = ask(address, CHAT, {"messages": [{"role": "user", "content": [part] * 4}]})
    assert answered[0] == 413 and "brings more than 3 images" in answered[2]["error"]["message"]


def test_addresses_are_fetched_only_where_that_is_allowed(tiny, address):
    """This server's own image store serves as the other one."""
    made = ask(address, GENERATE, {"prompt": PROMPT, "response_format": "url"})[2]["data"][0]["url"]
    assert ask(address, CHAT, chat_with(made))[0] == 400
    with serving(*tiny, allow_urls=True) as (_, generous):
        assert ask(generous, CHAT, chat_with(made))[0] == 200
        gone = ask(generous, CHAT, chat_with(made + "x"))
        assert gone[0] == 400 and "cannot be read" in gone[2]["error"]["message"]


def test_other_paths_methods_and_types(address):
    assert ask(address, "/v1/embeddings", {})[0] == 404 and is_an_error(ask(address, "/v1/embeddings", {}))
    assert ask(address, GENERATE)[0] == 405 and is_an_error(ask(address, GENERATE))
    plain = ask(address, GENERATE, b'{"prompt": "a"}', {"Content-Type": "text/plain"})
    assert plain[0] == 415 and "must be application/json" in plain[2]["error"]["message"]
    for body, kind in (
        (b"--x", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
        (b"a=b", "application/x-www-form-urlencoded"),
    ):
        assert is_an_error(ask(address, EDIT, body, {"Content-Type": kind}))
    assert ask(address, "/images/none.png")[0] == 404


fields = st.sampled_from(
    ["prompt", "messages", "n", "size", "seed", "stop", "stream", "modalities", "temperature", "tools", "max_tokens", "model", "image_top_k"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "text", "image", "48x48"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "images"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([GENERATE, CHAT]), body=st.dictionaries(fields, values, max_size=4))
def test_whatever_comes_is_answered_or_refused_but_never_a_fault(address, path, body):
    status, _, answered = ask(address, path, {"prompt" if path == GENERATE else "messages": None, **body, "stream": False})
    assert status == 200 or 400 <= status < 500 and answered["error"]["message"]


def test_a_key_is_asked_for(tiny):
    with serving(*tiny, api_key="secret", max_body_bytes=2**20) as (_, address):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer sécret"}):
            answered = ask(address, GENERATE, {"prompt": PROMPT}, headers)
            assert answered[0] == 401 and answered[2]["error"]["code"] == "invalid_api_key" and answered[1]["www-authenticate"] == "Bearer"
        assert ask(address, "/v1/models")[0] == ask(address, "/docs")[0] == ask(address, GENERATE, b" " * 2**21)[0] == 401
        made = ask(address, GENERATE, {"prompt": PROMPT, "response_format": "url"}, {"Authorization": "Bearer secret"})
        assert made[0] == 200 and ask(address, "/health")[0] == 200
        assert urllib.request.urlopen(made[2]["data"][0]["url"]).status == 200  # what a page shows brings no key


def test_origins(tiny, address):
    plain = ask(address, GENERATE, {"prompt": PROMPT}, {"Origin": "https://a.example"})
    assert plain[0] == 403 and "access-control-allow-origin" not in plain[1]
    assert ask(address, GENERATE, {"prompt": PROMPT}, {"Origin": address})[0] == 200  # a page of this server
    with serving(*tiny, allowed_origins=("https://a.example",), api_key="secret") as (_, open_to):
        asked = urllib.request.Request(f"{open_to}{GENERATE}", method="OPTIONS")
        for name, value in (("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")):
            asked.add_header(name, value)
        assert urllib.request.urlopen(asked).headers["access-control-allow-origin"] == "https://a.example"
        given = {"Origin": "https://a.example", "Authorization": "Bearer secret"}
        assert ask(open_to, GENERATE, {"prompt": PROMPT}, given)[0] == 200


def test_numbers_about_the_server(address):
    ask(address, GENERATE, {"prompt": PROMPT})
    ask(address, "/nothing")
    with urllib.request.urlopen(f"{address}/metrics") as answered:
        text = answered.read().decode()
    for line in ('vargpt_requests_total{path="/v1/images/generations",status="200"}', 'path="other",status="404"', "vargpt_images_drawn_total"):
        assert line in text
    assert "vargpt_waiting 0.0" in text and "process_resident_memory_bytes" in text
    assert ask(address, "/health")[2] == {"status": "ok", "waiting": 0}


def send(address, path, body):
    """A request whose answer nobody reads: its connection."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(tiny, stream, monkeypatch):
    """While it waits, and while it runs: then the batch ends at its next step."""
    with serving(*tiny, max_waiting=1) as (service, address):
        gate = threading.Event()
        monkeypatch.setattr(service.engine, "_answer", lambda batch, answer=service.engine._answer: (gate.wait(30), answer(batch)))
        running = send(address, GENERATE, {"prompt": PROMPT, "stream": stream})
        until(lambda: service.engine._running)  # else the other one would find the only place to wait taken
        waiting = send(address, GENERATE, {"prompt": PROMPT, "stream": stream})
        until(lambda: service.engine.num_waiting == 1)
        full = ask(address, GENERATE, {"prompt": PROMPT})
        assert full[0] == 429 and int(full[1]["retry-after"]) >= 1 and full[2]["error"]["type"] == "rate_limit_error"
        for connection in (waiting, running):
            connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
        until(lambda: service.engine.num_waiting == 0)
        until(lambda: service.engine._running[0].cancelled)
        gate.set()
        assert ask(address, GENERATE, {"prompt": PROMPT})[0] == 200
        assert service.engine.metrics.abandoned._value.get() == 2


def test_a_request_ends_in_time(tiny, monkeypatch):
    with serving(*tiny, max_seconds=1) as (service, address):
        gate = threading.Event()
        monkeypatch.setattr(service.engine, "_answer", lambda batch, answer=service.engine._answer: (gate.wait(30), answer(batch)))
        start = time.monotonic()
        answered = ask(address, GENERATE, {"prompt": PROMPT})
        assert answered[0] == 504 and 0.9 < time.monotonic() - start < 5
        lines = urllib.request.urlopen(
            urllib.request.Request(
                f"{address}{CHAT}", json.dumps({"messages": ASKED, "stream": True}).encode(), {"Content-Type": "application/json"}
            )
        ).read()
        assert b"The request took longer than 1 s." in lines and b"[DONE]" not in lines
        gate.set()
