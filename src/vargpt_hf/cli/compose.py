"""`vargpt compose`: what reads, what draws and an image tokenizer in, the starting weights of stage 1 out."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Scales, Seed, StoredDType, side_lengths


def compose(
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    llava: Annotated[Path | None, typer.Option(help="v1: folder of llava-hf/llava-1.5-7b-hf: language model, vision tower, tokenizer.")] = None,
    var: Annotated[Path | None, typer.Option(help="v1: VAR's weights, such as var_d30.pth: the visual decoder.")] = None,
    vqvae: Annotated[Path | None, typer.Option(help="v1: VAR's VQ-VAE, such as vae_ch160v4096z32.pth: the image tokenizer.")] = None,
    vlm: Annotated[Path | None, typer.Option(help="v1.1: folder of Qwen/Qwen2-VL-7B-Instruct: what reads, with its tokenizer.")] = None,
    infinity: Annotated[Path | None, typer.Option(help="v1.1: Infinity's weights, such as infinity_2b_reg.pth: the visual decoder.")] = None,
    bsq: Annotated[Path | None, typer.Option(help="v1.1: Infinity's VAE, such as infinity_vae_d32reg.pth: the image tokenizer.")] = None,
    scales: Scales = None,
    dtype: StoredDType = None,
    seed: Seed = 0,
) -> None:
    """Compose the model from which stage 1 of training starts; its generation projectors are fresh, of that seed.

    \b
    Examples:
      vargpt compose --llava llava-1.5-7b-hf --var var_d30.pth --vqvae vae_ch160v4096z32.pth runs/paper/start
      vargpt compose --vlm Qwen2-VL-7B-Instruct --infinity infinity_2b_reg.pth --bsq infinity_vae_d32reg.pth start --dtype bfloat16
    """
    first, second = (llava, var, vqvae), (vlm, infinity, bsq)
    complete = [all(parts) for parts in (first, second)]
    if sum(complete) != 1 or any(second if complete[0] else first):
        raise ValueError("Give either --llava, --var and --vqvae (VARGPT v1) or --vlm, --infinity and --bsq (VARGPT v1.1).")
    options = {"scales": side_lengths(scales), "dtype": dtype, "seed": seed}
    if complete[0]:
        from ..conversion.compose import compose_checkpoint

        compose_checkpoint(*first, destination, **options)
    else:
        from ..conversion.compose_infinity import compose_v1_1

        compose_v1_1(*second, destination, **options)
    typer.echo(f"Saved {destination}")
