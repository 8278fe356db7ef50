"""Training: the stages, the trainer and its collator, and trainers for the parts that a model starts from."""
