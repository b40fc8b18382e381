"""Floor 5: makes every number and picture that texts quote, as python -m reproduce.NAME."""
