"""DPO on drawings and text: losses by hand and by TRL, the reference, batches, errors."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from micro import image, row
from peft import LoraConfig, get_peft_model
from trl import DPOTrainer

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.modeling.visual_decoder_vargpt import GENERATE_CONDITION
from vargpt_hf.peft import lora_config
from vargpt_hf.training.guards import TrainingStopped, checkpoints_of
from vargpt_hf.training.preference import (
    LOSSES,
    PREFERENCE_CODES_FEATURES,
    PREFERENCE_FEATURES,
    VargptDPOConfig,
    VargptDPOTrainer,
    VargptPreferenceCollator,
)
from vargpt_hf.training.stages import apply_stage


def pair(user: list, chosen: list, rejected: list, seed: int = 0) -> dict:
    """A pair whose parts are texts, "image" or "output_image"."""
    good, bad = row(user, chosen, seed), row(user, rejected, seed + 50)
    prompt, answer = good["messages"]
    images = {"images": good["images"], "chosen_images": good["output_images"], "rejected_images": bad["output_images"]}
    return {"prompt": [prompt], "chosen": [answer], "rejected": [bad["messages"][1]], **images}


TEXT = pair(["say hello"], ["hello"], ["a longer thing than the others"])
DRAWN = pair(["draw noise"], ["output_image"], ["output_image"], 2)
ONE_SIDE = pair(["image", "draw it again"], ["output_image", "so"], ["the second"], 3)
MIXED = pair(["draw two"], ["first", "output_image", "then", "output_image"], ["output_image"], 4)
PAIRS = [TEXT, DRAWN, ONE_SIDE, MIXED]
KINDS = {"text": [TEXT], "images": [DRAWN], "one side": [ONE_SIDE], "mixed": [MIXED], "all": PAIRS}


def dataset_of(pairs: list[dict]) -> Dataset:
    return Dataset.from_list(pairs, features=PREFERENCE_FEATURES)


def trainer_of(model, processor, tmp_path, pairs=PAIRS, **arguments) -> VargptDPOTrainer:
    more = {name: arguments.pop(name) for name in ("peft_config", "ref_model", "eval_dataset") if name in arguments}
    defaults = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True, "max_steps": 2}
    config = VargptDPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, logging_steps=1, **{**defaults, **arguments})
    return VargptDPOTrainer(model, args=config, train_dataset=dataset_of(pairs), processing_class=processor, **more)


def moved(model):
    """The model, a little way from where it was, with the same image tokenizer."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in (parameter for name, parameter in model.named_parameters() if "image_tokenizer" not in name):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def log_prob_by_hand(model, processor, given: dict, side: str, weights: torch.Tensor) -> tuple[float, int]:
    """Log-probability of one answer, token by token and code by code, from a row of its own; and how many of both there are."""
    inputs = processor.apply_chat_template(
        [given["prompt"] + given[side]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={
            name: [images] for name, images in (("images", given["images"]), ("output_images", given[f"{side}_images"])) if images
        },
    )
    prompt = processor.apply_chat_template([given["prompt"]], add_generation_prompt=True, tokenize=False)[0]
    start = processor.tokenizer(prompt, return_tensors="pt")["input_ids"].shape[1]
    start += len(given["images"]) * (processor.typical_lengths()["image"] - 1)
    drawn = len(given[f"{side}_images"])
    conditions = {"output_image_condition_ids": torch.full((drawn,), GENERATE_CONDITION)} if drawn else {}
    with torch.no_grad():
        output = model.eval()(**inputs, **conditions)
    ids, total, count = inputs["input_ids"][0], 0.0, 0
    for place in range(start, len(ids)):
        if ids[place] != model.config.output_image_token_id:
            total += output.logits[0, place - 1].log_softmax(-1)[ids[place]].item()
            count += 1
    for number in range(drawn):
        for place, code in enumerate(output.output_image_codes[number]):
            total += weights[place].item() * output.output_image_logits[number, place, 0].log_softmax(-1)[code].item()
            count += 1
    return total, count


def by_hand(kind: str, beta: float, policy: tuple, reference: tuple) -> float:
    """A pair's loss from (log-probability, targets) of the chosen and the rejected answer."""
    (chosen, num_chosen), (rejected, num_rejected) = policy
    up, down = chosen - reference[0][0], rejected - reference[1][0]
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    return {
        "sigmoid": -math.log(sigmoid(beta * (up - down))),
        "hinge": max(0.0, 1 - beta * (up - down)),
        "ipo": (up / num_chosen - down / num_rejected - 1 / (2 * beta)) ** 2,
        "apo_zero": 1 - sigmoid(beta * up) + sigmoid(beta * down),
        "sft": -chosen / num_chosen,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0.0, 0.5])
def test_losses_are_those_by_hand(kind, power, model, processor, tmp_path):
    pairs, reference = KINDS[kind], copy.deepcopy(model)
    trainer = trainer_of(model, processor, tmp_path, pairs, image_scale_power=power)
    moved(model)
    inputs = VargptPreferenceCollator(processor)(pairs)
    areas = torch.tensor([1.0] + [4.0] * 4 + [16.0] * 16)
    weights = (16 / areas) ** power
    weights = weights / weights.mean()
    known = [
        [[log_prob_by_hand(m, processor, each, side, weights) for side in ("chosen", "rejected")] for each in pairs] for m in (model, reference)
    ]
    for name in LOSSES:
        trainer.loss_types = [name]
        loss = trainer.compute_loss(model.train(), inputs).item()
        assert loss == pytest.approx(sum(by_hand(name, 0.1, *answers) for answers in zip(*known)) / len(pairs), rel=1e-4), name
    chosen = [answers[0][0] for answers in known[0]]
    trainer.log({})
    assert trainer.state.log_history[-1]["logps/chosen"] == pytest.approx(sum(chosen) / len(chosen), rel=1e-5)


def test_losses_of_text_are_trls(model, processor, tmp_path):
    pairs = [TEXT, pair(["say it"], ["hello", "hello"], ["noise"])]
    trainer = trainer_of(model, processor, tmp_path, pairs)
    moved(model)
    inputs = VargptPreferenceCollator(processor)(pairs)
    theirs = {name: value for name, value in inputs.items() if name != "labels"}
    theirs["completion_mask"] = (inputs["labels"] != -100).long()
    for name in LOSSES.keys() - {"sft"}:  # theirs is a mean over the batch's tokens, not over the rows
        trainer.loss_types = [name]
        loss = trainer.compute_loss(model, inputs)
        with torch.no_grad():
            assert loss.item() == pytest.approx(DPOTrainer._compute_loss(trainer, model, theirs, False).item(), rel=1e-5), name


def test_a_policy_that_is_the_reference_has_no_rewards(model, processor, tmp_path):
    model.config.visual_decoder_config.condition_dropout = 1.0  # which would show if it were not off
    trainer = trainer_of(model, processor, tmp_path)
    loss = trainer.compute_loss(model.train(), VargptPreferenceCollator(processor)(PAIRS))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    trainer.log({})
    log = trainer.state.log_history[-1]
    # CPUs may round the reference's sums of log-probabilities otherwise in the last bit.
    assert [log[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == pytest.approx([0.0] * 3, abs=1e-5)


def test_nothing_is_dropped_at_random(base, processor, tmp_path):
    config = VargptConfig.from_pretrained(base)
    config.visual_decoder_config.drop_path_rate = config.visual_decoder_config.condition_dropout = 0.9
    model = VargptForConditionalGeneration.from_pretrained(base, config=config)
    trainer = trainer_of(model, processor, tmp_path)
    inputs = VargptPreferenceCollator(processor)([DRAWN])
    assert trainer.compute_loss(model.train(), inputs).item() == pytest.approx(math.log(2), abs=1e-6)


def test_log_probs_do_not_depend_on_neighbours(model, processor, tmp_path):
    trainer, collator = trainer_of(model, processor, tmp_path), VargptPreferenceCollator(processor)

    def scored(pairs):
        with torch.no_grad():
            answers = trainer.answer_log_probs(model, collator(pairs))[0]
        return [torch.stack([half, other]) for half, other in zip(*torch.stack([answers.text, answers.images], 1).chunk(2))]

    alone = {id(each): scored([each])[0] for each in PAIRS}
    for order in (PAIRS, PAIRS[::-1], PAIRS[1:3]):
        for each, found in zip(order, scored(order)):
            torch.testing.assert_close(found, alone[id(each)], atol=1e-4, rtol=1e-5)


def test_codes_stand_in_for_images(model, processor, tmp_path):
    trainer, collator = trainer_of(moved(model), processor, tmp_path), VargptPreferenceCollator(processor)
    with torch.no_grad():
        pixels, outputs = trainer.answer_log_probs(model, collator(PAIRS))
    codes, coded = iter(outputs.output_image_codes.tolist()), [dict(each) for each in PAIRS]
    for side in ("chosen", "rejected"):
        for each in coded:
            each[f"{side}_codes"] = [next(codes) for _ in each.pop(f"{side}_images")]
    dataset = Dataset.from_list([{**each, "image_tokenizer_fingerprint": None} for each in coded], features=PREFERENCE_CODES_FEATURES)
    with torch.no_grad():
        found, _ = trainer.answer_log_probs(model, collator(list(dataset)))
    torch.testing.assert_close(found.total, pixels.total)


def test_only_the_answer_counts(processor):
    """Not what the assistant has said before it, in a prompt with an image."""
    collator = VargptPreferenceCollator(processor)
    history = row(["image", "what is it"], ["noise"], 1)["messages"]
    inputs = collator([{**TEXT, "prompt": history + TEXT["prompt"], "images": [image(1)]}, DRAWN])
    said = [processor.tokenizer.decode(ids[labels != -100]) for ids, labels in zip(inputs["input_ids"], inputs["labels"])]
    alone = collator([TEXT, DRAWN])
    assert said == [processor.tokenizer.decode(ids[labels != -100]) for ids, labels in zip(alone["input_ids"], alone["labels"])]
    assert said[0] == " hello</s>"
    assert all(
        torch.equal(collator([{**TEXT, "prompt": "say hello", "chosen": "hello"}])[name], value) for name, value in collator([TEXT]).items()
    )


def test_lora_presets_refer_to_the_base_model(model, processor, tmp_path):
    before = copy.deepcopy(model)
    trainer = trainer_of(model, processor, tmp_path, peft_config=lora_config("draw"), max_steps=3)
    assert trainer.ref_model is None
    trainer.train()
    log = trainer.state.log_history
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(log[2]["rewards/margins"]) > 1e-3
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert any(".modules_to_save." in name for name in trained) and any(".lora_B." in name for name in trained)
    inputs = VargptPreferenceCollator(processor)(PAIRS)
    reference = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))
    with torch.no_grad():
        base = trainer.answer_log_probs(before, inputs)[0].total
        policy = trainer.answer_log_probs(trainer.model, inputs)[0].total
    torch.testing.assert_close(reference, base, rtol=1e-6, atol=1e-5)
    assert not torch.allclose(policy, base)
    assert trained == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def test_adapters_that_come_along_refer_to_their_copy(model, processor, tmp_path):
    wrapped = get_peft_model(model, LoraConfig(target_modules=["fc1", "q_proj"], modules_to_save=["head"], init_lora_weights=False))
    apply_stage(wrapped, "stage3")
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    before = copy.deepcopy(wrapped)
    trainer = trainer_of(wrapped, processor, tmp_path, max_steps=3)
    trainer.train()
    assert trained == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    inputs = VargptPreferenceCollator(processor)(PAIRS)
    with torch.no_grad():
        start = trainer.answer_log_probs(before, inputs)[0].total
        end = trainer.answer_log_probs(trainer.model, inputs)[0].total
    assert torch.equal(torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs)), start) and not torch.allclose(start, end)


def test_a_given_reference_is_used_and_left_as_it_is(base, model, processor, tmp_path):
    given = moved(VargptForConditionalGeneration.from_pretrained(base))
    weights = {name: parameter.clone() for name, parameter in given.named_parameters()}
    apply_stage(model, "stage3")
    trainer = trainer_of(model, processor, tmp_path, ref_model=given)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/margins"] != 0
    assert all(torch.equal(parameter, weights[name]) for name, parameter in given.named_parameters())


@pytest.mark.parametrize("lora", [False, True], ids=["stage3", "lora"])
def test_training_raises_the_margin_of_drawings(lora, model, processor, tmp_path):
    if not lora:
        apply_stage(model, "stage3")
    options = {"peft_config": lora_config("draw", init_lora_weights=True)} if lora else {}
    trainer = trainer_of(model, processor, tmp_path, [DRAWN, MIXED], max_steps=8, learning_rate=3e-3, **options)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert last["rewards/margins"] > first["rewards/margins"] + 0.5 and last["loss"] < 0.8 * first["loss"]
    assert last["rewards/accuracies"] == 1
    for side in ("chosen", "rejected"):
        assert last[f"logps/{side}"] == pytest.approx(last[f"logps/{side}_text"] + last[f"logps/{side}_images"], rel=1e-5)


def test_accumulation_does_not_change_the_step(base, processor, tmp_path):
    results = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        model = VargptForConditionalGeneration.from_pretrained(base)
        apply_stage(model, "pretrain")
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        trainer = trainer_of(model, processor, tmp_path, **options, max_grad_norm=0.0, optim="sgd")
        trainer.train()
        results.append((trainer.state.log_history[0], {name: p.detach() for name, p in model.named_parameters()}))
    for log, weights in results[1:]:
        for name in ("loss", "logps/chosen", "logps/rejected_images", "num_tokens"):
            assert log[name] == pytest.approx(results[0][0][name], rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, results[0][1][name], atol=1e-6, rtol=1e-4)


def test_evaluation_does_not_depend_on_its_batches(model, processor, tmp_path):
    figures = []
    for batch_size in (4, 3):
        trainer = trainer_of(copy.deepcopy(model), processor, tmp_path, per_device_eval_batch_size=batch_size, eval_dataset=dataset_of(PAIRS))
        moved(trainer.model)
        figures.append(trainer.evaluate())
    assert figures[0]["eval_rewards/margins"] != 0
    for name in (name for name in figures[0] if "/" in name or name == "eval_loss"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-4), name
    assert trainer.evaluate(dataset_of([TEXT]))["eval_logps/chosen_images"] == 0


def test_batches_without_drawings_leave_the_drawing_side_as_it_is(model, processor, tmp_path):
    apply_stage(model, "stage3")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer_of(model, processor, tmp_path, [TEXT, TEXT], weight_decay=0.0).train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_sharded_weights_run_every_part_in_every_batch(model, processor, tmp_path, monkeypatch):
    """As where an engine shards them: the trainer tells the collator, and pairs of texts get the same loss, with a way back to all parts."""
    plain = trainer_of(model, processor, tmp_path)
    expected = plain.compute_loss(plain.model, plain.data_collator([TEXT]))
    make = VargptDPOTrainer.create_accelerator_and_postprocess

    def sharded(self) -> None:
        make(self)
        self.is_deepspeed_enabled = True

    monkeypatch.setattr(VargptDPOTrainer, "create_accelerator_and_postprocess", sharded)
    with monkeypatch.context() as patch:
        patch.setattr("trl.trainer.dpo_trainer.prepare_deepspeed", lambda model, accelerator: model)
        trainer = trainer_of(model, processor, tmp_path, ref_model=plain.ref_model)
    inputs = trainer.data_collator([TEXT])
    assert "blank_image" in inputs and inputs["output_pixel_values"].shape[0] == 0
    loss = trainer.compute_loss(trainer.model, inputs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    parts = [getattr(trainer.model.model, name) for name in ("visual_decoder", "projector_to_llm", "projector_to_decoder", "vlm")]
    assert all(any(parameter.grad is not None for parameter in part.parameters()) for part in parts)
    assert any(parameter.grad is not None for parameter in trainer.model.model.vlm.vision_tower.parameters())


def test_checkpoints_resume(base, processor, tmp_path):
    def run(resume):
        model = VargptForConditionalGeneration.from_pretrained(base)
        options = {"peft_config": lora_config("draw"), "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        trainer = trainer_of(model, processor, tmp_path, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.log_history[-2]

    straight = run(None)
    resumed = run(str(tmp_path / "checkpoint-2"))
    assert resumed["logps/chosen"] == straight["logps/chosen"] and resumed["rewards/margins"] == straight["rewards/margins"]


def test_runs_that_go_wrong_stop(base, model, processor, tmp_path):
    """As those of supervised training: a run at its end, a loss that is not finite, a pair that cannot be read."""
    kept = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer_of(model, processor, tmp_path, **kept).train()
    again = trainer_of(VargptForConditionalGeneration.from_pretrained(base), processor, tmp_path, **kept)
    assert again.train(resume_from_checkpoint=True).global_step == 2
    assert [folder.name for folder in checkpoints_of(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    blows_up = {"optim": "sgd", "learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 8}
    with pytest.raises(TrainingStopped, match=r"not finite (at|after) step \d.*last complete checkpoint is .*checkpoint-2 \(step 2\)"):
        trainer_of(model, processor, tmp_path, **blows_up).train()
    broken = dataset_of([{**DRAWN, "chosen_images": [{"bytes": b"no image", "path": None}]}])
    trainer = trainer_of(VargptForConditionalGeneration.from_pretrained(base), processor, tmp_path)
    trainer.train_dataset = broken
    with pytest.raises(TrainingStopped, match="No batch could be made for step 1: Row 0 cannot be read: .*cannot identify image"):
        trainer.train()


def test_what_cannot_be_is_refused(model, processor, tmp_path):
    collator = VargptPreferenceCollator(processor, max_length=60)
    with pytest.raises(ValueError, match="Pair 1 of the batch needs a column 'rejected' that is not empty"):
        collator([TEXT, {**TEXT, "rejected": []}])
    with pytest.raises(ValueError, match="prompt of pair 0 .* only answers may draw"):
        collator([{**DRAWN, "prompt": DRAWN["prompt"] + DRAWN["chosen"]}])
    with pytest.raises(ValueError, match=r"Pair 1 of the batch has \d+ tokens with its chosen answer, more than max_length=60"):
        collator([TEXT, MIXED])
    with pytest.raises(ValueError, match="In row 1, .* the second the rejected ones"):
        collator([{**DRAWN, "rejected_images": []}])
    with pytest.raises(ValueError, match="codes of another image tokenizer"):
        coded = {**DRAWN, "chosen_images": [], "rejected_images": [], "chosen_codes": [[0] * 21], "rejected_codes": [[1] * 21]}
        trainer = trainer_of(model, processor, tmp_path)
        trainer.data_collator([{**coded, "image_tokenizer_fingerprint": "another"}])
    with pytest.raises(ValueError, match="There is no loss_type 'aot' for drawings; there are sigmoid, hinge, ipo, apo_zero, sft"):
        trainer_of(model, processor, tmp_path, loss_type=["sigmoid", "aot"])
    for setting in ({"precompute_ref_log_probs": True}, {"ld_alpha": 0.5}, {"use_weighting": True}, {"label_smoothing": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*: not supported where answers may draw"):
            trainer_of(model, processor, tmp_path, **setting)
    with pytest.raises(ValueError, match="`image_scale_power` must not be negative, got -1"):
        VargptDPOConfig(str(tmp_path), image_scale_power=-1)
    with pytest.raises(ValueError, match="give VargptForConditionalGeneration.from_pretrained"):
        trainer_of("some/model", processor, tmp_path)
    with pytest.raises(ValueError, match="give it as `processing_class`"):
        VargptDPOTrainer(SimpleNamespace(), train_dataset=dataset_of(PAIRS))
