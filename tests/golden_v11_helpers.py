"""What the released VARGPT v1.1 computed with random weights (`tests/golden_v11/`), and how closely we must agree with it."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from golden_helpers import LEAST_RELATIVE_NOISE, NOISE_FACTOR
from safetensors.torch import load_file, save_file

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.conversion.formats.vargpt_v1_1 import NAMES as V11_NAMES
from vargpt_hf.conversion.formats.vargpt_v1_1 import adapt_tensor
from vargpt_hf.conversion.renaming import rename

GOLDEN_V11 = Path(__file__).parent / "golden_v11"


@cache
def golden_v11_json(name: str) -> dict:
    """One of the JSON files: config, meta, noise_floor or keys."""
    return json.loads((GOLDEN_V11 / f"{name}.json").read_text(encoding="utf-8"))


@cache
def _file(group: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN_V11 / f"{group}.safetensors")


def golden_v11(name: str) -> torch.Tensor:
    """One tensor, named "group/tensor"."""
    group, tensor = name.split("/", 1)
    return _file(group)[tensor]


def assert_close_to_v11(name: str, actual: torch.Tensor, where: torch.Tensor | None = None) -> None:
    """Asserts that `actual` is the golden tensor "group/tensor" up to rounding; integers must be equal.

    Args:
        where: mask of the leading dimensions; only what it keeps is compared.
    """
    expected, actual = golden_v11(name), actual.detach()
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, golden {tuple(expected.shape)}"
    if where is not None:
        actual, expected = actual[where.bool()], expected[where.bool()]
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), f"{name}: {int((actual != expected).sum())} of {expected.numel()} differ"
        return
    noise = golden_v11_json("noise_floor")[name]
    allowed = NOISE_FACTOR * max(noise["max_abs_diff"], LEAST_RELATIVE_NOISE * noise["max_abs"])
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference <= allowed, f"{name}: differs by {difference:.2e}, allowed {allowed:.2e}"


@cache
def released_v11_weights() -> dict[str, torch.Tensor]:
    """The state dict of the released system with the golden weights, float32 (its integer buffer as it is)."""
    dtypes = {name: getattr(torch, key["dtype"]) for name, key in golden_v11_json("keys").items()}
    with np.load(GOLDEN_V11 / "state_dict_f16.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]).to(dtypes[name]) for name in arrays.files}


def released_v11_part(prefix: str) -> dict[str, torch.Tensor]:
    """Its tensors below a prefix, which is removed from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in released_v11_weights().items() if name.startswith(prefix)}


def golden_v11_config(**fields) -> VargptConfig:
    """The configuration of the golden model."""
    sizes = golden_v11_json("config")
    text, vision, special, decoder, tokenizer = (sizes[name] for name in ("text", "vision", "special", "decoder", "vae"))
    text = {name: value for name, value in text.items() if name not in ("mrope_section", "rope_theta")}
    rope = {"rope_type": "default", "mrope_section": sizes["text"]["mrope_section"], "rope_theta": sizes["text"]["rope_theta"]}
    square, tall = sizes["schedules"]["1.0"], sizes["schedules"]["2.0"]
    return VargptConfig(
        vlm_config={
            "model_type": "qwen2_vl",
            "text_config": {
                **text,
                "rope_parameters": rope,
                **{name: special[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            },
            "vision_config": vision,
            "tie_word_embeddings": False,
            **{name: special[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")},
        },
        image_tokenizer_config={
            "model_type": "vargpt_bsq",
            "schedules": [square["0.25M"], tall["0.25M"]],
            "latent_channels": tokenizer["d"],
            "base_channels": tokenizer["ch"],
            "channel_multipliers": tokenizer["ch_mult"],
            "num_res_blocks": tokenizer["num_res_blocks"],
        },
        visual_decoder_config={
            "model_type": "vargpt_infinity_decoder",
            "hidden_size": decoder["embed_dim"],
            "num_hidden_layers": decoder["depth"],
            "num_attention_heads": decoder["num_heads"],
            "unconditional_context_size": decoder["text_maxlen"],
            "reference_grids": [square["1M"][-1], tall["1M"][-1]],
            "drop_path_rate": 0.0,
        },
        output_image_start_token_id=special["image_gen_start_token_id"],
        output_image_end_token_id=special["image_gen_end_token_id"],
        output_image_token_id=special["image_gen_pad_token_id"],
        image_loss_weight=sizes["derived"]["image_loss_weight"],
        plain_positions=True,
        **fields,
    )


def released_v11_config() -> dict:
    """`config.json` of the golden model as the released system writes it."""
    sizes = golden_v11_json("config")
    text, special = sizes["text"], sizes["special"]
    return {
        "model_type": "vargpt_qwen2_vl",
        "architectures": ["VARGPTQwen2VLForConditionalGeneration"],
        **{name: value for name, value in text.items() if name != "mrope_section"},
        "rope_scaling": {"type": "mrope", "mrope_section": text["mrope_section"]},
        "vision_config": sizes["vision"],
        **{name: number for name, number in special.items() if not name.startswith("image_gen")},
        "special_tokens": {name: number for name, number in special.items() if name.startswith("image_gen")},
        "torch_dtype": "float32",
    }


def write_released_v11_folder(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config) -> Path:
    """A released checkpoint with the golden weights, or others, whose `config.json` has further fields; no tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(released_v11_config() | config))
    save_file(released_v11_weights() if weights is None else weights, folder / "model.safetensors")
    return folder


def our_v11_name(released: str) -> list[str]:
    """Names of ours that hold a released tensor."""
    renamed = rename(released, V11_NAMES)
    shape = golden_v11_json("keys")[released]["shape"]
    return [name for name, _ in _adapted(renamed, torch.empty(shape))] if renamed else []


def _adapted(name: str, tensor: torch.Tensor):
    sizes = golden_v11_json("config")
    blocks = sizes["decoder"]["depth"] // sizes["decoder"]["block_chunks"]
    return adapt_tensor(name, tensor, blocks, sizes["special"]["image_gen_start_token_id"])


def golden_v11_model(**fields) -> VargptForConditionalGeneration:
    """The model with the golden weights, in evaluation mode."""
    model = VargptForConditionalGeneration(golden_v11_config(**fields)).eval()
    weights = {}
    for released, tensor in released_v11_weights().items():
        if ours := rename(released, V11_NAMES):
            weights |= dict(_adapted(ours, tensor))
    model.load_state_dict(weights)
    return model
