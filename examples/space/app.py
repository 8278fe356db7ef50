"""A Space on the Hub: the page of `vargpt demo`, for a model whose id the variable VARGPT_MODEL holds (vargpt-tiny without one).

Copy this file into a Space of the Gradio kind, beside a requirements.txt with the line `vargpt-hf[demo]`. Here: python examples/space/app.py
"""

import os

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.hardware import default_device
from vargpt_hf.serving.page import build_page, keep_files_apart, launching
from vargpt_hf.serving.page_actions import PageActions
from vargpt_hf.serving.settings import ServerSettings
from vargpt_hf.tiny import TINY_FOLDER, TINY_NAME

name = os.environ.get("VARGPT_MODEL", str(TINY_FOLDER))
model = (
    VargptForConditionalGeneration.from_pretrained(name, dtype="float32" if name == str(TINY_FOLDER) else "auto").to(default_device()).eval()
)
processor = VargptProcessor.from_pretrained(name)
title = TINY_NAME if name == str(TINY_FOLDER) else name.rpartition("/")[2]
settings = ServerSettings(max_drawings=4, max_tokens=512, max_seconds=120)
actions = PageActions(model, processor, title, settings)
actions.engine.start()
keep_files_apart()
demo = build_page(actions)

if __name__ == "__main__":
    demo.launch(**launching(settings))
