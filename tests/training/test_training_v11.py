"""Training with the parts of VARGPT v1.1, a bitwise image tokenizer and Infinity's decoder."""

import copy
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import toy_v11
import yaml
from backbone_configs import backbone_config, reading_inputs
from datasets import Dataset
from micro import ROWS, row, write_config
from peft import get_peft_model

from vargpt_hf import VargptConfig, VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.modeling.bsq_vargpt import VargptBSQConfig, VargptBSQModel
from vargpt_hf.modeling.infinity_decoder_vargpt import rotary_table
from vargpt_hf.peft import lora_config, unquantized_modules
from vargpt_hf.testing import tiny_config
from vargpt_hf.training.codes import encode_rows
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.data import ROW_FEATURES, load_rows, mix_pairs, sources_of
from vargpt_hf.training.preference import (
    PREFERENCE_FEATURES,
    VargptDPOConfig,
    VargptDPOTrainer,
    VargptPreferenceCollator,
)
from vargpt_hf.training.resolution import with_image_budget
from vargpt_hf.training.script import make_trainer, parse, train
from vargpt_hf.training.stages import STAGES, apply_stage
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

BITS = 32
TOKENIZER = {**toy_v11.TOKENIZER, "schedules": [[1, 2, 4]], "latent_channels": BITS}
DECODER = {**toy_v11.DECODER, "reference_grids": [[8, 8]]}
MIXED = ROWS[1:5]  # one that reads, two that draw, one that reads and draws
V1_1_STAGES = [name for name in STAGES if name.startswith("v1_1")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a micro model of v1.1's parts that draw, and a reader that the processor knows."""
    texts = (part.get("text", "") for entry in ROWS for message in entry["messages"] for part in message["content"])
    return toy_v11.write_toy_v11_folder(tmp_path_factory.mktemp("base_v11"), texts, TOKENIZER, {**DECODER, "condition_dropout": 0.0})


@pytest.fixture(scope="module")
def loaded(base):
    return VargptForConditionalGeneration.from_pretrained(base)


@pytest.fixture(scope="module")
def processor(base):
    return VargptProcessor.from_pretrained(base)


def trainer_of(model, processor, tmp_path, rows=MIXED, eval_rows=None, **arguments):
    defaults = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True, "max_steps": 2}
    config = VargptSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, logging_steps=1, **{**defaults, **arguments})
    made = [Dataset.from_list(each, features=ROW_FEATURES) if each else None for each in (rows, eval_rows)]
    return VargptSFTTrainer(model, args=config, train_dataset=made[0], eval_dataset=made[1], processing_class=processor)


def losses(trainer, name="output_image_loss"):
    return [log[name] for log in trainer.state.log_history if name in log]


# ---- stages


TRAINED = {
    "v1_1_stage1": ("projector_to_llm", "projector_to_decoder", "visual_decoder.condition_embedding"),
    "v1_1_stage2": ("language_model", "lm_head"),
    "v1_1_stage3": ("projector_to_llm", "projector_to_decoder", "visual_decoder"),
    "v1_1_stage4": ("language_model", "lm_head", "projector_to_llm", "projector_to_decoder", "visual_decoder"),
    "v1_1_stage5": ("visual.", "language_model", "lm_head", "projector_to_llm", "projector_to_decoder", "visual_decoder"),
}


@pytest.fixture(scope="module")
def qwen():
    """v1.1's three parts at toy size: Qwen2-VL reads."""
    torch.manual_seed(0)
    decoder = {**DECODER, "drop_path_rate": 0.0}
    tokenizer = {"model_type": "vargpt_bsq", **TOKENIZER, "latent_channels": 6}
    parts = {"vlm_config": backbone_config("qwen2_vl"), "image_tokenizer_config": tokenizer, "visual_decoder_config": decoder}
    return VargptForConditionalGeneration(tiny_config(**parts, image_loss_weight=3.0, plain_positions=True))


def mixed_batch(model) -> dict[str, torch.Tensor]:
    """Three rows of model inputs: one reads, one reads and draws, one draws and goes on."""
    image, drawing = [60] * 6, [61, *[63] * 21, 62]
    rows = [[1, *image, 7, 8, 2], [1, *image, 7, *drawing, 2], [1, 5, *drawing, 9, 2]]
    longest = max(map(len, rows))
    ids = torch.tensor([each + [0] * (longest - len(each)) for each in rows])
    mask = (torch.arange(longest) < torch.tensor([[len(each)] for each in rows])).long()
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
        "output_pixel_values": torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1,
        **reading_inputs("qwen2_vl", ids),
    }


@pytest.mark.parametrize("stage", V1_1_STAGES)
def test_a_stage_trains_exactly_its_parameters(stage, qwen):
    apply_stage(qwen, stage)
    qwen.train().zero_grad()
    torch.manual_seed(0)
    output = qwen(**mixed_batch(qwen))
    assert output.loss.item() == pytest.approx((output.text_loss + 3 * output.output_image_loss).item())
    output.loss.backward()
    prefixes = TRAINED[stage]
    names = {name: name.removeprefix("model.").removeprefix("vlm.") for name, _ in qwen.named_parameters()}
    wanted = {name for name, short in names.items() if short.startswith(prefixes)}
    assert {name for name, parameter in qwen.named_parameters() if parameter.requires_grad} == wanted
    assert not any("image_tokenizer" in name for name in wanted)
    reached = {name for name, parameter in qwen.named_parameters() if parameter.grad is not None}
    assert reached == wanted


def test_stage_1_trains_the_condition_row_alone(qwen):
    apply_stage(qwen, "v1_1_stage1")
    inside = [name for name, parameter in qwen.model.visual_decoder.named_parameters() if parameter.requires_grad]
    assert inside == ["condition_embedding"]


def test_the_released_schedule(base, tmp_path):
    assert STAGES["v1_1_stage3"].schedule == {
        "learning_rate": 5e-5,
        "num_train_epochs": 6,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
    }
    _, training, _ = parse(write_config(tmp_path, base, stage="v1_1_stage3"))
    assert (training.learning_rate, training.gradient_accumulation_steps, training.warmup_steps) == (5e-5, 2, 0.1)


# ---- rows, self-correction, dropping


def test_mixed_rows_train(model, processor, tmp_path):
    apply_stage(model, "v1_1_stage4")
    trainer = trainer_of(model, processor, tmp_path, max_steps=60, learning_rate=5e-3)
    trainer.train()
    images, texts = losses(trainer), losses(trainer, "text_loss")
    assert images[0] == pytest.approx(math.log(2), rel=0.3)  # a mean over bits
    assert sum(images[-8:]) / 8 < 0.68 < math.log(2)  # of noise: better than chance
    assert sum(texts[-8:]) < 0.2 * sum(texts[:8])


def test_rows_do_not_depend_on_their_order(qwen):
    """In the released system a row that draws behind one that does not gets that other row's states as its context."""
    qwen.eval()
    inputs = mixed_batch(qwen)
    first = qwen(**inputs)
    turned = {name: inputs[name][[2, 0, 1]] for name in ("input_ids", "attention_mask", "labels")}
    turned |= {name: inputs[name] for name in ("pixel_values", "image_grid_thw")} | {
        "output_pixel_values": inputs["output_pixel_values"][[1, 0]]
    }
    again = qwen(**turned)
    torch.testing.assert_close(again.output_image_logits, first.output_image_logits[[1, 0]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.loss, first.loss, atol=1e-5, rtol=1e-5)


def fed(model, processor, tmp_path, monkeypatch, **arguments):
    """What the image tokenizer handed out in each forward pass of a run: whether it was in training mode, codes and inputs."""
    tokenizer, seen = model.model.image_tokenizer, []
    original = type(tokenizer).training_pair

    def note(self, *args, **kwargs):
        codes, inputs = original(self, *args, **kwargs)
        seen.append((self.training, codes, inputs))
        return codes, inputs

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "training_pair", note)
        trainer = trainer_of(model, processor, tmp_path, **arguments)
        trainer.train()
    return seen, trainer


def test_training_flips_bits_and_evaluation_does_not(model, processor, tmp_path, monkeypatch):
    tokenizer = model.model.image_tokenizer
    schedule = tokenizer.default_schedule
    apply_stage(model, "v1_1_stage3")
    seen, trainer = fed(
        model, processor, tmp_path, monkeypatch, rows=ROWS[2:3] * 4, eval_rows=ROWS[2:3] * 4, eval_strategy="steps", eval_steps=1
    )
    assert {training for training, _, _ in seen} == {True, False}
    given = VargptDataCollator(processor)(ROWS[2:3])["output_pixel_values"]
    codes = tokenizer.encode(given)
    for training, found, inputs in seen:
        corrected = torch.equal(inputs, tokenizer.decoder_inputs(found, schedule))
        assert corrected is not training
        assert training or torch.equal(found, codes.expand_as(found))
        assert torch.equal(found[:, 0], codes[:, 0].expand(len(found)))  # labels of the first scale are those of the image
    steps = [inputs for training, _, inputs in seen if training]
    assert not torch.equal(steps[0], steps[1])
    assert losses(trainer, "eval_output_image_loss")


def test_without_self_correction_inputs_are_those_of_the_codes(base, processor, tmp_path, monkeypatch):
    config = VargptConfig.from_pretrained(base)
    config.image_tokenizer_config.max_flip_rate = 0.0
    model = VargptForConditionalGeneration.from_pretrained(base, config=config)
    assert not model.model.image_tokenizer.corrects_itself
    apply_stage(model, "v1_1_stage3")
    seen, _ = fed(model, processor, tmp_path, monkeypatch)
    schedule = model.model.image_tokenizer.default_schedule
    assert all(torch.equal(inputs, model.model.image_tokenizer.decoder_inputs(codes, schedule)) for _, codes, inputs in seen)


def test_random_draws_follow_the_seed_and_resume(base, tmp_path):
    """Flips, dropped conditions and stochastic depth: a resumed run draws what an uninterrupted one does."""
    config = VargptConfig.from_pretrained(base)
    config.visual_decoder_config.drop_path_rate = config.visual_decoder_config.condition_dropout = 0.3
    processor = VargptProcessor.from_pretrained(base)

    def run(folder, seed=0, resume=None):
        model = VargptForConditionalGeneration.from_pretrained(base, config=config)
        apply_stage(model, "v1_1_stage3")
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2, "seed": seed, "data_seed": 0}
        trainer = trainer_of(model, processor, tmp_path / folder, **options)
        trainer.train(resume_from_checkpoint=resume)
        return losses(trainer)

    straight = run("a")
    assert run("b") == straight
    assert run("a", resume=str(tmp_path / "a" / "checkpoint-2")) == straight
    assert run("c", seed=1) != straight


def test_training_goes_on_after_inference_mode(loaded, processor):
    """What a pass of it keeps for the next must be of use to training, too."""
    model, batch = copy.deepcopy(loaded), VargptDataCollator(processor)(MIXED)
    rotary_table.cache_clear()
    with torch.inference_mode():
        model(**batch)
    model.train()(**batch).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.model.visual_decoder.layers.parameters())


def test_evaluation_draws_nothing(base, processor, tmp_path):
    config = VargptConfig.from_pretrained(base)
    config.visual_decoder_config.drop_path_rate = config.visual_decoder_config.condition_dropout = 0.9
    model = VargptForConditionalGeneration.from_pretrained(base, config=config)
    trainer = trainer_of(model, processor, tmp_path, eval_rows=MIXED)
    first, again = (trainer.evaluate()["eval_output_image_loss"] for _ in range(2))
    assert first == again
    plain = VargptForConditionalGeneration.from_pretrained(base).eval()
    with torch.no_grad():
        wanted = plain(**VargptDataCollator(processor)(MIXED)).output_image_loss.item()
    assert first == pytest.approx(wanted, rel=1e-5)


def test_scales_can_be_weighed(base, tmp_path):
    script, training, model_config = parse(write_config(tmp_path, base, stage="v1_1_stage3", image_scale_power=0.5))
    trainer, _ = make_trainer(script, training, model_config)
    assert (trainer.model.config.image_scale_power, trainer.model.config.image_loss_weight) == (0.5, 3.0)


# ---- codes ahead


def test_codes_ahead_hold_32_bits_and_say_what_they_lack(base, model, processor, tmp_path, capsys):
    Dataset.from_list(ROWS, features=ROW_FEATURES).save_to_disk(tmp_path / "rows")
    encode_rows(load_rows(tmp_path / "rows"), base, tmp_path / "codes")
    assert "carry no self-correction" in capsys.readouterr().out
    collator = VargptDataCollator(processor)
    pixels, codes = (collator(list(load_rows(tmp_path / name))) for name in ("rows", "codes"))
    found = codes["output_image_codes"]
    assert found.dtype == torch.long and found.max() >= 2**31  # beyond a signed 32-bit number
    assert torch.equal(model.model.image_tokenizer.encode(pixels["output_pixel_values"]), found)
    options = {"max_steps": 1, "save_strategy": "no", "sample_prompts": []}
    train(write_config(tmp_path, base, stage="v1_1_stage3", train_data=str(tmp_path / "codes"), **options))
    assert "draws   Codes made ahead carry no self-correction" in capsys.readouterr().out
    train(write_config(tmp_path, base, stage="v1_1_stage3", output_dir=str(tmp_path / "other"), **options))
    assert "draws   with self-correction: in every step" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"schedules": [[1, 2, 3, 4]]}, {"latent_channels": 16}, {}], ids=["schedules", "bits", "weights"])
def test_codes_of_another_image_tokenizer_are_told_by_the_fingerprint(base, model, change):
    torch.manual_seed(1)
    other = VargptBSQModel(VargptBSQConfig(**{**TOKENIZER, **change}))
    assert other.fingerprint() != model.model.image_tokenizer.fingerprint()
    if not change:
        other.load_state_dict(model.model.image_tokenizer.state_dict())
        assert other.fingerprint() == model.model.image_tokenizer.fingerprint()
        for dtype in (torch.bfloat16, torch.float16):
            loaded = VargptForConditionalGeneration.from_pretrained(base, dtype=dtype)
            assert loaded.model.image_tokenizer.fingerprint() == other.fingerprint()


# ---- preferences


def pair(prompt, chosen, rejected, seed=0):
    good, bad = row(prompt, chosen, seed), row(prompt, rejected, seed + 50)
    answers = {"chosen": [good["messages"][1]], "rejected": [bad["messages"][1]]}
    images = {"images": good["images"], "chosen_images": good["output_images"], "rejected_images": bad["output_images"]}
    return {"prompt": [good["messages"][0]], **answers, **images}


PAIRS = [
    pair(["draw noise"], ["output_image"], ["output_image"], 2),
    pair(["image", "draw it again"], ["output_image", "so"], ["the second"], 3),
]


def preference_trainer(model, processor, tmp_path, **arguments):
    defaults = {"per_device_train_batch_size": 2, "save_strategy": "no", "disable_tqdm": True, "max_steps": 1}
    config = VargptDPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, logging_steps=1, **{**defaults, **arguments})
    dataset = Dataset.from_list(PAIRS, features=PREFERENCE_FEATURES)
    return VargptDPOTrainer(model, args=config, train_dataset=dataset, processing_class=processor)


@pytest.mark.parametrize("adapted", [False, True], ids=["copy", "LoRA"])
def test_policy_and_reference_share_all_draws(adapted, base, processor, tmp_path):
    """Two equal models: no margin at the first step, although bits are flipped."""
    config = VargptConfig.from_pretrained(base)
    config.visual_decoder_config.drop_path_rate = config.visual_decoder_config.condition_dropout = 0.9
    model = VargptForConditionalGeneration.from_pretrained(base, config=config)
    tokenizer = model.model.image_tokenizer
    if adapted:
        model = get_peft_model(model, lora_config("draw"))
    trainer = preference_trainer(model, processor, tmp_path)
    inputs = VargptPreferenceCollator(processor)(PAIRS)
    loss, outputs = trainer.compute_loss(trainer.model.train(), inputs, return_outputs=True)
    assert not torch.equal(outputs.output_image_codes, tokenizer.encode(inputs["output_pixel_values"]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    trainer.log({})
    log = trainer.state.log_history[-1]
    # CPUs may round a copy's sums of log-probabilities otherwise in the last bit.
    assert [log[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == pytest.approx([0.0] * 3, abs=1e-5)
    trainer.model.eval()
    with torch.no_grad():
        _, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    assert torch.equal(outputs.output_image_codes, tokenizer.encode(inputs["output_pixel_values"]))


def test_log_probabilities_are_sums_over_bits(model, processor, tmp_path):
    trainer = preference_trainer(model, processor, tmp_path)
    inputs = VargptPreferenceCollator(processor)(PAIRS[:1])
    with torch.no_grad():
        answers, outputs = trainer.answer_log_probs(trainer.model.eval(), inputs)
    bits = (outputs.output_image_codes[..., None] >> torch.arange(BITS)) & 1
    by_hand = outputs.output_image_logits.log_softmax(-1).gather(-1, bits[..., None]).sum((1, 2, 3))
    torch.testing.assert_close(answers.images, by_hand)


def test_inputs_are_given_with_their_codes(model):
    ids = torch.tensor([[1, 6, model.config.output_image_start_token_id, *[model.config.output_image_token_id] * 21, 2]])
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    first = model.train()(input_ids=ids, output_pixel_values=pixels)
    given = {"output_image_codes": first.output_image_codes, "output_image_inputs": first.output_image_inputs}
    assert torch.equal(model(input_ids=ids, **given).output_image_logits, first.output_image_logits)
    with pytest.raises(ValueError, match="`output_image_inputs` go with `output_image_codes`"):
        model(input_ids=ids, output_pixel_values=pixels, output_image_inputs=first.output_image_inputs)
    with pytest.raises(ValueError, match=r"`output_image_inputs` must have the shape \(1, 20, 32\).*got \(1, 19, 32\)"):
        model(input_ids=ids, **{**given, "output_image_inputs": first.output_image_inputs[:, 1:]})


# ---- stage files


EXAMPLES = Path(__file__).parents[2] / "examples" / "paper_v1_1"
COURSE = ["stage1", "stage2", "sft_256", "dpo_256", "sft_512", "dpo_512", "edit"]


def test_the_course_is_whole():
    assert sorted(path.stem for path in EXAMPLES.glob("*.yaml")) == sorted(COURSE)
    given = [yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()) for name in COURSE]
    assert [each["model_name_or_path"] for each in given] == ["runs/paper_v1_1/start", *(each["output_dir"] for each in given[:-1])]
    assert [each.get("image_budget") for each in given] == ["0.06M", None, "0.06M", "0.06M", "0.25M", "0.25M", "0.25M"]
    assert [each.get("max_steps") for each in given] == [None, None, 40_000, 5_000, 30_000, 3_000, None]


@pytest.mark.parametrize("name", COURSE)
def test_the_examples_of_paper_size_are_read(name, base, tmp_path, monkeypatch):
    """As they stand: with the folders and the model that they name, wherever they are."""
    given = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    for source in given["train_data"] if isinstance(given["train_data"], list) else [{"path": given["train_data"]}]:
        path = Path(source["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()
    shutil.copytree(base, given["model_name_or_path"])
    script, training, _ = parse(EXAMPLES / f"{name}.yaml", ["--use_cpu", "true"])
    assert (training.bf16, training.gradient_checkpointing) == (True, True)
    assert (script.method, type(training)) == (("dpo", VargptDPOConfig) if "dpo" in name else ("sft", VargptSFTConfig))
    assert (script.stage, training.learning_rate) == (given["stage"], given["learning_rate"])


def test_preferences_are_trained_from_a_file(base, tmp_path, capsys):
    Dataset.from_list(PAIRS * 2, features=PREFERENCE_FEATURES).save_to_disk(tmp_path / "pairs")
    keys = {"stage": "v1_1_stage3", "method": "dpo", "train_data": str(tmp_path / "pairs"), "beta": 0.2, "max_steps": 2}
    file = write_config(tmp_path, base, **keys, per_device_train_batch_size=1)
    train(file, dry_run=True)
    assert "Dry run: everything works" in capsys.readouterr().out and not (tmp_path / "out").exists()
    train(file)
    assert "draws   with self-correction" in capsys.readouterr().out
    before, after = (VargptForConditionalGeneration.from_pretrained(folder) for folder in (base, tmp_path / "out"))
    changed = {name.split(".")[1] for name, value in after.named_parameters() if not torch.equal(value, before.get_parameter(name))}
    assert changed == {"visual_decoder", "projector_to_llm", "projector_to_decoder"}
    VargptProcessor.from_pretrained(tmp_path / "out")


def test_preferences_are_trained_from_several_datasets(base, tmp_path):
    """By weight; one with drawings, one of texts without any column of images."""
    Dataset.from_list(PAIRS, features=PREFERENCE_FEATURES).save_to_disk(tmp_path / "drawings")
    said = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ("hello", "go away")]
    texts = [{"prompt": ROWS[0]["messages"][:1], "chosen": said[0], "rejected": said[1]}] * 4
    Dataset.from_list(texts).save_to_disk(tmp_path / "texts")
    sources = [{"path": str(tmp_path / "drawings"), "weight": 3.0}, {"path": str(tmp_path / "texts")}]
    mixed = mix_pairs(sources_of(sources))
    counts = Counter(mixed["source"])
    assert counts[0] > counts[1] >= 1 and {len(row["chosen_images"]) for row in mixed if row["source"] == 1} == {0}
    keys = {"stage": "v1_1_stage3", "method": "dpo", "train_data": sources, "max_steps": 2, "per_device_train_batch_size": 2}
    train(write_config(tmp_path, base, save_strategy="no", **keys))
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "grpo"}, "`method` is 'grpo'; it must be one of sft, dpo"),
        ({"method": "dpo", "prompt_dropout": 0.1}, "unknown key `prompt_dropout`"),
        ({"method": "dpo", "packing": True}, "unknown key `packing`"),
        ({"beta": 0.1}, "unknown key `beta`"),
        ({"image_budget": "2M"}, "`budget` must be one of 0.06M, 0.25M, 0.60M, 1M, got '2M'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_the_method_is_refused(base, tmp_path, monkeypatch, keys, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        parse(write_config(tmp_path, base, stage="v1_1_stage3", **keys))


def test_edits_are_drawn_where_they_were_read(base, tmp_path):
    """Without the margin that is cropped away; the processor that is saved keeps it so."""
    keys = {"stage": "v1_1_stage3", "max_steps": 1, "save_strategy": "no", "sample_prompts": []}
    script, training, model_config = parse(write_config(tmp_path, base, resize_factor=1.25, **keys))
    trainer, _ = make_trainer(script, training, model_config)
    assert trainer.data_collator.processor.output_image_processor.resize_factor == 1.25
    trainer.save_whole_model(tmp_path / "out")
    assert VargptProcessor.from_pretrained(tmp_path / "out").output_image_processor.resize_factor == 1.25
    with pytest.raises(ValueError, match=r"`resize_factor` must be a number from 1 on, got 0.5"):
        parse(write_config(tmp_path, base, resize_factor=0.5, **keys))
    assert yaml.safe_load((EXAMPLES / "edit.yaml").read_text())["resize_factor"] == 1.0


def test_another_image_size_from_a_stage_on(base, tmp_path):
    """Schedules are no weights: the same model draws larger images, and what is saved says so."""
    options = {"max_steps": 1, "save_strategy": "no", "sample_prompts": [], "image_budget": "0.06M", "per_device_train_batch_size": 1}
    train(write_config(tmp_path, base, stage="v1_1_stage3", **options))
    loaded, processor = VargptForConditionalGeneration.from_pretrained(tmp_path / "out"), VargptProcessor.from_pretrained(tmp_path / "out")
    assert loaded.config.schedules[0].num_positions == processor.output_image_processor.num_positions[0] == 521
    assert loaded.config.visual_decoder_config.reference_grids == [[64, 64]]
    assert processor.output_image_processor.sizes == [(64, 64)]  # this tokenizer's positions have 4 pixels a side


def test_a_decoder_for_one_schedule_keeps_it():
    with pytest.raises(ValueError, match="are for its own schedules: leave `image_budget` out"):
        with_image_budget(tiny_config(), "0.06M")


# ---- adapters


def test_adapters_reach_the_cross_attention(qwen):
    adapted = get_peft_model(VargptForConditionalGeneration(qwen.config), lora_config("draw"))
    for layer in adapted.get_base_model().model.visual_decoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert hasattr(getattr(layer.cross_attn, name), "lora_A") and hasattr(getattr(layer.self_attn, name), "lora_A")
    adapted.train()
    torch.manual_seed(0)
    adapted(**mixed_batch(adapted)).loss.backward()
    missing = [name for name, parameter in adapted.named_parameters() if ".cross_attn." in name and "lora_" in name and parameter.grad is None]
    assert not missing


def test_what_is_not_quantized_covers_the_drawing_side(qwen):
    kept = unquantized_modules(model=qwen)
    linears = [name for name, module in qwen.named_modules() if isinstance(module, torch.nn.Linear)]
    quantized = [name for name in linears if not any(name == each or name.startswith(f"{each}.") for each in kept)]
    assert quantized and all(name.startswith("model.vlm.language_model.") for name in quantized)
