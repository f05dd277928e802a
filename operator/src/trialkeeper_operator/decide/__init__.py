"""Pure decisions: what ought to happen next. Reads no clock and no environment; `now` is an argument."""
