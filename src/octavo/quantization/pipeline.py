"""The job: a dense model folder in, a quantized one out, a unit at a time, resumable."""

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from octavo import __version__
from octavo.checkpoint.configuration import quantization_config
from octavo.checkpoint.formats import linear_specs, why_not_stored
from octavo.checkpoint.tensors import INDEX_FILE, TensorSpec, plan_shards, tensor_files, write_index
from octavo.errors import OutputError, UnsupportedModelError, UsageError
from octavo.model.load import (
    CARRIED_FILES,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LINEARS,
    NORMS,
    ModelFolder,
    block_prefix,
    has_bias,
    linear_shapes,
    norm_shapes,
    open_folder,
)
from octavo.quantization.blocks import (
    SOLVE_DTYPE,
    STAGES,
    Job,
    Observer,
    UnitSolver,
    embed,
    embedding_tensor,
    quantize_block,
    quantize_head,
    stored_dtype,
)
from octavo.quantization.calibration import Calibration
from octavo.quantization.crew import LEADER, joined
from octavo.quantization.gptq import SOLVER_VERSION, solver_for
from octavo.quantization.journal import (
    Journal,
    Samples,
    Unit,
    alone_in,
    finished_record,
    open_journal,
    prepare_folder,
    record_from,
)
from octavo.quantization.on_gpu import Streamed, lane_to
from octavo.quantization.recipe import Recipe
from octavo.records import (
    QUANTIZATION_RECORD,
    RUN_RECORD,
    QuantizationRecord,
    RunRecord,
    as_json,
    describe_machine,
    read_json,
    sha256_of_file,
    write_json,
)
from octavo.schemes import Layout


@dataclass(frozen=True)
class Destination:
    """Where the result goes, and in which layout. `max_shard_size` is in bytes."""

    folder: Path
    layout: Layout = "gptq"
    max_shard_size: int = 5 * 10**9
    restart: bool = False


def quantize_folder(
    source: Path,
    destination: Destination,
    recipe: Recipe,
    calibration: Calibration | None,
    device: torch.device,
    observer: Observer,
) -> QuantizationRecord:
    """Quantize the model folder `source`; its record.

    `calibration` is None exactly for a recipe that sees no activations. A job that was killed goes on where it
    was, provided that nothing it depends on has changed (ResumeError says what did).
    """
    assert (calibration is None) == (recipe.method == "rtn")
    folder = open_folder(source)
    _refuse_unfit(folder, recipe, destination.layout)
    with joined(device, 0 if calibration is None else len(calibration.tokens)) as crew:
        job = Job(folder, recipe, destination.layout, crew.device, observer, crew)
        return _lead(job, destination, calibration) if crew.leads else _follow(job, calibration)


def _lead(job: Job, destination: Destination, calibration: Calibration | None) -> QuantizationRecord:
    """Do the job; other processes of the crew are told which unit is the first, and at the end the record."""
    folder, observer, crew = job.source, job.observer, job.crew
    inputs = _inputs(job, destination, calibration)
    prepare_folder(destination.folder, destination.restart)
    done = finished_record(destination.folder, inputs)
    if done is not None:
        observer.already_done()
        crew.tell({"first": folder.config.layers + 2})
        crew.tell(as_json(done))
        return done
    units = _planned_units(job)
    shards = plan_shards(units, destination.max_shard_size)
    with alone_in(destination.folder):
        journal = open_journal(destination.folder, shards, inputs, _now())
        needed, free = _disk_space(destination.folder, units, calibration, folder)
        observer.started(len(units), journal.progress.units, needed, free)
        crew.tell({"first": journal.progress.units})
        try:
            _run(job, journal, calibration)
        finally:
            journal.close()
        write_index(destination.folder, shards)
        record = _finish(job, journal, inputs)
    crew.tell(as_json(record))
    observer.finished(record)
    return record


def _follow(job: Job, calibration: Calibration | None) -> QuantizationRecord:
    """The same units on this process' own windows; what comes of them is the leader's to write."""
    assert calibration is not None, "a crew has windows"
    crew, config = job.crew, job.source.config
    job = replace(job, observer=Observer())
    first, units = crew.told()["first"], config.layers + 2
    samples: Samples = []
    if 0 < first < units:
        shape = (calibration.tokens.shape[1], config.hidden_size)
        samples = crew.receive_states(crew.windows[crew.number], shape, LEADER)
    for number in range(first, units):
        _solve_unit(job, number, samples, calibration)
        crew.send_states(samples, LEADER)
    return record_from(crew.told())


def _run(job: Job, journal: Journal, calibration: Calibration | None) -> None:
    """Do the units that the journal does not yet hold; each is written while the next one is solved."""
    samples = job.crew.deal(journal.hidden())

    def write(name: str, unit: Unit) -> None:
        journal.record(unit)
        job.observer.unit_done(name)

    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for number in range(journal.progress.units, job.source.config.layers + 2):
            name, unit = _solve_unit(job, number, samples, calibration)
            unit = replace(unit, hidden=job.crew.gather(samples))
            if writing is not None:
                writing.result()
            writing = writer.submit(write, name, unit)
            del unit  # with it go, once written, the states that the next unit replaces
        if writing is not None:
            writing.result()


def _solve_unit(job: Job, number: int, samples: Samples, calibration: Calibration | None) -> tuple[str, Unit]:
    """The name of a unit, and what it gives; `samples`, the hidden states before it, become those behind it."""
    started = time.perf_counter()
    # Opened anew for each unit: memory that is mapped for a block is given back with it.
    job = replace(job, source=open_folder(job.source.path))
    solver, layers = UnitSolver(job), job.source.config.layers
    if number == 0:
        name = "embedding"
        samples += embed(job, calibration)
        solver.add_dense(f"{EMBEDDING}.weight", job.source.vector(*embedding_tensor(job.source)))
    elif number <= layers:
        name = block_prefix(number - 1)
        states = Streamed(samples, lane_to(job.device))
        quantize_block(job, solver, number - 1, states)
        states.settle()
    else:
        name = "head"
        quantize_head(job, solver, Streamed(samples, lane_to(job.device)))
        samples.clear()
    solver.lane.settle()
    seconds = time.perf_counter() - started
    return name, Unit(solver.tensors, list(samples), solver.linears, seconds, solver.seconds)


def _planned_units(job: Job) -> list[list[TensorSpec]]:
    """The tensors that each unit will give."""
    source, config, plan = job.source, job.source.config, job.recipe.plan

    def dense(name: str, shape: tuple[int, ...]) -> TensorSpec:
        source_name = name if name in source.tensors else f"{EMBEDDING}.weight"
        return TensorSpec(name, stored_dtype(source.tensors.specs[source_name].dtype), shape)

    units = [[dense(*embedding_tensor(source))]]
    for layer in range(config.layers):
        prefix = block_prefix(layer)
        unit = [dense(f"{prefix}.{NORMS[field]}.weight", shape) for field, shape in norm_shapes(config).items()]
        for field, shape in linear_shapes(config).items():
            name = f"{prefix}.{LINEARS[field]}"
            scheme = plan.scheme_for(name)
            unit += (
                [dense(f"{name}.weight", shape)]
                if scheme is None
                else linear_specs(name, shape, scheme, job.layout)
            )
            unit += [dense(f"{name}.bias", shape[:1])] if has_bias(config, field) else []
        units.append(unit)
    last = [dense(f"{FINAL_NORM}.weight", (config.hidden_size,))]
    head_shape = (config.vocabulary_size, config.hidden_size)
    if plan.lm_head is not None:
        last += linear_specs(HEAD, head_shape, plan.lm_head, job.layout)
    elif not config.tied_embeddings:
        last.append(dense(f"{HEAD}.weight", head_shape))
    return [*units, last]


def _refuse_unfit(folder: ModelFolder, recipe: Recipe, layout: Layout) -> None:
    """What cannot be quantized, what the layout cannot hold, and plans that engines could not load."""
    plan, ordered = recipe.plan, recipe.act_order == "group"
    for scheme in (plan.default, plan.lm_head, *(rule.scheme for rule in plan.rules)):
        if scheme is not None and (objection := why_not_stored(scheme, layout, ordered)):
            raise UsageError(objection)
    if folder.quantization is not None:
        raise UnsupportedModelError(
            f"{folder.path} is quantized already ({folder.quantization.default}); quantize the dense model instead"
        )
    for layer in range(folder.config.layers):
        for stage in STAGES:
            names = [f"{block_prefix(layer)}.{LINEARS[field]}" for field in stage]
            if len({recipe.plan.scheme_for(name) for name in names}) > 1:
                raise UsageError(
                    f"{' and '.join(names)} are fused by engines and must share a scheme; "
                    "widen the pattern of --skip or --override to all of them"
                )


def _disk_space(
    folder: Path, units: list[list[TensorSpec]], calibration: Calibration | None, source: ModelFolder
) -> tuple[int, int]:
    """Bytes needed for the result and two generations of hidden states, and bytes free; OutputError if too few."""
    needed = sum(spec.bytes for unit in units for spec in unit)
    if calibration is not None:
        needed += 2 * calibration.tokens.numel() * source.config.hidden_size * SOLVE_DTYPE.itemsize
    present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free + present:
        raise OutputError(
            f"{folder} needs {needed / 1e9:.2f} GB but its disk has {free / 1e9:.2f} GB free; "
            "free space or choose another place"
        )
    return needed, free


def _inputs(job: Job, destination: Destination, calibration: Calibration | None) -> dict[str, Any]:
    """All that the result depends on; a job is continued only where these are the same."""
    files = [job.source.path / "config.json", *tensor_files(job.source.path)]
    files += [path for name in CARRIED_FILES if (path := job.source.path / name).exists()]
    hashes = {}
    for path in files:
        job.observer.preparing(f"hashing {path.name}")
        hashes[path.name] = sha256_of_file(path)
    return {
        "octavo": __version__,
        "solver": {"version": SOLVER_VERSION, "kernel": solver_for(job.device, SOLVE_DTYPE).NAME},
        "source": hashes,
        "recipe": as_json(job.recipe),
        "calibration": None if calibration is None else calibration_inputs(calibration),
        "layout": destination.layout,
        "max_shard_size": destination.max_shard_size,
        "machine": describe_machine(str(job.device)),
    }


def calibration_inputs(calibration: Calibration) -> dict[str, Any]:
    """What identifies a calibration: its text and its tokens, by hash."""
    return {
        "text": calibration.text,
        "samples": calibration.tokens.shape[0],
        "sequence_length": calibration.tokens.shape[1],
        "text_sha256": calibration.text_sha256,
        "tokens_sha256": calibration.tokens_sha256,
    }


def _finish(job: Job, journal: Journal, inputs: dict[str, Any]) -> QuantizationRecord:
    """Write what makes the folder a model, its record last."""
    folder, progress = journal.folder, journal.progress
    meta = {
        "quantizer": [f"octavo:{__version__}"],
        "damp_percent": job.recipe.damping,
        "true_sequential": job.recipe.method == "gptq",
        "static_groups": job.recipe.act_order == "static",
    }
    quantization = quantization_config(
        job.recipe.plan, job.layout, desc_act=job.recipe.act_order == "group", meta=meta
    )
    config = read_json(job.source.path / "config.json")
    # transformers 5 says dtype, earlier ones torch_dtype; what is dense is stored in half precision.
    for key in ("torch_dtype", "dtype"):
        if config.get(key) == "float32":
            config[key] = "float16"
    if job.recipe.plan.lm_head is not None:
        config["tie_word_embeddings"] = False
    beside = [] if job.layout == "compressed-tensors" else ["quantize_config.json"]  # older GPTQ engines read it
    for name in beside:
        write_json(folder / name, quantization)
    carried = [name for name in CARRIED_FILES if (job.source.path / name).exists()]
    for name in carried:
        shutil.copyfile(job.source.path / name, folder / name)
    write_json(folder / "config.json", {**config, "quantization_config": quantization})
    index = [INDEX_FILE] if (folder / INDEX_FILE).exists() else []
    written = [*beside, *carried, "config.json", *index]
    files = {**progress.files, **{name: sha256_of_file(folder / name) for name in written}}
    record = QuantizationRecord(inputs, dict(sorted(files.items())), progress.linears)
    run = RunRecord(
        started=progress.started,
        finished=_now(),
        seconds=progress.seconds,
        seconds_of_linear=progress.seconds_of_linear,
        resumed=progress.resumed,
        machine=inputs["machine"],
        processes=len(job.crew.runs),
    )
    write_json(folder / RUN_RECORD, as_json(run))
    write_json(folder / QUANTIZATION_RECORD, as_json(record))
    journal.finish()
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
