"""The judge against a scripted endpoint: prompts, scores, both orders, breaks, and what they come to."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import shared
from octavo import cli
from octavo.errors import CorpusError, ResumeError
from octavo.evaluation.judge_prompts import CODING, GENERAL, MATH
from octavo.evaluation.judging import (
    Question,
    Verdict,
    answer_questions,
    judge_answers,
    judging_messages,
    read_questions,
    read_scores,
    tallies,
    tally,
)
from octavo.model.chat import Message
from serving import bytewise_model, running

QUESTIONS = [Question("1", "generic", "Why?"), Question("2", "math", "2 + 2?"), Question("3", "coding", "Sort.")]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"question_id": int(q.id), "category": q.category, "turns": [q.text, "And then?"]} for q in QUESTIONS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Call `octavo` with some words; its exit code and output."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    for path, text in zip(paths, ("a good answer", "a bad answer"), strict=True):
        path.write_text(
            "".join(json.dumps({"question_id": q.id, "text": f"{text} to {q.id}"}) + "\n" for q in QUESTIONS)
        )
    return paths


def honest(messages: list[Message]) -> str:
    """9 for the good answer and 4 for the bad one, wherever they stand."""
    first_is_good = messages[1].content.index("a good answer") < messages[1].content.index("a bad answer")
    scores = (9, 4) if first_is_good else (4, 9)
    return (
        f"I find 4. Scores: {scores}"
        if "Python tuple" in messages[1].content
        else "{} {}\nBecause.".format(*scores)
    )


def test_the_80_questions_of_vicuna_are_read() -> None:
    questions = read_questions(shared("chat/vicuna_80_questions.jsonl"))
    assert len(questions) == 80
    assert questions[0] == Question("1", "generic", "How can I improve my time management skills?")
    assert [sum(q.category == name for q in questions) for name in ("coding", "math", "fermi")] == [7, 3, 10]


def test_the_prompt_is_the_published_one() -> None:
    system, user = judging_messages(Question("7", "generic", "Why?"), ("One {x}.", "Two."))
    assert system == Message(
        "system", "You are a helpful and precise assistant for checking the quality of the answer."
    )
    assert user.content == (
        "[Question]\nWhy?\n\n"
        "[The Start of Assistant 1's Answer]\nOne {x}.\n\n[The End of Assistant 1's Answer]\n\n"
        "[The Start of Assistant 2's Answer]\nTwo.\n\n[The End of Assistant 2's Answer]\n\n"
        f"[System]\n{GENERAL}\n\n"
    )
    assert judging_messages(Question("7", "coding", ""), ("", ""))[1].content.endswith(f"{CODING}\n\n")
    assert judging_messages(Question("7", "math", ""), ("", ""))[1].content.endswith(f"{MATH}\n\n")
    # Lengths of the published prompts, in characters.
    assert [len(GENERAL), len(CODING), len(MATH)] == [711, 958, 788]


@pytest.mark.parametrize(
    ("reply", "category", "scores"),
    [
        ("8 9\nBoth do well.", "generic", (8, 9)),
        ("  8.5, 9  \nBoth.", "coding", (8.5, 9)),
        ("8 9 10", "generic", None),
        ("Assistant 1: 8, Assistant 2: 9", "generic", None),
        ("8/10 9/10", "generic", None),
        ("80 90", "generic", None),
        ("", "generic", None),
        ("First, (1, 2) is a pair.\nScores: (7, 9.5). Assistant 2 wins.", "math", (7, 9.5)),
        ("8 9", "math", None),
        ("(8, 11)", "math", None),
        ("(8, 1.2.3)", "math", None),
    ],
)
def test_scores_are_read_or_not(reply: str, category: str, scores: tuple[float, float] | None) -> None:
    assert read_scores(reply, category) == scores


def test_an_honest_judge_favours_the_good_answers(answers: tuple[Path, Path], tmp_path: Path) -> None:
    verdicts = judge_answers(QUESTIONS, answers, honest, tmp_path / "out", lambda done, total: None)
    assert [verdict.scores for verdict in verdicts] == [(9, 4)] * 6
    found = tallies(QUESTIONS, verdicts)
    assert list(found) == ["all", "generic", "math", "coding"]
    assert (found["all"].won, found["all"].lost, found["all"].tied) == (3, 0, 0)
    other = judge_answers(QUESTIONS, answers[::-1], honest, tmp_path / "other", lambda done, total: None)
    assert (tally(other).won, tally(other).lost) == (0, 3)


def test_a_judge_who_likes_what_comes_first_finds_ties(answers: tuple[Path, Path], tmp_path: Path) -> None:
    verdicts = judge_answers(
        QUESTIONS, answers, lambda messages: "9 5", tmp_path / "out", lambda done, total: None
    )
    found = tallies(QUESTIONS, verdicts)
    assert (found["all"].tied, found["all"].contradicted, found["all"].unreadable) == (2, 2, 1)
    assert (found["math"].unreadable, found["math"].share) == (1, None)


def test_a_tally_by_hand() -> None:
    pairs = {
        "won": ((8.0, 7.0), (7.0, 7.0)),
        "lost": ((1.0, 2.0), (3.0, 4.0)),
        "tied": ((5.0, 5.0), (5.0, 5.0)),
        "not": ((1.0, 2.0), None),
    }
    verdicts = [
        Verdict(question, order, scores)
        for question, both in pairs.items()
        for order, scores in zip(("first", "second"), both, strict=True)
    ]
    result = tally(verdicts)
    assert (result.won, result.lost, result.tied, result.unreadable, result.contradicted) == (1, 1, 1, 1, 0)
    assert result.share is not None and result.share.value == 0.5
    assert result.share.standard_error == pytest.approx((0.5 / 2 / 3) ** 0.5)


def test_a_broken_run_goes_on_where_it_was(answers: tuple[Path, Path], tmp_path: Path) -> None:
    out, asked = tmp_path / "out", []

    def breaks_off(messages: list[Message]) -> str:
        asked.append(messages)
        if len(asked) == 4:
            raise CorpusError("gone")
        return honest(messages)

    def judged() -> list[Verdict]:
        return judge_answers(QUESTIONS, answers, breaks_off, out, lambda done, total: None)

    with pytest.raises(CorpusError, match="gone"):
        judged()
    assert len(out.read_bytes().splitlines()) == 3
    out.write_bytes(out.read_bytes() + b'{"question_id": "2", "ord')  # a kill in the middle of a line
    assert [verdict.scores for verdict in judged()] == [(9, 4)] * 6
    assert len(asked) == 4 + 3 and len(out.read_bytes().splitlines()) == 6
    judged()
    assert len(asked) == 7
    answers[0].write_text(answers[0].read_text().replace("a good answer to 3", "a good answer, changed"))
    with pytest.raises(ResumeError, match="was begun for other questions or answers; name another file"):
        judged()


def test_answers_are_written_once(tmp_path: Path) -> None:
    out, asked = tmp_path / "answers.jsonl", []

    def ask(messages: list[Message]) -> str:
        asked.append(messages)
        return f"To {messages[-1].content}"

    for _ in range(2):
        answer_questions(QUESTIONS, ask, out, lambda done, total: None)
    assert asked == [[Message("user", question.text)] for question in QUESTIONS]
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [
        "To Why?",
        "To 2 + 2?",
        "To Sort.",
    ]
    with pytest.raises(ResumeError, match="was begun for other questions"):
        answer_questions([Question("1", "generic", "Why not?")], ask, out, lambda done, total: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("{", "line 1 is no JSON"),
        ("\n[1]\n", "line 2 is no JSON object"),
        ('{"question_id": 1}', "line 1 is no question; it needs question_id, category and turns or text"),
        ('{"turns": ["a"]}', "line 1 is no question"),
        ('{"question_id": 1, "turns": ["a"], "category": 7}', "line 1 is no question"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_questions(path)


@pytest.mark.parametrize(
    "text",
    [
        "notes of mine, without an end of line",
        "two lines\nof mine",
        '{"question_id": "1", "text": "an answer"}\n',
        '{"question_id": "1", "order": "first", "prompt_sha256": "0", "reply": "8 7"}\n',
        "[1]\n",
    ],
)
def test_a_file_that_is_not_ours_stays_as_it_is(tmp_path: Path, text: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(text)
    with pytest.raises((ResumeError, CorpusError), match=r"out\.jsonl"):
        answer_questions(QUESTIONS, lambda messages: "x", out, lambda done, of: None)
    assert out.read_text() == text


def test_verdicts_are_not_written_among_answers(answers: tuple[Path, Path]) -> None:
    before = answers[0].read_text()
    with pytest.raises(ResumeError, match="name another file"):
        judge_answers(QUESTIONS, answers, lambda messages: "8 7", answers[0], lambda done, of: None)
    assert answers[0].read_text() == before


def test_a_question_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 1, "text": "a"}\n{"question_id": "1", "text": "b"}\n')
    with pytest.raises(CorpusError, match="question_id twice"):
        read_questions(path)


def test_a_missing_answer_is_named(answers: tuple[Path, Path], tmp_path: Path) -> None:
    answers[1].write_text(answers[1].read_text().partition("\n")[0])
    with pytest.raises(CorpusError, match=r"bad\.jsonl has no answer to question 2; run octavo answer to its end"):
        judge_answers(QUESTIONS, answers, honest, tmp_path / "out", lambda done, total: None)


class Script(BaseHTTPRequestHandler):
    """An endpoint that fails at its third question and stalls at its fourth, then keeps going."""

    served = 0
    stalled = threading.Event()

    def do_GET(self) -> None:
        self._send(b'{"data": [{"id": "judge"}]}', "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Script.served += 1
        if Script.served == 3:
            self.send_error(500)
            return
        if Script.served == 4:
            Script.stalled.wait(10)
            return
        messages = [Message(message["role"], message["content"]) for message in body["messages"]]
        chunk = {"choices": [{"delta": {"content": honest(messages)}}]}
        self._send(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    Script.served = 0
    Script.stalled.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    Script.stalled.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_that_fails_and_stalls_is_survived(
    endpoint: str, questions: Path, answers: tuple[Path, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    from octavo.server import partners

    monkeypatch.setattr(partners, "SILENCE_SECONDS", 0.5)
    words = ["octavo", "judge", questions, *answers, tmp_path / "out.jsonl", "--by", endpoint]
    outcomes = []
    for _ in range(3):
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        outcomes.append((ended.value.code or 0, capsys.readouterr()))
    (failed, first), (stalled, second), (done, third) = outcomes
    assert (failed, stalled, done) == (1, 1, 0)
    assert first.err.startswith("octavo: the server refuses") and second.err.startswith("octavo: the server at")
    assert third.out.splitlines() == [
        "category\twon\tlost\ttied\tunreadable\torders contradict\tshare of wins\t95 % interval",
        "all\t3\t0\t0\t0\t0\t100.0 %\t100.0 … 100.0 %",
        "generic\t1\t0\t0\t0\t0\t100.0 %\t–",
        "math\t1\t0\t0\t0\t0\t100.0 %\t–",
        "coding\t1\t0\t0\t0\t0\t100.0 %\t–",
    ]
    assert Script.served == 2 + 2 + 4


def test_a_model_in_this_process_answers(
    stories_folder: Path, questions: Path, tmp_path: Path, monkeypatch
) -> None:
    import shutil

    folder = shutil.copytree(stories_folder, tmp_path / "stories")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    texts = []
    for name in ("one.jsonl", "two.jsonl"):
        words = ["octavo", "answer", folder, questions, tmp_path / name, "--max-new-tokens", 5]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        texts.append([json.loads(line)["text"] for line in (tmp_path / name).read_text().splitlines()])
    assert texts[0] == texts[1] and all(texts[0]) and len(texts[0]) == 3


def test_our_own_server_answers_and_judges(questions: Path, tmp_path: Path, run) -> None:
    """A model that babbles gives the answers that it gives without a server, and no verdict that can be read."""
    folder = bytewise_model(tmp_path / "babbling")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    how = ("--max-new-tokens", 6, "--temperature", 0)
    assert run("octavo", "answer", folder, questions, tmp_path / "here.jsonl", *how)[0] == 0
    with running({"babbling": folder}) as server:
        there = tmp_path / "there.jsonl"
        assert run("octavo", "answer", server.url, questions, there, *how)[0] == 0
        assert there.read_bytes() == (tmp_path / "here.jsonl").read_bytes()
        words = ("octavo", "judge", questions, there, tmp_path / "here.jsonl", tmp_path / "out.jsonl")
        code, output = run(*words, "--by", server.url, *how)
    assert code == 0
    assert output.splitlines()[1].split("\t")[:5] == ["all", "0", "0", "0", "3"]
