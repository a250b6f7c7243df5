"""What verdicts over queries are worth where several queries have one prompt: false verdicts in a simulation.

Usage: python -m benchmarks.shared_prompts [--runs N] [--prompts N] [--noises N] [--alike ICC] [--methods N]

No method is better than another. A value is an effect of prompt and method plus one of the noise; ``--alike`` is the
prompt's share of the variance (the intraclass correlation of a difference), scales differ between prompts, and tails
are those of Student's t with 5 degrees of freedom. Printed is the share of runs with a false verdict, by unit (query,
prompt) and by what is asked: where *these prompts* are meant, effects of prompts sum to zero for each method; where
*prompts like them* are, the prompts are drawn.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from bench.report.verdicts import verdicts

SEED = 0
FREEDOM = 5
SPREAD = 0.7
"""Of the log of a prompt's scale."""


def drawn(rng: np.random.Generator, given: argparse.Namespace, *, these: bool) -> pd.DataFrame:
    """Queries × methods, the queries of a prompt one after another."""
    scale = np.exp(rng.normal(0, SPREAD, (given.prompts, 1)))

    def part(rows: int, share: float) -> np.ndarray:
        unit = np.sqrt(share * (FREEDOM - 2) / FREEDOM)
        return rng.standard_t(FREEDOM, (rows, given.methods)) * unit * np.repeat(scale, rows // given.prompts, 0)

    of_prompts = part(given.prompts, given.alike)
    if these:
        of_prompts -= of_prompts.mean(0)
    of_noises = part(given.prompts * given.noises, 1 - given.alike)
    names = [f"m{number}" for number in range(given.methods)]
    return pd.DataFrame(np.repeat(of_prompts, given.noises, 0) + of_noises, columns=names)


def any_settled(table: pd.DataFrame) -> bool:
    """Whether a pair of methods is settled, which none may be."""
    return any(found.settled for found in verdicts(table).values())


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--noises", type=int, default=2)
    parser.add_argument("--alike", type=float, default=0.39)
    parser.add_argument("--methods", type=int, default=15)
    given = parser.parse_args()
    print("| meant | unit: query | unit: prompt |\n|---|---|---|")
    for meant, these in (("these prompts", True), ("prompts like them", False)):
        rng = np.random.default_rng(SEED)
        tables = [drawn(rng, given, these=these) for _ in range(given.runs)]
        prompt = np.repeat(np.arange(given.prompts), given.noises)
        false = [np.mean([any_settled(table) for table in some])
                 for some in (tables, [table.groupby(prompt).mean() for table in tables])]  # fmt: skip
        print(f"| {meant} | " + " | ".join(f"{share:.3f}" for share in false) + " |", flush=True)


if __name__ == "__main__":
    main()
