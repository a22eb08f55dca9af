"""From a dataset file and a folder of clips to cache entries, and from cached entries to training batches."""
