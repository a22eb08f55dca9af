"""The two caching verbs, and what caches were made from."""
