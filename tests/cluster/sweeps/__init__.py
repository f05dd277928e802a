"""Stories of the simulation told again on a real API server: so what the memory cluster says is checked, too."""
