"""One file per engine that answers beside ours."""
