"""Files of prompts: in order, restartable, the same in any number of processes, and broken ones are listed."""

import json
import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from ready_processes import VARGPT, ReadyProcess

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.inference.prompts import Prompt, check_prompts, draw_batch, draw_prompts, read_prompts
from vargpt_hf.tiny import TINY_FOLDER

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple")
TEXTS = [f"a {colour} circle" for colour in COLOURS] + [f"a {colour} circle above a red cross" for colour in COLOURS] + ["a handwritten nine"]
SETTINGS = {"batch_size": 2, "device": "cpu", "dtype": "float32", "seed": 5, "do_sample": True}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    return file


@pytest.fixture(scope="module")
def drawn(prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "images"
    draw_prompts(prompts, TINY_FOLDER, folder, **SETTINGS)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(folder):
    return np.stack([np.asarray(Image.open(folder / f"{index:06}.png")).astype(int) for index in range(len(TEXTS))])


def test_results_stand_in_the_order_of_the_prompts(drawn):
    results = [json.loads(line) for line in (drawn / "results.jsonl").read_text().splitlines()]
    assert results == [{"prompt": text, "file": f"{index:06}.png", "seed": 5 + index, "error": None} for index, text in enumerate(TEXTS)]
    assert len(contents(drawn)) == len(TEXTS) + 2 and pixels(drawn).shape == (len(TEXTS), 48, 48, 3)


def test_a_image_is_that_of_its_prompt_and_seed_alone(drawn, prompts, tmp_path):
    draw_prompts(prompts, TINY_FOLDER, tmp_path / "other", **{**SETTINGS, "batch_size": 5})
    assert np.abs(pixels(tmp_path / "other") - pixels(drawn)).max() <= 1  # the same codes; batches of other sizes round otherwise
    model, processor = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER), VargptProcessor.from_pretrained(TINY_FOLDER)
    for index in (0, 12):
        alone, of_another_seed = (draw_batch(model, processor, [Prompt(TEXTS[index], "x", seed)])[0] for seed in (5 + index, 6 + index))
        assert np.abs(np.asarray(alone).astype(int) - pixels(drawn)[index]).max() <= 1
    assert np.abs(np.asarray(of_another_seed).astype(int) - pixels(drawn)[index]).max() > 1  # a handwritten nine


def test_what_is_there_is_not_drawn_again(drawn, prompts, tmp_path):
    folder = tmp_path / "images"
    draw_prompts(prompts, TINY_FOLDER, folder, **SETTINGS)
    for name in ("000003.png", "000010.png", "results.jsonl"):
        (folder / name).unlink()
    (folder / ".000003.png.1f2e").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.startswith(".")}
    draw_prompts(prompts, TINY_FOLDER, folder, **SETTINGS)
    assert contents(folder) == contents(drawn)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_processes_of_a_launcher_share_the_work(drawn, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert draw_prompts(prompts, TINY_FOLDER, tmp_path / "images", **SETTINGS) == []
    assert set(contents(tmp_path / "images")) == {"draw.manifest", *(f"{index:06}.png" for index in (2, 3, 6, 7, 10, 11))}
    monkeypatch.setenv("RANK", "0")
    assert len(draw_prompts(prompts, TINY_FOLDER, tmp_path / "images", **SETTINGS)) == len(TEXTS)
    assert contents(tmp_path / "images") == contents(drawn)
    with pytest.raises(ValueError, match="has started 2 processes already"):
        draw_prompts(prompts, TINY_FOLDER, tmp_path / "images", num_processes=2, **SETTINGS)


@pytest.mark.slow
def test_after_a_kill_of_several_processes_one_goes_on_to_the_same_files(drawn, prompts, tmp_path):
    folder = tmp_path / "images"
    command = [VARGPT, "draw", "--prompts", prompts, "--num-processes", 2, "--batch-size", 2, "--seed", 5, "--device", "cpu", "-o", folder]
    run = ReadyProcess(command)
    while not list(folder.glob("[0-9]*.png")):
        assert run.poll() is None
        time.sleep(0.002)
    started = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert started and not psutil.wait_procs(started, timeout=30)[1], "processes go on without their parent"
    first = {path: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.png")}
    assert len(first) < len(TEXTS) and not (folder / "results.jsonl").exists()
    draw_prompts(prompts, TINY_FOLDER, folder, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert contents(folder) == contents(drawn)


LINES = [
    ('{"prompt": "a red circle", "id": "mine", "seed": 77, "kind": "shape"}', None),
    ("", "the line is empty"),
    ('{"prompt": "a red circle", "id": "mine"}', "the id 'mine' is that of an earlier prompt"),
    ('{"prompt": 3}', "the prompt is not a text, but int"),
    ('{"prompt": "   "}', "the prompt is empty"),
    ('{"text": "a red circle"}', 'no JSON object with the key "prompt"'),
    ('["a red circle"]', 'no JSON object with the key "prompt"'),
    ('{"prompt": "a red', "Unterminated string"),
    ('{"prompt": "\\ud800"}', "surrogates not allowed"),
    ('{"prompt": "a red circle", "id": "../up"}', "the id '../up' cannot name a file"),
    ('{"prompt": "a red circle", "id": true}', "the id True cannot name a file"),
    ('{"prompt": "a red circle", "seed": -1}', "the seed -1 is no whole number"),
    ('{"prompt": "a red circle", "seed": "1"}', "the seed '1' is no whole number"),
    ("[" * 100_000, "recursion"),
    ('{"prompt": "a <|image_gen_start|>"}', "special token"),
    (json.dumps({"prompt": "a red circle " * 400}), "beside an image the model has room for"),
    ('{"prompt": "a blue square", "id": 12, "seed": null}', None),
]


def test_broken_prompts_are_listed_and_the_others_drawn(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(line for line, _ in LINES))
    draw_prompts(tmp_path / "prompts.jsonl", TINY_FOLDER, tmp_path / "out", **{**SETTINGS, "batch_size": 16}, enlarge=2)
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    for (line, cause), row in zip(LINES, results, strict=True):
        assert cause in row["error"] if cause else row["error"] is None, (line, row)
        assert cause is None or row["file"] is None
    assert results[0] == {"prompt": "a red circle", "file": "mine.png", "seed": 77, "error": None}
    assert results[-1] == {"prompt": "a blue square", "file": "12.png", "seed": 5 + len(LINES) - 1, "error": None}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"mine.png", "12.png"}
    assert Image.open(tmp_path / "out" / "12.png").size == (96, 96)


def test_lines_of_a_text_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa red\xe2\x80\xa8circle\r\n\r\n\xff\n  two  \n")
    found = read_prompts(file, seed=3)
    assert [(prompt.text, prompt.name, prompt.seed) for prompt in found if prompt.error is None] == [
        ("a red\u2028circle", "000000", 3),
        ("two", "000003", 6),
    ]
    assert found[1].error == "the prompt is empty" and "can't decode" in found[2].error
    file.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(file)
    with pytest.raises(ValueError, match="must end in .txt"):
        read_prompts(tmp_path / "prompts.csv")
    with pytest.raises(ValueError, match="The seed must be a whole number from 0 to"):
        read_prompts(tmp_path / "a.txt", seed=-1)


def test_a_prompt_may_be_as_long_as_the_model_has_room(tmp_path):
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER)
    places = [Prompt("red " * count, "x", 0) for count in range(960, 981)]
    fits = [prompt for prompt in check_prompts(places, processor, model.config) if prompt.error is None]
    chat = [{"role": "user", "content": fits[-1].text}]
    inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, generation_mode="image", max_new_tokens=2)
    assert 0 < len(fits) < len(places) and output.shape[1] - 1 == 1024  # image-end, the last, is fed to no model


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 6}, "images of something else: prompts "),
        ({"enlarge": 2}, r"enlarge 1 \(here 2\)"),
        ({"output_image_top_k": 3}, r"settings \{'do_sample': True\} \(here \{'do_sample': True, 'output_image_top_k': 3\}\)"),
        ({"dtype": "bfloat16"}, "dtype float32"),
    ],
)
def test_a_folder_of_other_images_is_refused(changed, message, drawn, prompts):
    before = contents(drawn)
    with pytest.raises(ValueError, match=message):
        draw_prompts(prompts, TINY_FOLDER, drawn, **{**SETTINGS, **changed})
    assert contents(drawn) == before


@pytest.mark.parametrize(("settings", "error"), [({"output_image_top_p": 2.0}, ValueError), ({"output_image_top_k": "3"}, TypeError)])
def test_wrong_settings_claim_no_folder(settings, error, prompts, tmp_path):
    with pytest.raises(error, match=f"`{next(iter(settings))}` must be"):
        draw_prompts(prompts, TINY_FOLDER, tmp_path / "images", **SETTINGS, **settings)
    assert not (tmp_path / "images").exists()


def test_another_model_is_refused_and_a_copy_is_not(drawn, prompts, tmp_path):
    for path in TINY_FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(draw_prompts(prompts, tmp_path, drawn, **SETTINGS)) == len(TEXTS)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="images of something else: model "):
        draw_prompts(prompts, tmp_path, drawn, **SETTINGS)


def test_a_batch_too_large_for_the_device_is_said():
    model, processor = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER), VargptProcessor.from_pretrained(TINY_FOLDER)

    def generate(**arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.generate = generate
    with pytest.raises(ValueError, match="A batch of 2 does not fit into the memory of cpu: take a smaller batch size"):
        draw_batch(model, processor, [Prompt("a red circle", "x", 0)] * 2)
