"""Planned = executed: the collectives a plan counts, those its localised stages hold, and those XLA runs.

    python -m benchmarks.collectives [MODEL …] [--mesh 2x2]

For each built-in model (its smallest size, one stage on the mesh) the table shows per kind the number and the
bytes per device: *planned* from the shardings alone, *localised* in the explicit program, *XLA local* in XLA's
optimised HLO of that program, and *XLA shardy* where XLA's own partitioner takes the annotated functions.  XLA
combines collectives, so its numbers may be smaller at equal bytes (docs/collectives.md).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

DEVICES = 8
os.environ.setdefault("PJRT_NPROC", str(4 * DEVICES))
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={DEVICES}")

import jax  # noqa: E402
from jaxlib.mlir import ir  # noqa: E402

from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module  # noqa: E402
from alpa_mlir.dialect.mesh import Mesh, declare_mesh  # noqa: E402
from alpa_mlir.dialect.sharding import (  # noqa: E402
    SHARDING,
    Sharding,
    argument_attributes,
    set_argument_attributes,
    sharding_attribute,
)
from alpa_mlir.lowering import lower  # noqa: E402
from alpa_mlir.models import MODELS  # noqa: E402
from alpa_mlir.passes import all as _registered  # noqa: E402, F401
from alpa_mlir.passes.local.census import (  # noqa: E402
    Collective,
    by_kind,
    compiled_collectives,
    planned_collectives,
    written_collectives,
)
from alpa_mlir.passes.localize import ExportToShardy, Localize, sharded_functions  # noqa: E402
from alpa_mlir.passes.pipeline import run_pipeline  # noqa: E402
from alpa_mlir.runtime.executable import Compiler, jax_mesh  # noqa: E402
from alpa_mlir.runtime.stage_function import extract  # noqa: E402


def sharded(name: str, mesh: str) -> ir.Module:
    """The level 5 module of a built-in model: its training step sharded on one mesh.

    Models this small would not be split at all, so the examples are put on axis x and the last dimension of
    matrices on axis y; the solver chooses the rest.
    """
    model = MODELS[name]
    context = make_context()
    module = parse_module(print_module(lower(model.build(model.presets["tiny"]))), context, name)
    run_pipeline(module, "builtin.module(alpa-normalize)", [])
    sizes = tuple(int(n) for n in mesh.split("x"))
    declare_mesh(module, Mesh.from_shape("stage_0", sizes))
    _split_arguments(functions(module)["main"], sizes)
    run_pipeline(module, f"builtin.module(alpa-shard{{mesh={mesh} cluster=cpu}})", [])
    return module


def _split_arguments(main: ir.Operation, sizes: tuple[int, ...]) -> None:
    entries = argument_attributes(main)
    mesh = Mesh.from_shape("stage_0", sizes)
    for value, entry in zip(main.regions[0].blocks[0].arguments, entries, strict=True):
        shape = list(ir.RankedTensorType(value.type).shape)
        batch = "batch" in str(entry.get("alpa.role"))
        dims: list[tuple[str, ...]] = [()] * len(shape)
        if batch and shape and shape[0] % sizes[0] == 0:
            dims[0] = ("x",)
        elif not batch and len(shape) > 1 and len(sizes) > 1 and shape[-1] % sizes[1] == 0:
            dims[-1] = ("y",)
        entry[SHARDING] = sharding_attribute(Sharding(tuple(dims)), mesh.name, main.context)
    set_argument_attributes(main, entries)


def compiled(module: ir.Module, change: Callable[[ir.Module], None]) -> list[Collective]:
    """What XLA's optimised HLO holds after `change` made the sharded functions executable."""
    stages = [(name, mesh) for name, mesh, _ in sharded_functions(module)]
    change(module)
    found = []
    for name, mesh in stages:
        devices = jax.devices()[: mesh.device_count]
        executable = Compiler().compile(extract(module, name), jax_mesh(mesh, devices))
        found += compiled_collectives(executable.as_text(), mesh)
    return found


def rows(name: str, mesh: str) -> list[tuple[str, list[Collective]]]:
    """The four lists of one model."""
    module = sharded(name, mesh)
    ours, theirs, local = (clone_module(module) for _ in range(3))
    stages = list(sharded_functions(module))
    planned = [c for _, m, f in stages for c in planned_collectives(f, m)]
    Localize().apply(local, [])
    return [
        ("planned", planned),
        ("localised", [c for n, m, _ in stages for c in written_collectives(functions(local)[n], m)]),
        ("XLA local", compiled(ours, lambda m: Localize().apply(m, []))),
        ("XLA shardy", compiled(theirs, lambda m: ExportToShardy().apply(m, []))),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["mlp", "gpt", "moe"], metavar="MODEL")
    parser.add_argument("--mesh", default="2x2")
    options = parser.parse_args()
    for name in options.models:
        print(f"{name} on {options.mesh}")
        for what, counts in rows(name, options.mesh):
            cells = [f"{kind} {c.number} ({c.bytes} B)" for kind, c in by_kind(counts).items()]
            print(f"  {what:11s} {', '.join(cells) or 'none'}")


if __name__ == "__main__":
    main()
