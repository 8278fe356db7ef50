"""Muon beside AdamW: each moves what is its own, as it would alone; runs resume; what cannot be is refused."""

import copy

import pytest
import torch
from micro import ROWS, write_config
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt_hf.training.optimizer import MuonWithAdamW
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
    def make(**settings):
        settings = SETTINGS | settings
        if request.param == "sft":
            return VargptSFTTrainer(model, VargptSFTConfig(str(tmp_path), **settings), train_dataset=ROWS, processing_class=processor)
        return VargptDPOTrainer(model, args=VargptDPOConfig(str(tmp_path), **settings), train_dataset=PAIRS, processing_class=processor)

    return make


def test_the_trainers_setting(make_trainer, model):
    """Muon has the linear layers' matrices, AdamW all else that is trained, and what decays decays as ever."""
    model.model.image_tokenizer.requires_grad_(False)
    trainer = make_trainer(weight_decay=0.25)
    trainer.train()
    groups = trainer.optimizer.param_groups
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    wanted = {id(part.weight) for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)}
    muon = [id(p) for group in groups for p in group["params"] if group["optimizer"] == "muon"]
    assert set(muon) == wanted and len(muon) == len(wanted)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    others = [id(p) for group in groups for p in group["params"] if group["optimizer"] == "adamw"]
    assert set(others) == trained - wanted and len(others) == len(trained - wanted)
    decaying = trainer.get_decay_parameter_names(model)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decays[id(p)] == 0.25 for name, p in model.named_parameters() if name in decaying and p.requires_grad} == {True}
    assert {decays[id(p)] for name, p in model.named_parameters() if name not in decaying and p.requires_grad} == {0.0}


def test_without_the_setting(make_trainer):
    trainer = make_trainer(muon=False)
    trainer.train()
    assert not any("optimizer" in group for group in trainer.optimizer.param_groups)


def test_what_cannot_be(make_trainer, model, monkeypatch):
    with pytest.raises(ValueError, match="stands beside torch's AdamW, not beside optim='sgd'"):
        make_trainer(optim="sgd").create_optimizer()
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="needs whole matrices"):
        trainer.create_optimizer()
    model.requires_grad_(False).get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match="found no matrix"):
        make_trainer().create_optimizer()


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
