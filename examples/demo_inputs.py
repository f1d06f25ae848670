"""Write the inputs of the demo: a small GPT's initial state and twenty batches of the built-in text.

    python examples/demo_inputs.py --steps 20 -o inputs.npz

Arrays are named as `alpa-mlir-run --inputs` expects them: `arg3` is argument 3 of `@main`, and where an
argument is new in every step (tokens, targets) `arg3@7` is its value in step 7.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

from alpa_mlir.models import gpt


def inputs(steps: int, seed: int) -> dict[str, np.ndarray]:
    """Initial state and one batch per step of the exporter's default GPT."""
    config = gpt.GptConfig()
    params, optimizer, *_ = gpt.initial_values(config, seed=seed)
    state = [np.asarray(leaf) for leaf in jax.tree.leaves((params, optimizer))]
    arrays = {f"arg{i}": leaf for i, leaf in enumerate(state)}
    for step, batch in enumerate(gpt.batches(config, steps=steps, seed=seed)):
        for i, leaf in enumerate(jax.tree.leaves(batch)):
            arrays[f"arg{len(state) + i}@{step}"] = np.asarray(leaf)
    return arrays


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="number of steps (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the order of the text")
    parser.add_argument("-o", dest="output", default="inputs.npz", help="file to write (default: inputs.npz)")
    arguments = parser.parse_args()
    np.savez(arguments.output, **inputs(arguments.steps, arguments.seed))


if __name__ == "__main__":
    main()
