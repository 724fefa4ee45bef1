"""HTTP: the OpenAI- and Ollama-compatible APIs, in a process of their own that is a client of the daemon."""
