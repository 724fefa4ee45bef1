"""``llmaas trace``: traces of calls, made, shown, and taken from recordings or from public data."""
