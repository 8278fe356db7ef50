"""Layers compiled one by one: as many as there are, with the same results, and only where they train."""

import pytest
import torch
from micro import ROWS
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt_hf.training import compiling
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.compiling import compile_layers
from vargpt_hf.training.preference import VargptDPOConfig, VargptDPOTrainer
from vargpt_hf.training.progress import draw_prompts
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

PAIRS = [{"prompt": "say hello", "chosen": "hello", "rejected": "noise"}]
SETTINGS = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "max_steps": 1, "save_strategy": "no", "compile_layers": True}


@pytest.fixture(autouse=True)
def forgotten():
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend():
    """Of torch.compile: runs graphs as they are, and counts them."""

    def run(graph, inputs):
        run.graphs += 1
        return graph

    run.graphs = 0
    return run


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def losses_and_gradients(model, inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"text": outputs.text_loss.detach(), "image": outputs.output_image_loss.detach(), **found}


def test_the_same_model_with_the_same_gradients(model, processor, backend):
    model.train()
    inputs, names = VargptDataCollator(processor)(ROWS), list(model.state_dict())
    before = losses_and_gradients(model, inputs)
    assert compile_layers(model, backend) == len(layers_of(model)) > 2
    torch.testing.assert_close(losses_and_gradients(model, inputs), before)
    assert backend.graphs
    assert list(model.state_dict()) == names


def test_samples_compile_nothing(model, processor, backend):
    compile_layers(model, backend)
    draw_prompts(model, processor, ["draw noise"])
    assert not backend.graphs


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_trainers_setting(model, processor, tmp_path, monkeypatch, kind):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiled.append(call) or call)
    if kind == "sft":
        trainer = VargptSFTTrainer(model, VargptSFTConfig(str(tmp_path), **SETTINGS), train_dataset=ROWS, processing_class=processor)
        models = [model]
    else:
        trainer = VargptDPOTrainer(model, args=VargptDPOConfig(str(tmp_path), **SETTINGS), train_dataset=PAIRS, processing_class=processor)
        models = [model, trainer.ref_model]
    assert len(compiled) == sum(len(layers_of(one)) for one in models)
    trainer.train()
    assert trainer.state.global_step == 1


def test_what_cannot_be_compiled(model, monkeypatch):
    with pytest.raises(ValueError, match="found no layers in a Linear"):
        compile_layers(nn.Linear(1, 1))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        compile_layers(model)
