"""The embedded llama.cpp worker: `backend` describes it to the daemon, everything else is the worker program."""
