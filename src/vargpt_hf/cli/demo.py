"""`vargpt demo`: a page on which one draws, edits and chats."""

import os
import threading
from typing import Annotated

import typer

from .options import Device, DType, Model, load
from .serve import short_name


def demo(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's own need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Make a public address, through Gradio's servers, that lives for a week.")] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    max_drawings: Annotated[int, typer.Option(help="Most images of one prompt at once.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 1024,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait.")] = 20,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Open a page: draw and see an image grow scale by scale, paint where it is to change, chat with images both ways.

    Where others can reach the page, they must know the key that the environment variable VARGPT_API_KEY holds, as the password of "vargpt".

    \b
    Examples:
      vargpt demo
      vargpt demo --model ./my-vargpt --browser
    """
    try:
        from ..serving.settings import KEY_VARIABLE, ServerSettings
    except ImportError as error:
        raise _missing(error) from error
    key = os.environ.get(KEY_VARIABLE)
    settings = ServerSettings(host=host, port=port, api_key=key, max_drawings=max_drawings, max_tokens=max_tokens, max_waiting=4 * max_waiting)
    try:
        from ..hardware import share_freed_memory
        from ..serving.page import build_page, keep_files_apart, launching
        from ..serving.page_actions import PageActions
    except ImportError as error:
        raise _missing(error) from error
    from ..serving.app import listen

    with listen(host, port) as free:  # a taken port is said before the model is loaded
        port = free.getsockname()[1]
    share_freed_memory()
    vargpt, processor = load(model, device, dtype)
    actions = PageActions(vargpt, processor, short_name(model), settings)
    actions.engine.start()
    keep_files_apart()
    page = build_page(actions, max_waiting)
    try:
        auth = None if key is None else ("vargpt", key)
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=browser,
            auth=auth,
            quiet=True,
            prevent_thread_lock=True,
            **launching(settings),
        )
        typer.echo(f"The page is at {page.share_url or page.local_url}")
        threading.Event().wait()  # for an interrupt
    finally:
        page.close(verbose=False)
        actions.engine.close()


def _missing(error: ImportError) -> ValueError:
    return ValueError(f'The page needs more packages ({error}): pip install "vargpt-hf[demo]".')
