"""Models trained side by side, each by a graph of its own, are those trained one by one; on a GPU too, where one is."""

import math
from dataclasses import replace

import pytest
import torch
from together import CPU, JOBS, STEPS, flat, runs_of, trained

from bench.diffusion import graphs
from bench.diffusion.graphs import Graphs
from bench.diffusion.model import DiffusionModel
from bench.diffusion.stacking import train_stacked
from bench.diffusion.training import Recipe, Training, TrainingJob, train_together
from bench.errors import InvalidInput
from bench.experiments.workspace import Workspace
from bench.foundation.machine import compute_exactly
from bench.records import folder
from bench.registry import methods
from bench.retraining.ledger import Request

GPU = torch.device("cuda")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
devices = pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=on_a_gpu)], ids=["cpu", "cuda"])


def in_turn(made, device):
    """As ``cuda_graphs``, one step after another."""
    steps = []

    def replay(count):
        steps.extend(made(place) for place in range(len(steps), count))
        for step in steps[:count]:
            step()

    return replay


def trainer(device, places=5):
    """Of ``device``: a CPU has no graphs, all else is the same."""
    compute_exactly()
    return Graphs(places, None if device == GPU else in_turn)


@devices
@pytest.mark.parametrize("reference", [CPU, pytest.param(GPU, marks=on_a_gpu)], ids=["cpu", "cuda"])
def test_side_by_side_equals_one_by_one_after_fifty_steps(device, reference, tiny, data, recipe):
    alone = [trained(train_together, [run]) for run in runs_of(tiny, data, recipe, JOBS, reference)]
    losses, states = trained(trainer(device), runs_of(tiny, data, recipe, JOBS, device))
    assert len(losses) == STEPS
    for place, (own, [state]) in enumerate(alone):
        torch.testing.assert_close([step[place] for step in losses], [step[0] for step in own], rtol=1e-3, atol=1e-5)
        assert (flat(states[place]) - flat(state)).norm() < 1e-3 * flat(state).norm()
    assert (flat(states[1]) - flat(states[2])).norm() > 0.05 * flat(states[1]).norm()  # so that says something


@devices
def test_a_models_bits_depend_on_neither_place_nor_companions(device, tiny, data, recipe):
    short, how, found = replace(recipe, num_steps=6), trainer(device), []
    for order in ([0, 1, 2], [2, 0, 3], [4, 3, 1, 2, 0], [0], [0]):
        runs = runs_of(tiny, data, short, [JOBS[index] for index in order], device)
        found.append(trained(how, runs)[1][order.index(0)])
    for other in found[1:]:
        assert torch.equal(flat(found[0]), flat(other))


@devices
def test_one_that_diverges_harms_no_other(device, tiny, data, recipe):
    short = replace(recipe, num_steps=4)
    healthy = trained(trainer(device), runs_of(tiny, data, short, JOBS[:3], device))[1]
    runs = runs_of(tiny, data, short, JOBS[:3], device)
    with torch.no_grad():
        runs[1].weights.fill_(float("nan"))
    losses, states = trained(trainer(device), runs)
    assert [[math.isfinite(loss) for loss in step] for step in losses] == [[True, False, True]] * 4
    assert all(torch.equal(flat(states[place]), flat(healthy[place])) for place in (0, 2))


@devices
def test_it_goes_on_from_checkpoints_with_the_same_bits(device, tiny, data, recipe):
    short = replace(recipe, num_steps=6)
    whole = trained(trainer(device), runs_of(tiny, data, short, JOBS[:2], device))[1]
    first = runs_of(tiny, data, short, JOBS[:2], device)
    steps = trainer(device)(first)
    for _ in range(3):
        next(steps)
    kept = [{name: value.cpu().clone() for name, value in run.checkpoint().items()} for run in first]
    second = runs_of(tiny, data, short, JOBS[:2], device)
    for run, checkpoint in zip(second, kept, strict=True):
        run.restore(checkpoint)
    states = trained(trainer(device), second)[1]
    assert all(torch.equal(flat(one), flat(other)) for one, other in zip(whole, states, strict=True))


def test_places_serve_one_crew_after_another_and_are_made_anew_for_another_recipe(tiny, data, recipe):
    short, how = replace(recipe, num_steps=2), trainer(CPU, 2)
    trained(how, runs_of(tiny, data, short, JOBS[:2], CPU))
    built = how._built
    trained(how, runs_of(tiny, data, short, JOBS[2:3], CPU))
    assert how._built is built
    other = replace(short, learning_rate=2 * short.learning_rate)
    alone = trained(train_together, runs_of(tiny, data, other, JOBS[:1], CPU))[1]
    found = trained(how, runs_of(tiny, data, other, JOBS[:1], CPU))[1]
    assert how._built is not built
    torch.testing.assert_close(flat(found[0]), flat(alone[0]))
    with pytest.raises(InvalidInput, match="3 runs: there are places for 2"):
        list(how(runs_of(tiny, data, short, JOBS[:3], CPU)))


def test_several_captions_are_drawn_as_one_by_one(tiny, data, recipe):
    generator = torch.Generator().manual_seed(0)
    more = torch.randint(-1, len(data.states) - 1, (len(data), 2), generator=generator).sort(1, descending=True).values
    many, short = replace(data, more_of=more), replace(recipe, num_steps=3)
    alone = [trained(train_together, [run])[1][0] for run in runs_of(tiny, many, short, JOBS, CPU)]
    states = trained(trainer(CPU), runs_of(tiny, many, short, JOBS, CPU))[1]
    for one, other in zip(alone, states, strict=True):
        torch.testing.assert_close(flat(one), flat(other))
    first = trained(train_together, runs_of(tiny, data, short, JOBS[:1], CPU))[1][0]
    assert not torch.allclose(flat(alone[0]), flat(first))


def test_small_models_suit_and_large_or_compiled_ones_do_not(tiny, model, monkeypatch):
    assert graphs.suit(model, tiny.recipe)
    assert not graphs.suit(model, replace(tiny.recipe, compile=True))
    assert not graphs.suit(model, replace(tiny.recipe, stack=2))
    monkeypatch.setattr(graphs, "LARGEST", 1000)
    assert not graphs.suit(model, tiny.recipe)


@pytest.mark.parametrize("how", [train_together, train_stacked], ids=["one by one", "stacked"])
def test_an_interrupt_in_mid_step_leaves_no_half_step(how, tiny, tmp_path, monkeypatch):
    whole = Workspace(tiny, tmp_path / "whole", metrics=[]).ledger
    cut = Workspace(tiny, tmp_path / "cut", metrics=[]).ledger
    whole.trainer = cut.trainer = how
    expected, decay, cuts = whole.model(JOBS[1]).state(), Recipe.ema_decay_at, []

    def interrupted(recipe, step):
        if step == 7 and not cuts:
            cuts.append(step)
            raise KeyboardInterrupt
        return decay(recipe, step)

    monkeypatch.setattr(Recipe, "ema_decay_at", interrupted)  # asked after the weights have moved
    with pytest.raises(KeyboardInterrupt):
        cut.model(JOBS[1])
    assert torch.equal(flat(cut.model(JOBS[1]).state()), flat(expected))
    assert cuts == [7]


def test_a_ledger_trains_as_many_together_as_there_are_places_and_each_once(tiny, tmp_path, monkeypatch):
    sizes, built = [], graphs._Graphed.__init__
    monkeypatch.setattr(
        graphs._Graphed, "__init__", lambda self, runs, places: (sizes.append(len(runs)), built(self, runs, places))[1]
    )
    workspace = Workspace(tiny, tmp_path, metrics=[])
    workspace.ledger.trainer, workspace.ledger.together = trainer(CPU, 3), 3
    assert not workspace.fulfil([Request(job) for job in JOBS])
    assert sizes == [3, 2]
    assert all(map(workspace.ledger.is_trained, JOBS))


@on_a_gpu
def test_a_ledger_on_a_gpu_trains_together_what_one_on_a_cpu_trains(tiny, tmp_path):
    found = {}
    for device in ("cpu", "cuda"):
        workspace = Workspace(tiny, tmp_path / device, metrics=[], device=device)
        assert not workspace.fulfil([Request(job) for job in JOBS])
        found[device] = [workspace.ledger.model(job).state() for job in JOBS]
        assert len(list(folder.models(tmp_path / device))) == len(JOBS)
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        assert (flat(one) - flat(other)).norm() < 1e-3 * flat(one).norm()


WITHOUT_MODEL = ("random", "same_caption", "carriers", "clip", "dino", "dinov2", "efficientnet", "minilm_text", "fast")
WITH_MODEL = [name for name in methods.names() if name not in WITHOUT_MODEL and not name.startswith(("abc", "clip"))]


@on_a_gpu
@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_gpu_gives_the_scores_of_a_cpu(name, tiny, data, context, queries):
    training = Training(tiny.model, data, tuple(tiny.dataset.ids), tiny.recipe, TrainingJob((), 0))
    given = replace(context, trainings={"original": training, "judge": training})
    moved = DiffusionModel(tiny.model, device=GPU).load(context.model.state())
    on_gpu = replace(
        given,
        model=moved,
        ensemble=lambda count: [moved] * count,
        cached=lambda key, build: {part: value.cpu() for part, value in build().items()},
    )
    method = methods.create(name)
    own, found = (method.scores(each, queries).double().cpu().flatten() for each in (given, on_gpu))
    assert torch.corrcoef(torch.stack([own, found]))[0, 1] > 0.99
