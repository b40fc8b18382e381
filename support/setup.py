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
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / (os.environ.get("VENV") or ".venv")
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
NOTEBOOKS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
# Progress bars are for people at a screen: in a stored notebook they would be dead text.
STORED = {"TQDM_DISABLE": "1"}


def run(*command: str | Path, **variables: str) -> None:
    """Run a command in the project's folder; when it fails, this script ends with its status."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | variables)
    if done.returncode:
        sys.exit(done.returncode)


def set_up() -> None:
    """Make the environment, unless it is there and was made from the same lists of packages."""
    if sys.version_info < (3, 10):  # noqa: UP036  who runs it may have an older one
        sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12, or start that one.")
    constraints = os.environ.get("CONSTRAINTS")
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    packages = ["-r", str(ROOT / "requirements.txt")]
    if constraints:  # the names alone, with the versions of the other file
        names = re.findall(r"^[\w-]+", wanted, re.MULTILINE)
        packages = [*sorted(set(names)), "-c", constraints]
        wanted = (ROOT / constraints).read_text(encoding="utf-8") + wanted
    ready = VENV / ".ready"
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return
    venv.create(VENV, with_pip=True)
    install(packages)
    ready.write_text(wanted, encoding="utf-8")


def install(packages: list[str]) -> None:
    """Install with uv or pip, and say where PyTorch comes from."""
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    index = os.environ.get("TORCH_INDEX")
    if index:
        print(f"PyTorch comes from TORCH_INDEX={index}.", flush=True)
        run(*pip, *torch_of(packages), "--index-url", index)
    elif shutil.which("uv"):
        uv = ["uv", "pip", "install", "--quiet", "--python", PYTHON, "--torch-backend=auto"]
        if subprocess.run([*map(str, uv), *packages], cwd=ROOT).returncode == 0:
            print("uv chose the build of PyTorch that fits this machine.", flush=True)
            return
        print("uv could not install: pip takes over.", flush=True)
    if not index:
        print("pip takes its usual build of PyTorch; TORCH_INDEX=… names another.", flush=True)
    run(*pip, *packages)


def torch_of(packages: list[str]) -> list[str]:
    """torch and torchvision, with the versions that a list of packages pins."""
    if packages[0] != "-r":
        return ["torch", "torchvision", *packages[-2:]]
    text = Path(packages[1]).read_text(encoding="utf-8")
    return re.findall(r"^torch(?:vision)?==[\w.]+", text, re.MULTILINE)


def notebooks() -> None:
    options = ["--log-level=ERROR", "--output-dir=runs/notebooks"]
    for option in ("timeout=-1", "store_widget_state=False"):
        options.append(f"--ExecutePreprocessor.{option}")
    run(PYTHON, "-m", "nbconvert", "--to=notebook", "--execute", *options, *NOTEBOOKS, **STORED)
    print(
        "Executed copies are in runs/notebooks/. To work with them: "
        f"{PYTHON} -m jupyter lab notebooks"
    )


def test() -> None:
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "pytest", "tests")
    options = ["--nbval-lax", "--nbval-cell-timeout=600"]
    run(PYTHON, "-m", "pytest", *options, "notebooks", VAE_FAST="1", **STORED)


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
