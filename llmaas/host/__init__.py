"""The machine around the service: process priority, memory pressure, temperature and battery."""
