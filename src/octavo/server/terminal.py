"""Chat in a terminal: what is typed, what commands mean, and replies as they come."""

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError, UsageError
from octavo.model.chat import Message
from octavo.server.conversation import Conversation, load, save
from octavo.server.partners import Partner, ReplySettings, ReplyStatistics

FENCE = '"""'
HELP = """\
/regenerate         give the last reply anew
/undo               take the last question and its reply back
/system TEXT        set the system message; without TEXT, take it away
/set NAME VALUE     temperature, top_p, top_k, min_p, repetition_penalty, seed or max_tokens; without, show all
/save FILE          write the conversation to a file
/load FILE          go on with a conversation from a file
/stats              tokens and speed of the last reply
/quit               leave, as does Ctrl-D
A text of several lines stands between two lines of \"\"\". Ctrl-C stops a reply."""


@dataclass
class Terminal:
    """A person at a keyboard, and a partner. `read` gives the next line typed, or raises EOFError."""

    partner: Partner
    settings: ReplySettings
    read: Callable[[str], str] = input
    conversation: Conversation = field(default_factory=Conversation)
    statistics: ReplyStatistics | None = None

    def run(self) -> None:
        """Talk until the person leaves."""
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # from now on, lines can be edited and repeated
        self._say(f"{self.partner.name}: type a message, /help for commands, Ctrl-D to leave.")
        while True:
            try:
                text = self._next_text()
            except EOFError:
                self._say("")
                return
            except KeyboardInterrupt:
                self._say("\n(Ctrl-D leaves)")
                continue
            if text.strip() == "/quit":
                return
            try:
                self._act_on(text)
            except (OctavoError, OSError) as error:
                self._say(f"octavo: {error}")

    def answer_once(self, question: str) -> None:
        """Print the answer to one question and nothing else."""
        self.conversation.add("user", question)
        for piece in self.partner.reply(self.conversation.messages, self.settings, ReplyStatistics()):
            print(piece, end="", flush=True)
        self._say("")

    def _next_text(self) -> str:
        """What is typed next: a line, or all between two fences."""
        line = self.read("> ")
        if not line.startswith(FENCE):
            return line
        lines = [line.removeprefix(FENCE)]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(self.read(". "))
        lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
        return "\n".join(lines).strip("\n")

    def _act_on(self, text: str) -> None:
        if not text.startswith("/"):
            if text.strip():
                before = self.conversation.messages[:]
                self.conversation.add("user", text)
                self._reply_or_restore(before)
            return
        name, _, argument = text[1:].partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._say(HELP),
            "regenerate": lambda _: self._regenerate(),
            "undo": lambda _: self._undo(),
            "system": self.conversation.set_system,
            "set": self._set,
            "save": lambda path: save(self.conversation, _path(path)),
            "load": self._load,
            "stats": lambda _: self._say(statistics_line(self.statistics)),
        }
        if name not in commands:
            raise UsageError(f"there is no command /{name}; /help lists them")
        commands[name](argument.strip())

    def _reply_or_restore(self, before: list[Message]) -> None:
        """Answer the last question; where that fails, the conversation is what it was before."""
        try:
            self._reply()
        except OctavoError:
            self.conversation.messages = before
            raise
        self._say(f"[{statistics_line(self.statistics)}]")

    def _reply(self) -> None:
        """Print the reply as it comes; Ctrl-C ends it, and what has come stays."""
        self.statistics = ReplyStatistics()
        pieces: list[str] = []
        reply = self.partner.reply(self.conversation.messages, self.settings, self.statistics)
        with contextlib.closing(reply), contextlib.suppress(KeyboardInterrupt):
            for piece in reply:
                pieces.append(piece)
                print(piece, end="", flush=True)
        self._say("")
        self.conversation.add("assistant", "".join(pieces))

    def _regenerate(self) -> None:
        before = self.conversation.messages[:]
        if not self.conversation.drop_reply():
            raise UsageError("there is no reply yet that could be given anew")
        self._reply_or_restore(before)

    def _undo(self) -> None:
        if not self.conversation.undo():
            raise UsageError("there is nothing to take back")

    def _load(self, path: str) -> None:
        self.conversation = load(_path(path))
        for message in self.conversation.messages:
            self._say(f"> {message.content}" if message.role == "user" else message.content)

    def _set(self, argument: str) -> None:
        """Change a setting, or show all."""
        sampling = self.settings.sampling
        names = [each.name for each in fields(sampling)]
        if not argument:
            shown = {name: getattr(sampling, name) for name in names} | {"max_tokens": self.settings.max_tokens}
            self._say("\n".join(f"{name} {'–' if value is None else value}" for name, value in shown.items()))
            return
        name, _, text = argument.partition(" ")
        if name not in [*names, "max_tokens"]:
            raise UsageError(f"there is no setting {name!r}; /set shows all")
        value: Any = _number(name, text.strip())
        if name == "max_tokens":
            if value is not None and value < 1:
                raise UsageError("max_tokens is 1 or more, or none")
            self.settings = replace(self.settings, max_tokens=None if value is None else int(value))
        else:
            self.settings = replace(self.settings, sampling=replace(sampling, **{name: value}))

    def _say(self, text: str) -> None:
        print(text, flush=True)


def statistics_line(statistics: ReplyStatistics | None) -> str:
    """Tokens and speed of a reply, in one line."""
    if statistics is None or statistics.first_after is None:
        return "no reply yet"
    parts = []
    if statistics.completion_tokens:
        parts.append(f"{statistics.completion_tokens} tokens")
    if statistics.tokens_per_second is not None:
        parts.append(f"{statistics.tokens_per_second:.1f} tokens/s")
    parts.append(f"first after {statistics.first_after:.2f} s")
    if statistics.prompt_tokens:
        parts.append(f"prompt of {statistics.prompt_tokens} tokens")
    return ", ".join(parts)


def _path(text: str) -> Path:
    if not text:
        raise UsageError("name a file, as in /save talk.json")
    return Path(text).expanduser()


def _number(name: str, text: str) -> int | float | None:
    """The value of a setting: whole where it counts something; none where there need not be one."""
    whole, optional = name in ("top_k", "seed", "max_tokens"), name in ("top_k", "seed", "max_tokens")
    if optional and text in ("none", ""):
        return None
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no {'whole number' if whole else 'number'} for {name}") from error
