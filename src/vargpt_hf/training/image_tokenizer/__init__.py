"""Training of image tokenizers, of any kind, on any images."""
