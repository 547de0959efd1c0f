"""`pdd-device plan`: what a trace would be worth, on paper, before anything is installed."""
