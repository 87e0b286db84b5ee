"""One file per verb: parsing and printing only."""
