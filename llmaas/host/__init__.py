"""The machine around the service: priority of the process, memory pressure, temperature and battery."""
