"""`vargpt compose`: LLaVA-1.5, VAR and VAR's image tokenizer in, the starting weights of stage 1 out."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Scales, Seed, StoredDType, side_lengths


def compose(
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    llava: Annotated[Path, typer.Option(help="Folder of llava-hf/llava-1.5-7b-hf: language model, vision tower, tokenizer.")],
    var: Annotated[Path, typer.Option(help="VAR's weights, such as var_d30.pth: the visual decoder.")],
    vqvae: Annotated[Path, typer.Option(help="VAR's VQ-VAE, such as vae_ch160v4096z32.pth: the image tokenizer.")],
    scales: Scales = None,
    dtype: StoredDType = None,
    seed: Seed = 0,
) -> None:
    """Compose the model from which stage 1 of training starts; its generation projectors are fresh, of that seed.

    \b
    Examples:
      vargpt compose --llava llava-1.5-7b-hf --var var_d30.pth --vqvae vae_ch160v4096z32.pth runs/paper/start
      vargpt compose --llava llava-1.5-7b-hf --var var_d30.pth --vqvae vae_ch160v4096z32.pth start --dtype bfloat16
    """
    from ..conversion.compose import compose_checkpoint

    compose_checkpoint(llava, var, vqvae, destination, scales=side_lengths(scales), dtype=dtype, seed=seed)
    typer.echo(f"Saved {destination}")
