"""Many small models at once on a GPU: one CUDA graph of each one's forward and backward pass, replayed side by side.

A small model leaves a GPU idle: a step is a thousand kernels of a few microseconds, and the processor takes longer to
launch each than the GPU to run it. A CUDA graph (CUDA C++ Programming Guide, "CUDA Graphs") launches all of them at
once, and the graphs of other models run beside it on streams of their own. Unlike in a stack
(``bench.diffusion.stacking``) every model has its own kernels, so that its bits depend on nobody it is trained with,
and it is the same version of the study as a model that is trained by itself.

``Graphs`` is a trainer as ``bench.diffusion.training.train_together`` is. Its places (weights, inputs and a graph) are
made once and serve one model after another. AdamW, the running average and clipping are those of a stack, one kernel
for all models. The draws that models of one seed share are made and sent once, while the GPU is at the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.stacking import Stack, aligned
from bench.diffusion.training import DrawStream, Recipe, TrainingRun, forward_of, views
from bench.errors import InvalidInput

MOST_TOGETHER = 64
"""Models at once."""
LARGEST = 10**7
"""Weights of a model that is trained beside others; a larger one fills a GPU by itself."""
RESIDENT_SHARE = 0.25
"""Of a GPU's free memory that the data may take; larger data stay on the host."""
WARM_UPS = 2

Step = Callable[[], None]
Replay = Callable[[int], None]
"""Does the steps of the first so many places."""
Recorder = Callable[[Callable[[int], Step], torch.device], Replay]
"""Given what makes the step of a place, and the device."""


class Graphs:
    """Trains runs of one study together, each by a graph of its own.

    Args:
        places: models at once.
        recorded: CUDA graphs by default.
    """

    def __init__(self, places: int = MOST_TOGETHER, recorded: Recorder | None = None) -> None:
        self.places, self.recorded = places, recorded or cuda_graphs
        self._built: _Places | None = None

    def __call__(self, runs: Sequence[TrainingRun]) -> Iterator[list[float]]:
        """Advance ``runs``, at most as many as there are places, until all are finished; yields their losses.

        One that diverges has a loss that is not finite from then on, and harms no other. The weights of a run lie in
        its place until other runs come; its average, the trained model, is its own.
        """
        if len(runs) > self.places:
            raise InvalidInput(f"{len(runs)} runs: there are places for {self.places} at once.")
        if self._built is None or not self._built.serves(runs[0]):
            self._built = None  # gives its memory back first
            self._built = _Places(self.places, runs[0], self.recorded)
        together = _Graphed(runs, self._built)
        while not together.first.finished:
            yield together.advance()


def suit(model: DiffusionModel, recipe: Recipe) -> bool:
    """Whether models such as ``model`` gain by it: small ones, trained one by one as they are."""
    size = sum(parameter.numel() for parameter in model.unet.parameters())
    return recipe.stack == 1 and not recipe.compile and size <= LARGEST


class _Batch(NamedTuple):
    """What the models at some places read at a step; ``rows`` are those of the text states."""

    places: list[int]
    images: Int[Tensor, "places batch"]
    mirrored: Int[Tensor, "places batch"]
    rows: Int[Tensor, "places batch"]
    timesteps: Int[Tensor, " batch"]
    noise: Float[Tensor, "batch channels rows columns"]


class _Places:
    """Memory and graphs for ``count`` models of the kind of ``run``."""

    def __init__(self, count: int, run: TrainingRun, recorded: Recorder) -> None:
        self.model, self.recipe, self.data, self.device = run.model, run.recipe, run.data, run.model.device
        self.kept_at = self._kept_at()
        self.on_hand = run.data.on(self.kept_at)
        self.weights = aligned([run.weights.detach()] * count)
        self.gradients = torch.zeros_like(self.weights)
        self.losses = torch.zeros(count, device=self.device)
        shape = (count, run.recipe.batch_size)
        self.latents = torch.zeros(*shape, *run.model.latent_shape, device=self.device)
        self.noise = torch.zeros_like(self.latents)
        self.timesteps = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.states = torch.zeros(*shape, *self.data.states.shape[1:], device=self.device)
        self.replay = recorded(self._step, self.device)

    def _kept_at(self) -> torch.device:
        """Where the data lie: on the GPU where there is room for them."""
        if self.device.type != "cuda":
            return self.device
        size = sum(part.numel() * part.element_size() for part in (self.data.latents, self.data.states))
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.device if size < RESIDENT_SHARE * free else torch.device("cpu")

    def serves(self, run: TrainingRun) -> bool:
        """Whether ``run`` is of the kind that these were made for."""
        own = self.model.config, self.recipe, self.device
        return own == (run.model.config, run.recipe, run.model.device) and self.data is run.data

    def _step(self, place: int) -> Step:
        """The forward and backward pass of the model at ``place``: from what it reads to its loss and gradient."""
        model = DiffusionModel(self.model.config, device=self.device)
        parameters = list(model.unet.parameters())
        for parameter, own in zip(parameters, views(self.weights[place], parameters), strict=True):
            parameter.data = own
        own_weights = sum(parameter.numel() for parameter in parameters)
        unet = forward_of(model.unet, self.recipe, self.device)
        inputs = self.latents[place], self.states[place], self.timesteps[place], self.noise[place]

        def step() -> None:
            with self.recipe.autocast(self.device):
                losses = model.losses(*inputs, unet=unet)
            weighted = losses * self.recipe.loss_weights(model, inputs[2])
            gradients = torch.autograd.grad(weighted.mean(), parameters)
            torch.cat([each.flatten() for each in gradients], out=self.gradients[place, :own_weights])
            self.losses[place].copy_(losses.detach().mean())

        return step

    def drawn(self, runs: Sequence[TrainingRun], step: int) -> list[_Batch]:
        """What ``runs``, place by place, read at ``step``: a batch for the models of each seed."""
        places: dict[int, list[int]] = {}
        for place, run in enumerate(runs):
            places.setdefault(run.job.seed, []).append(place)
        return [self._drawn([runs[place].draws for place in chosen], chosen, step) for chosen in places.values()]

    def _drawn(self, streams: Sequence[DrawStream], places: list[int], step: int) -> _Batch:
        """What models of one seed read."""
        drawn = streams[0].before_removals(step)
        images = DrawStream.redirected(streams, drawn.images, step)
        captionless, captions = (part.repeat(len(places)) for part in (drawn.captionless, drawn.captions))
        every = drawn._replace(images=images.flatten(), captionless=captionless, captions=captions)
        rows = self.data.trained_rows(every).view_as(images)
        found = _Batch(places, images, drawn.mirrored.expand_as(images), rows, drawn.timesteps, drawn.noise)
        if self.device.type != "cuda":
            return found
        return _Batch(places, *(part.contiguous().pin_memory() for part in found[1:]))

    @torch.no_grad()
    def write(self, batches: Sequence[_Batch]) -> None:
        """Put what is read into its place."""
        for batch in batches:
            images, mirrored, rows = (part.to(self.kept_at, non_blocking=True) for part in batch[1:4])
            where = torch.tensor(batch.places, device=self.device)
            self.latents[where] = self.on_hand.latents[images, mirrored].to(self.device)
            states = self.on_hand.states_at(rows.flatten()).unflatten(0, rows.shape)
            self.states[where] = states.to(self.device)
            self.timesteps[where] = batch.timesteps.to(self.device, non_blocking=True)
            self.noise[where] = batch.noise.to(self.device, non_blocking=True)


class _Graphed(Stack):
    """Runs at the places, one graph each."""

    def __init__(self, runs: Sequence[TrainingRun], places: _Places) -> None:
        super().__init__(runs, size=len(runs), place=places.weights[: len(runs)])
        self.places = places
        self._ahead = places.drawn(runs, self.first.step)

    def gradient(self, step: int) -> tuple[Float[Tensor, " stack"], Float[Tensor, "stack width"]]:
        """Mean losses of all runs, and their gradients."""
        count = len(self.runs)
        self.places.write(self._ahead)
        self.places.replay(count)
        if step + 1 < self.recipe.num_steps:
            self._ahead = self.places.drawn(self.runs, step + 1)  # while the GPU works
        return self.places.losses[:count], self.places.gradients[:count]


def cuda_graphs(made: Callable[[int], Step], device: torch.device) -> Replay:
    """A CUDA graph of each place's step, recorded when it is first asked for, each replayed on a stream of its own."""
    graphs: list[tuple[torch.cuda.CUDAGraph, torch.cuda.Stream, Step]] = []

    def record(step: Step, stream: torch.cuda.Stream) -> None:
        if not graphs:  # libraries set themselves up, which cannot be recorded
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        graphs.append((graph, stream, step))  # the step, as a graph reads the tensors that it was recorded with

    def replay(count: int) -> None:
        for place in range(len(graphs), count):
            record(made(place), torch.cuda.Stream(device))
        main = torch.cuda.current_stream(device)
        for graph, stream, _ in graphs[:count]:
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                graph.replay()
        for _, stream, _ in graphs[:count]:
            main.wait_stream(stream)

    return replay
