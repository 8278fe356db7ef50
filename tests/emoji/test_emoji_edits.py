"""Edits of things: what they say is what they do, training sees nothing of what is kept out, and their judge."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vargpt_hf.emoji.edit_judge import boxes_mask, judge_edits
from vargpt_hf.emoji.edits import EDIT_KINDS, edit_rows, render, sample_edit
from vargpt_hf.emoji.judge import ThingJudge, pixel_features
from vargpt_hf.emoji.pictures import LOOKS, read_pictures
from vargpt_hf.emoji.scenes import PLACES, WHOLE
from vargpt_hf.emoji.sentences import Source
from vargpt_hf.emoji.split import held_out_pairs
from vargpt_hf.evaluation.edits import edit_row, instruction_of
from vargpt_hf.tiny.rows import Row


@pytest.fixture(scope="module")
def source(packages):
    return Source(read_pictures(packages), "all")


@pytest.fixture(scope="module")
def judge(source):
    return ThingJudge(source.pictures, pixel_features)


def made(packages, count=80, split="test", **options) -> list[Row]:
    return list(edit_rows(count, 3, split, folder=packages, which="all", **options))


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_an_edit_does_what_it_says_and_nothing_else(source, kind):
    rng = np.random.default_rng(0)
    for edit in [sample_edit(rng, source, kind) for _ in range(100)]:
        words, names = edit.instruction.lower(), [source.name(thing.code) for thing in edit.after]
        truth, old = edit.truth, [source.name(thing.code) for thing in edit.before]
        gone, new = (
            [thing for thing in some if thing not in others] for some, others in ((edit.before, edit.after), (edit.after, edit.before))
        )
        kept = [thing for thing in edit.before if thing in edit.after]
        assert not held_out_pairs() & {(thing.code, thing.look) for thing in (*edit.before, *edit.after)}
        assert len(set(names)) == len(names) and len(set(old)) == len(old) and edit.kind == kind
        assert (len(gone), len(new), truth["kept"]) == (
            len(truth["empty"]) or len(new) - (kind == "add"),
            len(truth["cells"]),
            [one.box for one in kept],
        )
        if kind == "look":
            assert names == old and not kept and {thing.look for thing in edit.after} == {truth["cells"][0]["look"]}
            assert truth["cells"][0]["look"] in words and not {thing.look for thing in edit.before} & {thing.look for thing in edit.after}
            assert (" it " in f" {words} " or "the same" in words) if len(new) == 1 else not words.startswith("make it")
        else:
            assert len({thing.look for thing in (*edit.before, *edit.after)}) == 1
        if kind == "add":
            assert names[-1] in words and PLACES[new[0].box] in words and len(kept) == 1 and WHOLE not in {thing.box for thing in edit.after}
        if kind in ("remove", "replace"):
            assert source.name(gone[0].code) in words or PLACES[gone[0].box] in words
        if kind == "replace":
            assert source.name(new[0].code) in words and new[0].box == gone[0].box


def test_pictures_of_edits_differ_where_they_are_edited(packages, source):
    for row in made(packages):
        before, after = (np.asarray(row[name][0]) for name in ("images", "output_images"))
        mask = boxes_mask(row)
        assert (before == after)[~mask].all() and not (before == after)[mask].all()
        assert all(part["type"] in ("text", "image") for part in row["messages"][0]["content"])
    assert {row["messages"][0]["content"][0]["type"] for row in made(packages)} == {"text", "image"}
    two = sample_edit(np.random.default_rng(0), source, "remove")
    assert np.asarray(render(source.pictures, two.before)).min() < 255


def test_all_kinds_come_up_and_the_split_counts(packages):
    kinds = Counter(json.loads(row["truth"])["kind"] for row in made(packages))
    assert set(kinds) == set(EDIT_KINDS) and set(kinds.values()) == {20}
    said = [{instruction_of(row).lower().rstrip(".") for row in made(packages, 200, **options)} for options in ({}, {"wordings": "held out"})]
    assert not said[0] & said[1]
    assert [instruction_of(row) for row in made(packages, split="train")] != [instruction_of(row) for row in made(packages)]


def test_edits_to_what_is_kept_out_are_for_tests_alone(packages):
    for row in made(packages, unseen=True):
        truth = json.loads(row["truth"])
        new = {(cell["codes"][0], cell["look"]) for cell in truth["cells"]}
        assert new & held_out_pairs() and truth["kind"] != "remove"
    for options in ({"unseen": True}, {"wordings": "held out"}):
        with pytest.raises(ValueError, match="for the test split alone"):
            made(packages, split="train", **options)
    with pytest.raises(ValueError, match="`split` must be"):
        made(packages, split="validation")


def test_what_is_no_edit_is_refused(source):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="must be one of look, add, remove, replace"):
        sample_edit(rng, source, "turn")
    with pytest.raises(ValueError, match="What is removed is not drawn"):
        sample_edit(rng, source, "remove", unseen=True)


def test_the_wanted_picture_is_right_and_the_old_one_is_not(packages, judge):
    rows = made(packages)
    wanted = [row["output_images"][0] for row in rows]
    assert all(verdict["both"] for verdict in judge_edits(judge, rows, wanted, wanted))
    nothing = judge_edits(judge, rows, [row["images"][0] for row in rows], wanted)
    done = {json.loads(row["truth"])["kind"] for row, verdict in zip(rows, nothing) if verdict["done"]}
    assert done <= {"add"} and sum(verdict["done"] for verdict in nothing) < 4  # of twelve concepts, one is nearest to nothing, too
    assert all(verdict.get("all else kept", True) for verdict in nothing)
    assert sum("all else kept" in verdict for verdict in nothing) > 40


def test_what_was_not_to_change_may_change_as_the_image_tokenizer_changes_it(packages, judge, source):
    """A little of the ground is nothing beside what it does itself; another thing, or one that is left, is something."""
    row = next(row for row in made(packages) if json.loads(row["truth"])["kind"] == "remove")
    truth, wanted = json.loads(row["truth"]), row["output_images"][0]
    (left, top, side), (kept_left, kept_top, _) = truth["empty"][0], truth["kept"][0]
    blurred = wanted.resize((32, 32)).resize((64, 64))

    def verdict(image, again=blurred):
        return judge_edits(judge, [row], [image], [again])[0]

    assert verdict(blurred) == verdict(wanted) == {"done": True, "all else kept": True, "both": True}
    swapped, doubled = wanted.copy(), wanted.copy()
    swapped.paste(Image.new("RGB", (side, side), "black"), (kept_left, kept_top))
    assert verdict(swapped) == {"done": True, "all else kept": False, "both": False}
    doubled.paste(wanted.crop((kept_left, kept_top, kept_left + side, kept_top + side)), (left, top))
    assert verdict(doubled) == {"done": False, "all else kept": True, "both": False}


def test_a_thing_in_the_wrong_look_is_not_done(packages, judge, source):
    rows = [row for row in made(packages) if json.loads(row["truth"])["kind"] == "look" and len(json.loads(row["truth"])["cells"]) == 1]
    for row in rows:
        cell = json.loads(row["truth"])["cells"][0]
        for look in LOOKS:
            image = source.pictures.picture(cell["codes"][0], look)
            assert judge_edits(judge, [row], [image], [image])[0] == {"done": look == cell["look"], "both": look == cell["look"]}


def test_the_image_may_stand_before_or_after_the_instruction():
    image = Image.new("RGB", (8, 8))
    rows = [edit_row(image, "make it flat", image, image_first) for image_first in (True, False)]
    assert [[part["type"] for part in row["messages"][0]["content"]] for row in rows] == [["image", "text"], ["text", "image"]]
    assert {instruction_of(row) for row in rows} == {"make it flat"} and "truth" not in rows[0]
