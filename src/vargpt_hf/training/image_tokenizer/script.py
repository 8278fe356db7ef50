"""Training of an image tokenizer from a YAML file, in the form of the stages' own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import ProgressCallback, set_seed

from ...hardware import keep_freed_memory
from ...modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ..data import sources_of
from ..guards import StopAt, remove_half_checkpoints
from ..progress import describe_evaluation, remove_samples
from ..script import check_training, parse_groups, resume_point
from ..stage_files import find_file, only_writer, read_stage
from .arguments import ImageTokenizerArguments, ImageTokenizerTrainingConfig
from .forecast import cost_of
from .images import Images, ImageSource, read_images, stream_mixture
from .loading import fresh_image_tokenizer, kinds, load_image_tokenizer
from .objective import frozen_modules
from .sheets import CURVES, TermsProgressCallback, save_curves
from .trainer import VargptImageTokenizerTrainer, processor_of

GROUPS = (ImageTokenizerArguments, ImageTokenizerTrainingConfig)


def train(config: str | Path, overrides: Sequence[str] = ()) -> None:
    """Trains the image tokenizer that a YAML file describes, and saves it with its processor in its `output_dir`.

    There lie at the end, too, the curves of all that was logged (`training.png`) and images beside their reconstructions, before training,
    at evaluations and after (`samples/`).

    Args:
        config: the file, or the name of one that comes with the package, such as "tokenizer/shapes".
        overrides: arguments that win over the file, such as `["--learning_rate", "1e-4"]`.

    Raises:
        ValueError: a file, key, dataset or model that is not there or not right, or images that cannot be used.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    script, training = parse(config, overrides)
    with only_writer(training.output_dir):
        checkpoint = resume_point(training)
        trainer = make_trainer(script, training)
        if trainer.is_world_process_zero():
            print(describe_plan(trainer, script))
        _run(trainer, script, checkpoint)


def parse(config: str | Path, overrides: Sequence[str] = ()) -> tuple[ImageTokenizerArguments, ImageTokenizerTrainingConfig]:
    """The two groups of arguments of a YAML file.

    Raises:
        ValueError: a file that is not there or no mapping, unknown keys, values out of range, or data or a model that is missing.
    """
    config = find_file(config, "tokenizer")
    given = read_stage(config)
    script, training = parse_groups(GROUPS, config, given, overrides, required=("train_data", "output_dir"))
    _check(script, training, config)
    return script, training


def _check(script: ImageTokenizerArguments, training: ImageTokenizerTrainingConfig, config: Path) -> None:
    """Refuses, before anything is loaded, what cannot work."""
    StopAt(script.stop_at)
    if (script.kind is None) == (script.model_name_or_path is None):
        raise ValueError(
            f"{config} must say either `kind` ({', '.join(kinds())}), for a fresh image tokenizer, or `model_name_or_path`, for a saved one."
        )
    if script.model_name_or_path is not None and script.image_tokenizer:
        raise ValueError("`image_tokenizer` is of a fresh one: what is trained further has its own configuration. Leave it out.")
    if script.model_name_or_path is None and training.freeze != "none":
        raise ValueError(f"`freeze: {training.freeze}` leaves fresh weights as they are: give `model_name_or_path`.")
    for name in ("train_data", "eval_data"):
        if getattr(script, name):
            sources_of(getattr(script, name), ImageSource)
    if training.eval_strategy != "no" and not script.eval_data:
        raise ValueError(f"eval_strategy is {training.eval_strategy.value!r}, but there is no `eval_data`.")
    if script.streaming and training.max_steps <= 0:
        raise ValueError("`streaming` does not know how many images there are: set `max_steps`.")
    if not 1 <= script.resize_factor < float("inf"):
        raise ValueError(f"`resize_factor` must be a number from 1 on, got {script.resize_factor}.")
    check_training(training)


def _images_of(sources: list[ImageSource], seed: int) -> Images:
    """The images of all sources, drawn by their weights."""
    return Images([read_images(source) for source in sources], [source.weight for source in sources], seed)


def make_trainer(script: ImageTokenizerArguments, training: ImageTokenizerTrainingConfig) -> VargptImageTokenizerTrainer:
    """The trainer of a file's arguments."""
    set_seed(training.seed)
    model = (
        load_image_tokenizer(script.model_name_or_path) if script.kind is None else fresh_image_tokenizer(script.kind, script.image_tokenizer)
    )
    sources = sources_of(script.train_data, ImageSource)
    if script.streaming:
        training.accelerator_config.dispatch_batches = False  # else images of several sizes would have to fit into one batch
        images = stream_mixture(sources, training.seed)
    else:
        images = _images_of(sources, training.seed)
    trainer = VargptImageTokenizerTrainer(
        model,
        training,
        train_dataset=images,
        eval_dataset=_images_of(sources_of(script.eval_data, ImageSource), training.seed) if script.eval_data else None,
        processing_class=processor_of(model, script.resize_factor),
        allow_upscaling=script.allow_upscaling,
    )
    if not training.disable_tqdm:
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(TermsProgressCallback)
    return trainer


def describe_plan(trainer: VargptImageTokenizerTrainer, script: ImageTokenizerArguments) -> str:
    """What is about to be trained, for people."""
    model, args = trainer.image_tokenizer, trainer.args
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    sizes = ", ".join(f"{height}×{width}" for height, width in map(model.config.image_size, model.config.scale_schedules))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    discriminator = (args.discriminator_channels, args.discriminator_layers)
    cost = cost_of(type(model), model.config, bool(args.adversarial_weight), bool(args.ema_decay), discriminator)
    number = "a stream" if script.streaming else f"{len(trainer.train_dataset):,} images"
    lines = [
        f"Image tokenizer: {model.config.model_type}, {trained:,} weights to train{_frozen(args, model)}; images of {sizes} pixels, "
        f"{model.default_schedule.num_positions} codes of {model.config.num_classes**model.config.num_symbols:,} values.",
        f"Data: {number}, {batch} a step, in {'bfloat16' if args.bf16 else 'float16' if args.fp16 else 'float32'}.",
        f"Losses: {', '.join(_losses(args))}.",
        f"Cost: {batch * cost.flop / 1e12:.3g} TFLOP a step, without the perceptual network; {cost.weight_bytes / 2**30:.2g} GiB of weights "
        f"and optimizer, and up to {cost.activations * 4 / 2**30:.2g} GiB for each image that is trained on at once.",
    ]
    return "\n".join(lines)


def _frozen(args: ImageTokenizerTrainingConfig, model: VargptImageTokenizer) -> str:
    names = frozen_modules(model, args.freeze)
    return f" ({', '.join(names)} stay as they are)" if names else ""


def _losses(args: ImageTokenizerTrainingConfig) -> list[str]:
    found = [f"{weight:g} × {name}" for name, weight in args.term_weights.items() if weight]
    if args.perceptual_network is not None:
        found.append(f"{args.perceptual_weight:g} × perceptual ({args.perceptual_network})")
    found.append(f"{args.quantization_weight:g} × quantization")
    if args.adversarial_weight:
        adaptive = ", adaptive" if args.adaptive_weight else ""
        found.append(f"{args.adversarial_weight:g} × adversarial (from step {args.adversarial_start} on{adaptive})")
    return found


def _run(trainer: VargptImageTokenizerTrainer, script: ImageTokenizerArguments, checkpoint: str | None) -> None:
    """Trains, saves the image tokenizer, and then what people look at."""
    output_dir = Path(trainer.args.output_dir)
    images = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    is_first = trainer.is_world_process_zero()
    if is_first and checkpoint is None:
        remove_samples(output_dir)
        trainer.save_samples(images)
    if is_first and checkpoint is not None:
        remove_half_checkpoints(output_dir)
    trainer.add_callback(StopAt(script.stop_at))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_image_tokenizer(output_dir)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        if is_first:
            print(describe_evaluation(metrics))
    elif is_first:
        trainer.save_samples(images)
    if is_first:
        save_curves(trainer.state.log_history, output_dir / CURVES)


__all__ = ["describe_plan", "make_trainer", "parse", "train"]
