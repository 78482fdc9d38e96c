"""`estimate watch`: a training run as a child process, the card sampled beside it, its phases read from what it prints."""
