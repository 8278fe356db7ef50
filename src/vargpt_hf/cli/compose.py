"""`vargpt compose`: what reads, what draws and an image tokenizer in, the weights from which training starts out."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Scales, Seed, StoredDType, side_lengths

_V1_1_READER = "qwen2_vl"


def compose(
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    vlm: Annotated[str | None, typer.Option(help="Folder or Hub id of a vision-language model: what reads, with its processor.")] = None,
    llm: Annotated[str | None, typer.Option(help="In place of it, a language model of texts, which then draws and reads no images.")] = None,
    image_tokenizer: Annotated[str | None, typer.Option(help="Folder of an image tokenizer of this package, or of a VARGPT.")] = None,
    vqvae: Annotated[Path | None, typer.Option(help="In place of it, VAR's VQ-VAE, such as vae_ch160v4096z32.pth.")] = None,
    bsq: Annotated[Path | None, typer.Option(help="In place of it, Infinity's VAE, such as infinity_vae_d32reg.pth.")] = None,
    var: Annotated[Path | None, typer.Option(help="VAR's weights, such as var_d30.pth: the visual decoder.")] = None,
    infinity: Annotated[Path | None, typer.Option(help="Infinity's weights, such as infinity_2b_reg.pth: the visual decoder.")] = None,
    decoder_size: Annotated[
        str | None, typer.Option(help="Of a fresh visual decoder: small, base (default), large, or layers,width,heads such as 16,1024,16.")
    ] = None,
    llava: Annotated[Path | None, typer.Option(help="VARGPT v1: folder of llava-hf/llava-1.5-7b-hf; with --var and --vqvae.")] = None,
    scales: Scales = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0.0, help="GB of your GPU: what of training fits it is marked.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print sizes, memory and time of training; load and write nothing.")] = False,
    dtype: StoredDType = None,
    seed: Seed = 0,
) -> None:
    """Compose the model from which training starts: any vision-language model that reads, and a side that draws.

    Reading stays as it is. What no file has is fresh, of the seed: projectors, and the visual decoder unless its weights are given. Sizes,
    memory and time of training are printed before any weight is loaded.

    \b
    Examples:
      vargpt compose --vlm Qwen/Qwen3-VL-2B-Instruct --image-tokenizer my-tokenizer --decoder-size base start --gpu-memory 24
      vargpt compose --llm Qwen/Qwen3-0.6B --vqvae vae_ch160v4096z32.pth start
      vargpt compose --llava llava-1.5-7b-hf --var var_d30.pth --vqvae vae_ch160v4096z32.pth runs/paper/start
      vargpt compose --vlm Qwen2-VL-7B-Instruct --infinity infinity_2b_reg.pth --bsq infinity_vae_d32reg.pth start --dtype bfloat16
    """
    options = {"scales": side_lengths(scales), "dtype": dtype, "seed": seed}
    others = (llm, image_tokenizer, decoder_size)
    is_paper_s = llava is not None or (vlm is not None and infinity and bsq and not any((var, vqvae, *others)) and _is_v1_1(vlm))
    if is_paper_s and (dry_run or gpu_memory is not None):
        raise ValueError("--dry-run and --gpu-memory are of models whose sizes are chosen here; docs/paper_scale.md has those of the papers.")
    if llava is not None:
        if var is None or vqvae is None or any(part is not None for part in (vlm, infinity, bsq, *others)):
            raise ValueError("--llava (VARGPT v1) goes with --var and --vqvae alone; any other model that reads is given as --vlm or --llm.")
        from ..conversion.compose import compose_checkpoint

        compose_checkpoint(llava, var, vqvae, destination, **options)
    elif is_paper_s:
        from ..conversion.compose_infinity import compose_v1_1

        compose_v1_1(vlm, infinity, bsq, destination, **options)
    else:
        from ..conversion.any_vlm import plan_composition
        from ..conversion.assembly import check_destination
        from ..training.outlook import describe_outlook

        check_destination(destination)
        drawing = {"image_tokenizer": image_tokenizer, "vqvae": vqvae, "bsq": bsq, "var": var, "infinity": infinity}
        composition = plan_composition(vlm, llm, **drawing, decoder_size=decoder_size, scales=options["scales"])
        typer.echo(describe_outlook(composition.config, gpu_memory))
        if dry_run:
            return
        composition.write(destination, dtype, seed)
    typer.echo(f"Saved {destination}")


def _is_v1_1(vlm: str) -> bool:
    """Whether what reads is that of VARGPT v1.1, by its folder."""
    from ..modeling.checkpoint_vargpt import read_json

    return (Path(vlm) / "config.json").is_file() and read_json(Path(vlm) / "config.json").get("model_type") == _V1_1_READER
