"""SmolLM2-135M, from its GGUF file, against transformers on the folder that the conversion writes."""

import pytest
import torch

from conftest import smollm2_gguf
from octavo.conversion.from_gguf import convert_gguf
from octavo.model.chat import Message, encode_chat, template_for
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import forward
from octavo.model.load import load_model
from octavo.model.tokenizer import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("smollm2") / "dense"
    convert_gguf(smollm2_gguf(), target)
    return target


def test_logits_are_those_of_transformers(folder):
    import transformers

    tokens = torch.tensor(load_tokenizer(folder).encode(TEXT, control_tokens=False))
    model = load_model(folder, CPU, torch.float32)
    cache = make_cache(model.config, 1, len(tokens), CPU, torch.float32)
    ours = forward(model, one_sequence(tokens, 0, len(tokens)), cache, torch.arange(len(tokens)))
    del model
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        theirs = network(tokens[None]).logits[0]
    assert len(tokens) > 60
    assert (ours - theirs).abs().max() <= 1e-3


def test_chats_are_those_of_transformers(folder):
    import transformers

    messages = [Message("system", "Be brief."), Message("user", "What is an octavo?")]
    tokenizer = load_tokenizer(folder)
    expected = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert encode_chat(messages, template_for(tokenizer), tokenizer) == expected
    assert tokenizer.eos_ids == (2,)


TEXT = """An octavo is a technical term describing the format of a book, which refers to the size of leaves
produced from folding a full sheet of paper on which multiple pages of text were printed to form the individual
sections (or gatherings) of a book. It is a sheet folded until it has eight leaves, or sixteen pages."""
