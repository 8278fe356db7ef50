"""What all VARGPT models share: loading that is checked, saving with the code, fresh weights."""

import copy
import math
import os

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .adapters_vargpt import VargptAdapterMixin
from .base_modeling_vargpt import VargptBaseModel
from .checkpoint_vargpt import WEIGHT_DTYPES, WEIGHT_FORMATS, TensorHeader, fault_of, headers_of
from .configuration_vargpt import VargptConfig
from .visual_decoder_vargpt import VargptProjector, VargptVisualDecoder

# What a repository that carries this code says of it. Transformers itself would note one Auto class only.
REPOSITORY_CLASSES = {
    "AutoConfig": "configuration_vargpt.VargptConfig",
    "AutoModel": "modeling_vargpt.VargptModel",
    "AutoModelForCausalLM": "modeling_vargpt.VargptForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_vargpt.VargptForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_vargpt.VargptForConditionalGeneration",
}
REPOSITORY_PIPELINES = {
    "any-to-any": {"impl": "pipeline_vargpt.VargptPipeline", "pt": ["AutoModelForMultimodalLM"], "type": "multimodal", "default": {}}
}


# Numbers that a checkpoint may lack and the missing tensors still be named, for which Transformers first makes room.
MOST_MISSING = 2**27


class VargptPreTrainedModel(VargptAdapterMixin, VargptBaseModel):
    """What all VARGPT models share: configuration, flags, initialization."""

    config: VargptConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "state"]
    _can_compile_fullgraph = True

    def post_init(self) -> None:
        """As in Transformers; of the layers that may not be split it keeps those that there are, and adds those that parts do not name.

        A part may name layers of its other half, as CLIP's vision tower does: FSDP, which shards by these names, would not find them. Or
        it may name less than its layers, as SmolVLM's tower does, and FSDP would keep most of it whole.
        """
        super().post_init()
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}
        self._no_split_modules |= {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The same as `is_activation_checkpointing`, by the name that PEFT asks for and of which Transformers warns."""
        return self.is_activation_checkpointing

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Saves the model with the code that defines it, so that `trust_remote_code=True` loads it without this package.

        Tensors keep the names that they have in the model, unless `save_original_format=True`: many a backbone would be written in names
        of its past, which `from_pretrained` knows, but neither trainers that go on from a checkpoint nor people who open a file.
        """
        kwargs.setdefault("save_original_format", False)
        self.config.auto_map = dict(REPOSITORY_CLASSES)
        self.config.custom_pipelines = copy.deepcopy(REPOSITORY_PIPELINES)  # `pipeline` writes classes into the one that it reads
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Loads a model as Transformers does, and refuses a checkpoint that does not hold it.

        `output_loading_info=True` returns what is missing, extra or misshapen instead, as does `ignore_mismatched_sizes=True` for shapes.

        Raises:
            ValueError: tensors that are missing, extra or of other shapes than the configuration asks for, no floating-point numbers, not
                finite or beyond the range of `dtype`; a configuration of another kind of model or with impossible numbers.
            OSError: no safetensors file, or a damaged one; pickled weights are only read by `vargpt convert`, which loads nothing but
                tensors.
        """
        if output_loading_info or pretrained_model_name_or_path is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=output_loading_info, **kwargs)
        headers = cls._checked_headers(pretrained_model_name_or_path, kwargs)
        allowed = {"mismatched_keys"} if kwargs.pop("ignore_mismatched_sizes", False) else set()
        kwargs = {"use_safetensors": True, **kwargs, "ignore_mismatched_sizes": True}  # so that all misfits are known
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        _check_loaded(cls, pretrained_model_name_or_path, {name: found for name, found in info.items() if name not in allowed})
        _check_values(model, pretrained_model_name_or_path, headers)
        return model

    @classmethod
    def _checked_headers(cls, source: str, options: dict) -> dict[str, TensorHeader]:
        """What the files to load say of their tensors, before anything is allocated for them; nothing where they are not of our format."""
        if options.get("state_dict") is not None or options.get("gguf_file") or options.get("use_safetensors") is False:
            return {}
        names = ("cache_dir", "local_files_only", "token", "revision", "subfolder", "proxies")
        hub = {name: options[name] for name in names if options.get(name) is not None}
        headers = headers_of(source, options.get("variant"), **hub)
        if not headers:
            return {}
        config = options.get("config")
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(source if config is None else config, **hub)
        if getattr(config, "quantization_config", None) is None:
            _check_headers(source, headers)
            if not options.get("ignore_mismatched_sizes"):
                _check_size(source, config, headers)
        return headers

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Of what the parts, which have methods of their own, leave: the projectors and the head."""
        if isinstance(module, VargptProjector):
            for linear in (module.fc1, module.fc2):
                VargptVisualDecoder.init_linear(linear, linear.in_features**-0.5)
        elif module is self.get_output_embeddings():
            VargptVisualDecoder.init_linear(module, getattr(self.config.text_config, "initializer_range", 0.02))


def _check_loaded(model_class: type, source: str, info: dict) -> None:
    """Raises one `ValueError` that names every tensor which `source` lacks, has beyond the model's, or has in another shape."""
    problems = {
        "missing": sorted(info.get("missing_keys", ())),
        "unexpected": sorted(info.get("unexpected_keys", ())),
        "of another shape": [
            f"{name} ({tuple(found)} in the file, {tuple(wanted)} by the configuration)"
            for name, found, wanted in sorted(info.get("mismatched_keys", ()))
        ],
    }
    if misfits := list_misfits(problems):
        raise ValueError(
            f"The tensors in {source} are not those of the {model_class.__name__} that its config.json describes. {misfits}. Load the "
            "folder with the config.json that it was saved with; a checkpoint in the released format must go through `vargpt convert`."
        )


def _check_headers(source: str, headers: dict[str, TensorHeader]) -> None:
    """Raises one `ValueError` that names every tensor whose numbers are not those of weights."""
    wrong = [f"{name} ({header.file.name}, {header.format})" for name, header in headers.items() if header.format not in WEIGHT_FORMATS]
    if wrong:
        raise ValueError(
            f"Tensors in {source} are no weights, which are floating-point numbers of {', '.join(WEIGHT_FORMATS)}: {shorten(wrong)}."
        )


def _check_size(source: str, config: VargptConfig, headers: dict[str, TensorHeader]) -> None:
    """Refuses a configuration of a model so much larger than its files that room for what is missing could take all memory."""
    held, least = sum(math.prod(header.shape) for header in headers.values()), config.least_parameters()
    if least - held > MOST_MISSING:
        files = shorten(sorted({header.file.name for header in headers.values()}))
        raise ValueError(
            f"config.json of {source} describes a model of at least {least:,} parameters, but {files} hold {held:,} numbers: load the "
            "weights with the config.json that they were saved with."
        )


def _check_values(model: nn.Module, source: str, headers: dict[str, TensorHeader]) -> None:
    """Raises one `ValueError` that names every weight with NaN or infinity, from its file or by the format in which it was loaded.

    Skipped is what is not here (other processes' shards, memory of other devices) or not plain numbers (quantized weights).
    """
    faults = []
    for name, tensor in model.named_parameters():
        if (
            type(tensor) is nn.Parameter
            and tensor.dtype in WEIGHT_DTYPES
            and not tensor.is_meta
            and tensor.numel()
            and (fault := fault_of(tensor))
        ):
            header = headers.get(name) or headers.get(f"model.{name}")
            where = f" ({header.file.name}, {header.format} loaded as {str(tensor.dtype).removeprefix('torch.')})" if header else ""
            faults.append(f"{name}{where} is {fault}")
    if faults:
        raise ValueError(
            f"Weights in {source} cannot be used: {shorten(faults)}. Where the file is sound, its numbers are beyond the range of the format: "
            "load it in bfloat16 or float32."
        )


def list_misfits(problems: dict[str, list[str]]) -> str:
    """Tensors by what is wrong with them, in one line; nothing where nothing is."""
    return "; ".join(f"{kind}: {shorten(names)}" for kind, names in problems.items() if names)


def shorten(names: list[str], shown: int = 20) -> str:
    """Names joined by commas, the first `shown` of them."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


__all__ = ["VargptPreTrainedModel", "list_misfits", "shorten"]
