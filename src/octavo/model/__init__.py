"""The LLaMA network: configuration, tokens, templates, weights and the forward pass."""
