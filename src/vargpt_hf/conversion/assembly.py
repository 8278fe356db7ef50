"""Tensors of released parts → one model of ours → a complete folder: what converting and composing share."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..modeling.card_vargpt import make_card
from ..modeling.checkpoint_vargpt import WEIGHT_DTYPES, fault_of, read_json
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..modeling.pretrained_vargpt import list_misfits
from ..processing import RELEASED_SYSTEM_PROMPT, VargptCLIPImageProcessor, VargptProcessor, make_chat_template
from ..processing.reader_vargpt import llava_settings
from .checkpoint import SourceTensor, said_of
from .names import released_names, rename

Adapt = Callable[[str, torch.Tensor], Iterable[tuple[str, torch.Tensor]]]

# How images are drawn by the released system.
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
# Fused in the released visual decoder; in the language model and the vision tower, the three have been apart all along.
_DECODER_QKV = re.compile(r"(model\.visual_decoder\.layers\.\d+\.self_attn)\.[qkv]_proj\.weight")


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
        """The released name of a tensor of ours, None where it is not of this part.

        Of several forms of a name the one that shares most with the names of the tensors that are there: what the checkpoint would have.
        """
        name = _DECODER_QKV.sub(r"\1.qkv_proj.weight", name)
        if not name.startswith(self.prefix):
            return None
        known = {tuple(there.split(".")[:depth]) for there in self.tensors for depth in range(1, there.count(".") + 1)}

        def shared(form: str) -> int:
            parts = form.split(".")
            return max((depth for depth in range(1, len(parts)) if tuple(parts[:depth]) in known), default=0)

        forms = released_names(name.removeprefix(self.prefix), self.names)
        return max(reversed(forms), key=shared, default=None)


def adapt_decoder(name: str, tensor: torch.Tensor, conditions: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors of one of the visual decoder's, as views wherever they are more than a few rows.

    Args:
        name: ours, by the table.
        conditions: of a released table of condition embeddings the two rows "generate" and null; a table that it does not know comes
            back whole, for the check of shapes to refuse.
    """
    if name.endswith("self_attn.qkv_proj.weight") and tensor.dim() == 2 and len(tensor) % 3 == 0:
        for part, weight in zip("qkv", tensor.chunk(3)):
            yield name.replace("qkv_proj", f"{part}_proj"), weight
    elif name.endswith("condition_embedding.weight"):
        yield name, conditions(tensor)
    elif name.endswith((".start_embedding", ".position_embedding")) and tensor.dim() > 1:
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
        fresh: names of modules that no part has, initialized as the model does.
        seed: of the fresh modules, whatever `dtype` is.

    Raises:
        ValueError: tensors that are unexpected, missing, twice there, of the wrong shape, no floating-point numbers, not finite or beyond
            the range of `dtype`; all of them in one message.
    """
    with torch.device("meta"), said_of("The model that this configuration describes"):
        model = VargptForConditionalGeneration(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    exact = "|".join(model._keep_in_fp32_modules_strict or ["(?!)"])  # a part may have none
    kept_exact = re.compile(rf"(^|\.)({exact})\.")
    loaded = {name: tensor.to(dtype) for name, tensor in _initialised(model, fresh, seed)}
    origin: dict[str, str] = {}
    unexpected, twice, misshapen, faulty = [], [], [], []
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
            elif fault := fault_of(adapted, wanted := torch.float32 if kept_exact.search(name) else dtype):
                faulty.append(f"{released} ({file}) is {fault}")
            else:
                adapted = adapted.to(wanted)
            loaded[name], origin[name] = adapted, f"{released} ({file})"
    tied = set(model.all_tied_weights_keys)
    absent = [name for name in expected if name not in loaded and name not in tied]
    missing = sorted({next(filter(None, (part.released(name) for part in parts)), name) for name in absent})
    problems = {"unexpected": unexpected, "missing": missing, "twice there": twice, "of the wrong shape": misshapen, "no weights": faulty}
    if misfits := list_misfits(problems):
        raise ValueError(f"{complaint} {misfits}.")
    model.load_state_dict(loaded, strict=not tied, assign=True)
    model.tie_weights()
    return model


def _initialised(model: VargptForConditionalGeneration, modules: Sequence[str], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of some modules of a model on the meta device, freshly initialized in float32."""
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
    if found not in WEIGHT_DTYPES:
        raise ValueError(f"`dtype` must be a floating-point type like 'float16', 'bfloat16' or 'float32', got {wanted!r}.")
    return found


def token_ids(source: Mapping, where: Path | str, default: object = None) -> dict[str, int | list[int] | None]:
    """The ids that begin, end and pad a text, by their names in a config; those of `default` where it has none.

    Raises:
        ValueError: an id that is no whole number from 0, nor a list of them.
    """
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids[name] = found = getattr(default, name, None) if source.get(name) is None else source[name]
        listed = found if isinstance(found, list) and found else [0 if found is None else found]
        if any(type(number) is not int or number < 0 for number in listed):
            raise ValueError(f"`{name}` in {where} must be a token's id, got {found!r}.")
    return ids


def make_processor(source: Path, tokenizer: PreTrainedTokenizerBase, config: VargptConfig) -> VargptProcessor:
    """The processor of a model: this tokenizer, pixels to read as the files in `source` say, pixels to draw as `config` says.

    Raises:
        ValueError: a tokenizer whose image tokens are absent or have other ids than the model's.
    """
    side = config.vision_config.image_size
    settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    found = {}
    if (source / "preprocessor_config.json").is_file():
        found = read_json(source / "preprocessor_config.json")
    elif (source / "processor_config.json").is_file():  # where Transformers 5 puts them
        found = read_json(source / "processor_config.json").get("image_processor") or {}
    with said_of(f"What {source} says of the images to read"):
        settings.update({name: found[name] for name in _CLIP_SETTINGS if found.get(name) is not None})
        image_processor = VargptCLIPImageProcessor(**settings)
    drawn = config.image_tokenizer_config
    processor = VargptProcessor(
        image_processor,
        tokenizer,
        chat_template=make_chat_template(RELEASED_SYSTEM_PROMPT),
        reader=llava_settings(config.vlm_config),
        output_image_settings={"schedules": drawn.schedules, "downsampling": drawn.downsampling},
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
    "Adapt",
    "Part",
    "adapt_decoder",
    "assemble",
    "check_destination",
    "floating_dtype",
    "make_processor",
    "token_ids",
    "write_folder",
]
