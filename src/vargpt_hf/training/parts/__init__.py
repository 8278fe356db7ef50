"""Trainers of the parts that a small model needs and the paper took ready-made, and putting them together."""
