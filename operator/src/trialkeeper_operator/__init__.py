"""Trialkeeper, the operator's side: what ought to happen to experiments and trials, and making it so."""
