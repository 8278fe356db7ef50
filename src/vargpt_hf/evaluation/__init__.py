"""Metrics, each with its unit, and the report on vargpt-tiny."""
