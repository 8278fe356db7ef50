"""A Space on the Hub: the page of `vargpt demo`, for a model whose id the variable VARGPT_MODEL holds (without one, for `vargpt demo`'s own).

Copy this file into a Space of the Gradio kind, beside a requirements.txt with the line `vargpt-hf[demo]`. Here: python examples/space/app.py
"""

import os

from vargpt_hf.cli.options import load
from vargpt_hf.cli.serve import short_name
from vargpt_hf.serving.page import build_page, keep_files_apart, launching
from vargpt_hf.serving.page_actions import PageActions
from vargpt_hf.serving.settings import ServerSettings

name = os.environ.get("VARGPT_MODEL") or None
model, processor = load(name)
settings = ServerSettings(max_drawings=4, max_tokens=512, max_seconds=120)
actions = PageActions(model, processor, short_name(name), settings)
actions.engine.start()
keep_files_apart()
demo = build_page(actions)

if __name__ == "__main__":
    demo.launch(**launching(settings))
