"""Memory and arithmetic of training, worked out from a model's layers without running it.

An estimate: matrix products and attention are counted, all else is small beside them; activations are counted by the inputs and
outputs of linear layers. `docs/paper_scale.md` says what is left out, the tests how close it comes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..modeling.configuration_vargpt import VargptConfig
from ..modeling.modeling_vargpt import VargptForConditionalGeneration

_FLOAT32, _BFLOAT16 = 4, 2  # bytes
_CONDITIONS = 2  # the decoder's modulations are computed once for each of these, not for each position
UNKNOWN_TOKENS = 256  # of an image that is read, where its size decides; what a square of 448 px takes in Qwen2-VL


@dataclass(frozen=True)
class Budget:
    """What a step (forward and backward of one batch on every GPU) takes.

    Args:
        trained_parameters, frozen_parameters: of the whole model.
        weights, gradients, optimizer: bytes on each GPU; AdamW's two moments in the format of the weights, which where they are float32
            are their own masters.
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
    pictures_to_read: float = 0,
    pictures_to_generate: float = 0,
    num_processes: int = 1,
    bf16: bool = True,
    gradient_checkpointing: bool = False,
    sharded: bool = False,
) -> Budget:
    """The budget of training what requires gradients in a model (see `apply_stage`).

    Args:
        model: a `VargptForConditionalGeneration`, on any device, also the meta device; also in PEFT's wrapper.
        batch_size: rows of one batch on one GPU.
        sequence_length: tokens of a row, placeholders of images among them.
        pictures_to_read, pictures_to_generate: in a row, on average. One to read takes 256 tokens where a backbone goes by its size. Those
            to generate come as codes: the image tokenizer does not run.
        num_processes: GPUs.
        bf16: compute in bfloat16; else in float32.
        gradient_checkpointing: keep inputs of layers only, and compute the layers again in the backward pass.
        sharded: spread weights, gradients and optimizer over the GPUs (FSDP2, ZeRO-3), gathering each layer when it computes.

    Raises:
        ValueError: no VARGPT inside, numbers out of range, or a row too short for its images.
    """
    model = next((module for module in model.modules() if isinstance(module, VargptForConditionalGeneration)), None)
    if model is None:
        raise ValueError("`model` must be a VargptForConditionalGeneration, plain or in PEFT's wrapper.")
    if min(batch_size, sequence_length, num_processes) < 1 or min(pictures_to_read, pictures_to_generate) < 0:
        raise ValueError("Batch size, tokens and GPUs must be at least 1, numbers of images at least 0.")
    config = model.config
    taken = pictures_to_read * _tokens_of_image(config) + pictures_to_generate * (config.schedules[0].num_positions + 2)
    if taken > sequence_length:
        raise ValueError(f"A row of {sequence_length} tokens has no room for its images, which take {taken:g}: give longer rows.")
    parts = _parts(model, batch_size, sequence_length, pictures_to_read, pictures_to_generate, gradient_checkpointing)
    itemsize = _BFLOAT16 if bf16 else _FLOAT32
    flops, recomputed = map(sum, zip(*(part.flops() for part in parts)))
    kept, transient = zip(*(part.activations(itemsize, gradient_checkpointing) for part in parts))
    share = num_processes if sharded else 1
    trained = [p for p in model.parameters() if p.requires_grad]
    num_trained, trained_bytes = sum(p.numel() for p in trained), sum(p.numel() * p.element_size() for p in trained)
    return Budget(
        trained_parameters=num_trained,
        frozen_parameters=sum(p.numel() for p in model.parameters()) - num_trained,
        weights=math.ceil(sum(p.numel() * p.element_size() for p in model.parameters()) / share),
        gradients=math.ceil(trained_bytes / share),
        optimizer=math.ceil(2 * trained_bytes / share),
        working=_working_bytes(model, num_trained, itemsize, sharded),
        activations=math.ceil(sum(kept)),
        transient=math.ceil(max(transient)),
        flops=math.ceil(num_processes * flops),
        recomputed_flops=math.ceil(num_processes * recomputed) if gradient_checkpointing else 0,
        rows=num_processes * batch_size,
        tokens=num_processes * batch_size * sequence_length,
        num_processes=num_processes,
    )


class _Matrix(NamedTuple):
    """A linear layer or convolution. `size` is its numbers, also where they are stored quantized."""

    size: int
    inputs: int
    outputs: int
    is_trained: bool
    is_adapter: bool


class _Unit(NamedTuple):
    """A layer that checkpointing computes again, or a module outside of layers, and the matrices inside."""

    is_layer: bool
    is_trained: bool
    matrices: list[_Matrix]


@dataclass
class _Part:
    """Modules that see the same positions, in the order in which they run.

    Args:
        positions: tokens, patches or codes of a batch.
        upstream: whether gradients run into what comes before them.
        context: positions that each attends to.
        width: of the attention's queries over all heads.
        without: modules inside that do not see these positions.
        has_loss: whether a cross-entropy follows.
    """

    modules: list[nn.Module]
    positions: float
    upstream: bool
    context: int = 0
    width: int = 0
    without: tuple[nn.Module, ...] = ()
    has_loss: bool = False

    def units(self) -> list[_Unit]:
        """What runs, in order."""
        skipped = {id(inner) for outer in self.without for inner in outer.modules()}
        units, inside = [], set()
        for module in (module for top in self.modules for module in top.modules()):
            is_layer = isinstance(module, GradientCheckpointingLayer)
            if id(module) not in inside and (is_layer or next(module.parameters(recurse=False), None) is not None):
                inside |= {id(inner) for inner in module.modules()}
                units.append(_Unit(is_layer, _is_trained(module), _matrices(module, skipped)))
        return units

    def flops(self) -> tuple[float, float]:
        """Operations of forward and backward passes, and of what checkpointing does again."""
        total, again, flows = 0.0, 0.0, self.upstream
        for unit in self.units():
            forward = 4 * self.positions * self.context * self.width * unit.is_layer  # queries by keys, weights by values
            product = 0.0
            total += forward * (3 if flows or unit.is_trained else 1)
            for matrix in unit.matrices:
                product = 2 * self.positions * matrix.size
                forward += product
                total += product * (1 + flows + matrix.is_trained)  # forward, into its input, into its weight
                flows = flows or matrix.is_trained
            flows = flows or unit.is_trained
            again += (forward - product) * (unit.is_layer and flows)  # the last product's result is not needed again
        return total, again

    def activations(self, itemsize: int, checkpointing: bool) -> tuple[float, float]:
        """Bytes kept for the backward pass, and the most that it needs for a moment."""
        kept, transient, flows = 0.0, 0.0, self.upstream
        for unit in self.units():
            flows = flows or unit.is_trained
            if not flows or not unit.matrices:
                continue
            entry = unit.matrices[0].inputs
            inputs = sum(matrix.inputs for matrix in unit.matrices if matrix.is_trained)
            outputs = sum(matrix.outputs for matrix in unit.matrices if not matrix.is_adapter)
            # Norms, gates and rotations of a layer: fitted to what autograd keeps of Llama's layers and the visual decoder's.
            whole = self.positions * (itemsize * (inputs + outputs) + 3 * _FLOAT32 * entry * unit.is_layer)
            kept += self.positions * itemsize * entry if checkpointing and unit.is_layer else whole
            transient = max(transient, whole * (checkpointing and unit.is_layer))
        if self.has_loss and flows:
            logits = self.positions * self.units()[-1].matrices[-1].outputs
            kept += (_FLOAT32 - itemsize) * logits  # their log-probabilities are kept in place of them
            transient = max(transient, (2 * itemsize + _FLOAT32) * logits)  # themselves, their gradients as they are and in float32
        return kept, transient


def _parts(model: VargptForConditionalGeneration, batch_size: int, length: int, read: float, drawn: float, checkpointing: bool) -> list[_Part]:
    """What a step runs, and where gradients run. Checkpointing makes Transformers let them run into all embeddings, needed or not."""
    config, inner, decoder, backbone = model.config, model.model, model.model.visual_decoder, model.model.backbone
    text, num_codes = config.text_config, config.schedules[0].num_positions
    patches, vision_width = _patches_of_image(config)
    projectors = tuple(backbone.vlm.get_submodule(name) for name in backbone.projector_names)
    towers = [backbone.vlm.get_submodule(name) for name in backbone.tower_names]
    codes = batch_size * drawn * num_codes
    text_width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    decoder_width = config.visual_decoder_config.hidden_size
    modulations = (*(layer.modulation for layer in decoder.layers), decoder.norm_modulation)
    after_llm = ("layers.", "norm_modulation.", "head.")

    embeds = any(p.requires_grad for name, p in decoder.named_parameters() if not name.startswith(after_llm))
    reads = checkpointing or any(map(_is_trained, towers))
    into_llm = (
        checkpointing
        or (read > 0 and (reads or any(map(_is_trained, projectors))))
        or (drawn > 0 and (embeds or _is_trained(inner.projector_to_llm)))
    )
    past_llm = into_llm or _is_trained(backbone.decoder)
    decodes = past_llm or _is_trained(inner.projector_to_decoder)
    return [
        _Part(towers, batch_size * read * patches, checkpointing, patches, vision_width, without=projectors),
        _Part(list(projectors), batch_size * read * _tokens_of_image(config), reads),
        _Part([decoder.token_embedding], codes, False),
        _Part([inner.projector_to_llm], codes, embeds),
        _Part([backbone.decoder], batch_size * length, into_llm, length, text_width),
        _Part([model.lm_head], batch_size * length, past_llm, has_loss=True),
        _Part([inner.projector_to_decoder], codes, past_llm),
        _Part(list(modulations), _CONDITIONS * (drawn > 0), embeds),
        _Part([decoder.layers, decoder.head], codes, decodes, num_codes, decoder_width, without=modulations, has_loss=True),
    ]


def _tokens_of_image(config: VargptConfig) -> int:
    """Placeholders of one image that is read; [`UNKNOWN_TOKENS`] where they depend on its size, 0 where none are read."""
    if config.vision_config is None:
        return 0
    names = ("image_seq_length", "mm_tokens_per_image")
    return next((found for name in names if isinstance(found := getattr(config.vlm_config, name, None), int)), UNKNOWN_TOKENS)


def _patches_of_image(config: VargptConfig) -> tuple[int, int]:
    """Positions of one image in the vision tower, and its width."""
    vision = config.vision_config
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if isinstance(side, int) and isinstance(patch, int):
        return (side // patch) ** 2 + 1, vision.hidden_size
    merged = getattr(vision, "spatial_merge_size", 1) ** 2
    return _tokens_of_image(config) * merged, getattr(vision, "embed_dim", getattr(vision, "hidden_size", 0))


def _working_bytes(model: nn.Module, num_trained: int, itemsize: int, sharded: bool) -> int:
    """Bytes of weights in the format that computes: sharded, those outside layers and of two layers, one of which is on its way;
    else, where it is bfloat16, the copies of trained weights that autocast keeps."""
    if not sharded:
        return itemsize * num_trained * (itemsize == _BFLOAT16)
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    outside = sum(p.numel() for p in model.parameters()) - sum(sizes)
    return itemsize * (outside + sum(sorted(sizes)[-2:]))


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _matrices(module: nn.Module, skipped: set[int]) -> list[_Matrix]:
    """The matrices inside a module but for those of the modules with these ids."""
    found = []
    for name, leaf in module.named_modules():
        if id(leaf) in skipped or "original_module" in name.split("."):  # in place of which PEFT trains a copy
            continue
        if isinstance(leaf, nn.Linear):
            inputs, outputs, kernel = leaf.in_features, leaf.out_features, 1
        elif isinstance(leaf, nn.Conv2d):
            inputs, outputs, kernel = leaf.in_channels, leaf.out_channels, math.prod(leaf.kernel_size)
        else:
            continue
        found.append(_Matrix(inputs * outputs * kernel, inputs, outputs, leaf.weight.requires_grad, "lora_" in name))
    return found


__all__ = ["Budget", "estimate_budget"]
