"""Stage 2, its training: θ0 = A(D), and θ^-K = A(D \\ D^K) by the same code.

Paired and step-matched (law 4). Every random number of step s is keyed by (seed, s) alone: which images, timesteps,
noises, flips and caption dropouts. A draw of a removed image goes to a kept one by a second keyed stream, drawn again
until it hits a kept image, so that two removal sets share every draw that neither removed. The removal is the only
difference between two models of one seed. Where images have several captions, a third stream says which one of its
captions a drawn image has: each with the same probability.

Fast on few cores: all weights are views of one flat vector, so that clipping, AdamW and the running average are a
handful of operations; the batch is cut into fixed shards, each run by its own thread on its own replica (which
shares the weights and owns its gradient), and the shards' gradients are added in order. The bits of a model
therefore do not depend on the number of threads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bench.data.encoded import encode, encoded, opened
from bench.data.source import DataSource
from bench.diffusion.channels_last import channels_last_forward
from bench.diffusion.fast_unet import fast_forward
from bench.diffusion.fine_tuning import Tuning
from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.errors import InvalidInput, TrainingFailed
from bench.foundation import seeds
from bench.foundation.machine import parallel

PRECISIONS = ("float32", "bfloat16")
COMPILER_MODE = "max-autotune-no-cudagraphs"
MOST_STACKED = 4096
"""Models in one stack: more than any device holds."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained; part of the study digest.

    Attributes:
        num_steps: optimizer steps, the same for every removal set (step-matched).
        batch_size: examples a step.
        learning_rate: peak of the schedule: linear warm-up, then a cosine to zero.
        warmup: share of the steps that warm up.
        betas, weight_decay, epsilon: of AdamW. A larger ε makes a training smoother in the weight of an image
            (docs/log/2026-11-27-magic.md).
        gradient_clip: largest 2-norm of a gradient.
        ema_decay: of the running average of the weights, which is the trained model.
        caption_dropout: share of the examples trained with the empty prompt, for guidance.
        weight_power: p of the weights ᾱ_t^−p of the training loss; 0 for the plain DDPM loss. The losses that are
            reported or attributed are never weighted.
        num_shards: parts of a batch whose gradients are computed side by side.
        channels_last: whether training runs the forward pass of ``bench.diffusion.channels_last``, faster at 16×16
            pixels; the same function, but not the same rounding.
        stack: models that are trained in one stack (``bench.diffusion.stacking``); 1 for one by one.
        precision: "float32", or "bfloat16" for a U-Net that multiplies in it (autocast); weights, their average, the
            optimizer and the loss stay in float32.
        compile: whether torch compiles the U-Net on a GPU. On a CPU it is not done: it gained nothing there
            (docs/log/2026-11-23-decisions.md), and the steps are the same up to rounding.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    epsilon: float = 1e-8
    gradient_clip: float = 1.0
    ema_decay: float = 0.99
    caption_dropout: float = 0.1
    weight_power: float = 0.0
    num_shards: int = 2
    channels_last: bool = False
    stack: int = 1
    precision: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1 or self.batch_size % self.num_shards:
            raise InvalidInput(f"{self}: num_steps ≥ 1 and a batch_size divisible by num_shards are expected.")
        if not 0 < self.epsilon < math.inf:
            raise InvalidInput(f"epsilon = {self.epsilon}: a number above 0 is expected, such as 1e-8.")
        if not 1 <= self.stack <= MOST_STACKED:
            raise InvalidInput(f"stack = {self.stack}: 1 to {MOST_STACKED} models are expected.")
        if self.precision not in PRECISIONS:
            raise InvalidInput(f"precision = '{self.precision}': one of {', '.join(PRECISIONS)} is expected.")
        if self.channels_last and (self.precision != "float32" or self.compile):
            raise InvalidInput("channels_last is a forward pass in float32, not compiled: leave out one of them.")
        if self.stack > 1 and self.compile:
            raise InvalidInput("compile and a stack do not go together: leave out one of them.")

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which a U-Net runs on ``device``."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def ignored(self, device: torch.device) -> str:
        """What of the recipe is not done on ``device``, in a sentence; "" where all of it is."""
        if self.compile and device.type == "cpu":
            return "compile = true is for a GPU: on a CPU the U-Net runs as it is."
        return ""

    def loss_weights(self, model: DiffusionModel, timesteps: Int[Tensor, ...]) -> Float[Tensor, ...]:
        """ᾱ_t^−p of each of ``timesteps``."""
        return model.alphas_cumprod[timesteps].pow(-self.weight_power)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0)."""
        done = (step + 1) / self.num_steps
        if done < self.warmup:
            return self.learning_rate * done / self.warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

    def ema_decay_at(self, step: int) -> float:
        """Decay of the running average after optimizer step ``step``: less while little has been averaged."""
        return min(self.ema_decay, (1 + step) / (10 + step))

    def optimizer(self, weights: nn.Parameter) -> torch.optim.AdamW:
        """AdamW of ``weights``; set its learning rate before each step."""
        return torch.optim.AdamW(
            [weights],
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            fused=True,
        )


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A data set as a model sees it, computed once: latents of every image and its mirror image, text states.

    Attributes:
        latents: images × 2 (as it is, mirrored) × channels × rows × columns.
        states: one text state for each different caption, then the empty prompt's.
        caption_of: row of ``states`` for each image.
        more_of: rows of the further captions of each image, −1 where there is none; None where each has one caption.
        empty: the empty prompt's state where ``states`` do not hold it.
    """

    latents: Float[Tensor, "images 2 channels rows columns"]
    states: Float[Tensor, "captions tokens dim"]
    caption_of: Int[Tensor, " images"]
    more_of: Int[Tensor, "images more"] | None = None
    empty: Float[Tensor, "tokens dim"] | None = None

    @classmethod
    def kept(
        cls,
        place: Path,
        source: DataSource,
        model: DiffusionModel,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> TrainingData:
        """Encoded with the autoencoder and the text encoder of ``model`` in the folder ``place``, there already or now.

        Raises DamagedArtifact where what is there is not what was written.
        """
        if not place.exists():
            encode(place, source, model.autoencoder.encode, model.text_encoder.encode, progress)
        return cls(*opened(place))

    @classmethod
    def of(cls, dataset: DataSource, model: DiffusionModel) -> TrainingData:
        """The same in memory, for a data set that is small."""
        return cls(*encoded(dataset, model.autoencoder.encode, model.text_encoder.encode))

    def as_read_by(self, model: DiffusionModel, captions: Sequence[str]) -> TrainingData:
        """The same with the states of ``captions``, one for each image, in the words that ``model`` has learned."""
        if not model.text_encoder.learned:
            return self
        if self.more_of is not None:
            raise InvalidInput("A new word is learned from images with one caption each: leave out all_captions.")
        texts = dict(zip(self.caption_of.tolist(), captions, strict=True))
        rows = [row for row, caption in texts.items() if model.text_encoder.knows_learned(caption)]
        states = self.states.clone()
        states[rows] = model.text_encoder.encode([texts[row] for row in rows]).detach().cpu()
        return replace(self, states=states)

    def __len__(self) -> int:
        return len(self.caption_of)

    @property
    def empty_state(self) -> int:
        """The row of the empty prompt."""
        return len(self.states) - (self.empty is None)

    def on(self, device: torch.device) -> TrainingData:
        """The same on ``device``."""
        parts: dict[str, Any] = {name: part if part is None else part.to(device) for name, part in vars(self).items()}
        return replace(self, **parts)

    def only(self, indices: Int[Tensor, " some"]) -> TrainingData:
        """The images of ``indices``, in that order."""
        more = None if self.more_of is None else self.more_of[indices]
        return replace(self, latents=self.latents[indices], caption_of=self.caption_of[indices], more_of=more)

    def states_at(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch tokens dim"]:
        """Text states number ``rows``, in float32."""
        if self.empty is None:
            return self.states[rows].float()
        found = self.states[rows.clamp(max=len(self.states) - 1)].float()
        found[rows == self.empty_state] = self.empty
        return found

    def states_of(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch tokens dim"]:
        """Text states of images, of their first captions."""
        return self.states_at(self.caption_of[indices])

    def num_captions(self, indices: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """How many captions images have."""
        more = torch.zeros_like(indices) if self.more_of is None else (self.more_of[indices] >= 0).sum(1)
        return more + 1

    def caption_rows(self, indices: Int[Tensor, " batch"], numbers: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Rows of ``states`` of caption ``numbers`` (from 0) of images."""
        first = self.caption_of[indices]
        if self.more_of is None:
            return first
        return torch.where(numbers > 0, self.more_of[indices, (numbers - 1).clamp(min=0)], first)

    def drawn_rows(self, indices: Int[Tensor, " batch"], places: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Rows of ``states`` of the caption at each of ``places`` (0 to 1) among those of an image."""
        return self.caption_rows(indices, (places * self.num_captions(indices)).long())

    def drawn_states(self, indices: Int[Tensor, " batch"], *key: seeds.KeyPart) -> Float[Tensor, "batch tokens dim"]:
        """Text states of images, each of one of its captions, drawn by ``key``."""
        if self.more_of is None:
            return self.states_of(indices)
        places = torch.from_numpy(seeds.generator("caption", *key).random(len(indices)))
        return self.states_at(self.drawn_rows(indices, places))

    def trained_rows(self, draws: Draws) -> Int[Tensor, " batch"]:
        """Rows of ``states`` that a training step reads: the empty prompt's where the caption is dropped."""
        return torch.where(draws.captionless, self.empty_state, self.drawn_rows(draws.images, draws.captions))


@dataclass(frozen=True)
class TrainingJob:
    """One model to train: which images are left out, and the seed of its initial weights and draws."""

    removed: tuple[int, ...]
    seed: int


class Draws(NamedTuple):
    """The random numbers of one step; ``captions`` are places among the captions of an image, from 0 to 1."""

    images: Int[Tensor, " batch"]
    timesteps: Int[Tensor, " batch"]
    mirrored: Int[Tensor, " batch"]
    captionless: Bool[Tensor, " batch"]
    noise: Float[Tensor, "batch channels rows columns"]
    captions: Float[Tensor, " batch"]


class DrawStream:
    """What is drawn at each step, as a function of (seed, step) and of the removed images.

    Where there are ``exemplars``, the first places of each batch are drawn from them and the others from the rest, and
    a draw of a removed image goes to a kept one of its kind, where there is any.
    """

    def __init__(
        self, job: TrainingJob, num_images: int, model: DiffusionModel, recipe: Recipe, tuning: Tuning | None = None
    ) -> None:
        self.seed, self.num_images, self.recipe = job.seed, num_images, recipe
        self.shape = (recipe.batch_size, *model.latent_shape)
        self.num_timesteps = model.config.num_timesteps
        self.is_removed = np.zeros(num_images, bool)
        self.is_removed[list(job.removed)] = True
        if self.is_removed.all():
            raise InvalidInput(f"All {num_images} images are removed; leave at least one to train on.")
        every = np.arange(num_images)
        self.pools = [(recipe.batch_size, every)]
        if tuning is not None and tuning.exemplars:
            chosen = np.array(tuning.exemplars)
            count = round(tuning.how.exemplar_share * recipe.batch_size)
            self.pools = [(count, chosen), (recipe.batch_size - count, np.setdiff1d(every, chosen))]
        if any(count and not len(pool) for count, pool in self.pools):
            raise InvalidInput(
                "All images are exemplars, and a share of each batch is to be others: add images that keep the prior "
                "knowledge of the model, or give exemplar_share=1."
            )
        self.kept_pools = [(n, every if self.is_removed[pool].all() else pool) for n, pool in self.pools]

    def at(self, step: int) -> Draws:
        """The draws of optimizer step ``step``."""
        drawn = self.before_removals(step)
        [images] = self.redirected([self], drawn.images, step)
        return drawn._replace(images=images)

    def before_removals(self, step: int) -> Draws:
        """What is drawn at ``step`` whatever is removed: the same for all models of a seed."""
        stream = seeds.generator("training", self.seed, step)
        size = self.recipe.batch_size
        images = _chosen(stream, self.pools)
        timesteps = stream.integers(0, self.num_timesteps, size)
        mirrored = stream.integers(0, 2, size)
        captionless = stream.random(size) < self.recipe.caption_dropout
        noise = stream.standard_normal(self.shape, dtype=np.float32)
        return Draws(
            torch.from_numpy(images),
            torch.from_numpy(timesteps),
            torch.from_numpy(mirrored),
            torch.from_numpy(captionless),
            torch.from_numpy(noise),
            torch.from_numpy(seeds.generator("training-captions", self.seed, step).random(size)),
        )

    def without_own(self, step: int, own: Draws) -> Draws:
        """``own`` of ``step``, each with the image that it goes to when its own is removed and that one is not."""
        others = _chosen(seeds.generator("redirect", self.seed, step), self.kept_pools)
        return own._replace(images=torch.from_numpy(others))

    @staticmethod
    def redirected(
        streams: Sequence[DrawStream], drawn: Int[Tensor, " batch"], step: int
    ) -> Int[Tensor, "streams batch"]:
        """The images that each of ``streams`` draws at ``step``: those of ``drawn`` that it removed go to kept ones.

        Args:
            streams: of one seed, of the same images.
            drawn: the images before removals.
            step: of the training.
        """
        images = np.broadcast_to(drawn.numpy(), (len(streams), len(drawn)))
        second: np.random.Generator | None = None
        while (lost := np.stack([own.is_removed[row] for own, row in zip(streams, images, strict=True)])).any():
            second = second or seeds.generator("redirect", streams[0].seed, step)
            images = np.where(lost, _chosen(second, streams[0].kept_pools), images)
        return torch.from_numpy(np.array(images))


def _chosen(stream: np.random.Generator, pools: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """So many members of each pool, with replacement."""
    return np.concatenate([pool[stream.integers(0, len(pool), count)] for count, pool in pools if count])


class TrainingRun:
    """One training under way, advanced a step at a time so that the caller owns progress, checkpoints and pauses.

    Args:
        config: of the model.
        data: all of D; the job says what is left out.
        recipe: how to train.
        job: what to train.
        device: where.
        tuning: where it starts from given weights.

    Attributes:
        is_whole: False while a step is half done: an interrupt there leaves nothing to go on from.
    """

    def __init__(
        self,
        config: ModelConfig,
        data: TrainingData,
        recipe: Recipe,
        job: TrainingJob,
        *,
        device: torch.device,
        tuning: Tuning | None = None,
    ) -> None:
        self.model = DiffusionModel(config, seed=job.seed, device=device)
        self.data, self.recipe, self.job, self.tuning = data, recipe, job, tuning
        self.draws = DrawStream(job, len(data), self.model, recipe, tuning)
        self.step, self.is_whole = 0, True
        self.trainee = Trainee(self.model, tuning)
        weights = torch.cat([weight.detach().flatten() for weight in self.trainee.moving()])
        self.weights = nn.Parameter(weights)
        self.average = weights.clone()
        self.replicas, self.gradients = _replicas(self.trainee, weights, recipe.num_shards)
        self.forwards = [forward_of(replica.unet, recipe, device) for replica in self.replicas]
        self.optimizer = recipe.optimizer(self.weights)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.recipe.num_steps

    def advance(self) -> float:
        """Do one optimizer step; returns the batch's mean loss."""
        draws = self.draws.at(self.step)
        shards = range(self.recipe.num_shards)
        losses = parallel(lambda shard: self._backward(draws, shard), shards)
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise TrainingFailed(f"The loss became {loss} at step {self.step}; lower the recipe's learning_rate.")
        self.weights.grad = torch.stack(self.gradients).sum(0).div_(len(losses))
        nn.utils.clip_grad_norm_([self.weights], self.recipe.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(self.step)
        self.is_whole = False
        self.optimizer.step()
        self.average.lerp_(self.weights.detach(), 1 - self.recipe.ema_decay_at(self.step))
        self.step += 1
        self.is_whole = True
        return loss

    def _backward(self, draws: Draws, shard: int) -> float:
        """Gradient of one shard of the batch, into its own vector."""
        size = self.recipe.batch_size // self.recipe.num_shards
        part = slice(shard * size, (shard + 1) * size)
        own, device = Draws(*(each[part] for each in draws)), self.model.device
        self.gradients[shard].zero_()
        inputs = (
            self.data.latents[own.images, own.mirrored].to(device),
            self._states(own.images, self.data.trained_rows(own), self.replicas[shard]),
            own.timesteps.to(device),
            own.noise.to(device),
        )
        with self.recipe.autocast(device):
            losses = self.model.losses(*inputs, unet=self.forwards[shard])
        (losses * self.recipe.loss_weights(self.model, inputs[2])).mean().backward()
        return float(losses.detach().mean())

    def _states(
        self, images: Int[Tensor, " batch"], rows: Int[Tensor, " batch"], replica: Trainee
    ) -> Float[Tensor, "batch tokens dim"]:
        """Text states number ``rows`` of ``images``; those with the new word by its vector of now."""
        states = self.data.states_at(rows).to(self.model.device)
        if self.tuning is None or replica.word is None:
            return states
        own = [
            place
            for place, (image, row) in enumerate(zip(images.tolist(), rows.tolist(), strict=True))
            if image in self.tuning.texts and row != self.data.empty_state
        ]
        if not own:
            return states
        encoder = self.model.text_encoder.with_words({self.tuning.how.word: replica.vector().cpu()})
        texts = [self.tuning.texts[int(images[place])] for place in own]
        return states.index_put((torch.tensor(own, device=states.device),), encoder.encode(texts).to(states.device))

    @torch.no_grad()
    def trained_state(self) -> dict[str, Tensor]:
        """The averaged weights by name, with the vector of the new word where there is one."""
        nn.utils.vector_to_parameters(self.average, self.trainee.moving())
        if self.tuning is not None and self.trainee.word is not None:
            words = {self.tuning.how.word: self.trainee.vector().cpu()}
            self.model.text_encoder = self.model.text_encoder.with_words(words)
        weights = {name: attrgetter(name)(self.trainee.unet) for name in self.model.unet.state_dict()}
        return {name: weight.clone() for name, weight in (self.model.state() | weights).items()}

    def checkpoint(self) -> dict[str, Tensor]:
        """Everything that a bit-exact continuation needs."""
        moments = self.optimizer.state[self.weights]
        return {
            "step": torch.tensor(self.step),
            "weights": self.weights.detach(),
            "average": self.average,
            **{f"adamw.{name}": value for name, value in moments.items()},
        }

    def restore(self, checkpoint: Mapping[str, Tensor]) -> None:
        """Go on from ``checkpoint``."""
        self.step = int(checkpoint["step"])
        with torch.no_grad():
            self.weights.copy_(checkpoint["weights"])
        self.average.copy_(checkpoint["average"])
        moments = {name[6:]: value for name, value in checkpoint.items() if name.startswith("adamw.")}
        self.optimizer.state[self.weights] = {
            name: value.clone() if name == "step" else value.to(self.weights.device) for name, value in moments.items()
        }


@dataclass(frozen=True, eq=False)
class Training:
    """A training that can be done again: everything that the bits of a model depend on.

    Attributes:
        config: of the model.
        data: all of D, as the training saw it, ids: of its images, in the order in which they are drawn.
        recipe: how.
        job: what is left out, and the seed.
    """

    config: ModelConfig
    data: TrainingData
    ids: tuple[str, ...]
    recipe: Recipe
    job: TrainingJob

    def run(self, device: torch.device) -> TrainingRun:
        """The training at its beginning."""
        return TrainingRun(self.config, self.data, self.recipe, self.job, device=device)

    def draws(self, model: DiffusionModel) -> DrawStream:
        """What it draws for ``model``, which has the shape of its own."""
        return DrawStream(self.job, len(self.data), model, self.recipe)


@runtime_checkable
class Trainer(Protocol):
    """Steps trainings until all are finished; yields the losses of those under way after each step."""

    def __call__(self, runs: Sequence[TrainingRun]) -> Iterator[list[float]]: ...


def train_together(runs: Sequence[TrainingRun]) -> Iterator[list[float]]:
    """Advance many trainings in step until all are finished; yields their losses after each step.

    The runs share data, recipe and device and differ in what they leave out. Here they take turns, which is best on
    a CPU; ``bench.diffusion.stacking`` stacks their weights behind this same call.
    """
    while any(not run.finished for run in runs):
        yield [run.advance() for run in runs if not run.finished]


def forward_of(unet: Any, recipe: Recipe, device: torch.device) -> Any:
    """The forward pass of ``unet`` in training, by the recipe."""
    if recipe.channels_last:
        return channels_last_forward(unet)
    if recipe.compile and device.type != "cpu":
        return torch.compile(unet, mode=COMPILER_MODE)
    return unet if recipe.precision != "float32" or recipe.compile else fast_forward(unet)


class Trainee(nn.Module):
    """What moves in a training: a U-Net or a part of it, and the vector of a new word where there is one.

    Args:
        model: whose U-Net; where there is a ``tuning`` it takes the weights of the start, and its U-Net is copied.
        tuning: says what moves; without it all weights do.
    """

    def __init__(self, model: DiffusionModel, tuning: Tuning | None) -> None:
        super().__init__()
        self.unet, self.rate = model.unet, 1.0
        self.word: nn.Parameter | None = None
        if tuning is not None:
            self.unet = tuning.how.trainable(copy.deepcopy(tuning.how.begin(model).unet))
            self.rate = tuning.how.word_rate
            if tuning.how.word:
                encoder = model.text_encoder
                start = encoder.vectors[encoder.words[tuning.how.word]]
                self.word = nn.Parameter((start / self.rate).to(model.device))

    def vector(self) -> Float[Tensor, " dim"]:
        """Of the new word: kept divided by its rate, so that a step of the optimizer moves it so much faster."""
        assert self.word is not None
        return self.word * self.rate

    def moving(self) -> list[nn.Parameter]:
        """The parameters that ask for gradients."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def views(flat: Float[Tensor, "*rows width"], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Of ``flat``, the places of ``parameters`` one after another, each rows × its shape; the rest is padding."""
    found, start = [], 0
    for parameter in parameters:
        stop = start + parameter.numel()
        found.append(flat[..., start:stop].view(*flat.shape[:-1], *parameter.shape))
        start = stop
    return found


def _replicas(trainee: Trainee, weights: Float[Tensor, " weights"], count: int) -> tuple[list[Trainee], list[Tensor]]:
    """``count`` copies of ``trainee`` whose weights are views of one vector, each with its own vector of gradients."""
    replicas, gradients = [], []
    for _ in range(count):
        replica, gradient = copy.deepcopy(trainee), torch.zeros_like(weights)
        moving = list(replica.moving())
        for parameter, own, slope in zip(moving, views(weights, moving), views(gradient, moving), strict=True):
            parameter.data, parameter.grad = own, slope
        replicas.append(replica)
        gradients.append(gradient)
    return replicas, gradients
