"""Stages, collator and trainer, on a micro model and a few rows."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from backbone_configs import backbone_config
from datasets import Dataset
from micro import ROWS, row, write_config
from peft import LoraConfig, get_peft_model
from PIL import Image as PILImage
from safetensors.torch import load_file

from vargpt_hf import VargptConfig, VargptForConditionalGeneration, VargptProcessor, hardware
from vargpt_hf.peft import PRESETS, lora_config
from vargpt_hf.testing import tiny_model
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.data import ROW_FEATURES, add_lengths
from vargpt_hf.training.forecast import parameters_of_parts
from vargpt_hf.training.guards import last_complete_checkpoint
from vargpt_hf.training.packing import IGNORE_INDEX
from vargpt_hf.training.preference import VargptDPOConfig
from vargpt_hf.training.script import VargptSFTConfig, parse, train
from vargpt_hf.training.stages import STAGES, apply_stage, stage_linears
from vargpt_hf.training.trainer import VargptSFTTrainer


def trainer_of(model, processor, tmp_path, rows=ROWS, **arguments):
    defaults = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_steps": 2,
        "bf16": False,
    }
    config = VargptSFTConfig(output_dir=str(tmp_path), use_cpu=True, logging_steps=1, **{**defaults, **arguments})
    return VargptSFTTrainer(model, args=config, train_dataset=Dataset.from_list(rows, features=ROW_FEATURES), processing_class=processor)


@pytest.mark.parametrize("stage", [name for name in STAGES if not name.startswith("v1_1")])  # those: test_training_v11.py
def test_a_stage_trains_exactly_its_parameters(stage, model, processor, tmp_path):
    apply_stage(model, stage)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer_of(model, processor, tmp_path, rows=ROWS[4:5] * 2, max_steps=3).train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    prefixes: dict[str, tuple[str, ...]] = {
        "pretrain": (
            "vlm.language_model",
            "vlm.multi_modal_projector",
            "projector_to_llm",
            "projector_to_decoder",
            "visual_decoder",
            "lm_head",
        ),
        "stage1": ("projector_to_llm", "projector_to_decoder", "visual_decoder.condition_embedding"),
        "stage2": ("vlm.language_model", "vlm.multi_modal_projector", "lm_head"),
        "stage3": ("projector_to_llm", "projector_to_decoder", "visual_decoder"),
    }
    reads = ("vlm.", "lm_head")
    prefixes |= {"v1_1_stage1": prefixes["stage1"], "v1_1_stage2": ("vlm.language_model", "lm_head"), "v1_1_stage3": prefixes["stage3"]}
    prefixes |= {"v1_1_stage4": (*prefixes["v1_1_stage2"], *prefixes["stage3"]), "v1_1_stage5": (*reads, *prefixes["stage3"])}
    wanted = {name for name in before if name.removeprefix("model.").startswith(prefixes[stage])}
    assert changed <= wanted
    # LLaVA reads the hidden states before the tower's last layer.
    wanted = {name for name in wanted if not name.startswith(("model.vlm.vision_tower.post_", "model.vlm.vision_tower.encoder.layers.1."))}
    # Weight decay aside, a parameter whose gradient is zero on these rows (a key that nothing attends to) may stay.
    assert len(changed) >= 0.95 * len(wanted)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "smolvlm", "gemma3", "qwen3"])
def test_stages_follow_the_backbone(family):
    """What they call language model and projector is trained, and the rest of what reads never."""
    plain = tiny_model(vlm_config=backbone_config(family))
    backbone = plain.model.backbone
    modules = [backbone.decoder, plain.lm_head, *(backbone.vlm.get_submodule(name) for name in backbone.projector_names)]
    wanted = {parameter for module in modules for parameter in module.parameters()}
    apply_stage(plain, "stage2")
    assert {parameter for parameter in plain.parameters() if parameter.requires_grad} == wanted
    apply_stage(plain, "stage3")
    assert not any(parameter.requires_grad for parameter in wanted)


def test_stages_are_named_in_the_error(model):
    with pytest.raises(ValueError, match="no stage 'stage4'; the stages are pretrain, stage1, stage2, stage3"):
        apply_stage(model, "stage4")
    with pytest.raises(ValueError, match="nothing to train"):
        apply_stage(model, "stage1", train_modules=["model.nothing"])


def test_own_modules_replace_the_stages(model):
    count = apply_stage(model, "stage1", train_modules=[r"lm_head\."])
    assert count == model.lm_head.weight.numel()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]


def test_a_stage_of_a_wrapped_model_trains_its_adapters_alone(model):
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", modules_to_save=["condition_embedding"]))
    counts = [apply_stage(wrapped, stage) for stage in ("stage2", "stage1", "stage2")]
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert counts[0] == counts[2] and all(".lora_" in name and ".visual_decoder." not in name for name in trained)
    apply_stage(wrapped, "stage1")
    trained = {name.split(".")[3] for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trained == {"projector_to_llm", "projector_to_decoder", "visual_decoder"}
    plain = wrapped.merge_and_unload()
    assert apply_stage(plain, "stage2") == apply_stage(VargptForConditionalGeneration(plain.config), "stage2")


def test_linear_layers_of_a_stage(model):
    names = stage_linears(model, "stage1")
    assert names == [f"model.projector_to_{side}.fc{number}" for side in ("llm", "decoder") for number in (1, 2)]
    assert "lm_head" not in stage_linears(model, "stage2")


def test_labels_are_the_assistants_tokens(processor):
    inputs = VargptDataCollator(processor)([ROWS[3]])
    said = processor.tokenizer.decode(inputs["labels"][0][inputs["labels"][0] != -100])
    start, end = processor.output_image_start_token, processor.output_image_end_token
    assert said == f" first{start}{end}then{start}{end}</s>"
    everything = VargptDataCollator(processor, assistant_only=False)([ROWS[3]])
    assert (everything["labels"] != -100).sum() == (
        everything["input_ids"][0] != processor.tokenizer.convert_tokens_to_ids("<|image_gen_pad|>")
    ).sum()


def test_prompt_dropout_empties_only_prompts_of_drawings(processor):
    always = VargptDataCollator(processor, prompt_dropout=1.0)
    texts = processor.batch_decode(always([ROWS[0], ROWS[2]])["input_ids"])
    assert "USER: say hello ASSISTANT:" in texts[0]
    assert "USER: ASSISTANT:" in texts[1].replace("<s>", "")
    never = VargptDataCollator(processor, prompt_dropout=0.0)
    assert "draw noise" in processor.batch_decode(never([ROWS[2]])["input_ids"])[0]


def test_what_is_random_depends_on_the_batch_alone(processor):
    rows = [row([f"draw number {number}"], ["output_image"], number) for number in range(64)]
    rows[0]["output_images"] = [PILImage.linear_gradient("L").resize((16, 64))]  # only what is not square can be cut here or there
    collator = VargptDataCollator(processor, prompt_dropout=0.5, random_crop=True)
    first, again = collator(rows), collator(rows)
    assert all(torch.equal(first[name], again[name]) for name in first)
    kept = first["attention_mask"].sum(1)
    assert 16 < int((kept == kept.min()).sum()) < 48
    assert not torch.equal(VargptDataCollator(processor, prompt_dropout=0.5, seed=1)(rows)["attention_mask"].sum(1), kept)
    quiet, plain = collator.for_evaluation()(rows), VargptDataCollator(processor)(rows)
    assert all(torch.equal(quiet[name], plain[name]) for name in plain)
    assert not torch.equal(first["output_pixel_values"], plain["output_pixel_values"])


def test_every_epoch_draws_anew_what_is_random(model, processor, tmp_path):
    """Also of rows that say the same, one a batch: by their numbers, which the trainer gives, and the epoch."""
    emptied = []

    class Recorder(VargptDataCollator):
        def _messages(self, row, rng):
            messages = super()._messages(row, rng)
            emptied.append((row["row_number"], messages is not row["messages"]))
            return messages

    def run(epochs, number):
        emptied.clear()
        collator = Recorder(processor, prompt_dropout=0.5)
        keys = {"per_device_train_batch_size": 1, "max_steps": -1, "num_train_epochs": epochs}
        trainer = trainer_of(model, processor, tmp_path, rows=[ROWS[2]] * number, **keys)
        trainer.data_collator = collator
        trainer.train()
        return [dict(emptied[start : start + number]) for start in range(0, epochs * number, number)]

    first, second = run(2, 16)
    assert sorted(first) == sorted(second) == list(range(16)) and first != second
    assert all(3 < sum(epoch.values()) < 13 for epoch in (first, second))
    assert run(2, 16) == [first, second]
    keys = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}  # processes that are older than the second epoch
    assert trainer_of(model, processor, tmp_path, **keys).data_collator._epoch.is_shared()


def test_missing_images_take_any_form(processor):
    for nothing in (None, [], np.zeros((0, 21), dtype=np.int64)):
        inputs = VargptDataCollator(processor)([{**ROWS[0], "images": nothing, "output_images": None, "output_image_codes": nothing}])
        assert set(inputs) == {"input_ids", "attention_mask", "labels"}
    for kind in (np.array, torch.tensor):
        inputs = VargptDataCollator(processor)([{**ROWS[2], "output_images": None, "output_image_codes": kind([[3] * 21])}])
        assert inputs["output_image_codes"].tolist() == [[3] * 21]


def test_rows_without_messages_are_refused(processor):
    with pytest.raises(ValueError, match="Row 0 .* needs a column 'messages' .* it has \\['text'\\]"):
        VargptDataCollator(processor)([{"text": "x"}])


def test_codes_stand_in_for_images(model, processor):
    collator = VargptDataCollator(processor)
    from_pixels = collator([ROWS[3]])
    codes = model.model.image_tokenizer.encode(from_pixels["output_pixel_values"])
    from_codes = collator([{**ROWS[3], "output_images": [], "output_image_codes": codes.tolist()}])
    assert torch.equal(from_codes["output_image_codes"], codes)
    torch.testing.assert_close(model(**from_codes).loss, model(**from_pixels).loss)


def test_accumulation_and_order_do_not_change_the_step(base, processor, tmp_path):
    """One step over eight rows of unequal lengths gives the same weights and losses, however it is cut into batches."""
    results = []
    for batch_size, accumulation, rows in ((8, 1, ROWS), (2, 4, ROWS), (4, 2, ROWS[::-1])):
        model = VargptForConditionalGeneration.from_pretrained(base)
        apply_stage(model, "pretrain")
        trainer = trainer_of(
            model,
            processor,
            tmp_path,
            rows=rows,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0.0,
            optim="sgd",
        )
        trainer.train()
        results.append((trainer.state.log_history[0], {name: p.detach() for name, p in model.named_parameters()}))
    for log, weights in results[1:]:
        assert math.isclose(log["loss"], results[0][0]["loss"], rel_tol=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, results[0][1][name], atol=1e-5, rtol=1e-4)


def test_each_image_counts_by_the_grids_of_its_own_schedule(model, processor, tmp_path):
    """A grid that comes in both schedules, or again in one, is logged once."""
    trainer = trainer_of(model, processor, tmp_path)
    model.config.image_tokenizer_config.schedules = [[1, 2, 2], [2, 4]]  # 9 and 20 codes
    right, are_codes = torch.ones(2, 20), torch.ones(2, 20, dtype=torch.bool)
    are_codes[0, 9:] = False
    right[0, 0] = right[1, :2] = 0.0
    of_grids = trainer._of_grids(right, are_codes, torch.tensor([0, 1]))
    assert of_grids.tolist() == [[0.0, 10.0, 16.0], [1.0, 12.0, 16.0]]
    trainer._sums["train"] = torch.cat([torch.tensor([0.0, 0.0, 0.0, 0.0, 29.0, 29.0, 29.0]), of_grids.flatten()])
    figures = trainer._figures("train")
    wanted = {"": 26 / 29, "_1x1": 0.0, "_2x2": 10 / 12, "_4x4": 1.0}
    assert {name: figures[f"image_accuracy{name}"] for name in wanted} == wanted
    of_grids = trainer._of_grids(right[:1, :9], are_codes[:1, :9], None)
    trainer._sums["train"] = torch.cat([torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 9e4, 9.0]), of_grids.flatten()])
    figures = trainer._figures("train")
    assert figures["image_accuracy"] == 8 / 9 and "image_accuracy_4x4" not in figures
    assert 1e300 < figures["code_perplexity"] < math.inf  # of a run that diverges, which the guard then stops


def test_logs(model, processor, tmp_path):
    apply_stage(model, "pretrain")
    trainer = trainer_of(model, processor, tmp_path, per_device_train_batch_size=8, max_steps=2)
    trainer.train()
    log = trainer.state.log_history[0]
    assert math.isclose(log["loss"], log["text_loss"] + log["output_image_loss"], rel_tol=1e-4)
    assert 0 <= log["text_accuracy"] <= 1 and 0 <= log["image_accuracy"] <= 1
    assert math.isclose(log["code_perplexity"], math.exp(log["output_image_loss"]), rel_tol=1e-4)
    of_scales = sum(side * side * log[f"image_accuracy_{side}x{side}"] for side in (1, 2, 4)) / 21
    assert math.isclose(log["image_accuracy"], of_scales, rel_tol=1e-4)
    figures = trainer.evaluate(Dataset.from_list(ROWS, features=ROW_FEATURES))
    assert math.isclose(figures["eval_loss"], figures["eval_text_loss"] + figures["eval_output_image_loss"], rel_tol=1e-3)
    text_only = trainer.evaluate(Dataset.from_list(ROWS[:1], features=ROW_FEATURES))
    assert "eval_output_image_loss" not in text_only


def test_training_computes_logits_of_targets_alone(model, processor, tmp_path):
    """Most tokens of a row are its prompt and placeholders of images; the metrics are those of all logits."""
    trainer = trainer_of(model, processor, tmp_path)
    trainer.data_collator.prompt_dropout = 0.0
    inputs = trainer.data_collator(ROWS)
    labels, ids = inputs["labels"], (model.config.image_token_id, model.config.output_image_token_id)
    targets = (labels != IGNORE_INDEX) & ~torch.isin(labels, torch.tensor(ids))
    targets[:, 0] = False
    seen, figures = [], []
    hook = model.register_forward_hook(lambda module, args, outputs: seen.append(outputs.logits))
    for whole in (False, True):
        loss = trainer.compute_loss(model.eval(), inputs, return_outputs=whole)
        figures.append(((loss[0] if whole else loss).item(), trainer._figures("eval")))
    hook.remove()
    vocabulary = model.config.text_config.vocab_size
    assert [logits.shape for logits in seen] == [(targets.sum(), vocabulary), (*labels.shape, vocabulary)]
    assert targets.sum() < targets.numel() / 2
    right = (seen[1].argmax(-1)[:, :-1] == labels[:, 1:]) & targets[:, 1:]
    assert figures[0][1]["text_accuracy"] == pytest.approx((right.sum() / targets.sum()).item())
    assert figures[0][0] == pytest.approx(figures[1][0])
    assert figures[0][1] == pytest.approx(figures[1][1])


def test_evaluation_does_not_depend_on_its_batches(model, processor, tmp_path):
    model.config.text_loss_weight = 0.5
    rows = Dataset.from_list(ROWS, features=ROW_FEATURES)
    figures = []
    for batch_size in (8, 3):
        trainer = trainer_of(model, processor, tmp_path, per_device_eval_batch_size=batch_size)
        trainer.data_collator.prompt_dropout = trainer.data_collator.scale_dropout = 0.9  # of training
        quiet = trainer.get_eval_dataloader(rows).collate_fn
        assert quiet.prompt_dropout == quiet.scale_dropout == 0.0
        figures.append(trainer.evaluate(rows))
        assert trainer.get_train_dataloader().collate_fn.prompt_dropout == 0.9
    names = [name for name in figures[0] if name.endswith("loss") or "accuracy" in name or "perplexity" in name]
    assert len(names) == 9
    for name in names:
        assert math.isclose(figures[0][name], figures[1][name], rel_tol=1e-4, abs_tol=1e-7), name
    assert math.isclose(figures[0]["eval_loss"], 0.5 * figures[0]["eval_text_loss"] + figures[0]["eval_output_image_loss"], rel_tol=1e-6)
    trainer.eval_dataset = {"all": rows}
    assert math.isclose(trainer.evaluate()["eval_all_output_image_loss"], figures[0]["eval_output_image_loss"], rel_tol=1e-4)


@pytest.mark.parametrize("stage", ["stage1", "stage3"])
def test_a_batch_without_drawings_leaves_the_drawing_side_as_it_is(stage, model, processor, tmp_path):
    apply_stage(model, stage)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer_of(model, processor, tmp_path, rows=ROWS[:2]).train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_labels_at_places_of_images_are_not_counted(model, processor, tmp_path):
    """A collator of somebody else may label them; the model does not, so neither may the counts."""
    inputs = VargptDataCollator(processor, assistant_only=False)(ROWS[:4])
    careless = {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}
    trainer = trainer_of(model, processor, tmp_path)
    counts = [trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))[1] for batch in (inputs, careless)]
    assert counts[0] == counts[1]


def test_settings_that_the_loss_does_not_know_are_refused(model, processor, tmp_path):
    with pytest.raises(ValueError, match="loss_type='dft' is not supported"):
        trainer_of(model, processor, tmp_path, loss_type="dft")
    with pytest.raises(ValueError, match="give `label_smoothing`"):
        trainer_of(model, processor, tmp_path, label_smoothing_factor=0.1)


def test_smoothing_is_for_training_alone(model, processor, tmp_path):
    rows = Dataset.from_list(ROWS, features=ROW_FEATURES)
    figures = []
    for smoothing in (0.0, 0.3):
        trainer = trainer_of(
            model, processor, tmp_path, per_device_train_batch_size=8, max_steps=1, label_smoothing=smoothing, learning_rate=0.0
        )
        trainer.train()
        figures.append((trainer.state.log_history[0], trainer.evaluate(rows)))
    (plain, evaluated), (smoothed, evaluated_again) = figures
    assert smoothed["output_image_loss"] != plain["output_image_loss"] and smoothed["text_loss"] != plain["text_loss"]
    assert math.isclose(smoothed["code_perplexity"], plain["code_perplexity"], rel_tol=1e-5)
    assert evaluated_again["eval_loss"] == evaluated["eval_loss"]


def test_rows_of_like_length_share_batches(model, processor, tmp_path):
    rows = add_lengths(Dataset.from_list(ROWS, features=ROW_FEATURES), processor)
    exact = [int(VargptDataCollator(processor)([entry])["attention_mask"].sum()) for entry in ROWS]
    extra = [length - estimate for length, estimate in zip(exact, rows["length"])]
    assert max(extra) - min(extra) <= 4
    trainer = trainer_of(model, processor, tmp_path, train_sampling_strategy="group_by_length", per_device_train_batch_size=4)
    trainer.train_dataset = rows
    widths = [batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()]
    assert sorted(widths) == sorted([max(sorted(exact)[:4]), max(exact)])


def test_training_lowers_both_losses(model, processor, tmp_path):
    apply_stage(model, "pretrain")
    trainer = trainer_of(model, processor, tmp_path, per_device_train_batch_size=8, max_steps=25)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert last["text_loss"] < 0.7 * first["text_loss"]
    assert last["output_image_loss"] < 0.9 * first["output_image_loss"]


def test_script_trains_saves_and_resumes(base, tmp_path):
    file = write_config(tmp_path, base, prompt_dropout=0.5, random_crop=True, stage="stage3", gradient_accumulation_steps=1)
    train(file)
    straight = VargptForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    VargptProcessor.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").write_text("{half")  # as if killed while saving
    assert last_complete_checkpoint(tmp_path / "out").endswith("checkpoint-2")
    train(file, ["--resume_from_checkpoint", "true"])
    resumed = VargptForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


@pytest.mark.parametrize("streaming", [False, True], ids=["ahead", "streaming"])
def test_a_mixture_is_drawn_by_weight_and_logged(base, tmp_path, capsys, streaming):
    texts = {"prompt": "say hello", "completion": "hello"}
    (tmp_path / "texts.json").write_text(json.dumps([texts] * 30))  # 4 steps do not come to its end
    sources = [{"path": str(tmp_path / "rows"), "weight": 3}, str(tmp_path / "texts.json")]
    train(write_config(tmp_path, base, train_data=sources, stage="stage3", streaming=streaming, per_device_train_batch_size=4, logging_steps=1))
    log = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    counts = [(entry["rows_of_rows"], entry["rows_of_texts.json"]) for entry in log]
    rows_each_step = 4 * 2  # accumulated
    assert [sum(pair) for pair in counts] == [rows_each_step * step for step in (1, 2, 3, 4)]
    assert counts[-1][0] > counts[-1][1] > 0
    assert ("data    a stream of rows from" if streaming else "texts.json: ") in capsys.readouterr().out


def test_weights_of_the_losses_are_set_and_saved(base, tmp_path):
    train(write_config(tmp_path, base, image_loss_weight=3, image_scale_power=0.5, max_steps=1, save_strategy="no"))
    config = VargptConfig.from_pretrained(tmp_path / "out")
    assert (config.text_loss_weight, config.image_loss_weight, config.image_scale_power) == (1, 3, 0.5)


@pytest.mark.parametrize("fast", [True, False], ids=["units", "plain"])
def test_bfloat16_is_for_cpus_with_units_for_it(base, tmp_path, monkeypatch, capsys, recwarn, fast):
    """By default and as "auto", in YAML files, on the command line and in Python; who asks for it gets it, with a warning."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    monkeypatch.setattr(hardware, "speed_over_float32", lambda dtype: 4.0 if fast else 1 / 32)
    for kind in (VargptSFTConfig, VargptDPOConfig):
        formats = [kind(str(tmp_path), bf16=asked).bf16 for asked in ("auto", None, False, "false", True)]
        assert formats == [fast, fast, False, False, True] and kind(str(tmp_path)).bf16 is fast
        assert kind(str(tmp_path), fp16=True).bf16 is False
    told = "this CPU multiplies bfloat16 32 times as slowly as float32"
    warned = [str(warning.message) for warning in recwarn if told in str(warning.message)]
    assert set(warned) == (set() if fast else {f"bf16=True: {told}; leave it out, or give 'auto'."})
    with pytest.raises(ValueError, match="`bf16` must be True, False or 'auto', got 'sometimes'"):
        VargptSFTConfig(str(tmp_path), bf16="sometimes")
    file = write_config(tmp_path, base, bf16="auto", max_steps=1, save_strategy="no", sample_prompts=[])
    for overrides, wanted in (([], fast), (["--bf16", "false"], False), (["--bf16"], True), (["--bf16=true"], True)):
        assert parse(file, overrides)[1].bf16 is wanted
    train(file)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("format")]
    assert line == ("format  bfloat16" if fast else f"format  float32: {told}")
    write_config(tmp_path, base, bf16=3)
    with pytest.raises(ValueError, match="`bf16` is 3; it must be one of auto, true, false"):
        parse(file)


def test_the_start_of_a_training_warns_of_nothing(base, tmp_path, recwarn):
    """Of what Transformers, TRL and PEFT would say there of deprecated names and pinned memory, nothing is a user's to mend."""
    for keys in ({"use_peft": True, "lora_preset": "draw"}, {"gradient_checkpointing": True}, {"dataloader_num_workers": 1}):
        folder = tmp_path / next(iter(keys))
        folder.mkdir()
        train(write_config(folder, base, stage="stage3", max_steps=1, save_strategy="no", sample_prompts=[], **keys))
    said = [str(warning.message) for warning in recwarn]
    assert not [text for text in said if "deprecated" in text or "pin_memory" in text], said


def test_schedules_come_from_stage_file_and_command_line(base, tmp_path):
    file = write_config(tmp_path, base, stage="stage3", learning_rate=3e-4)
    script, training, model_config = parse(file, ["--num_train_epochs", "7"])
    assert (training.learning_rate, training.num_train_epochs) == (3e-4, 7)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (8, 2)  # the released stage 3
    assert training.lr_scheduler_type == "cosine" and not training.gradient_checkpointing
    assert (script.stage, model_config.model_name_or_path) == ("stage3", str(base))


def test_a_stage_may_stand_on_the_command_line(base, tmp_path):
    file = write_config(tmp_path, base, stage="")
    assert parse(file, ["--stage", "stage3"])[1].num_train_epochs == 3
    assert parse(file, ["--stage=stage3"])[0].stage == "stage3"


def test_adapters_are_trained_saved_and_merged_by_the_next_stage(base, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    options = {"learning_rate": 0.1, "max_steps": 2, "save_strategy": "no"}
    train(write_config(tmp_path / "a", base, stage="stage2", use_peft=True, lora_r=2, **options))
    adapted = load_file(tmp_path / "a/out/adapter_model.safetensors")
    assert {name.split(".")[4] for name in adapted} == {"language_model", "multi_modal_projector"}
    train(write_config(tmp_path / "b", tmp_path / "a/out", stage="stage1", **options))
    start = VargptForConditionalGeneration.from_pretrained(base).state_dict()
    end = VargptForConditionalGeneration.from_pretrained(tmp_path / "b/out").state_dict()
    different = {name.removeprefix("model.").removeprefix("vlm.") for name, value in end.items() if not torch.equal(value, start[name])}
    changed = {".".join(name.split(".")[:2]) for name in different}
    assert changed == {
        "language_model.layers",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "projector_to_llm.fc1",
        "projector_to_llm.fc2",
        "projector_to_decoder.fc1",
        "projector_to_decoder.fc2",
        "visual_decoder.condition_embedding",
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_counts_each_parameter_once(model, preset):
    """A module that is fully trained, in a copy, is not frozen as well; where adapters are, the weights beneath are."""
    modules = {**dict(model.model.named_children()), **{f"vlm.{name}": part for name, part in model.model.vlm.named_children()}}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in modules.items() if name != "vlm"}
    head = sum(p.numel() for p in model.model.visual_decoder.head.parameters())
    parts = parameters_of_parts(get_peft_model(model, lora_config(preset, r=2)))
    for name, size in sizes.items():
        whole = name in PRESETS[preset].trains
        adapted = any(start == name for start in PRESETS[preset].adapts)
        trained, frozen = parts[name]
        assert (trained, frozen) == (size, 0) if whole else trained > 0 if adapted else (trained, frozen) == (0, size), name
    rest = head if "visual_decoder.head" in PRESETS[preset].trains else 0
    assert parts["visual_decoder"][1] == sizes["visual_decoder"] - rest


@pytest.mark.parametrize("stage", ["pretrain", "stage1", "stage2", "stage3"])
def test_the_examples_are_read(stage, base, tmp_path):
    file = Path(__file__).parents[2] / "examples" / "tiny" / f"{stage}.yaml"
    write_config(tmp_path, base)
    overrides = ["--train_data", str(tmp_path / "rows"), "--model_name_or_path", str(base), "--output_dir", str(tmp_path / "out")]
    script, training, model_config = parse(file, overrides)
    assert (script.stage, training.use_cpu, model_config.attn_implementation) == (stage, True, "eager")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_data": "/nowhere/else"}, "There is no dataset at /nowhere/else"),
        ({"eval_strategy": "epoch"}, "eval_strategy is 'epoch', but there is no `eval_data`"),
        ({"model_name_or_path": "/nowhere/model"}, "There is no model at /nowhere/model"),
        ({"padding_free": True}, "give `packing`"),
        ({"completion_only_loss": False}, "`assistant_only=False` labels every token"),
        ({"pad_to_multiple_of": 8}, "rows are padded to the longest of their batch"),
        ({"attn_implementation": "nonsense"}, "nonsense"),
        ({"image_loss_weight": -1}, "`image_loss_weight` must not be negative"),
        ({"label_smoothing": 1.5}, "`label_smoothing` must be in"),
        ({"prompt_dropout": 2}, "`prompt_dropout` must be in"),
        ({"scale_dropout": -0.5}, "`scale_dropout` must be in"),
        ({"coarse_scales": 0}, "`coarse_scales` must be at least 1"),
        ({"train_modules": ["("]}, "must be regular expressions: '\\(' is none"),
        ({"train_modules": "model.projector_to_llm"}, "must be a list, such as \\['model.projector_to_llm'\\]"),
        ({"sample_prompts": "draw noise"}, "`sample_prompts` is 'draw noise'; it must be a list"),
        ({"max_length": 0}, "`max_length` must be at least 1, got 0"),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-1"}, "There is no checkpoint"),
        ({"load_in_4bit": True}, "they need `use_peft: true`"),
        ({"load_in_4bit": True, "load_in_8bit": True, "use_peft": True}, "use 8 bit and 4 bit precision at the same time"),
        ({"stage": "stage9"}, "no stage 'stage9'"),
        ({"train_data": "/nowhere"}, "There is no dataset at /nowhere"),
        ({"train_data": [{"path": "/nowhere", "wait": 2}]}, "A source of data needs `path` and may have weight"),
        ({"train_data": [{"path": "/nowhere", "weight": "2"}]}, "`weight` of a source of data must be a number, got '2'"),
        ({"train_data": [{"path": 5}]}, "`path` of a source of data must be text, got 5"),
        ({"streaming": True, "max_steps": -1}, "set `max_steps`"),
        ({"streaming": True, "train_sampling_strategy": "group_by_length"}, "needs all rows ahead"),
        ({"mixture_stop": "never"}, "`stop` is 'never'"),
        ({"stage": ""}, "has no `stage`"),
        ({"learning_speed": 1}, "learning_speed"),
    ],
)
def test_bad_files_are_refused(base, tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        train(write_config(tmp_path, base, **keys))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        train(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_the_examples_of_paper_size_are_read(stage, base, tmp_path, monkeypatch):
    """As they stand: with the folders and the model that they name, wherever they are."""
    file = Path(__file__).parents[2] / "examples" / "paper" / f"{stage}.yaml"
    given = yaml.safe_load(file.read_text())
    monkeypatch.chdir(tmp_path)
    sources = given["train_data"]
    for source in sources if isinstance(sources, list) else [{"path": sources}]:
        path = Path(source["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()
    shutil.copytree(base, given["model_name_or_path"])
    script, training, _ = parse(file, ["--use_cpu", "true"])
    assert (script.stage, training.bf16, training.gradient_checkpointing, training.max_length) == (stage, True, True, 2048)
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert 8 * rows == {"stage1": 256, "stage2": 128, "stage3": 128}[stage]


def test_the_released_schedule_of_stage_3_is_the_paper_example():
    file = Path(__file__).parents[2] / "examples" / "paper" / "stage3.yaml"
    given = yaml.safe_load(file.read_text())
    assert {key: given[key] for key in STAGES["stage3"].schedule} == STAGES["stage3"].schedule
