"""What lmms-eval finds under the entry point `lmms_eval.models`: the model `vargpt`. Imported by lmms-eval alone."""

from typing import Any


def manifest() -> Any:
    """The registration of VARGPT: the chat interface, and the simple one for tasks that compare likelihoods (`--force_simple`)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "vargpt_hf.evaluation.lmms_model"
    return ModelManifest("vargpt", simple_class_path=f"{module}.VargptSimple", chat_class_path=f"{module}.VargptChat")


__all__ = ["manifest"]
