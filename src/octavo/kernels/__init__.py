"""y = x @ W^T for a quantized weight, and cached attention: several answers, one contract."""
