"""The twin of digits.py that forgets: it saves its checkpoints and never asks for them.

It is here to show that a trainer which does not resume is found out, by the tests and by `trialkeeper drill`.
"""

import digits

import trialkeeper

trialkeeper.get_checkpoint = lambda: None

if __name__ == "__main__":
    digits.train()
