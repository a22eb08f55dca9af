"""What install.py does, in modules of the standard library only: any Python 3.10 to 3.13 can run them before anything is installed."""
