"""The custom resources: models, rules, names. Knows nothing of how anything is done."""
