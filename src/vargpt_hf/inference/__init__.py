"""Drawing thousands of prompts."""
