"""VARGPT v1.1 from a folder in the released format to a process that does not have this package, with toy weights.

The golden weights, the golden images; what is learned is one edit.
"""

import json

import pytest
import torch
from golden_v11_helpers import golden_v11, write_released_v11_folder
from peft import PeftModel, get_peft_model
from repository_helpers import run_without_package

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.conversion.convert import convert_checkpoint
from vargpt_hf.modeling.image_tokenizer_vargpt import from_symbols
from vargpt_hf.peft import lora_config

RELOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForMultimodalLM

folder, adapter, inputs = sys.argv[1:]
model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
inputs = torch.load(inputs)
settings = {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True, "output_image_guidance_type": "none"}
drawn = [model.generate(inputs["plain"], generation_mode="image", do_sample=False, return_dict_in_generate=True)]
drawn.append(PeftModel.from_pretrained(model, adapter).generate(**inputs["edit"], **settings))
assert "vargpt_hf" not in sys.modules
print(json.dumps([output.output_image_codes.tolist() for output in drawn]))
"""


def golden_codes(case: str) -> torch.LongTensor:
    return from_symbols(torch.cat([golden_v11(f"generation/{case}.bits_{scale}") for scale in range(4)]).long(), 2)[None]


def edit_inputs() -> dict[str, torch.Tensor]:
    names = {"input_ids": "prompt_ids", "pixel_values": "pixel_values", "image_grid_thw": "image_grid_thw"}
    return {name: golden_v11(f"generation/edit.{golden}") for name, golden in names.items()}


def edited(model, **settings) -> torch.LongTensor:
    """Codes of the image that the model draws after it has read one."""
    options = {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True, "output_image_guidance_type": "none"}
    return model.generate(**edit_inputs(), **{**options, **settings}).output_image_codes


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    parent = tmp_path_factory.mktemp("v11_whole_way")
    convert_checkpoint(write_released_v11_folder(parent / "released"), parent / "model", scales=[1, 2, 3, 4], reference_grid=(8, 8))
    return parent / "model"


def training_inputs(model, codes: torch.LongTensor) -> dict[str, torch.Tensor]:
    """The edit as a row: the image that is read, the instruction, and the drawing that is wanted."""
    config, inputs = model.config, edit_inputs()
    drawing = [config.output_image_start_token_id, *[config.output_image_token_id] * codes.shape[1], config.output_image_end_token_id]
    ids = torch.cat([inputs["input_ids"], torch.tensor([drawing])], dim=1)
    labels = ids.clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100
    reading, _ = model.model.backbone.positions(ids, torch.ones_like(ids), image_grid_thw=inputs["image_grid_thw"])
    positions = torch.where(torch.arange(ids.shape[1]) < inputs["input_ids"].shape[1], reading, torch.arange(ids.shape[1]))
    inputs |= {"input_ids": ids, "labels": labels, "position_ids": positions, "output_image_codes": codes}
    return inputs


def test_from_the_released_format_to_a_process_without_the_package(converted, tmp_path):
    model = VargptForConditionalGeneration.from_pretrained(converted)
    prompt = golden_v11("generation/cfg3.prompt_ids")
    plain = model.generate(prompt, generation_mode="image", do_sample=False, return_dict_in_generate=True).output_image_codes
    assert torch.equal(plain, golden_codes("cfg3"))  # the golden image, to the bit, with the settings that the folder has

    before = edited(model)
    assert torch.equal(edited(model, output_image_guidance_type="scale"), golden_codes("edit"))
    wanted = before.clone()
    wanted[:, 5:] = golden_codes("plain")[:, 5:]  # other bits at the finer scales
    redrawn = torch.zeros_like(wanted)
    redrawn[:, 14:20] = 1
    kept = edited(model, output_image_codes_to_keep=wanted, output_image_mask=redrawn)
    assert torch.equal(kept[redrawn == 0], wanted[redrawn == 0]) and not torch.equal(kept, wanted)

    torch.manual_seed(0)
    adapted = get_peft_model(model, lora_config("draw", r=8, lora_alpha=16))
    inputs, optimizer = training_inputs(model, wanted), torch.optim.AdamW(adapted.parameters(), lr=3e-3)
    adapted.train()
    model.model.visual_decoder.config.condition_dropout = 0.0
    for _ in range(60):
        optimizer.zero_grad()
        adapted(**inputs).output_image_loss.backward()
        optimizer.step()
    assert torch.equal(edited(adapted.eval()), wanted)  # it has learned the edit
    adapted.save_pretrained(tmp_path / "adapter")

    again = PeftModel.from_pretrained(VargptForConditionalGeneration.from_pretrained(converted), tmp_path / "adapter").eval()
    assert torch.equal(edited(again), wanted)
    torch.save({"plain": prompt, "edit": edit_inputs()}, tmp_path / "inputs.pt")
    printed = json.loads(run_without_package(RELOAD, tmp_path, converted, tmp_path / "adapter", tmp_path / "inputs.pt"))
    assert printed == [plain.tolist(), wanted.tolist()]
