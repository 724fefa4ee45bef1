"""Several models behind one socket: a small process that accepts connections and hands each to its model's process."""
