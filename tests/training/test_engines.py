"""Several processes make the steps of one: data parallel, and with the weights sharded over them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy, get_parameters_from_modules
from accelerate.utils.launch import prepare_multi_gpu_env
from datasets import Dataset
from micro import ROWS, row, write_config
from ranks import run_ranks
from safetensors.torch import load_file

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.script import train
from vargpt_hf.training.stages import apply_stage
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

TRAIN = """
from vargpt_hf.training.script import train

train(sys.argv[1])
"""
PLAIN = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1}
PLAIN |= {"train_sampling_strategy": "sequential"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return VargptForConditionalGeneration.from_pretrained(folder).state_dict()


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    """Equal to rounding, and not by having stayed as they were."""
    assert set(found) == set(wanted)
    assert any(not torch.equal(value, start[name]) for name, value in wanted.items())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("stage", "steps", "optimizer"),
    [
        ("stage3", 3, {"optim": "sgd", "learning_rate": 0.05}),
        ("pretrain", 4, {"learning_rate": 1e-3}),
        ("pretrain", 2, {"learning_rate": 2e-4, "muon": True}),  # which rounds gradients to bfloat16: steps of 4e-5, equal to 1e-5
    ],
)
def test_two_processes_make_the_steps_of_one(base, tmp_path, stage, steps, optimizer):
    """Two ranks with 2 rows each, accumulated twice, log the losses and give the weights of one batch of 8."""
    texts = [{"prompt": "say hello", "completion": "hello"}, {"prompt": "say so", "completion": "so"}]
    results = {}
    for name, batch_size, accumulated in (("two", 2, 2), ("one", 8, 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "texts.json").write_text(json.dumps(texts * 20))
        sources = [{"path": str(folder / "rows"), "weight": 2}, str(folder / "texts.json")]
        batches = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulated}
        common = {**PLAIN, **optimizer, **batches, "train_data": sources, "max_steps": steps, "save_steps": steps}
        file = write_config(folder, base, stage=stage, **common)
        run_ranks(folder, TRAIN, file) if name == "two" else train(file)
        results[name] = json.loads((folder / f"out/checkpoint-{steps}/trainer_state.json").read_text())["log_history"]
    assert len(results["two"]) == len(results["one"]) == steps
    for two, one in zip(*results.values()):
        assert {key for key in one if key.startswith("rows_of")} == {"rows_of_rows", "rows_of_texts.json"}
        for key in ("loss", "text_loss", "output_image_loss", "text_accuracy", "image_accuracy", "num_tokens", "rows_of_rows"):
            if key in one or key in two:
                assert math.isclose(two[key], one[key], rel_tol=1e-4, abs_tol=1e-6), key
    assert_same(weights(tmp_path / "two/out"), weights(tmp_path / "one/out"), weights(base))


# What accelerate's FSDP2 does to the model, which it does on GPUs only: a unit of each layer of each part, and one of the rest.
SHARDED = """
import json
from datetime import timedelta
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from test_engines import batches_of, steps_of
from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.training.stages import apply_stage

base, out, stage, checkpointed = sys.argv[1:]
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
model = VargptForConditionalGeneration.from_pretrained(base)
apply_stage(model, stage)
if checkpointed == "True":
    model.activation_checkpointing_enable()
mesh = init_device_mesh("cpu", (2,))
ignored = set(model.model.image_tokenizer.parameters())
names = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
assert {name.rsplit(".", 1)[0] for name in names} >= {
    f"model.{part}layers" for part in ("vlm.language_model.", "visual_decoder.", "vlm.vision_tower.encoder.")
}
for name in names:
    fully_shard(model.get_submodule(name), mesh=mesh, ignored_params=ignored)
fully_shard([model.lm_head], mesh=mesh, reshard_after_forward=False)
fully_shard(model, mesh=mesh, ignored_params=ignored)
assert all(isinstance(p, DTensor) for name, p in model.named_parameters() if ".image_tokenizer." not in name)
losses = steps_of(model, batches_of(base, dist.get_rank()), 2)
dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=out + "/sharded")
whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
total = torch.tensor(losses)
dist.all_reduce(total)
if dist.get_rank() == 0:
    model.save_pretrained(out + "/full", state_dict=whole)
    json.dump(total.tolist(), open(out + "/losses.json", "w"))
"""
# Of each step the rows of either rank: only one draws, only one looks at images, none draws, all do all.
ROWS_OF_RANKS = [
    ([ROWS[2], ROWS[3]], [ROWS[0], ROWS[5]]),
    ([ROWS[0], ROWS[5]], [ROWS[1], ROWS[4]]),
    ([ROWS[1]], [ROWS[7]]),
    ([ROWS[4], ROWS[6]], [ROWS[4], ROWS[3]]),
    ([ROWS[0]], [row(["draw"], ["output_image"], 30)]),
]


def batches_of(base: str, rank: int | None) -> list[tuple[dict[str, torch.Tensor], dict[str, int]]]:
    """Model inputs of every step of one rank, or of a process that takes the rows of both, and the targets of the step."""
    processor = VargptProcessor.from_pretrained(base)
    model = VargptForConditionalGeneration.from_pretrained(base)
    config = model.config
    plain, collator = VargptDataCollator(processor), VargptDataCollator(processor).bind(model, sharded=True)
    batches = []
    for rows in ROWS_OF_RANKS:
        everything = plain(rows[0] + rows[1])
        labels = everything["labels"][:, 1:]
        counts = {"num_items_in_batch": int((labels != -100).sum())}
        drawings = len(everything.get("output_pixel_values", ()))
        counts["num_codes_in_batch"] = max(drawings, 1) * config.schedules[0].num_positions
        batches.append((everything if rank is None else collator(rows[rank]), counts))
    return batches


def steps_of(model, batches, processes: int) -> list[float]:
    """A step of SGD with momentum for each batch; this process's part of the loss before each."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    losses = []
    for inputs, counts in batches:
        loss = model(**inputs, **counts, use_cache=False).loss
        losses.append(loss.item())
        if loss.requires_grad:
            (loss * processes).backward()  # sharding averages gradients, the counts are of all processes
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return losses


@pytest.mark.parametrize(("stage", "checkpointed"), [("pretrain", False), ("stage2", False), ("stage3", True)])
def test_sharded_weights_make_the_steps_of_one_process(base, tmp_path, stage, checkpointed):
    """Also where some ranks draw and others not; saved in shards and whole, both are the weights of one process."""
    run_ranks(tmp_path, SHARDED, base, tmp_path, stage, checkpointed)
    model = VargptForConditionalGeneration.from_pretrained(base)
    apply_stage(model, stage)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    losses = steps_of(model, batches_of(str(base), None), 1)
    torch.testing.assert_close(json.loads((tmp_path / "losses.json").read_text()), losses, atol=1e-5, rtol=1e-4)
    wanted = model.state_dict()
    assert_same(weights(tmp_path / "full"), wanted, start)
    assert set(load_file(tmp_path / "full/model.safetensors")) <= set(wanted)
    loaded = {"model": {name: torch.zeros_like(value) for name, value in wanted.items()}}
    torch.distributed.checkpoint.load(loaded, checkpoint_id=tmp_path / "sharded", no_dist=True)
    assert_same(loaded["model"], wanted, start)


CONFIGS = sorted((Path(__file__).parents[2] / "examples/accelerate").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_reads_its_configs(file):
    config = load_config_from_file(str(file))
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(file.stem, "DEEPSPEED")
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    command = ["--config_file", str(file), "-m", "vargpt_hf", "train", "stage.yaml"]
    arguments = launch_command_parser().parse_args(command)
    assert (arguments.module, arguments.training_script, arguments.training_script_args) == (True, "vargpt_hf", ["train", "stage.yaml"])
    # DeepSpeed itself need not be there: its settings must be among those that accelerate takes.
    assert set(config.deepspeed_config) <= set(vars(arguments))
    if file.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(file.stem[-1])
        assert config.deepspeed_config.get("zero3_save_16bit_model", file.stem == "zero2")
        return
    arguments, _, _ = _validate_launch_command(arguments)
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if file.stem == "fsdp2":
        sharding = {name.removeprefix("fsdp_").upper(): str(value).lower() for name, value in config.fsdp_config.items()}
        assert {name: environment[f"FSDP_{name}"].lower() for name in sharding} == sharding


def test_layers_to_shard_are_found_in_all_parts(base):
    """What accelerate makes of the configuration: one unit a layer, none of the image tokenizer's weights."""
    model = VargptForConditionalGeneration.from_pretrained(base)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    is_unit = fsdp2_prepare_auto_wrap_policy(plugin, model)
    units = {name for name, module in model.named_modules() if is_unit(module)}
    parts = ("vlm.language_model.layers", "visual_decoder.layers", "vlm.vision_tower.encoder.layers")
    assert units >= {f"model.{part}.{index}" for part in parts for index in range(2)}
    ignored = get_parameters_from_modules(".*image_tokenizer", model, "cpu")
    assert ignored == set(model.model.image_tokenizer.parameters())


@pytest.mark.parametrize("module", ["vargpt_hf", "torch.distributed.run"])
def test_the_command_can_be_started_as_a_module(module):
    started = ["--nproc_per_node", "1", "-m", "vargpt_hf"] if module.startswith("torch") else []
    done = subprocess.run([sys.executable, "-m", module, *started, "train", "/nowhere.yaml"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "vargpt: There is no file /nowhere.yaml: give a stage" in done.stderr


def test_an_image_tokenizer_that_an_engine_rounded_is_saved_as_it_was(base, tmp_path):
    model, processor = VargptForConditionalGeneration.from_pretrained(base), VargptProcessor.from_pretrained(base)
    rows, arguments = Dataset.from_list(ROWS, features=ROW_FEATURES), VargptSFTConfig(str(tmp_path), use_cpu=True)
    trainer = VargptSFTTrainer(model, args=arguments, train_dataset=rows, processing_class=processor)
    trainer._exact = {name: value for name, value in model.state_dict().items() if ".image_tokenizer." in name}  # as where DeepSpeed is in use
    trainer._save(tmp_path / "saved", {name: value.bfloat16() for name, value in model.state_dict().items()})
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert all((value.dtype == torch.float32) == (".image_tokenizer." in name) for name, value in saved.items())
    loaded = VargptForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype="float32")
    assert loaded.model.image_tokenizer.fingerprint() == model.model.image_tokenizer.fingerprint()
