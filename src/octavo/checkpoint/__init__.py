"""Bytes on disk to tensors and back; knows no model."""
