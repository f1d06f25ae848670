"""`python -m alpa_mlir.docs_generator [--check]`: write the reference pages that the code declares.

`docs/passes.md` comes from the registered passes (docstring and options), `docs/attributes.md` from the
attribute table in `alpa_mlir.dialect.alpa`.  With `--check` nothing is written; stale pages are named
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import alpa_mlir.passes.all  # noqa: F401  (registers the passes)
from alpa_mlir.dialect.alpa import DECLARATIONS
from alpa_mlir.passes.registry import Pass, options_of, registered
from alpa_mlir.passes.upstream import ANYWHERE, ON_FUNCTIONS, ON_MODULES

DOCS = Path(__file__).resolve().parent.parent / "docs"
_MARK = "<!-- Written by `make docs` from the declarations in the code: change those. -->\n\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the pages; returns the exit status."""
    parser = argparse.ArgumentParser(prog="alpa_mlir.docs_generator", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    options = parser.parse_args(argv)
    if options.check:
        stale = stale_pages(DOCS)
        for path in stale:
            print(f"{path}:1:1: error: the page is stale: run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages(DOCS).items():
        path.write_text(text)
    return 0


def stale_pages(folder: Path) -> list[Path]:
    """The pages in `folder` that differ from what the code declares."""
    return [path for path, text in pages(folder).items() if not path.exists() or path.read_text() != text]


def pages(folder: Path) -> dict[Path, str]:
    """The text of each generated page by path."""
    return {folder / "passes.md": passes_page(), folder / "attributes.md": attributes_page()}


def passes_page() -> str:
    """All passes: ours with specification and options, then the names of upstream's."""
    parts = ["# Passes\n\n", _MARK]
    parts += [
        'Each pass is a flag of `alpa-mlir-opt` and may stand in a pipeline: `--alpa-layers="count=4"`,\n'
        "`builtin.module(alpa-normalize,canonicalize,alpa-layers{count=4})`. What stands in the IR before and after\n"
        "each is said in [ir.md](ir.md).\n"
    ]
    parts += [_pass_section(cls) for cls in registered().values()]
    parts.append("\n## Upstream passes\n\nRun by MLIR's pass manager; options as MLIR spells them.\n\n")
    for title, names in (
        ("On modules and functions", ANYWHERE),
        ("On modules", ON_MODULES),
        ("On functions, in pipelines as `func.func(…)`", ON_FUNCTIONS),
    ):
        parts.append(f"**{title}**: {', '.join(f'`{name}`' for name in sorted(names))}.\n\n")
    return "".join(parts).rstrip("\n") + "\n"


def _pass_section(cls: type[Pass]) -> str:
    text = f"\n## `{cls.name}`\n\n{inspect.cleandoc(cls.__doc__ or '')}\n"
    rows = [f"| `{o.name}` | {o.kind} | `{o.default}` | {_cell(o.meaning)} |\n" for o in options_of(cls)]
    if rows:
        text += "\n| option | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows).replace("``", "")
    return text


def attributes_page() -> str:
    """The table of `alpa.*` attributes."""
    rows = [
        f"| {d.rule} | `{d.name}` | {_cell(d.kind)} | {', '.join(d.places)} | {_cell(d.meaning)} |\n"
        for d in DECLARATIONS
    ]
    return (
        "# The `alpa.*` attributes\n\n" + _MARK + "Verified after every pass; errors cite the rule. On which level"
        " of the IR each stands: [ir.md](ir.md).\n\n"
        "| rule | attribute | type | on | meaning |\n|---|---|---|---|---|\n" + "".join(rows)
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
