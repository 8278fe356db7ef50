"""Judges: a chat server on this machine, a model of ours; and the suites that they score."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from vargpt_hf.evaluation.judged_suites import judge_gedit, judge_imgedit, judge_wise, named_scores, weighted_mean
from vargpt_hf.evaluation.judges import ChatJudge, LocalJudge, Question, ask_all, make_judge
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.shapes import render, sample_scene


class Server(ThreadingHTTPServer):
    """Answers as an OpenAI-compatible server does: by `reply`, which takes the request and gives a status and a body."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.reply, self.models = [], lambda asked: (200, said("yes")), ["judge-1"]
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked["path"], asked["key"] = self.path, self.headers.get("Authorization")
        self.server.asked.append(asked)
        self.send(*self.server.reply(asked))

    def send(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def said(text):
    return {"choices": [{"message": {"content": text}}]}


@pytest.fixture
def server():
    running = Server()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def red(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(file)
    return file


def test_a_server_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge = make_judge(server.url)
    assert judge.name == "judge-1" and judge.ask("red?", [red(tmp_path / "a.png"), red(tmp_path / "b.jpg")]) == "yes"
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions" and asked["key"] == "Bearer secret" and asked["temperature"] == 0
    text, *images = asked["messages"][0]["content"]
    assert text == {"type": "text", "text": "red?"} and len(images) == 2
    for image in images:
        content = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(content)).getpixel((0, 0))[0] > 250


def test_an_overloaded_server_is_asked_again(server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.reply = lambda asked: (429, {}) if len(server.asked) < 3 else (200, said("at last"))
    assert ChatJudge(server.url).ask("now?", []) == "at last" and len(server.asked) == 3


def test_what_a_server_may_do_wrong(server):
    server.reply = lambda asked: (400, {"error": "no such model"})
    with pytest.raises(OSError, match=r"refused \(400\).*no such model"):
        ChatJudge(server.url).ask("", [])
    server.reply = lambda asked: (200, {"choices": []})
    with pytest.raises(OSError, match="without a message"):
        ChatJudge(server.url).ask("", [])
    server.models = ["a", "b"]
    with pytest.raises(ValueError, match="has the models a, b: choose one"):
        ChatJudge(server.url)
    assert ChatJudge(server.url, "b").name == "b"
    with pytest.raises(ValueError, match="is no URL"):
        ChatJudge("localhost")
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="cannot be asked"):
        ChatJudge(server.url, "a").ask("", [])


def test_answers_are_kept(server, tmp_path):
    questions = [Question(f"{number}", f"number {number}", (red(tmp_path / "a.png"),)) for number in range(5)]
    server.reply = lambda asked: (200, said(asked["messages"][0]["content"][0]["text"])) if len(server.asked) < 4 else (400, {})
    with pytest.raises(OSError, match="refused"):
        ask_all(ChatJudge(server.url, at_once=1), questions, tmp_path / "answers.jsonl")
    server.asked.clear()
    (tmp_path / "answers.jsonl").open("a").write('{"judge": "jud')  # of a run that was killed
    found = ask_all(ChatJudge(server.url, at_once=1), questions, tmp_path / "answers.jsonl")
    assert found == {question.id: question.text for question in questions} and len(server.asked) == 2
    ask_all(ChatJudge(server.url, "other"), questions[:1], tmp_path / "answers.jsonl")
    assert len(server.asked) == 3  # another judge is asked itself


def test_a_model_of_ours_judges(tmp_path):
    render(sample_scene(__import__("numpy").random.default_rng(2), "single", background="white")).save(tmp_path / "scene.png")
    judge = make_judge(str(TINY_FOLDER))
    assert isinstance(judge, LocalJudge) and judge.name.startswith("weights, fingerprint ")
    assert judge.ask("how many objects are there", [tmp_path / "scene.png"]) == "one"


def test_scores_are_read_off_an_answer():
    names = ("consistency", "aesthetic quality")
    assert named_scores("**Consistency:** 2\n- Aesthetic Quality: 1", names, 0, 2) == {"consistency": 2, "aesthetic quality": 1}
    for broken in (
        "Consistency: 2",
        "Consistency: 3\nAesthetic Quality: 1",
        "Consistency: 1\nConsistency: 2\nAesthetic Quality: 1",
        "",
        "Consistency: 2.5",
    ):
        assert named_scores(broken, names, 0, 2) is None


def wise_files(tmp_path, ids):
    rows = [{"prompt_id": number, "Prompt": f"prompt {number}", "Explanation": f"meaning {number}", "Subcategory": "x"} for number in ids]
    (tmp_path / "wise.json").write_text(json.dumps(rows))
    for number in ids:
        red(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images", tmp_path / "wise.json"


def grades(asked):
    """Full marks for prompts of even number, none for the others."""
    text = asked["messages"][0]["content"][0]["text"]
    number = int(text.partition("prompt ")[2].split()[0])
    assert f"meaning {number}" in text
    return 200, said("\n".join(f"{name}: {2 * (number % 2 == 0)}" for name in ("Consistency", "Realism", "Aesthetic Quality")))


def test_wise(server, tmp_path):
    server.reply = grades
    found = judge_wise(*wise_files(tmp_path, [2, 3, 402, 404, 568, 702, 801, 902]), ChatJudge(server.url))
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert (
        values["WiScore: culture"] == pytest.approx(0.5) and values["WiScore: time"] == pytest.approx(1.0) and values["WiScore: physics"] == 0.0
    )
    assert values["WiScore"] == pytest.approx(0.4 * 0.5 + 0.167 + 0.133 + 0.1 + 0.0 + 0.1)
    assert found.judge["name"] == "judge-1" and "do not compare" in found.notes[0]
    assert found.metrics["WiScore"].low <= values["WiScore"] <= found.metrics["WiScore"].high
    part = judge_wise(*wise_files(tmp_path, [2, 402]), ChatJudge(server.url))
    assert "WiScore" not in part.metrics and "no image of space, biology, physics, chemistry" in part.notes[1]


def test_answers_without_scores_are_left_out_and_said(server, tmp_path):
    server.reply = lambda asked: (
        (200, said("lovely")) if "prompt 3 " in asked["messages"][0]["content"][0]["text"].replace("\n", " ") else grades(asked)
    )
    found = judge_wise(*wise_files(tmp_path, [2, 3]), ChatJudge(server.url))
    assert found.metrics["WiScore: culture"].value == pytest.approx(1.0) and found.metrics["WiScore: culture"].number == 1
    assert any("1 of 2 answers held no scores and are left out: 3." in note for note in found.notes)
    server.reply = lambda asked: (200, said("lovely"))
    with pytest.raises(ValueError, match="gave no scores; to 2 it said 'lovely'"):
        judge_wise(*wise_files(tmp_path, [2, 3]), ChatJudge(server.url))


def test_another_text_for_the_judge(server, tmp_path):
    folder, file = wise_files(tmp_path, [2])
    (tmp_path / "text.txt").write_text("prompt: {prompt} key: {explanation}")
    server.reply = grades
    found = judge_wise(folder, file, ChatJudge(server.url), text=tmp_path / "text.txt")
    assert server.asked[0]["messages"][0]["content"][0]["text"] == "prompt: prompt 2 key: meaning 2"
    assert found.judge["own_words"] is False and not any("do not compare" in note for note in found.notes)
    (tmp_path / "text.txt").write_text("no places")
    with pytest.raises(ValueError, match="{prompt}, {explanation} is not in it"):
        judge_wise(folder, file, ChatJudge(server.url), text=tmp_path / "text.txt")


def test_imgedit(server, tmp_path):
    edits = {
        "7": {"id": "a.png", "prompt": "make it blue", "edit_type": "adjust"},
        "8": {"id": "a.png", "prompt": "remove it", "edit_type": "remove"},
    }
    (tmp_path / "basic_edit.json").write_text(json.dumps(edits))
    originals = red(tmp_path / "originals" / "a.png").parent
    for key in edits:
        red(tmp_path / "edited" / f"{key}.png")
    server.reply = lambda asked: (
        200,
        said("Brief reasoning: fine.\nPrompt Compliance: 5\nVisual Seamlessness: 4\nPhysical & Detail Fidelity: 3"),
    )
    files = tmp_path / "edited", tmp_path / "basic_edit.json"
    found = judge_imgedit(*files, ChatJudge(server.url), images=originals)
    assert {name: metric.value for name, metric in found.metrics.items()} == {"ImgEdit": 4, "ImgEdit: adjust": 4, "ImgEdit: remove": 4}
    assert len(server.asked[0]["messages"][0]["content"]) == 3
    (tmp_path / "prompts.json").write_text(json.dumps({"adjust": "Rate <edit_prompt>", "remove": "Rate <edit_prompt>, too"}))
    server.asked.clear()
    judge_imgedit(*files, ChatJudge(server.url), images=originals, text=tmp_path / "prompts.json")
    assert {asked["messages"][0]["content"][0]["text"] for asked in server.asked} == {"Rate make it blue", "Rate remove it, too"}
    (tmp_path / "prompts.json").write_text(json.dumps({"adjust": "Rate <edit_prompt>"}))
    with pytest.raises(ValueError, match="no text for edits of the kind 'remove'"):
        judge_imgedit(*files, ChatJudge(server.url), images=originals, text=tmp_path / "prompts.json")
    with pytest.raises(ValueError, match="give their folder"):
        judge_imgedit(*files, ChatJudge(server.url))


def test_gedit(server, tmp_path):
    from datasets import Dataset

    image = Image.new("RGB", (4, 4))
    row = {"task_type": "color_alter", "key": "4a", "instruction": "make it blue", "instruction_language": "en", "Intersection_exist": True}
    Dataset.from_list([{**row, "input_image": image, "input_image_raw": image}]).save_to_disk(tmp_path / "data")
    for name in ("4a.png", "4a_SRCIMG.png"):
        red(tmp_path / "out" / "fullset" / "color_alter" / "en" / name)
    server.reply = lambda asked: (200, said("Success: 8\nRestraint: 4\nNaturalness: 9\nCleanness: 10"))
    found = judge_gedit(tmp_path / "out", tmp_path / "data", ChatJudge(server.url))
    assert {name: metric.value for name, metric in found.metrics.items()} == {
        "GEdit en: overall": 6,
        "GEdit en: quality": 9,
        "GEdit en: semantics": 4,
    }


def test_a_weighted_mean_is_as_wide_as_its_parts():
    samples = [{"metrics": {"a": float(number % 2)}} for number in range(100)] + [{"metrics": {"b": 1.0}}] * 10
    found = weighted_mean(samples, {"a": 0.4, "b": 0.6})
    assert found.value == pytest.approx(0.8) and found.number == 110
    assert found.high - found.value == pytest.approx(0.4 * 1.96 * 0.5 / 10, rel=0.2)
