"""Programs that measure and print a table; none of them is part of a check."""
