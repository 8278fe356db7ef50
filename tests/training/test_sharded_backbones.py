"""Weights of other reading models than LLaVA are sharded by layers, too, and make the steps of one process."""

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from backbone_configs import FAMILIES, IMAGE, backbone_config, reading_inputs
from ranks import run_ranks

from vargpt_hf.testing import tiny_model
from vargpt_hf.training.stages import apply_stage

# Layers of the language model and of the vision tower, by family.
LAYERS = {
    "llava": ("vlm.language_model.layers", "vlm.vision_tower.encoder.layers"),
    "qwen2_vl": ("vlm.language_model.layers", "vlm.visual.blocks"),
    "qwen2_5_vl": ("vlm.language_model.layers", "vlm.visual.blocks"),
    "qwen3_vl": ("vlm.language_model.layers", "vlm.visual.blocks"),
    "qwen3_5": ("vlm.language_model.layers", "vlm.visual.blocks"),
    "smolvlm": ("vlm.text_model.layers", "vlm.vision_model.encoder.layers"),
    "gemma3": ("vlm.language_model.layers", "vlm.vision_tower.encoder.layers"),
    "qwen3": ("vlm.layers",),
}


@pytest.mark.parametrize("family", LAYERS)
def test_every_layer_is_a_unit(family):
    """What accelerate makes of `examples/accelerate/fsdp2.yaml`: a unit for each layer of what reads and of what draws."""
    model = tiny_model(vlm_config=backbone_config(family))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    is_unit = fsdp2_prepare_auto_wrap_policy(plugin, model)
    units = {name for name, module in model.named_modules() if is_unit(module)}
    assert units >= {f"model.{part}.{index}" for part in (*LAYERS[family], "visual_decoder.layers") for index in range(2)}


SHARDED = """
from datetime import timedelta
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from test_sharded_backbones import steps, trained_model

family, out = sys.argv[1:]
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
model, mesh = trained_model(family), init_device_mesh("cpu", (2,))
ignored = set(model.model.image_tokenizer.parameters())
for name in [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]:
    fully_shard(model.get_submodule(name), mesh=mesh, ignored_params=ignored)
fully_shard(model, mesh=mesh, ignored_params=ignored)
assert all(isinstance(p, DTensor) for name, p in model.named_parameters() if ".image_tokenizer." not in name)
losses = torch.tensor(steps(model, family, dist.get_rank()))
dist.all_reduce(losses)
whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if dist.get_rank() == 0:
    torch.save({"losses": losses / 2, "weights": whole}, out + "/sharded.pt")
"""


def trained_model(family: str):
    """A model all of whose parts are trained but for the image tokenizer, with nothing random."""
    decoder = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "drop_path_rate": 0.0, "condition_dropout": 0.0}
    model = tiny_model(vlm_config=backbone_config(family), visual_decoder_config=decoder)
    apply_stage(model, "v1_1_stage5")
    return model.train()


def steps(model, family: str, rank: int | None) -> list[float]:
    """Three steps of gradient descent over rows that read and draw, of one rank or of both at once; the losses before each."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    ids = torch.tensor(
        [[1, index + 4, *[IMAGE] * FAMILIES[family].num_placeholders, 7, 61, *[63] * 21, 62, index + 9, 2] for index in range(2)]
    )
    chosen, losses = slice(None) if rank is None else slice(rank, rank + 1), []
    for step in range(3):
        codes = torch.randint(24, (2, 21), generator=torch.Generator().manual_seed(step))[chosen]
        images = [reading_inputs(family, ids[index : index + 1], seed=10 * step + index) for index in range(2)][chosen]
        reading = {name: torch.cat([image[name] for image in images]) for name in images[0]}
        loss = model(input_ids=ids[chosen], labels=ids[chosen], output_image_codes=codes, use_cache=False, **reading).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_sharded_qwen_makes_the_steps_of_one_process(tmp_path):
    family = "qwen3_vl"  # images enter several layers, which are units of their own
    run_ranks(tmp_path, SHARDED, family, tmp_path)
    found = torch.load(tmp_path / "sharded.pt")
    model = trained_model(family)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(found["losses"].tolist(), steps(model, family, None), atol=1e-5, rtol=1e-4)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert any("visual.blocks" in name for name in changed) and any("language_model.layers" in name for name in changed)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["weights"][name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
