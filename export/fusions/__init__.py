"""How features of several encoders become one, a file each."""
