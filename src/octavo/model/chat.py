"""Messages to the exact prompt that a model was trained on, and to its token ids.

A template may write control tokens; what people typed never becomes one, not even the spelling of one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from octavo.errors import TemplateError, UsageError
from octavo.model.templates import Disguise, make_disguise, run_template
from octavo.model.tokenizer import Segment, Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")

# Renders a template as `run_template` does, perhaps under further limits.
TemplateRunner = Callable[[str, Mapping[str, Any], Disguise, datetime], str]

# Marks where the text of a message ends that is to be continued; Unicode assigns it to nothing.
END_MARK = "\U0010ffff"

# How a prompt ends: where the assistant's reply begins, after the last message, or within that, to go on with it:
# with a message of the assistant, or with one of the user, which the model then writes in the user's place.
Ending = Literal["reply", "closed", "continue"]

VICUNA_NAME = re.compile(r"vicuna.*?(?<!\d)1[._][135](?!\d)", re.IGNORECASE | re.DOTALL)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Message:
    """One turn of a chat. A role is one of ROLES: some templates make a control token of it."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(f"the role {self.role!r} is not one of {', '.join(ROLES)}")


@dataclass(frozen=True)
class ChatTemplate:
    """How a model wants its chats written: its own Jinja, or None for Vicuna v1.1, which is Python below."""

    jinja: str | None


VICUNA_V1_1 = ChatTemplate(jinja=None)


def template_for(tokenizer: Tokenizer) -> ChatTemplate:
    """The template of a model: its own, or Vicuna v1.1 if a name says so (v1.3 and v1.5 are trained on the same).

    The names are that of the model's folder and what its configuration calls it. TemplateError for other models.
    """
    if tokenizer.chat_template:
        return ChatTemplate(tokenizer.chat_template)
    is_vicuna = any(VICUNA_NAME.search(name) for name in tokenizer.declarations.model_names)
    if is_vicuna and tokenizer.id_of("</s>") in tokenizer.control_ids:
        return VICUNA_V1_1
    model = tokenizer.declarations.model_names[0]
    raise TemplateError(f"{model} has no chat template; put one into its folder as chat_template.jinja")


def render(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    ending: Ending = "reply",
    run: TemplateRunner = run_template,
) -> tuple[Segment, ...]:
    """The prompt of a chat, in which the control tokens that the template wrote are segments of their own.

    It ends where the assistant's reply begins, or by `ending` otherwise. Except for "continue", the texts, joined,
    are what Hugging Face's `apply_chat_template` gives. Raises TemplateError if the template is broken, refuses
    the messages, goes beyond the limits above, or alters contents so that its own control tokens cannot be told
    from typed ones.
    """
    if not messages:
        raise UsageError("a chat needs at least one message")
    if ending == "continue" and messages[-1].role not in ("assistant", "user"):
        raise UsageError(
            f"only a message of the assistant or the user can be continued; the last is the {messages[-1].role}'s"
        )
    if template.jinja is None:
        return vicuna_v1_1(messages, ending=ending)
    variables: dict[str, Any] = {**tokenizer.special_tokens, "tools": None, "documents": None}
    variables["add_generation_prompt"] = ending == "reply"
    if ending != "continue":
        return _render_jinja(messages, template.jinja, tokenizer, variables, run)
    if any(END_MARK in message.content for message in messages):
        raise TemplateError("a message holds U+10FFFF, which marks the end of what is continued; remove it")
    marked = [*messages[:-1], Message(messages[-1].role, messages[-1].content + END_MARK)]
    return _up_to_mark(_render_jinja(marked, template.jinja, tokenizer, variables, run))


def encode_chat(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    ending: Ending = "reply",
    run: TemplateRunner = run_template,
) -> list[int]:
    """Token ids of a chat: those of the whole prompt, except that typed control tokens are text.

    A Jinja template writes its BOS itself, or wants none; before a Vicuna prompt the tokenizer puts its own.
    """
    segments = render(messages, template, tokenizer, ending=ending, run=run)
    return tokenizer.encode_segments(segments, beginning=template.jinja is None)


def vicuna_v1_1(messages: Sequence[Message], *, ending: Ending = "reply") -> tuple[Segment, ...]:
    """Vicuna v1.1 as FastChat's code writes it (conversation.py, SeparatorStyle.TWO): no newlines.

    A system message at the beginning takes the place of the usual one; after it, user and assistant take turns, or
    there is a TemplateError.
    """
    system = messages[0].content if messages and messages[0].role == "system" else None
    turns = messages if system is None else messages[1:]
    segments = [Segment(f"{VICUNA_SYSTEM if system is None else system} ", control_tokens=False)]
    for place, turn in enumerate(turns):
        expected = "user" if place % 2 == 0 else "assistant"
        if turn.role != expected:
            raise TemplateError(f"message {place + 1} of a Vicuna chat is the {expected}'s, not the {turn.role}'s")
        if turn.role == "user":
            segments.append(Segment(f"USER: {turn.content} ", control_tokens=False))
        else:
            segments.append(Segment(f"ASSISTANT: {turn.content}", control_tokens=False))
            segments.append(Segment("</s>", control_tokens=True))
    if ending == "reply":
        segments.append(Segment("ASSISTANT:", control_tokens=False))
    if ending == "continue":
        last = segments.pop()  # what ends a reply, or the user's turn with the space after it
        if turns[-1].role == "user":
            segments.append(Segment(last.text.rstrip(" "), control_tokens=False))
    return tuple(segments)


def _up_to_mark(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """A prompt without what the template writes after the message that is continued."""
    for place in reversed(range(len(segments))):
        before, mark, _ = segments[place].text.rpartition(END_MARK)
        if mark:
            return (*segments[:place], Segment(before, segments[place].control_tokens))
    raise TemplateError("the chat template leaves out the end of the last message, so it cannot be continued")


def _render_jinja(
    messages: Sequence[Message],
    source: str,
    tokenizer: Tokenizer,
    variables: Mapping[str, Any],
    run: TemplateRunner,
) -> tuple[Segment, ...]:
    """Render twice: as it is, and with contents in disguise; only what was not disguised is the template's own."""
    spellings = (tokenizer.spelling(token_id) for token_id in tokenizer.control_ids)
    texts = [source, *tokenizer.special_tokens.values(), *(message.content for message in messages)]
    # A control token without punctuation could also come about by a change of case.
    cased = (s + s.lower() + s.upper() if s.isalnum() else s for s in spellings)
    disguise = make_disguise({character for spelling in cased for character in spelling}, texts)
    now = datetime.now()

    prompts: list[str] = []
    for worn in (Disguise({}, {}), disguise):
        turns = [{"role": message.role, "content": worn.hide(message.content)} for message in messages]
        prompts.append(run(source, {**variables, "messages": turns}, worn, now))
    plain, disguised = prompts
    if disguise.show(disguised) != plain:
        raise TemplateError(
            "the chat template alters messages so that control tokens typed in them could pass for its own; "
            "use a template that only trims, cuts or splits messages"
        )
    return tuple(
        Segment(tokenizer.spelling(part), control_tokens=True)
        if isinstance(part, int)
        else Segment(disguise.show(part), control_tokens=False)
        for part in tokenizer.split(disguised)
    )
