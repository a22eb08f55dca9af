"""Tools of our own: small models and clips to try everything in seconds, and conversions."""
