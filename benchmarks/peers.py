"""Models of Transformers that draw token by token, as large as ours, with random weights.

All have the language model of a size; what differs is how often it is called for one image: S times, or once for each of L tokens.
"""

from collections.abc import Callable

import torch
from transformers import Emu3Config, Emu3ForConditionalGeneration, JanusConfig, JanusForConditionalGeneration

from vargpt_hf import VargptConfig

from .cases import PROMPT, Work, write
from .sizes import model_of

BOS, END_OF_LINE, IMAGE, BEGIN_OF_IMAGE = 1, 3, 4, 5
FIRST_VISUAL = 16  # tokens of Emu3's images follow the few special ones
GUIDANCE = 5.0  # Janus always guides


def _prompt(config: VargptConfig) -> dict[str, torch.Tensor]:
    ids = torch.randint(FIRST_VISUAL, config.text_config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def janus(config: VargptConfig) -> Work:
    """Janus: 16×16 tokens for an image of 256 pixels, one after the other, both halves of guidance."""
    vq, text = config.image_tokenizer_config, config.text_config
    side, _ = config.schedules[0].final_grid
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(
        JanusConfig(
            text_config=text.to_dict(),
            vision_config={
                "hidden_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": vq.image_size()[0],
                "patch_size": vq.downsampling,
                "projection_dim": text.hidden_size,
                "num_image_tokens": side**2,
            },
            vq_config={
                "base_channels": vq.base_channels,
                "num_embeddings": vq.codebook_size,
                "projection_dim": text.hidden_size,
                "image_token_embed_dim": text.hidden_size,
            },
            image_token_id=IMAGE,
        )
    ).eval()
    model.generation_config.update(bos_token_id=BOS, pad_token_id=0)
    model.generation_config.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}
    inputs = _prompt(config)

    @torch.no_grad()
    def draw() -> torch.Tensor:
        return model.decode_image_tokens(model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=GUIDANCE))

    return draw


def emu3(config: VargptConfig) -> Work:
    """Emu3: 32×32 tokens and an end of line after each row for an image of 256 pixels, one after the other."""
    vq, text = config.image_tokenizer_config, config.text_config
    side = vq.image_size()[0] // 8
    codes = text.vocab_size - FIRST_VISUAL
    vocabulary = {f"<|visual token {code:06d}|>": FIRST_VISUAL + code for code in range(codes)}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    torch.manual_seed(0)
    model = Emu3ForConditionalGeneration(
        Emu3Config(
            text_config={**{name: getattr(text, name) for name in names}, "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": 2},
            vq_config={"base_channels": vq.base_channels, "hidden_size": 4 * vq.base_channels, "codebook_size": codes},
            vocabulary_map={"<image>": IMAGE, "<|extra_200|>": END_OF_LINE, **vocabulary},
        )
    ).eval()
    inputs, tokens = _prompt(config), side * (side + 1) + 3  # three that end an image
    never = list(range(FIRST_VISUAL))

    @torch.no_grad()
    def draw() -> torch.Tensor:
        drawn = model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, suppress_tokens=never)
        return model.decode_image_tokens(image_tokens=drawn[:, PROMPT:], height=side, width=side)

    return draw


def own_tokens(tokens: int) -> Callable[[VargptConfig], Work]:
    """Our language model alone, so many tokens one after the other: what an image of so many tokens would cost it at least."""
    return lambda config: write(tokens)(model_of("medium"))


PEERS: dict[str, tuple[str, Callable[[VargptConfig], Work]]] = {
    "tokens-256": ("256 tokens one by one, same language model", own_tokens(256)),
    "tokens-680": ("680 tokens one by one, same language model", own_tokens(680)),
    "janus": ("Janus: 256 tokens and pixels, guided", janus),
    "emu3": ("Emu3: 1059 tokens and pixels", emu3),
}
