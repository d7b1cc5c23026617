"""A conversation as it is kept: messages in order, in a file that a page with branches can read as well."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import UsageError
from octavo.model.chat import Message
from octavo.records import read_bounded, write_json

FORMAT = "octavo-conversation"
VERSION = 1
LARGEST_FILE = 64 * 2**20


@dataclass
class Conversation:
    """What was said so far. A system message, if there is one, comes first."""

    messages: list[Message] = field(default_factory=list)

    @property
    def system(self) -> str | None:
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    def set_system(self, text: str) -> None:
        """Put a system message in front, in place of the one there is; an empty one takes it away."""
        turns = self.messages if self.system is None else self.messages[1:]
        self.messages = [*([Message("system", text)] if text else []), *turns]

    def add(self, role: str, content: str) -> None:
        self.messages.append(Message(role, content))

    def drop_reply(self) -> bool:
        """Take the last reply away, so that it can be given anew; whether there is a question to answer."""
        if self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
        return bool(self.messages) and self.messages[-1].role == "user"

    def undo(self) -> bool:
        """Take the last question and its reply away; whether there was one."""
        if not self.drop_reply():
            return False
        self.messages.pop()
        return True


def save(conversation: Conversation, path: Path) -> None:
    """Write a conversation: messages that name the one before them, and which is the last."""
    nodes = [
        {"id": place, "parent": place - 1 if place else None, "role": message.role, "content": message.content}
        for place, message in enumerate(conversation.messages)
    ]
    current = len(nodes) - 1 if nodes else None
    write_json(path, {"format": FORMAT, "version": VERSION, "current": current, "messages": nodes})


def load(path: Path) -> Conversation:
    """Read a conversation: of one with branches, the branch that ends in its current message."""
    try:
        values = json.loads(read_bounded(path, LARGEST_FILE, UsageError))
        if values["format"] != FORMAT or values["version"] != VERSION:
            raise UsageError(f"{path} is no conversation of version {VERSION}; it was saved by another program")
        return Conversation(_branch({node["id"]: node for node in values["messages"]}, values["current"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} holds no conversation: {error}") from error


def _branch(nodes: dict[Any, Any], current: Any) -> list[Message]:
    """The messages that lead to one, from the first."""
    messages: list[Message] = []
    while current is not None:
        node = nodes.pop(current)  # popped, so that a circle ends as a missing message
        messages.append(Message(str(node["role"]), str(node["content"])))
        current = node["parent"]
    return messages[::-1]
