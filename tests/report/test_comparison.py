"""A comparison record as tables: a record written out, and the lines that a pipe gets."""

import io

from rich.console import Console

from octavo.report.comparison import print_comparison

SHARED = {"protocol": "gptq", "windows": 2, "length": 9}
FAR = {
    "log_perplexity_difference": 0.1,
    "log_perplexity_difference_standard_error": 0.02,
    "kl_mean": 0.003,
    "kl_standard_error": 0.0004,
    "kl_median": 0.001,
    "kl_99_percent": 0.05,
    "top1_agreement": 0.9,
}
RECORD = {
    "models": [
        {"name": "dense", "bits_per_weight": 16.0, "bytes": 2_000_000},
        {"name": "small", "bits_per_weight": 4.5, "bytes": 600_000},
    ],
    "cells": [
        {
            "table": "benchmark",
            "asked": "wikitext2",
            "text": "wikitext2",
            "tokens_sha256": "0",
            "absent": None,
            **SHARED,
            "values": [
                {"perplexity": 8.5, "memory_bytes": 3 * 2**20, "tokens_per_second": 10.0},
                {"perplexity": 8.25, "memory_bytes": 2**20, "tokens_per_second": 20.5},
            ],
        },
        {"table": "benchmark", "asked": "ptb", "absent": "ptb is licensed"},
        {
            "table": "gptq",
            "asked": "c4",
            "text": "c4-sample(3 docs)",
            "tokens_sha256": "1",
            "absent": None,
            **SHARED,
            "values": [{"perplexity": 7.0}, {"perplexity": 7.5, **FAR}],
        },
        {"table": "gptq", "asked": "ptb", "absent": "ptb is licensed"},
    ],
    "verdicts": ["small against dense: worse."],
}


def test_a_pipe_gets_plain_lines() -> None:
    file = io.StringIO()
    print_comparison(Console(file=file), RECORD)
    assert file.getvalue().splitlines() == [
        "benchmark\twikitext2\tptb\tmemory (MiB)",
        "dense\t8.5000\t–\t3.00",
        "small\t**8.2500**\t–\t**1.00**",
        "gptq\tc4-sample(3 docs)\tptb",
        "dense\t**7.0000**\t–",
        "small\t7.5000\t–",
        "model\ttext\tΔ log-ppl\tKL mean\tKL median\tKL 99 %\tsame top-1",
        "small\tc4-sample(3 docs) by gptq, 2 × 9\t0.10000 ± 0.02000\t0.003000 ± 0.000400\t0.001000\t0.050000"
        "\t90.00 %",
        "model\tbits per weight\tsize\ttokens/s",
        "dense\t16.000\t2.0 MB\t10.00",
        "small\t4.500\t600.0 kB\t20.50",
        "– ptb (benchmark): ptb is licensed",
        "– ptb (gptq): ptb is licensed",
        "small against dense: worse.",
    ]


def test_a_terminal_gets_titles_and_bold() -> None:
    file = io.StringIO()
    print_comparison(Console(file=file, force_terminal=True, width=200), RECORD)
    shown = file.getvalue()
    assert "--benchmark 9 --check: one training window" in shown
    assert "\x1b[1m8.2500\x1b[0m" in shown and "\x1b[1m8.5000" not in shown and "**" not in shown


def test_without_a_benchmark_no_speed_is_shown() -> None:
    file = io.StringIO()
    print_comparison(Console(file=file), {**RECORD, "cells": RECORD["cells"][2:3]})
    assert "dense\t16.000\t2.0 MB\t–" in file.getvalue() and "memory" not in file.getvalue()
