"""The upload process, started by the trainer's side and by nobody else."""

from trialkeeper.upload.process import main

main()
