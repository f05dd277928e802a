"""What saves a framework's whole resumable state and takes it up again: a module for each, which imports it.

Importing this imports no framework.
"""
