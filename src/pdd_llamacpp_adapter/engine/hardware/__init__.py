"""What llama.cpp computes on: the devices that its build can use, what fits on them, threads, and its C parameters."""
