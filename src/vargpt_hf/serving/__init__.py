"""The server that speaks OpenAI's API, with drawings in it, and the engine behind it: waiting requests are answered in batches."""
