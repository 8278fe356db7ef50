"""Models that come with this package, each under a short name that commands and training files take in place of a folder.

Nothing here imports torch: `vargpt models` and `--help` should not wait for it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from .tiny import TINY_FOLDER, TINY_NAME

EMOJI_NAME = "vargpt-emoji"
DEFAULT_NAME = EMOJI_NAME  # of commands that name no model

_TINY_PROMPTS = ("a red circle above a blue square", "three orange squares", "a small blue cross on a black background", "a handwritten nine")
_EMOJI_PROMPTS = ("a red scooter, flat look", "a turtle in the flat look", "a rocket, 3d style", "a panda in the cartoon look")


@dataclass(frozen=True)
class ShippedModel:
    """A model that some version of this package brings.

    Args:
        name: short name.
        folder: where its weights lie, where they come with this version.
        draws: what it draws, in a few words.
        license: SPDX name of the weights' license.
        prompts: some that it draws well.
    """

    name: str
    folder: Path
    draws: str
    license: str
    prompts: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder / "model.safetensors"

    @property
    def megabytes(self) -> float:
        """Size of its weights in MB, of 10⁶ bytes."""
        return self.weights.stat().st_size / 1e6

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what it draws by default."""
        drawn = json.loads((self.folder / "config.json").read_text())["image_tokenizer_config"]
        last, downsampling = drawn["schedules"][0][-1], 2 ** (len(drawn["channel_multipliers"]) - 1)
        height, width = last if isinstance(last, list) else (last, last)
        return height * downsampling, width * downsampling


KNOWN = {
    model.name: model
    for model in (
        ShippedModel(TINY_NAME, TINY_FOLDER, "colored shapes, handwritten digits", "Apache-2.0", _TINY_PROMPTS),
        ShippedModel(
            EMOJI_NAME,
            Path(__file__).parent / "emoji" / "weights",
            "emoji by name in three looks",
            "Apache-2.0",
            _EMOJI_PROMPTS,
        ),
    )
}


def shipped_models() -> list[ShippedModel]:
    """The models whose weights come with this version, the commands' default first."""
    found = [model for model in KNOWN.values() if model.weights.is_file()]
    return sorted(found, key=lambda model: model.name != DEFAULT_NAME)


def shipped_model(name: str | Path | None) -> ShippedModel | None:
    """The model that a short name stands for, the default one for None; None for any other folder or Hub id.

    A folder of that name in the current one is meant before the model that comes with the package.

    Raises:
        ValueError: a model whose weights do not come with this version.
    """
    if name is not None and (str(name) not in KNOWN or Path(name).exists()):
        return None
    model = KNOWN[DEFAULT_NAME if name is None else str(name)]
    if not model.weights.is_file():
        raise ValueError(f"The weights of {model.name} do not come with this version of vargpt-hf, but those of {names()}.")
    return model


def folder_of(name: str | Path | None) -> str:
    """The folder of the model that a short name, or None, stands for; any other folder or Hub id as it is. See [`shipped_model`]."""
    model = shipped_model(name)
    return str(name) if model is None else str(model.folder)


def names() -> str:
    """The short names, for messages."""
    return ", ".join(model.name for model in shipped_models())


__all__ = ["DEFAULT_NAME", "EMOJI_NAME", "KNOWN", "ShippedModel", "folder_of", "names", "shipped_model", "shipped_models"]
