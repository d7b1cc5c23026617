"""Generation: from logits to text."""
