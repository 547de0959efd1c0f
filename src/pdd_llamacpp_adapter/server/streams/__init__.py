"""Streams that can be read again, from any byte on: by llama.cpp server's convention."""
