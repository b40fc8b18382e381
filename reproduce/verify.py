"""Evaluate every released model on its test images and compare with its record.

    python -m reproduce.verify      some minutes on two CPU cores

Those that were measured on other images are left out and named. Exit code 1 when a number differs
by more than rounding on another processor can explain.
"""

from __future__ import annotations

import sys

import vae_helpers as vae
from reproduce.common import CHECKPOINTS, chosen
from support import runs

TOLERANCE = 1e-4  # relative; the same processor gives the same digits


def main() -> None:
    chosen(__doc__, [])
    sets = {
        name: vae.load_dataset(name, or_shapes=True) for name in ("cifar10", "celeba", "shapes")
    }
    rows, failures = [], 0
    for path in sorted(CHECKPOINTS.glob("*/model.safetensors")):
        model, record = vae.load_checkpoint(path.parent)
        data = sets[model.config.dataset]
        if record["data"]["fingerprint"] != data.fingerprint:
            print(f"{path.parent.name} is left out: it was measured on other images than yours.")
            continue
        recorded = record["test_half_precision"]
        measured = vae.evaluate(model, *data.test)
        worst = max(abs(measured[k] - v) / max(abs(v), 1e-12) for k, v in recorded.items())
        failures += worst > TOLERANCE
        row = {"model": path.parent.name, "recorded total (nats)": f"{recorded['total_nats']:,.4f}"}
        row["measured total (nats)"] = f"{measured['total_nats']:,.4f}"
        row["largest relative difference"] = f"{worst:.1e}"
        rows.append(row)
    print(vae.markdown_table(rows))
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    runs.run_script(main)
