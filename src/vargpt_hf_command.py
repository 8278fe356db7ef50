"""Entry of the `vargpt` command, imported by its script alone and by processes that it starts.

It stands beside the package because importing `vargpt_hf` imports torch and Transformers, whose Auto classes it extends: `vargpt --help`
should not wait seconds for them. While `starting` is true, the package leaves that to the first command that needs it.
"""

import logging

# These warn, while being imported, of their own parts for other machines or of each other; nobody who draws can act on it.
for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends"):
    logging.getLogger(name).setLevel(logging.ERROR)

starting = False


def main() -> None:
    """Runs the command."""
    global starting
    starting = True
    from vargpt_hf.cli import main as run

    run()


__all__ = ["main", "starting"]
