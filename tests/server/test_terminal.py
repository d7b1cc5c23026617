"""The terminal chat: what is said, kept and shown, with a partner in this process and with one at a URL."""

import contextlib
import http.server
import io
import json
import subprocess
import sys
import threading

import pytest

from octavo.errors import EngineError, UsageError
from octavo.model.chat import Message
from octavo.runtime.params import SamplingParams
from octavo.server import partners
from octavo.server.conversation import Conversation, load, save
from octavo.server.partners import RemotePartner, ReplySettings, ReplyStatistics, chat_partner, find_remote
from octavo.server.terminal import Terminal
from serving import bytewise_model, load_on_cpu, running, vicuna_stories


class Scripted:
    """A partner that answers by rote, and hears what it was asked."""

    name = "scripted"

    def close(self):
        pass

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def reply(self, messages, settings, statistics):
        self.asked.append((list(messages), settings))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        for piece in reply:
            if piece is KeyboardInterrupt:
                raise KeyboardInterrupt
            statistics.text_came()
            statistics.completion_tokens += 1
            yield piece


def talk(partner, *lines):
    """What a person who types these lines sees, and the conversation afterwards."""
    typed, out = list(lines), io.StringIO()

    def read(prompt):
        if not typed:
            raise EOFError
        line = typed.pop(0)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    terminal = Terminal(partner, ReplySettings(), read)
    with contextlib.redirect_stdout(out):
        terminal.run()
    return out.getvalue(), terminal


def said(terminal):
    return [(message.role, message.content) for message in terminal.conversation.messages]


def test_a_conversation_grows():
    partner = Scripted(["Hi", "!"], ["Fine."])
    shown, terminal = talk(partner, "Hello", "", "How are you?")
    expected = [("user", "Hello"), ("assistant", "Hi!"), ("user", "How are you?"), ("assistant", "Fine.")]
    assert said(terminal) == expected
    assert "Hi!\n[2 tokens" in shown and "Fine.\n" in shown
    assert partner.asked[1][0] == terminal.conversation.messages[:3]


def test_control_c_stops_the_reply_and_not_the_program():
    partner = Scripted(["One", " two", KeyboardInterrupt, " three"], ["Again"])
    shown, terminal = talk(partner, KeyboardInterrupt, "Count", "Go on")
    assert said(terminal)[1] == ("assistant", "One two") and said(terminal)[3] == ("assistant", "Again")
    assert "(Ctrl-D leaves)" in shown


def test_texts_of_several_lines():
    partner = Scripted(["ok"], ["ok"], ["ok"])
    _, terminal = talk(partner, '"""', "one", "  two", '"""', '"""three"""', '"""four', 'five"""')
    assert [content for role, content in said(terminal) if role == "user"] == ["one\n  two", "three", "four\nfive"]


def test_regenerate_undo_and_system():
    partner = Scripted(["first"], ["second"], ["third"])
    shown, terminal = talk(
        partner, "/regenerate", "/undo", "/system Be brief.", "Hi", "/regenerate", "Bye", "/undo", "/system"
    )
    assert said(terminal) == [("user", "Hi"), ("assistant", "second")]
    assert partner.asked[0][0] == [Message("system", "Be brief."), Message("user", "Hi")] == partner.asked[1][0]
    assert shown.count("octavo: there is no reply") == 1 and "octavo: there is nothing to take back" in shown


def test_settings():
    partner = Scripted(["ok"])
    lines = ["/set temperature 0.2", "/set top_k 5", "/set seed 9", "/set max_tokens 7", "/set top_k none", "/set"]
    wrong = ["/set temperature x", "/set top_p 0", "/set nothing 1", "/set max_tokens 0", "/set temperature none"]
    shown, terminal = talk(partner, *lines, *wrong, "Hi")
    assert partner.asked[0][1] == ReplySettings(SamplingParams(temperature=0.2, seed=9), 7) == terminal.settings
    assert "temperature 0.2\ntop_k –\n" in shown
    assert shown.count("octavo: ") == len(wrong)


def test_save_and_load(tmp_path):
    path = tmp_path / "talk.json"
    _, first = talk(Scripted(["Hi 🦉"]), "/system Be brief.", "Hello\u2028", f"/save {path}")
    shown, second = talk(Scripted(["more"]), f"/load {path}", "Go on", "/load", "/load nowhere.json", "/nonsense")
    assert said(second)[:3] == said(first) and len(said(second)) == 5
    assert "Hi 🦉" in shown and shown.count("octavo: ") == 3
    value = json.loads(path.read_text())
    assert (value["format"], value["version"], value["current"]) == ("octavo-conversation", 1, 2)
    assert value["messages"][2] == {"id": 2, "parent": 1, "role": "assistant", "content": "Hi 🦉"}
    save(Conversation(), path)
    assert load(path).messages == []


def test_the_branch_of_the_current_message_is_loaded(tmp_path):
    nodes = [
        ("a", None, "user", "q"),
        ("b", "a", "assistant", "1"),
        ("c", "a", "assistant", "2"),
        ("d", "c", "user", "x"),
    ]
    messages = [dict(zip(("id", "parent", "role", "content"), node, strict=True)) for node in nodes]
    path = tmp_path / "tree.json"
    path.write_text(
        json.dumps({"format": "octavo-conversation", "version": 1, "current": "c", "messages": messages})
    )
    assert [message.content for message in load(path).messages] == ["q", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "5", "{}", '{"format": "octavo-conversation", "version": 2}', "[" * 100_000,
        '{"format": "octavo-conversation", "version": 1, "current": 1, "messages": []}',
        '{"format": "octavo-conversation", "version": 1, "current": 1, "messages": [{"id": 1}]}',
        '{"format": "octavo-conversation", "version": 1, "current": 1, "messages": [{"id": [], "parent": 1}]}',
        '{"format":"octavo-conversation","version":1,"current":1,"messages":[{"id":1,"parent":1,"role":"user","content":""}]}',
        '{"format":"octavo-conversation","version":1,"current":1,"messages":[{"id":1,"parent":null,"role":"x","content":""}]}',
    ],
)  # fmt: skip
def test_files_that_hold_no_conversation_are_refused(tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        load(path)


def test_a_question_that_fails_is_taken_back():
    partner = Scripted(["ok"], EngineError("the server broke off"), ["ok"])
    shown, terminal = talk(partner, "one", "two", "three", "/stats", "/quit", "four")
    assert [content for _, content in said(terminal)] == ["one", "ok", "three", "ok"]
    assert "octavo: the server broke off" in shown


def test_a_reply_that_cannot_be_given_anew_is_kept():
    partner = Scripted(["first"], EngineError("the server broke off"))
    shown, terminal = talk(partner, "one", "/regenerate")
    assert said(terminal) == [("user", "one"), ("assistant", "first")]
    assert "octavo: the server broke off" in shown


@contextlib.contextmanager
def answering(data):
    """A server that answers whatever is asked with these bytes; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 (the library finds it by this name)

        def log_message(self, *values):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"data": 1}', b'{"data": [1]}', b'{"data": [{}]}', b"\xff"])
def test_a_list_of_models_that_is_none_is_one_sentence(data):
    with answering(data) as url, pytest.raises(UsageError, match="cannot be read"):
        find_remote(url, None, None)


@pytest.mark.parametrize("event", [b"1", b"{}", b'{"choices": [{}]}', b'{"choices": [1]}', b"{", b"\xff"])
def test_a_stream_that_is_none_is_one_sentence(event):
    with answering(b"data: " + event + b"\n\n") as url, pytest.raises(UsageError, match="cannot be read"):
        list(RemotePartner(url, "a", None).reply([Message("user", "a")], ReplySettings(), ReplyStatistics()))


def test_an_endless_line_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(partners, "LONGEST_EVENT", 50)
    event = json.dumps({"choices": [{"delta": {"content": "a" * 50}}]}).encode()
    with (
        answering(b"data: " + event + b"\n\ndata: [DONE]\n\n") as url,
        pytest.raises(UsageError, match="cannot be read"),
    ):
        list(RemotePartner(url, "a", None).reply([Message("user", "a")], ReplySettings(), ReplyStatistics()))


@pytest.fixture(scope="module")
def stories(stories_folder, tmp_path_factory):
    return vicuna_stories(stories_folder, tmp_path_factory.mktemp("models"))


def test_both_kinds_of_partner_say_the_same(stories):
    settings = ReplySettings(SamplingParams(temperature=0.8, top_k=40, min_p=0.01, seed=11), 30)
    chat = [Message("user", "Tell me a story")]
    local = chat_partner(str(stories), None, None, load_on_cpu)
    counts = ReplyStatistics(), ReplyStatistics()
    with running({"small": stories}, api_keys=("key",)) as up:
        for address in (up.url, f"{up.url}/", f"{up.url}/v1"):
            remote = chat_partner(address, None, "key", load_on_cpu)
            assert remote.name == "small"
        pieces = [list(p.reply(chat, settings, c)) for p, c in zip((local, remote), counts, strict=True)]
        assert "".join(pieces[0]) == "".join(pieces[1]) != ""
        for statistics in counts:
            assert statistics.completion_tokens == 30 and statistics.prompt_tokens > 30
            assert statistics.tokens_per_second > 0
        with pytest.raises(UsageError, match="a valid API key is needed"):
            find_remote(up.url, None, "wrong")
        with pytest.raises(UsageError, match="'nope' does not exist"):
            list(find_remote(up.url, "nope", "key").reply(chat, settings, ReplyStatistics()))
        with pytest.raises(UsageError, match="context length"):
            list(remote.reply([Message("user", "long " * 600)], settings, ReplyStatistics()))
        reply = remote.reply(chat, settings, ReplyStatistics())
        next(reply)
        reply.close()  # as Ctrl-C does
    with pytest.raises(EngineError, match="cannot be reached"):
        list(remote.reply(chat, settings, ReplyStatistics()))
    with pytest.raises(UsageError):
        list(local.reply([Message("user", "long " * 600)], settings, ReplyStatistics()))
    reply = local.reply(chat, settings, ReplyStatistics())
    next(reply)
    reply.close()
    assert "".join(local.reply(chat, settings, ReplyStatistics())) == "".join(pieces[0])
    local.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_breaks_off_is_told(tmp_path):
    with running({"bytes": bytewise_model(tmp_path / "bytes")}) as up:
        remote = find_remote(up.url, None, None)

        def dead(**options):
            raise RuntimeError("killed by the test")

        up.engine._decoder.step = dead
        with pytest.raises(EngineError, match="broke off: the engine of this model has stopped"):
            list(remote.reply([Message("user", "hi")], ReplySettings(), ReplyStatistics()))


def test_from_a_pipe_only_the_answer_is_printed(stories, tmp_path):
    command = [sys.executable, "-c", "from octavo.cli import main; main()", "chat"]
    options = ["--max-new-tokens", "12", "--temperature", "0"]
    run = subprocess.run([*command, stories, *options], input="Once", capture_output=True, text=True, check=True)
    local = chat_partner(str(stories), None, None, load_on_cpu)
    chat, settings = [Message("user", "Once")], ReplySettings(SamplingParams(), 12)
    assert run.stdout == "".join(local.reply(chat, settings, ReplyStatistics())) + "\n" and run.stderr == ""
    local.close()
    missing = subprocess.run([*command, tmp_path / "no"], input="x", capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and missing.stderr.startswith("octavo: ") and missing.stdout == ""


def test_the_terminal_needs_nothing_of_the_server_extra():
    code = "import octavo.server.terminal, sys; print({'fastapi', 'uvicorn', 'llguidance'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
