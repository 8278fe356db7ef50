"""`vargpt serve`: Transformers' own server, for what a VARGPT says."""

from typing import Annotated

import typer

from .options import Device, DType, Model, check_device, check_model


def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Serve what a VARGPT says, by `transformers serve`: chats of text and images in, text out (OpenAI's chat API).

    \b
    It does not draw: Transformers' server has no way to hand out images. Examples:
      vargpt serve --port 8000
      curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" \\
        -d '{"messages": [{"role": "user", "content": "what can you do"}]}'
    """
    folder, dtype = check_model(model, dtype, device)
    check_device(device)
    from transformers import AutoModelForMultimodalLM
    from transformers.cli.serve import Serve
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    from transformers.utils.import_utils import is_serve_available

    from .. import VargptConfig, VargptForConditionalGeneration

    if not is_serve_available():
        raise ValueError("Serving needs more packages: pip install 'vargpt-hf[serve]'.")

    class VargptTextModel(VargptForConditionalGeneration):
        """A VARGPT whose default is to decode text alone."""

        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            loaded = super().from_pretrained(*args, **kwargs)
            loaded.generation_config.generation_mode = "text"
            return loaded

    # The server takes only classes that Transformers' own tables name; this process is told of one more.
    AutoModelForMultimodalLM.register(VargptConfig, VargptTextModel, exist_ok=True)
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[VargptConfig.model_type] = VargptTextModel.__name__
    Serve(force_model=folder, host=host, port=port, device=device, dtype=dtype)
