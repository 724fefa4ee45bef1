"""Archives: contexts in a file. docs/archives.md describes the format."""
