"""Plants faults, and sees whether the gate catches them."""
