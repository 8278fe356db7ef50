"""The private names of Transformers, TRL, PEFT and torchmetrics that this package relies on: an upgrade that changes one fails here, by name.

Three kinds: methods that we override or call (with their signatures), class attributes that we set or read, and attributes that the
libraries give to instances. Our source is scanned, so that no name can be missing from the list.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import peft
import pytest
import torchmetrics.functional.image.lpips
import transformers
import trl
from transformers.distributed import mixin
from transformers.integrations.peft import PeftAdapterMixin
from transformers.pipelines.any_to_any import AnyToAnyPipeline

import vargpt_hf

SOURCE = Path(vargpt_hf.__file__).parent
LIBRARIES = ("transformers", "trl", "peft")

# Arguments by class and name, without their types.
METHODS = {
    (transformers.PreTrainedModel, "_init_weights"): "(self, module)",
    (torchmetrics.functional.image.lpips, "_LPIPS"): (
        "(pretrained, net, spatial, pnet_rand, pnet_tune, use_dropout, model_path, eval_mode, resize)"
    ),
    (transformers.GenerationMixin, "_expand_inputs_for_generation"): "(self, expand_size, is_encoder_decoder, input_ids, **model_kwargs)",
    (transformers.GenerationMixin, "_get_candidate_generator"): (
        "(self, generation_config, input_ids, inputs_tensor, logits_processor, model_kwargs, assistant_model, "
        "target_tokenizer, assistant_tokenizer)"
    ),
    (transformers.GenerationMixin, "_extract_generation_mode_kwargs"): (
        "(self, custom_generate, kwargs, synced_gpus, assistant_model, streamer)"
    ),
    (transformers.GenerationMixin, "_optimize_model_for_decode"): "(self)",
    (transformers.GenerationMixin, "_prepare_cache_for_generation"): (
        "(self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)"
    ),
    (transformers.GenerationMixin, "_prepare_generated_length"): (
        "(self, generation_config, has_default_max_length, has_default_min_length, model_input_name, input_ids_length, inputs_tensor)"
    ),
    (transformers.GenerationMixin, "_prepare_generation_config"): "(self, generation_config, **kwargs)",
    (transformers.GenerationMixin, "_prefill"): "(self, input_ids, generation_config, model_kwargs, is_first_iteration)",
    (transformers.GenerationMixin, "_prepare_position_ids_for_generation"): "(self, inputs_tensor, model_kwargs)",
    (transformers.GenerationMixin, "_sample"): (
        "(self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs)"
    ),
    (transformers.GenerationMixin, "_update_model_kwargs_for_generation"): (
        "(self, outputs, model_kwargs, is_encoder_decoder, num_new_tokens)"
    ),
    (transformers.GenerationMixin, "_validate_model_kwargs"): "(self, model_kwargs)",
    (transformers.GenerationMixin, "_validate_generation_mode"): "(self, generation_mode, generation_config, generation_mode_kwargs)",
    (transformers.ProcessorMixin, "_adjust_assistant_masks_indices"): "(self, processed_dict, generation_indices)",
    (AnyToAnyPipeline, "_forward"): "(self, model_inputs, generate_kwargs)",
    (AnyToAnyPipeline, "_sanitize_parameters"): (
        "(self, max_new_tokens, generate_kwargs, timeout, return_full_text, return_tensors, return_type, clean_up_tokenization_spaces, "
        "stop_sequence, continue_final_message, skip_special_tokens, generation_mode, processor_kwargs, **kwargs)"
    ),
    (transformers.Trainer, "_get_eval_sampler"): "(self, eval_dataset)",
    (transformers.Trainer, "_get_output_dir"): "(self, trial)",
    (transformers.Trainer, "_get_train_sampler"): "(self, train_dataset)",
    (transformers.Trainer, "_remove_unused_columns"): "(self, dataset, description)",
    (transformers.Trainer, "_run_epoch"): (
        "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time, "
        "resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)"
    ),
    (transformers.Trainer, "_save"): "(self, output_dir, state_dict)",
    (transformers.Trainer, "_save_checkpoint"): "(self, model, trial)",
    (transformers.Trainer, "_set_signature_columns_if_needed"): "(self)",
    (trl.SFTTrainer, "_save_checkpoint"): "(self, model, trial)",
    (trl.SFTTrainer, "_set_signature_columns_if_needed"): "(self)",
    (trl.DPOTrainer, "_compute_loss"): "(self, model, inputs, return_outputs)",
    (trl.DPOTrainer, "_prepare_dataset"): "(self, dataset, processing_class, args, dataset_name)",
    (trl.DPOTrainer, "_save_checkpoint"): "(self, model, trial)",
    (trl.DPOTrainer, "_set_signature_columns_if_needed"): "(self)",
}

# What the libraries' own classes have before anyone sets it.
CLASS_ATTRIBUTES = {
    (transformers.PreTrainedModel, "_can_compile_fullgraph"): False,
    (transformers.PreTrainedModel, "_keep_in_fp32_modules_strict"): None,
    (transformers.PreTrainedModel, "_is_stateful"): False,
    (transformers.PreTrainedModel, "_keys_to_ignore_on_load_unexpected"): None,
    (transformers.PreTrainedModel, "_no_split_modules"): None,
    (transformers.PreTrainedModel, "_skip_keys_device_placement"): None,
    (transformers.PreTrainedModel, "_supports_attention_backend"): False,
    (transformers.PreTrainedModel, "_supports_flash_attn"): False,
    (transformers.PreTrainedModel, "_supports_flex_attn"): False,
    (transformers.PreTrainedModel, "_supports_sdpa"): False,
    (transformers.PreTrainedModel, "_tied_weights_keys"): None,
    (mixin.DistributedMixin, "_pp_plan"): None,
    (mixin.DistributedMixin, "_tp_plan"): None,
    (PeftAdapterMixin, "_hf_peft_config_loaded"): False,
}

# What instances get, by the class whose source sets it.
INSTANCE_ATTRIBUTES = {
    (transformers.PreTrainedConfig, "_attn_implementation"),
    (AnyToAnyPipeline, "_forward_params"),
    (AnyToAnyPipeline, "_postprocess_params"),
    (transformers.GenerationConfig, "_mask_length"),
    (transformers.GenerationMixin, "_bos_token_tensor"),
    (transformers.GenerationMixin, "_pad_token_tensor"),
    (transformers.Trainer, "_signature_columns"),
    (trl.SFTTrainer, "_metrics"),
    (trl.SFTTrainer, "_total_train_tokens"),
    (trl.DPOTrainer, "_metrics"),
    (trl.DPOTrainer, "_total_train_tokens"),
}

# Private by its look alone: documented, or Python's own.
PUBLIC = {"_exit", "_replace"}
LISTED = {name for _, name in (*METHODS, *CLASS_ATTRIBUTES, *INSTANCE_ATTRIBUTES)} | PUBLIC


def arguments(function) -> str:
    """The names of a function's arguments, with their stars."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return "(" + ", ".join(stars.get(p.kind, "") + p.name for p in inspect.signature(function).parameters.values()) + ")"


def listed(entries):
    return [
        pytest.param(*entry, id=f"{entry[0].__name__}.{entry[1]}") for entry in sorted(entries, key=lambda entry: (entry[0].__name__, entry[1]))
    ]


@pytest.mark.parametrize(("owner", "name"), listed(METHODS))
def test_methods_take_the_arguments_that_they_took(owner, name):
    assert name in vars(owner), f"{owner.__name__} no longer defines {name}"
    found = vars(owner)[name]
    assert arguments(getattr(found, "__func__", found)) == METHODS[owner, name]


@pytest.mark.parametrize(("owner", "name"), listed(CLASS_ATTRIBUTES))
def test_class_attributes_are_there(owner, name):
    assert name in vars(owner), f"{owner.__name__} no longer defines {name}"
    assert vars(owner)[name] == CLASS_ATTRIBUTES[owner, name]


@pytest.mark.parametrize(("owner", "name"), listed(INSTANCE_ATTRIBUTES))
def test_instances_get_the_attributes(owner, name):
    sources = [inspect.getsource(base) for base in owner.__mro__ if is_library(base)]
    assert any(re.search(rf"\.{name}\b|def {name}\(self|^    {name}:", source, re.MULTILINE) for source in sources)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def names_used(tree: ast.AST) -> Iterator[str]:
    """Private names that a file reads or sets on objects, defines in classes, or imports from other packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            yield from (argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))
        elif isinstance(node, ast.ClassDef):
            for entry in node.body:
                targets = getattr(entry, "targets", [getattr(entry, "target", None)])
                yield from (target.id for target in targets if isinstance(target, ast.Name))
                yield getattr(entry, "name", "")


def names_defined(tree: ast.AST) -> Iterator[str]:
    """Names that a file gives to functions, classes, variables and attributes of its own objects."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def is_library(owner: type) -> bool:
    return owner.__module__.split(".")[0] in LIBRARIES


# The first runs the command; the others need what the tests do without.
NOT_IMPORTED = ("vargpt_hf.__main__", "vargpt_hf.evaluation.lmms_model", "vargpt_hf.serving.page")


@cache
def own_classes() -> set[type]:
    classes = set()
    for found in pkgutil.walk_packages([str(SOURCE)], "vargpt_hf."):
        if found.name in NOT_IMPORTED:
            continue
        entries = vars(importlib.import_module(found.name)).values()
        classes.update(entry for entry in entries if isinstance(entry, type) and entry.__module__.startswith("vargpt_hf"))
    return classes


def overridden() -> set[str]:
    """Private names that our classes, mixins included, define over those of a library's class."""
    names = set()
    for owner in own_classes():
        of_libraries = {name for base in owner.__mro__ if is_library(base) for name in vars(base)}
        names |= {name for base in owner.__mro__ if base in own_classes() for name in vars(base) if is_private(name)} & of_libraries
    return names


def test_the_list_has_every_private_name_in_our_source():
    """A name is a library's if nothing of ours defines it, or if a class of ours defines it over a library's."""
    trees = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    own = {name for tree in trees.values() for name in names_defined(tree)}
    taken_over = overridden()
    missing = {}
    for path, tree in trees.items():
        for name in filter(is_private, names_used(tree)):
            if (name not in own or name in taken_over) and name not in LISTED:
                missing.setdefault(name, set()).add(str(path.relative_to(SOURCE)))
    assert not missing, f"private names of libraries that the list lacks: {missing}"


def test_the_list_has_no_name_that_we_do_without():
    used = {name for path in SOURCE.rglob("*.py") for name in names_used(ast.parse(path.read_text()))}
    assert LISTED <= used, f"listed, but not used any more: {sorted(LISTED - used)}"


def test_the_scan_finds_what_is_there():
    assert {"_sample", "_save_checkpoint", "_init_weights", "_forward"} <= overridden()
    assert set(names_used(ast.parse("from torch import _C\nclass A:\n    _b: int = 1\n    def _c(self): getattr(self, '_d')._e = 1"))) >= {
        *("_C", "_b", "_c", "_d", "_e")
    }
    bases = {base for owner in own_classes() for base in owner.__mro__ if is_library(base)}
    assert {peft.LoraConfig, trl.SFTTrainer, transformers.GenerationMixin} <= bases
