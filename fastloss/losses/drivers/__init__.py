"""What the losses of a family share, from their arguments to the one kernel call."""
