"""Calibration data: a fixed, seeded, hashed batch of token windows."""

from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from octavo.corpora import load_corpus
from octavo.model.text_windows import draw_training_windows, sha256_of_tokens
from octavo.model.tokenizer import Tokenizer
from octavo.quantization.recipe import CalibrationSpec


@dataclass(frozen=True)
class Calibration:
    """The windows, and what identifies them: the text's name, source and hash, and the hash of the tokens."""

    tokens: Int64[Tensor, "samples length"]
    text: str
    source: str
    text_sha256: str
    tokens_sha256: str


def calibration_tokens(spec: CalibrationSpec, tokenizer: Tokenizer) -> Calibration:
    """Draw the windows that `spec` asks for; the same spec, text and tokenizer give the same windows.

    The draws are those of GPTQ's reference code (docs/protocols.md). CorpusError where the text is missing,
    malformed or too short; TemplateError where it holds conversations and the model has no template for them.
    """
    corpus = load_corpus(spec.text, "train", spec.data_dir)
    tokens = draw_training_windows(corpus, tokenizer, spec.samples, spec.sequence_length, spec.seed)
    return Calibration(tokens, corpus.name, corpus.source, corpus.sha256, sha256_of_tokens(tokens))
