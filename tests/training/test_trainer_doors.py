"""Datasets given to the trainers in Python may have rows of any form: what the readers load, trains, and nothing is left out silently."""

import os

import pytest
from datasets import Dataset, Image, IterableDataset, List
from micro import ROWS, image

from vargpt_hf.training.preference import VargptDPOConfig, VargptDPOTrainer
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

TURNS = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "noise"}]
FORMS = {
    "image": {"messages": TURNS, "image": image(1)},
    "images": {"messages": TURNS, "images": [image(1)]},
    "marks": {"messages": [{"role": "user", "content": "<image>what is it"}, TURNS[1]], "images": [image(1)]},
    "prompt": {"prompt": "what is it", "completion": "noise", "image": image(1)},
    "conversations": {
        "conversations": [{"from": "human", "value": "<image>what is it"}, {"from": "gpt", "value": "noise"}],
        "image": image(1),
    },
}


def sft(model, processor, tmp_path, rows, **options):
    settings = {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "per_device_train_batch_size": 1, **options}
    return VargptSFTTrainer(model, args=VargptSFTConfig(str(tmp_path), **settings), train_dataset=rows, processing_class=processor)


def dataset_of(row, kind):
    if kind == "list":
        return [row]
    if kind == "stream":
        return IterableDataset.from_generator(lambda: iter([row]))
    rows = Dataset.from_list([row])
    column = next(name for name in ("images", "image") if name in row)
    return rows.cast_column(column, List(Image()) if column == "images" else Image())


@pytest.mark.parametrize("kind", ["dataset", "list", "stream"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_same_batch(model, processor, tmp_path, form, kind):
    batch = next(iter(sft(model, processor, tmp_path, dataset_of(FORMS[form], kind)).get_train_dataloader()))
    expected = next(iter(sft(model, processor, tmp_path, [ROWS[1]]).get_train_dataloader()))
    assert set(batch) == set(expected)
    for name in expected:
        assert batch[name].equal(expected[name]), name


def test_rows_of_several_forms_train_together(model, processor, tmp_path):
    rows = [*FORMS.values(), *ROWS, {"messages": TURNS}]
    trainer = sft(model, processor, tmp_path, rows, per_device_train_batch_size=len(rows))
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.state.global_step == 1 and len(batch["pixel_values"]) == len(FORMS) + 4


def test_a_stream_whose_columns_come_late(model, processor, tmp_path):
    rows = [{"messages": TURNS}, FORMS["image"], FORMS["prompt"], FORMS["conversations"]]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    batch = next(iter(sft(model, processor, tmp_path, stream, per_device_train_batch_size=4).get_train_dataloader()))
    assert len(batch["input_ids"]) == 4 and len(batch["pixel_values"]) == 3
    coded = IterableDataset.from_generator(
        lambda: iter([rows[0], {"prompt": "draw", "completion": "<image_gen>", "output_image_codes": [[1]]}])
    )
    with pytest.raises(ValueError, match="Row 1: it has output_image_codes, unlike the first row"):
        list(sft(model, processor, tmp_path, coded).train_dataset)


def test_a_column_of_images_that_nothing_uses_is_refused(model, processor, tmp_path):
    for rows in ([{"messages": TURNS, "photo": image(1)}], [{**ROWS[1], "photo": image(2)}]):
        with pytest.raises(ValueError, match="Row 0: the column 'photo' holds an image, but nothing in the row uses it"):
            sft(model, processor, tmp_path, rows)
        with pytest.raises(ValueError, match="Row 0: the column 'photo' holds an image, but nothing in the row uses it"):
            sft(model, processor, tmp_path, Dataset.from_list(rows).cast_column("photo", Image()))


def test_evaluation_takes_the_same_forms(model, processor, tmp_path):
    trainer = sft(model, processor, tmp_path, [FORMS["image"]])
    results = [trainer.evaluate([FORMS[form]])["eval_loss"] for form in FORMS]
    assert len(set(results)) == 1
    assert trainer.evaluate({"a": [FORMS["image"]]})["eval_a_loss"] == results[0]


def test_pairs_of_every_form(model, processor, tmp_path):
    pairs = [
        {"prompt": "what is it", "chosen": "noise", "rejected": "nothing", "image": image(1)},
        {"prompt": [{"role": "user", "content": "draw"}], "chosen": "<image_gen>", "rejected": "no", "chosen_images": image(2)},
    ]
    args = VargptDPOConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, per_device_train_batch_size=2)
    trainer = VargptDPOTrainer(model, args=args, train_dataset=pairs, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["pixel_values"]) == 2 and len(batch["output_pixel_values"]) == 1  # the question is seen with either answer
    trainer.train()
    with pytest.raises(ValueError, match="Row 0: the column 'photo' holds an image"):
        VargptDPOTrainer(model, args=args, train_dataset=[{**pairs[0], "photo": image(1)}], processing_class=processor)


@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_files_that_rows_name_must_be_images(model, processor, tmp_path, kind):
    """A pipe would wait for ever, a device never end."""
    os.mkfifo(tmp_path / "pipe.png")
    for path, cause in (
        (tmp_path / "pipe.png", "it is no regular file"),
        ("/dev/zero", "it is no regular file"),
        (tmp_path, "no regular file"),
    ):
        rows = Dataset.from_list([{"messages": TURNS, "image": str(path)}])
        trainer = sft(model, processor, tmp_path / "out", rows.to_iterable_dataset() if kind == "stream" else rows)
        with pytest.raises(ValueError, match=cause):
            next(iter(trainer.get_train_dataloader()))
