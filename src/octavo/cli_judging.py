"""The verbs `answer` and `judge` of the command line."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from octavo.cli_serving import loader_for
from octavo.runtime.params import SamplingParams

if TYPE_CHECKING:
    from octavo.evaluation.judging import Ask

ANSWER_TEMPERATURE, JUDGE_TEMPERATURE, LONGEST = 0.7, 0.2, 1024  # those of the published procedure

Questions = Annotated[Path, typer.Argument(help="JSON lines of questions.", show_default=False)]
Name = Annotated[str | None, typer.Option(help="Which model of a server.", show_default="its first")]
Key = Annotated[str | None, typer.Option(help="Of a server.", envvar="OCTAVO_API_KEY", show_default=False)]
Longest = Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Seed = Annotated[int, typer.Option(help="Repeats a draw.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def answer(
    model: Annotated[str, typer.Argument(help="Folder, hub name, or http://… of a server.", show_default=False)],
    questions: Questions,
    out: Annotated[Path, typer.Argument(help="File for the answers, JSON lines.", show_default=False)],
    name: Name = None,
    api_key: Key = None,
    max_new_tokens: Longest = LONGEST,
    temperature: Temperature = ANSWER_TEMPERATURE,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Let MODEL answer QUESTIONS, for octavo judge. Run again after a break, it goes on where it was."""
    from octavo.evaluation.judging import answer_questions, read_questions
    from octavo.report.progress import Bar

    asked = read_questions(questions)
    sampling = SamplingParams(temperature, seed=seed)
    with (
        Bar(Console(stderr=True)) as bar,
        _asking(model, name, api_key, device, (sampling, max_new_tokens)) as ask,
    ):
        bar.begin("answering", len(asked))
        answer_questions(asked, ask, out, lambda done, _: bar.advance(done))


def judge(
    questions: Questions,
    answers: Annotated[Path, typer.Argument(help="Those of the model.", show_default=False)],
    opponent: Annotated[Path, typer.Argument(help="Those of the one it is compared with.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="File for the verdicts, JSON lines.", show_default=False)],
    by: Annotated[str, typer.Option(help="The judge: http://… of a server, or a folder.", show_default=False)],
    name: Name = None,
    api_key: Key = None,
    max_new_tokens: Longest = LONGEST,
    temperature: Temperature = JUDGE_TEMPERATURE,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Have a strong model compare the answers of two others, each pair in both orders.

    Run again after a break, it goes on where it was.
    """
    from octavo.evaluation.judging import judge_answers, read_questions, tallies
    from octavo.report.judging import print_tallies
    from octavo.report.progress import Bar

    asked = read_questions(questions)
    sampling = SamplingParams(temperature, seed=seed)
    with Bar(Console(stderr=True)) as bar, _asking(by, name, api_key, device, (sampling, max_new_tokens)) as ask:
        bar.begin("judging", len(asked))
        verdicts = judge_answers(asked, (answers, opponent), ask, out, lambda done, _: bar.advance(done))
    print_tallies(Console(), tallies(asked, verdicts))


@contextmanager
def _asking(
    model: str, name: str | None, api_key: str | None, device: str, how: tuple[SamplingParams, int]
) -> "Iterator[Ask]":
    """What answers a conversation with the whole of its reply; it is closed at the end."""
    from octavo.server.partners import ReplySettings, ReplyStatistics, chat_partner

    settings = ReplySettings(*how)
    with closing(chat_partner(model, name, api_key, loader_for(device))) as partner:
        yield lambda messages: "".join(partner.reply(messages, settings, ReplyStatistics()))
