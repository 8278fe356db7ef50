"""Drawing and asking: a batch at a time, or a file of prompts."""
