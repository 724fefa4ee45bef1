"""Pages of results, made of the lines that benches print."""
