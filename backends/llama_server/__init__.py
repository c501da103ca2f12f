"""A llama-server binary as a worker: described here, run by `backends.guard`. Never imports llama.cpp's bindings."""
