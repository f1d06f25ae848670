"""Public instances: the reader, the live sets, and the solver on random ones against brute force."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.intra.instances import FORBIDDEN, parse_instance
from alpa_mlir.passes.intra.solve import solve
from alpa_mlir.passes.intra.spans import Spans
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.solve import NAME, main

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "instance.json")


def random_instance(seed: int) -> dict:
    """Six nodes of up to three strategies, with forbidden strategies and pairs and parallel edges."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, 6)
    starts = np.sort(rng.integers(0, 8, 6))

    def costs(count: int) -> list[float]:
        drawn = rng.integers(0, 50, count).astype(float)
        drawn[1:][rng.random(count - 1) < 0.2] = 10 * FORBIDDEN
        return drawn.tolist()

    pairs = [sorted(rng.choice(6, 2, replace=False).tolist(), reverse=bool(rng.integers(2))) for _ in range(8)]
    return {
        "problem": {
            "name": str(seed),
            "nodes": {
                "intervals": [[int(s), int(s + rng.integers(0, 5))] for s in starts],
                "costs": [costs(n) for n in sizes],
                "usages": [rng.integers(1, 20, n).tolist() for n in sizes],
            },
            "edges": {"nodes": pairs, "costs": [costs(int(sizes[u] * sizes[v])) for u, v in pairs]},
            "usage_limit": 40,
        }
    }


def best_by_brute_force(document: dict) -> float:
    """The least cost read directly off the document, time step by time step; infinity where nothing fits."""
    nodes, edges = document["problem"]["nodes"], document["problem"]["edges"]
    best = float("inf")
    for labels in itertools.product(*(range(len(c)) for c in nodes["costs"])):
        used = [0] * 16
        for (start, end), usage, x in zip(nodes["intervals"], nodes["usages"], labels, strict=True):
            for t in range(start, end):
                used[t] += usage[x]
        if max(used) > document["problem"]["usage_limit"]:
            continue
        cost = sum(c[x] for c, x in zip(nodes["costs"], labels, strict=True))
        for (u, v), table in zip(edges["nodes"], edges["costs"], strict=True):
            cost += table[labels[u] * len(nodes["costs"][v]) + labels[v]]
        best = min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_the_solver_equals_brute_force(seed):
    document = random_instance(seed)
    best = best_by_brute_force(document)
    problem = parse_instance(document)
    if best >= FORBIDDEN:
        with pytest.raises(CompileError):
            solve(problem)
    else:
        assert solve(problem).cost == pytest.approx(best)


def test_live_sets_are_the_maximal_ones():
    spans = Spans.of_intervals(np.array([[30, 70], [40, 70], [50, 120], [110, 140], [110, 150], [60, 60]]))
    assert spans.matrix().toarray().tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]]


def test_the_command_writes_a_solution(tmp_path, capsys):
    document = next(d for d in map(random_instance, range(40)) if best_by_brute_force(d) < FORBIDDEN)
    path, out = tmp_path / "instance.json", tmp_path / "solution.json"
    path.write_text(json.dumps(document))
    assert guarded(NAME, main, [str(path), "-o", str(out)]) == 0
    assert json.loads(out.read_text())["cost"] == pytest.approx(best_by_brute_force(document))
    assert "optimal" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["highs", "search"])
@pytest.mark.parametrize(
    ("limit", "heavy", "best"),
    [
        (0, 7, 9),  # nothing may be held: no scale for the rows
        (10**12, 10**12, 9),  # over by 3 bytes, far within what solvers of linear programs take for equal
        (10**12 + 3, 10**12, 0),
    ],
)
def test_a_limit_is_kept_to_the_byte(engine: str, limit: int, heavy: int, best: int) -> None:
    light = 0 if limit == 0 else 3
    document = {
        "problem": {
            "nodes": {"intervals": [[0, 4], [1, 5]], "costs": [[0, 9], [0]], "usages": [[heavy, 0], [light]]},
            "edges": {"nodes": [], "costs": []},
            "usage_limit": limit,
        }
    }
    assert solve(parse_instance(document), engine=engine).cost == best


WRONG = {
    "costs[0] holds 'a'": ("nodes", "costs", ["a", 2]),
    "costs[0] holds None": ("nodes", "costs", [None, 2]),
    "costs[0] holds a negative number": ("nodes", "costs", [-1, 2]),
    "costs[0] is no list": ("nodes", "costs", "12"),
    "costs[0] holds something else": ("nodes", "costs", [10**400, 2]),
    "node 0 has 1 costs and 2 usages": ("nodes", "costs", [1]),
    "usages[0] is not finite": ("nodes", "usages", [float("inf"), 1]),
    "usages[0] holds a negative number, or none": ("nodes", "usages", [float("nan"), 1]),
    "intervals[0] is [0, 1.5]": ("nodes", "intervals", [0, 1.5]),
    f"intervals[0] is [0, {10**30}]": ("nodes", "intervals", [0, 10**30]),
    "edges.nodes[0] is [0, 1, 1]": ("edges", "nodes", [0, 1, 1]),
    "edges.nodes[0] is ['a', 1]": ("edges", "nodes", ["a", 1]),
    "edge 0 joins [1, 1]": ("edges", "nodes", [1, 1]),
    "edge 0 has 3 costs": ("edges", "costs", [1, 2, 3]),
    "edges.costs[0] is no flat list": ("edges", "costs", [[1, 2], [3, 4]]),
    "edges.costs[0] holds something": ("edges", "costs", [[1, 2], [3]]),
}


@pytest.mark.parametrize("message", WRONG)
def test_the_entry_that_is_wrong_is_named(message: str) -> None:
    part, name, value = WRONG[message]
    nodes = {"intervals": [[0, 2], [1, 3]], "costs": [[1, 2], [3, 4]], "usages": [[1, 2], [3, 4]]}
    document = {"problem": {"nodes": nodes, "edges": {"nodes": [[0, 1]], "costs": [[1, 2, 3, 4]]}}}
    solve(parse_instance(document))
    document["problem"][part][name][0] = value
    with pytest.raises(CompileError) as found:
        parse_instance(document, "i.json")
    assert found.value.location == "i.json:1:1"
    assert message in found.value.message


def test_branch_and_bound_keeps_the_time_limit(tmp_path, capsys):
    """The solver alone would take minutes: a ring of many labels with memory that binds."""
    rng = np.random.default_rng(0)
    nodes, labels = 60, 12
    pairs = [[i, (i + k) % nodes] for i in range(nodes) for k in (1, 2, 5)]
    document = {
        "problem": {
            "nodes": {
                "intervals": [[0, 1]] * nodes,
                "costs": rng.integers(0, 100, (nodes, labels)).tolist(),
                "usages": rng.integers(1, 100, (nodes, labels)).tolist(),
            },
            "edges": {"nodes": pairs, "costs": rng.integers(0, 100, (len(pairs), labels**2)).tolist()},
            "usage_limit": 20 * nodes,
        }
    }
    path = tmp_path / "hard.json"
    path.write_text(json.dumps(document))
    began = time.process_time()
    code = guarded(NAME, main, [str(path), "--engine", "highs", "--time-limit", "2"])
    assert time.process_time() - began < 30
    said = capsys.readouterr()
    assert (code == 0 and "gap" in said.out) or "when the time was up" in said.err


@pytest.mark.parametrize(
    "text", ["", "{}", "[" * 100_000, "[1]", '{"problem": {"nodes": {"costs": [[1]]}, "edges": {}}}', "\x1f\x8b junk"]
)
def test_what_is_no_instance_is_one_located_error(tmp_path, capsys, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    assert guarded(NAME, main, [str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{path}:1:1: error: ")


def test_the_engines_agree_and_say_what_is_proven(tmp_path, capsys):
    costs = []
    for engine in ("highs", "search"):
        out = tmp_path / f"{engine}.json"
        assert guarded(NAME, main, [EXAMPLE, "--engine", engine, "-o", str(out)]) == 0
        found = json.loads(out.read_text())
        assert found["optimal"] and found["bound"] <= found["cost"] and found["gap"] <= 1e-6
        costs.append(found["cost"])
    assert costs[0] == pytest.approx(costs[1])
    assert "bound" in capsys.readouterr().out


def test_a_time_limit_ends_the_search_with_a_true_gap(tmp_path, capsys):
    out = tmp_path / "solution.json"
    arguments = [EXAMPLE, "--engine", "search", "--time-limit", "1e-9", "-o", str(out)]
    assert guarded(NAME, main, arguments) == 0
    found = json.loads(out.read_text())
    assert found["bound"] <= 443 <= found["cost"]
    with pytest.raises(SystemExit):
        main([EXAMPLE, "--time-limit", "0"])


@pytest.mark.parametrize("engine", ["highs", "search"])
def test_an_instance_without_a_solution_is_one_located_error(tmp_path, capsys, engine):
    document = json.loads(Path(EXAMPLE).read_text())
    document["problem"]["usage_limit"] = 20
    path = tmp_path / "tight.json"
    path.write_text(json.dumps(document))
    assert guarded(NAME, main, [str(path), "--engine", engine]) == 1
    assert capsys.readouterr().err.startswith(f"{path}:1:1: error: memory too small")
