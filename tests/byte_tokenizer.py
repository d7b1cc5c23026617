"""A tokenizer that can be followed by eye: a byte b is the token 3 + b, and <unk>, <s>, </s> are 0, 1, 2."""

import json
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CONTROL_TOKENS = {"<unk>": 0, "<s>": 1, "</s>": 2}

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def byte_tokens(text: str) -> list[int]:
    """What the tokenizer must give for a text: <s> before it, control tokens read, bytes for the rest."""
    tokens = [1]
    for part in re.split("(<unk>|<s>|</s>)", text):
        tokens += [CONTROL_TOKENS[part]] if part in CONTROL_TOKENS else [3 + byte for byte in part.encode()]
    return tokens


def write_byte_tokenizer(folder: Path) -> Path:
    """Write it, with a small chat template, as a model folder's tokenizer.json and tokenizer_config.json."""
    # The byte-level alphabet of GPT-2: printable bytes as they are, the others from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): 3 + byte for byte in printable}
    vocabulary |= {chr(256 + position): 3 + byte for position, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(CONTROL_TOKENS | vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(spelling, special=True) for spelling in CONTROL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
