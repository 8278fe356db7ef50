"""A vision-language model, or a language model of texts, as Transformers knows it → the reading side of a VARGPT.

Its configuration and processor are read first, its weights by its own class, which knows all forms of their names. The tokens of images to
draw are added to its tokenizer and to its token tables.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available, logging

from ..modeling.backbone_vargpt import LANGUAGE_MODELS, VargptBackbone
from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.pretrained_vargpt import list_misfits
from ..processing.chat_vargpt import OUTPUT_IMAGE_END_TOKEN, OUTPUT_IMAGE_START_TOKEN, OUTPUT_IMAGE_TOKEN
from ..processing.reader_vargpt import TORCHVISION_HINT
from .checkpoint import SourceTensor, said_of
from .compose import vocabulary_rows
from .renaming import Part

logger = logging.get_logger(__name__)

# Tokens that a vocabulary holds in reserve, such as <|reserved_special_token_7|>, <unused7> or [unused7].
RESERVED = re.compile(r"[<\[]\|?(reserved|unused)[a-z_]*\d+\|?[>\]]", re.IGNORECASE)
_NOT_OF_THE_MODEL = ("architectures", "_name_or_path", "dtype", "torch_dtype", "transformers_version", "auto_map")
_SAMPLE = 4096  # rows of a token table whose spread a new row gets


@dataclass
class ReadingSide:
    """A model that reads, before its weights are loaded.

    Args:
        source: its folder or Hub id.
        config: its configuration, with as many rows of token tables as the tokens of images to draw need.
        processor: its processor; of a model of texts, and where a package is missing that the processor needs, its tokenizer.
        tokens: start, placeholder and end of an image to draw, as the tokenizer has them.
        fresh_ids: those of these tokens whose rows in the token tables are made anew.
        reads_images: whether it reads images.
    """

    source: str
    config: PreTrainedConfig
    processor: ProcessorMixin | PreTrainedTokenizerBase
    tokens: tuple[str, str, str]
    fresh_ids: list[int]
    reads_images: bool

    @property
    def name(self) -> str:
        """What others call it: its Hub id, or the name of its folder, without the path of this machine."""
        return Path(self.source).resolve().name if Path(self.source).is_dir() else self.source

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer if isinstance(self.processor, ProcessorMixin) else self.processor

    @property
    def token_ids(self) -> list[int]:
        """Ids of start, placeholder and end."""
        return self.tokenizer.convert_tokens_to_ids(list(self.tokens))

    @property
    def fields(self) -> dict[str, Any]:
        """The configuration as `vlm_config` of ours: what it says of the model, not of the file."""
        return _of_the_model(self.config.to_dict())


def open_reading_side(source: str | Path, reads_images: bool = True) -> ReadingSide:
    """A model that reads, by its configuration and its processor; no weights are loaded.

    Args:
        source: folder or Hub id.
        reads_images: whether it is given as a model that reads images.

    Raises:
        ValueError: a model that cannot read here, with the reason; weights that are quantized, code of its own; a model of texts that is
            given as one of images, or the reverse; token ids that collide.
        OSError: files that are not there.
    """
    source = str(source)
    with said_of(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if isinstance(config, VargptConfig):
        raise ValueError(f"{source} is a VARGPT already: train it, or give the model that reads alone.")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"The weights of {source} are quantized: compose from the full ones, and quantize when you load what was composed.")
    with torch.device("meta"):
        found = VargptBackbone(VargptBackbone.build(config)).reads_images
    if found != reads_images:
        ours, theirs = ("--vlm", "--llm") if found else ("--llm", "--vlm")
        kind = "images" if found else "texts only"
        raise ValueError(f"{source}, a {config.model_type!r} model, reads {kind}: give it as {ours}, not as {theirs}.")
    processor = _open_processor(source) if found else _open_tokenizer(source)
    text_config = config.get_text_config(decoder=True)
    side = ReadingSide(source, config, processor, *_add_tokens(processor, text_config.vocab_size), found)
    taken = {value: name for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index")) and type(value) is int}
    if collisions := [f"{taken[token_id]} is {token_id}" for token_id in side.token_ids if token_id in taken]:
        raise ValueError(f"{source}: {', '.join(collisions)}, which its tokenizer lacks and a token of images to draw would get: add it first.")
    text_config.vocab_size = vocabulary_rows(text_config.vocab_size, side.tokenizer)
    return side


def _open_tokenizer(source: str) -> PreTrainedTokenizerBase:
    with said_of(f"The tokenizer of {source}"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def _open_processor(source: str) -> ProcessorMixin | PreTrainedTokenizerBase:
    """The processor, or the tokenizer alone where a package that the processor needs is missing."""
    try:
        with said_of(f"The processor of {source}"):
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except ValueError as error:
        # Of a package that is missing Transformers tells by an ImportError, or in the words of a ValueError.
        if not isinstance(error.__cause__, ImportError) and (is_torchvision_available() or "torchvision" not in str(error)):
            raise
        said = " ".join(str(error.__cause__ or error).split())
        logger.warning(f"The new folder will have a tokenizer but no processor: {said} {TORCHVISION_HINT} Then compose again.")
        return _open_tokenizer(source)
    if not isinstance(processor, ProcessorMixin):
        raise FileNotFoundError(f"{source} has no processor of images (processor_config.json or preprocessor_config.json): give all its files.")
    return processor


def _add_tokens(processor: ProcessorMixin | PreTrainedTokenizerBase, rows: int) -> tuple[tuple[str, str, str], list[int]]:
    """Start, placeholder and end of an image to draw in a tokenizer, and those of their ids that mean nothing yet.

    New tokens take ids beyond the tokenizer's own. Where the token tables have no rows left for these, tokens that the vocabulary holds in
    reserve are taken in their place; where there are none, the tables must grow.
    """
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    names, vocabulary = (OUTPUT_IMAGE_START_TOKEN, OUTPUT_IMAGE_TOKEN, OUTPUT_IMAGE_END_TOKEN), tokenizer.get_vocab()
    missing = [name for name in names if name not in vocabulary]
    reserve = sorted((token_id, name) for name, token_id in vocabulary.items() if RESERVED.fullmatch(name) and token_id < rows)
    if missing and max(vocabulary.values()) + len(missing) >= rows and len(reserve) >= len(names):
        names = missing = tuple(name for _, name in reserve[-len(names) :])
    tokenizer.add_tokens([name for name in (names[0], names[2], names[1]) if name in missing], special_tokens=True)
    return names, tokenizer.convert_tokens_to_ids(list(missing))


def load_reading_side(
    side: ReadingSide, dtype: torch.dtype | None = None, seed: int = 0
) -> tuple[Part, bool, PreTrainedModel, GenerationConfig]:
    """The weights of a model that reads, mapped from their files wherever their dtype does not change.

    Args:
        dtype: of the weights; as they are stored by default.
        seed: of the rows of new tokens.

    Returns:
        Its tensors as a part of ours; whether its head is its token embedding; the model itself; its settings of generation.

    Raises:
        ValueError: weights that are missing or do not fit its configuration, or a head that ours has no place for.
        OSError: files that are not there or damaged.
    """
    model_class = next(mapping[type(side.config)] for mapping in LANGUAGE_MODELS if type(side.config) in mapping)
    with said_of(f"The weights of {side.source}"):
        options = {"dtype": dtype or "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}  # so that all misfits are known
        model, found = model_class.from_pretrained(side.source, **options)
    misshapen = [f"{name} ({tuple(held)}, not {tuple(wanted)})" for name, held, wanted in sorted(found["mismatched_keys"])]
    if misfits := list_misfits({"missing": sorted(found["missing_keys"]), "of another shape": misshapen}):
        raise ValueError(f"The weights in {side.source} are not those of the {model_class.__name__} that its config.json describes: {misfits}.")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"The head of {side.source} has a bias, or there is none: ours is one matrix.")
    is_tied = head.weight is embedding.weight
    names = {id(parameter): name for name, parameter in model.base_model.named_parameters()}
    tensors = {f"vlm.{name}": tensor for name, tensor in model.base_model.state_dict().items()}
    tables = [f"model.vlm.{names[id(embedding.weight)]}"]
    if not is_tied:
        tensors["lm_head.weight"] = head.weight.detach()
        tables.append("lm_head.weight")
    rows = side.config.get_text_config(decoder=True).vocab_size
    part = Part(
        {name: SourceTensor(tensor, side.source) for name, tensor in tensors.items()},
        [("vlm.{rest}", "model.vlm.{rest}"), ("lm_head.weight", "lm_head.weight")],
        adapt=partial(with_token_rows, tables=tables, rows=rows, fresh_ids=side.fresh_ids, seed=seed),
        keeps_dtype=True,
    )
    return part, is_tied, model, model.generation_config


def with_token_rows(
    name: str, tensor: torch.Tensor, tables: list[str], rows: int, fresh_ids: list[int], seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor of the model that reads; of a token table (V, D) with `rows` rows, and anew those of the tokens `fresh_ids`.

    A new token's row is drawn with the mean and the spread that the others have. The mean itself would do for reading, but not for writing: its
    score is the mean of all scores, so that no training of the layers before a frozen head could make it the highest. Rows that the table
    grows by beyond these tokens are the mean, and so never written.
    """
    if name not in tables or tensor.ndim != 2 or not len(tensor) or not tensor.is_floating_point():
        yield name, tensor
        return
    sample = tensor[:: max(len(tensor) // _SAMPLE, 1)].float()
    mean, spread = sample.mean(0), sample.std(0, unbiased=False)
    table = torch.cat([tensor, mean.to(tensor.dtype).expand(max(rows - len(tensor), 0), -1)])
    generator = torch.Generator().manual_seed(seed + tables.index(name))
    if fresh_ids:
        noise = torch.randn(len(fresh_ids), table.shape[1], generator=generator)
        table[fresh_ids] = (mean + spread * noise).to(table.dtype)
    yield name, table


def _of_the_model(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration, and of those inside it, without what is said of a file and not of the model."""
    return {name: _of_the_model(value) if isinstance(value, dict) else value for name, value in fields.items() if name not in _NOT_OF_THE_MODEL}


__all__ = ["ReadingSide", "load_reading_side", "open_reading_side", "with_token_rows"]
