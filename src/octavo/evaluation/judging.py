"""Vicuna's judge: a strong model compares the answers of two others, each pair in both orders.

The published procedure shows each pair in one order only, which favours the answer that comes first. What has been
answered and judged is kept in JSON lines, a line at a time, so that a run that breaks off goes on where it was.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.errors import CorpusError, ResumeError
from octavo.evaluation.judge_prompts import SYSTEM, TEMPLATE, prompt_for
from octavo.evaluation.metrics import Estimate, mean_over_windows
from octavo.model.chat import Message
from octavo.records import read_bounded, sha256_of_value

LARGEST_LINES = 256 * 2**20
HIGHEST_SCORE = 10
# The fields of our own lines, in their order.
ANSWER = ("question_id", "prompt_sha256", "text")
VERDICT = ("question_id", "order", "prompt_sha256", "reply")

Ask = Callable[[Sequence[Message]], str]
Progress = Callable[[int, int], None]  # is told how many are done, and of how many
Order = Literal["first", "second"]  # the place in which the model that is judged was shown


@dataclass(frozen=True)
class Question:
    """What both models are asked; its category chooses the judge's prompt."""

    id: str
    category: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The judge's scores for the model and its opponent; None where its reply holds no two scores."""

    question: str
    order: Order
    scores: tuple[float, float] | None


@dataclass(frozen=True)
class Tally:
    """Questions won, lost and tied by the model, those without two readable verdicts, and contradictions.

    A question is won where the two orders together favour the model; `contradicted` are the ties in which each
    order favoured another. `share` counts a win as 1 and a tie as a half, over the questions that were decided.
    """

    won: int
    lost: int
    tied: int
    unreadable: int
    contradicted: int
    share: Estimate | None


def read_questions(path: Path) -> list[Question]:
    """JSON lines of `question_id`, `category` and `turns` (the first is asked) or `text`, as FastChat has them."""
    questions = []
    for number, values in _lines(path):
        turns = values.get("turns")
        text = turns[0] if isinstance(turns, list) and turns else values.get("text")
        category = values.get("category", "generic")
        if "question_id" not in values or not isinstance(text, str) or not isinstance(category, str):
            raise CorpusError(
                f"{path} line {number} is no question; it needs question_id, category and turns or text"
            )
        questions.append(Question(str(values["question_id"]), category, text))
    if not questions:
        raise CorpusError(f"{path} holds no question; give another file")
    if len({question.id for question in questions}) < len(questions):
        raise CorpusError(f"{path} gives a question_id twice; number its questions anew")
    return questions


def answer_questions(questions: Sequence[Question], ask: Ask, out: Path, progress: Progress) -> None:
    """Write an answer to each question into `out`, but for those that it holds already."""
    written = _resumed(out, ANSWER)
    for number, question in enumerate(questions):
        key = {"question_id": question.id, "prompt_sha256": sha256_of_value(question.text)}
        if not _already(written, (question.id,), key, out):
            _append(out, {**key, "text": ask([Message("user", question.text)])})
        progress(number + 1, len(questions))


def judge_answers(
    questions: Sequence[Question], answers: tuple[Path, Path], ask: Ask, out: Path, progress: Progress
) -> list[Verdict]:
    """Verdicts on the answers of a model and of its opponent, each question in both orders.

    They are kept in `out`; those that it holds already are not asked for again. CorpusError where an answer is
    missing, ResumeError where `out` holds verdicts on other answers.
    """
    model, opponent = (read_answers(path, questions) for path in answers)
    written = _resumed(out, VERDICT)
    verdicts = []
    for number, question in enumerate(questions):
        for order in ("first", "second"):
            pair = (model[question.id], opponent[question.id])
            messages = judging_messages(question, pair if order == "first" else pair[::-1])
            key = {"question_id": question.id, "order": order, "prompt_sha256": _hash(messages)}
            line = _already(written, (question.id, order), key, out)
            if line is None:
                line = {**key, "reply": ask(messages)}
                _append(out, line)
            scores = read_scores(line["reply"], question.category)
            if scores is not None and order == "second":
                scores = scores[::-1]
            verdicts.append(Verdict(question.id, order, scores))
        progress(number + 1, len(questions))
    return verdicts


def read_answers(path: Path, questions: Sequence[Question]) -> dict[str, str]:
    """Answers by question: JSON lines of `question_id` and `text`."""
    answers = {str(values.get("question_id")): values.get("text") for _, values in _lines(path)}
    for question in questions:
        if not isinstance(answers.get(question.id), str):
            raise CorpusError(f"{path} has no answer to question {question.id}; run octavo answer to its end")
    return {question.id: str(answers[question.id]) for question in questions}


def judging_messages(question: Question, answers: tuple[str, str]) -> list[Message]:
    """The published prompt for two answers, in the order in which they are shown."""
    prompt = prompt_for(question.category)
    shown = {"question": question.text, "answer_1": answers[0], "answer_2": answers[1], "prompt": prompt}
    return [Message("system", SYSTEM), Message("user", TEMPLATE.format(**shown))]


def read_scores(reply: str, category: str) -> tuple[float, float] | None:
    """The two scores of a reply; None where there are not just two.

    They stand on the first line, apart by a space or a comma. The prompt for mathematics asks for a tuple at the
    end, so there the last tuple counts; the published parser reads the first line there, too, and fails.
    """
    if category == "math":
        tuples = re.findall(r"\(\s*([\d.]+)\s*,\s*([\d.]+)\s*\)", reply)
        words = list(tuples[-1]) if tuples else []
    else:
        words = reply.strip().partition("\n")[0].replace(",", " ").split()
    if len(words) != 2 or not all(re.fullmatch(r"\d+(\.\d+)?", word) for word in words):
        return None
    first, second = map(float, words)
    return (first, second) if max(first, second) <= HIGHEST_SCORE else None


def tally(verdicts: Sequence[Verdict]) -> Tally:
    """What the verdicts on some questions come to."""
    by_question: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_question.setdefault(verdict.question, []).append(verdict)
    outcomes: list[float] = []
    unreadable = contradicted = 0
    for both in by_question.values():
        favours = [_sign(verdict.scores[0] - verdict.scores[1]) for verdict in both if verdict.scores is not None]
        if len(favours) < len(both):
            unreadable += 1
            continue
        contradicted += sorted(favours) == [-1, 1]
        outcomes.append((1 + _sign(float(sum(favours)))) / 2)
    return Tally(
        won=outcomes.count(1.0),
        lost=outcomes.count(0.0),
        tied=outcomes.count(0.5),
        unreadable=unreadable,
        contradicted=contradicted,
        share=mean_over_windows(outcomes) if outcomes else None,
    )


def tallies(questions: Sequence[Question], verdicts: Sequence[Verdict]) -> dict[str, Tally]:
    """Of all questions, then of each category."""
    categories = {question.id: question.category for question in questions}
    found = {"all": tally(verdicts)}
    for category in dict.fromkeys(categories.values()):
        found[category] = tally([verdict for verdict in verdicts if categories[verdict.question] == category])
    return found


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _hash(messages: Sequence[Message]) -> str:
    return sha256_of_value([[message.role, message.content] for message in messages])


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each JSON object of a file and its line."""
    return _objects(path, read_bounded(path, LARGEST_LINES, CorpusError))


def _objects(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path} line {number} is no JSON ({error}); correct the file") from error
        if not isinstance(values, dict):
            raise CorpusError(f"{path} line {number} is no JSON object; correct the file")
        yield number, values


def _resumed(out: Path, fields: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, Any]]:
    """What `out` holds, by question and order; a line that a kill has cut short is taken away.

    ResumeError, with nothing changed, for a file of anything but lines of these fields.
    """
    if not out.exists():
        return {}
    data = read_bounded(out, LARGEST_LINES, ResumeError)
    whole, mark, cut = data.rpartition(b"\n")
    lines, start = [values for _, values in _objects(out, whole)], b'{"question_id": '
    if any(tuple(line) != fields for line in lines) or not start.startswith(cut[: len(start)]):
        raise ResumeError(f"{out} holds something else than what is to be written there; name another file")
    if cut:
        with out.open("r+b") as file:
            file.truncate(len(whole + mark))
    return {tuple(str(line[key]) for key in ("question_id", "order") if key in line): line for line in lines}


def _already(
    written: dict[tuple[str, ...], dict[str, Any]], name: tuple[str, ...], key: dict[str, str], out: Path
) -> dict[str, Any] | None:
    """The line of a question, if it is there; ResumeError where it speaks of something else."""
    line = written.get(name)
    if line is not None and line.get("prompt_sha256") != key["prompt_sha256"]:
        raise ResumeError(f"{out} was begun for other questions or answers; name another file")
    return line


def _append(out: Path, values: dict[str, Any]) -> None:
    """One more line, on the disk before the next question is asked."""
    with out.open("ab") as file:
        file.write((json.dumps(values, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
