"""`vargpt info`: what a model is made of."""

import typer

from .options import Model, load


def info(model: Model = None) -> None:
    """Print the parts of a model, their sizes, and how it draws.

    \b
    Examples:
      vargpt info
      vargpt info --model ./my-vargpt
    """
    vargpt, processor = load(model, device="cpu")
    config = vargpt.config
    vq, decoder, text = config.image_tokenizer_config, config.visual_decoder_config, config.text_config
    for name, module in vargpt.model.named_children():
        typer.echo(f"{name:28}{sum(parameter.numel() for parameter in module.parameters()):>16,}")
    typer.echo(f"{'all parameters':28}{vargpt.num_parameters():>16,}")
    typer.echo(f"\nlanguage model    {text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers, {text.vocab_size} tokens")
    typer.echo(f"visual decoder    width {decoder.hidden_size}, {decoder.num_hidden_layers} layers, {decoder.num_attention_heads} heads")
    typer.echo(f"images drawn    {vq.image_size}×{vq.image_size} px, scales {', '.join(map(str, vq.scales))}")
    typer.echo(f"codes             {vq.num_image_tokens} of {vq.codebook_size} an image, {len(vq.scales)} calls of the language model")
    typer.echo(f"images read     {config.vision_config.image_size}×{config.vision_config.image_size} px, {config.image_seq_length} places")
    typer.echo(f"tokenizer         {len(processor.tokenizer)} tokens")
