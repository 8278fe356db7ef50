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
    tokenizer, decoder, text = config.image_tokenizer_config, config.visual_decoder_config, config.text_config
    for name, module in vargpt.model.named_children():
        typer.echo(f"{name:28}{sum(parameter.numel() for parameter in module.parameters()):>16,}")
    typer.echo(f"{'all parameters':28}{vargpt.num_parameters():>16,}")
    typer.echo(f"\nlanguage model    {text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers, {text.vocab_size} tokens")
    typer.echo(f"visual decoder    width {decoder.hidden_size}, {decoder.num_hidden_layers} layers, {decoder.num_attention_heads} heads")
    for schedule in config.schedules:
        height, width = tokenizer.image_size(schedule)
        typer.echo(f"images drawn      {height}×{width} px, scales {', '.join(map(str, schedule.to_list()))}")
        typer.echo(
            f"codes             {schedule.num_positions} of {tokenizer.num_classes}"
            f"{f' ^ {tokenizer.num_symbols}' if tokenizer.num_symbols > 1 else ''} an image, {len(schedule)} calls of the language model"
        )
    typer.echo(f"images read       by {config.vlm_config.model_type}")
    typer.echo(f"tokenizer         {len(processor.tokenizer)} tokens")
