"""Released checkpoints to ours."""
