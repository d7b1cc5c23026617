"""Other people's formats to a Hugging Face folder."""
