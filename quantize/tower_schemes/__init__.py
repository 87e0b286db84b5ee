"""One file for each way in which a tensor of the tower or the projector can be stored."""
