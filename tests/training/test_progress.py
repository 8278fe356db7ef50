"""What a person sees of a run: plan, progress, curves, samples, and a trial of one step."""

import json

import numpy as np
import pytest
from datasets import Dataset
from micro import ROWS, row, write_config
from PIL import Image

from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.forecast import as_collated, measure_shape, num_steps
from vargpt_hf.training.progress import describe_log, drawing_prompts, save_curves
from vargpt_hf.training.script import make_trainer, parse, train
from vargpt_hf.training.trainer import VargptSFTTrainer


def test_the_plan_comes_first(base, tmp_path, capsys):
    train(write_config(tmp_path, base, stage="stage3", max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2))
    plan = {line[:8].strip(): line[8:] for line in capsys.readouterr().out.splitlines()}
    assert plan["stage"].startswith("stage3: Teaches to draw")
    assert "projector_to_llm" in plan["trains"] and "language_model" not in plan["trains"]
    assert plan["memory"].startswith("about 0.0") and plan["time"].startswith("at least 0.") and plan["steps"].startswith("2, ")
    assert plan["data"] == f"8 rows from {tmp_path / 'rows'}: 8 (100.0%)"


def test_the_plans_figures(processor):
    rows = Dataset.from_list([row(["image", "what"], ["noise"]), row(["draw"], ["output_image", "and", "output_image"])], features=ROW_FEATURES)
    shape = measure_shape(rows, processor)
    assert (shape.images, shape.drawings) == (0.5, 1.0)
    read, drawn = processor.typical_lengths()["image"], 2 * processor.output_image_processor.num_positions[0]
    assert drawn < shape.longest < drawn + 10 and read + drawn < 2 * shape.tokens < read + drawn + 20
    assert measure_shape(rows.to_iterable_dataset(), processor) == shape


def test_the_plan_counts_images_by_the_scales_that_are_left(base, tmp_path, processor, capsys):
    rows = Dataset.from_list(ROWS, features=ROW_FEATURES)
    whole = measure_shape(rows, processor)
    collators = {share: VargptDataCollator(processor, scale_dropout=share, coarse_scales=2) for share in (0.0, 0.5, 1.0)}
    shapes = {share: as_collated(whole, collator) for share, collator in collators.items()}
    lengths = {share: np.mean([collator([each])["attention_mask"].sum() for each in rows.to_list()]) for share, collator in collators.items()}
    assert shapes[0.0] == whole and shapes[0.5].longest == whole.longest
    assert whole.tokens - shapes[1.0].tokens == pytest.approx(lengths[0.0] - lengths[1.0])
    assert shapes[0.5].tokens == pytest.approx((whole.tokens + shapes[1.0].tokens) / 2)
    train(write_config(tmp_path, base, stage="stage3", max_steps=1, save_strategy="no", scale_dropout=0.5, coarse_scales=2, sample_prompts=[]))
    assert f"about {16 * shapes[0.5].tokens:,.0f} tokens" in capsys.readouterr().out


@pytest.mark.parametrize(("batch", "accumulated", "epochs"), [(3, 2, 2), (8, 1, 1.5), (2, 3, 1)])
def test_the_plan_knows_how_many_steps_there_will_be(base, tmp_path, batch, accumulated, epochs):
    """As many as Trainer then does."""
    keys = {"max_steps": -1, "num_train_epochs": epochs, "save_strategy": "no", "sample_prompts": [], "stage": "stage1"}
    keys |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    trainer, _ = make_trainer(*parse(write_config(tmp_path, base, **keys)))
    trainer.train()
    assert trainer.state.global_step == num_steps(trainer.args, trainer.train_dataset)


def test_curves_and_samples_lie_in_the_folder(base, tmp_path):
    train(write_config(tmp_path, base, stage="stage3", eval_data=str(tmp_path / "rows"), eval_strategy="steps", eval_steps=2, logging_steps=1))
    assert Image.open(tmp_path / "out" / "training.png").width > 1000  # two curves side by side
    samples = sorted(file.name for file in (tmp_path / "out" / "samples").iterdir())
    assert samples == ["step-000000.png", "step-000002.png", "step-000004.png"]
    log = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_image_accuracy_4x4" in entry for entry in log)


@pytest.mark.parametrize(("every", "evaluated"), [(None, [4]), (2, [2, 4]), (3, [3, 4])])
def test_the_run_ends_with_an_evaluation(base, tmp_path, monkeypatch, capsys, every, evaluated):
    """With one, whatever is evaluated on the way."""
    steps, evaluate = [], VargptSFTTrainer.evaluate

    def noted(self, *args, **more):
        steps.append(self.state.global_step)
        return evaluate(self, *args, **more)

    monkeypatch.setattr(VargptSFTTrainer, "evaluate", noted)
    keys = {"eval_strategy": "steps", "eval_steps": every} if every else {}
    train(write_config(tmp_path, base, stage="stage3", eval_data=str(tmp_path / "rows"), save_strategy="no", sample_prompts=[], **keys))
    assert steps == evaluated and ("eval_text_loss " in capsys.readouterr().out) == (every is None)  # as a line, not in a log's dict


def test_samples_can_be_chosen_or_left_out(base, tmp_path):
    train(write_config(tmp_path, base, stage="stage3", max_steps=1, save_strategy="no", sample_prompts=[]))
    assert not (tmp_path / "out" / "samples").exists()
    train(write_config(tmp_path, base, stage="stage3", max_steps=2, save_strategy="no", sample_prompts=["a thing of $100", "another"]))
    first = {file.name: file.read_bytes() for file in (tmp_path / "out" / "samples").iterdir()}
    assert set(first) == {"step-000000.png", "step-000002.png"}
    train(write_config(tmp_path, base, stage="stage3", max_steps=1, save_strategy="no", sample_prompts=["another"]))
    again = {file.name: file.read_bytes() for file in (tmp_path / "out" / "samples").iterdir()}
    assert set(again) == {"step-000000.png", "step-000001.png"} and again["step-000000.png"] != first["step-000000.png"]


def test_samples_are_of_the_training_where_nothing_else_draws(base, tmp_path):
    Dataset.from_list(ROWS[:2], features=ROW_FEATURES).save_to_disk(tmp_path / "reading")
    train(write_config(tmp_path, base, stage="stage3", max_steps=1, save_strategy="no", eval_data=str(tmp_path / "reading")))
    assert {file.name for file in (tmp_path / "out" / "samples").iterdir()} == {"step-000000.png", "step-000001.png"}


def test_samples_do_not_change_the_run(base, tmp_path):
    weights = []
    for prompts in ([], ["draw noise"]):
        keys = {"stage": "stage3", "eval_data": str(tmp_path / "rows"), "eval_strategy": "steps", "eval_steps": 1, "sample_prompts": prompts}
        train(write_config(tmp_path, base, save_strategy="no", **keys))
        weights.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_dry_run_does_everything_and_leaves_nothing(base, tmp_path, capsys):
    file = write_config(tmp_path, base, stage="stage3", eval_data=str(tmp_path / "rows"), eval_strategy="epoch", max_steps=-1)
    before = sorted(path.name for path in tmp_path.iterdir())
    train(file, dry_run=True)
    said = capsys.readouterr().out
    assert "Dry run: everything works. The step took" in said and "3 such steps" in said  # an epoch each
    assert f"saves   in {tmp_path / 'out'}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_prompts_are_found_in_the_data():
    rows = Dataset.from_list(ROWS, features=ROW_FEATURES)
    assert drawing_prompts(rows, 2) == ["draw noise", "draw two"]
    assert drawing_prompts(rows.to_iterable_dataset(), 9) == ["draw noise", "draw two", "draw"]


def test_a_log_in_one_line():
    logs = {"loss": 3.0, "text_loss": 1.0, "text_accuracy": 0.5, "output_image_loss": 2.0, "image_accuracy": 0.25, "learning_rate": 1e-3}
    assert describe_log(logs) == "text loss 1.0000 (50.0% right), image loss 2.0000 (25.0% right), learning_rate 0.001"
    assert (
        describe_log({"eval_output_image_loss": 2.0, "eval_image_accuracy": 0.25, "epoch": 1.0})
        == "eval_image loss 2.0000 (25.0% right), epoch 1"
    )
    grids = {"output_image_loss": 2.0, "image_accuracy": 0.25, "image_accuracy_1x1": 0.5, "image_accuracy_2x2": 0.75}
    assert describe_log(grids) == "image loss 2.0000 (25.0% right, 50.0% of 1x1)"


def test_nothing_is_drawn_of_no_losses(tmp_path):
    assert not save_curves([{"step": 1, "learning_rate": 1.0}], tmp_path / "a.png") and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("disable", [True, False])
def test_the_bar_shows_both_losses(base, tmp_path, capfd, disable):
    train(write_config(tmp_path, base, stage="stage3", max_steps=1, save_strategy="no", logging_steps=1, disable_tqdm=disable))
    said = capfd.readouterr()
    shown = "step 1: text loss" in said.out + said.err and "image=" in said.err
    assert shown != disable
