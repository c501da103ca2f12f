"""The continuous-batching engine: one thread owns the llama.cpp context; everyone else talks to it by messages."""
