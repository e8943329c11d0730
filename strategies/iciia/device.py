"""ICIIA's device half: it scores its images as they come; only what is right goes up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from dccl_flower.codecs import State
from dccl_flower.data.batches import Batches, FixedBatches
from dccl_flower.device import Device
from dccl_flower.files import code_digest
from dccl_flower.learning.client_attention import Client, Serving, seen_by, take_step
from dccl_flower.learning.controlled import LocalRecipe
from dccl_flower.learning.fusion import Fusion
from dccl_flower.method import Answer, Ask
from dccl_flower.models.features import Featured
from dccl_flower.models.frozen import Exchanged
from dccl_flower.strategies.exchange import merge_answers
from dccl_flower.strategies.iciia.adaptations import Adaptation, Oracle, Sight
from dccl_flower.strategies.iciia.cloud import MODULE

BACKBONE, CORRECT = "backbone", "correct"


@dataclass(frozen=True)
class Score:
    """Score the device's new images; the module is the ask's state, or else kept by hash."""

    serving: Serving
    module_is_state: bool = False


@dataclass(frozen=True)
class Train:
    """Train the module on the device's own labelled images, in batches of so many."""

    recipe: LocalRecipe
    batch_size: int


class IciiaDevice:
    """Scores, and trains where that is federated, in modules that all devices of a process share.

    ``load_new`` gives the images that a device meets, which are other ones than it may train on.
    """

    turns: Sequence[type] = (Score, Train)

    def __init__(
        self,
        backbone: Featured,
        module: nn.Module,
        adaptation: Adaptation,
        load_new: Callable[[int], Batches],
        torch_device: torch.device | str = "cpu",
    ) -> None:
        self._backbone = backbone
        self._module = module.to(torch_device)
        self._exchanged = Exchanged(self._module)
        self._adaptation = adaptation
        self._load_new = load_new
        self._torch_device = torch_device
        self._loaded = ""

    def state_like(self, turn: Score | Train, device: Device) -> State:
        """Return the module's names and shapes where a turn brings it as a state, else nothing."""
        if isinstance(turn, Score) and not turn.module_is_state:
            return {}
        return self._exchanged.state

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Load what the ask brought, and answer it."""
        digest = ask.keep[BACKBONE].digest
        if digest != self._loaded:
            self._backbone.load_state_dict(ask.keep[BACKBONE].state())
            self._loaded = digest
        if MODULE in ask.keep:
            self._module.load_state_dict(ask.keep[MODULE].state())
        else:
            self._exchanged.load(ask.state)
        answer = self._score if isinstance(ask.turn, Score) else self._train
        return answer(ask.turn, device)

    def merge(self, turn: Score | Train, answers: Sequence[Answer]) -> Answer:
        """Return devices' copies as their average, or what they have right in all."""
        if isinstance(turn, Train):
            return merge_answers(answers, Fusion())
        correct = torch.stack([each.beside[CORRECT] for each in answers]).sum(0)
        total = sum(each.count for each in answers)
        return Answer(answers[0].device, {}, total, {}, {CORRECT: correct})

    def _score(self, turn: Score, device: Device) -> Answer:
        new = self._client(self._load_new(device.number), device)
        sight = Sight(
            device.number,
            new,
            device.batches.targets,
            lambda: self._client(device.batches, device),
            device.generator("score"),
            turn.serving,
        )
        with device.isolated("score"):
            correct = correct_of(self._adaptation, self._module, sight)
        count = len(new.labels)
        metrics = {"accuracy": correct[0].item() / count}
        return Answer(device.number, {}, count, metrics, {CORRECT: correct})

    def _train(self, turn: Train, device: Device) -> Answer:
        own, recipe, module = self._client(device.batches, device), turn.recipe, self._module
        optimizer = torch.optim.SGD(
            module.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
        )
        generator, loss = device.generator("train"), 0.0
        module.train()
        with device.isolated("train"):
            for rows in islice(_rows(len(own.labels), turn.batch_size, generator), recipe.steps):
                batch = own.taken(rows)
                loss += take_step(module, batch, optimizer, recipe.max_grad_norm)
        module.eval()
        metrics = {"loss": loss / recipe.steps}
        return Answer(device.number, self._exchanged.snapshot(), len(own.labels), metrics)

    def _client(self, batches: Batches, device: Device) -> Client:
        """Return images as the backbone sees them, computed once where nothing changes them."""
        if not batches.is_fixed:
            return seen_by(self._backbone, batches, self._torch_device)
        fixed = cast(FixedBatches, batches)
        name = f"seen-{self._loaded[:16]}-{fixed.content_digest()}-{code_digest()[:16]}"
        kept = device.memory.kept(name, of_all_runs=True)
        if kept is None:
            seen = seen_by(self._backbone, fixed, self._torch_device)
            kept = {"features": seen.features, "logits": seen.logits}
            device.memory.keep(name, kept, of_all_runs=True)
        features, logits, labels = (
            tensor.to(self._torch_device)
            for tensor in (kept["features"], kept["logits"], fixed.targets)
        )
        return Client(features, logits, labels)


def correct_of(adaptation: Adaptation, module: nn.Module, sight: Sight) -> Tensor:
    """Return how many images are right: adapted, by the backbone, and by the oracle."""
    logits = [
        adaptation.logits(module, sight),
        sight.new.logits,
        Oracle().logits(module, sight),
    ]
    return torch.stack([(each.argmax(1) == sight.new.labels).sum() for each in logits]).cpu()


def _rows(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield which images a batch takes, epoch after epoch in another order."""
    while True:
        yield from torch.randperm(count, generator=generator).split(size)
