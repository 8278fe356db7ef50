"""Released formats, one a file: names of tensors and of config fields, and how they become ours. Nothing outside knows a released name."""
