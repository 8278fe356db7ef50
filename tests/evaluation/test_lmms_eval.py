"""lmms-eval itself, where it is installed: our model on local tasks, and the papers' tasks under models whose score is known beforehand."""

import json
import subprocess
import sys

import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is not a dependency: lmms_eval.txt beside this file says how to install it")

from datasets import Dataset, DatasetDict  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.models import get_model  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402

from vargpt_hf.evaluation.paper import PAPER  # noqa: E402
from vargpt_hf.tiny.digits import digit_image, load_split  # noqa: E402

NUMBER = 8  # rows of a task
IMAGE = Image.new("RGB", (8, 8), "red")
LETTERS = "ABCD"
VQA = {"question": "what?", "question_id": 1, "image": IMAGE, "question_type": "what is", "answer_type": "other"}


def choice(index):
    return LETTERS[index % 4]


def rows_of(task):
    """Rows in the task's own format, and what is right, wrong, and by chance, by row."""
    yes = ["yes" if index % 2 else "no" for index in range(NUMBER)]
    letters = [choice(index) for index in range(NUMBER)]
    if task.startswith("pope"):
        return [{"question_id": str(i), "question": "Is there a car?", "answer": yes[i], "image": IMAGE} for i in range(NUMBER)], yes
    if task == "mme":
        rows = [
            {"question_id": f"q{i // 2}", "question": "Is it red?", "answer": yes[i].title(), "category": "color", "image": IMAGE}
            for i in range(NUMBER)
        ]
        return rows, yes
    if task == "gqa":
        return [{"question": "what?", "answer": f"thing{i}", "imageId": "1", "image": IMAGE} for i in range(NUMBER)], [
            f"thing{i}" for i in range(NUMBER)
        ]
    if task == "scienceqa_img":
        rows = [{"image": IMAGE, "question": "Which?", "hint": "", "choices": list("wxyz"), "answer": i % 4} for i in range(NUMBER)]
        return rows, letters
    if task == "mmmu_val":
        common = {"question": "Which <image 1>?", "options": "['w', 'x', 'y', 'z']", "question_type": "multiple-choice", "image_1": IMAGE}
        return [{"id": f"validation_Art_{i}", **common, "answer": letters[i]} for i in range(NUMBER)], letters
    if task == "seedbench":
        options = {f"choice_{letter}": letter for letter in "abcd"}
        rows = [
            {"question_id": str(i), "question": "Which?", **options, "answer": letters[i], "data_type": "image", "image": [IMAGE]}
            for i in range(NUMBER)
        ]
        return rows, letters
    if task == "mmbench_en_dev_static":
        # Options whose letters no other option's text holds, as the static scorer looks for them.
        texts = {"A": "first", "B": "second", "C": "third", "D": "fourth"}
        common = {
            "question": "Which?",
            "hint": "nan",
            **texts,
            "source": "s",
            "split": "dev",
            "category": "c",
            "L2-category": "l",
            "image": IMAGE,
        }
        return [{"index": i, **common, "answer": letters[i]} for i in range(NUMBER)], letters
    things = [f"thing{i}" for i in range(NUMBER)]
    if task == "vqav2_val":
        return [
            {**VQA, "answers": [{"answer": thing, "answer_id": n, "answer_confidence": "yes"} for n in range(10)]} for thing in things
        ], things
    return [{**VQA, "answers": [thing] * 10} for thing in things], things


class Known(lmms):
    """Answers what it was given, by row."""

    is_simple = False

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def generate_until(self, requests):
        for request in requests:
            messages = request.args[1](self.task_dict[request.args[4]][request.args[5]][request.args[3]])
            assert any(part["type"] == "image" for message in messages for part in message["content"])
        return [self.answers[request.args[3]] for request in requests]

    loglikelihood = generate_until_multi_round = None


@pytest.fixture(scope="module")
def tasks():
    """All tasks of lmms-eval, by name."""
    return TaskManager()


def evaluated(model, task, rows, tasks, tmp_path):
    """The papers' number of a model on local rows of a task."""
    benchmark = next(row for row in PAPER if row.task == task)
    split = {"pope_adv": "adversarial", "pope_pop": "popular", "pope_random": "random", "gqa": "testdev", "mmmu_val": "validation"}.get(
        task, None
    )
    split = split or {
        "mmbench_en_dev_static": "dev",
        "ok_vqa_val2014": "val2014",
        "vizwiz_vqa_val": "val",
        "textvqa_val": "validation",
        "vqav2_val": "validation",
    }.get(task, "test")
    DatasetDict({split: Dataset.from_list(rows)}).save_to_disk(tmp_path / "rows")
    local = {"dataset_path": str(tmp_path / "rows"), "dataset_name": None, "dataset_kwargs": {"load_from_disk": True}}
    if task == "gqa":
        local["process_docs"] = None  # which fetches the images from the Hub
    # By its name: lmms-eval takes a task that it is given as a dictionary for one of its older interface.
    (tmp_path / "local.yaml").write_text(json.dumps({"include": tasks.task_index[task]["yaml_path"], "task": task, **local}))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(model=model, tasks=[task], task_manager=manager, batch_size=1, log_samples=False, bootstrap_iters=0)["results"]
    metrics = {name.split(",")[0]: value for name, value in results[task].items()}
    return benchmark.scale * sum(metrics[name] for name in benchmark.metrics)


@pytest.mark.parametrize("task", [row.task for row in PAPER])
def test_tasks_score_what_is_known_beforehand(task, tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, right = rows_of(task)
    full = 200 if task == "mme" else 100
    wrong = {"yes": "no", "no": "yes", **{letter: LETTERS[(index + 1) % 4] for index, letter in enumerate(LETTERS)}}
    assert evaluated(Known(right), task, rows, tasks, tmp_path / "right") == pytest.approx(full)
    assert evaluated(Known([wrong.get(one, "another") for one in right]), task, rows, tasks, tmp_path / "wrong") == pytest.approx(0)
    chance = {"yes": 50, "no": 50, **dict.fromkeys(LETTERS, 25)}.get(right[0], 100 / NUMBER)
    expected = 50 if task == "mme" else chance  # of each pair of questions one is right: accuracy 50, both right never
    assert evaluated(Known([right[0]] * NUMBER), task, rows, tasks, tmp_path / "chance") == pytest.approx(expected)


DIGITS = """
task: local_digits
dataset_path: {path}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: generate_until
doc_to_visual: !function local.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOICES = """
task: local_choices
dataset_path: {path}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function local.visual
doc_to_text: question
doc_to_target: number
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
DRAWINGS = """
task: local_drawings
dataset_path: {path}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: generate_until
doc_to_visual: !function local.nothing
doc_to_text: prompt
doc_to_target: prompt
generation_kwargs: {{max_new_tokens: 16}}
process_results: !function local.seen
metric_list:
  - metric: seen
    aggregation: mean
    higher_is_better: true
"""
LOCAL = """
import json
from PIL import Image
from vargpt_hf.tiny.judges import detect

def visual(doc):
    return [doc["image"].convert("RGB")]

def nothing(doc):
    return []

def seen(doc, results):
    image = Image.open(json.loads(results[0])["images"][0])
    names = " and ".join(sorted(f"a {item.colour} {item.shape}" for item in detect(image)))
    return {"seen": float(names == doc["prompt"])}
"""


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory):
    """Tasks of real digits, read and by choice, and of drawings."""
    folder = tmp_path_factory.mktemp("tasks")
    words = list("0123456789")
    images, labels = load_split("test")
    rows = [
        {
            "image": digit_image(images[i]),
            "question": "which digit is this",
            "answer": words[labels[i]],
            "number": int(labels[i]),
            "choices": words,
        }
        for i in range(3)  # which vargpt-tiny reads correctly
    ]
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(folder / "digits")
    prompts = [{"prompt": "a red circle"}, {"prompt": "a green cross"}, {"prompt": "a blue square and a red circle"}]
    DatasetDict({"test": Dataset.from_list(prompts)}).save_to_disk(folder / "prompts")
    (folder / "local.py").write_text(LOCAL)
    for name, form, data in (("digits", DIGITS, "digits"), ("choices", CHOICES, "digits"), ("drawings", DRAWINGS, "prompts")):
        (folder / f"local_{name}.yaml").write_text(form.format(path=folder / data))
    return folder


def lmms_eval(folder, tmp_path, task, *arguments, model_args="pretrained=vargpt-tiny,dtype=float32"):
    """Metrics of lmms-eval's own command."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "vargpt", "--model_args", model_args, "--tasks", task]
    command += ["--include_path", folder, "--output_path", tmp_path / "out", "--device", "cpu", *arguments]
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, capture_output=True, text=True)
    found = sorted((tmp_path / "out").rglob("*_results.json"))
    assert done.returncode == 0 and found, done.stderr[-3000:]
    return {name.split(",")[0]: value for name, value in json.loads(found[-1].read_text())["results"][task].items()}


def test_our_entry_point_is_found():
    assert get_model("vargpt").__name__ == "VargptChat" and get_model("vargpt", True).__name__ == "VargptSimple"


def test_reading(local_tasks, tmp_path):
    assert lmms_eval(local_tasks, tmp_path, "local_digits", "--batch_size", "4")["exact_match"] == 1.0


def test_likelihoods(local_tasks, tmp_path):
    assert lmms_eval(local_tasks, tmp_path, "local_choices", "--batch_size", "4", "--force_simple")["acc"] == 1.0


def test_drawing(local_tasks, tmp_path):
    arguments = "pretrained=vargpt-tiny,dtype=float32,generation_mode=image,output_dir=drawn"
    assert lmms_eval(local_tasks, tmp_path, "local_drawings", "--batch_size", "2", model_args=arguments)["seen"] == 1.0
    assert len(list((tmp_path / "drawn" / "local_drawings").glob("*.png"))) == 3
