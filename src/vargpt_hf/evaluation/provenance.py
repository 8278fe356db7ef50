"""What a result depends on beside its data: the model, the code, the packages, the machine."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..inference.prompts import model_fingerprint

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "scipy",
    "scikit-learn",
    "peft",
    "torchmetrics",
    "torch-fidelity",
    "torchvision",
    "prdc",
    "lmms-eval",
)


def of_model(model: "VargptForConditionalGeneration", name: str, folder: str | Path) -> dict[str, Any]:
    """What tells a model from others.

    Args:
        name: as people call it; of a path the last folder.
        folder: or Hub id that it was loaded from.
    """
    return {
        "name": Path(name).name if Path(name).is_dir() else name,
        "fingerprint": model_fingerprint(folder),
        "reads": model.config.vlm_config.model_type,
        "draws": model.config.visual_decoder_config.model_type,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def of_prompts(processor: "VargptProcessor", template: str | None = None, rewriting: str | None = None) -> dict[str, Any]:
    """How a prompt becomes what the model reads.

    Args:
        template: around each prompt, with `{}` in its place.
        rewriting: name of the file with rewritten prompts.
    """
    chat = processor.chat_template
    text = chat if isinstance(chat, str) else "\n".join(f"{name}:\n{one}" for name, one in sorted(chat.items()))
    return {"template": template or "{}", "rewriting": rewriting, "chat_template_sha256": hashlib.sha256(text.encode()).hexdigest()}


def of_generation(model: "VargptForConditionalGeneration", settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `generate`: the model's own, and those that were given in their place."""
    own = {name: value for name, value in model.generation_config.to_diff_dict().items() if name != "transformers_version"}
    return {**own, **settings}


@cache
def of_code() -> dict[str, Any]:
    """Version of this package, a hash of its source, and the commit where it runs from a checkout of its own."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return {"vargpt-hf": __version__, "source_sha256": digest.hexdigest()[:16], "commit": _commit(folder)}


def _commit(folder: Path) -> str | None:
    """The commit of a checkout that holds this package among its files; None elsewhere, such as in an environment inside of another one."""
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", "__init__.py"], cwd=folder, check=True, capture_output=True)
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=folder, check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode().strip()


@cache
def of_packages() -> dict[str, str]:
    """Versions of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def of_hardware(device: torch.device | str) -> dict[str, Any]:
    """The device, and the machine around it."""
    device = torch.device(device)
    found = {"device": device.type, "machine": platform.machine(), "cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


__all__ = ["of_code", "of_generation", "of_hardware", "of_model", "of_packages", "of_prompts"]
