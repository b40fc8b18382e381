"""What changes while a model trains: optimiser, schedule, averaged weights, random numbers.

vae_helpers.fit calls it; nothing in it is particular to a VAE.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from base.hardware import processes

# Images up to this size live on the accelerator: all of CelebA at 64x64 has 2.5 GB.
RESIDENT_BYTES = 4 << 30


def keep_on_device(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device, if it is an accelerator that can hold them; else as they are."""
    fits = images.nbytes <= RESIDENT_BYTES
    return images.to(device) if device.type != "cpu" and fits else images


class TrainingState:
    """Everything that changes in a training; restore continues from what state_dict gave.

    With config.ema the model holds its averaged weights between two epochs. swap_average exchanges
    them for the raw ones, which learn, before an epoch, and back after it. Under torchrun `network`
    averages the gradients of all processes.
    """

    def __init__(self, model: nn.Module, config, steps: int):
        """steps: of the optimiser, in the whole run."""
        rank, world = processes()
        self.model, self.config = model, config
        self.network = DistributedDataParallel(model) if world > 1 else model
        self.order_rng = torch.Generator().manual_seed(config.seed)
        self.noise_rng = torch.Generator(model.device).manual_seed(config.seed + 1000 * rank)
        self.optimiser = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad], lr=config.lr, fused=True
        )
        self.schedule = None
        if config.schedule == "one_cycle":  # Smith & Topin 2018
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(
                self.optimiser, config.lr, total_steps=steps, cycle_momentum=False
            )
        self.average = None
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=self._ema, use_buffers=True)

    def _ema(self, averages: list[Tensor], values: list[Tensor], n: Tensor) -> None:
        """Move the averages; the decay starts small, so that the first weights are forgotten."""
        decay = min(self.config.ema, (1 + n.item()) / (10 + n.item()))
        get_ema_multi_avg_fn(decay)(averages, values, n)

    def batch(
        self, images: Tensor, conditions: Tensor | None, indices: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """This process's share of a batch, on the device: images, some mirrored, and conditions."""
        rank, world = processes()
        device = self.model.device
        share = indices[rank::world]
        images = images[share.to(images.device)].to(device)
        if self.config.flip == "horizontal":
            mirrored = torch.rand(len(images), generator=self.noise_rng, device=device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if conditions is not None:
            conditions = conditions[share].to(device)
        return images.contiguous(memory_format=torch.channels_last), conditions

    def step(self, loss: Tensor, share: float = 1.0) -> None:
        """One step of the optimiser, the schedule and the average.

        share: of the batch's images, those of this process. torchrun averages gradients over the
        processes, whose shares may differ by one image.
        """
        _, world = processes()
        self.optimiser.zero_grad(set_to_none=True)
        (loss * (share * world)).backward()
        self.optimiser.step()
        if self.schedule:
            self.schedule.step()
        if self.average:
            self.average.update_parameters(self.model)

    def swap_average(self) -> None:
        """Exchange the model's weights with the averaged ones, if there are any."""
        if not self.average:
            return
        averages = self.average.module.state_dict()
        for name, value in self.model.state_dict().items():
            kept = value.clone()
            value.copy_(averages[name])
            averages[name].copy_(kept)

    def state_dict(self) -> dict:
        """After an epoch and swap_average: "model" has the weights that count."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "order_rng": self.order_rng.get_state(),
            "noise_rng": self.noise_rng.get_state(),
        }

    def restore(self, history: list[dict], state: dict, epochs_done: int) -> list[dict]:
        """Be as after the last epoch of the history; returns a copy of it.

        epochs_done: of this stage. When it has none, only the model's weights count.
        """
        self.model.load_state_dict(state["model"])
        if epochs_done == 0:
            if self.average:
                self.average.module.load_state_dict(state["model"])
            return list(history)
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self.order_rng.set_state(state["order_rng"])
        # The noise of the first process was kept, in the form of its kind of device.
        rank, _ = processes()
        if rank == 0 and len(state["noise_rng"]) == len(self.noise_rng.get_state()):
            self.noise_rng.set_state(state["noise_rng"])
        else:
            self.noise_rng.manual_seed(self.config.seed + 1000 * rank + len(history))
        return list(history)
