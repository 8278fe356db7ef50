import json

import numpy as np
import pytest

from vargpt_hf.tiny.digits import load_split
from vargpt_hf.tiny.judges import detect
from vargpt_hf.tiny.rows import SEEN_PAIRS, TASKS, captioned_images, plural, rows, texts
from vargpt_hf.tiny.shapes import HELD_OUT_PAIRS, KINDS, SHAPES, render, sample_scene

SINGULAR = {plural(shape): shape for shape in SHAPES}
TRAINING_TASKS = {task: 1.0 for task in TASKS if task != "draw_unseen"}


@pytest.mark.parametrize("task", TASKS)
def test_parts_and_images_agree(task):
    for row in rows({task: 1.0}, 30, seed=0, split="test"):
        parts = [part["type"] for message in row["messages"] for part in message["content"]]
        assert parts.count("image") == len(row["images"])
        assert parts.count("output_image") == len(row["output_images"])
        assert all(image.size == (48, 48) and image.mode == "RGB" for image in row["images"] + row["output_images"])
        json.loads(row["truth"])


def test_a_seed_names_its_rows():
    def said(seed, split="train"):
        return [json.dumps(row["messages"]) + row["truth"] for row in rows(TRAINING_TASKS, 20, seed, split)]

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert said(1) != said(1, "test")
    first, second = (next(iter(rows({"draw": 1.0}, 1, 3)))["output_images"][0] for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_held_out_pairs_are_never_drawn_in_training():
    drawing = {task: 1.0 for task in ("draw", "draw_and_say", "draw_two")}
    for row in rows(drawing, 400, seed=0):
        truth = json.loads(row["truth"])
        for scene in truth if isinstance(truth, list) else [truth]:
            assert not {(item["colour"], item["shape"]) for item in scene["objects"]} & HELD_OUT_PAIRS
    for row in rows({"draw_unseen": 1.0}, 50, seed=0, split="test"):
        assert {(item["colour"], item["shape"]) for item in json.loads(row["truth"])["objects"]} <= HELD_OUT_PAIRS
    with pytest.raises(ValueError, match="for the test split alone"):
        next(rows({"draw_unseen": 1.0}, 1, seed=0))
    shown = [detect(entry["image"]) for entry in captioned_images(150, seed=0, pairs=SEEN_PAIRS) if "handwritten" not in entry["text"]]
    assert shown and not {(item.colour, item.shape) for found in shown for item in found} & HELD_OUT_PAIRS
    everything = [detect(entry["image"]) for entry in captioned_images(150, seed=0) if "handwritten" not in entry["text"]]
    assert HELD_OUT_PAIRS <= {(item.colour, item.shape) for found in everything for item in found}


def test_words_name_one_image():
    """What a sentence does not say is drawn in one way, so that a model can be right or wrong about it."""
    drawn = {}
    for row in rows({"draw_and_say": 1.0}, 600, seed=0):
        drawn.setdefault(json.loads(row["truth"])["answer"], []).append(row["output_images"][0].tobytes())
    repeated = [drawings for drawings in drawn.values() if len(drawings) > 1]
    assert len(repeated) > 20
    assert all(len(set(drawings)) == 1 for drawings in repeated)


def test_places_are_where_the_image_has_them():
    column, row_of = ("left", "right"), ("top", "bottom")
    asked = 0
    for row in rows({"ask": 1.0}, 400, seed=1):
        truth = json.loads(row["truth"])
        if truth["asks"] != "place":
            continue
        colour, shape = row["messages"][-2]["content"][-1]["text"].removeprefix("where is the ").split()
        (x, y) = next(item.centre for item in detect(row["images"][0]) if (item.colour, item.shape) == (colour, shape))
        words = truth["answer"].split()
        for names, position in ((column, x), (row_of, y)):
            expected = names[0] if position < 16 else names[1] if position > 32 else None
            assert [name for name in names if name in words] == ([expected] if expected else [])
        asked += 1
    assert asked > 20


def test_answers_follow_from_the_image():
    """Questions about colour, number and relation, answered by the judge from the pixels alone."""
    numbers = {"one": 1, "two": 2, "three": 3}
    asked = 0
    for row in rows({"ask": 1.0, "look_up": 1.0}, 400, seed=0):
        truth, found = json.loads(row["truth"]), detect(row["images"][0])
        *_, named = row["messages"][-2]["content"][-1]["text"].removesuffix(" object").split()
        if truth["asks"] == "count":
            assert len(found) == numbers[truth["answer"]]
        elif truth["asks"] == "colour":
            assert {detection.colour for detection in found if detection.shape == SINGULAR.get(named, named)} == {truth["answer"]}
        elif truth["asks"] == "shape":
            assert {detection.shape for detection in found if named in (detection.colour, "they")} == {truth["answer"]}
        else:
            continue
        asked += 1
    assert asked > 100


def test_looking_up_is_about_one_of_several_things():
    asked = set()
    for row in rows({"look_up": 1.0}, 200, seed=0):
        assert len(detect(row["images"][0])) > 1
        asked.add(json.loads(row["truth"])["asks"])
    assert asked == {"colour", "shape", "place", "relation", "yes or no"}


def test_digits_are_split():
    (train, train_labels), (test, _) = load_split("train"), load_split("test")
    assert len(train) == 1400 and len(test) == 397
    assert not {digit.tobytes() for digit in train} & {digit.tobytes() for digit in test}
    assert set(np.unique(train_labels)) == set(range(10))


def test_scenes_keep_objects_apart_and_inside():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for _ in range(50):
            scene = sample_scene(rng, kind)
            boxes = [(x - item.side / 2, y - item.side / 2, item.side) for item in scene.objects for x, y in [item.centre]]
            assert all(x >= 0 and y >= 0 and x + side <= 48 and y + side <= 48 for x, y, side in boxes)
            for index, (x, y, side) in enumerate(boxes):
                for other_x, other_y, other in boxes[:index]:
                    assert max(other_x - x - side, x - other_x - other, other_y - y - side, y - other_y - other) >= 2


def test_images_and_texts():
    entries = list(captioned_images(20, seed=0))
    assert all(entry["image"].size == (48, 48) and entry["text"] for entry in entries)
    assert any("handwritten" in entry["text"] for entry in entries)
    assert any(text.startswith("ASSISTANT: ") for text in texts(5, seed=0))


@pytest.mark.parametrize(
    ("mixture", "split", "message"),
    [
        ({"dance": 1.0}, "train", "no task dance; the tasks are draw"),
        ({"draw": 1.0}, "dev", '"train" or "test"'),
        ({"draw": 0.0}, "train", "one must be positive"),
    ],
)
def test_bad_arguments(mixture, split, message):
    with pytest.raises(ValueError, match=message):
        next(rows(mixture, 1, 0, split))


def test_rendering_is_exact_in_size():
    scene = sample_scene(np.random.default_rng(1), "single", background="white")
    pixels = np.asarray(render(scene))
    y, x = np.nonzero((pixels != 255).any(-1))
    assert abs((x.max() - x.min() + 1) - scene.objects[0].side) <= 2
    assert abs((y.max() - y.min() + 1) - scene.objects[0].side) <= 2
