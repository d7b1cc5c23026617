"""The two orders of rows that rotary embeddings want, and the way from one to the other."""

from jaxtyping import Float
from torch import Tensor


def halves(
    interleaved: Float[Tensor, "out_features in_features"], heads: int
) -> Float[Tensor, "out_features in_features"]:
    """Rows in the order of Hugging Face's rotary embedding.

    It turns row i of a head with row i + head_dim / 2, where Meta's and llama.cpp turn row 2i with row 2i + 1.
    """
    pairs = interleaved.reshape(heads, -1, 2, interleaved.shape[-1])
    return pairs.transpose(1, 2).reshape(interleaved.shape)


def interleaved_rows(rows: int, heads: int) -> list[int]:
    """For each row of Meta's order the row of Hugging Face's that stands there: the inverse of `halves`."""
    half = rows // heads // 2
    return [
        head * 2 * half + side * half + place
        for head in range(heads)
        for place in range(half)
        for side in range(2)
    ]
