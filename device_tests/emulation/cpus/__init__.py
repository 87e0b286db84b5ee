"""CPUs that qemu can play, one TOML file each."""
