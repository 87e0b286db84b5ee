"""How an encoder's rows become one embedding: one file each."""
