"""Starting weights of VARGPT v1.1's stage 1, composed of a small Qwen2-VL that Transformers wrote and of files in Infinity's form."""

import re
import shutil

import pytest
import torch
from golden_helpers import write_word_tokenizer
from golden_v11_helpers import golden_v11_json, golden_v11_model, released_v11_part
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.utils import is_torchvision_available
from typer.testing import CliRunner

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.cli import app
from vargpt_hf.conversion.compose import FRESH
from vargpt_hf.conversion.compose_infinity import compose_v1_1
from vargpt_hf.inference.drawing import answer

NEW = ["<|image_gen_start|>", "<|image_gen_end|>", "<|image_gen_pad|>"]
SPECIAL = {300: "<|vision_start|>", 301: "<|vision_end|>", 302: "<|image_pad|>", 303: "<|video_pad|>"}
SCALES = {"scales": [1, 2, 3, 4], "reference_grid": (8, 8)}


def write_vlm(folder, words=317, tied=False):
    """A Qwen2-VL of the golden model's width, with 320 rows in its token tables."""
    sizes = golden_v11_json("config")
    text = {name: value for name, value in sizes["text"].items() if name not in ("mrope_section", "rope_theta", "vocab_size")}
    rope = {"rope_type": "default", "mrope_section": sizes["text"]["mrope_section"], "rope_theta": sizes["text"]["rope_theta"]}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    config = Qwen2VLConfig(
        text_config={**text, "vocab_size": 320, "rope_parameters": rope, **ids},
        vision_config=sizes["vision"],
        tie_word_embeddings=tied,
        **dict(zip(names, SPECIAL)),
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    write_word_tokenizer(folder, SPECIAL, size=words)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with the three sources: vlm/, infinity.pth, vae.pth."""
    folder = tmp_path_factory.mktemp("sources_v11")
    write_vlm(folder / "vlm")
    torch.save(released_v11_part("vargpt_gen."), folder / "infinity.pth")
    torch.save({"vae": released_v11_part("vae_local."), "epoch": 3}, folder / "vae.pth")
    return folder


def compose(sources, destination, **options):
    compose_v1_1(sources / "vlm", sources / "infinity.pth", sources / "vae.pth", destination, **{**SCALES, **options})
    return destination


@pytest.fixture
def own_sources(sources, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(sources, tmp_path / "sources")


@pytest.fixture(scope="module")
def composed(sources, tmp_path_factory):
    return compose(sources, tmp_path_factory.mktemp("composed_v11") / "start")


@pytest.fixture(scope="module")
def model(composed):
    return VargptForConditionalGeneration.from_pretrained(composed).eval()


def chat_inputs(config):
    """Two rows, one of which reads an image."""
    image = [config.vision_start_token_id, *[config.image_token_id] * 6, config.vision_end_token_id]
    ids = torch.tensor([[5, 6, *image, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]])
    vision = config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(24, width, generator=torch.Generator().manual_seed(0))
    types = (ids == config.image_token_id).int()
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 6]]), "mm_token_type_ids": types}


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_reads_exactly_as_qwen2_vl_does(tied, sources, model, tmp_path):
    folder = sources / "vlm"
    if tied:
        folder = write_vlm(tmp_path / "vlm", tied=True)
        compose_v1_1(folder, sources / "infinity.pth", sources / "vae.pth", tmp_path / "start", **SCALES)
        model = VargptForConditionalGeneration.from_pretrained(tmp_path / "start").eval()
        assert model.lm_head.weight is model.get_input_embeddings().weight
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    inputs = chat_inputs(theirs.config)
    positions, _ = model.model.backbone.positions(inputs["input_ids"], torch.ones(2, 12), image_grid_thw=inputs["image_grid_thw"])
    inputs["position_ids"] = positions
    assert torch.equal(model(**inputs).logits, theirs(**inputs).logits)


def test_decoder_and_image_tokenizer_are_infinitys(model):
    golden = golden_v11_model()
    for part in ("visual_decoder", "image_tokenizer"):
        found = getattr(model.model, part).state_dict()
        for name, tensor in getattr(golden.model, part).state_dict().items():
            assert torch.equal(found[name], tensor) is (name != "condition_embedding"), name
    config = model.config
    assert (config.image_loss_weight, config.plain_positions) == (3.0, True)
    assert [list(grid) for grid in config.visual_decoder_config.reference_grids] == [[8, 8]]


def test_what_is_fresh_follows_the_seed(model, sources, tmp_path):
    again = VargptForConditionalGeneration.from_pretrained(compose(sources, tmp_path / "again", dtype="bfloat16"))
    other = VargptForConditionalGeneration.from_pretrained(compose(sources, tmp_path / "other", seed=1))
    for name in (*(f"{path}.fc1.weight" for path in FRESH), "model.visual_decoder.condition_embedding"):
        first = model.get_parameter(name)
        assert torch.equal(again.get_parameter(name), first.bfloat16())
        assert not torch.equal(other.get_parameter(name), first)


def test_drawing_tokens_have_the_ids_that_the_tokenizer_gives(model, composed, own_sources, tmp_path):
    config = model.config
    ids = (config.output_image_start_token_id, config.output_image_end_token_id, config.output_image_token_id)
    assert ids == tuple(AutoTokenizer.from_pretrained(composed).convert_tokens_to_ids(NEW)) == (317, 318, 319)
    assert model.lm_head.weight.shape[0] == 320  # rows in reserve
    write_word_tokenizer(own_sources / "vlm", SPECIAL, size=320)
    grown = VargptForConditionalGeneration.from_pretrained(compose(own_sources, tmp_path / "start"))
    assert grown.config.output_image_start_token_id == 320
    for new, old in ((grown.lm_head, model.lm_head), (grown.get_input_embeddings(), model.get_input_embeddings())):
        assert new.weight.shape[0] == 384 and torch.equal(new.weight[:320], old.weight)
        torch.testing.assert_close(new.weight[320:], old.weight.mean(0).expand(64, -1))


def test_it_draws(model):
    torch.manual_seed(0)
    inputs = chat_inputs(model.config.vlm_config)
    output = model.generate(**inputs, generation_mode="image", max_new_tokens=2, return_dict_in_generate=True)
    assert output.output_images.shape == (2, 3, 64, 64) and output.output_images.isfinite().all()
    assert model.generation_config.output_image_guidance_type == "scale" and model.generation_config.eos_token_id == 2


def test_both_spellings_of_the_image_tokenizer(model, own_sources, tmp_path):
    def plain(name: str) -> str:
        return re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", name)

    tensors = {plain(name): tensor for name, tensor in released_v11_part("vae_local.").items()}
    assert "encoder.conv_in.weight" in tensors and "encoder.down.0.downsample.conv.weight" in tensors
    torch.save({"vae": tensors}, own_sources / "vae.pth")
    found = VargptForConditionalGeneration.from_pretrained(compose(own_sources, tmp_path / "start")).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_layouts_of_qwen2_vl(model, own_sources, tmp_path):
    """As older versions of Transformers wrote it, and as its state dict is today."""
    file = own_sources / "vlm" / "model.safetensors"
    tensors = load_file(file)

    def old(name: str) -> str:
        return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")

    def new(name: str) -> str:
        name = re.sub(r"^model\.(?!visual|language_model)", "model.language_model.", name)
        return re.sub(r"^visual\.", "model.visual.", name)

    for form, named in {"old": old, "new": new}.items():
        save_file({named(name): tensor for name, tensor in tensors.items()}, file)
        assert any(name.startswith("visual." if form == "old" else "model.visual.") for name in load_file(file))
        found = VargptForConditionalGeneration.from_pretrained(compose(own_sources, tmp_path / form)).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not is_torchvision_available(), reason="Qwen2-VL's processor needs torchvision")
def test_beside_torchvision_the_folder_has_a_processor(composed, model):
    processor = VargptProcessor.from_pretrained(composed)
    processor.check_fits(model.config)
    seen = Image.fromarray(torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8).numpy())
    chat = [{"role": "user", "content": [{"type": "image", "image": seen}, {"type": "text", "text": "w5 w6"}]}]
    drawn = answer(model, processor, [chat, "w7"], "image", seeds=[1, 2])
    assert [image.size for image in drawn.images] == [(64, 64)] * 2
    rendered = processor.apply_chat_template(chat)
    assert rendered.count("<|image_pad|>") == 1 and rendered.startswith("<|im_start|>system")


def test_without_torchvision_the_folder_has_a_tokenizer(composed, own_sources, tmp_path, monkeypatch, caplog):
    def missing(*_):
        raise ImportError("Qwen2VLProcessor needs torchvision. Install it.")

    monkeypatch.setattr("vargpt_hf.conversion.formats.qwen2_vl.make_processor", missing)
    folder = compose(own_sources, tmp_path / "start")
    assert (folder / "tokenizer.json").is_file() and not (folder / "processor_config.json").exists()
    said = [record.getMessage() for record in caplog.records if "no processor" in record.getMessage()]
    assert said == ["The new folder has a tokenizer but no processor: Qwen2VLProcessor needs torchvision. Install it. Then compose again."]


def test_command(sources, tmp_path):
    files = {"--vlm": "vlm", "--infinity": "infinity.pth", "--bsq": "vae.pth"}
    arguments = [str(part) for option, name in files.items() for part in (option, sources / name)]
    result = CliRunner().invoke(app, ["compose", *arguments, str(tmp_path / "start"), "--scales", "1,2,3,4", "--dtype", "float16"])
    assert result.exit_code == 0, result.output
    assert VargptForConditionalGeneration.from_pretrained(tmp_path / "start").dtype == torch.float16
    wrong = {
        "Give one image tokenizer": arguments[:4],
        "--llava .VARGPT v1. goes with": [*arguments, "--llava", "x"],
        "Give one model that": [],
    }
    for message, given in wrong.items():
        result = CliRunner().invoke(app, ["compose", *given, str(tmp_path / "other")])
        assert re.search(message, str(result.exception or result.output)) and result.exit_code


# ---- what is refused


def test_all_wrong_tensors_are_named_at_once(own_sources, tmp_path):
    decoder, tokenizer = released_v11_part("vargpt_gen."), released_v11_part("vae_local.")
    del decoder["block_chunks.0.module.0.ca.mat_q.bias"], tokenizer["encoder.conv_out.conv.bias"]
    torch.save({**decoder, "something": torch.zeros(1), "head.weight": torch.zeros(3, 3)}, own_sources / "infinity.pth")
    torch.save({"vae": tokenizer}, own_sources / "vae.pth")
    with pytest.raises(ValueError, match="vlm, infinity.pth and vae.pth do not make a VARGPT") as raised:
        compose(own_sources, tmp_path / "start")
    message = str(raised.value)
    assert "unexpected: something (infinity.pth)" in message and "cross_attn.q_proj.bias" in message and "encoder.conv_out" in message
    assert "head.weight (infinity.pth): model.visual_decoder.head.weight is (3, 3)" in message
    assert not (tmp_path / "start").exists()


def test_other_sources_are_refused(own_sources, tmp_path):
    (own_sources / "vae.pth").rename(own_sources / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*vae\.pth"):
        compose(own_sources, tmp_path / "start")
    shutil.copy(own_sources / "infinity.pth", own_sources / "vae.pth")
    with pytest.raises(ValueError, match=r"vae\.pth lacks the tensor encoder\.conv_in\.weight"):
        compose(own_sources, tmp_path / "start")
    torch.save({"vae": print}, own_sources / "vae.pth")
    with pytest.raises(OSError, match="pickle with more than tensors"):
        compose(own_sources, tmp_path / "start")
    text = (own_sources / "vlm" / "config.json").read_text()
    (own_sources / "vlm" / "config.json").write_text(text.replace('"qwen2_vl"', '"llava"'))
    with pytest.raises(ValueError, match="is not a Qwen2-VL in Transformers' format: its model_type is 'llava'"):
        compose(own_sources, tmp_path / "start")
    with pytest.raises(NotADirectoryError, match="download Qwen2-VL first"):
        compose_v1_1(tmp_path / "nowhere", own_sources / "infinity.pth", own_sources / "other.pth", tmp_path / "start")
