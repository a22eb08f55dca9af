"""Every setting of every tool, once. Standard library only: ComfyUI's process reads this too.

`registry` answers which tools there are and what they take, `argv` writes a command line, `parser` reads one.
"""
