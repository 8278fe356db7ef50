"""Starting weights of stage 1, composed of a small LLaVA that Transformers wrote and of files in VAR's form."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from golden_helpers import golden_json, released_weights, write_word_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration
from typer.testing import CliRunner

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.cli import app
from vargpt_hf.conversion import compose_checkpoint
from vargpt_hf.conversion.assembly import assemble, write_folder
from vargpt_hf.conversion.checkpoint import SourceTensor
from vargpt_hf.conversion.compose import FRESH
from vargpt_hf.conversion.formats.llava import NAMES as LLAVA_NAMES
from vargpt_hf.conversion.formats.var import (
    DECODER_NAMES,
    VQ_NAMES,
    adapt_decoder,
    decoder_config_of,
    scales_of,
    stored_as,
    var_conditions,
    vq_config_of,
)
from vargpt_hf.conversion.renaming import Part
from vargpt_hf.conversion.shapes import TensorShapes
from vargpt_hf.processing import RELEASED_SYSTEM_PROMPT
from vargpt_hf.testing import tiny_model

IMAGE = 310
NEW = ["<|image_gen_start|>", "<|image_gen_end|>", "<|image_gen_pad|>"]


released_weights = cache(released_weights)


def part(prefix):
    """One of VAR's two files, out of the golden weights."""
    return {name.removeprefix(prefix): tensor for name, tensor in released_weights().items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with the three sources: llava/, var.pth, vae.pth."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    text = {"model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "image_size": 28}
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config={**text, "num_attention_heads": 4, "num_key_value_heads": 2},
            vision_config={**vision, "num_attention_heads": 2, "patch_size": 14},
            image_token_index=IMAGE,
            image_seq_length=4,
        )
    )
    llava.save_pretrained(folder / "llava")
    write_word_tokenizer(folder / "llava", {IMAGE: "<image>"}, size=317)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder / "llava")
    torch.save(part("vargpt_gen."), folder / "var.pth")
    torch.save(part("vae_local."), folder / "vae.pth")
    return folder


@pytest.fixture
def own_sources(sources, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(sources, tmp_path / "sources")


def compose(sources, destination, **options):
    compose_checkpoint(sources / "llava", sources / "var.pth", sources / "vae.pth", destination, **options)
    return destination


@pytest.fixture(scope="module")
def composed(sources, tmp_path_factory):
    return compose(sources, tmp_path_factory.mktemp("composed") / "start")


@pytest.fixture(scope="module")
def model(composed):
    return VargptForConditionalGeneration.from_pretrained(composed).eval()


@pytest.fixture(scope="module")
def processor(composed):
    return AutoProcessor.from_pretrained(composed)


def chat_inputs(processor):
    parts = [{"type": "image", "image": Image.new("RGB", (40, 30), "red")}, {"type": "text", "text": "w5 w6 w7"}]
    chat = [{"role": "user", "content": parts}]
    return processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_reads_exactly_as_llava_does(sources, model, processor):
    inputs = chat_inputs(processor)
    assert (inputs["input_ids"] == IMAGE).sum() == 4
    llava = LlavaForConditionalGeneration.from_pretrained(sources / "llava").eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, llava(**inputs).logits)


def test_decoder_and_image_tokenizer_are_vars(model, golden_model):
    conditions = released_weights()["vargpt_gen.class_emb.weight"][[-1, -1]]
    for name, tensor in golden_model.model.visual_decoder.state_dict().items():
        expected = conditions if name == "condition_embedding.weight" else tensor
        assert torch.equal(model.model.visual_decoder.state_dict()[name], expected), name
    assert model.config.image_tokenizer_config.schedules == [[1, 2, 3, 4]]
    for name, tensor in golden_model.model.image_tokenizer.state_dict().items():
        assert torch.equal(model.model.image_tokenizer.state_dict()[name], tensor), name


def test_draws_a_image(model, processor):
    torch.manual_seed(0)
    output = model.generate(**chat_inputs(processor), generation_mode="image", max_new_tokens=2, return_dict_in_generate=True)
    assert output.output_images.shape == (1, 3, 64, 64)
    assert torch.isfinite(output.output_images).all()


def test_folder_is_complete(composed):
    written = {path.name for path in composed.iterdir() if path.suffix != ".py"}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"} <= written
    assert "keep its own terms" in (composed / "README.md").read_text()


def test_processor_and_settings(model, processor):
    assert [processor.tokenizer.convert_tokens_to_ids(token) for token in NEW] == [317, 318, 319]
    config, settings = model.config, model.generation_config
    assert (config.image_token_id, config.output_image_start_token_id, config.output_image_end_token_id, config.output_image_token_id) == (
        310,
        317,
        318,
        319,
    )
    assert (processor.output_image_processor.sizes, list(processor.image_processor.image_mean)) == ([(64, 64)], [0.1, 0.2, 0.3])
    empty = processor(text=f"{RELEASED_SYSTEM_PROMPT} USER: ASSISTANT:")
    assert settings.output_image_unconditional_ids == empty["input_ids"][0]
    assert (settings.output_image_guidance_type, settings.pad_token_id, settings.eos_token_id) == ("prompt", 0, 2)


def test_new_tokens_of_the_real_vocabulary_have_the_released_ids(tmp_path):
    from vargpt_hf.conversion.compose import tokenizer_with_image_tokens, vocabulary_rows

    write_word_tokenizer(tmp_path, {32000: "<image>", 32001: "<pad2>"}, size=32002)
    tokenizer = tokenizer_with_image_tokens(tmp_path)
    assert tokenizer.convert_tokens_to_ids(NEW) == [32002, 32003, 32004]
    assert vocabulary_rows(32064, tokenizer) == 32064
    assert vocabulary_rows(32000, tokenizer) == 32064


def test_tables_without_room_grow_by_means(own_sources, tmp_path, model):
    write_word_tokenizer(own_sources / "llava", {IMAGE: "<image>"}, size=320)
    grown = VargptForConditionalGeneration.from_pretrained(compose(own_sources, tmp_path / "start"))
    assert grown.config.output_image_start_token_id == 320
    for new, old in ((grown.lm_head, model.lm_head), (grown.get_input_embeddings(), model.get_input_embeddings())):
        assert new.weight.shape[0] == 384
        assert torch.equal(new.weight[:320], old.weight)
        torch.testing.assert_close(new.weight[320:], old.weight.mean(0).expand(64, -1))


def test_projectors_are_fresh_and_seeded(model, sources, tmp_path):
    again = VargptForConditionalGeneration.from_pretrained(compose(sources, tmp_path / "again", dtype="bfloat16"))
    other = VargptForConditionalGeneration.from_pretrained(compose(sources, tmp_path / "other", seed=1))
    for name in FRESH:
        weight = f"{name}.fc1.weight"
        first = model.get_parameter(weight)
        assert torch.equal(again.get_parameter(weight), first.bfloat16())
        assert not torch.equal(other.get_parameter(weight), first)
        assert first.std().item() == pytest.approx(first.shape[1] ** -0.5, rel=0.05)
        assert not model.get_parameter(f"{name}.fc1.bias").any()


@pytest.mark.parametrize("form", ["Hub", "state dict", "state dict with vision_model"])
def test_all_names_of_llava_are_known(own_sources, tmp_path, model, form):
    def named(name):
        if form == "Hub":
            return name.replace("vision_tower.", "vision_tower.vision_model.")
        name = name.replace("language_model.model.", "language_model.")
        name = name.replace("vision_tower.", "vision_tower.vision_model.") if "vision_model" in form else name
        return "lm_head.weight" if name == "language_model.lm_head.weight" else f"model.{name}"

    file = own_sources / "llava" / "model.safetensors"
    tensors = load_file(file)
    assert "language_model.model.norm.weight" in tensors, "Transformers writes other names now: give their form a row here"
    save_file({named(name): tensor for name, tensor in tensors.items()}, file)
    found = VargptForConditionalGeneration.from_pretrained(compose(own_sources, tmp_path / "start"))
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_checkpoints_of_vars_own_training_are_read(own_sources, tmp_path, composed):
    trained = {"epoch": 3, "trainer": {"var_wo_ddp": part("vargpt_gen."), "vae_local": part("vae_local.")}, "args": "{}"}
    torch.save(trained, own_sources / "var.pth")
    torch.save(trained, own_sources / "vae.pth")
    compose(own_sources, tmp_path / "start")
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "start", composed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_tensors_are_not_copied(model):
    """What is handed to be written is the very memory that was read; mapped, it is that of the files."""
    inner = {"model.visual_decoder": part("vargpt_gen."), "model.image_tokenizer": part("vae_local.")}
    others = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith((*inner, *FRESH))}
    llava = {name.replace("model.vlm.", "model."): tensor for name, tensor in others.items()}
    tables = [LLAVA_NAMES, DECODER_NAMES, VQ_NAMES]
    prefixes = ["", *(f"{name}." for name in inner)]
    parts = [
        Part({name: SourceTensor(tensor, "file") for name, tensor in tensors.items()}, table, prefix)
        for tensors, table, prefix in zip([llava, *inner.values()], tables, prefixes)
    ]
    parts[1] = parts[1]._replace(adapt=lambda name, tensor: adapt_decoder(name, tensor, var_conditions))
    found = assemble(model.config, parts, torch.float32, "Wrong.", FRESH)
    read = {source.tensor.untyped_storage().data_ptr() for part in parts for source in part.tensors.values()}
    copied = {name for name, tensor in found.state_dict().items() if tensor.untyped_storage().data_ptr() not in read}
    projectors = {name for name in found.state_dict() if name.startswith(FRESH)}
    assert copied == {*projectors, "model.visual_decoder.condition_embedding.weight"}


def test_command(sources, tmp_path):
    arguments = ["--llava", sources / "llava", "--var", sources / "var.pth", "--vqvae", sources / "vae.pth", tmp_path / "start"]
    for option in (["--dry-run"], ["--gpu-memory", "24"]):
        result = CliRunner().invoke(app, ["compose", *map(str, arguments), "--scales", "1,2,3,4", *option])
        assert "docs/paper_scale.md has those of the papers" in str(result.exception) and not (tmp_path / "start").exists()
    result = CliRunner().invoke(app, ["compose", *map(str, arguments), "--scales", "1,2,3,4", "--dtype", "float16"])
    assert result.exit_code == 0, result.output
    assert VargptForConditionalGeneration.from_pretrained(tmp_path / "start").dtype == torch.float16


@pytest.mark.parametrize("destination", [".", "link"])
def test_an_empty_folder_may_be_there_under_any_name(tmp_path, monkeypatch, destination):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty" if destination == "." else tmp_path)
    write_folder(tiny_model(), None, Path(destination))
    assert (tmp_path / "empty" / "model.safetensors").exists() and (tmp_path / "link").is_symlink()


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_all_wrong_tensors_are_named_at_once(own_sources, tmp_path):
    file = own_sources / "llava" / "model.safetensors"
    tensors = load_file(file)
    del tensors["multi_modal_projector.linear_2.bias"], tensors["language_model.model.norm.weight"]
    save_file({**tensors, "image_newline": torch.zeros(3)}, file)
    decoder = part("vargpt_gen.")
    del decoder["blocks.1.attn.mat_qkv.weight"]
    torch.save({**decoder, "head.weight": torch.zeros(50, 128)}, own_sources / "var.pth")
    torch.save({name: tensor for name, tensor in part("vae_local.").items() if name != "quant_conv.bias"}, own_sources / "vae.pth")
    with pytest.raises(ValueError) as raised:
        compose(own_sources, tmp_path / "start")
    message = str(raised.value)
    assert "llava, var.pth and vae.pth do not make a VARGPT" in message
    assert "unexpected: image_newline (model.safetensors)" in message
    missing = "blocks.1.attn.mat_qkv.weight, language_model.model.norm.weight, multi_modal_projector.linear_2.bias, quant_conv.bias;"
    assert f"missing: {missing}" in message
    assert "head.weight (var.pth): model.visual_decoder.head.weight is (50, 128), not (64, 128)" in message
    assert not (tmp_path / "start").exists()


def test_parts_that_do_not_fit_each_other_are_refused(own_sources, tmp_path):
    changed = part("vae_local.") | {"quantize.embedding.weight": torch.zeros(99, 8)}
    torch.save(changed, own_sources / "vae.pth")
    with pytest.raises(ValueError, match=r"head.weight is \(64, 128\), not \(99, 128\)"):
        compose(own_sources, tmp_path / "start")


def test_shared_modulation_is_refused(own_sources, tmp_path):
    torch.save(part("vargpt_gen.") | {"shared_ada_lin.1.weight": torch.zeros(768, 128)}, own_sources / "var.pth")
    with pytest.raises(ValueError, match="share one AdaLN layer.*Take weights without it, such as var_d30.pth"):
        compose(own_sources, tmp_path / "start")


def test_swapped_files_are_refused(own_sources, tmp_path):
    (own_sources / "var.pth").rename(own_sources / "other.pth")
    (own_sources / "vae.pth").rename(own_sources / "var.pth")
    (own_sources / "other.pth").rename(own_sources / "vae.pth")
    with pytest.raises(ValueError, match=r"var\.pth lacks the tensor lvl_embed\.weight"):
        compose(own_sources, tmp_path / "start")


def test_scales_must_be_given_where_nothing_tells_them(own_sources, tmp_path):
    decoder = part("vargpt_gen.")
    del decoder["lvl_1L"]
    torch.save(decoder, own_sources / "var.pth")
    with pytest.raises(ValueError, match="give their side lengths as `scales`"):
        compose(own_sources, tmp_path / "start")
    assert compose(own_sources, tmp_path / "start", scales=(1, 2, 3, 4)).is_dir()


def test_absent_sources_are_named(own_sources, tmp_path):
    (own_sources / "vae.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*vae\.pth"):
        compose(own_sources, tmp_path / "start")
    (own_sources / "llava" / "tokenizer.json").unlink()
    torch.save(part("vae_local."), own_sources / "vae.pth")
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        compose(own_sources, tmp_path / "start")
    shutil.rmtree(own_sources / "llava")
    with pytest.raises(NotADirectoryError, match="is not a folder: download LLaVA-1.5 first"):
        compose(own_sources, tmp_path / "start")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "llava_next"}, "its model_type is 'llava_next', not 'llava'"),
        ({"text_config": None}, "has no `text_config`"),
        ({"image_token_index": None}, "no `image_token_index`"),
        ({"image_token_index": 5}, "`image_token_id` is 310 in the one, 5 in the other"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(own_sources, tmp_path, changes, message):
    file = own_sources / "llava" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        compose(own_sources, tmp_path / "start")


def test_pickles_with_code_are_refused(own_sources, tmp_path):
    torch.save({"trainer": {"var_wo_ddp": part("vargpt_gen.")}, "model": torch.nn.Linear(1, 1)}, own_sources / "var.pth")
    with pytest.raises(OSError, match="could run code") as refusal:
        compose(own_sources, tmp_path / "start")
    assert "\n" not in str(refusal.value) and "add_safe_globals" not in str(refusal.value)


def test_a_whole_destination_or_none(sources, tmp_path, monkeypatch):
    def fail(self, folder, **kwargs):
        raise OSError("disk full")

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(FileExistsError, match="new or empty"):
        compose(sources, tmp_path / "full")
    monkeypatch.setattr(VargptForConditionalGeneration, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        compose(sources, tmp_path / "start")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_every_golden_name_of_a_part_is_in_its_table():
    tables = {"vargpt_gen.": DECODER_NAMES, "vae_local.": VQ_NAMES}
    for prefix, table in tables.items():
        names = [name.removeprefix(prefix) for name in golden_json("keys") if name.startswith(prefix)]
        released = Part({}, table, "ours.")
        for name in names:
            ours = released.ours(name)
            assert ours is None or released.released(ours) == name


def test_sizes_of_the_paper_are_read_off_its_shapes():
    """Off shapes alone, on the meta device: 2 billion parameters need no memory."""
    paper = VargptConfig.v1()
    with torch.device("meta"):
        ours = VargptForConditionalGeneration(paper).state_dict()
    decoder = Part({}, DECODER_NAMES, "model.visual_decoder.", stored_as=stored_as)
    image_tokenizer = Part({}, VQ_NAMES, "model.image_tokenizer.")
    shapes = {}
    for released in (decoder, image_tokenizer):
        found = {released.released(name): tensor for name, tensor in ours.items() if name.startswith(released.prefix)}
        for name, tensor in found.items():  # two have axes of one more in VAR's files
            found[name] = tensor[None] if name == "pos_1LC" else tensor[None, :, None, None] if name.endswith("scale_mul_1H11") else tensor
        shapes[released.prefix] = TensorShapes(found)
    scales = scales_of(shapes[decoder.prefix])
    assert [list(scales)] == paper.image_tokenizer_config.schedules
    decoder_config = decoder_config_of(shapes[decoder.prefix])
    decoder_config.bind(paper.image_tokenizer_config)
    assert decoder_config.to_dict() == paper.visual_decoder_config.to_dict()
    assert vq_config_of(shapes[image_tokenizer.prefix], scales).to_dict() == paper.image_tokenizer_config.to_dict()
