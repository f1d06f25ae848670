"""`alpa-mlir-run`: execute a plan, under mpirun, by starting mpirun, or in one process."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxlib.mlir import ir

from alpa_mlir.cache import Store, cache_directory
from alpa_mlir.dialect.plan import Plan
from alpa_mlir.runtime.binding import HOW
from alpa_mlir.runtime.job import Job
from alpa_mlir.runtime.launch import srun_without_mpi, start_mpirun, under_mpirun
from alpa_mlir.runtime.platform import PLATFORMS, TRANSPORTS
from alpa_mlir.tools.diagnostics import UsageError, guarded
from alpa_mlir.tools.version import add_version

NAME = "alpa-mlir-run"
LONGEST = 1e9
"""Seconds, as good as for ever; the operating system knows no much longer waits."""
RANKS_PER_CORE = 4
"""So many are started unasked; more only of a plan that has devices for them, for they may bring the machine down."""
EPILOG = """\
Three ways to start, with the same results:
  mpirun -n N alpa-mlir-run PLAN …     a rank for each N-th of the plan's devices; N must divide their number
  alpa-mlir-run -n N PLAN …            starts mpirun itself, with the environment it needs
  alpa-mlir-run --local PLAN …         all devices in this process, no MPI

Without --inputs argument i is drawn from numpy's default_rng([SEED, i]): floats normal with scale 0.02, integers
uniform in 0…7; every step gets the same batch. In a file they are arg0, arg1, …; a batch that changes is arg3@0,
arg3@1, … by step. Results are written as out0, out1, … after the last step.

Exit status: 0 done, 1 an error or a difference above the tolerance, 2 wrong usage, 124 no progress, 130 Ctrl-C,
137 a rank was killed, 143 SIGTERM.
"""


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Execute a plan made by alpa-mlir-plan.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("plan", metavar="PLAN", help="the plan's file")
    add_version(parser)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("-n", dest="ranks", type=_positive, metavar="N", help="start mpirun with N ranks")
    start.add_argument("--local", action="store_true", help="run all devices in this process")
    parser.add_argument("--steps", type=_positive, default=1, metavar="K", help="how many steps; default 1")
    parser.add_argument("--inputs", metavar="FILE.npz", help="arguments of the first step, and later batches")
    parser.add_argument("--outputs", metavar="FILE.npz", help="where to write the results of the last step")
    parser.add_argument(
        "--seed", type=_natural, metavar="S", help="seed of drawn arguments; default 0, or that of the checkpoint"
    )
    parser.add_argument("--reference", metavar="MODEL", help="the original program: run it on one device and compare")
    parser.add_argument(
        "--tolerance", type=_not_negative, metavar="R",
        help="largest difference relative to a result's largest magnitude; default 1e-4, 2e-2 with 16-bit floats",
    )  # fmt: skip
    _add_checkpoints(parser)
    parser.add_argument(
        "--platform", choices=PLATFORMS, default="auto",
        help="where to compute; auto: on GPUs where jax can use them and the driver shows some, else on CPUs",
    )  # fmt: skip
    parser.add_argument(
        "--transport", choices=TRANSPORTS, default="auto",
        help="what carries values between ranks: nccl from GPU to GPU, mpi through host memory, local within one "
        "process; auto: nccl on GPUs, mpi on CPUs, local for one process",
    )  # fmt: skip
    parser.add_argument(
        "--bind-cores", choices=HOW, default="auto",
        help="give each rank of a host its own share of the cores; auto: where that is two or more each, and one for "
        "each of its devices; ranks that the launcher has bound stay as they are",
    )  # fmt: skip
    parser.add_argument(
        "--no-cache", action="store_true",
        help="compile everything, and keep nothing; otherwise programs are kept in $ALPA_MLIR_CACHE_DIR, else "
        "$XDG_CACHE_HOME/alpa_mlir, else ~/.cache/alpa_mlir",
    )  # fmt: skip
    parser.add_argument(
        "--trace", metavar="FILE.json",
        help="write what ran when in the last 20 steps, on all ranks and as predicted, for ui.perfetto.dev",
    )  # fmt: skip
    parser.add_argument(
        "--profile-stages", action="store_true", help="print measured against predicted seconds of the stage functions"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="SECONDS",
        help="end the job when an instruction takes longer; 0: never; default 600",
    )  # fmt: skip
    parser.add_argument(
        "--heartbeat", type=_seconds, default=5.0, metavar="SECONDS",
        help="end the job when a rank gives no sign of life for so long (it is stopped, or its host is gone); "
        "0: do not watch; default 5",
    )  # fmt: skip
    return parser


def _add_checkpoints(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints")
    group.add_argument(
        "--checkpoint", metavar="DIR",
        help="write the state as DIR/K, K the number of steps done: after the last step, and on SIGTERM (or SIGUSR2), "
        "which then ends the run after the step",
    )  # fmt: skip
    group.add_argument("--checkpoint-every", type=_positive, default=0, metavar="K", help="also after every K-th step")
    group.add_argument(
        "--checkpoint-keep", type=_positive, default=0, metavar="N", help="keep the last N only; default: all"
    )
    group.add_argument(
        "--restore", metavar="DIR",
        help="go on from the latest checkpoint in DIR, or from DIR/K; the plan may be another one of the same program",
    )  # fmt: skip


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _seconds(text: str) -> float:
    return min(_not_negative(text), LONGEST)


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, not {value}")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must not be negative, not {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` and return its exit status.  Raises `UsageError` and `CompileError`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = make_parser().parse_args(arguments)
    if options.tolerance is not None and options.reference is None:
        raise UsageError("--tolerance is for --reference")
    if options.checkpoint is None and (options.checkpoint_every or options.checkpoint_keep):
        raise UsageError("--checkpoint-every and --checkpoint-keep are for --checkpoint")
    if options.ranks is not None:
        if under_mpirun():
            raise UsageError("-n starts mpirun, but this is already a rank of mpirun or srun")
        _check_ranks(options.plan, options.ranks)
        try:
            finishing = options.checkpoint is not None
            return start_mpirun(options.ranks, "alpa_mlir.tools.run", _without_ranks(arguments), finishing=finishing)
        except FileNotFoundError as e:
            raise UsageError(str(e)) from None
    if srun_without_mpi() and not options.local:
        raise UsageError(
            "srun started several tasks without MPI: give it --mpi=pmix (srun --mpi=list says what it has)"
        )
    if not options.local and not under_mpirun():
        raise UsageError(f"start it as mpirun -n N {NAME} PLAN, or give -n N or --local")
    # Here, not above: who starts mpirun needs no jax.
    from alpa_mlir.runtime.process import run_local, run_under_mpi

    job = _job(options)
    return run_local(job) if options.local else run_under_mpi(job)


def _check_ranks(plan: str, ranks: int) -> None:
    """CompileError where more ranks than are harmless cannot share the plan's devices."""
    if ranks > RANKS_PER_CORE * (os.cpu_count() or 1) and Path(plan).is_file():
        from alpa_mlir.runtime.process import read

        read(plan, ranks)


def _without_ranks(arguments: list[str]) -> list[str]:
    """The command line without `-n N` or `-nN`."""
    at = next(i for i, a in enumerate(arguments) if a.startswith("-n") and not a.startswith("--"))
    return arguments[:at] + arguments[at + (2 if arguments[at] == "-n" else 1) :]


def _job(options: argparse.Namespace) -> Job:
    from alpa_mlir.reference import reference_program

    path = options.reference
    return Job(
        plan=options.plan,
        steps=options.steps,
        seed=options.seed,
        inputs=options.inputs,
        outputs=options.outputs,
        reference=None if path is None else lambda planned: reference_program(path, planned, options.plan),
        reference_name="-" if path is None else f"{path}:1:1",
        tolerance=options.tolerance,
        timeout=options.timeout,
        heartbeat=options.heartbeat,
        checkpoint=options.checkpoint,
        checkpoint_every=options.checkpoint_every,
        checkpoint_keep=options.checkpoint_keep,
        restore=options.restore,
        trace=options.trace,
        profile=options.profile_stages,
        check=_check,
        predicted=_predicted,
        platform=options.platform,
        transport=options.transport,
        bind_cores=options.bind_cores,
        store=None if options.no_cache else Store(cache_directory() / "programs"),
    )


def _check(plan: Plan) -> None:
    """CompileError for a plan with lists that cannot be executed; sends do not block here."""
    from alpa_mlir.passes.schedule_check import check_plan

    check_plan(plan, blocking=False)


def _predicted(module: ir.Module) -> Sequence[Mapping[str, Any]]:
    """The events of one predicted step; none where the plan was not priced."""
    from alpa_mlir.passes.inter.trace import trace_events
    from alpa_mlir.passes.schedule import plan_timeline

    timeline = plan_timeline(module)
    return trace_events(timeline)["traceEvents"] if timeline is not None else ()


def entry() -> NoReturn:
    """The console script."""
    sys.exit(guarded(NAME, main))


if __name__ == "__main__":
    entry()
