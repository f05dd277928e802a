"""`python -m trialkeeper`."""

from trialkeeper.command_line import main

main()
