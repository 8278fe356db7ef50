"""The judge of drawn things: what the nearest real picture says, its ceiling and chance; sheets; a quick look at a checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.emoji import judge as judging
from vargpt_hf.emoji import quick
from vargpt_hf.emoji.judge import ThingJudge, cell_verdicts, minilm_folder, pixel_features, reconstructed, scene_verdicts, sentence_similarity
from vargpt_hf.emoji.pictures import read_pictures
from vargpt_hf.emoji.rows import rows
from vargpt_hf.emoji.scenes import LAYOUTS, Scene, render
from vargpt_hf.emoji.sheets import Tile, sheet
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.judges import detect
from vargpt_hf.tiny.shapes import render as render_shapes
from vargpt_hf.tiny.shapes import sample_scene
from vargpt_hf.training.image_tokenizer.networks import SmallNetwork


@pytest.fixture(scope="module")
def pictures(packages):
    return read_pictures(packages)


@pytest.fixture(scope="module")
def tiny():
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval(), VargptProcessor.from_pretrained(TINY_FOLDER)


@pytest.mark.parametrize("kind", ["pixels", "network"])
def test_the_nearest_picture_of_a_picture_is_itself(pictures, kind):
    judge = ThingJudge(pictures, pixel_features if kind == "pixels" else judging.network_features(SmallNetwork()))
    pairs = judge.pairs[::2]
    changes = [lambda image: image]
    if kind == "pixels":  # to the network, blots of gold and of yellow are nearly one
        changes += [lambda image: image.resize((128, 128)), lambda image: image.filter(ImageFilter.GaussianBlur(1))]
    for changed in changes:
        found = judge.nearest([changed(pictures.picture(*pair)) for pair in pairs])
        assert [row[0] for row in found] == pairs and all(len(set(row)) == 5 for row in found)
    chosen = [pair for pair in judge.pairs if pair not in pairs]
    assert all(row[0] in chosen for row in judge.nearest([pictures.picture(*pairs[0])], pairs=chosen, top=1))
    assert judge.nearest([]) == []


def test_a_network_without_levels_is_refused():
    with pytest.raises(ValueError, match="A Linear has no levels of features: take 'efficientnet-lite0'"):
        judging.network_features(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scenes_are_judged_cell_by_cell(pictures, layout):
    judge = ThingJudge(pictures, pixel_features)
    codes = [pictures.by_name[name].code for name in ("turtle", "lemon", "bus")][: len(LAYOUTS[layout])]
    image = render(pictures, Scene(tuple(codes), "flat", layout))
    cells = [{"box": list(box), "codes": [code], "look": "flat"} for code, box in zip(codes, LAYOUTS[layout])]
    swapped = [{**cell, "codes": codes_of} for cell, codes_of in zip(cells, [cell["codes"] for cell in cells[::-1]])]
    other = [{**cells[0], "look": "3d"}, *cells[1:]]
    asked = [(cells, True), (swapped, True), (swapped, False), (other, True)]
    found = judge.verdicts([image] * 4, [{"cells": of, "ordered": ordered} for of, ordered in asked])
    if len(codes) == 1:
        assert found[0] == {"concept": True, "concept, top 5": True, "look": True, "both": True, "both, top 5": True}
        assert found[3]["concept"] and not found[3]["look"] and not found[3]["both"]
        return
    assert found[0] == {"all concepts": True, "all concepts and looks": True}
    assert found[1] == {"all concepts": False, "all concepts and looks": False}
    assert found[2] == {"all concepts": True, "all concepts and looks": True}
    assert found[3] == {"all concepts": True, "all concepts and looks": False}


def test_verdicts_of_a_cell():
    nearest = [("a", "flat"), ("b", "flat"), ("a", "3d")]
    assert cell_verdicts(nearest, {"codes": ["b", "c"], "look": None}) == {"concept": False, "concept, top 5": True}
    found = cell_verdicts(nearest, {"codes": ["a"], "look": "3d"})
    assert found == {"concept": True, "concept, top 5": True, "look": False, "both": False, "both, top 5": True}
    assert not cell_verdicts(nearest, {"codes": ["b"], "look": "3d"})["both, top 5"]


def test_looks_and_concepts_of_a_scene_are_right_in_one_order():
    """Concepts right in one order and looks in another make nothing right."""
    cells = [{"codes": ["a"], "look": "flat"}, {"codes": ["b"], "look": "flat"}]
    assert scene_verdicts([[("b", "flat")], [("a", "3d")]], cells, ordered=False) == {"all concepts": True, "all concepts and looks": False}


def test_chance_is_what_random_pictures_get(pictures):
    judge, rng, times = ThingJudge(pictures, pixel_features), np.random.default_rng(0), 20_000
    hits = {name: 0 for name in judge.chance}
    for _ in range(times):
        nearest = [judge.pairs[index] for index in rng.permutation(len(judge.pairs))[: judging.TOP]]
        for name, right in cell_verdicts(nearest, {"codes": ["1f422"], "look": "flat"}).items():
            hits[name] += right
    for name, chance in judge.chance.items():
        assert hits[name] / times == pytest.approx(chance, abs=4 * np.sqrt(chance / times)), name


def test_the_ceiling_is_what_the_image_tokenizer_makes_of_real_pictures(tiny):
    """With shapes, which the image tokenizer of vargpt-tiny knows."""
    rng, wanted = np.random.default_rng(0), []
    for pair in (("red", "circle"), ("green", "square"), ("blue", "cross")):
        scene = sample_scene(rng, "single", must_show={pair}, background="white", sizes=("large",), arranged=True)
        wanted.append((pair, render_shapes(scene, 64)))
    again = reconstructed(*tiny, [image for _, image in wanted], batch_size=2)
    assert [image.size for image in again] == [(48, 48)] * 3
    assert [[(one.colour, one.shape) for one in detect(image)] for image in again] == [[pair] for pair, _ in wanted]


def test_similarity_of_meanings(tmp_path):
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "turtle", "bus", "a", "big"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    similarity = sentence_similarity(str(tmp_path))
    together = similarity(["turtle", "a big turtle", "bus"], ["turtle", "turtle", "turtle"])
    assert together[0] == pytest.approx(1) and together[2] < 0.999
    assert similarity(["bus"], ["turtle"]) == pytest.approx(together[2:], abs=1e-5)  # padding changes nothing
    with pytest.raises(OSError):
        sentence_similarity(str(tmp_path / "none"))
    assert minilm_folder() is None or minilm_folder().endswith("model")


def test_sheets_hold_their_tiles(pictures):
    image = pictures.picture("1f422", "flat")
    page = sheet([Tile([image, image], "a turtle in the flat look")] * 5, columns=2, lines=2)
    assert page.size == (2 * (2 * 66 + 6) + 6, 3 * (66 + 24 + 6) + 6)
    assert page.crop((6, 6, 70, 70)).tobytes() == image.tobytes() and page.crop((72, 6, 136, 70)).tobytes() == image.tobytes()
    assert np.asarray(page.crop((6, 72, 138, 96))).min() < 100  # words
    assert np.asarray(page.crop((150, 204, 270, 280))).min() == 255  # the sixth is empty
    for tiles, columns in (([], 2), ([Tile([image], "")], 0)):
        with pytest.raises(ValueError, match="at least one tile and one column"):
            sheet(tiles, columns)


def test_a_quick_look(tiny, packages, monkeypatch, capsys):
    found = quick.quick_look(*tiny, str(packages), number=3, which="all", features=pixel_features)
    assert set(found) == {"seen", "kept out"} and set(found["seen"]) == {"concept", "concept, top 5", "look", "both", "both, top 5"}
    assert all(0 <= share <= 1 for of_group in found.values() for shares in of_group.values() for share in shares)
    monkeypatch.setattr(quick, "quick_look", lambda *given: found if given[2:] == ("data", 5, 0, "all") else {})
    monkeypatch.setattr("vargpt_hf.cli.options.load", lambda model: (model, None))
    monkeypatch.setattr("sys.argv", ["quick", "model", "data", "--number", "5", "--concepts", "all"])
    quick.main()
    assert capsys.readouterr().out.count("ceiling") == 10
    monkeypatch.undo()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        quick.quick_look(*tiny, str(packages), number=0)


def test_a_real_picture_is_judged_right_and_another_wrong(tiny, packages, monkeypatch):
    """With drawings that are the real pictures, a quick look finds all of them right; with others, none."""
    asked = list(rows({"draw": 1.0}, 3, 0, "test", folder=str(packages), which="all"))
    monkeypatch.setattr(
        "vargpt_hf.evaluation.shapes_and_digits.draw_rows", lambda model, processor, given, *_, **__: [row["output_images"][0] for row in given]
    )
    assert quick.quick_look(*tiny, str(packages), 3, which="all", features=pixel_features)["seen"]["both"][0] == 1
    black = Image.new("RGB", (64, 64))
    monkeypatch.setattr("vargpt_hf.evaluation.shapes_and_digits.draw_rows", lambda *_, **__: [black] * len(asked))
    assert quick.quick_look(*tiny, str(packages), 3, which="all", features=pixel_features)["seen"]["both"][0] < 1
