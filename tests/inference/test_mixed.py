"""Weights as they are stored, computed with in float32, give what float32 weights give."""

from pathlib import Path

import pytest
import torch
from backbone_configs import backbone_config
from typer.testing import CliRunner

from vargpt_hf import VargptForConditionalGeneration, hardware
from vargpt_hf.cli import app
from vargpt_hf.inference import mixed
from vargpt_hf.inference.mixed import StoredEmbedding, StoredLinear, load_to_infer
from vargpt_hf.testing import tiny_model
from vargpt_hf.tiny import TINY_FOLDER

V1_1 = {
    "image_tokenizer_config": {
        "model_type": "vargpt_bsq",
        "schedules": [[1, 2]],
        "base_channels": 8,
        "norm_num_groups": 4,
        "latent_channels": 4,
    },
    "visual_decoder_config": {"model_type": "vargpt_infinity_decoder", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}
FAMILIES = {"llava": {}, "qwen2_vl": V1_1, "gemma3": {}, "qwen3_5": {}}
PROMPT = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "do_sample": False, "max_new_tokens": 6, "return_dict_in_generate": True}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_those_of_float32(family, tmp_path, monkeypatch):
    tiny_model(vlm_config=backbone_config(family), **FAMILIES[family]).bfloat16().save_pretrained(tmp_path)
    monkeypatch.setattr(mixed, "_BLOCK", 256)  # of which these small layers have several, too
    stored, wide = (load_to_infer(tmp_path, dtype).eval() for dtype in ("mixed", "float32"))
    linears = [module for module in stored.modules() if isinstance(module, torch.nn.Linear)]
    assert {module.weight.dtype for module in linears if type(module) is StoredLinear} == {torch.bfloat16}
    assert not [module for module in linears if type(module) is torch.nn.Linear and module is not stored.lm_head]
    table, head = stored.get_input_embeddings(), stored.lm_head
    own = type(table) not in (StoredEmbedding, torch.nn.Embedding)  # which scales what it looks up, and may hold the head's weights, too
    assert isinstance(table, StoredEmbedding) != own and own == (family == "gemma3")
    assert isinstance(head, StoredLinear) == (head.weight is not table.weight or not own)
    for generation in ({"generation_mode": "image"}, {"generation_mode": "text", "output_logits": True}):
        found, expected = (model.generate(**PROMPT, **generation) for model in (stored, wide))
        assert torch.equal(found.sequences, expected.sequences)
        if "output_logits" in generation:
            torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(found.output_image_codes, expected.output_image_codes)
            torch.testing.assert_close(found.output_images, expected.output_images, atol=1e-4, rtol=1e-4)


def test_weights_stay_where_they_are(tmp_path):
    """No copy of the weights of linear layers and of text tokens is made: they are those of the file, mapped."""
    tiny_model().bfloat16().save_pretrained(tmp_path)
    plain = VargptForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    layers = {name: module for name, module in plain.named_modules() if type(module) is torch.nn.Linear or name.endswith("embed_tokens")}
    before = {name: module.weight.data_ptr() for name, module in layers.items()}
    after = {name: module.weight.data_ptr() for name, module in mixed.compute_in_float32(plain).named_modules() if name in before}
    (file,) = tmp_path.glob("*.safetensors")
    mapped = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    ranges = [range(int(first, 16), int(last, 16)) for first, last in mapped]
    assert all(any(pointer in found for found in ranges) for pointer in before.values())  # loading has copied none
    assert after == before and sorted(plain.state_dict()) == sorted(tiny_model().state_dict())


def test_gradients_pass_through_a_stored_layer(monkeypatch):
    """To what goes in, block by block: no block may be written over another that a backward pass still reads."""
    monkeypatch.setattr(mixed, "_BLOCK", 12)
    stored = StoredLinear(6, 5, bias=True, dtype=torch.bfloat16).requires_grad_(False)
    inputs = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = torch.nn.functional.linear(inputs, stored.weight.float(), stored.bias.float())
    found = stored(inputs)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(output.square().sum(), inputs)[0] for output in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_it_is_chosen_where_float32_has_no_room(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "is_fast", lambda device, dtype: False)
    monkeypatch.setattr(hardware, "slowness", lambda device, dtype: "this CPU is slow")
    assert 2**20 < hardware.machine_memory()
    VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="bfloat16").save_pretrained(tmp_path / "model")
    from vargpt_hf import VargptProcessor

    VargptProcessor.from_pretrained(TINY_FOLDER).save_pretrained(tmp_path / "model")
    drawing = ["draw", "a red circle", "--model", str(tmp_path / "model"), "-o"]
    for memory, said in ((2**40, "Loading in float32"), (2**20, "Computing in float32, with weights as stored, for which alone there is room")):
        monkeypatch.setattr(hardware, "machine_memory", lambda memory=memory: memory)
        done = CliRunner().invoke(app, [*drawing, str(tmp_path / f"{memory}.png")])
        assert done.exit_code == 0 and f"{said}: this CPU is slow." in done.stderr, done.output
    assert (tmp_path / f"{2**40}.png").read_bytes() == (tmp_path / f"{2**20}.png").read_bytes()
