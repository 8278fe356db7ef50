"""Tensors of released parts → one model of ours → a complete folder: what converting and composing share."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..modeling.card_vargpt import make_card
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..modeling.pretrained_vargpt import list_misfits
from ..processing import RELEASED_SYSTEM_PROMPT, VargptImageProcessor, VargptProcessor, make_chat_template
from .checkpoint import SourceTensor, read_json
from .names import rename

Adapt = Callable[[str, torch.Tensor], Iterable[tuple[str, torch.Tensor]]]

# How pictures are drawn by the released system.
RELEASED_GENERATION = {
    "do_sample": True,
    "output_image_guidance_type": "noise",
    "output_image_guidance_scale": 1.5,
    "output_image_top_k": 900,
    "output_image_top_p": 0.96,
}
_CLIP_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
_DECODER_QKV = re.compile(r"((?:.*\.)?layers\.\d+\.self_attn)\.[qkv]_proj\.weight")


class Part(NamedTuple):
    """Tensors that were released together, and how they become ours.

    Args:
        tensors: by their released names.
        names: table from these to ours.
        prefix: put before the names that the table gives.
        adapt: our tensors of a released one under its new name, by default the tensor as it is.
    """

    tensors: dict[str, SourceTensor]
    names: list[tuple[str, str | None]]
    prefix: str = ""
    adapt: Adapt = lambda name, tensor: [(name, tensor)]

    def ours(self, released: str) -> str | None:
        """Our name of a released tensor, None where nothing reads it; KeyError where the table has none."""
        name = rename(released, self.names)
        return name and self.prefix + name

    def released(self, name: str) -> str | None:
        """The released name of a tensor of ours, None where it is not of this part."""
        table = [(self.prefix + ours, released) for released, ours in self.names if ours]
        for form in (_DECODER_QKV.sub(r"\1.qkv_proj.weight", name), name):
            try:
                return rename(form, table)
            except KeyError:
                continue
        return None


def adapt_decoder(name: str, tensor: torch.Tensor, conditions: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors of one of the visual decoder's, as views wherever they are more than a few rows.

    Args:
        name: ours, by the table.
        conditions: of a released table of condition embeddings the two rows "generate" and null; a table that it does not know comes
            back whole, for the check of shapes to refuse.
    """
    if name.endswith("self_attn.qkv_proj.weight"):
        for part, weight in zip("qkv", tensor.chunk(3)):
            yield name.replace("qkv_proj", f"{part}_proj"), weight
    elif name.endswith("condition_embedding.weight"):
        yield name, conditions(tensor)
    elif name.endswith((".start_embedding", ".position_embedding")):
        yield name, tensor.flatten(0, -2)
    elif name.endswith(".log_scale"):
        yield name, tensor.flatten()
    else:
        yield name, tensor


def assemble(
    config: VargptConfig, parts: Sequence[Part], dtype: torch.dtype, complaint: str, fresh: Sequence[str] = (), seed: int = 0
) -> VargptForConditionalGeneration:
    """The model with the parts' tensors in it, in `dtype` but for what stays in float32.

    Tensors whose dtype does not change stay in their files.

    Args:
        complaint: first sentence of the error about tensors.
        fresh: names of modules that no part has, initialised as the model does.
        seed: of the fresh modules, whatever `dtype` is.

    Raises:
        ValueError: tensors that are unexpected, missing, twice there, or of the wrong shape; all of them in one message.
    """
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    kept_exact = re.compile(rf"(^|\.)({'|'.join(model._keep_in_fp32_modules_strict)})\.")
    loaded = {name: tensor.to(dtype) for name, tensor in _initialised(model, fresh, seed)}
    origin: dict[str, str] = {}
    unexpected, twice, misshapen = [], [], []
    pairs = [(part, released, *source) for part in parts for released, source in part.tensors.items()]
    for part, released, tensor, file in tqdm(pairs, desc="Converting tensors", unit=" tensors"):
        try:
            renamed = part.ours(released)
        except KeyError:
            unexpected.append(f"{released} ({file})")
            continue
        for name, adapted in part.adapt(renamed, tensor) if renamed else ():
            if name not in expected:
                unexpected.append(f"{released} ({file})")
            elif name in loaded:
                twice.append(f"{released} ({file}), which is {origin[name]} again")
            elif adapted.shape != expected[name]:
                misshapen.append(f"{released} ({file}): {name} is {tuple(adapted.shape)}, not {tuple(expected[name])}")
            else:
                adapted = adapted.to(torch.float32 if kept_exact.search(name) else dtype)
            loaded[name], origin[name] = adapted, f"{released} ({file})"
    tied = set(model.all_tied_weights_keys)
    absent = [name for name in expected if name not in loaded and name not in tied]
    missing = sorted({next(filter(None, (part.released(name) for part in parts)), name) for name in absent})
    problems = {"unexpected": unexpected, "missing": missing, "twice there": twice, "of the wrong shape": misshapen}
    if misfits := list_misfits(problems):
        raise ValueError(f"{complaint} {misfits}.")
    model.load_state_dict(loaded, strict=not tied, assign=True)
    model.tie_weights()
    return model


def _initialised(model: VargptForConditionalGeneration, modules: Sequence[str], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of some modules of a model on the meta device, freshly initialised in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path in modules:
            module = model.get_submodule(path).to_empty(device="cpu")
            model._init_weights(module)
            yield from ((f"{path}.{name}", tensor) for name, tensor in module.state_dict().items())


def floating_dtype(wanted: torch.dtype | str | None, default: torch.dtype) -> torch.dtype:
    """A floating-point type by its name, as "float16" or "torch.float16", or itself; the default where none is wanted.

    Raises:
        ValueError: anything else.
    """
    wanted = wanted or default
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point type like 'float16', 'bfloat16' or 'float32', got {wanted!r}.")
    return found


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's files are in a folder."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def make_processor(source: Path, tokenizer: PreTrainedTokenizerBase, config: VargptConfig) -> VargptProcessor:
    """The processor of a model: this tokenizer, pixels to read as the files in `source` say, pixels to draw as `config` says.

    Raises:
        ValueError: a tokenizer whose picture tokens are absent or have other ids than the model's.
    """
    side = config.vision_config.image_size
    settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    found = {}
    if (source / "preprocessor_config.json").is_file():
        found = read_json(source / "preprocessor_config.json")
    elif (source / "processor_config.json").is_file():  # where Transformers 5 puts them
        found = read_json(source / "processor_config.json").get("image_processor") or {}
    settings.update({name: found[name] for name in _CLIP_SETTINGS if found.get(name) is not None})
    processor = VargptProcessor(
        VargptImageProcessor(**settings, output_size=config.image_tokenizer_config.image_size()[0]),
        tokenizer,
        chat_template=make_chat_template(RELEASED_SYSTEM_PROMPT),
        image_seq_length=config.vlm_config.image_seq_length,
        num_image_gen_tokens=config.schedules[0].num_positions,
    )
    for name in ("image_token_id", "output_image_start_token_id", "output_image_token_id", "output_image_end_token_id"):
        if getattr(processor, name) != getattr(config, name):
            raise ValueError(
                f"The tokenizer in {source} and its config.json disagree: `{name}` is {getattr(processor, name)} in the one, "
                f"{getattr(config, name)} in the other."
            )
    return processor


def check_destination(destination: Path) -> None:
    """Refuses, by a FileExistsError, a destination that is a file or a folder with anything in it."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists already: give a folder that is new or empty.")


def write_folder(
    model: VargptForConditionalGeneration, processor: VargptProcessor | None, destination: Path, max_shard_size: str = "5GB"
) -> None:
    """Writes model, processor and model card into a folder that appears under its name when all is written, or not at all."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(folder)
        make_card(model, destination.name).save(folder / "README.md")
        folder.rename(destination)


__all__ = [
    "RELEASED_GENERATION",
    "Part",
    "adapt_decoder",
    "assemble",
    "check_destination",
    "floating_dtype",
    "has_tokenizer",
    "make_processor",
    "write_folder",
]
