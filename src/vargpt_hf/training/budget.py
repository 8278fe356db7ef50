"""Memory and arithmetic of training, estimated from a model's layers without running it.

An estimate: matrix products and attention are counted, all else is small beside them; activations are counted by the inputs and
outputs of linear layers. `docs/paper_scale.md` says what is left out, the tests how close it comes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..operations import CONDITIONS, ModelParts, Part, is_trained, layers_of
from .optimizer import trained_matrices

IMAGE_TOKENS = 324  # of a square image of 504 pixels, where the number of its tokens depends on its size
_FLOAT32, _BFLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class Budget:
    """What a step (forward and backward of one batch on every GPU) takes.

    Args:
        trained_parameters, frozen_parameters: of the whole model.
        weights, gradients, optimizer: bytes on each GPU; AdamW's two moments, or Muon's one, in the format of the weights, which where they
            are float32 are their own masters.
        working: bytes on each GPU of weights as they compute: gathered from other GPUs, or cast to bfloat16.
        activations: bytes on each GPU that the forward pass keeps for the backward pass.
        transient: bytes on each GPU that the backward pass needs for a moment: the logits with their gradients, or, where that is more, the
            largest layer that checkpointing computes again.
        flops: floating-point operations of the forward and backward passes, on all GPUs.
        recomputed_flops: those of forward passes that gradient checkpointing does again.
        rows, tokens: in the step, on all GPUs.
        num_processes: GPUs.
    """

    trained_parameters: int
    frozen_parameters: int
    weights: int
    gradients: int
    optimizer: int
    working: int
    activations: int
    transient: int
    flops: int
    recomputed_flops: int
    rows: int
    tokens: int
    num_processes: int

    @property
    def memory(self) -> int:
        """Bytes on each GPU in all, without what the allocator cannot use."""
        return self.weights + self.gradients + self.optimizer + self.working + self.activations + self.transient

    def hours(self, rows: int, peak_flops: float, utilisation: float) -> float:
        """Hours for that many rows.

        Args:
            peak_flops: of one GPU, operations a second.
            utilisation: share of it that `flops`, recomputed ones not among them, reach (MFU), in (0, 1].
        """
        return rows / self.rows * self.flops / (self.num_processes * peak_flops * utilisation) / 3600


def estimate_budget(
    model: nn.Module,
    *,
    batch_size: int,
    sequence_length: int,
    images_to_read: float = 0,
    images_to_draw: float = 0,
    image_tokens: int | None = None,
    num_processes: int = 1,
    bf16: bool = True,
    gradient_checkpointing: bool = False,
    sharded: bool = False,
    muon: bool = False,
) -> Budget:
    """The budget of training what requires gradients in a model (see `apply_stage`).

    Args:
        model: a `VargptForConditionalGeneration`, on any device, also the meta device; also in PEFT's wrapper.
        batch_size: rows of one batch on one GPU.
        sequence_length: tokens of a row, placeholders of images among them.
        images_to_read, images_to_draw: in a row, on average. Those to draw come as codes: the image tokenizer does not run.
        image_tokens: of an image to read; by default what the backbone always gives one, or, where that depends on its size, `IMAGE_TOKENS`,
            or as many as have room.
        num_processes: GPUs.
        bf16: compute in bfloat16; else in float32.
        gradient_checkpointing: keep inputs of layers only, and compute the layers again in the backward pass.
        sharded: spread weights, gradients and optimizer over the GPUs (FSDP2, ZeRO-3), gathering each layer when it computes.
        muon: train by Muon what it can train (`optimizer.trained_matrices`), of which it keeps one moment in place of two.

    Raises:
        ValueError: no VARGPT inside, numbers out of range, or a row too short for its images.
    """
    model = next((module for module in model.modules() if isinstance(module, VargptForConditionalGeneration)), None)
    if model is None:
        raise ValueError("`model` must be a VargptForConditionalGeneration, plain or in PEFT's wrapper.")
    if min(batch_size, sequence_length, num_processes) < 1 or min(images_to_read, images_to_draw) < 0:
        raise ValueError("Batch size, tokens and GPUs must be at least 1, numbers of images at least 0.")
    config = model.config
    room = sequence_length - images_to_draw * (config.schedules[0].num_positions + 2)
    if image_tokens is None:
        fixed = getattr(config.vlm_config, "image_seq_length", None)
        image_tokens = fixed or min(IMAGE_TOKENS, max(int(room / max(images_to_read, 1)), 0))
    positions = sequence_length - room + images_to_read * image_tokens
    if positions > sequence_length:
        raise ValueError(f"A row of {sequence_length} tokens has no room for its images, which take {positions:g}: give longer rows.")
    shape = _Rows(batch_size, sequence_length, images_to_read, image_tokens, images_to_draw)
    passes = _passes(model, shape, gradient_checkpointing)
    itemsize = _BFLOAT16 if bf16 else _FLOAT32
    flops, recomputed = map(sum, zip(*(each.flops() for each in passes)))
    kept, transient = zip(*(each.activations(itemsize, gradient_checkpointing) for each in passes))
    share = num_processes if sharded else 1
    trained = [p for p in model.parameters() if p.requires_grad]
    num_trained, trained_bytes = sum(p.numel() for p in trained), _bytes(trained)
    moments = 2 * trained_bytes - (_bytes(trained_matrices(model)) if muon else 0)
    return Budget(
        trained_parameters=num_trained,
        frozen_parameters=sum(p.numel() for p in model.parameters()) - num_trained,
        weights=math.ceil(_bytes(model.parameters()) / share),
        gradients=math.ceil(trained_bytes / share),
        optimizer=math.ceil(moments / share),
        working=_working_bytes(model, num_trained, itemsize, sharded),
        activations=math.ceil(sum(kept)),
        transient=math.ceil(max(transient)),
        flops=math.ceil(num_processes * flops),
        recomputed_flops=math.ceil(num_processes * recomputed) if gradient_checkpointing else 0,
        rows=num_processes * batch_size,
        tokens=num_processes * batch_size * sequence_length,
        num_processes=num_processes,
    )


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


class _Rows(NamedTuple):
    """What a batch holds: rows of `length` tokens, images to read of `image_tokens`, images to draw; numbers of images are those of a row."""

    number: int
    length: int
    read: float
    image_tokens: int
    drawn: float


@dataclass
class _Pass:
    """A part's forward pass, and where gradients run.

    Args:
        upstream: whether gradients run into what comes before the part.
        has_loss: whether a cross-entropy follows.
        inside_layers: whether the part's modules are parts of layers, which checkpointing computes again with these.
    """

    part: Part
    upstream: bool
    has_loss: bool = False
    inside_layers: bool = False

    def flops(self) -> tuple[float, float]:
        """Operations of forward and backward passes, and of what checkpointing does again."""
        total, again, flows = 0.0, 0.0, self.upstream
        for unit in self.part.units():
            forward, product = self.part.attention(unit), 0.0
            total += forward * (3 if flows or unit.is_trained else 1)
            for matrix in unit.matrices:
                product = self.part.product(matrix)
                forward += product
                total += product * (1 + flows + matrix.is_trained)  # forward, into its input, into its weight
                flows = flows or matrix.is_trained
            flows = flows or unit.is_trained
            if self.inside_layers:
                again += forward * flows
            else:
                again += (forward - product) * (unit.is_layer and flows)  # the last product's result is not needed again
        return total, again

    def activations(self, itemsize: int, checkpointing: bool) -> tuple[float, float]:
        """Bytes kept for the backward pass, and the most that it needs for a moment."""
        kept, transient, flows = 0.0, 0.0, self.upstream
        for unit in self.part.units():
            flows = flows or unit.is_trained
            if not flows or not unit.matrices:
                continue
            entry = unit.matrices[0].inputs
            inputs = sum(matrix.inputs for matrix in unit.matrices if matrix.is_trained)
            outputs = sum(matrix.outputs for matrix in unit.matrices if not matrix.is_adapter)
            # Norms, gates and rotations of a layer: fitted to what autograd keeps of Llama's layers and the visual decoder's.
            whole = self.part.positions * (itemsize * (inputs + outputs) + 3 * _FLOAT32 * entry * unit.is_layer)
            if checkpointing and self.inside_layers:
                continue
            kept += self.part.positions * itemsize * entry if checkpointing and unit.is_layer else whole
            transient = max(transient, whole * (checkpointing and unit.is_layer))
        matrices = [matrix for unit in self.part.units() for matrix in unit.matrices]
        if self.has_loss and flows and matrices:
            logits = self.part.positions * matrices[-1].outputs
            kept += (_FLOAT32 - itemsize) * logits  # their log-probabilities are kept in place of them
            transient = max(transient, (2 * itemsize + _FLOAT32) * logits)  # themselves, their gradients as they are and in float32
        return kept, transient


def _passes(model: VargptForConditionalGeneration, rows: _Rows, checkpointing: bool) -> list[_Pass]:
    """What a step runs, and where gradients run. Checkpointing makes Transformers let them run into all embeddings, needed or not."""
    inner, decoder, parts = model.model, model.model.visual_decoder, ModelParts(model)
    schedule = model.config.schedules[0]
    num_codes = schedule.num_positions
    drawings = rows.number * rows.drawn
    codes, tokens = drawings * num_codes, rows.number * rows.length
    # All of a row but its drawings, as if it stood before each of them.
    context = max(rows.length - round(rows.drawn * (num_codes + 2)), 0) if decoder.uses_context and drawings else 0
    after_llm = ("layers.", "norm_modulation.", "shared_modulation.", "head.")

    embeds = any(p.requires_grad for name, p in decoder.named_parameters() if not name.startswith(after_llm))
    towers, connectors = parts.reading_modules()
    reads = checkpointing or any(map(is_trained, towers))
    into_llm = (
        checkpointing
        or (rows.read > 0 and (reads or any(map(is_trained, connectors))))
        or (rows.drawn > 0 and (embeds or is_trained(inner.projector_to_llm)))
    )
    past_llm = into_llm or is_trained(inner.backbone.decoder)
    decodes = past_llm or is_trained(inner.projector_to_decoder)
    reading = parts.reading(rows.number * rows.read, rows.image_tokens)
    return [
        *(_Pass(part, upstream) for part, upstream in zip(reading, (checkpointing, reads))),
        _Pass(parts.embedding(drawings * (num_codes - schedule.areas[0])), False),
        _Pass(parts.projector_to_llm(codes), embeds),
        _Pass(parts.language_model(tokens, rows.length), into_llm),
        _Pass(parts.lm_head(tokens), past_llm, has_loss=True),
        _Pass(parts.projector_to_decoder(codes + drawings * context), past_llm),
        _Pass(parts.conditions(CONDITIONS * (rows.drawn > 0)), embeds),
        _Pass(parts.decoder_context(drawings * context), decodes, inside_layers=True),
        _Pass(parts.visual_decoder(codes, num_codes + context), decodes, has_loss=True),
    ]


def _working_bytes(model: nn.Module, num_trained: int, itemsize: int, sharded: bool) -> int:
    """Bytes of weights in the format that computes: sharded, those outside layers and of two layers, one of which is on its way;
    else, where it is bfloat16, the copies of trained weights that autocast keeps."""
    if not sharded:
        return itemsize * num_trained * (itemsize == _BFLOAT16)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(model)]
    outside = sum(p.numel() for p in model.parameters()) - sum(sizes)
    return itemsize * (outside + sum(sorted(sizes)[-2:]))


__all__ = ["Budget", "estimate_budget"]
