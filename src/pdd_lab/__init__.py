"""The laboratory: measures, simulates, plans, replays and evaluates. Nothing of it runs in production."""
