"""A text as windows of tokens: what calibration, benchmark and evaluation share.

The random draws are those of GPTQ's reference code, number for number: Python's `random`, seeded just before.
"""

import hashlib
import random

import torch
from jaxtyping import Int64
from torch import Tensor

from octavo.corpora import Conversation, Corpus
from octavo.errors import CorpusError, TemplateError, UsageError
from octavo.model.chat import ChatTemplate, Message, encode_chat, template_for
from octavo.model.tokenizer import Tokenizer


def token_stream(corpus: Corpus, tokenizer: Tokenizer, separator: str = "\n\n") -> list[int]:
    """The whole text as one stream of tokens.

    Documents are joined by `separator` and tokenized at once, so that what a tokenizer puts before a text (LLaMA's
    BOS) stands at the very start only. Conversations go through the model's chat template one by one and are laid
    end to end. As with the tools that the published numbers come from, a control token spelled out in a document
    (`<unk>` in Penn Treebank) is that token; in a message it is not.
    """
    if corpus.conversations:
        template = template_for(tokenizer)
        return [
            token
            for number, conversation in enumerate(corpus.conversations, start=1)
            for token in _conversation_tokens(
                conversation, f"conversation {number} of {corpus.name}", template, tokenizer
            )
        ]
    return tokenizer.encode(separator.join(corpus.documents), control_tokens=True, beginning=True)


def draw_training_windows(
    corpus: Corpus, tokenizer: Tokenizer, samples: int, length: int, seed: int
) -> Int64[Tensor, "samples length"]:
    """`samples` random windows, as GPTQ's reference draws its calibration data.

    C4 (or what stands in for it): see `draw_from_documents`. Every other text is one stream of N tokens, and
    each window starts at `randint(0, N - length - 1)`. CorpusError where the text is too short.
    """
    if corpus.dataset == "c4":
        return draw_from_documents(corpus, tokenizer, samples, length, seed)[0]
    stream = token_stream(corpus, tokenizer)
    if len(stream) <= length:
        raise CorpusError(
            f"{corpus.name} has {len(stream)} tokens; to draw windows of {length} takes at least {length + 1}: "
            "give a longer text or ask for shorter windows"
        )
    generator = random.Random(seed)
    starts = [generator.randint(0, len(stream) - length - 1) for _ in range(samples)]
    return torch.tensor([stream[start : start + length] for start in starts], dtype=torch.int64)


def draw_from_documents(
    corpus: Corpus, tokenizer: Tokenizer, samples: int, length: int, seed: int
) -> tuple[Int64[Tensor, "samples length"], list[int]]:
    """`samples` random windows within single documents, as GPTQ's reference draws from C4, and their documents.

    A document is drawn until one has more than `length` tokens, then its start, `randint(0, tokens - length - 1)`.
    The reference also accepts a document of exactly `length`, and stops with an error when it meets one.
    CorpusError where no document is long enough.
    """
    generator = random.Random(seed)
    long_enough: dict[int, list[int]] = {}
    too_short: set[int] = set()
    windows: list[list[int]] = []
    documents: list[int] = []
    while len(windows) < samples:
        if len(too_short) == len(corpus.documents):
            raise CorpusError(
                f"none of the {len(corpus.documents)} documents of {corpus.name} has more than {length} tokens; "
                "give longer documents or ask for shorter windows"
            )
        document = generator.randint(0, len(corpus.documents) - 1)
        if document in too_short:
            continue
        if document not in long_enough:
            tokens = tokenizer.encode(corpus.documents[document], control_tokens=True, beginning=True)
            if len(tokens) <= length:
                too_short.add(document)
                continue
            long_enough[document] = tokens
        tokens = long_enough[document]
        start = generator.randint(0, len(tokens) - length - 1)
        windows.append(tokens[start : start + length])
        documents.append(document)
    return torch.tensor(windows, dtype=torch.int64), documents


def sha256_of_tokens(tokens: Int64[Tensor, "windows length"]) -> str:
    """Hash of token ids: rows one after another, each id as eight bytes, little-endian."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def _conversation_tokens(
    conversation: Conversation, where: str, template: ChatTemplate, tokenizer: Tokenizer
) -> list[int]:
    try:
        messages = [Message(role, content) for role, content in conversation]
        return encode_chat(messages, template, tokenizer, ending="closed")
    except (TemplateError, UsageError) as error:
        raise CorpusError(f"{where} cannot be written as a prompt: {error}") from error
