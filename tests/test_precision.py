"""Training in bfloat16 and with a compiled U-Net: what they change, what they leave, and what a CPU makes of them."""

from dataclasses import asdict, replace

import pytest
import torch
from click.testing import CliRunner

from bench.diffusion import training
from bench.diffusion.model import DiffusionModel
from bench.diffusion.stacking import train_stacked
from bench.diffusion.training import Recipe, TrainingJob, TrainingRun
from bench.errors import InvalidInput
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.foundation.progress import Progress
from bench.retraining import plans
from bench.retraining.ledger import Request
from bench.studies import STUDIES, study
from cli import main

CPU = torch.device("cpu")


def run_of(tiny, data, seed=0, **how):
    """A training of two steps from weights that hear the prompt."""
    recipe = replace(tiny.recipe, num_steps=2, batch_size=8, **how)
    run = TrainingRun(tiny.model, data, recipe, TrainingJob((), seed), device=CPU)
    with torch.no_grad():
        run.weights.copy_(seeds.normal(tuple(run.weights.shape), "precision", seed) / 10)
    return run


def test_bfloat16_is_in_the_products_alone(tiny, data):
    plain, half = run_of(tiny, data), run_of(tiny, data, precision="bfloat16")
    seen = {"inputs": set(), "outputs": set()}

    def note(module, inputs, output):
        seen["outputs"].add(output.dtype)
        seen["inputs"].add(module.weight.dtype)

    for replica in half.replicas:
        for module in replica.unet.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.register_forward_hook(note)
    losses = [plain.advance(), half.advance()]
    assert seen == {"inputs": {torch.float32}, "outputs": {torch.bfloat16}}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {half.weights.dtype, half.average.dtype, half.weights.grad.dtype} == {torch.float32}
    torch.testing.assert_close(half.weights.grad, plain.weights.grad, rtol=0.1, atol=0.02 * plain.weights.grad.std())


def test_bfloat16_is_the_same_each_time_and_goes_on_from_a_checkpoint(tiny, data):
    one, other = (run_of(tiny, data, precision="bfloat16") for _ in range(2))
    assert one.advance() == other.advance()
    later = run_of(tiny, data, precision="bfloat16")
    later.restore(other.checkpoint())
    assert one.advance() == later.advance()
    assert torch.equal(one.weights, later.weights)


def test_a_stack_in_bfloat16_is_near_to_one_by_one(tiny, data):
    how = {"precision": "bfloat16", "num_shards": 1, "stack": 2}
    alone = [run_of(tiny, data, seed, **how) for seed in (1, 2)]
    stacked = [run_of(tiny, data, seed, **how) for seed in (1, 2)]
    losses = next(train_stacked(stacked))
    for run, loss in zip(alone, losses, strict=True):
        assert run.advance() == pytest.approx(loss, rel=0.02)


def test_they_are_parts_of_a_study_only_where_they_are_asked_for():
    plain = STUDIES["tiny"]()
    assert not {"precision", "compile"} & plain.parts["recipe"].keys()
    others = [
        replace(plain, recipe=replace(plain.recipe, **how)) for how in ({"precision": "bfloat16"}, {"compile": True})
    ]
    assert len({plain.digest, *(each.digest for each in others)}) == 3
    assert asdict(Recipe(num_steps=1, batch_size=2, learning_rate=1.0))["precision"] == "float32"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"precision": "float16"}, "one of float32, bfloat16"),
        ({"precision": "bfloat16", "channels_last": True}, "leave out one of them"),
        ({"compile": True, "channels_last": True}, "leave out one of them"),
        ({"compile": True, "stack": 2}, "do not go together"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, how, message):
    with pytest.raises(InvalidInput, match=message):
        replace(tiny.recipe, **how)


def test_a_cpu_does_not_compile_and_says_so(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *given, **named: pytest.fail("compiled"))
    losses = [run_of(tiny, data, compile=yes).advance() for yes in (False, True)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # without fast_forward, which is no part of it
    told = []
    progress = Progress()
    monkeypatch.setattr(progress, "say", told.append)
    compiled = replace(study("tiny"), recipe=replace(study("tiny").recipe, compile=True, num_steps=1))
    workspace = Workspace(compiled, tmp_path / "run", metrics=[], progress=progress)
    assert any("compile = true is for a GPU" in line for line in told)
    plans.write(workspace.store, workspace.engine, [Request(TrainingJob((), 1))])
    monkeypatch.setattr(plans, "study", lambda name: compiled)
    result = CliRunner().invoke(main, ["work", "--results", str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "compile = true is for a GPU" in " ".join(result.output.split())


def test_a_compiled_unet_is_the_same_function(tiny, data, monkeypatch):
    """What a GPU would be given, traced by the compiler's front end, run without its code generator."""
    real, modes = torch.compile, []

    def traced(unet, *, mode):
        modes.append(mode)
        return real(unet, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    plain, compiled = (run_of(tiny, data, num_shards=1) for _ in range(2))
    recipe = replace(compiled.recipe, compile=True)
    compiled.forwards = [
        training.forward_of(replica.unet, recipe, torch.device("cuda")) for replica in compiled.replicas
    ]
    losses = [(plain.advance(), compiled.advance()) for _ in range(2)]
    assert modes == [training.COMPILER_MODE]
    for one, other in losses:
        assert other == pytest.approx(one, rel=1e-4)
    torch.testing.assert_close(compiled.weights, plain.weights, rtol=1e-3, atol=1e-3)
    names = DiffusionModel(tiny.model).unet.state_dict().keys()
    assert compiled.trained_state().keys() == names  # by the U-Net's own names
