"""The gradient of a step is that of all its rows at once: under three trainers, accumulated or not, in one process and in two."""

import gc

import pytest
import torch
from datasets import Dataset
from micro import ROWS, row
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.modeling import losses_vargpt
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.stages import apply_stage
from vargpt_hf.training.targets import CountsTargets
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

# Eight rows of unequal lengths. Those that a trainer can weigh which counts no codes have as many codes for each text target.
ALIKE = [row(["image"] * (index % 2) + [f"draw {'very ' * index}noise"], ["output_image", "so"], 10 * index) for index in range(8)]
CASES = {"ours": ROWS, "TRL": ROWS, "TRL's own loss": ROWS, "Transformers": ROWS, "Transformers' own counts": ALIKE}
ACCUMULATED = (1, 2, 4)
RANKS = """
from test_gradients import save_gradients

save_gradients(*sys.argv[1:])
"""


class CountingTrainer(CountsTargets, Trainer):
    """As `docs/training.md` advises."""


class CountingSFTTrainer(CountsTargets, SFTTrainer):
    """The same for TRL's."""


TRAINERS = {
    "ours": (VargptSFTConfig, VargptSFTTrainer),
    "TRL": (SFTConfig, CountingSFTTrainer),
    "TRL's own loss": (SFTConfig, SFTTrainer),
    "Transformers": (TrainingArguments, CountingTrainer),
    "Transformers' own counts": (TrainingArguments, Trainer),
}


def loaded(base: str) -> VargptForConditionalGeneration:
    model = VargptForConditionalGeneration.from_pretrained(base)
    apply_stage(model, "pretrain")
    return model.train()


def gradient(base: str, out: str, case: str, accumulated: int, processes: int) -> dict[str, torch.Tensor]:
    """What a step of plain gradient descent takes off the weights."""
    model, processor = loaded(base), VargptProcessor.from_pretrained(base)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings, trainer = TRAINERS[case]
    options = {"bf16": False, "activation_checkpointing": False, "remove_unused_columns": case == "ours"}
    if case.startswith("TRL"):
        options |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    args = settings(
        out,
        use_cpu=True,
        per_device_train_batch_size=8 // accumulated // processes,
        gradient_accumulation_steps=accumulated,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    rows = Dataset.from_list(CASES[case], features=ROW_FEATURES)
    trainer(model, args, data_collator=VargptDataCollator(processor), train_dataset=rows, processing_class=processor).train()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


def save_gradients(base: str, out: str, processes: str = "2") -> None:
    """Those of all trainers, by one rank of several; the first one writes them."""
    gc.freeze()  # what was imported; every trainer that starts looks through the rest
    for case in CASES:
        for accumulated in ACCUMULATED:
            found = gradient(base, out, case, accumulated, int(processes))
            if torch.distributed.get_rank() == 0:
                save_file(found, f"{out}/{case} {accumulated}.safetensors")


@pytest.fixture(scope="module")
def of_two_processes(base, tmp_path_factory):
    """The folder of the gradients that two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(folder, RANKS, base, folder, timeout=300)
    return folder


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("accumulated", ACCUMULATED)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_all_rows_at_once(base, tmp_path, request, case, accumulated, processes):
    """TRL's own loss leaves the model's forward out, and with it the images: there, the gradient is that of the text, and a warning says so."""
    if processes == 1:
        found = gradient(str(base), str(tmp_path), case, accumulated, 1)
    else:
        found = load_file(request.getfixturevalue("of_two_processes") / f"{case} {accumulated}.safetensors")
    model = loaded(base)
    outputs = model(**VargptDataCollator(VargptProcessor.from_pretrained(base))(CASES[case]))
    (outputs.text_loss if case == "TRL's own loss" else outputs.loss).backward()
    wanted = {name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in model.named_parameters()}
    assert wanted["model.visual_decoder.head.weight"].abs().max() > 1e-3 or case == "TRL's own loss"
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_other_losses_are_not_counted_in_silence(base, tmp_path):
    args = TrainingArguments(tmp_path, use_cpu=True, report_to=[], label_smoothing_factor=0.1)
    for given in ({"args": args}, {"compute_loss_func": print}):
        with pytest.raises(ValueError, match="`compute_loss_func` and `label_smoothing_factor` would replace it"):
            CountingTrainer(loaded(base), **{"args": TrainingArguments(tmp_path, use_cpu=True, report_to=[]), **given})


def test_a_trainer_that_counts_no_codes_is_told_when_it_is_exact(base, tmp_path, caplog):
    losses_vargpt.logger.warning_once.cache_clear()
    gradient(str(base), str(tmp_path), "Transformers' own counts", 2, 1)
    assert caplog.text.count("exact where all parts have as many codes for each") == 1 and "CountsTargets" in caplog.text
