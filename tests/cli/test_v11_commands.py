"""Every command, and both pipelines, on a model with the parts of VARGPT v1.1 that draw."""

import json

import pytest
import torch
from datasets import Dataset
from noise_images import noise_image
from PIL import Image
from toy_v11 import write_toy_v11_folder
from transformers import pipeline
from typer.testing import CliRunner

from vargpt_hf import VargptForConditionalGeneration, VargptPipeline, VargptProcessor
from vargpt_hf.cli import app
from vargpt_hf.inference.drawing import answer
from vargpt_hf.training.data import ROW_FEATURES, load_rows

EDIT = "make the red circle blue"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_v11_folder(tmp_path_factory.mktemp("toy_v11"))


def run(*arguments, text=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_draw_in_every_way(folder, tmp_path):
    drawn = {}
    ways = {name: ["--guidance", name, "--guidance-scale", 3] for name in ("none", "scale", "prompt", "noise")}
    ways |= {"wide": ["--height", 100, "--width", 200, "--scales-strip", tmp_path / "strip.png"]}
    for name, options in ways.items():
        run("draw", "draw a red circle", "--model", folder, "--greedy", "-o", tmp_path / "out.png", *options)
        drawn[name] = Image.open(tmp_path / "out.png").copy()
    assert drawn["wide"].size == (16, 8) and Image.open(tmp_path / "strip.png").size == (3 * 16, 8)
    assert len({image.tobytes() for image in drawn.values()}) == len(ways)  # guided and unguided drawings differ


def test_draw_from_an_image_under_a_mask(folder, tmp_path):
    noise_image(1, 16, 16).save(tmp_path / "in.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    mask.save(tmp_path / "mask.png")
    edit = ["draw", EDIT, "--image", tmp_path / "in.png", "--model", folder, "--greedy", "-o", tmp_path / "out.png"]
    run(*edit)
    free = Image.open(tmp_path / "out.png").copy()
    run(*edit, "--mask", tmp_path / "mask.png")
    assert Image.open(tmp_path / "out.png").size == (16, 16) and Image.open(tmp_path / "out.png").tobytes() != free.tobytes()
    noise_image(2, 40, 20).save(tmp_path / "in.png")  # a wide image is drawn wide
    run(*edit)
    assert Image.open(tmp_path / "out.png").size == (16, 8)


def test_draw_a_file_of_prompts(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("draw a red circle\nsay hello\n")
    for name, options in {"plain": ["none"], "guided": ["scale", "--height", 16, "--width", 16]}.items():
        run("draw", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / name, "--model", folder, "--greedy", "--guidance", *options)
    plain, guided = ((tmp_path / name / "000000.png").read_bytes() for name in ("plain", "guided"))
    assert plain != guided
    results = [json.loads(line) for line in (tmp_path / "guided" / "results.jsonl").read_text().splitlines()]
    assert [row["error"] for row in results] == [None, None]


def test_ask_chat_info_and_card(folder, tmp_path):
    noise_image(1, 16, 16).save(tmp_path / "in.png")
    assert run("ask", tmp_path / "in.png", "what is this", "--model", folder, "--max-new-tokens", 3).stdout.endswith("\n")
    lines = f"/image {tmp_path / 'in.png'}\n/draw {EDIT}\nsay hello\n/quit\n"
    assert "image-1.png" in run("chat", "--model", folder, "-o", tmp_path, "--max-new-tokens", 4, text=lines).stdout
    assert Image.open(tmp_path / "image-1.png").size in ((16, 16), (16, 8))
    assert "visual decoder" in run("info", "--model", folder).stdout
    run("card", folder, "--draw", "draw a red circle", "--overwrite")
    assert "21 codes of 6 × 2 classes" in (folder / "README.md").read_text()


def test_encode_and_train(folder, tmp_path):
    """Rows that read and draw, from codes made ahead, with adapters that reach the cross-attention."""
    ask = [{"type": "image"}, {"type": "text", "text": EDIT}]
    messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": [{"type": "output_image"}]}]
    images = [(noise_image(seed, 16, 16), noise_image(seed + 9, 16, 8 + 8 * (seed % 2))) for seed in range(4)]
    rows = [{"messages": messages, "images": [seen], "output_images": [drawn]} for seen, drawn in images]
    Dataset.from_list(rows, features=ROW_FEATURES).save_to_disk(tmp_path / "rows")
    encoded = run("encode", tmp_path / "rows", tmp_path / "codes", "--model", folder)
    assert "carry no self-correction" in encoded.output
    assert {len(row["output_image_codes"][0]) for row in load_rows(tmp_path / "codes")} == {11, 21}  # both sizes
    keys = {
        "stage": "v1_1_stage3",
        "model_name_or_path": str(folder),
        "train_data": str(tmp_path / "codes"),
        "output_dir": str(tmp_path / "out"),
    }
    keys |= {"max_steps": 2, "use_cpu": True, "bf16": False, "disable_tqdm": True, "per_device_train_batch_size": 2, "save_strategy": "no"}
    keys |= {"use_peft": True, "lora_preset": "draw", "sample_prompts": []}
    (tmp_path / "stage.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()))
    run("train", tmp_path / "stage.yaml")
    from safetensors.torch import load_file

    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    moved = [name for name, tensor in adapter.items() if ".cross_attn." in name and "lora_B" in name and tensor.abs().max() > 0]
    assert len(moved) == 8  # four projections in each of two layers


def test_pipelines(folder):
    pipe = pipeline("any-to-any", model=str(folder), pipeline_class=VargptPipeline, dtype=torch.float32)
    settings = {"generation_mode": "image", "do_sample": False, "output_image_guidance_scale": 3.0}
    plain, guided, wide = (
        pipe(EDIT, images=noise_image(1, 16, 16), **settings, **more)[0]["generated_image"]
        for more in ({}, {"output_image_guidance_type": "scale"}, {"output_image_aspect_ratio": 0.5})
    )
    assert plain.size == guided.size == (16, 16) and wide.size == (16, 8) and plain.tobytes() != guided.tobytes()
    chat = [{"role": "user", "content": [{"type": "image", "image": noise_image(1, 16, 16)}, {"type": "text", "text": "what is this"}]}]
    asks = pipeline("image-text-to-text", model=str(folder), dtype=torch.float32)
    assert isinstance(asks(text=chat, max_new_tokens=3, generate_kwargs={"generation_mode": "text"})[0]["generated_text"], (str, list))


@pytest.mark.parametrize("guidance", ["none", "scale", "prompt"])
def test_caches_draw_alike(folder, guidance):
    """Rows that read and rows that do not; a quantized cache rounds."""
    model, processor = VargptForConditionalGeneration.from_pretrained(folder, dtype="float32"), VargptProcessor.from_pretrained(folder)
    read = [{"role": "user", "content": [{"type": "image", "image": noise_image(1, 16, 16)}, {"type": "text", "text": EDIT}]}]
    settings = {"do_sample": False, "output_image_guidance_type": guidance, "output_image_size": [(16, 16), (8, 16)]}
    codes = {
        name: answer(model, processor, [read, "say hello"], "image", **settings, **cache).output.output_image_codes
        for name, cache in {
            "dynamic": {},
            "static": {"cache_implementation": "static"},
            "quantized": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
        }.items()
    }
    assert torch.equal(codes["dynamic"], codes["static"]) and codes["quantized"].shape == codes["dynamic"].shape == (2, 21)


def test_a_quantized_language_model_draws(folder):
    """The drawing side stays as it is."""
    from quantisers import QUANTISERS

    from vargpt_hf.peft import unquantized_modules

    plain = VargptForConditionalGeneration.from_pretrained(folder, dtype="float32")
    prompt = torch.tensor([[1, 7, 8, 9]])
    settings = {"generation_mode": "image", "do_sample": False, "return_dict_in_generate": True, "output_image_guidance_type": "scale"}
    for name in ("bitsandbytes, 8 bits", "torchao, 8 bits"):  # blocks of 4 bits are larger than the toy's matrices
        config = QUANTISERS[name](unquantized_modules(model=plain))
        model = VargptForConditionalGeneration.from_pretrained(folder, dtype="float32", quantization_config=config)
        for name, module in plain.model.visual_decoder.named_modules():
            if isinstance(module, torch.nn.Linear):
                assert torch.equal(model.model.visual_decoder.get_submodule(name).weight, module.weight), name
        rounded = type(model.model.vlm.language_model.layers[0].mlp.gate_proj.weight) is not torch.nn.Parameter
        assert rounded or model.model.vlm.language_model.layers[0].mlp.gate_proj.weight.dtype != torch.float32
        output = model.generate(prompt, **settings)
        assert output.output_image_codes.shape == (1, 21) and output.output_images.isfinite().all()
