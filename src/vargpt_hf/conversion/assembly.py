"""Tensors of released parts → one model of ours → a complete folder: what converting and composing share."""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..modeling.card_vargpt import make_card
from ..modeling.checkpoint_vargpt import WEIGHT_DTYPES, fault_of
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..modeling.pretrained_vargpt import list_misfits
from ..processing import VargptProcessor
from .checkpoint import said_of
from .renaming import Part

logger = logging.get_logger(__name__)


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
    unexpected, twice, misshapen, faulty, unread = [], [], [], [], []
    pairs = [(part, released, *source) for part in parts for released, source in part.tensors.items()]
    for part, released, tensor, file in tqdm(pairs, desc="Converting tensors", unit=" tensors"):
        try:
            renamed = part.ours(released)
        except KeyError:
            unexpected.append(f"{released} ({file})")
            continue
        if not renamed:
            unread.append(released)
        for name, adapted in part.adapt(renamed, tensor) if renamed else ():
            wanted = torch.float32 if kept_exact.search(name) else adapted.dtype if part.keeps_dtype else dtype
            if name not in expected:
                unexpected.append(f"{released} ({file})")
            elif name in loaded:
                twice.append(f"{released} ({file}), which is {origin[name]} again")
            elif adapted.shape != expected[name]:
                misshapen.append(f"{released} ({file}): {name} is {tuple(adapted.shape)}, not {tuple(expected[name])}")
            elif fault := fault_of(adapted, wanted):
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
    if unread:
        kinds = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in unread)
        logger.warning(f"Left out, since nothing reads them ({len(unread)} tensors): {', '.join(kinds)}.")
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


def check_destination(destination: Path) -> None:
    """Refuses, by a FileExistsError, a destination that is a file or a folder with anything in it."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists already: give a folder that is new or empty.")


def write_folder(
    model: VargptForConditionalGeneration, processor: VargptProcessor | None, destination: Path, max_shard_size: str = "5GB"
) -> None:
    """Writes model, processor and model card into a folder that appears under its name when all is written, or not at all."""
    destination = destination.resolve()  # a name that can be renamed to, of "." and of links, too
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(folder)
        make_card(model, destination.name).save(folder / "README.md")
        folder.rename(destination)


__all__ = ["assemble", "check_destination", "floating_dtype", "token_ids", "write_folder"]
