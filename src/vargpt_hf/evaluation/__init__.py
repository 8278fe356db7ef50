"""Judges of drawings and answers, and the metrics they give."""
