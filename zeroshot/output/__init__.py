"""Files that survive interruption: formats, atomic writes, leases, object stores."""
