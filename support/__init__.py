"""What surrounds the story that vae_helpers.py tells: data, further models, measures, runs."""
