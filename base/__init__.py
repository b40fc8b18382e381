"""Floor 0: what knows neither images nor VAEs."""
