"""Stages, collator and trainer, on a micro model and a few rows."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import CLIPVisionConfig, CLIPVisionModel

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor, VargptVQModel
from vargpt_hf.testing import tiny_config
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.parts.base import build_base
from vargpt_hf.training.parts.tokenizer import train_tokenizer
from vargpt_hf.training.script import VargptSFTConfig, last_complete_checkpoint, parse, train
from vargpt_hf.training.stages import STAGES, apply_stage
from vargpt_hf.training.trainer import VargptSFTTrainer

FEATURES = Features(
    {
        "messages": List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}),
        "images": List(Image()),
        "output_images": List(Image()),
    }
)


def picture(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def row(user: list, assistant: list, seed: int = 0) -> dict:
    """A row whose parts are texts, "image" or "image_gen"."""

    def parts(given):
        return [{"type": part} if part in ("image", "image_gen") else {"type": "text", "text": part} for part in given]

    messages = [{"role": "user", "content": parts(user)}, {"role": "assistant", "content": parts(assistant)}]
    images = [picture(seed + index) for index in range(user.count("image"))]
    drawings = [picture(seed + 100 + index) for index in range(assistant.count("image_gen"))]
    return {"messages": messages, "images": images, "output_images": drawings}


ROWS = [
    row(["say hello"], ["hello"]),
    row(["image", "what is it"], ["noise"], 1),
    row(["draw noise"], ["image_gen"], 2),
    row(["draw two"], ["first", "image_gen", "then", "image_gen"], 3),
    row(["image", "draw it again and say so"], ["image_gen", "so"], 5),
    row(["say a longer thing than the others"], ["a longer thing than the others, and longer still"]),
    row(["draw"], ["image_gen"], 8),
    row(["image", "image", "which"], ["the second"], 9),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a micro model and a processor that fits it."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer((part for entry in ROWS for m in entry["messages"] for p in m["content"] for part in [p.get("text", "")]), 300)
    torch.manual_seed(0)
    config = tiny_config()
    vision = CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in config.vision_config.to_dict().items() if k != "model_type"}))
    decoder = {**config.visual_decoder_config.to_dict(), "drop_path_rate": 0.0, "condition_dropout": 0.0}
    text = {k: config.text_config.to_dict()[k] for k in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    build_base(folder, tokenizer, VargptVQModel(config.vq_config), vision, text, decoder)
    return folder


@pytest.fixture
def model(base):
    return VargptForConditionalGeneration.from_pretrained(base)


@pytest.fixture(scope="module")
def processor(base):
    return VargptProcessor.from_pretrained(base)


def trainer_of(model, processor, tmp_path, rows=ROWS, **arguments):
    defaults = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True, "max_steps": 2}
    config = VargptSFTConfig(output_dir=str(tmp_path), use_cpu=True, logging_steps=1, **{**defaults, **arguments})
    return VargptSFTTrainer(model, args=config, train_dataset=Dataset.from_list(rows, features=FEATURES), processing_class=processor)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_exactly_its_parameters(stage, model, processor, tmp_path):
    apply_stage(model, stage)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer_of(model, processor, tmp_path, rows=ROWS[4:5] * 2, max_steps=3).train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    prefixes = {
        "pretrain": ("language_model", "multi_modal_projector", "generation_projector", "visual_decoder", "lm_head"),
        "stage1": ("generation_projector_in", "generation_projector_out", "visual_decoder.condition_embedding"),
        "stage2": ("language_model", "multi_modal_projector", "lm_head"),
        "stage3": ("generation_projector_in", "generation_projector_out", "visual_decoder"),
    }[stage]
    wanted = {name for name in before if name.removeprefix("model.").startswith(prefixes)}
    assert changed <= wanted
    # Weight decay aside, a parameter whose gradient is zero on these rows (a key that nothing attends to) may stay.
    assert len(changed) >= 0.95 * len(wanted)


def test_stages_are_named_in_the_error(model):
    with pytest.raises(ValueError, match="no stage 'stage4'; the stages are pretrain, stage1, stage2, stage3"):
        apply_stage(model, "stage4")
    with pytest.raises(ValueError, match="nothing to train"):
        apply_stage(model, "stage1", train_modules=["model.nothing"])


def test_own_modules_replace_the_stages(model):
    count = apply_stage(model, "stage1", train_modules=[r"lm_head\."])
    assert count == model.lm_head.weight.numel()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]


def test_labels_are_the_assistants_tokens(processor):
    inputs = VargptDataCollator(processor)([ROWS[3]])
    said = processor.tokenizer.decode(inputs["labels"][0][inputs["labels"][0] != -100])
    start, end = processor.image_start_token, processor.image_end_token
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


def test_too_long_rows_and_rows_without_messages_are_refused(processor):
    with pytest.raises(ValueError, match=r"tokens, more than max_length=10"):
        VargptDataCollator(processor, max_length=10)([ROWS[2]])
    with pytest.raises(ValueError, match="needs a column 'messages'; got \\['text'\\]"):
        VargptDataCollator(processor)([{"text": "x"}])


def test_codes_stand_in_for_pictures(model, processor):
    collator = VargptDataCollator(processor)
    from_pixels = collator([ROWS[3]])
    codes = model.model.vq_model.encode(from_pixels["output_pixel_values"])
    from_codes = collator([{**ROWS[3], "output_images": [], "image_codes": codes.tolist()}])
    assert torch.equal(from_codes["image_codes"], codes)
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


def test_logs(model, processor, tmp_path):
    apply_stage(model, "pretrain")
    trainer = trainer_of(model, processor, tmp_path, per_device_train_batch_size=8, max_steps=2)
    trainer.train()
    log = trainer.state.log_history[0]
    assert math.isclose(log["loss"], log["text_loss"] + log["image_loss"], rel_tol=1e-4)
    assert 0 <= log["text_accuracy"] <= 1 and 0 <= log["image_accuracy"] <= 1
    figures = trainer.evaluate(Dataset.from_list(ROWS, features=FEATURES))
    assert math.isclose(figures["eval_loss"], figures["eval_text_loss"] + figures["eval_image_loss"], rel_tol=1e-3)
    text_only = trainer.evaluate(Dataset.from_list(ROWS[:1], features=FEATURES))
    assert "eval_image_loss" not in text_only


def test_training_lowers_both_losses(model, processor, tmp_path):
    apply_stage(model, "pretrain")
    trainer = trainer_of(model, processor, tmp_path, per_device_train_batch_size=8, max_steps=25)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert last["text_loss"] < 0.7 * first["text_loss"]
    assert last["image_loss"] < 0.9 * first["image_loss"]


def write_config(tmp_path, base, **keys):
    """A stage's YAML and its dataset; returns the file."""
    Dataset.from_list(ROWS, features=FEATURES).save_to_disk(tmp_path / "rows")
    given = {
        "stage": "stage1",
        "model_name_or_path": str(base),
        "train_data": str(tmp_path / "rows"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 4,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        **keys,
    }
    file = tmp_path / "stage.yaml"
    file.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in given.items()))
    return file


def test_script_trains_saves_and_resumes(base, tmp_path):
    file = write_config(tmp_path, base)
    train(file)
    straight = VargptForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    VargptProcessor.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").write_text("{half")  # as if killed while saving
    assert last_complete_checkpoint(tmp_path / "out").endswith("checkpoint-2")
    train(file, ["--resume_from_checkpoint", "true"])
    resumed = VargptForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_schedules_come_from_stage_file_and_command_line(base, tmp_path):
    file = write_config(tmp_path, base, stage="stage3", learning_rate=3e-4)
    script, training, model_config = parse(file, ["--num_train_epochs", "7"])
    assert (training.learning_rate, training.num_train_epochs) == (3e-4, 7)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (8, 2)  # the released stage 3
    assert training.lr_scheduler_type == "cosine" and not training.gradient_checkpointing
    assert (script.stage, model_config.model_name_or_path) == ("stage3", str(base))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": "stage9"}, "no stage 'stage9'"),
        ({"train_data": "/nowhere"}, "There is no dataset at /nowhere"),
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
