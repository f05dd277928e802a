"""How pods end: each row of docs/endings.md with its variants, as documents that say what is seen and what it means."""
