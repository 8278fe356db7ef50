"""Rows of conversations: what they say is what they show, and training sees nothing of what is kept out."""

import json
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vargpt_hf.emoji import rows as emoji_rows
from vargpt_hf.emoji import scenes, shape_rows, wordings
from vargpt_hf.emoji.kinds import article, color_of, drawable, short_names
from vargpt_hf.emoji.pictures import LOOKS, read_pictures
from vargpt_hf.emoji.rows import TASKS, TEST_TASKS, captioned_images, distinct_drawings, rows, texts
from vargpt_hf.emoji.scenes import LAYOUTS, Scene, crops, jittered, opposite, render
from vargpt_hf.emoji.sentences import Source, conclusion, description, first_step, in_look, sample_scene
from vargpt_hf.emoji.split import held_out_pairs, training_pairs
from vargpt_hf.emoji.wordings import Wordings
from vargpt_hf.tiny.judges import detect
from vargpt_hf.tiny.rows import questions_about
from vargpt_hf.tiny.shapes import KINDS
from vargpt_hf.tiny.shapes import sample_scene as sample_shapes

TRAINING = {task: 1.0 for task in TASKS if task not in TEST_TASKS}
ALL_WORDINGS = [
    *(wordings.DRAW, wordings.IN_A_LOOK, wordings.BY_TAGS, wordings.THREE, wordings.SAY, wordings.WRITE_DIGIT),
    *(*wordings.PAIRED.values(), *wordings.QUESTIONS.values(), *wordings.RELATION_WORDS.values(), *wordings.EDITS.values()),
]


@pytest.fixture(scope="module")
def source(packages):
    return Source(read_pictures(packages), "all")


def made(packages, mixture, count=200, seed=1, split="test", **options):
    return list(rows(mixture, count, seed, split, folder=str(packages), which="all", **options))


def said_by(row, role="user"):
    return [part["text"] for message in row["messages"] if message["role"] == role for part in message["content"] if part["type"] == "text"]


def words_of(template):
    return set(re.findall(r"[a-z0-9']+", re.sub(r"\{\w+\}", " ", template)))


def test_held_out_wordings_are_other_sentences_of_the_same_words():
    known = set().union(*(words_of(template) for found in ALL_WORDINGS for template in found.trained))
    trained = {template for found in ALL_WORDINGS for template in found.trained}
    for found in ALL_WORDINGS:
        assert len(set(found.trained)) == len(found.trained)
        for template in found.held_out:
            assert words_of(template) <= known, template
            assert template not in trained, template
    assert sum(bool(found.held_out) for found in ALL_WORDINGS) >= len(ALL_WORDINGS) - 2
    assert Wordings(("a",)).choose(np.random.default_rng(0), held_out=True) == "a"


@pytest.mark.parametrize("kind", ["digit", "yes or no", "name"])
def test_training_and_tests_word_a_question_differently(kind):
    names = {"relation": "left of", "a": "turtle", "b": "bus"} if kind == "yes or no" else {}
    rng = np.random.default_rng(0)
    asked = [{wordings.question(rng, kind, held_out, **names).lower().rstrip("?") for _ in range(400)} for held_out in (False, True)]
    assert not asked[0] & asked[1] and len(asked[1]) >= 3


def test_spoken_words_are_typed_as_people_type():
    rng = np.random.default_rng(0)
    found = Counter(wordings.spoken(rng, "is it", "?") for _ in range(400))
    assert set(found) == {"is it", "Is it", "is it?", "Is it?"} and found["is it"] > 200


@pytest.mark.parametrize("task", TASKS)
def test_parts_and_images_agree(packages, task):
    for split in ("test",) if task in TEST_TASKS else ("train", "test"):
        for row in made(packages, {task: 1.0}, 12, split=split):
            kinds = Counter(part["type"] for message in row["messages"] for part in message["content"])
            assert kinds["image"] == len(row["images"]) and kinds["output_image"] == len(row["output_images"])
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
            for image in (*row["images"], *row["output_images"]):
                assert image.size == (64, 64) and image.mode == "RGB"
            truth = json.loads(row["truth"])
            assert truth["wordings"] == "trained" and (truth.get("answer") or "cells" in truth or "digit" in truth or "objects" in truth)
            assert all(text == text.strip() and text for text in [*said_by(row), *said_by(row, "assistant")])
            assert "{" not in "".join(said_by(row))


def test_a_seed_names_its_rows(packages):
    def said(seed, **options):
        return [
            (row["messages"], row["truth"], [image.tobytes() for image in row["output_images"]])
            for row in made(packages, TRAINING, 60, seed, **options)
        ]

    assert said(3) == said(3) and said(3) != said(4)
    assert len({str(said(3, **options)) for options in ({}, {"split": "train"}, {"wordings": "held out"})}) == 3


def test_training_shows_nothing_of_what_is_kept_out(packages, monkeypatch):
    shown = set()
    monkeypatch.setattr(
        scenes, "render", lambda pictures, scene: shown.update((code, scene.look) for code in scene.codes) or render(pictures, scene)
    )
    made(packages, TRAINING, 1000, split="train")
    assert shown == set(training_pairs(read_pictures(packages)))  # all of them, and no other
    shown.clear()
    made(packages, {"draw_unseen": 1.0, "read_unseen": 1.0, "read_name_unseen": 1.0})
    assert shown and shown <= held_out_pairs()
    shown.clear()
    made(packages, {"draw_scene_unseen": 1.0})
    assert shown & held_out_pairs() and shown - held_out_pairs()


@pytest.mark.parametrize("task", TEST_TASKS)
def test_tasks_of_tests_are_refused_in_training(packages, task):
    with pytest.raises(ValueError, match="for the test split alone"):
        made(packages, {task: 1.0}, split="train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixture": {"paint": 1.0}}, "no task paint; the tasks are draw, draw_unseen"),
        ({"mixture": {"draw": 0.0}}, "one must be positive"),
        ({"mixture": {"draw": -1.0, "read": 3.0}}, "must be finite and not negative"),
        ({"mixture": {"draw": float("inf")}}, "must be finite"),
        ({"mixture": {"draw": float("nan")}}, "must be finite"),
        ({"count": -1}, "`count` must not be negative, got -1"),
        ({"mixture": {}}, "one must be positive"),
        ({"split": "dev"}, 'must be "train" or "test"'),
        ({"wordings": "other"}, 'must be "trained", or "held out"'),
        ({"wordings": "held out", "split": "train"}, 'must be "trained", or "held out"'),
        ({"which": "some"}, "things and all"),
    ],
)
def test_bad_arguments(packages, arguments, message):
    options = {"mixture": {"draw": 1.0}, "count": 2, "seed": 0, "split": "test", "folder": str(packages), **arguments}
    with pytest.raises(ValueError, match=message):
        list(rows(**options))


def test_what_is_drawn_is_what_is_asked_for(packages):
    pictures = read_pictures(packages)
    for row in made(packages, {"draw": 1.0, "draw_unseen": 1.0, "draw_scene": 2.0}, 300):
        truth, image = json.loads(row["truth"]), row["output_images"][0]
        text = said_by(row)[0].lower()
        for cell in truth["cells"]:
            (code,), look = cell["codes"], cell["look"]
            assert pictures.by_code[code].name in text and look in text
            left, top, side = cell["box"]
            shown = image.crop((left, top, left + side, top + side))
            wanted = pictures.picture(code, look)
            assert shown.tobytes() == (wanted if side == 64 else wanted.reduce(2)).tobytes()
        boxes = [tuple(cell["box"]) for cell in truth["cells"]]
        assert len(set(boxes)) == len(boxes) and truth["ordered"] == (truth["task"] in ("one", "left of", "right of", "above", "below"))


@pytest.mark.parametrize("held_out", [False, True])
def test_relations_are_said_as_they_are_drawn(source, held_out):
    first, second = (source.pictures.by_name[name].code for name in ("turtle", "bus"))
    ways = {"left": ("left of", 0, -1), "right": ("right of", 0, 1), "above": ("above", 1, -1), "below": ("below", 1, 1)}
    for layout, axis, sign in ways.values():
        boxes = Scene((first, second), "flat", layout).boxes
        assert np.sign(boxes[0][axis] - boxes[1][axis]) == sign and boxes[0][1 - axis] == boxes[1][1 - axis]
        assert opposite(opposite(layout)) == layout
    assert description(source, Scene((first, second), "flat", "below")) == "a bus above a turtle"
    assert description(source, Scene((first, second), "flat", "beside")) == "a turtle left of a bus"
    options = {relation: found.held_out if held_out else found.trained for relation, found in wordings.PAIRED.items()}
    for relation, templates in options.items():
        for template in templates if relation != "beside" else ():
            words = template.format(a="A", b="B")
            turned = words.index("A") > words.index("B")  # "left of B there is A", "B with A to the left of it"
            where = {"left of": "left", "right of": "right", "above": "above|over|top", "below": "below|under|bottom"}[relation]
            assert re.search(where, words)
            assert not turned or "there is" in words or "with" in words


def test_yes_and_no_are_alike_likely_whatever_is_named_first(packages):
    answers, first = Counter(), Counter()
    for row in made(packages, {"read_relation": 2.0, "look_up_shapes": 1.0, "read": 1.0, "read_scene": 1.0}, 2500):
        truth = json.loads(row["truth"])
        if truth["answer"] in ("yes", "no"):
            answers[truth["asks"], truth["answer"]] += 1
            if found := re.search(r"left|right|above|over|below|under", said_by(row)[0]):
                first[truth["asks"], found[0], truth["answer"]] += 1
    for kind in ("yes or no", "is it", "is there", "shapes: yes or no"):
        yes, no = answers[kind, "yes"], answers[kind, "no"]
        assert abs(yes - no) < 4 * np.sqrt(yes + no), (kind, yes, no)
    for word in ("left", "right"):
        yes, no = first["yes or no", word, "yes"], first["yes or no", word, "no"]
        assert yes + no > 30 and abs(yes - no) < 4 * np.sqrt(yes + no)


def test_answers_follow_from_the_scene(packages, source):
    pictures, rng = read_pictures(packages), np.random.default_rng(0)
    for layout in LAYOUTS:
        scene = sample_scene(rng, source, layout)
        assert len(set(scene.codes)) == len(scene.codes) == len(LAYOUTS[layout])
    for row in made(packages, {"read_scene": 1.0, "read_relation": 2.0}, 400):
        truth, (question,) = json.loads(row["truth"]), said_by(row)
        question, shown = question.lower(), _things_of(row["images"][0], pictures)
        if truth["asks"] == "where":
            (code,) = [code for code in shown if re.search(rf"\bthe {pictures.by_code[code].name}\b", question)]
            assert scenes.PLACES[shown[code]] == truth["answer"]
        elif truth["asks"] == "count":
            assert truth["answer"] == {2: "two", 3: "three"}[len(shown)]
        elif truth["asks"] == "is there":
            there = any(article(pictures.by_code[code].name) in question for code in shown)
            assert there == (truth["answer"] == "yes"), question
        elif truth["asks"] in ("what is", "yes or no"):
            at = {pictures.by_code[code].name: shown[code] for code in shown}
            named = sorted((name for name in at if f"the {name}" in question), key=question.index)
            first = truth["answer"].removeprefix("a ").removeprefix("an ") if truth["asks"] == "what is" else named[0]
            assert (truth["answer"] == "no") != _stands(at[first], re.search(_RELATION, question)[0], at[named[-1]]), question


def test_answers_say_first_what_is_seen(packages):
    """So that what follows from it is told from words: of one thing its name, of several where each stands, also of shapes."""
    plain = {"name", "look", "describe", "count", "color", "shapes: count", "shapes: background", "shapes: describe"}
    mixture = {"read": 1.0, "read_scene": 1.0, "read_relation": 1.0, "look_up_shapes": 1.0}
    descriptions, kinds = {}, set()
    for row in made(packages, mixture, 400):
        truth, said = json.loads(row["truth"]), row["messages"][1]["content"][0]["text"]
        seen, rest = first_step(said)
        *looked_up, answer = rest.split(": ")
        assert conclusion(said) == answer == truth["answer"]
        assert bool(seen) == (truth["asks"] not in plain)
        if not seen:
            continue
        assert descriptions.setdefault(row["images"][0].tobytes(), seen) == seen
        kind = truth["asks"].removeprefix("shapes: ")
        kinds.add(kind)
        if kind in ("where", "place"):
            assert f"{looked_up[0]} {answer}" in seen.split(", ")
        elif kind == "is there":
            name, place = looked_up
            assert answer == ("yes" if f"{name} {place}" in seen.split(", ") else "no") and (place == "nowhere") == (answer == "no")
        elif kind == "is it":
            assert answer == ("yes" if looked_up == [seen] else "no")
        elif kind in ("what is", "relation"):
            assert not looked_up and any(part.startswith(f"{answer} ") for part in seen.split(", "))
        elif kind == "yes or no":
            named = looked_up[0].split(", ") if truth["task"] == "look_up_shapes" else [" ".join(looked_up)]
            assert set(named) <= set(seen.split(", ")) and len(named) == (2 if truth["task"] == "look_up_shapes" else 1)
        elif kind in ("colour", "shape"):
            assert not looked_up and re.search(rf"\b{answer}\b", seen)
    assert len(descriptions) > 100
    assert kinds == {"where", "place", "is there", "is it", "what is", "relation", "yes or no", "colour", "shape", "group", "kind"}


_RELATION = "left of|right of|above|over|below|under"


def _stands(first, relation, second):
    """Whether a box stands so from another one."""
    (x, y, _), (other_x, other_y, _) = first, second
    up, down = y < other_y, y > other_y
    sides = {"left of": x < other_x, "right of": x > other_x, "above": up, "over": up, "below": down, "under": down}
    return sides[relation]


@cache
def _codes_by_pixels(pictures):
    """The concept of each small picture."""
    return {pictures.picture(concept.code, look).reduce(2).tobytes(): concept.code for concept in pictures.concepts for look in LOOKS}


def _things_of(image, pictures):
    """Which things stand where, found by their pixels."""
    parts = {box: image.crop((box[0], box[1], box[0] + 32, box[1] + 32)).tobytes() for box in scenes.PLACES if box[2] == 32}
    return {code: box for box, part in parts.items() if (code := _codes_by_pixels(pictures).get(part))}


def test_what_is_read_in_training_is_moved_and_nothing_of_it_lost(source):
    rng, image = np.random.default_rng(0), source.pictures.picture("1f422", "flat")
    seen = {jittered(image, rng).tobytes() for _ in range(20)}
    assert len(seen) > 15
    for _ in range(5):
        assert (0, 128, 0) in jittered(image, rng).getcolors(5000)[0] or any(
            color == (0, 128, 0) for _, color in jittered(image, rng).getcolors(5000)
        )


def test_cells_are_cut_out_of_pictures_of_any_size(source):
    pictures = source.pictures
    scene = Scene(("1f422", "1f68c"), "flat", "above")
    whole = render(pictures, scene)
    for image in (whole, whole.resize((128, 128), Image.Resampling.NEAREST)):
        parts = crops(image, scene.boxes)
        assert all(part.size == (64, 64) for part in parts)
        assert parts[0].getpixel((32, 32)) == (0, 128, 0) and parts[1].getpixel((32, 32)) == (255, 165, 0)


def test_drawings_by_other_words_name_all_that_would_do(packages):
    pictures, kinds = read_pictures(packages), Counter()
    for row in made(packages, {"draw_by_words": 1.0}, 400):
        (cell,), text = json.loads(row["truth"])["cells"], said_by(row)[0].lower()
        codes = set(cell["codes"])
        if "reptile" in text:
            assert codes == {"1f422", "1f40d", "1f40a"}
        if (
            "scooter" in text
            and "kick" not in text
            and "words" not in text
            and "goes with" not in text
            and "about" not in text
            and "calls" not in text
        ):
            assert codes == {"1f6f4"}
        drawn = [
            code for code in pictures.by_code for look in LOOKS if pictures.picture(code, look).tobytes() == row["output_images"][0].tobytes()
        ]
        assert set(drawn) & codes
        kinds[len(codes) > 1, cell["look"] is None] += 1
    assert len(kinds) == 4


def test_without_a_look_the_default_one_is_drawn(packages, source):
    for row in made(packages, {"draw_plain": 1.0}, 100):
        (cell,) = json.loads(row["truth"])["cells"]
        look = source.default_look(cell["codes"][0])
        assert cell["look"] is None and (cell["codes"][0], look) not in held_out_pairs()
        assert row["output_images"][0].tobytes() == source.pictures.picture(cell["codes"][0], look).tobytes()


def test_colors_are_said_where_they_are_true(source):
    rng, found = np.random.default_rng(0), Counter()
    for _ in range(200):
        found["green turtle" in in_look(rng, source, "1f422", "flat")] += 1
        assert "brown" not in in_look(rng, source, "1f40e", "flat")
        assert "red red" not in in_look(rng, source, "1f34e", "flat")
    assert 30 < found[True] < 100


@pytest.mark.parametrize(
    ("color", "name"),
    [("red", "red"), ("green", "green"), ("blue", "blue"), ((255, 150, 20), "orange"), ("purple", "purple"), ((250, 220, 20), "yellow"),
     ("gray", None), ("saddlebrown", None), ("black", None), ((255, 128, 128), "red"), ("hotpink", None)],
)  # fmt: skip
def test_a_color_counts_where_most_has_it(color, name):
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 10, 53, 53), fill=color)
    assert color_of(image) == name
    draw.rectangle((10, 10, 53, 30), fill="black")
    assert color_of(image) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [("turtle", "a turtle"), ("eagle", "an eagle"), ("socks", "socks"), ("bus", "a bus"), ("bread", "bread"), ("unicorn", "a unicorn"),
     ("rhinoceros", "a rhinoceros"), ("globe with meridians", "a globe with meridians"), ("dress", "a dress"), ("x-ray", "an x-ray"),
     ("two o'clock", "two o'clock")],
)  # fmt: skip
def test_articles(name, said):
    assert article(name) == said


def test_short_names_and_uses_stand_for_concepts(source):
    by_name = source.pictures.by_name
    assert short_names(source.concepts)["scooter"] == (by_name["kick scooter"].code,)
    found = drawable(source.concepts)
    assert set(found["something you ride"]) == {by_name[name].code for name in ("horse", "kick scooter", "bus")}
    assert set(found["a reptile"]) == {by_name[name].code for name in ("turtle", "snake", "crocodile")}


def test_every_question_about_shapes_is_reworded():
    rng, kinds = np.random.default_rng(0), Counter()
    for _ in range(300):
        scene = sample_shapes(rng, KINDS[int(rng.integers(len(KINDS)))])
        for kind, asked, _ in questions_about(rng, scene):
            for held_out in (False, True):
                words = shape_rows.reworded(rng, asked, held_out)
                kinds[kind] += words.lower().rstrip("?") != asked
                for name in re.findall(r"red|green|blue|yellow|purple|orange|circle|square|triangle|cross", asked):
                    assert name in words
    assert len(kinds) == 8 and min(kinds.values()) > 0
    with pytest.raises(ValueError, match="vargpt-tiny does not ask 'how are you'"):
        shape_rows.reworded(rng, "how are you")


def test_shapes_are_drawn_at_64_pixels_as_the_judge_sees_them(packages):
    for row in made(packages, {"draw_shapes": 1.0, "draw_shapes_unseen": 1.0}, 60):
        truth = json.loads(row["truth"])
        found = sorted((one.colour, one.shape) for one in detect(row["output_images"][0]))
        assert found == sorted((one["colour"], one["shape"]) for one in truth["objects"])


def test_distinct_drawings_are_counted(packages):
    count = len(training_pairs(read_pictures(packages), "all"))
    assert distinct_drawings({"draw": 1.0}, packages, "all") == count
    assert distinct_drawings({"draw": 1.0, "draw_plain": 1.0, "read": 3.0}, packages, "all") == count
    assert distinct_drawings({"draw_plain": 1.0}, packages, "all") == len(read_pictures(packages).concepts)
    assert distinct_drawings({"draw": 1.0, "draw_scene": 1.0}, packages, "all") is None
    drawn = {
        row["output_images"][0].tobytes() for row in made(packages, {"draw": 1.0, "draw_by_words": 1.0, "draw_plain": 1.0}, 600, split="train")
    }
    assert len(drawn) == count


def test_images_and_texts(packages):
    captioned = list(captioned_images(20, 3, folder=str(packages), which="all"))
    assert len(captioned) == 20 and all(row["image"].size == (64, 64) and row["text"] for row in captioned)
    spoken = list(texts(50, 1, folder=str(packages)))
    assert {text.partition(": ")[0] for text in spoken} == {"USER", "ASSISTANT"} and len(spoken) >= 100


def test_several_questions_are_asked_of_one_image_in_training(packages):
    lengths = {len(row["messages"]) for row in made(packages, {"read": 1.0}, 20, split="train")}
    assert lengths == {10} and {len(row["messages"]) for row in made(packages, {"read": 1.0}, 20)} == {2}
    assert emoji_rows.IMAGE not in made(packages, {"read": 1.0}, 1, split="train")[0]["messages"][2]["content"]


def test_what_is_seen_is_said_once_in_a_conversation(packages):
    for row in made(packages, {"read_relation": 1.0}, 40, split="train"):
        answers = [message["content"][0]["text"] for message in row["messages"][1::2]]
        seen = first_step(answers[0])[0]
        assert seen and not any(seen in answer for answer in answers[1:])
        assert json.loads(row["truth"])["answer"] == conclusion(answers[-1])
