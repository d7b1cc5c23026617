"""The layouts in which quantized linears lie on disk, one module each; a layout knows its own tensors only."""
