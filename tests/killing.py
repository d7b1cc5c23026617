"""Runs a quantization in a process of its own and kills it at a chosen moment."""

import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import torch

from octavo.checkpoint import tensors
from octavo.quantization import pipeline
from octavo.quantization.blocks import Observer
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from small_models import small_calibration


def destination(out: Path) -> Destination:
    """Shards so small that most blocks have one of their own."""
    return Destination(out, "gptq", max_shard_size=30_000)


def quantize_here(source: Path, out: Path) -> None:
    """The job that is killed and continued."""
    torch.set_num_threads(1)
    quantize_folder(source, destination(out), Recipe(), small_calibration(), torch.device("cpu"), Observer())


def quantize_and_die(source: Path, out: Path, moment: int | None, count_file: Path) -> None:
    """Quantize; be killed at the `moment`-th write, sync or rename, or count them."""
    moments = itertools.count()
    last = 0

    def watched(function):
        def call(*arguments, **options):
            nonlocal last
            last = next(moments)
            if last == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    os.fsync = watched(os.fsync)
    Path.replace = watched(Path.replace)
    Path.unlink = watched(Path.unlink)
    tensors.ShardWriter._write = watched(tensors.ShardWriter._write)
    pipeline.write_json = watched(pipeline.write_json)
    quantize_here(source, out)
    count_file.write_text(str(last + 1))


def run_in_process(source: Path, out: Path, moment: int | None, count_file: Path) -> int:
    """The exit code of `quantize_and_die` in a process that starts quickly."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing"])
    process = context.Process(target=quantize_and_die, args=(source, out, moment, count_file))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the job hangs"
    return process.exitcode
