"""What the released system computed with random weights (`tests/golden/`), and how closely we must agree with it."""

import json
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vargpt_hf import VargptVQModel

GOLDEN = Path(__file__).parent / "golden"
# Agreement is measured in the released system's own rounding error (float32 against float64). That was taken on one kind of CPU, and
# other kinds sum in another order: it counts as at least 1e-5 of the largest value, some hundred roundings of float32.
NOISE_FACTOR = 4
LEAST_RELATIVE_NOISE = 1e-5


@cache
def golden_json(name: str) -> dict:
    """One of the JSON files: config, meta, noise_floor or keys."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@cache
def golden_file(name: str) -> dict[str, torch.Tensor]:
    """All tensors of one group, such as "vqvae"."""
    return load_file(GOLDEN / f"{name}.safetensors")


def golden(name: str) -> torch.Tensor:
    """One tensor, named "group/tensor"."""
    group, tensor = name.split("/", 1)
    return golden_file(group)[tensor]


def golden_tolerance(name: str) -> float:
    """Largest absolute difference from the tensor "group/tensor" that is still rounding."""
    noise = golden_json("noise_floor")[name]
    return NOISE_FACTOR * max(noise["max_abs_diff"], LEAST_RELATIVE_NOISE * noise["max_abs"])


def assert_close_to_golden(name: str, actual: torch.Tensor, where: torch.Tensor | None = None) -> None:
    """Asserts that `actual` is the golden tensor "group/tensor" up to rounding; integers must be equal.

    Args:
        where: mask of the leading dimensions; only what it keeps is compared.
    """
    expected = golden(name)
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, golden {tuple(expected.shape)}"
    actual = actual.detach()
    if where is not None:
        actual, expected = actual[where.bool()], expected[where.bool()]
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), f"{name}: {int((actual != expected).sum())} of {expected.numel()} differ"
        return
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    difference, allowed = (actual.double() - expected.double()).abs().max().item(), golden_tolerance(name)
    assert difference <= allowed, f"{name}: differs by {difference:.2e}, allowed {allowed:.2e}"


def assert_golden_choices(
    name: str, actual: torch.LongTensor, expected: torch.LongTensor, scores: torch.Tensor, allowed: float, groups: Sequence[int]
) -> bool:
    """Asserts that codes or ids are the golden ones; the only excuse is a tie, of which a warning tells. Returns whether all are equal.

    A choice may differ where the golden one and it score alike up to rounding. What was chosen after it then rests on another choice
    and cannot be compared: a caller that gets False ends there.

    Args:
        name: what was chosen, for messages.
        actual, expected: choices, (B, L).
        scores: what was chosen by, the higher the better, given the golden choices before, (B, L, V).
        allowed: the largest difference of two scores that is still rounding.
        groups: how many of the L were chosen at a time, in their order.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, golden {tuple(expected.shape)}"
    of_expected, of_actual = (scores.gather(-1, choices[..., None]).squeeze(-1) for choices in (expected, actual))
    assert (scores.amax(-1) - of_expected).max() <= allowed, f"{name}: the golden choices are not the best of these scores"
    margins = of_expected - of_actual
    for group, (found, wanted, margin) in enumerate(zip(*(part.split(list(groups), dim=1) for part in (actual, expected, margins)))):
        differ = found != wanted
        if differ.any():
            largest = margin[differ].abs().max().item()
            told = f"{name}: {int(differ.sum())} of {differ.numel()} differ in group {group}, with margins up to {largest:.2e}"
            assert largest <= allowed, f"{told}; allowed {allowed:.2e}"
            warnings.warn(f"{told}, which is rounding ({allowed:.2e}); nothing after them is compared.", stacklevel=2)
            return False
    return True


@torch.no_grad()
def assert_golden_codes(image_tokenizer: VargptVQModel, pixels: torch.Tensor, actual: torch.LongTensor, expected: torch.LongTensor) -> bool:
    """[`assert_golden_choices`] of the codes (B, L) that an image tokenizer with the golden weights makes of pixels, scale by scale."""
    schedule, codebook = image_tokenizer.default_schedule, image_tokenizer.quantizer.codebook.weight
    latents, scores = image_tokenizer.encode_latents(pixels), []
    for scale in range(len(schedule)):  # the residual after the golden codes of the coarser scales
        residual = latents - (image_tokenizer.accumulate(expected, num_scales=scale) if scale else 0)
        scores.append(2 * image_tokenizer.next_input(residual, scale, schedule) @ codebook.T - codebook.square().sum(1))
    allowed = 2 * golden_tolerance("vqvae/f") * 2 * codebook.abs().sum(1).max().item()  # what latents that differ so much make of distances
    return assert_golden_choices("codes", actual, expected, torch.cat(scores, dim=1), allowed, list(schedule.areas))


def released_weights() -> dict[str, torch.Tensor]:
    """The state dict of the released system with the golden weights, float32 (its integer buffer as it is)."""
    dtypes = {name: getattr(torch, key["dtype"]) for name, key in golden_json("keys").items()}
    with np.load(GOLDEN / "state_dict_f16.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]).to(dtypes[name]) for name in arrays.files}


def released_config() -> dict:
    """`config.json` of the golden model as the released system writes it."""
    sizes = golden_json("config")
    special = sizes["special"]
    return {
        "model_type": "vargpt_llava",
        "architectures": ["VARGPTLlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama", **sizes["text"]},
        "vision_config": {"model_type": "clip_vision_model", **sizes["vision"]},
        "hidden_size": sizes["text"]["hidden_size"],
        "vocab_size": sizes["text"]["vocab_size"],
        "image_token_index": special["image_token_index"],
        "pad_token_id": special["pad_token_id"],
        "special_tokens": {name: token for name, token in special.items() if name.startswith("image_gen")},
        "image_seq_length": sizes["derived"]["n_image_tokens"],
        "vision_feature_layer": sizes["derived"]["vision_feature_layer"],
        "vision_feature_select_strategy": sizes["derived"]["vision_feature_select_strategy"],
        "projector_hidden_act": sizes["derived"]["projector_hidden_act"],
        "torch_dtype": "float32",
    }


def write_released_folder(folder: Path, weights: dict[str, torch.Tensor], config: dict | None = None, form: str = "safetensors") -> Path:
    """Writes a checkpoint as it was released: `form` is "safetensors" or "bin", with "sharded " before it for three files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or released_config()))
    suffix = form.split()[-1]
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    save = save_file if suffix == "safetensors" else torch.save
    if not form.startswith("sharded"):
        save(weights, folder / f"{stem}.{suffix}")
        return folder
    names, weight_map = list(weights), {}
    for index in range(3):
        file = f"{stem}-{index + 1:05}-of-00003.{suffix}"
        shard = {name: weights[name] for name in names[index::3]}
        save(shard, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_word_tokenizer(folder: Path, special_tokens: dict[int, str], size: int = 320) -> None:
    """Writes a tokenizer of words w4, w5, …, by default as large as the golden vocabulary, with special tokens at their ids."""
    words = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", **special_tokens}
    vocabulary = {words.get(index, f"w{index}"): index for index in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(special_tokens.values()),
    ).save_pretrained(folder)
