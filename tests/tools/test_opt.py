"""Options, pipelines and the command line of `alpa-mlir-opt` (its outputs are tested in lit_tests)."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes import registry
from alpa_mlir.passes.pipeline import Upstream, parse_pipeline, pipeline_to_text, run_pipeline
from alpa_mlir.passes.registry import Pass, PipelineError, option, pass_from_text, pass_to_text, split_options
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.expectations import expected_in, mismatches
from alpa_mlir.tools.opt import main, split_input, take_passes

COMMAND = Path(sys.executable).parent / "alpa-mlir-opt"
SOURCE = "func.func public @main(%a: tensor<8xf32>) -> tensor<8xf32> { return %a : tensor<8xf32> }\n"


@dataclass(frozen=True)
class Every(Pass):
    """A pass with an option of every kind, which marks the module as asked."""

    name: ClassVar[str] = "test-every"

    count: int = option(1, "an integer")
    rate: float = option(0.5, "a number")
    label: str = option("normal", "a string")
    on: bool = option(False, "a boolean")
    sizes: tuple[int, ...] = option((), "integers")
    limit: int | None = option(None, "an integer or nothing")
    two_words: tuple[str, ...] = option(("a",), "strings")

    def apply(self, module, remarks):
        module.operation.attributes[alpa.LEVEL] = alpa.string(self.label, module.context)


@pytest.fixture(autouse=True)
def every(monkeypatch):
    monkeypatch.setitem(registry._PASSES, Every.name, Every)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test-every", Every()),
        ("test-every{}", Every()),
        ("test-every{count=4 rate=1e-3}", Every(count=4, rate=1e-3)),
        ("test-every{on}", Every(on=True)),
        ("test-every{on=false sizes=1,2,3}", Every(sizes=(1, 2, 3))),
        ('test-every{label="two words" limit=7}', Every(label="two words", limit=7)),
        ("test-every{label={a b={c}} two-words=x,y}", Every(label="a b={c}", two_words=("x", "y"))),
        ("test-every{label='' sizes=}", Every(label="")),
        ("test-every{label=100%/x.toml}", Every(label="100%/x.toml")),
    ],
)
def test_options_are_read_and_printed_back(text, expected):
    assert pass_from_text(text) == expected
    assert pass_from_text(pass_to_text(expected)) == expected
    assert parse_pipeline(f"builtin.module(cse,{text} , canonicalize)")[1] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test-evry", "there is no pass 'test-evry'; did you mean 'test-every'"),
        ("test-every{cout=1}", "test-every has no option 'cout'; did you mean 'count'? (its options: count, rate,"),
        ("test-every{count=x}", "option 'count' must be an integer, got 'x'"),
        ("test-every{count}", "option 'count' must be an integer, got nothing"),
        ("test-every{rate=fast}", "must be a number"),
        ("test-every{on=maybe}", "must be true or false"),
        ("test-every{sizes=1,b}", "must be a list of integers, got '1,b'"),
        ("test-every{count=1 count=2}", "option 'count' is given twice"),
        ("test-every{label='x}", "unclosed quote"),
        ("test-every{count=1", "brace"),
    ],
)
def test_wrong_options_are_refused(text, message):
    for read in (pass_from_text, parse_pipeline):
        with pytest.raises(PipelineError) as e:
            read(text)
        assert message in str(e.value) or "brace" in str(e.value) or "there is no pass" in str(e.value)
    with pytest.raises(PipelineError) as e:
        pass_from_text(text)
    assert message in str(e.value)


def test_option_lists_split_at_spaces_outside_quotes_and_braces():
    assert list(split_options(" a=1  b c={d e=f} g='h i' ")) == [("a", "1"), ("b", None), ("c", "d e=f"), ("g", "h i")]


def test_a_pipeline_prints_back():
    text = "builtin.module(cse,test-every{count=3},func.func(canonicalize{max-iterations=2},cse),symbol-dce)"
    steps = parse_pipeline(text)
    assert pipeline_to_text(steps) == text
    assert parse_pipeline(pipeline_to_text(steps)) == steps
    assert steps[2] == Upstream("func.func(canonicalize{max-iterations=2},cse)", ("canonicalize", "cse"))
    assert parse_pipeline("") == parse_pipeline("builtin.module()") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cse,", "expected the name of a pass"),
        ("cse)", "expected ',' or the end"),
        ("func.func(cse", "expected ',' or ')'"),
        ("module(cse)", "'module(…)' cannot be nested in builtin.module"),
        ("func.func(builtin.module(cse))", "cannot be nested in func.func"),
        ("func.func(sdy-import-pipeline)", "sdy-import-pipeline runs on the module"),
        ("func.func(test-every)", "test-every runs on the module"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused(text, message):
    with pytest.raises(PipelineError) as e:
        parse_pipeline(text)
    assert message in str(e.value)


def test_a_pass_that_leaves_an_invalid_module_is_named():
    module = parse_module(SOURCE, make_context())
    run_pipeline(module, "test-every{label=split}", [])
    with pytest.raises(CompileError) as e:
        run_pipeline(module, "test-every{label=nonsense}", [])
    assert e.value.message.startswith("test-every left an invalid module: alpa.level must be")
    run_pipeline(module, "test-every{label=nonsense}", [], verify_each=False)


def test_passes_run_in_the_order_of_the_command_line():
    rest, steps = take_passes(
        ["--cse", "file", "-test-every=count=2", "--sdy-drop-sharding-rules", "-o", "x", "--canonicalize"]
    )
    assert rest == ["file", "-o", "x"]
    assert pipeline_to_text(steps) == (
        "builtin.module(cse,test-every{count=2},func.func(sdy-drop-sharding-rules),canonicalize)"
    )


def test_pieces_of_a_split_file_keep_their_lines():
    pieces = split_input(b"a\n// -----\n\nb\n// -----  \n\n")
    assert pieces == [b"a", b"\n\n\nb"]


def test_expectations():
    text = "// expected-error@+1 {{bad}}\nop\n// expected-remark@above {{r}} expected-note@unknown {{n}}\n"
    wanted = expected_in(text)
    assert [(m.severity, m.line, m.text) for m in wanted] == [("error", 2, "bad"), ("remark", 2, "r"), ("note", 0, "n")]
    assert mismatches(wanted, wanted, "f") == []
    assert mismatches(wanted[:1], [], "f") == ['f:2:1: error: expected error "bad" was not produced']
    assert mismatches([], wanted[1:2], "f") == ["f:2:1: error: unexpected remark: r"]


def test_output_is_written_whole_or_not_at_all(tmp_path, capsys):
    source, output = tmp_path / "a.mlir", tmp_path / "b.mlir"
    source.write_text(SOURCE)
    output.write_text("before")
    source_bad = tmp_path / "bad.mlir"
    source_bad.write_text(SOURCE.replace("%a :", "%b :"))
    with pytest.raises(CompileError, match="cannot write the file: No such file"):
        main([str(source), "-o", str(tmp_path / "no" / "b.mlir")])
    assert main([str(source_bad), "--cse", "-o", str(output)]) == 1
    assert output.read_text() == "before"
    assert f"{source_bad}:1:" in capsys.readouterr().err
    assert main([str(source), "--cse", "-o", str(output)]) == 0
    assert "return %arg0" in output.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mlir", "b.mlir", "bad.mlir"]


def run(*words, **options):
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("words", "text", "status", "message"),
    [
        (["--cse"], SOURCE, 0, ""),
        (["--cse"], "func.func @main(", 1, "<stdin>:1:"),
        (["--cse"], "", 1, "<stdin>:1:1: error: the file is empty"),
        (["--cs"], SOURCE, 2, "alpa-mlir-opt: error: unknown argument '--cs'; did you mean"),
        (["a", "b"], SOURCE, 2, "alpa-mlir-opt: error: unknown argument 'b'"),
        (["/nowhere"], SOURCE, 1, "/nowhere:1:1: error: cannot read the file: No such file or directory"),
        (["--pass-pipeline"], SOURCE, 2, "--pass-pipeline needs a value"),
        (["--verify-each=perhaps"], SOURCE, 2, "invalid choice"),
    ],
)
def test_exit_status_and_message(words, text, status, message):
    done = run(*words, input=text)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback():
    child = subprocess.Popen([COMMAND, "--list-passes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.wait(timeout=60) == 141
    assert child.stderr.read() == b""
    child.stderr.close()


def test_interrupt_is_status_130(capfd):
    def interrupted(argv):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        return 0

    assert guarded("alpa-mlir-opt", interrupted) == 130
    assert capfd.readouterr() == ("", "")
