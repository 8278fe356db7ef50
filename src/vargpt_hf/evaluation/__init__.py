"""Judges of drawings and answers, and the figures they give."""
