"""Any vision-language model of Transformers, and what draws → the weights from which training starts."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..modeling.settings_vargpt import VargptGenerationConfig
from ..modeling.visual_decoder_vargpt import GENERATE_CONDITION, VargptProjector
from ..processing import VargptProcessor
from ..processing.chat_vargpt import UNCONDITIONAL_CHAT
from .assembly import assemble, check_destination, floating_dtype, write_folder
from .checkpoint import said_of
from .drawing_side import DrawingSide, open_drawing_side
from .reading_side import ReadingSide, load_reading_side, open_reading_side

logger = logging.get_logger(__name__)

PROJECTORS = ("model.projector_to_llm", "model.projector_to_decoder")
_PROBED = 256  # vectors by whose size projectors are scaled


@dataclass
class Composition:
    """A model that will be written: what is known of it before any weight is loaded.

    Args:
        reading, drawing: its two sides.
        config: its configuration.
    """

    reading: ReadingSide
    drawing: DrawingSide
    config: VargptConfig

    def write(self, destination: str | Path, dtype: torch.dtype | str | None = None, seed: int = 0, max_shard_size: str = "2GB") -> None:
        """Writes a complete model folder: config, generation config, weights, processor, model card.

        Weights stay in their files until they are written, so that memory holds one shard, the token tables and what is fresh.

        Args:
            destination: folder to make; an empty one may be there.
            dtype: of all weights; by default those that read keep theirs, and all others have the same.
            seed: of what is fresh.
            max_shard_size: of the new weight files.

        Raises:
            ValueError: tensors that are missing, unexpected or of the wrong shape, no floating-point numbers, not finite or beyond the range
                of `dtype`; all of them in one message.
            OSError: files that are not there or damaged; a destination that is not empty.
        """
        destination = Path(destination)
        check_destination(destination)
        wanted = None if dtype is None else floating_dtype(dtype, torch.float32)
        read, is_tied, reader, settings = load_reading_side(self.reading, wanted, seed)
        self.config.tie_word_embeddings = is_tied
        processor = self.processor()
        names = " and ".join([self.reading.name, *self.drawing.names])
        parts = [read, *self.drawing.parts(self.config, seed)]
        model = assemble(self.config, parts, wanted or reader.dtype, f"The tensors of {names} do not make a VARGPT.", PROJECTORS, seed)
        scale_projectors(model, reader, self.drawing.visual_decoder is not None, seed)
        settings = {name: value for name, value in settings.to_dict().items() if name != "_from_model_config"}  # which loading would redo
        model.generation_config = VargptGenerationConfig.from_dict({**settings, **self._image_settings(processor)})
        logger.warning(self.config.license_note)
        write_folder(model, processor, destination, max_shard_size)

    def processor(self) -> VargptProcessor | PreTrainedTokenizerBase:
        """The processor of what reads with what is drawn beside it; the tokenizer alone where a package is missing that the former needs.

        The chat template is that of the model that reads; where it knows no images to draw, these stand in it as text.
        """
        source, drawn = self.reading, self.config.image_tokenizer_config
        start, place, end = source.tokens
        options = {
            "output_image_settings": {"schedules": drawn.schedules, "downsampling": drawn.downsampling},
            "output_image_start_token": start,
            "output_image_token": place,
            "output_image_end_token": end,
        }
        with said_of(f"The processor of {source.source}"):
            if isinstance(source.processor, ProcessorMixin):
                processor = VargptProcessor(reader=source.processor, **options)
            elif source.reads_images:
                return source.tokenizer
            else:
                processor = VargptProcessor(tokenizer=source.tokenizer, chat_template=source.tokenizer.chat_template, **options)
        processor.check_fits(self.config)
        return processor

    def _image_settings(self, processor: VargptProcessor | PreTrainedTokenizerBase) -> dict[str, object]:
        """Of generation: the prompt of images without one, for guidance, which training with `prompt_dropout` learns."""
        if not isinstance(processor, VargptProcessor):
            return {}
        with suppress(ValueError, TypeError):  # a template that refuses an empty turn
            empty = processor.apply_chat_template(UNCONDITIONAL_CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
            return {"output_image_unconditional_ids": list(map(int, empty["input_ids"][0]))}
        return {}


def plan_composition(
    vlm: str | Path | None = None,
    llm: str | Path | None = None,
    image_tokenizer: str | Path | None = None,
    vqvae: str | Path | None = None,
    bsq: str | Path | None = None,
    var: str | Path | None = None,
    infinity: str | Path | None = None,
    decoder_size: str | None = None,
    scales: Sequence[int] | None = None,
) -> Composition:
    """What composing would make, by configurations and headers of files alone.

    Args:
        vlm: folder or Hub id of a vision-language model.
        llm: in place of it, one of a language model of texts, to draw without reading images.
        image_tokenizer, vqvae, bsq, var, infinity, decoder_size, scales: see [`open_drawing_side`].

    Raises:
        ValueError: neither or both of `vlm` and `llm`; models that cannot be a side of ours, with the reason; parts that do not fit.
        OSError: files that are not there or damaged.
    """
    if (vlm is None) == (llm is None):
        raise ValueError("Give one model that reads: a vision-language model as --vlm, or one of texts as --llm.")
    drawing = open_drawing_side(image_tokenizer, vqvae, bsq, var, infinity, decoder_size, scales)
    reading = open_reading_side(llm if vlm is None else vlm, reads_images=vlm is not None)
    start, place, end = reading.token_ids
    names = " and ".join([reading.name, *drawing.names])
    with said_of(names):
        config = VargptConfig(
            vlm_config=reading.fields,
            image_tokenizer_config=drawing.image_tokenizer_config,
            visual_decoder_config=drawing.visual_decoder_config,
            output_image_start_token_id=start,
            output_image_token_id=place,
            output_image_end_token_id=end,
            license_note=f"Composed of {names}: the weights of each keep their own terms. The projectors of drawn images "
            f"{'are' if drawing.visual_decoder is not None else 'and the visual decoder are'} fresh, so that nothing sensible is drawn before "
            "training.",
        )
    return Composition(reading, drawing, config)


def compose_any(destination: str | Path, dtype: torch.dtype | str | None = None, seed: int = 0, **sources) -> None:
    """Plans and writes in one call; see [`plan_composition`] for `sources` and [`Composition.write`] for the rest."""
    check_destination(Path(destination))
    plan_composition(**sources).write(destination, dtype, seed)


@torch.no_grad()
def scale_projectors(model: VargptForConditionalGeneration, reader: PreTrainedModel, keeps_decoder: bool, seed: int = 0) -> None:
    """Scales fresh projectors so that either side gets vectors of the size that it is used to.

    Language models differ by a factor of 100 in the size of their embeddings and of their last hidden states, and a frozen one never adapts:
    what it is fed at the positions of an image starts with the root mean square of its token embeddings. The visual decoder starts with
    vectors of size 1, or, where its weights come from a file, of the size of those that it was trained on.

    Args:
        model: the composed model, whose projectors are fresh.
        reader: what reads, as its own class loaded it.
        keeps_decoder: whether the visual decoder's weights come from a file.
        seed: of the vectors that are tried.
    """
    inner, generator = model.model, torch.Generator().manual_seed(seed)
    schedule, drawn = inner.schedules[0], model.config.image_tokenizer_config
    codes = torch.randint(drawn.num_classes**drawn.num_symbols, (1, schedule.num_positions), generator=generator)
    inputs = inner.image_tokenizer.decoder_inputs(codes, schedule)
    decoder = inner.visual_decoder
    embedded = decoder.embed(inputs.to(decoder.dtype), torch.full((1,), GENERATE_CONDITION), schedule).float()
    embedding = reader.get_input_embeddings()
    ids = torch.linspace(0, embedding.weight.shape[0] - 1, _PROBED).long()
    fit_projector(inner.projector_to_llm, embedded, size_of(embedding(ids[None])))
    hidden_states = _last_norm(reader.get_decoder())(
        torch.randn(1, _PROBED, model.config.text_config.hidden_size, generator=generator).to(reader.dtype)
    )
    fit_projector(inner.projector_to_decoder, hidden_states.float(), size_of(embedded) if keeps_decoder else 1.0)


def size_of(vectors: torch.Tensor) -> float:
    """Root mean square of the numbers in vectors."""
    return float(vectors.float().square().mean().sqrt())


def fit_projector(projector: VargptProjector, inputs: torch.Tensor, wanted: float) -> None:
    """Scales both layers: the first to take inputs like these (…, D) as if they had size 1, the second to give vectors of size `wanted`."""
    scale = size_of(inputs)
    if not scale or not wanted:
        return
    projector.fc1.weight.div_(scale)
    first, second = projector.fc1.weight.float(), projector.fc2.weight.float()
    found = size_of(nn.functional.gelu(inputs @ first.T) @ second.T)
    if found:
        projector.fc2.weight.mul_(wanted / found)


def _last_norm(decoder: nn.Module) -> nn.Module:
    """The norm after a language model's last layer, or an identity where no such norm can be recognized."""
    width = decoder.get_input_embeddings().weight.shape[1]
    norms = [child for child in decoder.children() if (own := list(child.parameters())) and all(weight.shape == (width,) for weight in own)]
    return norms[-1] if norms else nn.Identity()


__all__ = ["Composition", "compose_any", "plan_composition", "scale_projectors"]
