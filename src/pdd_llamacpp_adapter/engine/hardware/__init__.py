"""What llama.cpp computes on: devices, what fits on them, threads, and its parameters in C."""
