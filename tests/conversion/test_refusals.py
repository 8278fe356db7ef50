"""Checkpoints that lie, are cut short or hold no weights: one error each, by file and tensor."""

import json
import struct

import pytest
import torch
from golden_helpers import released_config, released_weights, write_released_folder
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from vargpt_hf.cli import app
from vargpt_hf.conversion.convert import convert_checkpoint

NORM = "language_model.model.norm.weight"
HEAD = "vargpt_gen.head.weight"


@pytest.fixture(scope="module")
def weights():
    return released_weights()


def refusal(tmp_path, kind, **options) -> str:
    """The one line with which converting tmp_path/source is refused; nothing is left behind."""
    with pytest.raises(kind) as raised:
        convert_checkpoint(tmp_path / "source", tmp_path / "ours", **options)
    assert type(raised.value) in (ValueError, TypeError) or isinstance(raised.value, OSError)
    assert not (tmp_path / "ours").exists() and "\n" not in str(raised.value)
    return str(raised.value)


# -- values that are no weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn])
def test_other_numbers_than_weights_are_refused(tmp_path, weights, dtype, form):
    wrong = {**weights, NORM: weights[NORM].to(dtype), HEAD: weights[HEAD].to(dtype)}
    write_released_folder(tmp_path / "source", wrong, form=form)
    said = refusal(tmp_path, ValueError)
    file = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    for name in (NORM, HEAD):
        assert f"{name} ({file}) is {str(dtype).removeprefix('torch.')} and strided, not floating-point" in said


def test_sparse_tensors_of_pickles_are_refused(tmp_path, weights):
    write_released_folder(tmp_path / "source", {**weights, HEAD: weights[HEAD].to_sparse()}, form="bin")
    assert f"{HEAD} (pytorch_model.bin) is float32 and sparse_coo" in refusal(tmp_path, ValueError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [NORM, "vargpt_gen.blocks.1.attn.mat_qkv.weight", "vargpt_gen.pos_1LC", "vae_local.quant_conv.bias"])
def test_values_that_are_not_finite_are_refused(tmp_path, weights, name, value):
    changed = weights[name].clone()
    changed.view(-1)[-1] = value
    write_released_folder(tmp_path / "source", {**weights, name: changed})
    assert f"{name} (model.safetensors) is not finite: it holds NaN or infinity" in refusal(tmp_path, ValueError)


def test_values_beyond_the_range_of_the_new_format_are_refused(tmp_path, weights):
    def source(folder, **changed):
        return write_released_folder(tmp_path / folder, {**weights, **changed})

    large = weights[HEAD].clone()
    large[0, 0] = 65504.0  # the largest number of float16
    convert_checkpoint(source("fits", **{HEAD: large}), tmp_path / "it fits", dtype="float16")
    large[0, 0] = -65520.0
    source("source", **{HEAD: large})
    said = refusal(tmp_path, ValueError, dtype="float16")
    assert f"{HEAD} (model.safetensors) is beyond the range of float16: its numbers go from -65520 to" in said
    convert_checkpoint(tmp_path / "source", tmp_path / "bfloat16", dtype="bfloat16")
    codebook = "vae_local.quantize.embedding.weight"  # which stays in float32, whatever the format
    convert_checkpoint(source("codes", **{codebook: weights[codebook] * 1e6}), tmp_path / "kept exact", dtype="float16")


@pytest.mark.parametrize("axes", [(0, 1, 2), (0,), ()])
@pytest.mark.parametrize("name", ["vargpt_gen.pos_1LC", "vargpt_gen.word_embed.weight", "vae_local.encoder.conv_in.weight", NORM])
def test_empty_and_flat_tensors_are_refused(tmp_path, weights, name, axes):
    shape = [0 if axis in axes else size for axis, size in enumerate(weights[name].shape)] if axes else []
    write_released_folder(tmp_path / "source", {**weights, name: torch.zeros(shape)})
    said = refusal(tmp_path, ValueError)
    assert name in said and str(tuple(shape)) in said


@pytest.mark.parametrize("positions", [torch.full((1, 30), -1), torch.full((1, 30), 2**40), torch.zeros(1, 30), torch.zeros(1, 30).long()])
def test_hostile_positions_of_scales_are_refused(tmp_path, weights, positions):
    write_released_folder(tmp_path / "source", {**weights, "vargpt_gen.lvl_1L": positions})
    assert "4 scales with 30 positions in all, but" in refusal(tmp_path, ValueError)


def test_missing_tensors_are_named_as_the_checkpoint_has_them(tmp_path, weights):
    """q, k and v are one tensor in the visual decoder, and three in what reads."""
    missing = [
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "vision_tower.vision_model.encoder.layers.1.self_attn.k_proj.weight",
        "vargpt_gen.blocks.1.attn.mat_qkv.weight",
    ]
    assert set(missing) <= set(weights)
    write_released_folder(tmp_path / "source", {name: tensor for name, tensor in weights.items() if name not in missing})
    assert f"missing: {', '.join(sorted(missing))}." in refusal(tmp_path, ValueError)


# -- files --------------------------------------------------------------------------------------------------------------


def safetensors_bytes(header: object, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def entry(begin: int, end: int, shape=(1,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


LIES = {
    "empty": (b"", "header too small"),
    "header longer than the file": (struct.pack("<Q", 2**62) + b"{}", "header too large"),
    "header of no JSON": (safetensors_bytes(b"{'a': "), "invalid JSON in header"),
    "header of nested lists": (safetensors_bytes(b"[" * 100_000), "invalid JSON in header"),
    "a list as header": (safetensors_bytes([]), "invalid JSON in header"),
    "entry without offsets": (safetensors_bytes({"a": {"dtype": "F32", "shape": [1]}}), "missing field `data_offsets`"),
    "shape larger than its bytes": (
        safetensors_bytes({"a": entry(0, 4, (1000, 1000))}, bytes(4)),
        "invalid shape, data type",
    ),
    "negative shape": (safetensors_bytes({"a": entry(0, 4, (-1, -1))}, bytes(4)), "expected usize"),
    "offsets beyond the end": (safetensors_bytes({"a": entry(0, 2**40, (2**38,))}, bytes(4)), "file not fully covered"),
    "a gap": (safetensors_bytes({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "invalid offset for tensor `b`"),
    "codes of a length that is not theirs": (
        safetensors_bytes({"a": entry(0, 4, (3,), "I8")}, bytes(4)),
        "invalid shape, data type",
    ),
    "a format that nobody knows": (safetensors_bytes({"a": entry(0, 4, (1,), "X9")}, bytes(4)), "unknown variant `X9`"),
    "overlapping": (safetensors_bytes({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "invalid offset for tensor"),
    "bytes of no tensor": (safetensors_bytes({"a": entry(0, 4)}, bytes(8)), "file not fully covered"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_safetensors_are_refused(tmp_path, lie):
    content, message = LIES[lie]
    (write_released_folder(tmp_path / "source", {}) / "model.safetensors").write_bytes(content)
    with pytest.raises(OSError, match=rf"model\.safetensors cannot be read as weights: it is damaged.*{message}"):
        convert_checkpoint(tmp_path / "source", tmp_path / "ours")


def test_files_cut_short_anywhere_are_refused(tmp_path, weights):
    file = write_released_folder(tmp_path / "source", weights) / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "model.safetensors cannot be read as weights" in refusal(tmp_path, OSError)


INDICES = {
    "no table": ({}, ValueError, "must have a `weight_map`.*got none"),
    "a list": ({"weight_map": ["model.safetensors"]}, ValueError, "must have a `weight_map`.*got list"),
    "empty": ({"weight_map": {}}, ValueError, "got an empty one"),
    "no names": ({"weight_map": {"a": 5}}, ValueError, "the file of 'a' must be a name, got 5"),
    "null": ({"weight_map": {"a": None}}, ValueError, "the file of 'a' must be a name, got None"),
    "outside": ({"weight_map": {"a": "../secret.safetensors"}}, ValueError, "'a' is said to be in '../secret.safetensors', which is not in"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, ValueError, "which is not in the folder"),
    "absent": ({"weight_map": {"a": "b.safetensors"}}, FileNotFoundError, r"has not: b\.safetensors"),
    "an object": ([], ValueError, "must hold a JSON object, got list"),
}


@pytest.mark.parametrize("form", INDICES)
def test_indices_of_the_wrong_form_are_refused(tmp_path, weights, form):
    content, kind, message = INDICES[form]
    source = write_released_folder(tmp_path / "source", {})
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    (source / "model.safetensors").unlink(missing_ok=True)
    (source / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(kind, match=message) as raised:
        convert_checkpoint(source, tmp_path / "ours")
    assert "model.safetensors.index.json" in str(raised.value)


def test_an_index_that_misplaces_a_tensor_is_refused(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", weights, form="sharded safetensors")
    file = source / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    moved = next(name for name, where in index["weight_map"].items() if where == first)
    for name, message in ((moved, f"{moved} is in {last}, but it is in {first}"), ("invented", f"invented is in {last}, but it is in none")):
        file.write_text(json.dumps({"weight_map": {**index["weight_map"], name: last}}))
        assert message in refusal(tmp_path, ValueError)


# -- configurations and tokenizers --------------------------------------------------------------------------------------

NUMBERS = [0, -1, 10**12, 2.5, "7", True, [], float("nan")]


@pytest.mark.parametrize("value", NUMBERS, ids=str)
@pytest.mark.parametrize(
    "part, size", [("text_config", "hidden_size"), ("text_config", "num_attention_heads"), ("vision_config", "patch_size")]
)
def test_impossible_sizes_of_a_config_are_refused(tmp_path, weights, part, size, value):
    config = released_config()
    config[part] = {**config[part], size: value}
    write_released_folder(tmp_path / "source", weights, config)
    said = refusal(tmp_path, (ValueError, TypeError))
    assert f"{part}.{size}" in said and str(tmp_path / "source") in said


def test_foreign_code_is_not_run(tmp_path, weights, capfd):
    """Nor is anybody asked whether it may."""
    source = write_released_folder(tmp_path / "source", weights)
    (source / "tokenizer.json").write_text("{}")
    (source / "evil.py").write_text("print('code was run')\nclass Tokenizer: pass\n")
    settings = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert f"The tokenizer in {source}" in refusal(tmp_path, (ValueError, OSError))
    assert "code was run" not in capfd.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0"}', "\x00"])
def test_damaged_tokenizers_are_refused(tmp_path, weights, content):
    source = write_released_folder(tmp_path / "source", weights)
    (source / "tokenizer.json").write_text(content)
    assert f"The tokenizer in {source}" in refusal(tmp_path, (ValueError, OSError))


def test_the_command_says_it_in_one_line(tmp_path, weights):
    source = write_released_folder(tmp_path / "source", {**weights, HEAD: weights[HEAD] * float("nan")})
    found = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "ours")])
    assert found.exit_code != 0 and f"{HEAD} (model.safetensors) is not finite" in str(found.exception)
    with safe_open(source / "model.safetensors", "pt") as file:
        assert HEAD in file.keys()  # noqa: SIM118, no dict
