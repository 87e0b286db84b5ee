"""What bundles cost on emulated CPUs, a record per target; checked by `check --cost`."""
