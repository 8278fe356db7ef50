"""Adapters that Transformers' own integration of PEFT puts on a model: `add_adapter`, `set_adapter`, `disable_adapters`."""

from collections.abc import Iterator

from torch import nn


class VargptAdapterMixin:
    """Switches adapters that train whole modules (`modules_to_save`) beside their low-rank maps.

    Of those, Transformers 5.23 can neither hold two that train different modules (`set_adapter` raises) nor switch one on again
    (`enable_adapters` leaves the whole modules out, and the model is half adapted without a word).
    """

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Makes these adapters the active ones, and only them trainable; modules that none of them trains are the base model's.

        Raises:
            ValueError: adapters that are not there, or several that train the same module whole.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        loaded = list(self.peft_config) if self._hf_peft_config_loaded else []
        if not names or set(names) - set(loaded):
            raise ValueError(f"Adapters to set: {', '.join(names) or 'none'}; adapters there are: {', '.join(loaded) or 'none'}.")
        # Code of a repository may import what is optional inside of `try` alone.
        try:
            from peft.functional import set_adapter
        except ImportError:
            raise
        set_adapter(self, names)
        for module in self._whole_modules():
            for name, copy in module.modules_to_save.items():
                copy.requires_grad_(name in module.active_adapters)

    def enable_adapters(self) -> None:
        """Undoes `disable_adapters`."""
        super().enable_adapters()
        for module in self._whole_modules():
            module.enable_adapters(enabled=True)

    def _whole_modules(self) -> Iterator[nn.Module]:
        """PEFT's wrappers around modules that adapters train whole."""
        try:
            from peft.utils import ModulesToSaveWrapper
        except ImportError:
            raise
        return (module for module in self.modules() if isinstance(module, ModulesToSaveWrapper))


__all__ = ["VargptAdapterMixin"]
