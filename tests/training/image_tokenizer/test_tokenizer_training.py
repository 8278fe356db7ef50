"""Image tokenizers learn, resume to the bit, stop where something is wrong, and leave alone what is frozen."""

import pytest
import torch
from tokenizer_micro import EVERYTHING, images, pixels_of, settings, tokenizer, trainer
from transformers import TrainerCallback

from vargpt_hf.evaluation.image_tokenizers import measure
from vargpt_hf.training.guards import TrainingStopped, checkpoints_of, last_complete_checkpoint
from vargpt_hf.training.image_tokenizer.codebook import fit_quantizer, residuals_of, revive_codes
from vargpt_hf.training.image_tokenizer.loading import load_image_tokenizer
from vargpt_hf.training.image_tokenizer.trainer import VargptImageTokenizerTrainer


class At(TrainerCallback):
    """Does something at the end of given steps."""

    def __init__(self, act, *steps):
        self.act, self.steps = act, steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.act(state.global_step)


def stop(step):
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_both_kinds_learn(kind, tmp_path):
    given = {"revive_every": 10, "l2_weight": 3.0} if kind == "vq" else {}
    run = trainer(tmp_path, kind, max_steps=60, learning_rate=5e-3, ema_decay=0.9, warmup_steps=5, **given)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_psnr"] > before["eval_psnr"] + 2.5  # dB
    run.save_image_tokenizer(tmp_path)
    saved = load_image_tokenizer(tmp_path)
    assert type(saved) is type(run.image_tokenizer)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in run.model.best.state_dict().items())
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())  # nothing half-written stays


def test_all_terms_are_logged(tmp_path):
    run = trainer(tmp_path, **EVERYTHING, max_steps=4, logging_steps=1)
    run.train()
    first, *_, last, _ = run.state.log_history
    assert {"l1", "color", "edge", "quantization", "codes_in_use"} <= set(first)
    assert not {"adversarial", "discriminator"} & set(first)  # which start at step 3
    terms = ("l1", "color", "edge", "quantization", "adversarial", "discriminator")
    assert last["loss"] == pytest.approx(sum(last[name] for name in terms), rel=1e-4)
    assert {"adaptive_weight", "real_score", "fake_score"} <= set(last)


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_mixed_precision_makes_nearly_the_steps_of_float32(kind, tmp_path):
    """With a discriminator, too; weights stay float32. Terms that small errors change a lot, edges and scores, are left out."""
    given = {**EVERYTHING, "adversarial_start": 0, "learning_rate": 1e-3, "max_steps": 3, "logging_steps": 1}
    runs = [trainer(tmp_path / str(bf16), kind, bf16=bf16, **given) for bf16 in (False, True)]
    for run in runs:
        run.train()
        assert {tensor.dtype for tensor in run.model.parameters()} == {torch.float32}
    names = ("l1", "color", "quantization")
    for wide, narrow in zip(*(run.state.log_history[:3] for run in runs)):
        assert {name: narrow[name] for name in names} == pytest.approx({name: wide[name] for name in names}, rel=0.05)
    assert runs[0].state.log_history[0]["l1"] != runs[1].state.log_history[0]["l1"]  # it was computed in another format


def test_the_discriminator_waits_for_its_start(tmp_path):
    run = trainer(tmp_path, **EVERYTHING)
    fresh = {name: value.clone() for name, value in run.model.discriminator.state_dict().items()}
    changed = {}

    def look(step):
        changed[step] = any(not torch.equal(value, fresh[name]) for name, value in run.model.discriminator.state_dict().items())

    run.add_callback(At(look, *range(1, 7)))
    run.train()
    assert changed == {step: step > 3 for step in range(1, 7)}


def test_gradients_of_each_network_are_clipped_apart(tmp_path):
    run = trainer(tmp_path, **EVERYTHING | {"adversarial_start": 0}, max_grad_norm=0.01, max_steps=1)
    norms = []

    class Look(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            for part in (run.model.image_tokenizer, run.model.discriminator):
                norms.append(torch.nn.utils.get_total_norm([weight.grad for weight in part.parameters() if weight.grad is not None]))

    run.add_callback(Look())
    run.train()
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_what_is_saved_is_the_average_of_the_weights(tmp_path):
    run = trainer(tmp_path, ema_decay=0.5)
    weights = []
    run.add_callback(At(lambda step: weights.append(run.image_tokenizer.last_layer.detach().clone()), *range(1, 7)))
    run.train()
    wanted = weights[0]
    for number, weight in enumerate(weights[1:], start=1):
        wanted = torch.lerp(wanted, weight, 1 - min(0.5, (1 + number) / (10 + number)))
    torch.testing.assert_close(run.model.best.last_layer, wanted)
    assert not torch.equal(run.model.best.last_layer, run.image_tokenizer.last_layer)


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(kind, tmp_path):
    """To the bit, with all that has a state: optimizer, discriminator, average, uses of codes, random crops, flips and scales."""
    given = {**EVERYTHING, "save_strategy": "steps", "save_steps": 2, "max_steps": 8, "gradient_accumulation_steps": 2}
    given |= {"coarse_share": 0.5, "per_device_train_batch_size": 4}
    if kind == "vq":
        given |= {"revive_every": 3, "revive_until": 1.0, "continuous_steps": 1}
    states = []
    for name in ("straight", "stopped"):
        run = trainer(tmp_path / name, kind, train=images(20, (20, 18)), **given)
        if name == "stopped":
            run.add_callback(At(stop, 5))
            with pytest.raises(KeyboardInterrupt):
                run.train()
            torch.manual_seed(99)
            run = trainer(tmp_path / name, kind, model=tokenizer(kind, seed=5), train=images(20, (20, 18)), **given)
            checkpoint = last_complete_checkpoint(tmp_path / name)
            assert checkpoint.endswith("checkpoint-4")
            run.train(resume_from_checkpoint=checkpoint)
        else:
            run.train()
        states.append(run.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    inside = load_image_tokenizer(tmp_path / "stopped/checkpoint-8/image_tokenizer").state_dict()
    assert all(torch.equal(value, run.model.best.state_dict()[name]) for name, value in inside.items())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)

    def break_it(step):
        with torch.no_grad():
            run.image_tokenizer.last_layer[0] = float("nan")

    run.add_callback(At(break_it, 3))
    with pytest.raises(TrainingStopped, match=r"The loss is nan at step 4 \(l1 nan, quantization .*checkpoint-2 \(step 2\): resume with"):
        run.train()
    with pytest.raises(TrainingStopped, match="not finite after step 3, and are not saved"):
        run.save_image_tokenizer(tmp_path / "out")
    assert [folder.name for folder in checkpoints_of(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_frozen_codes_stay_valid(kind, tmp_path):
    """The decoder learns; every image keeps its codes, and codes made ahead keep the tokenizer's fingerprint."""
    model, pixels = tokenizer(kind), pixels_of()
    codes, mark, decoded = model.encode(pixels), model.fingerprint(), model.decode(model.encode(pixels))
    run = trainer(tmp_path, kind, model=model, freeze="codes", ema_decay=0.9, **{k: v for k, v in EVERYTHING.items() if k != "ema_decay"})
    run.train()
    for trained in (run.image_tokenizer, run.model.best):
        assert torch.equal(trained.encode(pixels), codes) and trained.fingerprint() == mark
        assert not torch.allclose(trained.decode(codes), decoded, atol=1e-3)


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_a_frozen_encoder_stays_as_it_is(kind, tmp_path):
    model, pixels = tokenizer(kind), pixels_of()
    latents, mark = model.encode_latents(pixels).detach(), model.fingerprint()
    trainer(tmp_path, kind, model=model, freeze="encoder", max_steps=30).train()
    assert torch.equal(model.encode_latents(pixels), latents)
    assert kind == "bsq" or model.fingerprint() != mark  # the codebook has learned


def test_a_batch_has_the_schedule_of_its_first_image(tmp_path):
    model = tokenizer(schedules=[[1, 2, 4], [[1, 1], [2, 1], [4, 2]]])
    wide, tall = images(8), images(8, (8, 16))
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append((tuple(args[0].shape[2:]), output.codes.shape[1])))
    for data in (wide, tall):
        run = trainer(tmp_path, model=model, train=data, max_steps=1)
        run.train()
    assert seen == [((16, 16), 21), ((16, 8), 11)]
    report = measure(model, [pixels_of(2), pixels_of(3)[..., :8]])
    assert [(each["size"], each["images"]) for each in report.codes["schedules"]] == [([16, 16], 2), ([16, 8], 3)]
    assert [scale["grid"] for scale in report.codes["schedules"][1]["scales"]] == [[1, 1], [2, 1], [4, 2]]


def test_codes_that_nothing_uses_come_back(tmp_path):
    run = trainer(tmp_path, ema_decay=0.9, revive_every=2, max_steps=2, revive_until=1.0)
    codebook = run.image_tokenizer.quantizer.codebook.weight
    with torch.no_grad():
        codebook[5:] = 1e3  # far from every latent: never used
    run.train()
    assert (codebook.norm(dim=1) < 100).all() and run.model.hits.sum() == 0
    assert torch.equal(run.model.best.quantizer.codebook.weight[5:], codebook[5:])  # no mean of an old and a new place


def test_revived_codes_lie_where_something_is_left_to_code():
    model = tokenizer().eval()
    quantizer, schedule = model.quantizer, model.default_schedule
    latents = model.encode_latents(pixels_of()).float().detach()
    with torch.no_grad():
        quantizer.codebook.weight[5:] = 1e3
    residuals, errors = residuals_of(quantizer, schedule, latents)
    revive_codes(quantizer, schedule, torch.arange(24) >= 5, latents)
    distances = torch.cdist(quantizer.codebook.weight[5:], residuals, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() < 1e-5  # each sits on something that was to be coded
    assert errors[distances.argmin(1)].mean() > errors.mean()  # rather where the code in use was far


def test_residuals_are_what_encoding_saw():
    model = tokenizer().eval()
    latents = model.encode_latents(pixels_of(2)).detach()
    residuals, errors = residuals_of(model.quantizer, model.default_schedule, latents)
    codes = model.quantizer.encode(latents, model.default_schedule)[0]
    first = model.quantizer.nearest_codes(residuals[:2].view(2, 1, -1).transpose(1, 2).unsqueeze(-1))
    assert residuals.shape == (2 * 21, 6)
    assert torch.equal(first, codes[:, :1])
    nearest = torch.cdist(residuals, model.quantizer.codebook.weight, compute_mode="donot_use_mm_for_euclid_dist").amin(1).square()
    torch.testing.assert_close(errors, nearest)


def test_quantizer_is_fitted_to_latents():
    """Latents of five kinds of positions: a codebook that was fitted tells them apart."""
    model = tokenizer()
    quantizer, schedule = model.quantizer, model.default_schedule
    kinds = 3 * torch.randn(5, 6)
    latents = kinds[torch.randint(5, (200, *schedule.final_grid))].permute(0, 3, 1, 2)
    before = (model.accumulate(quantizer.encode(latents, schedule)[0]) - latents).square().mean()
    given = latents.clone()
    fit_quantizer(quantizer, schedule, latents, steps=200)
    after = (model.accumulate(quantizer.encode(latents, schedule)[0]) - latents).square().mean()
    assert after < 0.1 * latents.var() < before
    assert torch.equal(latents, given)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_first_steps_go_without_quantizer(tmp_path):
    """The quantizer stays as it was for `continuous_steps` steps, and is then fitted to what the encoder has learned."""
    start, errors = tokenizer(), []
    for steps in (30, 31):
        run = trainer(tmp_path, max_steps=steps, continuous_steps=30, learning_rate=5e-3, ema_decay=0.5)
        run.train()
        model, pixels = run.image_tokenizer, next(run._batches(run.train_dataset, 16))
        latents = model.encode_latents(pixels)
        assert latents.std() < 3  # bounded, though nothing quantizes them
        errors.append((model.accumulate(model.encode(pixels)) - latents).square().mean() / latents.var())
        assert torch.equal(model.quantizer.codebook.weight, start.quantizer.codebook.weight) == (steps == 30)
    assert errors[1] < 0.3 * errors[0]


def test_coarse_images_are_trained(tmp_path):
    """With a share of images decoded from few scales, the coarse decodes come closer to the images."""
    errors = {}
    for share in (0.0, 0.7):
        run = trainer(tmp_path, coarse_share=share, max_steps=100, l1_weight=0.0, l2_weight=10.0)
        run.train()
        pixels = next(run._batches(run.eval_dataset, 8))
        errors[share] = (run.image_tokenizer.decode(run.image_tokenizer.encode(pixels), num_scales=1) - pixels).square().mean()
    assert errors[0.7] < 0.8 * errors[0.0]


def test_settings_that_do_not_fit_are_refused(tmp_path):
    for given, message in (
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\)"),
        ({"l1_weight": -1.0}, "`l1_weight` must be in"),
        ({"adversarial_weight": float("nan")}, "`adversarial_weight` must be in"),
        ({"adversarial_start": -1}, "`adversarial_start` must be at least 0"),
        ({"l1_weight": 0.0}, "Nothing compares images with their reconstructions: give one of l1_weight, l2_weight"),
        ({"freeze": "decoder"}, "`freeze` is 'decoder'; it must be one of none, encoder, codes"),
        ({"freeze": "codes", "revive_every": 5}, "leave `continuous_steps` and `revive_every` out"),
        ({"gradient_checkpointing": True}, "`gradient_checkpointing` means nothing"),
        ({"perceptual_network": "vgg17"}, "There is no network 'vgg17': give one of efficientnet-lite0, lpips-vgg:FILE"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **given)
    with pytest.raises(ValueError, match="'vargpt_bsq' has no codebook"):
        trainer(tmp_path, "bsq", revive_every=5)
    with pytest.raises(ValueError, match="looks at 24 pixels or more, images are 16×16: set `discriminator_layers` lower"):
        trainer(tmp_path, adversarial_weight=1.0)
    with pytest.raises(ValueError, match="must be 3, got 1"):
        trainer(tmp_path, model=tokenizer(in_channels=1))
    with pytest.raises(TrainingStopped, match=r"Row \d of the dataset .* is 12×12 pixels .*smaller than the 16×16 .*allow_upscaling"):
        trainer(tmp_path, train=images(8, (12, 12)), max_steps=1).train()
    run = VargptImageTokenizerTrainer(tokenizer(), settings(tmp_path, max_steps=1), images(8, (12, 12)), allow_upscaling=True)
    run.train()
    with pytest.raises(ValueError, match="no images to evaluate on"):
        run.evaluate()


def test_images_of_any_batch_come_in_the_same_order_whatever_else_runs(tmp_path):
    """Crops and flips are those of the seed, the epoch and the row: not of the process, nor of torch's state."""
    batches = []
    for state in (0, 1):
        torch.manual_seed(state)
        run = trainer(tmp_path, train=images(8, (20, 24)), random_flip=True)
        collate, rows = run.data_collator, run.train_dataset
        batches.append(collate([rows[index] for index in range(4)])["pixel_values"])
    assert torch.equal(*batches)
    rows.set_epoch(1)
    again = collate([rows[index] for index in range(4)])["pixel_values"]
    assert not torch.equal(batches[0], again)
    alone = torch.cat([collate([rows[index]])["pixel_values"] for index in range(4)])
    assert torch.equal(again, alone)
