# make notebooks   set up if needed, run the three notebooks; the executed copies go to runs/notebooks/
# make test        set up if needed, check the code, run all tests, compare the notebooks' marked cells
# make html        set up if needed, write notebooks and answers as HTML files to runs/html/
# make page        set up if needed, build docs/index.html, the explorers that need no kernel
# make release     train everything on the real data: committed outputs, checkpoints/, figures/, docs/
#
# The first two are support/setup.py, which also works where there is no make:
#     python -m support.setup notebooks
# It reads these variables:
#     make test CONSTRAINTS=tests/colab.txt   other versions than those pinned in requirements.txt
#     make test TORCH_INDEX=ADDRESS           PyTorch from there, for example its CPU build
#     make test VENV=FOLDER PYTHON=python3.12 another folder than .venv, another Python
# Notebooks are run by support/notebook_runner.py, which shows how far they are.
PYTHON ?= python3
VENV   ?= .venv
export VENV CONSTRAINTS TORCH_INDEX
BIN    := $(VENV)/bin
TASK1  := notebooks/Task1_CIFAR10_ConvVAE_vs_FCVAE.ipynb
TASK2  := notebooks/Task2_Latent_Interpolation.ipynb
TASK3  := notebooks/Task3_CelebA_Latent_Sampling.ipynb
RUN    := $(BIN)/python -m support.notebook_runner --inplace

.PHONY: notebooks test html page release
notebooks test:
	$(PYTHON) -m support.setup $@

html:
	$(PYTHON) -m support.setup
	$(BIN)/python -m support.reading

page:
	$(PYTHON) -m support.setup
	$(BIN)/python -m support.webpage

release:
	$(PYTHON) -m support.setup
	VAE_TRAIN=1 $(RUN) $(TASK1) $(TASK3)
	$(RUN) $(TASK2)
	$(BIN)/python -m reproduce.release
	$(BIN)/python -m reproduce.gallery
	$(BIN)/python -m reproduce.theory
	$(BIN)/python -m support.webpage --collect
	$(BIN)/python -m reproduce.tables
