"""The device that computes, the precision it multiplies in, and the processes that share a run."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from base.errors import VAEError


def get_device() -> torch.device:
    """The one place that names a device: $VAE_DEVICE, else CUDA, else Apple's MPS, else the CPU."""
    name = os.environ.get("VAE_DEVICE")
    if name:
        try:
            torch.zeros(1, device=name).cpu()  # a name that is spelt right may still be absent
        except (RuntimeError, AssertionError, NotImplementedError):
            raise VAEError(f"VAE_DEVICE must be a device of this machine, not {name!r}.") from None
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def hardware() -> str:
    """The name of the device, as a run's record keeps it."""
    device = get_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
    suffix = ", MPS" if device.type == "mps" else ""
    return f"{name}, {torch.get_num_threads()} threads{suffix}"


def precision(device: torch.device) -> torch.dtype:
    """What encoder and decoder multiply in while they train.

    bfloat16 where the hardware does that itself, else float32; $VAE_PRECISION names one of the
    two. Weights, losses, exp and KL are float32, and so is all that comes after training.
    """
    name = os.environ.get("VAE_PRECISION")
    if name:
        if name not in ("float32", "bfloat16"):
            raise VAEError(f"VAE_PRECISION must be float32 or bfloat16, not {name!r}.")
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """A context in which networks multiply in the precision of training, see precision."""
    dtype = precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def precision_name() -> str:
    """float32 or bfloat16, for the record of a run."""
    return str(precision(get_device())).removeprefix("torch.")


def processes() -> tuple[int, int]:
    """The rank of this process and how many train together: (0, 1) without torchrun."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def own_share(batch: Tensor) -> Tensor:
    """The part of a batch that this process trains on; all of it without torchrun."""
    rank, world = processes()
    return batch[rank::world]


def gradient_weight(share: int, batch: int) -> float:
    """What a loss is multiplied by, so that torchrun's mean of gradients is that of the batch.

    The shares of the processes may differ by one image; without torchrun it is 1.
    """
    return share / batch * processes()[1]


def all_reduce(sums: Tensor) -> Tensor:
    """The sum over the processes that train together."""
    if processes()[1] == 1:
        return sums
    total = sums.to(get_device(), copy=True)  # NCCL adds on GPUs only
    torch.distributed.all_reduce(total)
    return total.to(sums.device)


def of_first_process(tensor: Tensor) -> Tensor:
    """What the first of the processes that train together has; without torchrun the tensor."""
    if processes()[1] == 1:
        return tensor
    shared = tensor.contiguous()
    torch.distributed.broadcast(shared, src=0)
    return shared


def import_torchvision():
    """Import torchvision, also where its compiled operators do not load.

    A CUDA build of torchvision beside a CPU build of torch fails with "operator torchvision::nms
    does not exist". Nothing in this project uses those operators, so declaring them is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
        # Forget the first attempt, which is half imported.
        for module in list(sys.modules):
            if module.split(".")[0] == "torchvision":
                del sys.modules[module]
        import torchvision
    return torchvision
