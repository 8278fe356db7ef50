"""The engine: which jobs are answered together, what is refused, and what one job cannot do to others."""

import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
import torch

import vargpt_hf.serving.engine as engine_module
from vargpt_hf.serving.answering import answer_batch
from vargpt_hf.serving.engine import Engine
from vargpt_hf.serving.errors import ApiError
from vargpt_hf.serving.jobs import Failed, Finished, Job, Partial, Text
from vargpt_hf.serving.settings import ServerSettings


def job(text="a red circle", mode="image", **more):
    """A job that notes its events."""
    made = Job([{"role": "user", "content": [{"type": "text", "text": text}]}], mode, prompt_tokens=8, **more)
    made.events = []
    made.done = threading.Event()

    def emit(event):
        made.events.append(event)
        if isinstance(event, Finished | Failed):
            made.done.set()

    made.emit = emit
    return made


def end_of(one, seconds=30):
    assert one.done.wait(seconds), one.events
    return one.events[-1]


@pytest.fixture
def start(tiny, monkeypatch):
    """Makes an engine that works on a batch only when it is let; `engine.batches` are those that it began."""
    made = []

    def make(**limits):
        engine = Engine(*tiny, ServerSettings(**limits))
        engine.batches, engine.gate = [], threading.Semaphore(0)

        def gated(model, processor, jobs):
            engine.batches.append(list(jobs))
            assert engine.gate.acquire(timeout=30)
            return answer_batch(model, processor, jobs)

        monkeypatch.setattr(engine_module, "answer_batch", gated)
        engine.start()
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.gate.release(1000)
        engine.close()


def busy(engine):
    """Keeps an engine busy with one job, so that all that comes after it waits."""
    first = job()
    engine.submit([first])
    wait_for(lambda: engine.batches)
    return first


def wait_for(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def let_all(engine, jobs):
    engine.gate.release(1000)
    return [end_of(one) for one in jobs]


def test_what_waits_is_answered_together_by_kind(start):
    """Drawings of one schedule and one way of drawing, chats of one way of writing; the oldest first; at most `max_batch`."""
    engine = start(max_batch=3)
    busy(engine)
    drawings = [job(seed=seed) for seed in range(4)]
    chats = [job("what can you do", "text", max_tokens=20) for _ in range(2)]
    other = job(settings={"do_sample": True, "output_image_temperature": 2.0})
    waiting = [drawings[0], chats[0], drawings[1], other, drawings[2], chats[1], drawings[3]]
    for one in waiting:
        engine.submit([one])
    assert all(isinstance(end, Finished) for end in let_all(engine, waiting))
    assert engine.batches[1:] == [drawings[:3], chats, [other], drawings[3:]]


def test_a_row_does_not_depend_on_its_neighbors(tiny):
    """Whatever is answered together with it, in one batch or alone: the same text, the same image."""
    texts = ["what can you do", "draw a red circle above a blue square and say what you drew", "draw a green triangle"]
    together = [job(text, "auto", max_tokens=30, seed=index) for index, text in enumerate(texts)]
    answer_batch(*tiny, together)
    for index, text in enumerate(texts):
        alone = job(text, "auto", max_tokens=30, seed=index)
        answer_batch(*tiny, [alone])
        (ours, its) = (end_of(one).parts for one in (alone, together[index]))
        assert [part for part in ours if isinstance(part, str)] == [part for part in its if isinstance(part, str)]
        for one, other in zip(ours, its):
            if not isinstance(one, str):
                assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_rows_end_at_their_own_limits(tiny):
    jobs = [job("what can you do", "text", max_tokens=count, streams=True) for count in (1, 4, 30)]
    jobs.append(job("what can you do", "text", max_tokens=30, stop=("draw",), streams=True))
    answer_batch(*tiny, jobs)
    ends = [end_of(one) for one in jobs]
    assert [end.reason for end in ends] == ["length", "length", "stop", "stop"] and [end.tokens for end in ends[:2]] == [1, 4]
    assert [end.parts for end in ends[:2]] == [["i"], ["i can draw shapes"]] and ends[3].parts == ["i can "]
    for one, end in zip(jobs, ends):
        assert "".join(event.text for event in one.events if isinstance(event, Text)) == end.parts[0]


def test_an_image_that_goes_beyond_a_row_s_limit_is_not_drawn_beside_a_longer_row_either(tiny):
    text = "draw a red circle above a blue square and say what you drew"
    limits = (1, 2, 3, 60)
    together = [job(text, "auto", max_tokens=limit) for limit in limits]
    answer_batch(*tiny, together)
    for limit, one in zip(limits, together):
        alone = job(text, "auto", max_tokens=limit)
        answer_batch(*tiny, [alone])
        (ours, its) = ([part if isinstance(part, str) else "image" for part in end_of(each).parts] for each in (one, alone))
        assert ours == its and ("image" in ours) == (limit >= 2)


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_back(start):
    engine = start(max_waiting=3)
    busy(engine)
    waiting = [job(), job()]
    engine.submit(waiting)
    with pytest.raises(ApiError) as refused:
        engine.submit([job(), job()])
    assert refused.value.status == 429 and engine.num_waiting == 2
    assert 1 <= int(refused.value.response().headers["retry-after"]) <= 60
    engine.submit([job()])
    let_all(engine, waiting)


def test_the_images_of_what_waits_are_limited_too(start):
    engine = start(max_waiting_bytes=3000)
    busy(engine)
    engine.submit([job(pixels=600)])
    with pytest.raises(ApiError, match="Too many requests wait"):
        engine.submit([job(pixels=500)])


def test_a_batch_fits_into_the_memory_and_a_job_that_does_not_is_refused(start):
    one = job()
    engine = start(memory_bytes=10**12)
    needed = engine._bytes([one])
    engine = start(memory_bytes=int(2.5 * needed))
    busy(engine)
    waiting = [job() for _ in range(5)]
    engine.submit(waiting)
    let_all(engine, waiting)
    assert [len(batch) for batch in engine.batches] == [1, 2, 2, 1]
    with pytest.raises(ApiError, match="would take about .* MiB of memory") as refused:
        engine.submit([job(mode="text", max_tokens=100_000)])
    assert refused.value.status == 413


def test_guidance_counts_twice(start):
    engine = start()
    guided = job(settings={"output_image_guidance_type": "prompt"})
    schedule_pixels = engine._bytes([job()]) - engine._bytes([job(mode="text")])
    assert engine._bytes([guided]) > engine._bytes([job()]) and schedule_pixels > 0


def test_whoever_goes_away_while_waiting_frees_the_place(start):
    engine = start(max_waiting=1)
    busy(engine)
    gone = job()
    engine.submit([gone])
    engine.cancel([gone])
    kept = job()
    engine.submit([kept])
    let_all(engine, [kept])
    assert gone not in [one for batch in engine.batches for one in batch] and not gone.events


def test_a_batch_that_nobody_wants_any_more_ends_at_its_next_step(tiny):
    """After one token of a thousand, or one scale; where somebody still waits, the others' rows end and the answer comes."""
    text = job("what can you do", "text", max_tokens=1000, streams=True)
    note = text.emit

    def leave(event):
        note(event)
        text.cancelled = True

    text.emit = leave
    assert answer_batch(*tiny, [text])[1] == 1
    assert [event.text for event in text.events] == ["i"]
    alone = job(scales=frozenset({0, 1}))
    alone.emit = lambda event: setattr(alone, "cancelled", True)
    with pytest.raises(engine_module.Abandoned):
        answer_batch(*tiny, [alone])
    drawing, other = job(scales=frozenset({0, 1})), job(scales=frozenset({0, 1}))
    drawing.emit = lambda event: setattr(drawing, "cancelled", True)
    answer_batch(*tiny, [drawing, other])
    assert [type(event) for event in other.events] == [Partial, Partial, Finished]


def test_a_late_job_is_told_so_waiting_or_running(start, tiny):
    engine = start()
    busy(engine)
    late = job(deadline=time.monotonic() + 0.05)
    engine.submit([late])
    time.sleep(0.1)
    engine.gate.release(1000)
    end = end_of(late)
    assert (end.status, end.message) == (503, "The request has waited longer than 300 s.")
    running = job("what can you do", "text", max_tokens=1000, deadline=time.monotonic() + 0.3)
    running.emit, note = (lambda event: (time.sleep(0.1), note(event))), running.emit
    running.streams = True
    engine.submit([running])
    assert (end_of(running).status, running.events[-1].message) == (504, "The answer took longer than 300 s.")


def test_one_bad_job_spoils_no_other(start, monkeypatch):
    """It is found by halves, and told the reason; an error that is not its own is a fault, and the engine lives on."""
    engine = start(max_batch=8)
    busy(engine)
    jobs = [job(seed=seed) for seed in range(5)]
    gated = engine_module.answer_batch

    def failing(model, processor, batch):
        if jobs[3] in batch:
            raise ValueError("The scores of the next token are NaN.")
        return gated(model, processor, batch)

    monkeypatch.setattr(engine_module, "answer_batch", failing)
    engine.submit(jobs)
    ends = let_all(engine, jobs)
    assert [type(end) for end in ends] == [Finished, Finished, Finished, Failed, Finished]
    assert (ends[3].status, ends[3].message) == (400, "The scores of the next token are NaN.")

    def broken(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(engine_module, "answer_batch", broken)
    for count in range(1, 4):
        assert engine.state() == (True, "ok")
        one = job()
        engine.submit([one])
        assert end_of(one) == Failed(500, "The server has a fault; its log says which.")
        wait_for(lambda count=count: engine._faults == count)
    assert engine.state() == (False, "failing")


def test_halves_run_without_what_the_failed_batch_held(start, monkeypatch):
    """Where a batch was too much for the memory, its halves would find no more of it."""
    engine = start(max_batch=8)
    busy(engine)
    held, alive = [], []

    class Held:
        """Stands for memory of an attempt."""

    def failing(model, processor, batch):
        alive.append(sum(each() is not None for each in held))
        memory = Held()
        held.append(weakref.ref(memory))
        try:
            raise RuntimeError("out of memory")
        except RuntimeError as error:
            raise ValueError("It does not fit.") from error

    monkeypatch.setattr(engine_module, "answer_batch", failing)
    jobs = [job(seed=seed) for seed in range(4)]
    engine.submit(jobs)
    assert all(isinstance(end, Failed) for end in let_all(engine, jobs))
    assert len(alive) == 7 and not any(alive)


def test_memory_that_is_cached_counts_as_free(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemFree:  1000 kB\nMemAvailable:  5000 kB\n")
    monkeypatch.setattr(engine_module, "_MEMORY", tmp_path / "meminfo")
    assert engine_module.free_memory(torch.device("cpu")) == 5000 * 1024
    monkeypatch.setattr(engine_module, "_MEMORY", tmp_path / "none")
    assert engine_module.free_memory(torch.device("cpu")) > 2**20


def test_a_batch_that_is_run_anew_tells_nothing_twice(start, monkeypatch):
    """Texts and images that were given out before the failure are not given out again."""
    engine = start()
    jobs = [job("draw a red circle above a blue square and say what you drew", "auto", max_tokens=40, streams=True) for _ in range(2)]
    failed = []

    def late_failure(model, processor, batch):
        done = answer_batch(model, processor, batch) if failed else None
        if done is None:
            failed.append(True)
            for one in batch:
                one.end, kept = (lambda event: None), one.end
                one.kept = kept
            answer_batch(model, processor, batch)
            for one in batch:
                one.end = one.kept
            raise torch.OutOfMemoryError("at the very end")
        return done

    monkeypatch.setattr(engine_module, "answer_batch", late_failure)
    engine.submit(jobs)
    for one in jobs:
        end = end_of(one)
        assert Counter(type(event).__name__ for event in one.events)["Drawn"] == 1
        assert "".join(event.text for event in one.events if isinstance(event, Text)) == end.parts[1]


def test_a_shutdown_finishes_what_runs_and_sends_the_rest_away(start):
    engine = start()
    running = busy(engine)
    waiting = job()
    engine.submit([waiting])
    engine.drain()
    assert end_of(waiting) == Failed(503, "The server is shutting down.")
    with pytest.raises(ApiError, match="shutting down") as refused:
        engine.submit([job()])
    assert refused.value.status == 503 and refused.value.response().headers["retry-after"] == "10"
    engine.gate.release(1000)
    assert isinstance(end_of(running), Finished) and engine.state() == (False, "shutting down")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "there is no API key: set the environment variable VARGPT_API_KEY"),
        ({"host": "192.168.0.4"}, "others can reach it"),
        ({"host": "example.org"}, "others can reach it"),
        ({"host": "0.0.0.0", "api_key": " "}, "The API key is empty"),
        ({"max_batch": 0}, "`max_batch` must be at least 1, got 0"),
        ({"max_seconds": float("nan")}, "`max_seconds` must be at least 1"),
        ({"max_tokens": 1}, "`max_tokens` must be at least 2, which an image takes"),
        ({"port": 70_000}, "`port` must be from 0 to 65535"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(**settings)
    ServerSettings(host="0.0.0.0", api_key="secret")
    assert all(ServerSettings(host=host) for host in ("localhost", "127.0.0.1", "::1", "[::1]", "127.8.8.8"))
