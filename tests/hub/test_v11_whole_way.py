"""VARGPT v1.1 from a folder in the released format to a process that does not have this package, with toy weights.

The golden weights, the golden images; what is learned is one edit.
"""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from golden_helpers import write_word_tokenizer
from golden_v11_helpers import golden_v11, write_released_v11_folder
from peft import PeftModel, get_peft_model
from PIL import Image
from repository_helpers import run_without_package
from transformers.utils import is_torchvision_available
from typer.testing import CliRunner

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.cli import app
from vargpt_hf.conversion.convert import convert_checkpoint
from vargpt_hf.inference.drawing import answer
from vargpt_hf.modeling.image_tokenizer_vargpt import from_symbols
from vargpt_hf.peft import lora_config
from vargpt_hf.training.data import ROW_FEATURES

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


SPECIAL = {301: "<|endoftext|>", 302: "<|im_end|>", 303: "<|vision_start|>", 304: "<|vision_end|>", 305: "<|vision_pad|>"}
SPECIAL |= {306: "<|image_pad|>", 307: "<|video_pad|>", 308: "<|image_gen_start|>", 309: "<|image_gen_end|>", 310: "<|image_gen_pad|>"}


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.skipif(not is_torchvision_available(), reason="Qwen2-VL's processor needs torchvision")
def test_the_same_by_commands(tmp_path):
    """With the processor: convert, draw, edit under a mask, ask, train adapters on an edit, draw with them."""
    source = write_released_v11_folder(tmp_path / "released")
    write_word_tokenizer(source, SPECIAL)
    model = tmp_path / "model"
    run("convert", source, model, "--scales", "1,2,3,4")
    seen = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 70, 3), dtype=np.uint8))
    seen.save(tmp_path / "in.png")
    mask = Image.new("L", seen.size)
    mask.paste(255, (0, 0, 35, 70))
    mask.save(tmp_path / "mask.png")
    drawn = {}
    ways = {"plain": [], "unguided": ["--guidance", "none"], "read": ["--image", tmp_path / "in.png"]}
    ways["masked"] = [*ways["read"], "--mask", tmp_path / "mask.png"]
    for name, options in ways.items():
        run("draw", "w5 w6", "--model", model, "--greedy", "-o", tmp_path / "out.png", *options)
        drawn[name] = Image.open(tmp_path / "out.png").tobytes()
    assert len(set(drawn.values())) == len(ways)
    run("ask", tmp_path / "in.png", "w9", "--model", model, "--max-new-tokens", 2)

    ask = [{"type": "image"}, {"type": "text", "text": "w5 w6"}]
    messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": [{"type": "output_image"}]}]
    rows = [{"messages": messages, "images": [seen], "output_images": [seen.rotate(90)]}] * 2
    Dataset.from_list(rows, features=ROW_FEATURES).save_to_disk(tmp_path / "rows")
    keys = {"stage": "v1_1_stage3", "model_name_or_path": str(model), "train_data": str(tmp_path / "rows"), "output_dir": str(tmp_path / "out")}
    keys |= {"max_steps": 3, "use_cpu": True, "bf16": False, "disable_tqdm": True, "learning_rate": 0.01, "save_strategy": "no"}
    keys |= {"use_peft": True, "lora_preset": "draw", "sample_prompts": [], "per_device_train_batch_size": 2, "resize_factor": 1.0}
    (tmp_path / "stage.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()))
    run("train", tmp_path / "stage.yaml")
    adapted = PeftModel.from_pretrained(VargptForConditionalGeneration.from_pretrained(model), tmp_path / "out").eval()
    chat = [{"role": "user", "content": [{"type": "image", "image": seen}, {"type": "text", "text": "w5 w6"}]}]
    after = answer(adapted, VargptProcessor.from_pretrained(tmp_path / "out"), [chat], "image", do_sample=False).images[0]
    assert after.tobytes() != drawn["read"]
