"""``pdd-device eval``: how good answers stay when the prompt is refined, on the user's own model and text."""
