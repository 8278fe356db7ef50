"""Benchmarks drawn into their official layouts, and read back from them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from vargpt_hf.evaluation.archive import write_npz
from vargpt_hf.evaluation.benchmarks import BENCHMARKS, read_official
from vargpt_hf.evaluation.drawn_suites import draw_suite, plan_drawings, read_drawn, read_rewrites
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.shapes import render, sample_scene

PROMPTS = ["a red circle above a blue square", "three orange squares"]


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def draw(name, file, output, **settings):
    return draw_suite(name, file, TINY_FOLDER, output, **{"device": "cpu", "dtype": "float32", "do_sample": False, **settings})


def files(folder):
    """Paths of all files but our own notes."""
    own = ("benchmark.manifest", "drawn.jsonl")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name not in own)


# A file of prompts of each suite, and what it becomes with two images a prompt where there may be several.


def geneval(folder):
    rows = [{"tag": "position", "include": [{"class": "circle", "count": 1}], "prompt": prompt} for prompt in PROMPTS]
    made = [f"{index:05}/{name}" for index in range(2) for name in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")]
    return jsonl(folder / "evaluation_metadata.jsonl", rows), made


def geneval2(folder):
    rows = [{"prompt": prompt, "atom_count": 3, "vqa_list": [["Is there a circle?", "Yes"]], "skills": ["object"]} for prompt in PROMPTS]
    return jsonl(folder / "geneval2_data.jsonl", rows), ["image_paths.json", "images/00000.png", "images/00001.png"]


def dpg_bench(folder):
    (folder / "prompts").mkdir()
    for key, prompt in zip(("COCOval2014000000050627", "stanford12"), PROMPTS):
        (folder / "prompts" / f"{key}.txt").write_text(prompt)
    keys = ("COCOval2014000000050627", "stanford12")
    return folder / "prompts", [*(f"grids/{key}.png" for key in keys), *(f"parts/{key}/{number}.png" for key in keys for number in range(2))]


def wise(folder):
    rows = [
        {"Category": "Cultural knowledge", "Prompt": prompt, "Explanation": "as it says", "Subcategory": "Festival", "prompt_id": number}
        for prompt, number in zip(PROMPTS, (401, 7))
    ]
    (folder / "cultural_common_sense.json").write_text(json.dumps(rows))
    return folder / "cultural_common_sense.json", ["401.png", "7.png"]


def t2i_compbench(folder):
    (folder / "color_val.txt").write_text("".join(f"{prompt}\tseen\n" for prompt in PROMPTS))
    return folder / "color_val.txt", [f"samples/{PROMPTS[number // 2]}_{number:06}.png" for number in range(4)]


def imagenet_50k(folder):
    (folder / "classes.txt").write_text("red circle\nblue square\n")
    return folder / "classes.txt", [*(f"{index:04}/{number:02}.png" for index in range(2) for number in range(2)), "samples.npz"]


SUITES = {
    "geneval": geneval,
    "geneval2": geneval2,
    "dpg-bench": dpg_bench,
    "wise": wise,
    "t2i-compbench": t2i_compbench,
    "imagenet-50k": imagenet_50k,
}


@pytest.mark.parametrize("name", SUITES)
def test_layouts(name, tmp_path):
    file, wanted = SUITES[name](tmp_path)
    per_prompt = 1 if BENCHMARKS[name].single else 2
    rows = draw(name, file, tmp_path / "out", per_prompt=per_prompt)
    assert files(tmp_path / "out") == sorted(wanted)
    manifest, again = read_drawn(tmp_path / "out")
    assert again == rows and manifest["benchmark"] == name and manifest["model"]["fingerprint"]
    assert [row["seed"] for row in rows] == list(range(2 * per_prompt))
    found = read_official(name, tmp_path / "out", file)
    assert len(found) == (2 if name == "dpg-bench" else 2 * per_prompt)
    assert all(Image.open(path).size == ((96, 48) if name == "dpg-bench" else (48, 48)) for _, path in found)
    assert {row["prompt"] for row in rows} == {item.prompt for item, _ in found}
    assert draw(name, file, tmp_path / "out", per_prompt=per_prompt) == rows  # nothing left to do


def test_what_scorers_want_beside(tmp_path):
    file, _ = geneval(tmp_path)
    draw("geneval", file, tmp_path / "one", per_prompt=1)
    lines = file.read_text().splitlines()
    assert [json.loads((tmp_path / "one" / f"{index:05}" / "metadata.jsonl").read_text()) for index in range(2)] == [
        json.loads(line) for line in lines
    ]
    file, _ = geneval2(tmp_path)
    draw("geneval2", file, tmp_path / "two")
    paths = json.loads((tmp_path / "two" / "image_paths.json").read_text())
    assert list(paths) == PROMPTS and all(Image.open(path).size == (48, 48) for path in paths.values())
    file, _ = imagenet_50k(tmp_path)
    draw("imagenet-50k", file, tmp_path / "three", per_prompt=2, template="draw a {}")
    array = np.load(tmp_path / "three" / "samples.npz")["arr_0"]
    assert array.shape == (4, 48, 48, 3) and array.dtype == np.uint8
    assert (array[3] == np.asarray(Image.open(tmp_path / "three" / "0001" / "01.png"))).all()


def test_a_grid_has_the_places_that_the_scorer_crops(tmp_path):
    file, _ = dpg_bench(tmp_path)
    draw("dpg-bench", file, tmp_path / "out", do_sample=True, output_image_temperature=3.0)
    grid = Image.open(tmp_path / "out" / "grids" / "stanford12.png")
    assert grid.size == (96, 96)
    for number, box in enumerate([(0, 0, 48, 48), (48, 0, 96, 48), (0, 48, 48, 96), (48, 48, 96, 96)]):
        part = Image.open(tmp_path / "out" / "parts" / "stanford12" / f"{number}.png")
        assert grid.crop(box).tobytes() == part.convert("RGB").tobytes()


def test_images_do_not_depend_on_an_interruption_or_on_processes(tmp_path, monkeypatch):
    file, _ = geneval(tmp_path)
    settings = {"per_prompt": 2, "batch_size": 2, "do_sample": True, "output_image_temperature": 3.0}
    draw("geneval", file, tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    missing = tmp_path / "cut" / "00001" / "samples" / "0001.png"
    missing.unlink()
    (tmp_path / "cut" / "drawn.jsonl").unlink()
    draw("geneval", file, tmp_path / "cut", **settings)
    for rank in ("1", "0"):  # as a launcher starts them; the last to end finishes
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert bool(draw("geneval", file, tmp_path / "many", **settings)) == (rank == "0")
    monkeypatch.undo()
    for name in files(tmp_path / "whole"):
        content = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == content and (tmp_path / "many" / name).read_bytes() == content
    with pytest.raises(ValueError, match="holds images of something else: drawings_sha256"):
        draw("geneval", file, tmp_path / "whole", **settings, seed=1)


def test_weights_may_stay_as_they_are_stored(tmp_path):
    file, _ = geneval(tmp_path)
    rows = draw("geneval", file, tmp_path / "out", per_prompt=1, dtype="mixed")
    assert rows and read_drawn(tmp_path / "out")[0]["dtype"] == "mixed"


def test_template_rewriting_and_plans_are_on_record(tmp_path):
    file, _ = geneval2(tmp_path)
    rewrites = jsonl(
        tmp_path / "rewrites.jsonl",
        [{"prompt": PROMPTS[0], "rewritten": "a green cross"}, {"prompt": PROMPTS[1], "rewritten": "what can you do"}],
    )
    rows = draw("geneval2", file, tmp_path / "out", template="{}", rewrites=rewrites, think=40)
    manifest, _ = read_drawn(tmp_path / "out")
    assert manifest["prompts"] == {"template": "{}", "rewriting": "rewrites.jsonl"}
    assert manifest["settings"] == {"generation_mode": "text_image", "max_new_tokens": 42, "do_sample": False}
    assert [row["text"] for row in rows] == ["a green cross", "what can you do"] and [row["prompt"] for row in rows] == PROMPTS
    assert rows[0]["plan"] is None and rows[1]["plan"].startswith("i can draw shapes")
    assert draw("geneval2", file, tmp_path / "out", rewrites=rewrites, think=40) == rows  # of a run that drew nothing


def test_edits(tmp_path):
    scene = render(sample_scene(np.random.default_rng(0)))
    (tmp_path / "originals" / "animal").mkdir(parents=True)
    scene.save(tmp_path / "originals" / "animal" / "000342021.jpg")
    edits = {"1082": {"id": "animal/000342021.jpg", "prompt": "a red circle", "edit_type": "adjust"}}
    (tmp_path / "basic_edit.json").write_text(json.dumps(edits))
    (row,) = draw("imgedit", tmp_path / "basic_edit.json", tmp_path / "out", images=tmp_path / "originals")
    assert files(tmp_path / "out") == ["1082.png"] and row["image"].endswith("000342021.jpg")
    ((item, path),) = read_official("imgedit", tmp_path / "out", tmp_path / "basic_edit.json", tmp_path / "originals")
    assert item.metadata["edit_type"] == "adjust" and item.image.is_file() and path.name == "1082.png"
    with pytest.raises(ValueError, match="give the folder of the originals"):
        draw("imgedit", tmp_path / "basic_edit.json", tmp_path / "other")
    with pytest.raises(ValueError, match="edits animal/000342021.jpg, which is not in"):
        draw("imgedit", tmp_path / "basic_edit.json", tmp_path / "other", images=tmp_path)


def test_gedit(tmp_path):
    from datasets import Dataset

    scene = render(sample_scene(np.random.default_rng(0)))
    row = {"task_type": "color_alter", "key": "4a", "instruction": "a red circle", "instruction_language": "en", "Intersection_exist": True}
    Dataset.from_list([{**row, "input_image": scene, "input_image_raw": scene}]).save_to_disk(tmp_path / "data")
    draw("gedit", tmp_path / "data", tmp_path / "out")
    assert files(tmp_path / "out") == ["fullset/color_alter/en/4a.png", "fullset/color_alter/en/4a_SRCIMG.png"]
    assert Image.open(tmp_path / "out" / "fullset/color_alter/en/4a_SRCIMG.png").tobytes() == scene.tobytes()
    ((item, _),) = read_official("gedit", tmp_path / "out", tmp_path / "data")
    assert item.metadata["row"]["Intersection_exist"] and item.image.name == "4a_SRCIMG.png"
    Dataset.from_list([{"key": "1"}]).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="has no columns input_image"):
        draw("gedit", tmp_path / "other", tmp_path / "none")
    with pytest.raises(ValueError, match="holds no dataset"):
        draw("gedit", tmp_path / "out", tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("geneval", "{", "line 1 is no JSON"),
        ("geneval", "[]\n", "line 1 is no JSON object"),
        ("geneval", '{"prompt": "a"}\n{"prompt": 3}\n', "line 2 has no text under 'prompt', but 3"),
        ("geneval2", '{"prompt": "a"}\n{"prompt": "a"}\n', "line 2 has the prompt of line 1"),
        ("wise", "[]", "must hold a JSON list"),
        ("wise", '[{"Prompt": "a"}]', "row 1 has no whole number prompt_id"),
        ("wise", '[{"Prompt": "a", "prompt_id": 1}, {"Prompt": "a", "prompt_id": 1}]', "has 1 twice"),
        ("t2i-compbench", "a/b\n", "line 1 cannot name its image's file"),
        ("t2i-compbench", "", "is empty"),
        ("imagenet-50k", "a\n\nb\n", "line 2 has no text"),
        ("imgedit", '{"../x": {"id": "a", "prompt": "b", "edit_type": "c"}}', "cannot name a file"),
        ("imgedit", "[]", "must hold a JSON object"),
        ("dpg-bench", "a", "is no folder of .txt files"),
        ("none", "a", "There is no benchmark 'none'; there are geneval,"),
        ("t2i-compbench", "a <|image_gen_start|>\n", "cannot be drawn"),
    ],
)
def test_bad_prompts_are_named(name, content, message, tmp_path):
    (tmp_path / "prompts").write_text(content)
    with pytest.raises(ValueError, match=message):
        draw(name, tmp_path / "prompts", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_plans_are_refused(tmp_path):
    items = BENCHMARKS["geneval"].read(geneval(tmp_path)[0], None, tmp_path)
    with pytest.raises(ValueError, match="must have {} once"):
        plan_drawings(BENCHMARKS["geneval"], items, 1, template="draw")
    with pytest.raises(ValueError, match="holds one image a prompt, not 2"):
        plan_drawings(BENCHMARKS["wise"], items, 2)
    with pytest.raises(ValueError, match="is not among the rewritten ones"):
        plan_drawings(BENCHMARKS["geneval"], items, 1, rewrites={"other": "text"})
    with pytest.raises(ValueError, match="holds four images, not 5"):
        plan_drawings(BENCHMARKS["dpg-bench"], items, 5)
    file = jsonl(tmp_path / "rewrites.jsonl", [{"prompt": "a", "rewritten": "b"}, {"prompt": "a", "rewritten": "c"}])
    with pytest.raises(ValueError, match="line 2 rewrites 'a' otherwise"):
        read_rewrites(file)
    with pytest.raises(ValueError, match='must have texts under "prompt" and "rewritten"'):
        read_rewrites(jsonl(file, [{"prompt": "a"}]))
    with pytest.raises(ValueError, match="no finished images"):
        read_drawn(tmp_path)
    with pytest.raises(ValueError, match="holds no images in the layout of geneval, such as 00000/samples/0000.png"):
        read_official("geneval", tmp_path, tmp_path / "evaluation_metadata.jsonl")


def test_an_array_holds_images_of_one_size(tmp_path):
    for name, size in (("a.png", 4), ("b.png", 8)):
        Image.new("RGB", (size, size)).save(tmp_path / name)
    with pytest.raises(ValueError, match="images of one size"):
        write_npz(tmp_path / "all.npz", [tmp_path / "a.png", tmp_path / "b.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    with pytest.raises(ValueError, match="no images"):
        write_npz(tmp_path / "all.npz", [])
