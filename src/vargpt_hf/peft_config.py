"""Settings of LoRA that are saved as a VARGPT's adapter: with a card of ours, and without paths of this machine."""

import copy
import os
import re
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.repocard import RepoCard
from peft import LoraConfig

from .modeling.card_vargpt import hub_id, make_adapter_card

_CHECKPOINT = re.compile(r"checkpoint-\d+$")  # folders of a run, in whose own folder stands the run's card
# By these words one knows the forms that PEFT and TRL fill in, and cards that were written here before.
_FORMS = ("Provide a quick summary of what the model is/does", "It has been trained using [TRL]", "An adapter of a VARGPT")


class VargptLoraConfig(LoraConfig):
    """`LoraConfig` as [`vargpt_hf.peft.lora_config`] makes it; `preset` is the name of the preset, for the card.

    PEFT and Transformers both save an adapter's settings by [`save_pretrained`], so that is where the card comes from.
    """

    preset: str | None = None  # no field: it is not saved, since PEFT would not know it

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Saves adapter_config.json and, unless somebody wrote one, README.md.

        A base model from the Hub is named by its id. One from a folder is named by the path from the working directory, by which loading
        from there finds it; the card names the folder alone.
        """
        written = copy.copy(self)
        written.base_model_name_or_path = without_root(self.base_model_name_or_path)
        super(VargptLoraConfig, written).save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory).absolute()
        card = make_adapter_card(folder.name, self.base_model_name_or_path, self.preset, self.r, self.lora_alpha)
        self._save_card(card, folder, always=True)
        if not any((folder.parent / name).exists() for name in ("config.json", "adapter_config.json")) and not _CHECKPOINT.match(folder.name):
            self._save_card(card, folder.parent, always=False)  # where PEFT puts its own, if the adapter has a name and so a folder below

    @staticmethod
    def _save_card(card: ModelCard, folder: Path, always: bool) -> None:
        readme = folder / "README.md"
        if not readme.exists():
            if always:
                card.save(readme)
            return
        found = RepoCard.load(readme, ignore_metadata_errors=True)
        if any(form in found.text for form in _FORMS):
            card.save(readme)
        elif os.path.isabs(str(found.data.get("base_model") or "")):  # PEFT writes it into people's own cards, too
            base = found.data.base_model
            found.data.base_model = None
            found.data.tags = [tag for tag in found.data.get("tags") or () if base not in tag]
            found.save(readme)


def without_root(base: str | None) -> str | None:
    """A Hub id as it is, an absolute path as the one from the working directory; a folder's name where no such path exists."""
    if base is None or hub_id(base) or not os.path.isabs(base):
        return base
    try:
        return os.path.relpath(base)
    except ValueError:  # on another drive
        return os.path.basename(base)


__all__ = ["VargptLoraConfig", "without_root"]
