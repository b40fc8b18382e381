"""What changes while a model trains, and has to be saved so that a run can go on to the same bit.

vae_helpers.train_epoch uses it; nothing in it is particular to a VAE.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from base.hardware import processes

# Images up to this size live on the accelerator: all of CelebA at 64x64 has 2.5 GB.
ON_DEVICE_BYTES = 4 << 30


def keep_on_device(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device, if it is an accelerator that can hold them; else as they are."""
    fits = images.nbytes <= ON_DEVICE_BYTES
    return images.to(device) if device.type != "cpu" and fits else images


def step_sizes(optimiser: torch.optim.Optimizer, kind: str, lr: float, steps: int) -> LRScheduler:
    """The schedule of the step size over so many steps: "constant", or "one_cycle".

    One cycle (Smith & Topin 2018) rises for three tenths of the steps, and falls to almost 0.
    """
    if kind == "one_cycle":
        return OneCycleLR(optimiser, lr, total_steps=steps, cycle_momentum=False)
    return ConstantLR(optimiser, factor=1.0)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that holds the exponential moving average of its weights and buffers.

    The decay starts small and rises to its value, so that the first weights are forgotten.
    """

    def update(averages: list[Tensor], values: list[Tensor], n: Tensor) -> None:
        current = min(decay, (1 + n.item()) / (10 + n.item()))
        get_ema_multi_avg_fn(current)(averages, values, n)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class TrainingState:
    """Optimiser, schedule, averaged weights and random numbers of one training.

    model       learns
    network     what is called in its place: under torchrun it averages gradients over processes
    average     its moving average, or None
    order_rng   the order of the images
    noise_rng   all else that is random: eps of each z, mirrored images, draws for the MMD, labels
                that are dropped, codes that are revived; each process has its own

    Both generators start from the seed. A model that trains in stages makes them anew for each, so
    that every stage sees the images in the same order.
    """

    def __init__(
        self, model: nn.Module, *, lr: float, schedule: str, steps: int, ema: float, seed: int
    ):
        """steps: of the optimiser, from the first epoch to the last."""
        rank, world = processes()
        self.model = model
        self.network = DistributedDataParallel(model) if world > 1 else model
        learning = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(learning, lr=lr, fused=True)
        self.schedule = step_sizes(self.optimiser, schedule, lr, steps)
        self.average = moving_average(model, ema) if ema else None
        self.seed = seed + 1000 * rank
        self.order_rng = torch.Generator().manual_seed(seed)
        self.noise_rng = torch.Generator(model.device).manual_seed(self.seed)

    @property
    def result(self) -> nn.Module:
        """The model with the weights that count: the average, where there is one."""
        return self.average.module if self.average else self.model

    def update_average(self) -> None:
        if self.average:
            self.average.update_parameters(self.model)

    def state_dict(self) -> dict:
        """Everything after an epoch; "result" has the weights that count."""
        return {
            "result": self.result.state_dict(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order_rng": self.order_rng.get_state(),
            "noise_rng": self.noise_rng.get_state(),
        }

    def load_state_dict(self, state: dict, epochs: int) -> None:
        """Be as after so many epochs."""
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.order_rng.set_state(state["order_rng"])
        # The noise of the first process was kept, in the form of its kind of device.
        rank, _ = processes()
        if rank == 0 and len(state["noise_rng"]) == len(self.noise_rng.get_state()):
            self.noise_rng.set_state(state["noise_rng"])
        else:
            self.noise_rng.manual_seed(self.seed + epochs)
