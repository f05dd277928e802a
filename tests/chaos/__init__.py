"""Chaos: real training on a real cluster while parts of it are killed and frozen at random, and the proof afterwards.

`make chaos MINUTES=10` runs it. A seed says what happens and when (`story`), hands do it (`hands`), and the books are
compared when everything is over (`books`): each ending must be owed to what was done, and nothing may be lost.
"""
