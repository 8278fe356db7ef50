"""How fast the model is, beside how fast the machine could be: `python -m benchmarks`."""
