"""What quantization cost: protocols and statistics."""
