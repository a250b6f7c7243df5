"""How far ``magic`` reaches: predicted and measured loss change while images lose ever more of their weight.

Usage: python -m benchmarks.magic_reach [--study tiny] [--sets 8] [--from-step 0] [--epsilon 1e-8]

Sets of a twentieth of the images are drawn by chance. In the steps from ``--from-step`` on their draws count 1 − s
instead of 1, for s from 0.03 to 1, in the very training that is differentiated; no draw goes to another image, so
nothing but the size of the change stands between the derivative and the truth. Printed: for each s the correlation over
sets and queries of predicted and measured loss change, and the slope of measured on predicted.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr

from bench.attribution.metagradients import State, Steps, WithWeights, replayed
from bench.diffusion.losses import query_loss_inputs
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.foundation.machine import available_threads, compute_threads, describe
from bench.studies import study
from methods.magic import Magic

SHARES = (0.03, 0.1, 0.3, 1.0)


class _Late(Steps):
    """Steps whose draws before ``first`` have no weight to differentiate by."""

    first = 0

    def backward(
        self, state: State, after: State, step: int, adjoints: list[State]
    ) -> tuple[list[State], torch.Tensor]:
        found, derivatives = super().backward(state, after, step, adjoints)
        return found, derivatives * (step >= self.first)


def main() -> None:
    """Differentiate once, then train with weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="tiny")
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--from-step", type=int, default=0)
    parser.add_argument("--epsilon", type=float, default=1e-8, help="of AdamW, in place of the study's")
    given = parser.parse_args()
    chosen, method = study(given.study), Magic()
    chosen = replace(chosen, recipe=replace(chosen.recipe, epsilon=given.epsilon))
    with tempfile.TemporaryDirectory() as temporary, compute_threads(available_threads()):
        workspace = Workspace(chosen, Path(temporary), metrics=())
        queries, context = workspace.queries(chosen.queries(2)), workspace.context()
        training, device = context.trainings[method.training], context.model.device
        replay = replayed(training, device, context.progress)
        steps = _Late(training, device)
        steps.first = given.from_step
        slopes = [method.slope(context, query, replay.run.average.clone()) for query in queries]
        derivatives = replay.derivatives(steps, slopes, context.progress)[:, 0]
        exact = Steps(training, device, torch.float64)

        def losses(removed: torch.Tensor, share: float) -> torch.Tensor:
            state = exact.start()
            for step in range(training.recipe.num_steps):
                lost = torch.isin(exact.draws.at(step).images, removed) & (step >= given.from_step)
                state = exact.forward(state, step, 1 - share * lost.double())
            found = []
            for query in queries:
                inputs = query_loss_inputs(exact.model, query, range(0, 1000, 5), chosen.seed)
                typed = [part.double() if part.is_floating_point() else part for part in inputs]
                with torch.no_grad():
                    unet = WithWeights(exact.model.unet, state.average)
                    found.append(exact.model.losses(*typed, unet=unet).mean())
            return torch.stack(found)

        count = len(training.ids) // 20
        sets = [
            torch.from_numpy(seeds.generator("magic-reach", number).permutation(len(training.ids))[:count].copy())
            for number in range(given.sets)
        ]
        before = losses(sets[0], 0.0)
        for share in SHARES:
            predicted = torch.stack([-share * derivatives[:, removed].sum(1) for removed in sets]).flatten().numpy()
            measured = torch.stack([losses(removed, share) - before for removed in sets]).flatten().numpy()
            linear, slope = pearsonr(predicted, measured).statistic, np.polyfit(predicted, measured, 1)[0]
            print(
                f"s = {share:g}: Pearson {linear:+.2f}, slope {slope:+.2f}, SD predicted {predicted.std():.2e}, "
                f"measured {measured.std():.2e}", flush=True,
            )  # fmt: skip
    drawn = f"{given.sets} sets of {count} images, draws from step {given.from_step} on"
    print(f"{drawn}, ε = {given.epsilon:g}; {describe()}")


if __name__ == "__main__":
    main()
