"""`alpa-mlir-plan`: from a model file and a cluster to a plan file, with the plan as a table.

The planning itself is `alpa_mlir.planner`; this is its command line.  The plan is written whole or not at
all, and planning twice gives the same bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from alpa_mlir.cache import Store, cache_directory, planning_version
from alpa_mlir.cluster_file import read_cluster
from alpa_mlir.dialect.context import make_context
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.plan import sealed_text
from alpa_mlir.dialect.reading import read_text
from alpa_mlir.forked import forked
from alpa_mlir.model_file import module_from_bytes, read_bytes
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.cluster_table import parse_bytes
from alpa_mlir.passes.costs.presets import preset_names
from alpa_mlir.passes.inter.meshes import MESH_AXES
from alpa_mlir.passes.intra.constraints import parse_constraints
from alpa_mlir.passes.manual import ManualPlan, parse_manual, write_stages
from alpa_mlir.passes.memo import remembering
from alpa_mlir.passes.number_list import number_ranges
from alpa_mlir.passes.schedule import sealed_timeline
from alpa_mlir.passes.streams import working
from alpa_mlir.passes.unroll import UNROLL, UNROLL_LAYERS
from alpa_mlir.planner import PARTITIONERS, SCHEDULES, PlanOptions, plan
from alpa_mlir.tools.clock import Clock
from alpa_mlir.tools.diagnostics import guarded, in_file, print_remarks, source_name
from alpa_mlir.tools.output import write_outputs
from alpa_mlir.tools.plan_summary import summarize
from alpa_mlir.tools.plan_table import print_table
from alpa_mlir.tools.report import report, simulated, trace
from alpa_mlir.tools.version import add_version
from alpa_mlir.value_names import name_values

NAME = "alpa-mlir-plan"
COLLECT = (100_000, 20, 100)
"""When Python looks for cycles of garbage: planning makes millions of objects and hardly a cycle."""
LEVELS = (
    "alpa-normalize",
    "alpa-unstack",
    "alpa-microbatch",
    "alpa-layers",
    "alpa-stages",
    "alpa-shard",
    "alpa-split",
    "alpa-price",
    "alpa-localize",
    "alpa-route",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` (default: the process's arguments) and return its exit status."""
    arguments = make_parser().parse_args(argv)
    gc.set_threshold(*COLLECT)
    context = make_context()
    options = _options(arguments)
    filename = source_name(arguments.model)
    by_hand = _by_hand(arguments.plan, options.cluster)
    clock = Clock(arguments.timing or sys.stderr.isatty())
    clock.begin("read the program")
    raw = read_bytes(arguments.model)
    module = module_from_bytes(raw, context, filename)
    if options.explain:
        try:
            options = replace(options, explain=name_values(module, raw, options.explain))
        except CompileError as e:
            raise in_file(e, filename) from None
    if by_hand is not None:
        options = _decided(options, by_hand, arguments.plan)
        write_stages(module, by_hand.stages)
    remarks: list[Remark] = []
    store = None if arguments.no_cache else Store(cache_directory() / "stages")
    try:
        with remembering(store, planning_version()), working(forked):
            planned = plan(module, options, remarks, clock.begin, arguments.emit_after or "")
    except CompileError as e:
        clock.end()
        raise in_file(e, filename) from None
    clock.end()
    print_remarks(remarks, filename)
    clock.begin("write the plan")
    files = [(arguments.output, sealed_text(planned).encode())]
    if arguments.emit_after is not None:
        write_outputs(files)
        clock.end()
        return 0
    timeline = simulated(planned, sealed_timeline)
    summary = summarize(planned, timeline)
    if arguments.json:
        files.append((arguments.json, (json.dumps(summary.as_dict(), indent=2) + "\n").encode()))
    if arguments.report:
        files.append((arguments.report, report(Path(filename).stem, planned, timeline)))
    if arguments.trace:
        files.append((arguments.trace, trace(timeline)))
    write_outputs(files)
    clock.end()
    if all(path != "-" for path, _ in files):
        print_table(summary, sys.stdout)
    return 0


def entry() -> NoReturn:
    """The console script."""
    sys.exit(guarded(NAME, main))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Plan how to spread a StableHLO program over a cluster: an MLIR file, and a table of it.",
        epilog="Run a plan with: mpirun -n N alpa-mlir-run PLAN.mlir. Exit status: 0 planned, 1 the program or the "
        "request cannot be planned (one located error, nothing written), 2 wrong usage.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="StableHLO text or bytecode, portable artifact or jax.export; - is standard input",
    )
    add("-o", dest="output", metavar="PLAN.mlir", required=True, help="where to write the plan; - is standard output")
    _add_cluster(parser)
    _add_choices(parser)
    add_version(parser)
    add("--json", metavar="FILE", help="also write the table as JSON; - is standard output")
    add(
        "--report", metavar="FILE.html", help="also write a page with the timeline, memory and costs (alpa-mlir-report)"
    )
    add("--trace", metavar="FILE.json", help="also write the predicted step as a Chrome/Perfetto trace")
    add("--no-cache", action="store_true", help="solve and price every stage anew, and keep nothing (docs/stages.md)")
    add("--timing", action="store_true", help="print each phase with its seconds to stderr, terminal or not")
    add(
        "--emit-after",
        metavar="PASS",
        choices=LEVELS,
        help=f"stop after this pass and write its IR: {', '.join(LEVELS)}",
    )
    return parser


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the cluster").add_argument
    presets = ", ".join(preset_names())
    add(
        "--cluster",
        metavar="FILE|PRESET",
        default="cpu",
        help=f"a TOML file or a preset: {presets} (default: cpu, 4 devices)",
    )
    add("--nodes", metavar="N", type=_positive, default=0, help="nodes (default: the cluster's)")
    add(
        "--devices-per-node",
        metavar="D",
        type=_positive,
        default=0,
        help="devices of a node (default: as the cluster says)",
    )
    add(
        "--memory",
        metavar="BYTES",
        type=_memory,
        default=0,
        help="per device, e.g. 16GB (default: as the cluster says)",
    )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is decided by you rather than by the planner").add_argument
    add("--plan", metavar="PLAN.toml", help="stages, submeshes and settings decided by hand (docs/manual_plans.md)")
    add("--mesh", metavar="2x4", default="", help="one stage on all devices in this logical mesh: no pipeline")
    add("--microbatches", metavar="M|auto", type=_count, default=0, help="microbatches per step (default: auto)")
    add("--stages", metavar="S|auto", type=_count, default=0, help="number of pipeline stages (default: auto)")
    add(
        "--mesh-axes",
        metavar="N",
        type=int,
        choices=(1, 2, 3),
        default=MESH_AXES,
        help=f"search logical meshes of at most 1, 2 or 3 axes (default: {MESH_AXES}; 3 takes several times as long)",
    )
    add("--layers", metavar="L|auto", type=_count, default=0, help="layers to cut stages from (default: auto)")
    add(
        "--schedule",
        metavar="KIND",
        choices=SCHEDULES,
        default="auto",
        help=f"pipeline schedule: {', '.join(SCHEDULES)} (default: auto)",
    )
    add(
        "--chunks",
        metavar="V|auto",
        type=_count,
        default=0,
        help="stages that share a submesh under --schedule interleaved (default: auto)",
    )
    add(
        "--remat",
        metavar="auto|none|full|0-3,5",
        type=_remat,
        default="auto",
        help="layers that keep only their inputs and run forward again in the backward pass (default: auto, as many of "
        "each stage as memory demands)",
    )
    add(
        "--partitioner",
        choices=PARTITIONERS,
        default="local",
        help="explicit collectives, or XLA's Shardy (default: local)",
    )
    add("--batch-args", metavar="3,5-7", default="", help="numbers of the arguments that hold the batch")
    add("--state-args", metavar="0-2", default="", help="numbers of the arguments that results replace every step")
    add(
        "--unroll",
        metavar="OPS",
        type=_size,
        default=UNROLL,
        help="most ops that a loop of a known number of rounds may become (over layers ten times as many); 0 keeps "
        f"loops, which are then computed whole by every device (default: {UNROLL})",
    )
    add(
        "--unroll-layers",
        metavar="N",
        type=_size,
        default=UNROLL_LAYERS,
        help="a loop over more layers than this is planned as loops over groups of them, each in one stage; 0: none is"
        f" (default: {UNROLL_LAYERS})",
    )
    add(
        "--no-unstack",
        action="store_true",
        help="keep arrays that hold a slice for each layer whole, on one stage (default: in parts, with their layers)",
    )
    add("--allow-per-microbatch-statistics", action="store_true", help="batch statistics may be those of a microbatch")
    add(
        "--constrain",
        metavar="TEXT",
        action="append",
        default=[],
        help="what must be, e.g. 'arg3=[{x},{}]' or 'y=tensor' (docs/constraints.md); may be repeated",
    )
    add(
        "--explain",
        metavar="%%VALUE",
        action="append",
        default=[],
        help="remark why: the strategy of a value (%%5, arg3) or of ops of a kind or name (* and ? match), its costs, "
        "the runner-up (docs/explain.md); may be repeated",
    )
    add(
        "--what-if",
        metavar="TEXT",
        action="append",
        default=[],
        help="remark what a plan with this constraint would cost; may be repeated",
    )
    add("--solver", default="highs", help="mixed-integer solver, any that CVXPY knows (default: highs)")


def _positive(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,99}", text):
        raise argparse.ArgumentTypeError(f"expected a positive number, got '{text}'")
    return int(text)


def _count(text: str) -> int:
    """A positive number, or 0 for auto."""
    return 0 if text == "auto" else _positive(text)


def _size(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _remat(text: str) -> str:
    if text not in ("auto", "none", "full") and number_ranges(text) is None:
        raise argparse.ArgumentTypeError(f"expected auto, none, full or numbers of layers such as 0-3,5, got '{text}'")
    return text


def _memory(text: str) -> int:
    try:
        return parse_bytes(text)
    except CompileError as e:
        raise argparse.ArgumentTypeError(e.message) from None


def _options(arguments: argparse.Namespace) -> PlanOptions:
    return PlanOptions(
        _cluster(arguments),
        arguments.mesh,
        arguments.microbatches,
        arguments.stages,
        arguments.layers,
        arguments.schedule,
        arguments.partitioner,
        arguments.batch_args,
        arguments.state_args,
        arguments.allow_per_microbatch_statistics,
        arguments.solver,
        arguments.remat,
        arguments.chunks,
        _constraints(arguments.constrain),
        "; ".join(arguments.explain),
        _cases(arguments.what_if),
        arguments.unroll,
        arguments.mesh_axes,
        not arguments.no_unstack,
        arguments.unroll_layers,
    )


def _by_hand(path: str | None, cluster: Cluster) -> ManualPlan | None:
    """The plan of a file, if there is one; CompileError, located in it, for what is wrong."""
    if path is None:
        return None
    return parse_manual(read_text(path, "plan by hand"), path, cluster)


def _decided(options: PlanOptions, plan: ManualPlan, path: str) -> PlanOptions:
    """The options with what a plan by hand decides; what the command line says goes first."""
    if options.mesh or options.stages or options.chunks:
        raise CompileError("this plan says the stages: give neither --stages, --chunks nor --mesh", f"{path}:1:1")
    return replace(
        options,
        microbatches=options.microbatches or plan.microbatches,
        layers=options.layers or plan.layers,
        schedule=options.schedule if options.schedule != "auto" else plan.schedule or "auto",
        remat=options.remat if options.remat != "auto" else plan.remat or "auto",
        constrain="; ".join(text for text in (options.constrain, plan.constrain) if text),
    )


def _constraints(texts: Sequence[str]) -> str:
    """All constraints as one text, once they can be read."""
    for text in texts:
        parse_constraints(text)
    return "; ".join(texts)


def _cases(texts: Sequence[str]) -> str:
    """All what-ifs as one text, once they can be read."""
    for text in texts:
        parse_constraints(text.replace("|", ";"))
    return " | ".join(texts)


def _cluster(arguments: argparse.Namespace) -> Cluster:
    known = read_cluster(arguments.cluster)
    try:
        return known.with_sizes(arguments.nodes, arguments.devices_per_node, arguments.memory)
    except CompileError as e:
        raise in_file(e, arguments.cluster) from None


if __name__ == "__main__":
    entry()
