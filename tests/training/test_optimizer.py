"""Muon beside AdamW: each moves what is its own, as it would alone; runs resume; what cannot be is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from micro import ROWS, write_config
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn

from vargpt_hf.peft import lora_config
from vargpt_hf.training.optimizer import MuonOption, MuonWithAdamW
from vargpt_hf.training.preference import VargptDPOConfig, VargptDPOTrainer
from vargpt_hf.training.script import train
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

PAIRS = [{"prompt": "say hello", "chosen": "hello", "rejected": "noise"}]
SETTINGS = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "max_steps": 1, "save_strategy": "no", "muon": True}


class Small(nn.Module):
    """An embedding, two matrices and a bias."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.wide, self.narrow = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)

    @property
    def matrices(self):
        return [self.wide.weight, self.narrow.weight]

    @property
    def others(self):
        return [self.embedding.weight, self.wide.bias]

    def loss(self, step: int) -> torch.Tensor:
        ids = torch.arange(5).roll(step)
        return (self.narrow(torch.tanh(self.wide(self.embedding(ids)))) ** 2).sum()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


def both(model: Small) -> MuonWithAdamW:
    return MuonWithAdamW(model.matrices, model.others, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))


def run(model: Small, optimizers, steps=range(4)) -> dict[str, torch.Tensor]:
    for step in steps:
        model.zero_grad()
        model.loss(step).backward()
        for optimizer in optimizers:
            optimizer.step()
    return model.state_dict()


def assert_equal(found, wanted):
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_each_moves_its_own_as_it_would_alone(small):
    alone = copy.deepcopy(small)
    muon = torch.optim.Muon(alone.matrices, 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(alone.others, 0.01, betas=(0.9, 0.95))
    assert_equal(run(small, [both(small)]), run(alone, [muon, adamw]))


def test_state_is_saved_and_loaded(small):
    straight = run(copied := copy.deepcopy(small), [both(copied)])
    optimizer = both(small)
    run(small, [optimizer], range(2))
    resumed = both(small)
    resumed.load_state_dict(optimizer.state_dict())
    assert_equal(run(small, [resumed], range(2, 4)), straight)


def test_both_follow_a_schedule(small):
    optimizer = both(small)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(small.state_dict())
    assert_equal(run(small, [optimizer]), before)
    assert schedule.get_last_lr() == [0.0, 0.0]


def test_a_closure_is_called_once(small):
    calls = []

    def closure():
        small.zero_grad()
        loss = small.loss(0)
        loss.backward()
        calls.append(loss)
        return loss

    assert both(small).step(closure) is calls[0] and len(calls) == 1


def test_muon_takes_matrices_alone(small):
    with pytest.raises(ValueError, match="2D"):
        MuonWithAdamW([small.wide.bias], small.matrices, lr=0.01, weight_decay=0.1)


@pytest.fixture(params=["sft", "dpo"])
def make_trainer(request, model, processor, tmp_path):
    def make(optimizers=(None, None), **settings):
        settings = {"output_dir": str(tmp_path), **SETTINGS, **settings}
        if request.param == "sft":
            return VargptSFTTrainer(model, VargptSFTConfig(**settings), train_dataset=ROWS, processing_class=processor, optimizers=optimizers)
        args = VargptDPOConfig(**settings)
        return VargptDPOTrainer(model, args=args, train_dataset=PAIRS, processing_class=processor, optimizers=optimizers)

    return make


def test_the_trainers_setting(make_trainer, model):
    """Muon has the linear layers inside layers and projectors, AdamW all else that is trained, and what decays decays as ever."""
    model.model.image_tokenizer.requires_grad_(False)
    trainer = make_trainer(weight_decay=0.25)
    trainer.train()
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups = [(names[id(p)], group) for group in trainer.optimizer.param_groups for p in group["params"]]
    by = {kind: [name for name, group in groups if group["optimizer"] == kind] for kind in ("muon", "adamw")}
    assert sorted(by["muon"] + by["adamw"]) == sorted(names.values())
    assert all((".layers." in name or "projector" in name) and name.endswith(".weight") and "norm" not in name for name in by["muon"])
    for part in (
        "language_model.layers.0.self_attn.q_proj",
        "vision_tower.encoder.layers.0.mlp.fc1",
        "visual_decoder.layers.0.self_attn.q_proj",
        "multi_modal_projector.linear_1",
        "projector_to_llm.fc1",
        "projector_to_decoder.fc2",
    ):
        assert any(part in name for name in by["muon"]), part
    for part in ("embed_tokens", "lm_head", "projector_to_llm.fc1.bias", "visual_decoder.head", "norm", ".bias", "class_embedding"):
        assert any(part in name for name in by["adamw"]), part
    decaying = set(trainer.get_decay_parameter_names(model))
    assert all(group["weight_decay"] == (0.25 if name in decaying else 0.0) for name, group in groups)


def test_a_learning_rate_of_its_own(make_trainer):
    """Muon's stands beside AdamW's, and a schedule scales both."""
    trainer = make_trainer(learning_rate=1e-3, muon_learning_rate=4e-3, lr_scheduler_type="constant")
    trainer.train()
    assert {(group["optimizer"], group["lr"]) for group in trainer.optimizer.param_groups} == {("muon", 4e-3), ("adamw", 1e-3)}
    trainer = make_trainer(learning_rate=1e-3, muon_learning_rate=4e-3, max_steps=4, lr_scheduler_type="linear")
    trainer.create_optimizer_and_scheduler(4)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert {(group["optimizer"], group["lr"]) for group in trainer.optimizer.param_groups} == {("muon", 3e-3), ("adamw", 0.75e-3)}


def test_without_the_setting(make_trainer):
    trainer = make_trainer(muon=False)
    trainer.train()
    assert not any("optimizer" in group for group in trainer.optimizer.param_groups)


def test_what_cannot_be(make_trainer, model):
    with pytest.raises(ValueError, match="stands beside torch's AdamW, not beside optim='sgd'"):
        make_trainer(optim="sgd")
    with pytest.raises(ValueError, match="makes the optimizer"):
        make_trainer(optimizers=(torch.optim.SGD(model.parameters(), 0.1), None))
    model.requires_grad_(False).get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match="found no linear layer to train"):
        make_trainer().create_optimizer()


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_what_is_sharded_is_refused(sharded):
    class Base:
        def __init__(self):
            self.optimizer, self.optimizer_cls_and_kwargs = None, None
            self.args, self.model = SimpleNamespace(optim="adamw_torch"), nn.Linear(1, 1)
            self.is_fsdp_enabled = self.is_deepspeed_enabled = False
            setattr(self, sharded, True)

    class Trainer(MuonOption, Base):
        muon = True

    with pytest.raises(ValueError, match="needs whole matrices"):
        Trainer()


def test_tensors_that_lie_on_several_devices_are_refused(make_trainer, monkeypatch):
    monkeypatch.setattr("vargpt_hf.training.optimizer.DTensor", nn.Parameter)
    with pytest.raises(ValueError, match="needs whole matrices"):
        make_trainer()


def test_adapters(model, processor, tmp_path):
    """Matrices of adapters and of projectors' copies are Muon's, the copy of the head AdamW's; the rest stays as it was."""
    adapted = get_peft_model(model, lora_config("draw", model, r=4))
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    trainer = VargptSFTTrainer(adapted, VargptSFTConfig(str(tmp_path), **SETTINGS), train_dataset=ROWS, processing_class=processor)
    trainer.train()
    names = {id(p): name for name, p in adapted.named_parameters()}
    groups = trainer.optimizer.param_groups
    muon = [names[id(p)] for group in groups for p in group["params"] if group["optimizer"] == "muon"]
    assert all("lora_" in name or ("projector_to_" in name and "modules_to_save" in name) for name in muon)
    assert any("lora_" in name for name in muon) and any("projector_to_llm.modules_to_save.default.fc1" in name for name in muon)
    adamw = [names[id(p)] for group in groups for p in group["params"] if group["optimizer"] == "adamw" and p.requires_grad]
    assert any("visual_decoder.head.modules_to_save" in name for name in adamw)
    moved = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_B" in name for name in moved) and all(p.requires_grad for name, p in adapted.named_parameters() if name in moved)


def test_groups_and_copies(small):
    optimizer = both(small)
    with pytest.raises(ValueError, match="must be one of 'muon', 'adamw', got None"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    added = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [added], "optimizer": "adamw", "lr": 0.5})
    added.grad = torch.ones(2)
    copied = copy.deepcopy(optimizer)
    copied.step()
    assert torch.equal(added, torch.ones(2))
    optimizer.step()
    assert not torch.equal(added, torch.ones(2))


@pytest.mark.parametrize("muon", [True, False])
def test_a_run_that_began_otherwise(base, tmp_path, muon):
    file = write_config(tmp_path, base, stage="pretrain", muon=muon)
    train(file, ["--stop_at", "0.5"])
    with pytest.raises(ValueError, match=f"was trained {'with' if muon else 'without'} `muon`"):
        train(file, ["--muon", str(not muon), "--resume_from_checkpoint", "true"])


def test_state_of_another_optimizer(small):
    with pytest.raises(ValueError, match="without Muon"):
        both(small).load_state_dict(torch.optim.AdamW(small.parameters()).state_dict())


def test_a_run_resumes(base, tmp_path):
    (tmp_path / "straight").mkdir()
    (tmp_path / "pieces").mkdir()
    train(write_config(tmp_path / "straight", base, stage="pretrain", muon=True))
    pieces = write_config(tmp_path / "pieces", base, stage="pretrain", muon=True)
    train(pieces, ["--stop_at", "0.5"])
    train(pieces, ["--resume_from_checkpoint", "true"])
    found, wanted, start = (load_file(folder / "model.safetensors") for folder in (tmp_path / "pieces/out", tmp_path / "straight/out", base))
    assert_equal(found, wanted)
    assert any(not torch.equal(start[name], wanted[name]) for name in wanted)
