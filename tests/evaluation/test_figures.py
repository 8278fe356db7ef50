"""What the report says of drawings and answers."""

import json

import numpy as np

from vargpt_hf.evaluation.shapes_and_digits import drawing_figures, same_answer
from vargpt_hf.tiny.digits import digit_image, load_split
from vargpt_hf.tiny.judges import DigitJudge
from vargpt_hf.tiny.shapes import render, sample_scene


def test_figures_of_a_drawing():
    judge = DigitJudge(*load_split("train"))
    scene = sample_scene(np.random.default_rng(2), "relation", background="black")
    first, second = scene.objects
    objects = [{"shape": item.shape, "colour": item.colour} for item in (first, second)]
    truth = {"kind": "relation", "relation": scene.relation, "background": "black", "objects": objects}
    assert drawing_figures(render(scene), truth, judge) == {"shape and colour": True, "background": True, "relation": True}
    opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}[scene.relation]
    assert drawing_figures(render(scene), {**truth, "relation": opposite}, judge)["relation"] is False
    wrong = [{**objects[0], "colour": "pink"}, objects[1]]
    figures = drawing_figures(render(scene), {**truth, "objects": wrong}, judge)
    assert figures["shape and colour"] is False and figures["relation"] is False
    count = {"kind": "count", "relation": None, "background": "black", "objects": objects * 2}
    assert drawing_figures(render(scene), count, judge)["count"] is False
    images, labels = load_split("test")
    assert drawing_figures(digit_image(images[0]), json.loads(f'{{"digit": {labels[0]}}}'), judge) == {"digit": True}


def test_answers_agree_but_for_case_and_full_stop():
    assert same_answer(" A red circle. ", "a red circle")
    assert not same_answer("a red circle and more", "a red circle")
