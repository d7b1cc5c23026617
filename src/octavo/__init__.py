"""Octavo quantizes LLaMA-family models with GPTQ, proves what that cost, and runs the result."""

__version__ = "0.1.0"
