"""The `octavo` command: one verb per job. Jobs are imported when they are called, so that --help is instant."""

import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console

from octavo import __version__, cli_judging, cli_publishing, cli_serving
from octavo.errors import OctavoError, UsageError
from octavo.evaluation.spec import LINE_UP, BenchmarkSpec, ComparisonSpec, EvaluationSpec
from octavo.quantization.recipe import ActOrder, CalibrationSpec, Method, Recipe, ScaleSearch
from octavo.runtime.params import SamplingParams
from octavo.schemes import ConversionTarget, Layout, QuantScheme, SchemePlan, SchemeRule

if TYPE_CHECKING:
    from octavo.api import LoadedModel

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
Parameters = ParamSpec("Parameters")

RECIPE, CALIBRATION = Recipe(), CalibrationSpec()
ACT_ORDER, SCALE_SEARCH = f"{RECIPE.act_order}; none for rtn", f"{RECIPE.scale_search}; none for rtn"
SCHEME, SAMPLING, EVALUATION = RECIPE.plan.default, SamplingParams(), EvaluationSpec()
BENCHMARK, COMPARISON = BenchmarkSpec(), ComparisonSpec()

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
WHOLE = re.compile(r"-?\d{1,9}")

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DataDirectory = Annotated[
    Path | None,
    typer.Option(help="Folder with wikitext2/, ptb/ and c4/ files.", envvar="OCTAVO_DATA", show_default=False),
]
Calibration = Annotated[
    str | None,
    typer.Option(help="The text that MODEL was calibrated on; what it shares is counted.", show_default=False),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the record to this file.", show_default=False)
]


def print_version(wanted: bool) -> bool:
    """What --version does; an option's callback hands its value on."""
    if wanted:
        print(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Quantize LLaMA-family models with GPTQ, measure what that cost, and run the result."""


def complain(sentence: str) -> None:
    Console(stderr=True).print(f"octavo: {sentence}", soft_wrap=True, highlight=False, markup=False)


def refuse_unwritable(path: Path | None) -> None:
    """UsageError for a record's place that is not there, before hours are spent on what it is to hold."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError(f"--json {path} is no place for a file; name one in a folder that is there")


def calm_libraries() -> None:
    """To be called before they are imported; what the environment says already stands.

    torch's threads spin for a while after each of their loops, on the cores that the native library wants: 16
    replies at a time took three times as long, and a quantization a quarter longer. huggingface_hub draws bars,
    which would fill a log.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A verb of the command line; what goes wrong is one sentence on standard error and an exit code."""

    @wraps(function)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        calm_libraries()
        try:
            function(*arguments, **options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except OctavoError as error:
            complain(str(error))
            sys.exit(REFUSED if isinstance(error, UsageError) else FAILED)
        except BrokenPipeError:  # whoever read our output has seen enough; the rest goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(FAILED)
        except OSError as error:
            complain(f"{error.filename or 'the system'}: {error.strerror}")
            sys.exit(FAILED)

    app.command()(run)
    return run


@command
def quantize(
    model: Annotated[str, typer.Argument(help="Dense model: a folder, or a name on the hub.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the result.", show_default=False)],
    bits: Annotated[int, typer.Option(help="2, 3, 4 or 8.")] = SCHEME.bits,
    group_size: Annotated[int, typer.Option(help="Columns per scale; -1 is the whole row.")] = SCHEME.group_size
    or -1,
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--asymmetric", help="Symmetric files load in every engine.")
    ] = SCHEME.symmetric,
    act_order: Annotated[
        ActOrder | None,
        typer.Option(help="Solve in order of activation; group needs g_idx at run time.", show_default=ACT_ORDER),
    ] = None,
    method: Annotated[Method, typer.Option(help="rtn is plain rounding, the baseline.")] = RECIPE.method,
    calibration: Annotated[
        str, typer.Option(help="wikitext2, c4, ptb, or a text or JSONL file.")
    ] = CALIBRATION.text,
    samples: Annotated[int, typer.Option(help="Calibration windows.")] = CALIBRATION.samples,
    sequence_length: Annotated[int, typer.Option(help="Tokens of each.")] = CALIBRATION.sequence_length,
    seed: Annotated[int, typer.Option(help="Draws the windows.")] = CALIBRATION.seed,
    damping: Annotated[float, typer.Option(help="Fraction of the Hessian's mean diagonal.")] = RECIPE.damping,
    scale_search: Annotated[
        ScaleSearch | None,
        typer.Option(help="Search each group's scale, or take min-max.", show_default=SCALE_SEARCH),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Keep matching linears dense: 'layers.0.*'.", show_default=False)
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=BITS[,GROUP]: 'down_proj=8,64'.", show_default=False),
    ] = None,
    lm_head: Annotated[int | None, typer.Option(help="Bits of the output head.", show_default="dense")] = None,
    layout: Annotated[
        Layout | None,
        typer.Option("--format", help="Layout on disk.", show_default="gptq; v2 for asymmetric 2 and 3 bits"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file: 5GB, 500MB.")] = "5GB",
    data_dir: DataDirectory = None,
    device: Device = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what OUT holds of a former job.")] = False,
) -> None:
    """Quantize MODEL into OUT.

    A run that was killed goes on where it was when the same command is given again.
    """
    scheme = _scheme(bits, group_size, symmetric)
    plain = method == "rtn"
    recipe = Recipe(
        plan=SchemePlan(scheme, _rules(skip or [], override or [], scheme), _head_scheme(lm_head, scheme)),
        method=method,
        act_order=act_order or ("none" if plain else RECIPE.act_order),
        damping=damping,
        scale_search=scale_search or ("none" if plain else RECIPE.scale_search),
    )
    chosen = CalibrationSpec(calibration, samples, sequence_length, seed, data_dir)
    shard_size = _bytes(max_shard_size, "--max-shard-size")

    from octavo import api
    from octavo.quantization.pipeline import Destination
    from octavo.report.preflight import print_preflight_of
    from octavo.report.progress import QuantizationProgress

    destination = Destination(
        out, layout or ("gptq_v2" if bits < 4 and not symmetric else "gptq"), shard_size, restart
    )
    with QuantizationProgress(Console(stderr=True), out) as progress:
        api.quantize(model, destination, recipe, chosen, device, progress)
    print_preflight_of(Console(), out)


@command
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Folder or hub name, dense or quantized, or MODEL@BASELINE.", show_default=False)
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="Dense model to measure KL divergence and agreement against.", show_default=False),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(help=f"Published conventions, separated by commas; all is {', '.join(LINE_UP)}."),
    ] = EVALUATION.protocol,
    dataset: Annotated[
        str, typer.Option(help="wikitext2, ptb, c4 or files, separated by commas.")
    ] = EVALUATION.text,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a window.", show_default="the protocol's own")
    ] = EVALUATION.length,
    windows: Annotated[
        int | None, typer.Option(help="Score only the first so many.", show_default="all")
    ] = EVALUATION.windows,
    calibration: Calibration = None,
    data_dir: DataDirectory = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure MODEL's perplexity by published protocols, and how far it is from a reference."""
    refuse_unwritable(json_file)
    protocols = LINE_UP if protocol == "all" else protocol.split(",")
    specs = [
        EvaluationSpec(text, name, length, windows, data_dir, calibration)
        for text in _names(dataset)
        for name in protocols
    ]

    from octavo import api
    from octavo.records import write_record
    from octavo.report.evaluation import print_evaluation
    from octavo.report.progress import EvaluationProgress

    with EvaluationProgress(Console(stderr=True)) as progress:
        record = api.evaluate(model, specs, reference, device, progress)
    print_evaluation(Console(), record)
    write_record(json_file, record)


@command
def benchmark(
    model: Annotated[
        str, typer.Argument(help="Folder or hub name, dense or quantized, or MODEL@BASELINE.", show_default=False)
    ],
    dataset: Annotated[
        str, typer.Option(help="wikitext2, ptb, c4 or files, separated by commas.")
    ] = BENCHMARK.text,
    tokens: Annotated[int, typer.Option(help="How many are fed, one by one.")] = BENCHMARK.tokens,
    check: Annotated[bool, typer.Option("--check", help="Also take the perplexity of the window.")] = False,
    data_dir: DataDirectory = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Feed MODEL one window of a training text token by token: time, memory, and with --check its perplexity."""
    refuse_unwritable(json_file)
    specs = [BenchmarkSpec(text, tokens, check, data_dir) for text in _names(dataset)]

    from octavo import api
    from octavo.records import write_record
    from octavo.report.evaluation import print_benchmark
    from octavo.report.progress import EvaluationProgress

    with EvaluationProgress(Console(stderr=True)) as progress:
        record = api.benchmark(model, specs, device, progress)
    print_benchmark(Console(), record)
    write_record(json_file, record)


@command
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Folders or hub names, or MODEL@BASELINE; the first is the reference.", show_default=False
        ),
    ],
    protocol: Annotated[
        str, typer.Option(help="The tables: benchmark and protocols, separated by commas; '' for none.")
    ] = ",".join(COMPARISON.tables),
    dataset: Annotated[
        str, typer.Option(help="The columns: wikitext2, ptb, c4 or files, separated by commas.")
    ] = ",".join(COMPARISON.texts),
    length: Annotated[
        int | None, typer.Option(help="Tokens of a window.", show_default="the protocol's own")
    ] = COMPARISON.length,
    windows: Annotated[
        int | None, typer.Option(help="Score only the first so many.", show_default="all")
    ] = COMPARISON.windows,
    tokens: Annotated[int, typer.Option(help="How many the benchmark feeds.")] = COMPARISON.tokens,
    tasks: Annotated[
        str,
        typer.Option(
            help="Also ask these of lm-evaluation-harness: names or YAML files, separated by commas.",
            show_default=False,
        ),
    ] = "",
    documents: Annotated[
        int | None, typer.Option(help="Only the first so many documents of each task.", show_default="all")
    ] = COMPARISON.documents,
    calibration: Calibration = None,
    data_dir: DataDirectory = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Put MODELS side by side: the three tables of a model card, differences, and what may be said of each pair.

    A dense model also stands for its baselines: `MODEL@fp16`, `@bf16`, `@fp32`, `@llm.int8`, `@rtn-8` (rounded
    row by row), `@rtn-4-128g`.
    """
    refuse_unwritable(json_file)
    tables, texts, asked = (tuple(filter(None, names.split(","))) for names in (protocol, dataset, tasks))
    spec = ComparisonSpec(tables, texts, length, windows, tokens, data_dir, calibration, asked, documents)

    from octavo import api
    from octavo.records import as_json, write_record
    from octavo.report.comparison import print_comparison
    from octavo.report.progress import EvaluationProgress

    with EvaluationProgress(Console(stderr=True)) as progress:
        record = api.compare(models, spec, device, progress)
    print_comparison(Console(), as_json(record))
    write_record(json_file, record)


@command
def generate(
    model: Annotated[str, typer.Argument(help="Folder or hub name, dense or quantized.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="Text to go on from.", show_default=False)],
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a question; put it through the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message, with --chat.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = SAMPLING.temperature,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest.", show_default="all")] = SAMPLING.top_k,
    top_p: Annotated[float, typer.Option(help="Keep the fewest that reach p.")] = SAMPLING.top_p,
    min_p: Annotated[float, typer.Option(help="Keep those at least p times the likeliest.")] = SAMPLING.min_p,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 avoids tokens already seen.")
    ] = SAMPLING.repetition_penalty,
    seed: Annotated[int | None, typer.Option(help="Repeats a draw.", show_default="random")] = SAMPLING.seed,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given again.", show_default=False)
    ] = None,
    device: Device = "auto",
) -> None:
    """Let MODEL write on from a prompt, or answer it with --chat."""
    params = SamplingParams(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    if system is not None and not chat:
        raise UsageError("--system belongs to --chat; a raw prompt has no system message")

    from octavo import api

    loaded = api.load(model, device)
    for piece in _reply(loaded, prompt, system, chat)(params, max_new_tokens, stop or []):
        print(piece, end="", flush=True)
    print()


@command
def inspect(
    model: Annotated[
        str, typer.Argument(help="Folder or hub name, dense or quantized, or a config.json.", show_default=False)
    ],
    context: Annotated[
        int | None, typer.Option(help="Predict the memory for so many tokens.", show_default=False)
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Say whether that fits: 24GB.", show_default=False)] = None,
    bits: Annotated[
        int | None, typer.Option(help="Predict as if quantized to so many bits.", show_default=False)
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="With --bits: columns per scale, -1 for the row.", show_default="128")
    ] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Show what MODEL is: its shape, how it is stored, which kernels run it, and whether its files are whole.

    With --context, what memory it takes by part; a config.json alone is enough for that.
    """
    refuse_unwritable(json_file)
    configuration_only = Path(model).is_file() and Path(model).suffix == ".json"
    if group_size is not None and bits is None:
        raise UsageError("--group-size says how a prediction with --bits is grouped; add --bits 4")
    if context is None and (memory is not None or bits is not None or configuration_only):
        raise UsageError("what memory a model takes depends on the tokens in its cache; add --context 2048")

    from octavo import api
    from octavo.model.hub import find_model
    from octavo.records import refuse_changed_files, write_json
    from octavo.report.inspection import inspect_folder, print_inspection
    from octavo.report.memory import memory_values, print_memory

    path = find_model(model)
    shown = {} if configuration_only else inspect_folder(path, api.choose_device(device))
    if context is not None:
        columns = SCHEME.group_size or -1 if group_size is None else group_size
        scheme = None if bits is None else _scheme(bits, columns, symmetric=False)
        available = None if memory is None else _bytes(memory, "--memory")
        shown["memory"] = memory_values(path, context, scheme, available)
    if not configuration_only:
        print_inspection(Console(), shown)
    if context is not None:
        print_memory(Console(), shown["memory"])
    if json_file is not None:
        write_json(json_file, shown)
    refuse_changed_files(shown.get("files", {}), path)


@command
def convert(
    source: Annotated[
        str, typer.Argument(help="A .gguf file, a model or a delta: folder or hub name.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="A new folder, or a .gguf file.", show_default=False)],
    base: Annotated[
        str | None, typer.Option(help="What a delta is added to: folder or hub name.", show_default=False)
    ] = None,
    to: Annotated[ConversionTarget | None, typer.Option(help="Layout of codes.", show_default="gptq")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file: 5GB, 500MB.")] = "5GB",
) -> None:
    """Turn other people's files into a Hugging Face folder, a folder into another layout, or into a GGUF file."""
    from octavo.conversion.destination import ConversionOutput
    from octavo.conversion.request import ConversionRequest, convert
    from octavo.model.hub import find_model
    from octavo.report.preflight import print_preflight_of
    from octavo.report.progress import ConversionProgress

    output = ConversionOutput(out, _bytes(max_shard_size, "--max-shard-size"))
    base_folder = None if base is None else find_model(base, pickled=True)
    request = ConversionRequest(find_model(source, pickled=True), output, base_folder, to)
    with ConversionProgress(Console(stderr=True)) as progress:
        notes = convert(request, progress)
    for note in notes:
        complain(note)
    if out.is_dir():
        print_preflight_of(Console(), out)


def _reply(loaded: "LoadedModel", prompt: str, system: str | None, chat: bool) -> Callable[..., Any]:
    """What to call with sampling parameters, the longest length and stop strings."""
    from functools import partial

    from octavo.model.chat import Message

    if not chat:
        return partial(loaded.generate, prompt)
    opening = [] if system is None else [Message("system", system)]
    return partial(loaded.chat, [*opening, Message("user", prompt)])


def _scheme(bits: int, group_size: int, symmetric: bool) -> QuantScheme:
    return QuantScheme(bits, None if group_size == -1 else group_size, symmetric)


def _head_scheme(bits: int | None, default: QuantScheme) -> QuantScheme | None:
    return None if bits is None else QuantScheme(bits, default.group_size, default.symmetric)


def _rules(skip: list[str], override: list[str], default: QuantScheme) -> tuple[SchemeRule, ...]:
    """The rules of --skip and --override; skips come first."""
    rules = [SchemeRule(pattern, None) for pattern in skip]
    for text in override:
        pattern, _, numbers = text.partition("=")
        parts = numbers.split(",")
        if not pattern or len(parts) > 2 or not all(map(WHOLE.fullmatch, parts)):
            raise UsageError(
                f"--override {text!r} is not PATTERN=BITS or PATTERN=BITS,GROUP, such as down_proj=8,64"
            )
        group = int(parts[1]) if len(parts) == 2 else default.group_size or -1
        rules.append(SchemeRule(pattern, _scheme(int(parts[0]), group, default.symmetric)))
    return tuple(rules)


def _names(texts: str) -> list[str]:
    """The names of --dataset; UsageError for none."""
    if not (names := [name for name in texts.split(",") if name]):
        raise UsageError("--dataset names no text; choose wikitext2, ptb, c4 or a file")
    return names


def _bytes(text: str, option: str) -> int:
    """A size such as 5GB in bytes."""
    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not number.isdecimal() or int(number) == 0:
        raise UsageError(f"{option} {text!r} is no size; write it like 5GB or 500MB")
    return int(number) * units[unit]


command(cli_serving.serve)
command(cli_serving.chat)
command(cli_judging.answer)
command(cli_judging.judge)
command(cli_publishing.card)
command(cli_publishing.push)


def main() -> None:
    """Run the command line."""
    app(prog_name="octavo")
