"""Trainings of one study that are stepped together: jobs, runs, and what comes of them."""

import torch

from bench.diffusion.training import TrainingJob, TrainingRun

JOBS = [TrainingJob((), 0), TrainingJob((1, 2, 3), 0), TrainingJob((4,), 1), TrainingJob((), 2), TrainingJob((9,), 3)]
STEPS = 50
CPU = torch.device("cpu")


def runs_of(tiny, data, recipe, jobs, device=CPU):
    return [TrainingRun(tiny.model, data, recipe, job, device=device) for job in jobs]


def trained(how, runs):
    """Its losses, and the models' states."""
    losses = list(how(runs))
    return losses, [run.trained_state() for run in runs]


def flat(state):
    return torch.cat([value.flatten().cpu() for value in state.values()])
