"""Conversion of released checkpoints: what it makes of each form, and what it refuses."""

import json
import shutil

import pytest
import torch
from golden_helpers import golden_json, released_config, released_weights, write_released_folder, write_word_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.conversion.convert import convert_checkpoint
from vargpt_hf.processing import RELEASED_SYSTEM_PROMPT

IMAGE_TOKENS = {310: "<image>", 311: "<|image_gen_start|>", 312: "<|image_gen_end|>", 313: "<|image_gen_pad|>"}


@pytest.fixture(scope="module")
def weights():
    return released_weights()


@pytest.fixture
def converted(tmp_path, weights):
    """Function that converts changed weights or config and returns the new folder."""

    def convert(weights=weights, config=None, form="safetensors", **options):
        source = write_released_folder(tmp_path / "source", weights, config, form)
        convert_checkpoint(source, tmp_path / "ours", **options)
        return tmp_path / "ours"

    return convert


def test_sizes_are_read_off_the_shapes(golden_model):
    sizes, config = golden_json("config"), golden_model.config
    vq, decoder = config.image_tokenizer_config, config.visual_decoder_config
    assert (vq.codebook_size, vq.latent_channels, vq.base_channels) == (64, 8, 32)
    assert vq.schedules == [list(sizes["var"]["patch_nums"])]
    assert vq.channel_multipliers == tuple(sizes["derived"]["vae_ch_mult"])
    assert (vq.image_size(), vq.num_res_blocks, vq.num_residual_convs, vq.quant_conv_kernel_size) == ((64, 64), 2, 4, 3)
    assert (decoder.hidden_size, decoder.num_hidden_layers, decoder.num_attention_heads, decoder.mlp_ratio) == (128, 2, 2, 4)
    assert (config.image_token_id, config.output_image_start_token_id) == (310, 311)
    assert (config.output_image_end_token_id, config.output_image_token_id, config.vlm_config.image_seq_length) == (312, 313, 4)
    assert config.text_config.num_key_value_heads == 2
    assert config.vision_config.hidden_act == "quick_gelu"


def test_released_settings_of_generation(golden_folder):
    found = GenerationConfig.from_pretrained(golden_folder)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id, found.do_sample) == (1, 2, 0, True)
    assert (found.output_image_guidance_type, found.output_image_guidance_scale) == ("noise", 1.5)
    assert (found.output_image_top_k, found.output_image_top_p) == (900, 0.96)


def test_folder_is_complete_and_says_the_licence(golden_folder):
    names = {path.name for path in golden_folder.iterdir() if path.suffix != ".py"}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert "for research only" in (golden_folder / "README.md").read_text()
    assert isinstance(AutoModelForImageTextToText.from_pretrained(golden_folder), VargptForConditionalGeneration)


@pytest.mark.parametrize("form", ["sharded safetensors", "bin", "sharded bin"])
def test_all_forms_give_the_same_weights(converted, golden_model, form):
    model = VargptForConditionalGeneration.from_pretrained(converted(form=form))
    expected = golden_model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_legacy_pickles_are_read(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", {}, form="bin")
    torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert_checkpoint(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").is_file()


def test_only_two_condition_rows_are_kept(golden_model, weights):
    released = weights["vargpt_gen.class_emb.weight"]
    kept = golden_model.model.visual_decoder.condition_embedding.weight
    assert torch.equal(kept, released[[311, 312]])


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_of_the_new_weights(converted, golden_model, dtype):
    folder = converted(dtype=dtype)
    model = VargptForConditionalGeneration.from_pretrained(folder)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if ".quantizer." in name else wanted), name
    # Every golden weight is exact in both.
    assert torch.equal(model.lm_head.weight.float(), golden_model.lm_head.weight)


def test_dtype_is_that_of_the_source_by_default(converted, weights):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    config = {name: value for name, value in released_config().items() if name != "torch_dtype"}
    model = VargptForConditionalGeneration.from_pretrained(converted(half, config))
    assert model.dtype == torch.float16


def test_weights_can_be_sharded(converted, golden_model):
    folder = converted(max_shard_size="2MB")
    assert (folder / "model.safetensors.index.json").is_file()
    model = VargptForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, golden_model.lm_head.weight)


def test_buffers_of_older_versions_are_dropped(converted, weights):
    old = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    assert (converted({**weights, **old}) / "config.json").is_file()


# -- scales ------------------------------------------------------------------------------------------------------------


def without_scale_buffer(weights):
    return {name: tensor for name, tensor in weights.items() if name != "vargpt_gen.lvl_1L"}


def test_scales_must_be_given_where_nothing_tells_them(converted, weights, tmp_path):
    with pytest.raises(ValueError, match=r"4 scales with 30 positions in all.*give their side lengths as `scales`"):
        converted(without_scale_buffer(weights))
    shutil.rmtree(tmp_path / "source")
    config = json.loads((converted(without_scale_buffer(weights), scales=[1, 2, 3, 4]) / "config.json").read_text())
    assert config["image_tokenizer_config"]["schedules"] == [[1, 2, 3, 4]]


def test_scales_that_do_not_fit_are_refused(converted):
    with pytest.raises(ValueError, match=r"30 positions in all, but the scales \(1, 2, 3, 5\) are 4 with 39 positions"):
        converted(scales=(1, 2, 3, 5))


def test_var_schedule_is_recognised():
    from vargpt_hf.conversion.formats.var import scales_of
    from vargpt_hf.conversion.shapes import TensorShapes

    tensors = {"lvl_embed.weight": torch.empty(10, 4), "pos_1LC": torch.empty(1, 680, 4)}
    assert scales_of(TensorShapes(tensors)) == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


# -- what is refused ---------------------------------------------------------------------------------------------------


def changed(weights, drop=(), **more):
    return {**{name: tensor for name, tensor in weights.items() if name not in drop}, **more}


def test_all_wrong_tensors_are_named_at_once(converted, weights):
    wrong = changed(
        weights,
        drop=("vae_local.quant_conv.bias", "vargpt_gen.blocks.1.attn.mat_qkv.weight"),
        **{"vargpt_gen.blocks.0.extra": torch.zeros(1), "image_gen_projector.mlp.0.bias": torch.zeros(7)},
    )
    with pytest.raises(ValueError) as raised:
        converted(wrong)
    message = str(raised.value)
    assert "unexpected: vargpt_gen.blocks.0.extra (model.safetensors)" in message
    assert "missing: vae_local.quant_conv.bias, vargpt_gen.blocks.1.attn.mat_qkv.weight;" in message
    assert "image_gen_projector.mlp.0.bias (model.safetensors)" in message
    assert "is (7,), not (128,)" in message


def test_condition_table_of_another_vocabulary_is_refused(converted, weights):
    with pytest.raises(ValueError, match=r"vargpt_gen\.class_emb\.weight .*is \(500, 128\), not \(2, 128\)"):
        converted(changed(weights, **{"vargpt_gen.class_emb.weight": torch.zeros(500, 128)}))


def test_tensor_in_two_shards_is_refused(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", weights, form="sharded bin")
    first, second = source / "pytorch_model-00001-of-00003.bin", source / "pytorch_model-00002-of-00003.bin"
    again = next(iter(torch.load(first)))
    torch.save({**torch.load(second), again: weights[again]}, second)
    with pytest.raises(ValueError, match=rf"two files at once: {again} \({first.name}, {second.name}\)"):
        convert_checkpoint(source, tmp_path / "ours")


def test_tensor_from_which_a_size_is_read_is_missing(converted, weights):
    with pytest.raises(ValueError, match=r"lacks the tensor vae_local\.quantize\.embedding\.weight"):
        converted(changed(weights, drop=("vae_local.quantize.embedding.weight",)))


def test_absent_shards_and_weights_are_named(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", weights, form="sharded safetensors")
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has not: model-00002-of-00003\.safetensors"):
        convert_checkpoint(source, tmp_path / "ours")
    (source / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        convert_checkpoint(source, tmp_path / "ours")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_damaged_files_are_refused(tmp_path, weights, form):
    source = write_released_folder(tmp_path / "source", weights, form=form)
    file = next(path for path in source.iterdir() if path.suffix == f".{form}")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(OSError, match=rf"{file.name} cannot be read as weights"):
        convert_checkpoint(source, tmp_path / "ours")


class Payload:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("code was run",)


def test_pickled_code_is_not_run(tmp_path, weights, capsys):
    source = write_released_folder(tmp_path / "source", {**weights, "payload": Payload()}, form="bin")
    with pytest.raises(OSError, match="could run code"):
        convert_checkpoint(source, tmp_path / "ours")
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "model_type, message",
    [("vargpt", "needs no conversion"), ("llava", "is not a released VARGPT checkpoint: its model_type is 'llava'")],
)
def test_other_formats_are_refused(tmp_path, model_type, message):
    source = write_released_folder(tmp_path / "source", {}, {"model_type": model_type})
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "ours")


def test_sources_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        convert_checkpoint(tmp_path / "nothing", tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        convert_checkpoint(tmp_path, tmp_path / "ours")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match="is not JSON"):
        convert_checkpoint(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize("field", ["text_config", "vision_config", "special_tokens"])
def test_config_without_a_needed_field_is_refused(converted, field):
    config = {name: value for name, value in released_config().items() if name != field}
    with pytest.raises(ValueError, match=rf"no .*{'image_gen_start_token_id' if field == 'special_tokens' else field}"):
        converted(config=config)


def test_wrong_dtype_is_refused(converted):
    with pytest.raises(ValueError, match="floating-point type"):
        converted(dtype="int8")


def test_destination_with_content_is_left_alone(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", weights)
    (tmp_path / "ours").mkdir()
    convert_checkpoint(source, tmp_path / "ours")  # an empty folder is filled
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ours").iterdir()}
    with pytest.raises(FileExistsError, match="new or empty"):
        convert_checkpoint(source, tmp_path / "ours")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ours").iterdir()} == before


def test_nothing_half_written_is_left_behind(tmp_path, weights, monkeypatch):
    def fail(self, folder, **kwargs):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    source = write_released_folder(tmp_path / "source", weights)
    monkeypatch.setattr(VargptForConditionalGeneration, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(source, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# -- processor ---------------------------------------------------------------------------------------------------------


def test_processor_comes_along_with_a_tokenizer(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", weights)
    write_word_tokenizer(source, IMAGE_TOKENS)
    preprocessing = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "image_mean": [0.1, 0.2, 0.3]}
    (source / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    convert_checkpoint(source, tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert (processor.typical_lengths()["image"], processor.output_image_processor.num_positions[0]) == (4, 30)
    assert processor.output_image_processor.sizes == [(64, 64)]
    assert processor.image_processor.size["shortest_edge"] == 32
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    rendered = processor.apply_chat_template([{"role": "user", "content": "w5"}], add_generation_prompt=True)
    assert rendered == f"{RELEASED_SYSTEM_PROMPT} USER: w5 ASSISTANT:"


def test_tokenizer_that_disagrees_with_the_config_is_refused(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", weights)
    swapped = {**IMAGE_TOKENS, 311: IMAGE_TOKENS[312], 312: IMAGE_TOKENS[311]}
    write_word_tokenizer(source, swapped)
    with pytest.raises(ValueError, match="`output_image_start_token_id` is 312 in the one, 311 in the other"):
        convert_checkpoint(source, tmp_path / "ours")
