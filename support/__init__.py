"""Floor 3: what surrounds the story that vae_helpers.py tells: more models, measures, runs."""
