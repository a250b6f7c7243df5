"""Models trained in one stack are those trained one by one, float rounding apart, and do not touch each other."""

import math
from dataclasses import replace

import pytest
import torch
from together import JOBS, STEPS, flat, runs_of, trained

from bench.diffusion.stacking import Stack, train_stacked
from bench.diffusion.training import train_together
from bench.errors import InvalidInput
from bench.experiments.workspace import Workspace
from bench.retraining import plans
from bench.retraining.ledger import Request
from bench.retraining.worker import work


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_stack_equals_one_by_one_after_fifty_steps(count, tiny, data, recipe):
    alone = [trained(train_together, [run]) for run in runs_of(tiny, data, recipe, JOBS[:count])]
    losses, states = trained(train_stacked, runs_of(tiny, data, replace(recipe, stack=count), JOBS[:count]))
    assert len(losses) == STEPS
    for row, (own, [state]) in enumerate(alone):
        torch.testing.assert_close([step[row] for step in losses], [step[0] for step in own], rtol=1e-3, atol=1e-5)
        moved, found = flat(state), flat(states[row])
        assert (found - moved).norm() < 1e-3 * moved.norm()
    if count > 1:  # which says something, as other models are far away
        other = flat(alone[1][1][0])
        assert (found - other).norm() > 0.05 * other.norm() or count == 2


def test_a_models_bits_depend_on_neither_row_nor_companions(tiny, data, recipe):
    short = replace(recipe, num_steps=4, stack=3)
    found = []
    for order in ([0, 1, 2], [2, 0, 3], [4, 3, 0], [0]):
        runs = runs_of(tiny, data, short, [JOBS[index] for index in order])
        found.append(trained(train_stacked, runs)[1][order.index(0)])
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_one_that_diverges_harms_no_other(tiny, data, recipe):
    short = replace(recipe, num_steps=4, stack=3)
    healthy = trained(train_stacked, runs_of(tiny, data, short, JOBS[:3]))[1]
    runs = runs_of(tiny, data, short, JOBS[:3])
    with torch.no_grad():
        runs[1].weights.fill_(float("nan"))
    losses, states = trained(train_stacked, runs)
    assert [[math.isfinite(loss) for loss in step] for step in losses] == [[True, False, True]] * 4
    for row in (0, 2):
        assert all(torch.equal(states[row][name], healthy[row][name]) for name in healthy[row])


def test_a_stack_goes_on_from_checkpoints_with_the_same_bits(tiny, data, recipe):
    short = replace(recipe, num_steps=6, stack=2)
    whole = trained(train_stacked, runs_of(tiny, data, short, JOBS[:2]))[1]
    first = runs_of(tiny, data, short, JOBS[:2])
    steps = train_stacked(first)
    for _ in range(3):
        next(steps)
    kept = [{name: value.clone() for name, value in run.checkpoint().items()} for run in first]
    second = runs_of(tiny, data, short, JOBS[:2])
    for run, checkpoint in zip(second, kept, strict=True):
        run.restore(checkpoint)
    states = trained(train_stacked, second)[1]
    for one, other in zip(whole, states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InvalidInput, match="at one step are expected"):
        Stack([second[0], runs_of(tiny, data, short, JOBS[2:3])[0]])


def test_a_stacking_study_is_another_version_and_its_ledger_trains_together(tiny, tmp_path, monkeypatch):
    stacked = replace(tiny, recipe=replace(tiny.recipe, stack=3))
    assert stacked.digest != tiny.digest
    assert replace(tiny, recipe=replace(tiny.recipe, stack=1)).digest == tiny.digest
    sizes = []
    built = Stack.__init__
    monkeypatch.setattr(Stack, "__init__", lambda self, runs: (sizes.append(len(runs)), built(self, runs))[1])
    requests = [Request(job) for job in JOBS]
    together = Workspace(stacked, tmp_path / "together", metrics=[])
    assert not together.fulfil(requests)
    assert sizes == [3, 2]
    alone = Workspace(stacked, tmp_path / "alone", metrics=[])
    for job in JOBS:
        one, other = together.ledger.model(job).state(), alone.ledger.model(job).state()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_worker_stacks_what_a_plan_asks_for(tmp_path, monkeypatch):
    from bench.studies import study

    whole = study("tiny")
    stacked = replace(whole, recipe=replace(whole.recipe, stack=2))
    workspace = Workspace(stacked, tmp_path, metrics=[])
    plans.write(workspace.store, workspace.engine, [Request(job) for job in JOBS[:2]])
    sizes = []
    built = Stack.__init__
    monkeypatch.setattr(Stack, "__init__", lambda self, runs: (sizes.append(len(runs)), built(self, runs))[1])
    assert work(tmp_path)
    assert sizes == [2]
    assert all(map(workspace.ledger.is_trained, JOBS[:2]))
