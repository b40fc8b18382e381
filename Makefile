# make notebooks   set up if needed, run the three notebooks; the executed copies go to runs/notebooks/
# make test        set up if needed, check the code, run all tests, compare the notebooks' marked cells
# make release     train everything on the real data: committed outputs, checkpoints/, figures/, docs/
#
# make test CONSTRAINTS=tests/colab.txt   with other versions than those pinned in requirements.txt
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TASK1  := notebooks/Task1_CIFAR10_ConvVAE_vs_FCVAE.ipynb
TASK2  := notebooks/Task2_Latent_Interpolation.ipynb
TASK3  := notebooks/Task3_CelebA_Latent_Sampling.ipynb
# Progress bars are for people at a screen: in a stored notebook they would be dead text.
RUN    := TQDM_DISABLE=1 $(BIN)/python -m nbconvert --to notebook --execute --log-level=ERROR \
          --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.store_widget_state=False

.PHONY: notebooks test release
notebooks: $(VENV)/.ready
	$(RUN) --output-dir runs/notebooks $(TASK1) $(TASK2) $(TASK3)
	@echo "Executed copies are in runs/notebooks/. To work with them: $(BIN)/python -m jupyter lab notebooks"

test: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests
	VAE_FAST=1 TQDM_DISABLE=1 $(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=600 notebooks

release: $(VENV)/.ready
	VAE_TRAIN=1 $(RUN) --inplace $(TASK1) $(TASK3)
	$(RUN) --inplace $(TASK2)
	$(BIN)/python checkpoints/release.py
	$(BIN)/python figures/prior.py
	$(BIN)/python figures/make.py

$(VENV)/.ready: requirements.txt $(CONSTRAINTS)
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.12 …')"
	$(PYTHON) -m venv $(VENV)
ifdef CONSTRAINTS
	sed 's/[=;#].*//' requirements.txt | sort -u > $(VENV)/names.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/names.txt -c $(CONSTRAINTS)
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
endif
	touch $@
