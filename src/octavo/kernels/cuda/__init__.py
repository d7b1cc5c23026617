"""Quantized linears in CUDA C++, compiled by NVRTC for the card at hand: the second answer for GPUs."""
