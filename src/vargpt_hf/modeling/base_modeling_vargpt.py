"""What all our models share, whole ones and parts: how attention is chosen, and how fresh weights come about."""

from transformers import PreTrainedModel


class VargptBaseModel(PreTrainedModel):
    """Base of every model of ours."""

    # Attention of a part's own, if any, may be the same whatever is chosen; without these flags, choosing one for a whole model would fail.
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: what that says to Transformers is that `_init_weights` may write over weights just loaded.

        Ours does not, since it goes through `transformers.initialization`. Were it True, modules without weights of their own would be
        passed over, and layers that are initialized by such a module, of a backbone among them, left as they were allocated.
        """
        return False


__all__ = ["VargptBaseModel"]
