"""The machine around the service: priority of the process, memory pressure, temperature and battery."""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
