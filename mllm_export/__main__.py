"""`python -m mllm_export`."""

from mllm_export.cli import main

if __name__ == "__main__":
    main()
