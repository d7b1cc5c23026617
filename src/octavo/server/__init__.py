"""OpenAI-compatible HTTP API, and the terminal chat that is its client; no model logic."""
