"""Any model that reads, composed with a drawing side: it reads as before, bit by bit."""

import json
from pathlib import Path

import pytest
import torch
from backbone_configs import FAMILIES, IMAGE, reading_inputs
from golden_helpers import released_weights
from golden_v11_helpers import released_v11_part
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor
from typer.testing import CliRunner
from vlm_folders import reads_images, write_vlm

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor, VargptVQModel
from vargpt_hf.cli import app
from vargpt_hf.conversion.any_vlm import compose_any, size_of
from vargpt_hf.testing import tiny_config, tiny_model

PAD, BOS = 0, 1
NUM_WORDS = 61


@pytest.fixture(scope="module", autouse=True)
def image_tokenizer(tmp_path_factory):
    """A folder with a small image tokenizer, in the place where `compose` looks for it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    VargptVQModel(tiny_config().image_tokenizer_config).save_pretrained(folder)
    DRAWING["image_tokenizer"] = folder
    return folder


DRAWING: dict = {"decoder_size": "2,24,2"}


def compose(folder: Path, family: str, **options) -> VargptForConditionalGeneration:
    """What a family's folder `reader` beside it becomes in `folder`, loaded again."""
    source = {"vlm" if reads_images(family) else "llm": folder.parent / "reader"}
    compose_any(folder, **{**source, **DRAWING, **options})
    return VargptForConditionalGeneration.from_pretrained(folder, dtype="auto").eval()


def two_rows(family: str) -> dict[str, torch.Tensor]:
    """Tokens of two rows, each of which reads an image where the family does, with what its processor would give."""
    image = [IMAGE] * FAMILIES[family].num_placeholders
    ids = torch.tensor([[BOS, 5, 6, *image, 7, 8, 9], [BOS, *image, 11, 12, 13, 14, 15]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **reading_inputs(family, ids)}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_reads_as_before(family, tmp_path):
    """Logits through both classes are equal to the last bit, for whatever the model's own vocabulary has."""
    reader = write_vlm(tmp_path / "reader", family)
    model, inputs = compose(tmp_path / "composed", family), two_rows(family)
    logits, expected = model(**inputs).logits, reader(**inputs).logits
    assert torch.equal(logits[..., :NUM_WORDS], expected[..., :NUM_WORDS]) and logits.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["internvl", "qwen3_vl", "gemma3"])
def test_tied_or_not_the_head_is_the_models_own(family, tied, tmp_path):
    """Whatever the configuration says at its top and in its language model: the two disagree in some families."""
    reader = write_vlm(tmp_path / "reader", family, tied=tied)
    is_tied = reader.get_output_embeddings().weight is reader.get_input_embeddings().weight
    model, inputs = compose(tmp_path / "composed", family), two_rows(family)
    assert model.config.tie_word_embeddings == is_tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    assert torch.equal(model(**inputs).logits[..., :NUM_WORDS], reader(**inputs).logits[..., :NUM_WORDS])


@pytest.mark.parametrize("rows", [61, 62, 64, 100])
def test_new_tokens_take_rows_that_are_free_or_new_ones(rows, tmp_path):
    reader = write_vlm(tmp_path / "reader", "llava", rows=rows)
    model, processor = compose(tmp_path / "composed", "llava"), VargptProcessor.from_pretrained(tmp_path / "composed")
    assert model.config.text_config.vocab_size == max(rows, 64) == model.lm_head.out_features
    ids = [processor.output_image_start_token_id, processor.output_image_end_token_id, processor.output_image_token_id]
    assert ids == [61, 62, 63]
    for ours, theirs in ((model.get_input_embeddings(), reader.get_input_embeddings()), (model.lm_head, reader.get_output_embeddings())):
        kept = [row for row in range(rows) if row not in ids]
        assert torch.equal(ours.weight[kept], theirs.weight[kept])
        new, size = ours.weight[ids], theirs.weight.square().mean().sqrt()
        assert (new.square().mean(1).sqrt() / size - 1).abs().max() < 0.5
        assert (new[:, None] - new[None]).abs().sum(-1)[~torch.eye(3, dtype=torch.bool)].min() > 1  # they can be told apart


def test_tokens_in_reserve_are_used_where_no_row_is_free(tmp_path):
    reserve = [f"<|reserved_special_token_{number}|>" for number in range(4)]
    write_vlm(tmp_path / "reader", "llama", rows=61)
    rename_words(tmp_path / "reader", {word: token for word, token in zip(["w3", "w4", "w5", "w6"], reserve)})
    model, processor = compose(tmp_path / "composed", "llama"), VargptProcessor.from_pretrained(tmp_path / "composed")
    assert model.config.text_config.vocab_size == 61 and len(processor.tokenizer) == 61
    assert [processor.output_image_start_token, processor.output_image_token, processor.output_image_end_token] == reserve[1:]
    chat = [{"role": "user", "content": "draw a"}, {"role": "assistant", "content": [{"type": "output_image"}]}]
    text = processor.apply_chat_template(chat)
    assert "".join(reserve[1:]) in text
    inputs = processor(text=text, output_images=[Image.new("RGB", (16, 16))], return_tensors="pt")
    assert model(**inputs).output_image_logits.shape[1] == model.config.schedules[0].num_positions


def rename_words(folder: Path, names: dict[str, str]) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {names.get(word, word): token_id for word, token_id in content["model"]["vocab"].items()}
    file.write_text(json.dumps(content))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3"])
def test_either_side_gets_vectors_of_the_size_that_it_knows(family, tmp_path):
    """Gemma's embeddings are scaled after they are looked up, and its norms have one added to their weights."""
    write_vlm(tmp_path / "reader", family)
    model = compose(tmp_path / "composed", family).model
    schedule, seen = model.schedules[0], size_of(model.get_input_embeddings()(torch.arange(64)))
    codes = torch.randint(24, (8, schedule.num_positions), generator=torch.Generator().manual_seed(1))
    _, embeds = model.prepare_output_images(None, codes, None, None)
    assert size_of(embeds) == pytest.approx(seen, rel=0.2)
    hidden_states = model(torch.randint(3, 58, (4, 16), generator=torch.Generator().manual_seed(2))).last_hidden_state
    assert size_of(model.projector_to_decoder(hidden_states)) == pytest.approx(1.0, rel=0.3)


def test_the_image_tokenizer_is_that_of_the_folder(image_tokenizer, tmp_path):
    """Alone, or inside of a VARGPT."""
    write_vlm(tmp_path / "reader", "llava")
    expected = VargptVQModel.from_pretrained(image_tokenizer)
    model = compose(tmp_path / "composed", "llava")
    again = compose(tmp_path / "again", "llava", image_tokenizer=tmp_path / "composed")
    for found in (model, again):
        assert found.model.image_tokenizer.fingerprint() == expected.fingerprint()
    assert "reader and" in model.config.license_note and str(tmp_path) not in (tmp_path / "composed" / "README.md").read_text()


def test_settings_of_generation_are_the_models_own(tmp_path):
    reader = write_vlm(tmp_path / "reader", "llava")
    reader.generation_config.update(do_sample=True, temperature=0.7, top_k=20)
    reader.generation_config.save_pretrained(tmp_path / "reader")
    found = compose(tmp_path / "composed", "llava").generation_config
    assert (found.do_sample, found.temperature, found.top_k) == (True, 0.7, 20)
    assert found.output_image_unconditional_ids
    template = VargptProcessor.from_pretrained(tmp_path / "composed").chat_template
    assert template == AutoProcessor.from_pretrained(tmp_path / "reader").chat_template  # in which images to draw stand as text


def test_the_command_says_what_training_takes_before_it_loads(image_tokenizer, tmp_path, monkeypatch):
    write_vlm(tmp_path / "reader", "llava")
    sides = ["compose", "--vlm", str(tmp_path / "reader"), "--image-tokenizer", str(image_tokenizer), "--decoder-size", "2,24,2"]
    planned = CliRunner().invoke(app, [*sides, "--gpu-memory", "24", "--dry-run", str(tmp_path / "out")])
    assert planned.exit_code == 0, planned.exception
    for words in (
        "Parameters in millions: language model 0.0",
        "any_vlm/stage1: frozen",
        "fits 24 GB with 32 rows",
        "On 24 GB train any_vlm/stage1",
    ):
        assert words in planned.output, words
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*sides, str(tmp_path / "out")])
    assert done.exit_code == 0 and "Saved" in done.output and (tmp_path / "out" / "model.safetensors").exists()
    again = CliRunner().invoke(app, [*sides, str(tmp_path / "out")])
    assert isinstance(again.exception, FileExistsError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"llm": None, "vlm": None}, "Give one model that reads"),
        ({"llm": "x"}, "Give one model that reads"),
        ({"image_tokenizer": None}, "Give one image tokenizer"),
        ({"vqvae": "x"}, "Give one image tokenizer"),
        ({"decoder_size": "huge"}, "--decoder-size is 'huge'; it must be one of small .12,768,12., base"),
        ({"decoder_size": "2,0,2"}, "--decoder-size is '2,0,2'"),
        ({"var": "x"}, "leave out the weights of one"),
        ({"var": "x", "infinity": "y"}, "Give the weights of one visual decoder"),
        ({"scales": (1, 2)}, "--scales are the image tokenizer's own"),
    ],
)
def test_contradicting_options_are_refused(options, message, image_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        compose_any(tmp_path / "out", **{"vlm": str(tmp_path), "image_tokenizer": image_tokenizer, "decoder_size": "2,24,2", **options})


def refusal(tmp_path: Path, kind: type = ValueError, **options) -> str:
    with pytest.raises(kind) as raised:
        compose_any(tmp_path / "out", **{**DRAWING, **options})
    assert not (tmp_path / "out").exists() and (type(raised.value) is ValueError or isinstance(raised.value, OSError))
    return str(raised.value)


def test_what_cannot_be_composed_is_said(tmp_path):
    reader = tmp_path / "reader"
    write_vlm(reader, "llama")
    assert "reads texts only: give it as --llm, not as --vlm" in refusal(tmp_path, vlm=reader)
    assert "nowhere" in refusal(tmp_path, OSError, llm=tmp_path / "nowhere")
    tiny_model().save_pretrained(tmp_path / "vargpt")
    assert "is a VARGPT already" in refusal(tmp_path, vlm=tmp_path / "vargpt")
    assert "holds a model of type 'llama'; an image tokenizer is one of" in refusal(tmp_path, llm=reader, image_tokenizer=reader)
    assert "25 is not divisible by its 2 attention heads" in refusal(tmp_path, llm=reader, decoder_size="2,25,2")
    config = json.loads((reader / "config.json").read_text())
    quantization = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (reader / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    assert "are quantized: compose from the full ones" in refusal(tmp_path, llm=reader)
    (reader / "config.json").write_text(json.dumps({**config, "sep_token_id": 62}))
    assert "sep_token_id is 62, which its tokenizer lacks" in refusal(tmp_path, llm=reader)
    (reader / "config.json").write_text(json.dumps(config))
    weights = load_file(reader / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, reader / "model.safetensors", {"format": "pt"})
    assert "are not those of the LlamaForCausalLM that its config.json describes: missing: model.norm.weight" in refusal(tmp_path, llm=reader)
    save_file({**weights, "model.norm.weight": torch.full_like(norm, torch.nan)}, reader / "model.safetensors", {"format": "pt"})
    assert "vlm.norm.weight" in (said := refusal(tmp_path, llm=reader)) and "not finite" in said
    save_file({**weights, "model.norm.weight": norm[:3]}, reader / "model.safetensors", {"format": "pt"})
    assert "of another shape: model.norm.weight ((3,), not (32,))" in refusal(tmp_path, llm=reader)


@pytest.mark.parametrize("kind", ["mllama", "gemma3n"])
def test_models_that_could_not_draw_are_refused(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert "cannot be the reading side" in refusal(tmp_path, vlm=tmp_path)


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_the_drawing_side_is_vars(family, tmp_path):
    write_vlm(tmp_path / "reader", family)
    for name, prefix in (("var.pth", "vargpt_gen."), ("vae.pth", "vae_local.")):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in released_weights().items() if name.startswith(prefix)}
        torch.save(tensors, tmp_path / name)
    sides = {"var": tmp_path / "var.pth", "vqvae": tmp_path / "vae.pth"}
    model = compose(tmp_path / "composed", family, **sides, image_tokenizer=None, decoder_size=None)
    assert model.config.schedules[0].grids == ((1, 1), (2, 2), (3, 3), (4, 4))
    conditions = released_weights()["vargpt_gen.class_emb.weight"][[-1, -1]]
    assert torch.equal(model.model.visual_decoder.condition_embedding.weight, conditions)
    assert torch.equal(model.model.visual_decoder.head.weight, released_weights()["vargpt_gen.head.weight"])
    alone = compose(tmp_path / "fresh", family, vqvae=tmp_path / "vae.pth", scales=(1, 2, 3, 4), image_tokenizer=None)
    assert alone.model.image_tokenizer.fingerprint() == model.model.image_tokenizer.fingerprint()
    assert alone.config.visual_decoder_config.hidden_size == 24


def test_the_drawing_side_is_infinitys(tmp_path):
    write_vlm(tmp_path / "reader", "llava")
    torch.save(released_v11_part("vargpt_gen."), tmp_path / "infinity.pth")
    torch.save({"vae": released_v11_part("vae_local.")}, tmp_path / "vae.pth")
    sides = {"infinity": tmp_path / "infinity.pth", "bsq": tmp_path / "vae.pth", "scales": (1, 2, 3, 4)}
    model = compose(tmp_path / "composed", "llava", **sides, image_tokenizer=None, decoder_size=None)
    head = released_v11_part("vargpt_gen.")["head.weight"]
    assert torch.equal(model.model.visual_decoder.head.weight, head) and model.model.visual_decoder.uses_context
    output = model.generate(torch.tensor([[1, 5, 6]]), generation_mode="image", return_dict_in_generate=True)
    assert output.output_images.isfinite().all()
    with pytest.raises(ValueError, match="draws the codes of a VQ-VAE, Infinity's those of a BSQ-VAE"):
        compose_any(tmp_path / "other", vlm=tmp_path / "reader", infinity=tmp_path / "infinity.pth", image_tokenizer=DRAWING["image_tokenizer"])
