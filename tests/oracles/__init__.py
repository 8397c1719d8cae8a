"""Other people's implementations, run on our token ids, to compare ours with."""
