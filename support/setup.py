"""Set up .venv, then run the notebooks or the tests: what `make` calls, and what works without it.

    python -m support.setup              the environment alone
    python -m support.setup notebooks    executed copies go to runs/notebooks/
    python -m support.setup test         checks the code, runs all tests, compares marked cells

Environment variables: VENV names another folder than .venv; CONSTRAINTS a file with other versions
than those pinned in requirements.txt; TORCH_INDEX the address from which PyTorch is installed.
Without it, uv picks the build that fits this machine where uv is installed, else pip its usual one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / (os.environ.get("VENV") or ".venv")
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
NOTEBOOKS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
OLDEST, NEWEST = (3, 10), (3, 15)  # the versions of Python that PyTorch has packages for


def run(*command: str | Path, **variables: str) -> None:
    """Run a command in the project's folder; when it fails, this script ends with its status."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | variables)
    if done.returncode:
        sys.exit(done.returncode)


def obstacle() -> str:
    """Why this project cannot be installed here, with a way out; "" when it can.

    What has wheels was looked up in November 2026 for the versions in requirements.txt.
    """
    version = sys.version_info[:2]
    system, machine = platform.system(), platform.machine().lower()
    if not OLDEST <= version <= NEWEST:
        asked, oldest, newest = (".".join(map(str, v)) for v in (version, OLDEST, NEWEST))
        return (
            f"Python {oldest} to {newest} is needed, and this is {asked}: start another one, "
            "as in `make PYTHON=python3.12` or `python3.12 -m support.setup`."
        )
    if importlib.util.find_spec("ensurepip") is None:
        return (
            "This Python lacks ensurepip, which environments are made with: on Debian and Ubuntu, "
            "`apt install python3-venv` brings it."
        )
    if os.environ.get("TORCH_INDEX"):  # who names a place for PyTorch knows what it has
        return ""
    if platform.python_implementation() != "CPython":
        return "PyTorch has no packages for this Python: start CPython, the one of python.org."
    if system == "Darwin" and machine == "x86_64":
        return (
            "PyTorch has had no packages for Intel Macs since 2.2: open the notebooks on Colab or "
            "on another machine, or start an arm64 Python if this Mac has Apple silicon."
        )
    if sys.maxsize <= 2**32:
        return "PyTorch has no packages for a 32-bit Python: install the 64-bit one."
    if system == "Windows" and machine == "arm64":
        return (
            "PyTorch has no packages for Python on Windows for ARM: install the 64-bit Python for "
            "Intel and AMD, which runs there, too."
        )
    if machine not in ("x86_64", "amd64", "aarch64", "arm64"):
        return (
            f"PyTorch has no packages for processors of the kind {machine}: open the notebooks on "
            "Colab or on another machine, or name a place that has them in TORCH_INDEX."
        )
    if "musl" in (sysconfig.get_config_var("SOABI") or ""):
        return (
            "PyTorch has no packages for a Linux with musl, like Alpine: use one with glibc, "
            "like Debian."
        )
    return ""


def set_up() -> None:
    """Make the environment, unless it is there and was made from the same lists of packages."""
    if obstacle():
        sys.exit(obstacle())
    pins = os.environ.get("CONSTRAINTS") or "requirements.txt"
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    names = sorted(set(re.findall(r"^[\w-]+", wanted, re.MULTILINE)))
    if pins != "requirements.txt":
        wanted = (ROOT / pins).read_text(encoding="utf-8") + wanted
    ready = VENV / ".ready"
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return
    venv.create(VENV, with_pip=True)
    install(names, pins)
    ready.write_text(wanted, encoding="utf-8")


def install(names: list[str], pins: str) -> None:
    """Install packages in the versions that a file pins, and say where PyTorch comes from."""
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    index = os.environ.get("TORCH_INDEX")
    if index:
        print(f"PyTorch comes from TORCH_INDEX={index}.", flush=True)
        run(*pip, "torch", "torchvision", "-c", pins, "--index-url", index)
    elif shutil.which("uv"):
        uv = ["uv", "pip", "install", "--quiet", "--python", PYTHON, "--torch-backend=auto"]
        if subprocess.run([*map(str, uv), *names, "-c", pins], cwd=ROOT).returncode == 0:
            print("uv chose the build of PyTorch that fits this machine.", flush=True)
            return
        print("uv could not install: pip takes over.", flush=True)
    if not index:
        print("pip takes its usual build of PyTorch; TORCH_INDEX=… names another.", flush=True)
    run(*pip, *names, "-c", pins)


def notebooks() -> None:
    run(PYTHON, "-m", "support.notebook_runner", *NOTEBOOKS)
    print(
        "Executed copies are in runs/notebooks/. To work with them: "
        f"{PYTHON} -m jupyter lab notebooks"
    )


def test() -> None:
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "pytest", "tests")
    options = ["--nbval-lax", "--nbval-cell-timeout=600"]
    run(PYTHON, "-m", "pytest", *options, "notebooks", VAE_FAST="1", TQDM_DISABLE="1")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=["notebooks", "test"])
    task = parser.parse_args().task
    set_up()
    if task == "notebooks":
        notebooks()
    elif task == "test":
        test()


if __name__ == "__main__":
    main()
