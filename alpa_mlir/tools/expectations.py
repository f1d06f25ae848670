"""`-verify-diagnostics`: a test file says in comments which messages it expects, and where.

    // expected-error@+1 {{must be divisible}}       on the next line
    // expected-remark@below {{…}}  @above  @-2      likewise; without @ on the line of the comment
    // expected-error@unknown {{…}}                  a message without a position in this file

The text must be contained in the message.  A message nobody expected is as much a failure as an
expected one that never came.  (The syntax is that of MLIR's SourceMgrDiagnosticVerifierHandler.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alpa_mlir.dialect.diagnostics import CompileError, Remark

_EXPECTATION = re.compile(
    r"expected-(?P<severity>error|warning|remark|note)\s*"
    r"(?:@(?P<where>[+-]\d+|above|below|unknown))?\s*\{\{(?P<text>.*?)\}\}"
)
_PRINTED_OP = "see current operation:"  # MLIR's verifier adds it to each of its errors
_POSITION = re.compile(r"-:(?P<line>\d+):(?P<column>\d+)$")


@dataclass(frozen=True)
class Message:
    """A diagnostic at a line of the file (0: none known), expected or produced."""

    severity: str
    line: int
    text: str


def expected_in(text: str) -> list[Message]:
    """The messages that the comments of a file expect, in order; line 1 is the first of `text`."""
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        for match in _EXPECTATION.finditer(line):
            found.append(Message(match["severity"], _line(match["where"], number), match["text"]))
    return found


def _line(where: str | None, number: int) -> int:
    if where == "unknown":
        return 0
    offset = {None: 0, "above": -1, "below": 1}.get(where)
    return number + (int(where) if offset is None and where is not None else offset or 0)


def produced_by(error: CompileError | None, remarks: Iterable[Remark]) -> list[Message]:
    """The messages of one run over a text that the parser called `-`."""
    found = [Message(r.severity, _line_of(r.location), r.message) for r in dict.fromkeys(remarks)]
    if error is not None:
        found.append(Message("error", _line_of(error.location), error.message))
        notes = (n if isinstance(n, Remark) else Remark(n, error.location, "note") for n in error.notes)
        own = (note for note in notes if not note.message.startswith(_PRINTED_OP))
        found.extend(Message("note", _line_of(note.location), note.message) for note in own)
    return found


def _line_of(location: str) -> int:
    match = _POSITION.match(location)
    return int(match["line"]) if match else 0


def mismatches(expected: Sequence[Message], produced: Sequence[Message], filename: str) -> list[str]:
    """One error line for each expectation that was not met and each message that was not expected."""
    left = list(produced)
    failures = []
    for wanted in expected:
        met = next((m for m in left if _meets(m, wanted)), None)
        if met is None:
            failures.append(
                f'{_at(wanted, filename)}: error: expected {wanted.severity} "{wanted.text}" was not produced'
            )
        else:
            left.remove(met)
    failures.extend(f"{_at(m, filename)}: error: unexpected {m.severity}: {m.text}" for m in left)
    return failures


def _meets(message: Message, wanted: Message) -> bool:
    return (message.severity, message.line) == (wanted.severity, wanted.line) and wanted.text in message.text


def _at(message: Message, filename: str) -> str:
    return f"{filename}:{message.line}:1" if message.line else f"{filename}:1:1"
