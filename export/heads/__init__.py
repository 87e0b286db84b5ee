"""How an encoder's rows become one embedding, and its patches' features: one file each."""
