"""llama.cpp on the device: one model, one context, one thread, and what chooses tokens there."""
